"""Nuclei found on an H&E: drawn ones of which all is known, and a real field with outlined nuclei."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import shapely
import tifffile

from drawn_slide import DrawnSlide, draw_slide
from nuclass.apply.detect import detect_nuclei, parted
from nuclass.apply.positions import read_positions
from nuclass.core.errors import UserError

MPP = 0.3


def paired(found: np.ndarray, true: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Those that can be paired one to one within a distance, pair by pair."""
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    distance = cdist(found, true)
    a, b = linear_sum_assignment(np.where(distance <= reach, distance, 1e6))
    near = distance[a, b] <= reach
    return found[a[near]], true[b[near]]


def matches(found: np.ndarray, true: np.ndarray, reach: float) -> int:
    """How many can be paired one to one within a distance."""
    return len(paired(found, true, reach)[0])


def f1(found: np.ndarray, true: np.ndarray, reach: float) -> float:
    return 2 * matches(found, true, reach) / (len(found) + len(true))


@pytest.fixture(scope="module")
def drawn() -> DrawnSlide:
    return draw_slide(shape=(900, 1100), mpp_he=MPP, seed=3)


@pytest.fixture(scope="module")
def picture(drawn, tmp_path_factory) -> Path:
    return drawn.write(tmp_path_factory.mktemp("he") / "he.tif")


def test_drawn_nuclei_are_found(drawn, picture):
    found = read_positions("detect", mpp_he=MPP, he_shape=(900, 1100), image=picture)
    assert found.kind == "detected"
    assert f1(found.xy, drawn.he, 3 / MPP) > 0.95
    assert found.source.startswith(f"he.tif: {len(found)} nuclei detected (classical, at 0.3 um/px), frame he")
    assert found.outlines is not None
    rings = [found.outlines.ring(i) for i in range(len(found))]
    assert all(len(ring) >= 3 for ring in rings)
    centroid = np.array([shapely.Polygon(ring).centroid.coords[0] for ring in rings])
    assert np.hypot(*(centroid - found.xy).T).max() < 1.5
    areas = np.array([shapely.Polygon(ring).area for ring in rings])
    assert np.median(areas) == pytest.approx(np.median(np.pi * drawn.radius.prod(axis=1)), rel=0.25)


def test_no_nucleus_is_lost_or_doubled_at_the_borders_of_blocks(drawn, picture):
    whole, _, _ = detect_nuclei(picture, mpp_he=MPP)
    for side in (220,):
        parts, outlines, _ = detect_nuclei(picture, mpp_he=MPP, block_px=side)
        assert len(parts) == len(outlines)
        # Thresholds of blocks differ a little, and with them a few faint nuclei.
        assert f1(parts, whole, 2 / MPP) > 0.97
        distance = np.hypot(*(parts[:, None] - parts[None]).transpose(2, 0, 1))
        np.fill_diagonal(distance, np.inf)
        assert distance.min() > 1.5 / MPP


def test_a_finer_image_is_looked_at_coarser(drawn, tmp_path):
    fine = np.repeat(np.repeat(drawn.image[:600, :700], 2, 0), 2, 1)
    tifffile.imwrite(tmp_path / "fine.tif", fine, photometric="rgb", tile=(256, 256))
    found, _, words = detect_nuclei(tmp_path / "fine.tif", mpp_he=MPP / 2)
    here = drawn.he[(drawn.he < (690, 590)).all(axis=1)]
    assert matches(found / 2, here, 2 / MPP) > 0.9 * len(here)
    assert words.endswith("at 0.45 um/px)")


@pytest.mark.parametrize("by", [1, 3])
def test_nuclei_are_found_where_they_are_on_average(by, drawn, tmp_path):
    """Half a px too far, of the image or of the coarser one that is looked at, would be seen."""
    fine = np.repeat(np.repeat(drawn.image, by, 0), by, 1)
    tifffile.imwrite(tmp_path / "he.tif", fine, photometric="rgb", tile=(256, 256))
    xy, outlines, _ = detect_nuclei(tmp_path / "he.tif", mpp_he=MPP / by)
    rings = [shapely.Polygon(outlines.ring(i)).centroid.coords[0] for i in range(len(outlines))]
    for places in (xy, np.array(rings)):
        found, true = paired(places, drawn.he * by, 2 * by / MPP)
        assert len(found) > 0.9 * len(drawn.he) > 100
        assert np.abs((found - true).mean(axis=0)).max() < 0.25


def test_nuclei_that_touch_are_parted():
    y, x = np.mgrid[:60, :80]
    two = (np.hypot(x - 28, y - 30) < 12) | (np.hypot(x - 48, y - 30) < 12)
    assert parted(two, 0.5).max() == 2
    speck = np.zeros((60, 80), bool)
    speck[30, 30] = speck[10, :] = True
    assert parted(speck, 0.5).max() == 0


def test_what_cannot_be_detected_is_told(tmp_path, picture):
    def told(image: Path, **options: object) -> UserError:
        with pytest.raises(UserError) as caught:
            detect_nuclei(image, **({"mpp_he": MPP} | options))  # type: ignore[arg-type]
        return caught.value

    assert told(picture, mpp_he=2.0).what == "The image is too coarse to see nuclei"
    assert told(picture, method="magic").found == "detect:magic"
    blank = tmp_path / "blank.tif"
    tifffile.imwrite(blank, np.full((300, 300, 3), 244, np.uint8), photometric="rgb")
    assert told(blank).what == "No nuclei were found on the image"
    with pytest.raises(UserError, match="Detected nuclei need no frame"):
        read_positions("detect", frame="um", mpp_he=MPP, he_shape=(900, 1100), image=picture)


def test_cellpose_that_is_not_installed(picture, monkeypatch):
    monkeypatch.setitem(sys.modules, "cellpose", None)
    with pytest.raises(UserError) as caught:
        read_positions("detect:cellpose", mpp_he=MPP, he_shape=(900, 1100), image=picture)
    assert str(caught.value) == (
        "Detection by cellpose needs the package cellpose\n"
        "  where:      --cells detect:cellpose\n"
        "  found:      it is not installed\n"
        "  to mend it: pip install cellpose, or --cells detect for the plain way"
    )


def test_cellpose_as_it_is_called(drawn, picture, tmp_path, monkeypatch):
    """A stand-in that labels what is violet: what it is given and what is made of its labels."""
    from scipy.ndimage import label

    asked = SimpleNamespace(weights=None, diameters=set(), dtypes=set())

    class CellposeModel:
        def __init__(self, gpu: bool, pretrained_model: str) -> None:
            asked.weights = pretrained_model

        def eval(self, image: np.ndarray, diameter: float) -> tuple:
            asked.diameters.add(diameter)
            asked.dtypes.add((image.dtype, image.shape[-1]))
            return label(image[..., 1] < 110)[0].astype(np.uint16), [], np.zeros(256)

    package, models = ModuleType("cellpose"), ModuleType("cellpose.models")
    models.CellposeModel = CellposeModel  # type: ignore[attr-defined]
    package.models = models  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cellpose", package)
    monkeypatch.setitem(sys.modules, "cellpose.models", models)
    with pytest.raises(UserError) as caught:
        detect_nuclei(picture, mpp_he=MPP, method="cellpose", weights=tmp_path / "none")
    assert caught.value.what == "Detection by cellpose needs its weights"
    (tmp_path / "weights").write_bytes(b"x")
    found, _, words = detect_nuclei(picture, mpp_he=MPP, method="cellpose", weights=tmp_path / "weights", block_px=400)
    assert asked.weights == str(tmp_path / "weights")
    assert asked.diameters == {8.0 / MPP}
    assert asked.dtypes == {(np.dtype(np.uint8), 3)}
    assert "cellpose" in words
    assert f1(found, drawn.he, 3 / MPP) > 0.9


@pytest.mark.real
def test_a_real_field(real_data):
    """423 outlined nuclei of a real H&E, most of them thin fibroblasts, at about 0.5 um/px."""
    import pandas as pd

    folder = real_data / "he_nuclei_hgsc_stromal"
    shapes = shapely.from_wkb(pd.read_parquet(folder / "hgsc_stromal_cells.parquet")["geometry"].to_numpy())
    true = np.array([[s.centroid.x, s.centroid.y] for s in shapes])
    found, _, _ = detect_nuclei(folder / "hgsc_stromal_he.jpg", mpp_he=0.5)
    assert f1(found, true, 3 / 0.5) > 0.6
