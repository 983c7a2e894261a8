"""``nuclass evaluate``: models on data sets of a list, from the original's files or a study's results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fake_study import write_predictions
from nuclass.cli import main
from nuclass.core.errors import UserError
from nuclass.data.study import Study
from nuclass.evaluation import holdout_cells, holdout_run
from nuclass.evaluation.holdouts import read_holdouts
from nuclass.patches.export import export_patches
from nuclass.slides.store import SlideStore
from nuclass.training.predict import predict_slide
from toy_study import CLASSES, MODELS, one_slide, toy

torch.set_num_threads(1)
ORGANS, WINDOWS = ("colon", "lung", "unknown"), {"local": 32, "global": 128}
NAMES = ["annotations.json", "patches_32x32.h5", "patches_128x128.h5"]


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return toy(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    return toy(tmp_path_factory)[1]


def export(study: Study, slide: str, folder: Path, name: str = "", **options) -> Path:
    """Write a slide of the toy study as the original's three files."""
    root = study.results
    cells = pd.read_parquet(root / "slides" / slide / "cells.parquet")
    with SlideStore(study.results / "slides" / slide / "he.ome.zarr") as store:
        export_patches(
            store,
            cells.assign(x_um=cells["x_px"] * 0.25, y_um=cells["y_px"] * 0.25, status="kept", reason=""),
            pd.read_parquet(root / "labels" / slide / "labels.parquet").assign(reason=""),
            folder,
            WINDOWS,
            slide=name or slide,
            organ=slide.split("_")[0],
            patient=f"donor of {slide}",
            mpp=0.25,
            **options,
        )
    return folder


@pytest.fixture(scope="module")
def data(study, tmp_path_factory) -> Path:
    """Two cohorts of the toy study as patch files, under a name of their own."""
    folder = tmp_path_factory.mktemp("data")
    for slide in ("lung_h", "liver_h"):
        export(study, slide, folder / slide)
    return folder


def listed(folder: Path, entries: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "holdouts.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return folder / "holdouts.json"


def entry(root: object, tissue: str = "lung", **more: object) -> dict[str, object]:
    return {"root": str(root), "mode": "xenium_exact", "tissue": tissue, **more}


def evaluate(model: str, trained: dict[str, Path], holdouts: Path, out: Path, *more: str) -> int:
    command = ["evaluate", model, "--ckpt", trained[model], "--holdouts", holdouts, "--output-dir", out, *more]
    return main([str(part) for part in command])


def faults_of(path: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        read_holdouts(path, organs=options.pop("organs", ORGANS), windows=WINDOWS, **options)
    return str(caught.value)


# The list


def test_an_object_and_a_list_of_data_sets_are_the_same(data, tmp_path):
    as_object = listed(tmp_path / "a", {"one": entry(data / "lung_h"), "two": entry(data / "liver_h", "Colon")})
    pairs = [entry(data / "lung_h", name="one"), entry(data / "liver_h", "human colon cancer FFPE", name="two")]
    as_list = listed(tmp_path / "b", pairs)
    found = read_holdouts(as_object, organs=ORGANS, windows=WINDOWS)
    assert found == read_holdouts(as_list, organs=ORGANS, windows=WINDOWS)
    assert [(one.name, one.organ, one.of_study) for one in found] == [("one", "lung", False), ("two", "colon", False)]
    chosen = read_holdouts(as_object, organs=ORGANS, windows=WINDOWS, select=["two"])
    assert chosen == found[1:]


def test_a_root_starts_from_here_or_from_the_file(data, tmp_path, monkeypatch):
    file = listed(data, {"one": entry("lung_h")})
    monkeypatch.chdir(tmp_path)
    assert read_holdouts(file, organs=ORGANS, windows=WINDOWS)[0].root == data / "lung_h"
    file.unlink()


def test_every_fault_is_told_at_once(data, study, tmp_path):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "annotations.json").write_text("{}")
    (tmp_path / "both" / "train").mkdir(parents=True)
    (tmp_path / "both" / "train" / "annotations.json").write_text("{}")
    text = json.dumps(
        {
            "typo": {"rot": str(data), "mode": "xenium_exakt", "tissue": 3},
            "gone": entry(data / "lung_x"),
            "half": entry(tmp_path / "half", "lungg"),
            "both": entry(tmp_path / "both"),
            "a/b": "lung",
        }
    )
    text = text[:-1] + ', "gone": ' + json.dumps(entry(data / "lung_h")) + "}"
    found = faults_of(listed(tmp_path, text), select=["typo", "gone", "half", "both", "bth"])
    half, both = tmp_path / "half", tmp_path / "both"
    assert found.splitlines() == [
        "The list of data sets to evaluate on cannot be used",
        f"  where:      {tmp_path / 'holdouts.json'}",
        "  found:      12 faults",
        "    the name 'a/b': expected letters, digits, and . _ + - after the first",
        "    a/b: the text lung; expected an object with root, mode and tissue",
        "    gone: stands 2 times; expected once",
        "    --select bth: no such data set. Did you mean 'both'? There are: typo, gone, half, both, gone",
        "    typo.rot: an unknown key. Did you mean 'root'? Valid: root, mode, tissue",
        "    typo.root: missing; expected a folder",
        "    typo.tissue: 3; expected an organ of the model, or unknown",
        "    typo.mode: 'xenium_exakt'; expected 'xenium_exact', the only one. Did you mean 'xenium_exact'?",
        f"    gone.root: nothing at {data / 'lung_x'}; expected a folder. Did you mean 'lung_h'?",
        f"    half.root: no patches_32x32.h5, no patches_128x128.h5 in {half}; expected {', '.join(NAMES)}",
        "    half.tissue: 'lungg', no organ of the model; expected colon, lung, unknown. Did you mean 'lung'?",
        f"    both.root: {both} is divided into train; expected one part: {both / 'train'}",
        "  to mend it: correct these entries; all others are sound",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "no data set; expected {"),
        ("3", "the number 3 in place of data sets; expected {"),
        ('{"a": {"root": 1', "A file is not valid JSON"),
        ('{"a": {"root": "x", "root": "y"}}', "a.root: stands 2 times; expected once"),
        ('[{"root": "/x", "mode": "xenium_exact", "tissue": "lung"}]', "entry_1.root: nothing at /x"),
        ('[{"root": "/x", "mode": "xenium_exact", "tissue": "lung"}]', "entry_1: no name; expected in a list: name"),
        ('{"A": 1, "a": 1}', "a: differs from another name in upper and lower case alone"),
    ],
)
def test_a_list_of_another_form_is_refused(tmp_path, text, told):
    if text.startswith('{"A"'):
        text = json.dumps({"A": entry("/x"), "a": entry("/x")})
    assert told in faults_of(listed(tmp_path, text))


def test_an_organ_that_the_model_does_not_know_is_told_and_never_the_first_one(data, tmp_path, caplog):
    file = listed(tmp_path, {"one": entry(data / "liver_h", "liver")})
    assert read_holdouts(file, organs=ORGANS, windows=WINDOWS)[0].organ == "unknown"
    told = "one: the model did not see the organ 'liver' (colon, lung); it takes it as unknown"
    assert told in caplog.text
    found = faults_of(file, organs=("colon", "lung"))
    assert "one.tissue: 'liver', the model has no place for other organs; expected colon, lung." in found


# Evaluation


def test_the_original_s_files_give_what_the_slide_gives(trained, study, data, tmp_path, capsys):
    """The local window is cut at full resolution: the numbers are those of the study's own prediction, to the bit."""
    file = listed(tmp_path, {"one": entry(data / "lung_h"), "far": entry(data / "liver_h", "liver")})
    assert evaluate("local", trained, file, tmp_path / "out", "--device", "cpu", "--batch", "64") == 0
    predict_slide(MODELS, one_slide(study, "lung_h"), {"local": trained["local"]}, {"local": tmp_path / "x.parquet"})
    expected = pd.read_parquet(tmp_path / "x.parquet")
    found = pd.read_parquet(tmp_path / "out" / "one" / "local" / "predictions.parquet")
    assert (found["slide"] == "lung_h").all()
    rows = found.set_index("cell_id").loc[expected["cell_id"]].reset_index()
    same = ["label", "prediction", "organ", *[f"prob_{name}" for name in sorted(CLASSES)]]
    pd.testing.assert_frame_equal(rows[same], expected[same], check_categorical=False, check_dtype=False, rtol=1e-5)
    told = capsys.readouterr().out
    summary = pd.read_csv(tmp_path / "out" / "summary_local.csv")
    assert summary["holdout"].tolist() == ["one", "far"]
    assert summary["organ"].tolist() == ["lung", "unknown"]
    assert summary["evaluated"].tolist() == [220, 220]
    metrics = json.loads((tmp_path / "out" / "one" / "local" / "metrics.json").read_text())
    assert summary["macro_f1"][0] == pytest.approx(metrics["open_set"]["macro_f1"])
    assert summary["closed_macro_f1"][0] == pytest.approx(metrics["closed_set"]["macro_f1"])
    assert f"{metrics['accuracy']:.3f}" in told
    assert {"confusion.png", "probs.npy", "labels.npy", "cell_ids.npy", "per_class.csv"} <= {
        file.name for file in (tmp_path / "out" / "one" / "local").iterdir()
    }


def test_the_gate_brings_its_two_models_along(trained, study, data, tmp_path, monkeypatch):
    file = listed(tmp_path, {"one": entry(data / "lung_h"), "slide": entry(study.results / "slides" / "lung_h")})
    assert evaluate("gate", trained, file, tmp_path / "out", "--batch", "64") == 0
    predicted = {name: tmp_path / "x" / f"{name}.parquet" for name in trained}
    predict_slide(MODELS, one_slide(study, "lung_h"), trained, predicted)
    for name, path in predicted.items():
        expected = pd.read_parquet(path)
        found = pd.read_parquet(tmp_path / "out" / "slide" / name / "predictions.parquet")
        pd.testing.assert_frame_equal(found, expected)
        # The context of patch files is cut at full resolution, and not on the grid of a level of the pyramid.
        other = pd.read_parquet(tmp_path / "out" / "one" / name / "predictions.parquet").set_index("cell_id")
        p, q = (t.filter(like="prob_").to_numpy() for t in (expected, other.loc[expected["cell_id"]]))
        assert np.abs(p - q).max() < (1e-5 if name == "local" else 0.2)
    gates = np.load(tmp_path / "out" / "one" / "gate" / "gates.npy")
    assert len(gates) == 220
    table = pd.read_csv(tmp_path / "out" / "summary_gate.csv")
    assert table[["holdout", "model"]].agg(" ".join, axis=1).tolist() == [
        f"{name} {model}" for name in ("one", "slide") for model in ("local", "global", "gate")
    ]


def test_a_second_start_takes_what_is_there(trained, data, tmp_path, monkeypatch, capsys):
    file = listed(tmp_path, {"one": entry(data / "lung_h")})
    out, asked = tmp_path / "out", []
    real = holdout_run.evaluate_model
    monkeypatch.setattr(
        holdout_run, "evaluate_model", lambda *a, **k: asked.append((k["cohort"], k["model"])) or real(*a, **k)
    )
    assert evaluate("local", trained, file, out) == 0
    before = (out / "summary_local.csv").read_bytes()
    assert evaluate("local", trained, file, out) == 0
    assert asked == [("one", "local")]
    assert "one: the evaluation of the local model is there from an earlier run" in message(capsys)
    assert (out / "summary_local.csv").read_bytes() == before
    file = listed(tmp_path, {"one": entry(data / "lung_h"), "two": entry(data / "liver_h", "liver")})
    assert evaluate("local", trained, file, out) == 0
    assert asked[1:] == [("two", "local")]
    asked.clear()
    data_of_it = torch.load(trained["local"], weights_only=True)
    data_of_it["temperature"] *= 2
    torch.save(data_of_it, tmp_path / "best.ckpt")
    assert evaluate("local", {"local": tmp_path / "best.ckpt"}, file, out, "--select", "one") == 0
    assert asked == [("one", "local")]
    asked.clear()
    listed(tmp_path, {"one": entry(data / "lung_h", "unknown")})
    assert evaluate("local", {"local": tmp_path / "best.ckpt"}, file, out) == 0
    assert asked == [("one", "local")]


def test_a_stopped_run_goes_on_behind_the_features(trained, data, tmp_path, monkeypatch):
    file, out = listed(tmp_path, {"one": entry(data / "lung_h")}), tmp_path / "out"
    calls = []
    real = holdout_cells._embed
    monkeypatch.setattr(holdout_cells, "_embed", lambda *args: calls.append("features") or real(*args))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nuclass.training.predict.predict_slide", lambda *_: 1 / 0)
        assert evaluate("global", trained, file, out) == 1
    assert calls == ["features"]
    assert evaluate("global", trained, file, out) == 0
    assert evaluate("gate", trained, file, out) == 0
    assert calls == ["features"]
    assert not list(out.rglob("predict"))


def test_files_that_changed_are_taken_in_again(trained, study, tmp_path, capsys):
    data = export(study, "lung_h", tmp_path / "data")
    file, out = listed(tmp_path, {"one": entry(data)}), tmp_path / "out"
    assert evaluate("local", trained, file, out) == 0
    records = json.loads((data / "annotations.json").read_text())
    for number, record in enumerate(records.values()):
        label = record.pop("class_id")
        record["cell_type"] = "Martians" if number < 7 else label
    (data / "annotations.json").write_text(json.dumps(records))
    assert evaluate("local", trained, file, out) == 0
    labels = json.loads((out / "one" / "labels.json").read_text())
    assert (labels["cells"], labels["with_class"]) == (220, 213)
    assert [(row["raw_label"], row["cells"]) for row in labels["unmapped"]] == [("Martians", 7)]
    assert json.loads((out / "one" / "local" / "metrics.json").read_text())["n_cells"] == 213


# What must not be evaluated


def message(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def lines_of(told: str) -> list[str]:
    return [line for line in told.splitlines() if " INFO " not in line and " WARNING " not in line]


@pytest.mark.parametrize("folder", ["lung_1", "other"])
def test_a_slide_that_the_model_learnt_from_is_refused_before_anything_runs(
    trained, study, tmp_path, capsys, monkeypatch, folder
):
    """By its name in the files, and by that of its folder."""
    data = export(study, "lung_1", tmp_path / folder, name="lung_1" if folder == "other" else "another name")
    monkeypatch.setattr("nuclass.training.predict.predict_slide", lambda *_: 1 / 0)
    file = listed(tmp_path, {"new": entry(data)})
    assert evaluate("local", trained, file, tmp_path / "out") == 1
    told = message(capsys)
    assert "evaluated cells are among the checkpoint's train cells" in told
    assert f"new: {trained['local']}, slide lung_1" in told


def test_a_patient_of_the_training_is_refused(trained, study, tmp_path, capsys, monkeypatch):
    data = export(study, "lung_h", tmp_path / "data")
    records = json.loads((data / "annotations.json").read_text())
    for record in records.values():
        record["patient_id"] = "anna"
    (data / "annotations.json").write_text(json.dumps(records))
    monkeypatch.setattr("nuclass.cli_evaluate._patients", lambda _: {"lung_1": "anna", "colon_1": "bert"})
    assert evaluate("local", trained, listed(tmp_path, {"one": entry(data)}), tmp_path / "out") == 1
    told = message(capsys)
    assert "An evaluated slide comes from a patient of the training slides" in told
    assert "lung_h: patient anna, also ['lung_1']" in told


def test_a_data_set_without_a_class_of_the_model_is_refused(trained, study, tmp_path, capsys):
    data = export(study, "lung_h", tmp_path / "data")
    records = json.loads((data / "annotations.json").read_text())
    for record in records.values():
        record["class_id"] = "Acinar"
    (data / "annotations.json").write_text(json.dumps(records))
    assert evaluate("local", trained, listed(tmp_path, {"one": entry(data)}), tmp_path / "out") == 1
    assert lines_of(message(capsys))[-5:] == [
        "No cell of 'one' has a class of the model",
        f"  where:      {data}",
        "  found:      Acinar 220",
        "  expected:   B_Cell, Fibroblast, T_Cell",
        "  to mend it: take it out of the list, or evaluate a model that knows these classes",
    ]


def test_a_gate_without_its_models_is_told_where_they_are_looked_for(trained, data, tmp_path, capsys):
    alone = tmp_path / "models" / "gate" / "best.ckpt"
    alone.parent.mkdir(parents=True)
    alone.write_bytes(trained["gate"].read_bytes())
    file = listed(tmp_path, {"one": entry(data / "lung_h")})
    assert evaluate("gate", {"gate": alone}, file, tmp_path / "out", "--local", str(trained["local"])) == 1
    told = lines_of(message(capsys))
    assert told[:3] == [
        "The gate weighs the local and the global model, and of the global model there is no checkpoint",
        f"  where:      {alone}",
        f"  found:      nothing at {tmp_path / 'models' / 'global' / 'best.ckpt'}",
    ]
    assert told[-1] == "  to mend it: name them: --global CKPT"
    given = ["--local", str(trained["local"]), "--global", str(trained["global"])]
    assert evaluate("gate", {"gate": alone}, file, tmp_path / "out", *given) == 0


def test_a_gate_of_other_models_is_refused(trained, data, tmp_path, capsys):
    other = torch.load(trained["local"], weights_only=True)
    other["state"]["norm.bias"] += 0.1
    torch.save(other, tmp_path / "other.ckpt")
    file = listed(tmp_path, {"one": entry(data / "lung_h")})
    assert evaluate("gate", trained, file, tmp_path / "out", "--local", str(tmp_path / "other.ckpt")) == 1
    assert "The gate was trained on another local model" in message(capsys)


def test_a_checkpoint_of_another_model_is_refused(trained, data, tmp_path, capsys):
    file = listed(tmp_path, {"one": entry(data / "lung_h")})
    assert evaluate("local", {"local": trained["gate"]}, file, tmp_path / "out") == 1
    assert lines_of(message(capsys))[0] == "A checkpoint is of another model"


def test_the_context_backbone_is_found_above_the_checkpoint(tmp_path, monkeypatch):
    checkpoint = tmp_path / "study" / "results" / "models" / "global" / "best.ckpt"
    folder = tmp_path / "study" / "results" / "backbones" / "context"
    for path in (checkpoint.parent, folder, tmp_path / "here"):
        path.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    wide = {"context_folder": "results/backbones/context"}
    with pytest.raises(UserError) as caught:
        holdout_cells.context_folder(wide, checkpoint)
    assert caught.value.what == "The context backbone that the global model was trained with is not there"
    (folder / "config.json").write_text("{}")
    assert holdout_cells.context_folder(wide, checkpoint) == folder
    assert holdout_cells.context_folder({"context_folder": None}, checkpoint) is None


# The command line


@pytest.mark.parametrize("model", ["local", "global", "gate", "tables"])
def test_help_teaches(model, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", model, "--help"])
    told = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"nuclass evaluate {model}" in told
    assert model == "tables" or all(
        word in told for word in ("xenium_exact", "tissue", "--select", "--holdouts-config")
    )


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--batch", "0"], "'0' is no number of cells; expected a whole number from 1"),
        (["--device", "gpu"], "'gpu' is not known."),
    ],
)
def test_a_wrong_option_is_told(capsys, more, told):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "local", "--ckpt", "x", "--holdouts-config", "y", "--output-dir", "z", *more])
    assert stop.value.code == 2
    assert told in capsys.readouterr().err


def test_a_checkpoint_that_is_not_there(tmp_path, capsys):
    command = ["evaluate", "local", "--ckpt", "gone.ckpt", "--holdouts-config", "y", "--output-dir", str(tmp_path)]
    assert main(command) == 1
    assert lines_of(message(capsys))[:2] == ["The checkpoint of the local model is missing", "  where:      gone.ckpt"]


def test_tables_of_predictions_are_judged_as_before(tmp_path, capsys):
    path = write_predictions(tmp_path / "p", n=200)["gate"]["lung_h"]
    command = ["evaluate", "tables", str(path), "--model", "gate", "--cohort", "lung_h", "--out", str(tmp_path / "o")]
    assert main(command) == 0
    assert capsys.readouterr().out == f"Wrote {tmp_path / 'o'}.\n"
    assert json.loads((tmp_path / "o" / "metrics.json").read_text())["model"] == "gate"
