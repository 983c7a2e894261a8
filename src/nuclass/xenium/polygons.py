"""Areas and centroids of many polygons of unequal length, without a loop over them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

# Polygons worked on at once: a slide has a million, and each step makes arrays as long as their vertices.
_BLOCK = 1 << 14


def ragged_area_and_centroid(
    x: npt.ArrayLike, y: npt.ArrayLike, start: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return area, centroid x and centroid y of polygons laid one after the other.

    Parameters
    ----------
    x, y
        Vertices (V,) in any unit, closed or not.
    start
        (P,) the row of each polygon's first vertex, rising from 0.

    Returns
    -------
    Three arrays (P,). The shoelace formula, taken about each polygon's first vertex; a polygon
    without an area (a line, a point) gives area 0 and the mean of its vertices.
    """
    x, y, start = np.asarray(x), np.asarray(y), np.asarray(start, np.int64)
    found = np.zeros((3, len(start)))
    for first in range(0, len(start), _BLOCK):
        part = start[first : first + _BLOCK]
        rows = slice(part[0], start[first + _BLOCK] if first + _BLOCK < len(start) else len(x))
        found[:, first : first + _BLOCK] = _area_and_centroid(
            x[rows].astype(np.float64), y[rows].astype(np.float64), part - part[0]
        )
    return found[0], found[1], found[2]


def _area_and_centroid(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], start: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    stop = np.append(start[1:], len(x))
    length = stop - start
    dx, dy = x - np.repeat(x[start], length), y - np.repeat(y[start], length)
    following = np.arange(1, len(x) + 1)
    following[stop - 1] = start
    cross = dx * dy[following] - dx[following] * dy
    twice = np.add.reduceat(cross, start)
    with np.errstate(invalid="ignore", divide="ignore"):
        cx = np.add.reduceat((dx + dx[following]) * cross, start) / (3 * twice)
        cy = np.add.reduceat((dy + dy[following]) * cross, start) / (3 * twice)
    extent = np.maximum.reduceat(np.abs(dx) + np.abs(dy), start)
    flat = ~(np.abs(twice) > 1e-9 * extent**2)
    cx = np.where(flat, np.add.reduceat(dx, start) / length, cx) + x[start]
    cy = np.where(flat, np.add.reduceat(dy, start) / length, cy) + y[start]
    return np.stack([np.where(flat, 0.0, np.abs(twice) / 2), cx, cy])


def outline_starts(vertices: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Return the row of each polygon's first vertex in a table of vertices, see :meth:`Bundle.boundaries`."""
    columns = [vertices["cell_id"].cat.codes, *([vertices["label_id"]] if "label_id" in vertices else [])]
    return polygon_starts(*(column.to_numpy() for column in columns))


def polygon_starts(*identity: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    """Return the rows where the value of any of the arrays (V,) changes: the first vertex of each polygon."""
    if len(identity[0]) == 0:
        return np.zeros(0, np.int64)
    changes = np.zeros(len(identity[0]), bool)
    changes[0] = True
    for values in identity:
        changes[1:] |= values[1:] != values[:-1]
    return np.flatnonzero(changes)


def closed_rings(
    x: npt.ArrayLike, y: npt.ArrayLike, start: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split outlines where they come back to their first vertex: several rings written as one outline.

    A ring ends at the vertex that equals its first one, and the next vertex begins another ring. What
    follows the last closed ring and only repeats a vertex of it (padding) is left out.

    Parameters
    ----------
    x, y
        Vertices (V,).
    start
        (P,) the row of each outline's first vertex, rising from 0.

    Returns
    -------
    First row and number of vertices of each ring (R,), in the order of the rows. An outline that never
    comes back is one ring.
    """
    x, y = np.asarray(x), np.asarray(y)
    stop = np.append(start[1:], len(x)).astype(np.int64)
    begin = np.asarray(start, np.int64)
    found = []
    while len(begin):
        length = stop - begin
        first = np.repeat(begin, length)
        rows = np.arange(len(first)) + np.repeat(begin - np.append(0, np.cumsum(length)[:-1]), length)
        # Three vertices and the way back are the shortest ring.
        back = (x[rows] == x[first]) & (y[rows] == y[first]) & (rows - first >= 3)
        bounds = np.append(0, np.cumsum(length)[:-1])
        end = np.minimum.reduceat(np.where(back, rows, np.iinfo(np.int64).max), bounds)
        end = np.minimum(end, stop - 1)
        found.append(np.stack([begin, end - begin + 1]))
        again = end + 1
        while (pad := (again < stop) & _same(x, y, again, begin, stop)).any():
            again = again + pad
        more = again < stop
        begin, stop = again[more], stop[more]
    rings = np.concatenate(found, axis=1) if found else np.zeros((2, 0), np.int64)
    rings = rings[:, np.argsort(rings[0], kind="stable")]
    return rings[0], rings[1]


def _same(
    x: npt.NDArray[np.generic],
    y: npt.NDArray[np.generic],
    row: npt.NDArray[np.int64],
    other: npt.NDArray[np.int64],
    stop: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_]:
    row = np.minimum(row, stop - 1)
    return np.asarray((x[row] == x[other]) & (y[row] == y[other]))


def crosses_itself(
    x: npt.ArrayLike, y: npt.ArrayLike, start: npt.NDArray[np.integer], length: npt.NDArray[np.integer]
) -> npt.NDArray[np.bool_]:
    """Return which rings (R,) have two edges that cross inside both: their area and centroid mean nothing.

    Parameters
    ----------
    x, y
        Vertices (V,).
    start, length
        First row and number of vertices of each ring, closed or not.
    """
    x, y = np.asarray(x), np.asarray(y)
    crossing = np.zeros(len(start), bool)
    for n in np.unique(length):
        of_length = np.flatnonzero(length == n)
        for first in range(0, len(of_length), _BLOCK):
            chosen = of_length[first : first + _BLOCK]
            rows = np.asarray(start)[chosen, None] + np.arange(n)
            ring = np.stack([x[rows], y[rows]], -1).astype(np.float64)
            to = np.roll(ring, -1, axis=1)
            for step in range(2, int(n) // 2 + 1):
                a, b = np.roll(ring, -step, axis=1), np.roll(to, -step, axis=1)
                apart = (_side(ring, to, a) * _side(ring, to, b) < 0) & (_side(a, b, ring) * _side(a, b, to) < 0)
                crossing[chosen] |= apart.any(1)
    return crossing


def _side(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], point: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return on which side of the line a-b a point lies: the sign of the cross product."""
    d, e = b - a, point - a
    return np.sign(d[..., 0] * e[..., 1] - d[..., 1] * e[..., 0])
