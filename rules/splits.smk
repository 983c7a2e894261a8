"""Each training slide in train, validation and test, with a buffer between them."""


rule split_cells:
    input:
        cells="results/slides/{slide}/cells.parquet",
        labels="results/labels/{slide}/labels.parquet",
    output:
        table="results/splits/{slide}.parquet",
        report="results/splits/{slide}.json",
        picture="results/splits/{slide}.png",
    params:
        role=lambda wildcards: slide_row(wildcards.slide)["role"],
        splits=CONFIG["splits"],
        windows=CONFIG["windows"],
        mpp=CONFIG["mpp"],
        code=code_hash("nuclass.splits"),
    log:
        "logs/split_cells/{slide}.log",
    benchmark:
        "benchmarks/split_cells/{slide}.tsv"
    threads: 1
    resources:
        mem_mb=mem(1000, 10),
        runtime=20,
    conda:
        "../envs/splits.yaml"
    message:
        "Slide {wildcards.slide}: cells to train, validation and test ({params.role})"
    script:
        "../scripts/split_cells.py"
