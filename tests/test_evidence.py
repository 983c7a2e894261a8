"""The landscape of nuclei over haematoxylin, its peak, the squares it is measured in, and what counts as glass."""

from __future__ import annotations

import numpy as np
import pytest

from nuclass.slides.evidence import Block, Nuclei, View, choose_blocks, find_peak, haematoxylin, measure_block, pooled
from nuclass.slides.verdict import glass


def test_the_landscape_of_a_square_nucleus_by_hand():
    """One dark square of 4 x 4 px, outlined 3 px left of and 2 px above where it is."""
    image = np.full((64, 64, 3), 255, np.uint8)
    image[30:34, 40:44] = (100, 70, 140)

    def read(x0, y0, width, height):
        return image[y0 : y0 + height, x0 : x0 + width]

    square = np.array([[37.0, 28.0], [41.0, 28.0], [41.0, 32.0], [37.0, 32.0]])
    copies = Nuclei(np.tile(square, (12, 1)), np.arange(12) * 4, np.tile([[39.0, 30.0]], (12, 1)))
    block = measure_block(copies, View(read, (64, 64), 1.0, 1.0), (16, 16), 32, 8)
    assert block is not None
    assert block.n_nuclei == 12
    peak = find_peak(block.landscape, 1.0)
    assert (round(peak.x_um), round(peak.y_um)) == (3, 2)
    stain = haematoxylin(image)
    inside = stain[30:34, 40:44].mean()
    # The ring is glass there, so the height is the stain of the square, in standard deviations of the block.
    assert peak.height == pytest.approx(inside / stain[16:48, 16:48].std(), rel=0.02)


def test_a_peak_between_pixels_and_its_score():
    grid = np.arange(-20, 21)
    rows, columns = np.meshgrid(grid, grid, indexing="ij")
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, rows.shape)
    landscape = 5 * np.exp(-((columns - 2.3) ** 2 + (rows + 4.6) ** 2) / 8) + noise
    peak = find_peak(landscape, 0.5)
    assert peak.x_um == pytest.approx(1.15, abs=0.1)
    assert peak.y_um == pytest.approx(-2.3, abs=0.1)
    assert peak.inner
    assert peak.score == pytest.approx(5 / 0.1, rel=0.2)
    edge = np.zeros((9, 9))
    edge[0, 4] = 1
    assert not find_peak(edge, 0.5).inner


def test_pooling_weighs_by_nuclei():
    one, three = (Block((0, 0), n, np.full((3, 3), float(n))) for n in (1, 3))
    assert pooled([one, three])[0, 0] == pytest.approx((1 * 1 + 3 * 3) / 4)


def test_glass_is_white_and_without_colour():
    image = np.zeros((2, 3, 3), np.uint8)
    image[0] = [(244, 244, 242), (238, 239, 240), (226, 168, 205)]
    image[1] = [(240, 220, 235), (90, 70, 140), (244, 243, 244)]
    np.testing.assert_array_equal(glass(image), [[True, True, False], [False, False, True]])


@pytest.mark.parametrize("light", [(240, 235, 215), (225, 225, 226), (225, 230, 242), (236, 224, 230)])
def test_glass_in_another_light_is_glass_and_pale_tissue_is_not(light):
    image = np.empty((40, 40, 3), np.uint8)
    image[:20], image[20:] = light, (226, 190, 212)
    image[20:23] = (0, 0, 0)
    image[23:26] = (30, 60, 160)
    np.testing.assert_array_equal(glass(image)[20:], False)
    assert glass(image)[:20].all()


def test_pale_tissue_alone_is_not_glass():
    assert not glass(np.full((30, 30, 3), (238, 212, 228), np.uint8)).any()


def test_outlines_without_area_say_nothing():
    """Three vertices on a line, and no polygon at all: no landscape, no warning, no number that is none."""
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    view = View(lambda x0, y0, w, h: image[y0 : y0 + h, x0 : x0 + w], image.shape[:2], 1.0, 1.0)
    flat = np.array([[37.0, 28.2], [39.0, 28.2], [41.0, 28.2]])
    nuclei = Nuclei(np.tile(flat, (12, 1)), np.arange(12) * 3, np.tile([[39.0, 28.2]], (12, 1)))
    assert measure_block(nuclei, view, (16, 16), 32, 8) is None


def test_squares_grow_where_nuclei_are_sparse():
    rng = np.random.default_rng(1)
    view = View(None, (2000, 2000), 1.0, 1.0)
    for n, side in ((2400, 200), (500, 400), (150, 800)):
        centre = rng.uniform(0, 2000, (n, 2))
        corners, side_um = choose_blocks(Nuclei(centre, np.arange(n), centre), view, 200)
        assert side_um == side
        inside = ((centre[:, None] >= corners) & (centre[:, None] < corners + side)).all(axis=2).any(axis=1)
        assert inside.mean() > 0.5
    corners, _ = choose_blocks(Nuclei(centre[:5], np.arange(5), centre[:5]), view, 200)
    assert len(corners) == 0
