"""Bring rectangles of an H&E to the scale of the store, each px the same whatever the rectangle."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nuclass.slides.source import Source
from nuclass.slides.tiles import Image

_ONE = 1 << 15


class Box(NamedTuple):
    """A rectangle by its top-left px."""

    x0: int
    y0: int
    width: int
    height: int


class Taps(NamedTuple):
    """For each of ``n`` new px: the first old px of its sum, and the weights ``(n, taps)``, which add up to 2**15."""

    first: NDArray[np.int64]
    weights: NDArray[np.uint16]

    @property
    def start(self) -> int:
        """First old px of all."""
        return int(self.first[0])

    @property
    def stop(self) -> int:
        """End of the old px of all."""
        return int(self.first[-1]) + self.weights.shape[1]


class Resampler:
    """The H&E at ``scale`` (new px per level-0 px) as an image of ``shape`` (height, width).

    The new px ``i`` covers ``[i, i + 1) / scale`` of level 0. Linear interpolation where the image grows, the
    triangle filter widened by the step where it shrinks (no aliasing); from the pyramid level nearest above the
    wanted resolution. At the edge the last px counts on. A px has one value, whatever the box it is made in.
    Safe for threads.
    """

    def __init__(self, source: Source, scale: float, shape: tuple[int, int]) -> None:
        self.level = source.level_for(1 / scale)
        self.shape = shape
        self.step = 1 / (scale * self.level.factor)
        self.taps = lru_cache(maxsize=512)(self._taps)
        self._plain = self.step == 1 and shape == (self.level.height, self.level.width)

    def _taps(self, start: int, count: int, axis: int) -> Taps:
        """Return the sums of ``count`` new px from ``start`` on, along y (axis 0) or x (axis 1)."""
        size = (self.level.height, self.level.width)[axis]
        support = max(self.step, 1.0)
        centre = (np.arange(start, start + count) + 0.5) * self.step
        wanted = min(math.ceil(2 * support), size) if self.step != 1 else 1
        leftmost = np.floor(centre - support - 0.5).astype(np.int64) + 1 if self.step != 1 else np.arange(count) + start
        first = np.clip(leftmost, 0, size - wanted)
        share = np.zeros((count, wanted))
        rows = np.arange(count)
        for tap in range(math.ceil(2 * support) + 1 if self.step != 1 else 1):
            old = leftmost + tap
            weight = np.clip(1 - np.abs(old + 0.5 - centre) / support, 0, None)
            np.add.at(share, (rows, np.clip(old - first, 0, wanted - 1)), weight)
        share *= _ONE / share.sum(axis=1, keepdims=True)
        whole = np.floor(share + 0.5).astype(np.int64)
        whole[rows, share.argmax(axis=1)] += _ONE - whole.sum(axis=1)
        return Taps(first, whole.astype(np.uint16))

    def needs(self, box: Box) -> Box:
        """Return the rectangle of :attr:`level` that a box of the new image is made of."""
        if self._plain:
            return box
        y, x = self.taps(box.y0, box.height, 0), self.taps(box.x0, box.width, 1)
        return Box(x.start, y.start, x.stop - x.start, y.stop - y.start)

    def make(self, box: Box, pixels: Image) -> Image:
        """Return a box of the new image, ``(height, width, 3)``, from the pixels that it :meth:`needs`."""
        if self._plain:
            return pixels
        y, x = self.taps(box.y0, box.height, 0), self.taps(box.x0, box.width, 1)
        out = np.empty((box.height, box.width * 3), np.uint8)
        old = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
        resize, _ = kernels()
        resize(old, out, y.first - y.start, y.weights, (x.first - x.start) * 3, x.weights)
        return out.reshape(box.height, box.width, 3)


def resampled(source: Source, scale: float, shape: tuple[int, int], box: tuple[int, int, int, int]) -> Image:
    """Return one box ``(x0, y0, width, height)`` of the H&E at ``scale``; see :class:`Resampler`."""
    resampler = Resampler(source, scale, shape)
    wanted = Box(*box)
    return resampler.make(wanted, source.region(resampler.level, *resampler.needs(wanted)))


def halved(image: Image, out: Image | None = None) -> Image:
    """Return the 2 x 2 mean of ``(h, w, 3)``, rounded, in ``out`` if given. Of an odd side the last px counts twice."""
    height, width = image.shape[:2]
    if height % 2 or width % 2:
        image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    if out is None:
        out = np.empty((image.shape[0] // 2, image.shape[1] // 2, 3), np.uint8)
    _, halve = kernels()
    halve(np.ascontiguousarray(image), out)
    return out


@lru_cache(maxsize=1)
def kernels() -> tuple[Callable[..., None], Callable[..., None]]:
    """Compile ``resize`` and ``halve`` (about a second, kept on disk where the folder can be written)."""
    from numba import njit

    signatures = (
        "void(uint8[:,::1], uint8[:,::1], int64[::1], uint16[:,::1], int64[::1], uint16[:,::1])",
        "void(uint8[:,:,::1], uint8[:,:,:])",
    )

    def build(**options: Any) -> tuple[Callable[..., None], Callable[..., None]]:
        return njit(signatures[0], nogil=True, **options)(_resize), njit(signatures[1], nogil=True, **options)(_halve)

    try:
        return build(cache=True)
    except RuntimeError:
        # Numba found no folder for its cache; the same code is compiled for this run alone.
        return build()


def _resize(
    old: NDArray[np.uint8],
    new: NDArray[np.uint8],
    y_first: NDArray[np.int64],
    y_weights: NDArray[np.uint16],
    x_first: NDArray[np.int64],
    x_weights: NDArray[np.uint16],
) -> None:
    """Sum rows, then columns, in whole numbers: 7 more bits between the two, one rounding at the end."""
    samples = old.shape[1]
    sums, row = np.empty(samples, np.uint32), np.empty(samples, np.uint16)
    y_taps, x_taps = y_weights.shape[1], x_weights.shape[1]
    half, half_row = np.uint32(1 << 21), np.uint32(1 << 7)
    for i in range(new.shape[0]):
        y = y_first[i]
        first, w0 = old[y], np.uint32(y_weights[i, 0])
        last, w1 = old[y + y_taps - 1], np.uint32(y_weights[i, y_taps - 1] if y_taps > 1 else 0)
        if y_taps <= 2:
            for j in range(samples):
                row[j] = (w0 * np.uint32(first[j]) + w1 * np.uint32(last[j]) + half_row) >> np.uint32(8)
        else:
            for j in range(samples):
                sums[j] = w0 * np.uint32(first[j]) + w1 * np.uint32(last[j]) + half_row
            for k in range(1, y_taps - 1):
                line, weight = old[y + k], np.uint32(y_weights[i, k])
                for j in range(samples):
                    sums[j] += weight * np.uint32(line[j])
            for j in range(samples):
                row[j] = sums[j] >> np.uint32(8)
        out = new[i]
        # The two common counts spelled out: twice as fast as the loop over taps below.
        if x_taps == 2:
            for j in range(x_first.shape[0]):
                x = x_first[j]
                w0, w1 = np.uint32(x_weights[j, 0]), np.uint32(x_weights[j, 1])
                for c in range(x, x + 3):
                    total = w0 * np.uint32(row[c]) + w1 * np.uint32(row[c + 3])
                    out[3 * j + c - x] = (total + half) >> np.uint32(22)
            continue
        if x_taps == 3:
            for j in range(x_first.shape[0]):
                x = x_first[j]
                w0, w1, w2 = np.uint32(x_weights[j, 0]), np.uint32(x_weights[j, 1]), np.uint32(x_weights[j, 2])
                for c in range(x, x + 3):
                    total = w0 * np.uint32(row[c]) + w1 * np.uint32(row[c + 3]) + w2 * np.uint32(row[c + 6])
                    out[3 * j + c - x] = (total + half) >> np.uint32(22)
            continue
        for j in range(x_first.shape[0]):
            x = x_first[j]
            red, green, blue = half, half, half
            for k in range(x_taps):
                w = np.uint32(x_weights[j, k])
                red += w * np.uint32(row[x])
                green += w * np.uint32(row[x + 1])
                blue += w * np.uint32(row[x + 2])
                x += 3
            out[3 * j] = red >> np.uint32(22)
            out[3 * j + 1] = green >> np.uint32(22)
            out[3 * j + 2] = blue >> np.uint32(22)


def _halve(old: NDArray[np.uint8], new: NDArray[np.uint8]) -> None:
    for i in range(new.shape[0]):
        above, below = old[2 * i], old[2 * i + 1]
        for j in range(new.shape[1]):
            for c in range(3):
                total = (
                    np.uint32(above[2 * j, c])
                    + np.uint32(above[2 * j + 1, c])
                    + np.uint32(below[2 * j, c])
                    + np.uint32(below[2 * j + 1, c])
                )
                new[i, j, c] = (total + np.uint32(2)) >> np.uint32(2)
