"""Tables on the labels: agreement with given ones, and our confidence beside the original's."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from nuclass.tables.layout import EMPTY, markdown, number, write_table

_LEVELS = {"cell_type": "cell type", "class": "class", "lineage": "lineage"}
_SCORES = {"agreement": "agreement", "balanced": "balanced", "kappa": "kappa", "macro_f1": "macro-F1"}


def label_agreement(scores: pd.DataFrame, csv: str | Path, md: str | Path, *, synthetic: bool) -> None:
    """Lay out how far marker labels agree with given ones, by slide and level, and the F1 of each class.

    ``scores`` is from :func:`nuclass.labels.measures.agreement_of`; without rows the table says that there is nothing
    to compare.
    """
    title = "Labels from markers against given labels"
    if scores.empty:
        text = "No slide of this study has given labels, so there is nothing to compare the labels from markers with."
        write_table(csv, md, scores, [text], title=title, synthetic=synthetic)
        return
    slides = list(dict.fromkeys(scores["slide"]))
    overall = scores[scores["name"] == ""].set_index(["slide", "level", "measure"])["value"]
    rows = []
    for slide in slides:
        for level, shown in _LEVELS.items():
            if (slide, level, "cells") not in overall.index:
                continue
            cells, compared = (overall[slide, level, key] for key in ("cells", "compared"))
            rows.append(
                {
                    "slide": slide,
                    "level": shown,
                    "cells": number(int(cells)),
                    "compared": f"{number(int(compared))} ({_percent(compared / cells if cells else None)})",
                    **{name: number(float(overall[slide, level, key])) for key, name in _SCORES.items()},
                }
            )
    parts = ["## By level", markdown(rows, list(rows[0]), left=2)]
    if len(by_class := _by_class(scores, slides)):
        parts += ["## F1 of each class", by_class]
    notes = [
        "Cells: with a given name and not dropped. Compared: labelled by the markers too; all scores are over these, "
        "the given labels taken as right. Balanced: mean over the given names of the share found. Kappa: agreement "
        "beyond chance. Given labels have faults of their own, so full agreement is not to be expected.",
    ]
    write_table(csv, md, scores, parts, title=title, notes=notes, synthetic=synthetic)


def _by_class(scores: pd.DataFrame, slides: list[str]) -> str:
    """Return the F1 of each class on each slide, with the cells that were given it."""
    part = scores[(scores["level"] == "class") & (scores["name"] != "")]
    if part.empty:
        return ""
    wide = part.pivot_table(index="name", columns=["slide", "measure"], values="value", dropna=False)
    rows = []
    for name in wide.index:
        row = {"class": str(name).replace("no_class", "of no class")}
        for slide in slides:
            f1, cells = (wide[slide, key][name] if (slide, key) in wide else float("nan") for key in ("f1", "cells"))
            row[slide] = EMPTY if cells != cells else f"{number(float(f1))} ({number(int(cells))})"
        rows.append(row)
    return markdown(rows, ["class", *slides])


def label_confidence(
    rules: pd.DataFrame, csv: str | Path, md: str | Path, *, min_confidence: float, released_min: float, synthetic: bool
) -> None:
    """Lay out which cells our confidence and the original's rule keep on each slide, and how right these are.

    ``rules`` is from :func:`nuclass.labels.measures.confidence_of`.
    """
    title = "Our confidence beside the original's"
    known = rules[["accuracy", "accuracy_released"]].notna().any(axis=None)
    rows = []
    for found in rules.to_dict("records"):
        row = {
            "slide": str(found["slide"]),
            "cells": number(int(found["cells"])),
            "kept": _percent(found["kept"]),
            "kept, original": _percent(found["kept_released"]),
            "by both": _percent(found["both"]),
            "overlap": number(float(found["overlap"])),
        }
        if known:
            row["accuracy"] = number(float(found["accuracy"]))
            row["accuracy, original"] = number(float(found["accuracy_released"]))
        rows.append(row)
    notes = [
        f"Of the cells that passed quality control and were named by markers: kept by ours ({min_confidence:g} and "
        f"above, no doublet, a class of the study), and as the original would keep them (0.6 neighbour purity + 0.4 "
        f"marker margin, {released_min:g} and above). Overlap: kept by both over kept by either.",
        *(["Accuracy: share of the cells kept whose class is the true one."] if known else []),
    ]
    part = markdown(rows, list(rows[0])) if rows else "No slide has labels from markers."
    write_table(csv, md, rules, [part], title=title, notes=notes if rows else (), synthetic=synthetic)


def _percent(share: float | None) -> str:
    return EMPTY if share is None or share != share else f"{100 * share:.1f} %"
