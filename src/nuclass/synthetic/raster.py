"""Geometry of many small polygons at once: area, centroid, label image. No loop over polygons."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def area_and_centroid(polygons: npt.NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Return the area (N,) and area centroid (N, 2) of closed polygons (N, V, 2); NaN for NaN rows.

    The shoelace formula, taken about each polygon's first vertex so that large coordinates lose
    no digits.
    """
    origin = polygons[:, :1].astype(np.float64)
    x, y = np.moveaxis(polygons - origin, -1, 0)
    cross = x[:, :-1] * y[:, 1:] - x[:, 1:] * y[:, :-1]
    signed = cross.sum(1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        cx = ((x[:, :-1] + x[:, 1:]) * cross).sum(1) / (6 * signed)
        cy = ((y[:, :-1] + y[:, 1:]) * cross).sum(1) / (6 * signed)
    return np.abs(signed), np.stack([cx, cy], 1) + origin[:, 0]


def rasterize(polygons: npt.NDArray[np.floating], shape: tuple[int, int]) -> npt.NDArray[np.uint32]:
    """Return a label image (H, W): row of the polygon + 1 where a pixel's centre lies inside, else 0.

    Parameters
    ----------
    polygons
        (N, V, 2) closed, in pixels (x, y); pixel i covers [i, i + 1). The even-odd rule holds; where
        polygons overlap the later one wins.
    shape
        (H, W); what lies outside is cut off.
    """
    height, width = shape
    labels = np.zeros(shape, np.uint32)
    x, y = np.moveaxis(np.asarray(polygons, np.float64), -1, 0)
    x0, x1, y0, y1 = (a.ravel() for a in (x[:, :-1], x[:, 1:], y[:, :-1], y[:, 1:]))
    owner = np.repeat(np.arange(len(x)), x.shape[1] - 1)
    # An edge crosses the centre line of row r when min(y) <= r + 0.5 < max(y).
    first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, height).astype(np.int64)
    edge, row = _ranges(first, last)
    with np.errstate(invalid="ignore"):
        crossing = x0[edge] + (row + 0.5 - y0[edge]) / (y1[edge] - y0[edge]) * (x1[edge] - x0[edge])
    order = np.lexsort((crossing, row, owner[edge]))
    crossing, row, polygon = crossing[order], row[order], owner[edge][order]
    left = np.clip(np.ceil(crossing[0::2] - 0.5), 0, width).astype(np.int64)
    right = np.clip(np.ceil(crossing[1::2] - 0.5), 0, width).astype(np.int64)
    run, column = _ranges(left, right)
    labels[row[0::2][run], column] = (polygon[0::2][run] + 1).astype(np.uint32)
    return labels


def _ranges(start: npt.NDArray[np.int64], stop: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], ...]:
    """Return (index of the range, value) for every value of every half-open range, in order."""
    length = np.maximum(stop - start, 0)
    index = np.repeat(np.arange(len(start)), length)
    offset = np.arange(len(index)) - np.repeat(np.cumsum(length) - length, length)
    return index, start[index] + offset
