"""Names that pass between stages: columns, states, classes. Spelt once."""

from __future__ import annotations

CELL_ID = "cell_id"
KEPT, DROPPED = "kept", "dropped"
LABELLED, ABSTAINED = "labelled", "abstained"
TRAIN, VAL, TEST, BUFFER = "train", "val", "test", "buffer"
SPLITS = (TRAIN, VAL, TEST, BUFFER)

LOCAL, GLOBAL, GATE = "local", "global", "gate"
MODELS = (LOCAL, GLOBAL, GATE)

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
