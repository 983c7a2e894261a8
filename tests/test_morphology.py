"""The DAPI image from far: its size, its scale, and what is no DAPI image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from nuclass.core.errors import UserError
from nuclass.synthetic.images import write_morphology
from nuclass.xenium.morphology import read_morphology


@pytest.mark.parametrize("max_px", [2000, 700, 300, 64])
def test_it_is_small_and_its_scale_is_known(tmp_path: Path, max_px: int) -> None:
    image = np.zeros((1200, 1600), np.uint16)
    image[400:480, 1000:1080] = 4000
    write_morphology(tmp_path / "m.ome.tif", [image], 1)
    small, factor = read_morphology(tmp_path / "m.ome.tif", max_px)
    assert max(small.shape) <= max_px
    assert small.shape == pytest.approx((1200 / factor, 1600 / factor), abs=1)
    rows, columns = np.nonzero(small > small.max() / 2)
    assert (rows.mean() + 0.5) * factor == pytest.approx(440, abs=factor)
    assert (columns.mean() + 0.5) * factor == pytest.approx(1040, abs=factor)
    assert small.sum() * factor**2 == pytest.approx(image.sum(), rel=0.02)


def test_of_a_stack_the_first_plane_is_taken(tmp_path: Path) -> None:
    planes = [np.full((600, 700), value, np.uint16) for value in (7, 900)]
    write_morphology(tmp_path / "m.ome.tif", planes, 2)
    small, _ = read_morphology(tmp_path / "m.ome.tif", 100)
    assert (small == 7).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda file: None, "The morphology image is missing"),
        (lambda file: file.write_text("<html>Not found</html>"), "The morphology image cannot be read"),
        (lambda file: tifffile.imwrite(file, np.zeros((64, 64, 3), np.uint8)), "The morphology image is not grey"),
    ],
)
def test_what_is_no_dapi_image_is_told(tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "m.tif")
    with pytest.raises(UserError, match=message) as caught:
        read_morphology(tmp_path / "m.tif", 100)
    assert str(tmp_path / "m.tif") in str(caught.value)


@pytest.mark.real
def test_a_real_one(real_data: Path) -> None:
    folder = real_data / "xenium_v3.0.0_mouse_ileum_tiny" / "morphology_focus"
    small, factor = read_morphology(folder / "morphology_focus_0000.ome.tif", 400)
    assert max(small.shape) <= 400
    assert small.shape == pytest.approx((3522 / factor, 5789 / factor), abs=1)
    assert small.max() > 0
