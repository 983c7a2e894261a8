"""Positions from a Xenium run: nuclei on the H&E by the alignment, from a folder and from a zip."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drawn_slide import PIXEL, DrawnSlide, matrix_of
from nuclass.apply.positions import read_positions
from nuclass.apply.positions_bundle import _outlines
from nuclass.core.errors import UserError
from nuclass.slides.geometry import Frames
from slide_example import write_output

SHAPE = (500, 600)
MPP = 0.3


@pytest.fixture(scope="module")
def drawn() -> DrawnSlide:
    rng = np.random.default_rng(1)
    grid = np.stack(np.meshgrid(np.arange(60, 560, 60), np.arange(60, 460, 60)), -1).reshape(-1, 2)
    he = grid + rng.uniform(-8, 8, grid.shape)
    frames = Frames(matrix_of(90, MPP / PIXEL, (900.0, 50.0)), PIXEL, 0.25, SHAPE)
    image = np.full((*SHAPE, 3), 230, np.uint8)
    return DrawnSlide(frames, he, rng.uniform(8, 13, he.shape), rng.uniform(0, np.pi, len(he)), image)


@pytest.fixture(scope="module")
def output(drawn, tmp_path_factory) -> Path:
    return write_output(tmp_path_factory.mktemp("run"), drawn, alignment=drawn.frames.alignment)


def check(found, drawn: DrawnSlide) -> None:
    assert found.kind == "bundle"
    assert len(found) == len(drawn.he)
    assert len(set(found.cell_id)) == len(drawn.he)
    np.testing.assert_allclose(found.xy, drawn.he, atol=0.05)
    assert found.outlines is not None
    for ring, expected in zip(map(found.outlines.ring, range(len(found))), drawn.outlines_he, strict=True):
        np.testing.assert_allclose(ring, expected[:-1], atol=0.05)


def test_a_run_with_its_alignment_beside_it(drawn, output):
    found = read_positions(output / "outs", mpp_he=MPP, he_shape=SHAPE, alignment=output / "x_he_imagealignment.csv")
    check(found, drawn)
    assert found.source == f"outs: {len(drawn.he)} cells of a Xenium run (3.0.0.15), frame xenium_um"
    check(read_positions(output / "outs" / "experiment.xenium", mpp_he=MPP, he_shape=SHAPE,
                         alignment=output / "x_he_imagealignment.csv", frame="xenium_um"), drawn)  # fmt: skip
    check(found := read_positions(output, mpp_he=MPP, he_shape=SHAPE), drawn)
    assert "alignment x_he_imagealignment.csv found beside the run" in found.source


def test_a_zip_of_a_run(drawn, output, tmp_path):
    shutil.make_archive(str(tmp_path / "x_outs"), "zip", output / "outs")
    shutil.copy(output / "x_he_imagealignment.csv", tmp_path)
    check(read_positions(tmp_path / "x_outs.zip", mpp_he=MPP, he_shape=SHAPE), drawn)
    (tmp_path / "x_outs.zip").write_bytes((tmp_path / "x_outs.zip").read_bytes()[:5000])
    with pytest.raises(UserError) as caught:
        read_positions(tmp_path / "x_outs.zip", mpp_he=MPP, he_shape=SHAPE)
    assert caught.value.what == "a file is no zip, or is cut off"


def test_a_zip_for_which_there_is_no_room(drawn, output, tmp_path, monkeypatch):
    shutil.make_archive(str(tmp_path / "x_outs"), "zip", output / "outs")
    shutil.copy(output / "x_he_imagealignment.csv", tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2000))
    with pytest.raises(UserError) as caught:
        read_positions(tmp_path / "x_outs.zip", mpp_he=MPP, he_shape=SHAPE)
    assert caught.value.what == "There is no room to unpack the tables of a zip"
    assert str(caught.value.where) == tempfile.gettempdir()
    assert "0.0 MB are free" in str(caught.value.found)
    assert "TMPDIR" in str(caught.value.fix)


def test_what_is_wrong_with_a_run(drawn, output, tmp_path):
    options = {"mpp_he": MPP, "he_shape": SHAPE}
    outs = tmp_path / "outs"
    shutil.copytree(output / "outs", outs)
    with pytest.raises(UserError) as caught:
        read_positions(outs, **options)
    assert str(caught.value) == (
        "Positions of a Xenium run need the alignment of the H&E\n"
        f"  where:      {outs}\n"
        "  found:      no alignment\n"
        "  expected:   the file that maps H&E px to morphology px, such as *_he_imagealignment.csv\n"
        "  to mend it: add --alignment FILE, or --alignment grid if the H&E lies on the morphology pixels"
    )
    with pytest.raises(UserError) as caught:
        read_positions(outs, frame="he", **options)
    assert caught.value.what == "A Xenium run has a frame of its own"
    inverse = tmp_path / "inverse.csv"
    np.savetxt(inverse, np.linalg.inv(drawn.frames.alignment), delimiter=",")
    with pytest.raises(UserError) as caught:
        read_positions(outs, alignment=inverse, **options)
    assert caught.value.what == "Most positions lie outside the image"
    assert caught.value.fix.startswith("check the alignment")
    with pytest.raises(UserError) as caught:
        read_positions(tmp_path / "nothing", **options)
    assert caught.value.what == "The file of positions is missing"


@pytest.mark.parametrize("unit", ["px", "um"])
def test_an_alignment_of_two_readings_is_settled_by_its_scale(drawn, output, tmp_path, unit):
    scale = 1.0 if unit == "px" else PIXEL
    matrix = np.diag([scale, scale, 1.0]) @ drawn.frames.alignment
    np.savetxt(tmp_path / "x_he_alignment.csv", matrix, delimiter=",")
    found = read_positions(output / "outs", mpp_he=MPP, he_shape=SHAPE, alignment=tmp_path / "x_he_alignment.csv")
    check(found, drawn)
    words = "morphology px" if unit == "px" else "um"
    assert f"the alignment was taken as leading to {words}, by its scale" in found.source


def test_the_largest_of_several_nuclei_and_none():
    square = np.array([(0.0, 0.0), (1, 0), (1, 1), (0, 1), (0, 0)])
    rows = [("a", 1, square), ("b", 2, square + 5), ("b", 3, square * 2 + 10), ("d", 4, square + 20)]
    vertices = pd.DataFrame(
        {
            "cell_id": pd.Categorical([name for name, _, ring in rows for _ in ring]),
            "vertex_x": np.concatenate([ring[:, 0] for _, _, ring in rows]),
            "vertex_y": np.concatenate([ring[:, 1] for _, _, ring in rows]),
            "label_id": [label for _, label, ring in rows for _ in ring],
        }
    )
    for frame in (vertices, vertices.drop(columns="label_id")):
        found = _outlines(frame, pd.Series(["a", "b", "c", "d"]))
        assert found is not None
        assert found.offsets.tolist() == [0, 4, 8, 8, 12]
        np.testing.assert_array_equal(found.ring(1), (square * 2 + 10)[:-1])
    assert _outlines(vertices.iloc[:0], pd.Series(["a"])) is None


@pytest.mark.real
def test_a_real_run(real_data):
    """A real bundle of 3.0.0.15 with its H&E on the morphology grid."""
    folder = real_data / "xenium_v3.0.0_mouse_ileum_tiny"
    found = read_positions(folder, mpp_he=0.2125, he_shape=(3522, 5789), alignment="grid")
    assert len(found) > 20
    assert found.outlines is not None
    sizes = np.diff(found.outlines.offsets)
    assert (sizes[sizes > 0] >= 3).all()
