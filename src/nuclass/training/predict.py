"""Predict one slide with all three models and write their tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path, write_parquet
from nuclass.core.log import get_logger
from nuclass.core.names import GATE, GLOBAL, LOCAL, TEST, TRAIN, VAL, probability_columns
from nuclass.data.study import Study
from nuclass.data.training_cells import by_place
from nuclass.data.vocabulary import UNKNOWN, Vocabulary
from nuclass.models.gate import FusedModel, mix
from nuclass.models.losses import EPSILON
from nuclass.training.branches import Branches, BranchOutputs, feature_attributes, state_hash
from nuclass.training.checkpoint import load_checkpoint, same_names
from nuclass.training.config import parse_models
from nuclass.training.restore import restore_gate

_log = get_logger(__name__)


@dataclass(frozen=True)
class Prediction:
    """One model's output for N cells.

    Attributes
    ----------
    probabilities, logits
        (N, C) float32, calibrated and not.
    embeddings
        Parts of the embedding, side by side, (N, D) float16 each.
    gate
        The weight of the global model, (N,), where there is one.
    """

    probabilities: Tensor
    logits: Tensor
    embeddings: tuple[Tensor, ...]
    gate: Tensor | None = None


class Predictor:
    """All three trained models together.

    Parameters
    ----------
    models
        Content of a model file; only ``predict`` matters.
    checkpoints
        ``best.ckpt`` of ``local``, ``global`` and ``gate``; the gate must have been trained on these two.

    Raises
    ------
    UserError
        When the checkpoints do not belong together.
    """

    def __init__(self, models: dict[str, Any], checkpoints: dict[str, Path]) -> None:
        self.branches = Branches(checkpoints[LOCAL], checkpoints[GLOBAL], parse_models(models).predict)
        self.gate_checkpoint = load_checkpoint(checkpoints[GATE], GATE)
        for key in ("classes", "organs"):
            same_names(
                self.gate_checkpoint[key],
                self.branches.local[key],
                key,
                where=checkpoints[GATE],
                problem=f"The gate was trained for other {key} than the local and the global model",
                fix="train the gate again",
            )
        found = {LOCAL: state_hash(self.branches.model_a), GLOBAL: state_hash(self.branches.model_b)}
        for name, value in found.items():
            if self.gate_checkpoint["parents"][name] != value:
                raise UserError(
                    f"The gate was trained on another {name} model",
                    where=checkpoints[GATE],
                    found=f"weights {self.gate_checkpoint['parents'][name]}",
                    expected=f"weights {value} of {checkpoints[name]}",
                    fix="train the gate again",
                )
        self.gate = restore_gate(self.gate_checkpoint).to(self.branches.device)
        self.smaller = bool(self.gate_checkpoint.get("protocol", {}).get("smaller_gate_context"))

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the probabilities."""
        return list(self.branches.vocabulary.classes)

    @property
    def gate_temperatures(self) -> tuple[float, float]:
        """Temperatures of the local and the global logits that the gate weighs."""
        own = self.gate_checkpoint.get("temperatures")
        return (float(own[LOCAL]), float(own[GLOBAL])) if own else self.branches.temperatures

    def predict(self, frame: pd.DataFrame, study: Study) -> dict[str, Prediction]:
        """Return the predictions of ``local``, ``global`` and ``gate`` for the cells of ``frame``.

        Cells may have any class; a slide's organ that the models do not know counts as unknown. Both are told.
        """
        for checkpoint in (self.branches.local, self.branches.global_):
            check_unseen(frame, checkpoint)
        tell_unknown(frame, self.branches.vocabulary)
        dataset = self.branches.dataset(frame, study, views=False)
        if self.smaller:
            self._check_smaller(frame, study)
            dataset.add("gate_context", self.branches.context(frame, study, smaller=True))
        kept: dict[str, Tensor] = {}
        for batch, out in self.branches.run(dataset, description="predicting"):
            for name, values in self._rows(batch, out).items():
                if name not in kept:
                    kept[name] = values.new_empty((len(frame), *values.shape[1:]), device="cpu")
                kept[name][batch["index"]] = values.cpu()
        temperature_a, temperature_b = self.branches.temperatures
        temperature = float(self.gate_checkpoint["temperature"])
        halves = (kept["features_a"], kept.get("gate_features", kept["features_b"]))
        return {
            LOCAL: Prediction((kept["z_a"] / temperature_a).softmax(1), kept["z_a"], (kept["features_a"],)),
            GLOBAL: Prediction((kept["z_b"] / temperature_b).softmax(1), kept["z_b"], (kept["features_b"],)),
            GATE: Prediction((kept["log_p"] / temperature).softmax(1), kept["log_p"], halves, kept["gate"]),
        }

    @torch.inference_mode()
    def _rows(self, batch: dict[str, Tensor], out: BranchOutputs) -> dict[str, Tensor]:
        """Return what is kept of a batch: features as float16, logits, the mixture, and the gate."""
        features_b, z_a, z_b = out.features_b, out.logits_a, out.logits_b
        context = batch["context"][:, 0]
        rows = {"features_a": out.features_a.half(), "features_b": features_b.half(), "z_a": z_a, "z_b": z_b}
        if self.smaller:
            context = batch["gate_context"][:, 0]
            features_b, z_b = self.branches.classify_b(out.local_b, context)
        if isinstance(self.gate, FusedModel):
            context = context.to(self.branches.device).float()
            features_b, z_a, z_b = self.gate.branches(out.features_a, out.local_b, context)
        if features_b is not out.features_b:
            rows["gate_features"] = features_b.half()
        temperature_a, temperature_b = self.gate_temperatures
        p_a, p_b = (z_a / temperature_a).softmax(1), (z_b / temperature_b).softmax(1)
        g = torch.sigmoid(self.gate(out.features_a, features_b, p_a, p_b))
        return {**rows, "log_p": (mix(p_a, p_b, g) + EPSILON).log(), "gate": g}

    def _check_smaller(self, frame: pd.DataFrame, study: Study) -> None:
        slides = [str(slide) for slide in frame["slide"].unique()]
        found = feature_attributes(study, slides, smaller=True)["input_px"]
        expected = self.gate_checkpoint["features"]["input_px"]
        if found != expected:
            raise UserError(
                "The gate's context features are of another size than it was trained on",
                where=study.gate_features(slides[0]),
                found=f"{found} px",
                expected=f"{expected} px",
                fix="compute them again",
            )


def predict_slide(
    models: dict[str, Any], study: Study, checkpoints: dict[str, Path], outputs: dict[str, Path]
) -> dict[str, int]:
    """Predict the labelled val and test cells of one slide with all three models.

    Parameters
    ----------
    study
        Its ``slides`` holds this one slide.
    outputs
        The Parquet file of each model; embeddings and logits go beside it (``.h5``).

    Returns
    -------
    Number of cells per split.

    Raises
    ------
    UserError
        When a cell to predict is among the cells a model was fitted to, or files do not fit each other.
    """
    from nuclass.data import load_cells

    slides = [{**row, "organ": known_organ(row)} for row in study.slides]
    frame = by_place(load_cells(slides, study.results, (VAL, TEST)))
    predictor = Predictor(models, checkpoints)
    for name, prediction in predictor.predict(frame, study).items():
        write_prediction(outputs[name], frame, prediction, predictor.classes)
    return {str(key): int(n) for key, n in frame["split"].astype(object).value_counts().items()}


def known_organ(row: dict[str, Any]) -> str:
    """Return the organ of a row of the slide sheet, ``unknown`` where there is none."""
    organ = row.get("organ")
    return str(organ) if isinstance(organ, str) and organ.strip() else UNKNOWN


def tell_unknown(frame: pd.DataFrame, vocabulary: Vocabulary) -> None:
    """Log the organs and the classes of cells that the models do not know."""
    known = [name for name in vocabulary.organs if name != UNKNOWN]
    others = frame["organ"].astype(object)[~frame["organ"].isin(known)].value_counts()
    if UNKNOWN in vocabulary.organs:
        for organ, n in others.items():
            _log.warning(
                "%d cells are of the organ '%s', which the models did not see (%s); they take it as unknown",
                n, organ, ", ".join(known),
            )  # fmt: skip
    labels = frame["class"].astype(object)
    other = labels[~labels.isin([*vocabulary.classes, ""])]
    if len(other):
        counts = ", ".join(f"{name} {n}" for name, n in other.value_counts().items())
        _log.warning(
            "%d of %d cells have a class that the models do not have, and get one of theirs: %s",
            len(other), len(frame), counts,
        )  # fmt: skip


def check_unseen(frame: pd.DataFrame, checkpoint: dict[str, Any]) -> None:
    """Raise when any cell of ``frame`` is among the checkpoint's training cells."""
    for slide, part in frame.groupby("slide", observed=True):
        fitted = checkpoint["cells"].get(str(slide), {}).get(TRAIN, ())
        both = part["cell_id"][part["cell_id"].isin(fitted)].tolist()
        if both:
            raise UserError(
                "Cells to predict were used in training",
                where=f"slide {slide}",
                found=f"{len(both)} cells, the first: {min(both)}",
                expected="none",
                fix="the splits changed after training: train the models again",
            )


def prediction_table(frame: pd.DataFrame, prediction: Prediction, classes: list[str]) -> pd.DataFrame:
    """Return one row a cell: who it is, where, its label, the prediction and every class's probability."""
    p = prediction.probabilities.double().numpy()
    table = pd.DataFrame(
        {name: frame[name].to_numpy() for name in ("cell_id", "slide", "organ", "split", "x_px", "y_px")}
    )
    table["label"] = frame["class"].to_numpy()
    table["prediction"] = np.array(classes, dtype=object)[p.argmax(1)]
    table["confidence"] = p.max(1)
    if prediction.gate is not None:
        table["gate"] = prediction.gate.double().numpy()
    return pd.concat([table, pd.DataFrame(p, columns=probability_columns(classes))], axis=1)


def write_prediction(path: Path, frame: pd.DataFrame, prediction: Prediction, classes: list[str]) -> None:
    """Write a model's table and, beside it, embeddings (float16) and uncalibrated logits (float32)."""
    write_parquet(path, prediction_table(frame, prediction, classes))
    with atomic_path(Path(path).with_suffix(".h5")) as temporary, h5py.File(temporary, "w") as file:
        ids = frame["cell_id"].astype(str).tolist()
        file.create_dataset("cell_id", data=np.array(ids, dtype=object), dtype=h5py.string_dtype())
        width = sum(part.shape[1] for part in prediction.embeddings)
        embeddings = file.create_dataset("embeddings", (len(frame), width), np.float16)
        first = 0
        for part in prediction.embeddings:
            embeddings[:, first : first + part.shape[1]] = part.numpy()
            first += part.shape[1]
        file.create_dataset("logits", data=prediction.logits.numpy().astype(np.float32))
        file.attrs["classes"] = classes
