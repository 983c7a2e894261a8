"""How a model does from place to place: squares of each slide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score

from nuclass.evaluation.metrics import ece

REGION_COLUMNS = (
    "slide organ column row x_px y_px x_store_um y_store_um cells classes accuracy macro_f1 ece mean_confidence"
).split()
MIN_CELLS = 20
"""Cells a region needs to be judged; a rate of fewer is noise."""


def by_region(
    table: pd.DataFrame,
    y: np.ndarray,
    probs: np.ndarray,
    *,
    mpp: float,
    region_um: float,
    bins: int = 15,
    min_cells: int = MIN_CELLS,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Judge each square of side ``region_um`` of each slide that holds ``min_cells`` cells or more.

    Parameters
    ----------
    table
        ``slide organ x_px y_px`` of the cells, in slide-store px of ``mpp`` um.
    y, probs
        True classes (N,) and probabilities (N, C).

    Returns
    -------
    tuple
        One row a region, :data:`REGION_COLUMNS`: the square's number along x and y, its centre in slide-store px and in
        um of the slide store (px x mpp), cells, classes that occur, accuracy, macro-F1 over these classes, calibration
        error and mean confidence. And a summary: ``region_um min_cells regions left_out cells_left_out``.
    """
    side = region_um / mpp
    place = table[["slide", "organ"]].reset_index(drop=True).astype(str)
    place["column"] = np.floor(table["x_px"].to_numpy(np.float64) / side).astype(np.int64)
    place["row"] = np.floor(table["y_px"].to_numpy(np.float64) / side).astype(np.int64)
    rows, left_out, cells_left_out = [], 0, 0
    for (slide, column, row), group in place.groupby(["slide", "column", "row"], sort=True):
        if len(group) < min_cells:
            left_out, cells_left_out = left_out + 1, cells_left_out + len(group)
            continue
        cells = group.index.to_numpy()
        x, y_px = (column + 0.5) * side, (row + 0.5) * side
        rows.append(
            {
                "slide": slide,
                "organ": group["organ"].iloc[0],
                "column": column,
                "row": row,
                "x_px": x,
                "y_px": y_px,
                "x_store_um": x * mpp,
                "y_store_um": y_px * mpp,
                **_region(y[cells], probs[cells], bins),
            }
        )
    summary = {"region_um": region_um, "min_cells": min_cells, "regions": len(rows)}
    summary |= {"left_out": left_out, "cells_left_out": cells_left_out}
    return pd.DataFrame(rows, columns=REGION_COLUMNS), summary


def _region(y: np.ndarray, p: np.ndarray, bins: int) -> dict[str, Any]:
    predicted, present = p.argmax(axis=1), np.unique(y)
    return {
        "cells": len(y),
        "classes": len(present),
        "accuracy": float((predicted == y).mean()),
        "macro_f1": float(f1_score(y, predicted, labels=present, average="macro", zero_division=0)),
        "ece": ece(y, p, bins=bins),
        "mean_confidence": float(p.max(axis=1).mean()),
    }
