"""Marker scores: how much a cell's expression speaks for each cell type."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from nuclass.labels.markers import MarkerSet

_CHUNK = 20_000
_CLIP = 4.0
_AGAINST = 0.5
"""Weight of the negative markers against the positive ones."""


def normalised(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return counts (N, G) scaled to the median depth and logged: ``log(1 + x)``."""
    depth = np.asarray(counts.sum(1)).ravel()
    scale = (np.median(depth) / np.maximum(depth, 1)).astype(np.float32)
    result = sparse.csr_matrix(
        (counts.data * np.repeat(scale, np.diff(counts.indptr)), counts.indices, counts.indptr), shape=counts.shape
    )
    np.log1p(result.data, out=result.data)
    return result


def marker_scores(
    logged: sparse.csr_matrix, genes: Sequence[str], candidates: Sequence[MarkerSet], lineages: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the marker scores of candidate types (N, C) and of lineages (N, L), in standard deviations of expression.

    Expression is scaled by gene to mean 0 and variance 1, clipped at 4. A type's score is the mean of its positive
    markers, each weighted by how few types share it, less half the sum of its negatives above 0 over the root of their
    number: one telling gene among many negatives is to count. A lineage's score is the best of its types, with markers
    weighted by how few lineages share them: what all epithelium has says little between its types, much for it.

    Parameters
    ----------
    lineages
        The lineage of each candidate (C,); the lineages' columns are in the order of ``np.unique``.
    """
    wanted = sorted({gene for c in candidates for gene in (*c.positive, *c.negative)})
    place = {gene: k for k, gene in enumerate(genes)}
    part = logged[:, [place[gene] for gene in wanted]].tocsr()
    mean = np.asarray(part.mean(0)).ravel()
    square = part.copy()
    square.data = square.data**2
    spread = np.sqrt(np.maximum(np.asarray(square.mean(0)).ravel() - mean**2, 0)) + 1e-3
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


_Weights = tuple[np.ndarray, np.ndarray]


def _weights(wanted: Sequence[str], candidates: Sequence[MarkerSet], lineages: np.ndarray) -> tuple[_Weights, _Weights]:
    """Return the weights (G, C) of positive and negative markers, for types and for lineages.

    For a lineage, a negative marker that another of its types has as a positive one does not count.
    """
    place = {gene: k for k, gene in enumerate(wanted)}
    types = pd.Series([gene for c in candidates for gene in c.positive]).value_counts()
    homes: dict[str, set[str]] = {}
    for c, lineage in zip(candidates, lineages, strict=True):
        for gene in c.positive:
            homes.setdefault(gene, set()).add(str(lineage))
    shape = (len(wanted), len(candidates))
    plus, minus, plus_wide, minus_wide = (np.zeros(shape, np.float32) for _ in range(4))
    for k, (c, lineage) in enumerate(zip(candidates, lineages, strict=True)):
        for gene in c.positive:
            plus[place[gene], k] = 1 / types[gene]
            plus_wide[place[gene], k] = 1 / len(homes[gene])
        foreign = [gene for gene in c.negative if str(lineage) not in homes.get(gene, set())]
        for gene in c.negative:
            minus[place[gene], k] = 1 / np.sqrt(len(c.negative))
        for gene in foreign:
            minus_wide[place[gene], k] = 1 / np.sqrt(len(foreign))
    return (plus / plus.sum(0), minus), (plus_wide / plus_wide.sum(0), minus_wide)
