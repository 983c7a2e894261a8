"""Marker scores: how much a cell's expression speaks for each cell type."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from nuclass.labels.markers import MarkerSet

_CHUNK = 20_000
_CLIP = 4.0
_SHARED = 0.3
"""Part of a type's score that the markers shared within its lineage make up."""
_AGAINST = 0.5
"""Weight of the negative markers against the positive ones."""
_AT_MOST = 0.5
"""What a lineage may weigh in the scale of genes, as a part of all other lineages."""


def normalised(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return counts (N, G) scaled to the median depth of cells with counts, and logged: ``log(1 + x)``."""
    depth = np.asarray(counts.sum(1)).ravel()
    usual = np.median(depth[depth > 0]) if depth.any() else 1.0
    scale = (usual / np.maximum(depth, 1)).astype(np.float32)
    result = sparse.csr_matrix(
        (counts.data * np.repeat(scale, np.diff(counts.indptr)), counts.indices, counts.indptr), shape=counts.shape
    )
    np.log1p(result.data, out=result.data)
    return result


def marker_scores(
    logged: sparse.csr_matrix,
    genes: Sequence[str],
    candidates: Sequence[MarkerSet],
    lineages: np.ndarray,
    home: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the marker scores of candidate types (N, C) and of lineages (N, L), in standard deviations of expression.

    Expression is scaled by gene to mean 0 and variance 1, clipped at 4. A type's score is the
    mean of its positive markers, each weighted by how few types share it, less half the sum of its negatives above 0
    over the root of their number: one telling gene among many negatives is to count. A lineage's score is the best of
    its types, with markers weighted by how few lineages share them: what all epithelium has says little between its
    types, much for it.

    Parameters
    ----------
    lineages
        The lineage of each candidate (C,); the lineages' columns are in the order of ``np.unique``.
    home
        The lineage of each cell (N,), so far as known: one that fills the slide is not to set the scale of its genes.
    """
    wanted = sorted({gene for c in candidates for gene in (*c.positive, *c.negative)})
    place = {gene: k for k, gene in enumerate(genes)}
    part = logged[:, [place[gene] for gene in wanted]].tocsr()
    mean, spread = _scale(part, wanted, candidates, lineages, home)
    narrow, wide = _weights(wanted, candidates, lineages)
    names = np.unique(lineages)
    n = part.shape[0]
    score, broad = np.empty((n, len(candidates)), np.float32), np.empty((n, len(names)), np.float32)
    for i in range(0, n, _CHUNK):
        rows = slice(i, min(i + _CHUNK, n))
        scaled = np.clip((part[rows].toarray() - mean) / spread, -_CLIP, _CLIP)
        above = np.maximum(scaled, 0)
        score[rows] = scaled @ narrow[0] - _AGAINST * (above @ narrow[1])
        by_type = scaled @ wide[0] - _AGAINST * (above @ wide[1])
        broad[rows] = np.stack([by_type[:, lineages == name].max(1) for name in names], 1)
    return score, broad


def balanced(home: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return weights of cells (N,) under which no lineage counts more than half of what all others do.

    Parameters
    ----------
    home
        The lineage of each cell (N,).

    Returns
    -------
    The weights, and the lineages that count less for it.
    """
    names, inverse, cells = np.unique(home, return_inverse=True, return_counts=True)
    if len(names) < 2:
        return np.ones(len(home)), []
    weight = np.minimum(1, _AT_MOST * (len(home) - cells) / cells)
    return weight[inverse], [str(name) for name in names[weight < 1]]


def _scale(
    logged: sparse.csr_matrix,
    genes: Sequence[str],
    candidates: Sequence[MarkerSet],
    lineages: np.ndarray,
    home: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and standard deviation (G,) by which genes are scaled.

    In a slide that is three quarters tumour the mean is the tumour's, and against it the tumour has no markers: the
    positive markers of a lineage that fills a slide are scaled as if there were less of it.
    """
    mean, spread = _moments(logged, np.ones(logged.shape[0]))
    if home is not None:
        weight, large = balanced(home)
        own = {g for c, name in zip(candidates, lineages, strict=True) if str(name) in large for g in c.positive}
        columns = [k for k, gene in enumerate(genes) if gene in own]
        if columns:
            mean[columns], spread[columns] = _moments(logged[:, columns], weight)
    return mean, spread


def _moments(logged: sparse.csr_matrix, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    share = weight / weight.sum()
    square = logged.copy()
    square.data = square.data**2
    mean = np.asarray(logged.T @ share)
    return mean, np.sqrt(np.maximum(np.asarray(square.T @ share) - mean**2, 0)) + 1e-3


def marker_support(
    logged: sparse.csr_matrix,
    genes: Sequence[str],
    candidates: Sequence[MarkerSet],
    codes: np.ndarray,
    lineages: np.ndarray,
    home: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return what clusters' scores are without each type's best marker, and with it (clusters, C).

    A score is the plain mean of a type's positive markers in the mean of a cluster's cells, scaled by gene over cells.
    Where it falls to nothing without the best marker, the cluster has one gene of the type and not its programme.
    """
    n = int(codes.max()) + 1
    member = sparse.csr_matrix((np.ones(len(codes), np.float32), (codes, np.arange(len(codes)))), shape=(n, len(codes)))
    place = {gene: k for k, gene in enumerate(genes)}
    mean = np.asarray((member @ logged).todense()) / np.maximum(np.bincount(codes, minlength=n), 1)[:, None]
    over, spread = _scale(logged, genes, candidates, lineages, home)
    scaled = np.clip((mean - over) / spread, -_CLIP, _CLIP)
    without, full = np.empty((n, len(candidates))), np.empty((n, len(candidates)))
    for k, candidate in enumerate(candidates):
        part = np.sort(scaled[:, [place[gene] for gene in candidate.positive]], axis=1)
        without[:, k], full[:, k] = part[:, :-1].mean(1), part.mean(1)
    return without, full


_Weights = tuple[np.ndarray, np.ndarray]


def _weights(wanted: Sequence[str], candidates: Sequence[MarkerSet], lineages: np.ndarray) -> tuple[_Weights, _Weights]:
    """Return the weights (G, C) of positive and negative markers, for types and for lineages.

    Between the types of a lineage the markers that they share decide nothing, so these make up the same part of each
    type's score, however many they are. For a lineage, a negative marker that another of its types has as a positive
    one does not count.
    """
    place = {gene: k for k, gene in enumerate(wanted)}
    types = pd.Series([gene for c in candidates for gene in c.positive]).value_counts()
    homes: dict[str, list[str]] = {}
    for c, lineage in zip(candidates, lineages, strict=True):
        for gene in c.positive:
            homes.setdefault(gene, []).append(str(lineage))
    shape = (len(wanted), len(candidates))
    plus, minus, plus_wide, minus_wide = (np.zeros(shape, np.float32) for _ in range(4))
    for k, (c, lineage) in enumerate(zip(candidates, lineages, strict=True)):
        home = str(lineage)
        shared = {gene: 1 / types[gene] for gene in c.positive if homes[gene].count(home) > 1}
        own = {gene: 1 / types[gene] for gene in c.positive if gene not in shared}
        part = _SHARED if shared and own else float(bool(shared))
        for genes, share in ((shared, part), (own, 1 - part)):
            for gene, weight in genes.items():
                plus[place[gene], k] = share * weight / sum(genes.values())
        for gene in c.positive:
            plus_wide[place[gene], k] = 1 / len(set(homes[gene]))
        foreign = [gene for gene in c.negative if home not in homes.get(gene, [])]
        for gene in c.negative:
            minus[place[gene], k] = 1 / np.sqrt(len(c.negative))
        for gene in foreign:
            minus_wide[place[gene], k] = 1 / np.sqrt(len(foreign))
    return (plus, minus), (plus_wide / plus_wide.sum(0), minus_wide)
