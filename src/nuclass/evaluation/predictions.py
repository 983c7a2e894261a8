"""Read prediction files and check that they are what evaluation expects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.names import CELL_ID, PROBABILITY_PREFIX
from nuclass.evaluation.metrics import check_probabilities

_log = get_logger(__name__)
_COLUMNS = (CELL_ID, "slide", "organ", "split", "x_px", "y_px", "label", "prediction")


@dataclass(frozen=True)
class Predictions:
    """The predictions of one model for N cells whose label is a class of the model.

    ``table`` holds the cells (``cell_id slide organ split x_px y_px label prediction confidence``, and
    ``gate`` for the fused model), ``y`` (N,) the label as an index into ``classes``, ``probs`` (N, C)
    the calibrated probabilities. ``outside`` counts the cells left out because their label is no class of the model,
    by label; ``unlabelled`` those left out because they have none.
    """

    classes: tuple[str, ...]
    table: pd.DataFrame
    y: np.ndarray
    probs: np.ndarray
    outside: dict[str, int]
    logits: np.ndarray | None = None
    embeddings: np.ndarray | None = None
    unlabelled: int = 0

    @property
    def predicted(self) -> np.ndarray:
        """The arg max over all classes (N,)."""
        return np.asarray(self.probs.argmax(axis=1))

    @property
    def keys(self) -> pd.MultiIndex:
        """Slide and cell id of each row."""
        return pd.MultiIndex.from_frame(self.table[["slide", CELL_ID]])

    def take(self, rows: np.ndarray) -> Predictions:
        """Return the given rows, in that order."""
        return Predictions(
            self.classes,
            self.table.iloc[rows].reset_index(drop=True),
            self.y[rows],
            self.probs[rows],
            self.outside,
            None if self.logits is None else self.logits[rows],
            None if self.embeddings is None else self.embeddings[rows],
            self.unlabelled,
        )


def read_predictions(paths: Sequence[str | Path], *, arrays: bool = False) -> Predictions:
    """Read one model's prediction tables of one or more slides.

    With ``arrays`` the uncalibrated logits and the embeddings are read from the ``.h5`` beside each
    table and put in the order of the table.

    Raises
    ------
    UserError
        On missing columns, differing classes, duplicate cells, invalid probabilities, no table at all, or when
        no cell has a label among the model's classes.
    """
    if not paths:
        raise UserError("No prediction table is given", expected="one table a slide", fix="select at least one slide")
    tables = [_read_table(Path(path)) for path in paths]
    classes = _classes(tables[0], paths[0])
    for table, path in zip(tables[1:], paths[1:], strict=True):
        if _classes(table, path) != classes:
            raise UserError(
                "Prediction tables of one model have different classes",
                where=path,
                found=_classes(table, path),
                expected=f"the classes of {paths[0]}: {classes}",
                fix="predict all slides with the same checkpoint",
            )
    table = pd.concat(tables, ignore_index=True)
    if table.duplicated(["slide", CELL_ID]).any():
        example = table[table.duplicated(["slide", CELL_ID])].iloc[0]
        raise UserError("A cell is predicted twice", where=paths, found=f"{example['slide']} {example[CELL_ID]}")
    logits, embeddings = _read_arrays(paths, tables) if arrays else (None, None)
    index = {name: i for i, name in enumerate(classes)}
    known, outside, unlabelled = _usable(table["label"], classes, paths)
    probs = table[[PROBABILITY_PREFIX + name for name in classes]].to_numpy(np.float64)[known]
    kept = table.loc[known].reset_index(drop=True)
    y = kept["label"].astype(str).map(index).to_numpy(np.int64)
    kept = kept.drop(columns=[PROBABILITY_PREFIX + name for name in classes])
    return Predictions(
        classes,
        kept,
        y,
        check_probabilities(y, probs, classes),
        outside,
        None if logits is None else logits[known],
        None if embeddings is None else embeddings[known],
        unlabelled,
    )


def _usable(
    labels: pd.Series[str], classes: Sequence[str], paths: Sequence[str | Path]
) -> tuple[np.ndarray, dict[str, int], int]:
    """Return which cells have a label that the model knows (N,), counts of other labels, and cells without one."""
    where = [str(path) for path in paths]
    if not len(labels):
        raise UserError(
            "There is no cell to evaluate: the prediction tables are empty",
            where=where,
            expected="at least one labelled val or test cell",
            fix="look at results/tables/funnel.md where the cells of these slides went",
        )
    empty = labels.eq("").to_numpy()
    if empty.all():
        raise UserError(
            "No cell to evaluate has a label",
            where=where,
            found=f"{len(labels)} cells, all without a label",
            expected=f"labels among {list(classes)}",
            fix="label the slide first, or give its labels (column `labels` of the slide sheet)",
        )
    known = labels.isin(list(classes)).to_numpy()
    outside = {str(k): int(v) for k, v in labels[~known & ~empty].value_counts().sort_index().items()}
    if not known.any():
        raise UserError(
            "No cell to evaluate has a class that the model knows",
            where=where,
            found=f"labels {sorted(outside)}",
            expected=f"labels among {list(classes)}",
            fix="check the slide's labels and the ontology",
        )
    if outside:
        _log.warning(
            "%d cells are left out: their class is not one of the model's (%s)", sum(outside.values()), outside
        )
    if empty.any():
        _log.warning("%d of %d cells are left out: they have no label", int(empty.sum()), len(labels))
    return known, outside, int(empty.sum())


def read_models(paths: Mapping[str, Sequence[str | Path]]) -> dict[str, Predictions]:
    """Read several models' predictions and hold them to exactly the same cells, order and classes.

    Raises
    ------
    UserError
        When the models differ in cells, labels or classes: numbers on different cells do not compare.
    """
    out: dict[str, Predictions] = {}
    for model, files in paths.items():
        found = read_predictions(files)
        if out:
            first_name, first = next(iter(out.items()))
            rows = found.keys.get_indexer(first.keys)
            shared = int((rows >= 0).sum())
            if len(found.y) != len(first.y) or shared < len(rows):
                raise UserError(
                    "Two models were evaluated on different cells",
                    found=f"{model}: {len(found.y)} cells, {first_name}: {len(first.y)}, shared {shared}",
                    expected="the same cells",
                    fix="predict both models for the same slides and labels",
                )
            found = found.take(rows)
            if found.classes != first.classes or not np.array_equal(found.y, first.y):
                raise UserError(
                    "Two models differ in their classes or in the labels of the same cells",
                    found=f"{model}: {list(found.classes)}",
                    expected=f"{first_name}: {list(first.classes)}",
                    fix="train and predict both from the same labels",
                )
        out[model] = found
    return out


def _read_table(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise UserError("A prediction table is missing", where=path, fix="run the rule predict for this slide")
    table = pd.read_parquet(path)
    missing = [name for name in _COLUMNS if name not in table]
    if missing:
        raise UserError("A prediction table lacks columns", where=path, found=list(table.columns), expected=missing)
    for name in (CELL_ID, "slide", "organ", "label"):
        table[name] = table[name].astype(object).where(table[name].notna(), "").astype(str)
    return table


def _classes(table: pd.DataFrame, path: str | Path) -> tuple[str, ...]:
    names = tuple(c.removeprefix(PROBABILITY_PREFIX) for c in table.columns if c.startswith(PROBABILITY_PREFIX))
    if not names:
        raise UserError(
            "A prediction table holds no probabilities", where=path, expected=f"columns {PROBABILITY_PREFIX}<class>"
        )
    return names


def _read_arrays(paths: Sequence[str | Path], tables: Sequence[pd.DataFrame]) -> tuple[np.ndarray, np.ndarray]:
    import h5py

    logits, embeddings = [], []
    for path, table in zip(paths, tables, strict=True):
        file = Path(path).with_suffix(".h5")
        with h5py.File(file, "r") as h5:
            ids = pd.Index(h5[CELL_ID].asstr()[:] if len(h5[CELL_ID]) else np.array([], dtype=str))
            rows = ids.get_indexer(pd.Index(table[CELL_ID]))
            if (rows < 0).any():
                raise UserError(
                    "Logits and probabilities are not of the same cells",
                    where=file,
                    found=f"{int((rows < 0).sum())} cells of {path} are missing",
                    fix="run the rule predict again for this slide",
                )
            logits.append(h5["logits"][:][rows])
            embeddings.append(h5["embeddings"][:][rows])
    return np.concatenate(logits), np.concatenate(embeddings)
