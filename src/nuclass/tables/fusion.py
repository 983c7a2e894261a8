"""Tables of the gate: against other ways to fuse, branch against branch, its behaviour; and FiLM against others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.class_names import WAYS, class_groups, class_order, class_title, cohort_title
from nuclass.core.files import read_json
from nuclass.core.names import FUSED, ORACLE, title
from nuclass.core.readings import ALL_CLASSES, BETTER, EMBEDDING_METRICS, HIGHER
from nuclass.tables.ablation import SHORT
from nuclass.tables.layout import Cell, Table, difference, grid, mark_best, number, share, to_best
from nuclass.tables.study import INTERVALS, cells_of, lower, macro_note, paired_ends, read_comparison

ALL = "all"
_SCORES = {"accuracy": "Accuracy", "macro_f1": "Macro-F1", "log_loss": "Log loss", "ece": "Calibration error"}
_POLICY = {"safe_on_val": "tuned on val", "safe_on_reported": "tuned on the reported cells"}
_TRUTHS = {"both": "both right", "only_local": "only local", "only_global": "only global", "neither": "neither"}
_SPACE = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "auroc_macro": "macro AUROC",
    "silhouette": "silhouette (cosine)",
    "calinski_harabasz": "Calinski-Harabasz",
    "davies_bouldin": "Davies-Bouldin",
    "nn1": "nearest cell of its class",
    "nn1_same_organ": "the same, within the organ",
    "nn1_cross_organ": "the same, in other organs",
    "organ_identifiability": "organ told by 5 neighbours",
    "organ_leakage": "organ leakage index",
    "ece": "calibration error",
}


def gate_ablation(fusion_json: str | Path, fusion_csv: str | Path) -> Table:
    """Lay out every way to fuse the branches: scores, the gate minus each, and what tuning on test would feign."""
    results = read_json(fusion_json)
    data = read_comparison(fusion_csv)
    data = data[data["metric"].isin(_SCORES) & (data["class"] == "")].drop(columns=["class", "in_macro"])
    data = data.reset_index(drop=True)
    cohorts = list(results["cohorts"])
    grids = []
    for metric, label in _SCORES.items():
        part = data[data["metric"] == metric]
        grids.append(grid(_ways(part, cohorts, BETTER[metric]), heading=label))
        grids.append(grid(_gate_minus(part, cohorts), caption=f"{label}, paired differences"))
    at = {(row["cohort"], row["name"]): row for row in data[data["metric"] == "accuracy"].to_dict("records")}
    policy = _policy(results["cohorts"], at)
    grids.append(grid(policy, texts=["in force"], heading="Safety policy: where it is tuned"))
    fitted = results["fitted"]
    notes = [
        f"{INTERVALS}Bold: best of the column, the oracle left out; "
        "for differences, the interval leaves out 0. The oracle takes the right branch wherever one is right: no "
        "choice between them can do better, but a mixture can, where both are wrong in different ways.",
        f"Stacking, the safety policy and one temperature for each rule are fitted to {number(fitted['val_cells'])} "
        f"val cells of {len(fitted['val_slides'])} training slides, the cells that the gate was fitted to and chosen "
        "by; the mean's log loss and calibration error are therefore not those of the table of models, which has no "
        "temperature of its own. The penalty of the stacking is chosen by cross-validation over squares of val tissue.",
        *macro_note(results["options"]["min_support"]),
    ]
    return Table("The gate against other ways to fuse", data, grids, notes)


def _ways(data: pd.DataFrame, cohorts: Sequence[str], better: int) -> list[dict[str, Cell]]:
    found = set(data["name"])
    names = [name for name in WAYS if name in found]
    real = [name for name in names if name != ORACLE]
    columns = {}
    for cohort in cohorts:
        part = data[data["cohort"] == cohort]
        columns[cohort] = {**cells_of(part, names), **mark_best(cells_of(part, real), better, paired_ends(part))}
    return [
        {"way": Cell(title(name)), **{cohort_title(c): column[name] for c, column in columns.items()}} for name in names
    ]


def _gate_minus(data: pd.DataFrame, cohorts: Sequence[str]) -> list[dict[str, Cell]]:
    at = {(row["name"], row["cohort"]): row for row in data.to_dict("records")}
    rows = []
    for name in WAYS:
        key = f"{FUSED}-{name}"
        if (key, cohorts[0]) in at:
            row = {"difference": Cell(f"Gate minus {lower(title(name))}")}
            rows.append(row | {cohort_title(c): _difference(at[key, c]) for c in cohorts})
    return rows


def _difference(found: Mapping[str, Any], digits: int = 3) -> Cell:
    return difference(found["value"], found["low"], found["high"], digits)


def _policy(cohorts: Mapping[str, Any], at: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for cohort, result in cohorts.items():
        policy = result["policy"]
        row: dict[str, Any] = {
            "cohort": cohort_title(cohort),
            "on val itself": Cell(float(policy["accuracy_on_val"])),
        }
        for name, label in _POLICY.items():
            found = at[cohort, name]
            row[label] = Cell(found["value"], found["low"], found["high"])
        row["optimism"] = _difference(at[cohort, "safe_on_reported-safe_on_val"], 4)
        row["in force"] = _POLICY[policy["in_force"]]
        rows.append(row)
    return rows


def complementarity(counts: str | Path, *, classes: str | Path | None = None) -> Table:
    """Lay out which branch is right on how many cells of each class, and whether the imbalance is chance.

    ``classes`` is the sheet that orders the classes, see :func:`nuclass.core.class_names.class_groups`.
    """
    groups = class_groups(classes)
    data = pd.read_csv(counts, keep_default_na=False, na_values=dict.fromkeys(_FLOATS, ""))
    grids = []
    for cohort in dict.fromkeys(data["cohort"]):
        found = {str(row["class"]): row for row in data[data["cohort"] == cohort].to_dict("records")}
        rows = [_counts(found[name]) for name in class_order(found, groups)]
        grids.append(grid(rows, texts=["dominant"], heading=cohort_title(cohort)))
    notes = [
        "A is the local branch, B the global one. A's share is of the cells that exactly one branch has right. B minus "
        "A: accuracy within the class, with its 95 % interval by bootstrap over spatial blocks; bold where that leaves "
        "out 0. p: exact McNemar test of A only against B only, corrected over the classes of the cohort (Holm); the "
        "test takes cells for independent, which neighbours are not, so that where the two disagree the interval is "
        "to be believed. Gain: oracle minus the better branch.",
    ]
    return Table("Local and global: who is right where", data, grids, notes)


_FLOATS = ("A_share", "difference", "low", "high", "p_value", "p_holm")


def _counts(found: Mapping[str, Any]) -> dict[str, Any]:
    name = str(found["class"])
    return {
        "class": Cell(class_title(name), bold=name == ALL_CLASSES),
        "cells": int(found["N"]),
        "A only": _of_cells(found, "A_only"),
        "B only": _of_cells(found, "B_only"),
        "both": _of_cells(found, "Both"),
        "neither": _of_cells(found, "Neither"),
        "A's share": Cell(float(found["A_share"]), digits=2),
        "dominant": found["dominant"],
        "A": float(found["acc_A"]),
        "B": float(found["acc_B"]),
        "oracle": float(found["oracle"]),
        "gain": float(found["gain"]),
        "B minus A": _difference({"value": found["difference"], "low": found["low"], "high": found["high"]}),
        "p": _p_value(float(found["p_holm"])),
    }


def _of_cells(found: Mapping[str, Any], kind: str) -> Cell:
    return Cell(int(found[kind]), behind=share(found[f"{kind}_pct"], 100).text)


def _p_value(value: float) -> Cell:
    return Cell("< 0.001") if value < 0.001 else Cell(value)


def gate(
    summary: str | Path, by_truth: str | Path, by_class: str | Path, *, classes: str | Path | None = None
) -> Table:
    """Lay out where the gate opens: by who is right, by class, and how well it tells.

    ``classes`` is the sheet that orders the classes, see :func:`nuclass.core.class_names.class_groups`.
    """
    cohorts = read_json(summary)["cohorts"]
    truths, kinds = pd.read_csv(by_truth), pd.read_csv(by_class)
    overview = [
        {
            "cohort": cohort_title(name),
            "cells": int(found["cells"]),
            "mean gate": found["mean"],
            "open": share(found["open_share"]),
            "exactly one right": int(found["conflicts"]),
            "AUROC": found["auroc"],
            "calibration error": found["calibration_error"],
            "rank correlation with local's entropy": Cell(found["spearman_uncertainty"], digits=2),
        }
        for name, found in cohorts.items()
    ]
    by = []
    for name in cohorts:
        part = truths[truths["cohort"] == name].set_index("truth")
        by.append({"cohort": cohort_title(name), **{label: _gate(part.loc[key]) for key, label in _TRUTHS.items()}})
    pooled = {str(row["class"]): row for row in kinds[kinds["cohort"] == ALL].to_dict("records")}
    of_classes = [
        {
            "class": Cell(class_title(name)),
            "cells": int(found["cells"]),
            "mean gate": float(found["mean"]),
            "5 to 95 %": f"{found['q05']:.2f} to {found['q95']:.2f}",
            "open": share(float(found["open_share"])),
        }
        for name, found in ((name, pooled[name]) for name in class_order(pooled, class_groups(classes)))
    ]
    grids = [
        grid(overview, heading="Overall"),
        grid(by, heading="Mean gate by who is right"),
        grid(of_classes, heading="By class, all cohorts"),
    ]
    notes = [
        "The gate is the weight of the global branch; open: above 0.5. AUROC and calibration error are over the cells "
        "that exactly one branch has right: how well the gate tells which, and how far it is off as the probability "
        "that it is the global one. Behind a mean: the number of cells.",
    ]
    overall = pd.DataFrame([{"cohort": name, "group": "overall", **found} for name, found in cohorts.items()])
    parts = [overall, truths.rename(columns={"truth": "group"}), kinds.rename(columns={"class": "group"})]
    data = pd.concat(parts, ignore_index=True)
    return Table("What the gate does", data, grids, notes)


def _gate(found: pd.Series[Any]) -> Cell:
    return Cell(float(found["mean"]), behind=number(int(found["cells"]))) if found["cells"] else Cell()


def film_vs_concat(
    result: str | Path | Mapping[str, Any],
    *,
    titles: Mapping[str, str] | None = None,
    heading: str = "FiLM against concatenation",
    short: str = "",
) -> Table:
    """Lay out :func:`nuclass.evaluation.embedding_space.compare_embeddings`: every model, and the first minus each.

    ``result`` is what it returns, or a JSON file of it; ``titles`` maps a model's name to what it is called; ``short``
    is the models' file, where its section ``ablations`` makes the runs shorter than the study.
    """
    found = result if isinstance(result, Mapping) else read_json(result)
    called = {name: (titles or {}).get(name, title(name)) for name in found["models"]}
    first, *others = found["models"]
    records, rows, gaps = [], [], []
    for metric, label in _SPACE.items():
        better = EMBEDDING_METRICS[metric]
        values = {name: _float(values[metric]) for name, values in found["models"].items()}
        records += [{"name": n, "metric": metric, "value": v, "low": None, "high": None} for n, v in values.items()]
        apart = {}
        for name in others:
            interval = found["differences"].get(f"{first}-{name}", {}).get(metric)
            interval = interval or {"value": values[first] - values[name], "low": None, "high": None}
            apart[f"{called[first]} minus {called[name]}"] = _difference(interval)
            records.append({"name": f"{first}-{name}", "metric": metric, **interval})
        paired = to_best(found["behind"], metric)
        cells = mark_best({name: Cell(value) for name, value in values.items()}, better, paired)
        named = {"metric": f"{label} ({'more' if better == HIGHER else 'less'} is better)"}
        rows.append({**named, **{called[name]: cell for name, cell in cells.items()}})
        gaps.append({"metric": label, **apart})
    organs = ", ".join(f"{name} {number(n)}" for name, n in found["organs"].items())
    notes = [
        f"{number(found['n_cells'])} random cells (seed {found['seed']}; {organs}), {len(found['classes'])} classes, "
        "the same for every model. Bold: best of the row; of differences, the interval leaves out 0. In brackets: 95 % "
        "interval by paired bootstrap over spatial blocks. The organ that "
        f"is most common makes up {share(found['organ_majority']).text}: a vote that knows nothing tells it as often. "
        "Val cells of the training slides, which chose the models, are among the cells; the macro mean runs over all "
        "classes that occur, as in the original. All models saw every organ of these cells in training: what they tell "
        "of organs does not say how they do on an organ that is new, which the table `left_out` does.",
        *found["notes"],
        *([SHORT.format(short)] if short else []),
    ]
    grids = [grid(rows), *([grid(gaps, heading="Differences")] if others else [])]
    return Table(heading, pd.DataFrame(records), grids, notes)


def _float(value: float | None) -> float:
    return float("nan") if value is None else float(value)
