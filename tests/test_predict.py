"""Prediction of slides with all three models."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

import nuclass.data
from nuclass.core.errors import UserError
from nuclass.core.files import write_parquet
from nuclass.data import load_cells
from nuclass.data.study import Study
from nuclass.evaluation import evaluate_model
from nuclass.training.branches import Branches
from nuclass.training.predict import Predictor, predict_slide
from toy_study import CLASSES, MODELS, one_slide, toy

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return toy(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    return toy(tmp_path_factory)[1]


def test_predictions_follow_the_contract(trained, study, tmp_path):
    outputs = {name: tmp_path / name / "lung_h.parquet" for name in trained}
    counts = predict_slide(MODELS, one_slide(study, "lung_h"), trained, outputs)
    assert counts == {"test": 220}
    columns = ["cell_id", "slide", "organ", "split", "x_px", "y_px", "label", "prediction", "confidence"]
    for name, path in outputs.items():
        table = pd.read_parquet(path)
        p = table[[f"prob_{c}" for c in sorted(CLASSES)]].to_numpy()
        assert list(table.columns[:9]) == columns
        assert ("gate" in table) == (name == "gate")
        assert np.allclose(p.sum(1), 1)
        assert (np.array(sorted(CLASSES))[p.argmax(1)] == table["prediction"]).all()
        with h5py.File(path.with_suffix(".h5")) as file:
            assert file["cell_id"].asstr()[:].tolist() == table["cell_id"].tolist()
            assert file["embeddings"].dtype == np.float16
            assert file["logits"].shape == (220, 3)
    mixture = pd.read_parquet(outputs["gate"])
    assert mixture["gate"].between(0, 1).all()


def test_only_unseen_cells_of_a_training_slide_are_predicted(trained, study, tmp_path):
    outputs = {name: tmp_path / f"{name}.parquet" for name in trained}
    counts = predict_slide(MODELS, one_slide(study, "lung_1"), trained, outputs)
    assert set(counts) == {"val", "test"}


def test_an_organ_never_seen_is_typed_as_unknown(trained, study, tmp_path, caplog):
    outputs = {name: tmp_path / f"{name}.parquet" for name in trained}
    predict_slide(MODELS, one_slide(study, "liver_h"), trained, outputs)
    table = pd.read_parquet(outputs["local"])
    assert (table["organ"] == "liver").all()
    told = "cells are of the organ 'liver', which the models did not see (colon, lung); they take it as unknown"
    assert f"{len(table)} {told}" in caplog.text


@pytest.mark.parametrize("organ", [None, "", " ", float("nan"), "no key"])
def test_a_slide_without_an_organ_is_typed_as_unknown(trained, study, tmp_path, caplog, organ):
    row = {"slide": "liver_h"} if organ == "no key" else {"slide": "liver_h", "organ": organ}
    outputs = {name: tmp_path / f"{name}.parquet" for name in trained}
    predict_slide(MODELS, Study([row], study.results, study.mpp, study.windows), trained, outputs)
    assert (pd.read_parquet(outputs["local"])["organ"] == "unknown").all()
    assert "of the organ 'unknown'" in caplog.text
    other = {name: tmp_path / "liver" / f"{name}.parquet" for name in trained}
    predict_slide(MODELS, one_slide(study, "liver_h"), trained, other)
    probabilities = [pd.read_parquet(paths["local"]).filter(like="prob_") for paths in (outputs, other)]
    pd.testing.assert_frame_equal(*probabilities)


def test_a_known_organ_is_not_told(trained, study, tmp_path, caplog):
    predict_slide(MODELS, one_slide(study, "lung_h"), trained, {n: tmp_path / f"{n}.parquet" for n in trained})
    assert "organ" not in caplog.text


def test_classes_that_the_models_do_not_have_are_counted(trained, study, tmp_path, caplog):
    results = tmp_path / "results"
    (results / "labels" / "lung_h").mkdir(parents=True)
    for name in ("slides", "splits", "features"):
        (results / name).symlink_to(study.results / name)
    labels = pd.read_parquet(study.results / "labels" / "lung_h" / "labels.parquet")
    labels.loc[:4, "class"] = "Mast_Cell"
    labels.loc[5:6, "class"] = "Acinar"
    write_parquet(results / "labels" / "lung_h" / "labels.parquet", labels)
    other = Study([{"slide": "lung_h", "organ": "lung"}], results, study.mpp, study.windows)
    outputs = {name: tmp_path / f"{name}.parquet" for name in trained}
    predict_slide(MODELS, other, trained, outputs)
    told = "7 of 220 cells have a class that the models do not have, and get one of theirs: Mast_Cell 5, Acinar 2"
    assert told in caplog.text
    table = pd.read_parquet(outputs["gate"]).set_index("cell_id")
    assert table.loc[labels["cell_id"][0], "label"] == "Mast_Cell"
    assert set(table["prediction"]) <= set(CLASSES)


@pytest.mark.parametrize("workers", [0, 2])
def test_windows_cut_by_workers_give_the_same(trained, study, monkeypatch, workers):
    single = one_slide(study, "lung_h")
    frame = load_cells(single.slides, single.results, ("test",))
    expected = Predictor(MODELS, trained).predict(frame, single)
    real = Branches.dataset
    monkeypatch.setattr(Branches, "dataset", lambda *args, **options: real(*args, **options, memory_mb=0))
    models = {**MODELS, "predict": {**MODELS["predict"], "workers": workers}}
    asked, make = [], nuclass.data.make_loader
    monkeypatch.setattr(nuclass.data, "make_loader", lambda *a, **k: asked.append(k["num_workers"]) or make(*a, **k))
    found = Predictor(models, trained).predict(frame, single)
    assert asked == [workers]
    for name, one in expected.items():
        assert torch.equal(found[name].logits, one.logits)
        assert torch.equal(found[name].embeddings[0], one.embeddings[0])


def test_a_gate_for_other_classes_is_refused_by_name(trained, study, tmp_path):
    data = torch.load(trained["gate"], weights_only=True)
    data["classes"] = ["B_Cell", "T_Cell"]
    torch.save(data, tmp_path / "best.ckpt")
    with pytest.raises(UserError) as caught:
        Predictor(MODELS, {**trained, "gate": tmp_path / "best.ckpt"})
    assert "The gate was trained for other classes than the local and the global model" in str(caught.value)
    assert "2 classes: not Fibroblast" in str(caught.value)


def test_embeddings_of_the_gate_are_those_of_both_models(trained, study, tmp_path):
    outputs = {name: tmp_path / f"{name}.parquet" for name in trained}
    predict_slide(MODELS, one_slide(study, "lung_h"), trained, outputs)
    kept = {}
    for name, path in outputs.items():
        with h5py.File(path.with_suffix(".h5")) as file:
            kept[name] = file["embeddings"][:]
    assert np.array_equal(kept["gate"], np.hstack([kept["local"], kept["global"]]))
    assert kept["global"].shape == (220, 24)


def test_the_mixture_is_that_of_the_tables(trained, study, tmp_path):
    """From the logits and the gate of the files the fused probabilities follow by the formula."""
    outputs = {name: tmp_path / f"{name}.parquet" for name in trained}
    predict_slide(MODELS, one_slide(study, "lung_h"), trained, outputs)
    tables = {name: pd.read_parquet(path) for name, path in outputs.items()}
    p = {name: table.filter(like="prob_").to_numpy() for name, table in tables.items()}
    g = tables["gate"]["gate"].to_numpy()[:, None]
    temperature = torch.load(trained["gate"], weights_only=True)["temperature"]
    powered = ((1 - g) * p["local"] + g * p["global"] + 1e-8) ** (1 / temperature)
    assert np.allclose(powered / powered.sum(1, keepdims=True), p["gate"], atol=1e-4)


def test_training_cells_are_never_predicted(trained, study, tmp_path):
    data = torch.load(trained["local"], weights_only=True)
    data["cells"]["lung_h"] = {"train": ["l003-1", "l004-1"], "val": []}
    torch.save(data, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match="used in training") as caught:
        predict_slide(
            MODELS,
            one_slide(study, "lung_h"),
            {**trained, "local": tmp_path / "best.ckpt"},
            {name: tmp_path / f"{name}.parquet" for name in trained},
        )
    assert "2 cells, the first: l003-1" in str(caught.value)


def test_predictions_of_another_checkpoint_are_not_evaluated(trained, study, tmp_path):
    outputs = {name: tmp_path / f"{name}.parquet" for name in trained}
    predict_slide(MODELS, one_slide(study, "lung_h"), trained, outputs)
    options = {"out": tmp_path / "out", "model": "gate", "cohort": "lung_h"}
    found = evaluate_model([outputs["gate"]], checkpoint=trained["gate"], **options)
    assert found["n_cells"] == 220
    data = torch.load(trained["gate"], weights_only=True)
    data["classes"] = ["B_Cell", "Fibroblast", "Mast_Cell"]
    torch.save(data, tmp_path / "best.ckpt")
    with pytest.raises(UserError) as caught:
        evaluate_model([outputs["gate"]], checkpoint=tmp_path / "best.ckpt", **options)
    assert "Predictions have other classes than the checkpoint" in str(caught.value)
    assert "3 classes: also T_Cell; not Mast_Cell" in str(caught.value)
