"""The published networks that are compared with, their files, and what their jobs ask of a machine."""

from nuclass.core.names import BASELINES as KNOWN_BASELINES

BASELINE_CONFIG = MODEL_CONFIG["baselines"]
BASELINES = [name for name in KNOWN_BASELINES if BASELINE_CONFIG.get(name)]
HEADS = ["linear", "finetuned"]
BASELINE_MODELS = [f"{name}_{head}" for name in BASELINES for head in HEADS]
STAND_INS = [name for name in BASELINES if BASELINE_CONFIG[name]["stand_in"]]
PUBLISHED = [name for name in BASELINES if name not in STAND_INS]
TUNING = BASELINE_CONFIG["finetuned"]["trainer"]
BASELINE_FEATURES = "results/features/baselines/{baseline}/{slide}.h5"
BASELINE_TABLES = "results/predictions/{baseline}_{head}/{slide}"
BASELINE_FILES = {
    "checkpoint": "results/models/{baseline}_{head}/best.ckpt",
    "metrics": "results/models/{baseline}_{head}/metrics.json",
    "history": "results/models/{baseline}_{head}/history.csv",
    "calibration": "results/models/{baseline}_{head}/calibration.json",
}


def baseline_sections(names, *parts, others=(), stages=()):
    """Return what a job on these baselines reads of the model file, so that a change elsewhere reruns nothing."""
    wanted = [*names, *parts, "read_level", "seed"]
    return {"baselines": {name: BASELINE_CONFIG[name] for name in wanted}} | sections(*others, stages=stages)


def baseline_gpus(names, part, devices=1):
    """Return how many GPUs a job takes: none where the settings say cpu, nor for stand-ins unless they say gpu."""
    settings = BASELINE_CONFIG[part]
    accelerator = settings.get("trainer", settings).get("accelerator")
    asked = accelerator in ("gpu", "cuda") or not set(names) <= set(STAND_INS)
    return devices if asked and accelerator != "cpu" else 0


def tuning_processes():
    """Return how many processes of a node fine-tune a network: one for each of its devices."""
    devices = TUNING["devices"]
    if isinstance(devices, list):
        return len(devices)
    return int(devices) if str(devices).isdigit() else 1


def baseline_base(names):
    """Return the memory in MB of a job beside its data: libraries, weights."""
    return 2500 if set(names) <= set(STAND_INS) else 12000


def linear_mem(names):
    """Return a memory request in MB for linear heads: a base, and the features of train and val cells."""
    return mem(baseline_base(names) + 2 * BASELINE_CONFIG["linear"]["memory_mb"], doublings=1)


def tuning_mem(wildcards, input, attempt):
    """Return a memory request in MB for fine-tuning; counts as :func:`train_mem` does."""
    name = wildcards.baseline
    side = BASELINE_CONFIG[name]["backbone"].get("input_px", CONFIG["windows"]["local"])
    windows = min(2 * TUNING["memory_mb"], 3e-6 * side**2 * rows_of(input.cells))
    base = 2500 if name in STAND_INS else 16000
    asked = base + tuning_processes() * (windows + readers_mem(TUNING))
    return SNAKEMAKE_MB + int(asked * 2 ** min(attempt - 1, 1))


def features_of_baselines(names, slides):
    """Return the cached features of slides, network by network."""
    return expand(BASELINE_FEATURES, baseline=names, slide=slides)


def tables_of_baselines(names, heads, suffix):
    """Return the predictions of the cohorts, model by model."""
    return expand(f"{BASELINE_TABLES}.{suffix}", baseline=names, head=heads, slide=COHORTS)
