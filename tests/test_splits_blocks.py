"""Blocks, folds and given splits: balanced, reproducible, complete, and chosen where they suit."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest

from nuclass.core.errors import UserError
from nuclass.splits import SplitConfig, rate, read_cells, split_cells
from nuclass.splits.blocks import Blocks
from peak_memory import held, measured
from split_example import large_slide, make_slide

PARTS = ("train", "val", "test")


@pytest.fixture(scope="module")
def slide():
    return large_slide(40_000)


def cut(slide, **settings):
    return split_cells(*slide, SplitConfig(**{"test": 0.0, **settings}), "train", "lung_1")


def used_share(report, name):
    return report["labelled"][name] / sum(report["labelled"].get(part, 0) for part in PARTS)


def test_auto_takes_blocks_for_large_slides_and_bands_for_small_ones(slide, caplog):
    assert cut(slide).report["layout"] == "blocks"
    caplog.set_level(logging.INFO)
    small = cut(make_slide())
    assert small.report["layout"] == "bands"
    assert "blocks of 1500 um are well filled, 12 are needed" in small.report["no_blocks"]
    assert small.report["no_blocks"] in caplog.text
    asked = cut(make_slide(), layout="bands")
    pd.testing.assert_frame_equal(small.frame, asked.frame)
    assert "no_blocks" not in asked.report
    # Folds need more blocks, and auto never stops over blocks that do not suit.
    assert cut(slide, folds=40).report["layout"] == "bands"
    assert "narrower than two buffers" in cut(slide, block_um=400).report["no_blocks"]
    assert "in the buffer" in cut(slide, folds=5, max_buffer_share=0.03).report["no_blocks"]


@pytest.mark.parametrize("test", [0.0, 0.1])
def test_blocks_come_near_the_wish(slide, test):
    report = cut(slide, test=test, layout="blocks").report
    assert used_share(report, "val") == pytest.approx(0.2, abs=0.03)
    if test:
        assert used_share(report, "test") == pytest.approx(0.1, abs=0.03)
    assert report["absent_classes"]["train"] == report["absent_classes"]["val"] == []
    assert report["buffer_share"] < (0.16 if test else 0.11)
    named = [name for *_, name in report["grid"]["blocks"]]
    assert set(named) == set(PARTS if test else PARTS[:2])


def unbalance(classes, split, labelled, total):
    """Mean distance of a class's share in val from that of all classes, as a ratio's logarithm."""
    share = np.array([((classes == name) & (split == "val") & labelled).sum() for name in total.index]) / total
    return float(np.abs(np.log((share + 1e-3) / 0.2)).mean())


def test_classes_are_better_balanced_than_in_random_blocks(slide):
    cells, labels = slide
    labelled, classes = (labels["status"] == "labelled").to_numpy(), labels["class"].to_numpy()
    total = labels.loc[labelled, "class"].value_counts()
    total = total[total >= 20]
    config = SplitConfig(test=0.0, layout="blocks")
    blocks = Blocks(cells[["x_px", "y_px"]].to_numpy(), np.ones(len(cells), bool), labelled, classes, config)
    rng = np.random.default_rng(0)
    random, lost = [], []
    for _ in range(60):
        order = rng.permutation(len(blocks.where))
        enough = int(np.searchsorted(np.cumsum(blocks.cells[order]), 0.2 * blocks.cells.sum())) + 1
        dealt = np.zeros(len(order), np.int64)
        dealt[order[:enough]] = 1
        split = blocks.assign(dealt)
        random.append(unbalance(classes, split, labelled, total))
        lost.append((split == "buffer").mean())
    found = cut(slide, layout="blocks")
    own = unbalance(classes, found.frame["split"].to_numpy(), labelled, total)
    assert own < np.min(random)
    assert own < 0.6 * np.median(random)
    assert found.report["buffer_share"] < np.quantile(lost, 0.25)


def test_the_search_weighs_the_cells_that_the_buffer_costs(slide, monkeypatch):
    weighed = [cut(slide, layout="blocks", seed=seed).report["buffer_share"] for seed in range(3)]
    monkeypatch.setattr(rate, "_LOST", 0.0)
    blind = [cut(slide, layout="blocks", seed=seed).report["buffer_share"] for seed in range(3)]
    assert np.mean(weighed) < 0.9 * np.mean(blind)


def test_a_rare_class_in_two_places_goes_to_train_and_to_val(slide):
    cells, labels = slide[0], slide[1].copy()
    labels["class"] = np.where(labels["status"] == "labelled", "K0", "")
    for x, y in ((10_000, 20_000), (70_000, 20_000)):
        near = np.hypot(cells["x_px"] - x, cells["y_px"] - y).to_numpy().argsort()[:30]
        labels.loc[near, ["class", "status"]] = ["Rare", "labelled"]
    for seed in range(3):
        report = split_cells(cells, labels, SplitConfig(test=0.0, seed=seed), "train").report
        assert report["absent_classes"] == {"train": [], "val": []}


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({"layout": "blocks"}, 0.05),
        ({"block_um": 2500, "folds": 3}, 0.05),
        ({"layout": "bands", "folds": 3}, 0.0),
    ],
)
def test_seeds_give_different_and_reproducible_cuts(slide, settings, least):
    first, again, other = (cut(slide, seed=seed, **settings).frame for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert (first["split"] != other["split"]).mean() > least
    shuffled = split_cells(
        slide[0],
        slide[1].sample(frac=1, random_state=3),
        SplitConfig(**{"test": 0.0, "seed": 1, **settings}),
        "train",
    )
    pd.testing.assert_frame_equal(first, shuffled.frame)


@pytest.mark.parametrize(("layout", "folds"), [("blocks", 2), ("blocks", 5), ("bands", 2), ("bands", 4)])
def test_every_labelled_cell_is_validated_on_in_exactly_one_fold(slide, layout, folds):
    labelled = (slide[1]["status"] == "labelled").to_numpy()
    runs = [cut(slide, layout=layout, block_um=2200, folds=folds, fold=fold + 1) for fold in range(folds)]
    held = np.stack([(run.frame["split"] == "val").to_numpy() for run in runs])
    assert (held[:, labelled].sum(axis=0) == 1).all()
    for run, val in zip(runs, held, strict=True):
        report = run.report
        assert report["folds"] == folds
        assert val[labelled].mean() == pytest.approx(1 / folds, abs=0.06)
        assert report["absent_classes"] == {"train": [], "val": []}
        assert "test" not in report["cells"]
        # Where the folds lie depends on the seed alone, not on the fold asked for.
        for key in ("grid", "cuts_px"):
            assert report.get(key) == runs[0].report.get(key)
    assert len({run.report["fold"] for run in runs}) == folds


def test_folds_of_a_small_slide_are_bands():
    cells, labels = make_slide()
    labelled = (labels["status"] == "labelled").to_numpy()
    runs = [split_cells(cells, labels, SplitConfig(test=0.0, folds=3, fold=i), "train") for i in (1, 2, 3)]
    assert (sum((run.frame["split"] == "val").to_numpy().astype(int) for run in runs)[labelled] == 1).all()
    with pytest.raises(UserError, match="too short to be cut"):
        split_cells(*make_slide(width=3000, height=1000), SplitConfig(test=0.0, folds=3), "train", "tiny_1")


def test_cells_without_a_place_or_a_label_are_not_lost(slide):
    cells, labels = slide[0].copy(), slide[1]
    cells.loc[[3, 5], ["x_px", "y_px"]] = np.nan
    # Far off the labelled tissue: cells of the outermost blocks, wherever they lie.
    cells.loc[7, ["x_px", "y_px"]] = [-50_000.0, 10.0]
    labels = labels.copy()
    labels.loc[7, ["class", "status"]] = ["", "abstained"]
    split = split_cells(cells, labels, SplitConfig(test=0.0, layout="blocks"), "train")
    assert (split.frame["split"][[3, 5]] == "buffer").all()
    assert split.frame["split"][7] in ("train", "val", "buffer")
    assert sum(split.report["cells"].values()) == len(cells)


@pytest.mark.parametrize(
    ("slide_settings", "settings", "told"),
    [
        ({"width": 3000, "height": 2000}, {"layout": "blocks"}, r"too few blocks[\s\S]*tiny_1[\s\S]*at least 2"),
        ({}, {"layout": "blocks", "max_buffer_share": 0.02}, r"cannot be cut into blocks[\s\S]*in the buffer"),
    ],
)
def test_slides_that_blocks_do_not_suit(slide_settings, settings, told):
    cells, labels = make_slide(**slide_settings)
    with pytest.raises(UserError, match=told):
        split_cells(cells, labels, SplitConfig(**{"test": 0.0, **settings}), "train", "tiny_1")


def test_every_fault_of_the_settings_is_told_at_once():
    with pytest.raises(UserError, match=r"2 faults[\s\S]*block_um is too small[\s\S]*more than 512\.5 um") as caught:
        SplitConfig(layout="blocks", block_um=500, folds=3, fold=1, test=0.1)
    assert "splits.test must be 0 with splits.folds" in str(caught.value)


def memory_of_a_split(n):
    slide = large_slide(n)
    split, peak, _ = held(lambda: cut(slide, layout="blocks"))
    return len(slide[0]), split.report["margin_px"], peak


@pytest.mark.slow
def test_half_a_million_cells_in_bounded_memory():
    cells, margin_px, peak = measured(memory_of_a_split, 500_000)
    assert cells == 500_000
    assert margin_px >= 0
    assert peak / 2**20 < 500


def given_slide(**columns):
    cells, labels = make_slide()
    box = cells["x_px"].between(3000, 5500)
    return cells.assign(given_split=np.where(box, "val", "train"), **columns), labels


def test_a_given_split_is_kept_but_for_training_cells_near_validation():
    cells, labels = given_slide()
    split = split_cells(cells, labels, SplitConfig(), "train", "lung_1")
    report, names = split.report, split.frame["split"]
    assert report["layout"] == "given"
    assert (names[cells["given_split"] == "val"] == "val").all()
    near = (cells["x_px"] > 3000 - 1000) & (cells["x_px"] < 5500 + 1000)
    assert set(names[near & (cells["given_split"] == "train")]) <= {"buffer", "train"}
    assert report["moved_to_buffer"]["train"] == (names == "buffer").sum() > 300
    assert 0 <= report["margin_px"] < 30
    assert report["overlapping_cells"] == {}


def test_a_given_split_under_the_released_protocol_is_kept_whole():
    cells, labels = given_slide()
    split = split_cells(cells, labels, SplitConfig(no_buffer=True), "train")
    assert (split.frame["split"] == cells["given_split"]).all()
    assert split.report["overlapping_cells"]["train-val"] > 100
    assert split.report["margin_px"] < 0


def test_given_splits_that_are_odd(caplog):
    cells, labels = given_slide()
    cohort = split_cells(cells, labels, SplitConfig(), "cohort")
    assert set(cohort.frame["split"]) == {"test"}
    without = split_cells(cells.assign(given_split=""), labels, SplitConfig(), "train")
    plain = split_cells(cells.drop(columns="given_split"), labels, SplitConfig(), "train")
    pd.testing.assert_frame_equal(without.frame, plain.frame)
    assert without.report["layout"] == "bands"
    some = cells.assign(given_split=np.where(cells.index < 100, "", cells["given_split"]))
    split = split_cells(some, labels, SplitConfig(), "train")
    assert (split.frame["split"][:100] == "buffer").all()
    assert split.report["without_split"] == 100
    only = split_cells(cells.assign(given_split="train"), labels, SplitConfig(test=0.0, folds=3), "train")
    assert set(only.frame["split"]) == {"train"}
    assert only.report["margin_px"] is None
    assert "folds" not in only.report
    assert "leaves no cell in val" in caplog.text
    assert "splits.folds does not apply" in caplog.text
    with pytest.raises(UserError, match=r"not known[\s\S]*lung_1[\s\S]*valid"):
        split_cells(cells.assign(given_split="valid"), labels, SplitConfig(), "train", "lung_1")


def test_the_column_is_read_where_there_is_one(tmp_path):
    cells, _ = given_slide()
    cells.assign(more=1).to_parquet(tmp_path / "with.parquet")
    cells.drop(columns="given_split").to_parquet(tmp_path / "without.parquet")
    assert list(read_cells(tmp_path / "with.parquet")) == ["cell_id", "x_px", "y_px", "given_split"]
    assert list(read_cells(tmp_path / "without.parquet")) == ["cell_id", "x_px", "y_px"]
