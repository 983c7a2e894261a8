"""Prediction of slides with all three models."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

import nuclass.data
import nuclass.training.checkpoint
import nuclass.training.predictor
from forked import waited
from nuclass.core.errors import UserError
from nuclass.core.files import write_parquet
from nuclass.data import load_cells
from nuclass.data.study import Study
from nuclass.evaluation import evaluate_model
from nuclass.training import row_store
from nuclass.training.predict import Predictor, predict_models, predict_slide
from nuclass.training.row_store import RowStore
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
    assert "220 cells are of no stated organ; the models take it as unknown" in caplog.text
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


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.parquet")}


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for file in folder.rglob("*.h5"):
        with h5py.File(file) as h5:
            found |= {f"{file.relative_to(folder)}/{name}": h5[name][:] for name in h5}
    return found


def same_files(one: Path, other: Path) -> bool:
    first, second = arrays_of(one), arrays_of(other)
    assert first.keys() == second.keys()
    assert bytes_of(one).keys() == bytes_of(other).keys() != set()
    return bytes_of(one) == bytes_of(other) and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("names", [["local"], ["global"], ["global", "local"]])
def test_a_model_alone_predicts_as_among_all(trained, study, tmp_path, names):
    single = one_slide(study, "lung_h")
    given = {name: trained[name] for name in names}
    predict_slide(MODELS, single, given, {name: tmp_path / "some" / name / "lung_h.parquet" for name in names})
    predict_slide(MODELS, single, trained, {name: tmp_path / "all" / name / "lung_h.parquet" for name in names})
    assert same_files(tmp_path / "some", tmp_path / "all")


def test_several_slides_in_one_call_load_the_models_once(trained, study, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        "nuclass.training.predictor.load_checkpoint",
        lambda path, name: loaded.append(name) or nuclass.training.checkpoint.load_checkpoint(path, name),
    )
    slides = ["lung_h", "liver_h", "lung_1"]
    both = Study([{"slide": s, "organ": s.split("_")[0]} for s in slides], study.results, study.mpp, study.windows)
    outputs = {name: {s: tmp_path / "one" / name / f"{s}.parquet" for s in slides} for name in ("local", "gate")}
    counts = predict_models(MODELS, both, trained, outputs, tmp_path / "work")
    assert loaded == ["local", "global", "gate"]
    assert list(counts) == slides
    assert counts["lung_h"] == {"test": 220}
    assert set(counts["lung_1"]) == {"val", "test"}
    assert not (tmp_path / "work").exists()
    for s in slides:
        paths = {name: tmp_path / "each" / name / f"{s}.parquet" for name in outputs}
        assert predict_slide(MODELS, one_slide(study, s), trained, paths) == counts[s]
    assert same_files(tmp_path / "one", tmp_path / "each")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["gate"], "A gate predicts together with the local and the global model that it was trained on"),
        (["local", "gate"], "A gate predicts together with the global model that it was trained on"),
        ([], "There is no model to predict with"),
    ],
)
def test_a_gate_without_its_models_is_refused(trained, study, tmp_path, names, told):
    with pytest.raises(UserError) as caught:
        Predictor(MODELS, {name: trained[name] for name in names})
    assert caught.value.what == told


def test_models_of_other_classes_do_not_predict_together(trained, tmp_path):
    data = torch.load(trained["local"], weights_only=True)
    data["organs"] = ["breast", "lung", "unknown"]
    torch.save(data, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match="The local and the global model differ in their organs"):
        Predictor(MODELS, {"local": tmp_path / "best.ckpt", "global": trained["global"]})


def test_one_local_model_serves_global_models_of_any_window(trained, tmp_path):
    """The local model never sees the global window; another local window it would not know."""
    data = torch.load(trained["local"], weights_only=True)
    (side := data["windows"])["global"] *= 2
    torch.save(data, tmp_path / "best.ckpt")
    Predictor(MODELS, {"local": tmp_path / "best.ckpt", "global": trained["global"]})
    side["local"] *= 2
    torch.save(data, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match="The local and the global model differ in their local window"):
        Predictor(MODELS, {"local": tmp_path / "best.ckpt", "global": trained["global"]})


def test_with_first_organ_a_cohort_is_taken_as_of_the_first_one(trained, study, tmp_path, caplog):
    """The switch puts the first organ of the list in the place of a cohort's, and of no trained slide's."""
    flawed = {**MODELS, "protocol": {"first_organ": True}}
    as_colon = Study([{"slide": "lung_h", "organ": "colon"}], study.results, study.mpp, study.windows)
    for folder, models, single in (
        ("flawed", flawed, one_slide(study, "lung_h")),
        ("colon", MODELS, as_colon),
        ("lung", MODELS, one_slide(study, "lung_h")),
    ):
        predict_slide(models, single, trained, {name: tmp_path / folder / f"{name}.parquet" for name in trained})
    read = {folder: pd.read_parquet(tmp_path / folder / "local.parquet") for folder in ("flawed", "colon", "lung")}
    p = {folder: table.filter(like="prob_").to_numpy() for folder, table in read.items()}
    assert np.array_equal(p["flawed"], p["colon"])
    assert not np.array_equal(p["flawed"], p["lung"])
    assert (read["flawed"]["organ"] == "lung").all()
    assert "220 cells are predicted as of the organ 'colon', whatever theirs is (protocol: first_organ)" in caplog.text
    caplog.clear()
    for folder, models in (("flawed_1", flawed), ("plain_1", MODELS)):
        paths = {name: tmp_path / folder / f"{name}.parquet" for name in trained}
        predict_slide(models, one_slide(study, "lung_1"), trained, paths)
    assert same_files(tmp_path / "flawed_1", tmp_path / "plain_1")
    assert "first_organ" not in caplog.text


def killed_while_predicting(cells: int, monkeypatch, **arguments) -> int:
    """Run in another process that is killed with SIGKILL once so many cells were kept; returns the signal."""
    pid = os.fork()
    if pid == 0:
        append = RowStore.append

        def append_and_die(store: RowStore, **arrays: np.ndarray) -> None:
            append(store, **arrays)
            if store.rows >= cells:
                os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(row_store, "SAVE_EVERY_S", 0.0)
        monkeypatch.setattr(RowStore, "append", append_and_die)
        predict_slide(**arguments)
        os._exit(0)
    return os.WTERMSIG(waited(pid))


@pytest.mark.parametrize("part_cells", [16_384, 64])
def test_a_killed_prediction_goes_on_to_the_same_files(trained, study, tmp_path, monkeypatch, caplog, part_cells):
    monkeypatch.setattr("nuclass.training.predictor.PART_CELLS", part_cells)
    models = {**MODELS, "predict": {**MODELS["predict"], "batch_size": 32}}
    single, seen = one_slide(study, "lung_h"), []
    straight = {name: tmp_path / "straight" / name / "lung_h.parquet" for name in trained}
    predict_slide(models, single, trained, straight)
    arguments = {
        "models": models,
        "study": single,
        "checkpoints": trained,
        "outputs": {name: tmp_path / "resumed" / name / "lung_h.parquet" for name in trained},
        "work": tmp_path / "work",
    }
    assert killed_while_predicting(96, monkeypatch, **arguments) == signal.SIGKILL
    assert not (tmp_path / "resumed").exists()
    rows = Predictor._rows
    monkeypatch.setattr(Predictor, "_rows", lambda self, batch: seen.append(len(batch["index"])) or rows(self, batch))
    caplog.set_level("INFO")
    assert predict_slide(**arguments) == {"test": 220}
    assert "96 of 220 rows are there from an earlier run" in caplog.text
    assert sum(seen) == 220 - 96
    assert same_files(tmp_path / "straight", tmp_path / "resumed")
    assert not (tmp_path / "work").exists()


def test_a_killed_prediction_of_another_model_starts_anew(trained, study, tmp_path, monkeypatch):
    models = {**MODELS, "predict": {**MODELS["predict"], "batch_size": 32}}
    single, seen = one_slide(study, "lung_h"), []
    given = {"local": trained["local"]}
    arguments = {"models": models, "study": single, "work": tmp_path / "work", "checkpoints": given}
    outputs = {"local": tmp_path / "lung_h.parquet"}
    assert killed_while_predicting(96, monkeypatch, outputs=outputs, **arguments) == signal.SIGKILL
    data = torch.load(trained["local"], weights_only=True)
    data["state"]["norm.bias"] += 1e-3
    torch.save(data, tmp_path / "best.ckpt")
    rows = Predictor._rows
    monkeypatch.setattr(Predictor, "_rows", lambda self, batch: seen.append(len(batch["index"])) or rows(self, batch))
    predict_slide(**{**arguments, "checkpoints": {"local": tmp_path / "best.ckpt"}}, outputs=outputs)
    assert sum(seen) == 220


def test_only_a_part_of_the_windows_and_features_is_held(trained, study, tmp_path, monkeypatch):
    """Whatever the slide's size, windows are cut batch by batch and features read part by part."""
    monkeypatch.setattr("nuclass.training.predictor.PART_CELLS", 64)
    held, real = [], nuclass.training.predictor.context_features
    monkeypatch.setattr(
        "nuclass.training.predictor.context_features",
        lambda frame, *rest, **options: held.append(len(frame)) or real(frame, *rest, **options),
    )
    single = one_slide(study, "lung_h")
    frame = load_cells(single.slides, single.results, ("test",))
    sizes = [len(batch["z_a"]) for batch in Predictor(MODELS, trained).stream(frame, single)]
    assert held == sizes == [64, 64, 64, 28]
