"""Areas and centroids of many polygons of unequal length, without a loop over them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


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
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    start = np.asarray(start, np.int64)
    if len(start) == 0:
        empty = np.zeros(0)
        return empty, empty.copy(), empty.copy()
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
    return np.where(flat, 0.0, np.abs(twice) / 2), cx, cy


def polygon_starts(identity: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    """Return the rows where the value changes: the first vertex of each polygon."""
    if len(identity) == 0:
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.append(True, identity[1:] != identity[:-1]))
