"""Compare runs of the training with a reference run: on the cohorts, and on the val cells that chose the models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.names import FUSED, GATE, GLOBAL, LOCAL, TEST, VAL
from nuclass.core.progress import Progress
from nuclass.evaluation.bootstrap import paired_bootstrap, spatial_blocks
from nuclass.evaluation.metrics import ece, macro_classes
from nuclass.evaluation.predictions import Predictions, read_models, read_predictions

COHORT_CELLS, VAL_CELLS = "cohorts", "val"
METRICS = ("macro_f1", "accuracy", "log_loss")
COLUMNS = (
    "group run value model cells n_cells metric estimate low high difference difference_low difference_high paired "
    "best behind behind_low behind_high"
).split()
_NAMES = {LOCAL: LOCAL, GLOBAL: GLOBAL, GATE: FUSED}


@dataclass(frozen=True)
class Run:
    """A run's predictions.

    Attributes
    ----------
    name, group, value
        As of :class:`nuclass.core.variants.Variant`.
    cohorts, val
        Model (``local``, ``global``, ``gate``) -> prediction tables, of the cohorts and of the training slides.
    test_as_val
        Whether test cells chose its models, see :func:`read_val`.
    gate_metrics
        The gate's ``metrics.json``; empty for a run without a gate.
    """

    name: str
    group: str
    value: str
    cohorts: Mapping[str, Sequence[str]]
    val: Mapping[str, Sequence[str]]
    test_as_val: bool = False
    gate_metrics: str = ""


@dataclass(frozen=True)
class Options:
    """How intervals are made; see :func:`nuclass.evaluation.bootstrap.paired_bootstrap`."""

    mpp: float
    block_um: float
    draws: int
    seed: int
    min_support: int
    bins: int

    def bootstrap(
        self,
        models: Mapping[str, Predictions],
        pairs: Sequence[tuple[str, str]] = (),
        groups: Mapping[str, Sequence[str]] | None = None,
        ranked: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Return intervals of predictions of the same cells, placed where the first has them, and of differences."""
        first = next(iter(models.values()))
        x, y = (first.table[name].to_numpy() * self.mpp for name in ("x_px", "y_px"))
        return paired_bootstrap(
            first.y,
            {name: found.probs for name, found in models.items()},
            spatial_blocks(first.table["slide"], x, y, self.block_um),
            first.classes,
            pairs=pairs,
            groups=groups,
            ranked=ranked,
            draws=self.draws,
            seed=self.seed,
            min_support=self.min_support,
            bins=self.bins,
        )


def read_val(paths: Sequence[str | Path], *, test_as_val: bool = False) -> Predictions:
    """Return the predictions of the val cells of training slides.

    With ``test_as_val``, the flaw of the original, they are the test cells of every slide that has some: these chose
    the models then, and val cells beside them did not.
    """
    found = read_predictions(paths)
    split = found.table["split"].astype(str)
    chosen = split == VAL
    if test_as_val:
        tested = found.table["slide"].isin(found.table.loc[split == TEST, "slide"])
        chosen = (split == TEST) | (chosen & ~tested)
    return found.take(np.flatnonzero(chosen))


def read_pair(reference: Sequence[str | Path], run: Sequence[str | Path]) -> tuple[Predictions, Predictions]:
    """Return the predictions of a reference and of a run, on the same cells.

    Under ``test_as_val`` a run may know a class that no train cell has and the reference does not. Its cells are then
    left out, as they are of the reference, and the reference gives it a probability of 0.

    Raises
    ------
    UserError
        The runs differ in their cells or labels, or the run lacks a class of the reference.
    """
    base, found = read_predictions(reference), read_predictions(run)
    if found.classes == base.classes or not set(base.classes) < set(found.classes):
        both = read_models({"reference": reference, "run": run})
        return both["reference"], both["run"]
    place = np.array([found.classes.index(name) for name in base.classes])
    found = found.take(np.flatnonzero(np.isin(found.y, place)))
    probs = np.zeros((len(base.y), len(found.classes)))
    probs[:, place] = base.probs
    base = Predictions(found.classes, base.table, place[base.y], probs, base.outside, unlabelled=base.unlabelled)
    rows = found.keys.get_indexer(base.keys)
    if len(found.y) != len(base.y) or (rows < 0).any() or not np.array_equal(found.y[rows], base.y):
        raise UserError(
            "Two runs were evaluated on different cells, or on other labels of them",
            where=[str(path) for path in run],
            found=f"{len(found.y)} cells, {int((rows >= 0).sum())} of them also in the reference",
            expected=f"the {len(base.y)} cells of the reference, with its labels",
            fix="predict both for the same slides and labels",
        )
    return base, found.take(rows)


def compare_runs(runs: Sequence[Run], reference: Run, options: Options, *, ranked: bool = False) -> pd.DataFrame:
    """Return the metrics of each run with intervals, and its differences to the reference.

    Parameters
    ----------
    runs
        Their models are judged as far as they have any; a run whose tables are the reference's differs by exactly 0.
    reference
        The run the others are compared with.
    ranked
        Whether runs are also compared with the best of them, on the cohorts: ``best`` (its ``value``), ``behind`` and
        its interval, paired. All are then held in memory at once.

    Returns
    -------
    DataFrame
        One row a run, model (``local global fused``), set of cells (``cohorts``, ``val``) and metric (``macro_f1
        accuracy log_loss ece``), with the columns :data:`COLUMNS`. Differences on the same cells are paired: both
        runs see the same draws of blocks. Where a run has other val cells its difference is that of two independent
        estimates, the interval by :func:`independent_difference`, and macro-F1 is compared over the classes that
        both have ``min_support`` cells of, for a mean over other classes tells of classes. A run with ``test_as_val``
        is compared on the cells that chose it. The calibration error has no interval.

    Raises
    ------
    UserError
        A run has other cohort cells or labels than the reference, or lacks a class of it.
    """
    rows: list[dict[str, Any]] = []
    for model in (LOCAL, GLOBAL, GATE):
        for cells in (COHORT_CELLS, VAL_CELLS):
            chosen = [run for run in runs if model in getattr(run, cells)]
            if chosen:
                found = list(_compare_model(chosen, reference, model, cells, options))
                rows += _ranked(found, chosen, model, options) if ranked and cells == COHORT_CELLS else found
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _compare_model(
    runs: Sequence[Run], reference: Run, model: str, cells: str, options: Options
) -> Iterator[dict[str, Any]]:
    base_paths = list(getattr(reference, cells)[model])
    base = read_predictions(base_paths) if cells == COHORT_CELLS else read_val(base_paths)
    own = options.bootstrap({"reference": base})["models"]["reference"]
    with Progress(len(runs), f"comparing runs, {_NAMES[model]} on {cells}", "runs") as progress:
        for run in runs:
            told = {"group": run.group, "run": run.name, "value": run.value, "model": _NAMES[model], "cells": cells}
            paths = list(getattr(run, cells)[model])
            if paths == base_paths:
                yield from _rows(told, base, own, dict.fromkeys(METRICS, _ZERO), True, options, base)
            else:
                yield from _compare_one(told, paths, base_paths, base, run.test_as_val, options)
            progress.advance()


_ZERO = {"value": 0.0, "low": 0.0, "high": 0.0}


def _compare_one(
    told: Mapping[str, Any],
    paths: Sequence[str],
    base_paths: Sequence[str],
    base: Predictions,
    test_as_val: bool,
    options: Options,
) -> Iterator[dict[str, Any]]:
    if told["cells"] == COHORT_CELLS:
        base, found = read_pair(base_paths, paths)
    else:
        found = read_val(paths, test_as_val=test_as_val)
        base = read_val(base_paths, test_as_val=True) if test_as_val else base
        rows = found.keys.get_indexer(base.keys)
        found = found.take(rows) if len(rows) == len(found.y) and (rows >= 0).all() else found
    paired = found.classes == base.classes and found.keys.equals(base.keys) and np.array_equal(found.y, base.y)
    if paired:
        result = options.bootstrap({"reference": base, "run": found}, [("run", "reference")])
        mine, difference = result["models"]["run"], result["differences"]["run-reference"]
    else:
        mine, difference = _compare_apart(found, base, options)
    yield from _rows(told, found, mine, difference, paired, options, base)


def _compare_apart(
    found: Predictions, base: Predictions, options: Options
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Return the intervals of ``found``, and its differences to other cells."""
    both = sorted(_judged(found, options) & _judged(base, options))
    mine, theirs = (options.bootstrap({"one": one}, groups={"both": both})["models"]["one"] for one in (found, base))
    difference = {metric: independent_difference(mine[metric], theirs[metric]) for metric in METRICS}
    difference["macro_f1"] = independent_difference(mine["groups"]["both"], theirs["groups"]["both"])
    return mine, difference


def _judged(found: Predictions, options: Options) -> set[str]:
    return {found.classes[i] for i in macro_classes(found.y, len(found.classes), options.min_support)}


def independent_difference(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Return the difference of two independent estimates with a 95 % interval, by the normal approximation."""
    half = math.hypot(*((x["high"] - x["low"]) / 2 for x in (first, second)))
    value = first["value"] - second["value"]
    return {"value": value, "low": value - half, "high": value + half}


def _rows(
    told: Mapping[str, Any],
    found: Predictions,
    mine: Mapping[str, Any],
    difference: Mapping[str, Any],
    paired: bool,
    options: Options,
    base: Predictions,
) -> Iterator[dict[str, Any]]:
    common = {**told, "n_cells": len(found.y), "paired": paired}
    for metric in METRICS:
        gap = difference[metric]
        yield {
            **common,
            "metric": metric,
            **_named(mine[metric], "estimate", "low", "high"),
            **_named(gap, "difference", "difference_low", "difference_high"),
        }
    value = ece(found.y, found.probs, bins=options.bins)
    yield {
        **common,
        "metric": "ece",
        "estimate": value,
        "difference": value - ece(base.y, base.probs, bins=options.bins),
    }


def _named(interval: Mapping[str, float], *names: str) -> dict[str, float]:
    return dict(zip(names, (interval["value"], interval["low"], interval["high"]), strict=True))


def _ranked(rows: Sequence[dict[str, Any]], runs: Sequence[Run], model: str, options: Options) -> list[dict[str, Any]]:
    """Return the rows of runs on the cohorts with their differences to the best run of each metric."""
    found = read_models({run.name: list(run.cohorts[model]) for run in runs})
    behind = options.bootstrap(found, ranked=list(found))["behind"]
    values = {run.name: run.value for run in runs}
    out = []
    for row in rows:
        gap = behind[row["run"]].get(row["metric"])
        if gap is not None:
            row = {**row, "best": values[gap["best"]], **_named(gap, "behind", "behind_low", "behind_high")}
        out.append(row)
    return out


def spread(table: pd.DataFrame) -> pd.DataFrame:
    """Return how much numbers change with the seed alone.

    ``table`` is :func:`compare_runs` of runs that differ in their seed. One row a model, set of cells and metric:
    ``runs mean sd min max``; the standard deviation is that of a sample (n - 1).
    """
    groups = table.groupby(["model", "cells", "metric"], sort=False)["estimate"]
    found = groups.agg(runs="count", mean="mean", sd="std", min="min", max="max")
    return found.reset_index()


def judge_left_out(runs: Sequence[Run], organ: str, options: Options) -> dict[str, Any]:
    """Judge runs without an organ on that organ's cells; return intervals, and differences of the first.

    ``cohorts`` of each run holds the tables of that organ's cohorts and left-out training slides, model ``local``.
    Classes that the rest of the study lacks are no classes of the models; their cells are counted as outside.
    """
    models = read_models({run.value: list(run.cohorts[LOCAL]) for run in runs})
    names = list(models)
    pairs = [(names[0], other) for other in names[1:]]
    result = options.bootstrap(models, pairs, ranked=names)
    first = models[names[0]]
    return result | {"organ": organ, "outside": first.outside, "classes": list(first.classes)}
