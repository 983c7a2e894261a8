"""Tables of runs under changed settings, and of the audit of the original's flaws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.files import read_json
from nuclass.core.names import title as title_of
from nuclass.tables.layout import EMPTY, markdown, number, with_interval, write_table

_METRICS = {"macro_f1": "macro-F1", "accuracy": "accuracy", "log_loss": "log loss", "ece": "ECE"}
_INTERVALS = (
    "In brackets: 95 % interval by bootstrap over spatial blocks; it holds what other cells would change, not what "
    "another seed would. Differences are paired; bold where the interval leaves out 0."
)
GUIDANCE = {
    "label": "by label: (1 - pA(y))^gamma",
    "entropy": "by entropy of pA",
    "none": "none (gamma 0)",
}
SHORT = "All runs of this table, the reference too, were trained shorter than the study: section `ablations` of `{}`."


def runs_table(
    comparison: str | Path,
    csv: str | Path,
    md: str | Path,
    *,
    title: str,
    first: str,
    models: Sequence[str],
    values: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    short: str = "",
    synthetic: bool = False,
    flaws: str = "",
) -> None:
    """Lay out runs that differ in one setting: metrics on the cohorts, and macro-F1 minus the reference's.

    Parameters
    ----------
    comparison
        From :func:`nuclass.evaluation.ablation.compare_runs`.
    first
        Head of the first column, the setting.
    models
        The models to show.
    values
        Words for the values of the setting.
    short
        The models' file, where its section ``ablations`` makes the runs shorter than the study.
    """
    data = pd.read_csv(comparison, dtype={"value": str})
    cohorts = data[data["cells"] == "cohorts"]
    parts = []
    for model in models:
        rows = []
        for value in dict.fromkeys(cohorts["value"]):
            mine = cohorts[(cohorts["value"] == value) & (cohorts["model"] == model)].set_index("metric")
            row = {first: (values or {}).get(str(value), str(value))}
            for metric, name in _METRICS.items():
                found = mine.loc[metric]
                row[name] = with_interval(found["estimate"], found["low"], found["high"])
            rows.append(row | {"difference of macro-F1": _difference(mine.loc["macro_f1"])})
        parts += [f"## {title_of(model)}", markdown(rows, list(rows[0]))]
    told = [_INTERVALS, *notes, *([SHORT.format(short)] if short else [])]
    write_table(csv, md, data, parts, title=title, notes=told, synthetic=synthetic, flaws=flaws)


def _difference(row: pd.Series[Any]) -> str:
    low, high = row["difference_low"], row["difference_high"]
    if row["difference"] == 0 and low == 0 and high == 0:
        return "reference"
    text = signed(row["difference"], low, high)
    return f"**{text}**" if low > 0 or high < 0 else text


def signed(value: float, low: float, high: float, digits: int = 3) -> str:
    """Return a difference with its sign and interval."""
    if number(value) == EMPTY:
        return EMPTY
    text = f"{value:+.{digits}f}"
    return text if number(low) == EMPTY else f"{text} ({low:+.{digits}f} to {high:+.{digits}f})"


def seeds(comparison: str | Path, csv: str | Path, md: str | Path, *, short: str, synthetic: bool, flaws: str) -> None:
    """Lay out how much the numbers on the cohorts change with the seed alone: mean, standard deviation, range.

    ``comparison`` is a table of :func:`nuclass.evaluation.ablation.spread`.
    """
    data = pd.read_csv(comparison)
    cohorts = data[data["cells"] == "cohorts"]
    rows = []
    for model in dict.fromkeys(cohorts["model"]):
        row = {"model": title_of(str(model)), "runs": ""}
        for metric, name in _METRICS.items():
            found = cohorts[(cohorts["model"] == model) & (cohorts["metric"] == metric)].iloc[0]
            row["runs"] = number(int(found["runs"]))
            row[name] = f"{found['mean']:.3f} ± {found['sd']:.3f} ({found['min']:.3f} to {found['max']:.3f})"
        rows.append(row)
    notes = [
        "Mean ± standard deviation of runs that differ in the seeds of training alone, on the same cohorts; in "
        "brackets the least and the most. The context features are shared. Two settings that differ by less than about "
        "three standard deviations cannot be told apart by one run each.",
        *([SHORT.format(short)] if short else []),
    ]
    part = markdown(rows, list(rows[0]))
    write_table(csv, md, data, [part], title="What the seed changes", notes=notes, synthetic=synthetic, flaws=flaws)


def left_out(results: Sequence[str | Path], csv: str | Path, md: str | Path, **told: Any) -> None:
    """Lay out models that never saw an organ on that organ's cells, for each way of using the organ.

    ``results`` are files of :func:`nuclass.evaluation.ablation.judge_left_out`; ``told`` goes to
    :func:`nuclass.tables.layout.write_table`, without its ``short``.
    """
    short = told.pop("short", "")
    records, rows = [], []
    for path in results:
        found = read_json(path)
        for name, mine in found["models"].items():
            organ, mode = found["organ"], name.split()[-1]
            gap = next((d for key, d in found["differences"].items() if key.endswith(f"-{name}")), None)
            record = {
                "organ": organ,
                "mode": mode,
                "n_cells": found["n_cells"],
                "n_outside": sum(found["outside"].values()),
            }
            row = {"organ": organ, "use of the organ": mode, "cells": number(record["n_cells"])}
            for metric in ("macro_f1", "accuracy", "log_loss"):
                record |= {f"{metric}{end}": mine[metric][key] for key, end in _ENDS.items()}
                row[_METRICS[metric]] = with_interval(*(mine[metric][key] for key in _ENDS))
            if gap is not None:
                record |= {f"film_minus{end}": gap["macro_f1"][key] for key, end in _ENDS.items()}
            row[_FILM_MINUS] = EMPTY if gap is None else signed(*(gap["macro_f1"][key] for key in _ENDS))
            records.append(record)
            rows.append(row)
    notes = [
        "Local models trained without any slide of the organ, judged on that organ's cohorts and on the val and "
        "test cells of its training slides. The organ is unknown to them. Cells of classes that occur nowhere else are "
        "left out, and counted in the CSV (`n_outside`).",
        _INTERVALS,
        *([SHORT.format(short)] if short else []),
    ]
    part = markdown(rows, list(rows[0]), left=2) if rows else "No organ is left out (`ablations.leave_out` is empty)."
    write_table(csv, md, pd.DataFrame(records), [part], title="An organ that was never seen", notes=notes, **told)


_FILM_MINUS = "FiLM minus this, macro-F1"
_ENDS = {"value": "", "low": "_low", "high": "_high"}


def audit(source: str | Path, csv: str | Path, md: str | Path, *, short: str, synthetic: bool, flaws: str) -> None:
    """Lay out the effect of each flaw of the original; see :func:`nuclass.evaluation.audit.audit`."""
    data = pd.read_csv(source, keep_default_na=True)
    text = data.select_dtypes(exclude="number").columns
    data[text] = data[text].fillna("")
    rows = []
    for _, row in data.iterrows():
        rows.append(
            {
                "switch": row["switch"] if not row["expected"] else f"`{row['switch']}`",
                "cohorts": with_interval(row["estimate"], row["low"], row["high"]),
                "minus corrected": EMPTY if not row["expected"] else _audit_difference(row),
                "val": with_interval(row["val"], row["val_low"], row["val_high"]),
                "val minus corrected": EMPTY if not row["expected"] else _audit_difference(row, "val_difference"),
                "optimism": signed(row["optimism"], float("nan"), float("nan")),
                "expected": f"{row['expected_on']}: {row['expected']}" if row["expected"] else EMPTY,
                "verdict": row["verdict"] or EMPTY,
            }
        )
    lines = [f"- `{row['switch']}`: {row['idle'] or row['why']}" for _, row in data.iterrows() if row["expected"]]
    notes = [
        "Macro-F1 of the fused model (for `policy_on_test` the accuracy of the safety policy of the study's own "
        "models). *cohorts*: slides that "
        "nothing was trained or chosen on. *minus corrected*: paired difference to the reference there. *val*: the "
        "cells that chose the models, which is what the original reports; where a flaw changes which cells these are, "
        "its difference is not paired, and of the classes that both have enough cells of. *optimism*: val minus "
        "cohorts; the reference has one too, for its val has other organs and classes than the cohorts, so read the "
        "others beside it.",
        "A flaw is *seen* where the interval of its difference leaves out 0 and the difference is larger than two runs "
        "that differ in the seed alone would show in 95 of 100 cases (1.96 √2 standard deviations of the seeds; column "
        "`seed_noise` of the CSV); the difference is that on the cells of the column *expected*. *no change* is as "
        "expected also where the study is too small to show one. For `released` the cohorts are read as a closed set.",
        *([f"{SHORT.format(short)} But `policy_on_test` is of the study's own models."] if short else []),
    ]
    parts = [markdown(rows, list(rows[0])), "## What theory expects", "\n".join(lines)]
    title = "Audit of the original's protocol"
    write_table(csv, md, data, parts, title=title, notes=notes, synthetic=synthetic, flaws=flaws)


def _audit_difference(row: pd.Series[Any], name: str = "difference") -> str:
    if row["idle"]:
        return "0 (idle)"
    value, low, high = (row[f"{name}{end}"] for end in _ENDS.values())
    text = signed(value, low, high)
    return f"**{text}**" if low > 0 or high < 0 else text
