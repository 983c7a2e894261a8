"""How many errors remain when the least certain cells are left out: risk against coverage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

COVERAGES = (0.5, 0.8, 0.9)
"""Shares of the cells, the surest ones, whose accuracy is told."""


def selective_risk(right: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Return the error rate (N,) of the k surest cells, for k = 1 to N.

    ``right`` (N,) says whether a prediction is right, ``confidence`` (N,) how sure it is. Of cells that are equally
    sure any order would do: the value is the mean over all of them, so that the order of cells does not count.
    """
    order = np.argsort(-np.asarray(confidence, dtype=np.float64), kind="stable")
    wrong = 1.0 - np.asarray(right, dtype=np.float64)[order]
    sure = np.asarray(confidence, dtype=np.float64)[order]
    start = np.flatnonzero(np.r_[True, sure[1:] != sure[:-1]])
    size = np.diff(np.r_[start, len(sure)])
    smooth = np.repeat(np.add.reduceat(wrong, start) / size, size)
    return np.asarray(np.cumsum(smooth) / np.arange(1, len(sure) + 1))


def risk_summary(y: np.ndarray, probs: np.ndarray) -> dict[str, Any]:
    """Return the area under risk against coverage, and the accuracy of the surest cells.

    Returns
    -------
    dict
        ``aurc``, the mean of :func:`selective_risk` over all coverages k/N (Geifman and El-Yaniv 2017; 0 is
        best); ``aurc_best``, what a perfect order of the same predictions reaches; ``e_aurc``, the difference (Geifman
        et al. 2019); ``accuracy_at``, by coverage of :data:`COVERAGES`. Confidence is the top probability.
    """
    p = np.asarray(probs, dtype=np.float64)
    right = p.argmax(axis=1) == y
    risk = selective_risk(right, p.max(axis=1))
    best = float(selective_risk(right, right).mean())
    aurc = float(risk.mean())
    at = {f"{share:g}": float(1 - risk[_cells(share, len(y)) - 1]) for share in COVERAGES}
    return {"aurc": aurc, "aurc_best": best, "e_aurc": aurc - best, "accuracy_at": at}


def risk_coverage(y: np.ndarray, probs: np.ndarray, *, points: int = 100) -> pd.DataFrame:
    """Return the curve at ``points`` evenly spaced coverages, fewer where there are fewer cells.

    Columns: ``coverage`` (share of the cells kept), ``cells``, ``threshold`` (confidence of the least sure cell kept),
    ``risk`` (error rate among them) and ``accuracy``.
    """
    p = np.asarray(probs, dtype=np.float64)
    confidence = p.max(axis=1)
    risk = selective_risk(p.argmax(axis=1) == y, confidence)
    cells = np.unique([_cells((i + 1) / points, len(y)) for i in range(points)])
    threshold = -np.sort(-confidence)[cells - 1]
    return pd.DataFrame(
        {
            "coverage": cells / len(y),
            "cells": cells,
            "threshold": threshold,
            "risk": risk[cells - 1],
            "accuracy": 1 - risk[cells - 1],
        }
    )


def _cells(share: float, n: int) -> int:
    return max(1, int(np.ceil(share * n - 1e-9)))
