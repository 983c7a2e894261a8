"""Bundles with their H&E image and alignment, from wherever a slide comes."""


rule simulate_bundle:
    output:
        bundle="resources/bundles/{slide}/bundle.json",
        truth="resources/truth/{slide}/truth.parquet",
    log:
        "logs/simulate_bundle/{slide}.log",
    benchmark:
        "benchmarks/simulate_bundle/{slide}.tsv"
    wildcard_constraints:
        slide=slides_from("synthetic"),
    conda:
        "../envs/fetch.yaml"
    threads: 1
    resources:
        mem_mb=mem(2000),
        runtime=10,
    params:
        slide=lambda wildcards: slide_row(wildcards.slide),
        seed=CONFIG["synthetic"]["seed"],
        code=code_hash("nuclass.synthetic"),
    message:
        "Simulate the bundle and the H&E image of {wildcards.slide}"
    script:
        "../scripts/simulate_bundle.py"


rule fetch_bundle:
    input:
        unpack(fetch_inputs),
    output:
        bundle="resources/bundles/{slide}/bundle.json",
    log:
        "logs/fetch_bundle/{slide}.log",
    benchmark:
        "benchmarks/fetch_bundle/{slide}.tsv"
    wildcard_constraints:
        slide=slides_from("local", "dataset"),
    conda:
        "../envs/fetch.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=720,
    params:
        slide=lambda wildcards: slide_row(wildcards.slide),
    message:
        "Fetch the bundle, the H&E image and the alignment of {wildcards.slide}"
    script:
        "../scripts/fetch_bundle.py"
