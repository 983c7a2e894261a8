"""The original's confidence: purity and margin against values by hand, and as the one that decides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from labels_simulator import simulate
from nuclass.labels import released
from nuclass.labels.assign import LabelResult, Settings, label_cells
from nuclass.labels.markers import load_markers
from nuclass.labels.ontology import load_ontology
from nuclass.labels.released import released_confidence, scaled_margin

MARKERS = load_markers("resources/markers/markers.tsv")
ONTOLOGY = load_ontology("resources/label_ontology.yaml")


def csr(values: object) -> sparse.csr_matrix:
    return sparse.csr_matrix(np.asarray(values, np.float32))


# Purity. With one type only there is no margin, which is then 0.5 for all: confidence = 0.6 purity + 0.2.


def purity_of(codes: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    ones = np.ones((len(codes), 1))
    return (released_confidence(csr(ones), codes, np.zeros(len(codes), int), nearest) - 0.2) / 0.6


def test_purity_by_hand() -> None:
    # k = 50 with the cell itself: u = (number of the same cluster - 1) / 49. The last cell is of another cluster.
    codes = np.array([0] * 60 + [1] * 60)
    same = np.tile(np.arange(49), (120, 1))
    same[0, :14] = 60 + np.arange(14)
    purity = purity_of(codes, same)
    of_fifty = np.append(same[0], 0)  # its fifty nearest cells, itself among them
    assert purity[0] == pytest.approx(((codes[of_fifty] == 0).sum() - 1) / 49, abs=1e-6)
    assert purity[0] == pytest.approx(35 / 49, abs=1e-6)
    assert purity[1] == pytest.approx(1, abs=1e-6)
    assert purity[-1] == pytest.approx(0, abs=1e-6)


def test_only_the_first_49_nearest_cells_count() -> None:
    codes = np.array([0] * 60 + [1] * 60)
    nearest = np.concatenate([np.tile(np.arange(49), (120, 1)), np.tile(np.arange(60, 80), (120, 1))], axis=1)
    assert purity_of(codes, nearest)[0] == pytest.approx(1, abs=1e-6)


def test_purity_of_few_cells_is_a_share_of_those_there_are() -> None:
    codes = np.array([0, 0, 0, 1])
    nearest = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
    np.testing.assert_allclose(purity_of(codes, nearest), [2 / 3, 2 / 3, 2 / 3, 0], atol=1e-6)


# Margin


def margin_of(counts: np.ndarray, codes: np.ndarray, types: np.ndarray) -> np.ndarray:
    """Take the purity, 1 here, out of the confidence."""
    nearest = np.array([[np.flatnonzero(codes == code)[0]] for code in codes])
    return (released_confidence(csr(counts), codes, types, nearest) - 0.6) / 0.4


CODES = np.array([0, 0, 0, 1, 1, 1])
COUNTS = np.array([[8, 0, 2], [7, 1, 2], [5, 4, 1], [0, 9, 1], [1, 7, 2], [2, 6, 2]])


def test_margin_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released, "TOP", 1)  # gene 0 marks the first cluster, gene 1 the second, gene 2 none
    logged = np.log1p(1e4 * COUNTS / 10)
    lead = np.where(CODES == 0, logged[:, 0] - logged[:, 1], logged[:, 1] - logged[:, 0])
    centre = np.median(lead)
    wanted = 0.5 + 0.5 * (lead - centre) / (3 * np.median(np.abs(lead - centre)))
    result = margin_of(COUNTS, CODES, CODES)
    np.testing.assert_allclose(result, np.clip(wanted, 0, 1), atol=1e-5)
    assert result.argmax() in (0, 3)
    assert result.argmin() == 2


def test_depth_does_not_change_the_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released, "TOP", 1)
    deep = COUNTS * np.array([1, 5, 3, 2, 9, 1])[:, None]
    np.testing.assert_allclose(margin_of(deep, CODES, CODES), margin_of(COUNTS, CODES, CODES), atol=1e-5)


def test_clusters_of_one_label_share_their_genes_and_do_not_compete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released, "TOP", 1)
    codes = np.repeat([0, 1, 2], 3)
    counts = np.array(
        [[9, 0, 1], [8, 1, 1], [7, 2, 1], [1, 9, 0], [1, 8, 1], [2, 7, 1], [0, 1, 9], [1, 1, 8], [1, 2, 7]]
    )
    # Clusters 0 and 1 bear one label, whose genes are 0 and 1; cluster 2 bears another, whose gene is 2.
    logged = np.log1p(1e4 * counts / 10)
    first, second = logged[:, :2].mean(1), logged[:, 2]
    lead = np.where(codes < 2, first - second, second - first)
    centre = np.median(lead)
    wanted = np.clip(0.5 + 0.5 * (lead - centre) / (3 * np.median(np.abs(lead - centre))), 0, 1)
    np.testing.assert_allclose(margin_of(counts, codes, np.array([4] * 6 + [7] * 3)), wanted, atol=1e-5)


def test_the_lead_is_over_the_best_other_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released, "TOP", 1)
    codes = np.repeat([0, 1, 2], 3)
    counts = np.array(
        [[9, 0, 1], [6, 1, 3], [7, 2, 1], [1, 9, 0], [1, 8, 1], [2, 7, 1], [0, 1, 9], [1, 1, 8], [1, 2, 7]]
    )
    logged = np.log1p(1e4 * counts / 10)
    lead = np.array([logged[i, c] - np.delete(logged[i], c).max() for i, c in enumerate(codes)])
    centre = np.median(lead)
    wanted = np.clip(0.5 + 0.5 * (lead - centre) / (3 * np.median(np.abs(lead - centre))), 0, 1)
    np.testing.assert_allclose(margin_of(counts, codes, codes), wanted, atol=1e-5)


def test_a_cluster_bears_the_label_of_most_of_its_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released, "TOP", 1)
    result = margin_of(COUNTS, CODES, np.array([0, 0, 5, 5, 0, 5]))
    np.testing.assert_allclose(result, margin_of(COUNTS, CODES, CODES), atol=1e-6)


def test_with_one_label_the_margin_is_one_half() -> None:
    np.testing.assert_allclose(margin_of(COUNTS, CODES, np.full(6, 3)), 0.5, atol=1e-6)


def test_confidence_is_six_tenths_purity_and_four_tenths_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released, "TOP", 1)
    margin = margin_of(COUNTS, CODES, CODES)
    nearest = np.array([[1, 3], [0, 2], [3, 4], [4, 5], [0, 5], [3, 4]])
    purity = np.array([0.5, 1, 0, 1, 0.5, 1])
    result = released_confidence(csr(COUNTS), CODES, CODES, nearest)
    np.testing.assert_allclose(result, 0.6 * purity + 0.4 * margin, atol=1e-6)


# The scale of the margin


@pytest.mark.parametrize(
    ("lead", "expected"),
    [
        # Median 2, deviations 2 1 0 1 2, of median 1: three of them make one half.
        ([0, 1, 2, 3, 4], [0.5 - 1 / 3, 0.5 - 1 / 6, 0.5, 0.5 + 1 / 6, 0.5 + 1 / 3]),
        ([0, 1, 2, 3, 400], [1 / 6, 1 / 3, 0.5, 2 / 3, 1]),
        # Most are alike: quartiles 0 and 4, their middle 2, twice their distance 8.
        ([0, 0, 0, 0, 0, 4, 4, 4], [0.375] * 5 + [0.625] * 3),
        # Nearly all are alike: three standard deviations, 3 x 0.4.
        ([0, 0, 0, 0, 0, 0, 0, 0, 1, 1], [0.5] * 8 + [0.5 + 0.5 / 1.2] * 2),
        ([7, 7, 7], [0.5, 0.5, 0.5]),
    ],
)
def test_scaled_margin_by_hand(lead: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(scaled_margin(np.array(lead, float)), expected, atol=1e-6)


@settings(deadline=None)
@given(st.lists(st.floats(-1e3, 1e3).map(lambda value: round(value, 3)), min_size=1, max_size=30))
def test_scaled_margin_keeps_the_order_and_its_bounds(lead: list[float]) -> None:
    margin = scaled_margin(np.array(lead))
    assert ((margin >= 0) & (margin <= 1)).all()
    assert (np.diff(margin[np.argsort(lead, kind="stable")]) >= -1e-6).all()


# As the confidence that decides


@pytest.fixture(scope="module")
def results() -> dict[str, LabelResult]:
    slide = simulate("lung", n=1200, seed=31)
    return {
        name: label_cells(
            slide.counts, slide.cells, MARKERS, "lung", ONTOLOGY, Settings(confidence=name, min_confidence=0.6)
        )
        for name in ("calibrated", "released")
    }


@pytest.mark.parametrize(("name", "column"), [("calibrated", "confidence"), ("released", "confidence_released")])
def test_the_chosen_confidence_decides(results: dict[str, LabelResult], name: str, column: str) -> None:
    labels = results[name].labels
    free = labels[
        (labels["status"] != "dropped") & ~labels["reason"].isin(["other_type", "doublet", "markers_disagree"])
    ]
    low = free[column].to_numpy() < np.float32(0.6)
    assert 0 < low.sum() < len(free)
    assert (free["status"] == "labelled").tolist() == (~low).tolist()
    assert (free.loc[low, "reason"] == "unsure").all()


def test_both_confidences_are_reported_whichever_decides(results: dict[str, LabelResult]) -> None:
    first, second = (results[name].labels for name in ("calibrated", "released"))
    for column in ("confidence", "confidence_released", "raw_label"):
        assert first[column].equals(second[column])
    assert (first["status"] != second["status"]).sum() > 20
