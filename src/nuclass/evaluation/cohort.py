"""Evaluate models on a cohort and write the files of ``results/evaluation/{model}/{cohort}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path, write_csv, write_json
from nuclass.core.log import get_logger
from nuclass.core.names import CELL_ID
from nuclass.core.readings import CLOSED, MAJORITY, OPEN, ORGAN_PRIOR
from nuclass.evaluation.bootstrap import Blocks, blocks_of_classes, paired_bootstrap, spatial_blocks
from nuclass.evaluation.leak import Seen, check_classes, check_no_overlap, check_study, read_seen
from nuclass.evaluation.metrics import (
    confusion,
    metrics,
    per_class,
    read_as,
    reliability,
    softmax,
)
from nuclass.evaluation.predictions import Predictions, read_predictions
from nuclass.evaluation.priors import majority, organ_prior, read_composition
from nuclass.evaluation.regions import by_region
from nuclass.evaluation.risk import risk_coverage, risk_summary

_log = get_logger(__name__)
METRICS, PER_CLASS, CONFUSION, RELIABILITY = "metrics.json", "per_class.csv", "confusion.csv", "reliability.csv"
RISK, ORGANS, REGIONS = "risk_coverage.csv", "organs.csv", "regions.csv"
CLASSES_USED, CLASS_F1, CLASS_ACC = "class_names_used.json", "aligned_per_class_f1.csv", "aligned_per_class_acc.csv"
_OF_ORGAN = "accuracy macro_f1 weighted_f1 balanced_accuracy top2_accuracy log_loss brier ece".split()
_OF_PRIOR = "accuracy macro_f1 weighted_f1 balanced_accuracy top2_accuracy log_loss brier".split()


@dataclass(frozen=True)
class Rules:
    """How numbers are made, as the section ``evaluation`` of the configuration has it; see docs/evaluation.md."""

    bins: int = 15
    min_support: int = 1
    block_um: float = 150.0
    draws: int = 1000
    seed: int = 42
    region_um: float = 300.0
    closed_set: bool = False

    @classmethod
    def of(cls, evaluation: Mapping[str, Any], *, closed_set: bool = False) -> Rules:
        """Return the rules of a configuration's section ``evaluation``."""
        names = {"bins": "ece_bins", "draws": "bootstrap"}
        keys = {name: names.get(name, name) for name in cls.__dataclass_fields__ if name != "closed_set"}
        return cls(**{name: evaluation[key] for name, key in keys.items() if key in evaluation}, closed_set=closed_set)


def evaluate_model(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    model: str,
    cohort: str,
    checkpoint: str | Path | None,
    patients: Mapping[str, str] | None = None,
    training: Mapping[str, str] | None = None,
    composition: str | Path | pd.DataFrame | None = None,
    mpp: float | None = None,
    rules: Rules | None = None,
    bins: int = 15,
    min_support: int = 1,
) -> dict[str, Any]:
    """Evaluate one model on the cells of the given prediction tables and write the cohort's files.

    Parameters
    ----------
    paths
        Prediction tables of the cohort's slides, with the ``.h5`` beside each.
    out
        Folder for ``metrics.json per_class.csv confusion.csv reliability.csv risk_coverage.csv organs.csv regions.csv
        aligned_per_class_f1.csv aligned_per_class_acc.csv class_names_used.json`` and, as numpy arrays in
        one order of cells, ``embeddings logits probs labels preds cell_ids slides`` (and ``gates``).
        Labels and predictions are indices into the classes of ``metrics.json``; logits are
        uncalibrated, probabilities calibrated.
    model, cohort
        Names for the record.
    checkpoint
        The model's checkpoint, to rule out a leak; ``None`` only where there is none.
    patients
        Patient of each slide.
    training
        Organ of each training slide of the study, to rule out a checkpoint of another one.
    composition
        ``composition.csv`` of the study, for the baselines that know only class frequencies.
    mpp
        Micrometres per px of the positions; None for the checkpoint's. Without either there are no intervals and no
        regions.
    rules
        How numbers are made; None for the defaults with ``bins`` and ``min_support``.

    Returns
    -------
    dict
        What ``metrics.json`` holds; of a model trained with flaws of the original also these (``protocol``), and how
        many of the cells chose it (``n_chosen_by``, with ``test_as_val``).
    """
    rules = rules or Rules(bins=bins, min_support=min_support)
    found = read_predictions(paths, arrays=True)
    told: dict[str, Any] = {}
    if checkpoint is not None:
        seen = read_seen(checkpoint)
        told = check_fair(found, seen, patients=patients, training=training, where=paths, checkpoint=checkpoint)
        mpp = mpp or seen.mpp
    if found.logits is None or found.logits.shape != found.probs.shape:
        raise UserError(
            "Logits do not match the probabilities",
            where=paths,
            found=None if found.logits is None else found.logits.shape,
            expected=found.probs.shape,
        )
    head = {"model": model, "cohort": cohort, "slides": sorted(found.table["slide"].unique()), **told}
    summary = head | _judge(found, Path(out), rules, mpp, composition)
    _write_arrays(Path(out), found, rules)
    write_json(Path(out) / METRICS, summary)
    _log.info(
        "%s on %s: %d cells, accuracy %.3f, macro-F1 %.3f, log loss %.3f, ECE %.3f (%s set)",
        model, cohort, *(summary[key] for key in ("n_cells", "accuracy", "macro_f1", "log_loss", "ece", "set")),
    )  # fmt: skip
    if summary["absent_classes"]:
        _log.info("%s has no cell of %s", cohort, ", ".join(summary["absent_classes"]))
    return summary


def check_fair(
    found: Predictions,
    seen: Seen,
    *,
    patients: Mapping[str, str] | None = None,
    training: Mapping[str, str] | None = None,
    where: Sequence[str | Path] = (),
    checkpoint: object = None,
) -> dict[str, Any]:
    """Raise when predictions may not be judged as those of a checkpoint; return what its protocol makes worth telling.

    They may not when classes or study differ (see :mod:`nuclass.evaluation.leak`), or the checkpoint has seen cells,
    slides or patients.
    """
    check_classes(found.classes, seen, where=", ".join(map(str, where)), checkpoint=checkpoint)
    flawed = "test_as_val" in seen.protocol
    chosen_by = check_no_overlap(found.table, seen.cells, patients=patients, where=checkpoint, test_as_val=flawed)
    if training is not None:
        check_study(seen, training, checkpoint=checkpoint)
    told: dict[str, Any] = {"protocol": list(seen.protocol)} if seen.protocol else {}
    return told | ({"n_chosen_by": chosen_by} if flawed else {})


def _judge(
    found: Predictions, folder: Path, rules: Rules, mpp: float | None, composition: str | Path | pd.DataFrame | None
) -> dict[str, Any]:
    """Compute everything, write the tables, and return the numbers of ``metrics.json``."""
    y, classes, closed = found.y, found.classes, rules.closed_set
    p = read_as(y, found.probs, closed=closed)
    summary = {
        "n_outside": sum(found.outside.values()),
        "outside": found.outside,
        "unlabelled": found.unlabelled,
        **metrics(y, found.probs, classes, bins=rules.bins, min_support=rules.min_support, closed=closed),
        "risk": risk_summary(y, p),
        "before_calibration": _before(found, folder, rules),
    }
    table = per_class(y, found.probs, classes, closed=closed)
    if mpp is None:
        _log.warning("No micrometres per px are known: there are no intervals, organs and regions")
    else:
        intervals, organs = _intervals(found, rules, mpp)
        regions, told = by_region(found.table, y, p, mpp=mpp, region_um=rules.region_um, bins=rules.bins)
        f1 = intervals["models"][summary["set"]]["f1"]
        table = table.assign(
            **{f"f1_{end}": [f1.get(c, {}).get(end, np.nan) for c in classes] for end in ("low", "high")},
            blocks=blocks_of_classes(y, _blocks(found, rules, mpp), len(classes)),
        )
        summary |= {"intervals": _told(intervals, summary["set"]), "regions": told}
        write_csv(folder / ORGANS, organs)
        write_csv(folder / REGIONS, regions)
    if composition is not None:
        summary["baselines"] = _baselines(found, rules, read_composition(composition))
    write_csv(folder / PER_CLASS, table)
    write_csv(folder / CONFUSION, confusion(y, p.argmax(axis=1), classes))
    write_csv(folder / RISK, risk_coverage(y, p))
    _write_aligned(folder, table, closed=closed)
    return summary


def _before(found: Predictions, folder: Path, rules: Rules) -> dict[str, float]:
    """Write the reliability before and after calibration, and return what it was before."""
    before = read_as(found.y, softmax(np.asarray(found.logits)), closed=rules.closed_set)
    stages = {"before": before, "after": read_as(found.y, found.probs, closed=rules.closed_set)}
    tables = [reliability(found.y, p, bins=rules.bins).assign(stage=stage) for stage, p in stages.items()]
    write_csv(folder / RELIABILITY, pd.concat(tables, ignore_index=True))
    numbers = metrics(found.y, before, found.classes, bins=rules.bins, ranking=False)
    return {name: numbers[name] for name in ("ece", "ece_equal_mass", "log_loss", "brier")}


def _blocks(found: Predictions, rules: Rules, mpp: float) -> Blocks:
    x, y = (found.table[name].to_numpy(np.float64) * mpp for name in ("x_px", "y_px"))
    return spatial_blocks(found.table["slide"], x, y, rules.block_um)


def _intervals(found: Predictions, rules: Rules, mpp: float) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return the bootstrap of both readings and their difference, and the numbers of each organ."""

    def bootstrap(part: Predictions, readings: Mapping[str, bool]) -> dict[str, Any]:
        return paired_bootstrap(
            part.y,
            {name: read_as(part.y, part.probs, closed=closed) for name, closed in readings.items()},
            _blocks(part, rules, mpp),
            part.classes,
            pairs=[(CLOSED, OPEN)] if len(readings) == 2 else [],
            draws=rules.draws,
            seed=rules.seed,
            min_support=rules.min_support,
            bins=rules.bins,
        )

    rows = []
    for organ in sorted(found.table["organ"].unique()):
        part = found.take(np.flatnonzero((found.table["organ"] == organ).to_numpy()))
        result = bootstrap(part, {"one": rules.closed_set})
        numbers = {
            name if end == "value" else f"{name}_{end}": result["models"]["one"][name][end]
            for name in _OF_ORGAN
            for end in ("value", "low", "high")
        }
        slides = part.table["slide"].nunique()
        rows.append(
            {"organ": organ, "slides": slides, "cells": len(part.y), "classes": len(np.unique(part.y)), **numbers}
        )
    return bootstrap(found, {OPEN: False, CLOSED: True}), pd.DataFrame(rows)


def _told(result: Mapping[str, Any], reading: str) -> dict[str, Any]:
    """Return the part of the bootstrap that ``metrics.json`` holds: the headline, and what the closed set gains."""
    intervals = {key: value for key, value in result["models"][reading].items() if key not in ("f1", "groups")}
    gain = {key: result["differences"][f"{CLOSED}-{OPEN}"][key] for key in ("accuracy", "macro_f1")}
    return {**intervals, "closed_minus_open": gain, "draws": result["draws"], "blocks": result["blocks"]}


def _baselines(found: Predictions, rules: Rules, composition: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return what the class frequencies of the training cells reach, of all and by organ."""
    priors = {
        MAJORITY: majority(len(found.y), found.classes, composition),
        ORGAN_PRIOR: organ_prior(found.table["organ"], found.classes, composition),
    }
    out = {}
    for name, p in priors.items():
        numbers = metrics(
            found.y, p, found.classes, min_support=rules.min_support, closed=rules.closed_set, ranking=False
        )
        out[name] = {key: numbers[key] for key in _OF_PRIOR}
    return out


def _write_aligned(folder: Path, table: pd.DataFrame, *, closed: bool) -> None:
    """Write F1 and recall of the closed set by class, under the names of the original's files."""
    used = table[table["support"] > 0]
    ending = "" if closed else f"_{CLOSED}"
    write_json(folder / CLASSES_USED, used["class"].tolist())
    for file, name, column in ((CLASS_F1, "f1", "f1"), (CLASS_ACC, "accuracy", "recall")):
        numbers = pd.DataFrame({"class": used["class"], name: used[column + ending], "support": used["support"]})
        write_csv(folder / file, numbers)


def _write_arrays(folder: Path, found: Predictions, rules: Rules) -> None:
    p = read_as(found.y, found.probs, closed=rules.closed_set)
    arrays: dict[str, np.ndarray | None] = {
        "embeddings": found.embeddings,
        "logits": found.logits,
        "probs": p.astype(np.float32),
        "labels": found.y,
        "preds": p.argmax(axis=1),
        "cell_ids": found.table[CELL_ID].to_numpy(dtype=str),
        "slides": found.table["slide"].to_numpy(dtype=str),
    }
    if "gate" in found.table:
        arrays["gates"] = found.table["gate"].to_numpy(np.float32)
    for name, values in arrays.items():
        if values is not None:
            with atomic_path(folder / f"{name}.npy") as temporary:
                np.save(temporary, values, allow_pickle=False)
