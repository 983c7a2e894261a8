"""Cells as points: maps of embeddings, cohorts as they lie, and the pages of FiLM against concatenation."""

ORGAN_USE = {
    "cells": "results/evaluation/ablations/film_vs_concat/cells.parquet",
    **{
        part: f"results/evaluation/ablations/film_vs_concat/{part}.csv"
        for part in ("organs", "confusion", "reliability")
    },
}


rule compute_embedding_map:
    input:
        tables=expand("results/predictions/{model}/{slide}.parquet", model=MODELS, slide=COHORTS),
        arrays=expand("results/predictions/{model}/{slide}.h5", model=MODELS, slide=COHORTS),
    output:
        map="results/evaluation/embedding_map.parquet",
    params:
        models=MODELS,
        seed=CONFIG["evaluation"]["seed"],
        code=code_hash("compute_embedding_map"),
    log:
        "logs/compute_embedding_map/all.log",
    benchmark:
        "benchmarks/compute_embedding_map/all.tsv"
    group:
        "maps"
    threads: 1
    resources:
        mem_mb=table_mem(2500, 3),
        runtime=minutes(60, per_gb=60),
    conda:
        "../envs/evaluate.yaml"
    message:
        "Laying out embeddings of held-out cells by UMAP"
    script:
        "../scripts/compute_embedding_map.py"


rule draw_umap:
    input:
        **SHEETS,
        map="results/evaluation/embedding_map.parquet",
    output:
        pictures=drawn("umap", "Results", "Embeddings"),
        csv="results/figures/umap.csv",
    params:
        synthetic=SYNTHETIC,
        code=code_hash("draw_umap"),
    log:
        "logs/draw_umap/all.log",
    benchmark:
        "benchmarks/draw_umap/all.tsv"
    group:
        "maps"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Figure umap: embeddings of held-out cells by class, organ, slide, right and wrong"
    script:
        "../scripts/draw_umap.py"


rule draw_spatial:
    input:
        **SHEETS,
        tables=expand("results/predictions/gate/{slide}.parquet", slide=COHORTS),
        windows=[windows_of(slide) for slide in COHORTS],
    output:
        pictures=drawn_pages("spatial", "Results", "On the slide", COHORTS),
        csv="results/figures/spatial.csv",
    params:
        slides=COHORTS,
        mpp=CONFIG["mpp"],
        synthetic=SYNTHETIC,
        code=code_hash("draw_spatial"),
    log:
        "logs/draw_spatial/all.log",
    benchmark:
        "benchmarks/draw_spatial/all.tsv"
    group:
        "maps"
    threads: 1
    resources:
        mem_mb=table_mem(1500, 6),
        runtime=minutes(30, per_gb=30),
    conda:
        "../envs/figures.yaml"
    message:
        "Figure spatial: label, prediction, errors, confidence and gate on the slide of every cohort"
    script:
        "../scripts/draw_spatial.py"


rule describe_organ_use:
    input:
        tables=files_of(*map(run_tables, ORGAN_RUNS)),
    output:
        **ORGAN_USE,
    params:
        models={run.value: files_of(run_tables(run.name)) for run in VARIANTS.group(of_variants.ORGAN)},
        options={
            "subset": CONFIG["ablations"]["subset"],
            **{key: INTERVALS[key] for key in ("seed", "draws", "mpp", "block_um")},
        },
        code=code_hash("describe_organ_use"),
    log:
        "logs/describe_organ_use/all.log",
    benchmark:
        "benchmarks/describe_organ_use/all.tsv"
    threads: 1
    resources:
        mem_mb=mem(3000, 2),
        runtime=minutes(60, per_gb=60),
    conda:
        "../envs/evaluate.yaml"
    message:
        "Maps, accuracy by organ, confusion and reliability of FiLM, concatenation and no organ"
    script:
        "../scripts/describe_organ_use.py"


rule draw_film_vs_concat:
    input:
        **SHEETS,
        **ORGAN_USE,
        json="results/evaluation/ablations/film_vs_concat.json",
    output:
        pictures=drawn_pages(
            "film_vs_concat",
            "Ablations",
            "FiLM, concatenation, none",
            ["embedding", "organs", "confusion", "reliability"],
        ),
        csv="results/figures/film_vs_concat.csv",
    params:
        synthetic=SYNTHETIC,
        short=TOLD["short"],
        code=code_hash("draw_film_vs_concat"),
    log:
        "logs/draw_film_vs_concat/all.log",
    benchmark:
        "benchmarks/draw_film_vs_concat/all.tsv"
    group:
        "ablations"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Figure film_vs_concat: metrics, maps, organs, confusion and reliability"
    script:
        "../scripts/draw_film_vs_concat.py"
