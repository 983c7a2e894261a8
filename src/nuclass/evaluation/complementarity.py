"""Which branch is right on which cells, class by class, and whether the imbalance is more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.files import write_csv
from nuclass.core.names import CELL_ID, GLOBAL, LOCAL
from nuclass.core.readings import ALL_CLASSES
from nuclass.evaluation.bootstrap import Blocks, block_weights, spatial_blocks
from nuclass.evaluation.compare import ALL
from nuclass.evaluation.predictions import Predictions, read_models

EVEN = "~50/50"
KINDS = ("A_only", "B_only", "Both", "Neither")
COLUMNS = (
    *("cohort", "class", "N", *KINDS, *(f"{kind}_pct" for kind in KINDS)),
    *("A_share", "dominant", "acc_A", "acc_B", "oracle", "gain"),
    *("difference", "low", "high", "p_value", "p_holm"),
)


def complementarity(
    y: np.ndarray,
    call_local: np.ndarray,
    call_global: np.ndarray,
    classes: Sequence[str],
    blocks: Blocks,
    *,
    draws: int,
    seed: int,
) -> pd.DataFrame:
    """Return the counts of the original for each class that occurs and for all cells, with their significance.

    Parameters
    ----------
    y, call_local, call_global
        True and predicted classes (N,), indices into ``classes``; A is the local branch, B the global one.
    blocks
        Squares of tissue of the cells, from :func:`nuclass.evaluation.bootstrap.spatial_blocks`.

    Returns
    -------
    DataFrame
        One row a class and the row ``all classes``: ``N A_only B_only Both Neither``, the same as percentages of
        N, ``A_share`` = A_only / (A_only + B_only), ``dominant`` (A, B, ``~50/50`` or empty without a
        disagreement), ``acc_A acc_B oracle gain`` (gain = oracle - the better branch), ``difference`` = acc_B - acc_A
        with its 95 % interval over blocks, ``p_value`` of the exact McNemar test and ``p_holm``, corrected over the
        classes (Holm 1979); the total is one test of its own and is not corrected.
    """
    if not len(y) or not len(y) == len(call_local) == len(call_global) == len(blocks.of_cell):
        raise UserError(
            "Labels and both branches' predictions are not of the same cells",
            found=f"{len(y)}, {len(call_local)}, {len(call_global)}",
            expected="the same number, at least one",
        )
    right_a, right_b = np.asarray(call_local) == y, np.asarray(call_global) == y
    weights = block_weights(blocks, draws, seed).astype(np.float64)
    rows: list[dict[str, Any]] = []
    for index in np.flatnonzero(np.bincount(y, minlength=len(classes))):
        rows.append({"class": classes[int(index)], **_row(right_a, right_b, y == index, blocks, weights)})
    for row, corrected in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row["p_holm"] = corrected
    total = _row(right_a, right_b, np.ones(len(y), dtype=bool), blocks, weights)
    return pd.DataFrame([*rows, {"class": ALL_CLASSES, **total, "p_holm": total["p_value"]}])


def mcnemar(a_only: int, b_only: int) -> float:
    """Return the two-sided p value of the exact McNemar test; 1 without a disagreement.

    It asks whether, of the cells that exactly one branch has right, half are A's: a binomial test.
    """
    from scipy.stats import binomtest

    return float(binomtest(a_only, a_only + b_only).pvalue) if a_only + b_only else 1.0


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return p values corrected for their number: step-down, at most 1, never falling with the rank (Holm 1979)."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    out = np.empty_like(p)
    out[order] = np.minimum(stepped, 1)
    return out


def _row(
    right_a: np.ndarray, right_b: np.ndarray, chosen: np.ndarray, blocks: Blocks, weights: np.ndarray
) -> dict[str, Any]:
    a, b = right_a[chosen], right_b[chosen]
    n = int(chosen.sum())
    counts = {
        "A_only": int((a & ~b).sum()),
        "B_only": int((~a & b).sum()),
        "Both": int((a & b).sum()),
        "Neither": int((~a & ~b).sum()),
    }
    disagreements = counts["A_only"] + counts["B_only"]
    share = counts["A_only"] / disagreements if disagreements else float("nan")
    dominant = "" if not disagreements else EVEN if share == 0.5 else "A" if share > 0.5 else "B"
    acc_a, acc_b, either = a.mean(), b.mean(), (a | b).mean()
    of_cell = blocks.of_cell[chosen]
    gap = np.bincount(of_cell, weights=b.astype(float) - a, minlength=blocks.n)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = (weights @ gap) / (weights @ np.bincount(of_cell, minlength=blocks.n))
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
    return {
        "N": n,
        **counts,
        **{f"{kind}_pct": 100 * count / n for kind, count in counts.items()},
        "A_share": share,
        "dominant": dominant,
        "acc_A": float(acc_a),
        "acc_B": float(acc_b),
        "oracle": float(either),
        "gain": float(either - max(acc_a, acc_b)),
        "difference": float(acc_b - acc_a),
        "low": float(low),
        "high": float(high),
        "p_value": mcnemar(counts["A_only"], counts["B_only"]),
    }


def complementarity_of_cohorts(
    paths: Mapping[str, Mapping[str, str | Path]],
    out_csv: str | Path,
    *,
    mpp: float,
    block_um: float,
    draws: int,
    seed: int,
) -> pd.DataFrame:
    """Count each cohort and all pooled, and write one table with the columns :data:`COLUMNS`.

    ``paths`` is model (``local``, ``global``) -> cohort -> prediction table. Cells are matched by slide and cell id.
    """
    cohorts = list(paths[LOCAL])
    tables = []
    for name, members in ({cohort: [cohort] for cohort in cohorts} | {ALL: cohorts}).items():
        models = read_models({model: [paths[model][member] for member in members] for model in (LOCAL, GLOBAL)})
        tables.append(count(models, mpp=mpp, block_um=block_um, draws=draws, seed=seed).assign(cohort=name))
    table = pd.concat(tables, ignore_index=True)[list(COLUMNS)]
    write_csv(out_csv, table)
    return table


def count(models: Mapping[str, Predictions], *, mpp: float, block_um: float, draws: int, seed: int) -> pd.DataFrame:
    """Return :func:`complementarity` of the models ``local`` and ``global`` on the same cells.

    Raises
    ------
    UserError
        Where their rows are not the same cells, slide and cell id, in the same order.
    """
    local, other = models[LOCAL], models[GLOBAL]
    if not local.keys.equals(other.keys):
        raise UserError(
            "The branches' rows are not the same cells in the same order",
            expected=f"the same slide and {CELL_ID} in every row",
            fix="read both with read_models",
        )
    table = local.table
    blocks = spatial_blocks(table["slide"], table["x_px"].to_numpy() * mpp, table["y_px"].to_numpy() * mpp, block_um)
    return complementarity(local.y, local.predicted, other.predicted, local.classes, blocks, draws=draws, seed=seed)
