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
from nuclass.models.gate import mix
from nuclass.models.losses import EPSILON
from nuclass.training.branches import Branches, state_hash
from nuclass.training.checkpoint import load_checkpoint, restore_gate
from nuclass.training.config import parse_models

_log = get_logger(__name__)


@dataclass(frozen=True)
class Prediction:
    """One model's output for N cells: calibrated probabilities, raw logits, embeddings, and the gate if it has one."""

    probabilities: Tensor
    logits: Tensor
    embeddings: Tensor
    gate: Tensor | None = None


class Predictor:
    """All three trained models together.

    Parameters
    ----------
    checkpoints
        ``best.ckpt`` of ``local``, ``global`` and ``gate``; the gate must have been trained on these two.
    """

    def __init__(self, models: dict[str, Any], checkpoints: dict[str, Path]) -> None:
        self.branches = Branches(checkpoints[LOCAL], checkpoints[GLOBAL], parse_models(models).predict)
        self.gate_checkpoint = load_checkpoint(checkpoints[GATE], GATE)
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
        self.gate = restore_gate(self.gate_checkpoint)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the probabilities."""
        return list(self.branches.vocabulary.classes)

    def predict(self, frame: pd.DataFrame, study: Study) -> dict[str, Prediction]:
        """Return the predictions of ``local``, ``global`` and ``gate`` for the cells of ``frame``."""
        check_unseen(frame, self.branches.local)
        dataset = self.branches.dataset(frame, study, views=False)
        out = self.branches.outputs(dataset, description="predicting")
        p_a, p_b = out.probabilities(*self.branches.temperatures)
        with torch.inference_mode():
            g = torch.sigmoid(self.gate(out.features_a, out.features_b, p_a, p_b))
        log_p = (mix(p_a, p_b, g) + EPSILON).log()
        fused = (log_p / self.gate_checkpoint["temperature"]).softmax(1)
        features = torch.cat([out.features_a, out.features_b], 1)
        return {
            LOCAL: Prediction(p_a, out.logits_a, out.features_a),
            GLOBAL: Prediction(p_b, out.logits_b, out.features_b),
            GATE: Prediction(fused, log_p, features, g),
        }


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

    frame = by_place(load_cells(study.slides, study.results, (VAL, TEST)))
    predictor = Predictor(models, checkpoints)
    for name, prediction in predictor.predict(frame, study).items():
        write_prediction(outputs[name], frame, prediction, predictor.classes)
    return {str(key): int(n) for key, n in frame["split"].astype(object).value_counts().items()}


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
        file.create_dataset("embeddings", data=prediction.embeddings.numpy().astype(np.float16))
        file.create_dataset("logits", data=prediction.logits.numpy().astype(np.float32))
        file.attrs["classes"] = classes
