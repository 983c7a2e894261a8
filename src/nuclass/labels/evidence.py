"""What speaks for the labels: marker genes by cell type, and a picture of the cells in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from nuclass.core.errors import UserError
from nuclass.core.names import CELL_ID

if TYPE_CHECKING:
    from numpy.typing import NDArray

MARKER_COLUMNS = ("cell_type", "gene", "listed", "rank", "mean", "fraction", "log2_fold", "score")

_CHUNK = 50_000
_FLOOR = 0.01
"""Added to both sides of a fold change, in transcripts of a cell of median depth, so that an unseen gene is no peak."""
_NEIGHBOURS = 15
_EPOCHS = 200
_MIN_DIST = 0.3
_ENOUGH = 10
"""Fewer cells than this are shown by their first two components: there is no structure to lay out."""


def marker_evidence(
    counts: sparse.csr_matrix,
    genes: Sequence[str],
    cell_type: Sequence[str] | NDArray[Any],
    markers: pd.DataFrame,
    top: int = 10,
) -> pd.DataFrame:
    """Measure the markers of the cell types found, and the genes that speak most for each.

    Only cells with a cell type count. Expression is normalised to their median depth.

    Parameters
    ----------
    counts
        Transcripts, cells x genes (N, G).
    genes
        Names of the genes (G,).
    cell_type
        Cell type of each cell (N,); "" where it has none.
    markers
        Marker table with the columns ``cell_type gene sign`` (others are ignored).
    top
        Genes of each type that are shown whether or not the table lists them.

    Returns
    -------
    One row a cell type and gene, types by name and genes by rank. The genes are the markers that the panel holds of
    the types found, and the ``top`` genes of each type; every type has a row of every one of them.
    ``listed``: positive, negative or "", as the table has the gene for this type. ``rank``: place among all genes of
    the panel by ``score``, from 1. ``mean``: mean of log(1 + normalised count). ``fraction``: share of the type's cells
    with a transcript. ``log2_fold``: normalised expression over the mean of the other types' means, each type
    counting the same. ``score``: t statistic (unequal variances) of the logged expression against all other
    cells with a type. With one type there is no other: the last two are missing and the rank is by mean.

    Raises
    ------
    UserError
        Where the sizes do not fit together.
    """
    names = np.asarray(cell_type, dtype=object)
    if counts.shape != (len(names), len(genes)):
        raise UserError(
            "Counts, genes and cell types do not fit together",
            found=f"{counts.shape[0]} x {counts.shape[1]} counts, {len(names)} cell types, {len(genes)} genes",
            expected="one row of counts a cell type, one column a gene",
        )
    types = sorted(set(names) - {""})
    if not types:
        return pd.DataFrame(columns=list(MARKER_COLUMNS))
    code = pd.Categorical(names, categories=types).codes
    n, linear, logged, squared, seen = _sums(counts, code, len(types))
    score = _welch(n, logged, squared)
    mean = logged / n[:, None]
    order = np.argsort(-np.where(np.isfinite(score), score, mean), axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(1, len(genes) + 1)[None, :].repeat(len(types), 0), axis=1)
    sign = _signs(markers, types)
    shown = {gene for _, gene in sign} | {genes[k] for row in order[:, :top] for k in row}
    columns = [k for k, gene in enumerate(genes) if gene in shown]
    table = pd.DataFrame(
        {
            "cell_type": np.repeat(types, len(columns)),
            "gene": np.tile([genes[k] for k in columns], len(types)),
            "rank": rank[:, columns].ravel(),
            "mean": mean[:, columns].ravel(),
            "fraction": (seen / n[:, None])[:, columns].ravel(),
            "log2_fold": _folds(linear / n[:, None])[:, columns].ravel(),
            "score": score[:, columns].ravel(),
        }
    )
    keys = zip(table["cell_type"], table["gene"], strict=True)
    table["listed"] = [sign.get((str(name), str(gene)), "") for name, gene in keys]
    return table.sort_values(["cell_type", "rank"], ignore_index=True)[list(MARKER_COLUMNS)]


def _sums(counts: sparse.csr_matrix, code: NDArray[Any], n_types: int) -> tuple[NDArray[Any], ...]:
    """Return cells of each type (T,), and sums (T, G): normalised, logged, logged squared, cells with the gene.

    Worked in parts, so that the memory does not grow with the cells.
    """
    rows = np.flatnonzero(code >= 0)
    depth = np.asarray(counts.sum(1), np.float64).ravel()
    deep = depth[rows][depth[rows] > 0]
    target = float(np.median(deep)) if len(deep) else 1.0
    totals = [np.zeros((n_types, counts.shape[1])) for _ in range(4)]
    for start in range(0, len(rows), _CHUNK):
        chosen = rows[start : start + _CHUNK]
        part = sparse.csr_matrix(counts[chosen], dtype=np.float64)
        groups = sparse.csr_matrix(
            (np.ones(len(chosen)), (code[chosen], np.arange(len(chosen)))), shape=(n_types, len(chosen))
        )
        part.data *= np.repeat(target / np.maximum(depth[chosen], 1), np.diff(part.indptr))
        logged = np.log1p(part.data)
        for total, data in zip(totals, (part.data, logged, logged**2, part.data > 0), strict=True):
            values = sparse.csr_matrix((data.astype(np.float64), part.indices, part.indptr), shape=part.shape)
            total += (groups @ values).toarray()
    return np.bincount(code[rows], minlength=n_types).astype(float), *totals


def _welch(n: NDArray[Any], total: NDArray[Any], squared: NDArray[Any]) -> NDArray[Any]:
    """Return the t statistic (T, G) of each type against all cells of the others; missing with one type."""

    def moments(n: NDArray[Any], total: NDArray[Any], squared: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        mean = total / n
        variance = np.maximum(squared / n - mean**2, 0) * n / np.maximum(n - 1, 1)
        return mean, variance / n

    if len(n) < 2:
        return np.full(total.shape, np.nan)
    rest = n.sum() - n
    mean, spread = moments(n[:, None], total, squared)
    mean_rest, spread_rest = moments(rest[:, None], total.sum(0) - total, squared.sum(0) - squared)
    error = np.sqrt(spread + spread_rest)
    difference = mean - mean_rest
    return np.divide(difference, error, out=np.zeros_like(difference), where=error > 0)


def _folds(mean: NDArray[Any]) -> NDArray[Any]:
    """Return log2 of each type's normalised expression over the mean of the other types' (T, G)."""
    if len(mean) < 2:
        return np.full(mean.shape, np.nan)
    others = (mean.sum(0) - mean) / (len(mean) - 1)
    return np.asarray(np.log2((mean + _FLOOR) / (others + _FLOOR)))


def _signs(markers: pd.DataFrame, types: Sequence[str]) -> dict[tuple[str, str], str]:
    """Return the sign by cell type and gene, for the types found."""
    chosen = markers[markers["cell_type"].isin(list(types))]
    return {
        (str(name), str(gene)): str(sign)
        for name, gene, sign in zip(chosen["cell_type"], chosen["gene"], chosen["sign"], strict=True)
    }


def umap_coordinates(
    components: NDArray[Any], cell_ids: Sequence[str] | NDArray[Any], seed: int, limit: int = 20_000
) -> pd.DataFrame:
    """Lay cells out in two dimensions by UMAP, for a picture.

    The graph is that of UMAP (15 neighbours, Euclidean), the layout starts from the first two components, so that
    the large distances mean something, and is the same for the same input and seed.

    Parameters
    ----------
    components
        Principal components of the cells (N, P), in order of their variance.
    cell_ids
        Their ids (N,).
    seed
        Of the choice of cells and of the layout.
    limit
        With more cells than this, a random choice of so many is laid out.

    Returns
    -------
    ``cell_id umap_1 umap_2``, in the order given, at most ``limit`` rows.

    Raises
    ------
    UserError
        Where ids and components differ in number, or a component is not finite.
    """
    values, ids = np.asarray(components, np.float32), np.asarray(cell_ids)
    if values.ndim != 2 or len(values) != len(ids):
        raise UserError(
            "Components and cell ids do not fit together",
            found=f"components of shape {values.shape}, {len(ids)} ids",
            expected="one row of components a cell",
        )
    if len(bad := np.flatnonzero(~np.isfinite(values).all(1))):
        raise UserError(
            "Components are not finite",
            found=f"{len(bad)} of {len(values)} cells, such as {ids[bad[0]]}",
            expected="finite numbers",
        )
    if len(values) > limit:
        chosen = np.sort(np.random.default_rng(seed).choice(len(values), limit, replace=False))
        values, ids = values[chosen], ids[chosen]
    start = np.zeros((len(values), 2), np.float32)
    start[:, : min(2, values.shape[1])] = values[:, :2]
    place = start if len(values) < _ENOUGH else _layout(values, start, seed)
    return pd.DataFrame({CELL_ID: ids, "umap_1": place[:, 0], "umap_2": place[:, 1]}).astype(
        {"umap_1": np.float32, "umap_2": np.float32}
    )


def _layout(values: NDArray[Any], start: NDArray[Any], seed: int) -> NDArray[Any]:
    from sklearn.neighbors import NearestNeighbors
    from umap.umap_ import find_ab_params, simplicial_set_embedding

    k = min(_NEIGHBOURS, len(values)) - 1
    distances, nearest = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(values).kneighbors()
    a, b = find_ab_params(1.0, _MIN_DIST)
    # umap-learn divides by the extent of the start, and cells in one place would stay together.
    jitter = np.random.default_rng(seed).normal(size=start.shape)
    start = start + np.float32(1e-4 * (float(np.ptp(start)) or 1.0)) * jitter.astype(np.float32)
    place, _ = simplicial_set_embedding(
        values,
        fuzzy_graph(nearest, distances).tocoo(),
        n_components=2,
        initial_alpha=1.0,
        a=a,
        b=b,
        gamma=1.0,
        negative_sample_rate=5,
        n_epochs=_EPOCHS,
        init=start,
        random_state=np.random.RandomState(seed),
        metric="euclidean",
        metric_kwds={},
        densmap=False,
        densmap_kwds={},
        output_dens=False,
        parallel=False,
    )
    return np.asarray(place)


def fuzzy_graph(nearest: NDArray[Any], distances: NDArray[Any]) -> sparse.csr_matrix:
    """Return UMAP's graph of cells, as umap-learn has it, without the seconds that its compilation takes.

    A link weighs exp(-(d - d_nearest) / width), where the width is such that a cell's weights sum to
    log2(neighbours, itself included); the two directions are joined as a probabilistic "or".

    Parameters
    ----------
    nearest, distances
        The nearest cells of each cell, itself left out, and how far they are (N, k), ascending.
    """
    n, k = nearest.shape
    gap = np.maximum(distances - distances[:, :1], 0)
    aim = np.log2(k + 1)
    low, high = np.zeros(n), np.full(n, np.inf)
    width = np.ones(n)
    for _ in range(64):
        over = np.exp(-gap / width[:, None]).sum(1) > aim
        low, high = np.where(over, low, width), np.where(over, width, high)
        width = np.where(np.isinf(high), width * 2, (low + high) / 2)
        width = np.maximum(width, 1e-3 * distances.mean())
    weight = np.exp(-gap / np.maximum(width, 1e-12)[:, None])
    graph = sparse.csr_matrix((weight.ravel(), (np.repeat(np.arange(n), k), nearest.ravel())), shape=(n, n))
    both = graph.multiply(graph.T)
    return sparse.csr_matrix(graph + graph.T - both, dtype=np.float32)
