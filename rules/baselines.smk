"""Published networks to compare with: frozen with a linear head, and fine-tuned. Include behind train.smk.

Stand-ins are small, so one job does what would otherwise be five that mostly start programs; each published network
has jobs of its own.
"""


include: "networks.smk"


wildcard_constraints:
    baseline="|".join(BASELINES) or "(?!)",
    head="|".join(HEADS),


rule embed_baseline:
    input:
        windows=windows_of_slide,
        cells="results/slides/{slide}/cells.parquet",
        labels="results/labels/{slide}/labels.parquet",
        splits="results/splits/{slide}.parquet",
    output:
        features=[BASELINE_FEATURES],
    wildcard_constraints:
        baseline="|".join(PUBLISHED) or "(?!)",
    params:
        models=lambda wildcards: baseline_sections([wildcards.baseline], "features"),
        names=lambda wildcards: [wildcards.baseline],
        slides=lambda wildcards: organs_of([wildcards.slide]),
        scale=STUDY_SCALE,
        work="work/features/baselines",
        code=code_hash("embed_baseline"),
    log:
        "logs/embed_baseline/{baseline}_{slide}.log",
    benchmark:
        "benchmarks/embed_baseline/{baseline}_{slide}.tsv"
    threads: 1 + BASELINE_CONFIG["features"]["workers"]
    resources:
        mem_mb=mem(baseline_base(PUBLISHED) + readers_mem(BASELINE_CONFIG["features"])),
        runtime=720,
        gpu=baseline_gpus(PUBLISHED, "features"),
    conda:
        "../envs/train.yaml"
    message:
        "Slide {wildcards.slide}: features of every cell's window by the frozen network of {wildcards.baseline}"
    script:
        "../scripts/embed_baseline.py"


rule train_baseline_linear:
    input:
        **cells_of(TRAIN_SLIDES),
        features=lambda wildcards: features_of_baselines([wildcards.baseline], TRAIN_SLIDES),
    output:
        **{name: [path.replace("{head}", "linear")] for name, path in BASELINE_FILES.items()},
    wildcard_constraints:
        baseline="|".join(PUBLISHED) or "(?!)",
    params:
        models=lambda wildcards: baseline_sections([wildcards.baseline], "features", "linear", stages=["local"]),
        names=lambda wildcards: [wildcards.baseline],
        slides=organs_of(TRAIN_SLIDES),
        scale=STUDY_SCALE,
        work="work/models",
        code=code_hash("train_baseline_linear"),
    log:
        "logs/train_baseline_linear/{baseline}.log",
    benchmark:
        "benchmarks/train_baseline_linear/{baseline}.tsv"
    threads: 2
    resources:
        mem_mb=linear_mem(PUBLISHED),
        runtime=minutes(480),
        gpu=baseline_gpus(PUBLISHED, "features"),
    conda:
        "../envs/train.yaml"
    message:
        "Fitting a linear head on the frozen network of {wildcards.baseline}"
    script:
        "../scripts/train_baseline_linear.py"


rule train_baseline_finetuned:
    input:
        **cells_of(TRAIN_SLIDES),
    output:
        **{name: path.replace("{head}", "finetuned") for name, path in BASELINE_FILES.items()},
    params:
        models=lambda wildcards: baseline_sections([wildcards.baseline], "finetuned", stages=["local"]),
        name=lambda wildcards: wildcards.baseline,
        slides=organs_of(TRAIN_SLIDES),
        scale=STUDY_SCALE,
        work="work/models/{baseline}_finetuned",
        code=code_hash("train_baseline_finetuned"),
    log:
        "logs/train_baseline_finetuned/{baseline}.log",
    benchmark:
        "benchmarks/train_baseline_finetuned/{baseline}.tsv"
    threads: tuning_processes() * (1 + TUNING["workers"])
    resources:
        mem_mb=tuning_mem,
        runtime=lambda wildcards: train_minutes(wildcards.baseline in PUBLISHED),
        gpu=lambda wildcards: baseline_gpus([wildcards.baseline], "finetuned", tuning_processes()),
    conda:
        "../envs/train.yaml"
    message:
        "Fine-tuning the network of {wildcards.baseline} with a linear layer"
    script:
        "../scripts/train_baseline_finetuned.py"


rule predict_baseline:
    input:
        **cells_of(COHORTS),
        features=[],
        checkpoints=["results/models/{baseline}_finetuned/best.ckpt"],
    output:
        tables=expand(f"{BASELINE_TABLES}.parquet", slide=COHORTS, head="finetuned", allow_missing=True),
        arrays=expand(f"{BASELINE_TABLES}.h5", slide=COHORTS, head="finetuned", allow_missing=True),
    wildcard_constraints:
        baseline="|".join(PUBLISHED) or "(?!)",
    params:
        models=sections("predict", stages=["predict"]),
        names=lambda wildcards: [f"{wildcards.baseline}_finetuned"],
        embedded=[],
        slides=organs_of(COHORTS),
        scale=STUDY_SCALE,
        work="work/predictions",
        code=code_hash("predict_baseline"),
    log:
        "logs/predict_baseline/{baseline}.log",
    benchmark:
        "benchmarks/predict_baseline/{baseline}.tsv"
    threads: 1 + MODEL_CONFIG["predict"]["workers"]
    resources:
        mem_mb=mem(baseline_base(PUBLISHED) + readers_mem(MODEL_CONFIG["predict"])),
        runtime=480,
        gpu=lambda wildcards: baseline_gpus([wildcards.baseline], "finetuned"),
    conda:
        "../envs/train.yaml"
    message:
        "Predicting the cohorts with {wildcards.baseline}, fine-tuned"
    script:
        "../scripts/predict_baseline.py"


# Heads on cached features want no GPU, whatever a profile says of the jobs that do.
use rule predict_baseline as predict_baseline_linear with:
    input:
        **cells_of(COHORTS),
        features=lambda wildcards: features_of_baselines([wildcards.baseline], COHORTS),
        checkpoints=["results/models/{baseline}_linear/best.ckpt"],
    output:
        tables=expand(f"{BASELINE_TABLES}.parquet", slide=COHORTS, head="linear", allow_missing=True),
        arrays=expand(f"{BASELINE_TABLES}.h5", slide=COHORTS, head="linear", allow_missing=True),
    params:
        names=lambda wildcards: [f"{wildcards.baseline}_linear"],
        embedded=lambda wildcards: [wildcards.baseline],
    log:
        "logs/predict_baseline_linear/{baseline}.log",
    benchmark:
        "benchmarks/predict_baseline_linear/{baseline}.tsv"
    threads: 1
    resources:
        mem_mb=mem(baseline_base(PUBLISHED)),
        runtime=minutes(480),
        gpu=0,
    message:
        "Predicting the cohorts with {wildcards.baseline}, linear head"


if STAND_INS:

    use rule embed_baseline as embed_stand_ins with:
        input:
            **cells_of(ALL_SLIDES),
        output:
            features=features_of_baselines(STAND_INS, ALL_SLIDES),
        wildcard_constraints:
            baseline="|".join(BASELINES),
        params:
            models=baseline_sections(STAND_INS, "features"),
            names=STAND_INS,
            slides=organs_of(ALL_SLIDES),
        log:
            "logs/embed_stand_ins/all.log",
        benchmark:
            "benchmarks/embed_stand_ins/all.tsv"
        resources:
            mem_mb=mem(baseline_base(STAND_INS) + readers_mem(BASELINE_CONFIG["features"])),
            runtime=240,
            gpu=0,
        message:
            "Features of every cell's window by the frozen stand-ins"

    use rule train_baseline_linear as train_stand_ins_linear with:
        input:
            **cells_of(TRAIN_SLIDES),
            features=features_of_baselines(STAND_INS, TRAIN_SLIDES),
        output:
            checkpoint=expand(BASELINE_FILES["checkpoint"], baseline=STAND_INS, head="linear"),
            metrics=expand(BASELINE_FILES["metrics"], baseline=STAND_INS, head="linear"),
            history=expand(BASELINE_FILES["history"], baseline=STAND_INS, head="linear"),
            calibration=expand(BASELINE_FILES["calibration"], baseline=STAND_INS, head="linear"),
        wildcard_constraints:
            baseline="|".join(BASELINES),
        params:
            models=baseline_sections(STAND_INS, "features", "linear", stages=["local"]),
            names=STAND_INS,
        log:
            "logs/train_stand_ins_linear/all.log",
        benchmark:
            "benchmarks/train_stand_ins_linear/all.tsv"
        threads: 1
        resources:
            mem_mb=linear_mem(STAND_INS),
            runtime=minutes(240),
            gpu=0,
        message:
            "Fitting linear heads on the frozen stand-ins"

    use rule predict_baseline as predict_stand_ins with:
        input:
            **cells_of(COHORTS),
            features=features_of_baselines(STAND_INS, COHORTS),
            checkpoints=expand(BASELINE_FILES["checkpoint"], baseline=STAND_INS, head=HEADS),
        output:
            tables=tables_of_baselines(STAND_INS, HEADS, "parquet"),
            arrays=tables_of_baselines(STAND_INS, HEADS, "h5"),
        wildcard_constraints:
            baseline="|".join(BASELINES),
        params:
            names=[f"{name}_{head}" for name in STAND_INS for head in HEADS],
            embedded=STAND_INS,
        log:
            "logs/predict_stand_ins/all.log",
        benchmark:
            "benchmarks/predict_stand_ins/all.tsv"
        resources:
            mem_mb=mem(baseline_base(STAND_INS) + readers_mem(MODEL_CONFIG["predict"])),
            runtime=240,
            gpu=0,
        message:
            "Predicting the cohorts with all stand-ins"
