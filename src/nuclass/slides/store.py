"""Read windows from a slide store at random, without decoding a tile twice."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import ArrayLike, NDArray

from nuclass.core.errors import UserError
from nuclass.core.files import read_json
from nuclass.slides.geometry import window_origin
from nuclass.slides.zarr_format import (
    EMPTY,
    WHITE,
    LevelLayout,
    decode_index,
    decode_tile,
    parse_layout,
    shard_path,
)

Image = NDArray[np.uint8]
_OPEN_SHARDS = 64
# Windows of one block are cut from one picture of it where they hold this many times its pixels: the copies out of
# one piece of memory are then cheaper than those out of each tile, by more than the picture costs.
_WORTH_IT = 2


class SlideStore:
    """The H&E of one slide at the study's scale, a pyramid of tiles (see :mod:`nuclass.slides.zarr_format`).

    Parameters
    ----------
    path
        The folder ``he.ome.zarr``.
    cache_mb
        Decoded tiles kept, in MB. Reading neighbours one after the other needs little; see
        :meth:`windows`.

    Pickles as its path and opens its files again in the process that reads. Forking is safe. An object
    belongs to one thread; reads with ``threads`` share the work among objects of their own.
    """

    def __init__(self, path: str | Path, cache_mb: float = 128) -> None:
        self.path = Path(path)
        self.cache_mb = cache_mb
        group = self.path / "zarr.json"
        if not group.is_file():
            raise UserError(
                "There is no slide store",
                where=self.path,
                expected="a folder with zarr.json, as rule build_slide writes it",
                fix="build the slide first",
            )
        attributes = read_json(group).get("attributes", {})
        try:
            self.attributes: dict[str, Any] = attributes["nuclass"]
            self.mpp = float(self.attributes["mpp"])
            datasets = attributes["ome"]["multiscales"][0]["datasets"]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(
                "This OME-Zarr is not a slide store",
                where=group,
                found=f"no {error}",
                expected="attributes ome and nuclass, as nuclass writes them",
                fix="build the slide again",
            ) from error
        self.layouts: list[LevelLayout] = []
        for dataset in datasets:
            metadata = self.path / dataset["path"] / "zarr.json"
            self.layouts.append(parse_layout(read_json(metadata), metadata))
        self._reset()

    def _reset(self) -> None:
        self._tiles: OrderedDict[tuple[int, int, int], Image] = OrderedDict()
        self._bytes = 0
        self._memory = np.empty(0, np.uint8)
        self._others: list[SlideStore] = []
        self._shards: OrderedDict[tuple[int, int, int], tuple[int, list[list[tuple[int, int]]]]] = OrderedDict()
        tile = self.layouts[0].tile
        self._white = np.full((tile, tile, 3), WHITE, np.uint8)
        self._white.flags.writeable = False

    @property
    def shape(self) -> tuple[int, int]:
        """``(height, width)`` of level 0 in px."""
        return self.layouts[0].height, self.layouts[0].width

    @property
    def levels(self) -> int:
        """Number of pyramid levels; level ``k`` has ``mpp * 2**k`` micrometres per pixel."""
        return len(self.layouts)

    def level_shape(self, level: int) -> tuple[int, int]:
        """``(height, width)`` of one level in its own px."""
        layout = self._layout(level)
        return layout.height, layout.width

    def window(self, x: float, y: float, size: int, level: int = 0) -> tuple[Image, float]:
        """Cut one window, ``(size, size, 3)``, and the share of it that lies off the slide (white).

        ``x`` and ``y`` are level-0 px, continuous. At level ``k`` the window covers ``size * 2**k``
        level-0 px, centred on the point to within half a pixel of that level.
        """
        layout = self._layout(level)
        x0, y0 = window_origin((x / 2**level, y / 2**level), size)
        out = np.empty((size, size, 3), np.uint8)
        self._fill(out, level, layout, int(y0), int(x0))
        return out, float(padded_fraction(x0, y0, size, (layout.height, layout.width)))

    def windows(
        self,
        xy: ArrayLike,
        size: int,
        level: int = 0,
        order: str = "tile",
        out: Image | None = None,
        threads: int = 1,
    ) -> Image:
        """Cut many windows, ``(N, size, size, 3)``, in the order of ``xy`` ``(N, 2)``, level-0 px.

        Parameters
        ----------
        order
            They are read in Morton order of their tiles (``tile``), so that neighbours find their tiles in the
            cache, or as given (``given``).
        out
            Filled and returned if given; fresh memory costs more than the copying, so reuse it where speed counts.
        threads
            The sequence is cut into so many runs that are read at a time, each beyond the first with its own
            files and a cache of ``cache_mb / threads``. Results do not depend on it.
        """
        layout = self._layout(level)
        origins = window_origin(np.asarray(xy, dtype=np.float64).reshape(-1, 2) / 2**level, size)
        if order == "tile":
            sequence, blocks = _tile_order(origins, size, layout.tile)
        elif order == "given":
            sequence = np.arange(len(origins))
            blocks = sequence.astype(np.uint64)
        else:
            raise ValueError(f"order must be 'tile' or 'given', not {order!r}")
        shape = (len(origins), size, size, 3)
        if out is None:
            out = np.empty(shape, np.uint8)
        elif out.shape != shape or out.dtype != np.uint8:
            raise ValueError(f"out has shape {out.shape} and type {out.dtype}; expected {shape} and uint8")
        threads = min(threads, len(sequence) // 2)
        if threads <= 1:
            self._cut(out, sequence, blocks, origins, level)
            return out
        from concurrent.futures import ThreadPoolExecutor

        runs = zip(
            self._readers(threads), np.array_split(sequence, threads), np.array_split(blocks, threads), strict=True
        )
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(reader._cut, out, rows, of, origins, level) for reader, rows, of in runs]:
                done.result()
        return out

    def batches(
        self, xy: ArrayLike, size: int, level: int = 0, batch: int = 64, threads: int = 1
    ) -> Iterator[tuple[NDArray[np.intp], Image]]:
        """Pass once over all windows, in tile order: yields ``(rows of xy, windows)`` of up to ``batch``.

        The windows lie in one buffer that the next step overwrites: copy what you keep. ``threads`` as for
        :meth:`windows`, within a batch.
        """
        points = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
        origins = window_origin(points / 2**level, size)
        sequence, _ = _tile_order(origins, size, self._layout(level).tile)
        buffer = np.empty((min(batch, len(points)), size, size, 3), np.uint8)
        for start in range(0, len(sequence), batch):
            rows = sequence[start : start + batch]
            yield rows, self.windows(points[rows], size, level, "tile", buffer[: len(rows)], threads)

    def region(self, x0: int, y0: int, width: int, height: int, level: int = 0) -> Image:
        """Cut a rectangle ``(height, width, 3)`` by its top-left pixel, in that level's own px."""
        out = np.empty((height, width, 3), np.uint8)
        self._fill(out, level, self._layout(level), y0, x0)
        return out

    def padded_fractions(self, xy: ArrayLike, size: int) -> NDArray[np.float64]:
        """Share of each level-0 window that lies off the slide, ``(N,)``."""
        origins = window_origin(np.asarray(xy, dtype=np.float64).reshape(-1, 2), size)
        return padded_fraction(origins[:, 0], origins[:, 1], size, self.shape)

    def thumbnail(self, max_px: int = 1024) -> Image:
        """Return the whole slide with its longer side at most ``max_px``, ``(h, w, 3)``.

        Taken from the smallest level that is large enough, then area-averaged.
        """
        from PIL import Image as Pillow

        level = next(
            (k for k in range(self.levels - 1, 0, -1) if max(self.level_shape(k)) >= max_px),
            0,
        )
        height, width = self.level_shape(level)
        factor = max(-(-max(height, width) // max_px), 1)
        layout = self.layouts[level]
        rows = max(layout.tile // factor, 1) * factor
        parts = []
        for y0 in range(0, height, rows):
            band = self.region(0, y0, width, min(rows, height - y0), level)
            parts.append(np.asarray(Pillow.fromarray(band).reduce(factor)))
        return np.concatenate(parts)

    def tile(self, level: int, row: int, column: int) -> Image:
        """Return one decoded tile ``(tile, tile, 3)``, read-only, through the cache."""
        key = (level, row, column)
        tiles = self._tiles
        if key in tiles:
            tiles.move_to_end(key)
            return tiles[key]
        image = self._decode(level, row, column)
        if image is not self._white:
            self._bytes += image.nbytes
            limit = self.cache_mb * 1e6
            while self._bytes > limit and tiles:
                self._bytes -= tiles.popitem(last=False)[1].nbytes
            tiles[key] = image
        return image

    @property
    def cached_mb(self) -> float:
        """Decoded tiles in memory, MB."""
        return (self._bytes + sum(other._bytes for other in self._others)) / 1e6

    def trim(self, keep_mb: float) -> None:
        """Drop decoded tiles, those not used for longest first, until at most ``keep_mb`` are left."""
        for store in (*self._others, self):
            excess = (self.cached_mb - keep_mb) * 1e6
            while excess > 0 and store._tiles:
                size = store._tiles.popitem(last=False)[1].nbytes
                store._bytes -= size
                excess -= size

    def close(self) -> None:
        """Close the files and drop the cache; the next read opens them again."""
        for other in self._others:
            other.close()
        for descriptor, _ in self._shards.values():
            os.close(descriptor)
        self._reset()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "cache_mb": self.cache_mb,
            "attributes": self.attributes,
            "mpp": self.mpp,
            "layouts": self.layouts,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __enter__(self) -> SlideStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        for descriptor, _ in getattr(self, "_shards", {}).values():
            os.close(descriptor)

    def __repr__(self) -> str:
        height, width = self.shape
        return f"SlideStore({str(self.path)!r}, {width} x {height} px, {self.mpp} um/px, {self.levels} levels)"

    def _layout(self, level: int) -> LevelLayout:
        if not 0 <= level < len(self.layouts):
            raise ValueError(f"{self.path} has levels 0 to {len(self.layouts) - 1}; level {level} was asked for")
        return self.layouts[level]

    def _readers(self, threads: int) -> list[SlideStore]:
        """Return this store and others of the same files, one a thread."""
        while len(self._others) < threads - 1:
            other = SlideStore.__new__(SlideStore)
            other.__setstate__(self.__getstate__())
            self._others.append(other)
        for other in self._others:
            other.cache_mb = self.cache_mb / threads
        return [self, *self._others[: threads - 1]]

    def _cut(
        self,
        out: Image,
        rows: NDArray[np.intp],
        blocks: NDArray[np.uint64],
        origins: NDArray[np.int64],
        level: int,
    ) -> None:
        """Fill ``out[rows]`` in this order; rows of one block (equal numbers in ``blocks``) follow each other."""
        layout, size = self._layout(level), out.shape[1]
        corners = origins.tolist()
        for group in np.split(rows, np.flatnonzero(blocks[1:] != blocks[:-1]) + 1):
            if len(group) > _WORTH_IT:
                x0, y0 = origins[group].min(0).tolist()
                width, height = (origins[group].max(0) + size - (x0, y0)).tolist()
                if _WORTH_IT * width * height <= len(group) * size * size:
                    if len(self._memory) < height * width * 3:
                        self._memory = np.empty(height * width * 3, np.uint8)
                    picture = self._memory[: height * width * 3].reshape(height, width, 3)
                    self._fill(picture, level, layout, y0, x0)
                    for i in group.tolist():
                        x, y = corners[i]
                        out[i] = picture[y - y0 : y - y0 + size, x - x0 : x - x0 + size]
                    continue
            for i in group.tolist():
                x, y = corners[i]
                self._fill(out[i], level, layout, y, x)

    def _fill(self, out: Image, level: int, layout: LevelLayout, y0: int, x0: int) -> None:
        """Copy the pixels of a rectangle into ``out``; white where it leaves the slide."""
        height, width = out.shape[:2]
        top, bottom = max(y0, 0), min(y0 + height, layout.height)
        left, right = max(x0, 0), min(x0 + width, layout.width)
        if bottom - top < height or right - left < width:
            out[:] = WHITE
            if bottom <= top or right <= left:
                return
        side = layout.tile
        get = self.tile
        columns = range(left // side, (right - 1) // side + 1)
        for row in range(top // side, (bottom - 1) // side + 1):
            tile_y = row * side
            a, b = max(top, tile_y), min(bottom, tile_y + side)
            for column in columns:
                tile_x = column * side
                c, d = max(left, tile_x), min(right, tile_x + side)
                out[a - y0 : b - y0, c - x0 : d - x0] = get(level, row, column)[
                    a - tile_y : b - tile_y, c - tile_x : d - tile_x
                ]

    def _decode(self, level: int, row: int, column: int) -> Image:
        layout = self.layouts[level]
        n = layout.tiles_per_shard
        descriptor, index = self._shard(level, row // n, column // n)
        offset, length = index[row % n][column % n]
        if length == EMPTY:
            return self._white
        data = os.pread(descriptor, length, offset)
        try:
            return decode_tile(data, layout.tile)
        except (imagecodecs.BloscError, ValueError) as error:
            raise UserError(
                "A tile of the slide store is damaged",
                where=f"{shard_path(self.path, level, row // n, column // n)}, tile row {row}, column {column}",
                found=str(error),
                fix="build the slide again",
            ) from error

    def _shard(self, level: int, row: int, column: int) -> tuple[int, list[list[tuple[int, int]]]]:
        key = (level, row, column)
        shard = self._shards.get(key)
        if shard is not None:
            self._shards.move_to_end(key)
            return shard
        path = shard_path(self.path, level, row, column)
        layout = self.layouts[level]
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise UserError("A file of the slide store is missing", where=path, fix="build the slide again") from error
        try:
            start = os.fstat(descriptor).st_size - layout.index_bytes
            index = decode_index(os.pread(descriptor, layout.index_bytes, max(start, 0)), layout, path)
        except BaseException:
            os.close(descriptor)
            raise
        while len(self._shards) >= _OPEN_SHARDS:
            os.close(self._shards.popitem(last=False)[1][0])
        entry = (descriptor, [[(int(o), int(n)) for o, n in line] for line in index])
        self._shards[key] = entry
        return entry


def _tile_order(origins: NDArray[np.int64], size: int, tile: int) -> tuple[NDArray[np.intp], NDArray[np.uint64]]:
    """Sort windows along a Morton curve over half tiles of their centres.

    Returns the order, and in this order the number of the block (half a window, at least a tile, along each side)
    that the centre lies in.
    """
    half = max(tile // 2, 1)
    curve = morton((origins + size // 2) // half)
    order = np.argsort(curve, kind="stable")
    steps = max((max(size // 2, tile) // half).bit_length() - 1, 0)
    return order, curve[order] >> np.uint64(2 * steps)


def padded_fraction(x0: Any, y0: Any, size: int, shape: tuple[int, int]) -> Any:
    """Share of the window ``[x0, x0 + size) x [y0, y0 + size)`` outside an image of ``shape`` (height, width)."""
    height, width = shape
    inside_x = np.clip(np.minimum(np.add(x0, size), width) - np.maximum(x0, 0), 0, size)
    inside_y = np.clip(np.minimum(np.add(y0, size), height) - np.maximum(y0, 0), 0, size)
    return 1.0 - inside_x * inside_y / float(size * size)


def morton(cells: ArrayLike) -> NDArray[np.uint64]:
    """Interleave the bits of integer grid positions ``(N, 2)``; negative ones count as 0. Returns ``(N,)``."""
    grid = np.clip(np.asarray(cells, dtype=np.int64), 0, 2**31 - 1).astype(np.uint64)
    for shift, mask in (
        (16, 0x0000FFFF0000FFFF),
        (8, 0x00FF00FF00FF00FF),
        (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333),
        (1, 0x5555555555555555),
    ):
        grid = (grid | (grid << np.uint64(shift))) & np.uint64(mask)
    return grid[:, 0] | (grid[:, 1] << np.uint64(1))
