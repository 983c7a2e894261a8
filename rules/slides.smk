rule build_slide:
    input:
        bundle="resources/bundles/{slide}/bundle.json",
    output:
        store=directory("results/slides/{slide}/he.ome.zarr"),
        cells="results/slides/{slide}/cells.parquet",
        alignment="results/slides/{slide}/alignment.json",
        overlay="results/slides/{slide}/alignment.png",
    params:
        mpp=CONFIG["mpp"],
        window=CONFIG["windows"]["local"],
        store={key: CONFIG["slide_store"][key] for key in ("tile", "shard", "levels")},
        qc=CONFIG["qc"],
        code=code_hash("nuclass.slides"),
    log:
        "logs/build_slide/{slide}.log",
    benchmark:
        "benchmarks/build_slide/{slide}.tsv"
    threads: 1
    resources:
        mem_mb=mem(3000),
        runtime=120,
    conda:
        "../envs/slides.yaml"
    message:
        "Slide {wildcards.slide}: H&E to {params.mpp} um/px, cells placed on it, alignment measured"
    script:
        "../scripts/build_slide.py"
