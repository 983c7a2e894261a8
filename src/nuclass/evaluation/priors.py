"""Baselines that do not look at a cell: the class frequencies of the training cells, of all or of the organ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.names import TRAIN


def read_composition(source: str | Path | pd.DataFrame) -> pd.DataFrame:
    """Return the training cells by organ and class: ``organ class cells``, from ``composition.csv``.

    Raises
    ------
    UserError
        When the table has other columns, or no training cell.
    """
    table = source if isinstance(source, pd.DataFrame) else pd.read_csv(source, keep_default_na=False)
    expected = ["organ", "split", "class", "cells"]
    if not set(expected) <= set(table.columns):
        raise UserError(
            "The composition of the study has other columns than expected",
            where=None if isinstance(source, pd.DataFrame) else source,
            found=list(table.columns),
            expected=", ".join(expected),
            fix="make it by the rule count_cells",
        )
    train = table[table["split"] == TRAIN]
    if train["cells"].sum() <= 0:
        raise UserError(
            "There is no training cell to take class frequencies from",
            where=None if isinstance(source, pd.DataFrame) else source,
            found=f"splits {sorted(set(table['split']))}",
            expected=f"rows with split {TRAIN}",
        )
    return train.groupby(["organ", "class"], as_index=False)["cells"].sum()


def frequencies(composition: pd.DataFrame, classes: Sequence[str], organ: str | None = None) -> np.ndarray:
    """Return the share of each class (C,) among the training cells, of one organ or of all.

    One cell is added to each class (Laplace's rule), for a probability of 0 would make the log loss infinite. An organ
    without training cells gets the shares of all.
    """
    part = composition if organ is None else composition[composition["organ"] == organ]
    counts = part.groupby("class")["cells"].sum().reindex(list(classes), fill_value=0).to_numpy(np.float64)
    if organ is not None and counts.sum() == 0:
        return frequencies(composition, classes)
    return np.asarray((counts + 1) / (counts.sum() + len(classes)))


def majority(n_cells: int, classes: Sequence[str], composition: pd.DataFrame) -> np.ndarray:
    """Return probabilities (N, C): for every cell the class frequencies of all training cells.

    The arg max is the most frequent class. ``composition`` is from :func:`read_composition`.
    """
    return np.tile(frequencies(composition, classes), (n_cells, 1))


def organ_prior(organs: Sequence[str], classes: Sequence[str], composition: pd.DataFrame) -> np.ndarray:
    """Return probabilities (N, C): for each cell the class frequencies of the training cells of its organ.

    ``organs`` (N,) are the cells' organs, ``composition`` is from :func:`read_composition`.
    """
    names, of_cell = np.unique(np.asarray(organs, dtype=object).astype(str), return_inverse=True)
    return np.stack([frequencies(composition, classes, str(name)) for name in names])[of_cell.ravel()]
