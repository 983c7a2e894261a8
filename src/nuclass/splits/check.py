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


def _overlaps(frame: pd.DataFrame, window_px: int) -> dict[tuple[str, str], tuple[NDArray[np.int64], int]]:
    split = frame["split"].to_numpy()
    xy = frame[["x_px", "y_px"]].to_numpy(np.float64)
    names = [str(name) for name in pd.unique(frame["split"]) if name != BUFFER]
    if not np.isfinite(xy[split != BUFFER]).all():
        raise UserError("Cells outside the buffer have no position", found="x_px or y_px not finite")
    found: dict[tuple[str, str], tuple[NDArray[np.int64], int]] = {}
    steps = [step for step in (1, 2, 4, 8) if window_px % step == 0]
    for first, second in combinations(sorted(names, key=lambda name: name != "train"), 2):
        a, b = np.flatnonzero(split == first), np.flatnonzero(split == second)
        for step in steps:
            side = window_px // step
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
    # Only points near the other set's bounding box can be near one of its points.
    near_a = np.flatnonzero(((a > b.min(axis=0) - side) & (a < b.max(axis=0) + side)).all(axis=1))
    near_b = np.flatnonzero(((b > a.min(axis=0) - side) & (b < a.max(axis=0) + side)).all(axis=1))
    if not len(near_a) or not len(near_b):
        return none
    distance, nearest = cKDTree(a[near_a]).query(b[near_b], p=np.inf, distance_upper_bound=side)
    hits = np.flatnonzero(distance < side)
    return (near_b[hits], int(near_a[nearest[hits[0]]])) if len(hits) else none
