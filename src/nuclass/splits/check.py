"""Proof that windows of different splits share no pixel."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nuclass.core.errors import UserError
from nuclass.core.names import BUFFER, CELL_ID
from nuclass.slides.geometry import window_origin


def check_no_overlap(frame: pd.DataFrame, window_px: int, where: object | None = None) -> None:
    """Raise if a window of one split shares a pixel with a window of another.

    Parameters
    ----------
    frame
        Columns cell_id, x_px, y_px, split. Cells of the buffer are used by no one and are passed over.
    window_px
        Side of the largest window in store px.
    where
        Named in the error.

    Two windows ``[x0, x0 + W) x [y0, y0 + W)`` share a pixel exactly if ``max(|dx0|, |dy0|) < W`` for their
    integer origins. The check looks for such a pair with a k-d tree under that metric, at level 0 and at
    the pyramid levels where the window still has a whole number of pixels.

    Raises
    ------
    UserError
        Naming the number of cells and one pair of each two splits that overlap.
    """
    found = _overlaps(frame, window_px)
    if found:
        lines = [
            f"{len(rows)} cells of {second} reach into windows of {first}"
            f" (such as {frame[CELL_ID].iloc[rows[0]]} and {frame[CELL_ID].iloc[partner]})"
            for (first, second), (rows, partner) in found.items()
        ]
        raise UserError(
            "Windows of different splits share pixels",
            where=where,
            found="; ".join(lines),
            expected=f"at least {window_px} px between cells of different splits, in x or in y",
            fix="widen splits: buffer_um, and cut the slide again",
        )


def count_overlaps(frame: pd.DataFrame, window_px: int) -> dict[str, int]:
    """Return for each two splits that overlap ("train-test") how many cells of the second reach into the first."""
    return {"-".join(pair): len(rows) for pair, (rows, _) in _overlaps(frame, window_px).items()}


def reaching(first: NDArray[np.float64], second: NDArray[np.float64], window_px: int) -> NDArray[np.int64]:
    """Return the rows of ``second`` whose window shares a pixel with one of ``first``, at any level checked.

    Parameters
    ----------
    first, second
        Cells in store px, ``(N, 2)`` and ``(M, 2)``.
    window_px
        Side of the window in store px.
    """
    hits = [
        _within(window_origin(first / step, window_px // step), window_origin(second / step, window_px // step), side)[
            0
        ]
        for step, side in _levels(window_px)
    ]
    return np.unique(np.concatenate(hits))


def margin(frame: pd.DataFrame, window_px: int) -> int | None:
    """Return how many px lie between the two nearest windows of different splits, at level 0.

    It is the least, over pairs of cells, of the larger of their windows' distance in x and in y; negative where windows
    overlap, by so many px at least. None where there is but one split. ``frame`` is as for :func:`check_no_overlap`.
    """
    from scipy.spatial import cKDTree

    split, xy = frame["split"].to_numpy(), frame[["x_px", "y_px"]].to_numpy(np.float64)
    used = np.isfinite(xy).all(axis=1)
    names = [name for name in pd.unique(frame["split"]) if name != BUFFER]
    parts = [window_origin(xy[used & (split == name)], window_px) for name in names]
    parts = sorted((part for part in parts if len(part)), key=len, reverse=True)
    nearest = np.inf
    for i, large in enumerate(parts[:-1]):
        tree = cKDTree(large, balanced_tree=False, compact_nodes=False)
        for small in parts[i + 1 :]:
            # A few cells give a bound under which the search for the rest ends early.
            few = tree.query(small[:: max(len(small) // 500, 1)], p=np.inf)[0].min()
            bound = np.nextafter(min(nearest, few), np.inf)
            nearest = min(nearest, few, tree.query(small, p=np.inf, distance_upper_bound=bound)[0].min())
    return round(float(nearest)) - window_px if np.isfinite(nearest) else None


def _levels(window_px: int) -> list[tuple[int, int]]:
    """Return step and side of the window at level 0 and at the levels where it is a whole number of px wide."""
    return [(step, window_px // step) for step in (1, 2, 4, 8) if window_px % step == 0]


def _overlaps(frame: pd.DataFrame, window_px: int) -> dict[tuple[str, str], tuple[NDArray[np.int64], int]]:
    split = frame["split"].to_numpy()
    xy = frame[["x_px", "y_px"]].to_numpy(np.float64)
    names = [str(name) for name in pd.unique(frame["split"]) if name != BUFFER]
    if not np.isfinite(xy[split != BUFFER]).all():
        raise UserError("Cells outside the buffer have no position", found="x_px or y_px not finite")
    found: dict[tuple[str, str], tuple[NDArray[np.int64], int]] = {}
    for first, second in combinations(sorted(names, key=lambda name: name != "train"), 2):
        a, b = np.flatnonzero(split == first), np.flatnonzero(split == second)
        for step, side in _levels(window_px):
            hits, partner = _within(window_origin(xy[a] / step, side), window_origin(xy[b] / step, side), side)
            if len(hits):
                found[first, second] = (b[hits], int(a[partner]))
                break
    return found


def _within(a: NDArray[np.int64], b: NDArray[np.int64], side: int) -> tuple[NDArray[np.int64], int]:
    """Rows of ``b`` with a neighbour in ``a`` nearer than ``side`` (Chebyshev), and the first one's neighbour."""
    from scipy.spatial import cKDTree

    none = np.empty(0, np.int64), -1
    if not len(a) or not len(b):
        return none
    near_a, near_b = (np.flatnonzero(_close(own, other, side)) for own, other in ((a, b), (b, a)))
    if not len(near_a) or not len(near_b):
        return none
    distance, nearest = cKDTree(a[near_a]).query(b[near_b], p=np.inf, distance_upper_bound=side)
    hits = np.flatnonzero(distance < side)
    return (near_b[hits], int(near_a[nearest[hits[0]]])) if len(hits) else none


def _close(own: NDArray[np.int64], other: NDArray[np.int64], side: int) -> NDArray[np.bool_]:
    """Return which of ``own`` lie in a square of ``side`` px that holds one of ``other``, or in one beside it."""
    low = np.minimum(own.min(axis=0), other.min(axis=0))
    mine, theirs = (own - low) // side, (other - low) // side
    rows = int(max(mine[:, 1].max(), theirs[:, 1].max())) + 3
    held = np.unique((theirs[:, 0] + 1) * rows + theirs[:, 1] + 1)
    around = np.concatenate([held + x * rows + y for x in (-1, 0, 1) for y in (-1, 0, 1)])
    return np.isin((mine[:, 0] + 1) * rows + mine[:, 1] + 1, around)
