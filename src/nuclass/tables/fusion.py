"""Tables of the gate: against other ways to fuse, branch against branch, its behaviour; and FiLM against others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.files import read_json
from nuclass.core.names import FUSED, GLOBAL, LOCAL, MEAN, ORACLE, title
from nuclass.core.readings import ALL_CLASSES, EMBEDDING_METRICS, HIGHER
from nuclass.tables.layout import EMPTY, markdown, number, with_interval, write_table

ALL = "all"
WAYS = (LOCAL, GLOBAL, FUSED, MEAN, "product", "max_confidence", "stacking", "safe", ORACLE)
_SCORES = {"accuracy": "Accuracy", "macro_f1": "Macro-F1", "log_loss": "Log loss", "ece": "Calibration error"}
_SMALLER = ("log_loss", "ece")
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


def _cohort(name: str) -> str:
    return "all cohorts" if name == ALL else name


def _marked(found: Mapping[str, Any], digits: int = 3) -> str:
    """Return a difference with its interval, bold where that leaves out 0."""
    text = with_interval(found["value"], found["low"], found["high"], digits)
    known = found["low"] == found["low"] and found["low"] is not None
    return f"**{text}**" if known and (found["low"] > 0 or found["high"] < 0) else text


def gate_ablation(
    fusion_json: str | Path,
    fusion_csv: str | Path,
    csv: str | Path,
    md: str | Path,
    *,
    synthetic: bool,
    flaws: str = "",
) -> None:
    """Lay out every way to fuse the branches: scores, the gate minus each, and what tuning on test would feign."""
    results = read_json(fusion_json)
    data = pd.read_csv(fusion_csv, keep_default_na=False, na_values={"value": "", "low": "", "high": ""})
    data = data[data["metric"].isin(_SCORES) & (data["class"] == "")].drop(columns="class").reset_index(drop=True)
    cohorts = list(results["cohorts"])
    at = {(row["cohort"], row["name"], row["metric"]): row for row in data.to_dict("records")}
    parts = []
    for metric, label in _SCORES.items():
        parts += [f"## {label}", _ways(at, cohorts, metric), _gate_minus(at, cohorts, metric)]
    parts += ["## Safety policy: where it is tuned", _policy(results["cohorts"], at)]
    fitted = results["fitted"]
    notes = [
        "In brackets: 95 % interval by bootstrap over spatial blocks. Bold: best of the column, the oracle left out; "
        "for differences, the interval leaves out 0. The oracle takes the right branch wherever one is right: no "
        "choice between them can do better, but a mixture can, where both are wrong in different ways.",
        f"Stacking, the safety policy and one temperature for each rule are fitted to {number(fitted['val_cells'])} "
        f"val cells of {len(fitted['val_slides'])} training slides, the cells that the gate was fitted to and chosen "
        "by; the mean's log loss and calibration error are therefore not those of the table of models, which has no "
        "temperature of its own. The penalty of the stacking is chosen by cross-validation over squares of val tissue.",
    ]
    heading = "The gate against other ways to fuse"
    write_table(csv, md, data, parts, title=heading, notes=notes, synthetic=synthetic, flaws=flaws)


def _ways(at: Mapping[tuple[str, str, str], Mapping[str, Any]], cohorts: Sequence[str], metric: str) -> str:
    names = [name for name in WAYS if (cohorts[0], name, metric) in at]
    rows = []
    choose = min if metric in _SMALLER else max
    best = {c: choose(at[c, name, metric]["value"] for name in names if name != ORACLE) for c in cohorts}
    for name in names:
        row = {"way": title(name)}
        for cohort in cohorts:
            found = at[cohort, name, metric]
            text = with_interval(found["value"], found["low"], found["high"])
            row[_cohort(cohort)] = f"**{text}**" if found["value"] == best[cohort] and name != ORACLE else text
        rows.append(row)
    return markdown(rows, ["way", *map(_cohort, cohorts)])


def _gate_minus(at: Mapping[tuple[str, str, str], Mapping[str, Any]], cohorts: Sequence[str], metric: str) -> str:
    rows = []
    for name in WAYS:
        key = f"{FUSED}-{name}"
        if (cohorts[0], key, metric) in at:
            row = {"difference": f"Gate minus {title(name).lower()}"}
            rows.append(row | {_cohort(c): _marked(at[c, key, metric]) for c in cohorts})
    return markdown(rows, ["difference", *map(_cohort, cohorts)])


def _policy(cohorts: Mapping[str, Any], at: Mapping[tuple[str, str, str], Mapping[str, Any]]) -> str:
    rows = []
    for cohort, result in cohorts.items():
        policy = result["policy"]
        row = {"cohort": _cohort(cohort), "on val itself": number(float(policy["accuracy_on_val"]))}
        for name, label in _POLICY.items():
            found = at[cohort, name, "accuracy"]
            row[label] = with_interval(found["value"], found["low"], found["high"])
        row["optimism"] = _marked(at[cohort, "safe_on_reported-safe_on_val", "accuracy"], 4)
        row["in force"] = _POLICY[policy["in_force"]]
        rows.append(row)
    return markdown(rows, list(rows[0]))


def complementarity(counts: str | Path, csv: str | Path, md: str | Path, *, synthetic: bool, flaws: str = "") -> None:
    """Lay out which branch is right on how many cells of each class, and whether the imbalance is chance."""
    data = pd.read_csv(counts, keep_default_na=False, na_values=dict.fromkeys(_FLOATS, ""))
    parts = []
    for cohort in dict.fromkeys(data["cohort"]):
        part = data[data["cohort"] == cohort]
        parts += [f"## {_cohort(cohort)[:1].upper()}{_cohort(cohort)[1:]}", _counts(part)]
    notes = [
        "A is the local branch, B the global one. A's share is of the cells that exactly one branch has right. B minus "
        "A: accuracy within the class, with its 95 % interval by bootstrap over spatial blocks; bold where that leaves "
        "out 0. p: exact McNemar test of A only against B only, corrected over the classes of the cohort (Holm); the "
        "test takes cells for independent, which neighbours are not, so that where the two disagree the interval is "
        "to be believed. Gain: oracle minus the better branch.",
    ]
    heading = "Local and global: who is right where"
    write_table(csv, md, data, parts, title=heading, notes=notes, synthetic=synthetic, flaws=flaws)


_FLOATS = ("A_share", "difference", "low", "high", "p_value", "p_holm")


def _counts(data: pd.DataFrame) -> str:
    rows = []
    for found in data.to_dict("records"):
        name = str(found["class"])
        rows.append(
            {
                "class": f"**{name}**" if name == ALL_CLASSES else name.replace("_", " "),
                "cells": number(int(found["N"])),
                "A only": _share(found, "A_only"),
                "B only": _share(found, "B_only"),
                "both": _share(found, "Both"),
                "neither": _share(found, "Neither"),
                "A's share": number(float(found["A_share"]), 2),
                "dominant": found["dominant"] or EMPTY,
                "A": number(float(found["acc_A"])),
                "B": number(float(found["acc_B"])),
                "oracle": number(float(found["oracle"])),
                "gain": number(float(found["gain"])),
                "B minus A": _marked({"value": found["difference"], "low": found["low"], "high": found["high"]}),
                "p": _p_value(float(found["p_holm"])),
            }
        )
    return markdown(rows, list(rows[0]))


def _share(found: Mapping[str, Any], kind: str) -> str:
    return f"{number(int(found[kind]))} ({found[f'{kind}_pct']:.1f} %)"


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def gate(
    summary: str | Path,
    by_truth: str | Path,
    by_class: str | Path,
    csv: str | Path,
    md: str | Path,
    *,
    synthetic: bool,
    flaws: str = "",
) -> None:
    """Lay out where the gate opens: by who is right, by class, and how well it tells."""
    cohorts = read_json(summary)["cohorts"]
    truths, classes = pd.read_csv(by_truth), pd.read_csv(by_class)
    overview = [
        {
            "cohort": _cohort(name),
            "cells": number(int(found["cells"])),
            "mean gate": number(found["mean"]),
            "open": _percent(found["open_share"]),
            "exactly one right": number(int(found["conflicts"])),
            "AUROC": number(found["auroc"]),
            "calibration error": number(found["calibration_error"]),
            "rank correlation with local's entropy": number(found["spearman_uncertainty"], 2),
        }
        for name, found in cohorts.items()
    ]
    by = []
    for name in cohorts:
        part = truths[truths["cohort"] == name].set_index("truth")
        by.append({"cohort": _cohort(name), **{label: _gate(part.loc[key]) for key, label in _TRUTHS.items()}})
    pooled = classes[classes["cohort"] == ALL]
    of_classes = [
        {
            "class": str(found["class"]).replace("_", " "),
            "cells": number(int(found["cells"])),
            "mean gate": number(float(found["mean"])),
            "5 to 95 %": f"{found['q05']:.2f} to {found['q95']:.2f}",
            "open": _percent(float(found["open_share"])),
        }
        for _, found in pooled.iterrows()
    ]
    parts = [
        "## Overall",
        markdown(overview, list(overview[0])),
        "## Mean gate by who is right",
        markdown(by, list(by[0])),
        "## By class, all cohorts",
        markdown(of_classes, list(of_classes[0])),
    ]
    notes = [
        "The gate is the weight of the global branch; open: above 0.5. AUROC and calibration error are over the cells "
        "that exactly one branch has right: how well the gate tells which, and how far it is off as the probability "
        "that it is the global one. Behind a mean: the number of cells.",
    ]
    data = pd.concat(
        [truths.rename(columns={"truth": "group"}), classes.rename(columns={"class": "group"})], ignore_index=True
    )
    write_table(csv, md, data, parts, title="What the gate does", notes=notes, synthetic=synthetic, flaws=flaws)


def _gate(found: pd.Series[Any]) -> str:
    return f"{number(float(found['mean']))} ({number(int(found['cells']))})" if found["cells"] else EMPTY


def _percent(value: float | None) -> str:
    return EMPTY if value is None or value != value else f"{100 * value:.1f} %"


def film_vs_concat(
    result: str | Path | Mapping[str, Any],
    csv: str | Path,
    md: str | Path,
    *,
    synthetic: bool,
    titles: Mapping[str, str] | None = None,
    flaws: str = "",
    heading: str = "FiLM against concatenation",
) -> None:
    """Lay out :func:`nuclass.evaluation.embedding_space.compare_embeddings`: every model, and the first minus each.

    ``result`` is what it returns, or a JSON file of it; ``titles`` maps a model's name to what it is called.
    """
    found = result if isinstance(result, Mapping) else read_json(result)
    called = {name: (titles or {}).get(name, title(name)) for name in found["models"]}
    first, *others = found["models"]
    records, rows = [], []
    for metric, label in _SPACE.items():
        better = EMBEDDING_METRICS[metric]
        values = {name: _float(values[metric]) for name, values in found["models"].items()}
        known = [value for value in values.values() if value == value]
        best = (max(known) if better == HIGHER else min(known)) if len(known) > 1 else None
        row = {"metric": f"{label} ({'more' if better == HIGHER else 'less'} is better)"}
        for name, value in values.items():
            row[called[name]] = f"**{number(value)}**" if value == best else number(value)
            records.append({"name": name, "metric": metric, "value": value, "low": None, "high": None})
        for name in others:
            pair = f"{first}-{name}"
            interval = found["differences"].get(pair, {}).get(metric)
            interval = interval or {"value": values[first] - values[name], "low": None, "high": None}
            row[f"{called[first]} minus {called[name]}"] = _marked(interval)
            records.append({"name": pair, "metric": metric, **interval})
        rows.append(row)
    organs = ", ".join(f"{name} {number(n)}" for name, n in found["organs"].items())
    notes = [
        f"{number(found['n_cells'])} random cells (seed {found['seed']}; {organs}), {len(found['classes'])} classes, "
        "the same for every model. In brackets: 95 % interval by paired bootstrap over spatial blocks. The organ that "
        f"is most common makes up {_percent(found['organ_majority'])}: a vote that knows nothing tells it as often. "
        "Val cells of the training slides, which chose the models, are among the cells; the macro mean runs over all "
        "classes that occur, as in the original.",
        *found["notes"],
    ]
    part = markdown(rows, list(rows[0]))
    data = pd.DataFrame(records)
    write_table(csv, md, data, [part], title=heading, notes=notes, synthetic=synthetic, flaws=flaws)


def _float(value: float | None) -> float:
    return float("nan") if value is None else float(value)
