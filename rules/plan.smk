"""What will the study cost? `snakemake --cores 1 plan` tells, before anything is spent."""

import json
import sys
import time


rule plan_study:
    localrule: True
    input:
        rates=own("resources/rates.tsv"),
        slides=CONFIG["slides"],
    output:
        text="results/plan.txt",
        table="results/plan.tsv",
        json="results/plan.json",
    params:
        config=json.dumps(CONFIG),
        goals=["all"],
        # Reckoned anew each time it is asked for, for what is done already counts.
        asked=time.time_ns(),
        # The environment of the job need not have Snakemake.
        python=sys.executable,
        code=code_hash("plan_study"),
    log:
        "logs/plan_study/all.log",
    benchmark:
        "benchmarks/plan_study/all.tsv"
    retries: 0
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    conda:
        "../envs/train.yaml"
    # It starts the Snakemake that started it, which the image may lack.
    container:
        None
    message:
        "Reckoning what the study will cost"
    script:
        "../scripts/plan_study.py"


rule plan:
    input:
        rules.plan_study.output,
