"""Evaluate trained models on data sets of a list: predictions, metrics, one table; a stopped run goes on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nuclass
from nuclass.core.errors import UserError
from nuclass.core.files import read_json, sha256, write_csv, write_json
from nuclass.core.log import get_logger
from nuclass.core.names import GATE, GLOBAL, LOCAL, MODELS
from nuclass.evaluation.cohort import METRICS, Rules, evaluate_model
from nuclass.evaluation.holdout_cells import Prepared, cells_of, context_features, prepare
from nuclass.evaluation.holdouts import Holdout
from nuclass.evaluation.leak import Seen, check_no_overlap, read_seen

if TYPE_CHECKING:
    import pandas as pd

_log = get_logger(__name__)
PREDICTIONS, STATE, LABELS, WORK = "predictions.parquet", "state.json", "labels.json", ".work"
_COLUMNS = ("accuracy", "macro_f1", "weighted_f1", "balanced_accuracy")
_CALIBRATION = ("log_loss", "ece")


@dataclass(frozen=True)
class Options:
    """How data sets are evaluated.

    Attributes
    ----------
    ontology
        The table of labels and classes.
    device
        ``auto``, ``cpu`` or ``cuda``.
    batch
        Cells at once; None as the settings say.
    protocol
        Flaws of the original that are on while predicting, see :mod:`nuclass.core.protocol`.
    rules
        How numbers are made.
    cache_mb
        Decoded tiles kept in memory.
    patients
        Patient of each training slide, where known.
    """

    ontology: Path
    device: str = "auto"
    batch: int | None = None
    protocol: Mapping[str, bool] = field(default_factory=dict)
    rules: Rules = field(default_factory=Rules)
    cache_mb: int = 64
    patients: Mapping[str, str] = field(default_factory=dict)

    @property
    def accelerator(self) -> str:
        """The device as the settings of models call it."""
        return "gpu" if self.device == "cuda" else self.device

    def predict(self) -> dict[str, Any]:
        """Return what of a model file prediction needs."""
        section: dict[str, Any] = {"accelerator": self.accelerator}
        return {
            "predict": section | ({"batch_size": self.batch} if self.batch else {}),
            "protocol": dict(self.protocol),
        }


class Checkpoints:
    """The checkpoints that a model predicts with, read without their weights' values.

    Parameters
    ----------
    paths
        By model; one of them, or with ``gate`` all three.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        from nuclass.training.checkpoint import load_checkpoint

        self.paths = {name: Path(path) for name, path in paths.items()}
        self.data = {name: load_checkpoint(path, name) for name, path in self.paths.items()}
        self.seen: dict[str, Seen] = {name: read_seen(path) for name, path in self.paths.items()}
        self._hashes: dict[str, str] = {}

    @property
    def first(self) -> dict[str, Any]:
        """Any of them; classes, organs and scale are the same in all."""
        return next(iter(self.data.values()))

    @property
    def windows(self) -> dict[str, int]:
        """Sides of the windows; the global one as the global model has it, for a local model may serve several."""
        last = next((self.data[name] for name in (GLOBAL, GATE) if name in self.data), self.first)
        return dict(last["windows"])

    def hashes(self, names: Sequence[str]) -> dict[str, str]:
        """Return the SHA-256 of these files."""
        for name in names:
            if name not in self._hashes:
                self._hashes[name] = sha256(self.paths[name])
        return {name: self._hashes[name] for name in names}


def needed_for(model: str) -> tuple[str, ...]:
    """Return the models that a model predicts with."""
    return (LOCAL, GLOBAL, GATE) if model == GATE else (model,)


def find_checkpoints(ckpt: Path, model: str, given: Mapping[str, Path | None] | None = None) -> dict[str, Path]:
    """Return the checkpoints that a model predicts with, by model: its own, and with a gate the two it weighs.

    Parameters
    ----------
    ckpt, model
        A checkpoint, and the model that it is to be of.
    given
        Where the local and the global model of a gate lie; None or nothing looks beside the gate's folder, in
        ``../local/best.ckpt`` and ``../global/best.ckpt``.

    Raises
    ------
    UserError
        The file is no checkpoint of this model, or one that a gate needs is not there.
    """
    from nuclass.training.checkpoint import load_checkpoint

    load_checkpoint(ckpt, model)
    if model != GATE:
        return {model: ckpt}
    beside = ckpt.absolute().parent.parent
    paths = {name: (given or {}).get(name) or beside / name / "best.ckpt" for name in (LOCAL, GLOBAL)}
    missing = {name: path for name, path in paths.items() if not path.is_file()}
    if missing:
        raise UserError(
            f"The gate weighs the local and the global model, and of the {' and the '.join(missing)} model there is no "
            "checkpoint",
            where=ckpt,
            found="nothing at " + ", ".join(map(str, missing.values())),
            expected="the checkpoints of the models that the gate was trained on",
            fix="name them: " + " ".join(f"--{name} CKPT" for name in missing),
        )
    return {**paths, GATE: ckpt}


def evaluate_holdouts(
    checkpoints: Checkpoints, holdouts: Sequence[Holdout], out: Path, options: Options
) -> pd.DataFrame:
    """Predict and evaluate every data set with the models given; what is there from an earlier run is taken.

    Parameters
    ----------
    out
        ``NAME/MODEL/`` gets ``predictions.parquet predictions.h5`` and the files of
        :func:`nuclass.evaluation.cohort.evaluate_model`, ``NAME/labels.json`` what became of the labels. The running
        state, cells and context features lie in ``.work/``.

    Returns
    -------
    One row a data set and model, see :func:`summary_row`.

    Raises
    ------
    UserError
        Before anything is computed: a data set that cannot be read, that a model learnt from, or that has no cell of a
        class of the models.
    """
    models = [name for name in MODELS if name in checkpoints.paths]
    ready = [_ready(checkpoints, holdout, out, options) for holdout in holdouts]
    rows = []
    for number, prepared in enumerate(ready, start=1):
        name = prepared.holdout.name
        _log.info("%s, %d of %d: %d cells with a class", name, number, len(ready), prepared.labels["with_class"])
        write_json(out / name / LABELS, {"slide": prepared.slide, "organ": prepared.holdout.organ, **prepared.labels})
        found = _evaluate(checkpoints, models, prepared, out, options)
        rows += [summary_row(prepared, model, found[model]) for model in models]
    import pandas as pd

    table = pd.DataFrame(rows)
    stem = out / f"summary_{models[-1]}"
    write_csv(stem.with_suffix(".csv"), table)
    write_json(stem.with_suffix(".json"), table.to_dict("records"))
    return table


def _ready(checkpoints: Checkpoints, holdout: Holdout, out: Path, options: Options) -> Prepared:
    """Take in a data set, and check that the models may be judged by it."""
    first = checkpoints.first
    prepared = prepare(
        holdout,
        out / WORK / holdout.name,
        windows=checkpoints.windows,
        mpp=float(first["mpp"]),
        ontology=options.ontology,
        seen=checkpoints.seen,
        cache_mb=options.cache_mb,
    )
    cells = cells_of(prepared)
    cells = cells.assign(slide=cells["slide"].astype(str))
    for name, seen in checkpoints.seen.items():
        check_no_overlap(
            cells,
            seen.cells,
            patients=_patients(prepared, options),
            where=f"{holdout.name}: {checkpoints.paths[name]}",
            test_as_val="test_as_val" in seen.protocol,
        )
    known = cells["class"].astype(str).isin(first["classes"])
    if not known.any():
        raise UserError(
            f"No cell of '{holdout.name}' has a class of the model",
            where=holdout.root,
            found=", ".join(f"{name} {n}" for name, n in prepared.labels["classes"].items()),
            expected=", ".join(first["classes"]),
            fix="take it out of the list, or evaluate a model that knows these classes",
        )
    return prepared


def _patients(prepared: Prepared, options: Options) -> dict[str, str]:
    own = {prepared.slide: prepared.patient} if prepared.patient else {}
    return {**options.patients, **own}


def _evaluate(
    checkpoints: Checkpoints, models: Sequence[str], prepared: Prepared, out: Path, options: Options
) -> dict[str, dict[str, Any]]:
    """Return the metrics of a data set by model, computed or from an earlier run."""
    name = prepared.holdout.name
    keys = {model: _key(checkpoints, model, prepared, options) for model in models}
    found, todo = {}, []
    for model in models:
        folder = out / name / model
        if (folder / STATE).is_file() and read_json(folder / STATE) == keys[model] and (folder / METRICS).is_file():
            _log.info("%s: the evaluation of the %s model is there from an earlier run", name, model)
            found[model] = read_json(folder / METRICS)
        else:
            todo.append(model)
    if not todo:
        return found
    tables = {model: out / name / model / PREDICTIONS for model in todo}
    _predict(checkpoints, tables, prepared, out / WORK / name, options)
    for model in todo:
        found[model] = evaluate_model(
            [tables[model]],
            out / name / model,
            model=model,
            cohort=name,
            checkpoint=checkpoints.paths[model],
            patients=_patients(prepared, options),
            mpp=float(checkpoints.first["mpp"]),
            rules=options.rules,
        )
        write_json(out / name / model / STATE, keys[model])
    shutil.rmtree(out / WORK / name / "predict", ignore_errors=True)
    return found


def _predict(
    checkpoints: Checkpoints, tables: Mapping[str, Path], prepared: Prepared, work: Path, options: Options
) -> None:
    """Write the prediction tables of some models."""
    from nuclass.training.predict import predict_slide

    names = [name for name in MODELS if any(name in needed_for(model) for model in tables)]
    paths = {name: checkpoints.paths[name] for name in names}
    for model, table in tables.items():
        # An earlier result must not look like one of these inputs while it is being replaced.
        (table.parent / STATE).unlink(missing_ok=True)
        _log.info("%s: predicting with the %s model", prepared.holdout.name, model)
    if GLOBAL in names:
        data = {name: checkpoints.data[name] for name in names}
        prepared = context_features(
            prepared, work, paths, data, accelerator=options.accelerator, batch_size=options.batch
        )
    predict_slide(options.predict(), prepared.study, paths, tables, work / "predict")


def _key(checkpoints: Checkpoints, model: str, prepared: Prepared, options: Options) -> dict[str, Any]:
    """Return all that an evaluation depends on, as plain values."""
    return {
        "nuclass": nuclass.__version__,
        "checkpoints": checkpoints.hashes(needed_for(model)),
        "data": prepared.key,
        "organ": prepared.holdout.organ,
        "patients": _patients(prepared, options),
        "device": options.device,
        "batch": options.batch,
        "protocol": dict(options.protocol),
        "rules": asdict(options.rules),
    }


def summary_row(prepared: Prepared, model: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return one line of the summary.

    Names, organ and numbers of cells: all, with a class of the study, evaluated; then the scores. ``closed_`` ones are
    taken among the classes that occur, as the original does; all others among all classes of the model.
    """
    open_, closed = metrics["open_set"], metrics["closed_set"]
    return {
        "holdout": prepared.holdout.name,
        "model": model,
        "organ": prepared.holdout.organ,
        "cells": prepared.labels["cells"],
        "with_class": prepared.labels["with_class"],
        "evaluated": metrics["n_cells"],
        "classes": len(closed["classes"]),
        **{name: open_[name] for name in _COLUMNS},
        **{f"closed_{name}": closed[name] for name in _COLUMNS},
        **{name: metrics[name] for name in _CALIBRATION},
    }
