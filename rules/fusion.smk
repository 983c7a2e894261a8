"""The gate under scrutiny: against other ways to fuse, branch against branch, its behaviour."""

from nuclass.core.readings import GATE_PARTS

GATE_TABLES = {part: f"results/evaluation/gate_behaviour/{part}.csv" for part in GATE_PARTS}


rule compare_fusions:
    input:
        tables=expand("results/predictions/{model}/{slide}.parquet", model=MODELS, slide=COHORTS),
        training=expand("results/predictions/{model}/{slide}.parquet", model=MODELS, slide=TRAIN_SLIDES),
    output:
        json="results/evaluation/fusion.json",
        csv="results/evaluation/fusion.csv",
    params:
        models=MODELS,
        mpp=CONFIG["mpp"],
        evaluation=CONFIG["evaluation"],
        closed_set=PROTOCOL.closed_set,
        policy_on_test=PROTOCOL.policy_on_test,
        code=code_hash("compare_fusions"),
    log:
        "logs/compare_fusions/all.log",
    benchmark:
        "benchmarks/compare_fusions/all.tsv"
    group:
        "fusion"
    threads: 1
    resources:
        mem_mb=mem(1500, 6),
        runtime=minutes(240, per_gb=480),
    conda:
        "../envs/evaluate.yaml"
    message:
        "Comparing the gate with other ways to fuse the branches"
    script:
        "../scripts/compare_fusions.py"


rule count_complementarity:
    input:
        tables=expand("results/predictions/{model}/{slide}.parquet", model=["local", "global"], slide=COHORTS),
    output:
        csv="results/evaluation/complementarity.csv",
    params:
        models=["local", "global"],
        mpp=CONFIG["mpp"],
        evaluation=CONFIG["evaluation"],
        code=code_hash("count_complementarity"),
    log:
        "logs/count_complementarity/all.log",
    benchmark:
        "benchmarks/count_complementarity/all.tsv"
    group:
        "fusion"
    threads: 1
    resources:
        mem_mb=mem(1500, 6),
        runtime=minutes(30, per_gb=30),
    conda:
        "../envs/evaluate.yaml"
    message:
        "Counting which branch is right on which cells, class by class"
    script:
        "../scripts/count_complementarity.py"


rule describe_gate:
    input:
        tables=expand("results/predictions/{model}/{slide}.parquet", model=MODELS, slide=COHORTS),
    output:
        **GATE_TABLES,
        summary="results/evaluation/gate_behaviour/summary.json",
    params:
        models=MODELS,
        mpp=CONFIG["mpp"],
        square_um=CONFIG["evaluation"]["block_um"],
        code=code_hash("describe_gate"),
    log:
        "logs/describe_gate/all.log",
    benchmark:
        "benchmarks/describe_gate/all.tsv"
    group:
        "fusion"
    threads: 1
    resources:
        mem_mb=mem(1500, 6),
        runtime=minutes(30, per_gb=30),
    conda:
        "../envs/evaluate.yaml"
    message:
        "Describing the gate by class, by who is right, by uncertainty and by place"
    script:
        "../scripts/describe_gate.py"


rule draw_gate:
    input:
        **SHEETS,
        **GATE_TABLES,
        summary="results/evaluation/gate_behaviour/summary.json",
    output:
        pictures=drawn("gate", "Results", "What the gate does"),
        csv="results/figures/gate.csv",
    params:
        synthetic=SYNTHETIC,
        code=code_hash("draw_gate"),
    log:
        "logs/draw_gate/all.log",
    benchmark:
        "benchmarks/draw_gate/all.tsv"
    group:
        "fusion"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Figure gate: where the gate opens, and how well it tells"
    script:
        "../scripts/draw_gate.py"


rule draw_fusion:
    input:
        **SHEETS,
        comparison="results/evaluation/fusion.csv",
    output:
        pictures=drawn("fusion", "Results", "Gate and other ways to fuse"),
        csv="results/figures/fusion.csv",
    params:
        synthetic=SYNTHETIC,
        code=code_hash("draw_fusion"),
    log:
        "logs/draw_fusion/all.log",
    benchmark:
        "benchmarks/draw_fusion/all.tsv"
    group:
        "fusion"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Figure fusion: the gate against other ways to fuse"
    script:
        "../scripts/draw_fusion.py"


rule draw_complementarity:
    input:
        **SHEETS,
        counts="results/evaluation/complementarity.csv",
    output:
        pictures=drawn("complementarity", "Results", "Local and global by class"),
        csv="results/figures/complementarity.csv",
    params:
        synthetic=SYNTHETIC,
        code=code_hash("draw_complementarity"),
    log:
        "logs/draw_complementarity/all.log",
    benchmark:
        "benchmarks/draw_complementarity/all.tsv"
    group:
        "fusion"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Figure complementarity: which branch is right on which classes"
    script:
        "../scripts/draw_complementarity.py"


rule tabulate_gate_ablation:
    input:
        json="results/evaluation/fusion.json",
        comparison="results/evaluation/fusion.csv",
    output:
        csv=laid_out("gate_ablation", "Ablations", "Gate and other ways to fuse"),
        md="results/tables/gate_ablation.md",
        tex="results/tables/gate_ablation.tex",
    params:
        synthetic=SYNTHETIC,
        flaws=FLAWS,
        code=code_hash("tabulate_gate_ablation"),
    log:
        "logs/tabulate_gate_ablation/all.log",
    benchmark:
        "benchmarks/tabulate_gate_ablation/all.tsv"
    group:
        "fusion"
    threads: 1
    resources:
        mem_mb=mem(500),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Table gate_ablation: the gate against other ways to fuse the branches"
    script:
        "../scripts/tabulate_gate_ablation.py"


rule tabulate_complementarity:
    input:
        counts="results/evaluation/complementarity.csv",
        classes=own("resources/classes.tsv"),
    output:
        csv=laid_out("complementarity", "Results", "Local and global by class"),
        md="results/tables/complementarity.md",
        tex="results/tables/complementarity.tex",
    params:
        synthetic=SYNTHETIC,
        flaws=FLAWS,
        code=code_hash("tabulate_complementarity"),
    log:
        "logs/tabulate_complementarity/all.log",
    benchmark:
        "benchmarks/tabulate_complementarity/all.tsv"
    group:
        "fusion"
    threads: 1
    resources:
        mem_mb=mem(500),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Table complementarity: which branch is right on how many cells"
    script:
        "../scripts/tabulate_complementarity.py"


rule tabulate_gate:
    input:
        summary="results/evaluation/gate_behaviour/summary.json",
        by_truth=GATE_TABLES["by_truth"],
        by_class=GATE_TABLES["by_class"],
        classes=own("resources/classes.tsv"),
    output:
        csv=laid_out("gate", "Results", "What the gate does"),
        md="results/tables/gate.md",
        tex="results/tables/gate.tex",
    params:
        synthetic=SYNTHETIC,
        flaws=FLAWS,
        code=code_hash("tabulate_gate"),
    log:
        "logs/tabulate_gate/all.log",
    benchmark:
        "benchmarks/tabulate_gate/all.tsv"
    group:
        "fusion"
    threads: 1
    resources:
        mem_mb=mem(500),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Table gate: where the gate opens, and how well it tells"
    script:
        "../scripts/tabulate_gate.py"
