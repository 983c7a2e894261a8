"""Baselines on the toy study: frozen with a linear head, and fine-tuned."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from nuclass.core.errors import UserError
from nuclass.core.files import read_json, write_parquet
from nuclass.core.names import probability_columns
from nuclass.data import load_cells
from nuclass.data.features import read_features
from nuclass.data.study import Study
from nuclass.evaluation.leak import read_seen
from nuclass.evaluation.predictions import read_predictions
from nuclass.models.backbones import build_backbone
from nuclass.training import baselines
from nuclass.training.baselines import embed_baseline, predict_baselines, train_finetuned, train_linear
from nuclass.training.checkpoint import describe_checkpoint, load_checkpoint, restore_linear, restore_local
from nuclass.training.config import parse_models
from toy_study import CLASSES, RATES, RUN, SOFT, one_slide, write_toy

torch.set_num_threads(1)
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
MODELS: dict[str, Any] = {
    "baselines": {
        "plip": {"backbone": {"name": "timm:test_resnet", "input_px": 32}, "stand_in": True},
        "musk": {
            "backbone": {"name": "timm:vit_tiny_patch16_224", "input_px": 32, "kwargs": VIT},
            "organ": "concat",
            "organ_dim": 4,
            "stand_in": True,
        },
        "features": {"accelerator": "cpu", "precision": "32-true"},
        "linear": {"strengths": [1e-2, 1e-3, 1e-4], "beta": 0.0},
        "finetuned": {"optimizer": RATES, "trainer": RUN, "augment": SOFT, "organ_dropout": 0.1},
        "seed": 3,
    },
    "predict": {"batch_size": 64, "accelerator": "cpu"},
}
NAMES = ("plip", "musk")
TRAINING, HELD = ("lung_1", "colon_1"), ("lung_h", "liver_h")


def changed(**parts: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with other values in parts of the section."""
    models = copy.deepcopy(MODELS)
    for name, values in parts.items():
        models["baselines"][name] |= values
    return models


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return write_toy(tmp_path_factory.mktemp("baselines") / "results")


def feature_files(study: Study, name: str, slides: tuple[str, ...]) -> dict[str, Path]:
    return {slide: study.results / "features" / "baselines" / name / f"{slide}.h5" for slide in slides}


@pytest.fixture(scope="module")
def features(study: Study) -> dict[str, dict[str, Path]]:
    for name in NAMES:
        for slide in TRAINING + HELD:
            files = feature_files(study, name, (slide,))
            embed_baseline(MODELS, name, one_slide(study, slide), files, study.results / "work" / name)
    return {name: feature_files(study, name, TRAINING) for name in NAMES}


@pytest.fixture(scope="module")
def checkpoints(study, features) -> dict[str, Path]:
    made = {}
    for name in NAMES:
        for head in ("linear", "finetuned"):
            out, work = study.results / "models" / f"{name}_{head}", study.results / "work" / f"{name}_{head}"
            if head == "linear":
                train_linear(MODELS, name, study, features[name], out, work)
            else:
                train_finetuned(MODELS, name, study, out, work)
            made[f"{name}_{head}"] = out / "best.ckpt"
    return made


def held_out(study: Study) -> Study:
    rows = [{"slide": slide, "organ": slide.split("_")[0]} for slide in HELD]
    return Study(rows, study.results, study.mpp, study.windows)


def predicted(study: Study, checkpoints: dict[str, Path], out: Path, models: dict[str, Any] = MODELS):
    outputs = {name: {slide: out / name / f"{slide}.parquet" for slide in HELD} for name in checkpoints}
    cached = {name: feature_files(study, name, HELD) for name in NAMES}
    predict_baselines(models, held_out(study), checkpoints, cached, outputs, out / "work")
    return outputs


def test_a_baseline_is_four_files_that_evaluation_can_read(checkpoints):
    for name, path in checkpoints.items():
        files = {file.name for file in path.parent.iterdir()}
        assert files == {"best.ckpt", "metrics.json", "history.csv", "calibration.json"}, name
        seen = read_seen(path)
        assert seen.classes == tuple(sorted(CLASSES))
        assert set(seen.cells["train"]) == set(TRAINING)
        assert seen.protocol == ()
        told = describe_checkpoint(path)
        assert told["temperature"] > 0
        assert told["organs"] == ["colon", "lung", "unknown"]
        data = load_checkpoint(path, "linear" if name.endswith("linear") else "local")
        assert data["baseline"] == {"name": name.split("_")[0], "stand_in": True}


def test_maps_explain_what_the_tables_say(study, checkpoints, tmp_path):
    from nuclass.interpret.baselines import compute_baseline_maps

    tuned = {name: checkpoints[f"{name}_finetuned"] for name in NAMES}
    outputs = predicted(study, {f"{name}_finetuned": path for name, path in tuned.items()}, tmp_path)
    slides = {slide: one_slide(study, slide) for slide in HELD}
    files = {
        "windows": {slide: part.source(slide) for slide, part in slides.items()},
        "tables": {slide: study.results / "slides" / slide / "cells.parquet" for slide in HELD},
    }
    tables = {name: pd.concat(map(pd.read_parquet, outputs[f"{name}_finetuned"].values())) for name in NAMES}
    cells = tables["plip"].iloc[[0, 3, -1]].reset_index(drop=True)
    maps, found = compute_baseline_maps(cells, checkpoints=tuned, **files)
    assert list(maps) == ["plip_cam", "plip_cam_layer", "musk_cam", "musk_cam_layer"]
    for name in NAMES:
        told = tables[name].set_index(["slide", "cell_id"]).loc[pd.MultiIndex.from_frame(cells[["slide", "cell_id"]])]
        assert found[f"{name}_prediction"].tolist() == told["prediction"].tolist()
        assert np.allclose(found[f"{name}_probability"], told["confidence"], atol=1e-4)
        assert found[f"{name}_stand_in"].all()
        assert maps[f"{name}_cam"].shape == (3, 32, 32)
        assert re.fullmatch(r".+, \d+ × \d+", str(maps[f"{name}_cam_layer"]))
        assert 0 <= maps[f"{name}_cam"].min() <= maps[f"{name}_cam"].max() <= 1
    assert (maps["musk_cam"].max((1, 2)) == 1).all()
    nothing, alone = compute_baseline_maps(cells, checkpoints={}, **files)
    assert nothing == {}
    assert list(alone) == ["slide", "cell_id"]
    nothing, none = compute_baseline_maps(cells[:0], checkpoints=tuned, **files)
    assert nothing == {}
    assert len(none) == 0


def test_a_baseline_that_is_not_configured_is_told(caplog):
    from nuclass.interpret.baselines import tell_left_out

    tell_left_out(["plip", "loki"], ["plip", "loki"])
    assert not caplog.records
    tell_left_out(["plip", "loki", "musk"], ["loki"])
    assert "plip, musk" in caplog.text
    assert "loki" not in caplog.records[0].args[0]


def test_the_toy_is_learned(checkpoints):
    for name, path in checkpoints.items():
        metrics = read_json(path.parent / "metrics.json")
        assert metrics["val"]["f1_macro"] > 0.5, name


def test_the_linear_head_is_that_of_scikit_learn_on_the_cached_features(study, features, checkpoints):
    path = checkpoints["plip_linear"]
    strength = read_json(path.parent / "metrics.json")["strength"]
    frame = load_cells(study.slides, study.results, ("train",))
    x = np.concatenate(
        [
            read_features(features["plip"][slide], part["cell_id"].to_numpy())
            for slide, part in frame.groupby("slide", observed=True, sort=False)
        ]
    ).astype(float)
    y = pd.concat([part["class"] for _, part in frame.groupby("slide", observed=True, sort=False)]).astype(str)
    scaled = (x - x.mean(0)) / x.std(0).clip(1e-6)
    expected = LogisticRegression(C=1 / (strength * len(y)), tol=1e-8, max_iter=20_000).fit(scaled, y)
    data = load_checkpoint(path, "linear")
    out = restore_linear(data)(torch.from_numpy(x), torch.zeros(len(x), dtype=torch.long))
    assert list(expected.classes_) == list(data["classes"])
    assert np.allclose(out.logits.softmax(1).detach().numpy(), expected.predict_proba(scaled), atol=2e-3)


def test_val_alone_chooses_the_strength(checkpoints):
    history = pd.read_csv(checkpoints["musk_linear"].parent / "history.csv")
    assert history["strength"].tolist() == [1e-2, 1e-3, 1e-4]
    best = history.loc[history["val_f1_macro"].idxmax()]
    metrics = read_json(checkpoints["musk_linear"].parent / "metrics.json")
    assert metrics["strength"] == pytest.approx(best["strength"])
    assert metrics["val"]["f1_macro"] == pytest.approx(best["val_f1_macro"], rel=1e-5)


def test_neither_labels_nor_features_of_test_cells_change_the_linear_head(study, features, checkpoints, tmp_path):
    """Test cells of the training slides get features that are not numbers anyone could use, and another class."""
    spoilt = {slide: tmp_path / f"{slide}.h5" for slide in TRAINING}
    frame = load_cells(study.slides, study.results, ("test",))
    assert len(frame) > 20
    rows = []
    for row in study.slides:
        slide = row["slide"]
        spoilt[slide].write_bytes(features["plip"][slide].read_bytes())
        tests = frame.loc[frame["slide"] == slide, "cell_id"].tolist()
        with h5py.File(spoilt[slide], "r+") as file:
            at = np.isin(file["cell_id"].asstr()[:], tests)
            assert at.sum() == len(tests)
            values = file["features"][:]
            values[at] = 60_000.0
            file["features"][:] = values
        labels = pd.read_parquet(study.results / "labels" / slide / "labels.parquet")
        labels.loc[labels["cell_id"].isin(tests), "class"] = "Neuron"
        write_parquet(tmp_path / f"{slide}.parquet", labels)
        rows.append({**row, "labels": str(tmp_path / f"{slide}.parquet")})
    other = Study(rows, study.results, study.mpp, study.windows)
    train_linear(MODELS, "plip", other, spoilt, tmp_path / "out", tmp_path / "work")
    kept, again = (load_checkpoint(path, "linear") for path in (checkpoints["plip_linear"], tmp_path / "out/best.ckpt"))
    assert again["classes"] == kept["classes"]
    assert all(torch.equal(again["state"][name], value) for name, value in kept["state"].items())


def test_test_as_val_is_honoured_by_both(study, features, tmp_path):
    models = changed(finetuned={"trainer": {**RUN, "max_epochs": 1}}) | {"protocol": {"test_as_val": True}}
    train_linear(models, "plip", study, features["plip"], tmp_path / "linear", tmp_path / "w")
    train_finetuned(models, "plip", study, tmp_path / "finetuned", tmp_path / "v")
    tested = load_cells(study.slides, study.results, ("test",))
    for kind in ("linear", "finetuned"):
        seen = read_seen(tmp_path / kind / "best.ckpt")
        assert seen.protocol == ("test_as_val",)
        assert {cell for ids in seen.cells["val"].values() for cell in ids} == set(tested["cell_id"])


def test_features_that_do_not_fit_the_memory_give_the_same_and_are_cleared(study, features, checkpoints, tmp_path):
    work = tmp_path / "work"
    train_linear(changed(linear={"memory_mb": 0}), "plip", study, features["plip"], tmp_path / "out", work)
    held, mapped = (
        load_checkpoint(path, "linear") for path in (checkpoints["plip_linear"], tmp_path / "out/best.ckpt")
    )
    assert all(torch.equal(mapped["state"][name], value) for name, value in held["state"].items())
    assert not list(work.rglob("*.npy"))


def test_fine_tuning_changes_the_network_and_the_linear_head_has_none(study, checkpoints):
    for name in NAMES:
        torch.manual_seed(MODELS["baselines"]["seed"])
        start = build_backbone(MODELS["baselines"][name]["backbone"]).state_dict()
        data = load_checkpoint(checkpoints[f"{name}_finetuned"], "local")
        learned = [key for key in start if start[key].is_floating_point() and "running" not in key]
        moved = [key for key in learned if not torch.allclose(data["state"][f"backbone.{key}"], start[key], atol=1e-4)]
        assert len(moved) > len(learned) / 2, name
        linear = load_checkpoint(checkpoints[f"{name}_linear"], "linear")
        assert not any(key.startswith("backbone") for key in linear["state"])


def test_the_fine_tuned_head_is_layer_norm_and_one_linear_layer(checkpoints):
    model = restore_local(load_checkpoint(checkpoints["plip_finetuned"], "local"))
    assert model.film is None
    assert model.concat is None
    assert [type(part).__name__ for part in model.head] == ["Dropout", "Linear"]
    assert model.head[1].in_features == model.backbone.feature_dim
    musk = restore_local(load_checkpoint(checkpoints["musk_finetuned"], "local"))
    assert musk.concat.embedding.weight.shape == (3, 4)
    assert musk.head[1].in_features == musk.backbone.feature_dim + 4


def test_the_organ_counts_for_musk_alone(checkpoints):
    images = torch.rand(2, 3, 32, 32).repeat_interleave(2, 0)
    organ = torch.tensor([0, 1, 0, 1])
    for name, counts in (("plip", False), ("musk", True)):
        tuned = restore_local(load_checkpoint(checkpoints[f"{name}_finetuned"], "local"))
        linear = restore_linear(load_checkpoint(checkpoints[f"{name}_linear"], "linear"))
        with torch.no_grad():
            for logits in (tuned(images, organ).logits, linear(tuned.backbone(images), organ).logits):
                assert torch.allclose(logits[0], logits[1], atol=1e-6) == (not counts), name


def test_predictions_follow_the_contract(study, features, checkpoints, tmp_path):
    outputs = predicted(study, checkpoints, tmp_path)
    for name, paths in outputs.items():
        found = read_predictions(list(paths.values()))
        assert len(found.y) == 440, name
        for slide, path in paths.items():
            table = pd.read_parquet(path)
            assert set(table["slide"]) == {slide}
            assert np.allclose(table[probability_columns(sorted(CLASSES))].sum(axis=1), 1)
            with h5py.File(path.with_suffix(".h5")) as file:
                assert file["cell_id"].asstr()[:].tolist() == table["cell_id"].tolist()
                assert file["embeddings"].dtype == np.float16
                logits = torch.from_numpy(file["logits"][:])
            kind = "linear" if name.endswith("linear") else "local"
            scaled = logits / load_checkpoint(checkpoints[name], kind)["temperature"]
            assert np.allclose(table[probability_columns(sorted(CLASSES))], scaled.softmax(1), atol=1e-6)
        right = [(table["label"] == table["prediction"]).mean() for table in map(pd.read_parquet, paths.values())]
        assert np.mean(right) > 0.5, name


def test_the_first_organ_is_taken_for_cohorts_where_the_protocol_says_so(study, features, checkpoints, tmp_path):
    only = {name: path for name, path in checkpoints.items() if name.startswith("musk")}
    plain = predicted(study, only, tmp_path / "plain")
    first = predicted(study, only, tmp_path / "first", MODELS | {"protocol": {"first_organ": True}})
    for name in only:
        for slide in HELD:
            logits = []
            for outputs in (plain, first):
                with h5py.File(outputs[name][slide].with_suffix(".h5")) as file:
                    logits.append(file["logits"][:])
            assert not np.allclose(*logits), (name, slide)


def test_features_are_those_of_all_labelled_cells_and_leave_no_state(study, tmp_path):
    files = {"lung_1": tmp_path / "lung_1.h5"}
    cells = embed_baseline(MODELS, "plip", one_slide(study, "lung_1"), files, tmp_path / "work")
    labelled = load_cells(one_slide(study, "lung_1").slides, study.results, ("train", "val", "test"))
    assert cells == len(labelled)
    assert not list((tmp_path / "work").rglob("*.npy"))


def test_features_of_another_network_are_refused(study, features, checkpoints, tmp_path):
    models = changed()
    models["baselines"]["seed"] = 4
    files = {slide: tmp_path / f"{slide}.h5" for slide in HELD}
    for slide in HELD:
        embed_baseline(models, "plip", one_slide(study, slide), {slide: files[slide]}, tmp_path / "work")
    outputs = {"plip_linear": {slide: tmp_path / f"{slide}.parquet" for slide in HELD}}
    linear = {"plip_linear": checkpoints["plip_linear"]}
    with pytest.raises(UserError, match="Features do not fit the linear head") as caught:
        predict_baselines(MODELS, held_out(study), linear, {"plip": files}, outputs, tmp_path / "w")
    assert "sha256" in str(caught.value)
    mixed = {"lung_1": features["plip"]["lung_1"], "colon_1": files["lung_h"]}
    with pytest.raises(UserError, match="Features of two slides were made in different ways"):
        train_linear(MODELS, "plip", study, mixed, tmp_path / "out", tmp_path / "w")


def test_cells_that_were_trained_on_are_not_predicted(study, features, checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "VAL", "train")
    linear = {"plip_linear": checkpoints["plip_linear"]}
    outputs = {"plip_linear": {slide: tmp_path / f"{slide}.parquet" for slide in TRAINING}}
    with pytest.raises(UserError, match="used in training"):
        predict_baselines(MODELS, study, linear, features, outputs, tmp_path / "w")


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"plipp": {}}, ("baselines.plipp", "Did you mean 'plip'?")),
        ({"plip": {"organ": "none"}}, ("baselines.plip.backbone", "it names no network")),
        ({"plip": {"backbone": {"name": "plip", "weigths": "none"}}}, ("plip.backbone.weigths", "'weights'")),
        ({"musk": {"backbone": {"name": "musk"}, "organ": "film"}}, ("baselines.musk.organ", "concat | none")),
        ({"linear": {"strengths": []}}, ("baselines.linear.strengths", "no strength is named")),
        ({"linear": {"strengths": [0.1, 0]}}, ("baselines.linear.strengths[1]", "above 0")),
        ({"finetuned": {"trainer": {"devices": []}}}, ("baselines.finetuned.trainer.devices", "no device is named")),
    ],
)
def test_bad_settings_are_told(section, told):
    with pytest.raises(UserError) as caught:
        parse_models({"baselines": section})
    for part in told:
        assert part in str(caught.value)


def test_a_baseline_that_is_not_there_is_told(study, tmp_path):
    with pytest.raises(UserError, match="no baseline of this name") as caught:
        train_finetuned(MODELS, "muks", study, tmp_path, tmp_path)
    assert "Did you mean 'musk'?" in str(caught.value)
    with pytest.raises(UserError, match="the model file has no baselines"):
        train_finetuned({}, "musk", study, tmp_path, tmp_path)
