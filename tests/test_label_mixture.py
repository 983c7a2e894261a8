"""The mixture: posteriors, surroundings, components and doublets against values by hand and a dense computation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse
from scipy.special import logsumexp

from nuclass.labels import mixture
from nuclass.labels.mixture import Counts, Fit, components, fit, with_surroundings
from peak_memory import held, measured

PLAIN = Fit(spill=0.0, temperature=1.0, full_depth=1e9, rounds=1)
# A seed of each of two types, a cell with three transcripts of gene A and one of B, a cell without any.
TWO = np.array([[9, 0], [0, 9], [3, 1], [0, 0]])
SEEDED, TYPES = np.array([0, 1, -1, -1]), np.array([0, 1])
NEAR = np.array([[1, 2], [0, 2], [0, 1], [0, 0]])


def csr(values: np.ndarray) -> sparse.csr_matrix:
    return sparse.csr_matrix(np.asarray(values, np.float32))


def odds(posterior: np.ndarray, cell: int = 2) -> float:
    return float(posterior[cell, 0] / posterior[cell, 1])


def fit_two(how: Fit, around: tuple[float, float] = (0.0, 0.0)) -> tuple[np.ndarray, np.ndarray]:
    """Fit the four cells; ``around`` is what lies around the third one, of A and of B."""
    return fit(Counts(csr(TWO), np.array([0, 0, *around], np.float32)), SEEDED, TYPES, NEAR, how)


def dense_fit(
    counts: np.ndarray, around: np.ndarray, part: np.ndarray, types: np.ndarray, near: np.ndarray, how: Fit
) -> tuple[np.ndarray, np.ndarray]:
    """The same mixture in float64 on whole arrays; ``around`` (N, G) is the mean profile around each cell."""
    weight = (part[:, None] == np.arange(len(types))).astype(float)
    member = types[:, None] == np.arange(types.max() + 1)
    cooling = how.temperature * np.maximum(counts.sum(1) / how.full_depth, 1)
    profile = None
    for _ in range(how.rounds):
        share = np.ones_like(counts, dtype=float)
        if profile is not None and how.spill:
            mean = weight / np.maximum(weight.sum(1, keepdims=True), 1e-9) @ profile
            own = (1 - how.spill) * mean
            share = own / (own + how.spill * around + 1e-9)
        profile = 0.5 + weight.T @ (counts * share)
        profile /= profile.sum(1, keepdims=True)
        rate = (1 - how.spill) * profile[None] + how.spill * around[:, None] + 1e-5
        log = np.einsum("ng,npg->np", counts, np.log(rate))
        prior = weight[near].mean(1) + weight.mean(0) / weight.sum(1).mean() + 1e-3
        value = log / cooling[:, None] + np.log(prior / prior.sum(1, keepdims=True))
        weight = np.exp(value - logsumexp(value, axis=1, keepdims=True))
        posterior = weight @ member
        weight = np.where(posterior[:, types] > 0.8, weight, 0)
    gain = np.zeros(len(counts))
    for i in range(len(counts)):
        a = log[i].argmax()
        for b in np.flatnonzero(types != types[a]):
            half = (1 - how.spill) * (profile[a] + profile[b]) / 2 + how.spill * around[i] + 1e-5
            gain[i] = max(gain[i], counts[i] @ np.log(half) - log[i, a])
    return posterior, gain / cooling


def dense_surroundings(counts: np.ndarray, xy: np.ndarray, reach: float) -> np.ndarray:
    close = np.linalg.norm(xy[:, None] - xy[None], axis=2) <= reach
    np.fill_diagonal(close, False)
    total = close.astype(float) @ counts
    return total / np.maximum(total.sum(1, keepdims=True), 1)


def on_entries(dense: np.ndarray, matrix: sparse.csr_matrix) -> np.ndarray:
    return dense[np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)), matrix.indices]


def random_section(seed: int, n: int = 90, genes: int = 12) -> tuple[np.ndarray, ...]:
    """Counts of three types (two components the first), places, and the starting components of some cells."""
    rng = np.random.default_rng(seed)
    profile = rng.dirichlet(np.full(genes, 0.4), 4)
    part = rng.integers(0, 4, n)
    depth = rng.integers(0, 30, n)
    counts = np.stack([rng.multinomial(d, profile[k]) for d, k in zip(depth, part, strict=True)])
    start = np.where(rng.random(n) < 0.6, part, -1)
    near = np.array([rng.permutation(np.delete(np.arange(n), i))[:5] for i in range(n)])
    return counts, rng.uniform(0, 60, (n, 2)), start, near


# Posteriors


@pytest.mark.parametrize(
    ("temperature", "full_depth", "expected"),
    [(1, 1e9, 19**2), (2, 1e9, 19), (1, 2, 19), (2, 2, 19**0.5), (1, 4, 19**2), (1, 100, 19**2)],
)
def test_posterior_of_two_components_by_hand(temperature: float, full_depth: float, expected: float) -> None:
    # Profiles (9 + 0.5, 0.5) / 10: each transcript of A is 0.95 / 0.05 = 19 times likelier under the first type, one of
    # B under the second; priors are even. The cell has 4 transcripts: its depth counts beyond ``full_depth`` only.
    posterior, _ = fit_two(Fit(0.0, temperature, full_depth, 1))
    assert odds(posterior) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("around", "expected"),
    [
        ((0.0, 0.0), 19**3 * 0.04 / 0.76),
        # Among cells of B: B may be spilled, 0.2 of it: 0.04 + 0.2 against 0.76 + 0.2.
        ((0.0, 1.0), 19**3 * 0.24 / 0.96),
        ((1.0, 0.0), (0.96 / 0.24) ** 3 * 0.04 / 0.76),
        ((0.5, 0.5), (0.86 / 0.14) ** 3 * 0.14 / 0.86),
    ],
)
def test_posterior_with_surroundings_by_hand(around: tuple[float, float], expected: float) -> None:
    posterior, _ = fit_two(Fit(0.2, 1.0, 1e9, 1), around)
    assert odds(posterior) == pytest.approx(expected, rel=2e-3)


def test_what_neighbours_spill_is_taken_out_of_the_profiles() -> None:
    # 30 cells of the first type among cells of B: a fifth of their transcripts are spilled B.
    counts = np.array([[8, 2]] * 30 + [[0, 10]] * 30 + [[0, 2]])
    around = np.array([[0.0, 1.0]] * 30 + [[0.0, 1.0]] * 30 + [[0.0, 0.0]])
    matrix = csr(counts)
    part = np.array([0] * 30 + [1] * 30 + [-1])
    near = np.array([[1, 2]] + [[0, 1]] * 29 + [[31, 32]] + [[30, 31]] * 29 + [[0, 30]])
    once, freed = (
        fit(Counts(matrix, on_entries(around, matrix).astype(np.float32)), part, TYPES, near, Fit(0.2, 4.0, 1e9, r))[0]
        for r in (1, 8)
    )
    # With B taken out of the first profile, two transcripts of B away from any B speak for the second type alone.
    assert once[-1, 0] > 0.3
    assert freed[-1, 0] < 0.2
    assert (freed[:30, 0] > 0.9).all()


@pytest.mark.parametrize(("near", "expected"), [([0, 0], 1.501 / 0.501), ([0, 1], 1.0), ([1, 1], 0.501 / 1.501)])
def test_a_cell_without_counts_has_the_prior_by_hand(near: list[int], expected: float) -> None:
    # The shares among its nearest cells, plus those in the slide (one half each), plus 0.001.
    around = NEAR.copy()
    around[3] = near
    posterior, gain = fit(Counts(csr(TWO), np.zeros(4, np.float32)), SEEDED, TYPES, around, PLAIN)
    assert odds(posterior, 3) == pytest.approx(expected, rel=1e-4)
    assert gain[3] == 0


def test_the_prior_in_the_slide_is_the_share_of_seeds() -> None:
    counts = np.array([[9, 0]] * 3 + [[0, 9], [0, 0]])
    near = np.array([[1, 2], [0, 2], [0, 1], [0, 4], [4, 4]])
    posterior, _ = fit(Counts(csr(counts), np.zeros(4, np.float32)), np.array([0, 0, 0, 1, -1]), TYPES, near, PLAIN)
    assert odds(posterior, 4) == pytest.approx((0.75 + 0.001) / (0.25 + 0.001), rel=1e-3)


def test_components_of_one_type_add_up() -> None:
    counts = np.array([[9, 0, 0], [0, 9, 0], [0, 0, 9], [2, 2, 1]])
    near = np.array([[1, 2], [0, 2], [0, 1], [0, 1]])
    part, types = np.array([0, 1, 2, -1]), np.array([0, 0, 1])
    posterior, _ = fit(Counts(csr(counts), np.zeros(6, np.float32)), part, types, near, PLAIN)
    # Profiles (9.5, 0.5, 0.5) / 10.5 in turn; priors: near (1/2, 1/2, 0), slide 1/3 each.
    prior = np.array([0.5, 0.5, 0.0]) + 1 / 3 + 1e-3
    chance = prior * np.array([19.0**2, 19.0**2, 19.0])
    assert posterior.shape == (4, 2)
    assert posterior[3, 0] == pytest.approx(chance[:2].sum() / chance.sum(), rel=1e-3)


@pytest.mark.parametrize("spill", [0.0, 0.15])
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_equals_a_dense_computation(spill: float, rounds: int) -> None:
    counts, xy, start, near = random_section(3)
    around = dense_surroundings(counts, xy, 8.0)
    types = np.array([0, 0, 1, 2])
    how = Fit(spill, 2.0, 12.0, rounds)
    posterior, gain = fit(with_surroundings(csr(counts), xy, 8.0), start, types, near, how)
    wanted, wanted_gain = dense_fit(counts.astype(float), around, start, types, near, how)
    np.testing.assert_allclose(posterior, wanted, atol=2e-3)
    np.testing.assert_allclose(gain, wanted_gain, atol=5e-3)


@settings(deadline=None, max_examples=30)
@given(
    counts=hnp.arrays(np.int64, (12, 5), elements=st.integers(0, 9)),
    spill=st.floats(0, 0.5),
    temperature=st.floats(0.5, 8),
    rounds=st.integers(1, 4),
)
def test_posteriors_are_chances_whatever_the_counts(
    counts: np.ndarray, spill: float, temperature: float, rounds: int
) -> None:
    rng = np.random.default_rng(0)
    part = np.resize([0, 1, 2, -1], 12)
    near = rng.integers(0, 12, (12, 4))
    around = with_surroundings(csr(counts), rng.uniform(0, 20, (12, 2)), 8.0)
    posterior, gain = fit(around, part, np.array([0, 1, 1]), near, Fit(spill, temperature, 20.0, rounds))
    assert np.isfinite(posterior).all()
    assert (posterior >= 0).all()
    np.testing.assert_allclose(posterior.sum(1), 1, atol=1e-5)
    assert np.isfinite(gain).all()
    assert (gain >= 0).all()


def test_a_section_without_any_counts_is_all_prior() -> None:
    empty = csr(np.zeros((4, 2)))
    posterior, gain = fit(with_surroundings(empty, np.zeros((4, 2)), 5.0), SEEDED, TYPES, NEAR, PLAIN)
    assert np.isfinite(posterior).all()
    assert (gain == 0).all()


def test_the_order_of_genes_does_not_matter() -> None:
    counts, xy, start, near = random_section(4)
    types, how = np.array([0, 0, 1, 2]), Fit(0.12, 2.0, 300.0, 3)
    turned = np.random.default_rng(0).permutation(counts.shape[1])
    first, second = (
        fit(with_surroundings(csr(c), xy, 8.0), start, types, near, how) for c in (counts, counts[:, turned])
    )
    np.testing.assert_allclose(first[0], second[0], atol=1e-3)
    np.testing.assert_allclose(first[1], second[1], atol=1e-3)


def test_a_mixture_needs_a_round() -> None:
    with pytest.raises(ValueError, match="one round or more"):
        fit_two(Fit(0.0, 1.0, 1e9, 0))


# Surroundings


def test_surroundings_of_four_cells_by_hand() -> None:
    counts = csr([[4, 0, 0], [1, 1, 0], [2, 1, 1], [0, 5, 5]])
    xy = np.array([[0.0, 0.0], [5.0, 0.0], [10.0, 0.0], [100.0, 0.0]])
    result = with_surroundings(counts, xy, 6.0)
    wanted = [
        [0.5, 0, 0],  # cell 1 is near: (1, 1, 0) / 2
        [6 / 8, 1 / 8, 0],  # cells 0 and 2: (6, 1, 1) / 8, without the cell's own
        [0.5, 0.5, 0],
        [0, 0, 0],  # nobody in reach
    ]
    dense = sparse.csr_matrix((result.around, counts.indices, counts.indptr), shape=counts.shape).toarray()
    np.testing.assert_allclose(dense, np.where(counts.toarray() > 0, wanted, 0), atol=1e-6)


def test_cells_at_one_place_surround_each_other_but_never_themselves() -> None:
    result = with_surroundings(csr([[3, 0], [3, 3]]), np.zeros((2, 2)), 1.0)
    np.testing.assert_allclose(result.around, [0.5, 1.0, 0.0])


def test_reach_is_inclusive() -> None:
    xy = np.array([[0.0, 0.0], [3.0, 4.0]])
    assert with_surroundings(csr([[1.0], [1.0]]), xy, 5.0).around.tolist() == [1, 1]
    assert with_surroundings(csr([[1.0], [1.0]]), xy, 4.99).around.tolist() == [0, 0]


def test_without_places_nothing_is_around() -> None:
    result = with_surroundings(csr(TWO), None, 16.0)
    assert (result.around == 0).all()
    assert result.around.shape == (4,)


@settings(deadline=None, max_examples=40)
@given(
    counts=hnp.arrays(np.int64, st.tuples(st.integers(1, 20), st.integers(1, 6)), elements=st.integers(0, 5)),
    seed=st.integers(0, 99),
    reach=st.floats(0.1, 30),
)
def test_surroundings_equal_a_dense_computation(counts: np.ndarray, seed: int, reach: float) -> None:
    xy = np.random.default_rng(seed).uniform(0, 30, (len(counts), 2))
    matrix = csr(counts)
    wanted = on_entries(dense_surroundings(counts, xy, reach), matrix)
    np.testing.assert_allclose(with_surroundings(matrix, xy, reach).around, wanted, atol=1e-6)


# Doublets


def test_pair_gain_by_hand() -> None:
    counts = np.array([[9, 0], [0, 9], [2, 2], [4, 0]])
    _, gain = fit(Counts(csr(counts), np.zeros(5, np.float32)), SEEDED, TYPES, NEAR, PLAIN)
    # Half and half gives each gene 0.5; the best single type gives 0.95 and 0.05, two transcripts each.
    assert gain[2] == pytest.approx(4 * np.log(0.5) - 2 * np.log(0.95 * 0.05), rel=1e-3)
    assert gain[[0, 1, 3]].tolist() == [0, 0, 0]
    _, cooled = fit(Counts(csr(counts), np.zeros(5, np.float32)), SEEDED, TYPES, NEAR, Fit(0.0, 2.0, 2.0, 1))
    assert cooled[2] == pytest.approx(gain[2] / (2 * 2), rel=1e-5)


def test_a_doublet_gains_and_a_singlet_among_other_cells_does_not() -> None:
    rng = np.random.default_rng(1)
    profile = np.array([[0.45, 0.45, 0.06, 0.02, 0.02], [0.02, 0.02, 0.06, 0.45, 0.45]])
    kind = np.repeat([0, 1], 100)
    single = np.stack([rng.multinomial(60, profile[k]) for k in kind])
    doublets = single[:10] + single[190:]
    spilled = single[:10] + rng.multinomial(8, profile[1], 10)
    counts = np.concatenate([single, doublets, spilled])
    around = np.concatenate([profile[kind], profile[np.zeros(10, int)], profile[np.ones(10, int)]])
    matrix = csr(counts)
    part = np.concatenate([kind, np.full(20, -1)])
    near = np.array([np.arange(5) if k == 0 else np.arange(100, 105) for k in np.r_[kind, np.zeros(20, int)]])
    of = Counts(matrix, on_entries(around, matrix).astype(np.float32))
    posterior, gain = fit(of, part, TYPES, near, Fit(0.12, 2.0, 300.0, 3))
    assert gain[200:210].min() > 6.0
    assert gain[:200].max() < 1.0
    assert gain[210:].max() < 1.0, "what a neighbour spilled is no second cell"
    assert (posterior[210:, 0] > 0.99).all()


def test_two_components_of_one_type_are_no_doublet() -> None:
    counts = np.array([[9, 0, 0], [0, 9, 0], [0, 0, 9], [4, 4, 0]])
    near = np.array([[1, 2], [0, 2], [0, 1], [0, 1]])
    part = np.array([0, 1, 2, -1])
    around = np.zeros(5, np.float32)
    assert fit(Counts(csr(counts), around), part, np.array([0, 0, 1]), near, PLAIN)[1][3] == 0
    assert fit(Counts(csr(counts), around), part, np.array([0, 1, 2]), near, PLAIN)[1][3] > 5


# Components


def part_of(start: list[int], clusters: list[int], least: int, n_types: int = 2) -> tuple[list[int], list[int]]:
    part, types = components(np.array(start), np.array(clusters), n_types, least)
    return part.tolist(), types.tolist()


def test_a_type_has_one_component_in_each_cluster_where_it_is_at_home() -> None:
    start = [0, 0, 0, 0, 0, 0, 1, 1]
    assert part_of(start, [0, 0, 0, 1, 1, 1, 2, 2], least=2) == ([0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 1])


def test_a_home_holds_enough_seeds_and_most_of_the_seeds() -> None:
    start, clusters = [0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0]
    # Half is not most: nobody is at home, so each type is one component.
    assert part_of(start, clusters, least=3) == ([0, 0, 0, 1, 1, 1], [0, 1])
    assert part_of([0] * 4 + [1] * 4 + [0], [0] * 8 + [1], least=4) == ([0] * 4 + [1] * 4 + [0], [0, 1])
    # Two in a cluster are too few of four: the type has no home, and all its seeds are one component.
    assert part_of([0, 0, 0, 0], [0, 0, 1, 1], least=4, n_types=1) == ([0, 0, 0, 0], [0])


def test_seeds_outside_the_homes_are_one_component_if_enough() -> None:
    clusters = [0, 0, 0, 1, 2, 3]
    assert part_of([0] * 6, clusters, least=3, n_types=1) == ([0, 0, 0, 1, 1, 1], [0, 0])
    assert part_of([0] * 5, clusters[:5], least=3, n_types=1) == ([0, 0, 0, -1, -1], [0])


def test_cells_that_are_no_seeds_neither_have_nor_outvote_a_component() -> None:
    assert part_of([0, 0, -1, -1, -1, -1], [0] * 6, least=2, n_types=1) == ([0, 0, -1, -1, -1, -1], [0])


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 4)), min_size=1, max_size=60), least=st.integers(1, 8)
)
def test_each_component_is_of_one_type_and_no_type_is_lost(rows: list[tuple[int, int]], least: int) -> None:
    start, clusters = np.array(rows).T
    part, types = components(start, clusters, 4, least)
    assert (part[start < 0] == -1).all()
    inside = part >= 0
    assert (types[part[inside]] == start[inside]).all()
    assert set(types) == set(start[start >= 0])
    assert set(part[inside]) == set(range(len(types)))
    assert (np.diff(types) >= 0).all()


# Memory


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, xy, start, near = random_section(5)
    types, how = np.array([0, 0, 1, 2]), Fit(0.12, 2.0, 300.0, 3)
    whole = with_surroundings(csr(counts), xy, 8.0)
    one = fit(whole, start, types, near, how)
    monkeypatch.setattr(mixture, "_CHUNK", 7)
    split = with_surroundings(csr(counts), xy, 8.0)
    assert len(list(split.chunks())) == 13
    many = fit(split, start, types, near, how)
    np.testing.assert_allclose(split.around, whole.around, atol=1e-7)
    np.testing.assert_allclose(many[0], one[0], atol=1e-4)
    np.testing.assert_allclose(many[1], one[1], atol=1e-4)


def memory_of_a_fit(n: int, genes: int) -> int:
    matrix = sparse.random(n, genes, 0.005, format="csr", dtype=np.float32, random_state=0)
    xy = np.random.default_rng(0).uniform(0, 600, (n, 2))
    part, near = np.resize([0, 1, -1], n), np.random.default_rng(1).integers(0, n, (n, 5))
    mixture._CHUNK = 100
    how = Fit(0.12, 2.0, 300.0, 2)
    return held(lambda: fit(with_surroundings(matrix, xy, 16.0), part, TYPES, near, how))[1]


def test_no_array_of_cells_by_genes_is_made() -> None:
    n, genes = 4000, 3000
    assert measured(memory_of_a_fit, n, genes) < n * genes, "as much as one byte a cell and gene"
