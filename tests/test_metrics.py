from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from fake_study import CLASSES, slide_sheet, write_predictions, write_slides, write_truth
from nuclass.core.errors import UserError
from nuclass.evaluation import (
    branches,
    check_no_overlap,
    confusion,
    count_cells,
    ece,
    evaluate_model,
    gate_auroc,
    metrics,
    per_class,
    read_models,
    read_predictions,
    reliability,
    seen_cells,
)
from nuclass.evaluation.truth import score_study


def sample(seed: int, n: int = 300, c: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, c - 1, n)
    z = rng.normal(size=(n, c))
    z[np.arange(n), y] += 1
    return y, np.exp(z) / np.exp(z).sum(1, keepdims=True)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_metrics_agree_with_sklearn(seed: int) -> None:
    y, p = sample(seed)
    classes = list("abcde")
    found = metrics(y, p, classes)
    call = p.argmax(1)
    present = np.unique(y)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, call))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(y, call, labels=present, average="macro"))
    assert found["log_loss"] == pytest.approx(sk.log_loss(y, p, labels=range(5)))
    assert found["top2_accuracy"] == pytest.approx(
        np.mean([t in np.argsort(q)[-2:] for t, q in zip(y, p, strict=True)])
    )
    assert found["brier"] == pytest.approx(((p - np.eye(5)[y]) ** 2).sum(1).mean())
    each = [sk.roc_auc_score(y == k, p[:, k]) for k in present]
    assert found["auroc_macro"] == pytest.approx(np.mean(each))
    table = per_class(y, p, classes)
    expected = sk.precision_recall_fscore_support(y, call, labels=range(5), zero_division=0)
    np.testing.assert_allclose(table["recall"].fillna(0), expected[1])
    np.testing.assert_array_equal(table["support"], expected[3])
    assert table["support"].iloc[4] == 0
    assert np.isnan(table["f1"].iloc[4])


def test_closed_set_never_leaves_the_present_classes_and_flatters() -> None:
    y, p = sample(1)
    p = p.copy()
    p[:, 4] += 1.0
    p /= p.sum(1, keepdims=True)
    found = metrics(y, p, list("abcde"))
    assert found["accuracy"] < 0.2 < found["closed_set"]["accuracy"]
    assert found["closed_set"]["classes"] == list("abcd")


def test_macro_runs_over_classes_with_enough_cells() -> None:
    y = np.array([0] * 50 + [1] * 50 + [2] * 3)
    p = np.full((103, 3), 0.1)
    p[np.arange(103), np.minimum(y, 1)] = 0.8
    found = metrics(y, p, ["a", "b", "c"], min_support=20)
    assert found["macro_classes"] == ["a", "b"]
    assert found["macro_f1"] > found["macro_f1_all_present"]
    assert np.isnan(metrics(y, p, ["a", "b", "c"], min_support=500)["macro_f1"])


def test_confusion_counts_and_rates() -> None:
    table = confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), ["a", "b", "c"])
    wide = table.pivot(index="true", columns="predicted", values="cells")
    assert wide.loc["a"].tolist() == [1, 1, 0]
    rates = table.pivot(index="true", columns="predicted", values="rate")
    assert rates.loc["a"].tolist() == [0.5, 0.5, 0.0]
    assert rates.loc["c"].isna().all()


def test_ece_by_hand_and_on_calibrated_data() -> None:
    y = np.array([0, 0, 1, 1])
    p = np.array([[0.9, 0.1]] * 4)
    assert ece(y, p) == pytest.approx(0.4)
    assert ece(y, p, equal_mass=True, bins=2) == pytest.approx(0.4), "equally sure cells stay together"
    q = np.array([[0.8, 0.2], [0.8, 0.2], [0.9, 0.1], [0.9, 0.1]])
    assert ece(y, q, equal_mass=True, bins=2) == pytest.approx(0.5 * 0.2 + 0.5 * 0.9)
    rng = np.random.default_rng(0)
    q = rng.dirichlet(np.ones(4), 60_000)
    drawn = (q.cumsum(1) > rng.random((60_000, 1))).argmax(1)
    assert ece(drawn, q) < 0.01
    assert ece(drawn, q, equal_mass=True) < 0.01
    assert reliability(drawn, q)["cells"].sum() == 60_000


def test_branches_and_gate() -> None:
    y = np.array([0, 0, 1, 1])
    a = np.array([[0.9, 0.1], [0.2, 0.8], [0.2, 0.8], [0.7, 0.3]])
    b = np.array([[0.8, 0.2], [0.7, 0.3], [0.9, 0.1], [0.6, 0.4]])
    g = np.array([0.5, 0.9, 0.1, 0.5])
    fused = (1 - g[:, None]) * a + g[:, None] * b
    found = branches(y, a, b, fused, g)
    assert (found["A_only"], found["B_only"], found["both"], found["neither"]) == (1, 1, 1, 1)
    assert found["scores"]["oracle"]["accuracy"] == 0.75
    assert found["scores"]["fused"]["accuracy"] == 0.75
    assert found["gate_auroc"] == 1.0
    assert np.isnan(gate_auroc(y, a, a, g))


@pytest.mark.parametrize("bad", [np.array([[0.5, 0.6]]), np.array([[np.nan, 1.0]]), np.array([[1.2, -0.2]])])
def test_invalid_probabilities_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(UserError, match="not valid"):
        metrics(np.array([0]), bad, ["a", "b"])
    with pytest.raises(UserError, match="fit together"):
        metrics(np.array([], dtype=int), np.zeros((0, 2)), ["a", "b"])


def checkpoint(path: Path, train: dict[str, list[str]]) -> Path:
    import torch

    cells = {slide: {"train": ids, "val": [f"{ids[0]}-val"]} for slide, ids in train.items()}
    torch.save({"format": 1, "cells": cells, "state": {"w": torch.zeros(3), "h": torch.zeros(2).half()}}, path)
    return path


def test_evaluate_model_writes_every_file(tmp_path: Path) -> None:
    paths = write_predictions(tmp_path / "p", n=400)
    best = checkpoint(tmp_path / "best.ckpt", {"ovary_1": ["x"]})
    out = tmp_path / "out"
    files = list(paths["gate"].values())
    evaluate_model(files, out, model="gate", cohort="all", checkpoint=best, patients={"ovary_h": "P2", "ovary_1": "P1"})
    summary = json.loads((out / "metrics.json").read_text())
    arrays = {f.stem: np.load(f) for f in out.glob("*.npy")}
    assert set(arrays) == {"embeddings", "logits", "probs", "labels", "preds", "cell_ids", "slides", "gates"}
    assert {len(a) for a in arrays.values()} == {1200}
    assert summary["accuracy"] == pytest.approx((arrays["labels"] == arrays["preds"]).mean())
    assert summary["ece"] < summary["before_calibration"]["ece"]
    assert pd.read_csv(out / "confusion.csv")["cells"].sum() == 1200
    first = pd.read_parquet(files[0])
    assert arrays["cell_ids"][:400].tolist() == first["cell_id"].tolist()


def test_a_leak_is_an_error(tmp_path: Path) -> None:
    paths = write_predictions(tmp_path / "p", n=200)
    table = read_predictions([paths["gate"]["lung_h"]]).table
    cell = table["cell_id"].iloc[0]
    seen = seen_cells(checkpoint(tmp_path / "a.ckpt", {"lung_h": [cell]}))
    with pytest.raises(UserError, match="1 evaluated cells are among"):
        check_no_overlap(table, seen)
    seen = seen_cells(checkpoint(tmp_path / "b.ckpt", {"lung_h": ["another"]}))
    with pytest.raises(UserError, match="training slides"):
        check_no_overlap(table, seen)
    seen = seen_cells(checkpoint(tmp_path / "c.ckpt", {"lung_1": [cell]}))
    check_no_overlap(table, seen, patients={"lung_1": "P1", "lung_h": "P2"})
    with pytest.raises(UserError, match="patient"):
        check_no_overlap(table, seen, patients={"lung_1": "P1", "lung_h": "P1"})
    import torch

    torch.save({"state_dict": {}}, tmp_path / "d.ckpt")
    with pytest.raises(UserError, match="does not say"):
        seen_cells(tmp_path / "d.ckpt")
    torch.save({"cells": {"a": {}}, "odd": Path("x")}, tmp_path / "e.ckpt")
    (tmp_path / "f.ckpt").write_text("no zip")
    for name in ("e.ckpt", "f.ckpt"):
        with pytest.raises(UserError, match="not a checkpoint"):
            seen_cells(tmp_path / name)


def test_bad_prediction_tables(tmp_path: Path) -> None:
    paths = write_predictions(tmp_path / "p", n=100)
    path = paths["local"]["lung_h"]
    table = pd.read_parquet(path)
    table["label"] = "Monocyte"
    table.to_parquet(path)
    with pytest.raises(UserError, match="No cell to evaluate"):
        read_predictions([path])
    table.loc[3, "label"] = CLASSES[0]
    table.to_parquet(path)
    assert read_predictions([path]).outside == {"Monocyte": 99}
    with pytest.raises(UserError, match="different cells"):
        read_models({m: [paths[m]["lung_h"]] for m in ("gate", "local")})
    with pytest.raises(UserError, match="twice"):
        read_predictions([path, path])
    with pytest.raises(UserError, match="missing"):
        read_predictions([tmp_path / "none.parquet"])
    table.drop(columns="slide").to_parquet(path)
    with pytest.raises(UserError, match="lacks columns"):
        read_predictions([path])


def test_counts_of_the_dataset(tmp_path: Path) -> None:
    slides = write_slides(tmp_path, n=150)
    composition, quality = count_cells(slides["labels"], slides["splits"], slide_sheet())
    assert composition["cells"].sum() == quality["labelled"].sum()
    assert (quality[["labelled", "abstained", "dropped"]].sum(axis=1) == quality["cells"]).all()
    assert set(composition.loc[composition["role"] == "cohort", "split"]) == {"test"}


def test_scores_against_the_truth(tmp_path: Path) -> None:
    paths = write_predictions(tmp_path / "p", n=500)
    slides = write_slides(tmp_path / "s", n=500)
    write_truth(tmp_path / "t", n=500)
    scores = score_study(
        labels=slides["labels"],
        predictions=paths,
        cells=slides["cells"],
        alignments=slides["alignment"],
        truth_folder=tmp_path / "t",
        mpp=0.25,
        window=224,
        evaluation={"block_um": 150, "bootstrap": 100, "seed": 1, "ece_bins": 15, "min_support": 5},
    )
    assert scores["geometry"]["offset_max_px"] == pytest.approx(np.hypot(0.3, 0.2) * 0.2738 / 0.25, abs=1e-6)
    assert scores["geometry"]["scale_error_max"] == pytest.approx(2e-4, rel=1e-3)
    assert 0.93 < scores["labels"]["all"]["macro_f1"] < 1
    assert scores["models"]["truth"]["models"]["fused"]["accuracy"]["value"] > 0.8
    table = scores["criteria"].set_index("criterion")
    assert table["met"].dtype == bool
    assert table.filter(like="surroundings", axis=0)["met"].all()
