"""Evaluate models on a cohort and write the files of ``results/evaluation/{model}/{cohort}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path, write_csv, write_json
from nuclass.core.log import get_logger
from nuclass.core.names import CELL_ID
from nuclass.evaluation.leak import check_classes, check_no_overlap, read_seen
from nuclass.evaluation.metrics import confusion, ece, metrics, per_class, reliability, softmax
from nuclass.evaluation.predictions import Predictions, read_predictions

_log = get_logger(__name__)
METRICS, PER_CLASS, CONFUSION, RELIABILITY = "metrics.json", "per_class.csv", "confusion.csv", "reliability.csv"


def evaluate_model(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    model: str,
    cohort: str,
    checkpoint: str | Path | None,
    patients: Mapping[str, str] | None = None,
    bins: int = 15,
    min_support: int = 1,
) -> dict[str, Any]:
    """Evaluate one model on the cells of the given prediction tables and write the cohort's files.

    Parameters
    ----------
    paths
        Prediction tables of the cohort's slides, with the ``.h5`` beside each.
    out
        Folder for ``metrics.json per_class.csv confusion.csv reliability.csv`` and, as numpy arrays in
        one order of cells, ``embeddings logits probs labels preds cell_ids slides`` (and ``gates``).
        Labels and predictions are indices into the classes of ``metrics.json``; logits are
        uncalibrated, probabilities calibrated.
    model, cohort
        Names for the record.
    checkpoint
        The model's checkpoint, to rule out a leak; ``None`` only where there is none.
    patients
        Patient of each slide.

    Returns
    -------
    dict
        What ``metrics.json`` holds; of a model trained with flaws of the original also these (``protocol``), and how
        many of the cells chose it (``n_chosen_by``, with ``test_as_val``).
    """
    found = read_predictions(paths, arrays=True)
    told: dict[str, Any] = {}
    if checkpoint is not None:
        seen = read_seen(checkpoint)
        check_classes(found.classes, seen, where=", ".join(map(str, paths)), checkpoint=checkpoint)
        flawed = "test_as_val" in seen.protocol
        chosen_by = check_no_overlap(found.table, seen.cells, patients=patients, where=checkpoint, test_as_val=flawed)
        told |= {"protocol": list(seen.protocol)} if seen.protocol else {}
        told |= {"n_chosen_by": chosen_by} if flawed else {}
    if found.logits is None or found.logits.shape != found.probs.shape:
        raise UserError(
            "Logits do not match the probabilities",
            where=paths,
            found=None if found.logits is None else found.logits.shape,
            expected=found.probs.shape,
        )
    folder = Path(out)
    before = softmax(found.logits)
    summary = {
        "model": model,
        "cohort": cohort,
        "slides": sorted(found.table["slide"].unique()),
        **told,
        "n_outside": sum(found.outside.values()),
        "outside": found.outside,
        **metrics(found.y, found.probs, found.classes, bins=bins, min_support=min_support),
        "before_calibration": {
            "ece": ece(found.y, before, bins=bins),
            "ece_equal_mass": ece(found.y, before, bins=bins, equal_mass=True),
            "log_loss": _log_loss(found.y, before),
        },
    }
    write_csv(folder / PER_CLASS, per_class(found.y, found.probs, found.classes))
    write_csv(folder / CONFUSION, confusion(found.y, found.predicted, found.classes))
    stages = {"before": before, "after": found.probs}
    tables = [reliability(found.y, p, bins=bins).assign(stage=stage) for stage, p in stages.items()]
    write_csv(folder / RELIABILITY, pd.concat(tables, ignore_index=True))
    _write_arrays(folder, found)
    write_json(folder / METRICS, summary)
    _log.info(
        "%s on %s: %d cells, accuracy %.3f, macro-F1 %.3f, log loss %.3f, ECE %.3f",
        model,
        cohort,
        summary["n_cells"],
        summary["accuracy"],
        summary["macro_f1"],
        summary["log_loss"],
        summary["ece"],
    )
    return summary


def _log_loss(y: np.ndarray, probs: np.ndarray) -> float:
    return float(-np.log(np.clip(probs[np.arange(len(y)), y], np.finfo(np.float64).eps, 1)).mean())


def _write_arrays(folder: Path, found: Predictions) -> None:
    arrays: dict[str, np.ndarray | None] = {
        "embeddings": found.embeddings,
        "logits": found.logits,
        "probs": found.probs.astype(np.float32),
        "labels": found.y,
        "preds": found.predicted,
        "cell_ids": found.table[CELL_ID].to_numpy(dtype=str),
        "slides": found.table["slide"].to_numpy(dtype=str),
    }
    if "gate" in found.table:
        arrays["gates"] = found.table["gate"].to_numpy(np.float32)
    for name, values in arrays.items():
        if values is not None:
            with atomic_path(folder / f"{name}.npy") as temporary:
                np.save(temporary, values, allow_pickle=False)
