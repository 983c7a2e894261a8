"""One rule a figure: each draws numbers of the evaluation in the formats asked for, with the numbers as CSV."""

SHEETS = {"classes": "resources/classes.tsv", "style": "resources/style/nuclass.mplstyle"}
FORMATS = CONFIG["figures"]["formats"]


def drawn(name, category, what):
    """Return a figure's files; the one that a browser shows best goes into the report."""
    shown = next(ending for ending in ("png", "svg", "pdf") if ending in FORMATS)
    paths = {ending: f"results/figures/{name}.{ending}" for ending in FORMATS}
    paths[shown] = report(
        paths[shown], caption=f"../workflow/report/{name}.rst", category=category, labels={"figure": what}
    )
    return list(paths.values())


rule compute_gradcam:
    input:
        cells="results/interpret/cells.csv",
        local="results/models/local/best.ckpt",
        globe="results/models/global/best.ckpt",
        context="results/models/global/metrics.json",
        stores=expand("results/slides/{slide}/he.ome.zarr", slide=COHORTS),
    output:
        maps="results/interpret/gradcam.npz",
    log:
        "logs/compute_gradcam/all.log",
    benchmark:
        "benchmarks/compute_gradcam/all.tsv"
    conda:
        "../envs/train.yaml"
    threads: 2
    resources:
        mem_mb=mem(4000),
        runtime=60,
    params:
        slides=COHORTS,
        windows=CONFIG["windows"],
        code=code_hash("nuclass.interpret"),
    message:
        "Computing class activation maps of the chosen cells"
    script:
        "../scripts/compute_gradcam.py"


rule draw_gradcam:
    input:
        **SHEETS,
        maps="results/interpret/gradcam.npz",
        cells="results/interpret/cells.csv",
    output:
        pictures=drawn("gradcam", "Cells", "Grad-CAM"),
        csv="results/figures/gradcam.csv",
    log:
        "logs/draw_gradcam/all.log",
    benchmark:
        "benchmarks/draw_gradcam/all.tsv"
    conda:
        "../envs/figures.yaml"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=10,
    params:
        windows=[CONFIG["windows"]["local"], CONFIG["windows"]["global"]],
        mpp=CONFIG["mpp"],
        synthetic=SYNTHETIC,
        code=code_hash("nuclass.figures.gradcam"),
    message:
        "Figure gradcam: where each branch looks"
    script:
        "../scripts/draw_gradcam.py"


rule draw_dataset_composition:
    input:
        **SHEETS,
        counts="results/evaluation/composition.csv",
    output:
        pictures=drawn("dataset_composition", "Data", "Composition"),
        csv="results/figures/dataset_composition.csv",
    log:
        "logs/draw_dataset_composition/all.log",
    benchmark:
        "benchmarks/draw_dataset_composition/all.tsv"
    conda:
        "../envs/figures.yaml"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=10,
    params:
        synthetic=SYNTHETIC,
        code=code_hash("nuclass.figures.dataset_composition"),
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
    log:
        "logs/draw_confusion/all.log",
    benchmark:
        "benchmarks/draw_confusion/all.tsv"
    conda:
        "../envs/figures.yaml"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=10,
    params:
        selections=SELECTIONS,
        synthetic=SYNTHETIC,
        code=code_hash("nuclass.figures.confusion"),
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
    log:
        "logs/draw_per_class_f1/all.log",
    benchmark:
        "benchmarks/draw_per_class_f1/all.tsv"
    conda:
        "../envs/figures.yaml"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=10,
    params:
        synthetic=SYNTHETIC,
        code=code_hash("nuclass.figures.per_class_f1"),
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
    log:
        "logs/draw_branches/all.log",
    benchmark:
        "benchmarks/draw_branches/all.tsv"
    conda:
        "../envs/figures.yaml"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=10,
    params:
        synthetic=SYNTHETIC,
        code=code_hash("nuclass.figures.branches"),
    message:
        "Figure branches: local, global, mean, fused and oracle"
    script:
        "../scripts/draw_branches.py"


rule draw_calibration:
    input:
        **SHEETS,
        reliability=expand("results/evaluation/{model}/all/reliability.csv", model=MODELS),
        metrics=expand("results/evaluation/{model}/all/metrics.json", model=MODELS),
    output:
        pictures=drawn("calibration", "Results", "Calibration"),
        csv="results/figures/calibration.csv",
    log:
        "logs/draw_calibration/all.log",
    benchmark:
        "benchmarks/draw_calibration/all.tsv"
    conda:
        "../envs/figures.yaml"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=10,
    params:
        models=MODELS,
        synthetic=SYNTHETIC,
        code=code_hash("nuclass.figures.calibration"),
    message:
        "Figure calibration: confidence against accuracy, before and after"
    script:
        "../scripts/draw_calibration.py"


rule draw_alignment:
    input:
        **SHEETS,
        alignments=expand("results/slides/{slide}/alignment.json", slide=ALL_SLIDES),
        stores=expand("results/slides/{slide}/he.ome.zarr", slide=ALL_SLIDES),
        cells=expand("results/slides/{slide}/cells.parquet", slide=ALL_SLIDES),
        bundles=expand("resources/bundles/{slide}/bundle.json", slide=ALL_SLIDES),
    output:
        pictures=drawn("alignment", "Data", "Alignment"),
        csv="results/figures/alignment.csv",
    log:
        "logs/draw_alignment/all.log",
    benchmark:
        "benchmarks/draw_alignment/all.tsv"
    conda:
        "../envs/figures.yaml"
    threads: 1
    resources:
        mem_mb=mem(4000),
        runtime=30,
    params:
        slides=ALL_SLIDES,
        synthetic=SYNTHETIC,
        code=code_hash("nuclass.figures.alignment"),
    message:
        "Figure alignment: nuclei on the H&E of every slide"
    script:
        "../scripts/draw_alignment.py"


rule draw_funnel:
    input:
        **SHEETS,
        counts="results/evaluation/funnel.csv",
    output:
        pictures=drawn("funnel", "Data", "Cells left after each step"),
        csv="results/figures/funnel.csv",
    log:
        "logs/draw_funnel/all.log",
    benchmark:
        "benchmarks/draw_funnel/all.tsv"
    conda:
        "../envs/figures.yaml"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=10,
    params:
        synthetic=SYNTHETIC,
        code=code_hash("nuclass.figures.funnel"),
    message:
        "Figure funnel: cells left after each step"
    script:
        "../scripts/draw_funnel.py"
