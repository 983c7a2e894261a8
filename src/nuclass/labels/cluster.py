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
        sc.pp.highly_variable_genes(work, n_top_genes=2000, flavor="seurat_v3", subset=True)
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

        found = NearestNeighbors(n_neighbors=k + 1).fit(components).kneighbors(return_distance=False)
        return found[:, 1:] if found.shape[1] > k else found
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
