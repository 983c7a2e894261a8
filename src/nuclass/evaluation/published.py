"""What is known of the published study's numbers, and the same quantities of this study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nuclass.core.errors import UserError, closest
from nuclass.core.names import FUSED, GLOBAL, LOCAL, ORGANS, TRAIN, VAL
from nuclass.core.schema import raise_faults
from nuclass.core.sheets import read_sheet

COLUMNS = "key what cohort model class metric value unit grade source note".split()
GRADES = {
    "P": "the paper's abstract or the authors' README",
    "C": "the authors' code, settings or notebook output",
    "F": "printed on the authors' figures",
    "S": "second-hand: others quote the paper",
    "D": "arithmetic on what the authors drew",
    "I": "inferred",
}
PUBLISHED = ("P", "C", "F")
UNITS = {"fraction": 1.0, "percent": 100.0, "points": 100.0, "count": 1.0, "px": 1.0, "um/px": 1.0}
"""Unit -> what a quantity counted in ones is multiplied by."""
METRICS = (
    *"accuracy macro_f1 f1 best_f1 f1_lowest f1_highest f1_gain".split(),
    *"cell_share organ_share class_cells cells organs classes cohorts".split(),
    *"window_local window_global mpp label_tau raw_cells features raw_label_cells".split(),
)
SCORES = ("accuracy", "macro_f1", "f1", "best_f1", "f1_lowest", "f1_highest")
EXTREMES = ("best_f1", "f1_lowest", "f1_highest")
"""Of the classes of cohorts that count in macro-F1: the F1 of a few cells is the best or the worst by chance."""
SHARES = ("cell_share", "organ_share", "class_cells", "cells")
TRAINING = "train:"
COHORTS = ("study", "demo", "all", "any", TRAINING + "all", *ORGANS, *(TRAINING + organ for organ in ORGANS))
NOT_COMPARABLE = "synthetic study: not comparable, the layout only"
_USED = (TRAIN, VAL, "test")


def read_published(path: str | Path) -> pd.DataFrame:
    """Read ``resources/paper_values.tsv`` with the columns :data:`COLUMNS`; ``value`` is a number.

    Raises
    ------
    UserError
        All faults together: columns, keys that stand twice, values that are no number, words that are not known, a
        value without a source.
    """
    rows, faults = read_sheet(path, COLUMNS, COLUMNS)
    seen: dict[str, int] = {}
    words = {"metric": METRICS, "unit": tuple(UNITS), "grade": tuple(GRADES), "cohort": COHORTS}
    words["model"] = ("", LOCAL, GLOBAL, FUSED)
    for row in rows:
        where = f"{path}, line {row.line}"
        key = row.values["key"]
        if not key or key in seen:
            found = f"'{key}', also in line {seen[key]}" if key else "nothing"
            faults.append(UserError("A key is needed, and stands once", where=where, found=found))
        seen.setdefault(key, row.line)
        faults += [
            UserError(
                f"'{row.values[column]}' is no {column} of published values.{closest(row.values[column], list(valid))}",
                where=where,
                expected=", ".join(word for word in valid if word),
            )
            for column, valid in words.items()
            if row.values[column] not in valid
        ]
        faults += [
            UserError(f"A published value needs its {column}", where=where, fix="say where it stands")
            for column in ("what", "source")
            if not row.values[column]
        ]
        if not _is_number(row.values["value"]):
            faults.append(UserError("A value is not a finite number", where=where, found=row.values["value"]))
    raise_faults(faults, "The published values are not in order")
    table = pd.DataFrame([row.values for row in rows], columns=COLUMNS)
    table["value"] = table["value"].astype(float)
    return table


def compare_published(
    published: pd.DataFrame,
    comparison: pd.DataFrame,
    composition: pd.DataFrame,
    facts: Mapping[str, float],
    *,
    synthetic: bool,
    closed_set: bool = False,
) -> pd.DataFrame:
    """Set this study's number beside each published one.

    Parameters
    ----------
    published
        From :func:`read_published`.
    comparison
        ``results/evaluation/comparison.csv``: ``cohort name metric class value in_macro``.
    composition
        ``results/evaluation/composition.csv``: ``slide organ role split class cells``.
    facts
        ``mpp window_local window_global`` of this study.
    synthetic
        Then no difference is given, and every row says that it does not compare.
    closed_set
        Whether this study's scores are of the closed set, as the authors' are.

    Returns
    -------
    DataFrame
        The published columns, and ``published`` (whether of the grades P, C, F), ``ours_cohort``, ``ours_class``
        (where ours was chosen among classes), ``ours`` and ``difference`` (ours - published; both in the published
        unit), ``what_differs``. The best and the worst F1 are of classes that count in macro-F1 of their cohort. An
        organ with several cohorts here has a row for each; a value without a counterpart has NaN.
    """
    ours = _Ours(comparison, composition, facts)
    rows: list[dict[str, Any]] = []
    for record in published.to_dict("records"):
        for found in ours.find(record):
            scaled = found.value * UNITS[record["unit"]]
            known = bool(np.isfinite(scaled))
            rows.append(
                {
                    **record,
                    "published": record["grade"] in PUBLISHED,
                    "ours_cohort": found.cohort if known else "",
                    "ours_class": found.label if known else "",
                    "ours": scaled,
                    "difference": scaled - record["value"] if known and not synthetic else float("nan"),
                    "what_differs": _what_differs(record, known, synthetic, closed_set),
                }
            )
    return pd.DataFrame(rows)


class _Found(NamedTuple):
    """A number of this study in ones, the cohort it is of, and its class where it was chosen among classes."""

    cohort: str
    value: float
    label: str = ""


_NONE = _Found("", float("nan"))


class _Ours:
    """The study's own numbers, looked up by the words of a published one."""

    def __init__(self, comparison: pd.DataFrame, composition: pd.DataFrame, facts: Mapping[str, float]) -> None:
        self.scores = comparison.set_index(["cohort", "name", "metric", "class"])["value"].to_dict()
        counted = comparison[(comparison["metric"] == "f1") & (comparison["in_macro"].astype(str) == "True")]
        self.counted = set(zip(counted["cohort"], counted["class"], strict=True))
        self.cells = composition[composition["split"].isin(_USED)]
        self.facts = facts
        sheet = composition.drop_duplicates("slide")
        cohorts = sheet[sheet["role"] == "cohort"]
        self.cohorts = {organ: list(part["slide"]) for organ, part in cohorts.groupby("organ")}
        self.names = [str(slide) for slide in cohorts["slide"]]

    def find(self, record: Mapping[str, Any]) -> list[_Found]:
        """Return each counterpart; one NaN where there is none."""
        metric, cohort = record["metric"], record["cohort"]
        if metric in SCORES and cohort != "demo":
            return self._scores(record) or [_NONE]
        if metric in SHARES:
            return self._counts(record) or [_NONE]
        if cohort == "study":
            counts = {"organs": self.cells["organ"].nunique(), "classes": self.cells["class"].nunique()}
            values = {**counts, "cohorts": len(self.names), **self.facts}
            return [_Found("", float(values.get(metric, "nan")))]
        return [_NONE]

    def _scores(self, record: Mapping[str, Any]) -> list[_Found]:
        metric, cohort, model = record["metric"], record["cohort"], record["model"]
        if metric in EXTREMES:
            wanted = record["class"]
            found = [
                _Found(place, value, "" if wanted else label)
                for (place, name, key, label), value in self.scores.items()
                if key == "f1"
                and name == model
                and place in self.names
                and wanted in ("", label)
                and (place, label) in self.counted
                and value == value
            ]
            chosen = min if metric == "f1_lowest" else max
            return [chosen(found, key=lambda one: one.value)] if found else []
        places = ["all"] if cohort == "all" else self.cohorts.get(cohort, [])
        keys = [(place, (place, model, metric, record["class"])) for place in places]
        return [_Found(place, self.scores[key]) for place, key in keys if key in self.scores]

    def _counts(self, record: Mapping[str, Any]) -> list[_Found]:
        metric, cohort, label = record["metric"], record["cohort"], record["class"]
        if label and label not in set(self.cells["class"]):
            return []
        training = self.cells[self.cells["role"] == "train"]
        if cohort == "study":
            return [_Found("", float(self.cells["cells"].sum()))]
        if cohort == TRAINING + "all":
            return [_Found("", float(training.loc[training["class"] == label, "cells"].sum()))]
        role = "train" if cohort.startswith(TRAINING) else "cohort"
        whole = self.cells[self.cells["role"] == role]
        here = whole[whole["organ"] == cohort.removeprefix(TRAINING)]
        total = float(here["cells"].sum())
        if not total:
            return []
        slides = ", ".join(dict.fromkeys(here["slide"].astype(str)))
        values = {
            "cells": total,
            "organ_share": total / float(whole["cells"].sum()),
            "cell_share": float(here.loc[here["class"] == label, "cells"].sum()) / total,
        }
        return [_Found(slides, values[metric])] if metric in values else []


def _what_differs(record: Mapping[str, Any], known: bool, synthetic: bool, closed_set: bool) -> str:
    parts = [] if record["grade"] in PUBLISHED else [f"not the paper's own words ({GRADES[record['grade']]})"]
    if not known:
        parts.append("no counterpart in this study")
    elif synthetic:
        parts.append(NOT_COMPARABLE)
    elif record["metric"] in SCORES:
        reading = "closed set, as theirs" if closed_set else "open set, theirs is closed"
        parts.append(f"other slides, labels and splits than the authors'; {reading}")
    elif record["metric"] in SHARES:
        parts.append("labels by our rules, and the likeliest slides: the authors' are not all named")
    return "; ".join([*parts, *([record["note"]] if record["note"] else [])])


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False
