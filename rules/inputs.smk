"""What the models are trained with: sections of the model file, cells, cached features."""

OWN_CONTEXT = bool(MODEL_CONFIG["context"]["pretrain"])
CONTEXT_FOLDER = "results/backbones/context" if OWN_CONTEXT else None
CONTEXT_FILES = [f"{CONTEXT_FOLDER}/{file}" for file in ("config.json", "model.safetensors")] if OWN_CONTEXT else []
VIEWS = MODEL_CONFIG["context"]["views"] > 0
STUDY_SCALE = {"mpp": CONFIG["mpp"], "windows": CONFIG["windows"], "cache_mb": CONFIG["slide_store"]["cache_mb"]}


def organs_of(slides):
    """Return what the library wants to know of slides: their names and organs, and where their windows are read."""
    return [{"slide": slide, "organ": SLIDES.loc[slide, "organ"], "windows": windows_of(slide)} for slide in slides]


def sections(*names):
    """Return these sections of the model file, so that a change elsewhere reruns nothing."""
    return {name: MODEL_CONFIG[name] for name in names}


def wants_gpu(*names):
    """Return 1 where a section's network is one that needs a GPU, else 0."""
    large = {"uni2-h", "dinov3-vitl16"}
    return int(any(MODEL_CONFIG[name].get("backbone", {}).get("name") in large for name in names))


def mem_of_run(name, base):
    """Return a memory request in MB for training: ``base``, the windows of train and val, the reading processes."""
    run = MODEL_CONFIG[name]["trainer"]
    return mem(base + 2 * run["memory_mb"] + run["workers"] * (500 + STUDY_SCALE["cache_mb"]))


def cells_of(slides):
    """Return the files that tell where cells lie, what they are, and which split they are in."""
    return {
        "windows": [windows_of(slide) for slide in slides],
        "cells": expand("results/slides/{slide}/cells.parquet", slide=slides),
        "labels": expand("results/labels/{slide}/labels.parquet", slide=slides),
        "splits": expand("results/splits/{slide}.parquet", slide=slides),
    }


def features_of(slides, views):
    """Return the cached context features of slides, with those under augmentation where asked for."""
    kept = expand("results/features/context/{slide}.h5", slide=slides)
    return kept + (expand("results/features/context/{slide}.views.h5", slide=slides) if views and VIEWS else [])
