"""Slides of which only a part was scanned: which corner positions count from.

The slides are drawn, one in the form of a scanner that openslide reads; there is no file of a real MIRAX or Leica.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nuclass.apply.positions import Positions, read_positions
from nuclass.apply.positions_crop import check_scanned, corner_of
from nuclass.apply.slide import open_slide
from nuclass.core.errors import UserError
from nuclass.core.own_cells import Given
from nuclass.slides import openslide_file
from nuclass.slides.source import Bounds, open_source
from scn_example import write_scn
from test_source import H, W, picture, write_svs

SHAPE, MPP = (9000, 8000), 0.25
BOUNDS = Bounds(5000, 6000, 1200, 1000)
XY = np.array([(100.0, 200.0), (300.5, 400.25), (800.0, 900.0)])
CORNER = np.array([5000, 6000])


def read(path: Path, **options: object) -> Positions:
    known = {"mpp_he": MPP, "he_shape": SHAPE, "bounds": BOUNDS}
    return read_positions(path, **(known | options))  # type: ignore[arg-type]


def refused(path: Path, **options: object) -> UserError:
    with pytest.raises(UserError) as caught:
        read(path, **options)
    return caught.value


def points(path: Path, xy: np.ndarray) -> Path:
    shapes = [{"type": "Point", "coordinates": place} for place in xy.tolist()]
    path.write_text(json.dumps([{"type": "Feature", "geometry": shape, "properties": {}} for shape in shapes]))
    return path


def squares(path: Path, xy: np.ndarray) -> Path:
    corners = np.array([(-9, -9), (9, -9), (9, 9), (-9, 9), (-9, -9)], float)
    shapes = [{"type": "Polygon", "coordinates": [(corners + place).tolist()]} for place in xy]
    path.write_text(json.dumps([{"type": "Feature", "geometry": shape, "properties": {}} for shape in shapes]))
    return path


def test_positions_of_the_part_are_moved_to_the_plane(tmp_path):
    found = read(squares(tmp_path / "cells.geojson", XY), origin="crop")
    np.testing.assert_allclose(found.xy, XY + CORNER)
    assert found.origin == "crop"
    assert found.outlines is not None
    np.testing.assert_allclose(found.outlines.ring(1).mean(axis=0), XY[1] + CORNER)
    assert found.source == (
        "cells.geojson: 3 outlines of a GeoJSON, frame he; counted from the corner of the scanned part, x 5000, y 6000 "
        "px; cells numbered in the order of the file"
    )


def test_positions_of_the_plane_stay(tmp_path):
    found = read(squares(tmp_path / "cells.geojson", XY + CORNER), origin="image")
    np.testing.assert_allclose(found.xy, XY + CORNER)
    assert found.origin == "image"
    assert "counted from the corner of the whole plane" in found.source


@pytest.mark.parametrize(("frame", "scale"), [("um", 4.0), ("um@0.5", 2.0), ("px@0.5", 2.0), ("he", 1.0)])
def test_every_frame_of_the_slide_counts_from_the_corner(tmp_path, frame, scale):
    table = pd.DataFrame({"x": XY[:, 0] / scale, "y": XY[:, 1] / scale})
    table.to_csv(tmp_path / "cells.csv", index=False)
    np.testing.assert_allclose(read(tmp_path / "cells.csv", frame=frame, origin="crop").xy, XY + CORNER)


def test_the_corner_is_asked_for(tmp_path):
    path = points(tmp_path / "cells.geojson", XY)
    told = (
        "It is not clear from which corner the positions count\n"
        f"  where:      {path}\n"
        "  found:      a slide whose scanned part begins at x 5000, y 6000 px of the whole plane\n"
        "  expected:   --origin crop (the corner of that part) or --origin image (the corner of the plane)\n"
        "  to mend it: give --origin crop for positions from QuPath, --origin image for those of a tool that reads the "
        "whole plane, as CellViT does"
    )
    assert str(refused(path)) == told
    path = tmp_path / "cells.csv"
    pd.DataFrame({"x_he": XY[:, 0], "y_he": XY[:, 1]}).to_csv(path, index=False)
    assert refused(path).what == told.splitlines()[0]


def test_a_slide_that_begins_in_its_corner_does_not_ask(tmp_path):
    path = points(tmp_path / "cells.geojson", XY)
    for origin in (None, "crop", "image"):
        found = read(path, bounds=None, origin=origin)
        np.testing.assert_array_equal(found.xy, XY)
        assert found.origin is None
        assert "corner" not in found.source


def test_the_wrong_corner_is_told(tmp_path):
    path = points(tmp_path / "cells.geojson", XY)
    assert str(refused(path, origin="image")) == (
        "Most positions lie outside the scanned part of the slide\n"
        f"  where:      {path}\n"
        "  found:      3 of 3; with --origin image they span x 100 to 800, y 200 to 900 px of the whole plane\n"
        "  expected:   x 5000 to 6200, y 6000 to 7000 px\n"
        "  to mend it: the positions would fit --origin crop"
    )
    far = points(tmp_path / "far.geojson", XY + CORNER)
    assert refused(far, origin="crop").fix == "the positions would fit --origin image"
    small = points(tmp_path / "other.geojson", XY + 2000)
    assert refused(small, origin="crop").fix == (
        "check that the positions are of this image, and state their frame by --frame"
    )


def test_an_origin_that_is_none(tmp_path):
    assert str(refused(points(tmp_path / "cells.geojson", XY), origin="corp")) == (
        "The origin of the positions is not known\n"
        "  where:      --origin\n"
        "  found:      'corp'\n"
        "  expected:   crop or image\n"
        "  to mend it: write one of these. Did you mean 'crop'?"
    )


def test_frames_of_an_alignment_have_no_corner_of_the_slide(tmp_path):
    path = points(tmp_path / "cells.geojson", (XY + CORNER) * 0.2125)
    found = read(path, frame="xenium_um", alignment="grid", mpp_he=0.2125)
    np.testing.assert_allclose(found.xy, XY + CORNER)
    assert found.origin is None
    assert str(refused(path, frame="xenium_um", alignment="grid", origin="crop")) == (
        "The option --origin has no use with these positions\n"
        f"  where:      --cells {path}\n"
        "  found:      --origin crop with a GeoJSON in the frame xenium_um\n"
        "  expected:   --origin with a GeoJSON or a table in px or um of the H&E: --frame he, um or px@0.25\n"
        "  to mend it: leave --origin out"
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(50, 10**5), st.integers(50, 10**5))
def test_what_fits_one_corner_is_told_of_the_other_or_fits_both(x, y, width, height):
    """Positions all over the part: from its own corner they always pass, from the other they pass or are told."""
    bounds = Bounds(x, y, width, height)
    xy = np.random.default_rng(0).uniform(0, 1, (50, 2)) * (width, height)
    corner = np.array(corner_of("crop", bounds, Given("he"), where="w"))
    check_scanned(xy + corner, "crop", bounds, where="w")
    on = ((xy >= corner) & (xy <= np.add(corner, (width, height)))).all(axis=1).mean()
    if on >= 0.5:
        check_scanned(xy, "image", bounds, where="w")
    else:
        with pytest.raises(UserError, match="would fit --origin crop"):
            check_scanned(xy, "image", bounds, where="w")


# What a file says


def stating(monkeypatch, **properties: object) -> None:
    import openslide

    told = {f"openslide.{name.replace('_', '-')}": str(value) for name, value in properties.items()}
    monkeypatch.setattr(openslide.OpenSlide, "properties", told)


def test_openslide_says_which_part_was_scanned(tmp_path, monkeypatch, caplog):
    write_svs(tmp_path / "a.svs", picture(H, W))
    with openslide_file.open_slide(tmp_path / "a.svs") as source:
        assert source.bounds is None
    stating(monkeypatch, bounds_x=30, bounds_y=0, bounds_width=40, bounds_height=50)
    with openslide_file.open_slide(tmp_path / "a.svs") as source:
        assert source.bounds == Bounds(30, 0, 40, 50)
    assert "the scanned part begins at x 30, y 0 px" in caplog.text
    stating(monkeypatch, bounds_x=0, bounds_y=0, bounds_width=40, bounds_height=50)
    with openslide_file.open_slide(tmp_path / "a.svs") as source:
        assert source.bounds is None
    stating(monkeypatch, bounds_x=3, bounds_y=4)
    with openslide_file.open_slide(tmp_path / "a.svs") as source:
        assert source.bounds == Bounds(3, 4, W - 3, H - 4)


def test_a_file_as_of_a_scanner(tmp_path):
    """Openslide itself finds the part, and its px lie where it says."""
    scan = picture(H, W)
    path = write_scn(tmp_path / "a.scn", scan, (100, 150), (900, 600))
    with open_source(path) as source:
        assert source.reader == "openslide"
        assert source.shape == (600, 900)
        assert source.bounds == Bounds(100, 150, W, H)
        np.testing.assert_array_equal(source.region(0, 100, 150, W, H), scan)
        assert (source.region(0, 0, 0, 100, 150) == 255).all()


def test_an_own_slide_keeps_it(tmp_path, monkeypatch):
    write_svs(tmp_path / "a.svs", picture(H, W))
    (tmp_path / "a.svs").rename(tmp_path / "a.mrxs")
    stating(monkeypatch, bounds_x=30, bounds_y=20, bounds_width=40, bounds_height=50)
    slide = open_slide(tmp_path / "a.mrxs", 0.5, 0.25)
    assert slide.bounds == Bounds(30, 20, 40, 50)
    assert slide.crop("crop") == {
        **{"x": 30, "y": 20, "width": 40, "height": 50},
        **{"positions": "crop", "predictions.geojson": "crop", "others": "image"},
    }
