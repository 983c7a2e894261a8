"""Named goals: `snakemake --cores 4 figures` makes every figure and what it needs, nothing else."""

LABEL_TABLES = ["panels", "label_agreement", "label_confidence"]
# What is known of bundles only is left out of a study of patch files.
OF_BUNDLES = BUNDLE_SLIDES != []
FIGURES = [
    *"gradcam dataset_composition confusion per_class_f1 branches calibration funnel".split(),
    *(["alignment", "labelling"] if OF_BUNDLES else []),
]
TABLES = [
    *"holdout_comparison branches dataset splits label_quality funnel".split(),
    *([*LABEL_TABLES, "alignment"] if OF_BUNDLES else []),
    *(["synthetic_truth"] if TRUTH_KNOWN else []),
]


rule alignment:
    input:
        "results/alignment.html",
        "results/tables/alignment.csv",
        "results/tables/alignment.md",


rule patches:
    input:
        [windows_of(slide) for slide in ALL_SLIDES],
        expand("results/slides/{slide}/cells.parquet", slide=ALL_SLIDES),
        expand("results/slides/{slide}/alignment.json", slide=BUNDLE_SLIDES),


rule panels:
    input:
        "results/tables/panels.csv",
        "results/tables/panels.md",


rule labels:
    input:
        expand("results/labels/{slide}/labels.parquet", slide=ALL_SLIDES),


rule labelling:
    input:
        expand("results/labels/{slide}/labelling.{ending}", slide=BUNDLE_SLIDES, ending=[*FORMATS, "csv"]),
        expand("results/figures/labelling.{ending}", ending=[*FORMATS, "csv"]),
        expand("results/tables/{name}.{ending}", name=LABEL_TABLES, ending=["csv", "md"]),


rule models:
    input:
        expand("results/models/{model}/best.ckpt", model=MODELS),
        expand("results/models/{model}/metrics.json", model=MODELS),


rule evaluation:
    input:
        expand("results/evaluation/{model}/{selection}/metrics.json", model=MODELS, selection=SELECTIONS),
        "results/evaluation/comparison.json",
        "results/evaluation/funnel.csv",
        TRUTH_SCORES if TRUTH_KNOWN else [],


rule figures:
    input:
        expand("results/figures/{name}.{ending}", name=FIGURES, ending=[*CONFIG["figures"]["formats"], "csv"]),
        expand("results/labels/{slide}/labelling.{ending}", slide=BUNDLE_SLIDES, ending=[*FORMATS, "csv"]),


rule tables:
    input:
        expand("results/tables/{name}.{ending}", name=TABLES, ending=["csv", "md"]),


rule report:
    input:
        "results/report.html",


rule demo:
    input:
        rules.report.input,
