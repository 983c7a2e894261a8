"""The cells of one's own slide, typed: the numbers, the same tissue scanned otherwise, what is left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tifffile
import torch

from nuclass.apply import run
from nuclass.apply.run import judged
from nuclass.core.errors import UserError
from nuclass.data.study import Study
from nuclass.slides.store import SlideStore
from nuclass.training.predict import predict_slide
from own_slide_example import CELLS, done, files, predict, table_of, trained
from toy_study import CLASSES, MODELS, one_slide, toy

__all__ = ["done", "files", "trained"]
torch.set_num_threads(1)
CLASS_NAMES = sorted(CLASSES)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return toy(tmp_path_factory)[0]


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
        "total": CELLS,
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


def test_records_show_paths_from_the_working_folder(trained, files, tmp_path, monkeypatch):
    """So that they may be passed on: nothing but what lies elsewhere tells of the machine."""
    (tmp_path / "slides").mkdir()
    own = tuple(Path(shutil.copy(file, tmp_path / "slides")) for file in files)
    monkeypatch.chdir(tmp_path)
    facts = predict(own, trained["local"], tmp_path / "out", formats=("csv", "geojson", "explorer", "summary"))
    assert facts["image"] == "slides/lung_h.tif"
    assert "<dd>slides/lung_h.tif</dd>" in (tmp_path / "out" / "summary.html").read_text()
    shown = [
        file for file in (tmp_path / "out").rglob("*") if file.suffix in (".json", ".html", ".js", ".csv", ".geojson")
    ]
    assert len(shown) > 8
    told = [file for file in shown if str(tmp_path) in file.read_text()]
    assert [file.name for file in told] == [".he.json"], "by which a changed image is known, hidden"
    monkeypatch.chdir(tmp_path / "slides")
    again = predict((Path("lung_h.tif"), Path("cells.csv")), trained["local"], tmp_path / "other")
    assert again["image"] == "lung_h.tif"


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


# The same tissue, scanned otherwise


def scanned(folder: Path, files: tuple[Path, Path], pixels: np.ndarray, by: float, level: np.ndarray | None = None):
    """Write pixels that are ``by`` times finer, with a coarser level where one is given, and the cells in their px."""
    with tifffile.TiffWriter(folder / "he.tif") as tiff:
        options = {"tile": (128, 128), "photometric": "rgb", "compression": "deflate"}
        tiff.write(pixels, subifds=0 if level is None else 1, **options)
        if level is not None:
            tiff.write(level, subfiletype=1, **options)
    cells = pd.read_csv(files[1])
    cells[["x_he", "y_he"]] *= by
    cells.to_csv(folder / "cells.csv", index=False)
    return folder / "he.tif", folder / "cells.csv"


@pytest.mark.parametrize("pyramid", [True, False])
def test_a_scan_of_twice_the_resolution_gives_the_same(pyramid, trained, files, done, tmp_path):
    """A coarser level of the right scale is taken as it is; without one px are averaged, which softens edges."""
    image, whole = tifffile.imread(files[0]), table_of(done)
    fine = np.repeat(np.repeat(image, 2, 0), 2, 1)
    own = scanned(tmp_path, files, fine, 2, image if pyramid else None)
    facts = predict(own, trained["gate"], tmp_path / "out", mpp=0.125)
    found = table_of(tmp_path / "out")
    assert (facts["mpp_he"], facts["he_shape"]) == (0.125, [1280, 1280])
    for name, scale in (("x_he", 2), ("x_um", 1), ("y_px", 1)):
        assert found[name].to_numpy() == pytest.approx(whole[name].to_numpy() * scale)
    columns = [name for name in found if name.startswith("prob_")]
    apart = np.abs(found[columns].to_numpy() - whole[columns].to_numpy())
    same = (found["prediction"] == whole["prediction"]).mean()
    with SlideStore(done / "he.ome.zarr") as a, SlideStore(tmp_path / "out" / "he.ome.zarr") as b:
        assert a.shape == b.shape
        pixels = np.abs(a.region(0, 0, 640, 640).astype(int) - b.region(0, 0, 640, 640))
    if pyramid:
        assert pixels.max() == 0
        assert (same, apart.max()) == (1.0, pytest.approx(0, abs=1e-6))
    else:
        assert pixels.mean() < 1
        assert same > 0.98
        assert apart.mean() < 0.01


def test_a_scan_of_half_the_resolution_is_enlarged_and_told(trained, files, done, tmp_path):
    image, whole = tifffile.imread(files[0]), table_of(done)
    coarse = np.round(image.reshape(320, 2, 320, 2, 3).mean((1, 3))).astype(np.uint8)
    facts = predict(scanned(tmp_path, files, coarse, 0.5), trained["gate"], tmp_path / "out", mpp=0.5)
    found = table_of(tmp_path / "out")
    assert found["x_px"].to_numpy() == pytest.approx(whole["x_px"].to_numpy())
    assert (found["prediction"] == whole["prediction"]).mean() > 0.95
    (hint,) = [hint for hint in facts["hints"] if hint["kind"] == "scale"]
    assert (hint["level"], hint["text"]) == (
        "warn",
        "The H&E has 0.5 um/px, the model looks at 0.25: detail of nuclei is missing.",
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
