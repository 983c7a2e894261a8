"""The study's tables, each from files of the evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.class_names import ALL, class_groups, class_order, class_title, cohort_title
from nuclass.core.files import read_json
from nuclass.core.names import FUSED, GLOBAL, LOCAL, MEAN, ORACLE, title
from nuclass.core.readings import BETTER, CLOSED, MAJORITY, OPEN, ORGAN_PRIOR, PRIORS, READINGS
from nuclass.tables.layout import Cell, Grid, Table, difference, grid, mark_best, share, to_best

_BRANCHES = (LOCAL, GLOBAL, MEAN, FUSED, ORACLE)
_METRICS = {"macro_f1": "Macro-F1", "accuracy": "Accuracy", "log_loss": "Log loss"}
_SPLITS = ("train", "val", "test")
_WIDE = 4
_NUMBERS = ("value", "low", "high", "behind", "behind_low", "behind_high")
INTERVALS = "In brackets: 95 % interval by bootstrap over spatial blocks. "


def read_comparison(path: str | Path) -> pd.DataFrame:
    """Return a comparison with its empty cells as text where they are text."""
    return pd.read_csv(path, keep_default_na=False, na_values=dict.fromkeys(_NUMBERS, ""))


def lower(name: str) -> str:
    """Return a title as it stands within a line: names in capitals stay."""
    return name if name[:2].isupper() else name[0].lower() + name[1:]


def paired_ends(data: pd.DataFrame) -> dict[tuple[str, str], tuple[float, float]]:
    """Return the ends of the interval of each known difference by the pair; ``data`` is of one kind of value.

    Known are the rows ``first-second``, and of each model the difference to the best of its row.
    """
    rows = data[data["name"].str.contains("-", regex=False)]
    pairs = {
        tuple(str(name).split("-", 1)): (low, high)
        for name, low, high in zip(rows["name"], rows["low"], rows["high"], strict=True)
    }
    models = data[data["best"] != ""]
    ends = zip(models["name"], models["best"], models["behind_low"], models["behind_high"], strict=True)
    return pairs | {(str(name), str(best)): (low, high) for name, best, low, high in ends}  # type: ignore[return-value]


def cells_of(data: pd.DataFrame, names: Sequence[str]) -> dict[str, Cell]:
    """Return the cells of the names, in their order; ``data`` is of one kind of value."""
    found = data.drop_duplicates("name").set_index("name")
    values = {name: [float(found.loc[name, end]) for end in ("value", "low", "high")] for name in names}
    return {name: Cell(value, low, high) for name, (value, low, high) in values.items()}


def holdout_comparison(
    comparison: str | Path,
    *,
    classes: str | Path | None = None,
    closed_set: bool = False,
    stand_ins: Sequence[str] = (),
    min_support: int = 1,
) -> Table:
    """Lay out macro-F1, accuracy and log loss of each model on each cohort, the best in bold, and F1 by class.

    Below each metric stand the paired differences of the fused model to the others.

    Parameters
    ----------
    comparison
        A CSV of :func:`nuclass.evaluation.compare.compare_cohorts`; every model in it is a row. Classes that do not
        count in macro-F1 (``in_macro``) are marked.
    classes
        The sheet that orders the classes, see :func:`nuclass.core.class_names.class_groups`.
    closed_set
        Whether predictions were forced into the classes that occur, which a note then says.
    stand_ins
        Baselines with a small network in the place of the published one, which a note then says.
    min_support
        Cells that a class needs in a cohort to count in macro-F1.
    """
    data = read_comparison(comparison)
    data = data[data["metric"].isin([*_METRICS, "f1"]) & (data["name"] != ORACLE)].reset_index(drop=True)
    cohorts = list(dict.fromkeys(data["cohort"]))
    models = [name for name in dict.fromkeys(data["name"]) if "-" not in name]
    grids = []
    for metric, label in _METRICS.items():
        part = data[data["metric"] == metric]
        rows = _model_rows(part, models, cohorts, BETTER[metric])
        grids.append(grid(rows, heading=label))
        grids.append(grid(_difference_rows(part, cohorts), caption=f"{label}, paired differences"))
    data["in_macro"] = data["in_macro"].map({"True": True, "False": False}).astype("boolean")
    learned = [name for name in models if name not in PRIORS]
    groups = class_groups(classes)
    grids += [part for cohort in (cohorts[-1], *cohorts[:-1]) for part in _class_grids(data, learned, cohort, groups)]
    notes = [
        f"{INTERVALS}Bold: best of the column (log loss: the least); by class, best of all models. Differences are "
        "paired; bold where the interval leaves out 0. " + READINGS[CLOSED if closed_set else OPEN],
        _WHAT_INTERVALS_HOLD,
        *macro_note(min_support),
        *_same_priors(data),
    ]
    if stand_ins:
        notes.append(
            f"Stand-ins: small networks take the place of {', '.join(map(title, stand_ins))}, so their rows show that "
            "the comparison works and say nothing about the published networks."
        )
    return Table("Models on the held-out cohorts", data, grids, notes)


_WHAT_INTERVALS_HOLD = (
    "Each cohort is one slide: the intervals hold what other tissue of these slides would change, not what other "
    "patients would, or another seed of the training (table `seeds`). Macro-F1 of all cohorts can exceed that of each: "
    "a class with few cells in a cohort counts there as much as any, if it counts, and has a low F1 from few false "
    "alarms."
)


def macro_note(min_support: int) -> list[str]:
    """Return the note on classes too rare to count in macro averages, nothing where all count."""
    if min_support <= 1:
        return []
    return [
        f"Macro-F1 is the mean over the classes with at least {min_support} cells in the cohort, which are not the "
        "same in every cohort; F1 by class shows the rarer ones too."
    ]


def _same_priors(data: pd.DataFrame) -> list[str]:
    """Return a note where the majority class is that of every organ of the cohorts, too."""
    part = data[data["metric"].isin(["macro_f1", "accuracy"])]
    values = [part[part["name"] == name].set_index(["cohort", "metric"])["value"] for name in (MAJORITY, ORGAN_PRIOR)]
    if values[0].empty or not values[0].equals(values[1]):
        return []
    return [
        f"{title(MAJORITY)} and {lower(title(ORGAN_PRIOR))} predict the same: the most frequent class of all training "
        "cells is also that of each of these organs. Their probabilities, and so their log losses, differ."
    ]


def _model_rows(
    data: pd.DataFrame, models: Sequence[str], cohorts: Sequence[str], better: int
) -> list[dict[str, Cell]]:
    columns = {}
    for cohort in cohorts:
        part = data[data["cohort"] == cohort]
        columns[cohort] = mark_best(cells_of(part, models), better, paired_ends(part))
    return [
        {"model": Cell(title(name)), **{cohort_title(c): column[name] for c, column in columns.items()}}
        for name in models
    ]


def _class_grids(data: pd.DataFrame, models: Sequence[str], cohort: str, groups: Mapping[str, str]) -> Iterator[Grid]:
    """Yield the F1 of each class for some of the models after another."""
    heading = f"F1 by class, {lower(cohort_title(cohort)) if cohort == ALL else cohort_title(cohort)}"
    part = data[(data["metric"] == "f1") & (data["cohort"] == cohort)]
    counted = set(part.loc[part["in_macro"], "class"])
    by_class = {}
    for label in class_order(part["class"], groups):
        rows = part[part["class"] == label]
        learned = [name for name in dict.fromkeys(rows["name"]) if "-" not in name]
        by_class[label] = mark_best(cells_of(rows, learned), BETTER["f1"], paired_ends(rows))
    for i in range(0, len(models), _WIDE):
        shown = models[i : i + _WIDE]
        rows = [
            {
                "class": Cell(class_title(label), rare=label not in counted),
                **{title(name): cells[name] for name in shown},
            }
            for label, cells in by_class.items()
        ]
        caption = f"{heading}: {', '.join(map(title, shown))}" if len(models) > _WIDE else ""
        yield grid(rows, heading="" if i else heading, caption=caption)


def _difference_rows(data: pd.DataFrame, cohorts: Sequence[str]) -> list[dict[str, Cell]]:
    found = data[data["name"].str.contains("-", regex=False)]
    at = found.set_index(["name", "cohort"])
    rows = []
    for name in dict.fromkeys(found["name"]):
        first, second = map(title, str(name).split("-", 1))
        row = {"difference": Cell(f"{first} minus {lower(second)}")}
        for cohort in cohorts:
            row[cohort_title(cohort)] = difference(*at.loc[(name, cohort), ["value", "low", "high"]])
        rows.append(row)
    return rows


def branches(comparison: str | Path) -> Table:
    """Lay out what the branches reach, who is right where, and how well the gate tells."""
    cohorts: dict[str, Any] = read_json(comparison)["cohorts"]
    records, rows, scores = [], [], []
    for cohort, result in cohorts.items():
        found = result["branches"]
        flat = {f"{metric}_{name}": value for name, s in found["scores"].items() for metric, value in s.items()}
        ends = {name: _ends(result["models"][name]["accuracy"]) for name in _BRANCHES}
        for name, (_, low, high) in ends.items():
            flat |= {f"accuracy_{name}_low": low, f"accuracy_{name}_high": high}
        records.append({"cohort": cohort, **{k: v for k, v in found.items() if k != "scores"}, **flat})
        rows.append(
            {
                "cohort": cohort_title(cohort),
                "cells": int(found["n_cells"]),
                **{label: share(found[key], found["n_cells"]) for key, label in _RIGHT.items()},
                "gate AUROC": found["gate_auroc"],
            }
        )
        cells = {name: Cell(found["scores"][name]["accuracy"], *ends[name][1:]) for name in _BRANCHES}
        real = {name: cells[name] for name in _BRANCHES if name != ORACLE}
        real = mark_best(real, BETTER["accuracy"], to_best(result["behind"], "accuracy"))
        scores.append({"cohort": cohort_title(cohort), **{title(n): c for n, c in {**cells, **real}.items()}})
    notes = [
        f"{INTERVALS}Bold: best of the row, the oracle left out. The oracle takes the right branch wherever one is "
        "right. Gate AUROC: how well the gate's weight tells, where exactly one branch is right, which one.",
    ]
    grids = [grid(scores, heading="Accuracy"), grid(rows, heading="Which branch is right")]
    return Table("Branches and gate", pd.DataFrame(records), grids, notes)


def _ends(found: dict[str, Any]) -> tuple[Any, Any, Any]:
    return found["value"], found["low"], found["high"]


_RIGHT = {"both": "both right", "A_only": "only local", "B_only": "only global", "neither": "neither"}


def dataset(composition: str | Path, *, classes: str | Path | None = None) -> Table:
    """Lay out the labelled cells by class and slide, and by slide and split.

    ``classes`` is the sheet that orders the classes, see :func:`nuclass.core.class_names.class_groups`.
    """
    data = pd.read_csv(composition)
    used = data[data["split"].isin(_SPLITS)]
    slides = list(dict.fromkeys(data["slide"]))
    by_class = used.pivot_table(index="class", columns="slide", values="cells", aggfunc="sum", fill_value=0)
    by_class = by_class.reindex(columns=slides, fill_value=0)
    order = class_order(by_class.index, class_groups(classes))
    rows = [
        {"class": Cell(class_title(name)), **{s: int(row[s]) for s in slides}, "total": int(row.sum())}
        for name, row in ((name, by_class.loc[name]) for name in order)
    ]
    totals = by_class.sum()
    rows.append({"class": Cell("total", bold=True), **{s: int(totals[s]) for s in slides}, "total": int(totals.sum())})
    splits = [*_SPLITS, *sorted(set(data["split"]) - set(_SPLITS))]
    by_split = data.pivot_table(index="slide", columns="split", values="cells", aggfunc="sum", fill_value=0)
    facts = data.drop_duplicates("slide").set_index("slide")
    split_rows = [
        {
            "slide": str(s),
            "organ": str(facts.loc[s, "organ"]),
            "role": str(facts.loc[s, "role"]),
            **{k: int(by_split.loc[s].get(k, 0)) for k in splits},
        }
        for s in slides
    ]
    grids = [
        grid(rows, heading="Labelled cells by class, in train, validation and test"),
        grid(split_rows, left=3, heading="Labelled cells by split"),
    ]
    notes = ["Cells in the buffer between two splits are used by none. A cohort is one test split."]
    return Table("The data set", data, grids, notes)


def label_quality(quality: str | Path, *, truth: str | Path | None = None) -> Table:
    """Lay out how many cells of each slide got a label, how sure it is, and, with a truth, how right."""
    data = pd.read_csv(quality)
    if truth is not None:
        scores = read_json(truth)["slides"]
        data["truth_macro_f1"] = [scores[s]["macro_f1"] for s in data["slide"]]
        data["truth_accuracy"] = [scores[s]["accuracy"] for s in data["slide"]]
    rows = []
    for found in data.to_dict("records"):
        row = {
            "slide": str(found["slide"]),
            "organ": str(found["organ"]),
            "cells": int(found["cells"]),
            "labelled": Cell(int(found["labelled"]), behind=share(found["labelled"], found["cells"]).text),
            "with a class": int(found["with_class"]),
            "abstained": int(found["abstained"]),
            "dropped": int(found["dropped"]),
            "clusters": int(found["clusters"]),
            "classes": int(found["classes"]),
            "mean confidence": float(found["confidence_mean"]),
        }
        if truth is not None:
            row["macro-F1 against truth"] = float(found["truth_macro_f1"])
        rows.append(row)
    notes = [
        "With a class: labelled with a cell type that is a class of the study. Dropped: by quality "
        "control. Abstained: no class had enough evidence, so the cell has no label."
    ]
    return Table("Labels", data, [grid(rows, left=2)], notes)


def funnel(counts: str | Path) -> Table:
    """Lay out the cells left after each step, and why the others went."""
    data = pd.read_csv(counts, keep_default_na=False)
    rows = [
        {
            "slide": str(found["slide"]),
            "step": str(found["step"]),
            "cells": int(found["cells"]),
            "dropped": int(found["dropped"]),
            "reasons": str(found["reasons"]),
        }
        for found in data.to_dict("records")
    ]
    return Table("Cells left after each step", data, [grid(rows, left=2, wide={"reasons": 0.35})])


def synthetic_truth(criteria: str | Path) -> Table:
    """Lay out what the synthetic study is expected to show, with value and verdict."""
    data = pd.read_csv(criteria)
    rows = [
        {
            "criterion": str(found["criterion"]),
            "value": Cell(found["value"], found["low"], found["high"], digits=4 if abs(found["value"]) < 0.01 else 3),
            "expected": str(found["threshold"]),
            "met": Cell("yes") if found["met"] else Cell("no", bold=True),
        }
        for found in data.to_dict("records")
    ]
    notes = ["In brackets: 95 % interval by bootstrap over spatial blocks, all cohorts pooled."]
    return Table(
        "The synthetic study against its truth",
        data,
        [grid(rows, texts=["expected", "met"], wide={"criterion": 0.4})],
        notes,
    )
