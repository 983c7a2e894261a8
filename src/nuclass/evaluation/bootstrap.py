"""Intervals by resampling spatial blocks: neighbouring cells are not independent, blocks nearly are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nuclass.evaluation.metrics import macro_classes


class Blocks(NamedTuple):
    """Spatial blocks of a set of cells: the block of each cell (N,) and the slide of each block (B,)."""

    of_cell: np.ndarray
    slide_of_block: np.ndarray

    @property
    def n(self) -> int:
        """The number of blocks."""
        return len(self.slide_of_block)


def spatial_blocks(slide: Sequence[str], x_um: np.ndarray, y_um: np.ndarray, block_um: float) -> Blocks:
    """Cut each slide into squares of side ``block_um`` and number those that hold cells.

    ``x_um`` and ``y_um`` (N,) are micrometres in any frame of the slide.
    """
    slides, slide_code = np.unique(np.asarray(slide, dtype=object).astype(str), return_inverse=True)
    column = np.floor(np.asarray(x_um, dtype=np.float64) / block_um).astype(np.int64)
    row = np.floor(np.asarray(y_um, dtype=np.float64) / block_um).astype(np.int64)
    keys, of_cell = np.unique(np.stack([slide_code, column, row], axis=1), axis=0, return_inverse=True)
    return Blocks(of_cell.ravel(), slides[keys[:, 0]])


def block_weights(blocks: Blocks, draws: int, seed: int) -> np.ndarray:
    """Return how often each block is drawn (draws, B), resampling with replacement within each slide."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((draws, blocks.n), dtype=np.float32)
    for slide in np.unique(blocks.slide_of_block):
        members = np.flatnonzero(blocks.slide_of_block == slide)
        picks = rng.integers(len(members), size=(draws, len(members)))
        flat = picks + np.arange(draws)[:, None] * len(members)
        counts = np.bincount(flat.ravel(), minlength=draws * len(members))
        weights[:, members] = counts.reshape(draws, len(members))
    return weights


def paired_bootstrap(
    y: np.ndarray,
    models: Mapping[str, np.ndarray],
    blocks: Blocks,
    classes: Sequence[str],
    *,
    pairs: Sequence[tuple[str, str]] = (),
    groups: Mapping[str, Sequence[str]] | None = None,
    draws: int = 1000,
    seed: int = 42,
    min_support: int = 1,
) -> dict[str, Any]:
    """Return values with 95 % intervals for each model and for paired differences.

    Counts are summed per block once and then weighted by the draws, so that a draw costs one row of a
    matrix product. All models see the same draws, hence the differences are paired.

    Parameters
    ----------
    y
        True classes (N,), indices into ``classes``.
    models
        Name to probabilities (N, C), or to hard predictions (N,) which then have no log loss.
    blocks
        From :func:`spatial_blocks`.
    pairs
        Differences to form, (minuend, subtrahend).
    groups
        Named groups of classes whose mean F1 is wanted as well.
    min_support
        As in :func:`nuclass.evaluation.metrics.metrics`.

    Returns
    -------
    dict
        ``models`` and ``differences``: name -> ``accuracy``, ``macro_f1``, ``log_loss``, ``f1`` (by class)
        and ``groups``, each ``{value, low, high}`` (2.5 and 97.5 percentiles). A class that is absent
        from a draw is left out of that draw's means.
    """
    n_classes = len(classes)
    weights = np.concatenate([np.ones((1, blocks.n), np.float32), block_weights(blocks, draws, seed)])
    chosen = macro_classes(y, n_classes, min_support)
    index = {name: i for i, name in enumerate(classes)}
    members = {name: [index[c] for c in group if c in index] for name, group in (groups or {}).items()}
    true = (weights @ _sum_by_block(blocks, np.ones(len(y)), y, n_classes)).astype(np.float64)
    statistics = {
        name: _statistics(y, np.asarray(values), blocks, weights, true, chosen, members)
        for name, values in models.items()
    }
    present = np.flatnonzero(np.bincount(y, minlength=n_classes))
    out: dict[str, Any] = {"models": {}, "differences": {}, "draws": draws, "blocks": blocks.n, "n_cells": len(y)}
    for name, values in statistics.items():
        out["models"][name] = _summary(values, classes, present)
    for first, second in pairs:
        a, b = statistics[first], statistics[second]
        shared = {key: a[key] - b[key] for key in a if key in b}
        out["differences"][f"{first}-{second}"] = _summary(shared, classes, present)
    return out


def _sum_by_block(blocks: Blocks, values: np.ndarray, column: np.ndarray, n_columns: int) -> np.ndarray:
    flat = np.bincount(blocks.of_cell * n_columns + column, weights=values, minlength=blocks.n * n_columns)
    return flat.reshape(blocks.n, n_columns).astype(np.float32)


def _statistics(
    y: np.ndarray,
    values: np.ndarray,
    blocks: Blocks,
    weights: np.ndarray,
    true: np.ndarray,
    chosen: np.ndarray,
    groups: Mapping[str, Sequence[int]],
) -> dict[str, np.ndarray]:
    """Statistics of every draw; row 0 is the sample itself."""
    n_classes = true.shape[1]
    predicted = values.argmax(axis=1) if values.ndim == 2 else values
    right = (predicted == y).astype(np.float64)
    hits = (weights @ _sum_by_block(blocks, right, y, n_classes)).astype(np.float64)
    called = (weights @ _sum_by_block(blocks, np.ones(len(y)), predicted, n_classes)).astype(np.float64)
    n = true.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = np.where(true > 0, 2 * hits / (true + called), np.nan)
    out = {"accuracy": hits.sum(axis=1) / n, "macro_f1": _row_mean(f1[:, chosen]), "f1": f1}
    for name, members in groups.items():
        out[f"group:{name}"] = _row_mean(f1[:, list(members)])
    if values.ndim == 2:
        p = np.clip(values[np.arange(len(y)), y].astype(np.float64), np.finfo(np.float64).eps, 1)
        loss = np.bincount(blocks.of_cell, weights=-np.log(p), minlength=blocks.n)
        out["log_loss"] = (weights.astype(np.float64) @ loss) / n
    return out


def _row_mean(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _interval(values: np.ndarray) -> dict[str, float]:
    draws = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(draws, [2.5, 97.5]) if len(draws) else (np.nan, np.nan)
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def _summary(values: Mapping[str, np.ndarray], classes: Sequence[str], present: np.ndarray) -> dict[str, Any]:
    out: dict[str, Any] = {"groups": {}}
    for key, value in values.items():
        if key == "f1":
            out["f1"] = {classes[i]: _interval(value[:, i]) for i in present}
        elif key.startswith("group:"):
            out["groups"][key.removeprefix("group:")] = _interval(value)
        else:
            out[key] = _interval(value)
    return out
