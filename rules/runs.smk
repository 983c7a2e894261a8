"""Where the files of runs under changed settings lie: a run's own, or those of the study or an earlier run."""

VARIANTS = STUDY.variants
RUNS = list(VARIANTS.members)
WHOLE_RUNS = [name for name, variant in VARIANTS.members.items() if len(variant.parts) == len(MODELS)]
RUN_VIEWS = STUDY.short_models["context"]["views"] > 0
RUN = "results/variants/{variant}"


def run_of(wildcards):
    """Return the variant of a job."""
    return VARIANTS.members[wildcards.variant]


def run_switches(*stages):
    """Return a function that tells which flaws of a job's variant bear on stages."""
    return lambda wildcards: switches_of(run_of(wildcards).protocol, *stages)


def run_sections(*names, stages=()):
    """Return a function that gives a job the settings of its variant, as `sections` does for the study."""

    def chosen(wildcards):
        run = run_of(wildcards)
        flaws = switches_of(run.protocol, *stages)
        return {name: run.models[name] for name in names} | ({"protocol": flaws} if flaws else {})

    return chosen


def run_scale(wildcards):
    """Return the scale of a variant, with the size of its global window."""
    return STUDY_SCALE | {"windows": CONFIG["windows"] | {"global": run_of(wildcards).window}}


def run_slide(variant, slide):
    """Return where the files of a slide lie that a variant is trained and judged with."""
    place = lambda stage: VARIANTS.place(variant, stage)
    slides = place("slides") if slide in BUNDLE_SLIDES else "results"
    features = place("context")
    return {
        "windows": windows_of(slide).replace("results/", f"{slides}/", 1),
        "cells": f"{slides}/slides/{slide}/cells.parquet",
        "labels": f"results/labels/{slide}/labels.parquet",
        "splits": f"{place('splits')}/splits/{slide}.parquet",
        "features": f"{features}/features/context/{slide}.h5",
        "views": f"{features}/features/context/{slide}.views.h5",
        "gate_features": f"{place('gate_context')}/features/context_gate/{slide}.h5",
    }


def run_rows(slides=None):
    """Return a function that gives a job its slides with their organs and files; without a list the training slides."""

    def rows(wildcards):
        chosen = [wildcards.slide] if "slide" in wildcards.keys() else slides or run_of(wildcards).slides
        return [
            {"slide": slide, "organ": SLIDES.loc[slide, "organ"], **run_slide(wildcards.variant, slide)}
            for slide in chosen
        ]

    return rows


def run_files(*kinds, slides=None):
    """Return a function that lists files of a variant's slides."""
    return lambda wildcards: [row[kind] for row in run_rows(slides)(wildcards) for kind in kinds]


def run_file(kind):
    """Return a function that names a file of the slide of a job."""
    return lambda wildcards: run_slide(wildcards.variant, wildcards.slide)[kind]


def run_features(slides=None):
    """Return a function that lists a variant's context features, with those under augmentation of training slides."""
    kinds = lambda slide: ["features", *(["views"] if RUN_VIEWS and slide in TRAIN_SLIDES else [])]
    return lambda wildcards: [row[kind] for row in run_rows(slides)(wildcards) for kind in kinds(row["slide"])]


def run_gate_features(slides=None):
    """Return a function that lists the context features that a variant's gate has of its own; mostly none."""
    found = run_files("gate_features", slides=slides)
    return lambda wildcards: found(wildcards) if run_of(wildcards).protocol.smaller_gate_context else []


def run_context(wildcards):
    """Return the files of the context backbone that a variant trains itself or shares."""
    return [path.replace("results", VARIANTS.place(wildcards.variant, "pretrain"), 1) for path in CONTEXT_FILES]


def run_model(model):
    """Return a function that names the checkpoint of a variant's model."""
    return lambda wildcards: f"{VARIANTS.place(wildcards.variant, model)}/models/{model}/best.ckpt"


def run_predictions(variant, model, slides):
    """Return the prediction tables of a variant."""
    place = VARIANTS.place(variant, f"predict_{model}")
    return [f"{place}/predictions/{model}/{slide}.parquet" for slide in slides]


def trained(model):
    """Return what a training writes for a variant."""
    files = {"checkpoint": "best.ckpt"} | {name: f"{name}.json" for name in ("metrics", "calibration")}
    return {key: f"{RUN}/models/{model}/{file}" for key, file in (files | {"history": "history.csv"}).items()}
