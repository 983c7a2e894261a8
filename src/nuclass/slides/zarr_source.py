"""H&E images as OME-Zarr: 0.4 (Zarr 2) and 0.5 (Zarr 3), RGB, their axes and scale as the metadata state them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.slides.pixel_size import told_size
from nuclass.slides.tiff_tags import to_8_bits
from nuclass.slides.tiles import Image, SourceLevel, level_factor, over_white

if TYPE_CHECKING:
    from nuclass.slides.source import Source

_log = get_logger(__name__)
METADATA = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
_BLOCK = 512
_LARGEST_CHUNK = 1_000_000_000
_UNITS = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
    "inch": 25400.0,
}
# Before 0.3 there were no axes in the metadata, and always these five.
_OLD_AXES = ("t", "c", "z", "y", "x")
_BROKEN = (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, NotImplementedError)
_FORM = "an OME-Zarr image, version 0.4 or 0.5: a folder whose metadata have 'multiscales'"


def is_zarr(path: Path) -> bool:
    """Whether a path is a folder of Zarr."""
    return path.is_dir() and any((path / name).is_file() for name in METADATA)


def metadata_files(path: Path) -> list[Path]:
    """Return the metadata of an OME-Zarr image and of its levels; they tell whether it is the same image as before."""
    places = [path, *sorted(child for child in path.iterdir() if child.is_dir())]
    return [place / name for place in places for name in METADATA if (place / name).is_file()]


@contextmanager
def open_zarr(file: Path) -> Iterator[Source]:
    """Open an OME-Zarr image. What has no chunk in the file, and a fill value of 0, is white.

    Of a folder as bioformats2raw writes it the largest image is taken.

    Raises
    ------
    UserError
        It is no OME-Zarr image, or no RGB of 8 or 16 bits.
    """
    import zarr

    from nuclass.slides.source import Source

    try:
        place, attributes = _image(file)
        multiscale = attributes["multiscales"][0]
        axes, units = _axes(multiscale)
        group = zarr.open_group(str(place), mode="r")
        arrays = [group[str(dataset["path"])] for dataset in multiscale["datasets"]]
        levels = _levels(place, arrays, axes, attributes)
        mpp, aspect = told_size(place, *(_px_size(multiscale, axes, units, name) for name in "xy"))
    except _BROKEN as error:
        raise UserError(
            "The H&E image cannot be read",
            where=file,
            found=f"zarr: {type(error).__name__}: {error}",
            expected=_FORM,
            fix="copy the whole folder again, or convert the image to a tiled OME-TIFF",
        ) from error
    yield Source(place, levels, mpp, reader="zarr", embedded_aspect=aspect)


def _attributes(folder: Path) -> dict[str, Any]:
    """Return the OME attributes of a group: below ``ome`` since 0.5, before in a file of their own."""
    for name in ("zarr.json", ".zattrs"):
        if (folder / name).is_file():
            data = json.loads((folder / name).read_text(encoding="utf-8"))
            attributes = data.get("attributes", {}) if name == "zarr.json" else data
            return dict(attributes.get("ome", attributes))
    return {}


def _image(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder of the image and its attributes; that of the largest of several."""
    attributes = _attributes(folder)
    if attributes.get("multiscales"):
        return folder, attributes
    inside = _images_inside(folder)
    if "bioformats2raw.layout" in attributes and inside:
        return max(((place, _attributes(place)) for place in inside), key=lambda item: _pixels(*item))
    raise UserError(
        "The H&E image is no OME-Zarr image",
        where=folder,
        found="Zarr without 'multiscales'" + (", with images inside it" if inside else ""),
        expected=_FORM,
        fix="name the image inside it: " + ", ".join(map(str, inside[:5])) if inside else "convert it to OME-Zarr",
    )


def _images_inside(folder: Path) -> list[Path]:
    """Return the images in a folder of Zarr, in the order of their names; of a large folder only the first."""
    places = (place for pattern in ("*", "*/*") for place in folder.glob(pattern))
    return sorted(place for place in islice(places, 2000) if is_zarr(place) and _attributes(place).get("multiscales"))


def _pixels(place: Path, attributes: Mapping[str, Any]) -> int:
    """Return how many values the largest level of an image has."""
    level = place / str(attributes["multiscales"][0]["datasets"][0]["path"])
    file = next((level / name for name in ("zarr.json", ".zarray") if (level / name).is_file()), None)
    # An array that is missing is told when the image is opened.
    return 0 if file is None else math.prod(json.loads(file.read_text(encoding="utf-8"))["shape"])


def _axes(multiscale: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the names of the axes, and the units of those that have one."""
    found = multiscale.get("axes")
    if found is None:
        return _OLD_AXES, {}
    named = [axis if isinstance(axis, dict) else {"name": axis} for axis in found]
    units = {str(axis["name"]): str(axis["unit"]) for axis in named if axis.get("unit")}
    return tuple(str(axis["name"]) for axis in named), units


def _levels(
    place: Path, arrays: list[Any], axes: tuple[str, ...], attributes: Mapping[str, Any]
) -> tuple[SourceLevel, ...]:
    for array in arrays:
        _check(place, array, axes)
    lut = None
    if arrays[0].dtype == np.uint16:
        bits = _bits(attributes)
        _log.info("%s: %d-bit colours, 0 to %d become 0 to 255", place, bits, 2**bits - 1)
        lut = to_8_bits(bits)
    sizes = [_size(array, axes) for array in arrays]
    full = max(sizes, key=lambda size: size[0] * size[1])
    found: dict[tuple[int, int], SourceLevel] = {}
    for number, (size, array) in enumerate(zip(sizes, arrays, strict=True)):
        factor = level_factor(full, size)
        # A level of another shape is another picture.
        if all(abs(a / factor - b) <= 2 for a, b in zip(full, size, strict=True)):
            found.setdefault(size, SourceLevel(*size, factor, _Blocks(place, number, array, axes, lut)))
    return tuple(sorted(found.values(), key=lambda level: level.factor))


def _size(array: Any, axes: tuple[str, ...]) -> tuple[int, int]:
    sizes = dict(zip(axes, array.shape, strict=True))
    return int(sizes["y"]), int(sizes["x"])


def _check(place: Path, array: Any, axes: tuple[str, ...]) -> None:
    """Refuse what is no RGB or RGBA of 8 or 16 bits, and chunks that are too large to be held."""
    sizes = dict(zip(axes, array.shape, strict=True))
    told = f"axes {' '.join(axes)}, shape {' x '.join(map(str, array.shape))}, {array.dtype}"
    others = [name for name in axes if name not in ("c", "y", "x") and sizes[name] != 1]
    if sizes.get("c") not in (3, 4) or others or not {"y", "x"} <= sizes.keys():
        raise UserError(
            "The H&E image is not RGB",
            where=place,
            found=told,
            expected="an axis c of 3 or 4 channels, red green blue (alpha), and one plane",
            fix="name the H&E, not a fluorescence image; of several planes write one",
        )
    if array.dtype not in (np.uint8, np.uint16):
        raise UserError(
            "The H&E image is neither 8-bit nor 16-bit",
            where=place,
            found=told,
            expected="8-bit or 16-bit RGB",
            fix="convert it to 8-bit RGB; stretching grey levels silently would change the colours",
        )
    size = math.prod(array.chunks) * array.dtype.itemsize
    if size > _LARGEST_CHUNK:
        raise UserError(
            "The chunks of the H&E image are too large to be read one by one",
            where=place,
            found=f"chunks of {' x '.join(map(str, array.chunks))}, {size / 1e9:.1f} GB",
            expected=f"at most {_LARGEST_CHUNK / 1e9:.0f} GB",
            fix="write the image again with smaller chunks, such as 1024 x 1024",
        )


def _bits(attributes: Mapping[str, Any]) -> int:
    """Return how many bits of a 16-bit image are in use: those that hold the largest ``window.max``, else 16."""
    channels = (attributes.get("omero") or {}).get("channels") or []
    tops = [float(channel["window"]["max"]) for channel in channels if "max" in (channel.get("window") or {})]
    top = max(tops, default=0.0)
    return min(int(top).bit_length(), 16) if top >= 255 else 16


def _px_size(multiscale: Mapping[str, Any], axes: tuple[str, ...], units: Mapping[str, str], name: str) -> float | None:
    """Return micrometres per px of the first level along an axis, None where no unit is stated."""
    factor = _UNITS.get(units.get(name, ""))
    scales = [_scale(multiscale["datasets"][0], axes, name), _scale(multiscale, axes, name)]
    if factor is None or scales[0] is None:
        return None
    return math.prod(scale for scale in scales if scale is not None) * factor


def _scale(holder: Mapping[str, Any], axes: tuple[str, ...], name: str) -> float | None:
    """Return the number of the first transformation ``scale`` for an axis."""
    for step in holder.get("coordinateTransformations") or []:
        if step.get("type") == "scale" and "scale" in step:
            return float(step["scale"][axes.index(name)])
    return None


class _Blocks:
    """Blocks of one level: one chunk each, or several small ones."""

    def __init__(self, place: Path, number: int, array: Any, axes: tuple[str, ...], lut: Image | None) -> None:
        self._place, self._number, self._array, self._axes, self._lut = place, number, array, axes, lut
        self._height, self._width = _size(array, axes)
        chunks = dict(zip(axes, array.chunks, strict=True))
        self.block = (_side(int(chunks["y"])), _side(int(chunks["x"])))
        kept = [name for name in axes if name in ("c", "y", "x")]
        self._order = [kept.index(name) for name in ("y", "x", "c")]
        self.absent = 0

    def decode(self, row: int, column: int) -> Image | None:
        top, left = row * self.block[0], column * self.block[1]
        bottom, right = min(top + self.block[0], self._height), min(left + self.block[1], self._width)
        parts: dict[str, slice] = {"c": slice(None), "y": slice(top, bottom), "x": slice(left, right)}
        try:
            values = np.asarray(self._array[tuple(parts.get(name, 0) for name in self._axes)])
        except _BROKEN as error:
            raise UserError(
                "A tile of the H&E image cannot be decoded",
                where=f"{self._place}, level {self._number}, at x {left}, y {top} px of that level",
                found=f"zarr: {type(error).__name__}: {error}",
                fix="copy the whole folder again; if it is whole, convert it to a tiled OME-TIFF",
            ) from error
        if self._array.fill_value == 0 and not values.any():
            self.absent += 1
            return None
        pixels = np.ascontiguousarray(values.transpose(self._order))
        return over_white(pixels if self._lut is None else self._lut[pixels])


def _side(chunk: int) -> int:
    """Return a side that is a multiple of a chunk's and not tiny."""
    return chunk * max(-(-_BLOCK // chunk), 1)
