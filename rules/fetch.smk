"""Bundles with their H&E image and alignment, from wherever a slide comes."""


rule simulate_bundle:
    output:
        bundle="resources/bundles/{slide}/bundle.json",
        truth="resources/truth/{slide}/truth.parquet",
        facts="resources/truth/{slide}/slide.json",
    wildcard_constraints:
        slide=slides_from("synthetic"),
    params:
        slide=lambda wildcards: slide_row(wildcards.slide, "slide", "organ")
        | {"role": slide_row(wildcards.slide)["sheet_role"]},
        seed=CONFIG["synthetic"]["seed"],
        code=code_hash("simulate_bundle"),
    log:
        "logs/simulate_bundle/{slide}.log",
    benchmark:
        "benchmarks/simulate_bundle/{slide}.tsv"
    priority: trained_first
    group:
        "slides"
    threads: 1
    resources:
        mem_mb=mem(2000),
        runtime=minutes(10),
    conda:
        "../envs/fetch.yaml"
    message:
        "Simulate the bundle and the H&E image of {wildcards.slide}"
    script:
        "../scripts/simulate_bundle.py"


rule fetch_bundle:
    input:
        unpack(fetch_inputs),
    output:
        bundle="resources/bundles/{slide}/bundle.json",
    wildcard_constraints:
        slide=slides_from("local", "dataset"),
    # Without a hash of code: a change of it is no reason to fetch hundreds of gigabytes again.
    params:
        slide=lambda wildcards: fetch_row(wildcards.slide),
        image=lambda wildcards: needs_image(fetch_row(wildcards.slide)),
    log:
        "logs/fetch_bundle/{slide}.log",
    benchmark:
        "benchmarks/fetch_bundle/{slide}.tsv"
    priority: trained_first
    threads: 1
    resources:
        mem_mb=2000,
        runtime=720,
        downloads=1,
    conda:
        "../envs/fetch.yaml"
    message:
        "Fetch the bundle, the H&E image and the alignment of {wildcards.slide}"
    script:
        "../scripts/fetch_bundle.py"
