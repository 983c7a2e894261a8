"""The study's tables, each from files of the evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.files import read_json
from nuclass.core.names import FUSED, GLOBAL, LOCAL, MEAN, ORACLE, title
from nuclass.core.readings import CLOSED, OPEN, PRIORS, READINGS
from nuclass.tables.layout import EMPTY, markdown, number, with_interval, write_table

_BRANCHES = (LOCAL, GLOBAL, MEAN, FUSED, ORACLE)
_METRICS = {"macro_f1": "macro-F1", "accuracy": "accuracy", "log_loss": "log loss"}
_SPLITS = ("train", "val", "test")
_WIDE = 5


def _cohort(name: str) -> str:
    return "all cohorts" if name == "all" else name


def _read(path: str | Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False, na_values={"value": "", "low": "", "high": ""})


def holdout_comparison(
    comparison: str | Path,
    csv: str | Path,
    md: str | Path,
    *,
    synthetic: bool,
    flaws: str = "",
    closed_set: bool = False,
    stand_ins: Sequence[str] = (),
) -> None:
    """Lay out macro-F1, accuracy and log loss of each model on each cohort, the best in bold, and F1 by class.

    Below each metric stand the paired differences of the fused model to the others. ``comparison`` is a CSV of
    :func:`nuclass.evaluation.compare.compare_cohorts`; every model in it is a row. ``stand_ins`` are baselines
    with a small network in the place of the published one, which a note then says.
    """
    data = _read(comparison)
    data = data[data["metric"].isin([*_METRICS, "f1"]) & (data["name"] != ORACLE)].reset_index(drop=True)
    cohorts = list(dict.fromkeys(data["cohort"]))
    models = [name for name in dict.fromkeys(data["name"]) if "-" not in name]
    parts = []
    for metric, label in _METRICS.items():
        part = data[data["metric"] == metric]
        parts.append(f"## {label[:1].upper()}{label[1:]}")
        parts.append(_model_rows(part[part["name"].isin(models)], models, cohorts, smaller=metric == "log_loss"))
        parts.append(_difference_rows(part[part["name"].str.contains("-", regex=False)], cohorts))
    by_class = data[(data["metric"] == "f1") & (data["cohort"] == cohorts[-1])]
    parts.append(f"## F1 by class, {_cohort(cohorts[-1])}")
    learned = [name for name in models if name not in PRIORS]
    parts += [_class_rows(by_class, learned[i : i + _WIDE]) for i in range(0, len(learned), _WIDE)]
    notes = [
        "In brackets: 95 % interval by bootstrap over spatial blocks. Bold: best of the column; by class, best of all "
        "models. Differences are paired; bold where the interval leaves out 0. "
        + READINGS[CLOSED if closed_set else OPEN],
    ]
    if stand_ins:
        notes.append(
            f"Stand-ins: small networks take the place of {', '.join(map(title, stand_ins))}, so their rows show that "
            "the comparison works and say nothing about the published networks."
        )
    name = "Models on the held-out cohorts"
    write_table(csv, md, data, parts, title=name, notes=notes, synthetic=synthetic, flaws=flaws)


def _model_rows(data: pd.DataFrame, models: Sequence[str], cohorts: Sequence[str], *, smaller: bool) -> str:
    wide = data.pivot(index="name", columns="cohort", values="value")
    best = {c: wide[c].min() if smaller else wide[c].max() for c in cohorts}
    found = data.set_index(["name", "cohort"])
    rows = [
        {"model": title(name)} | {_cohort(c): _bold(found.loc[(name, c)], best[c]) for c in cohorts} for name in models
    ]
    return markdown(rows, ["model", *map(_cohort, cohorts)])


def _class_rows(data: pd.DataFrame, models: Sequence[str]) -> str:
    """Lay out the F1 of each class for some of the models."""
    best = data[~data["name"].str.contains("-", regex=False)].groupby("class")["value"].max()
    found = data.set_index(["name", "class"])
    rows = [
        {"class": str(label)} | {title(name): _bold(found.loc[(name, label)], best[label]) for name in models}
        for label in best.index
    ]
    return markdown(rows, ["class", *map(title, models)])


def _bold(found: pd.Series[Any], best: float) -> str:
    text = with_interval(found["value"], found["low"], found["high"])
    return f"**{text}**" if found["value"] == best else text


def _difference_rows(data: pd.DataFrame, cohorts: Sequence[str]) -> str:
    rows = []
    for name in dict.fromkeys(data["name"]):
        first, second = str(name).split("-")
        other = title(second)
        row = {"difference": f"{title(first)} minus {other if other[:2].isupper() else other[0].lower() + other[1:]}"}
        for cohort in cohorts:
            found = data[(data["name"] == name) & (data["cohort"] == cohort)].iloc[0]
            text = with_interval(found["value"], found["low"], found["high"])
            row[_cohort(cohort)] = f"**{text}**" if found["low"] > 0 or found["high"] < 0 else text
        rows.append(row)
    return markdown(rows, ["difference", *map(_cohort, cohorts)])


def branches(comparison: str | Path, csv: str | Path, md: str | Path, *, synthetic: bool, flaws: str = "") -> None:
    """Lay out what the branches reach, who is right where, and how well the gate tells."""
    cohorts: dict[str, Any] = {name: result["branches"] for name, result in read_json(comparison)["cohorts"].items()}
    records = []
    for cohort, found in cohorts.items():
        flat = {f"{metric}_{name}": value for name, s in found["scores"].items() for metric, value in s.items()}
        records.append({"cohort": cohort, **{k: v for k, v in found.items() if k != "scores"}, **flat})
    rows = [
        {
            "cohort": _cohort(cohort),
            "cells": number(found["n_cells"]),
            **{label: _percent(found[key], found["n_cells"]) for key, label in _RIGHT.items()},
            **{title(name): number(found["scores"][name]["accuracy"]) for name in _BRANCHES},
            "gate AUROC": number(found["gate_auroc"]),
        }
        for cohort, found in cohorts.items()
    ]
    notes = [
        "Columns named after models: accuracy. The oracle takes the right branch wherever one is right. Gate AUROC: "
        "how well the gate's weight tells, where exactly one branch is right, which one.",
    ]
    part = markdown(rows, list(rows[0]))
    data, name = pd.DataFrame(records), "Branches and gate"
    write_table(csv, md, data, [part], title=name, notes=notes, synthetic=synthetic, flaws=flaws)


_RIGHT = {"both": "both right", "A_only": "only local", "B_only": "only global", "neither": "neither"}


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else EMPTY


def dataset(composition: str | Path, csv: str | Path, md: str | Path, *, synthetic: bool) -> None:
    """Lay out the labelled cells by class and slide, and by slide and split."""
    data = pd.read_csv(composition)
    used = data[data["split"].isin(_SPLITS)]
    slides = list(dict.fromkeys(data["slide"]))
    by_class = used.pivot_table(index="class", columns="slide", values="cells", aggfunc="sum", fill_value=0)
    by_class = by_class.reindex(columns=slides, fill_value=0)
    rows = [
        {"class": str(name), **{s: number(int(row[s])) for s in slides}, "total": number(int(row.sum()))}
        for name, row in by_class.iterrows()
    ]
    totals = by_class.sum()
    rows.append(
        {"class": "**total**", **{s: number(int(totals[s])) for s in slides}, "total": number(int(totals.sum()))}
    )
    splits = [*_SPLITS, *sorted(set(data["split"]) - set(_SPLITS))]
    by_split = data.pivot_table(index="slide", columns="split", values="cells", aggfunc="sum", fill_value=0)
    facts = data.drop_duplicates("slide").set_index("slide")
    split_rows = [
        {
            "slide": s,
            "organ": str(facts.loc[s, "organ"]),
            "role": str(facts.loc[s, "role"]),
            **{k: number(int(by_split.loc[s].get(k, 0))) for k in splits},
        }
        for s in slides
    ]
    parts = [
        "## Labelled cells by class, in train, validation and test",
        markdown(rows, ["class", *slides, "total"]),
        "## Labelled cells by split",
        markdown(split_rows, ["slide", "organ", "role", *splits], left=3),
    ]
    notes = ["Cells in the buffer between two splits are used by none. A cohort is one test split."]
    write_table(csv, md, data, parts, title="The data set", notes=notes, synthetic=synthetic)


def label_quality(
    quality: str | Path, csv: str | Path, md: str | Path, *, synthetic: bool, truth: str | Path | None = None
) -> None:
    """Lay out how many cells of each slide got a label, how sure it is, and, with a truth, how right."""
    data = pd.read_csv(quality)
    if truth is not None:
        scores = read_json(truth)["slides"]
        data["truth_macro_f1"] = [scores[s]["macro_f1"] for s in data["slide"]]
        data["truth_accuracy"] = [scores[s]["accuracy"] for s in data["slide"]]
    rows = []
    for _, found in data.iterrows():
        row = {
            "slide": str(found["slide"]),
            "organ": str(found["organ"]),
            "cells": number(int(found["cells"])),
            "labelled": f"{number(int(found['labelled']))} ({_percent(found['labelled'], found['cells'])})",
            "with a class": number(int(found["with_class"])),
            "abstained": number(int(found["abstained"])),
            "dropped": number(int(found["dropped"])),
            "clusters": number(int(found["clusters"])),
            "classes": number(int(found["classes"])),
            "mean confidence": number(float(found["confidence_mean"])),
        }
        if truth is not None:
            row["macro-F1 against truth"] = number(float(found["truth_macro_f1"]))
        rows.append(row)
    notes = [
        "With a class: labelled with a cell type that is a class of the study. Dropped: by quality "
        "control. Abstained: no class had enough evidence, so the cell has no label."
    ]
    part = markdown(rows, list(rows[0]), left=2)
    write_table(csv, md, data, [part], title="Labels", notes=notes, synthetic=synthetic)


def funnel(counts: str | Path, csv: str | Path, md: str | Path, *, synthetic: bool) -> None:
    """Lay out the cells left after each step, and why the others went."""
    data = pd.read_csv(counts, keep_default_na=False)
    rows = [
        {
            "slide": str(found["slide"]),
            "step": str(found["step"]),
            "cells": number(int(found["cells"])),
            "dropped": number(int(found["dropped"])),
            "reasons": str(found["reasons"]) or EMPTY,
        }
        for _, found in data.iterrows()
    ]
    part = markdown(rows, ["slide", "step", "cells", "dropped", "reasons"], left=2)
    write_table(csv, md, data, [part], title="Cells left after each step", synthetic=synthetic)


def synthetic_truth(criteria: str | Path, csv: str | Path, md: str | Path, *, flaws: str = "") -> None:
    """Lay out what the synthetic study is expected to show, with value and verdict."""
    data = pd.read_csv(criteria)
    rows = [
        {
            "criterion": str(found["criterion"]),
            "value": with_interval(found["value"], found["low"], found["high"], 4 if abs(found["value"]) < 0.01 else 3),
            "expected": str(found["threshold"]),
            "met": "yes" if found["met"] else "**no**",
        }
        for _, found in data.iterrows()
    ]
    part = markdown(rows, ["criterion", "value", "expected", "met"])
    notes = ["In brackets: 95 % interval by bootstrap over spatial blocks, all cohorts pooled."]
    name = "The synthetic study against its truth"
    write_table(csv, md, data, [part], title=name, notes=notes, synthetic=True, flaws=flaws)
