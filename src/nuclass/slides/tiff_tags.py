"""What the tags of an H&E TIFF say: colours, bits, pyramid, pixel size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from nuclass.core.errors import UserError
from nuclass.slides.tiles import Image, level_factor

_UNITS = {
    "pm": 1e-6,
    "Å": 1e-4,
    "nm": 1e-3,
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "in": 25400.0,
}
# Pixel sizes that an H&E scan can have; resolution tags often hold 72 dpi or 1 and mean nothing.
_PLAUSIBLE_MPP = (0.05, 20.0)
_RESOLUTION_UNITS = {2: 25400.0, 3: 10000.0}
_JPEG = {6, 7, 34892, 33007}
_S_MAX_SAMPLE_VALUE = 341


def size_of(series: Any) -> tuple[int, int]:
    """Return ``(height, width)`` of a series or level; 0 for an axis it lacks."""
    sizes = dict(zip(series.axes, series.shape, strict=True))
    return int(sizes.get("Y", 0)), int(sizes.get("X", 0))


def check_pixels(file: Path, series: Any) -> None:
    """Refuse what is no RGB or RGBA of 8 or 16 bits, or lies in pages that cannot be told apart."""
    page = series.keyframe
    if series.dtype not in (np.uint8, np.uint16):
        raise UserError(
            "The H&E image is neither 8-bit nor 16-bit",
            where=file,
            found=f"{series.dtype} pixels",
            expected="8-bit or 16-bit RGB",
            fix="convert it to 8-bit RGB; stretching grey levels silently would change the colours",
        )
    height, width = size_of(series)
    channels = int(np.prod(series.shape)) // max(height * width, 1)
    photometric = getattr(page.photometric, "name", str(page.photometric))
    colour = {3: ("RGB", "YCBCR", "MINISBLACK"), 4: ("RGB", "YCBCR")}.get(channels, ())
    converted = photometric != "YCBCR" or page.compression in _JPEG
    if photometric not in colour or not converted:
        raise UserError(
            "The H&E image is not RGB",
            where=file,
            found=f"axes {series.axes}, shape {series.shape}, {photometric}"
            + ("" if converted else " without JPEG compression"),
            expected="3 or 4 channels, red green blue (alpha)",
            fix="name the H&E, not the morphology image, in the slide sheet",
        )
    if len(series.pages) not in (1, channels) or any(page is None for page in series.pages):
        raise UserError(
            "The H&E image has a layout that is not known",
            where=file,
            found=f"{len(series.pages)} pages for {channels} channels",
            expected="one page, or one a channel",
        )


def flat_levels(tiff: tifffile.TiffFile, series: Any) -> list[Any]:
    """Return the series and the smaller images of the file that are the same picture, largest first.

    The same picture: same samples and colour, sides smaller by one factor to within 2 px, and at least 32 px.
    """
    full = size_of(series)
    key = (series.dtype, series.ndim, series.keyframe.samplesperpixel, len(series.pages))
    levels = {full: series}
    for other in () if tiff.is_svs else tiff.series:
        size = size_of(other)
        same = (other.dtype, other.ndim, other.keyframe.samplesperpixel, len(other.pages)) == key
        if not same or min(size) < 32 or max(size) > max(full) / 1.5 or None in other.pages:
            continue
        factor = level_factor(full, size)
        if all(abs(a / factor - b) <= 2 for a, b in zip(full, size, strict=True)):
            levels.setdefault(size, other)
    return [levels[size] for size in sorted(levels, reverse=True)]


def bits_rule(tiff: tifffile.TiffFile, page: Any) -> int:
    """Return how many bits of a 16-bit image are in use.

    By what the file states and nothing else: BitsPerSample below 16, the bits that hold SMaxSampleValue, or
    SignificantBits of OME, the fewest of them; else 16. The pixels are not looked at, so that two slides of
    one scanner are converted alike.
    """
    bits = [16]
    if isinstance(page.bitspersample, int):
        bits.append(page.bitspersample)
    largest = page.tags.get(_S_MAX_SAMPLE_VALUE)
    if largest is not None:
        top = max(np.atleast_1d(np.asarray(largest.value, np.float64)).tolist())
        if top >= 255:
            bits.append(int(top).bit_length())
    stated = re.search(r'\bSignificantBits="(\d+)"', _ome_pixels(tiff))
    if stated and int(stated.group(1)) >= 8:
        bits.append(int(stated.group(1)))
    return min(bits)


def to_8_bits(bits: int) -> Image:
    """Return the table that maps 0 ... 2**bits - 1 to 0 ... 255, rounded; larger values are 255."""
    top = 2**bits - 1
    values = np.minimum(np.arange(65536, dtype=np.int64), top)
    return ((values * 255 + top // 2) // top).astype(np.uint8)


def embedded_sizes(tiff: tifffile.TiffFile, page: Any) -> tuple[float | None, float | None]:
    """Return width and height of a px in micrometres as the file states them, None for what it does not.

    By OME, else Aperio's MPP, else the resolution tags, which count only with a unit and within 0.05 to 20 um/px.
    """
    pixels = _ome_pixels(tiff)
    if re.search(r'\bPhysicalSizeX="', pixels):
        return _ome_size(pixels, "X"), _ome_size(pixels, "Y")
    match = re.search(r"\bMPP\s*=\s*([0-9.]+)", str(page.description or ""))
    if match:
        return float(match.group(1)), None
    unit_um = _RESOLUTION_UNITS.get(int(page.tags.valueof(296, default=2)) if 296 in page.tags else 0)
    return _by_resolution(page, 282, unit_um), _by_resolution(page, 283, unit_um)


def _ome_size(pixels: str, axis: str) -> float | None:
    size = re.search(rf'\bPhysicalSize{axis}="([^"]+)"', pixels)
    unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]+)"', pixels)
    factor = _UNITS.get(unit.group(1) if unit else "µm")
    return float(size.group(1)) * factor if size and factor else None


def _by_resolution(page: Any, tag: int, unit_um: float | None) -> float | None:
    resolution = page.tags.valueof(tag)
    if unit_um is None or not resolution:
        return None
    numerator, denominator = resolution if isinstance(resolution, tuple) else (resolution, 1)
    mpp = unit_um * denominator / numerator if numerator else 0.0
    return mpp if _PLAUSIBLE_MPP[0] <= mpp <= _PLAUSIBLE_MPP[1] else None


def _ome_pixels(tiff: tifffile.TiffFile) -> str:
    """Return the first ``Pixels`` element of the OME text, or nothing."""
    match = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", tiff.ome_metadata or "")
    return match.group() if match else ""
