"""Scores, seeds and names of clusters: each formula against values by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from nuclass.core.errors import UserError
from nuclass.labels import scores
from nuclass.labels.assign import Settings, _smoothed
from nuclass.labels.markers import MarkerSet
from nuclass.labels.scores import balanced, marker_scores, marker_support, normalised
from nuclass.labels.seeds import Seeds, find_others, find_seeds, lead, lineage_of_clusters, without_single_genes


def csr(values: object) -> sparse.csr_matrix:
    return sparse.csr_matrix(np.asarray(values, np.float32))


# Normalisation and scores


def test_counts_are_scaled_to_the_median_depth_and_logged() -> None:
    result = normalised(csr([[1, 1], [4, 0], [2, 6], [0, 0], [0, 4]])).toarray()
    # Depths 2, 4, 8, 0, 4: the median is 4, the scales 2, 1, 0.5.
    np.testing.assert_allclose(result, np.log1p([[2, 2], [4, 0], [1, 3], [0, 0], [0, 4]]), rtol=1e-6)


def test_cells_without_counts_do_not_take_part_in_the_median_depth() -> None:
    result = normalised(csr([[3, 0], [0, 0], [0, 0], [0, 0], [0, 5]])).toarray()
    np.testing.assert_allclose(result, np.log1p([[4, 0], [0, 0], [0, 0], [0, 0], [0, 4]]), rtol=1e-6)
    assert not normalised(csr(np.zeros((3, 2)))).toarray().any()


def test_no_lineage_weighs_more_than_half_of_all_others() -> None:
    weight, large = balanced(np.array(["x"] * 12 + ["y"] * 4 + ["z"] * 2))
    # 12 against 6: x counts 3. 4 and 2 are less than half of the others.
    np.testing.assert_allclose(weight, [0.25] * 12 + [1] * 6)
    assert large == ["x"]
    weight, large = balanced(np.array(["x", "x"]))
    assert (weight.tolist(), large) == ([1, 1], [])


def test_a_lineage_that_fills_the_slide_has_its_scores_by_the_others() -> None:
    logged = csr([[2, 0]] * 8 + [[0, 2]] * 2)
    one, two = MarkerSet("A", ("a",), ()), MarkerSet("B", ("b",), ())
    score, broad = marker_scores(logged, ["a", "b"], [one, two], np.array(["x", "y"]), np.array(["x"] * 8 + ["y"] * 2))
    # x counts 1 against the 2 of y: a has mean 2/3 and variance 8/9. The scale of b is that of all cells: 0.4, 0.64.
    np.testing.assert_allclose(score, [[2**0.5, -0.5]] * 8 + [[-(0.5**0.5), 2]] * 2, atol=5e-3)
    np.testing.assert_allclose(broad, score)


GENES = ["a", "b", "c", "d", "e"]
# Each gene is on in some of four cells; where it is on in two, scaled expression is +1 and -1.
ON = np.array([[1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 0]])
CHECK = csr(ON * 2)
A, B, C = MarkerSet("A", ("a", "b"), ()), MarkerSet("B", ("b", "c"), ("a",)), MarkerSet("C", ("c", "d"), ("a", "b"))
LINEAGES = np.array(["x", "x", "y"])


def test_scores_of_types_by_hand() -> None:
    score, _ = marker_scores(CHECK, GENES, [A, B, C], LINEAGES)
    z = np.where(ON, 1.0, -1.0)[:, :4]
    a, b, c, d = z.T
    # What a type shares within its lineage makes up 0.3 of its score: b, and in B's case c is left for the other 0.7.
    # C shares c with B of another lineage: it has half the weight of d. Negatives: half of what is above 0, over the
    # root of their number.
    wanted = np.stack(
        [
            0.7 * a + 0.3 * b,
            0.3 * b + 0.7 * c - 0.5 * np.maximum(a, 0),
            1 / 3 * c + 2 / 3 * d - 0.5 * (np.maximum(a, 0) + np.maximum(b, 0)) / np.sqrt(2),
        ],
        axis=1,
    )
    np.testing.assert_allclose(score, wanted, atol=3e-3)


def test_shared_markers_make_up_the_same_part_however_many_they_are() -> None:
    # A and B share a and b, of which C of another lineage has b too. A has e for itself, and c with C; B has d.
    one, two = MarkerSet("A", ("a", "b", "c", "e"), ()), MarkerSet("B", ("a", "b", "d"), ())
    logged = np.random.default_rng(1).uniform(size=(40, 5))
    score, _ = marker_scores(csr(logged), GENES, [one, two, MarkerSet("C", ("b", "c"), ())], LINEAGES)
    z = (logged - logged.mean(0)) / (logged.std(0) + 1e-3)
    # Weights 1/2 and 1/3 of a and b make 0.3; 1/2 and 1 of c and e make 0.7; C shares nothing within its lineage.
    np.testing.assert_allclose(score[:, 0], z @ [0.18, 0.12, 0.7 / 3, 0, 1.4 / 3], atol=1e-5)
    np.testing.assert_allclose(score[:, 1], z @ [0.18, 0.12, 0, 0.7, 0], atol=1e-5)
    np.testing.assert_allclose(score[:, 2], z @ [0, 0.4, 0.6, 0, 0], atol=1e-5)


def test_a_type_whose_markers_are_all_shared_is_the_mean_of_them() -> None:
    one, two = MarkerSet("A", ("a", "b"), ()), MarkerSet("B", ("a", "b", "c"), ())
    score, _ = marker_scores(CHECK, GENES, [one, two], np.array(["x", "x"]))
    z = np.where(ON, 1.0, -1.0)
    np.testing.assert_allclose(score[:, 0], z[:, :2].mean(1), atol=3e-3)
    np.testing.assert_allclose(score[:, 1], 0.3 * z[:, :2].mean(1) + 0.7 * z[:, 2], atol=3e-3)


def test_scores_of_lineages_by_hand() -> None:
    _, broad = marker_scores(CHECK, GENES, [A, B, C], LINEAGES)
    z = np.where(ON, 1.0, -1.0)[:, :4]
    a, b, c, d = z.T
    # b is shared within lineage x only and keeps its whole weight; c is shared by two lineages. For x, the negative
    # marker a of B does not count, for A of the same lineage has it as a positive one.
    by_type = np.stack(
        [
            (a + b) / 2,
            2 / 3 * b + 1 / 3 * c,
            1 / 3 * c + 2 / 3 * d - 0.5 * (np.maximum(a, 0) + np.maximum(b, 0)) / np.sqrt(2),
        ],
        axis=1,
    )
    np.testing.assert_allclose(broad, np.stack([by_type[:, :2].max(1), by_type[:, 2]], 1), atol=3e-3)


def test_what_speaks_against_a_type_does_not_speak_against_its_lineage_where_a_sister_has_it() -> None:
    # The second cell has c, and a of the sister type; a costs B's score one half, and the lineage nothing.
    one, two, other = MarkerSet("A", ("a", "d"), ()), MarkerSet("B", ("c",), ("a",)), MarkerSet("C", ("b",), ("c",))
    score, broad = marker_scores(CHECK, GENES, [one, two, other], LINEAGES)
    np.testing.assert_allclose(score[1], [0, 0.5, -1.5], atol=3e-3)
    np.testing.assert_allclose(broad[1], [1, -1.5], atol=3e-3)


@pytest.mark.parametrize(("number", "cost"), [(1, 0.5), (4, 0.25), (9, 0.5 / 3)])
def test_one_telling_negative_marker_counts_by_the_root_of_their_number(number: int, cost: float) -> None:
    negatives = tuple(f"n{i}" for i in range(number))
    on = np.zeros((4, 1 + number))
    on[:2, 1] = 2.0  # one negative marker speaks, in the first two cells
    score, _ = marker_scores(csr(on), ["p", *negatives], [MarkerSet("A", ("p",), negatives)], np.array(["x"]))
    np.testing.assert_allclose(score[:, 0], [-cost, -cost, 0, 0], atol=1e-3)


def test_a_negative_marker_below_its_mean_speaks_for_nothing() -> None:
    on = csr([[0, 2], [0, 2], [0, 0], [0, 0]])
    score, _ = marker_scores(on, ["p", "n"], [MarkerSet("A", ("p",), ("n",))], np.array(["x"]))
    assert score[2:, 0].tolist() == [0, 0]


def test_scaled_expression_is_clipped_at_four() -> None:
    high = np.zeros((100, 1))
    high[0] = 3.0  # mean 0.03, standard deviation 0.298: z = 9.9
    score, _ = marker_scores(csr(high), ["a"], [MarkerSet("A", ("a",), ())], np.array(["x"]))
    assert score[0, 0] == 4.0
    assert score[1, 0] == pytest.approx(-0.03 / 0.2995, rel=1e-3)


def test_scores_depend_neither_on_the_order_of_genes_nor_on_genes_of_no_type(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    logged = rng.exponential(size=(50, 5))
    first = marker_scores(csr(logged), GENES, [A, B, C], LINEAGES)
    order = rng.permutation(5)
    extra = np.column_stack([rng.exponential(size=50), logged[:, order]])
    names = ["other", *[GENES[k] for k in order]]
    monkeypatch.setattr(scores, "_CHUNK", 7)
    second = marker_scores(csr(extra), names, [A, B, C], LINEAGES)
    for one, two in zip(first, second, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_lineages_stand_in_the_order_of_their_names() -> None:
    score, broad = marker_scores(CHECK, GENES, [A, C], np.array(["y", "x"]))
    np.testing.assert_allclose(broad[:, 1], score[:, 0], atol=1e-6)


def test_smoothed_is_half_the_cell_and_half_its_nearest() -> None:
    score = np.array([[0.0], [2.0], [4.0]])
    nearest = np.array([[1, 2], [0, 2], [0, 1]])
    assert _smoothed(score, nearest).ravel().tolist() == [1.5, 2.0, 2.5]


# Seeds


def test_lead_is_the_best_less_the_second() -> None:
    assert lead(np.array([[1.0, 3.0, 2.5], [2.0, 2.0, 0.0]])).tolist() == [0.5, 0.0]
    assert lead(np.array([[1.0], [-1.0]])).tolist() == [np.inf, np.inf]


def test_lineage_of_a_cluster_is_that_with_the_highest_mean() -> None:
    broad = np.array([[3.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.5], [0.4, 0.0]])
    codes = np.array([0, 0, 0, 1, 1])
    assert lineage_of_clusters(broad, np.array(["x", "x", "y"]), codes).tolist() == ["x", "x", "x", "y", "y"]


# Lineage x has types A and B, y has C. 20 certain cells of each type, 20 more of A that are of lineage x although C
# scores highest in them, and one cell to try.
HOME = np.array(["x", "x", "y"])
CERTAIN = np.repeat([0, 1, 2, 0], 20)
GROUP = np.repeat([0, 1, 2, 3], 20)


def probe(
    broad: tuple[float, float], score: tuple[float, float, float], clusters: tuple[int, ...], **how: float
) -> tuple[int, bool]:
    """Return the seed type of one cell, and whether its lineage is known; A is 0.5 wide, 0.2 narrow, 0.3 high."""
    own = np.eye(3)[CERTAIN]
    own[60:, 2] = 1.5
    by_lineage = np.stack([CERTAIN < 2, CERTAIN == 2], 1).astype(float)
    codes = pd.DataFrame({str(k): np.append(GROUP, c) for k, c in enumerate(clusters)})
    nearest = np.array([20 * (i // 20) + np.delete(np.arange(20), i % 20)[:5] for i in range(80)] + [[0, 1, 2, 3, 4]])
    seeds = find_seeds(np.vstack([own, score]), np.vstack([by_lineage, broad]), HOME, codes, nearest, Settings(**how))
    assert seeds.present == [0, 1, 2]
    assert (seeds.types[:-1] == CERTAIN).all()
    return int(seeds.types[-1]), bool(seeds.known[-1])


IN_A, IN_B, IN_C = (0,), (1,), (2,)


@pytest.mark.parametrize(
    ("broad", "score", "clusters", "expected"),
    [
        # Wide leads need no cluster.
        ((0.6, 0.0), (0.6, 0.0, 0.0), IN_C, (0, True)),
        ((0.6, 0.0), (0.0, 0.6, 0.0), IN_C, (1, True)),
        # The best score of a lineage must be wide too.
        ((0.49, -0.5), (0.6, 0.0, 0.0), IN_C, (-1, False)),
        # A narrow lead of the lineage counts where the cluster is of the lineage, whichever its type.
        ((0.4, 0.1), (0.6, 0.0, 0.0), IN_A, (0, True)),
        ((0.4, 0.1), (0.6, 0.0, 0.0), IN_B, (0, True)),
        ((0.4, 0.1), (0.6, 0.0, 0.0), IN_C, (-1, False)),
        ((0.4, 0.25), (0.6, 0.0, 0.0), IN_A, (-1, False)),
        ((0.29, -0.5), (0.6, 0.0, 0.0), IN_A, (-1, False)),
        # A narrow lead of the type counts where the cluster is of the type.
        ((0.6, 0.0), (0.3, 0.0, 0.0), IN_A, (0, True)),
        ((0.6, 0.0), (0.3, 0.0, 0.0), IN_B, (-1, True)),
        ((0.6, 0.0), (0.3, 0.0, 0.0), IN_C, (-1, True)),
        ((0.6, 0.0), (0.3, 0.15, 0.0), IN_A, (-1, True)),
        ((0.6, 0.0), (0.3, 0.0, 0.9), (3,), (0, True)),
        # One resolution that agrees is enough.
        ((0.6, 0.0), (0.3, 0.0, 0.0), (2, 0), (0, True)),
        ((0.4, 0.1), (0.3, 0.0, 0.0), (2, 0, 2), (0, True)),
        # A type alone in its lineage needs no lead within it, and types of other lineages do not matter.
        ((0.0, 0.6), (0.9, 0.8, -0.5), IN_A, (2, True)),
        ((0.6, 0.0), (0.6, 0.0, 0.9), IN_A, (0, True)),
    ],
)
def test_seeds_by_hand(
    broad: tuple[float, float], score: tuple[float, float, float], clusters: tuple[int, ...], expected: tuple[int, bool]
) -> None:
    assert probe(broad, score, clusters) == expected


def test_the_wide_lead_is_a_setting() -> None:
    assert probe((0.6, 0.0), (0.6, 0.0, 0.0), IN_C, seed_margin=0.7) == (-1, False)


def groups(sizes: list[int], near: np.ndarray | None = None, **how: float) -> Seeds:
    """Find seeds among certain cells of as many types as sizes, each a lineage; near a cell are cells of its type."""
    kind = np.repeat(np.arange(len(sizes)), sizes)
    score = np.eye(len(sizes))[kind]
    if near is None:
        near = np.searchsorted(kind, kind)[:, None] + np.arange(3)
    clusters = pd.DataFrame({"1": np.zeros(len(kind), int)})
    return find_seeds(score, score, np.array(list("uvwxyz")[: len(sizes)]), clusters, near, Settings(**how))


def test_a_type_without_enough_seeds_is_not_there() -> None:
    found = groups([40, 5, 40])
    assert found.present == [0, 2]
    assert found.types.tolist() == [0] * 40 + [-1] * 5 + [1] * 40
    assert found.known.tolist() == [True] * 40 + [False] * 5 + [True] * 40
    assert groups([40, 5, 40], min_seeds=5).present == [0, 1, 2]


def test_in_a_large_slide_a_share_of_the_cells_is_needed() -> None:
    assert groups([1000, 990, 10]).present == [0, 1, 2]
    assert groups([1000, 990, 10], min_seed_share=0.0055).present == [0, 1]


def test_types_whose_certain_cells_are_not_alike_are_refused() -> None:
    near = np.random.default_rng(0).integers(0, 60, (120, 3))  # cells of the second type lie among those of the first
    with pytest.raises(UserError) as error:
        groups([60, 60], near=near)
    assert str(error.value).splitlines() == [
        "Too few cell types are found in this slide",
        "  found:      1 with at least 6 certain cells that are alike",
        "  expected:   two or more",
        "  to mend it: check that the organ in the slides sheet is right and that the counts are of this slide",
    ]


@pytest.mark.parametrize(("alike", "refused"), [(0, True), (1, True), (2, False)])
def test_alike_means_a_share_of_the_nearest_cells(alike: int, refused: bool) -> None:
    near = np.zeros((80, 10), int)
    near[40:, :alike] = 40
    if refused:
        with pytest.raises(UserError, match="1 with at least 6 certain cells"):
            groups([40, 40], near=near)
    else:
        assert groups([40, 40], near=near).present == [0, 1]


def test_a_rare_type_is_alike_where_its_few_cells_are_near_each_other() -> None:
    near = np.zeros((46, 40), int)
    near[40:, :5] = [[*range(40, i), *range(i + 1, 46)] for i in range(40, 46)]  # 5 of 40, as many as there are
    assert groups([40, 6], near=near).present == [0, 1]


# Names for one gene


def test_support_of_a_cluster_with_and_without_the_best_marker_by_hand() -> None:
    # Two clusters of two cells; each gene has mean 1 and standard deviation 1 over the cells, but d is flat.
    logged = csr([[2, 2, 0, 1], [2, 0, 0, 1], [0, 2, 2, 1], [0, 0, 2, 1]])
    candidates = [MarkerSet("A", ("a", "b", "d"), ()), MarkerSet("B", ("b", "c"), ("a",))]
    without, full = marker_support(logged, GENES, candidates, np.array([0, 0, 1, 1]), np.array(["x", "y"]))
    # In the first cluster a is 1 above, b and d at the mean, c 1 below.
    np.testing.assert_allclose(full, [[1 / 3, -0.5], [-1 / 3, 0.5]], atol=2e-3)
    np.testing.assert_allclose(without, [[0, -1], [-0.5, 0]], atol=2e-3)


def named(own: int, without: float, full: float) -> tuple[list[int], list[bool]]:
    """Ten cells of a cluster, of which ``own`` are seeds of the last of three types, candidates 3, 4 and 5."""
    types = np.array([2] * own + [-1] * (10 - own) + [0] * 5 + [1] * 5)
    support = [np.array([[9.0] * 5 + [value], [9.0] * 6]) for value in (without, full)]
    seeds = Seeds(types, [3, 4, 5], np.ones(20, bool))
    result = without_single_genes(seeds, *support, np.repeat([0, 1], 10))
    assert result.types[10:].tolist() == [0] * 5 + [1] * 5
    assert result.known[10:].all()
    assert seeds.types.tolist() == types.tolist()
    return result.types[:own].tolist(), result.known[:own].tolist()


@pytest.mark.parametrize(
    ("own", "without", "full", "stays"),
    [
        (6, 0.19, 1.0, False),
        (6, 0.21, 1.0, True),
        (6, 0.5, 3.0, False),
        (2, 0.1, 1.0, True),  # a fifth of the cluster's cells does not give it its name
        (3, 0.1, 1.0, False),
        (6, -0.2, -0.1, False),
        (6, 0.0, -0.1, True),
    ],
)
def test_seeds_of_a_cluster_with_one_gene_of_a_type_by_hand(own: int, without: float, full: float, stays: bool) -> None:
    types, known = named(own, without, full)
    assert types == [2 if stays else -1] * own
    assert known == [stays] * own


def test_a_type_that_loses_all_its_seeds_is_not_there() -> None:
    types = np.repeat([0, 1, 2], 10)
    support = [np.array([[9.0, value, 9.0]] * 3) for value in (0.0, 1.0)]
    result = without_single_genes(Seeds(types, [0, 1, 2], np.ones(30, bool)), *support, types)
    assert result.present == [0, 2]
    assert result.types.tolist() == [0] * 10 + [-1] * 10 + [1] * 10


def test_a_slide_with_one_type_left_is_refused() -> None:
    types = np.repeat([0, 1], 10)
    support = [np.array([[9.0, 0.0], [9.0, value]]) for value in (0.0, 1.0)]
    with pytest.raises(UserError, match="Too few cell types") as error:
        without_single_genes(Seeds(types, [0, 1], np.ones(20, bool)), *support, types)
    assert "1 with more than one of its markers" in str(error.value)


# Other types

SETTINGS = Settings()


def others(
    foreign: list[int], known_near: float, codes: np.ndarray | None = None, n: int = 60, **how: float
) -> tuple[list[int], int]:
    """Look for other types among n cells, of which ``foreign`` are not known and lie near so many known ones."""
    types = np.zeros(n, int)
    types[foreign] = -1
    seeds = Seeds(types, [3, 5], types >= 0)
    near = np.full((n, 10), foreign[0])
    near[:, : round(10 * known_near)] = int(np.flatnonzero(types >= 0)[0])
    codes = np.zeros(n, int) if codes is None else codes
    start, number = find_others(seeds, codes, near, Settings(**how))
    assert (start[types >= 0] == 0).all()
    return start[foreign].tolist(), number


def test_unknown_cells_far_from_known_ones_are_another_type() -> None:
    assert others(list(range(12)), 0.1) == ([2] * 12, 1)
    assert others(list(range(12)), 0.2) == ([-1] * 12, 0)
    assert others(list(range(12)), 0.2, other_seeds=0.3) == ([2] * 12, 1)


def test_another_type_needs_cells_enough() -> None:
    assert others(list(range(9)), 0.0) == ([-1] * 9, 0)
    assert others(list(range(10)), 0.0) == ([2] * 10, 1)
    assert others(list(range(10)), 0.0, min_seeds=11) == ([-1] * 10, 0)
    assert others(list(range(12)), 0.0, n=1300, min_seed_share=0.01) == ([-1] * 12, 0)


def test_each_cluster_of_them_is_a_type() -> None:
    codes = np.repeat([0, 1, 2, 3], 15)
    foreign = [*range(12), *range(15, 19), *range(30, 45)]
    assert others(foreign, 0.0, codes) == ([2] * 12 + [-1] * 4 + [3] * 15, 2)


def test_cells_of_a_known_lineage_are_of_no_other_type() -> None:
    types = np.full(40, -1)
    seeds = Seeds(types, [0, 1], np.ones(40, bool))
    assert find_others(seeds, np.zeros(40, int), np.zeros((40, 5), int), SETTINGS)[1] == 0
