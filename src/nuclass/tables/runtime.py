"""The table on time and memory: what each stage and each training took."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.amounts import duration, memory
from nuclass.core.files import read_json
from nuclass.core.names import GATE, title
from nuclass.tables.layout import Cell, Table, grid

TOTAL = "total"
_STAGES = (
    "Jobs may run side by side, so the sum of their wall times is not how long one waits. CPU time (user and system), "
    "cores in use (CPU time a second) and peak memory (resident, 1 GiB = 2^30 bytes) are sampled by Snakemake, every "
    "half second at first and every 30 s later, so short peaks are not seen and the end of a job's CPU time is not "
    "counted. Each job counts with its last run. Baselines, ablations and the audit are not counted, nor in the total."
)
_TRAININGS = (
    "Trainings: time with validation, interrupted runs included; time an epoch and cells a second without validation. "
    "An epoch of the context backbone draws a number of windows from its cells, one of the gate sees each cell in "
    "several views. "
    "Memory is what the training recorded itself: of tensors on the GPU where it ran on one, else of the whole process "
    "(1 GB = 10^9 bytes)."
)
_NAMES = {"context": "Context backbone", GATE: "Gate"}
_NUMBERS = ("jobs", "seconds", "longest_seconds", "sampled", "cpu_seconds", "cores", "peak_mib")
_COSTS = ("model", "parameters", "cells", "epochs", "seconds", "seconds_per_epoch", "cells_per_second", "recorded_mb")


def training_costs(metrics: Mapping[str, str | Path], histories: Mapping[str, str | Path]) -> pd.DataFrame:
    """Return one row a training.

    Parameters
    ----------
    metrics
        Model -> its ``metrics.json``.
    histories
        Model -> its ``history.csv``; for a model that is not in it the history stands in its ``metrics.json``.

    Returns
    -------
    ``model parameters``, ``cells`` to train on, ``epochs`` begun; ``seconds`` to the last validation;
    ``seconds_per_epoch`` and ``cells_per_second`` of training alone; ``recorded_mb``, the peak, of 10^6 bytes. What a
    training without a history cannot tell is missing.
    """
    records = []
    for model, path in metrics.items():
        told = read_json(path)
        records.append({"model": model, **_cost(told, _history(told, histories.get(model)))})
    return pd.DataFrame(records, columns=list(_COSTS))


def _history(told: Mapping[str, Any], path: str | Path | None) -> pd.DataFrame:
    if path is None:
        return pd.DataFrame(told.get("history", []))
    try:
        return pd.read_csv(path)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()


def _cost(told: Mapping[str, Any], rows: pd.DataFrame) -> dict[str, Any]:
    known = {"parameters": told["parameters"], "cells": told.get("n_train", told.get("n_fit"))}
    if rows.empty:
        return known
    # The gate's fine-tuning with the heads is a phase of its own, whose clock starts again.
    phases = rows.groupby(rows["phase"] if "phase" in rows else [""] * len(rows), sort=False)
    epochs = int((phases["epoch"].max() + 1).sum())
    trained, seen = float(rows["train_seconds"].sum()), float(rows["train_cells"].sum())
    return known | {
        "epochs": epochs,
        "seconds": float(phases["seconds"].max().sum()),
        "seconds_per_epoch": told.get("seconds_per_epoch", trained / epochs),
        "cells_per_second": seen / trained if trained > 0 else None,
        "recorded_mb": float(rows["memory_mb"].max()),
    }


def runtime(stages: str | Path, metrics: Mapping[str, str | Path], histories: Mapping[str, str | Path]) -> Table:
    """Lay out what each stage took and what each training took.

    ``stages`` is the table of :func:`nuclass.evaluation.usage.summarise_usage`; ``metrics`` and ``histories`` are those
    of :func:`training_costs`. The CSV has both parts, told apart by the column ``part``.
    """
    found = pd.read_csv(stages, keep_default_na=False, na_values=dict.fromkeys(_NUMBERS, ""))
    costs = training_costs(metrics, histories)
    data = pd.concat([found.assign(part="stage"), costs.assign(part="training")], ignore_index=True)
    first = ["part", "stage", "model"]
    data = data[[*first, *[name for name in data if name not in first]]]
    data = data.astype(dict.fromkeys(["jobs", "sampled", "parameters", "cells", "epochs"], "Int64"))
    grids = [
        grid(map(_stage, found.to_dict("records")), texts=["longest job", "peak memory"], heading="Stages"),
        grid(map(_training, costs.to_dict("records")), heading="Trainings", empty="No model was trained."),
    ]
    return Table("Time and memory", data, grids, [_STAGES, _TRAININGS, *_missing(found)])


def _missing(found: pd.DataFrame) -> list[str]:
    rules = [text for text in found.loc[found["stage"] != TOTAL, "missing"] if text]
    return [f"Without a benchmark file, so not in these numbers: {'; '.join(rules)}."] if rules else []


def _stage(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        "stage": Cell(row["stage"], bold=row["stage"] == TOTAL),
        "jobs": int(row["jobs"]),
        "wall time, sum": duration(row["seconds"]),
        "longest job": _of_job(duration(row["longest_seconds"]), row["longest_job"]),
        "CPU time, sum": duration(row["cpu_seconds"]),
        "cores": Cell(row["cores"], digits=1),
        "peak memory": _of_job(memory(row["peak_mib"]), row["peak_job"]),
    }


def _of_job(text: str, job: str) -> Cell:
    return Cell(text, behind=job.removesuffix("/all").replace("/", " "))


def _training(row: Mapping[Any, Any]) -> dict[str, Any]:
    rate, peak = row["cells_per_second"], row["recorded_mb"]
    return {
        "model": _NAMES.get(row["model"], title(row["model"])),
        "parameters": int(row["parameters"]),
        "training cells": int(row["cells"]),
        "epochs": None if pd.isna(row["epochs"]) else int(row["epochs"]),
        "time": duration(row["seconds"]),
        "time an epoch": duration(row["seconds_per_epoch"]),
        "cells a second": None if pd.isna(rate) else round(rate),
        "memory recorded": Cell(peak / 1000, digits=2, unit="GB"),
    }
