"""Principal components, neighbours and Leiden clusters, on scanpy; variable genes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from nuclass.core.log import get_logger

if TYPE_CHECKING:
    from nuclass.labels.assign import Settings

_log = get_logger(__name__)

LARGE_PANEL = 1000
"""Genes above which only the most variable ones, and the markers, take part."""
_EXACT = 50_000
_DESCENT = 15
_WIDEN_CHUNK = 2000
_MIN_GROUP = 100
"""Cells below which a part of the cells is not clustered by itself."""


@dataclass(frozen=True)
class Clusters:
    """Codes of the Leiden clusters (one column a resolution), nearest cells (N, k), principal components (N, P)."""

    codes: pd.DataFrame
    nearest: np.ndarray
    components: np.ndarray

    @property
    def finest(self) -> np.ndarray:
        """Codes (N,) of the finest resolution."""
        return self.codes[max(self.codes, key=float)].to_numpy()

    @property
    def shown(self) -> np.ndarray:
        """Codes (N,) of the middle resolution, the one that tables and figures show."""
        return self.codes[sorted(self.codes, key=float)[len(self.codes.columns) // 2]].to_numpy()


def cluster(logged: sparse.csr_matrix, settings: Settings, n_nearest: int) -> Clusters:
    """Cluster cells by expression.

    Parameters
    ----------
    logged
        Log-normalised expression (N, G) of the genes that are to take part.
    n_nearest
        Nearest cells to return, in principal-component space; at least ``settings.n_neighbors``, which make the graph.
    """
    components = _components(logged, settings)
    nearest = _nearest(components, min(n_nearest, len(components) - 1), settings.seed)
    _log.info("%d nearest cells of %d cells found", nearest.shape[1], len(nearest))
    graph = _shared_graph(nearest[:, : settings.n_neighbors])
    codes = {f"{resolution:g}": _leiden(graph, resolution, settings.seed) for resolution in settings.resolutions}
    for resolution, found in codes.items():
        _log.info("resolution %s: %d clusters", resolution, found.max() + 1)
    return Clusters(pd.DataFrame(codes), nearest, components)


def cluster_within(
    logged: sparse.csr_matrix, groups: Iterable[np.ndarray], clusters: Clusters, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster groups of cells anew, each by itself: what tells their kinds apart then leads the components.

    Parameters
    ----------
    groups
        Indices of the cells of each group (M,). Too few for clusters of their own stay as they are.

    Returns
    -------
    The nearest cells (N, n_neighbors), for the cells of a group among themselves, and codes (N,) of the clusters of
    the finest resolution, with the groups' own.
    """
    nearest = clusters.nearest[:, : settings.n_neighbors].copy()
    codes = clusters.finest.copy()
    for rows in groups:
        if len(rows) < _MIN_GROUP:
            continue
        near = _nearest(_components(logged[rows], settings), nearest.shape[1], settings.seed)
        found = _leiden(_shared_graph(near), max(settings.resolutions), settings.seed)
        nearest[rows] = rows[near]
        codes[rows] = codes.max() + 1 + found
        _log.info("%d clusters within %d cells", found.max() + 1, len(rows))
    return nearest, np.unique(codes, return_inverse=True)[1]


def _components(logged: sparse.csr_matrix, settings: Settings) -> np.ndarray:
    """Return principal components (N, P)."""
    import scanpy as sc

    n_pcs = max(1, min(settings.n_pcs, logged.shape[1] - 1, logged.shape[0] - 1))
    return np.asarray(sc.pp.pca(logged, n_comps=n_pcs, random_state=settings.seed))


def _leiden(graph: sparse.csr_matrix, resolution: float, seed: int) -> np.ndarray:
    import scanpy as sc
    from anndata import AnnData

    work = AnnData(sparse.csr_matrix((graph.shape[0], 1), dtype=np.float32))
    sc.tl.leiden(
        work, resolution=resolution, random_state=seed, flavor="igraph", n_iterations=2, directed=False, adjacency=graph
    )
    return np.asarray(work.obs["leiden"].astype(int))


def variable_genes(counts: sparse.csr_matrix, keep: int = 2000) -> np.ndarray:
    """Return the indices, ascending, of the genes whose counts vary most beyond sampling noise.

    Ranked by the variance of the Pearson residuals of a negative binomial with overdispersion 100, clipped at
    the square root of the number of cells (Lause, Berens and Kobak, Genome Biology 2021).
    """
    depth = np.asarray(counts.sum(1), np.float64).ravel()
    share = np.asarray(counts.sum(0), np.float64).ravel() / depth.sum()
    columns, limit = counts.tocsc(), np.sqrt(counts.shape[0])
    score = np.zeros(counts.shape[1])
    for gene in np.flatnonzero(share):
        mean = depth * share[gene]
        part = slice(columns.indptr[gene], columns.indptr[gene + 1])
        residual = -mean
        residual[columns.indices[part]] += columns.data[part]
        score[gene] = np.clip(residual / np.sqrt(mean + mean**2 / 100), -limit, limit).var()
    return np.sort(np.argsort(-score, kind="stable")[:keep])


def _nearest(components: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Return the indices (N, k) of the nearest cells, each cell itself left out; exact up to 50,000 cells.

    Above, the nearest 15 are found by descent on the graph of neighbours, which takes ever longer the more are asked
    for; further ones are the nearest of the neighbours' neighbours.
    """
    if len(components) <= _EXACT:
        from sklearn.neighbors import NearestNeighbors

        search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(components)
        return np.asarray(search.kneighbors(return_distance=False))
    from pynndescent import NNDescent

    few = min(k, _DESCENT)
    found = NNDescent(components, n_neighbors=few + 1, random_state=seed).neighbor_graph[0][:, 1:]
    return found if few == k else _widened(found, components, k)


def _widened(nearest: np.ndarray, components: np.ndarray, k: int) -> np.ndarray:
    """Return the ``k`` nearest (N, k) among the neighbours and theirs, by distance."""
    result = np.empty((len(nearest), k), nearest.dtype)
    for i in range(0, len(nearest), _WIDEN_CHUNK):
        near = nearest[i : i + _WIDEN_CHUNK]
        rows = np.arange(i, i + len(near))[:, None]
        reach = np.sort(np.concatenate([near, nearest[near].reshape(len(near), -1)], axis=1), axis=1)
        distance = ((components[reach] - components[rows]) ** 2).sum(2)
        distance[reach == rows] = np.inf
        distance[:, 1:][reach[:, 1:] == reach[:, :-1]] = np.inf
        order = np.argsort(distance, axis=1)[:, :k]
        result[i : i + len(near)] = np.take_along_axis(reach, order, axis=1)
    return result


def _shared_graph(nearest: np.ndarray) -> sparse.csr_matrix:
    """Return the symmetric graph whose weight is the share of neighbours that two linked cells have in common."""
    n, k = nearest.shape
    rows = np.repeat(np.arange(n), k)
    links = sparse.csr_matrix((np.ones(n * k, np.float32), (rows, nearest.ravel())), shape=(n, n))
    links = links + sparse.identity(n, dtype=np.float32, format="csr")
    shared = (links @ links.T).multiply(links.maximum(links.T))
    shared.setdiag(0)
    shared.eliminate_zeros()
    return sparse.csr_matrix(shared / (k + 1))
