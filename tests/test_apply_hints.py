"""Hints that a slide is not what a model was trained for, and the stain that they rest on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import Polygon

from nuclass.apply import hints
from nuclass.apply.positions import Outlines
from nuclass.data.image_ops import HED
from nuclass.data.stain import STAINS, densities

ORGANS = ["colon", "lung", "unknown"]


def texts(found: list[hints.Hint]) -> list[tuple[str, str, str]]:
    return [(hint.kind, hint.level, hint.text) for hint in found]


def circles(n: int, radius: float, corners: int = 40, seed: int = 0) -> Outlines:
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    ring = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    places = np.random.default_rng(seed).uniform(0, 1e5, (n, 1, 2))
    return Outlines((places + ring).reshape(-1, 2), np.arange(n + 1) * corners)


# Organ, name, places


def test_a_known_organ_says_nothing():
    assert hints.organ_hints("lung", "lung", ORGANS, True) == []


def test_no_organ_is_a_note():
    (hint,) = hints.organ_hints(None, "unknown", ORGANS, True)
    assert (hint.kind, hint.level) == ("organ", "info")
    assert hint.text == "No organ was told, so the model types cells without one."
    assert hint.fix == "If it is one of colon, lung, give it by --organ."
    (hint,) = hints.organ_hints("Unknown", "unknown", ORGANS, False)
    assert hint.level == "warn"
    assert hint.text.endswith("It was trained without unknown organs, so what it does here is left to chance.")


def test_an_organ_never_seen_is_a_warning():
    (hint,) = hints.organ_hints("liver", "unknown", ORGANS, True)
    assert texts([hint]) == [
        ("organ", "warn", "The model never saw the organ 'liver' (it knows colon, lung) and takes it as unknown.")
    ]


def test_the_name_of_a_training_slide_is_told():
    assert hints.seen_hints("new", {"lung_1"}) == []
    (hint,) = hints.seen_hints("lung_1", {"lung_1"})
    assert (hint.kind, hint.level) == ("seen", "warn")
    assert "'lung_1'" in hint.text


def test_many_cells_off_the_slide_are_told():
    assert hints.place_hints(10, 2) == []
    (hint,) = hints.place_hints(10, 3)
    assert hint.text == "3 of 10 cells lie off the slide."


def test_cells_in_the_corner_alone_are_told():
    rng = np.random.default_rng(1)
    shape, size = (6000, 3000), np.array([3000.0, 6000.0])
    tissue = rng.uniform((0.05, 0.1), (0.95, 0.9), (500, 2)) * size
    assert hints.corner_hints(tissue, shape) == []
    (hint,) = hints.corner_hints(tissue * 0.25, shape)
    assert (hint.kind, hint.level) == ("positions", "warn")
    assert hint.text.startswith("Nearly all cells lie in the upper left corner: up to x 7")
    assert "of 3000, y 13" in hint.text
    assert "--frame" in hint.fix
    assert hints.corner_hints(tissue * 0.25 + size * 0.5, shape) == [], "a field elsewhere"
    assert hints.corner_hints(tissue * 0.1 + size * 0.2, shape) == [], "a field off the corner"
    assert hints.corner_hints(tissue * (0.3, 0.02), shape) == [], "a strip"
    assert hints.corner_hints(tissue[:10] * 0.25, shape) == []


# Scale


def test_scale_that_is_given_and_agrees_says_nothing():
    assert hints.mpp_hints(0.25, 0.26, True, 0.25) == []
    assert hints.mpp_hints(0.25, None, True, 0.25) == []


def test_scale_of_the_file_is_a_note():
    (hint,) = hints.mpp_hints(0.25, 0.25, False, 0.25)
    assert texts([hint]) == [("scale", "info", "The scale is what the file says, 0.25 um/px, which is often wrong.")]


def test_two_scales_that_differ_are_both_told():
    (hint,) = hints.mpp_hints(0.2738, 0.5, True, 0.25)
    assert hint.level == "warn"
    assert hint.text == "--mpp says 0.2738 um/px and is used; the file says 0.5. One of the two is wrong."


@pytest.mark.parametrize(("mpp", "levels"), [(0.3, []), (0.4, ["info"]), (0.5, ["warn"])])
def test_a_coarse_scan_is_told(mpp, levels):
    assert [hint.level for hint in hints.mpp_hints(mpp, None, True, 0.25)] == levels


def test_nuclei_of_an_implausible_size_are_told():
    nuclei = circles(50, 16)
    assert hints.area_hints(nuclei, 0.25) == []
    (hint,) = hints.area_hints(nuclei, 0.125)
    assert hint.text == "The median outline has 12.5 um2; the median nucleus of a section has 15 to 150."
    (hint,) = hints.area_hints(nuclei, 0.5)
    assert hint.text.startswith("The median outline has 200 um2;")
    assert "--mpp (0.5 um/px)" in hint.fix
    assert hints.area_hints(None, 5.0) == []
    assert hints.area_hints(circles(5, 16), 5.0) == []


@settings(max_examples=60, deadline=None)
@given(
    rings=st.lists(st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)), max_size=7), min_size=1, max_size=8)
)
def test_areas_are_those_of_shapely(rings):
    lengths = [len(ring) for ring in rings]
    vertices = np.array([point for ring in rings for point in ring], np.float64).reshape(-1, 2)
    outlines = Outlines(vertices, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    expected = [Polygon(ring).area for ring in rings if len(ring) >= 3]
    assert hints.nucleus_areas(outlines) == pytest.approx(np.array(expected), rel=1e-6, abs=1e-4)


# Stain


def stained(haematoxylin: float, eosin: float, n: int = 4) -> np.ndarray:
    """Windows of one colour, of so much of each stain."""
    od = np.array([haematoxylin, eosin, 0.0]) @ HED.numpy()
    colour = np.clip(np.round(256 * np.exp(-od) - 1), 0, 255).astype(np.uint8)
    return np.broadcast_to(colour, (n, 16, 16, 3)).copy()


@pytest.mark.parametrize(("haematoxylin", "eosin"), [(0.5, 0.3), (1.0, 0.1), (0.1, 0.8)])
def test_densities_are_those_of_the_stains(haematoxylin, eosin):
    found = densities(stained(haematoxylin, eosin))
    assert found == pytest.approx(np.tile([haematoxylin, eosin, 0.0], (4, 1)), abs=0.02)


def test_glass_does_not_count():
    image = stained(0.6, 0.3)
    image[:, :12] = 250
    assert densities(image) == pytest.approx(np.tile([0.6, 0.3, 0.0], (4, 1)), abs=0.02)
    assert np.isnan(densities(np.full((2, 8, 8, 3), 255, np.uint8))).all()


def stain(haematoxylin: float, eosin: float, rest: float = 0.0, windows: int = 50) -> dict[str, object]:
    return {"windows": windows, **dict(zip(STAINS, ([haematoxylin, 0.1], [eosin, 0.1], [rest, 0.02]), strict=True))}


TRAINING = {"a": stain(0.5, 0.3), "b": stain(0.6, 0.4)}


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (stain(0.55, 0.35), []),
        (stain(0.40, 0.25), []),
        (stain(0.3, 0.35), ["haematoxylin 0.30 (training slides 0.50 to 0.60)"]),
        (stain(0.55, 0.9), ["eosin 0.90 (training slides 0.30 to 0.40)"]),
        (stain(0.55, 0.35, 0.2), ["colour that is neither 0.20 (training slides 0.00 to 0.00)"]),
        (stain(1.2, 0.1), ["haematoxylin 1.20 (training slides 0.50 to 0.60)", "eosin 0.10 (training"]),
    ],
)
def test_stain_is_compared_with_the_training_slides(found, told):
    hint = hints.stain_hints(found, TRAINING)
    assert bool(hint) == bool(told)
    for part in told:
        assert part in hint[0].text


def test_without_training_slides_only_gross_faults_are_told():
    (hint,) = hints.stain_hints(stain(0.55, 0.35), {})
    assert hint.level == "info"
    (hint,) = hints.stain_hints(stain(0.01, 0.35), {"a": stain(0, 0, windows=0)})
    assert hint.level == "warn"
    assert "haematoxylin 0.01 (expected 0.04 to 1.97)" in hint.text


def test_windows_without_tissue_are_told():
    (hint,) = hints.stain_hints(stain(0, 0, windows=0), TRAINING)
    assert hint.text == "No tissue was found around the cells: the windows are white."


# Confidence


def test_doubt_is_compared_with_the_val_cells():
    sure = np.full(100, 0.8)
    assert hints.confidence_hints(sure, 5, 0.85) == []
    assert hints.confidence_hints(sure, 5, None) == []
    assert hints.confidence_hints(sure[:0], 0, 0.9) == []
    (hint,) = hints.confidence_hints(np.full(100, 0.6), 20, 0.85)
    assert hint.text == (
        "The model is unsure: mean confidence 0.60, 20 % of the cells abstained. On slides like its training slides "
        "the mean would be about 0.85."
    )
    (hint,) = hints.confidence_hints(np.full(100, 0.4), 80, None)
    assert hint.text == "The model is unsure: mean confidence 0.40, 80 % of the cells abstained."


def test_the_scale_of_the_alignment_is_told_where_another_is_used():
    assert hints.alignment_hints(0.25, None) == []
    assert hints.alignment_hints(0.25, 0.2563) == []
    (hint,) = hints.alignment_hints(0.4031, 0.2687)
    assert (hint.kind, hint.level) == ("scale", "warn")
    assert "0.2687" in hint.text
    assert "--mpp 0.2687" in hint.fix
