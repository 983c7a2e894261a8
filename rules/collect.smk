"""Named goals: `snakemake --cores 4 figures` makes every figure and what it needs, nothing else."""

LABEL_TABLES = ["panels", "label_agreement", "label_confidence"]
# What is known of bundles only is left out of a study of patch files.
OF_BUNDLES = BUNDLE_SLIDES != []
FIGURES = [
    *"branch_maps dataset_composition confusion per_class_f1 branches calibration funnel".split(),
    *(["alignment", "labelling"] if OF_BUNDLES else []),
]
TABLES = [
    *"branches dataset splits label_quality funnel".split(),
    *([*LABEL_TABLES, "alignment"] if OF_BUNDLES else []),
    *(["synthetic_truth"] if TRUTH_KNOWN else []),
]
# What needs more models than the study's own three, or their predictions of the training slides.
FUSION_FIGURES = ["fusion", "gate", "complementarity"]
FUSION_TABLES = ["gate_ablation", "complementarity", "gate"]
COMPARISON_TABLES = ["holdout_comparison", "paper_comparison"]
ABLATION_TABLES = ["film_vs_concat", "left_out", "uncertainty_guidance", "context_sizes", "seeds"]
RECORD_FIGURES = ["training", "resources"]
RECORD_TABLES = ["runtime", "hyperparameters"]
MAP_FIGURES = ["umap", "spatial", "film_vs_concat"]
MORE_FIGURES = ["pipeline", *MAP_FIGURES, *FUSION_FIGURES, *RECORD_FIGURES, "gradcam", "gradcam_controls", "audit"]
MORE_TABLES = [*COMPARISON_TABLES, *FUSION_TABLES, *ABLATION_TABLES, *RECORD_TABLES, "audit"]


rule bundles:
    input:
        expand("resources/bundles/{slide}/bundle.json", slide=BUNDLE_SLIDES),


rule alignment:
    input:
        "results/alignment.html",
        "results/tables/alignment.csv",
        "results/tables/alignment.md",
        "results/tables/alignment.tex",


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
        expand("results/labels/{slide}/labelling.{ending}", slide=BUNDLE_SLIDES, ending=ENDINGS),
        expand("results/figures/labelling.{ending}", ending=ENDINGS),
        table_files(LABEL_TABLES),


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


rule core:
    input:
        rules.evaluation.input,
        figure_files(FIGURES),
        expand("results/labels/{slide}/labelling.{ending}", slide=BUNDLE_SLIDES, ending=ENDINGS),
        table_files(TABLES),


rule baselines:
    input:
        table_files(COMPARISON_TABLES),


rule fusion:
    input:
        figure_files(FUSION_FIGURES),
        table_files(FUSION_TABLES),


rule ablations:
    input:
        table_files(ABLATION_TABLES),


rule audit:
    input:
        figure_files(["audit"]),
        table_files(["audit"]),


rule figures:
    input:
        figure_files([*FIGURES, *MORE_FIGURES]),
        expand("results/labels/{slide}/labelling.{ending}", slide=BUNDLE_SLIDES, ending=ENDINGS),


rule tables:
    input:
        table_files([*TABLES, *MORE_TABLES]),


rule explorer:
    input:
        "results/explorer/index.html",


rule report:
    input:
        "results/report.html",


rule demo:
    input:
        "results/overview.html",
