"""What is written for a model and cohort, what is refused, and what is told of cells that cannot be judged."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fake_study import CLASSES, ORGANS, TRAINING, slide_sheet, write_predictions, write_slides
from nuclass.core.errors import UserError
from nuclass.core.files import read_json
from nuclass.core.names import probability_columns
from nuclass.evaluation import compare_cohorts, confusion, count_cells, evaluate_model, read_predictions
from nuclass.evaluation.cohort import Rules
from nuclass.evaluation.compare import check_models
from nuclass.evaluation.leak import check_no_overlap, check_same_study, check_study, read_seen
from nuclass.evaluation.metrics import read_as

PATIENTS = {slide: f"P-{slide}" for slide in {**TRAINING, **ORGANS}}
RULES = Rules(min_support=5, draws=60, region_um=400)


def checkpoint(path: Path, **changes: object) -> Path:
    """A checkpoint of the fake study."""
    cells = {slide: {"train": [f"{slide}-1", f"{slide}-2"], "val": [f"{slide}-3"]} for slide in TRAINING}
    data = {"format": 2, "cells": cells, "classes": list(CLASSES), "mpp": 0.25, "slides": TRAINING, "protocol": {}}
    data |= {"organs": sorted({*TRAINING.values(), "unknown"})}
    torch.save({**data, **changes}, path)
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_predictions(folder / "predictions", n=300)
    slides = write_slides(folder, n=300)
    count_cells(slides["labels"], slides["splits"], slide_sheet())[0].to_csv(folder / "composition.csv", index=False)
    checkpoint(folder / "best.ckpt")
    return folder


def tables(study: Path, model: str = "gate") -> list[Path]:
    return [study / "predictions" / model / f"{slide}.parquet" for slide in ORGANS]


def run(study: Path, out: Path, **options: object) -> dict[str, object]:
    settings = {"model": "gate", "cohort": "all", "checkpoint": study / "best.ckpt", "rules": RULES}
    return evaluate_model(tables(study), out, **{**settings, **options})


@pytest.fixture(scope="module", params=[False, True], ids=["open", "closed"])
def evaluated(study: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    out = tmp_path_factory.mktemp("out")
    rules = Rules(min_support=5, draws=60, region_um=400, closed_set=request.param)
    run(study, out, rules=rules, patients=PATIENTS, training=TRAINING, composition=study / "composition.csv")
    return out


def test_the_files_of_a_cohort_agree(evaluated: Path) -> None:
    told = read_json(evaluated / "metrics.json")
    arrays = {file.stem: np.load(file) for file in evaluated.glob("*.npy")}
    assert set(arrays) == {"embeddings", "logits", "probs", "labels", "preds", "cell_ids", "slides", "gates"}
    assert {len(a) for a in arrays.values()} == {900}
    np.testing.assert_array_equal(arrays["probs"].argmax(1), arrays["preds"])
    assert told["accuracy"] == pytest.approx((arrays["preds"] == arrays["labels"]).mean())
    table = pd.read_csv(evaluated / "per_class.csv")
    assert table["support"].sum() == 900
    assert ((table["f1_low"] <= table["f1"]) & (table["f1"] <= table["f1_high"])).all()
    assert ((table["blocks"] >= 1) & (table["blocks"] <= table["support"])).all()
    assert table["blocks"].max() <= told["intervals"]["blocks"]
    saved = pd.read_csv(evaluated / "confusion.csv")
    pd.testing.assert_frame_equal(saved, confusion(arrays["labels"], arrays["preds"], CLASSES))
    for name in (
        "accuracy",
        "macro_f1",
        "weighted_f1",
        "balanced_accuracy",
        "log_loss",
        "brier",
        "top2_accuracy",
        "ece",
    ):
        interval = told["intervals"][name]
        assert interval["value"] == pytest.approx(told[name], abs=1e-6)
        assert interval["low"] < interval["high"]
    assert told["before_calibration"]["ece"] > told["ece"]
    assert told["risk"]["accuracy_at"]["0.5"] > told["accuracy"]
    curve = pd.read_csv(evaluated / "risk_coverage.csv")
    assert curve["accuracy"].iloc[-1] == pytest.approx(told["accuracy"])


def test_organs_regions_and_baselines(evaluated: Path, study: Path) -> None:
    told = read_json(evaluated / "metrics.json")
    organs = pd.read_csv(evaluated / "organs.csv").set_index("organ")
    assert organs.index.tolist() == ["lung", "ovary", "pancreas"]
    assert organs["cells"].tolist() == [300] * 3
    one = read_predictions([study / "predictions" / "gate" / "lung_h.parquet"])
    call = read_as(one.y, one.probs, closed=told["set"] == "closed").argmax(1)
    assert organs.loc["lung", "accuracy"] == pytest.approx((call == one.y).mean())
    assert np.average(organs["accuracy"], weights=organs["cells"]) >= told["accuracy"] - 1e-9
    regions = pd.read_csv(evaluated / "regions.csv")
    assert regions["cells"].sum() + told["regions"]["cells_left_out"] == 900
    assert (regions["cells"] >= 20).all()
    prior, majority = told["baselines"]["organ_prior"], told["baselines"]["majority"]
    assert prior["log_loss"] < majority["log_loss"] < 4
    assert told["accuracy"] > max(prior["accuracy"], majority["accuracy"]) > 0.1


def test_the_originals_files_are_of_the_closed_set(evaluated: Path) -> None:
    told = read_json(evaluated / "metrics.json")
    used = read_json(evaluated / "class_names_used.json")
    assert used == told["closed_set"]["classes"]
    f1 = pd.read_csv(evaluated / "aligned_per_class_f1.csv")
    recall = pd.read_csv(evaluated / "aligned_per_class_acc.csv")
    assert f1["class"].tolist() == recall["class"].tolist() == used
    assert np.average(recall["accuracy"], weights=recall["support"]) == pytest.approx(told["closed_set"]["accuracy"])
    assert np.average(f1["f1"], weights=f1["support"]) == pytest.approx(told["closed_set"]["weighted_f1"])


def test_a_class_that_does_not_occur_is_told_and_the_closed_set_gains_by_it(study, tmp_path, caplog) -> None:
    options = {"model": "local", "cohort": "lung_h", "checkpoint": None, "mpp": 0.25}
    paths = [study / "predictions" / "local" / "lung_h.parquet"]
    with caplog.at_level(logging.INFO):
        open_set = evaluate_model(paths, tmp_path / "a", rules=RULES, **options)
    closed = evaluate_model(paths, tmp_path / "b", rules=Rules(min_support=5, draws=60, closed_set=True), **options)
    assert open_set["absent_classes"] == ["Acinar", "Ductal"]
    assert "lung_h has no cell of Acinar, Ductal" in caplog.text
    assert (open_set["set"], closed["set"]) == ("open", "closed")
    assert closed["accuracy"] == open_set["closed_set"]["accuracy"] >= open_set["accuracy"]
    assert not {0, 2} & set(np.load(tmp_path / "b" / "preds.npy"))
    for name in ("aligned_per_class_f1.csv", "aligned_per_class_acc.csv"):
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "a" / name), pd.read_csv(tmp_path / "b" / name))
    by_class = pd.read_csv(tmp_path / "a" / "per_class.csv")
    assert (by_class["f1"] != by_class["f1_closed"]).sum() > 2
    gain = open_set["intervals"]["closed_minus_open"]["accuracy"]
    assert gain["value"] == pytest.approx(closed["accuracy"] - open_set["accuracy"])
    assert gain["low"] >= 0


def edited(study: Path, folder: Path, change: object) -> Path:
    """A prediction table with some labels changed, and its arrays."""
    path = folder / "gate" / "lung_h.parquet"
    path.parent.mkdir(parents=True)
    source = study / "predictions" / "gate" / "lung_h.parquet"
    table = pd.read_parquet(source)
    change(table)
    table.to_parquet(path)
    path.with_suffix(".h5").write_bytes(source.with_suffix(".h5").read_bytes())
    return path


def test_other_classes_and_cells_without_a_label_are_counted_apart(study, tmp_path, caplog) -> None:
    def change(table: pd.DataFrame) -> None:
        table.loc[:3, "label"] = ""
        table.loc[4:5, "label"] = None
        table.loc[6:8, "label"] = "Monocyte"

    path = edited(study, tmp_path, change)
    told = evaluate_model(
        [path], tmp_path / "out", model="gate", cohort="lung_h", checkpoint=None, mpp=0.25, rules=RULES
    )
    assert (told["unlabelled"], told["outside"], told["n_outside"], told["n_cells"]) == (6, {"Monocyte": 3}, 3, 291)
    assert len(np.load(tmp_path / "out" / "logits.npy")) == 291
    assert "3 cells are left out: their class is not one of the model's ({'Monocyte': 3})" in caplog.text
    assert "6 of 300 cells are left out: they have no label" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(index=table.index, inplace=True), "the prediction tables are empty"),
        (lambda table: table.__setitem__("label", ""), "No cell to evaluate has a label"),
        (lambda table: table.__setitem__("label", "Monocyte"), "has a class that the model knows"),
    ],
    ids=["empty", "unlabelled", "none in common"],
)
def test_nothing_to_judge_is_an_error(study, tmp_path, change, message) -> None:
    path = edited(study, tmp_path, change)
    with pytest.raises(UserError, match=message):
        evaluate_model([path], tmp_path / "out", model="gate", cohort="lung_h", checkpoint=None)
    assert not (tmp_path / "out").exists()


def test_an_empty_selection_is_an_error(tmp_path) -> None:
    with pytest.raises(UserError, match="No prediction table is given"):
        evaluate_model([], tmp_path / "out", model="gate", cohort="none", checkpoint=None)


def test_a_checkpoint_of_another_study_is_refused(study, tmp_path) -> None:
    def refused(message: str, **changes: object) -> None:
        file = checkpoint(tmp_path / "other.ckpt", **changes)
        with pytest.raises(UserError, match=message):
            run(study, tmp_path / "out", checkpoint=file, patients=PATIENTS, training=TRAINING)

    refused("other classes than the checkpoint", classes=[*CLASSES[:-1], "Neuron"])
    refused("another study: it was trained on slides", cells={"brain_1": {"train": ["a"], "val": ["b"]}})
    refused("another study: one of its training slides was of another organ", slides={**TRAINING, "lung_1": "liver"})
    refused("evaluated cells are among", cells={"lung_h": {"train": ["lu00005-1"], "val": []}}, slides={})
    check_study(read_seen(study / "best.ckpt"), TRAINING, checkpoint="best.ckpt")


def test_checkpoints_of_two_studies_are_not_compared(study, tmp_path) -> None:
    first = read_seen(study / "best.ckpt")
    check_same_study({"local": first, "gate": first})

    def refused(message: str, **changes: object) -> None:
        other = read_seen(checkpoint(tmp_path / "other.ckpt", **changes))
        with pytest.raises(UserError, match=message):
            check_same_study({"local": first, "gate": other})

    refused("differ in their classes", classes=list(CLASSES[::-1]))
    refused("differ in their organs", organs=["lung"])
    cells = {slide: {"train": [f"{slide}-1", f"{slide}-2"], "val": [f"{slide}-3"]} for slide in TRAINING}
    refused("differ in their training slides", cells={slide: cells[slide] for slide in list(cells)[:-1]})
    refused("their cells of a slide differ", cells=cells | {"lung_1": {"train": ["x", "y"], "val": ["lung_1-3"]}})
    paths = {
        model: {slide: study / "predictions" / model / f"{slide}.parquet" for slide in ORGANS}
        for model in ("gate", "local")
    }
    best = {"gate": study / "best.ckpt", "local": study / "best.ckpt"}
    check_models(paths, best, patients=PATIENTS, training=TRAINING)
    with pytest.raises(UserError, match="Two checkpoints of different studies"):
        check_models(paths, best | {"local": tmp_path / "other.ckpt"}, patients=PATIENTS)
    with pytest.raises(UserError, match="patient"):
        check_models(paths, best, patients={**PATIENTS, "lung_h": "P-colon_1"}, training=TRAINING)


def letters(number: int) -> str:
    """An id as Xenium gives it: eight letters a to p."""
    value = number * 2654435761 % 2**32
    return "".join("abcdefghijklmnop"[value >> shift & 15] for shift in range(28, -4, -4)) + "-1"


def test_the_same_cells_under_another_name_are_a_leak() -> None:
    ids = [letters(i) for i in range(400)]
    seen = {"train": {"lung_1": set(ids[:200])}, "val": {"lung_1": set(ids[200:250])}}
    own = pd.DataFrame({"slide": "lung_h", "cell_id": [letters(i) for i in range(1000, 1400)]})
    assert check_no_overlap(own, seen) == 0
    copy = pd.DataFrame({"slide": "lung_copy", "cell_id": ids})
    with pytest.raises(UserError, match="same cells under another slide's name") as caught:
        check_no_overlap(copy, seen)
    assert "250 of 400 cell ids are those of lung_1" in str(caught.value)
    chance = pd.concat([own, copy[:10].assign(slide="lung_h")])
    assert check_no_overlap(chance, seen) == 0
    # Ids that count are the same in any slide.
    numbers = [str(i) for i in range(400)]
    seen = {"train": {"lung_1": set(numbers[:200])}, "val": {}}
    assert check_no_overlap(pd.DataFrame({"slide": "lung_h", "cell_id": numbers}), seen) == 0


def test_the_rows_of_a_comparison(study, tmp_path) -> None:
    models = ("local", "global", "gate")
    paths = {model: {slide: study / "predictions" / model / f"{slide}.parquet" for slide in ORGANS} for model in models}
    other = {slide: tmp_path / "plip_linear" / f"{slide}.parquet" for slide in ORGANS}
    for slide, path in other.items():
        table = pd.read_parquet(paths["local"][slide]).drop(columns="confidence")
        table["confidence"] = 1.0
        path.parent.mkdir(exist_ok=True)
        table.sample(frac=1, random_state=0).to_parquet(path)
    results = compare_cohorts(
        {**paths, "plip_linear": other}, tmp_path / "c.json", tmp_path / "c.csv", out_organs=tmp_path / "o.csv",
        composition=study / "composition.csv", mpp=0.25, block_um=150, draws=60, seed=0, min_support=5,
    )  # fmt: skip
    rows = ["local", "global", "mean", "fused", "plip_linear", "majority", "organ_prior", "oracle"]
    assert list(results["all"]["models"]) == rows
    assert list(results["all"]["differences"]) == [f"fused-{name}" for name in rows if name not in ("fused", "oracle")]
    assert results["all"]["models"]["plip_linear"] == results["all"]["models"]["local"]
    told = read_json(tmp_path / "c.json")
    assert told["set"] == "open"
    assert list(told["organs"]) == ["lung", "ovary", "pancreas"]
    assert told["organs"]["lung"] == told["cohorts"]["lung_h"]
    organs = pd.read_csv(tmp_path / "o.csv")
    assert organs.columns[0] == "organ"
    cohorts = pd.read_csv(tmp_path / "c.csv")
    assert set(cohorts["name"]) == {*rows, *results["all"]["differences"]}


def test_a_closed_comparison_says_so_and_forces_every_row(study, tmp_path) -> None:
    models = ("local", "global", "gate")
    paths = {model: {"lung_h": study / "predictions" / model / "lung_h.parquet"} for model in models}
    options = {"composition": study / "composition.csv", "mpp": 0.25, "block_um": 150, "draws": 60, "seed": 0}
    found = {
        closed: compare_cohorts(paths, tmp_path / f"{closed}.json", tmp_path / "c.csv", closed_set=closed, **options)
        for closed in (False, True)
    }
    told = read_json(tmp_path / "True.json")
    assert told["set"] == "closed"
    assert told["options"]["closed_set"]
    assert "forced into the classes" in told["rule"]
    for name in ("local", "global", "mean", "fused", "oracle"):
        values = [found[closed]["lung_h"]["models"][name]["accuracy"]["value"] for closed in (False, True)]
        assert values[1] >= values[0]
    losses = [found[closed]["lung_h"]["models"]["fused"]["log_loss"]["value"] for closed in (False, True)]
    assert losses[1] < losses[0]
    p = pd.read_parquet(paths["local"]["lung_h"])[probability_columns(list(CLASSES))].to_numpy()
    present = [i for i, name in enumerate(CLASSES) if name not in ("Acinar", "Ductal")]
    call = np.array(CLASSES)[present][p[:, present].argmax(1)]
    labels = pd.read_parquet(paths["local"]["lung_h"])["label"]
    assert found[True]["lung_h"]["models"]["local"]["accuracy"]["value"] == pytest.approx((call == labels).mean())
