"""Clusters and nearest cells: reproducible, by themselves where asked, alike above and below the exact search."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import adjusted_rand_score, homogeneity_score

from nuclass.labels import cluster as module
from nuclass.labels.assign import Settings
from nuclass.labels.cluster import Clusters, cluster, cluster_within
from nuclass.labels.scores import normalised

SETTINGS = Settings(n_pcs=10, n_neighbors=10)
N_NEAREST = 20


def expression(sizes: tuple[int, ...] = (150, 150, 200), seed: int = 0) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Log-normalised counts of kinds that differ by their genes; the last is two kinds that differ little."""
    rng = np.random.default_rng(seed)
    kind = np.repeat(np.arange(len(sizes)), sizes)
    rate = rng.gamma(0.5, size=(len(sizes), 40)) + 0.05
    mean = 80 * rate[kind] / rate[kind].sum(1, keepdims=True)
    half = np.arange(len(kind)) >= len(kind) - sizes[-1] // 2
    mean[half, :4] += 2.0
    return normalised(sparse.csr_matrix(rng.poisson(mean).astype(np.float32))), kind + half


@pytest.fixture(scope="module")
def section() -> tuple[sparse.csr_matrix, np.ndarray, Clusters]:
    logged, kind = expression()
    return logged, kind, cluster(logged, SETTINGS, N_NEAREST)


Section = tuple[sparse.csr_matrix, np.ndarray, Clusters]


def test_kinds_are_clusters(section: Section) -> None:
    _, kind, found = section
    for column in found.codes:
        assert homogeneity_score(np.minimum(kind, 2), found.codes[column]) > 0.95, "clusters hold cells of one kind"
    assert found.codes["0.5"].nunique() <= 4


def test_clusters_are_reproducible(section: Section) -> None:
    logged, _, found = section
    again = cluster(logged, SETTINGS, N_NEAREST)
    assert again.codes.equals(found.codes)
    assert (again.nearest == found.nearest).all()
    np.testing.assert_array_equal(again.components, found.components)


def test_one_column_a_resolution_finer_ones_hold_more_clusters(section: Section) -> None:
    found = section[2]
    assert list(found.codes) == ["0.5", "1", "2"]
    sizes = found.codes.max().to_numpy() + 1
    assert (np.diff(sizes) >= 0).all()
    assert sizes[-1] > sizes[0]
    for column in found.codes:
        assert set(found.codes[column]) == set(range(found.codes[column].max() + 1))
    assert (found.finest == found.codes["2"]).all()
    assert (found.shown == found.codes["1"]).all()


def test_the_finest_resolution_is_the_largest_number_not_the_last_text() -> None:
    logged, _ = expression((60, 60))
    found = cluster(logged, Settings(n_pcs=5, n_neighbors=8, resolutions=(10.0, 0.5, 2.0)), 8)
    assert (found.finest == found.codes["10"]).all()
    assert (found.shown == found.codes["2"]).all()


def test_nearest_cells_are_others_nearest_first(section: Section) -> None:
    _, _, found = section
    assert found.nearest.shape == (500, N_NEAREST)
    for cell in range(0, 500, 25):
        distance = np.linalg.norm(found.components - found.components[cell], axis=1)
        distance[cell] = np.inf
        wanted = np.sort(distance)[:N_NEAREST]
        np.testing.assert_allclose(distance[found.nearest[cell]], wanted, rtol=1e-4)


def test_few_cells_have_as_many_nearest_cells_as_there_are() -> None:
    logged, _ = expression((6, 6))
    found = cluster(logged, SETTINGS, N_NEAREST)
    assert found.nearest.shape == (12, 11)
    assert found.components.shape == (12, 10)


def test_the_graph_weighs_links_by_shared_neighbours() -> None:
    # Two nearest cells each. Cells 0, 1, 2 are each other's; cell 3 has 2 and 0, and nobody has it.
    graph = module._shared_graph(np.array([[1, 2], [0, 2], [0, 1], [2, 0]])).toarray()
    third = 1 / 3  # of the cell itself and its two nearest
    # 0, 1, 2 share all three. 3 and 0 share 0 and 2.
    wanted = np.array([[0, 1, 1, 2 * third], [1, 0, 1, 0], [1, 1, 0, 2 * third], [2 * third, 0, 2 * third, 0]])
    np.testing.assert_allclose(graph, wanted, atol=1e-6)


# Clusters within some of the cells


def test_cells_outside_keep_their_neighbours_and_clusters(section: Section) -> None:
    logged, kind, found = section
    rows = np.flatnonzero(kind >= 2)
    before = found.nearest.copy(), found.codes.copy()
    nearest, codes = cluster_within(logged, [rows], found, SETTINGS)
    assert (found.nearest == before[0]).all()
    assert found.codes.equals(before[1])
    assert nearest.shape == (500, SETTINGS.n_neighbors)
    outside = np.flatnonzero(kind < 2)
    assert (nearest[outside] == found.nearest[outside, : SETTINGS.n_neighbors]).all()
    assert adjusted_rand_score(found.finest[outside], codes[outside]) == 1
    assert not set(codes[outside]) & set(codes[rows])
    assert set(codes) == set(range(codes.max() + 1))


def test_cells_inside_have_neighbours_and_clusters_among_themselves(section: Section) -> None:
    logged, kind, found = section
    rows = np.random.default_rng(0).permutation(500)[:160]
    nearest, codes = cluster_within(logged, [rows], found, SETTINGS)
    assert np.isin(nearest[rows], rows).all()
    assert (nearest[rows] != rows[:, None]).all()
    same = kind[nearest[rows]] == kind[rows][:, None]
    assert same.mean() > 0.7, "indices within the part are told as indices of all cells"
    alone = cluster(logged[rows], SETTINGS, SETTINGS.n_neighbors)
    assert adjusted_rand_score(alone.finest, codes[rows]) == 1


def test_what_little_tells_two_kinds_apart_leads_once_they_are_alone() -> None:
    logged, kind = expression((300, 300, 240), seed=2)
    found = cluster(logged, SETTINGS, N_NEAREST)
    rows = np.flatnonzero(kind >= 2)

    def alike(nearest: np.ndarray) -> float:
        near = nearest[rows][:, : SETTINGS.n_neighbors]
        return float((kind[near] == kind[rows][:, None]).mean())

    assert alike(cluster_within(logged, [rows], found, SETTINGS)[0]) > alike(found.nearest)


def test_each_group_is_clustered_by_itself(section: Section) -> None:
    logged, kind, found = section
    one, two = np.flatnonzero(kind == 0), np.flatnonzero(kind >= 2)
    nearest, codes = cluster_within(logged, [one, two], found, SETTINGS)
    for rows in (one, two):
        alone, own = cluster_within(logged, [rows], found, SETTINGS)
        assert (nearest[rows] == alone[rows]).all()
        assert adjusted_rand_score(own[rows], codes[rows]) == 1
    assert not set(codes[one]) & set(codes[two])


@pytest.mark.parametrize("number", [0, 1, 99])
def test_few_cells_are_not_clustered_by_themselves(section: Section, number: int) -> None:
    logged, _, found = section
    nearest, codes = cluster_within(logged, [np.arange(number)], found, SETTINGS)
    assert (nearest == found.nearest[:, : SETTINGS.n_neighbors]).all()
    assert (codes == found.finest).all()


# The search for nearest cells of large slides


@pytest.mark.slow
def test_the_search_of_large_slides_finds_nearly_the_same_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    components = np.random.default_rng(1).normal(size=(1500, 8)).astype(np.float32)
    components[:5] = components[0]
    exact = module._nearest(components, 15, seed=3)
    monkeypatch.setattr(module, "_EXACT", 1000)
    found, again = (module._nearest(components, 15, seed=3) for _ in range(2))
    assert (found == again).all()
    assert found.shape == exact.shape
    assert ((found >= 0) & (found < 1500)).all()
    assert (found != np.arange(1500)[:, None]).all(), "each cell itself is left out"
    shared = [len(set(one) & set(other)) / 15 for one, other in zip(found, exact, strict=True)]
    assert np.mean(shared) > 0.97
