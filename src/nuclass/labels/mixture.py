"""Cell types as a mixture model of counts: profiles learnt from seeds, posteriors, doublets.

A cell's transcripts are multinomial under ``(1 - s) profile + s neighbours``: the profile is that of a component of
its type, the neighbours' part stands for transcripts that the segmentation gave to the wrong cell. A type has one
component a cluster in which it is at home, for tumours, T cells or macrophages of one slide are of several kinds.
Profiles, freed of the neighbours' part, and posteriors are refined in turn (expectation maximisation). All work is on
the entries of the sparse counts, in chunks of cells: memory grows with the transcripts, never with cells x genes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

_CHUNK = 20_000
_PSEUDO = 1e-5
_SLIDE_PRIOR = 1.0
"""Weight of the slide's shares in the prior, against 1 for those of the nearest cells."""
_SURE = 0.8
"""Cells with a posterior above it shape the profiles."""


@dataclass(frozen=True)
class Fit:
    """How the mixture is fitted; see the ``labels`` section of the configuration."""

    spill: float
    temperature: float
    full_depth: float
    rounds: int


@dataclass(frozen=True)
class Counts:
    """Counts (N, G) as entries by cell, with the share of each entry's gene in the cells around (0 without any)."""

    matrix: sparse.csr_matrix
    around: np.ndarray

    def chunks(self) -> Iterator[tuple[slice, sparse.csr_matrix, np.ndarray]]:
        """Yield the cells' slice, their counts, and what is around for each entry."""
        start = self.matrix.indptr
        for i in range(0, self.matrix.shape[0], _CHUNK):
            j = min(i + _CHUNK, self.matrix.shape[0])
            yield slice(i, j), self.matrix[i:j], self.around[start[i] : start[j]]


def with_surroundings(matrix: sparse.csr_matrix, xy_um: np.ndarray | None, reach_um: float) -> Counts:
    """Pair counts (N, G) with the mean profile of the cells within ``reach_um`` of each cell.

    ``xy_um`` (N, 2) are the cells' places; without them nothing is around any cell.
    """
    around = np.zeros(matrix.nnz, np.float32)
    if xy_um is None:
        return Counts(matrix, around)
    tree = cKDTree(xy_um)
    n = matrix.shape[0]
    for i in range(0, n, _CHUNK):
        j = min(i + _CHUNK, n)
        near = tree.query_ball_point(xy_um[i:j], reach_um, return_sorted=False)
        sizes = np.fromiter((len(one) for one in near), np.int64, j - i)
        columns = np.concatenate([np.asarray(one, np.int64) for one in near])
        rows = np.repeat(np.arange(j - i), sizes)
        other = columns != rows + i
        links = sparse.csr_matrix((np.ones(other.sum(), np.float32), (rows[other], columns[other])), shape=(j - i, n))
        total = (links @ matrix).toarray()
        total /= np.maximum(total.sum(1, keepdims=True), 1)
        part = matrix[i:j]
        cell = np.repeat(np.arange(j - i), np.diff(part.indptr))
        around[matrix.indptr[i] : matrix.indptr[j]] = total[cell, part.indices]
    return Counts(matrix, around)


def components(start: np.ndarray, clusters: np.ndarray, n_types: int, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide each type's seeds into components.

    Parameters
    ----------
    start
        The type (N,) that each cell starts with, -1 for none.
    clusters
        Codes (N,) of the clusters of one resolution.
    least
        Seeds that a component needs.

    Returns
    -------
    The component of each cell (-1: none) and the type of each component. A cluster makes a component of a type where
    it holds ``least`` seeds of it, and these are most of the cluster's seeds; a type's other seeds are one component.
    """
    table = np.zeros((clusters.max() + 1, n_types))
    seeded = start >= 0
    np.add.at(table, (clusters[seeded], start[seeded]), 1)
    home = (table >= least) & (table > 0.5 * table.sum(1, keepdims=True))
    part = np.full(len(start), -1)
    types: list[int] = []
    for kind in range(n_types):
        own = start == kind
        left = own.copy()
        for code in np.flatnonzero(home[:, kind]):
            member = own & (clusters == code)
            part[member] = len(types)
            types.append(kind)
            left &= ~member
        if left.sum() >= least or (own.any() and not home[:, kind].any()):
            part[left] = len(types)
            types.append(kind)
    return part, np.array(types, int)


def fit(
    counts: Counts, part: np.ndarray, types: np.ndarray, nearest: np.ndarray, settings: Fit
) -> tuple[np.ndarray, np.ndarray]:
    """Fit the mixture.

    Parameters
    ----------
    counts
        From :func:`with_surroundings`.
    part, types
        From :func:`components`.
    nearest
        Indices (N, k) of the nearest cells in expression.

    Returns
    -------
    Posteriors (N, T) of the types, and how much better, in tempered log-likelihood, the best mixture of two types
    explains each cell than one type does (N,).
    """
    n_types = int(types.max()) + 1
    weight = (part[:, None] == np.arange(len(types))).astype(np.float32)
    profile: np.ndarray | None = None
    cooling = _cooling(counts.matrix, settings)
    log = np.empty((len(part), len(types)), np.float32)
    for _ in range(settings.rounds):
        profile = _profiles(counts, weight, profile, settings.spill)
        for rows, matrix, around in counts.chunks():
            log[rows] = _log_likelihood(matrix, around, profile, settings.spill) / cooling[rows, None]
        weight = _posterior(log, _prior(weight, nearest))
        by_type = _sum_by(weight, types, n_types)
        sure = by_type[np.arange(len(weight))[:, None], types[None, :]] > _SURE
        posterior, weight = by_type, np.where(sure, weight, 0)
    if profile is None:
        raise ValueError("a mixture is fitted in one round or more")
    gain = np.zeros(len(part), np.float32)
    for rows, matrix, around in counts.chunks():
        gain[rows] = _pair_gain(matrix, around, profile, types, log[rows] * cooling[rows, None], settings.spill)
    return posterior, gain / cooling


def _cooling(matrix: sparse.csr_matrix, settings: Fit) -> np.ndarray:
    """Return what each cell's log-likelihood is divided by (N,).

    Genes are not independent, so evidence counts ``temperature`` times less than it seems; and beyond
    ``full_depth`` transcripts no further evidence is added, for then the profiles' own error prevails.
    """
    depth = np.asarray(matrix.sum(1), np.float32).ravel()
    return settings.temperature * np.maximum(depth / settings.full_depth, 1)


def _prior(weight: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """Return the log prior (N, P): the mean of the shares among the nearest cells and in the slide."""
    share = np.zeros_like(weight)
    for column in nearest.T:
        share += weight[column]
    share /= nearest.shape[1]
    share += _SLIDE_PRIOR * weight.mean(0) / max(float(weight.sum(1).mean()), 1e-9) + 1e-3
    return np.log(share / share.sum(1, keepdims=True))


def _posterior(log: np.ndarray, prior: np.ndarray) -> np.ndarray:
    value = log + prior
    value -= value.max(1, keepdims=True)
    np.exp(value, out=value)
    value /= value.sum(1, keepdims=True)
    return value


def _sum_by(weight: np.ndarray, types: np.ndarray, n_types: int) -> np.ndarray:
    total = np.zeros((len(weight), n_types), np.float32)
    for column, kind in enumerate(types):
        total[:, kind] += weight[:, column]
    return np.minimum(total, 1)  # sums of single-precision shares may pass 1 by a little


def _rows(matrix: sparse.csr_matrix) -> np.ndarray:
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def _profiles(counts: Counts, weight: np.ndarray, last: np.ndarray | None, spill: float) -> np.ndarray:
    """Return the components' profiles (P, G), each summing to 1.

    With the profiles of the round before, each transcript counts by how likely it is the cell's own.
    """
    total = np.full((weight.shape[1], counts.matrix.shape[1]), 0.5)
    for rows, matrix, around in counts.chunks():
        part = weight[rows]
        if last is not None and spill:
            own = (1 - spill) * (part / np.maximum(part.sum(1, keepdims=True), 1e-9)) @ last
            own = own[_rows(matrix), matrix.indices]
            values = matrix.data * (own / (own + spill * around + 1e-9))
            matrix = sparse.csr_matrix((values, matrix.indices, matrix.indptr), shape=matrix.shape)
        total += (matrix.T @ part).T
    return total / total.sum(1, keepdims=True)


def _sum_rows(values: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """Sum entries by row; rows without entries give 0."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return total[indptr[1:]] - total[indptr[:-1]]


def _log_likelihood(matrix: sparse.csr_matrix, around: np.ndarray, profile: np.ndarray, spill: float) -> np.ndarray:
    """Return the log-likelihood (n, P) of a chunk's cells under each component."""
    result = np.empty((matrix.shape[0], len(profile)))
    fixed = (spill * around + _PSEUDO).astype(np.float32)
    for k, row in enumerate(((1 - spill) * profile).astype(np.float32)):
        result[:, k] = _sum_rows(matrix.data * np.log(row[matrix.indices] + fixed), matrix.indptr)
    return result


def _pair_gain(
    matrix: sparse.csr_matrix,
    around: np.ndarray,
    profile: np.ndarray,
    types: np.ndarray,
    log: np.ndarray,
    spill: float,
) -> np.ndarray:
    """Return by how much a half-and-half mixture of two components of unlike type beats the best one (n,)."""
    best, top = log.max(1), log.argmax(1)
    gain = np.zeros(len(log))
    for a in np.unique(top):
        rows = np.flatnonzero(top == a)
        part = matrix[rows]
        start, sizes = matrix.indptr[rows], np.diff(part.indptr)
        entries = np.repeat(start - part.indptr[:-1], sizes) + np.arange(part.nnz)
        fixed = (spill * around[entries] + _PSEUDO).astype(np.float32)
        for b in np.flatnonzero(types != types[a]):
            half = (0.5 * (1 - spill) * (profile[a] + profile[b])).astype(np.float32)
            mixed = _sum_rows(part.data * np.log(half[part.indices] + fixed), part.indptr)
            gain[rows] = np.maximum(gain[rows], mixed - best[rows])
    return gain
