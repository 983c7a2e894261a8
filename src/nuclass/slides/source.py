"""Open an H&E, whatever its format, and read rectangles of it without holding it in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.slides.tiles import BlockCache, Image, SourceLevel, area_average

_log = get_logger(__name__)
_CACHE_BYTES = 96_000_000
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff")
# Formats of scanners that are no TIFF, or whose parts only openslide puts together.
_OPENSLIDE = {".mrxs", ".vms", ".vmu", ".czi", ".dcm", ".ndpi", ".scn", ".bif", ".svslide"}


class Bounds(NamedTuple):
    """The part of a scan's plane that was scanned, level-0 px: its top left corner, width and height."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class Source:
    """An open H&E image.

    ``embedded_mpp`` is what the file says of the width of a px in micrometres, for a cross-check only, and
    ``embedded_aspect`` of its height over its width. ``reader`` names the library that decodes. ``bounds`` is the
    scanned part where it begins elsewhere than in the corner of the plane: programs that show this part alone, as
    QuPath does, count from there.
    """

    path: Path
    levels: tuple[SourceLevel, ...]
    embedded_mpp: float | None
    reader: str = "tifffile"
    bounds: Bounds | None = None
    embedded_aspect: float = 1.0
    cache: BlockCache = field(default_factory=lambda: BlockCache(_CACHE_BYTES), repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """``(height, width)`` of level 0."""
        return self.levels[0].height, self.levels[0].width

    def level_for(self, downsample: float) -> SourceLevel:
        """Return the coarsest level that still has at least the resolution asked for.

        ``downsample`` is level-0 px per wanted px.
        """
        fine_enough = [level for level in self.levels if level.factor <= downsample * (1 + 1e-6)]
        return max(fine_enough or [self.levels[0]], key=lambda level: level.factor)

    def region(self, level: SourceLevel | int, x0: int, y0: int, width: int, height: int) -> Image:
        """Cut a rectangle ``(height, width, 3)`` of one level by its top-left pixel, in that level's own px.

        White where it leaves the image, and where the image is transparent or has no data. Only the blocks it
        touches are decoded; a small cache keeps the last ones. Threads may share a source.

        Raises
        ------
        UserError
            A block cannot be decoded; its place is named.
        """
        chosen = self.levels[level] if isinstance(level, int) else level
        if width < 0 or height < 0:
            raise ValueError(f"A region cannot be {width} x {height} px")
        return chosen.paste(lambda row, column: self.cache.get(chosen, row, column), x0, y0, width, height)

    def overview(self, max_px: int = 2048, threads: int = 1) -> tuple[Image, float]:
        """Return the whole slide with its longer side at most ``max_px``, and level-0 px per px of it.

        Taken from the smallest level that is large enough, then averaged over whole px, so that pixel ``i``
        covers ``[i, i + 1) * factor`` of level 0. Memory holds a few blocks of the file and the
        result. ``threads`` blocks are decoded at the same time.
        """
        if max_px < 1:
            raise ValueError(f"An overview cannot be {max_px} px wide")
        large = [level for level in self.levels if max(level.height, level.width) >= max_px]
        level = min(large, key=lambda one: one.height * one.width) if large else self.levels[0]
        shrink = -(-max(level.height, level.width) // max_px)
        if shrink == 1:
            return self.region(level, 0, 0, level.width, level.height), level.factor
        return area_average(level, shrink, threads), level.factor * shrink


@contextmanager
def open_source(path: str | Path) -> Iterator[Source]:
    """Open an RGB or RGBA H&E: TIFF, OME-TIFF, BigTIFF, SVS and what openslide reads, OME-Zarr, PNG or JPEG.

    With or without a pyramid, in any order of axes that tifffile knows: YXS, (1, Y, X, 3), (3, Y, X) in one
    page or three. 16 bits become 8 by a fixed rule, see :func:`nuclass.slides.tiff.bits_rule`.

    Raises
    ------
    UserError
        The file is missing, cut off, of no known format, or no RGB.
    """
    from nuclass.slides import openslide_file, picture, tiff, zarr_source

    file = Path(path)
    of_zarr = zarr_source.is_zarr(file)
    head = b"" if of_zarr else _head(file)
    if of_zarr:
        opener = zarr_source.open_zarr
    elif file.suffix.lower() in _OPENSLIDE:
        opener = openslide_file.open_slide
    elif head.startswith(_TIFF):
        opener = tiff.open_tiff
    elif head.startswith(_PICTURES):
        opener = picture.open_picture
    else:
        opener = _no_image if not openslide_file.knows(file) else openslide_file.open_slide
    with opener(file) as source:
        try:
            yield source
        finally:
            source.cache.clear()
            absent = sum(level.blocks.absent for level in source.levels)
            if absent:
                _log.warning("%s: %d tiles have no data in the file and were left white", file, absent)


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(512)
    except FileNotFoundError as error:
        raise UserError("The H&E image is missing", where=file, fix="check the path in the slide sheet") from error
    except IsADirectoryError as error:
        raise UserError(
            "The H&E image is a folder",
            where=file,
            expected="one image file, or the folder of an OME-Zarr image",
            fix="name the file in the slide sheet",
        ) from error


@contextmanager
def _no_image(file: Path) -> Iterator[Source]:
    head = _head(file)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<error")):
        found, fix = "a web page", "fetch the file again from its address; the server answered with a page"
    elif head.startswith((b"PK\x03\x04", b"\x1f\x8b")):
        found, fix = "an archive", "unpack it and name the image in the slide sheet"
    else:
        found = "an empty file" if not head else f"a file that begins with {head[:8]!r}"
        fix = "fetch the file again; a download may be cut off"
    raise UserError(
        "The H&E image cannot be read",
        where=file,
        found=found,
        expected="a TIFF, OME-TIFF or SVS, another slide that openslide reads, an OME-Zarr, or a PNG or JPEG picture",
        fix=fix,
    )
    yield
