"""How the models were trained, what the study took, and with which settings."""

from nuclass.core.models_file import read_models_file
from nuclass.tables.hyperparameters import STUDY_SECTIONS

TRAININGS = [*(["context"] if OWN_CONTEXT else []), *MODELS]
TRAINED = {
    "metrics": [
        *([f"{CONTEXT_FOLDER}/metrics.json"] if OWN_CONTEXT else []),
        *expand("results/models/{model}/metrics.json", model=MODELS),
    ],
    "histories": expand("results/models/{model}/history.csv", model=MODELS),
}
SOURCES = set(SLIDES["source"])
# The rules of the goal `core`, whose jobs all ran before these are measured. A benchmark file is no input: one that
# is missing, as after a run on another machine, is no reason to run its job again.
MEASURED_STAGES = {
    "Data": [
        *(["simulate_bundle"] if "synthetic" in SOURCES else []),
        *(["fetch_bundle"] if SOURCES & {"local", "dataset"} else []),
    ],
    "Slides": [
        *(["align_slide", "check_alignment", "build_slide"] if OF_BUNDLES else []),
        *(["import_patches"] if PATCHES in SOURCES else []),
    ],
    "Labels": [*(["check_panel"] if OF_BUNDLES else []), "label_cells"],
    "Splits": ["split_cells"],
    "Context": [
        *(["pretrain_context"] if OWN_CONTEXT else []),
        "embed_context",
        *(["embed_training_context"] if VIEWS else []),
        *(["embed_gate_context"] if PROTOCOL.smaller_gate_context else []),
    ],
    "Training": ["train_local", "train_global", "train_gate"],
    "Prediction": ["predict"],
    "Evaluation": [
        *("evaluate_cohort", "compare_models", "count_cells", "choose_cells", "compute_gradcam"),
        *(["score_truth"] if TRUTH_KNOWN else []),
    ],
    "Figures, tables": [
        *(["draw_labels"] if OF_BUNDLES else []),
        *[f"draw_{name}" for name in FIGURES],
        *[f"tabulate_{name}" for name in TABLES],
    ],
}
# The models of the real study, with the files of their sections.
PAPER_MODELS = ROOT / "config" / "models" / "paper.yaml"
PAPER_FILES = list(map(os.path.relpath, [PAPER_MODELS, *read_models_file(PAPER_MODELS)[1].values()]))


rule measure_usage:
    input:
        lambda wildcards: rules.core.input,
    output:
        jobs="results/evaluation/usage_jobs.csv",
        stages="results/evaluation/usage_stages.csv",
    params:
        folder="benchmarks",
        stages=MEASURED_STAGES,
        jobs=[*ALL_SLIDES, "all"],
        code=code_hash("measure_usage"),
    log:
        "logs/measure_usage/all.log",
    benchmark:
        "benchmarks/measure_usage/all.tsv"
    group:
        "records"
    threads: 1
    resources:
        mem_mb=mem(500),
        runtime=minutes(10),
    conda:
        "../envs/evaluate.yaml"
    message:
        "Collecting time and memory of the study's jobs"
    script:
        "../scripts/measure_usage.py"


rule draw_training:
    input:
        **SHEETS,
        **TRAINED,
    output:
        pictures=drawn("training", "Methods", "Training"),
        csv="results/figures/training.csv",
    params:
        trainings=TRAININGS,
        models=MODELS,
        synthetic=SYNTHETIC,
        code=code_hash("draw_training"),
    log:
        "logs/draw_training/all.log",
    benchmark:
        "benchmarks/draw_training/all.tsv"
    group:
        "records"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Figure training: losses, scores and learning rate of each model"
    script:
        "../scripts/draw_training.py"


rule draw_resources:
    input:
        **SHEETS,
        jobs="results/evaluation/usage_jobs.csv",
        stages="results/evaluation/usage_stages.csv",
    output:
        pictures=drawn("resources", "Methods", "Time and memory"),
        csv="results/figures/resources.csv",
    params:
        synthetic=SYNTHETIC,
        code=code_hash("draw_resources"),
    log:
        "logs/draw_resources/all.log",
    benchmark:
        "benchmarks/draw_resources/all.tsv"
    group:
        "records"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Figure resources: time and memory of each stage"
    script:
        "../scripts/draw_resources.py"


rule tabulate_runtime:
    input:
        **TRAINED,
        stages="results/evaluation/usage_stages.csv",
    output:
        csv=laid_out("runtime", "Methods", "Time and memory"),
        md="results/tables/runtime.md",
        tex="results/tables/runtime.tex",
    params:
        trainings=TRAININGS,
        models=MODELS,
        synthetic=SYNTHETIC,
        code=code_hash("tabulate_runtime"),
    log:
        "logs/tabulate_runtime/all.log",
    benchmark:
        "benchmarks/tabulate_runtime/all.tsv"
    group:
        "records"
    threads: 1
    resources:
        mem_mb=mem(500),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Table runtime: time and memory of each stage and training"
    script:
        "../scripts/tabulate_runtime.py"


rule tabulate_hyperparameters:
    input:
        words=own("resources/parameters.tsv"),
        paper=PAPER_FILES,
        schema=own("config/schemas/models.schema.yaml"),
    output:
        csv=laid_out("hyperparameters", "Methods", "Settings"),
        md="results/tables/hyperparameters.md",
        tex="results/tables/hyperparameters.tex",
    params:
        study={key: CONFIG[key] for key in (*STUDY_SECTIONS, "protocol") if key in CONFIG},
        models={name: MODEL_CONFIG[name] for name in ("context", "local", "global", "gate", "predict")},
        file=CONFIG["models"],
        synthetic=SYNTHETIC,
        code=code_hash("tabulate_hyperparameters"),
    log:
        "logs/tabulate_hyperparameters/all.log",
    benchmark:
        "benchmarks/tabulate_hyperparameters/all.tsv"
    group:
        "records"
    threads: 1
    resources:
        mem_mb=mem(500),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Table hyperparameters: all settings, and those of the real study's models"
    script:
        "../scripts/tabulate_hyperparameters.py"
