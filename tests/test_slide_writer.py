"""Writing the slide store: the same pixels whatever the stripes, bounded memory, nothing half done left behind."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nuclass.core.errors import UserError
from nuclass.slides import pyramid, resample, tiff, writer
from nuclass.slides.resample import resampled
from nuclass.slides.source import open_source
from nuclass.slides.store import SlideStore
from nuclass.slides.writer import write_store
from nuclass.slides.zarr_format import decode_tile, encode_tile
from test_slide_store import frames_for, picture, write_tiff


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), mpp=st.sampled_from([0.2738, 0.1369, 0.2125, 0.3638, 0.05, 0.25, 0.7]))
def test_a_box_equals_the_same_box_of_one_whole_resize(noise, data, mpp):
    frames = frames_for(mpp)
    height, width = frames.store_shape(noise.shape)
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    w, h = data.draw(st.integers(1, width - x0)), data.draw(st.integers(1, height - y0))
    whole = resampled(noise, frames.scale, (height, width), (0, 0, width, height))
    part = resampled(noise, frames.scale, (height, width), (x0, y0, w, h))
    np.testing.assert_array_equal(part, whole[y0 : y0 + h, x0 : x0 + w])


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    path = write_tiff(tmp_path_factory.mktemp("noise") / "he.tif", picture(151, 173, seed=5))
    with open_source(path) as source:
        yield source


@pytest.mark.parametrize("mpp_he", [0.2738, 0.1369, 0.25])
def test_the_store_is_one_whole_resize_whatever_the_stripes_and_threads(tmp_path, mpp_he, monkeypatch):
    image = picture(431, 817, seed=3)
    he = write_tiff(tmp_path / "he.tif", image)
    frames = frames_for(mpp_he)
    shape = frames.store_shape((431, 817))
    with open_source(he) as source:
        whole = resampled(source, frames.scale, shape, (0, 0, shape[1], shape[0]))
    found = []
    for threads, stripe in ((1, 10**9), (3, 1), (4, 64 * 3 * 256)):
        monkeypatch.setattr(writer, "_STRIPE_BYTES", stripe)
        write_store(he, frames, tmp_path / "he.zarr", tile=64, shard=128, levels=5, threads=threads)
        with SlideStore(tmp_path / "he.zarr") as store:
            np.testing.assert_array_equal(store.region(0, 0, shape[1], shape[0]), whole)
            found.append([store.region(0, 0, *store.level_shape(k)[::-1], level=k) for k in range(5)])
    for level in zip(*found, strict=True):
        np.testing.assert_array_equal(level[0], level[1])
        np.testing.assert_array_equal(level[0], level[2])


def test_every_tile_is_decoded_once_in_a_stripe(tmp_path, monkeypatch):
    he = write_tiff(tmp_path / "he.tif", picture(431, 817, seed=3))
    asked, decode = [], tiff._Blocks.decode
    monkeypatch.setattr(
        tiff._Blocks, "decode", lambda self, row, column: asked.append((row, column)) or decode(self, row, column)
    )
    write_store(he, frames_for(0.2738), tmp_path / "he.zarr", tile=64, shard=128, levels=3, threads=3)
    assert sorted(asked) == [(row, column) for row in range(7) for column in range(13)]


def test_a_damaged_tile_is_an_error_and_leaves_nothing(tmp_path):
    path = write_tiff(tmp_path / "he.tif", picture(256, 256))
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[5]
    data = bytearray(path.read_bytes())
    data[offset : offset + 200] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(UserError, match="tile row 1, column 1, from x 64, y 64 px"):
        write_store(path, frames_for(0.25), tmp_path / "out.zarr", tile=64, shard=128, levels=2)
    assert [p.name for p in tmp_path.iterdir()] == ["he.tif"]


def tile_bytes(tile):
    parts = encode_tile(tile)
    return None if parts is None else b"".join(map(bytes, parts))


@settings(max_examples=60, deadline=None)
@given(
    side=st.sampled_from([2, 16, 64]),
    low=st.integers(0, 254),
    span=st.integers(0, 255),
    seed=st.integers(0, 9),
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_tiles_come_back_and_a_single_flipped_bit_is_noticed(side, low, span, seed, place, bit):
    rng = np.random.default_rng(seed)
    tile = rng.integers(low, min(low + span, 255) + 1, (side, side, 3)).astype(np.uint8)
    data = tile_bytes(tile)
    if data is None:
        assert (tile == 255).all()
        return
    np.testing.assert_array_equal(decode_tile(data, side), tile)
    assert not decode_tile(data, side).flags.writeable
    damaged = bytearray(data)
    damaged[int(place * len(data))] ^= 1 << bit
    for bad in (bytes(damaged), data[:-1], data[: len(data) // 2], b""):
        with pytest.raises(ValueError, match="checksum"):
            decode_tile(bad, side)
    with pytest.raises(ValueError, match="instead of"):
        decode_tile(data, side * 2)


def test_glass_is_compressed_and_tissue_is_plain():
    rng = np.random.default_rng(0)
    glass = rng.integers(240, 243, (256, 256, 3)).astype(np.uint8)
    assert len(tile_bytes(glass)) < 0.4 * glass.nbytes
    assert len(tile_bytes(picture(256, 256))) == 256 * 256 * 3 + 20
    assert encode_tile(np.full((256, 256, 3), 255, np.uint8)) is None


def test_zarr_python_reads_both_kinds_of_tiles(tmp_path):
    image = picture(512, 512)
    image[:256] = np.random.default_rng(0).integers(240, 243, (256, 512, 3))
    write_store(write_tiff(tmp_path / "he.tif", image), frames_for(0.25), tmp_path / "o.zarr", shard=512, levels=1)
    lengths = [length for line in SlideStore(tmp_path / "o.zarr")._shard(0, 0, 0)[1] for _, length in line]
    assert max(lengths[:2]) < 100_000 < min(lengths[2:])
    array = zarr.open_group(tmp_path / "o.zarr", mode="r")["0"]
    np.testing.assert_array_equal(np.moveaxis(array[:], 0, -1), image)


def test_a_store_of_another_layout_is_refused(tmp_path):
    copy = tmp_path / "copy.zarr"
    write_store(write_tiff(tmp_path / "he.tif", picture(64, 64)), frames_for(0.25), copy, levels=1)
    metadata = json.loads((copy / "0" / "zarr.json").read_text())
    inner = metadata["codecs"][0]["configuration"]["codecs"]
    inner[2:] = [{"name": "zstd", "configuration": {"level": 1, "checksum": False}}]
    (copy / "0" / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="not a level of a slide store") as caught:
        SlideStore(copy)
    assert "build the slide again" in str(caught.value)


@pytest.mark.parametrize("glass", [(255, 255, 255), (240, 236, 242), None])
def test_glass_and_tissue_are_told_apart(tmp_path, glass):
    rng = np.random.default_rng(2)
    image = np.clip(rng.normal((170, 110, 170), 12, (600, 800, 3)), 0, 255).astype(np.uint8)
    if glass:
        image[:, 500:] = np.clip(rng.normal(glass, 1.5, (600, 300, 3)), 0, 255)
        image[:, 780:] = 20
    info = write_store(write_tiff(tmp_path / "he.tif", image), frames_for(0.25), tmp_path / "o.zarr", levels=2)
    if glass is None:
        assert info["background_rgb"] is None
        assert info["tissue_fraction"] == 1
        return
    assert np.abs(np.subtract(info["background_rgb"], glass)).max() <= 2
    assert info["tissue_fraction"] == pytest.approx((500 + 20) / 800, abs=0.01)
    attributes = zarr.open_group(tmp_path / "o.zarr", mode="r").attrs["nuclass"]
    assert attributes == info


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    he = write_tiff(tmp_path / "he.tif", picture(300, 300))

    def full(self, row, column, parts):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pyramid._Shard, "append", full)
    with pytest.raises(UserError, match="The disk is full"):
        write_store(he, frames_for(0.25), tmp_path / "out.zarr", tile=64, shard=128, levels=2, threads=2)
    assert [p.name for p in tmp_path.iterdir()] == ["he.tif"]


def test_a_killed_build_leaves_nothing_under_the_final_name_and_the_next_cleans_up(tmp_path):
    he = write_tiff(tmp_path / "he.tif", picture(300, 300))
    code = f"""
        import time
        from nuclass.slides import pyramid, writer
        from test_slide_store import frames_for
        pyramid._Shard.append = lambda *a: time.sleep(60)
        writer.write_store({str(he)!r}, frames_for(0.25), {str(tmp_path / "he.zarr")!r}, tile=64, shard=128, levels=2)
    """
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}  # noqa: PTH120
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], env=environment)
    for _ in range(300):
        if list(tmp_path.glob(f".{child.pid}-*.he.zarr/0/c")):
            break
        time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert list(tmp_path.glob(f".{child.pid}-*.he.zarr"))
    assert not (tmp_path / "he.zarr").exists()
    other = tmp_path / f".{os.getppid()}.he.zarr"
    other.mkdir()
    mine = tmp_path / f".{os.getpid()}.he.zarr"
    mine.mkdir()
    write_store(he, frames_for(0.25), tmp_path / "he.zarr", tile=64, shard=128, levels=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([other.name, "he.tif", "he.zarr"])


def test_memory_does_not_grow_with_the_width(tmp_path):
    """Tiles of 1024 px: one row of them over the whole width of the wide slide would be 250 MB."""
    block = picture(1024, 1024)
    code = """
        import sys
        from pathlib import Path
        from nuclass.slides.writer import write_store
        from test_slide_store import frames_for
        write_store(sys.argv[1], frames_for(0.25), sys.argv[2], threads=2)
        lines = Path("/proc/self/status").read_text().splitlines()
        print(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    """
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}  # noqa: PTH120
    peaks = []
    for width in (4096, 81920):
        path = tmp_path / f"{width}.tif"
        tiles = (block for _ in range(2 * width // 1024))
        tifffile.imwrite(
            path, tiles, shape=(1100, width, 3), dtype=np.uint8, tile=(1024, 1024), photometric="rgb",
            compression="jpeg",
        )  # fmt: skip
        command = [sys.executable, "-c", textwrap.dedent(code), str(path), str(tmp_path / "o.zarr")]
        out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        peaks.append(int(out) / 1024)
    assert peaks[1] < peaks[0] + 130
    assert peaks[1] < 500


def test_without_a_folder_for_its_cache_the_code_is_compiled_anyway(monkeypatch):
    import numba

    njit = numba.njit

    def refuse(*args, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(*args, **options)

    monkeypatch.setattr(numba, "njit", refuse)
    resize, halve = resample.kernels.__wrapped__()
    out = np.empty((1, 1, 3), np.uint8)
    halve(np.full((2, 2, 3), 7, np.uint8), out)
    assert (out == 7).all()
    assert callable(resize)


@pytest.mark.real
@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "lzw", None])
def test_a_real_field_in_several_files_gives_one_store(tmp_path, real_data, compression):
    field = real_data / "he_nuclei_hgsc_stromal" / "hgsc_stromal_he.jpg"
    with open_source(field) as source:
        pixels = source.region(0, 0, 0, *source.shape[::-1])
    he = tmp_path / "he.ome.tif"
    options = {"compressionargs": {"level": 98}} if compression == "jpeg" else {}
    with tifffile.TiffWriter(he, ome=True) as tiff:
        tiff.write(pixels, tile=(512, 512), photometric="rgb", compression=compression, subifds=1, **options)
        tiff.write(pixels[::2, ::2].copy(), tile=(512, 512), photometric="rgb", compression=compression, subfiletype=1)
    first = write_store(field, frames_for(0.5), tmp_path / "a.zarr", threads=2)
    second = write_store(he, frames_for(0.5), tmp_path / "b.zarr", threads=2)
    assert first["store_shape"] == second["store_shape"] == [3000, 3000]
    assert 0.6 < first["tissue_fraction"] < 1
    assert min(first["background_rgb"]) > 200
    a, b = SlideStore(tmp_path / "a.zarr"), SlideStore(tmp_path / "b.zarr")
    difference = np.abs(a.region(0, 0, 3000, 3000).astype(int) - b.region(0, 0, 3000, 3000))
    assert difference.max() <= (40 if compression == "jpeg" else 0)
    assert difference.mean() < 2
