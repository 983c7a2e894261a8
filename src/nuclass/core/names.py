"""Names that pass between stages: columns, states, classes. Spelt once."""

from __future__ import annotations

CELL_ID = "cell_id"
KEPT, DROPPED = "kept", "dropped"
LABELLED, ABSTAINED = "labelled", "abstained"
TRAIN, VAL, TEST, BUFFER = "train", "val", "test", "buffer"
SPLITS = (TRAIN, VAL, TEST, BUFFER)

LOCAL, GLOBAL, GATE = "local", "global", "gate"
MODELS = (LOCAL, GLOBAL, GATE)
BASELINES = ("plip", "loki", "musk", "uni2_h", "dinov3")
LINEAR, TUNED = "linear", "finetuned"

FUSED, MEAN, ORACLE = "fused", "mean", "oracle"
TITLES = {
    LOCAL: "Local",
    GLOBAL: "Global",
    GATE: "Fused (gate)",
    FUSED: "Fused (gate)",
    MEAN: "Plain mean",
    "product": "Product",
    "max_confidence": "Surer of the two",
    "stacking": "Stacking",
    "safe": "Safety policy",
    ORACLE: "Oracle",
    "majority": "Majority class",
    "organ_prior": "Organ's majority",
    "plip": "PLIP",
    "loki": "LOKI",
    "musk": "MUSK",
    "uni2_h": "UNI2-h",
    "dinov3": "DINOv3",
}
_SUFFIXES = {"_linear": ", linear head", "_finetuned": ", fine-tuned"}

ORGANS = ("breast", "colon", "heart", "kidney", "liver", "lung", "ovary", "pancreas")

PROBABILITY_PREFIX = "prob_"

CELL_COLUMNS = (
    CELL_ID,
    "x_um",
    "y_um",
    "x_morph",
    "y_morph",
    "x_he",
    "y_he",
    "x_px",
    "y_px",
    "cell_x_um",
    "cell_y_um",
    "transcript_counts",
    "n_genes",
    "control_counts",
    "nucleus_area",
    "cell_area",
    "nucleus_count",
    "status",
    "reason",
)


def probability_columns(classes: list[str]) -> list[str]:
    """Return the names of a prediction table's probability columns, in the order of ``classes``."""
    return [PROBABILITY_PREFIX + name for name in classes]


def title(name: str) -> str:
    """Return how a model or a row of a comparison is called in tables and figures, itself where it has no title."""
    for suffix, words in _SUFFIXES.items():
        if name.endswith(suffix):
            return title(name.removesuffix(suffix)) + words
    return TITLES.get(name, name)
