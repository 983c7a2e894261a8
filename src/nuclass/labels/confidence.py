"""How sure a label is: that the cell is of its kind, and that the markers name the kind rightly."""

from __future__ import annotations

import numpy as np


def marker_lead(smooth: np.ndarray, best: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """Return how far the markers prefer each cell's type to any other, on average over its like (N,).

    Parameters
    ----------
    smooth
        Marker scores (N, C) of all candidates, smoothed over the nearest cells.
    best
        The type of each cell (N,), a column of ``smooth``.
    nearest
        Indices (N, k) of the nearest cells; those of the same type count.

    Returns
    -------
    Standard deviations of expression; negative where the markers prefer another type. A cell without any of its type
    near it has its own lead.
    """
    rows = np.arange(len(best))
    own = smooth[rows, best]
    others = smooth.copy()
    others[rows, best] = -np.inf
    lead = own - others.max(1)
    total, count = np.zeros(len(best)), np.zeros(len(best))
    for column in nearest.T:
        same = best[column] == best
        total += np.where(same, lead[column], 0)
        count += same
    return np.where(count > 0, total / np.maximum(count, 1), lead)


def confidence(posterior: np.ndarray, lead: np.ndarray, slope: float, offset: float) -> np.ndarray:
    """Return the chance (N,) that a label is right.

    The product of the posterior, the chance that the cell is of its kind, and of a logistic function of the markers'
    lead, the chance that the kind bears the right name. ``slope`` and ``offset`` are fitted on data with truth
    (benchmarks/calibrate_labels.py).
    """
    return posterior / (1 + np.exp(-np.clip(slope * lead + offset, -30, 30)))
