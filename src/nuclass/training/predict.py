"""Predict slides with trained models and write their tables; a pass that was killed goes on where it was."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd

from nuclass.core.files import atomic_path, remove_state, write_parquet
from nuclass.core.names import TEST, VAL, probability_columns
from nuclass.data.training_cells import by_place
from nuclass.data.vocabulary import UNKNOWN
from nuclass.training.predictor import Prediction, Predictor, check_unseen, tell_unknown
from nuclass.training.row_store import RowStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nuclass.data.study import Study

__all__ = [
    "Prediction",
    "Predictor",
    "check_unseen",
    "known_organ",
    "predict_models",
    "predict_slide",
    "prediction_table",
    "tell_unknown",
    "write_prediction",
]
_ROWS = 4096


def predict_slide(
    models: dict[str, Any],
    study: Study,
    checkpoints: Mapping[str, Path],
    outputs: Mapping[str, Path],
    work: Path | None = None,
) -> dict[str, int]:
    """Predict the labelled val and test cells of one slide with the models given; see :func:`predict_models`.

    Parameters
    ----------
    study
        Its ``slides`` holds this one slide.
    outputs
        The Parquet file of each model; embeddings and logits go beside it (``.h5``).

    Returns
    -------
    Number of cells per split.
    """
    (row,) = study.slides
    slide = str(row["slide"])
    by_slide = {name: {slide: path} for name, path in outputs.items()}
    return predict_models(models, study, checkpoints, by_slide, work)[slide]


def predict_models(
    models: dict[str, Any],
    study: Study,
    checkpoints: Mapping[str, Path],
    outputs: Mapping[str, Mapping[str, Path]],
    work: Path | None = None,
) -> dict[str, dict[str, int]]:
    """Predict the labelled val and test cells of all slides of a study; models are loaded once.

    Each slide is one pass in tile order over all models. Held are a few batches of windows, the context features of
    16,384 cells, and about 1.3 kB a cell for the tables; outputs go to disk as they come, and are mapped from there.

    Parameters
    ----------
    models
        Content of a model file, see :class:`nuclass.training.predictor.Predictor`.
    study
        The slides; where context features are needed, they are there already.
    checkpoints
        ``best.ckpt`` by model: ``local``, ``global``, both, or all three with ``gate``.
    outputs
        Model -> slide -> Parquet file, for some or all of these models and every slide; embeddings and logits go
        beside it (``.h5``).
    work
        Folder of the running state, from which a killed call goes on to the same files; removed at the end. Without it
        the state lies beside the first output, and a killed call starts anew.

    Returns
    -------
    Slide -> number of cells per split.

    Raises
    ------
    UserError
        When a cell to predict is among the cells a model was fitted to, or files do not fit each other.
    """
    predictor = Predictor(models, checkpoints)
    counts = {}
    with _work_folder(work, outputs) as folder:
        for row in study.slides:
            slide = str(row["slide"])
            single = replace(study, slides=[{**row, "organ": known_organ(row)}])
            paths = {name: by_slide[slide] for name, by_slide in outputs.items()}
            counts[slide] = _predict_one(predictor, single, paths, folder / slide)
    return counts


def _predict_one(predictor: Predictor, study: Study, paths: Mapping[str, Path], work: Path) -> dict[str, int]:
    from nuclass.data import load_cells

    frame = by_place(load_cells(study.slides, study.results, (VAL, TEST)))
    predictor.check(frame, study)
    with RowStore(work, predictor.identity(frame, study), len(frame)) as store:
        if not store.done:
            for columns in predictor.stream(frame, study, store.rows):
                store.append(**columns)
    predictions = predictor.predictions(store.tensors())
    for name, path in paths.items():
        write_prediction(path, frame, predictions[name], predictor.classes)
    return {str(key): int(n) for key, n in frame["split"].astype(object).value_counts().items()}


@contextmanager
def _work_folder(work: Path | None, outputs: Mapping[str, Mapping[str, Path]]) -> Iterator[Path]:
    """Give the folder of the running state; it goes when all is written."""
    if work is not None:
        yield Path(work)
        remove_state(work)
        return
    import tempfile

    first = next((Path(path) for by_slide in outputs.values() for path in by_slide.values()), Path())
    first.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".predict_", dir=first.parent) as folder:
        yield Path(folder)


def known_organ(row: dict[str, Any]) -> str:
    """Return the organ of a row of the slide sheet, ``unknown`` where there is none."""
    organ = row.get("organ")
    return str(organ) if isinstance(organ, str) and organ.strip() else UNKNOWN


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
    parts = [part.numpy() for part in prediction.embeddings]
    with atomic_path(Path(path).with_suffix(".h5")) as temporary, h5py.File(temporary, "w") as file:
        ids = frame["cell_id"].astype(str).tolist()
        file.create_dataset("cell_id", data=np.array(ids, dtype=object), dtype=h5py.string_dtype())
        embeddings = file.create_dataset("embeddings", (len(frame), sum(part.shape[1] for part in parts)), np.float16)
        for start in range(0, len(frame), _ROWS):
            embeddings[start : start + _ROWS] = np.hstack([part[start : start + _ROWS] for part in parts])
        file.create_dataset("logits", data=prediction.logits.numpy().astype(np.float32))
        file.attrs["classes"] = classes
