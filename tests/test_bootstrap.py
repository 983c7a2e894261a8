from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, log_loss

from fake_study import CLASSES, write_predictions
from nuclass.evaluation import bootstrap, compare_cohorts, metrics, paired_bootstrap, read_models, spatial_blocks
from nuclass.evaluation.bootstrap import Blocks, block_weights


def test_blocks_stay_within_their_slide() -> None:
    blocks = spatial_blocks(["a", "a", "b", "a"], np.array([10, 20, 10, 160]), np.zeros(4), 150)
    assert blocks.n == 3
    assert blocks.of_cell[0] == blocks.of_cell[1]
    assert len({blocks.of_cell[0], blocks.of_cell[2], blocks.of_cell[3]}) == 3
    weights = block_weights(blocks, 200, 0)
    for slide, count in (("a", 2), ("b", 1)):
        assert (weights[:, blocks.slide_of_block == slide].sum(axis=1) == count).all()


def test_values_equal_sklearn_and_draws_equal_real_resampling(tmp_path: Path) -> None:
    models = read_models({m: list(p.values()) for m, p in write_predictions(tmp_path, n=300).items()})
    y, table = models["gate"].y, models["gate"].table
    blocks = spatial_blocks(table["slide"], table["x_px"] * 0.25, table["y_px"] * 0.25, 300)
    probs = {name: found.probs for name, found in models.items()}
    found = paired_bootstrap(y, probs, blocks, CLASSES, pairs=[("gate", "local")], draws=60, seed=5)
    present = np.unique(y)
    for name, p in probs.items():
        value = found["models"][name]
        assert value["macro_f1"]["value"] == pytest.approx(
            f1_score(y, p.argmax(1), labels=present, average="macro"), abs=1e-6
        )
        assert value["log_loss"]["value"] == pytest.approx(log_loss(y, p, labels=range(len(CLASSES))), abs=1e-6)
    weights = block_weights(blocks, 60, 5)
    draws = []
    for row in weights.astype(int):
        cells = np.repeat(np.arange(len(y)), row[blocks.of_cell])
        draws.append(
            [
                f1_score(y[cells], p[cells].argmax(1), labels=np.unique(y[cells]), average="macro", zero_division=0)
                for p in (probs["gate"], probs["local"])
            ]
        )
    difference = np.subtract(*np.array(draws).T)
    low, high = np.percentile(difference, [2.5, 97.5])
    paired = found["differences"]["gate-local"]["macro_f1"]
    assert (paired["low"], paired["high"]) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))


def test_interval_covers_and_widens_with_correlated_blocks() -> None:
    rng = np.random.default_rng(2)
    hits, trials, p = 0, 120, 0.7
    for _ in range(trials):
        of_cell = np.repeat(np.arange(60), 10)
        rate = np.clip(rng.normal(p, 0.15, 60), 0, 1)
        right = rng.random(600) < rate[of_cell]
        y = np.zeros(600, dtype=int)
        result = paired_bootstrap(
            y,
            {"m": np.where(right, 0, 1)},
            Blocks(of_cell, np.array(["s"] * 60)),
            ["a", "b"],
            draws=200,
            seed=int(rng.integers(1e6)),
        )
        interval = result["models"]["m"]["accuracy"]
        hits += interval["low"] <= p <= interval["high"]
    assert hits / trials > 0.88


def test_a_thousand_draws_are_quick_and_repeatable(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 6000
    y = rng.integers(0, 16, n)
    models = {name: rng.dirichlet(np.ones(16), n) for name in "abc"}
    blocks = spatial_blocks(["s"] * n, rng.uniform(0, 3000, n), rng.uniform(0, 1500, n), 150)
    start = time.perf_counter()
    first = paired_bootstrap(y, models, blocks, [f"c{i}" for i in range(16)], pairs=[("a", "b")], draws=1000, seed=1)
    assert time.perf_counter() - start < 5
    again = paired_bootstrap(y, models, blocks, [f"c{i}" for i in range(16)], pairs=[("a", "b")], draws=1000, seed=1)
    assert first == again


def test_compare_writes_flat_table(tmp_path: Path) -> None:
    paths = write_predictions(tmp_path / "p", n=300)
    results = compare_cohorts(
        paths, tmp_path / "c.json", tmp_path / "c.csv", mpp=0.25, block_um=150, draws=100, seed=0, min_support=5
    )
    table = pd.read_csv(tmp_path / "c.csv", keep_default_na=False)
    row = table.query("cohort == 'all' and name == 'fused-local' and metric == 'macro_f1'").iloc[0]
    expected = results["all"]["models"]
    difference = expected["fused"]["macro_f1"]["value"] - expected["local"]["macro_f1"]["value"]
    assert float(row["value"]) == pytest.approx(difference)
    assert float(row["low"]) <= difference <= float(row["high"])
    assert set(table["name"]) == {
        "local",
        "global",
        "mean",
        "fused",
        "oracle",
        "fused-local",
        "fused-global",
        "fused-mean",
    }


def test_draws_do_not_depend_on_how_many_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    slides = np.repeat(["a", "b"], 300)
    blocks = spatial_blocks(slides, rng.uniform(0, 1000, 600), rng.uniform(0, 1000, 600), 150)
    y, p = rng.integers(0, 4, 600), rng.dirichlet(np.ones(4), 600)
    whole = paired_bootstrap(y, {"m": p}, blocks, list("abcd"), draws=50, seed=3)
    monkeypatch.setattr(bootstrap, "_CHUNK", 7 * blocks.n)
    parts = paired_bootstrap(y, {"m": p}, blocks, list("abcd"), draws=50, seed=3)
    for name, interval in whole["models"]["m"].items():
        if name not in ("f1", "groups"):
            assert parts["models"]["m"][name] == pytest.approx(interval, abs=1e-12)


def test_blocks_without_a_side_are_cells(caplog: pytest.LogCaptureFixture) -> None:
    blocks = spatial_blocks(["a", "b", "a"], np.zeros(3), np.zeros(3), 0)
    assert blocks.of_cell.tolist() == [0, 1, 2]
    assert blocks.slide_of_block.tolist() == ["a", "b", "a"]
    paired_bootstrap(np.array([0, 1, 0]), {"m": np.array([0, 1, 1])}, blocks, ["a", "b"], draws=5)
    assert "Intervals rest on 3 blocks only" in caplog.text


def test_soft_metrics_of_a_draw_equal_those_of_the_resampled_cells() -> None:
    rng = np.random.default_rng(4)
    y, p = rng.integers(0, 5, 400), rng.dirichlet(np.ones(6), 400)
    blocks = spatial_blocks(["s"] * 400, rng.uniform(0, 900, 400), rng.uniform(0, 900, 400), 150)
    found = paired_bootstrap(y, {"m": p}, blocks, list("abcdef"), draws=40, seed=2, bins=10)["models"]["m"]
    draws = []
    for row in block_weights(blocks, 40, 2).astype(int):
        cells = np.repeat(np.arange(400), row[blocks.of_cell])
        draws.append(metrics(y[cells], p[cells], list("abcdef"), bins=10, ranking=False))
    for name in ("weighted_f1", "balanced_accuracy", "top2_accuracy", "brier", "mean_confidence", "log_loss"):
        low, high = np.percentile([draw[name] for draw in draws], [2.5, 97.5])
        assert (found[name]["low"], found[name]["high"]) == (pytest.approx(low), pytest.approx(high)), name
    # Noise pushes the calibration error up, in each draw once more.
    errors = [draw["ece"] for draw in draws]
    bias = np.mean(errors) - found["ece"]["value"]
    low, high = np.percentile(errors, [2.5, 97.5]) - bias
    assert (found["ece"]["low"], found["ece"]["high"]) == (pytest.approx(max(low, 0)), pytest.approx(high))


def test_each_model_is_told_apart_from_the_best_of_each_statistic() -> None:
    rng = np.random.default_rng(6)
    y = rng.integers(0, 4, 500)
    shares = {"a": 0.1, "b": 0.3, "c": 0.2}
    models = {name: rng.dirichlet(np.ones(5), 500) + share * np.eye(5)[y] for name, share in shares.items()}
    models = {name: p / p.sum(axis=1, keepdims=True) for name, p in models.items()} | {"hard": y}
    blocks = spatial_blocks(["s"] * 500, rng.uniform(0, 900, 500), rng.uniform(0, 900, 500), 150)
    pairs = [(first, second) for first in "abc" for second in "abc" if first != second]
    found = paired_bootstrap(
        y, models, blocks, list("vwxyz"), pairs=pairs, groups={"both": ["v", "w"]}, ranked=["a", "b", "c"], draws=60
    )
    behind = found["behind"]
    assert set(behind) == {"a", "b", "c"}, "the hard one is right everywhere, and not ranked"
    for metric, lower in (("accuracy", False), ("macro_f1", False), ("log_loss", True), ("ece", True)):
        values = {name: found["models"][name][metric]["value"] for name in "abc"}
        best = (min if lower else max)(values, key=values.__getitem__)
        for name in "abc":
            gap = behind[name][metric]
            assert gap["best"] == best
            if name == best:
                assert (gap["value"], gap["low"], gap["high"]) == (0, 0, 0)
            else:
                assert {key: gap[key] for key in ("value", "low", "high")} == found["differences"][f"{name}-{best}"][
                    metric
                ]
    assert set(behind["a"]["f1"]) == set("vwxy"), "of a class without cells nothing is known"
    assert behind["a"]["groups"]["both"]["best"] in "abc"
    assert "mean_confidence" not in behind["a"], "more of it is neither better nor worse"
    assert paired_bootstrap(y, models, blocks, list("vwxyz"), draws=5)["behind"] == {}
