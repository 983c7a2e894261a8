"""H&E files of every layout: the same pixels, rectangle by rectangle, and a clear word about bad ones."""

from __future__ import annotations

import io
import logging
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from nuclass.core.errors import UserError
from nuclass.slides.source import open_source
from test_slide_store import picture, write_tiff

H, W = 211, 307
LAYOUTS = (
    "tiles", "strips", "raw", "raw_planar", "raw_pages", "raw_16_big_endian", "one_strip", "planar", "planar_tiles",
    "pages", "leading", "rgba", "jpeg", "jpeg2000", "lzw", "zstd", "bigtiff", "png", "picture_jpeg", "svs",
)  # fmt: skip


def write_layout(folder, layout):
    """Write the test picture in one layout; return the file and the pixels a reader must give."""
    image = picture(H, W)
    planes = np.moveaxis(image, -1, 0)
    path, ome = folder / f"{layout}.tif", folder / f"{layout}.ome.tif"
    lossy = False
    match layout:
        case "tiles":
            write_tiff(path, image)
        case "lzw" | "zstd":
            write_tiff(path, image, compression=layout, predictor=True)
        case "strips":
            tifffile.imwrite(path, image, photometric="rgb", compression="zlib", rowsperstrip=17)
        case "raw":
            tifffile.imwrite(path, image, photometric="rgb")
        case "raw_planar":
            tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate")
        case "raw_pages":
            path = ome
            tifffile.imwrite(path, planes, photometric="minisblack", metadata={"axes": "CYX"})
        case "raw_16_big_endian":
            tifffile.imwrite(path, image.astype(np.uint16) * 257, photometric="rgb", byteorder=">")
        case "one_strip":
            tifffile.imwrite(path, image, photometric="rgb", compression="lzw", predictor=True, rowsperstrip=H)
        case "planar":
            tifffile.imwrite(
                path, planes, photometric="rgb", planarconfig="separate", compression="zlib", rowsperstrip=9
            )
        case "planar_tiles":
            write_tiff(path, planes, planarconfig="separate")
        case "pages":
            path = ome
            tifffile.imwrite(path, planes, photometric="minisblack", tile=(64, 64), metadata={"axes": "CYX"})
        case "leading":
            path = ome
            tifffile.imwrite(path, image[None], photometric="rgb", tile=(64, 64), metadata={"axes": "ZYXS"})
        case "rgba":
            write_tiff(path, np.dstack([image, np.full((H, W), 255, np.uint8)]), extrasamples=["unassalpha"])
        case "jpeg":
            lossy = True
            write_tiff(path, image, compression="jpeg", compressionargs={"level": 90})
        case "jpeg2000":
            write_tiff(path, image, compression="jpeg2000")
        case "bigtiff":
            write_tiff(path, image, bigtiff=True, byteorder=">", compression="zstd")
        case "png":
            path = folder / "he.png"
            Pillow.fromarray(image).save(path)
        case "picture_jpeg":
            path = folder / "he.jpg"
            Pillow.fromarray(image).save(path, quality=95)
            return path, np.asarray(Pillow.open(path))
        case "svs":
            path = folder / "he.svs"
            write_svs(path, image)
            lossy = True
    return path, tifffile.imread(path, key=0) if lossy else image


def write_svs(path, image):
    """Write what openslide takes for a slide of Aperio: baseline, thumbnail, a smaller level."""
    about = "Aperio Image Library v11\n{}x{} |AppMag = 20|MPP = 0.4990"
    options = {"photometric": "rgb", "compression": "jpeg", "metadata": None, "software": False}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(image, tile=(64, 64), description=about.format(W, H), **options)
        tiff.write(image[::8, ::8].copy(), rowsperstrip=16, description=about.format(W // 8, H // 8), **options)
        tiff.write(image[::4, ::4].copy(), tile=(64, 64), description=about.format(W // 4, H // 4), **options)


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """Every layout, open."""
    folder = tmp_path_factory.mktemp("layouts")
    with ExitStack() as stack:
        found = {}
        for layout in LAYOUTS:
            path, pixels = write_layout(folder, layout)
            found[layout] = (stack.enter_context(open_source(path)), pixels)
        yield found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_reads_alike(layouts, layout):
    source, pixels = layouts[layout]
    assert source.shape == (H, W)
    np.testing.assert_array_equal(source.region(0, 0, 0, W, H), pixels)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layout=st.sampled_from(LAYOUTS),
    x0=st.integers(-90, W + 40),
    y0=st.integers(-90, H + 40),
    width=st.integers(0, W + 90),
    height=st.integers(0, H + 90),
)
def test_a_region_is_a_slice_of_the_whole_and_white_beyond(layouts, layout, x0, y0, width, height):
    source, pixels = layouts[layout]
    padded = np.full((H + 600, W + 800, 3), 255, np.uint8)
    padded[100 : 100 + H, 100 : 100 + W] = pixels
    expected = padded[100 + y0 : 100 + y0 + height, 100 + x0 : 100 + x0 + width]
    np.testing.assert_array_equal(source.region(source.levels[0], x0, y0, width, height), expected)


def test_a_region_decodes_only_what_it_touches_and_once(tmp_path, monkeypatch):
    with open_source(write_tiff(tmp_path / "he.tif", picture(640, 640))) as source:
        blocks, asked = source.levels[0].blocks, []
        decode = blocks.decode
        monkeypatch.setattr(blocks, "decode", lambda row, column: asked.append((row, column)) or decode(row, column))
        source.region(0, 70, 130, 60, 60)
        assert sorted(asked) == [(2, 1), (2, 2)]
        source.region(0, 128, 128, 64, 64)
        assert sorted(asked) == [(2, 1), (2, 2)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: source.region(0, 300, 300, 300, 300), range(8)))
        assert len(asked) == len(set(asked))
        source.cache.limit_bytes = 3 * 64 * 64 * 3
        source.region(0, 0, 0, 640, 640)
        assert source.cache._bytes <= source.cache.limit_bytes
        assert source.cache._bytes == sum(future.result().nbytes for future in source.cache._blocks.values())


def test_transparent_pixels_are_laid_on_white(tmp_path):
    image = np.dstack([picture(64, 64), np.zeros((64, 64), np.uint8)])
    image[32:, :, 3] = 255
    path = write_tiff(tmp_path / "he.tif", image, extrasamples=["unassalpha"])
    with open_source(path) as source:
        rows = source.region(0, 0, 0, 64, 64)
    assert (rows[:32] == 255).all()
    np.testing.assert_array_equal(rows[32:], image[32:, :, :3])


@pytest.mark.parametrize("levels", ["subifds", "pages", "irregular_pages"])
def test_pyramids_are_found_and_the_level_is_chosen_above_the_target(tmp_path, levels):
    image = picture(512, 512)
    path = tmp_path / "he.ome.tif"
    steps = {"subifds": (2, 4), "pages": (2, 4), "irregular_pages": (5, 8)}[levels]
    options = {"tile": (64, 64), "photometric": "rgb"}
    about = {"axes": "YXS", "PhysicalSizeX": 212.5, "PhysicalSizeXUnit": "nm"}
    with tifffile.TiffWriter(path, ome=levels == "subifds") as tiff:
        tiff.write(
            image,
            subifds=2 if levels == "subifds" else None,
            metadata=about if levels == "subifds" else None,
            **options,
        )
        for step in steps:
            tiff.write(image[::step, ::step].copy(), subfiletype=1, metadata=None, **options)
        if levels != "subifds":
            tiff.write(picture(100, 300), metadata=None, **options)
    with open_source(path) as source:
        assert [level.factor for level in source.levels] == [1, *steps]
        assert [source.level_for(d).factor for d in (0.5, 1, steps[0] - 0.1, steps[0], steps[1], 100)] == [
            1, 1, 1, steps[0], steps[1], steps[1],
        ]  # fmt: skip
        for k, step in enumerate(steps, 1):
            np.testing.assert_array_equal(source.region(k, 10, 20, 30, 40), image[::step, ::step][20:60, 10:40])


@pytest.mark.parametrize("side", [40, 100, 200, 307, 5000])
@pytest.mark.parametrize("layout", ["tiles", "one_strip", "svs"])
def test_an_overview_is_the_mean_of_what_it_covers(layouts, layout, side):
    source, pixels = layouts[layout]
    image, factor = source.overview(side, threads=2)
    assert max(image.shape[:2]) <= max(side, 1)
    assert factor == max(-(-W // side), 1) or layout == "svs"
    step = int(factor)
    height, width = H // step * step, W // step * step
    expected = pixels[:height, :width].reshape(height // step, step, width // step, step, 3).mean(axis=(1, 3))
    got = image[: height // step, : width // step].astype(float)
    if layout == "svs":
        assert abs(got.mean() - expected.mean()) < 3
    else:
        assert np.abs(got - expected).max() <= 0.5
    assert image.shape[:2] == (-(-H // step), -(-W // step)) or layout == "svs"


def test_svs_by_tifffile_and_by_openslide_agree(layouts):
    import openslide

    source, _ = layouts["svs"]
    assert source.reader == "tifffile"
    assert [level.factor for level in source.levels] == [1, 4]
    assert source.embedded_mpp == pytest.approx(0.499)
    from nuclass.slides import openslide_file

    assert openslide_file.knows(source.path)
    assert openslide.OpenSlide.detect_format(str(source.path)) == "aperio"
    with openslide_file.open_slide(source.path) as other:
        assert other.shape == source.shape
        assert [level.factor for level in other.levels] == [1, 4]
        assert other.embedded_mpp == pytest.approx(0.499)
        np.testing.assert_array_equal(other.region(0, -5, -5, W + 9, H + 9), source.region(0, -5, -5, W + 9, H + 9))
        np.testing.assert_array_equal(other.region(1, 3, 4, 50, 40), source.region(1, 3, 4, 50, 40))


def test_what_tifffile_gets_wrong_goes_to_openslide(tmp_path):
    """JPEG 2000 of Aperio with YCbCr samples: tifffile hands out YCbCr as if it were RGB."""
    path = tmp_path / "he.svs"
    write_svs(path, picture(H, W))
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["Compression"].overwrite(33003)
    with open_source(path) as source:
        assert source.reader == "openslide"


@pytest.mark.parametrize(
    ("bits", "stated"), [(16, None), (12, "tag"), (12, "ome"), (10, "tag"), (16, "tag"), (12, "tag_below")]
)
def test_16_bits_become_8_by_what_the_file_states(tmp_path, bits, stated, caplog):
    rng = np.random.default_rng(bits)
    deep = rng.integers(0, 2**bits, (80, 90, 3), dtype=np.uint16)
    deep[0, 0] = 2**bits - 1
    deep[0, 1] = 0
    path = tmp_path / "he.ome.tif"
    top = {"tag": 2**bits - 1, "tag_below": 2 ** (bits - 1) + 7}.get(stated)
    tags = [(341, "H", 3, (top,) * 3, True)] if top else []
    metadata = {"axes": "YXS", **({"SignificantBits": bits} if stated == "ome" else {})}
    tifffile.imwrite(
        path, deep, photometric="rgb", tile=(32, 32), compression="zlib", extratags=tags, metadata=metadata
    )
    with caplog.at_level(logging.INFO), open_source(path) as source:
        got = source.region(0, 0, 0, 90, 80)
    np.testing.assert_array_equal(got, np.floor(deep * (255 / (2**bits - 1)) + 0.5).astype(np.uint8))
    assert f"0 to {2**bits - 1} become 0 to 255" in caplog.text


def test_a_dark_16_bit_image_is_not_stretched(tmp_path):
    path = tmp_path / "he.tif"
    tifffile.imwrite(path, np.full((64, 64, 3), 257 * 9, np.uint16), photometric="rgb")
    with open_source(path) as source:
        assert (source.region(0, 0, 0, 64, 64) == 9).all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"ome": True, "metadata": {"PhysicalSizeX": 0.2738, "PhysicalSizeXUnit": "µm"}}, 0.2738),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0.2738}}, 0.2738),
        ({"ome": True, "metadata": {"PhysicalSizeX": 273.8, "PhysicalSizeXUnit": "nm"}}, 0.2738),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0.0002738, "PhysicalSizeXUnit": "mm"}}, 0.2738),
        ({"ome": True, "metadata": {"PhysicalSizeX": 3.0, "PhysicalSizeXUnit": "pixel"}}, None),
        ({"resolution": (40000, 40000), "resolutionunit": "centimeter"}, 0.25),
        ({"resolution": (101600, 101600), "resolutionunit": "inch"}, 0.25),
        ({"resolution": (72, 72), "resolutionunit": "inch"}, None),
        ({"resolution": (40000, 40000), "resolutionunit": "none"}, None),
        ({}, None),
        ({"description": "Aperio |AppMag = 40|MPP = 0.2525", "metadata": None}, 0.2525),
    ],
)
def test_the_pixel_size_a_file_states(tmp_path, options, expected):
    path = tmp_path / "he.tif"
    tifffile.imwrite(path, picture(64, 64), photometric="rgb", **options)
    with open_source(path) as source:
        assert source.embedded_mpp == (pytest.approx(expected) if expected else None)


@pytest.mark.parametrize(("high", "mpp", "aspect"), [(0.2738, 0.2738, 1), (0.2746, 0.2738, 1.00292), (0.5, None, 1)])
def test_pixels_that_are_not_square(tmp_path, caplog, high, mpp, aspect):
    path = tmp_path / "he.ome.tif"
    metadata = {"PhysicalSizeX": 0.2738, "PhysicalSizeY": high, "PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    tifffile.imwrite(path, picture(64, 64), photometric="rgb", ome=True, metadata=metadata)
    with open_source(path) as source:
        assert source.embedded_mpp == (pytest.approx(mpp) if mpp else None)
        assert source.embedded_aspect == pytest.approx(aspect, abs=1e-5)
    assert ("0.2738 x 0.5 um, which are not square" in caplog.text) == (mpp is None)


def _palette(path):
    tifffile.imwrite(path, picture(64, 64)[..., 0], photometric="palette", colormap=np.zeros((3, 256), np.uint16))


def _cmyk(path):
    image = picture(64, 64)
    tifffile.imwrite(path, np.dstack([image, image[..., :1]]), photometric="separated")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: tifffile.imwrite(p, picture(64, 64).astype(np.float32), photometric="rgb"), "neither 8-bit nor 16"),
        (lambda p: tifffile.imwrite(p, picture(64, 64)[..., 0]), "not RGB"),
        (_palette, "not RGB"),
        (_cmyk, "not RGB"),
        (
            lambda p: tifffile.imwrite(
                p, np.zeros((4, 64, 64), np.uint8), photometric="minisblack", metadata={"axes": "CYX"}, ome=True
            ),
            "not RGB",
        ),
        (lambda p: p.write_text("<!DOCTYPE html><html><body>403 Forbidden</body></html>"), "a web page"),
        (lambda p: p.write_text("\n <?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"), "a web page"),
        (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(100)), "an archive"),
        (lambda p: p.write_bytes(b""), "an empty file"),
        (lambda p: p.write_text("not an image"), "begins with b'not an i'"),
        (lambda p: p.write_bytes(b"II*\0" + struct.pack("<I", 5000) + bytes(10)), "cannot be read"),
        (lambda p: p.mkdir(), "is a folder"),
        (lambda p: None, "is missing"),
        (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30)), "whole PNG or JPEG"),
        (lambda p: Pillow.fromarray(picture(64, 64)[..., 0]).save(p, "PNG"), "not RGB"),
        (lambda p: Pillow.fromarray(picture(64, 64)).convert("CMYK").save(p, "JPEG"), "not RGB"),
        (lambda p: Pillow.fromarray(picture(64, 64)).convert("P").save(p, "PNG"), "not RGB"),
    ],
)
def test_bad_images_are_refused(tmp_path, write, message):
    path = tmp_path / "he.tif"
    write(path)
    with pytest.raises(UserError, match=message) as caught, open_source(path):
        pass
    assert str(path) in str(caught.value)


def test_an_mrxs_without_its_folder_is_told(tmp_path):
    path = tmp_path / "he.mrxs"
    Pillow.fromarray(picture(64, 64)).save(path, "JPEG")
    with pytest.raises(UserError, match="needs the folder beside it"), open_source(path):
        pass


def test_a_picture_that_is_too_large_is_refused(tmp_path, monkeypatch):
    from nuclass.slides import picture as pictures

    path = tmp_path / "he.png"
    Pillow.fromarray(picture(64, 64)).save(path)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 4000)
    with pytest.raises(UserError, match="64 x 64 px") as caught, open_source(path):
        pass
    assert "tiled pyramidal TIFF" in str(caught.value)
    huge = io.BytesIO()
    Pillow.new("1", (20_000, 20_000)).save(huge, "PNG")
    path.write_bytes(huge.getvalue())
    with pytest.raises(UserError, match="too large"), open_source(path):
        pass


@pytest.mark.parametrize("share", [0.2, 0.6, 0.99])
@pytest.mark.parametrize("tags_first", [False, True])
def test_a_file_that_is_cut_off_is_refused(tmp_path, monkeypatch, share, tags_first):
    image = picture(512, 512)
    path = tmp_path / "he.tif"
    if tags_first:
        write_tiff(path, image)
    else:
        with tifffile.TiffWriter(path) as tiff:
            for _ in range(2):
                tiff.write(image, photometric="rgb", tile=(64, 64), compression="zlib")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"cut off|cannot be read") as caught, open_source("he.tif"):
        pass
    assert "fetch the file again" in str(caught.value)


@pytest.mark.parametrize("compression", ["zlib", "lzw", "jpeg", "jpeg2000", "zstd"])
def test_a_broken_tile_is_located(tmp_path, compression):
    image = picture(300, 300)
    path = tmp_path / "he.ome.tif"
    options = {"tile": (64, 64), "photometric": "rgb", "compression": compression}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(image, subifds=1, **options)
        tiff.write(image[::2, ::2].copy(), subfiletype=1, **options)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.series[0].levels[1].pages[0]
        offset, count = page.dataoffsets[4], page.databytecounts[4]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = bytes(count)
    path.write_bytes(data)
    with open_source(path) as source:
        source.region(0, 0, 0, 300, 300)
        with pytest.raises(UserError) as caught:
            source.region(1, 0, 0, 150, 150)
    said = str(caught.value)
    assert "A tile of the H&E image cannot be decoded" in said
    assert f"{path}, level 1, tile row 1, column 1, from x 64, y 64 px of that level" in said


def test_tiles_without_data_are_white_counted_and_said(tmp_path, caplog):
    image = picture(192, 192)
    path = write_tiff(tmp_path / "he.tif", image)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        counts = list(tiff.pages[0].databytecounts)
        counts[4] = counts[5] = 0
        tiff.pages[0].tags["TileByteCounts"].overwrite(counts)
    with caplog.at_level(logging.WARNING), open_source(path) as source:
        got = source.region(0, 0, 0, 192, 192)
        source.cache.clear()
        source.region(0, 0, 0, 192, 192)
        assert source.levels[0].blocks.absent == 2
    expected = image.copy()
    expected[64:128, 64:] = 255
    np.testing.assert_array_equal(got, expected)
    assert "2 tiles have no data in the file and were left white" in caplog.text


def test_one_giant_strip_is_read_and_its_memory_is_said(tmp_path, caplog, monkeypatch):
    from nuclass.slides import tiff as module

    monkeypatch.setattr(module, "_LARGE_STRIP", 100_000)
    image = picture(H, W)
    path = tmp_path / "he.tif"
    tifffile.imwrite(path, image, photometric="rgb", compression="zlib", rowsperstrip=H)
    with caplog.at_level(logging.WARNING), open_source(path) as source:
        np.testing.assert_array_equal(source.region(0, 5, 6, 70, 80), image[6:86, 5:75])
    assert "strips of 211 rows" in caplog.text
