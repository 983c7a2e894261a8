"""The scale of one's own slide by the alignment of a Xenium run, where neither the user nor the file tells it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

from drawn_slide import PIXEL, DrawnSlide, matrix_of
from nuclass.apply import slide
from nuclass.apply.positions_bundle import scale_of_run
from nuclass.apply.positions_frames import aligned_scale
from nuclass.cli import main
from nuclass.core.errors import UserError
from nuclass.slides.geometry import Frames
from own_slide_example import files, predict, table_of, trained
from slide_example import write_output

__all__ = ["files", "trained"]
torch.set_num_threads(1)
SHAPE, MPP = (500, 600), 0.3


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The output of a run and its H&E of 0.3 um/px, of which the file tells no scale."""
    rng = np.random.default_rng(1)
    grid = np.stack(np.meshgrid(np.arange(60, 560, 60), np.arange(60, 460, 60)), -1).reshape(-1, 2)
    frames = Frames(matrix_of(90, MPP / PIXEL, (900.0, 50.0)), PIXEL, 0.25, SHAPE)
    image = rng.integers(150, 230, (*SHAPE, 3), np.uint8)
    drawn = DrawnSlide(frames, grid + 0.5, rng.uniform(8, 13, grid.shape), rng.uniform(0, np.pi, len(grid)), image)
    return write_output(tmp_path_factory.mktemp("run"), drawn, alignment=frames.alignment)


def test_a_run_tells_the_scale_of_a_file_that_says_nothing(run, trained, tmp_path, capsys):
    command = ["predict", run / "x_he_image.ome.tif", "--cells", run, "--ckpt", trained["gate"], "--device", "cpu"]
    assert main([str(part) for part in [*command, "--out", tmp_path / "told", "--formats", "csv"]]) == 0
    logged = capsys.readouterr().err
    assert "x_he_imagealignment.csv: by this alignment a px of the H&E is 0.3 um" in logged
    assert "x_he_image.ome.tif: a px is taken as 0.3 um, by the alignment; the file says nothing of it" in logged
    facts = json.loads((tmp_path / "told" / "run.json").read_text())
    assert facts["mpp_he"] == pytest.approx(MPP, rel=1e-6)
    assert (facts["mpp_source"], facts["mpp_file"]) == ("alignment", None)
    assert "scale" not in {hint["kind"] for hint in facts["hints"]}
    more = ["--out", tmp_path / "given", "--formats", "csv", "--mpp", facts["mpp_he"]]
    assert main([str(part) for part in [*command, *more]]) == 0
    pd.testing.assert_frame_equal(table_of(tmp_path / "told"), table_of(tmp_path / "given"))
    assert "by the alignment" not in capsys.readouterr().err


def test_the_size_of_a_morphology_px_is_that_of_the_run(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    experiment = tmp_path / "run" / "outs" / "experiment.xenium"
    told = json.loads(experiment.read_text())
    experiment.write_text(json.dumps(told | {"pixel_size": 2 * told["pixel_size"]}))
    assert scale_of_run(tmp_path / "run", alignment=None, he_shape=SHAPE) == pytest.approx(2 * MPP)
    assert scale_of_run(tmp_path / "run", alignment="grid", he_shape=SHAPE) == pytest.approx(2 * PIXEL)


def test_a_zip_tells_it_too(run, tmp_path):
    shutil.make_archive(str(tmp_path / "x_outs"), "zip", run / "outs")
    shutil.copy(run / "x_he_imagealignment.csv", tmp_path)
    assert scale_of_run(tmp_path / "x_outs.zip", alignment=None, he_shape=SHAPE) == pytest.approx(MPP)


def test_a_run_without_an_alignment_asks_for_that_first(run, trained, tmp_path):
    shutil.copytree(run / "outs", tmp_path / "outs")
    with pytest.raises(UserError) as caught:
        predict((run / "x_he_image.ome.tif", tmp_path / "outs"), trained["local"], tmp_path / "out", mpp=None)
    assert caught.value.what == "Positions of a Xenium run need the alignment of the H&E"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("frame", ["morph", "xenium_um"])
def test_a_table_in_the_frame_of_a_run(files, trained, tmp_path, frame):
    cells = pd.read_csv(files[1])
    matrix = Frames(np.diag([0.25 / PIXEL, 0.25 / PIXEL, 1.0]), PIXEL)
    xy = cells[["x_he", "y_he"]].to_numpy()
    moved = matrix.he_to_morph(xy) if frame == "morph" else matrix.he_to_um(xy)
    cells.assign(x=moved[:, 0], y=moved[:, 1])[["cell_id", "x", "y"]].to_csv(tmp_path / "cells.csv", index=False)
    np.savetxt(tmp_path / "a.csv", matrix.alignment, delimiter=",", fmt="%.12f")
    reading = {"alignment": tmp_path / "a.csv"}
    own = (files[0], tmp_path / "cells.csv")
    facts = predict(own, trained["local"], tmp_path / "out", mpp=None, frame=frame, reading=reading)
    assert (facts["mpp_he"], facts["mpp_source"]) == (pytest.approx(0.25), "alignment")
    np.testing.assert_allclose(table_of(tmp_path / "out")[["x_he", "y_he"]], xy, atol=1e-6)
    with pytest.raises(UserError) as caught:
        predict(own, trained["local"], tmp_path / "none", mpp=None, frame=frame)
    assert caught.value.what == "Positions of a Xenium run need the alignment of the H&E"


def test_what_the_file_says_comes_first_and_a_difference_is_told(files, trained, tmp_path):
    image = tmp_path / "he.ome.tif"
    metadata = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    tifffile.imwrite(image, tifffile.imread(files[0]), tile=(128, 128), photometric="rgb", metadata=metadata)
    cells = pd.read_csv(files[1]).rename(columns={"x_he": "x", "y_he": "y"})
    cells.to_csv(tmp_path / "cells.csv", index=False)
    told = {"mpp": None, "frame": "morph", "reading": {"alignment": "grid"}}
    facts = predict((image, tmp_path / "cells.csv"), trained["local"], tmp_path / "out", **told)
    assert (facts["mpp_he"], facts["mpp_source"]) == (pytest.approx(0.25), "file")
    texts = [hint["text"] for hint in facts["hints"] if hint["kind"] == "scale"]
    assert any(text.startswith("By the alignment a px of the H&E is 0.2125 um, but 0.25 is used") for text in texts)


def test_a_mirrored_slide_has_the_same_scale_and_a_homography_that_of_its_middle():
    text = "; ".join(",".join(map(str, row)) for row in matrix_of(30, 1.2, (5, 6), mirrored=True))
    assert aligned_scale(text, he_shape=SHAPE) == pytest.approx(1.2 * PIXEL)
    matrix = matrix_of(0, 1.2, (0, 0))
    matrix[2, 0] = 1e-5
    found = aligned_scale("; ".join(",".join(map(str, row)) for row in matrix), he_shape=SHAPE)
    assert found == pytest.approx(Frames(matrix, PIXEL, he_shape=SHAPE).mpp_he)
    assert found != pytest.approx(1.2 * PIXEL, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "matrix", "told"),
    [
        ("a.csv", np.diag([1.0, 1.1, 1.0]), "it stretches one axis 1.1 times as much as the other"),
        ("x_he_alignment.csv", np.diag([1.2, 1.2, 1.0]), "it may lead to morphology px or to um"),
    ],
)
def test_an_alignment_without_one_scale_tells_none(files, trained, tmp_path, caplog, name, matrix, told):
    np.savetxt(tmp_path / name, matrix, delimiter=",")
    assert aligned_scale(tmp_path / name, he_shape=SHAPE) is None
    assert told in caplog.text
    with pytest.raises(UserError) as caught:
        predict(
            files, trained["local"], tmp_path / "out",
            mpp=None, frame="morph", reading={"alignment": tmp_path / name},
        )  # fmt: skip
    assert caught.value.what == "The scale of the H&E is not known"


def test_a_scale_that_cannot_be_is_told_of_the_alignment(files):
    with pytest.raises(UserError) as caught:
        slide.open_slide(files[0], None, 0.25, lambda _: 40.0)
    assert caught.value.what == "The scale of the H&E cannot be right"
    assert caught.value.found == "40 um/px, by the alignment"


def test_numbers_in_too_small_a_unit_are_told(files, trained, tmp_path):
    cells = pd.read_csv(files[1])
    for name, part in (("right", 1.0), ("small", 0.25)):
        cells.assign(x=cells["x_he"] * part, y=cells["y_he"] * part).to_csv(tmp_path / f"{name}.csv", index=False)
        own = (files[0], tmp_path / f"{name}.csv")
        facts = predict(own, trained["local"], tmp_path / name, frame="he", reading={"columns": "x=x,y=y"})
        told = [hint["text"] for hint in facts["hints"] if hint["kind"] == "positions"]
        assert [text.partition(":")[0] for text in told] == (
            ["Nearly all cells lie in the upper left corner"] if name == "small" else []
        )
