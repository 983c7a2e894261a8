"""Bundles with their H&E image and alignment, from wherever a slide comes."""


def slides_from(*sources):
    """Return a pattern for the slides of the given sources; one that matches nothing where there are none."""
    return "|".join(SLIDES.index[SLIDES["source"].isin(sources)]) or "(?!)"


def fetch_inputs(wildcards):
    """Return what a slide is fetched from: local files, or the table of public data sets."""
    row = slide_row(wildcards.slide)
    if row["source"] == "dataset":
        # A new note in the table is no reason to download again.
        return {"registry": ancient("resources/datasets.tsv")}
    return {
        "experiment": f"{row['bundle'].rstrip('/')}/experiment.xenium",
        "he": row["he"],
        "alignment": row["alignment"],
    }


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
