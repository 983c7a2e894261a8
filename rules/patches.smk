"""Windows as files, for programs that read those of the original: written for hand-over, taken in from others."""

from nuclass.core.patch_rows import patch_names
from nuclass.patches.states import patch_states

PATCH_NAMES = patch_names(CONFIG["windows"])


rule export_patches:
    input:
        store="results/slides/{slide}/he.ome.zarr",
        cells="results/slides/{slide}/cells.parquet",
        labels="results/labels/{slide}/labels.parquet",
    output:
        **{role: f"results/patches/{{slide}}/{name}" for role, name in PATCH_NAMES.items()},
    wildcard_constraints:
        slide=slides_from("synthetic", "local", "dataset"),
    params:
        organ=lambda wildcards: slide_row(wildcards.slide)["organ"],
        patient=lambda wildcards: slide_row(wildcards.slide)["patient"],
        windows=CONFIG["windows"],
        mpp=CONFIG["mpp"],
        code=code_hash("export_patches"),
    log:
        "logs/export_patches/{slide}.log",
    benchmark:
        "benchmarks/export_patches/{slide}.tsv"
    threads: slide_threads
    resources:
        mem_mb=mem(2500),
        runtime=lambda wildcards, attempt: grown(30 if is_small(wildcards) else 1440, attempt),
    conda:
        "../envs/slides.yaml"
    message:
        "Slide {wildcards.slide}: windows of its labelled cells as files, {params.organ}"
    script:
        "../scripts/export_patches.py"


rule import_patches:
    input:
        files=patch_files,
        ontology=CONFIG["ontology"],
    output:
        cells="results/slides/{slide}/cells.parquet",
        manifest="results/slides/{slide}/patches.json",
        rows="results/slides/{slide}/patches.parquet",
        labels="results/labels/{slide}/labels.parquet",
        summary="results/labels/{slide}/summary.json",
    wildcard_constraints:
        slide=slides_from("patches"),
    params:
        folder=lambda wildcards: slide_row(wildcards.slide)["path"],
        # Snakemake takes a small file with another time for the same one; the list of files would not.
        states=lambda wildcards: patch_states(patch_files(wildcards)),
        windows=CONFIG["windows"],
        mpp=CONFIG["mpp"],
        code=code_hash("import_patches"),
    log:
        "logs/import_patches/{slide}.log",
    benchmark:
        "benchmarks/import_patches/{slide}.tsv"
    priority: trained_first
    threads: 1
    resources:
        mem_mb=mem(4000),
        runtime=minutes(120, per_gb=1),
    conda:
        "../envs/slides.yaml"
    message:
        "Slide {wildcards.slide}: its cells, labels and files of windows, from {params.folder}"
    script:
        "../scripts/import_patches.py"
