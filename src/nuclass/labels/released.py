"""The confidence of the original release: 0.6 x neighbour purity + 0.4 x marker margin.

Kept so that its effect can be measured beside ours. Two things differ, for want of what it rested on: a cluster's
label is the cell type that most of its cells have by our assignment, not a name given by hand to a cluster's number;
and genes are ranked by Welch's t statistic, where the release averaged the ranks of a Wilcoxon test and a logistic
regression.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

K = 50
"""Nearest cells, the cell itself among them."""
PURITY, MARGIN = 0.6, 0.4
TOP = 30
_DEPTH = 1e4


def released_confidence(
    counts: sparse.csr_matrix, codes: np.ndarray, types: np.ndarray, nearest: np.ndarray
) -> np.ndarray:
    """Return the original's confidence (N,), 0 to 1.

    Parameters
    ----------
    counts
        Counts (N, G).
    codes
        The cluster of each cell.
    types
        The best type of each cell, as a whole number.
    nearest
        The nearest cells (N, k) without the cell itself; the first 49 count.
    """
    near = nearest[:, : K - 1]
    purity = np.zeros(len(codes), np.float32)
    for column in near.T:
        purity += codes[column] == codes
    purity /= near.shape[1]
    return PURITY * purity + MARGIN * _marker_margin(counts, codes, types)


def _marker_margin(counts: sparse.csr_matrix, codes: np.ndarray, types: np.ndarray) -> np.ndarray:
    """Return the scaled lead (N,) of a cell's own label in mean expression of its label's marker genes."""
    depth = np.asarray(counts.sum(1)).ravel()
    logged = sparse.diags((_DEPTH / np.maximum(depth, 1)).astype(np.float32)).dot(counts).tocsr()
    np.log1p(logged.data, out=logged.data)
    n_clusters = int(codes.max()) + 1
    label_of = np.array([np.bincount(types[codes == c]).argmax() for c in range(n_clusters)])
    labels = np.unique(label_of)
    if len(labels) < 2:
        return np.full(len(codes), 0.5, np.float32)
    statistic = _welch(logged, codes, n_clusters)
    score = np.empty((len(codes), len(labels)), np.float32)
    for k, label in enumerate(labels):
        members = np.flatnonzero(label_of == label)
        genes = np.unique(np.argsort(-statistic[members], axis=1, kind="stable")[:, :TOP])
        score[:, k] = np.asarray(logged[:, genes].mean(1)).ravel()
    own = np.searchsorted(labels, label_of[codes])
    rows = np.arange(len(codes))
    mine = score[rows, own].copy()
    score[rows, own] = -np.inf
    return scaled_margin(mine - score.max(1))


def _welch(logged: sparse.csr_matrix, codes: np.ndarray, n_clusters: int) -> np.ndarray:
    """Return Welch's t (clusters, G) of each cluster against all other cells."""
    member = sparse.csr_matrix((np.ones(len(codes), np.float32), (codes, np.arange(len(codes)))))
    square = sparse.csr_matrix((logged.data**2, logged.indices, logged.indptr), shape=logged.shape)
    n = np.bincount(codes, minlength=n_clusters)[:, None].astype(float)
    total, total2 = np.asarray((member @ logged).todense(), float), np.asarray((member @ square).todense(), float)
    rest = len(codes) - n
    mean, mean_rest = total / n, (total.sum(0) - total) / np.maximum(rest, 1)
    var = np.maximum(total2 / n - mean**2, 0)
    var_rest = np.maximum((total2.sum(0) - total2) / np.maximum(rest, 1) - mean_rest**2, 0)
    return (mean - mean_rest) / np.sqrt(var / n + var_rest / np.maximum(rest, 1) + 1e-12)


def scaled_margin(lead: np.ndarray) -> np.ndarray:
    """Return leads scaled to 0..1: 0.5 at the median, 0 and 1 at three median absolute deviations from it.

    Without any deviation, the mid-quartile and twice the interquartile range stand in; then three standard
    deviations; then 1.
    """
    centre = np.median(lead)
    width = 3 * np.median(np.abs(lead - centre))
    if width == 0:
        low, high = np.percentile(lead, [25, 75])
        centre, width = (low + high) / 2, 2 * (high - low)
    if width == 0:
        width = 3 * lead.std() or 1.0
    return np.clip(0.5 + 0.5 * (lead - centre) / width, 0, 1).astype(np.float32)
