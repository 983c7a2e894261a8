"""Cell types from the transcripts, by marker genes."""


rule label_cells:
    input:
        bundle="resources/bundles/{slide}/bundle.json",
        cells="results/slides/{slide}/cells.parquet",
        markers=CONFIG["markers"],
        ontology=CONFIG["ontology"],
    output:
        labels="results/labels/{slide}/labels.parquet",
        evidence="results/labels/{slide}/evidence.csv",
        summary="results/labels/{slide}/summary.json",
    params:
        organ=lambda wildcards: slide_row(wildcards.slide)["organ"],
        labels=CONFIG["labels"],
        code=code_hash("nuclass.labels"),
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
