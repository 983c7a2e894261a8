"""Outlines of nuclei made fit for other programs: closed, of some area, never crossing themselves.

QuPath from 0.6 on refuses a whole file for one outline that crosses or touches itself, and many detectors write some.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEP = 0.01
"""Coordinates are rounded to this, px; in whole steps all tests below are exact."""


@dataclass(frozen=True)
class Rings:
    """Outlines of N cells: cell i has ``vertices[offsets[i]:offsets[i + 1]]``, H&E px, not closed; or none.

    ``vertices`` is (M, 2), ``offsets`` (N + 1,).
    """

    vertices: NDArray[np.float64]
    offsets: NDArray[np.int64]

    def of(self, cell: int) -> NDArray[np.float64]:
        """Return one cell's vertices, (K, 2)."""
        return self.vertices[self.offsets[cell] : self.offsets[cell + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Vertices of each cell, (N,)."""
        return np.diff(self.offsets)

    def cleaned(self) -> Cleaned:
        """Return simple rings of whole steps, without repeated vertices.

        One that crosses or touches itself becomes its convex hull; one that is not finite, or no area, has no vertices.
        """
        n = len(self.offsets) - 1
        owner = np.repeat(np.arange(n), self.lengths)
        usable = (np.abs(self.vertices) < 1e7).all(axis=1) if len(owner) else np.zeros(0, bool)
        broken = np.bincount(owner, ~usable, minlength=n) > 0
        good = ~broken[owner]
        points = np.rint(self.vertices[good] / STEP).astype(np.int64)
        points, offsets = _without_repeats(points, np.bincount(owner[good], minlength=n))
        faults = _faults()(points, offsets)
        if faults.any():
            parts = np.split(points, offsets[1:-1])
            for cell in np.flatnonzero(faults).tolist():
                parts[cell] = _hull(parts[cell])
            points, offsets = np.concatenate(parts), _offsets(np.array([len(part) for part in parts]))
        given, kept = self.lengths > 0, np.diff(offsets) > 0
        return Cleaned(
            points.astype(np.float64) * STEP, offsets, int((faults & kept).sum()), int((given & ~kept).sum())
        )


@dataclass(frozen=True)
class Cleaned(Rings):
    """Simple rings, and how many are ``hulls`` of what was given, or had to be ``dropped``."""

    hulls: int
    dropped: int


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _without_repeats(
    points: NDArray[np.int64], lengths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return points (M, 2) without those that equal the one before in their ring, and the offsets (N + 1,)."""
    offsets = _offsets(lengths)
    start, length = np.repeat(offsets[:-1], lengths), np.repeat(lengths, lengths)
    before = start + (np.arange(len(points)) - start - 1) % np.maximum(length, 1)
    keep = (points != points[before]).any(axis=1)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    return points[keep], _offsets(np.bincount(owner[keep], minlength=len(lengths)))


def _hull(points: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the corners of the convex hull of points (K, 2), by Andrew's monotone chain; none without an area."""
    ordered = sorted(set(map(tuple, points.tolist())))

    def half(sequence: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        chain: list[tuple[int, ...]] = []
        for x, y in sequence:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                chain.pop()
            chain.append((x, y))
        return chain[:-1]

    corners = half(ordered) + half(ordered[::-1])
    return np.array(corners if len(corners) > 2 else [], dtype=np.int64).reshape(-1, 2)


@cache
def _faults() -> Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]:
    """Compile the test of rings: about a second, kept on disk where the folder can be written."""
    from numba import njit

    signature = "boolean[::1](int64[:,::1], int64[::1])"
    try:
        compiled: Any = njit(signature, nogil=True, cache=True)(_find_faults)
    except RuntimeError:
        # Numba found no folder for its cache; the same code is compiled for this run alone.
        compiled = njit(signature, nogil=True)(_find_faults)
    return lambda points, offsets: compiled(np.ascontiguousarray(points), offsets)


def _find_faults(points: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return for each ring whether it is not simple: under three corners, turning back, crossing or touching itself.

    Two edges meet where the ends of each lie on both sides of the other, or an end lies on it.
    """
    n = len(offsets) - 1
    faults = np.zeros(n, np.bool_)
    for ring in range(n):
        first, k = offsets[ring], offsets[ring + 1] - offsets[ring]
        faults[ring] = 0 < k < 3
        for i in range(k if k > 2 else 0):
            ax, ay = points[first + i, 0], points[first + i, 1]
            bx, by = points[first + (i + 1) % k, 0], points[first + (i + 1) % k, 1]
            cx, cy = points[first + (i + 2) % k, 0], points[first + (i + 2) % k, 1]
            if (bx - ax) * (cy - by) == (by - ay) * (cx - bx) and (bx - ax) * (cx - bx) + (by - ay) * (cy - by) < 0:
                faults[ring] = True
            # Edges after the next one, but for the one that ends where this begins.
            for j in range(i + 2, k if i > 0 else k - 1):
                cx, cy = points[first + j, 0], points[first + j, 1]
                dx, dy = points[first + (j + 1) % k, 0], points[first + (j + 1) % k, 1]
                if max(ax, bx) < min(cx, dx) or max(cx, dx) < min(ax, bx):
                    continue
                if max(ay, by) < min(cy, dy) or max(cy, dy) < min(ay, by):
                    continue
                c = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
                d = (bx - ax) * (dy - ay) - (by - ay) * (dx - ax)
                a = (dx - cx) * (ay - cy) - (dy - cy) * (ax - cx)
                b = (dx - cx) * (by - cy) - (dy - cy) * (bx - cx)
                if not ((c > 0 and d > 0) or (c < 0 and d < 0) or (a > 0 and b > 0) or (a < 0 and b < 0)):
                    faults[ring] = True
            if faults[ring]:
                break
    return faults
