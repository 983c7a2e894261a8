"""Runs of the training under changed settings: what differs from the study, or from an earlier run, and no more."""


include: "runs.smk"


wildcard_constraints:
    variant="|".join(RUNS),


use rule build_slide as build_slide_variant with:
    output:
        store=directory(f"{RUN}/slides/{{slide}}/he.ome.zarr"),
        cells=f"{RUN}/slides/{{slide}}/cells.parquet",
        checks=f"{RUN}/slides/{{slide}}/checks.csv",
    params:
        inverted_mpp=lambda wildcards: run_of(wildcards).protocol.inverted_mpp,
    log:
        "logs/build_slide_variant/{variant}/{slide}.log",
    benchmark:
        "benchmarks/build_slide_variant/{variant}/{slide}.tsv"
    group:
        with_slide(small="variant_slides")
    message:
        "{wildcards.variant}, slide {wildcards.slide}: H&E and cells at this variant's scale"


use rule split_cells as split_cells_variant with:
    input:
        cells=run_file("cells"),
        labels=run_file("labels"),
    output:
        table=f"{RUN}/splits/{{slide}}.parquet",
        report=f"{RUN}/splits/{{slide}}.json",
        picture=f"{RUN}/splits/{{slide}}.png",
    params:
        protocol=run_switches("splits"),
    log:
        "logs/split_cells_variant/{variant}/{slide}.log",
    benchmark:
        "benchmarks/split_cells_variant/{variant}/{slide}.tsv"
    group:
        "variant_slides"
    message:
        "{wildcards.variant}, slide {wildcards.slide}: cells to train, validation and test ({params.role})"


if OWN_CONTEXT:

    use rule pretrain_context as pretrain_context_variant with:
        input:
            windows=run_files("windows"),
            cells=run_files("cells"),
            labels=run_files("labels"),
            splits=run_files("splits"),
        output:
            backbone=[path.replace("results", RUN, 1) for path in CONTEXT_FILES],
            metrics=f"{RUN}/backbones/context/metrics.json",
        params:
            models=run_sections("context"),
            slides=run_rows(),
            scale=run_scale,
            work="work/variants/{variant}/models/context",
            seed=STUDY.short_models["context"]["pretrain"]["seed"],
        log:
            "logs/pretrain_context_variant/{variant}.log",
        benchmark:
            "benchmarks/pretrain_context_variant/{variant}.tsv"
        message:
            "{wildcards.variant}: training the context backbone"


use rule embed_context as embed_context_variant with:
    input:
        windows=run_files("windows"),
        cells=run_files("cells"),
        labels=run_files("labels"),
        splits=run_files("splits"),
        backbone=run_context,
    output:
        features=f"{RUN}/features/context/{{slide}}.h5",
    wildcard_constraints:
        slide="|".join(COHORTS if RUN_VIEWS else ALL_SLIDES),
    params:
        models=run_sections("context", stages=["context"]),
        slides=run_rows(),
        scale=run_scale,
        work="work/variants/{variant}/features/context/{slide}",
    log:
        "logs/embed_context_variant/{variant}/{slide}.log",
    benchmark:
        "benchmarks/embed_context_variant/{variant}/{slide}.tsv"
    group:
        without_gpu("context", "variant_features")
    message:
        "{wildcards.variant}, slide {wildcards.slide}: features of every cell's neighbourhood"


if RUN_VIEWS:

    use rule embed_context_variant as embed_training_context_variant with:
        output:
            features=f"{RUN}/features/context/{{slide}}.h5",
            views=f"{RUN}/features/context/{{slide}}.views.h5",
        wildcard_constraints:
            slide="|".join(TRAIN_SLIDES),
        params:
            models=run_sections("context", stages=["context", "views"]),
        log:
            "logs/embed_training_context_variant/{variant}/{slide}.log",
        benchmark:
            "benchmarks/embed_training_context_variant/{variant}/{slide}.tsv"
        message:
            "{wildcards.variant}, slide {wildcards.slide}: features of neighbourhoods, also under changed stain"


use rule embed_context_variant as embed_gate_context_variant with:
    output:
        features=f"{RUN}/features/context_gate/{{slide}}.h5",
    wildcard_constraints:
        slide="|".join(ALL_SLIDES),
    params:
        models=run_sections("context", stages=["gate_context"]),
        work="work/variants/{variant}/features/context_gate/{slide}",
    log:
        "logs/embed_gate_context_variant/{variant}/{slide}.log",
    benchmark:
        "benchmarks/embed_gate_context_variant/{variant}/{slide}.tsv"
    message:
        "{wildcards.variant}, slide {wildcards.slide}: features of smaller neighbourhoods, for the gate"


use rule train_local as train_local_variant with:
    input:
        windows=run_files("windows"),
        cells=run_files("cells"),
        labels=run_files("labels"),
        splits=run_files("splits"),
    output:
        **trained("local"),
    params:
        models=run_sections("local", stages=["local"]),
        slides=run_rows(),
        scale=run_scale,
        work="work/variants/{variant}/models/local",
        seed=lambda wildcards: run_of(wildcards).models["local"]["seed"],
    log:
        "logs/train_local_variant/{variant}.log",
    benchmark:
        "benchmarks/train_local_variant/{variant}.tsv"
    message:
        "{wildcards.variant}: training the local model"


use rule train_global as train_global_variant with:
    input:
        windows=run_files("windows"),
        cells=run_files("cells"),
        labels=run_files("labels"),
        splits=run_files("splits"),
        local=run_model("local"),
        features=run_features(),
        backbone=run_context,
    output:
        **trained("global"),
    params:
        models=run_sections("context", "global", "predict", stages=["global"]),
        slides=run_rows(),
        scale=run_scale,
        work="work/variants/{variant}/models/global",
        seed=lambda wildcards: run_of(wildcards).models["global"]["seed"],
    log:
        "logs/train_global_variant/{variant}.log",
    benchmark:
        "benchmarks/train_global_variant/{variant}.tsv"
    message:
        "{wildcards.variant}: training the global model"


use rule train_gate as train_gate_variant with:
    input:
        windows=run_files("windows"),
        cells=run_files("cells"),
        labels=run_files("labels"),
        splits=run_files("splits"),
        local=run_model("local"),
        wide=run_model("global"),
        features=run_features(),
        gate_features=run_gate_features(),
    output:
        **trained("gate"),
    params:
        models=run_sections("global", "gate", "predict", stages=["gate"]),
        slides=run_rows(),
        scale=run_scale,
        work="work/variants/{variant}/models/gate",
        seed=lambda wildcards: run_of(wildcards).models["gate"]["seed"],
    log:
        "logs/train_gate_variant/{variant}.log",
    benchmark:
        "benchmarks/train_gate_variant/{variant}.tsv"
    message:
        "{wildcards.variant}: training the gate"


rule predict_variant:
    input:
        windows=run_files("windows", slides=ALL_SLIDES),
        cells=run_files("cells", slides=ALL_SLIDES),
        labels=run_files("labels", slides=ALL_SLIDES),
        splits=run_files("splits", slides=ALL_SLIDES),
        features=run_files("features", slides=ALL_SLIDES),
        gate_features=run_gate_features(slides=ALL_SLIDES),
        checkpoints=lambda wildcards: [run_model(model)(wildcards) for model in MODELS],
    output:
        tables=expand(
            f"{RUN}/predictions/{{model}}/{{slide}}.parquet", model=MODELS, slide=ALL_SLIDES, allow_missing=True
        ),
        arrays=expand(f"{RUN}/predictions/{{model}}/{{slide}}.h5", model=MODELS, slide=ALL_SLIDES, allow_missing=True),
    wildcard_constraints:
        variant="|".join(WHOLE_RUNS),
    params:
        models=run_sections("predict", stages=["predict"]),
        slides=run_rows(ALL_SLIDES),
        scale=run_scale,
        work="work/variants/{variant}/predictions",
        names=MODELS,
        code=code_hash("predict_variant"),
    log:
        "logs/predict_variant/{variant}.log",
    benchmark:
        "benchmarks/predict_variant/{variant}.tsv"
    group:
        without_gpu("predict", "variant_predictions")
    threads: 1 + MODEL_CONFIG["predict"]["workers"]
    resources:
        mem_mb=predict_mem(),
        runtime=network_minutes("predict", 480),
        gpu=wants_gpu("predict"),
    conda:
        "../envs/train.yaml"
    message:
        "{wildcards.variant}: predicting the cohorts and the val cells"
    script:
        "../scripts/predict_variant.py"


use rule predict_variant as predict_local_variant with:
    input:
        windows=run_files("windows", slides=ALL_SLIDES),
        cells=run_files("cells", slides=ALL_SLIDES),
        labels=run_files("labels", slides=ALL_SLIDES),
        splits=run_files("splits", slides=ALL_SLIDES),
        checkpoints=lambda wildcards: [run_model("local")(wildcards)],
    output:
        tables=expand(f"{RUN}/predictions/local/{{slide}}.parquet", slide=ALL_SLIDES, allow_missing=True),
        arrays=expand(f"{RUN}/predictions/local/{{slide}}.h5", slide=ALL_SLIDES, allow_missing=True),
    wildcard_constraints:
        variant="|".join(name for name in RUNS if name not in WHOLE_RUNS),
    params:
        names=["local"],
    log:
        "logs/predict_local_variant/{variant}.log",
    benchmark:
        "benchmarks/predict_local_variant/{variant}.tsv"
