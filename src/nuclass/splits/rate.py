"""How good a cut is: what each part holds of each class, against what it should."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nuclass.core.names import TRAIN, VAL

Counts = NDArray[np.float64]
_ABSENT = 1000.0
_LOST = 1.0
_TOO_MUCH = 50.0


def rate(
    inside: NDArray[np.int64] | Counts,
    shares: Sequence[float],
    names: Sequence[str],
    total: NDArray[np.int64],
    min_class_cells: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rate cuts by the number of absent classes and by the distance from the wish, ``(M,)`` each.

    Parameters
    ----------
    inside
        Labelled cells, ``(M, splits, classes)`` for ``M`` cuts.
    shares, names
        Wanted share of each split, and its name.
    total
        Labelled cells of the slide by class.
    min_class_cells
        Classes with fewer do not count.

    Absent are classes with at least ``min_class_cells`` cells that train or val has none of. The distance is
    five times the mean over splits of ``log((n + 1/2) / (e + 1/2))^2``, ``n`` the cells of a split and ``e`` its wanted
    share of the used ones, plus the same taken class by class, as a mean over splits and classes.
    """
    counts = inside.astype(np.float64)
    share = np.asarray(shares)
    size = counts.sum(axis=2)
    wish = size.sum(axis=1, keepdims=True) * share
    distance = 5 * (np.log((size + 0.5) / (wish + 0.5)) ** 2).mean(axis=1)
    absent = np.zeros(len(inside), np.int64)
    common = total >= min_class_cells
    if common.any():
        of_class = counts[:, :, common]
        wish = of_class.sum(axis=1, keepdims=True) * share[None, :, None]
        distance = distance + (np.log((of_class + 0.5) / (wish + 0.5)) ** 2).mean(axis=(1, 2))
        needed = [i for i, name in enumerate(names) if name in (TRAIN, VAL)]
        absent = (of_class[:, needed] == 0).sum(axis=(1, 2))
    return absent, distance


def rate_folds(
    val: Counts, train: Counts, total: NDArray[np.int64], min_class_cells: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rate ways to deal a slide into folds, ``(M,)`` each, as :func:`rate` does.

    Parameters
    ----------
    val, train
        Labelled cells of each fold, ``(M, folds, classes)``: those validated on, and those left to train on.
    """
    folds = val.shape[1]
    absent, distance = rate(val, [1 / folds] * folds, [VAL] * folds, total, min_class_cells)
    common = total >= min_class_cells
    return absent + (train[:, :, common] == 0).sum(axis=(1, 2)), distance


def penalty(
    absent: NDArray[np.int64], distance: NDArray[np.float64], lost: Counts, most: float, usable: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return one number a cut, the smaller the better, ``(M,)``.

    Absent classes come first, then the distance and the share of cells that the buffer takes, ``lost``, which
    is to stay below ``most``. A cut that is not ``usable`` gets infinity.
    """
    score = _ABSENT * absent + distance + _LOST * lost + _TOO_MUCH * np.maximum(lost - most, 0)
    return np.where(usable, score, np.inf)
