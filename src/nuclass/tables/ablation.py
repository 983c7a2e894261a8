"""Tables of runs under changed settings, and of the audit of the original's flaws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.class_names import ORGAN_USES
from nuclass.core.files import read_json
from nuclass.core.names import title as title_of
from nuclass.core.readings import BETTER
from nuclass.core.seed_noise import seed_noise
from nuclass.tables.layout import Cell, Table, difference, grid, mark_best, to_best

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
    *,
    title: str,
    first: str,
    models: Sequence[str],
    values: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    short: str = "",
) -> Table:
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
    data = pd.read_csv(comparison, dtype={"value": str, "best": str})
    cohorts = data[data["cells"] == "cohorts"]
    grids = []
    for model in models:
        mine = cohorts[cohorts["model"] == model]
        columns = {metric: _best_run(mine[mine["metric"] == metric], BETTER[metric]) for metric in _METRICS}
        gaps = mine[mine["metric"] == "macro_f1"].drop_duplicates("value").set_index("value")
        rows = [
            {
                first: Cell((values or {}).get(value, value)),
                **{name: columns[metric][value] for metric, name in _METRICS.items()},
                "difference of macro-F1": _to_reference(gaps.loc[value]),
            }
            for value in map(str, dict.fromkeys(cohorts["value"]))
        ]
        grids.append(grid(rows, heading=title_of(model)))
    told = [f"{_INTERVALS} {_BEST}", *notes, *([SHORT.format(short)] if short else [])]
    return Table(title, data, grids, told)


_BEST = "Of the runs compared, the best is bold too (log loss and ECE: the least)."


def _best_run(rows: pd.DataFrame, better: int) -> dict[str, Cell]:
    """Return the cells of one metric by the value of the setting."""
    rows = rows.drop_duplicates("value").set_index("value")
    cells = {str(value): Cell(r["estimate"], r["low"], r["high"]) for value, r in rows.iterrows()}
    references = [str(value) for value, r in rows.iterrows() if _is_reference(r)]
    paired = {
        (str(value), reference): (r["difference_low"], r["difference_high"])
        for reference in references[:1]
        for value, r in rows.iterrows()
    }
    paired |= {(str(value), str(r["best"])): (r["behind_low"], r["behind_high"]) for value, r in rows.iterrows()}
    return mark_best(cells, better, paired)


def _is_reference(row: pd.Series[Any]) -> bool:
    return bool(row["difference"] == 0 and row["difference_low"] == 0 and row["difference_high"] == 0)


def _to_reference(row: pd.Series[Any]) -> Cell:
    if _is_reference(row):
        return Cell("reference")
    return difference(row["difference"], row["difference_low"], row["difference_high"])


def seeds(comparison: str | Path, *, short: str) -> Table:
    """Lay out how much the numbers on the cohorts change with the seed alone: mean, standard deviation, range.

    ``comparison`` is a table of :func:`nuclass.evaluation.ablation.spread`.
    """
    data = pd.read_csv(comparison)
    cohorts = data[data["cells"] == "cohorts"]
    rows = []
    for model in dict.fromkeys(cohorts["model"]):
        row = {"model": Cell(title_of(str(model))), "runs": Cell()}
        for metric, name in _METRICS.items():
            found = cohorts[(cohorts["model"] == model) & (cohorts["metric"] == metric)].iloc[0]
            row["runs"] = Cell(int(found["runs"]))
            row[name] = Cell(found["mean"], found["min"], found["max"], spread=found["sd"])
        rows.append(row)
    runs = int(cohorts["runs"].max())
    notes = [
        "Mean ± standard deviation of runs that differ in the seeds of training alone, on the same cohorts; in "
        "brackets the least and the most. The context features are shared."
        + (
            f" Two settings that differ by less than about {seed_noise(1.0, runs):.1f} standard deviations (√2 times "
            f"Student's t of {runs} seeds) cannot be told apart by one run each."
            if runs > 1
            else ""
        ),
        *([SHORT.format(short)] if short else []),
    ]
    return Table("What the seed changes", data, [grid(rows)], notes)


def left_out(results: Sequence[str | Path], *, short: str = "") -> Table:
    """Lay out models that never saw an organ on that organ's cells, for each way of using the organ.

    ``results`` are files of :func:`nuclass.evaluation.ablation.judge_left_out`.
    """
    records: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for path in results:
        found = read_json(path)
        organ, cells = found["organ"], {}
        for metric in ("macro_f1", "accuracy", "log_loss"):
            values = {name: Cell(*_ends(mine[metric])) for name, mine in found["models"].items()}
            cells[metric] = mark_best(values, BETTER[metric], to_best(found["behind"], metric))
        for name, mine in found["models"].items():
            mode = name.split()[-1]
            gap = next((d for key, d in found["differences"].items() if key.endswith(f"-{name}")), None)
            record = {
                "organ": organ,
                "mode": mode,
                "n_cells": found["n_cells"],
                "n_outside": sum(found["outside"].values()),
            }
            for metric in cells:
                record |= {f"{metric}{end}": mine[metric][key] for key, end in _ENDS.items()}
            if gap is not None:
                record |= {f"film_minus{end}": gap["macro_f1"][key] for key, end in _ENDS.items()}
            records.append(record)
            rows.append(
                {
                    "organ": organ,
                    "use of the organ": ORGAN_USES.get(mode, mode),
                    "cells": int(record["n_cells"]),
                    **{_METRICS[metric]: column[name] for metric, column in cells.items()},
                    _FILM_MINUS: Cell() if gap is None else difference(*_ends(gap["macro_f1"])),
                }
            )
    notes = [
        "Local models trained without any slide of the organ, judged on that organ's cohorts and on the val and "
        "test cells of its training slides. The organ is unknown to them. Cells of classes that occur nowhere else are "
        "left out, and counted in the CSV (`n_outside`).",
        f"{_INTERVALS} The best of each organ is bold too (log loss: the least).",
        *([SHORT.format(short)] if short else []),
    ]
    empty = "No organ is left out (`ablations.leave_out` is empty)."
    return Table("An organ that was never seen", pd.DataFrame(records), [grid(rows, left=2, empty=empty)], notes)


_AUDIT_TEXTS = "expected expected_on why verdict val_expected val_verdict idle".split()
_FILM_MINUS = "FiLM minus this, macro-F1"
_ENDS = {"value": "", "low": "_low", "high": "_high"}


def _ends(found: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    return found["value"], found["low"], found["high"]


def audit(source: str | Path, *, short: str) -> Table:
    """Lay out the effect of each flaw of the original; see :func:`nuclass.evaluation.audit.audit`."""
    data = pd.read_csv(source, keep_default_na=True)
    # A column without any text is read as numbers.
    data[_AUDIT_TEXTS] = data[_AUDIT_TEXTS].astype(object).fillna("")
    records = data.to_dict("records")
    flaws = [row for row in records if row["expected"]]
    theory = [{"switch": Cell(row["switch"], code=True), "why": row["idle"] or row["why"]} for row in flaws]
    notes = list(_AUDIT_NOTES)
    grids = [
        grid(map(_audit_row, records), texts=["expected", "verdict"]),
        grid(
            theory,
            left=2,
            wide={"why": 0.65},
            heading="What theory expects",
            empty="No flaw of the original was audited.",
        ),
    ]
    if short:
        notes.append(f"{SHORT.format(short)} But `policy_on_test` is of the study's own models.")
    return Table("Audit of the original's protocol", data, grids, notes)


_AUDIT_NOTES = (
    f"{_INTERVALS} This holds for *flatters by* too, which is not compared with what seeds differ by.",
    "Macro-F1 of the fused model (for `policy_on_test` the accuracy of the safety policy of the study's own models). "
    "*cohorts*: slides that nothing was trained or chosen on; the original's headline is of such slides. *minus "
    "corrected*: paired difference to the reference there. *val*: the cells that chose the models; the original's "
    "training logs, its comparison of FiLM with concatenation and its counts of who is right are of such cells. Where "
    "a flaw changes which cells these are, its difference is not paired, and of the classes that both have enough "
    "cells of. *optimism*: val minus cohorts. *flatters by*: how much more that is than the reference's, on the cells "
    "and classes that both have: *val minus corrected* less *minus corrected*, its interval by the normal "
    "approximation, for val and cohorts are other slides. `closed_set` and `policy_on_test` change how the cohorts are "
    "read, and flatter by their difference there.",
    "A flaw is *seen* where the interval of its difference leaves out 0 and the difference is larger than two runs "
    "that differ in the seed alone would show in 95 of 100 cases (√2 standard deviations of the seeds times Student's "
    "t, 4.30 with three seeds; column `seed_noise` of the CSV); the difference is that on the cells "
    "of the column *expected*. *no change* is as "
    "expected also where the study is too small to show one. For `released` the cohorts are read as a closed set, as "
    "the original reads them, and it is judged on the cohorts and on val.",
    "*changes nothing*: the reason stands under *What theory expects*. "
    "`test_as_val` acts where training slides have test cells "
    "(`splits.test` above 0), `unguarded_class_weights` only together with it, in `released`, where a class then has "
    "test cells and no train cells.",
)


def _audit_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    flaw = bool(row["expected"])
    judged = [(row["expected_on"], row["expected"], row["verdict"]), ("val", row["val_expected"], row["val_verdict"])]
    judged = [told for told in judged if told[1]]
    return {
        "switch": Cell(row["switch"], code=flaw),
        "cohorts": Cell(row["estimate"], row["low"], row["high"]),
        "minus corrected": _audit_difference(row) if flaw else Cell(),
        "val": Cell(row["val"], row["val_low"], row["val_high"]),
        "val minus corrected": _audit_difference(row, "val_difference") if flaw else Cell(),
        "optimism": difference(row["optimism"]),
        "flatters by": _audit_difference(row, "flattery") if flaw else Cell(),
        "expected": "; ".join(f"{where}: {expected}" for where, expected, _ in judged),
        "verdict": judged[0][2] if len(judged) == 1 else "; ".join(f"{where}: {told}" for where, _, told in judged),
    }


def _audit_difference(row: Mapping[Any, Any], name: str = "difference") -> Cell:
    if row["idle"] and row[name] == 0:
        return Cell("0 (idle)")
    return difference(*(row[f"{name}{end}"] for end in _ENDS.values()))
