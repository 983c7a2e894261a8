"""The malignant rule and confidence: each formula against values by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from nuclass.labels.confidence import confidence, marker_lead
from nuclass.labels.malignant import CELL_CYCLE, malignant_bonus


def csr(values: object) -> sparse.csr_matrix:
    return sparse.csr_matrix(np.asarray(values, np.float32))


# The malignant rule

EPI, STROMA, BLOOD = "Epithelial", "Fibroblast", "Lymphoid_T"


def bonus(
    cycle: list[int],
    depth: list[int],
    codes: list[int],
    lineage: list[str],
    genes: tuple[str, str] = ("MKI67", "EPCAM"),
    prior: float = 0.2,
) -> np.ndarray:
    counts = np.stack([cycle, np.array(depth) - np.array(cycle)], 1)
    return malignant_bonus(csr(counts), list(genes), np.array(codes), np.array(lineage), prior)


def with_stroma(cycling: int, lineage: str = STROMA, n: int = 60) -> tuple[list[int], ...]:
    """Ten epithelial cells of depth 100 with so many transcripts of the cell cycle in all, and stroma at 0.01."""
    cycle = [cycling // 10] * 9 + [cycling - 9 * (cycling // 10)] + [1] * (n - 1) + [0]
    depth = [100] * 10 + [100] * (n - 1) + [99]
    return cycle, depth, [0] * 10 + [1] * n, [EPI] * 10 + [lineage] * n


@pytest.mark.parametrize(
    ("cycling", "expected"),
    [
        (10, 0.2),  # the stroma's rate: (59 + 1) / (5999 + 1) = 0.01, of 1,000 transcripts
        (23, 0.5 + 0.2),  # twice: (23 + 3) / (10 + 3)
        (49, 1.0 + 0.2),
        (0, -0.5 + 0.2),  # 0.5 log2(3 / 13) = -1.06, limited
        (4, 0.5 * np.log2(7 / 13) + 0.2),
        (500, 1.5 + 0.2),  # 0.5 log2(503 / 13) = 2.64, limited
    ],
)
def test_bonus_by_hand(cycling: int, expected: float) -> None:
    result = bonus(*with_stroma(cycling))
    np.testing.assert_allclose(result[:10], expected, atol=1e-5)
    assert (result[10:] == 0).all(), "outside epithelium nothing is added"
    np.testing.assert_allclose(bonus(*with_stroma(cycling), prior=-1.0)[:10], expected - 1.2, atol=1e-5)


@pytest.mark.parametrize("lineage", ["Fibroblast", "Endothelial", "Mural"])
def test_stroma_is_what_epithelium_is_measured_against(lineage: str) -> None:
    cycle, depth, codes, lineages = with_stroma(49, lineage)
    cycling_blood = ([*cycle, *[90] * 200], [*depth, *[100] * 200], [*codes, *[2] * 200], [*lineages, *[BLOOD] * 200])
    np.testing.assert_allclose(bonus(*cycling_blood)[:10], 1.2, atol=1e-5)


def test_with_little_stroma_all_other_cells_stand_in() -> None:
    cycle, depth, codes, lineages = with_stroma(49, BLOOD)
    np.testing.assert_allclose(bonus(cycle, depth, codes, lineages)[:10], 1.2, atol=1e-5)
    few = ([*cycle, *[90] * 49], [*depth, *[100] * 49], [*codes, *[2] * 49], [*lineages, *[STROMA] * 49])
    base = (59 + 49 * 90 + 1) / (5999 + 4900 + 1)
    expected = 0.5 * np.log2(52 / (1000 * base + 3))
    np.testing.assert_allclose(bonus(*few)[:10], max(expected, -0.5) + 0.2, atol=1e-5)


def test_each_cluster_of_epithelium_has_its_own_bonus() -> None:
    cycle, depth, codes, lineages = with_stroma(49)
    result = bonus([*cycle, *[1] * 10], [*depth, *[100] * 10], [*codes, *[2] * 10], [*lineages, *[EPI] * 10])
    np.testing.assert_allclose(result[:10], 1.2, atol=1e-5)
    np.testing.assert_allclose(result[-10:], 0.2, atol=1e-5)


def test_the_prior_alone_without_cell_cycle_genes_or_without_anything_to_measure_against() -> None:
    result = bonus(*with_stroma(49), genes=("CD3E", "EPCAM"))
    np.testing.assert_allclose(result, [0.2] * 10 + [0.0] * 60, atol=1e-6)
    cycle, depth, _, _ = with_stroma(49)
    np.testing.assert_allclose(bonus(cycle, depth, [0] * 70, [EPI] * 70), 0.2, atol=1e-6)


@pytest.mark.parametrize("gene", CELL_CYCLE)
def test_every_gene_of_the_cell_cycle_counts(gene: str) -> None:
    np.testing.assert_allclose(bonus(*with_stroma(49), genes=(gene, "EPCAM"))[:10], 1.2, atol=1e-5)


# Confidence


@pytest.mark.parametrize(
    ("posterior", "marker", "slope", "offset", "expected"),
    [
        (1.0, 0.0, 1.85, 0.0, 0.5),
        (0.8, 0.0, 1.85, 0.57, 0.8 / (1 + np.exp(-0.57))),
        (0.9, 1.0, 2.0, -1.0, 0.9 / (1 + np.exp(-1.0))),
        (0.9, -1.0, 2.0, 1.0, 0.9 / (1 + np.e)),
    ],
)
def test_confidence_by_hand(posterior: float, marker: float, slope: float, offset: float, expected: float) -> None:
    assert confidence(np.array([posterior]), np.array([marker]), slope, offset)[0] == pytest.approx(expected)


@settings(deadline=None)
@given(
    posterior=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    marker=st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)).map(sorted),
)
def test_confidence_grows_with_posterior_and_lead_and_stays_a_chance(
    posterior: list[float], marker: list[float]
) -> None:
    with np.errstate(all="raise", under="ignore"):
        low, high = confidence(np.array(posterior), np.array(marker), 1.85, 0.57)
    assert 0 <= low <= high <= posterior[1] <= 1


def test_marker_lead_by_hand() -> None:
    smooth = np.array([[2.0, 0.5, 1.0], [1.0, 0.0, 0.5], [0.0, 3.0, 0.0], [0.0, 1.0, 1.5], [1.0, 0.2, 0.0]])
    best = np.array([0, 0, 1, 1, 2])
    # Own leads: 2 - 1, 1 - 0.5, 3 - 0, 1 - 1.5, 0 - 1.
    nearest = np.array([[1, 2], [0, 1], [3, 0], [4, 0], [0, 1]])
    # The mean over the nearest cells of the same type; the last two have none and keep their own.
    np.testing.assert_allclose(marker_lead(smooth, best, nearest), [0.5, 0.75, -0.5, -0.5, -1.0])


def test_marker_lead_leaves_the_scores_as_they_are() -> None:
    smooth = np.random.default_rng(0).normal(size=(6, 3))
    before = smooth.copy()
    marker_lead(smooth, np.array([0, 1, 2, 0, 1, 2]), np.array([[1], [2], [3], [4], [5], [0]]))
    assert (smooth == before).all()
