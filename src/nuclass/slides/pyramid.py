"""Write the levels of a slide store from pieces that come in any order and from any thread."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from nuclass.slides.resample import halved
from nuclass.slides.tiles import Image
from nuclass.slides.zarr_format import (
    EMPTY,
    WHITE,
    LevelLayout,
    array_metadata,
    encode_index,
    encode_tile,
    shard_path,
)


class PyramidWriter:
    """The levels of a store, fed with pieces of level 0.

    A piece is one tile high and one shard wide: piece ``(row, column)`` starts at px ``(row * tile, column *
    shard)``. Four pieces of a level, halved, make one of the level below, which is written as soon as they are
    there; so memory holds what waits for its neighbours and no more.
    """

    def __init__(self, root: Path, shape: tuple[int, int], tile: int, shard: int, levels: int) -> None:
        self.layouts = [LevelLayout(-(-shape[0] // 2**k), -(-shape[1] // 2**k), tile, shard) for k in range(levels)]
        self._levels = [_Level(root, number, layout) for number, layout in enumerate(self.layouts)]

    def add(self, row: int, column: int, image: Image, level: int = 0) -> None:
        """Write one piece ``(h, w, 3)``, cut to the level, and what it completes below."""
        self._levels[level].write(row, column, image)
        if level + 1 == len(self._levels):
            return
        above = self.layouts[level]
        whole = self._levels[level + 1].collect(row, column, image, above)
        if whole is not None:
            self.add(row // 2, column // 2, whole, level + 1)

    def finish(self) -> None:
        """Make sure that every piece was written."""
        waiting = [number for number, level in enumerate(self._levels) if level.unfinished]
        if waiting:
            raise RuntimeError(f"Pieces of levels {waiting} are missing")

    def close(self) -> None:
        """Close what is still open after an error."""
        for level in self._levels:
            level.close()


class _Shard:
    """One shard file on its way."""

    def __init__(self, path: Path, layout: LevelLayout, rows: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file: BinaryIO = path.open("wb")
        self.rows_left = rows
        n = layout.tiles_per_shard
        self.index: NDArray[np.uint64] = np.full((n, n, 2), EMPTY, np.uint64)
        self._end = 0

    def append(self, row: int, column: int, parts: tuple[Any, ...]) -> None:
        length = sum(map(len, parts))
        self.index[row, column] = (self._end, length)
        self.file.writelines(parts)
        self._end += length


class _Level:
    """One level: its open shards, and the pieces that wait for their neighbours."""

    def __init__(self, root: Path, number: int, layout: LevelLayout) -> None:
        self.root, self.number, self.layout = root, number, layout
        self._lock = Lock()
        self._shards: dict[tuple[int, int], _Shard] = {}
        self._waiting: dict[tuple[int, int], tuple[Image, list[tuple[int, int]]]] = {}
        self._pieces_left = layout.tile_grid[0] * layout.shard_grid[1]
        folder = root / str(number)
        folder.mkdir()
        (folder / "zarr.json").write_text(json.dumps(array_metadata(layout), indent=2), encoding="utf-8")

    @property
    def unfinished(self) -> bool:
        return bool(self._pieces_left or self._shards or self._waiting)

    def write(self, row: int, column: int, image: Image) -> None:
        """Encode the tiles of a piece and append them to its shard, which ends with its last piece."""
        side, n = self.layout.tile, self.layout.tiles_per_shard
        encoded = [encode_tile(_square(image, left, side)) for left in range(0, image.shape[1], side)]
        place = (row // n, column)
        with self._lock:
            shard = self._shards.get(place)
            if shard is None:
                rows = min(n, self.layout.tile_grid[0] - place[0] * n)
                shard = self._shards[place] = _Shard(shard_path(self.root, self.number, *place), self.layout, rows)
            for k, data in enumerate(encoded):
                if data is not None:
                    shard.append(row % n, k, data)
            self._pieces_left -= 1
            shard.rows_left -= 1
            if shard.rows_left:
                return
            del self._shards[place]
        shard.file.write(encode_index(shard.index))
        shard.file.close()

    def collect(self, row: int, column: int, image: Image, above: LevelLayout) -> Image | None:
        """Take the piece ``(row, column)`` of the level above, halved; return the piece it completes, if it does."""
        place = (row // 2, column // 2)
        height = min(self.layout.tile, self.layout.height - place[0] * self.layout.tile)
        width = min(self.layout.shard, self.layout.width - place[1] * self.layout.shard)
        parts = min(2, above.tile_grid[0] - 2 * place[0]) * min(2, above.shard_grid[1] - 2 * place[1])
        with self._lock:
            if place not in self._waiting:
                self._waiting[place] = (np.empty((height, width, 3), np.uint8), [])
            whole, seen = self._waiting[place]
        y, x = row % 2 * self.layout.tile // 2, column % 2 * self.layout.shard // 2
        halved(image, whole[y : y + -(-image.shape[0] // 2), x : x + -(-image.shape[1] // 2)])
        with self._lock:
            seen.append((row, column))
            if len(seen) < parts:
                return None
            return self._waiting.pop(place)[0]

    def close(self) -> None:
        for shard in self._shards.values():
            shard.file.close()
        self._shards.clear()


def _square(image: Image, left: int, side: int) -> Image:
    """Cut a tile from a piece, filled up with white at the edge of the slide."""
    part = image[:, left : left + side]
    if part.shape[:2] == (side, side):
        return np.ascontiguousarray(part)
    out = np.full((side, side, 3), WHITE, np.uint8)
    out[: part.shape[0], : part.shape[1]] = part
    return out
