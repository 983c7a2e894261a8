"""Every metric against scikit-learn or torchmetrics on random inputs, and small examples by hand."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torchmetrics.functional.classification import (
    multiclass_auroc,
    multiclass_average_precision,
    multiclass_calibration_error,
    multiclass_f1_score,
)

from nuclass.core.errors import UserError
from nuclass.evaluation import ece, metrics, paired_bootstrap, per_class, reliability, spatial_blocks
from nuclass.evaluation.bootstrap import blocks_of_classes
from nuclass.evaluation.metrics import check_probabilities, closed_set, equal_width_bin
from nuclass.evaluation.priors import frequencies, majority, organ_prior, read_composition
from nuclass.evaluation.regions import by_region
from nuclass.evaluation.risk import risk_coverage, risk_summary, selective_risk

quick = settings(max_examples=30, deadline=None, derandomize=True)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Labels and probabilities: any number of classes, absent ones, one class only, ties."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    c = draw(st.integers(2, 7))
    n = draw(st.integers(1, 120))
    present = rng.choice(c, draw(st.integers(1, c)), replace=False)
    y = rng.choice(present, n)
    p = rng.dirichlet(np.full(c, draw(st.sampled_from([0.3, 1.0, 5.0]))), n)
    if draw(st.booleans()):
        p = np.round(p * 4) + 0.25
        p /= p.sum(1, keepdims=True)
    return y, p, c


def names(c: int) -> list[str]:
    return [f"class {i}" for i in range(c)]


@quick
@given(cases())
def test_hard_metrics_agree_with_scikit_learn(case):
    y, p, c = case
    present = np.unique(y)
    found = metrics(y, p, names(c))
    within = np.full_like(p, -1)
    within[:, present] = p[:, present]
    assert found["absent_classes"] == [f"class {i}" for i in range(c) if i not in present]
    for reading, call in (("open_set", p.argmax(1)), ("closed_set", within.argmax(1))):
        values = found[reading]
        options = {"labels": present, "zero_division": 0}
        assert values["accuracy"] == pytest.approx(sk.accuracy_score(y, call))
        assert values["macro_f1"] == pytest.approx(sk.f1_score(y, call, average="macro", **options))
        assert values["weighted_f1"] == pytest.approx(sk.f1_score(y, call, average="weighted", **options))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert values["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, call))
        assert set(call[np.isin(call, present)]) <= set(present)
    assert found["log_loss"] == pytest.approx(sk.log_loss(y, p, labels=range(c)))
    assert found["brier"] == pytest.approx(sk.brier_score_loss(y, p, labels=range(c), scale_by_half=False))
    assert {key: found[key] for key in found["open_set"]} == found["open_set"]


@quick
@given(cases())
def test_metrics_by_class_agree_with_torchmetrics(case):
    y, p, c = case
    table = per_class(y, p, names(c))
    # Scaling to a sum of one parts some ties by a last bit: compare on the scaled ones.
    target, scores = torch.from_numpy(y), torch.from_numpy(check_probabilities(y, p, names(c)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        auroc = multiclass_auroc(scores, target, c, average="none", thresholds=None).numpy()
        ap = multiclass_average_precision(scores, target, c, average="none", thresholds=None).numpy()
    f1 = multiclass_f1_score(torch.from_numpy(p.argmax(1)), target, c, average="none").numpy()
    support = np.bincount(y, minlength=c)
    some, both = support > 0, (support > 0) & (support < len(y))
    np.testing.assert_allclose(table["f1"][some], f1[some], atol=1e-6)
    np.testing.assert_allclose(table["auroc"][both], auroc[both], atol=1e-5)
    np.testing.assert_allclose(table["average_precision"][both], ap[both], atol=1e-5)
    assert table.loc[~some, ["recall", "f1", "auroc", "average_precision"]].isna().all().all()
    assert table.loc[~both, ["auroc", "average_precision"]].isna().all().all()
    np.testing.assert_array_equal(table["support"], support)
    np.testing.assert_array_equal(table["predicted"], np.bincount(p.argmax(1), minlength=c))
    assert (table["predicted_closed"][~some] == 0).all()


@quick
@given(cases(), st.integers(2, 20))
def test_calibration_error_agrees_with_torchmetrics(case, bins):
    y, p, _ = case
    # Torchmetrics gives an edge to the bin above it, we to the one below: keep off the edges.
    edge = np.abs(p.max(1) * bins - np.round(p.max(1) * bins)) < 1e-4
    y, p = y[~edge], p[~edge]
    if not len(y):
        return
    theirs = multiclass_calibration_error(torch.from_numpy(p), torch.from_numpy(y), p.shape[1], n_bins=bins, norm="l1")
    assert ece(y, p, bins=bins) == pytest.approx(float(theirs), abs=1e-6)
    for equal in (False, True):
        table = reliability(y, p, bins=bins, equal_mass=equal)
        assert table["cells"].sum() == len(y)
        filled = table[table["cells"] > 0]
        assert (filled["low"] - 1e-12 <= filled["confidence"]).all()
        assert (filled["confidence"] <= filled["high"] + 1e-12).all()
    # Beyond one, bins of equal mass differ by ties, which stay in one bin.
    most = np.unique(np.round(p.max(1), 12), return_counts=True)[1].max()
    assert table["cells"].max() - table["cells"].min() <= 1 + 2 * (most - 1)


@quick
@given(cases(), st.integers(2, 20), st.integers(0, 1000))
def test_bins_of_equal_mass_do_not_hang_on_the_order_of_the_cells(case, bins, seed):
    y, p, _ = case
    p = p.round(1)
    p[:, 0] += 1 - p.sum(1)
    order = np.random.default_rng(seed).permutation(len(y))
    one, other = (reliability(y[rows], p[rows], bins=bins, equal_mass=True) for rows in (slice(None), order))
    pd.testing.assert_frame_equal(one, other)
    assert ece(y, p, bins=bins, equal_mass=True) == pytest.approx(ece(y[order], p[order], bins=bins, equal_mass=True))


def test_blocks_that_hold_cells_of_each_class_by_hand():
    """Squares of 100 um on two slides: class 0 in three of them, class 1 in one, class 2 nowhere."""
    slide = ["a", "a", "a", "a", "b", "b"]
    x, y = np.array([10.0, 90, 110, 20, 10, 20]), np.array([10.0, 20, 10, 30, 10, 90])
    blocks = spatial_blocks(slide, x, y, 100)
    assert blocks.n == 3
    assert blocks_of_classes(np.array([0, 0, 0, 1, 0, 0]), blocks, 3).tolist() == [3, 1, 0]


def test_cells_of_the_same_confidence_share_a_bin():
    """Ranks 0 to 5; the three at 0.7 have the middle rank 2, the third of three bins starts at rank 4."""
    top = np.array([0.7, 0.9, 0.7, 0.6, 0.7, 0.8])
    p = np.stack([top, 1 - top], axis=1)
    table = reliability(np.array([0, 0, 1, 0, 0, 1]), p, bins=3, equal_mass=True)
    assert table["cells"].tolist() == [1, 3, 2]
    assert table["low"].tolist() == [0.6, 0.7, 0.8]
    assert table["high"].tolist() == [0.6, 0.7, 0.9]
    np.testing.assert_allclose(table["confidence"], [0.6, 0.7, 0.85])
    np.testing.assert_allclose(table["accuracy"], [1, 2 / 3, 1 / 2])
    expected = (1 * 0.4 + 3 * (0.7 - 2 / 3) + 2 * 0.35) / 6
    assert ece(np.array([0, 0, 1, 0, 0, 1]), p, bins=3, equal_mass=True) == pytest.approx(expected)


@pytest.mark.parametrize("bins", [10, 15])
def test_an_edge_belongs_to_the_bin_below_whatever_the_last_bit(bins):
    edges = np.arange(1, bins + 1) / bins
    for near in (edges, np.nextafter(edges, 2), np.nextafter(edges, 0)):
        assert equal_width_bin(near, bins).tolist() == list(range(bins))
    assert equal_width_bin(edges[:-1] + 1e-9, bins).tolist() == list(range(1, bins))
    assert equal_width_bin(np.array([0.0, 1e-15]), bins).tolist() == [0, 0]


@quick
@given(cases())
def test_bootstrap_starts_from_the_same_numbers(case):
    y, p, c = case
    xy = np.arange(len(y)) * 60.0
    blocks = spatial_blocks(["s"] * len(y), xy, xy, 100)
    found = paired_bootstrap(y, {"m": p, "hard": p.argmax(1)}, blocks, names(c), draws=5)["models"]
    direct = metrics(y, p, names(c))
    for name in ("accuracy", "macro_f1", "weighted_f1", "balanced_accuracy"):
        assert found["hard"][name]["value"] == pytest.approx(direct[name], abs=1e-12)
    for name in ("accuracy", "macro_f1", "top2_accuracy", "log_loss", "brier", "ece", "mean_confidence"):
        assert found["m"][name]["value"] == pytest.approx(direct[name], abs=1e-9), name


@quick
@given(cases(), st.permutations(range(4)))
def test_risk_does_not_depend_on_the_order_of_cells(case, places):
    y, p, _ = case
    order = np.random.default_rng(places[0]).permutation(len(y))
    found, shuffled = risk_summary(y, p), risk_summary(y[order], p[order])
    assert found["aurc"] == pytest.approx(shuffled["aurc"])
    assert found["e_aurc"] >= -1e-12
    curve = risk_coverage(y, p)
    assert curve["risk"].iloc[-1] == pytest.approx(1 - sk.accuracy_score(y, p.argmax(1)))
    assert curve["coverage"].iloc[-1] == 1
    assert (curve["cells"].diff().dropna() > 0).all()


def test_risk_by_hand():
    right = np.array([True, True, False, True])
    confidence = np.array([0.9, 0.8, 0.7, 0.6])
    np.testing.assert_allclose(selective_risk(right, confidence), [0, 0, 1 / 3, 1 / 4])
    # The last two tie: half an error each.
    np.testing.assert_allclose(selective_risk(right, [0.9, 0.8, 0.6, 0.6]), [0, 0, 0.5 / 3, 1 / 4])
    y = np.array([0, 0, 1, 0])
    p = np.stack([confidence, 1 - confidence], 1)
    found = risk_summary(y, p)
    assert found["aurc"] == pytest.approx((1 / 3 + 1 / 4) / 4)
    assert found["aurc_best"] == pytest.approx(1 / 16)
    assert found["accuracy_at"] == {"0.5": 1.0, "0.8": 0.75, "0.9": 0.75}
    curve = risk_coverage(y, p, points=2)
    assert curve[["coverage", "cells", "threshold", "accuracy"]].to_numpy().tolist() == [
        [0.5, 2, 0.8, 1],
        [1, 4, 0.6, 0.75],
    ]


def test_brier_ece_and_top_2_by_hand():
    y = np.array([0, 1, 2])
    p = np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.6, 0.3, 0.1]])
    found = metrics(y, p, list("abc"), bins=10)
    assert found["brier"] == pytest.approx(((0.09 + 0.04 + 0.01) + (0.25 + 0.49 + 0.04) + (0.36 + 0.09 + 0.81)) / 3)
    assert found["top2_accuracy"] == pytest.approx(2 / 3)
    assert found["log_loss"] == pytest.approx(-np.log([0.7, 0.3, 0.1]).mean())
    # Confidences 0.7, 0.5, 0.6: each the upper edge of a bin of its own.
    assert found["ece"] == pytest.approx((0.3 + 0.5 + 0.6) / 3)
    assert ece(y, p, bins=1) == pytest.approx(abs(1 / 3 - 0.6))


def test_the_closed_set_by_hand():
    y = np.array([0, 2, 2])
    p = np.array([[0.2, 0.7, 0.1], [0.0, 1.0, 0.0], [0.1, 0.5, 0.4]])
    np.testing.assert_allclose(closed_set(y, p), [[2 / 3, 0, 1 / 3], [0.5, 0, 0.5], [0.2, 0, 0.8]])
    found, closed = metrics(y, p, list("abc")), metrics(y, p, list("abc"), closed=True)
    assert (found["set"], closed["set"]) == ("open", "closed")
    assert found["accuracy"] == found["open_set"]["accuracy"] == closed["open_set"]["accuracy"] == 0
    assert (
        closed["accuracy"]
        == closed["closed_set"]["accuracy"]
        == found["closed_set"]["accuracy"]
        == pytest.approx(2 / 3)
    )
    assert closed["mean_confidence"] == pytest.approx((2 / 3 + 0.5 + 0.8) / 3)
    assert closed["log_loss"] == pytest.approx(-np.log([2 / 3, 0.5, 0.8]).mean())
    assert "closed set" in closed["macro_rule"]
    assert "open set" in found["macro_rule"]
    table, turned = per_class(y, p, list("abc")), per_class(y, p, list("abc"), closed=True)
    for column in ("precision", "recall", "f1", "predicted"):
        np.testing.assert_array_equal(table[f"{column}_closed"], turned[column])
        np.testing.assert_array_equal(table[column], turned[f"{column}_open"])
    assert table["recall"].tolist()[::2] == [0, 0]
    assert table["recall_closed"].tolist()[::2] == [1, 0.5]


COMPOSITION = pd.DataFrame(
    [
        ("lung", "train", "a", 6),
        ("lung", "train", "b", 2),
        ("lung", "val", "b", 90),
        ("ovary", "train", "c", 9),
        ("ovary", "train", "other", 50),
        ("ovary", "buffer", "a", 70),
    ],
    columns=["organ", "split", "class", "cells"],
)


def test_class_frequencies_by_hand():
    counts = read_composition(COMPOSITION)
    classes = ["a", "b", "c"]
    np.testing.assert_allclose(frequencies(counts, classes), np.array([7, 3, 10]) / 20)
    np.testing.assert_allclose(frequencies(counts, classes, "lung"), np.array([7, 3, 1]) / 11)
    p = organ_prior(["ovary", "lung", "colon"], classes, counts)
    np.testing.assert_allclose(p, [np.array([1, 1, 10]) / 12, np.array([7, 3, 1]) / 11, np.array([7, 3, 10]) / 20])
    assert majority(2, classes, counts).argmax(1).tolist() == [2, 2]
    with pytest.raises(UserError, match="other columns"):
        read_composition(COMPOSITION.drop(columns="split"))
    with pytest.raises(UserError, match="no training cell"):
        read_composition(COMPOSITION[COMPOSITION["split"] == "val"])


def test_regions_by_hand():
    table = pd.DataFrame(
        {
            "slide": ["s"] * 5 + ["t"],
            "organ": "lung",
            "x_px": [10, 390, 399, 401, 500, 10],
            "y_px": [0, 0, 399, 0, 1, 0],
        }
    )
    y = np.array([0, 0, 1, 1, 1, 0])
    p = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7], [0.1, 0.9], [0.9, 0.1]])
    regions, told = by_region(table, y, p, mpp=0.25, region_um=100, min_cells=2)
    assert regions[["slide", "column", "row", "cells", "classes"]].to_numpy().tolist() == [
        ["s", 0, 0, 3, 2],
        ["s", 1, 0, 2, 1],
    ]
    assert regions[["x_px", "y_px", "x_store_um", "y_store_um"]].to_numpy().tolist() == [
        [200, 200, 50, 50],
        [600, 200, 150, 50],
    ]
    assert regions["accuracy"].tolist() == pytest.approx([2 / 3, 1])
    assert regions["macro_f1"].tolist() == pytest.approx([2 / 3, 1])
    assert regions["mean_confidence"].tolist() == pytest.approx([(0.9 + 0.6 + 0.8) / 3, 0.8])
    assert told == {"region_um": 100, "min_cells": 2, "regions": 2, "left_out": 1, "cells_left_out": 1}
