"""Choose the cells that the activation maps are shown for, by a rule that is stated and repeatable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.names import CELL_ID, GATE, GLOBAL, LOCAL, MODELS
from nuclass.evaluation.predictions import Predictions

RULE = (
    "From each cohort, cells where exactly one branch is right and so is the fused model: in turn one that only the "
    "global branch has right and one that only the local branch has right, of classes not yet shown where there are "
    "such, each the one whose fused probability of its label is the median of its kind."
)


def choose_cells(predictions: Mapping[str, Predictions], *, per_cohort: int, cells: Sequence[str] = ()) -> pd.DataFrame:
    """Return the cells to show, one row each.

    Parameters
    ----------
    predictions
        The models ``local``, ``global`` and ``gate`` on the same cells.
    per_cohort
        Cells a cohort under :data:`RULE`.
    cells
        Cells asked for, as ``slide:cell_id``; they replace the rule.

    Returns
    -------
    DataFrame
        ``slide cell_id organ x_px y_px label gate`` and ``<model>_prediction``, ``<model>_probability`` (of the
        predicted class) for each model.
    """
    fused = predictions[GATE]
    rows = _asked(fused, cells) if cells else _by_rule(predictions, per_cohort)
    table = fused.table.iloc[rows][["slide", CELL_ID, "organ", "x_px", "y_px", "label", "gate"]].reset_index(drop=True)
    names = np.asarray(fused.classes)
    for model in MODELS:
        probs = predictions[model].probs[rows]
        table[f"{model}_prediction"] = names[probs.argmax(axis=1)]
        table[f"{model}_probability"] = probs.max(axis=1)
    return table


def _asked(fused: Predictions, cells: Sequence[str]) -> np.ndarray:
    keys = [tuple(str(cell).split(":", 1)) for cell in cells]
    wrong = [cell for cell, key in zip(cells, keys, strict=True) if len(key) != 2]
    rows = np.array([]) if wrong else fused.keys.get_indexer(pd.MultiIndex.from_tuples(keys))
    missing = wrong or [cell for cell, row in zip(cells, rows, strict=True) if row < 0]
    if missing:
        raise UserError(
            "Cells to show are not among the predicted cells of the cohorts",
            where="config, figures: gradcam: cells",
            found=missing,
            expected="slide:cell_id of labelled cells of a cohort",
            fix="leave the list empty to have cells chosen by the rule",
        )
    return np.asarray(rows, dtype=np.int64)


def _by_rule(predictions: Mapping[str, Predictions], per_cohort: int) -> np.ndarray:
    fused = predictions[GATE]
    y = fused.y
    right = {model: predictions[model].predicted == y for model in MODELS}
    only = {
        GLOBAL: right[GATE] & right[GLOBAL] & ~right[LOCAL],
        LOCAL: right[GATE] & right[LOCAL] & ~right[GLOBAL],
    }
    chosen: list[int] = []
    for slide in dict.fromkeys(fused.table["slide"]):
        here = (fused.table["slide"] == slide).to_numpy()
        for turn in range(per_cohort):
            kinds = (GLOBAL, LOCAL) if turn % 2 == 0 else (LOCAL, GLOBAL)
            for kind in kinds:
                row = _median(fused, np.flatnonzero(here & only[kind]), chosen)
                if row is not None:
                    chosen.append(row)
                    break
    return np.asarray(chosen, dtype=np.int64)


def _median(fused: Predictions, rows: np.ndarray, chosen: Sequence[int]) -> int | None:
    rows = rows[~np.isin(rows, chosen)]
    fresh = rows[~np.isin(fused.y[rows], fused.y[list(chosen)])]
    rows = fresh if len(fresh) else rows
    if not len(rows):
        return None
    order = np.argsort(fused.probs[rows, fused.y[rows]], kind="stable")
    return int(rows[order[(len(rows) - 1) // 2]])
