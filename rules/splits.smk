"""Each training slide in train, validation and test, with a buffer between them; one table of all slides."""

from nuclass.core.split_settings import within_slide


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
        splits=within_slide(CONFIG["splits"]),
        protocol=switches_of(PROTOCOL, "splits"),
        windows=CONFIG["windows"],
        mpp=CONFIG["mpp"],
        code=code_hash("split_cells"),
    log:
        "logs/split_cells/{slide}.log",
    benchmark:
        "benchmarks/split_cells/{slide}.tsv"
    priority: trained_first
    group:
        with_slide("labels")
    threads: 1
    resources:
        mem_mb=mem(1000, 10),
        runtime=slide_minutes(20, per_gb=5),
    conda:
        "../envs/splits.yaml"
    message:
        "Slide {wildcards.slide}: cells to train, validation and test ({params.role})"
    script:
        "../scripts/split_cells.py"


rule tabulate_splits:
    input:
        reports=expand("results/splits/{slide}.json", slide=ALL_SLIDES),
    output:
        csv=report(
            "results/tables/splits.csv",
            caption="../workflow/report/table_splits.rst",
            category="Data",
            labels={"table": "Splits"},
        ),
        md="results/tables/splits.md",
        tex="results/tables/splits.tex",
    params:
        synthetic=lambda wildcards: SYNTHETIC,
        code=code_hash("tabulate_splits"),
    log:
        "logs/tabulate_splits/all.log",
    benchmark:
        "benchmarks/tabulate_splits/all.tsv"
    group:
        "data"
    threads: 1
    resources:
        mem_mb=mem(500),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Table splits: how each slide is divided, and how far apart its splits lie"
    script:
        "../scripts/tabulate_splits.py"
