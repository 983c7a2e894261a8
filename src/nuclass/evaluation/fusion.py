"""Ways to fuse two branches other than the gate: rules without parameters, one temperature, and stacking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nuclass.core.errors import UserError
from nuclass.evaluation.branch import plain_mean
from nuclass.evaluation.metrics import softmax

SMALLEST = 1e-6
"""Probabilities below count as this in a logarithm: what is less is not known from a val set."""
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Inverse weights of the squared coefficients (scikit-learn's ``C``) that stacking chooses from."""
FOLDS = 5
MOST_CELLS = 30_000
"""Cells that the choice rests on, at most."""
TEMPERATURES = (0.05, 20.0)
"""Range that a temperature is searched in."""


def product(p_local: np.ndarray, p_global: np.ndarray) -> np.ndarray:
    """Return the product of two branches' probabilities (N, C), scaled so that each row sums to one.

    Taken in logarithms of float64 with :data:`SMALLEST`, so that branches that exclude each other still give a row.
    """
    return softmax(_logs(p_local) + _logs(p_global))


def max_confidence(p_local: np.ndarray, p_global: np.ndarray) -> np.ndarray:
    """Return for each cell the probabilities (N, C) of the surer branch, the local one where both are as sure."""
    a, b = np.asarray(p_local, dtype=np.float64), np.asarray(p_global, dtype=np.float64)
    return np.where((b.max(axis=1) > a.max(axis=1))[:, None], b, a)


def temper(probs: np.ndarray, temperature: float) -> np.ndarray:
    """Return softmax(ln p / T), (N, C): the same arg max, with other confidence."""
    return softmax(_logs(probs) / temperature)


def fit_temperature(y: np.ndarray, probs: np.ndarray) -> float:
    """Return the temperature of :func:`temper` with the lowest log loss on labelled cells (Guo et al. 2017).

    ``y`` (N,) holds indices of the columns of ``probs`` (N, C).
    """
    from scipy.optimize import minimize_scalar

    logs, rows = _logs(probs), np.arange(len(y))

    def loss(log_temperature: float) -> float:
        p = softmax(logs / np.exp(log_temperature))[rows, y]
        return float(-np.log(np.maximum(p, np.finfo(np.float64).tiny)).mean())

    low, high = np.log(TEMPERATURES)
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))


@dataclass(frozen=True)
class Stacking:
    """A multinomial logistic regression on the logarithms of both branches' probabilities.

    Attributes
    ----------
    model
        Of scikit-learn, fitted on (N, 2C).
    fitted
        Columns of the classes among the cells it was fitted to.
    strength
        The inverse weight of the squared coefficients it was fitted with.
    """

    model: Any
    fitted: np.ndarray
    strength: float

    def predict(self, p_local: np.ndarray, p_global: np.ndarray) -> np.ndarray:
        """Return probabilities (N, C) from both branches' (N, C).

        A class without a fitting cell keeps the probability of the branches' mean, and the regression shares out
        the rest: it can say nothing of such a class.
        """
        out = plain_mean(p_local, p_global)
        rest = np.maximum(out[:, self.fitted].sum(axis=1, keepdims=True), 0)
        out[:, self.fitted] = rest * self.model.predict_proba(_features(p_local, p_global))
        return np.asarray(out / out.sum(axis=1, keepdims=True))


def fit_stacking(
    y: np.ndarray,
    p_local: np.ndarray,
    p_global: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 42,
) -> Stacking:
    """Fit the stacking on cells that neither branch was fitted to.

    The strength is the one with the lowest log loss in a cross-validation over :data:`FOLDS` parts of ``groups``, on
    :data:`MOST_CELLS` random cells at most: with few cells a weak penalty overfits, and the comparison would flatter
    the gate. Without groups, or with fewer of them than folds, it is the last of ``strengths``.

    Parameters
    ----------
    y
        True classes (N,), indices of columns.
    p_local, p_global
        Probabilities (N, C).
    groups
        Square of tissue of each cell (N,), which is not cut by a fold.

    Raises
    ------
    UserError
        Where fewer than two classes occur, or the shapes do not fit.
    """
    fitted = np.unique(y)
    if p_local.shape != p_global.shape or len(y) != len(p_local) or len(fitted) < 2:
        raise UserError(
            "Stacking cannot be fitted",
            found=f"{len(y)} labels of {len(fitted)} classes, probabilities {p_local.shape} and {p_global.shape}",
            expected="one row a cell, the same columns, cells of two classes or more",
        )
    features = _features(p_local, p_global)
    strength = float(strengths[-1])
    if groups is not None and len(np.unique(groups)) >= FOLDS and len(strengths) > 1:
        rows = np.arange(len(y))
        if len(y) > MOST_CELLS:
            rows = np.sort(np.random.default_rng(seed).choice(rows, MOST_CELLS, replace=False))
        losses = _held_out_losses(features[rows], y[rows], np.asarray(groups)[rows], strengths)
        strength = float(strengths[int(np.argmin(losses))])
    return Stacking(_regression(strength).fit(features, y), fitted, strength)


def _regression(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=2000)


def _held_out_losses(
    features: np.ndarray, y: np.ndarray, groups: np.ndarray, strengths: Sequence[float]
) -> list[float]:
    """Return the mean log loss of held-out cells for each strength; cells of a class unseen in a fold do not count."""
    from sklearn.model_selection import GroupKFold

    losses = []
    folds = list(GroupKFold(FOLDS).split(features, y, groups))
    for strength in strengths:
        total, cells = 0.0, 0
        for train, held in folds:
            if len(np.unique(y[train])) < 2:
                continue
            model = _regression(strength).fit(features[train], y[train])
            held = held[np.isin(y[held], model.classes_)]
            p = model.predict_proba(features[held])[np.arange(len(held)), np.searchsorted(model.classes_, y[held])]
            total -= float(np.log(np.maximum(p, np.finfo(np.float64).tiny)).sum())
            cells += len(held)
        losses.append(total / cells if cells else float("inf"))
    return losses


def _logs(probs: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(np.asarray(probs, dtype=np.float64), SMALLEST))


def _features(p_local: np.ndarray, p_global: np.ndarray) -> np.ndarray:
    return np.concatenate([_logs(p_local), _logs(p_global)], axis=1)
