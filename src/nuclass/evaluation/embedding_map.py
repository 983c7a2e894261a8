"""Where cells lie in a model's embedding: a balanced random part of them, laid out in two dimensions by UMAP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.names import CELL_ID
from nuclass.core.progress import Progress
from nuclass.evaluation.embedding_space import read_embeddings, unit_rows
from nuclass.evaluation.predictions import Predictions, read_models
from nuclass.labels.evidence import umap_coordinates

MAP_COLUMNS = ("model", "slide", "organ", CELL_ID, "label", "prediction", "umap_1", "umap_2")
LIMIT = 20_000
COMPONENTS = 50
_log = get_logger(__name__)


def map_embeddings(
    models: Mapping[str, Sequence[str | Path]], *, seed: int, limit: int = LIMIT, progress: str = "maps of embeddings"
) -> pd.DataFrame:
    """Lay out the embeddings of the same random cells of each model.

    Parameters
    ----------
    models
        Name to prediction tables, one a slide, each with its ``.h5`` beside it; all of the same cells.
    seed
        Of the draw and of the layouts.
    limit
        Cells to draw, by :func:`balanced_draw` over the slides. Only their embeddings are read.
    progress
        What the log calls the work.

    Returns
    -------
    pandas.DataFrame
        One row a model and cell, :data:`MAP_COLUMNS`, the cells of each model in the same order. ``umap_1 umap_2`` have
        no unit; :func:`lay_out` tells how they come about. ``label`` and ``prediction`` are classes.

    Raises
    ------
    UserError
        Where the models have other cells or labels, or an embedding is missing, not finite, or zero.
    """
    found = read_models(models)
    first = next(iter(found.values()))
    rows = balanced_draw(first.table["slide"].to_numpy(str), limit, seed)
    _log.info("%d of %d cells are drawn, slides balanced, seed %d", len(rows), len(first.y), seed)
    parts = []
    with Progress(len(found), progress, "models") as bar:
        for name, one in found.items():
            drawn = one.take(rows)
            embeddings = read_embeddings(models[name], drawn.keys)
            parts.append(cells_on_map(name, drawn, unit_rows(embeddings, drawn.table), seed))
            bar.advance()
    return pd.concat(parts, ignore_index=True)


def cells_on_map(model: str, cells: Predictions, embeddings: np.ndarray, seed: int) -> pd.DataFrame:
    """Return :data:`MAP_COLUMNS` of cells whose embeddings (N, D) have length one."""
    place = lay_out(embeddings, seed)
    classes = np.asarray(cells.classes, dtype=object)
    table = cells.table[["slide", "organ", CELL_ID]].astype(str).reset_index(drop=True)
    table["model"], table["label"], table["prediction"] = model, classes[cells.y], classes[cells.predicted]
    table["umap_1"], table["umap_2"] = place[:, 0], place[:, 1]
    return table[list(MAP_COLUMNS)]


def balanced_draw(groups: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Return rows of a random draw without replacement, at most ``limit``, with as many of each group as can be.

    A group with fewer cells than its share gives all, and the others share what is left; within a group every cell is
    as likely as any other. The rows ascend. The draw depends on the order of the cells, on their groups and on the
    seed alone.

    Parameters
    ----------
    groups
        Group of each cell (N,), such as its slide.
    """
    if limit < 1:
        raise UserError("No cell is to be drawn", found=f"limit {limit}", expected="1 or more")
    names, code = np.unique(groups, return_inverse=True)
    sizes = np.bincount(code, minlength=len(names))
    left, chosen = limit, []
    for place, group in enumerate(np.argsort(sizes, kind="stable")):
        share = min(int(sizes[group]), left // (len(names) - place))
        rows = np.flatnonzero(code == group)
        rng = np.random.default_rng([seed, int(group)])
        chosen.append(rng.choice(rows, share, replace=False))
        left -= share
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)


def lay_out(embeddings: np.ndarray, seed: int) -> np.ndarray:
    """Return UMAP coordinates (N, 2) of embeddings (N, D) of length one, float32, without a unit.

    The first :data:`COMPONENTS` principal components are laid out by
    :func:`nuclass.labels.evidence.umap_coordinates` (McInnes et al. 2018; 15 neighbours, minimal distance 0.3), from a
    start at the first two. Between vectors of length one the Euclidean distance orders neighbours as the cosine does.
    The same input and seed give the same layout.
    """
    components = principal_components(np.asarray(embeddings, dtype=np.float32), COMPONENTS)
    table = umap_coordinates(components, np.arange(len(components)), seed, limit=max(len(components), 1))
    return table[["umap_1", "umap_2"]].to_numpy(np.float32)


def principal_components(values: np.ndarray, number: int) -> np.ndarray:
    """Return the first principal components (N, min(number, D)) of rows (N, D), in order of their variance.

    By the eigenvectors of the covariance; each vector's sign makes its largest entry positive, so that the result does
    not depend on the solver.
    """
    centred = values - values.mean(axis=0, keepdims=True, dtype=np.float64).astype(values.dtype)
    _, vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    vectors = vectors[:, ::-1][:, :number]
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.where(vectors[largest, np.arange(vectors.shape[1])] < 0, -1.0, 1.0)
    return np.asarray(centred @ vectors.astype(values.dtype))
