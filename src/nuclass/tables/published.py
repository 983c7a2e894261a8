"""The table of published numbers beside those of this study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.class_names import class_title
from nuclass.core.names import title
from nuclass.evaluation.published import GRADES, PUBLISHED, TRAINING, compare_published, read_published
from nuclass.tables.layout import EMPTY, Table, grid

SYNTHETIC = (
    "This study is synthetic: its numbers do not compare with published ones, which are of human tissue. The table "
    "only shows the layout that a real study fills, so that no difference is given."
)
_DIGITS = {"fraction": 3, "percent": 1, "points": 1, "count": 0, "px": 0, "um/px": 2}
_SIGNS = {"percent": " %", "points": " points", "px": " px", "um/px": " um/px"}
_RESULTS = ("accuracy", "macro_f1", "f1", "best_f1", "f1_lowest", "f1_highest", "f1_gain")


def paper_comparison(
    values: str | Path,
    comparison: str | Path,
    composition: str | Path,
    *,
    facts: Mapping[str, float],
    synthetic: bool,
    closed_set: bool = False,
) -> Table:
    """Lay out published value, grade, ours, difference and what differs.

    ``values`` is ``resources/paper_values.tsv``; the others are of :func:`compare_published`.
    """
    scores = pd.read_csv(comparison, keep_default_na=False, na_values={"value": "", "low": "", "high": ""})
    counted = pd.read_csv(composition, keep_default_na=False)
    data = compare_published(read_published(values), scores, counted, facts, synthetic=synthetic, closed_set=closed_set)
    lone = data["ours"].isna()
    training = data["cohort"].str.startswith(TRAINING)
    results = data["metric"].isin(_RESULTS)
    study = data["cohort"] == "study"
    sections = {
        "Results": data[results & ~lone],
        "The study": data[study & ~lone],
        "Cohorts": data[~results & ~training & ~study & ~lone],
        "Training slides": data[training & ~lone],
    }
    grids = [
        grid([_row(found) for found in _records(part)], wide=_WIDTHS, texts=["grade"], heading=heading)
        for heading, part in sections.items()
        if len(part)
    ]
    if lone.any():
        rows = [{key: _row(found)[key] for key in _SHORT} for found in _records(data[lone])]
        heading = "Published, without a counterpart here"
        grids.append(grid(rows, wide=_WIDTHS, texts=["grade"], heading=heading))
    words = "; ".join(f"{grade} {meaning}" for grade, meaning in GRADES.items())
    notes = [
        f"Grades: {words}. Only {', '.join(PUBLISHED[:-1])} and {PUBLISHED[-1]} are published; a value of another "
        "grade is marked with * and is not the paper's own word. The paper's tables could not be read in full. "
        "Differences are ours minus published, in the published unit. Cohorts are matched by organ. The best and the "
        "worst F1 here are of classes with enough cells in their cohort to count in macro-F1.",
    ]
    return Table("Published numbers and ours", data, grids, notes, lead=SYNTHETIC if synthetic else "")


_WIDTHS = {"what": 0.18, "of": 0.15, "what differs": 0.4}
_SHORT = ["what", "of", "published", "grade", "what differs"]


def _records(data: pd.DataFrame) -> Sequence[dict[str, Any]]:
    return [{str(key): value for key, value in found.items()} for found in data.to_dict("records")]


def _row(found: Mapping[str, Any]) -> dict[str, str]:
    unit = str(found["unit"])
    place = str(found["cohort"])
    of = [
        "" if place in ("study", "any") else f"{place.removeprefix(TRAINING)}" + _role(place),
        title(str(found["model"])) if found["model"] else "",
        class_title(str(found["class"])),
        _here(str(found["ours_cohort"]), str(found["ours_class"])),
    ]
    return {
        "what": str(found["what"]),
        "of": ", ".join(part for part in of if part) or EMPTY,
        "published": _value(found["value"], unit) + ("" if found["published"] else " *"),
        "grade": str(found["grade"]),
        "ours": _value(found["ours"], unit),
        "difference": _value(found["difference"], unit, sign="+"),
        "what differs": str(found["what_differs"]) or EMPTY,
    }


def _here(cohort: str, label: str) -> str:
    """Return of which cohort, and of which class of it, this study's number is."""
    parts = [class_title(label)] if label else []
    parts += [cohort] if cohort and cohort != "all" else []
    return f"here {', '.join(parts)}" if parts else ""


def _role(place: str) -> str:
    if place == "all":
        return " cohorts"
    return "" if place == "demo" else " training" if place.startswith(TRAINING) else " cohort"


def _value(value: float, unit: str, sign: str = "") -> str:
    if value != value:
        return EMPTY
    shown = "points" if sign and unit == "percent" else unit
    return f"{value:{sign},.{_DIGITS[unit]}f}{_SIGNS.get(shown, '')}"
