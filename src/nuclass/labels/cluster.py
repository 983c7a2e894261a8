"""Normalisation, principal components, neighbours and Leiden clusters, on scanpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

if TYPE_CHECKING:
    from anndata import AnnData

    from nuclass.labels.assign import Settings

_LARGE_PANEL = 1000
_EXACT = 50_000
_CLIP = 4.0


def cluster(data: AnnData, settings: Settings) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Cluster cells by expression.

    Returns
    -------
    Codes of the Leiden clusters (one column a resolution), the ``n_neighbors`` nearest cells of each cell in
    principal-component space (N, k), and the components (N, P). Highly variable genes are chosen on counts, and
    only for panels above 1,000 genes.
    """
    import scanpy as sc

    work: Any = data.copy()
    if work.n_vars > _LARGE_PANEL:
        work = work[:, variable_genes(sparse.csr_matrix(work.X))].copy()
    sc.pp.normalize_total(work)
    sc.pp.log1p(work)
    n_pcs = max(1, min(settings.n_pcs, work.n_vars - 1, work.n_obs - 1))
    sc.pp.pca(work, n_comps=n_pcs, random_state=settings.seed)
    k = min(settings.n_neighbors, work.n_obs - 1)
    components = np.asarray(work.obsm["X_pca"])
    nearest = _nearest(components, k, settings.seed)
    graph = _shared_graph(nearest)
    codes = {}
    for resolution in settings.resolutions:
        sc.tl.leiden(
            work, resolution=resolution, random_state=settings.seed, flavor="igraph", n_iterations=2, directed=False,
            adjacency=graph,
        )  # fmt: skip
        codes[f"{resolution:g}"] = work.obs["leiden"].astype(int).to_numpy()
    return pd.DataFrame(codes), nearest, components


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


def standardised(counts: sparse.csr_matrix) -> np.ndarray:
    """Return log-normalised expression scaled by gene (N, G), clipped to +-4 standard deviations."""
    depth = np.asarray(counts.sum(1)).ravel()
    scale = np.median(depth) / np.maximum(depth, 1)
    logged = sparse.diags(scale.astype(np.float32)) @ counts
    logged.data = np.log1p(logged.data)
    dense = logged.toarray()
    dense -= dense.mean(0)
    dense /= dense.std(0) + 1e-3
    return np.clip(dense, -_CLIP, _CLIP)


def _nearest(components: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Return the indices (N, k) of the nearest cells, each cell itself left out; exact up to 50,000 cells."""
    if len(components) <= _EXACT:
        from sklearn.neighbors import NearestNeighbors

        search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(components)
        return np.asarray(search.kneighbors(return_distance=False))
    from pynndescent import NNDescent

    return NNDescent(components, n_neighbors=k + 1, random_state=seed).neighbor_graph[0][:, 1:]


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
