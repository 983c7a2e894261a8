"""What each branch knows, what the gate makes of it, and what a perfect choice would reach."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from nuclass.evaluation.metrics import macro_classes


def plain_mean(p_local: np.ndarray, p_global: np.ndarray) -> np.ndarray:
    """Return the unweighted mean of two branches' probabilities (N, C), the baseline of the gate."""
    return (np.asarray(p_local, dtype=np.float64) + np.asarray(p_global, dtype=np.float64)) / 2


def oracle(y: np.ndarray, p_local: np.ndarray, p_global: np.ndarray) -> np.ndarray:
    """Return the predictions (N,) of a perfect choice: the label where either branch has it, else local's."""
    local, other = p_local.argmax(axis=1), p_global.argmax(axis=1)
    return np.where((local == y) | (other == y), y, local)


def gate_auroc(y: np.ndarray, p_local: np.ndarray, p_global: np.ndarray, gate: np.ndarray) -> float:
    """Return how well the gate points to the branch that is right where exactly one is.

    ``gate`` (N,) is the weight of the global branch; a positive is a cell that only the global branch
    has right. NaN where one of the two kinds of cell does not occur.
    """
    local, other = p_local.argmax(axis=1) == y, p_global.argmax(axis=1) == y
    conflict = local != other
    positive = other[conflict]
    if positive.all() or not positive.any():
        return float("nan")
    return float(roc_auc_score(positive, np.asarray(gate)[conflict]))


def branches(
    y: np.ndarray,
    p_local: np.ndarray,
    p_global: np.ndarray,
    p_fused: np.ndarray,
    gate: np.ndarray,
    *,
    min_support: int = 1,
) -> dict[str, Any]:
    """Return accuracy and macro-F1 of local, global, their mean, fused and oracle, and who is right where.

    All probabilities are (N, C) over the same classes and cells; ``y`` (N,) holds class indices.
    ``A`` is the local branch, ``B`` the global one, as in the original.
    """
    chosen = macro_classes(y, p_local.shape[1], min_support)
    calls = {
        "local": p_local.argmax(axis=1),
        "global": p_global.argmax(axis=1),
        "mean": plain_mean(p_local, p_global).argmax(axis=1),
        "fused": p_fused.argmax(axis=1),
        "oracle": oracle(y, p_local, p_global),
    }
    a, b = calls["local"] == y, calls["global"] == y
    scores = {
        name: {
            "accuracy": float(accuracy_score(y, call)),
            "macro_f1": float(f1_score(y, call, labels=chosen, average="macro", zero_division=0))
            if len(chosen)
            else float("nan"),
        }
        for name, call in calls.items()
    }
    best = max(scores["local"]["accuracy"], scores["global"]["accuracy"])
    g = np.asarray(gate, dtype=np.float64)
    return {
        "n_cells": len(y),
        "scores": scores,
        "A_only": int((a & ~b).sum()),
        "B_only": int((~a & b).sum()),
        "both": int((a & b).sum()),
        "neither": int((~a & ~b).sum()),
        "complementarity_gain": scores["oracle"]["accuracy"] - best,
        "gate_auroc": gate_auroc(y, p_local, p_global, g),
        "gate_mean": float(g.mean()),
        "gate_mean_A_only": float(g[a & ~b].mean()) if (a & ~b).any() else float("nan"),
        "gate_mean_B_only": float(g[~a & b].mean()) if (~a & b).any() else float("nan"),
    }
