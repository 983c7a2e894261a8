"""Read an H&E TIFF in bands of rows, each tile or strip decoded once, whatever its layout."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger

_log = get_logger(__name__)
_JPEG = {6, 7, 34892, 33007}
_UNITS = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4}
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class SourceLevel:
    """One level of an H&E pyramid: its size in px, level-0 px per px, and the TIFF pages of its planes."""

    height: int
    width: int
    factor: float
    pages: tuple[Any, ...]


@dataclass(frozen=True)
class Source:
    """An open H&E image. ``embedded_mpp`` is what the file says of its pixel size, for a cross-check only."""

    path: Path
    levels: tuple[SourceLevel, ...]
    embedded_mpp: float | None

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


@contextmanager
def open_source(path: str | Path) -> Iterator[Source]:
    """Open an RGB or RGBA H&E of 8 bits: TIFF, OME-TIFF, BigTIFF or SVS, with or without a pyramid.

    Any order of axes that tifffile knows is taken: YXS, (1, Y, X, 3), (3, Y, X) in one page or three.

    Raises
    ------
    UserError
        The file is missing, is no TIFF, is not 8-bit colour.
    """
    file = Path(path)
    try:
        tiff = tifffile.TiffFile(file)
    except FileNotFoundError as error:
        raise UserError("The H&E image is missing", where=file, fix="check the path in the slide sheet") from error
    except tifffile.TiffFileError as error:
        raise UserError(
            "The H&E image cannot be read",
            where=file,
            found=str(error),
            expected="a TIFF or OME-TIFF",
            fix="fetch the file again; a download may be cut off",
        ) from error
    with tiff:
        series = max(tiff.series, key=lambda s: _size(s)[0] * _size(s)[1])
        _check_pixels(file, series)
        height, width = _size(series)
        levels = []
        for level in series.levels:
            h, w = _size(level)
            levels.append(SourceLevel(h, w, _factor((height, width), (h, w)), tuple(level.pages)))
        yield Source(file, tuple(levels), _embedded_mpp(tiff))


def _size(series: Any) -> tuple[int, int]:
    sizes = dict(zip(series.axes, series.shape, strict=True))
    return int(sizes.get("Y", 0)), int(sizes.get("X", 0))


def _check_pixels(file: Path, series: Any) -> None:
    page = series.keyframe
    if series.dtype != np.uint8:
        raise UserError(
            "The H&E image is not 8-bit",
            where=file,
            found=f"{series.dtype} pixels",
            expected="8-bit RGB",
            fix="convert it to 8-bit RGB; stretching grey levels silently would change the colours",
        )
    height, width = _size(series)
    channels = int(np.prod(series.shape)) // max(height * width, 1)
    photometric = getattr(page.photometric, "name", str(page.photometric))
    if channels not in (3, 4) or photometric in ("SEPARATED", "PALETTE", "CIELAB"):
        raise UserError(
            "The H&E image is not RGB",
            where=file,
            found=f"axes {series.axes}, shape {series.shape}, {photometric}",
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


def _factor(full: tuple[int, int], level: tuple[int, int]) -> float:
    """Level-0 px per px. Whole where the sizes differ from it by rounding, as they do in written pyramids."""
    ratio = max(full) / max(level)
    whole = round(ratio)
    if all(abs(a / whole - b) <= 1 for a, b in zip(full, level, strict=True)):
        return float(whole)
    return ratio


def _embedded_mpp(tiff: tifffile.TiffFile) -> float | None:
    text = tiff.ome_metadata
    if text is None:
        description = str(tiff.pages[0].description or "")  # type: ignore[union-attr]
        match = re.search(r"\bMPP\s*=\s*([0-9.]+)", description)
        return float(match.group(1)) if match else None
    pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", text)
    if pixels is None:
        return None
    size = re.search(r'PhysicalSizeX="([^"]+)"', pixels.group())
    unit = re.search(r'PhysicalSizeXUnit="([^"]+)"', pixels.group())
    factor = _UNITS.get(unit.group(1) if unit else "µm")
    return float(size.group(1)) * factor if size and factor else None


class RowReader:
    """Rows of one level, asked for from top to bottom; holds the tile rows it needs and no more.

    Parameters
    ----------
    source, level
        The image and one of its levels.
    threads
        Tiles decoded at the same time.
    """

    def __init__(self, source: Source, level: SourceLevel, threads: int = 1) -> None:
        self.source = source
        self.level = level
        page = level.pages[0].keyframe
        self._page = page
        self._decoder = page.decode
        self._planes = len(level.pages)
        # Read here, in one thread: these properties move the file's position.
        self._options: dict[int, dict[str, Any]] = {
            id(p): {"jpegtables": p.jpegtables, "jpegheader": page.jpegheader} if page.compression in _JPEG else {}
            for p in level.pages
        }
        separate, _, _, _, contiguous = page.shaped
        self._samples = contiguous if contiguous > 1 else separate * self._planes
        self._tile = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, level.width)
        self._tile = (min(self._tile[0], level.height) if not page.is_tiled else self._tile[0], self._tile[1])
        self._columns = math.ceil(level.width / self._tile[1])
        self._rows = math.ceil(level.height / self._tile[0])
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._maps = [self._map(p) for p in level.pages] if all(p.is_memmappable for p in level.pages) else None
        self._buffer = np.empty((0, level.width, 3), np.uint8)
        self._start = 0
        self._next = 0
        self.missing = 0

    def read(self, start: int, stop: int) -> Image:
        """Return rows ``[start, stop)`` as ``(stop - start, width, 3)``; ``start`` may not go back."""
        if not self._start <= start <= stop <= self.level.height:
            raise ValueError(f"Rows {start} to {stop} after {self._start}, height {self.level.height}")
        if self._maps is not None:
            self._start = start
            return self._rgb(self._mapped(start, stop))
        parts = [self._buffer[start - self._start :]]
        have = self._start + len(self._buffer)
        if start > have:
            self._next = max(self._next, start // self._tile[0])
            have = self._next * self._tile[0]
            parts = []
            first = have
        else:
            first = start
        while have < stop:
            parts.append(self._rgb(self._tile_row(self._next)))
            have += len(parts[-1])
            self._next += 1
        self._buffer = parts[0] if len(parts) == 1 else np.concatenate(parts)
        self._start = first
        return self._buffer[start - first : stop - first]

    def close(self) -> None:
        """End the decoding threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def __enter__(self) -> RowReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _map(self, page: Any) -> np.memmap[Any, np.dtype[np.uint8]]:
        separate, _, height, width, contiguous = page.shaped
        shape = (separate, height, width, contiguous)
        return np.memmap(self.source.path, np.uint8, "r", offset=page.dataoffsets[0], shape=shape)

    def _mapped(self, start: int, stop: int) -> Image:
        assert self._maps is not None
        planes = [m[k, start:stop] for m in self._maps for k in range(m.shape[0])]
        return np.concatenate(planes, axis=-1)

    def _tile_row(self, row: int) -> Image:
        """Decode one row of tiles: ``(rows, width, samples)``."""
        top = row * self._tile[0]
        height = min(self._tile[0], self.level.height - top)
        out = np.empty((height, self.level.width, self._samples), np.uint8)
        per_plane = self._rows * self._columns
        jobs = [
            (page, plane * per_plane + row * self._columns + column)
            for page in self.level.pages
            for plane in range(self._page.shaped[0])
            for column in range(self._columns)
        ]
        handle = self.source.levels[0].pages[0].parent.filehandle

        def encoded() -> Iterator[tuple[Any, int, bytes | None]]:
            for page, index in jobs:
                count = page.databytecounts[index] if index < len(page.databytecounts) else 0
                if count:
                    handle.seek(page.dataoffsets[index])
                yield page, index, handle.read(count) if count else None

        tiles = map(self._decode, encoded()) if self._pool is None else self._pool.map(self._decode, encoded())
        for number, tile in enumerate(tiles):
            plane, column = divmod(number, self._columns)
            left = column * self._tile[1]
            right = min(left + self._tile[1], self.level.width)
            channels = slice(None) if self._page.shaped[4] > 1 else slice(plane, plane + 1)
            if tile is None:
                self.missing += 1
                out[:, left:right, channels] = 255
            else:
                out[:, left:right, channels] = tile[0, :height, : right - left]
        return out

    def _decode(self, job: tuple[Any, int, bytes | None]) -> Any:
        page, index, data = job
        try:
            return self._decoder(data, index, **self._options[id(page)])[0]
        except (ValueError, RuntimeError, NotImplementedError) as error:
            raise UserError(
                "A tile of the H&E image cannot be decoded",
                where=f"{self.source.path}, tile {index}",
                found=f"{getattr(self._page.compression, 'name', self._page.compression)}: {error}",
                fix="fetch the file again; if it is whole, convert it to a common compression",
            ) from error

    def _rgb(self, pixels: Image) -> Image:
        """Drop alpha, laying what is transparent on white."""
        if pixels.shape[-1] == 3:
            return pixels
        alpha = pixels[..., 3:]
        if alpha.min() == 255:
            return np.ascontiguousarray(pixels[..., :3])
        weight = alpha.astype(np.uint16)
        mixed = (pixels[..., :3] * weight + 255 * (255 - weight) + 127) // 255
        return mixed.astype(np.uint8)
