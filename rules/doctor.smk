"""Will the study run here? `snakemake --cores 1 doctor` looks, tells, and fails where something stands in the way."""

import time

from nuclass.doctor.packages import installed


rule examine_study:
    localrule: True
    input:
        CONFIG["slides"],
    output:
        report="results/doctor.json",
    params:
        # Told anew each time it is asked for: the machine may have changed where no file has.
        asked=time.time_ns(),
        files=[*map(str, CONFIG_FILES)],
        # A job's own environment need not have them.
        outer=installed(["snakemake", "snakemake-executor-plugin-slurm"]),
        environment=str(ROOT / "envs" / "train.yaml"),
        code=code_hash("examine_study"),
    log:
        "logs/examine_study/all.log",
    benchmark:
        "benchmarks/examine_study/all.tsv"
    retries: 0
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    conda:
        "../envs/train.yaml"
    # It judges the machine, not the image.
    container:
        None
    message:
        "Checking whether the study will run on this machine"
    script:
        "../scripts/examine_study.py"


rule doctor:
    input:
        rules.examine_study.output.report,
