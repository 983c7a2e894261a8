"""From windows to the three trained models, and their predictions of every slide."""


include: "inputs.smk"


if OWN_CONTEXT:

    rule pretrain_context:
        input:
            **cells_of(TRAIN_SLIDES),
        output:
            backbone=CONTEXT_FILES,
            metrics=f"{CONTEXT_FOLDER}/metrics.json",
        params:
            models=sections("context"),
            slides=organs_of(TRAIN_SLIDES),
            scale=STUDY_SCALE,
            work="work/models/context",
            seed=MODEL_CONFIG["context"]["pretrain"]["seed"],
            code=code_hash("pretrain_context"),
        log:
            "logs/pretrain_context/all.log",
        benchmark:
            "benchmarks/pretrain_context/all.tsv"
        priority: 3
        threads: 1
        resources:
            mem_mb=mem(3000),
            runtime=minutes(240),
        conda:
            "../envs/train.yaml"
        message:
            "Training the context backbone on the class composition of neighbourhoods"
        script:
            "../scripts/pretrain_context.py"


rule embed_context:
    input:
        windows=windows_of_slide,
        cells="results/slides/{slide}/cells.parquet",
        labels="results/labels/{slide}/labels.parquet",
        splits="results/splits/{slide}.parquet",
        backbone=CONTEXT_FILES,
    output:
        features="results/features/context/{slide}.h5",
    wildcard_constraints:
        slide="|".join(COHORTS if VIEWS else ALL_SLIDES),
    params:
        models=context_sections,
        slides=lambda wildcards: organs_of([wildcards.slide]),
        scale=STUDY_SCALE,
        work="work/features/context/{slide}",
        seed=MODEL_CONFIG["global"]["seed"],
        code=code_hash("embed_context"),
    log:
        "logs/embed_context/{slide}.log",
    benchmark:
        "benchmarks/embed_context/{slide}.tsv"
    priority: trained_first
    group:
        without_gpu("context", "features")
    threads: 1 + MODEL_CONFIG["context"]["workers"]
    resources:
        mem_mb=mem(model_base() + readers_mem(MODEL_CONFIG["context"])),
        runtime=network_minutes("context", 240),
        gpu=wants_gpu("context"),
    conda:
        "../envs/train.yaml"
    message:
        "Slide {wildcards.slide}: features of every cell's neighbourhood"
    script:
        "../scripts/embed_context.py"


if VIEWS:

    use rule embed_context as embed_training_context with:
        output:
            features="results/features/context/{slide}.h5",
            views="results/features/context/{slide}.views.h5",
        wildcard_constraints:
            slide="|".join(TRAIN_SLIDES),
        log:
            "logs/embed_training_context/{slide}.log",
        benchmark:
            "benchmarks/embed_training_context/{slide}.tsv"
        message:
            "Slide {wildcards.slide}: features of every cell's neighbourhood, also under changed stain"


if PROTOCOL.smaller_gate_context:

    use rule embed_context as embed_gate_context with:
        output:
            features="results/features/context_gate/{slide}.h5",
        wildcard_constraints:
            slide="|".join(ALL_SLIDES),
        params:
            models=sections("context", stages=["gate_context"]),
            work="work/features/context_gate/{slide}",
        log:
            "logs/embed_gate_context/{slide}.log",
        benchmark:
            "benchmarks/embed_gate_context/{slide}.tsv"
        message:
            "Slide {wildcards.slide}: features of smaller neighbourhoods, for the gate"


rule train_local:
    input:
        **cells_of(TRAIN_SLIDES),
    output:
        checkpoint="results/models/local/best.ckpt",
        metrics="results/models/local/metrics.json",
        history="results/models/local/history.csv",
        calibration="results/models/local/calibration.json",
    params:
        models=sections("local", stages=["local"]),
        slides=organs_of(TRAIN_SLIDES),
        scale=STUDY_SCALE,
        work="work/models/local",
        seed=MODEL_CONFIG["local"]["seed"],
        code=code_hash("train_local"),
    log:
        "logs/train_local/all.log",
    benchmark:
        "benchmarks/train_local/all.tsv"
    priority: 3
    threads: train_threads("local")
    resources:
        mem_mb=train_mem("local"),
        runtime=train_minutes(is_large("local")),
        gpu=train_gpus("local"),
    conda:
        "../envs/train.yaml"
    message:
        "Training the local model (the cell in its 56 um window)"
    script:
        "../scripts/train_local.py"


rule train_global:
    input:
        **cells_of(TRAIN_SLIDES),
        local="results/models/local/best.ckpt",
        features=features_of(TRAIN_SLIDES, views=True),
        backbone=CONTEXT_FILES,
    output:
        checkpoint="results/models/global/best.ckpt",
        metrics="results/models/global/metrics.json",
        history="results/models/global/history.csv",
        calibration="results/models/global/calibration.json",
    params:
        models=sections("context", "global", "predict", stages=["global"]),
        slides=organs_of(TRAIN_SLIDES),
        scale=STUDY_SCALE,
        work="work/models/global",
        seed=MODEL_CONFIG["global"]["seed"],
        code=code_hash("train_global"),
    log:
        "logs/train_global/all.log",
    benchmark:
        "benchmarks/train_global/all.tsv"
    priority: 3
    threads: train_threads("global")
    resources:
        mem_mb=train_mem("global"),
        runtime=train_minutes(is_large("local")),
        gpu=train_gpus("global"),
    conda:
        "../envs/train.yaml"
    message:
        "Training the global model (the cell and its 256 um neighbourhood)"
    script:
        "../scripts/train_global.py"


rule train_gate:
    input:
        **cells_of(TRAIN_SLIDES),
        local="results/models/local/best.ckpt",
        wide="results/models/global/best.ckpt",
        features=features_of(TRAIN_SLIDES, views=True),
        gate_features=gate_features_of(TRAIN_SLIDES),
    output:
        checkpoint="results/models/gate/best.ckpt",
        metrics="results/models/gate/metrics.json",
        history="results/models/gate/history.csv",
        calibration="results/models/gate/calibration.json",
    params:
        models=sections("global", "gate", "predict", stages=["gate"]),
        slides=organs_of(TRAIN_SLIDES),
        scale=STUDY_SCALE,
        work="work/models/gate",
        seed=MODEL_CONFIG["gate"]["seed"],
        code=code_hash("train_gate"),
    log:
        "logs/train_gate/all.log",
    benchmark:
        "benchmarks/train_gate/all.tsv"
    priority: 3
    threads: own_threads() + MODEL_CONFIG["predict"]["workers"]
    resources:
        mem_mb=gate_mem,
        runtime=480,
        gpu=wants_gpu("predict"),
    conda:
        "../envs/train.yaml"
    message:
        "Training the gate on cells that neither branch was fitted to"
    script:
        "../scripts/train_gate.py"


rule predict:
    input:
        windows=windows_of_slide,
        cells="results/slides/{slide}/cells.parquet",
        labels="results/labels/{slide}/labels.parquet",
        splits="results/splits/{slide}.parquet",
        features="results/features/context/{slide}.h5",
        gate_features=lambda wildcards: gate_features_of([wildcards.slide]),
        checkpoints=expand("results/models/{model}/best.ckpt", model=MODELS),
    output:
        tables=expand("results/predictions/{model}/{{slide}}.parquet", model=MODELS),
        arrays=expand("results/predictions/{model}/{{slide}}.h5", model=MODELS),
    params:
        models=sections("predict", stages=["predict"]),
        slides=lambda wildcards: organs_of([wildcards.slide]),
        scale=STUDY_SCALE,
        work="work/predictions/{slide}",
        names=MODELS,
        code=code_hash("predict"),
    log:
        "logs/predict/{slide}.log",
    benchmark:
        "benchmarks/predict/{slide}.tsv"
    priority: 2
    group:
        without_gpu("predict", "predictions")
    threads: 1 + MODEL_CONFIG["predict"]["workers"]
    resources:
        mem_mb=predict_mem(),
        runtime=network_minutes("predict", 240),
        gpu=wants_gpu("predict"),
    conda:
        "../envs/train.yaml"
    message:
        "Slide {wildcards.slide}: predicting with all models"
    script:
        "../scripts/predict.py"
