"""Bands along the longer side of a slide, with gaps as wide as the largest window; or one band a fold."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nuclass.core.errors import UserError
from nuclass.core.names import BUFFER, TRAIN, VAL
from nuclass.splits.rate import penalty, rate, rate_folds
from nuclass.splits.settings import SplitConfig

Rows = NDArray[np.bool_]
_GRID = 96
_TIE = 0.02
_DEALS = 1024


def cut_bands(
    xy: NDArray[np.float64], placed: Rows, counted: Rows, classes: NDArray[np.object_], config: SplitConfig, slide: str
) -> tuple[NDArray[np.object_], dict[str, Any]]:
    """Choose the cuts and give each cell its band; return the split of each cell and what is to be told.

    Parameters
    ----------
    xy
        Cells in store px, ``(N, 2)``.
    placed, counted
        Which of them have a place, and which of these are labelled, ``(N,)``.
    classes
        Their classes, ``(N,)``.

    A cut is chosen from all orders of the bands and a grid of positions: first by how many classes are absent
    from train and from val, then by how near each band comes to its share of all cells and of each class.
    """
    wanted, gap = config.wanted, config.gap_px
    axis, along, codes, names = _along(xy, counted, classes)
    length = float(along[-1] - along[0])
    _check_length(length, gap, len(wanted) - 1, config, slide)
    below = _cumulated(codes, len(names))

    cuts = _candidate_cuts(along, gap, len(wanted) - 1, config.seed)
    edges = np.sort(np.concatenate([cuts, cuts + gap], axis=1), axis=1)
    at = below[np.searchsorted(along, edges, side="left")]
    ends = np.concatenate([np.zeros_like(at[:, :1]), at, np.broadcast_to(below[-1], at[:, :1].shape)], axis=1)
    inside = ends[:, 1::2] - ends[:, ::2]

    bands, row, score = _choose(inside, wanted, below[-1], config, slide)
    where = np.searchsorted(edges[row], xy[:, axis], side="right")
    labels_of_place = [name for band in bands for name in (band, BUFFER)][:-1]
    split = np.array(labels_of_place, dtype=object)[where]
    split[~placed] = BUFFER
    return split, {
        "axis": "xy"[axis],
        "order": list(bands),
        "edges_px": edges[row].tolist(),
        "gap_px": gap,
        "length_mm": length * config.mpp / 1000,
        "score": score,
    }


def deal_bands(
    xy: NDArray[np.float64], placed: Rows, counted: Rows, classes: NDArray[np.object_], config: SplitConfig, slide: str
) -> tuple[NDArray[np.object_], dict[str, Any]]:
    """Cut a slide into one band a fold; the wanted one is val, and train gives way to it.

    The bands touch and cover the slide, so every labelled cell is validated on in exactly one fold. Their
    edges depend on the seed alone, not on the fold.
    """
    folds, gap = config.folds, config.gap_px
    axis, along, codes, names = _along(xy, counted, classes)
    _check_length(float(along[-1] - along[0]), gap, min(folds - 1, 2), config, slide)
    below = _cumulated(codes, len(names)).astype(np.float64)
    rng = np.random.default_rng((config.seed, 3))
    inner = np.arange(1, folds) + rng.uniform(-0.4, 0.4, (_DEALS, folds - 1))
    inner[0] = np.arange(1, folds)
    edges = along[(inner / folds * len(along)).astype(np.int64)]
    low = np.concatenate([np.full((_DEALS, 1), -np.inf), edges], axis=1)
    high = np.concatenate([edges, np.full((_DEALS, 1), np.inf)], axis=1)
    val = below[np.searchsorted(along, high)] - below[np.searchsorted(along, low)]
    near = below[np.searchsorted(along, high + gap)] - below[np.searchsorted(along, low - gap, side="right")]
    train = below[-1] - near
    usable = (val.sum(axis=2) > 0).all(axis=1) & (train.sum(axis=2) > 0).all(axis=1)
    if not usable.any():
        raise UserError(
            f"A training slide cannot be divided into {folds} folds",
            where=slide or None,
            found="no cuts leave labelled cells to train and to validate on in every fold",
            fix="ask for fewer folds, or give the slide the role cohort",
        )
    absent, distance = rate_folds(val, train, below[-1].astype(np.int64), config.min_class_cells)
    lost = (near - val).sum(axis=2).max(axis=1) / len(along)
    score = penalty(absent, distance, lost, config.max_buffer_share, usable)
    best = int(np.argmin(score))
    position, own = np.where(placed, xy[:, axis], along[0]), config.fold - 1
    first, last = (np.searchsorted(edges[best], position + step, side="right") for step in (-gap, gap))
    part = np.searchsorted(edges[best], position, side="right")
    split = np.where(part == own, VAL, np.where((first <= own) & (own <= last), BUFFER, TRAIN)).astype(object)
    split[~placed] = BUFFER
    return split, {
        "axis": "xy"[axis],
        "cuts_px": edges[best].tolist(),
        "gap_px": gap,
        "length_mm": float(along[-1] - along[0]) * config.mpp / 1000,
        "score": float(score[best]),
    }


def _along(
    xy: NDArray[np.float64], counted: Rows, classes: NDArray[np.object_]
) -> tuple[int, NDArray[np.float64], NDArray[np.int64], NDArray[np.object_]]:
    """Return the longer axis, the counted cells' places on it in order, their class codes, and the classes."""
    axis = int(np.argmax(np.ptp(xy[counted], axis=0)))
    along = xy[counted, axis]
    order = np.argsort(along, kind="stable")
    codes, names = pd.factorize(classes[counted][order], sort=True)
    return axis, along[order], codes, names


def _cumulated(codes: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return the cells of each class before each place, ``(len(codes) + 1, n)``."""
    below = np.zeros((len(codes) + 1, n), np.int64)
    below[np.arange(1, len(codes) + 1), codes] = 1
    return np.cumsum(below, axis=0, out=below)


def _check_length(length: float, gap: float, gaps: int, config: SplitConfig, slide: str) -> None:
    needed = gaps * gap / config.max_buffer_share
    if length < needed:
        mm = config.mpp / 1000
        raise UserError(
            "A training slide is too short to be cut without leaks",
            where=slide or None,
            found=f"labelled cells over {length * mm:.2f} mm along the longer side",
            expected=f"at least {needed * mm:.2f} mm, for {gaps} gaps of {gap * mm:.3f} mm in at most"
            f" {config.max_buffer_share:.0%} of the length",
            fix=f"raise splits: max_buffer_share{_fewer(config)}, or give the slide the role cohort",
        )


def _fewer(config: SplitConfig) -> str:
    """Return the advice to cut a slide into fewer bands, where it can be."""
    return ", ask for fewer folds" if config.folds > 2 else ", do without a test band (test: 0)" if config.test else ""


def _candidate_cuts(along: NDArray[np.float64], gap: float, gaps: int, seed: int) -> NDArray[np.float64]:
    """Return the starts of the gaps to try, ``(M, gaps)``, ascending, on a grid that the seed shifts."""
    low, high = along[0], along[-1]
    step = (high - low) / _GRID
    starts = low + step * (np.arange(_GRID) + np.random.default_rng(seed).uniform(0.25, 0.75))
    if gaps == 1:
        return starts[starts + gap <= high][:, None]
    first, second = (grid.ravel() for grid in np.meshgrid(starts, starts, indexing="ij"))
    fits = (second > first + gap) & (second + gap <= high)
    return np.stack([first[fits], second[fits]], axis=1)


def _choose(
    inside: NDArray[np.int64], wanted: dict[str, float], total: NDArray[np.int64], config: SplitConfig, slide: str
) -> tuple[tuple[str, ...], int, float]:
    """Return the order of bands and the row of ``inside`` (cuts, bands, classes) that suit best."""
    usable = (inside.sum(axis=2) > 0).all(axis=1)
    if not usable.any():
        raise UserError(
            "A training slide cannot be cut: its labelled cells lie too close together or too far apart",
            where=slide or None,
            found="no cut leaves labelled cells in every band",
            fix=f"set another splits: seed{_fewer(config)}, or give the slide the role cohort",
        )
    orders = list(permutations(wanted))
    least = config.min_class_cells
    rated = [rate(inside, [wanted[name] for name in bands], bands, total, least) for bands in orders]
    absent, scores = (np.stack(part) for part in zip(*rated, strict=True))
    absent = np.where(usable, absent, np.iinfo(np.int64).max)
    scores = np.where(absent == absent.min(), scores, np.inf)
    near = np.argwhere(scores <= scores.min() * (1 + _TIE))
    order, row = near[np.random.default_rng((config.seed, 1)).integers(len(near))]
    return orders[order], int(row), float(scores[order, row])
