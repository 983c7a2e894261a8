"""``nuclass predict``: what it says, its exit status, and that it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

from nuclass import cli_predict
from nuclass.cli import main
from nuclass.training.predictor import Predictor
from own_slide_example import own_files, trained
from scn_example import write_scn

__all__ = ["trained"]
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    return own_files(tmp_path_factory.mktemp("own"), "mine.tif", ("a", "b"))


def predict(files: tuple[Path, Path], checkpoint: Path, out: Path, *more: str) -> int:
    command = ["predict", files[0], "--cells", files[1], "--ckpt", checkpoint, "--out", out, "--mpp", "0.25"]
    own = ["--columns", "x=a,y=b,id=cell_id", "--frame", "he", "--device", "cpu", "--batch", "64"]
    return main([str(part) for part in [*command, *own, *more]])


def test_one_command_types_the_cells_of_a_slide(trained, files, tmp_path, capsys):
    assert predict(files, trained["gate"], tmp_path, "--organ", "liver", "--formats", "csv,geojson") == 0
    told, logged = capsys.readouterr()
    assert "organ: The model never saw the organ 'liver' (it knows colon, lung) and takes it as unknown." in logged
    facts = json.loads((tmp_path / "run.json").read_text())
    counts = facts["counts"]
    assert told.startswith(f"mine: 220 cells, {counts['typed']} (")
    assert told.endswith(f"\nWrote {tmp_path}.\n")
    for name, n in facts["composition"].items():
        assert not n or f"  {name}" in told
    assert len(pd.read_csv(tmp_path / "predictions.csv")) == 220
    assert len(json.loads((tmp_path / "predictions.geojson").read_text())["features"]) == 220


def test_ctrl_c_leaves_what_the_same_command_goes_on_from(trained, files, tmp_path, capsys, monkeypatch):
    real = Predictor.stream

    def stopped(self, frame, study, start=0):
        yield from list(real(self, frame, study, start))[:1]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "stream", stopped)
        assert predict(files, trained["local"], tmp_path, "--formats", "csv") == 130
    assert capsys.readouterr().err.endswith("Stopped; the same command goes on from what is there.\n")
    assert predict(files, trained["local"], tmp_path, "--formats", "csv") == 0
    assert "64 of 220 rows are there from an earlier run" in capsys.readouterr().err


def test_mistakes_are_told_in_words(trained, files, tmp_path, capsys):
    assert predict(files, tmp_path / "gone.ckpt", tmp_path) == 1
    told = capsys.readouterr().err
    assert "A checkpoint is not there" in told
    assert "Traceback" not in told
    assert predict(files, trained["local"], tmp_path, "--formats", "cvs") == 1
    assert "Did you mean 'csv'?" in capsys.readouterr().err
    assert predict(files, trained["local"], tmp_path, "--organ", "lungg") == 1
    assert "Did you mean 'lung'?" in capsys.readouterr().err
    assert predict((tmp_path / "gone.svs", files[1]), trained["local"], tmp_path) == 1
    assert "The H&E image is missing" in capsys.readouterr().err


def test_a_cropped_scan_counts_from_the_corner_that_is_told(trained, files, tmp_path, capsys):
    """A drawn file of a scanner, whose plane has the slide somewhere on it; there is no real one to test with."""
    x, y = corner = (200, 350)
    scan = tifffile.imread(files[0])
    height, width = scan.shape[:2]
    slide = write_scn(tmp_path / "mine.scn", scan, corner, (1200, 1400))
    cells = pd.read_csv(files[1])
    plane = cells.assign(a=cells["a"] + x, b=cells["b"] + y)
    plane.to_csv(tmp_path / "plane.csv", index=False)
    asked = {"crop": (slide, files[1]), "image": (slide, tmp_path / "plane.csv")}
    assert predict(asked["crop"], trained["local"], tmp_path / "none") == 1
    assert "It is not clear from which corner the positions count" in capsys.readouterr().err
    assert predict(files, trained["local"], tmp_path / "alone", "--origin", "crop", "--formats", "geojson") == 0
    told, tables = {}, {}
    for origin, given in asked.items():
        out = tmp_path / origin
        assert predict(given, trained["local"], out, "--origin", origin, "--formats", "geojson") == 0
        facts = json.loads((out / "run.json").read_text())
        assert facts["crop"] == {
            **{"x": x, "y": y, "width": width, "height": height},
            **{"positions": origin, "predictions.geojson": "crop", "others": "image"},
        }
        told[origin] = json.loads((out / "predictions.geojson").read_text())
        tables[origin] = pd.read_parquet(out / "predictions.parquet")
        np.testing.assert_allclose(tables[origin][["x_he", "y_he"]], plane[["a", "b"]])
    # The same cells either way: in the table on the plane, for QuPath on the part, typed as on the scan by itself.
    assert told["crop"] == told["image"]
    places = [feature["geometry"]["coordinates"] for feature in told["crop"]["features"]]
    np.testing.assert_allclose(places, cells[["a", "b"]], atol=0.0051)
    alone = pd.read_parquet(tmp_path / "alone" / "predictions.parquet")
    inner = ((cells[["a", "b"]] > 40) & (cells[["a", "b"]] < 600)).all(axis=1)
    for column in ("confidence", *[name for name in alone if name.startswith("prob_")]):
        np.testing.assert_allclose(tables["crop"].loc[inner, column], alone.loc[inner, column], atol=1e-5)
    assert json.loads((tmp_path / "alone" / "run.json").read_text())["crop"] is None


@pytest.mark.parametrize(("option", "value"), [("--alignment", "grid"), ("--columns", "x=a,y=b"), ("--origin", "crop")])
def test_an_option_that_would_be_passed_over_is_told_at_once(files, tmp_path, capsys, option, value):
    """Before the checkpoint is looked for."""
    command = ["predict", files[0], "--cells", "detect", "--ckpt", tmp_path / "gone.ckpt", "--out", tmp_path / "out"]
    assert main([str(part) for part in [*command, option, value]]) == 1
    told = capsys.readouterr().err
    assert f"The option {option} has no use with these positions\n" in told
    assert f"found:      {option} {value} with --cells detect\n" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--batch", "0"], "'0' is no number of cells; expected a whole number from 1"),
        (["--device", "gpu"], "'gpu' is not known."),
    ],
)
def test_a_wrong_option_is_told(files, capsys, more, told):
    with pytest.raises(SystemExit) as stop:
        predict(files, Path("x"), Path("y"), *more)
    assert stop.value.code == 2
    assert told in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["predict", "--help"])
    told = capsys.readouterr().out
    assert stop.value.code == 0
    for word in ("examples:", "--cells", "--frame", "--abstain-below", "geojson", "goes on", "nuclass predict a.svs"):
        assert word in told


def test_the_summary_in_words():
    facts = {
        "slide": "a",
        "counts": {"total": 10, "typed": 8, "abstained": 1, "left_out": 1},
        "composition": {"T_Cell": 2, "Macrophage": 6, "B_Cell": 0},
        "hints": [],
    }
    assert cli_predict.told(facts, Path("out")) == (
        "a: 10 cells, 8 (80 %) typed, 1 (10 %) abstained, 1 left out\n\n"
        "  Macrophage  6 (75 %)\n"
        "  T_Cell      2 (25 %)\n\n"
        "Wrote out.\n"
    )
