"""Where models look: activation maps of a few cells by the own models and by fine-tuned baselines, and controls.

Include behind figures.smk.
"""

MAPPED = [name for name in CONFIG["figures"]["gradcam"]["baselines"] if name in BASELINES]
CHOSEN = {
    "cells": "results/interpret/cells.csv",
    "windows": [windows_of(slide) for slide in COHORTS],
    "tables": expand("results/slides/{slide}/cells.parquet", slide=COHORTS),
}


rule choose_cells:
    input:
        tables=expand("results/predictions/{model}/{slide}.parquet", model=MODELS, slide=COHORTS),
    output:
        cells="results/interpret/cells.csv",
    params:
        models=MODELS,
        gradcam={key: CONFIG["figures"]["gradcam"][key] for key in ("cells", "per_cohort")},
        code=code_hash("choose_cells"),
    log:
        "logs/choose_cells/all.log",
    benchmark:
        "benchmarks/choose_cells/all.tsv"
    priority: 1
    group:
        "evaluation"
    threads: 1
    resources:
        mem_mb=mem(1000, 6),
        runtime=minutes(30, per_gb=30),
    conda:
        "../envs/evaluate.yaml"
    message:
        "Choosing the cells to show activation maps for"
    script:
        "../scripts/choose_cells.py"


rule compute_gradcam:
    input:
        **CHOSEN,
        checkpoints=expand("results/models/{model}/best.ckpt", model=["local", "global"]),
        context=CONTEXT_FILES,
    output:
        maps="results/interpret/gradcam.npz",
    params:
        slides=COHORTS,
        cache_mb=CONFIG["slide_store"]["cache_mb"],
        code=code_hash("compute_gradcam"),
    log:
        "logs/compute_gradcam/all.log",
    benchmark:
        "benchmarks/compute_gradcam/all.tsv"
    priority: 1
    threads: 1
    resources:
        mem_mb=mem(model_base(4000)),
        runtime=minutes(60),
    conda:
        "../envs/train.yaml"
    message:
        "Computing class activation maps of the chosen cells"
    script:
        "../scripts/compute_gradcam.py"


rule compute_baseline_maps:
    input:
        **CHOSEN,
        checkpoints=expand("results/models/{baseline}_finetuned/best.ckpt", baseline=MAPPED),
    output:
        maps="results/interpret/baseline_maps.npz",
        calls="results/interpret/baseline_maps.csv",
    params:
        names=MAPPED,
        asked=CONFIG["figures"]["gradcam"]["baselines"],
        slides=COHORTS,
        cache_mb=CONFIG["slide_store"]["cache_mb"],
        code=code_hash("compute_baseline_maps"),
    log:
        "logs/compute_baseline_maps/all.log",
    benchmark:
        "benchmarks/compute_baseline_maps/all.tsv"
    threads: 2
    resources:
        mem_mb=mem(baseline_base(MAPPED) + 1500),
        runtime=minutes(60),
    conda:
        "../envs/train.yaml"
    message:
        "Computing activation maps of the fine-tuned baselines {params.names}"
    script:
        "../scripts/compute_baseline_maps.py"


rule compute_controls:
    input:
        **CHOSEN,
        checkpoints=expand("results/models/{model}/best.ckpt", model=["local", "global"]),
        context=CONTEXT_FILES,
    output:
        maps="results/interpret/controls.npz",
        controls="results/interpret/controls.csv",
    params:
        slides=COHORTS,
        cache_mb=CONFIG["slide_store"]["cache_mb"],
        code=code_hash("compute_controls"),
    log:
        "logs/compute_controls/all.log",
    benchmark:
        "benchmarks/compute_controls/all.tsv"
    threads: 2
    resources:
        mem_mb=mem(model_base(6000)),
        runtime=minutes(120),
    conda:
        "../envs/train.yaml"
    message:
        "Computing what the local model's activation maps are held against"
    script:
        "../scripts/compute_controls.py"


rule draw_branch_maps:
    input:
        **SHEETS,
        maps="results/interpret/gradcam.npz",
        cells="results/interpret/cells.csv",
    output:
        pictures=drawn("branch_maps", "Cells", "Where each branch looks"),
        csv="results/figures/branch_maps.csv",
    params:
        windows=[CONFIG["windows"]["local"], CONFIG["windows"]["global"]],
        mpp=CONFIG["mpp"],
        synthetic=SYNTHETIC,
        code=code_hash("draw_branch_maps"),
    log:
        "logs/draw_branch_maps/all.log",
    benchmark:
        "benchmarks/draw_branch_maps/all.tsv"
    priority: 1
    group:
        "results"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Figure branch_maps: where each branch looks"
    script:
        "../scripts/draw_branch_maps.py"


rule draw_gradcam:
    input:
        **SHEETS,
        maps="results/interpret/gradcam.npz",
        cells="results/interpret/cells.csv",
        baseline_maps="results/interpret/baseline_maps.npz",
        baseline_calls="results/interpret/baseline_maps.csv",
    output:
        pictures=drawn("gradcam", "Cells", "Grad-CAM"),
        csv="results/figures/gradcam.csv",
    params:
        windows=[CONFIG["windows"]["local"], CONFIG["windows"]["global"]],
        mpp=CONFIG["mpp"],
        synthetic=SYNTHETIC,
        code=code_hash("draw_gradcam"),
    log:
        "logs/draw_gradcam/all.log",
    benchmark:
        "benchmarks/draw_gradcam/all.tsv"
    group:
        "gradcam"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Figure gradcam: where the models and the fine-tuned baselines look"
    script:
        "../scripts/draw_gradcam.py"


rule draw_gradcam_controls:
    input:
        **SHEETS,
        maps="results/interpret/controls.npz",
        controls="results/interpret/controls.csv",
    output:
        pictures=drawn("gradcam_controls", "Cells", "Grad-CAM, controls"),
        csv="results/figures/gradcam_controls.csv",
    params:
        windows=[CONFIG["windows"]["local"], CONFIG["windows"]["global"]],
        mpp=CONFIG["mpp"],
        synthetic=SYNTHETIC,
        code=code_hash("draw_gradcam_controls"),
    log:
        "logs/draw_gradcam_controls/all.log",
    benchmark:
        "benchmarks/draw_gradcam_controls/all.tsv"
    group:
        "gradcam"
    threads: 1
    resources:
        mem_mb=mem(1000),
        runtime=minutes(10),
    conda:
        "../envs/figures.yaml"
    message:
        "Figure gradcam_controls: what the activation maps are held against"
    script:
        "../scripts/draw_gradcam_controls.py"
