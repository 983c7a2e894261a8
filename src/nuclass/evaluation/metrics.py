"""Metrics of one model on one set of cells, each by scikit-learn where it has the metric."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    recall_score,
    roc_auc_score,
    top_k_accuracy_score,
)

from nuclass.core.errors import UserError
from nuclass.core.readings import CLOSED, OPEN, READINGS

MACRO_RULE = (
    "Macro means run over the classes with at least {n} labelled cells in the evaluated set; "
    "a class that is never predicted has F1 = 0 and counts. {reading}"
)


def check_probabilities(y: np.ndarray, probs: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Return the probabilities as float64 rows that sum to one; raise on anything that is not that.

    ``y`` (N,) holds indices into ``classes``, ``probs`` (N, C).
    """
    values = np.asarray(probs, dtype=np.float64)
    if values.shape != (len(y), len(classes)) or len(y) == 0:
        raise UserError(
            "Probabilities and labels do not fit together",
            found=f"{values.shape} probabilities, {len(y)} labels, {len(classes)} classes",
            expected="at least one cell, one row a cell, one column a class",
        )
    sums = values.sum(axis=1)
    if not np.isfinite(values).all() or values.min() < 0 or np.abs(sums - 1).max() > 1e-3:
        bad = int(np.flatnonzero(~np.isfinite(sums) | (values.min(axis=1) < 0) | (np.abs(sums - 1) > 1e-3))[0])
        raise UserError(
            "Probabilities are not valid",
            where=f"row {bad}",
            found=values[bad].round(4).tolist(),
            expected="finite, not negative, summing to 1",
        )
    return values / sums[:, None]


def macro_classes(y: np.ndarray, n_classes: int, min_support: int) -> np.ndarray:
    """Return the indices of the classes that macro means run over."""
    return np.flatnonzero(np.bincount(y, minlength=n_classes) >= max(min_support, 1))


def closed_set(y: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """Return probabilities (N, C) of a closed set, the original's reading.

    Classes that do not occur in ``y`` get nothing, the others are scaled to sum to one; a cell with no probability
    on any of them gets the same on each.
    """
    p = np.asarray(probs, dtype=np.float64)
    present = np.bincount(y, minlength=p.shape[1]) > 0
    kept = np.where(present, p, 0.0)
    total = kept.sum(axis=1, keepdims=True)
    return np.where(total > 0, kept / np.where(total > 0, total, 1.0), present / present.sum())


def read_as(y: np.ndarray, probs: np.ndarray, *, closed: bool) -> np.ndarray:
    """Return the probabilities in the reading asked for: as they are (open set), or :func:`closed_set`."""
    return closed_set(y, probs) if closed else np.asarray(probs, dtype=np.float64)


def metrics(
    y: np.ndarray,
    probs: np.ndarray,
    classes: Sequence[str],
    *,
    bins: int = 15,
    min_support: int = 1,
    closed: bool = False,
    ranking: bool = True,
) -> dict[str, Any]:
    """Return the summary metrics of an open-set and a closed-set reading of the same probabilities.

    Parameters
    ----------
    y
        True classes (N,), indices into ``classes``.
    probs
        Probabilities (N, C).
    classes
        The model's classes, in column order.
    bins
        Bins of the expected calibration error.
    min_support
        Labelled cells a class needs to enter the macro means.
    closed
        Whether the headline is that of the closed set (``set``); all numbers are then of probabilities scaled to it.
    ranking
        Whether AUROC and average precision are wanted, which take most of the time.

    Returns
    -------
    dict
        The headline, and the hard metrics of both readings: ``open_set``, the arg max over all classes of the model,
        and ``closed_set``, the arg max within the classes that occur in ``y``, which flatters a model because
        errors into absent classes become impossible. The Brier score is the mean over cells of the
        sum over classes of (p - t)^2, between 0 and 2 (Brier 1950). Top-2 is by scikit-learn: of tied
        classes the later one comes first.
    """
    checked = check_probabilities(y, probs, classes)
    n_classes = len(classes)
    chosen = macro_classes(y, n_classes, min_support)
    present = np.flatnonzero(np.bincount(y, minlength=n_classes))
    hard = {
        name: _hard(y, read_as(y, checked, closed=name == CLOSED).argmax(axis=1), present, chosen)
        for name in (OPEN, CLOSED)
    }
    p = read_as(y, checked, closed=closed)
    target = np.eye(n_classes)[y]
    auroc, ap = _ranking(y, p, chosen) if ranking else (np.array([]), np.array([]))
    every = np.arange(n_classes)
    reading = CLOSED if closed else OPEN
    return {
        "n_cells": len(y),
        "set": reading,
        "classes": list(classes),
        "absent_classes": [name for i, name in enumerate(classes) if i not in present],
        "macro_classes": [classes[int(i)] for i in chosen],
        "macro_rule": MACRO_RULE.format(n=max(min_support, 1), reading=READINGS[reading]),
        **hard[reading],
        "top2_accuracy": 1.0 if n_classes <= 2 else float(top_k_accuracy_score(y, p, k=2, labels=every)),
        "log_loss": float(log_loss(y, p, labels=every)) if n_classes > 1 else 0.0,
        "brier": float(((p - target) ** 2).sum(axis=1).mean()),
        "ece": ece(y, p, bins=bins),
        "ece_equal_mass": ece(y, p, bins=bins, equal_mass=True),
        "auroc_macro": _mean(auroc),
        "average_precision_macro": _mean(ap),
        "mean_confidence": float(p.max(axis=1).mean()),
        "open_set": hard[OPEN],
        "closed_set": {"classes": [classes[int(i)] for i in present], **hard[CLOSED]},
    }


def _hard(y: np.ndarray, predicted: np.ndarray, present: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    some = len(chosen) > 0
    return {
        "accuracy": float(accuracy_score(y, predicted)),
        "macro_f1": (
            float(f1_score(y, predicted, labels=chosen, average="macro", zero_division=0)) if some else float("nan")
        ),
        "macro_f1_all_present": float(f1_score(y, predicted, labels=present, average="macro", zero_division=0)),
        "weighted_f1": float(f1_score(y, predicted, labels=present, average="weighted", zero_division=0)),
        "balanced_accuracy": float(recall_score(y, predicted, labels=present, average="macro", zero_division=0)),
    }


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _ranking(y: np.ndarray, p: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One-versus-rest AUROC and average precision of each class; NaN where one side is empty."""
    auroc = np.full(len(indices), np.nan)
    ap = np.full(len(indices), np.nan)
    for row, index in enumerate(indices):
        positive = y == index
        if 0 < positive.sum() < len(y):
            auroc[row] = roc_auc_score(positive, p[:, index])
            ap[row] = average_precision_score(positive, p[:, index])
    return auroc, ap


def per_class(y: np.ndarray, probs: np.ndarray, classes: Sequence[str], *, closed: bool = False) -> pd.DataFrame:
    """Return one row a class: ``class precision recall f1 support predicted auroc average_precision``.

    A class without cells has support 0 and NaN for everything that needs cells. With ``closed`` these are of the
    closed set. The columns ``precision_* recall_* f1_* predicted_*`` are of the other reading, named in them.
    """
    checked = check_probabilities(y, probs, classes)
    every = np.arange(len(classes))
    p, other = read_as(y, checked, closed=closed), read_as(y, checked, closed=not closed)
    auroc, ap = _ranking(y, p, every)
    table = _hard_by_class(y, p.argmax(axis=1), len(classes))
    table.insert(0, "class", list(classes))
    table["auroc"], table["average_precision"] = auroc, ap
    second = _hard_by_class(y, other.argmax(axis=1), len(classes)).drop(columns="support")
    return table.join(second.add_suffix(f"_{OPEN if closed else CLOSED}"))


def _hard_by_class(y: np.ndarray, predicted: np.ndarray, n_classes: int) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        precision, recall, f1, support = precision_recall_fscore_support(
            y, predicted, labels=np.arange(n_classes), zero_division=0
        )
    table = pd.DataFrame(
        {
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "support": support.astype(int),
            "predicted": np.bincount(predicted, minlength=n_classes),
        }
    )
    table.loc[table["support"] == 0, ["recall", "f1"]] = np.nan
    table.loc[table["predicted"] == 0, "precision"] = np.nan
    return table


def confusion(y: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """Return the confusion matrix as a long table: ``true``, ``predicted``, ``cells``, ``rate``.

    ``rate`` is the share of the true class's cells (a row of the matrix sums to one); NaN where the
    class has no cells.
    """
    counts = confusion_matrix(y, predicted, labels=np.arange(len(classes)))
    support = counts.sum(axis=1, keepdims=True)
    rates = np.divide(counts, support, out=np.full(counts.shape, np.nan), where=support > 0)
    return pd.DataFrame(
        {
            "true": np.repeat(list(classes), len(classes)),
            "predicted": np.tile(list(classes), len(classes)),
            "cells": counts.ravel(),
            "rate": rates.ravel(),
        }
    )


def reliability(y: np.ndarray, probs: np.ndarray, *, bins: int = 15, equal_mass: bool = False) -> pd.DataFrame:
    """Return confidence against accuracy in bins of the top probability.

    Bins are of equal width on [0, 1], or hold equally many cells, as far as cells of the same confidence (within
    1e-12) stay in one bin, that of their middle rank: the numbers must not hang on the order of the cells, and
    scikit-learn's ``calibration_curve`` keeps ties together too. Columns: ``low``, ``high``, ``cells``, ``confidence``
    and ``accuracy`` (means within the bin, NaN where it is empty).
    """
    confidence = np.asarray(probs, dtype=np.float64).max(axis=1)
    right = (np.asarray(probs).argmax(axis=1) == y).astype(np.float64)
    if equal_mass:
        bin_of = _equal_mass_bin(confidence, bins)
        low = np.array([confidence[bin_of == b].min() if (bin_of == b).any() else np.nan for b in range(bins)])
        high = np.array([confidence[bin_of == b].max() if (bin_of == b).any() else np.nan for b in range(bins)])
    else:
        edges = np.linspace(0, 1, bins + 1)
        bin_of = equal_width_bin(confidence, bins)
        low, high = edges[:-1], edges[1:]
    cells = np.bincount(bin_of, minlength=bins)
    safe = np.maximum(cells, 1)
    mean_confidence = np.bincount(bin_of, weights=confidence, minlength=bins) / safe
    accuracy = np.bincount(bin_of, weights=right, minlength=bins) / safe
    empty = cells == 0
    mean_confidence[empty], accuracy[empty] = np.nan, np.nan
    return pd.DataFrame({"low": low, "high": high, "cells": cells, "confidence": mean_confidence, "accuracy": accuracy})


def _equal_mass_bin(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Return the bin (N,) of each confidence, by the middle of the ranks that cells of the same confidence take."""
    _, tied, cells = np.unique(np.round(confidence, 12), return_inverse=True, return_counts=True)
    # Twice the middle rank, counted from 0, so that it is whole: of a confidence that occurs once, twice its rank.
    twice = 2 * (np.cumsum(cells) - cells) + cells - 1
    return np.asarray((twice * bins // (2 * len(confidence)))[tied.ravel()], dtype=np.int64)


def equal_width_bin(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Return the bin (N,) of each confidence: bins of equal width on [0, 1], each with its upper edge.

    What lies above an edge by no more than rounding, 1e-12, is on it.
    """
    place = np.searchsorted(np.linspace(0, 1, bins + 1) + 1e-12, confidence, side="left") - 1
    return np.asarray(np.clip(place, 0, bins - 1), dtype=np.int64)


def ece(y: np.ndarray, probs: np.ndarray, *, bins: int = 15, equal_mass: bool = False) -> float:
    """Return the expected calibration error of the top probability.

    The mean over bins of |accuracy - confidence|, weighted by the share of cells (Guo et al. 2017).
    """
    table = reliability(y, probs, bins=bins, equal_mass=equal_mass).dropna()
    gap = (table["accuracy"] - table["confidence"]).abs()
    return float((gap * table["cells"]).sum() / table["cells"].sum())


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return row-wise softmax in float64."""
    from scipy.special import softmax as scipy_softmax

    return np.asarray(scipy_softmax(np.asarray(logits, dtype=np.float64), axis=1))
