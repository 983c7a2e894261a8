"""The model of one's own slide: its scale, its organ, its parts, and what is told before anything long runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from nuclass.apply import engine, run, slide
from nuclass.apply.engine import Models, Options, cells_frame, predict_cells
from nuclass.core.errors import UserError
from nuclass.data.datasets import WindowDataset
from nuclass.data.features import read_key
from nuclass.data.study import Study
from nuclass.training.checkpoint import read_checkpoint, save_checkpoint
from own_slide_example import CELLS, done, files, own_files, predict, table_of, trained

__all__ = ["done", "files", "trained"]
torch.set_num_threads(1)


# Scale


def test_a_scale_that_nobody_knows_is_an_error(trained, files, tmp_path):
    with pytest.raises(UserError) as caught:
        predict(files, trained["local"], tmp_path, mpp=None)
    assert str(caught.value) == (
        "The scale of the H&E is not known\n"
        f"  where:      {files[0]}\n"
        "  found:      no pixel size in the file\n"
        "  expected:   micrometres per px at full resolution\n"
        "  to mend it: give it, such as --mpp 0.25: scans at 40x have about 0.25, at 20x about 0.5"
    )


@pytest.mark.parametrize("mpp", [0.0, -1.0, 40.0, float("nan")])
def test_a_scale_that_cannot_be_is_an_error(trained, files, tmp_path, mpp):
    with pytest.raises(UserError) as caught:
        predict(files, trained["local"], tmp_path, mpp=mpp)
    assert caught.value.what == "The scale of the H&E cannot be right"
    assert caught.value.found == f"{mpp:g} um/px"


def test_the_file_s_own_scale_is_taken_with_a_warning(trained, files, tmp_path, caplog):
    image = tmp_path / "he.ome.tif"
    metadata = {"PhysicalSizeX": 0.2, "PhysicalSizeY": 0.2}
    tifffile.imwrite(image, tifffile.imread(files[0]), tile=(128, 128), photometric="rgb", metadata=metadata)
    one = slide.open_slide(image, None, 0.25)
    assert (one.mpp, one.mpp_source, one.store_shape) == (pytest.approx(0.2), "file", (512, 512))
    assert "a px is taken as 0.2 um, as the file says. Files are often wrong" in caplog.text
    given = slide.open_slide(image, 0.25, 0.25)
    assert (given.mpp, given.mpp_source, given.embedded_mpp) == (0.25, "given", pytest.approx(0.2))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/slide_1.ome.tif", "slide_1"),
        ("a/B.7.svs", "B.7"),
        ("x/he.ome.zarr", "he"),
        ("x/he.zarr", "he"),
        (".zarr", ".zarr"),
    ],
)
def test_slides_are_named_after_their_files(path, name):
    assert slide.name_of(Path(path)) == name


# Organ, stain, record


def test_organs_are_told_by_name(trained):
    models = Models(trained["gate"])
    assert models.organ("Lung") == "lung"
    assert models.organ("human colon cancer") == "colon"
    assert models.organ(None) == models.organ("unknown") == models.organ("liver") == models.organ("skin") == "unknown"
    with pytest.raises(UserError) as caught:
        models.organ("lungs")
    assert str(caught.value) == (
        "The model does not know this organ\n"
        "  where:      --organ\n"
        "  found:      lungs Did you mean 'lung'?\n"
        "  expected:   colon | lung | unknown\n"
        "  to mend it: correct the name, or give unknown"
    )
    models.own["organs"] = ["kidney", "heart", "unknown"]
    assert models.organ("skin") == models.organ("ear") == "unknown", "other organs, not misspelt ones"
    models.own["organs"] = ["colon", "lung"]
    with pytest.raises(UserError) as caught:
        models.organ("skin")
    assert caught.value.fix == "correct the name"
    with pytest.raises(UserError) as caught:
        models.organ(None)
    assert caught.value.what == "The model must be told the organ"


def test_an_organ_never_seen_is_typed_as_unknown_with_a_warning(trained, files, tmp_path):
    facts = predict(files, trained["gate"], tmp_path, organ="liver")
    assert (facts["organ"], facts["organ_told"]) == ("unknown", "liver")
    assert (table_of(tmp_path)["organ"] == "unknown").all()
    assert facts["hints"][0]["kind"] == "organ"


def test_a_training_slide_is_typed_and_told(trained, tmp_path):
    facts = predict(own_files(tmp_path, "lung_1.tif", slide=("lung_1", 1)), trained["gate"], tmp_path / "out")
    assert "seen" in {hint["kind"] for hint in facts["hints"]}
    assert facts["counts"]["total"] == CELLS


def test_stain_of_the_training_slides_lies_in_the_checkpoints(trained):
    models = Models(trained["gate"])
    assert set(models.stain) == {"lung_1", "colon_1"}
    for one in models.stain.values():
        assert one["windows"] > 50
        assert one["haematoxylin"][0] != 0
    assert models.trained_unknown
    assert models.trained_on == {"lung_1", "colon_1"}


def test_a_slide_of_another_stain_is_told(trained, files, tmp_path):
    image = tifffile.imread(files[0]).astype(np.float64)
    pale = (255 * (image / 255) ** 0.3).astype(np.uint8)
    tifffile.imwrite(tmp_path / "pale.tif", pale, tile=(128, 128), photometric="rgb")
    facts = predict((tmp_path / "pale.tif", files[1]), trained["local"], tmp_path / "out")
    assert "stain" in {hint["kind"] for hint in facts["hints"] if hint["level"] == "warn"}


def test_the_accuracy_on_val_is_that_of_these_very_weights(trained, tmp_path):
    models = Models(trained["gate"])
    metrics = json.loads((trained["gate"].parent / "metrics.json").read_text())
    assert run._val_accuracy(models) == pytest.approx(metrics["val"]["accuracy"])
    alone = tmp_path / "best.ckpt"
    alone.write_bytes(trained["local"].read_bytes())
    assert run._val_accuracy(Models(alone)) is None
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert run._val_accuracy(Models(alone)) is None


# Told before anything long runs


def test_a_gate_without_its_models_is_told(trained, files, tmp_path):
    alone = tmp_path / "models" / "gate" / "best.ckpt"
    alone.parent.mkdir(parents=True)
    alone.write_bytes(trained["gate"].read_bytes())
    with pytest.raises(UserError, match="of the local and the global model there is no checkpoint"):
        predict(files, alone, tmp_path / "out")
    given = {name: trained[name] for name in ("local", "global")}
    assert set(Models(alone, given).hashes) == {"local", "global", "gate"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"abstain_below": 1.5}, "A share is out of range\n  where:      --abstain-below\n  found:      1.5"),
        ({"max_off_slide": -0.1}, "A share is out of range\n  where:      --max-off-slide"),
        ({"formats": ("cvs",)}, "There is no output 'cvs'. Did you mean 'csv'?"),
    ],
)
def test_settings_are_checked_first(trained, files, tmp_path, monkeypatch, changes, told):
    monkeypatch.setattr(engine.Models, "__init__", lambda *_: 1 / 0)
    with pytest.raises(UserError) as caught:
        predict(files, trained["local"], tmp_path, **changes)
    assert str(caught.value).startswith(told)


def another(checkpoint: Path, to: Path) -> Path:
    """Write the checkpoint with other weights."""
    data = dict(read_checkpoint(checkpoint))
    state = {name: value.clone() for name, value in data.pop("state").items()}
    first = next(value for value in state.values() if value.is_floating_point())
    first += 1
    save_checkpoint(to, data, state)
    return to


@pytest.mark.parametrize("cells", ["table", "detect"])
def test_models_that_do_not_belong_together_are_told_before_the_slide_is_read(
    cells, trained, files, tmp_path, monkeypatch
):
    monkeypatch.setattr("nuclass.apply.detect.detect_nuclei", lambda *_, **__: 1 / 0)
    other = another(trained["local"], tmp_path / "best.ckpt")
    given = (files[0], files[1] if cells == "table" else None)
    with pytest.raises(UserError) as caught:
        predict(given, trained["gate"], tmp_path / "out", branches={"local": other})
    assert caught.value.what == "The gate was trained on another local model"
    assert str(other) in str(caught.value.expected)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_cut_off_is_told_before_the_slide_is_read(trained, files, tmp_path):
    cut = tmp_path / "best.ckpt"
    cut.write_bytes(trained["local"].read_bytes()[:5000])
    with pytest.raises(UserError) as caught:
        predict(files, cut, tmp_path / "out")
    assert caught.value.what == "A checkpoint is cut off"
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_told_before_the_slide_is_read(trained, files, tmp_path):
    with pytest.raises(UserError) as caught:
        predict(files, trained["local"], tmp_path / "out", options=Options("cuda"))
    assert caught.value.what == "No GPU was found"
    assert caught.value.where == "--device cuda"
    assert "--device auto" in str(caught.value.fix)
    assert not (tmp_path / "out").exists()


# How the models run


def test_workers_cut_the_windows_of_both_passes(trained, files, done, tmp_path, monkeypatch):
    real, log = WindowDataset.__getitem__, tmp_path / "log"

    def cut(self: WindowDataset, index: Any) -> Any:
        with log.open("a") as stream:
            stream.write(f"{self.size} {os.getpid()}\n")
        return real(self, index)

    monkeypatch.setattr(WindowDataset, "__getitem__", cut)
    predict(files, trained["gate"], tmp_path / "out", options=Options("cpu", 64, workers=1))
    lines = [line.split() for line in log.read_text().splitlines()]
    assert {side for side, _ in lines} == {"32", "128"}, "the local pass and that of the neighbourhoods"
    assert str(os.getpid()) not in {process for _, process in lines}
    assert table_of(tmp_path / "out")["confidence"].to_numpy() == pytest.approx(table_of(done)["confidence"].to_numpy())


@pytest.mark.parametrize(
    ("precision", "found"), [("auto", "float32"), ("32-true", "float32"), ("bf16-mixed", "bfloat16")]
)
def test_the_precision_is_that_of_the_neighbourhoods_too(precision, found, trained, done, tmp_path, caplog):
    models, cells = Models(trained["global"]), table_of(done).head(64)
    frame = cells_frame("lung_h", "lung", np.arange(64), cells[["x_px", "y_px"]].to_numpy())
    row = {"slide": "lung_h", "organ": "lung", "windows": str(done / "he.ome.zarr")}
    study = Study([row], tmp_path, mpp=models.mpp, windows=models.windows)
    result = predict_cells(models, frame, study, tmp_path / "work", Options("cpu", 64, precision))
    (features,) = (tmp_path / "work").glob("context_*.h5")
    assert read_key(features).precision == found
    assert ("features in bfloat16, the model saw float32" in caplog.text) == (found == "bfloat16")
    before = cells["global_confidence"].to_numpy()[frame["row"].to_numpy()]
    assert np.abs(result["global"]["probabilities"].max(1) - before).max() < (1e-5 if found == "float32" else 0.05)
