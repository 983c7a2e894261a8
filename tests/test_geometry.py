"""Frames: round trips, known transforms, and the real alignment files of 10x Genomics."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuclass.core.errors import UserError
from nuclass.slides.geometry import Frames, compose, decompose, invert, project, window_origin

SKIN = [[0.0018369815, 0.6440103822, 1154.5213263], [-0.6440103822, 0.0018369815, 13229.6326499], [0, 0, 1]]
BREAST = [[0.0110710288, 1.2895790134, 807.9788953], [-1.2895790134, 0.0110710288, 73097.6551748], [0, 0, 1]]
PIXEL = 0.2125


def similarity(angle_deg: float, scale: float, offset: tuple[float, float], mirrored: bool) -> np.ndarray:
    angle = np.deg2rad(angle_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.eye(3)
    matrix[:2, :2] = scale * turn @ np.diag([1, -1 if mirrored else 1])
    matrix[:2, 2] = offset
    return matrix


similarities = st.tuples(
    st.floats(-179, 179),
    st.floats(0.4, 2.5),
    st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)),
    st.booleans(),
)
points = st.lists(st.tuples(st.floats(-1e4, 3e4), st.floats(-1e4, 3e4)), min_size=1, max_size=20)


@given(similarities, points)
def test_every_conversion_comes_back(parameters, xy):
    frames = Frames(similarity(*parameters), PIXEL, 0.25)
    xy = np.array(xy)
    for there, back in (
        (frames.um_to_morph, frames.morph_to_um),
        (frames.he_to_morph, frames.morph_to_he),
        (frames.he_to_px, frames.px_to_he),
        (frames.um_to_he, frames.he_to_um),
        (frames.um_to_px, frames.px_to_um),
    ):
        np.testing.assert_allclose(back(there(xy)), xy, atol=1e-6, rtol=1e-9)


homographies = st.tuples(similarities, st.floats(-5e-6, 5e-6), st.floats(-5e-6, 5e-6), st.floats(0.5, 2))
pairs = st.tuples(st.sampled_from(["um", "morph", "he", "px"]), st.sampled_from(["um", "morph", "he", "px"]))


def homography(parameters, gx: float, gy: float, factor: float) -> np.ndarray:
    matrix = similarity(*parameters)
    matrix[2, :2] = (gx, gy)
    return matrix * factor


@given(homographies, points)
def test_the_inverse_brings_every_point_back(parameters, xy):
    matrix, xy = homography(*parameters), np.array(xy)
    np.testing.assert_allclose(project(invert(matrix), project(matrix, xy)), xy, atol=1e-5, rtol=1e-7)
    np.testing.assert_allclose(compose(matrix, invert(matrix)), np.eye(3), atol=1e-6)


@given(homographies, homographies, points)
def test_composition_is_one_after_the_other(first, second, xy):
    a, b, xy = homography(*first), homography(*second), np.array(xy) / 10
    np.testing.assert_allclose(project(compose(a, b), xy), project(b, project(a, xy)), rtol=1e-6, atol=1e-4)


@given(similarities, similarities)
def test_turns_scales_and_mirrors_compose(first, second):
    a, b = similarity(*first), similarity(*second)
    both = decompose(compose(a, b))
    assert both.scale == pytest.approx(decompose(a).scale * decompose(b).scale)
    assert both.mirrored == (decompose(a).mirrored != decompose(b).mirrored)
    assert both.anisotropy == pytest.approx(1, abs=1e-6)
    # After a mirror the first turn counts backwards.
    turn = decompose(b).rotation_deg + (-1 if decompose(b).mirrored else 1) * decompose(a).rotation_deg
    assert np.cos(np.radians(both.rotation_deg - turn)) == pytest.approx(1, abs=1e-9)
    inverse = decompose(invert(a))
    assert inverse.scale == pytest.approx(1 / decompose(a).scale)
    assert inverse.mirrored == decompose(a).mirrored


@given(similarities)
def test_the_inverse_of_an_affine_map_is_affine(parameters):
    assert invert(similarity(*parameters))[2].tolist() == [0, 0, 1]


@pytest.mark.parametrize("matrix", [np.zeros((3, 3)), np.ones((3, 3)), np.diag([1, np.nan, 1]), np.diag([1, 0, 1])])
def test_no_inverse(matrix):
    with pytest.raises(UserError, match="cannot be inverted"):
        invert(matrix)


@given(similarities, pairs, points)
def test_frames_by_name(parameters, pair, xy):
    frames, (source, target), xy = Frames(similarity(*parameters), PIXEL, 0.25), pair, np.array(xy)
    there = frames.convert(xy, source, target)
    method = getattr(frames, f"{source}_to_{target}", None)
    if method is not None:
        np.testing.assert_allclose(there, method(xy), rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(frames.convert(there, target, source), xy, rtol=1e-9, atol=1e-6)


def test_an_unknown_frame_is_told():
    with pytest.raises(ValueError, match="no frame 'dapi'; expected one of um, morph, he, px"):
        Frames(np.eye(3), PIXEL).convert([[0, 0]], "dapi", "um")


@given(similarities)
def test_parameters_are_recovered(parameters):
    angle, scale, offset, mirrored = parameters
    frames = Frames(similarity(*parameters), PIXEL, 0.25)
    assert frames.rotation_deg == pytest.approx(angle, abs=1e-6)
    assert frames.mpp_he == pytest.approx(scale * PIXEL, rel=1e-9)
    assert frames.mirrored is mirrored
    assert frames.anisotropy == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(frames.he_to_morph([[0.0, 0.0]]), [offset], atol=1e-6)


@given(similarities, st.floats(0.1, 1.0))
def test_distances_in_the_store_are_micrometres(parameters, mpp):
    """The one truth for scale: 100 um on the tissue are 100 / mpp store pixels in any direction."""
    frames = Frames(similarity(*parameters), PIXEL, mpp)
    ends = frames.um_to_px([[0.0, 0.0], [60.0, 80.0]])
    assert np.linalg.norm(ends[1] - ends[0]) * mpp == pytest.approx(100, rel=1e-6)


def test_real_matrices_give_the_scales_computed_by_hand():
    skin = Frames(np.array(SKIN), PIXEL)
    assert skin.mpp_he == pytest.approx(np.sqrt(0.0018369815**2 + 0.6440103822**2) * PIXEL, rel=1e-12)
    assert skin.mpp_he == pytest.approx(0.13685, abs=5e-6)
    assert skin.rotation_deg == pytest.approx(-89.84, abs=0.005)
    assert not skin.mirrored
    breast = Frames(np.array(BREAST), PIXEL)
    assert breast.mpp_he == pytest.approx(0.27405, abs=5e-6)
    assert breast.rotation_deg == pytest.approx(-89.51, abs=0.005)
    corners = skin.he_to_morph([[0.0, 0.0], [22209.0, 0.0], [22209.0, 43287.0]])
    np.testing.assert_allclose(corners, [[1154.5, 13229.6], [1195.3, -1073.2], [29072.6, -993.7]], atol=0.1)


@pytest.mark.real
def test_real_alignment_file():
    root = os.environ.get("NUCLASS_REAL_DATA")
    if not root:
        pytest.skip("NUCLASS_REAL_DATA is not set")
    from nuclass.xenium.alignment import read_alignment

    (file,) = Path(root).glob("alignments/*Melanoma*he_imagealignment.csv")
    assert Frames(read_alignment(file).matrix, PIXEL).mpp_he == pytest.approx(0.13685, abs=5e-6)


def test_mirrored_reflection_of_the_forum():
    matrix = np.array([[-0.0068856, 1.95311681, 143.93539], [1.95311681, 0.00688563, -1177.0739], [0, 0, 1]])
    frames = Frames(matrix, PIXEL)
    assert frames.mirrored
    assert frames.mpp_he == pytest.approx(0.41504, abs=1e-5)


def test_homography_takes_its_scale_at_the_centre():
    matrix = similarity(-90, 1.2, (100, 5000), False)
    matrix[2, :2] = (2e-6, -1e-6)
    shape = (8000, 6000)
    frames = Frames(matrix, PIXEL, 0.25, shape)
    centre = np.array([3000.0, 4000.0])
    step = 1e-3
    columns = [
        (frames.he_to_morph([centre + d]) - frames.he_to_morph([centre - d]))[0] / (2 * step)
        for d in (np.array([step, 0]), np.array([0, step]))
    ]
    numeric = np.sqrt(abs(np.linalg.det(np.array(columns).T))) * PIXEL
    assert frames.mpp_he == pytest.approx(numeric, rel=1e-6)
    xy = np.array([[10.0, 20.0], [900.0, 1500.0]])
    np.testing.assert_allclose(frames.px_to_um(frames.um_to_px(xy)), xy, atol=1e-6)


def test_a_scaled_last_row_is_the_same_map():
    matrix = np.array(SKIN)
    frames = Frames(matrix * 2, PIXEL)
    assert frames.is_affine
    assert frames.mpp_he == pytest.approx(Frames(matrix, PIXEL).mpp_he)


@pytest.mark.parametrize(
    ("matrix", "pixel", "message"),
    [
        (np.eye(2), PIXEL, "wrong shape"),
        (np.zeros((3, 3)), PIXEL, "cannot be inverted"),
        (np.diag([np.nan, 1, 1]), PIXEL, "cannot be inverted"),
        (np.eye(3), 0.0, "not positive"),
        (np.array([[1, 0, 0], [0, 1, 0], [1e-6, 0, 1]]), PIXEL, "homography"),
    ],
)
def test_bad_input_is_told(matrix, pixel, message):
    with pytest.raises(UserError, match=message):
        Frames(matrix, pixel)


@given(st.floats(-1e5, 1e5), st.integers(1, 2048))
def test_window_centre_is_within_half_a_pixel(x, size):
    origin = window_origin([[x, x]], size)
    assert origin.dtype == np.int64
    assert abs(origin[0, 0] + size / 2 - x) <= 0.5 + 1e-9


def test_window_origin_by_hand():
    np.testing.assert_array_equal(window_origin([[112.0, 112.49], [112.5, -3.0]], 224), [[0, 0], [1, -115]])


def test_store_shape_keeps_pixel_centres_on_the_image():
    frames = Frames(np.diag([1.2, 1.2, 1.0]), PIXEL, 0.25)
    for height in range(1, 40):
        rows, _ = frames.store_shape((height, 7))
        assert (rows - 0.5) / frames.scale <= height + 0.5 / frames.scale
        assert rows == max(round(height * frames.scale), 1) or abs(height * frames.scale % 1 - 0.5) < 1e-9
