"""H&E images as OME-Zarr: both versions, any order of axes, and what is no H&E."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nuclass.core.errors import UserError
from nuclass.slides.geometry import Frames
from nuclass.slides.source import open_source
from nuclass.slides.store import SlideStore
from nuclass.slides.writer import write_store
from nuclass.slides.zarr_source import is_zarr, metadata_files

HEIGHT, WIDTH = 300, 420
FOUR, FIVE = "0.4", "0.5"


def picture(height: int = HEIGHT, width: int = WIDTH, channels: int = 3, dtype: Any = np.uint8) -> np.ndarray:
    top = 256 if dtype == np.uint8 else 4096
    return np.random.default_rng(3).integers(1, top, (height, width, channels)).astype(dtype)


def write_image(
    folder: Path,
    image: np.ndarray,
    axes: str = "cyx",
    version: str = FOUR,
    *,
    levels: int = 2,
    mpp: float | None = 0.5,
    unit: str | None = "micrometer",
    chunk: int = 64,
    outer: float | None = None,
    more: dict[str, Any] | None = None,
) -> Path:
    """Write RGB ``(h, w, c)`` as an OME-Zarr image."""
    form = 2 if version == FOUR else 3
    root = zarr.open_group(str(folder), mode="w", zarr_format=form)
    datasets = []
    for level in range(levels):
        part = image[:: 2**level, :: 2**level]
        values = part.transpose(["yxc".index(name) for name in axes if name in "cyx"])
        for place, name in enumerate(axes):
            if name not in "cyx":
                values = np.expand_dims(values, place)
        sizes = [chunk if name in "yx" else values.shape[place] for place, name in enumerate(axes)]
        chunks = tuple(min(size, n) for size, n in zip(sizes, values.shape, strict=True))
        array = root.create_array(str(level), shape=values.shape, chunks=chunks, dtype=values.dtype, fill_value=0)
        array[...] = values
        scale = [(mpp or 1.0) * 2**level if name in "yx" else 1.0 for name in axes]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    kinds = {"c": "channel", "t": "time"}
    told = [{"name": name, "type": kinds.get(name, "space")} for name in axes]
    for axis in told:
        if unit and axis["name"] in "yx":
            axis["unit"] = unit
    multiscale: dict[str, Any] = {"axes": told, "datasets": datasets}
    if outer:
        factors = [outer if name in "yx" else 1.0 for name in axes]
        multiscale["coordinateTransformations"] = [{"type": "scale", "scale": factors}]
    found: dict[str, Any] = {"multiscales": [multiscale], **(more or {})}
    root.attrs.update(found if version == FOUR else {"ome": {"version": "0.5", **found}})
    return folder


def whole(path: Path, level: int = 0) -> np.ndarray:
    with open_source(path) as source:
        one = source.levels[level]
        return source.region(one, 0, 0, one.width, one.height)


@pytest.mark.parametrize("version", [FOUR, FIVE])
@pytest.mark.parametrize("axes", ["cyx", "yxc", "tczyx"])
def test_pixels_levels_and_scale_are_those_written(tmp_path, axes, version):
    image = picture()
    path = write_image(tmp_path / "he.ome.zarr", image, axes, version)
    with open_source(path) as source:
        assert source.reader == "zarr"
        assert source.shape == (HEIGHT, WIDTH)
        assert [level.factor for level in source.levels] == [1.0, 2.0]
        assert source.embedded_mpp == pytest.approx(0.5)
        assert np.array_equal(source.region(0, 0, 0, WIDTH, HEIGHT), image)
        assert np.array_equal(source.region(1, 0, 0, WIDTH // 2, HEIGHT // 2), image[::2, ::2])
        off = source.region(0, -5, -7, 20, 20)
        assert (off[:7] == 255).all()
        assert np.array_equal(off[7:, 5:], image[:13, :15])


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, np.ndarray]:
    image = picture()
    return write_image(tmp_path_factory.mktemp("z") / "he.zarr", image, chunk=50, version=FIVE), image


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(x=st.integers(-50, WIDTH), y=st.integers(-50, HEIGHT), w=st.integers(0, 200), h=st.integers(0, 200))
def test_any_rectangle_is_that_of_the_picture(written, x, y, w, h):
    path, image = written
    padded = np.full((HEIGHT + 400, WIDTH + 400, 3), 255, np.uint8)
    padded[100 : 100 + HEIGHT, 100 : 100 + WIDTH] = image
    with open_source(path) as source:
        assert np.array_equal(source.region(0, x, y, w, h), padded[y + 100 : y + 100 + h, x + 100 : x + 100 + w])


def test_images_of_the_reference_library_are_read(tmp_path):
    from ome_zarr.io import parse_url
    from ome_zarr.writer import write_image as write

    image = picture()
    store = parse_url(str(tmp_path / "he.zarr"), mode="w").store
    write(image.transpose(2, 0, 1), zarr.group(store=store), axes="cyx")
    assert np.array_equal(whole(tmp_path / "he.zarr"), image)


def test_a_store_from_zarr_is_that_from_a_tiff(tmp_path):
    image = picture(600, 500)
    tifffile.imwrite(tmp_path / "he.tif", image, tile=(128, 128), photometric="rgb")
    path = write_image(tmp_path / "he.ome.zarr", image, levels=1)
    frames = Frames(np.eye(3), 0.2, 0.25)
    for source, name in ((tmp_path / "he.tif", "a"), (path, "b")):
        write_store(source, frames, tmp_path / name, tile=64, shard=256, levels=2, threads=2)
    with SlideStore(tmp_path / "a") as a, SlideStore(tmp_path / "b") as b:
        assert np.array_equal(a.region(0, 0, 400, 480), b.region(0, 0, 400, 480))
    # A store is an OME-Zarr image itself.
    with open_source(tmp_path / "b") as source, SlideStore(tmp_path / "b") as store:
        assert source.embedded_mpp == pytest.approx(0.25)
        assert source.shape == store.shape
        assert np.array_equal(source.region(0, 10, 20, 300, 200), store.region(10, 20, 300, 200))


def test_alpha_is_laid_on_white_and_missing_chunks_are_white(tmp_path, caplog):
    image = picture(128, 128, 4)
    image[..., 3] = 255
    image[:64, :64] = 0
    path = write_image(tmp_path / "he.zarr", image, levels=1)
    assert (whole(path)[:64, :64] == 255).all()
    rgb = picture(1200, 600)
    rgb[:512, :512] = 0
    path = write_image(tmp_path / "rgb.zarr", rgb, levels=1, chunk=256)
    found = whole(path)
    assert (found[:512, :512] == 255).all()
    assert np.array_equal(found[512:], rgb[512:])
    assert "1 tiles have no data in the file and were left white" in caplog.text


def test_16_bits_become_8_by_what_the_metadata_state(tmp_path, caplog):
    caplog.set_level(logging.INFO, "nuclass")
    image = picture(dtype=np.uint16)
    more = {"omero": {"channels": [{"window": {"min": 0, "max": 4095, "start": 0, "end": 900}}] * 3}}
    path = write_image(tmp_path / "he.zarr", image, more=more)
    assert np.array_equal(whole(path), np.round(image / 4095 * 255).astype(np.uint8))
    assert "12-bit colours, 0 to 4095 become 0 to 255" in caplog.text
    plain = write_image(tmp_path / "plain.zarr", image)
    assert whole(plain).max() <= 16


@pytest.mark.parametrize(
    ("options", "mpp"),
    [
        ({"mpp": 250.0, "unit": "nanometer"}, 0.25),
        ({"mpp": 1.0, "outer": 0.25}, 0.25),
        ({"mpp": 0.25, "unit": None}, None),
        ({"mpp": 0.25, "unit": "parsec"}, None),
    ],
)
def test_scale_is_taken_with_its_unit_only(tmp_path, options, mpp):
    with open_source(write_image(tmp_path / "he.zarr", picture(), **options)) as source:
        assert source.embedded_mpp == (None if mpp is None else pytest.approx(mpp))


def test_the_largest_image_of_a_converted_slide_is_taken(tmp_path):
    root = tmp_path / "slide.zarr"
    zarr.open_group(str(root), mode="w", zarr_format=2).attrs["bioformats2raw.layout"] = 3
    write_image(root / "0", picture(40, 50))
    write_image(root / "1", picture())
    with open_source(root) as source:
        assert source.shape == (HEIGHT, WIDTH)
        assert source.path == root / "1"


def test_a_folder_of_images_is_told_what_is_inside(tmp_path):
    root = tmp_path / "sdata.zarr"
    zarr.open_group(str(root), mode="w", zarr_format=3)
    write_image(root / "images" / "he", picture(), version=FIVE)
    with pytest.raises(UserError) as caught, open_source(root):
        pass
    assert str(caught.value) == (
        "The H&E image is no OME-Zarr image\n"
        f"  where:      {root}\n"
        "  found:      Zarr without 'multiscales', with images inside it\n"
        "  expected:   an OME-Zarr image, version 0.4 or 0.5: a folder whose metadata have 'multiscales'\n"
        f"  to mend it: name the image inside it: {root / 'images' / 'he'}"
    )


@pytest.mark.parametrize(
    ("image", "options", "what", "found"),
    [
        (picture(channels=2), {}, "The H&E image is not RGB", "axes c y x, shape 2 x 300 x 420, uint8"),
        (picture().astype(np.float32), {}, "The H&E image is neither 8-bit nor 16-bit", "float32"),
    ],
)
def test_what_is_no_h_and_e_is_refused(tmp_path, image, options, what, found):
    path = write_image(tmp_path / "he.zarr", image, levels=1, **options)
    with pytest.raises(UserError) as caught, open_source(path):
        pass
    assert caught.value.what == what
    assert found in str(caught.value.found)


def test_several_planes_are_refused(tmp_path):
    path = write_image(tmp_path / "he.zarr", picture(), "tczyx", levels=1)
    array = zarr.open_group(str(path), mode="r+")["0"]
    array.resize((1, 3, 2, HEIGHT, WIDTH))
    with pytest.raises(UserError, match="The H&E image is not RGB"), open_source(path):
        pass


def test_chunks_that_are_too_large_are_refused(tmp_path):
    path = write_image(tmp_path / "he.zarr", picture(), levels=1)
    metadata = json.loads((path / "0" / ".zarray").read_text())
    metadata |= {"shape": [3, 40_000, 40_000], "chunks": [3, 40_000, 40_000]}
    (path / "0" / ".zarray").write_text(json.dumps(metadata))
    with pytest.raises(UserError) as caught, open_source(path):
        pass
    assert caught.value.what == "The chunks of the H&E image are too large to be read one by one"
    assert caught.value.found == "chunks of 3 x 40000 x 40000, 4.8 GB"


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: (p / ".zattrs").write_text("{"),
        lambda p: (p / ".zattrs").write_text('{"multiscales": [{"datasets": []}]}'),
        lambda p: (p / ".zattrs").write_text('{"multiscales": [{"datasets": [{"path": "../../x"}], "axes": "cyx"}]}'),
        lambda p: (p / ".zattrs").write_text('{"multiscales": 7}'),
        lambda p: (p / "0" / ".zarray").write_text("[]"),
        lambda p: (p / "0" / ".zarray").unlink(),
    ],
)
def test_damaged_metadata_are_told(tmp_path, damage):
    path = write_image(tmp_path / "he.zarr", picture(), levels=1)
    damage(path)
    with pytest.raises(UserError) as caught, open_source(path):
        pass
    assert str(caught.value).startswith(("The H&E image cannot be read\n", "The H&E image is no OME-Zarr image\n"))
    assert str(path) in str(caught.value)


def test_a_damaged_chunk_is_told_with_its_place(tmp_path):
    path = write_image(tmp_path / "he.zarr", picture(600, 1200), levels=1, chunk=512)
    for chunk in (path / "0").glob("0.0.1"):
        chunk.write_bytes(b"no chunk")
    for chunk in (path / "0").glob("0/0/1"):
        chunk.write_bytes(b"no chunk")
    with open_source(path) as source:
        source.region(0, 0, 0, 100, 100)
        with pytest.raises(UserError) as caught:
            source.region(0, 600, 0, 100, 100)
    assert caught.value.what == "A tile of the H&E image cannot be decoded"
    assert caught.value.where == f"{path}, level 0, at x 512, y 0 px of that level"


def test_folders_that_are_no_zarr(tmp_path):
    assert not is_zarr(tmp_path)
    assert not is_zarr(tmp_path / "gone")
    path = write_image(tmp_path / "he.zarr", picture())
    assert is_zarr(path)
    names = {str(file.relative_to(path)) for file in metadata_files(path)}
    assert names == {".zattrs", ".zgroup", "0/.zarray", "1/.zarray"} or names > {".zgroup", "0/.zarray", "1/.zarray"}
