"""Judge the models on the cohorts: metrics, intervals, comparisons; on a synthetic study also against its truth."""

MEMBERS = {cohort: [cohort] for cohort in COHORTS} | {"all": COHORTS}
SELECTIONS = list(MEMBERS)
SYNTHETIC = bool((SLIDES["source"] == "synthetic").any())
TRUTH_KNOWN = bool((SLIDES["source"] == "synthetic").all())
TRUTH_SCORES = [
    f"results/evaluation/truth/{part}" for part in ("labels.json", "models.json", "geometry.json", "criteria.csv")
]
EVALUATED = (
    "metrics.json per_class.csv confusion.csv confusion.png reliability.csv risk_coverage.csv organs.csv regions.csv "
    "class_names_used.json aligned_per_class_f1.csv aligned_per_class_acc.csv "
    "embeddings.npy logits.npy probs.npy labels.npy preds.npy cell_ids.npy slides.npy"
).split()
PATIENTS = SLIDES["patient"].astype(str).to_dict()
COMPARED = [*MODELS, *BASELINE_MODELS]
TRAINING_ORGANS = SLIDES.loc[TRAIN_SLIDES, "organ"].astype(str).to_dict()


wildcard_constraints:
    selection="|".join(SELECTIONS),


rule evaluate_cohort:
    input:
        tables=lambda wildcards: expand(
            "results/predictions/{model}/{slide}.parquet", model=MODELS, slide=MEMBERS[wildcards.selection]
        ),
        arrays=lambda wildcards: expand(
            "results/predictions/{model}/{slide}.h5", model=MODELS, slide=MEMBERS[wildcards.selection]
        ),
        checkpoints=expand("results/models/{model}/best.ckpt", model=MODELS),
        composition="results/evaluation/composition.csv",
        classes=own("resources/classes.tsv"),
        style=own("resources/style/nuclass.mplstyle"),
    output:
        expand("results/evaluation/{model}/{{selection}}/{file}", model=MODELS, file=EVALUATED),
        gates="results/evaluation/gate/{selection}/gates.npy",
    params:
        models=MODELS,
        patients=PATIENTS,
        training=TRAINING_ORGANS,
        mpp=CONFIG["mpp"],
        evaluation=CONFIG["evaluation"],
        closed_set=PROTOCOL.closed_set,
        code=code_hash("evaluate_cohort"),
    log:
        "logs/evaluate_cohort/{selection}.log",
    benchmark:
        "benchmarks/evaluate_cohort/{selection}.tsv"
    priority: 1
    group:
        "evaluation"
    threads: 1
    resources:
        mem_mb=table_mem(1500, 8),
        runtime=minutes(60, per_gb=60),
    conda:
        "../envs/evaluate.yaml"
    message:
        "Evaluating {params.models} on {wildcards.selection}"
    script:
        "../scripts/evaluate_cohort.py"


rule compare_models:
    input:
        tables=expand("results/predictions/{model}/{slide}.parquet", model=MODELS, slide=COHORTS),
        checkpoints=expand("results/models/{model}/best.ckpt", model=MODELS),
        composition="results/evaluation/composition.csv",
    output:
        json="results/evaluation/comparison.json",
        csv="results/evaluation/comparison.csv",
        organs="results/evaluation/comparison_organs.csv",
    params:
        models=MODELS,
        patients=PATIENTS,
        training=TRAINING_ORGANS,
        mpp=CONFIG["mpp"],
        evaluation=CONFIG["evaluation"],
        closed_set=PROTOCOL.closed_set,
        code=code_hash("compare_models"),
    log:
        "logs/compare_models/all.log",
    benchmark:
        "benchmarks/compare_models/all.tsv"
    priority: 1
    group:
        "evaluation"
    threads: 1
    resources:
        mem_mb=table_mem(1500, 8),
        runtime=minutes(60, per_gb=30),
    conda:
        "../envs/evaluate.yaml"
    message:
        "Comparing local, global, mean, fused and class frequencies on the same cells, with intervals"
    script:
        "../scripts/compare_models.py"


rule compare_baselines:
    input:
        tables=expand("results/predictions/{model}/{slide}.parquet", model=COMPARED, slide=COHORTS),
        checkpoints=expand("results/models/{model}/best.ckpt", model=COMPARED),
        composition="results/evaluation/composition.csv",
    output:
        json="results/evaluation/baselines.json",
        csv="results/evaluation/baselines.csv",
        organs="results/evaluation/baselines_organs.csv",
    params:
        models=COMPARED,
        patients=PATIENTS,
        training=TRAINING_ORGANS,
        mpp=CONFIG["mpp"],
        evaluation=CONFIG["evaluation"],
        closed_set=PROTOCOL.closed_set,
        code=code_hash("compare_baselines"),
    log:
        "logs/compare_baselines/all.log",
    benchmark:
        "benchmarks/compare_baselines/all.tsv"
    threads: 1
    resources:
        mem_mb=table_mem(1500, 8),
        runtime=minutes(60, per_gb=60),
    conda:
        "../envs/evaluate.yaml"
    message:
        "Comparing {params.models} on the same cells, with intervals"
    script:
        "../scripts/compare_baselines.py"


rule count_cells:
    input:
        cells=expand("results/slides/{slide}/cells.parquet", slide=ALL_SLIDES),
        labels=expand("results/labels/{slide}/labels.parquet", slide=ALL_SLIDES),
        splits=expand("results/splits/{slide}.parquet", slide=ALL_SLIDES),
    output:
        composition="results/evaluation/composition.csv",
        quality="results/evaluation/label_quality.csv",
        funnel="results/evaluation/funnel.csv",
    params:
        slides=SLIDES[["organ", "role"]].to_dict("index"),
        code=code_hash("count_cells"),
    log:
        "logs/count_cells/all.log",
    benchmark:
        "benchmarks/count_cells/all.tsv"
    threads: 1
    resources:
        mem_mb=mem(1000, 6),
        runtime=minutes(30, per_gb=10),
    conda:
        "../envs/evaluate.yaml"
    message:
        "Counting cells by slide, split and class, and those each step left out"
    script:
        "../scripts/count_cells.py"


if TRUTH_KNOWN:

    rule score_truth:
        input:
            truth=expand("resources/truth/{slide}/truth.parquet", slide=ALL_SLIDES),
            labels=expand("results/labels/{slide}/labels.parquet", slide=ALL_SLIDES),
            cells=expand("results/slides/{slide}/cells.parquet", slide=ALL_SLIDES),
            alignments=expand("results/slides/{slide}/alignment.json", slide=ALL_SLIDES),
            tables=expand("results/predictions/{model}/{slide}.parquet", model=MODELS, slide=COHORTS),
        output:
            TRUTH_SCORES,
        params:
            slides=ALL_SLIDES,
            cohorts=COHORTS,
            models=MODELS,
            mpp=CONFIG["mpp"],
            window=CONFIG["windows"]["local"],
            evaluation=CONFIG["evaluation"],
            code=code_hash("score_truth"),
        log:
            "logs/score_truth/all.log",
        benchmark:
            "benchmarks/score_truth/all.tsv"
        group:
            "evaluation"
        threads: 1
        resources:
            mem_mb=mem(1500, 6),
            runtime=minutes(30, per_gb=30),
        conda:
            "../envs/evaluate.yaml"
        message:
            "Scoring labels, models and geometry against the truth of the synthetic study"
        script:
            "../scripts/score_truth.py"
