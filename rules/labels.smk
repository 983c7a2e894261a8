"""Cell types from the transcripts, by marker genes."""


rule label_cells:
    input:
        bundle="resources/bundles/{slide}/bundle.json",
        cells="results/slides/{slide}/cells.parquet",
        markers=CONFIG["markers"],
        ontology=CONFIG["ontology"],
        own=own_label_files,
    output:
        labels="results/labels/{slide}/labels.parquet",
        posteriors="results/labels/{slide}/posteriors.parquet",
        evidence="results/labels/{slide}/evidence.csv",
        markers="results/labels/{slide}/markers.csv",
        umap="results/labels/{slide}/umap.parquet",
        panel="results/labels/{slide}/panel.csv",
        agreement="results/labels/{slide}/agreement.csv",
        scores="results/labels/{slide}/scores.csv",
        unmapped="results/labels/{slide}/unmapped.csv",
        summary="results/labels/{slide}/summary.json",
    params:
        organ=lambda wildcards: slide_row(wildcards.slide)["organ"],
        source=lambda wildcards: slide_row(wildcards.slide)["labels"] or CONFIG["labels"]["source"],
        given=lambda wildcards: slide_row(wildcards.slide)["given"],
        extra_markers=CONFIG["labels"]["extra_markers"],
        labels={key: value for key, value in CONFIG["labels"].items() if key not in ("source", "extra_markers")},
        code=code_hash("nuclass.labels.job"),
    log:
        "logs/label_cells/{slide}.log",
    benchmark:
        "benchmarks/label_cells/{slide}.tsv"
    threads: 1
    resources:
        mem_mb=mem(2000, 10),
        runtime=60,
    conda:
        "../envs/labels.yaml"
    message:
        "Slide {wildcards.slide}: cell types from marker genes ({params.organ})"
    script:
        "../scripts/label_cells.py"
