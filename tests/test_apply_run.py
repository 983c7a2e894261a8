"""The cells of one's own slide, typed: the numbers, what is left out, what goes on, what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tifffile
import torch

from nuclass.apply import engine, run, slide
from nuclass.apply.engine import Models, Options
from nuclass.apply.kept_cells import kept_cells
from nuclass.apply.positions import Outlines, Positions
from nuclass.apply.run import judged, predict_own
from nuclass.core.errors import UserError
from nuclass.data.study import Study
from nuclass.evaluation import holdout_cells
from nuclass.slides.store import SlideStore
from nuclass.training.predict import predict_slide
from nuclass.training.predictor import Predictor
from toy_study import CLASSES, MODELS, one_slide, paint, toy

torch.set_num_threads(1)
BATCH = Options("cpu", 64)
CLASS_NAMES = sorted(CLASSES)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return toy(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    return toy(tmp_path_factory)[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """The image of the toy study's lung_h, which says nothing of its scale, and a table of its cells."""
    folder = tmp_path_factory.mktemp("own")
    image, cells = paint("lung_h", 3)
    tifffile.imwrite(folder / "lung_h.tif", image, tile=(128, 128), photometric="rgb")
    table = pd.DataFrame({"cell_id": cells["cell_id"], "x_he": cells["x_px"], "y_he": cells["y_px"]})
    table.to_csv(folder / "cells.csv", index=False)
    return folder / "lung_h.tif", folder / "cells.csv"


def predict(files: tuple[Path, Path], checkpoint: Path, out: Path, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"organ": "lung", "mpp": 0.25, "formats": (), "options": BATCH}
    return predict_own(*files, checkpoint, out, **(settings | changes))


def table_of(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "predictions.parquet")


@pytest.fixture(scope="module")
def done(files, trained, tmp_path_factory) -> Path:
    """A finished run of the gate; tests do not change it."""
    out = tmp_path_factory.mktemp("done") / "out"
    predict(files, trained["gate"], out)
    return out


# The numbers


def test_predictions_are_those_of_the_study(done, study, trained, tmp_path):
    predicted = {name: tmp_path / f"{name}.parquet" for name in trained}
    predict_slide(MODELS, one_slide(study, "lung_h"), trained, predicted)
    found = table_of(done)
    for name, (prediction, confidence) in {
        "gate": ("prediction", "confidence"),
        "local": ("local_prediction", "local_confidence"),
        "global": ("global_prediction", "global_confidence"),
    }.items():
        expected = pd.read_parquet(predicted[name]).set_index("cell_id").loc[found["cell_id"]]
        assert found[prediction].tolist() == expected["prediction"].tolist()
        assert found[confidence].to_numpy() == pytest.approx(expected["confidence"].to_numpy(), abs=1e-5)
    expected = pd.read_parquet(predicted["gate"]).set_index("cell_id").loc[found["cell_id"]]
    for column in ("gate", *[f"prob_{name}" for name in CLASS_NAMES]):
        assert found[column].to_numpy() == pytest.approx(expected[column].to_numpy(), abs=1e-5)
    own, other = done / "he.ome.zarr", study.results / "slides" / "lung_h" / "he.ome.zarr"
    with SlideStore(own) as a, SlideStore(other) as b:
        assert np.array_equal(a.region(0, 0, 640, 640), b.region(0, 0, 640, 640))


def test_the_table_is_as_told(done, files):
    found, cells = table_of(done), pd.read_csv(files[1])
    assert found.columns.tolist() == [
        *("cell_id", "x_he", "y_he", "x_um", "y_um", "x_px", "y_px", "organ", "status", "reason", "class"),
        *("prediction", "confidence", "gate", "local_prediction", "local_confidence"),
        *("global_prediction", "global_confidence", *[f"prob_{name}" for name in CLASS_NAMES]),
    ]
    assert found["cell_id"].tolist() == cells["cell_id"].tolist()
    assert found["x_um"].to_numpy() == pytest.approx(cells["x_he"].to_numpy() * 0.25)
    assert found["y_px"].to_numpy() == pytest.approx(cells["y_he"].to_numpy())
    p = found[[f"prob_{name}" for name in CLASS_NAMES]].to_numpy()
    assert p.sum(axis=1) == pytest.approx(np.ones(len(p)), abs=1e-5)
    assert found["confidence"].to_numpy() == pytest.approx(p.max(axis=1))
    typed = found["confidence"] >= 0.5
    assert (found["status"] == np.where(typed, "typed", "abstained")).all()
    assert (found["reason"] == np.where(typed, "", "low_confidence")).all()
    assert (found["class"] == np.where(typed, found["prediction"], "")).all()


def test_the_record_tells_how_it_was_made(done, trained, files):
    facts = json.loads((done / "run.json").read_text())
    found = table_of(done)
    assert facts["slide"] == "lung_h"
    assert facts["image"] == str(files[0])
    assert facts["positions"].startswith("cells.csv: ")
    assert (facts["mpp_he"], facts["mpp_source"], facts["mpp"]) == (0.25, "given", 0.25)
    assert facts["he_shape"] == [640, 640]
    assert facts["windows"] == {"local": 32, "global": 128}
    assert facts["model"] == "gate"
    assert facts["checkpoints"] == {name: run.Models(path).hashes[name] for name, path in trained.items()}
    assert facts["classes"] == CLASS_NAMES
    states = found["status"].value_counts()
    assert facts["counts"] == {
        "total": 220,
        "typed": int(states.get("typed", 0)),
        "abstained": int(states.get("abstained", 0)),
        "left_out": 0,
        "off_slide": 0,
        "low_confidence": int(states.get("abstained", 0)),
    }
    assert facts["composition"] == {name: int((found["class"] == name).sum()) for name in CLASS_NAMES}
    assert {hint["kind"] for hint in facts["hints"]} <= {"stain", "confidence"}
    assert facts["seconds"] > 0
    assert {"nuclass", "torch", "python"} == set(facts["versions"])
    assert facts["stain"]["windows"] > 0
    assert {path.name for path in done.iterdir()} == {"predictions.parquet", "run.json", "he.ome.zarr", ".he.json"}


@pytest.mark.parametrize("model", ["local", "global"])
def test_a_branch_by_itself(model, trained, files, done, tmp_path):
    facts = predict(files, trained[model], tmp_path)
    found, whole = table_of(tmp_path), table_of(done)
    assert facts["model"] == model
    assert "gate" not in found
    assert found["confidence"].to_numpy() == pytest.approx(whole[f"{model}_confidence"].to_numpy(), abs=1e-6)


def test_outlines_are_kept_in_the_order_of_the_cells(trained, files, tmp_path):
    cells = pd.read_csv(files[1]).head(30)
    features = []
    corners = np.array([(-4, -4), (4, -4), (4, 4), (-4, 4)], np.float64)
    for number, row in enumerate(cells.itertuples()):
        ring = [(row.x_he + a, row.y_he + b) for a, b in [*corners, corners[0]]]
        shape = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "id": f"n{number}", "geometry": shape, "properties": {}})
    (tmp_path / "nuclei.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    facts = predict((files[0], tmp_path / "nuclei.geojson"), trained["local"], tmp_path / "out")
    outlines = pq.read_table(tmp_path / "out" / "outlines.parquet")
    assert outlines["cell_id"].to_pylist() == table_of(tmp_path / "out")["cell_id"].tolist()
    assert str(outlines.schema.field("x_he").type.value_type) == "double"
    for i in (0, 29):
        ring = np.stack([outlines[name][i].as_py() for name in ("x_he", "y_he")], axis=1)
        assert ring - cells.loc[i, ["x_he", "y_he"]].to_numpy(np.float64) == pytest.approx(corners)
    told = [hint["text"] for hint in facts["hints"] if hint["kind"] == "scale"]
    assert told == ["The median outline has 4 um2; the median nucleus of a section has 15 to 150."]


def test_an_ome_zarr_gives_the_same(trained, files, done, tmp_path):
    facts = predict((done / "he.ome.zarr", files[1]), trained["local"], tmp_path, mpp=None, name="again")
    assert (facts["mpp_he"], facts["mpp_source"]) == (0.25, "file")
    assert table_of(tmp_path)["confidence"].to_numpy() == pytest.approx(
        table_of(done)["local_confidence"].to_numpy(), abs=1e-6
    )


# What is left out and what abstains


def test_cells_off_the_slide_are_left_out_and_counted(trained, files, tmp_path):
    cells = pd.read_csv(files[1]).head(40)
    cells.loc[[3, 7], "x_he"] = [-1.0, 9000.0]
    cells.loc[5, "y_he"] = 639.0
    cells.to_csv(tmp_path / "cells.csv", index=False)
    facts = predict((files[0], tmp_path / "cells.csv"), trained["gate"], tmp_path / "out", max_off_slide=0.5)
    found = table_of(tmp_path / "out")
    assert found["cell_id"].tolist() == cells["cell_id"].tolist()
    gone = found.loc[[3, 7]]
    assert gone["status"].tolist() == ["left_out"] * 2
    assert gone["reason"].tolist() == ["off_slide"] * 2
    assert (gone[["class", "prediction", "local_prediction"]] == "").to_numpy().all()
    assert gone[["confidence", "gate", f"prob_{CLASS_NAMES[0]}"]].isna().to_numpy().all()
    assert (facts["counts"]["left_out"], facts["counts"]["off_slide"]) == (2, 2)
    kept = found.drop([3, 7])
    assert kept["confidence"].notna().all()
    assert (kept["status"] != "left_out").all()


def test_no_cell_on_the_slide_is_an_error_before_anything_runs(trained, files, tmp_path, monkeypatch):
    cells = pd.DataFrame({"x_he": [0.0, 640.0], "y_he": [0.0, 0.0]})
    cells.to_csv(tmp_path / "cells.csv", index=False)
    monkeypatch.setattr(run, "build_store", lambda *_: 1 / 0)
    with pytest.raises(UserError) as caught:
        predict((files[0], tmp_path / "cells.csv"), trained["local"], tmp_path / "out", max_off_slide=0.5)
    assert caught.value.what == "No cell lies on the slide"
    assert caught.value.found == "2 cells, none on the slide: x 0 to 640, y 0 to 0 H&E px"
    assert caught.value.expected == "positions on an image of 640 x 640 px"


def test_cells_are_judged_by_their_confidence():
    table = pd.DataFrame(
        {
            "reason": ["", "", "off_slide", "low_confidence"],
            "prediction": ["A", "B", "", "A"],
            "confidence": [0.5, 0.49, np.nan, 0.8],
        }
    )
    found = judged(table, 0.5)
    assert found["status"].tolist() == ["typed", "abstained", "left_out", "typed"]
    assert found["reason"].tolist() == ["", "low_confidence", "off_slide", ""]
    assert found["class"].tolist() == ["A", "", "", "A"]


# Going on


def test_a_killed_run_goes_on_to_the_same_result(trained, files, done, tmp_path, monkeypatch):
    real, passes = Predictor.stream, []

    def broken(self, frame, study, start=0):
        for number, columns in enumerate(real(self, frame, study, start)):
            if number == 2:
                raise KeyboardInterrupt
            passes.append((start, number))
            yield columns

    embedded = []
    embed = holdout_cells._embed
    monkeypatch.setattr(holdout_cells, "_embed", lambda *args: embedded.append(1) or embed(*args))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, "stream", broken)
        with pytest.raises(KeyboardInterrupt):
            predict(files, trained["gate"], tmp_path)
    assert not (tmp_path / "predictions.parquet").exists()
    assert (tmp_path / ".work").is_dir()
    starts = []
    monkeypatch.setattr(
        Predictor, "stream", lambda self, f, s, start=0: starts.append(start) or real(self, f, s, start)
    )
    predict(files, trained["gate"], tmp_path)
    assert passes == [(0, 0), (0, 1)]
    assert starts == [128]
    assert embedded == [1]
    pd.testing.assert_frame_equal(table_of(tmp_path), table_of(done))
    assert not (tmp_path / ".work").exists()


def test_a_state_of_other_cells_is_not_taken_up(trained, files, tmp_path, monkeypatch):
    """The same ids at other places: neither their features nor their rows may be those of the first cells."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "write_parquet", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict(files, trained["gate"], tmp_path / "out")
    cells = pd.read_csv(files[1])
    cells[["x_he", "y_he"]] = cells[["x_he", "y_he"]].to_numpy()[::-1]
    cells.to_csv(tmp_path / "turned.csv", index=False)
    predict((files[0], tmp_path / "turned.csv"), trained["gate"], tmp_path / "out")
    predict((files[0], tmp_path / "turned.csv"), trained["gate"], tmp_path / "fresh")
    pd.testing.assert_frame_equal(table_of(tmp_path / "out"), table_of(tmp_path / "fresh"))


@pytest.fixture
def finished(trained, files, tmp_path) -> Path:
    predict(files, trained["local"], tmp_path / "out", formats=("csv",))
    return tmp_path / "out"


def test_a_finished_run_is_taken_and_only_outputs_are_written(finished, trained, files, monkeypatch):
    monkeypatch.setattr(run, "predict_cells", lambda *_: 1 / 0)
    monkeypatch.setattr(run, "write_parquet", lambda *_: 1 / 0)
    before = (finished / "run.json").read_bytes()
    (finished / "predictions.csv").unlink()
    predict(files, trained["local"], finished, formats=("csv",))
    assert (finished / "run.json").read_bytes() == before
    assert len(pd.read_csv(finished / "predictions.csv")) == 220


def test_another_threshold_needs_no_prediction_and_leaves_no_old_output(finished, trained, files, monkeypatch):
    monkeypatch.setattr(run, "predict_cells", lambda *_: 1 / 0)
    facts = predict(files, trained["local"], finished, abstain_below=1.0)
    found = table_of(finished)
    assert facts["counts"]["abstained"] == int((found["confidence"] < 1).sum()) > 0
    assert (found["class"] == "").sum() == facts["counts"]["abstained"]
    assert not (finished / "predictions.csv").exists()
    facts = predict(files, trained["local"], finished, abstain_below=0.0)
    assert facts["counts"]["typed"] == 220


def test_another_organ_is_predicted_anew(finished, trained, files):
    before = table_of(finished)
    facts = predict(files, trained["local"], finished, organ="colon")
    assert facts["organ"] == "colon"
    assert np.abs(table_of(finished)["confidence"] - before["confidence"]).max() > 1e-4


def test_the_store_is_made_once_for_an_image(finished, trained, files, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("nuclass.slides.writer.write_store", lambda *a, **k: made.append(a) or 1 / 0)
    predict(files, trained["local"], finished, organ="colon")
    assert not made
    with pytest.raises(ZeroDivisionError):
        predict(files, trained["local"], finished, mpp=0.26)
    assert not (finished / ".he.json").exists()
    with pytest.raises(ZeroDivisionError):
        predict(files, trained["local"], finished)


def test_a_changed_image_is_another_image(trained, files, tmp_path):
    image = tmp_path / "a.tif"
    image.write_bytes(files[0].read_bytes())
    one = slide.open_slide(image, 0.25, 0.25)
    before = one.state
    os.utime(image, ns=(1, 1))
    assert one.state != before


def test_a_store_is_not_written_over_itself(finished, trained, files):
    with pytest.raises(UserError) as caught:
        predict((finished / "he.ome.zarr", files[1]), trained["local"], finished)
    assert caught.value.what == "The slide would be written over"
    assert (finished / "he.ome.zarr" / "zarr.json").is_file()


# Scale, organ, models


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


def test_a_training_slide_is_typed_and_told(trained, study, tmp_path):
    image, cells = paint("lung_1", 1)
    tifffile.imwrite(tmp_path / "lung_1.tif", image, tile=(128, 128), photometric="rgb")
    cells.rename(columns={"x_px": "x_he", "y_px": "y_he"}).to_csv(tmp_path / "cells.csv", index=False)
    facts = predict((tmp_path / "lung_1.tif", tmp_path / "cells.csv"), trained["gate"], tmp_path / "out")
    assert "seen" in {hint["kind"] for hint in facts["hints"]}
    assert facts["counts"]["total"] == 220


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


def test_nuclei_are_looked_for_once(trained, files, tmp_path, monkeypatch):
    cells, looked = pd.read_csv(files[1]).head(50), []

    def find(image, *, mpp_he, method, weights):
        looked.append((Path(image), mpp_he, method))
        xy = cells[["x_he", "y_he"]].to_numpy(np.float64)
        ring = np.array([(-9, -9), (9, -9), (9, 9), (-9, 9)], np.float64)
        outlines = Outlines((xy[:, None] + ring).reshape(-1, 2), np.arange(51) * 4)
        return xy, outlines, "nuclei found"

    monkeypatch.setattr("nuclass.apply.detect.detect_nuclei", find)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "predict_cells", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict((files[0], None), trained["local"], tmp_path)
    facts = predict((files[0], None), trained["local"], tmp_path)
    assert looked == [(files[0], 0.25, "classical")]
    found = table_of(tmp_path)
    assert found["cell_id"].tolist() == [str(i + 1) for i in range(50)]
    assert found["x_he"].to_numpy() == pytest.approx(cells["x_he"].to_numpy())
    assert "nuclei found" in facts["positions"]
    outlines = pq.read_table(tmp_path / "outlines.parquet")
    assert [len(ring) for ring in outlines["x_he"].to_pylist()] == [4] * 50
    assert not (tmp_path / ".work").exists()


def test_kept_nuclei_of_another_key_or_damaged_are_found_anew(tmp_path):
    found = Positions(np.array(["a", "b"], object), np.eye(2), None, "somewhere", "detected")
    calls = []
    path = tmp_path / "work" / "cells.npz"

    def kept(key):
        return kept_cells(path, {"key": key}, lambda: calls.append(key) or found)

    for key in (1, 1, 2):
        got = kept(key)
        assert got.cell_id.tolist() == ["a", "b"]
        assert np.array_equal(got.xy, found.xy)
        assert (got.outlines, got.source, got.kind) == (None, "somewhere", "detected")
    path.write_bytes(path.read_bytes()[:100])
    kept(2)
    assert calls == [1, 2, 2]
