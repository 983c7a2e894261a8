"""What a model's embeddings are ordered by, class or organ, on a random part of the cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.names import CELL_ID, PROBABILITY_PREFIX
from nuclass.evaluation.bootstrap import paired_bootstrap, spatial_blocks
from nuclass.evaluation.metrics import ece
from nuclass.evaluation.predictions import Predictions, read_predictions

ORGAN_METRICS = ("nn1_cross_organ", "organ_identifiability", "organ_leakage")
WORKING_MB = 128
_log = get_logger(__name__)


def compare_embeddings(
    models: Mapping[str, Sequence[str | Path]],
    *,
    subset: int,
    seed: int,
    draws: int,
    mpp: float,
    block_um: float,
    neighbours: int = 5,
    min_cells: int = 5,
    bins: int = 10,
) -> dict[str, Any]:
    """Return the metrics of any number of models on the same random cells, and the first minus each other, paired.

    Parameters
    ----------
    models
        Name to prediction tables, one a slide, each with its ``.h5`` beside it.
    subset
        Cells to draw without replacement; all where there are no more. Only their embeddings are read: the memory is
        theirs, the tables', and :data:`WORKING_MB` for distances.
    seed, draws
        Of the subset and of the bootstrap over squares of tissue of ``block_um`` micrometres; positions are pixels of
        ``mpp`` micrometres.
    neighbours
        Of the vote that names a cell's organ.
    min_cells
        Cells that an organ needs within a class to have a centroid there.
    bins
        Of the calibration error, of equal width.

    Returns
    -------
    dict
        ``models``: name -> metric of :data:`EMBEDDING_METRICS` -> value; ``differences``: ``<first>-<name>`` ->
        ``accuracy`` and ``macro_f1``, each ``{value, low, high}``; ``behind``: name -> the same minus the best one,
        named as ``best``; ``n_cells classes organs organ_majority notes``.
        The classes are those that all models have; probabilities are scaled to them. With one organ the metrics of
        :data:`ORGAN_METRICS` are NaN, and ``notes`` says so.

    Raises
    ------
    UserError
        Where the models have other cells or labels, fewer than two classes in common, or broken embeddings.
    """
    found = same_cells(models, subset, seed)
    first = next(iter(found.values()))
    organs = first.table["organ"].to_numpy(str)
    names, counts = np.unique(organs, return_counts=True)
    notes = [] if len(names) > 1 else [_one_organ(str(names[0]))]
    for note in notes:
        _log.warning(note)
    values = {
        name: _metrics(one, organs, neighbours=neighbours, min_cells=min_cells, bins=bins)
        for name, one in found.items()
    }
    table = first.table
    blocks = spatial_blocks(table["slide"], table["x_px"].to_numpy() * mpp, table["y_px"].to_numpy() * mpp, block_um)
    reference = next(iter(found))
    paired = paired_bootstrap(
        first.y,
        {name: one.probs for name, one in found.items()},
        blocks,
        first.classes,
        pairs=[(reference, name) for name in found if name != reference],
        ranked=list(found),
        draws=draws,
        seed=seed,
    )
    return {
        "n_cells": len(first.y),
        "seed": seed,
        "draws": draws,
        "classes": list(first.classes),
        "organs": {str(name): int(n) for name, n in zip(names, counts, strict=True)},
        "organ_majority": float(counts.max() / counts.sum()),
        "models": values,
        "differences": {
            name: {metric: value[metric] for metric in ("accuracy", "macro_f1")}
            for name, value in paired["differences"].items()
        },
        "behind": {
            name: {metric: value[metric] for metric in ("accuracy", "macro_f1")}
            for name, value in paired["behind"].items()
        },
        "notes": notes,
    }


def silhouette(embeddings: np.ndarray, y: np.ndarray) -> float:
    """Return the mean silhouette of the classes by cosine distance (N, D); NaN where classes cannot be told apart."""
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(embeddings, y, metric="cosine")) if _separable(y) else float("nan")


def nearest_labels(embeddings: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the label (N,) of each cell's nearest other cell; ``embeddings`` (N, D), N at least 2."""
    return np.asarray(labels[_neighbours(embeddings, 1)[:, 0]])


def same_organ_nn1(embeddings: np.ndarray, y: np.ndarray, organs: np.ndarray) -> float:
    """Return how often the nearest other cell of a cell's own organ is of its class.

    Over the cells whose organ has a second cell; NaN where there is none.
    """
    hits, cells = 0, 0
    for organ in np.unique(organs):
        rows = np.flatnonzero(organs == organ)
        if len(rows) > 1:
            hits += int((nearest_labels(embeddings[rows], y[rows]) == y[rows]).sum())
            cells += len(rows)
    return hits / cells if cells else float("nan")


def cross_organ_nn1(embeddings: np.ndarray, y: np.ndarray, organs: np.ndarray) -> float:
    """Return how often the nearest cell of any other organ is of a cell's class.

    Over the cells whose class occurs in another organ, for the others cannot be right; NaN where there is none.
    """
    hits, cells = 0, 0
    for organ in np.unique(organs):
        own, others = np.flatnonzero(organs == organ), np.flatnonzero(organs != organ)
        own = own[np.isin(y[own], y[others])]
        if len(own) and len(others):
            nearest = others[_neighbours(embeddings[others], 1, embeddings[own])[:, 0]]
            hits += int((y[nearest] == y[own]).sum())
            cells += len(own)
    return hits / cells if cells else float("nan")


def organ_identifiability(embeddings: np.ndarray, organs: np.ndarray, neighbours: int = 5) -> float:
    """Return how often the vote of a cell's nearest other cells names its organ; the first name wins a tie.

    NaN with one organ, where it would be 1 for any embedding, or with too few cells for the vote.
    """
    names, code = np.unique(organs, return_inverse=True)
    if len(names) < 2 or len(code) <= neighbours:
        return float("nan")
    votes = np.zeros((len(code), len(names)), dtype=np.int32)
    for column in _neighbours(embeddings, neighbours).T:
        votes[np.arange(len(code)), code[column]] += 1
    return float((votes.argmax(axis=1) == code).mean())


def organ_leakage(embeddings: np.ndarray, y: np.ndarray, organs: np.ndarray, min_cells: int = 5) -> float:
    """Return how far organs lie apart within a class, against how far classes lie apart.

    The mean distance between the centroids of organs of one class (each of ``min_cells`` or more cells; all pairs of
    all classes) over the mean distance between class centroids. NaN where no class has two organs, or for one class.
    """
    from scipy.spatial.distance import pdist

    within: list[float] = []
    for label in np.unique(y):
        rows = y == label
        here = [
            embeddings[rows & (organs == organ)].mean(axis=0)
            for organ in np.unique(organs[rows])
            if (rows & (organs == organ)).sum() >= min_cells
        ]
        within += pdist(np.stack(here)).tolist() if len(here) > 1 else []
    classes = np.stack([embeddings[y == label].mean(axis=0) for label in np.unique(y)])
    between = pdist(classes)
    if not within or not len(between) or between.mean() == 0:
        return float("nan")
    return float(np.mean(within) / between.mean())


def _metrics(found: Predictions, organs: np.ndarray, *, neighbours: int, min_cells: int, bins: int) -> dict[str, float]:
    from sklearn import config_context
    from sklearn.metrics import accuracy_score, calinski_harabasz_score, davies_bouldin_score, f1_score

    y, probs = found.y, found.probs
    present = np.unique(y)
    space = unit_rows(np.asarray(found.embeddings), found.table)
    separable = _separable(y)
    several = len(np.unique(organs)) > 1
    nan = float("nan")
    with config_context(working_memory=WORKING_MB):
        return {
            "accuracy": float(accuracy_score(y, found.predicted)),
            "macro_f1": float(f1_score(y, found.predicted, labels=present, average="macro", zero_division=0)),
            "auroc_macro": _auroc(y, probs),
            "silhouette": silhouette(space, y),
            "calinski_harabasz": float(calinski_harabasz_score(space, y)) if separable else nan,
            "davies_bouldin": float(davies_bouldin_score(space, y)) if separable else nan,
            "nn1": float((nearest_labels(space, y) == y).mean()) if len(y) > 1 else nan,
            "nn1_same_organ": same_organ_nn1(space, y, organs),
            "nn1_cross_organ": cross_organ_nn1(space, y, organs) if several else nan,
            "organ_identifiability": organ_identifiability(space, organs, neighbours),
            "organ_leakage": organ_leakage(space, y, organs, min_cells) if several else nan,
            "ece": ece(y, probs, bins=bins),
        }


def _neighbours(embeddings: np.ndarray, number: int, queries: np.ndarray | None = None) -> np.ndarray:
    """Return rows (Q, number) of the nearest cells; without queries each cell's nearest others."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=number, algorithm="brute").fit(embeddings)
    return np.asarray(search.kneighbors(queries, return_distance=False))


def _separable(y: np.ndarray) -> bool:
    return 2 <= len(np.unique(y)) <= len(y) - 1


def _auroc(y: np.ndarray, probs: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    present = np.unique(y)
    if len(present) < 2:
        return float("nan")
    return float(np.mean([roc_auc_score(y == index, probs[:, index]) for index in present]))


def unit_rows(embeddings: np.ndarray, cells: pd.DataFrame) -> np.ndarray:
    """Return embeddings (N, D) as float32 rows of length one; ``cells`` (``slide cell_id``) names a broken one."""
    from sklearn.preprocessing import normalize

    values = np.asarray(embeddings, dtype=np.float32)
    if not np.isfinite(values).all() or not np.abs(values).sum(axis=1).all():
        bad = int(np.flatnonzero(~np.isfinite(values).all(axis=1) | (np.abs(values).sum(axis=1) == 0))[0])
        cell = cells.iloc[bad]
        raise UserError(
            "An embedding is not finite, or zero",
            where=f"slide {cell['slide']}, cell {cell['cell_id']}",
            fix="predict this slide again",
        )
    return np.asarray(normalize(values))


def same_cells(models: Mapping[str, Sequence[str | Path]], subset: int, seed: int) -> dict[str, Predictions]:
    """Read the models, one after another, and keep the same random cells and the shared classes of each.

    With their embeddings (N, D), as they are stored. Arguments and errors as of :func:`compare_embeddings`.
    """
    if not models or subset < 2:
        raise UserError("Nothing to compare", found=f"{len(models)} models, {subset} cells", expected="1, 2 or more")
    shared = _shared_classes(models)
    out: dict[str, Predictions] = {}
    keys: pd.MultiIndex | None = None
    cells = 0
    for name, files in models.items():
        found = _shared_only(read_predictions(files), shared)
        if keys is None:
            order = np.lexsort([found.table["cell_id"], found.table["slide"]])
            rng = np.random.default_rng(seed)
            chosen = np.sort(rng.choice(len(order), min(subset, len(order)), replace=False))
            found = found.take(order[chosen])
            keys, cells = found.keys, len(order)
        else:
            first, reference = next(iter(out.items()))
            rows = found.keys.get_indexer(keys)
            if len(found.y) != cells or (rows < 0).any():
                raise UserError(
                    "Two models were evaluated on different cells",
                    found=f"{name}: {len(found.y)} cells, of {len(keys)} drawn ones {int((rows >= 0).sum())}",
                    expected=f"the {cells} cells of {first}",
                    fix="predict both models for the same slides and labels",
                )
            found = found.take(rows)
            if not np.array_equal(found.y, reference.y):
                raise UserError(
                    "Two models differ in the labels of the same cells",
                    found=name,
                    expected=f"the labels of {first}",
                    fix="predict both from the same labels",
                )
        out[name] = replace(found, embeddings=read_embeddings(files, found.keys))
    return out


def read_embeddings(files: Sequence[str | Path], keys: pd.MultiIndex) -> np.ndarray:
    """Return the embeddings (N, D) of the given cells, slide and cell id, and read no others."""
    import h5py

    out: np.ndarray | None = None
    missing = np.ones(len(keys), dtype=bool)
    for path in files:
        cells = pd.read_parquet(path, columns=["slide", CELL_ID]).astype(str)
        place = keys.get_indexer(pd.MultiIndex.from_frame(cells))
        if not (place >= 0).any():
            continue
        with h5py.File(Path(path).with_suffix(".h5"), "r") as h5:
            rows = pd.Index(h5[CELL_ID].asstr()[:]).get_indexer(pd.Index(cells[CELL_ID][place >= 0]))
            place = place[place >= 0][rows >= 0]
            rows = rows[rows >= 0]
            order = np.argsort(rows)
            if out is None:
                out = np.empty((len(keys), h5["embeddings"].shape[1]), dtype=np.float32)
            out[place[order]] = h5["embeddings"][rows[order]]
            missing[place] = False
    if out is None or missing.any():
        slide, cell = keys[int(np.flatnonzero(missing)[0])]
        raise UserError(
            "Embeddings and probabilities are not of the same cells",
            where=[str(path) for path in files],
            found=f"{int(missing.sum())} cells have no embedding, the first: {slide} {cell}",
            fix="run the rule predict again for this slide",
        )
    return out


def _shared_classes(models: Mapping[str, Sequence[str | Path]]) -> list[str]:
    """Return the classes that all models have, in the order of the first."""
    headers = {name: _classes_of(files) for name, files in models.items()}
    first, *others = headers.values()
    shared = [label for label in first if all(label in classes for classes in others)]
    if len(shared) < 2:
        raise UserError(
            "The models have fewer than two classes in common",
            found={name: list(classes) for name, classes in headers.items()},
            fix="compare models of the same labels",
        )
    return shared


def _classes_of(files: Sequence[str | Path]) -> tuple[str, ...]:
    import pyarrow.parquet as pq

    if not files or not Path(files[0]).exists():
        raise UserError("A prediction table is missing", where=list(files), fix="run the rule predict for this slide")
    names = pq.read_schema(files[0]).names
    return tuple(name.removeprefix(PROBABILITY_PREFIX) for name in names if name.startswith(PROBABILITY_PREFIX))


def _shared_only(found: Predictions, shared: Sequence[str]) -> Predictions:
    """Return the cells of shared classes, with probabilities scaled to these classes."""
    columns = [found.classes.index(name) for name in shared]
    rows = np.flatnonzero(np.isin(found.y, columns))
    if not len(rows):
        raise UserError(
            "No cell has a class that all models know",
            found=f"cells of {', '.join(sorted({found.classes[k] for k in found.y}))}",
            expected=list(shared),
        )
    place = np.full(len(found.classes), -1)
    place[columns] = np.arange(len(columns))
    kept = found.take(rows)
    probs = np.maximum(kept.probs[:, columns], np.finfo(np.float64).tiny)
    probs /= probs.sum(axis=1, keepdims=True)
    return Predictions(tuple(shared), kept.table, place[kept.y], probs, kept.outside)


def _one_organ(organ: str) -> str:
    return (
        f"All cells are of one organ ({organ}): how far the embeddings tell organs apart has no value here. "
        "Give cells of several organs."
    )
