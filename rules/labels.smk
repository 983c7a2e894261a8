"""What a panel can tell apart, and cell types from the transcripts, by marker genes."""


rule check_panel:
    input:
        bundle="resources/bundles/{slide}/bundle.json",
        markers=CONFIG["markers"],
        ontology=CONFIG["ontology"],
        own=OWN_MARKERS,
    output:
        panel="results/labels/{slide}/panel.csv",
    wildcard_constraints:
        slide=WITH_BUNDLE,
    params:
        organ=lambda wildcards: slide_row(wildcards.slide)["organ"],
        source=label_source,
        leave_out=CONFIG["labels"]["leave_out"],
        code=code_hash("check_panel"),
    log:
        "logs/check_panel/{slide}.log",
    benchmark:
        "benchmarks/check_panel/{slide}.tsv"
    group:
        with_slide("data")
    threads: 1
    resources:
        mem_mb=mem(500),
        runtime=minutes(10),
    conda:
        "../envs/labels.yaml"
    message:
        "Slide {wildcards.slide}: what its panel can tell apart ({params.organ})"
    script:
        "../scripts/check_panel.py"


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
        agreement="results/labels/{slide}/agreement.csv",
        scores="results/labels/{slide}/scores.csv",
        unmapped="results/labels/{slide}/unmapped.csv",
        summary="results/labels/{slide}/summary.json",
    wildcard_constraints:
        slide=WITH_BUNDLE,
    params:
        organ=lambda wildcards: slide_row(wildcards.slide)["organ"],
        source=label_source,
        given=lambda wildcards: slide_row(wildcards.slide)["given"],
        extra_markers=CONFIG["labels"]["extra_markers"],
        labels={key: value for key, value in CONFIG["labels"].items() if key not in ("source", "extra_markers")},
        code=code_hash("label_cells"),
    log:
        "logs/label_cells/{slide}.log",
    benchmark:
        "benchmarks/label_cells/{slide}.tsv"
    priority: trained_first
    group:
        with_slide("labels")
    threads: 1
    resources:
        mem_mb=mem(1500, 90),
        runtime=slide_minutes(60, per_gb=10),
    conda:
        "../envs/labels.yaml"
    message:
        "Slide {wildcards.slide}: cell types from marker genes ({params.organ})"
    script:
        "../scripts/label_cells.py"
