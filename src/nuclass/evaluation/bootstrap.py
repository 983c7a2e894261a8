"""Intervals by resampling spatial blocks: neighbouring cells are not independent, blocks nearly are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nuclass.core.log import get_logger
from nuclass.core.readings import BETTER
from nuclass.evaluation.metrics import equal_width_bin, macro_classes

_log = get_logger(__name__)
_CHUNK = 8_000_000
"""Weights held at a time: 64 MB."""
FEW_BLOCKS = 20
PUSHED_UP = ("ece",)
"""Statistics that noise makes larger, in a draw once more than in the sample; see :func:`_interval`."""


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

    ``x_um`` and ``y_um`` (N,) are micrometres in any frame of the slide. With ``block_um`` 0 every cell is a block of
    its own, which takes neighbours for independent and gives intervals that are too narrow.
    """
    if block_um == 0:
        return Blocks(np.arange(len(slide)), np.asarray(slide, dtype=object).astype(str))
    slides, slide_code = np.unique(np.asarray(slide, dtype=object).astype(str), return_inverse=True)
    column = np.floor(np.asarray(x_um, dtype=np.float64) / block_um).astype(np.int64)
    row = np.floor(np.asarray(y_um, dtype=np.float64) / block_um).astype(np.int64)
    keys, of_cell = np.unique(np.stack([slide_code, column, row], axis=1), axis=0, return_inverse=True)
    return Blocks(of_cell.ravel(), slides[keys[:, 0]])


def blocks_of_classes(y: np.ndarray, blocks: Blocks, n_classes: int) -> np.ndarray:
    """Return how many blocks hold cells of each class (C,); ``y`` (N,) are the true classes of the blocks' cells."""
    return np.asarray((_by_block(blocks, y, n_classes) > 0).sum(axis=0), dtype=np.int64)


def block_weights(blocks: Blocks, draws: int, seed: int) -> np.ndarray:
    """Return how often each block is drawn (draws, B), resampling with replacement within each slide."""
    return np.concatenate(list(_weights(blocks, draws, seed, max(draws, 1))))


def _weights(blocks: Blocks, draws: int, seed: int, rows: int) -> Iterator[np.ndarray]:
    """Give the weights of ``rows`` draws at a time; the draws are the same whatever ``rows``."""
    slides, of_block = np.unique(blocks.slide_of_block, return_inverse=True)
    members = [np.flatnonzero(of_block.ravel() == i) for i in range(len(slides))]
    streams = [np.random.default_rng([seed, i]) for i in range(len(slides))]
    for first in range(0, draws, rows):
        n = min(rows, draws - first)
        weights = np.zeros((n, blocks.n))
        for rng, inside in zip(streams, members, strict=True):
            picks = rng.integers(len(inside), size=(n, len(inside))) + np.arange(n)[:, None] * len(inside)
            weights[:, inside] = np.bincount(picks.ravel(), minlength=n * len(inside)).reshape(n, len(inside))
        yield weights


def paired_bootstrap(
    y: np.ndarray,
    models: Mapping[str, np.ndarray],
    blocks: Blocks,
    classes: Sequence[str],
    *,
    pairs: Sequence[tuple[str, str]] = (),
    groups: Mapping[str, Sequence[str]] | None = None,
    ranked: Sequence[str] = (),
    draws: int = 1000,
    seed: int = 42,
    min_support: int = 1,
    bins: int = 15,
) -> dict[str, Any]:
    """Return values with 95 % intervals for each model and for paired differences.

    Every statistic is a function of sums over cells. They are summed per block once and then weighted by the draws, so
    that a draw costs one row of a matrix product (the block bootstrap of Hall 1985, with blocks that do not overlap).
    All models see the same draws, hence the differences are paired. Memory: 64 MB for weights, and for each model
    8 bytes times (blocks + draws) times about 2 C + 2 ``bins``, whatever the number of cells.

    Parameters
    ----------
    y
        True classes (N,), indices into ``classes``.
    models
        Name to probabilities (N, C), or to hard predictions (N,) which then have no metrics of probabilities. Each is
        asked for once, so a mapping may read them one by one.
    blocks
        From :func:`spatial_blocks`.
    pairs
        Differences to form, (minuend, subtrahend).
    groups
        Named groups of classes whose mean F1 is wanted as well.
    ranked
        Models to rank: of each statistic, how far each is from the best of these.
    min_support
        As in :func:`nuclass.evaluation.metrics.metrics`.
    bins
        Bins of equal width of the calibration error.

    Returns
    -------
    dict
        ``models`` and ``differences``: name -> ``accuracy macro_f1 weighted_f1 balanced_accuracy``, with probabilities
        also ``top2_accuracy log_loss brier ece mean_confidence``, ``f1`` (by class) and ``groups``, each ``{value, low,
        high}`` (see :func:`_interval`). A class that is absent from a draw is left out of that draw's means.
        ``macro_classes``: those that ``macro_f1`` is the mean of.
        ``behind``: model of ``ranked`` -> the same statistics, each ``{best, value, low, high}``: the model with the
        best point value, and this one minus that, paired.
    """
    n_classes = len(classes)
    if blocks.n < FEW_BLOCKS:
        _log.warning("Intervals rest on %d blocks only: they are too narrow below about %d", blocks.n, FEW_BLOCKS)
    chosen = macro_classes(y, n_classes, min_support)
    present = np.flatnonzero(np.bincount(y, minlength=n_classes))
    index = {name: i for i, name in enumerate(classes)}
    members = {name: [index[c] for c in group if c in index] for name, group in (groups or {}).items()}
    sums = {name: _block_sums(y, np.asarray(models[name]), blocks, n_classes, bins) for name in models}
    true = {"true": _by_block(blocks, y, n_classes)}
    weighted = _weigh({None: true, **sums}, blocks, draws, seed)
    true_drawn = weighted.pop(None)["true"]
    statistics = {name: _statistics(true_drawn, found, chosen, present, members) for name, found in weighted.items()}
    out: dict[str, Any] = {"models": {}, "differences": {}, "draws": draws, "blocks": blocks.n, "n_cells": len(y)}
    out["macro_classes"] = [classes[i] for i in chosen]
    for name, values in statistics.items():
        out["models"][str(name)] = _not_negative(_summary(values, classes, present))
    for first, second in pairs:
        gap = _minus(statistics[first], statistics[second])
        out["differences"][f"{first}-{second}"] = _summary(gap, classes, present)
    out["behind"] = _behind({name: statistics[name] for name in ranked}, classes, present)
    return out


def _by_block(blocks: Blocks, column: np.ndarray, n_columns: int, values: np.ndarray | None = None) -> np.ndarray:
    """Sum ``values`` (N,), or count cells, by block and column: (B, n_columns)."""
    flat = np.bincount(blocks.of_cell * n_columns + column, weights=values, minlength=blocks.n * n_columns)
    return flat.reshape(blocks.n, n_columns).astype(np.float64)


def _block_sums(y: np.ndarray, values: np.ndarray, blocks: Blocks, n_classes: int, bins: int) -> dict[str, np.ndarray]:
    """Return the sums by block (B, columns) that one model's statistics are made of."""
    predicted = values.argmax(axis=1) if values.ndim == 2 else values
    right = (predicted == y).astype(np.float64)
    out = {"hits": _by_block(blocks, y, n_classes, right), "called": _by_block(blocks, predicted, n_classes)}
    if values.ndim == 1:
        return out
    rows, one = np.arange(len(y)), np.zeros(len(y), dtype=np.int64)
    of_true = values[rows, y].astype(np.float64)
    confidence = values[rows, predicted].astype(np.float64)
    # Later classes win ties, as in scikit-learn's top_k_accuracy_score.
    ahead = (values > values[rows, y][:, None]) | (
        (values == values[rows, y][:, None]) & (np.arange(n_classes) > y[:, None])
    )
    log_loss = -np.log(np.clip(of_true, np.finfo(np.float64).eps, 1))
    brier = np.einsum("ij,ij->i", values, values, dtype=np.float64) - 2 * of_true + 1
    singles = {
        "top2_accuracy": (ahead.sum(axis=1) < 2).astype(np.float64),
        "log_loss": log_loss,
        "brier": brier,
        "mean_confidence": confidence,
    }
    out |= {name: _by_block(blocks, one, 1, cell) for name, cell in singles.items()}
    out["gap"] = _by_block(blocks, equal_width_bin(confidence, bins), bins, right - confidence)
    return out


def _weigh(
    sums: Mapping[Any, Mapping[str, np.ndarray]], blocks: Blocks, draws: int, seed: int
) -> dict[Any, dict[str, np.ndarray]]:
    """Return the sums of the sample (row 0) and of every draw: (draws + 1, columns) each."""
    places = [(model, key, part.shape[1]) for model, parts in sums.items() for key, part in parts.items()]
    whole = np.concatenate([part for parts in sums.values() for part in parts.values()], axis=1)
    drawn = [whole.sum(axis=0, keepdims=True)]
    drawn += [part @ whole for part in _weights(blocks, draws, seed, max(1, _CHUNK // max(blocks.n, 1)))]
    table = np.concatenate(drawn)
    out: dict[Any, dict[str, np.ndarray]] = {model: {} for model in sums}
    first = 0
    for model, key, width in places:
        out[model][key] = table[:, first : first + width]
        first += width
    return out


def _statistics(
    true: np.ndarray,
    drawn: Mapping[str, np.ndarray],
    chosen: np.ndarray,
    present: np.ndarray,
    groups: Mapping[str, Sequence[int]],
) -> dict[str, np.ndarray]:
    """Statistics of every draw; row 0 is the sample itself."""
    hits, called, n = drawn["hits"], drawn["called"], true.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = np.where(true > 0, 2 * hits / (true + called), np.nan)
        recall = np.where(true > 0, hits / true, np.nan)
    out = {
        "accuracy": hits.sum(axis=1) / n,
        "macro_f1": _row_mean(f1[:, chosen]),
        "weighted_f1": (np.nan_to_num(f1) * true).sum(axis=1) / n,
        "balanced_accuracy": _row_mean(recall[:, present]),
        "f1": f1,
    }
    for name, members in groups.items():
        out[f"group:{name}"] = _row_mean(f1[:, list(members)])
    for name in ("top2_accuracy", "log_loss", "brier", "mean_confidence"):
        if name in drawn:
            out[name] = drawn[name][:, 0] / n
    if "gap" in drawn:
        out["ece"] = np.abs(drawn["gap"]).sum(axis=1) / n
    return out


def _row_mean(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _minus(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: a[key] - b[key] for key in a if key in b}


def _interval(values: np.ndarray, *, pushed_up: bool = False) -> dict[str, float]:
    """Return the value of the sample (row 0) with the 2.5th and the 97.5th percentile of its draws.

    A statistic that noise pushes up is pushed up once more in every draw. The mean of the draws minus the value
    estimates by how much (Efron and Tibshirani 1993, chapter 10), and the percentiles are moved back by that.
    """
    draws = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(draws, [2.5, 97.5]) if len(draws) else (np.nan, np.nan)
    bias = draws.mean() - values[0] if pushed_up and len(draws) else 0.0
    return {"value": float(values[0]), "low": float(low - bias), "high": float(high - bias)}


def _one(key: str, values: np.ndarray) -> dict[str, float]:
    return _interval(values, pushed_up=key in PUSHED_UP)


def _summary(values: Mapping[str, np.ndarray], classes: Sequence[str], present: np.ndarray) -> dict[str, Any]:
    out: dict[str, Any] = {"groups": {}}
    for key, value in values.items():
        if key == "f1":
            out["f1"] = {classes[i]: _interval(value[:, i]) for i in present}
        elif key.startswith("group:"):
            out["groups"][key.removeprefix("group:")] = _interval(value)
        else:
            out[key] = _one(key, value)
    return out


def _not_negative(found: dict[str, Any]) -> dict[str, Any]:
    """Return the summary of a model in which no interval of what cannot be negative reaches below 0."""
    for key in PUSHED_UP:
        if key in found:
            found[key]["low"] = max(found[key]["low"], 0.0)
    return found


def _behind(
    statistics: Mapping[str, Mapping[str, np.ndarray]], classes: Sequence[str], present: np.ndarray
) -> dict[str, Any]:
    """Return how far each model is from the best one, statistic by statistic; see :func:`paired_bootstrap`."""
    out: dict[str, Any] = {name: {"groups": {}} for name in statistics}
    for key in dict.fromkeys(key for values in statistics.values() for key in values):
        group = key.removeprefix("group:") if key.startswith("group:") else ""
        if not group and key not in BETTER:
            continue
        better = BETTER["f1" if group else key]
        having = {name: values[key] for name, values in statistics.items() if key in values}
        if key == "f1":
            by_class = {i: _from_best(key, {n: v[:, i] for n, v in having.items()}, better) for i in present}
            for name in having:
                out[name]["f1"] = {classes[i]: found[name] for i, found in by_class.items()}
            continue
        for name, found in _from_best(key, having, better).items():
            (out[name]["groups"] if group else out[name])[group or key] = found
    return out


def _from_best(key: str, having: Mapping[str, np.ndarray], better: int) -> dict[str, dict[str, Any]]:
    known = [name for name in having if np.isfinite(having[name][0])]
    if not known:
        return {}
    best = max(known, key=lambda name: better * having[name][0])
    return {name: {"best": best, **_one(key, having[name] - having[best])} for name in known}
