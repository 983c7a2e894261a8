"""The H&E on the transcripts' coordinates, judged, then stored at the study's scale with its cells."""


rule align_slide:
    input:
        bundle="resources/bundles/{slide}/bundle.json",
    output:
        transform="results/slides/{slide}/transform.json",
    wildcard_constraints:
        slide=WITH_BUNDLE,
    params:
        align=align_of,
        mpp=CONFIG["mpp"],
        robust=CONFIG["alignment"]["robust"],
        code=code_hash("align_slide"),
    log:
        "logs/align_slide/{slide}.log",
    benchmark:
        "benchmarks/align_slide/{slide}.tsv"
    priority: trained_first
    group:
        with_slide("alignment")
    threads: 1
    resources:
        mem_mb=slide_mem,
        runtime=slide_minutes(120, per_gb=10),
    conda:
        "../envs/slides.yaml"
    message:
        "Slide {wildcards.slide}: the map from H&E to transcripts ({params.align})"
    script:
        "../scripts/align_slide.py"


rule check_alignment:
    input:
        bundle="resources/bundles/{slide}/bundle.json",
        transform="results/slides/{slide}/transform.json",
    output:
        verdict="results/slides/{slide}/alignment.json",
        overlay="results/slides/{slide}/alignment.png",
    wildcard_constraints:
        slide=WITH_BUNDLE,
    params:
        alignment={key: value for key, value in CONFIG["alignment"].items() if key not in ("align", "robust", "accept")},
        code=code_hash("check_alignment"),
    log:
        "logs/check_alignment/{slide}.log",
    benchmark:
        "benchmarks/check_alignment/{slide}.tsv"
    priority: trained_first
    group:
        with_slide("alignment")
    threads: 1
    resources:
        mem_mb=slide_mem,
        runtime=slide_minutes(60, per_gb=5),
    conda:
        "../envs/slides.yaml"
    message:
        "Slide {wildcards.slide}: do the bundle's nuclei lie on those of the H&E?"
    script:
        "../scripts/check_alignment.py"


rule build_slide:
    input:
        bundle="resources/bundles/{slide}/bundle.json",
        transform="results/slides/{slide}/transform.json",
        # Other limits are no reason to make a store of gigabytes again.
        verdict=ancient("results/slides/{slide}/alignment.json"),
    output:
        store=directory("results/slides/{slide}/he.ome.zarr"),
        cells="results/slides/{slide}/cells.parquet",
        checks="results/slides/{slide}/checks.csv",
    wildcard_constraints:
        slide=WITH_BUNDLE,
    params:
        mpp=CONFIG["mpp"],
        window=CONFIG["windows"]["local"],
        store={key: CONFIG["slide_store"][key] for key in ("tile", "shard", "levels")},
        qc=CONFIG["qc"],
        inverted_mpp=PROTOCOL.inverted_mpp,
        code=code_hash("build_slide"),
    log:
        "logs/build_slide/{slide}.log",
    benchmark:
        "benchmarks/build_slide/{slide}.tsv"
    priority: trained_first
    group:
        with_slide()
    threads: slide_threads
    resources:
        mem_mb=slide_mem,
        runtime=slide_minutes(120, per_gb=10),
    conda:
        "../envs/slides.yaml"
    message:
        "Slide {wildcards.slide}: H&E to {params.mpp} um/px, cells placed on it"
    script:
        "../scripts/build_slide.py"


rule tabulate_alignment:
    input:
        verdicts=expand("results/slides/{slide}/alignment.json", slide=BUNDLE_SLIDES),
        overlays=expand("results/slides/{slide}/alignment.png", slide=BUNDLE_SLIDES),
    output:
        csv=report(
            "results/tables/alignment.csv",
            caption="../workflow/report/table_alignment.rst",
            category="Data",
            labels={"table": "Alignment"},
        ),
        md="results/tables/alignment.md",
        tex="results/tables/alignment.tex",
        page="results/alignment.html",
    params:
        study=f"{CONFIG['study']}. {FLAWS}" if FLAWS else CONFIG["study"],
        synthetic=bool((SLIDES["source"] == "synthetic").any()),
        code=code_hash("tabulate_alignment"),
    log:
        "logs/tabulate_alignment/all.log",
    benchmark:
        "benchmarks/tabulate_alignment/all.tsv"
    group:
        "data"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Table and page alignment: the verdict on every slide"
    script:
        "../scripts/tabulate_alignment.py"
