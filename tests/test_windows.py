"""Windows of cells: exact and fast reads against naive cuts, the share off the slide, shrinking, threads."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from nuclass.core.errors import UserError
from nuclass.patches.slide_windows import SlideWindows
from nuclass.patches.windows import WindowReader, open_windows, shrink
from trio_example import crop, halved, picture, store_of

HEIGHT, WIDTH = 700, 900


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    image = picture(HEIGHT, WIDTH)
    return store_of(tmp_path_factory.mktemp("slide"), image, tile=64, shard=256, levels=4), image


def inner(n: int, seed: int, margin: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(margin, (WIDTH - margin, HEIGHT - margin), (n, 2))


@settings(max_examples=60, deadline=None)
@given(
    points=st.lists(st.tuples(st.floats(-300, WIDTH + 300), st.floats(-300, HEIGHT + 300)), min_size=1, max_size=12),
    size=st.integers(1, 150),
    threads=st.integers(1, 3),
)
def test_windows_are_the_slides_pixels_anywhere(slide, points, size, threads):
    path, image = slide
    xy = np.array(points)
    windows = SlideWindows(path, 1, threads)
    got = windows.cut(None, xy, size, 0, size)
    np.testing.assert_array_equal(got, np.stack([crop(image, x, y, size) for x, y in xy]))
    white = np.zeros_like(image)
    outside = [(crop(white, x, y, size)[..., 0] == 255).mean() for x, y in xy]
    padded = windows.padded(None, xy, size)
    assert padded.dtype == np.float32
    np.testing.assert_allclose(padded, outside, atol=1e-6)


def test_exact_reads_are_means_of_full_resolution(slide):
    path, image = slide
    xy = np.concatenate([inner(30, 0, 0), [[-20.0, 350.0], [899.0, 699.0]]])
    crops = np.stack([crop(image, x, y, 96) for x, y in xy])
    windows = SlideWindows(path)
    np.testing.assert_array_equal(windows.cut(None, xy, 96, 0, 48), halved(crops))
    thirds = crops.astype(int).reshape(len(xy), 32, 3, 32, 3, 3).sum(axis=(2, 4))
    np.testing.assert_array_equal(windows.cut(None, xy, 96, 0, 32), (thirds + 4) // 9)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_fast_is_exact_where_the_origin_lies_on_the_grid(slide, level):
    path, _ = slide
    step, size = 2**level, 96
    windows = SlideWindows(path)
    origins = np.random.default_rng(level).integers(0, 500 // step, (40, 2)) * step
    on_grid = origins + size / 2
    fast = windows.cut(None, on_grid, size, level, size // step).astype(int)
    exact = windows.cut(None, on_grid, size, 0, size // step).astype(int)
    assert np.abs(fast - exact).max() <= (0 if level == 1 else (level + 1) // 2)
    # Reduced further, a rounding is added to that of the level.
    further = [windows.cut(None, on_grid, size, k, size // step // 2).astype(int) for k in (level, 0)]
    assert np.abs(further[0] - further[1]).max() <= (level + 2) // 2


def test_fast_is_a_shifted_window_elsewhere(slide):
    path, _ = slide
    windows = SlideWindows(path)
    origins = np.random.default_rng(3).integers(0, 250, (40, 2)) * 2 + 1
    odd = origins + 48.0
    fast = windows.cut(None, odd, 96, 1, 48)
    assert (fast != windows.cut(None, odd, 96, 0, 48)).mean() > 0.5
    np.testing.assert_array_equal(fast, windows.cut(None, odd + 1, 96, 0, 48))


def test_threads_change_nothing(slide):
    path, _ = slide
    xy = inner(300, 5, -40)
    for size, level, out_px in ((64, 0, 64), (96, 0, 32), (96, 1, 48), (90, 0, 40)):
        one = SlideWindows(path).cut(None, xy, size, level, out_px)
        for threads in (2, 5):
            np.testing.assert_array_equal(SlideWindows(path, 1, threads).cut(None, xy, size, level, out_px), one)


@pytest.mark.parametrize("factor", range(2, 17))
def test_area_means_are_right_for_every_sum(factor):
    """One block for each sum that can occur: rounded to nearest, halves up."""
    area = factor * factor
    sums = np.arange(255 * area + 1)
    side = int(np.ceil(np.sqrt(len(sums))))
    sums = np.pad(sums, (0, side * side - len(sums)))
    blocks = np.full((len(sums), area), 0, np.int64) + (sums // area)[:, None]
    blocks += np.arange(area) < (sums % area)[:, None]
    image = blocks.reshape(side, side, factor, factor).swapaxes(1, 2).reshape(side * factor, side * factor)
    got = shrink(np.repeat(image[None, ..., None].astype(np.uint8), 3, axis=3), side)
    expected = ((2 * sums + area) // (2 * area)).reshape(side, side)
    for channel in range(3):
        np.testing.assert_array_equal(got[0, ..., channel], expected)


def test_shrinking_keeps_what_needs_none():
    images = picture(40, 40)[None]
    assert shrink(images, 40) is images
    assert shrink(images[:0], 20).shape == (0, 20, 20, 3)
    assert shrink(np.repeat(images, 2, 0), 20, threads=4).shape == (2, 20, 20, 3)
    assert shrink(images, 64).shape == (1, 64, 64, 3)


def test_mistakes_are_told(slide, tmp_path):
    windows = SlideWindows(slide[0])
    with pytest.raises(UserError, match=r"30 px read at level 2, given as 10 px\n.*a positive multiple of 4 px"):
        windows.cut(None, [[5, 5]], 30, 2, 10)
    with pytest.raises(UserError, match="There is no slide store"):
        open_windows(tmp_path / "he.ome.zarr")
    with pytest.raises(UserError, match=r"A slide has no store\n  found: +b\n  expected: +a"):
        WindowReader({"a": slide[0]}).windows("b")


def test_readers_pickle_without_files_and_open_again(slide):
    frame = pd.DataFrame({"slide": "a", "x_px": [100.0, 20.0], "y_px": [50.0, 300.0]})
    reader = WindowReader({"a": slide[0]}, cache_mb=4, threads=2)
    first = reader.read(frame, 32, 0, 32)
    copy = pickle.loads(pickle.dumps(reader))
    assert not copy._open
    assert copy.threads == 2
    np.testing.assert_array_equal(copy.read(frame, 32, 0, 32), first)
    copy.close()
    np.testing.assert_array_equal(copy.read(frame, 32, 0, 32), first)


def test_importing_is_light():
    code = (
        "import sys, nuclass.patches.windows\n"
        "heavy = {'torch', 'h5py', 'pandas', 'PIL', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tiles_of_all_slides_share_one_budget(slide):
    names = ["a", "b", "c", "d"]
    budget = 0.5
    reader = WindowReader(dict.fromkeys(names, slide[0]), cache_mb=budget)
    alone = WindowReader({"a": slide[0]}, cache_mb=1000)
    alone.windows("a").cut(None, inner(60, 1, 60), 96, 0, 96)
    assert alone.windows("a").cached_mb > 1.2 * budget
    for turn in range(3):
        frame = pd.DataFrame(inner(60, turn, 60), columns=["x_px", "y_px"]).assign(slide=np.resize(names, 60))
        windows = reader.read(frame, 96, 0, 96)
        assert sum(reader.windows(name).cached_mb for name in names) <= budget
    # The slide read last keeps its tiles; the pixels are those of a reader without a limit.
    assert reader.windows("d").cached_mb > 0
    np.testing.assert_array_equal(windows, alone.read(frame.assign(slide="a"), 96, 0, 96))


def test_tiles_not_used_for_longest_are_forgotten_first(slide):
    windows = SlideWindows(slide[0], cache_mb=100, threads=2)
    windows.cut(None, [[100.0, 100.0], [120.0, 100.0], [110.0, 120.0], [90.0, 95.0]], 64, 0, 64)
    windows.cut(None, [[700.0, 500.0], [720.0, 500.0]], 64, 0, 64)
    held = windows.cached_mb
    windows.trim(held)
    assert windows.cached_mb == held
    windows.trim(held / 2)
    assert 0 < windows.cached_mb <= held / 2
    windows.trim(0)
    assert windows.cached_mb == 0


@pytest.mark.parametrize(("side", "out_px"), [(224, 96), (224, 64), (224, 80), (64, 150), (1024, 48)])
def test_other_ratios_are_pillows_triangle_filter(side, out_px):
    """To within one grey level, and each image by itself."""
    images = np.random.default_rng(3).integers(0, 256, (3, side, side, 3)).astype(np.uint8)
    images.flags.writeable = False
    got = shrink(images, out_px)
    expected = [
        np.asarray(Pillow.fromarray(image).resize((out_px, out_px), Pillow.Resampling.BILINEAR)) for image in images
    ]
    assert np.abs(got.astype(int) - np.stack(expected)).max() <= 1
    assert np.array_equal(shrink(images, out_px, threads=2), got)
    assert np.array_equal(shrink(images[1:2], out_px)[0], got[1])
    assert shrink(images[:0], out_px).shape == (0, out_px, out_px, 3)
