"""What the models are trained with: sections of the model file, flaws that are on, cells, cached features, machines."""

OWN_CONTEXT = bool(MODEL_CONFIG["context"]["pretrain"])
CONTEXT_FOLDER = "results/backbones/context" if OWN_CONTEXT else None
CONTEXT_FILES = [f"{CONTEXT_FOLDER}/{file}" for file in ("config.json", "model.safetensors")] if OWN_CONTEXT else []
VIEWS = MODEL_CONFIG["context"]["views"] > 0
STUDY_SCALE = {"mpp": CONFIG["mpp"], "windows": CONFIG["windows"], "cache_mb": CONFIG["slide_store"]["cache_mb"]}


def organs_of(slides):
    """Return what the library wants to know of slides: their names and organs, and where their windows are read."""
    return [{"slide": slide, "organ": SLIDES.loc[slide, "organ"], "windows": windows_of(slide)} for slide in slides]


def sections(*names, stages=()):
    """Return these sections of the model file, so that a change elsewhere reruns nothing.

    Flaws of the original that are on and bear on one of ``stages`` come along as ``protocol``.
    """
    flaws = switches_of(PROTOCOL, *stages)
    return {name: MODEL_CONFIG[name] for name in names} | ({"protocol": flaws} if flaws else {})


def context_sections(wildcards):
    """Return the settings of context features; only those of training slides have copies under augmentation."""
    views = VIEWS and wildcards.slide in TRAIN_SLIDES
    return sections("context", stages=("context", "views") if views else ("context",))


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


def gate_features_of(slides):
    """Return the context features that the gate has of its own where smaller_gate_context is on; else none."""
    return expand("results/features/context_gate/{slide}.h5", slide=slides if PROTOCOL.smaller_gate_context else [])


def section_of(name):
    """Return a section of the model file as far as it says where its jobs compute."""
    return MODEL_CONFIG[name].get("trainer", MODEL_CONFIG[name])


def is_large(name):
    """Return whether a section's network is too large for a processor: a published one, or where a GPU is asked for.

    Sections without a network of their own run the local model's.
    """
    settings = MODEL_CONFIG[name] if "backbone" in MODEL_CONFIG[name] else MODEL_CONFIG["local"]
    network = str(settings.get("backbone", {}).get("name", ""))
    published = network not in ("", "dinov3", "folder") and not network.startswith("timm:")
    return published or section_of(name).get("accelerator") in ("gpu", "cuda")


def wants_gpu(name):
    """Return 1 where a section's network needs a GPU, else 0."""
    return int(is_large(name) and section_of(name).get("accelerator") != "cpu")


def without_gpu(name, group):
    """Return a group where a section's network needs no GPU, for then its jobs are short; else none."""
    return None if wants_gpu(name) else group


def processes(name):
    """Return how many processes of a node train a model: one for each of its devices."""
    devices = MODEL_CONFIG[name]["trainer"]["devices"]
    if isinstance(devices, list):
        return len(devices)
    return int(devices) if str(devices).isdigit() else 1


def train_gpus(name):
    """Return how many GPUs of a node train a model: one a process, if its network is large."""
    return wants_gpu(name) * processes(name)


def own_threads():
    """Return the threads of a training beside its readers: small ones go side by side instead."""
    return 2 if is_large("local") else 1


def train_threads(name):
    """Return the threads of a training: its own and those of the reading processes, for each process."""
    return processes(name) * (own_threads() + MODEL_CONFIG[name]["trainer"]["workers"])


def network_minutes(name, large):
    """Return the time limit of a job that runs a section's network: ``large`` minutes, or one hour for a small network."""
    return large if is_large(name) else 60


def predict_mem():
    """Return a memory request in MB for predictions: the models, and the reading processes."""
    return mem(model_base() + readers_mem(MODEL_CONFIG["predict"]))


def train_minutes(large):
    """Return the time limit of a training in minutes: five days for a published network."""
    return 7200 if large else 480


def train_base():
    """Return the memory in MB of a training beside its data: libraries, weights, the state that is written."""
    return 24000 if is_large("local") else 2500


def model_base(small=3000):
    """Return the memory in MB of a job that runs the trained models: libraries, weights; ``small`` for small networks."""
    return 12000 if is_large("local") else small


def readers_mem(settings):
    """Return the memory in MB of the reading processes of a section: their libraries, and the tiles they keep."""
    return settings["workers"] * (500 + STUDY_SCALE["cache_mb"])


def train_mem(name):
    """Return a memory request in MB for training: a base, features, and for each process windows and readers.

    No more windows than there are cells are counted. A new attempt asks for twice as much once: later ones may
    be due to a time limit.
    """
    run, side = MODEL_CONFIG[name]["trainer"], CONFIG["windows"]["local"]
    window_mb = 3e-6 * MODEL_CONFIG["local"]["backbone"].get("input_px", side) ** 2

    def megabytes(wildcards, input, attempt):
        windows = min(2 * run["memory_mb"], window_mb * rows_of(input.cells))
        each = windows + readers_mem(run)
        features = 2e-6 * sum(os.path.getsize(file) for file in input.get("features", []))
        return SNAKEMAKE_MB + int((train_base() + features + processes(name) * each) * 2 ** min(attempt - 1, 1))

    return megabytes


def gate_mem(wildcards, input, attempt):
    """Return a memory request in MB for the gate: a base, features, readers; twice as much in a new attempt, once."""
    features = 2 * size_of([*input.features, *input.gate_features])
    asked = train_base() + features + readers_mem(MODEL_CONFIG["predict"])
    return SNAKEMAKE_MB + int(asked * 2 ** min(attempt - 1, 1))


def rows_of(tables):
    """Return how many rows Parquet tables have together."""
    import pyarrow.parquet as pq

    total = 0
    for table in tables:
        with open(table, "rb") as stream:
            total += pq.read_metadata(stream).num_rows
    return total
