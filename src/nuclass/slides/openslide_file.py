"""Slides of scanners through openslide: SVS, NDPI, MRXS, SCN, BIF, CZI, DICOM and others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.slides.pixel_size import told_size
from nuclass.slides.tiles import Image, SourceLevel, over_white

if TYPE_CHECKING:
    from nuclass.slides.source import Bounds, Source

_log = get_logger(__name__)
_BLOCK = 1024


def knows(file: Path) -> bool:
    """Whether openslide takes the file for a slide of a scanner (a plain tiled TIFF is none)."""
    import openslide

    try:
        vendor = openslide.OpenSlide.detect_format(str(file))
    except openslide.OpenSlideError:
        return False
    return vendor not in (None, "generic-tiff")


@contextmanager
def open_slide(file: Path) -> Iterator[Source]:
    """Open a slide with openslide. Level 0 is the whole plane; what was not scanned is white.

    Raises
    ------
    UserError
        Openslide cannot read it.
    """
    import openslide

    from nuclass.slides.source import Source

    try:
        slide = openslide.OpenSlide(str(file))
    except (openslide.OpenSlideError, OSError) as error:
        raise UserError(
            "The H&E image cannot be read",
            where=file,
            found=f"openslide: {error}",
            expected="a slide that openslide reads (a .mrxs needs the folder beside it)",
            fix="fetch the file again with what belongs to it, or convert it to a tiled OME-TIFF",
        ) from error
    with slide:
        bounds = _bounds(slide.properties, slide.dimensions)
        if bounds is not None:
            _log.warning(
                "%s: the scanned part begins at x %d, y %d px. Programs that show this part alone, as QuPath does, "
                "count from there; here px count from the corner of the whole plane",
                file, bounds.x, bounds.y,
            )  # fmt: skip
        levels = tuple(
            SourceLevel(height, width, _whole(factor), _Blocks(slide, file, number))
            for number, ((width, height), factor) in enumerate(
                zip(slide.level_dimensions, slide.level_downsamples, strict=True)
            )
        )
        mpp, aspect = told_size(file, *(_mpp(slide.properties, axis) for axis in "xy"))
        yield Source(file, levels, mpp, reader="openslide", bounds=bounds, embedded_aspect=aspect)


class _Blocks:
    """Blocks of one level, read as regions."""

    def __init__(self, slide: Any, file: Path, number: int) -> None:
        self._slide, self._file, self._number = slide, file, number
        self._width, self._height = slide.level_dimensions[number]
        self._factor = slide.level_downsamples[number]
        self.absent = 0
        tile = f"openslide.level[{number}].tile-"
        self.block = (_block(slide.properties.get(f"{tile}height")), _block(slide.properties.get(f"{tile}width")))

    def decode(self, row: int, column: int) -> Image | None:
        import openslide

        top, left = row * self.block[0], column * self.block[1]
        height, width = min(self.block[0], self._height - top), min(self.block[1], self._width - left)
        corner = (round(left * self._factor), round(top * self._factor))
        try:
            pixels = self._slide.read_region(corner, self._number, (width, height))
        except openslide.OpenSlideError as error:
            raise UserError(
                "A tile of the H&E image cannot be decoded",
                where=f"{self._file}, level {self._number}, at x {left}, y {top} px of that level",
                found=f"openslide: {error}",
                fix="fetch the file again; if it is whole, convert it to a tiled OME-TIFF",
            ) from error
        return over_white(np.asarray(pixels))


def _block(side: str | None) -> int:
    """Return a side that is a multiple of the file's own tiles and not tiny."""
    own = int(side) if side and side.isdigit() and 0 < int(side) <= _BLOCK else _BLOCK
    return own * max(_BLOCK // 2 // own, 1)


def _whole(factor: float) -> float:
    """Openslide divides sizes, so a level that halves an odd size has a factor of 2.0001."""
    return float(round(factor)) if abs(factor - round(factor)) < 0.01 * factor else float(factor)


def _mpp(properties: Any, axis: str) -> float | None:
    try:
        return float(properties.get(f"openslide.mpp-{axis}", "nan"))
    except ValueError:
        return None


def _bounds(properties: Any, size: tuple[int, int]) -> Bounds | None:
    """Return the scanned part of a plane of ``size`` (width, height), None where it begins in the corner."""
    from nuclass.slides.source import Bounds

    x, y = (int(properties.get(f"openslide.bounds-{axis}", 0)) for axis in "xy")
    width, height = (
        int(properties.get(f"openslide.bounds-{side}", whole - start))
        for side, whole, start in zip(("width", "height"), size, (x, y), strict=True)
    )
    return Bounds(x, y, width, height) if x or y else None
