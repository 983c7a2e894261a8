"""One rule a figure: each draws numbers of the evaluation in the formats asked for, with the numbers as CSV."""


include: "outputs.smk"


SHEETS = {"classes": own("resources/classes.tsv"), "style": own("resources/style/nuclass.mplstyle")}


rule draw_dataset_composition:
    input:
        **SHEETS,
        counts="results/evaluation/composition.csv",
    output:
        pictures=drawn("dataset_composition", "Data", "Composition"),
        csv="results/figures/dataset_composition.csv",
    params:
        synthetic=SYNTHETIC,
        code=code_hash("draw_dataset_composition"),
    log:
        "logs/draw_dataset_composition/all.log",
    benchmark:
        "benchmarks/draw_dataset_composition/all.tsv"
    group:
        "data"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Figure dataset_composition: organs and classes of training slides and cohorts"
    script:
        "../scripts/draw_dataset_composition.py"


rule draw_confusion:
    input:
        **SHEETS,
        tables=expand("results/evaluation/gate/{selection}/confusion.csv", selection=SELECTIONS),
    output:
        pictures=drawn("confusion", "Results", "Confusion"),
        csv="results/figures/confusion.csv",
    params:
        selections=SELECTIONS,
        synthetic=SYNTHETIC,
        code=code_hash("draw_confusion"),
    log:
        "logs/draw_confusion/all.log",
    benchmark:
        "benchmarks/draw_confusion/all.tsv"
    group:
        "results"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Figure confusion: what the fused model mistakes for what"
    script:
        "../scripts/draw_confusion.py"


rule draw_per_class_f1:
    input:
        **SHEETS,
        comparison="results/evaluation/comparison.csv",
    output:
        pictures=drawn("per_class_f1", "Results", "F1 by class"),
        csv="results/figures/per_class_f1.csv",
    params:
        synthetic=SYNTHETIC,
        code=code_hash("draw_per_class_f1"),
    log:
        "logs/draw_per_class_f1/all.log",
    benchmark:
        "benchmarks/draw_per_class_f1/all.tsv"
    group:
        "results"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Figure per_class_f1: F1 by class and model, with intervals"
    script:
        "../scripts/draw_per_class_f1.py"


rule draw_branches:
    input:
        **SHEETS,
        json="results/evaluation/comparison.json",
        comparison="results/evaluation/comparison.csv",
    output:
        pictures=drawn("branches", "Results", "Branches and gate"),
        csv="results/figures/branches.csv",
    params:
        synthetic=SYNTHETIC,
        code=code_hash("draw_branches"),
    log:
        "logs/draw_branches/all.log",
    benchmark:
        "benchmarks/draw_branches/all.tsv"
    group:
        "results"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Figure branches: local, global, mean, fused and oracle"
    script:
        "../scripts/draw_branches.py"


rule draw_calibration:
    input:
        **SHEETS,
        reliability=expand("results/evaluation/{model}/all/reliability.csv", model=MODELS),
        risks=expand("results/evaluation/{model}/all/risk_coverage.csv", model=MODELS),
        metrics=expand("results/evaluation/{model}/all/metrics.json", model=MODELS),
    output:
        pictures=drawn("calibration", "Results", "Calibration"),
        csv="results/figures/calibration.csv",
    params:
        models=MODELS,
        synthetic=SYNTHETIC,
        code=code_hash("draw_calibration"),
    log:
        "logs/draw_calibration/all.log",
    benchmark:
        "benchmarks/draw_calibration/all.tsv"
    group:
        "results"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Figure calibration: confidence against accuracy, and risk against coverage"
    script:
        "../scripts/draw_calibration.py"


rule draw_alignment:
    input:
        **SHEETS,
        alignments=expand("results/slides/{slide}/alignment.json", slide=BUNDLE_SLIDES),
        transforms=expand("results/slides/{slide}/transform.json", slide=BUNDLE_SLIDES),
        bundles=expand("resources/bundles/{slide}/bundle.json", slide=BUNDLE_SLIDES),
    output:
        pictures=drawn("alignment", "Data", "Alignment"),
        csv="results/figures/alignment.csv",
    params:
        slides=BUNDLE_SLIDES,
        synthetic=SYNTHETIC,
        mpp=CONFIG["mpp"],
        code=code_hash("draw_alignment"),
    log:
        "logs/draw_alignment/all.log",
    benchmark:
        "benchmarks/draw_alignment/all.tsv"
    group:
        "data"
    threads: 1
    resources:
        mem_mb=mem(4000),
        runtime=minutes(30),
    conda:
        "../envs/slides.yaml"
    message:
        "Figure alignment: nuclei on the H&E of every slide"
    script:
        "../scripts/draw_alignment.py"


LABEL_SHEETS = {**SHEETS, "ontology": CONFIG["ontology"]}
# With the original's rule in force the calibrated confidence has no threshold to mark.
MARKED = CONFIG["labels"]["min_confidence"] if CONFIG["labels"]["confidence"] == "calibrated" else None


rule draw_labels:
    input:
        **LABEL_SHEETS,
        labels="results/labels/{slide}/labels.parquet",
        cells="results/slides/{slide}/cells.parquet",
        umap="results/labels/{slide}/umap.parquet",
        markers="results/labels/{slide}/markers.csv",
    output:
        pictures=slide_pictures("labelling", "slide_labels", "Labels"),
        csv="results/labels/{slide}/labelling.csv",
    params:
        organ=lambda wildcards: slide_row(wildcards.slide)["organ"],
        min_confidence=MARKED,
        synthetic=SYNTHETIC,
        code=code_hash("draw_labels"),
    log:
        "logs/draw_labels/{slide}.log",
    benchmark:
        "benchmarks/draw_labels/{slide}.tsv"
    group:
        "data"
    threads: 1
    resources:
        mem_mb=mem(1000, 10),
        runtime=minutes(10, per_gb=30),
    conda:
        "../envs/figures.yaml"
    message:
        "Slide {wildcards.slide}: how its cells were labelled"
    script:
        "../scripts/draw_labels.py"


rule draw_labelling:
    input:
        **LABEL_SHEETS,
        labels=expand("results/labels/{slide}/labels.parquet", slide=BUNDLE_SLIDES),
        cells=expand("results/slides/{slide}/cells.parquet", slide=BUNDLE_SLIDES),
        umaps=expand("results/labels/{slide}/umap.parquet", slide=BUNDLE_SLIDES),
    output:
        pictures=drawn("labelling", "Labels", "All slides"),
        csv="results/figures/labelling.csv",
    params:
        slides=BUNDLE_SLIDES,
        organs={slide: slide_row(slide)["organ"] for slide in BUNDLE_SLIDES},
        min_confidence=dict.fromkeys(BUNDLE_SLIDES, MARKED),
        synthetic=SYNTHETIC,
        code=code_hash("draw_labelling"),
    log:
        "logs/draw_labelling/all.log",
    benchmark:
        "benchmarks/draw_labelling/all.tsv"
    group:
        "data"
    threads: 1
    resources:
        mem_mb=mem(1500, 5),
        runtime=minutes(30, per_gb=30),
    conda:
        "../envs/figures.yaml"
    message:
        "Figure labelling: cells, layout and confidence of every slide"
    script:
        "../scripts/draw_labelling.py"


rule draw_funnel:
    input:
        **SHEETS,
        counts="results/evaluation/funnel.csv",
    output:
        pictures=drawn("funnel", "Data", "Cells left after each step"),
        csv="results/figures/funnel.csv",
    params:
        synthetic=SYNTHETIC,
        code=code_hash("draw_funnel"),
    log:
        "logs/draw_funnel/all.log",
    benchmark:
        "benchmarks/draw_funnel/all.tsv"
    group:
        "data"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Figure funnel: cells left after each step"
    script:
        "../scripts/draw_funnel.py"
