"""What the runs under changed settings come to: the ablations, and the audit of the original's flaws."""


include: "comparisons.smk"


wildcard_constraints:
    comparison="|".join(RUN_COMPARISONS),
    organ="|".join(LEFT_OUT) or "(?!)",


rule compare_runs:
    input:
        tables=lambda wildcards: files_of(*compared(wildcards.comparison)),
    output:
        csv="results/evaluation/ablations/{comparison}.csv",
        spread="results/evaluation/ablations/{comparison}_spread.csv",
    params:
        runs=lambda wildcards: compared(wildcards.comparison),
        options=INTERVALS,
        code=code_hash("compare_runs"),
    log:
        "logs/compare_runs/{comparison}.log",
    benchmark:
        "benchmarks/compare_runs/{comparison}.tsv"
    threads: 1
    resources:
        mem_mb=mem(1500, 1),
        runtime=minutes(240, per_gb=30),
    conda:
        "../envs/evaluate.yaml"
    message:
        "Comparing runs that differ in: {wildcards.comparison}"
    script:
        "../scripts/compare_runs.py"


rule judge_left_out:
    input:
        tables=lambda wildcards: files_of(*without(wildcards.organ)),
    output:
        json="results/evaluation/ablations/without_{organ}.json",
    params:
        runs=lambda wildcards: without(wildcards.organ),
        options=INTERVALS,
        code=code_hash("judge_left_out"),
    log:
        "logs/judge_left_out/{organ}.log",
    benchmark:
        "benchmarks/judge_left_out/{organ}.tsv"
    threads: 1
    resources:
        mem_mb=mem(1500, 3),
        runtime=minutes(60, per_gb=60),
    conda:
        "../envs/evaluate.yaml"
    message:
        "Judging models that never saw an organ on its cells: {wildcards.organ}"
    script:
        "../scripts/judge_left_out.py"


rule compare_embeddings:
    input:
        tables=files_of(*map(run_tables, ORGAN_RUNS)),
    output:
        json="results/evaluation/ablations/film_vs_concat.json",
    params:
        models={run.value: files_of(run_tables(run.name)) for run in VARIANTS.group(of_variants.ORGAN)},
        options={
            "subset": CONFIG["ablations"]["subset"],
            **{key: INTERVALS[key] for key in ("seed", "draws", "mpp", "block_um")},
        },
        code=code_hash("compare_embeddings"),
    log:
        "logs/compare_embeddings/all.log",
    benchmark:
        "benchmarks/compare_embeddings/all.tsv"
    threads: 1
    resources:
        mem_mb=mem(3000, 2),
        runtime=minutes(60, per_gb=60),
    conda:
        "../envs/evaluate.yaml"
    message:
        "Comparing embeddings that use the organ by FiLM, by concatenation and not at all"
    script:
        "../scripts/compare_embeddings.py"


rule tabulate_uncertainty_guidance:
    input:
        csv="results/evaluation/ablations/guidance.csv",
    output:
        csv=laid_out("uncertainty_guidance", "Ablations", "Uncertainty guidance"),
        md="results/tables/uncertainty_guidance.md",
        tex="results/tables/uncertainty_guidance.tex",
    params:
        told=TOLD,
        code=code_hash("tabulate_uncertainty_guidance"),
    log:
        "logs/tabulate_uncertainty_guidance/all.log",
    benchmark:
        "benchmarks/tabulate_uncertainty_guidance/all.tsv"
    group:
        "ablations"
    threads: 1
    resources:
        mem_mb=mem(500),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Table uncertainty_guidance: with and without weights in the guided loss"
    script:
        "../scripts/tabulate_uncertainty_guidance.py"


rule tabulate_context_sizes:
    input:
        csv="results/evaluation/ablations/context.csv",
    output:
        csv=laid_out("context_sizes", "Ablations", "Sizes of the global window"),
        md="results/tables/context_sizes.md",
        tex="results/tables/context_sizes.tex",
    params:
        told=TOLD,
        code=code_hash("tabulate_context_sizes"),
    log:
        "logs/tabulate_context_sizes/all.log",
    benchmark:
        "benchmarks/tabulate_context_sizes/all.tsv"
    group:
        "ablations"
    threads: 1
    resources:
        mem_mb=mem(500),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Table context_sizes: global windows of several sizes"
    script:
        "../scripts/tabulate_context_sizes.py"


rule tabulate_seeds:
    input:
        spread=f"results/evaluation/ablations/{of_variants.SEEDS}_spread.csv",
    output:
        csv=laid_out("seeds", "Ablations", "What the seed changes"),
        md="results/tables/seeds.md",
        tex="results/tables/seeds.tex",
    params:
        told=TOLD,
        code=code_hash("tabulate_seeds"),
    log:
        "logs/tabulate_seeds/all.log",
    benchmark:
        "benchmarks/tabulate_seeds/all.tsv"
    group:
        "ablations"
    threads: 1
    resources:
        mem_mb=mem(500),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Table seeds: how much the numbers change with the seed alone"
    script:
        "../scripts/tabulate_seeds.py"


rule tabulate_film_vs_concat:
    input:
        json="results/evaluation/ablations/film_vs_concat.json",
    output:
        csv=laid_out("film_vs_concat", "Ablations", "FiLM, concatenation, none"),
        md="results/tables/film_vs_concat.md",
        tex="results/tables/film_vs_concat.tex",
    params:
        told=TOLD,
        code=code_hash("tabulate_film_vs_concat"),
    log:
        "logs/tabulate_film_vs_concat/all.log",
    benchmark:
        "benchmarks/tabulate_film_vs_concat/all.tsv"
    group:
        "ablations"
    threads: 1
    resources:
        mem_mb=mem(500),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Table film_vs_concat: how the organ is used"
    script:
        "../scripts/tabulate_film_vs_concat.py"


rule tabulate_left_out:
    input:
        results=expand("results/evaluation/ablations/without_{organ}.json", organ=LEFT_OUT),
    output:
        csv=laid_out("left_out", "Ablations", "An organ that was never seen"),
        md="results/tables/left_out.md",
        tex="results/tables/left_out.tex",
    params:
        told=TOLD,
        code=code_hash("tabulate_left_out"),
    log:
        "logs/tabulate_left_out/all.log",
    benchmark:
        "benchmarks/tabulate_left_out/all.tsv"
    group:
        "ablations"
    threads: 1
    resources:
        mem_mb=mem(500),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Table left_out: FiLM, concat and none on an organ that was never seen"
    script:
        "../scripts/tabulate_left_out.py"
