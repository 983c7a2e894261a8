from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from fake_study import write_predictions
from nuclass.core.errors import UserError
from nuclass.core.files import read_json, write_parquet
from nuclass.core.readings import GATE_PARTS
from nuclass.evaluation.gate_behaviour import (
    by_class,
    by_truth,
    by_uncertainty,
    calibration_error,
    describe_gate,
    describe_gate_of_cohorts,
    gate_map,
    reliability_of_gate,
    spearman,
    uncertainty,
)
from nuclass.evaluation.predictions import read_models


def test_by_class_by_hand() -> None:
    gate = np.array([0.1, 0.2, 0.9, 0.5, 0.6])
    table = by_class(gate, np.array([0, 0, 0, 2, 2]), ("a", "b", "c")).set_index("class")
    assert list(table.index) == ["a", "c"]
    assert table.loc["a", "cells"] == 3
    assert table.loc["a", "mean"] == pytest.approx(0.4)
    assert table.loc["a", "median"] == pytest.approx(0.2)
    assert table.loc["a", "q25"] == pytest.approx(0.15)
    assert table.loc["a", "open_share"] == pytest.approx(1 / 3)
    assert table.loc["c", "open_share"] == 0.5  # 0.5 itself is not open


def test_by_truth_by_hand() -> None:
    right_local = np.array([1, 1, 0, 0, 1], bool)
    right_global = np.array([1, 0, 1, 0, 0], bool)
    table = by_truth(np.array([0.5, 0.1, 0.9, 0.4, 0.3]), right_local, right_global).set_index("truth")
    assert table["cells"].to_dict() == {"both": 1, "only_local": 2, "only_global": 1, "neither": 1}
    assert table.loc["only_local", "mean"] == pytest.approx(0.2)
    assert table.loc["only_global", "mean"] == pytest.approx(0.9)
    empty = by_truth(np.array([0.5]), np.array([True]), np.array([True])).set_index("truth")
    assert np.isnan(empty.loc["neither", "mean"])


def test_reliability_is_of_conflicts_only() -> None:
    gate = np.array([0.2, 0.2, 0.2, 0.8, 0.8, 1.0, 0.0, 0.8])
    right_local = np.array([1, 1, 0, 0, 1, 1, 1, 0], bool)
    right_global = np.array([0, 0, 1, 1, 0, 1, 0, 0], bool)
    table = reliability_of_gate(gate, right_local, right_global, bins=5)
    # Conflicts: 0.2 (local), 0.2 (local), 0.2 (global), 0.8 (global), 0.8 (local), 0.0 (local).
    assert table["cells"].tolist() == [4, 0, 0, 2, 0]
    assert table.loc[0, "gate"] == pytest.approx(0.15)
    assert table.loc[0, "global_right"] == pytest.approx(0.25)
    assert table.loc[3, "global_right"] == pytest.approx(0.5)
    assert calibration_error(table) == pytest.approx((4 * 0.1 + 2 * 0.3) / 6)
    none = reliability_of_gate(gate, right_local, right_local)
    assert none["cells"].sum() == 0
    assert np.isnan(calibration_error(none))


def test_a_gate_that_is_the_probability_is_calibrated() -> None:
    rng = np.random.default_rng(0)
    gate = rng.random(40_000)
    right_global = rng.random(40_000) < gate
    assert calibration_error(reliability_of_gate(gate, ~right_global, right_global)) < 0.015
    assert calibration_error(reliability_of_gate(1 - gate, ~right_global, right_global)) > 0.4


def test_uncertainty_is_entropy_over_its_maximum() -> None:
    p = np.array([[0.25] * 4, [1, 0, 0, 0], [0.5, 0.5, 0, 0]])
    np.testing.assert_allclose(uncertainty(p), [1, 0, 0.5], atol=1e-12)
    assert uncertainty(np.ones((3, 1))).tolist() == [0, 0, 0]


def test_by_uncertainty_has_bins_of_equal_count() -> None:
    unsure = np.array([0.9, 0.1, 0.5, 0.3, 0.7, 0.2])
    gate = unsure / 2
    right = {"local": np.array([0, 1, 0, 1, 0, 1], bool)}
    table = by_uncertainty(gate, unsure, right, bins=3)
    assert table["cells"].tolist() == [2, 2, 2]
    np.testing.assert_allclose(table["uncertainty"], [0.15, 0.4, 0.8])
    np.testing.assert_allclose(table["mean"], [0.075, 0.2, 0.4])
    np.testing.assert_allclose(table["accuracy_local"], [1, 0.5, 0])
    assert len(by_uncertainty(gate[:2], unsure[:2], {}, bins=10)) == 2
    assert spearman(gate, unsure) == pytest.approx(1)
    assert np.isnan(spearman(np.full(6, 0.5), unsure))


def test_map_by_hand() -> None:
    slide = pd.Series(["b", "b", "b", "a"])
    x, y = np.array([10.0, 90.0, 110.0, 10.0]), np.array([10.0, 20.0, 10.0, 250.0])
    table = gate_map(slide, x, y, np.array([0.2, 0.9, 0.6, 0.5]), 100)
    assert table["slide"].tolist() == ["b", "b", "a"]
    assert table[["x_um", "y_um"]].to_numpy().tolist() == [[0, 0], [100, 0], [0, 200]]
    assert table["cells"].tolist() == [2, 1, 1]
    np.testing.assert_allclose(table["gate"], [0.55, 0.6, 0.5])
    np.testing.assert_allclose(table["open_share"], [0.5, 1, 0])
    with pytest.raises(UserError, match="side above 0"):
        gate_map(slide, x, y, np.zeros(4), 0)


def test_of_cohorts(tmp_path: Path) -> None:
    paths = write_predictions(tmp_path, n=300)
    outputs = {part: tmp_path / f"{part}.csv" for part in GATE_PARTS}
    describe_gate_of_cohorts(paths, outputs, tmp_path / "s.json", mpp=0.25, square_um=150)
    summary = read_json(tmp_path / "s.json")["cohorts"]
    assert list(summary) == ["ovary_h", "lung_h", "pancreas_h", "all"]
    models = read_models({m: list(p.values()) for m, p in paths.items()})
    y, gate = models["gate"].y, models["gate"].table["gate"].to_numpy()
    a, b = (models[m].predicted == y for m in ("local", "global"))
    assert summary["all"]["auroc"] == pytest.approx(roc_auc_score(b[a != b], gate[a != b]))
    assert summary["all"]["conflicts"] == int((a != b).sum())
    assert summary["all"]["auroc"] > 0.8
    for part in GATE_PARTS:
        table = pd.read_csv(outputs[part])
        cells = table["cells"].sum() if part == "map" else table.groupby("cohort")["cells"].sum()["all"]
        assert cells == (summary["all"]["conflicts"] if part == "reliability" else 900)
    assert pd.read_csv(outputs["map"])["slide"].drop_duplicates().tolist() == ["ovary_h", "lung_h", "pancreas_h"]


def test_a_gate_outside_0_to_1_is_told(tmp_path: Path) -> None:
    paths = write_predictions(tmp_path, n=50)
    path = paths["gate"]["lung_h"]
    table = pd.read_parquet(path)
    table.loc[7, "gate"] = np.nan
    write_parquet(path, table)
    models = read_models({m: [p["lung_h"]] for m, p in paths.items()})
    with pytest.raises(UserError, match="not between 0 and 1"):
        describe_gate(models, mpp=0.25, square_um=150)
