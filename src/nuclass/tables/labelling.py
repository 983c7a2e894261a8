"""Tables on the labels: agreement with given ones, and our confidence beside the original's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from nuclass.core.class_names import class_groups, class_order, class_title
from nuclass.core.files import read_json
from nuclass.labels.coverage import CAN, CANNOT_FIND, CANNOT_TELL, WEAK
from nuclass.labels.ontology import CLASSES
from nuclass.tables.layout import EMPTY, Cell, Table, grid, number, share

_COLUMNS = ["slide", "level", "name", "measure", "value"]
_LEVELS = {"cell_type": "cell type", "class": "class", "lineage": "lineage"}
_SCORES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "kappa": "kappa",
    "macro_f1": "macro-F1",
}
_OF_NAMES = ("given_cells", "marker_cells", "precision", "recall", "f1")


def agreement_rows(files: Mapping[str, Mapping[str, str | Path]]) -> pd.DataFrame:
    """Return the agreement of the slides with given labels, one number a row: ``slide level name measure value``.

    ``files`` maps a slide to its ``summary`` and ``scores``. A row without a name is of the whole level: ``given`` are
    the cells that were given a type and not dropped, ``cells`` those of them that are compared.
    """
    rows: list[tuple[str, str, str, str, float]] = []
    for slide, found in files.items():
        told = read_json(found["summary"]).get("agreement")
        if told is None:
            continue
        scores = pd.read_csv(found["scores"])
        for level in _LEVELS:
            overall = {"given": told["cells"], **told["levels"][level]}
            rows += [(slide, level, "", key, overall[key]) for key in ("given", "cells", *_SCORES)]
            part = scores[scores["level"] == level]
            rows += [(slide, level, r["name"], key, r[key]) for r in part.to_dict("records") for key in _OF_NAMES]
    return pd.DataFrame(rows, columns=_COLUMNS).astype({"value": float})


def label_agreement(files: Mapping[str, Mapping[str, str | Path]], *, classes: str | Path | None = None) -> Table:
    """Lay out how far marker labels agree with given ones, by slide and level, and the F1 of each class.

    ``files`` maps every slide to its ``summary`` and ``scores``; where none has given labels, the table says so.
    ``classes`` is the sheet that orders the classes, see :func:`nuclass.core.class_names.class_groups`.
    """
    title, data = "Labels from markers against given labels", agreement_rows(files)
    if data.empty:
        text = "No slide of this study has given labels, so there is nothing to compare the labels from markers with."
        return Table(title, data, [grid([], empty=text)])
    slides = list(dict.fromkeys(data["slide"]))
    overall = data[data["name"] == ""].set_index(["slide", "level", "measure"])["value"]
    rows = [
        {
            "slide": slide,
            "level": shown,
            "given": int(overall[slide, level, "given"]),
            "compared": int(overall[slide, level, "cells"]),
            **{text: float(overall[slide, level, key]) for key, text in _SCORES.items()},
        }
        for slide in slides
        for level, shown in _LEVELS.items()
    ]
    grids = [grid(rows, left=2, heading="By level")]
    if by_class := _by_class(data, slides, class_groups(classes)):
        grids.append(grid(by_class, heading="F1 of each class (cells given)"))
    notes = [
        "Given: cells with a given name that passed quality control. Compared: labelled by the markers too; all scores "
        "are over these, the given labels taken as right, the means over the names given. Kappa: agreement beyond "
        "chance. At the level of the class, cells that have none by both are left out. Given labels have faults of "
        "their own, so full agreement is not to be expected.",
    ]
    return Table(title, data, grids, notes)


def _by_class(data: pd.DataFrame, slides: Sequence[str], groups: Mapping[str, str]) -> list[dict[str, Cell]]:
    """Return the F1 of each class on each slide, with the cells that were given it."""
    part = data[(data["level"] == "class") & (data["name"] != "")]
    values = part.set_index(["name", "slide", "measure"])["value"]
    rows = []
    names = set(part["name"])
    for name in [*class_order(names - {"no_class"}, groups), *sorted(names & {"no_class"})]:
        row = {"class": Cell("(no class)" if name == "no_class" else class_title(name))}
        for slide in slides:
            cells = int(values.get((name, slide, "given_cells"), 0))
            row[slide] = Cell(float(values[name, slide, "f1"]), behind=number(cells)) if cells else Cell()
        rows.append(row)
    return rows


_MARKS = {CAN: "yes", WEAK: "weak", CANNOT_TELL: "no", CANNOT_FIND: "no"}


def panel_classes(
    files: Mapping[str, str | Path], *, organs: Mapping[str, str], classes: str | Path | None = None
) -> Table:
    """Lay out which classes each slide's panel can and cannot tell; the CSV has all cell types.

    ``files`` maps every slide to its ``panel.csv``, best verdict first. ``classes`` is the sheet that orders the
    classes, see :func:`nuclass.core.class_names.class_groups`.
    """
    parts = [
        pd.read_csv(file, keep_default_na=False).assign(slide=slide, organ=organs[slide])
        for slide, file in files.items()
    ]
    data = pd.concat(parts, ignore_index=True)
    data = data[["slide", "organ", *[c for c in data if c not in ("slide", "organ")]]]
    best = data[data["class"] != ""].drop_duplicates(["slide", "class"])
    found = best.set_index(["class", "slide"])["verdict"].map(
        lambda verdict: next(mark for start, mark in _MARKS.items() if verdict.startswith(start))
    )
    rows = [
        {"class": class_title(name), **{slide: str(found.get((name, slide), EMPTY)) for slide in files}}
        for name in class_order(set(best["class"]) & set(CLASSES), class_groups(classes))
    ]
    poor = best[best["verdict"] != CAN]
    why = [
        {"slide": r["slide"], "class": class_title(r["class"]), "verdict": r["verdict"], "why": r["why"]}
        for r in poor.to_dict("records")
    ]
    grids = [grid(rows, texts=list(files))]
    grids += [grid(why, left=3, wide={"why": 0.35}, heading="Why not")] if why else []
    notes = [
        "By the markers on the panel of each slide, before any cell is labelled. Yes: 5 or more, of which the hardest "
        f"rival lacks 3 or more. Weak: at least 3 and 2. {EMPTY}: does not occur in the organ. A class that cannot be "
        "told gets no label from markers: its cells abstain or are taken for their nearest kin. The CSV has every cell "
        "type with its genes.",
    ]
    return Table("What each panel can tell apart", data, grids, notes)


def label_confidence(rules: pd.DataFrame, *, min_confidence: float, released_min: float) -> Table:
    """Lay out which cells our confidence and the original's rule keep on each slide, and how right these are.

    ``rules`` is from :func:`nuclass.labels.measures.confidence_of`.
    """
    title = "Our confidence beside the original's"
    known = rules[["accuracy", "accuracy_released"]].notna().any(axis=None)
    rows = []
    for found in rules.to_dict("records"):
        row = {
            "slide": str(found["slide"]),
            "cells": int(found["cells"]),
            "kept": share(found["kept"]),
            "kept, original": share(found["kept_released"]),
            "by both": share(found["both"]),
            "overlap": float(found["overlap"]),
        }
        if known:
            row["accuracy"] = float(found["accuracy"])
            row["accuracy, original"] = float(found["accuracy_released"])
            row["accuracy, as many"] = float(found["accuracy_as_many"])
        rows.append(row)
    notes = [
        f"Of the cells that passed quality control and were named by markers: kept by ours ({min_confidence:g} and "
        f"above, no doublet, a class of the study), and as the original would keep them (0.6 neighbour purity + 0.4 "
        f"marker margin, {released_min:g} and above). Overlap: kept by both over kept by either.",
    ]
    if known:
        notes.append(
            "Accuracy: share of the cells kept whose class is the true one. As many: of the cells that ours is surest "
            "of, as many as the original keeps."
        )
    return Table(title, rules, [grid(rows, empty="No slide has labels from markers.")], notes if rows else ())
