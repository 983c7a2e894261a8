"""What every kind of H&E file gives: levels, each a grid of blocks that decode on their own."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
T = TypeVar("T")
R = TypeVar("R")
WHITE = 255


class Blocks(Protocol):
    """The pixels of one level as a grid of blocks; safe to ask from several threads."""

    block: tuple[int, int]
    """Height and width of a block in px; those at the right and lower edge are smaller."""

    @property
    def absent(self) -> int:
        """Blocks met so far that have no data in the file."""

    def decode(self, row: int, column: int) -> Image | None:
        """Return one block as RGB ``(h, w, 3)`` cut to the level, or None where the file has no data."""


@dataclass(frozen=True, eq=False)
class SourceLevel:
    """One level of an H&E pyramid: its size in px, level-0 px per px, and its blocks."""

    height: int
    width: int
    factor: float
    blocks: Blocks

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        rows, columns = self.blocks.block
        return -(-self.height // rows), -(-self.width // columns)

    def covering(self, start: int, stop: int, axis: int) -> range:
        """Return the rows (axis 0) or columns (axis 1) of blocks that hold px ``[start, stop)`` of the level."""
        size = self.blocks.block[axis]
        first, last = max(start, 0), min(stop, (self.height, self.width)[axis])
        return range(first // size, -(-last // size)) if last > first else range(0)

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """Return ``(top, left, bottom, right)`` of a block in px of the level."""
        high, wide = self.blocks.block
        top, left = row * high, column * wide
        return top, left, min(top + high, self.height), min(left + wide, self.width)

    def paste(self, get: Callable[[int, int], Image | None], x0: int, y0: int, width: int, height: int) -> Image:
        """Put a rectangle ``(height, width, 3)`` together from blocks; white off the image and where none is."""
        rows, columns = self.covering(y0, y0 + height, 0), self.covering(x0, x0 + width, 1)
        whole = min(x0, y0) >= 0 and y0 + height <= self.height and x0 + width <= self.width
        out = np.empty((height, width, 3), np.uint8) if whole else np.full((height, width, 3), WHITE, np.uint8)
        for row in rows:
            for column in columns:
                top, left, bottom, right = self.box(row, column)
                a, b, c, d = max(top, y0), min(bottom, y0 + height), max(left, x0), min(right, x0 + width)
                block = get(row, column)
                out[a - y0 : b - y0, c - x0 : d - x0] = (
                    WHITE if block is None else block[a - top : b - top, c - left : d - left]
                )
        return out


class BlockCache:
    """Decoded blocks of all levels of one image, the least recently used dropped first; safe for threads.

    A block that one thread decodes is waited for by the others, not decoded twice. At least one block is
    kept, so that an image in one giant strip is decoded once.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._lock = Lock()
        self._blocks: OrderedDict[tuple[int, int, int], Future[Image | None]] = OrderedDict()
        self._bytes = 0

    def get(self, level: SourceLevel, row: int, column: int) -> Image | None:
        """Return one block, decoded now or before."""
        key = (id(level.blocks), row, column)
        with self._lock:
            known = self._blocks.get(key)
            if known is not None:
                self._blocks.move_to_end(key)
            else:
                mine: Future[Image | None] = Future()
                self._blocks[key] = mine
        if known is not None:
            return known.result()
        return self._decode(key, mine, level)

    def clear(self) -> None:
        """Drop all blocks."""
        with self._lock:
            self._blocks.clear()
            self._bytes = 0

    def _decode(self, key: tuple[int, int, int], mine: Future[Image | None], level: SourceLevel) -> Image | None:
        try:
            block = level.blocks.decode(key[1], key[2])
        except BaseException as error:
            with self._lock:
                self._blocks.pop(key, None)
            mine.set_exception(error)
            raise
        mine.set_result(block)
        with self._lock:
            self._bytes += 0 if block is None else block.nbytes
            for old, future in list(self._blocks.items()):
                if self._bytes <= self.limit_bytes or old == key:
                    break
                if future.done():
                    dropped = self._blocks.pop(old).result()
                    self._bytes -= 0 if dropped is None else dropped.nbytes
        return block


def side_by_side(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Yield ``work(item)`` in order, done by threads that run a little ahead and no further."""
    pool = ThreadPoolExecutor(threads)
    running: deque[Future[R]] = deque()
    try:
        for item in items:
            running.append(pool.submit(work, item))
            while len(running) > 2 * threads or (running and running[0].done()):
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def area_average(level: SourceLevel, factor: int, threads: int = 1) -> Image:
    """Return the level made smaller by a whole ``factor``, each new px the mean of the px it covers.

    Every block is decoded once and none is kept, so memory holds a few blocks and the result. Partial px at the
    right and lower edge are means of what there is.
    """
    height, width = -(-level.height // factor), -(-level.width // factor)
    sums = np.zeros((height, width, 3), np.uint64)

    def summed(place: tuple[int, int]) -> tuple[int, int, NDArray[np.uint32]]:
        top, left, bottom, right = level.box(*place)
        block = level.blocks.decode(*place)
        if block is None:
            block = np.full((bottom - top, right - left, 3), WHITE, np.uint8)
        part = np.add.reduceat(block, _starts(top, bottom, factor) - top, axis=0, dtype=np.uint32)
        part = np.add.reduceat(part, _starts(left, right, factor) - left, axis=1)
        return top // factor, left // factor, part

    rows, columns = level.grid
    places = ((row, column) for row in range(rows) for column in range(columns))
    for y, x, part in side_by_side(summed, places, threads):
        sums[y : y + part.shape[0], x : x + part.shape[1]] += part
    counts = np.outer(_lengths(level.height, factor), _lengths(level.width, factor))[..., None].astype(np.uint64)
    return ((sums + counts // 2) // counts).astype(np.uint8)


def _starts(first: int, last: int, factor: int) -> NDArray[np.int64]:
    """Return where, in ``[first, last)``, a new px of the smaller image begins."""
    inner = np.arange((first // factor + 1) * factor, last, factor)
    return np.concatenate([[first], inner]).astype(np.int64)


def _lengths(size: int, factor: int) -> NDArray[np.int64]:
    edges = np.minimum(np.arange(0, size + factor, factor), size)
    return np.diff(edges[: -(-size // factor) + 1])


def over_white(pixels: Image) -> Image:
    """Drop alpha from ``(h, w, 3 or 4)``, laying what is transparent on white."""
    if pixels.shape[-1] == 3:
        return pixels
    alpha = pixels[..., 3:]
    if alpha.size == 0 or alpha.min() == WHITE:
        return np.ascontiguousarray(pixels[..., :3])
    weight = alpha.astype(np.uint16)
    mixed = (pixels[..., :3] * weight + WHITE * (WHITE - weight) + 127) // 255
    return mixed.astype(np.uint8)


def level_factor(full: tuple[int, int], level: tuple[int, int]) -> float:
    """Level-0 px per px. Whole where the sizes differ from it by rounding, as they do in written pyramids."""
    ratio = max(full) / max(level)
    whole = round(ratio)
    if all(abs(a / whole - b) <= 1 for a, b in zip(full, level, strict=True)):
        return float(whole)
    return ratio
