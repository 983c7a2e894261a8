"""The workflow and the three stages as one figure, with pictures of the study's first slide that has a bundle."""

SHOWN_SLIDE = next((slide for slide in TRAIN_SLIDES if slide in BUNDLE_SLIDES), TRAIN_SLIDES[0])
# A slide of patch files has neither an H&E of its own nor transcripts.
OF_BUNDLE = {
    "umap": f"results/labels/{SHOWN_SLIDE}/umap.parquet",
    "markers": f"results/labels/{SHOWN_SLIDE}/markers.csv",
    "windows": windows_of(SHOWN_SLIDE),
    "bundle": f"resources/bundles/{SHOWN_SLIDE}/bundle.json",
}


rule draw_pipeline:
    input:
        **LABEL_SHEETS,
        **(OF_BUNDLE if SHOWN_SLIDE in BUNDLE_SLIDES else {}),
        cells=f"results/slides/{SHOWN_SLIDE}/cells.parquet",
        labels=f"results/labels/{SHOWN_SLIDE}/labels.parquet",
        counts="results/evaluation/composition.csv",
    output:
        pictures=drawn("pipeline", "Methods", "Workflow and stages"),
        csv="results/figures/pipeline.csv",
    params:
        shown=slide_row(SHOWN_SLIDE, "slide", "organ"),
        models=sections("local", "context", "global", "gate"),
        scale={key: STUDY_SCALE[key] for key in ("windows", "mpp")},
        synthetic=SYNTHETIC,
        code=code_hash("draw_pipeline"),
    log:
        "logs/draw_pipeline/all.log",
    benchmark:
        "benchmarks/draw_pipeline/all.tsv"
    group:
        "data"
    threads: 1
    resources:
        mem_mb=mem(4000),
        runtime=minutes(30),
    conda:
        "../envs/slides.yaml"
    message:
        "Figure pipeline: the workflow and the three stages"
    script:
        "../scripts/draw_pipeline.py"
