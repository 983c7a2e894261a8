"""H&E TIFFs of any layout: tiles or strips, planes or pages, sub-images or flat pyramids, 8 or 16 bits."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.slides import openslide_file
from nuclass.slides.pixel_size import told_size
from nuclass.slides.tiff_tags import bits_rule, check_pixels, embedded_sizes, flat_levels, size_of, to_8_bits
from nuclass.slides.tiles import WHITE, Image, SourceLevel, level_factor, over_white

if TYPE_CHECKING:
    from nuclass.slides.source import Source

_log = get_logger(__name__)
_JPEG = {6, 7, 34892, 33007}
_APERIO_YCBCR = 33003
_GROUP_ROWS = 64
_GROUP_BYTES = 8_000_000
_LARGE_STRIP = 256_000_000
_BROKEN = (tifffile.TiffFileError, struct.error, ValueError, RuntimeError, NotImplementedError, TypeError, OSError)


@contextmanager
def open_tiff(file: Path) -> Iterator[Source]:
    """Open a TIFF with tifffile, or with openslide where tifffile would get the colours or the layout wrong.

    Raises
    ------
    UserError
        The file is cut off, of an unknown layout, or no RGB of 8 or 16 bits.
    """
    from nuclass.slides.source import Source

    with ExitStack() as stack:
        try:
            tiff = stack.enter_context(tifffile.TiffFile(file))
            series = _largest(tiff)
            found = "no image in it"
        except _BROKEN as error:
            tiff, series, found = None, None, str(error)
        aperio = series is not None and series.keyframe.compression == _APERIO_YCBCR
        if (series is None or aperio) and openslide_file.knows(file):
            _log.info("%s: read by openslide", file)
            yield stack.enter_context(openslide_file.open_slide(file))
            return
        if tiff is None or series is None:
            raise _unreadable(file, found)
        check_pixels(file, series)
        _check_whole(file, tiff)
        handles = stack.enter_context(_Handles())
        mpp, aspect = told_size(file, *embedded_sizes(tiff, series.keyframe))
        yield Source(file, _levels(file, tiff, series, handles), mpp, embedded_aspect=aspect)


def _levels(file: Path, tiff: tifffile.TiffFile, series: Any, handles: _Handles) -> tuple[SourceLevel, ...]:
    lut = None
    if series.dtype == np.uint16:
        bits = bits_rule(tiff, series.keyframe)
        _log.info("%s: %d-bit colours, 0 to %d become 0 to 255", file, bits, 2**bits - 1)
        lut = to_8_bits(bits)
    found = series.levels if len(series.levels) > 1 else flat_levels(tiff, series)
    full = size_of(series)
    return tuple(
        SourceLevel(*size_of(one), level_factor(full, size_of(one)), _Blocks(file, number, one, lut, handles))
        for number, one in enumerate(found)
    )


def _largest(tiff: tifffile.TiffFile) -> Any:
    known = [one for one in tiff.series if min(size_of(one)) > 0]
    return max(known, key=lambda one: size_of(one)[0] * size_of(one)[1], default=None)


def _unreadable(file: Path, found: str) -> UserError:
    return UserError(
        "The H&E image cannot be read",
        where=file,
        found=found,
        expected="a TIFF or OME-TIFF",
        fix="fetch the file again; a download may be cut off",
    )


def _check_whole(file: Path, tiff: tifffile.TiffFile) -> None:
    """Refuse a file that ends before its pixels or its list of images do."""
    size = file.stat().st_size
    needed = _next_image(tiff) + 1
    for page in (page for series in tiff.series for level in series.levels for page in level.pages):
        if page is None or page.parent is not tiff:
            continue
        needed = max(needed, *(offset + 1 for offset in getattr(page, "subifds", None) or (0,)))
        offsets = np.asarray(page.dataoffsets, np.int64)
        counts = np.asarray(page.databytecounts, np.int64)
        n = min(len(offsets), len(counts))
        needed = max(needed, int((offsets[:n] + counts[:n])[counts[:n] > 0].max(initial=0)))
    if needed > size:
        raise UserError(
            "The H&E image is cut off",
            where=file,
            found=f"{size} bytes",
            expected=f"at least {needed} bytes, by its own table of contents",
            fix="fetch the file again",
        )


def _next_image(tiff: tifffile.TiffFile) -> int:
    """Return where the image after the last readable one should be; 0 if that was the last."""
    layout, handle = tiff.tiff, tiff.filehandle
    handle.seek(tiff.pages[len(tiff.pages) - 1].offset)
    (tags,) = struct.unpack(layout.tagnoformat, handle.read(layout.tagnosize))
    handle.seek(tags * layout.tagsize, os.SEEK_CUR)
    data = handle.read(layout.offsetsize)
    return int(struct.unpack(layout.offsetformat, data)[0]) if len(data) == layout.offsetsize else handle.size


class _Handles:
    """Open files, read at any place by any thread."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}

    def add(self, path: str) -> int:
        if path not in self._open:
            self._open[path] = os.open(path, os.O_RDONLY)
        return self._open[path]

    def __enter__(self) -> _Handles:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()


class _Blocks:
    """The blocks of one level: its tiles, some strips together, or rows of plain pixels."""

    def __init__(self, file: Path, number: int, series: Any, lut: Image | None, handles: _Handles) -> None:
        self._file, self._number, self._lut = file, number, lut
        self._height, self._width = size_of(series)
        self._pages = tuple(series.pages)
        page = self._page = self._pages[0].keyframe
        self._dtype = np.dtype(page.parent.byteorder + page.dtype.char)
        self._decoder = page.decode
        # Read here, in one thread: these properties move the file's position.
        self._options: list[dict[str, Any]] = [
            {"jpegtables": p.jpegtables, "jpegheader": page.jpegheader} if page.compression in _JPEG else {}
            for p in self._pages
        ]
        self._descriptors = [handles.add(p.parent.filehandle.path) for p in self._pages]
        self._separate, _, _, _, self._contiguous = page.shaped
        self._samples = self._contiguous if self._contiguous > 1 else self._separate * len(self._pages)
        self._absent: set[tuple[int, int]] = set()
        self._plain = not page.is_tiled and page.fillorder == 1 and all(p.is_contiguous for p in self._pages)
        self._segment, self._group = self._layout()
        self.block = (self._segment[0] * self._group, self._segment[1])

    @property
    def absent(self) -> int:
        return len(self._absent)

    def decode(self, row: int, column: int) -> Image | None:
        """Return one block as RGB, or None where the file has no data for any part of it."""
        top, left = row * self.block[0], column * self.block[1]
        height, width = min(self.block[0], self._height - top), min(self.block[1], self._width - left)
        if self._plain:
            return self._rgb(self._rows(top, height))
        rows = self._segment[0]
        parts = [
            self._decode_segment(row * self._group + k, column, min(rows, height - k * rows), width)
            for k in range(-(-height // rows))
        ]
        if all(part is None for part in parts):
            return None
        filled = [
            np.full((min(rows, height - k * rows), width, 3), WHITE, np.uint8) if part is None else part
            for k, part in enumerate(parts)
        ]
        return filled[0] if len(filled) == 1 else np.concatenate(filled)

    def _layout(self) -> tuple[tuple[int, int], int]:
        """Return height and width of a segment, and how many of them make a block."""
        page = self._page
        row_bytes = self._width * self._samples * self._dtype.itemsize
        if page.is_tiled:
            return (page.tilelength, page.tilewidth), 1
        if self._plain:
            return (max(min(self._height, _GROUP_BYTES // row_bytes, 512), 1), self._width), 1
        rows = min(page.rowsperstrip, self._height)
        if rows * row_bytes > _LARGE_STRIP:
            _log.warning(
                "%s, level %d: strips of %d rows; %d MB of memory are needed to decode one",
                self._file,
                self._number,
                rows,
                2 * rows * row_bytes // 1_000_000,
            )
        return (rows, self._width), max(min(_GROUP_ROWS // rows, _GROUP_BYTES // (rows * row_bytes)), 1)

    def _rows(self, top: int, height: int) -> NDArray[Any]:
        """Read rows of uncompressed pixels that lie one after the other."""
        planes = []
        row = self._width * self._contiguous * self._dtype.itemsize
        for page, descriptor in zip(self._pages, self._descriptors, strict=True):
            for plane in range(self._separate):
                start = page.dataoffsets[0] + (plane * self._height + top) * row
                data = os.pread(descriptor, height * row, start)
                if len(data) != height * row:
                    raise self._broken(top // self.block[0], 0, "the file ends in the middle of it")
                planes.append(np.frombuffer(data, self._dtype).reshape(height, self._width, self._contiguous))
        return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=-1)

    def _decode_segment(self, row: int, column: int, height: int, width: int) -> Image | None:
        columns = -(-self._width // self._segment[1])
        index = row * columns + column
        per_plane = -(-self._height // self._segment[0]) * columns
        planes = [
            self._plane(number, plane * per_plane + index, (row, column), (height, width))
            for number in range(len(self._pages))
            for plane in range(self._separate)
        ]
        if any(plane is None for plane in planes):
            self._absent.add((row, column))
            return None
        return self._rgb(planes[0] if len(planes) == 1 else np.concatenate(planes, axis=-1))  # type: ignore[arg-type]

    def _plane(self, number: int, index: int, place: tuple[int, int], shape: tuple[int, int]) -> Any:
        page = self._pages[number]
        count = page.databytecounts[index] if index < len(page.databytecounts) else 0
        if count == 0:
            return None
        try:
            data = os.pread(self._descriptors[number], count, page.dataoffsets[index])
            if len(data) != count:
                raise ValueError("the file ends in the middle of it")
            if self._page.compression in _JPEG and b"\xff\xd9" not in data[-64:]:
                raise ValueError("the JPEG data stop early")
            pixels = self._decoder(data, index, **self._options[number])[0][0, : shape[0], : shape[1]]
            if pixels.shape[:2] != shape:
                raise ValueError(f"{pixels.shape[1]} x {pixels.shape[0]} px instead of {shape[1]} x {shape[0]}")
        except _BROKEN as error:
            raise self._broken(*place, str(error)) from error
        return pixels

    def _broken(self, row: int, column: int, found: str) -> UserError:
        y, x = row * self._segment[0], column * self._segment[1]
        compression = getattr(self._page.compression, "name", self._page.compression)
        return UserError(
            "A tile of the H&E image cannot be decoded",
            where=f"{self._file}, level {self._number}, tile row {row}, column {column}, "
            f"from x {x}, y {y} px of that level",
            found=f"{compression}: {found}",
            fix="fetch the file again; if it is whole, convert it to a common compression",
        )

    def _rgb(self, pixels: NDArray[Any]) -> Image:
        return over_white(pixels if self._lut is None else self._lut[pixels])
