"""Counts of a slide's labels that figures and tables show: losses, confidence, and what the original would keep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.names import ABSTAINED, CELL_ID, DROPPED, LABELLED

STEPS = ("in the bundle", "kept by quality control", "labelled", "of a study class")
RULES = ("cells", "kept", "kept_released", "both", "overlap", "accuracy", "accuracy_released", "accuracy_as_many")
RELEASED_MIN = 0.60
"""The original keeps a cell from this confidence on."""


def funnel_counts(labels: pd.DataFrame) -> pd.DataFrame:
    """Count a slide's cells after each step of labelling.

    Parameters
    ----------
    labels
        ``labels.parquet``, one row a cell of the bundle.

    Returns
    -------
    One row a step of :data:`STEPS` and reason of a loss: ``step cells dropped reason lost``. ``cells`` are left
    after the step, ``dropped`` went at it, ``lost`` of them for ``reason``, the most frequent first; a step without
    losses has one row, reason "" and lost 0. Cells without a class are counted by their cell type.
    """
    labelled = labels["status"] == LABELLED
    passes = [labels["status"] != DROPPED, labelled, labelled & (labels["class"] != "")]
    reason = labels["reason"].where(~labelled, labels["cell_type"]).replace("", "no reason given")
    rows: list[tuple[str, int, int, str, int]] = [(STEPS[0], len(labels), 0, "", 0)]
    left = pd.Series(True, index=labels.index)
    for step, good in zip(STEPS[1:], passes, strict=True):
        lost = reason[left & ~good].value_counts()
        left &= good
        cells, dropped = int(left.sum()), int(lost.sum())
        rows += [(step, cells, dropped, str(name), int(count)) for name, count in lost.items()] or [
            (step, cells, 0, "", 0)
        ]
    return pd.DataFrame(rows, columns=["step", "cells", "dropped", "reason", "lost"])


def confidence_counts(labels: pd.DataFrame, bins: int = 25) -> pd.DataFrame:
    """Count labelled and abstained cells by confidence, in bins of equal width on [0, 1].

    Returns ``status low high cells share``, where ``share`` is of the cells of that status; cells without a
    confidence are not counted, and a status without cells has no share.
    """
    edges = np.linspace(0, 1, bins + 1)
    parts = []
    for status in (LABELLED, ABSTAINED):
        values = labels.loc[labels["status"] == status, "confidence"].dropna().to_numpy(float)
        cells = np.histogram(np.clip(values, 0, 1), edges)[0]
        share = cells / len(values) if len(values) else np.full(bins, np.nan)
        parts.append(
            pd.DataFrame({"status": status, "low": edges[:-1], "high": edges[1:], "cells": cells, "share": share})
        )
    return pd.concat(parts, ignore_index=True)


def type_counts(labels: pd.DataFrame) -> pd.DataFrame:
    """Count the labelled cells by cell type: ``cell_type class cells``, the most frequent first."""
    found = labels[labels["status"] == LABELLED].groupby(["cell_type", "class"], observed=True).size()
    table = found.rename("cells").reset_index()
    return table.sort_values(["cells", "cell_type"], ascending=[False, True], ignore_index=True)


def compare_confidence(
    labels: pd.DataFrame,
    class_of: Mapping[str, str],
    *,
    truth: pd.DataFrame | None = None,
    released_min: float = RELEASED_MIN,
) -> dict[str, float]:
    """Compare which cells our confidence keeps with which the original's rule would.

    A rule keeps a cell that has a class of the study by its name: ours where the cell is labelled, the
    original's where ``confidence_released`` reaches ``released_min``.

    Parameters
    ----------
    labels
        ``labels.parquet``.
    class_of
        Class ("" where none) of each cell type, for the names of cells that ours leaves out.
    truth
        ``cell_id class``, where the true classes are known.

    Returns
    -------
    ``cells`` (named by markers and not dropped), ``kept`` and ``kept_released`` (shares of these), ``both`` (share
    kept by both), ``overlap`` (kept by both over kept by either), and with a truth ``accuracy`` and
    ``accuracy_released`` of the cells that each keeps, and ``accuracy_as_many`` of our surest cells, as many as the
    original keeps. What cannot be had is NaN.
    """
    by_markers = (labels["status"] != DROPPED) & (labels["source"] != "given") & labels["confidence_released"].notna()
    table = labels[by_markers]
    class_name = table["raw_label"].map(dict(class_of)).fillna("")
    ours = (table["status"] == LABELLED) & (table["class"] != "")
    theirs = (table["confidence_released"] >= released_min) & (class_name != "")
    n, either = len(table), int((ours | theirs).sum())
    out = dict.fromkeys(RULES, np.nan) | {
        "cells": float(n),
        "kept": float(ours.mean()) if n else np.nan,
        "kept_released": float(theirs.mean()) if n else np.nan,
        "both": float((ours & theirs).mean()) if n else np.nan,
        "overlap": float((ours & theirs).sum()) / either if either else np.nan,
    }
    if truth is not None:
        known = truth.assign(**{CELL_ID: truth[CELL_ID].astype(str)}).set_index(CELL_ID)["class"]
        true = table[CELL_ID].astype(str).map(known)
        if true.isna().any():
            raise UserError(
                "Labelled cells are unknown to the truth",
                found=f"{int(true.isna().sum())} of {n} cells, such as {table.loc[true.isna(), CELL_ID].iloc[0]}",
                expected="a true class of each cell",
                fix="make bundle, truth and labels from the same seed",
            )
        for name, kept, label in (("accuracy", ours, table["class"]), ("accuracy_released", theirs, class_name)):
            out[name] = float((label[kept] == true[kept]).mean()) if kept.any() else np.nan
        if 0 < theirs.sum() <= ours.sum():
            surest = table.loc[ours, "confidence"].sort_values(ascending=False, kind="stable").index[: theirs.sum()]
            out["accuracy_as_many"] = float((table.loc[surest, "class"] == true[surest]).mean())
    return out


def confidence_of(
    labels: Mapping[str, str | Path], class_of: Mapping[str, str], truths: Mapping[str, str | Path]
) -> pd.DataFrame:
    """Compare the two rules on every slide: one row a slide, the columns of :func:`compare_confidence`.

    ``truths`` maps slides whose true classes are known to a table with ``cell_id class``.
    """
    rows = []
    for slide, path in labels.items():
        truth = pd.read_parquet(truths[slide], columns=[CELL_ID, "class"]) if slide in truths else None
        rows.append({"slide": slide, **compare_confidence(pd.read_parquet(path), class_of, truth=truth)})
    return pd.DataFrame(rows, columns=["slide", *RULES])
