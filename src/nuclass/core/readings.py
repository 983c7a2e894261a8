"""How predictions are read, and which rows of a comparison look at no cell; light, for tables and figures."""

from __future__ import annotations

OPEN, CLOSED = "open", "closed"
READINGS = {
    OPEN: "Predictions may fall on any class of the model (open set).",
    CLOSED: "Predictions are forced into the classes that occur among the evaluated cells, and probabilities scaled to "
    "them (closed set): errors into other classes are impossible, which flatters.",
}
"""``closed`` is the original's way."""

MAJORITY, ORGAN_PRIOR = "majority", "organ_prior"
PRIORS = (MAJORITY, ORGAN_PRIOR)

ALL_CLASSES = "all classes"
HIGHER, LOWER = 1, -1
BETTER = {
    "accuracy": HIGHER,
    "macro_f1": HIGHER,
    "weighted_f1": HIGHER,
    "balanced_accuracy": HIGHER,
    "top2_accuracy": HIGHER,
    "f1": HIGHER,
    "log_loss": LOWER,
    "brier": LOWER,
    "ece": LOWER,
}
"""Whether more of a metric of a comparison of models is better."""

EMBEDDING_METRICS = {
    "accuracy": HIGHER,
    "macro_f1": HIGHER,
    "auroc_macro": HIGHER,
    "silhouette": HIGHER,
    "calinski_harabasz": HIGHER,
    "davies_bouldin": LOWER,
    "nn1": HIGHER,
    "nn1_same_organ": HIGHER,
    "nn1_cross_organ": HIGHER,
    "organ_identifiability": LOWER,
    "organ_leakage": LOWER,
    "ece": LOWER,
}
"""Every metric of a comparison of embeddings, and whether more of it is better."""

GATE_PARTS = ("by_class", "by_truth", "reliability", "by_uncertainty", "map")
"""Tables of the gate's behaviour."""
