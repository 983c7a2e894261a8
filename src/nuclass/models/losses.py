"""Losses and weights of the local and the global model, and temperature scaling, as pure functions.

A test works each out by hand.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-8
TEMPERATURES = (0.05, 20.0)


def normalised_entropy(probabilities: Tensor) -> Tensor:
    """Return ``-sum p ln p / ln C`` of (B, C), as (B,), in [0, 1]."""
    p = probabilities.clamp_min(EPSILON)
    classes = torch.tensor(float(probabilities.shape[1]), device=p.device)
    return -(p * p.log()).sum(1) / classes.log()


def effective_number_weights(counts: Tensor, beta: float = 0.9999, *, guard: bool = True) -> Tensor:
    """Return class weights by the effective number of samples (Cui et al., 2019).

    ``w_c = (1 - beta) / (1 - beta^n_c)``, scaled so that the mean over the classes that occur is 1. A class that
    does not occur gets weight 0: without this guard it would get a huge weight and flatten all others.

    Parameters
    ----------
    counts
        Cells per class, (C,).
    beta
        0 weighs all classes alike, 1 by ``1 / n_c``.
    guard
        False gives the original's weights, for a comparison: the denominator is at least 1e-8 and the mean over
        all classes is 1, so that one class without cells takes nearly all of the weight.
    """
    counts = counts.double()
    effective = 1 - beta**counts if beta < 1 else counts
    numerator = 1 - beta if beta < 1 else 1.0
    if not guard:
        weights = numerator / effective.clamp_min(EPSILON)
        return (weights / weights.mean()).float()
    seen = counts > 0
    weights = torch.zeros_like(counts)
    weights[seen] = numerator / effective[seen]
    return (weights / weights[seen].mean()).float() if seen.any() else weights.float()


def balanced_cross_entropy(
    logits: Tensor, labels: Tensor, class_weights: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Return the cross-entropy of a batch with class weights and smoothed labels, a scalar.

    With ``l_c = -ln p_c``, s the smoothing, y the label and w the weights it is
    ``sum_i [(1 - s) w_y l_y + s / C sum_c w_c l_c] / sum_i w_y``: torch divides by the weights of the labels alone.

    Parameters
    ----------
    logits, labels
        (B, C) and (B,).
    class_weights
        :func:`effective_number_weights`, (C,).
    """
    return F.cross_entropy(logits, labels, weight=class_weights, label_smoothing=label_smoothing)


def uncertainty_weight(local_logits: Tensor, labels: Tensor, gamma: float = 2.0, *, detach: bool = True) -> Tensor:
    """Return ``(1 - p_A(y))^gamma`` (B,), without gradient.

    Parameters
    ----------
    local_logits
        (B, C), of the frozen local model: cells that it gets right already weigh little.
    labels
        (B,).
    detach
        False lets the gradient through, as the original did, for a comparison.
    """
    if detach:
        local_logits = local_logits.detach()
    probability = local_logits.softmax(1).gather(1, labels[:, None])[:, 0]
    return (1 - probability).clamp(0, 1) ** gamma


def entropy_weight(local_logits: Tensor, gamma: float = 2.0, *, detach: bool = True) -> Tensor:
    """Return ``(H(p_A) / ln C)^gamma`` (B,): the local model's doubt in its own words, without any label.

    Parameters are those of :func:`uncertainty_weight`.
    """
    if detach:
        local_logits = local_logits.detach()
    return normalised_entropy(local_logits.softmax(1)).clamp(0, 1) ** gamma


def guided_loss(
    fused_logits: Tensor,
    global_logits: Tensor,
    labels: Tensor,
    weight: Tensor,
    class_weights: Tensor,
    *,
    label_smoothing: float = 0.05,
    own_weight: float = 0.3,
    fused_weight: float = 1.0,
) -> Tensor:
    """Return ``fused_weight mean_i[w_i CE(z_fused, y)] + own_weight CE_weighted(z_B, y)``, a scalar.

    Parameters
    ----------
    fused_logits, global_logits
        ``z_A + g z_B`` and ``z_B``, (B, C).
    labels
        (B,).
    weight
        :func:`uncertainty_weight` or :func:`entropy_weight`, (B,).
    class_weights
        :func:`effective_number_weights`, (C,); only in the second term.
    """
    fused = F.cross_entropy(fused_logits, labels, reduction="none", label_smoothing=label_smoothing)
    own = balanced_cross_entropy(global_logits, labels, class_weights, label_smoothing)
    return fused_weight * (weight * fused).mean() + own_weight * own


class Temperature(NamedTuple):
    """A temperature, and the bound of its range that it ran into: ``low``, ``high`` or None."""

    value: float
    bound: str | None


def fit_temperature(logits: Tensor, labels: Tensor, bounds: tuple[float, float] = TEMPERATURES) -> float:
    """Return the temperature T that minimises the mean cross-entropy of ``logits / T`` (Guo et al., 2017).

    The loss is convex in 1/T, so a golden-section search over ln T within ``bounds`` finds it; no learning
    rate to choose and no failure to converge.

    Parameters
    ----------
    logits, labels
        (N, C) and (N,) of cells that the model was not fitted to.

    Raises
    ------
    ValueError
        Without cells, and for logits that are not finite.
    """
    return find_temperature(logits, labels, bounds).value


def find_temperature(logits: Tensor, labels: Tensor, bounds: tuple[float, float] = TEMPERATURES) -> Temperature:
    """Return what :func:`fit_temperature` returns, and whether it is a bound.

    It is the lower one where more confidence always pays, as where every cell is right, and the upper one where the
    logits tell less than nothing.
    """
    if len(labels) == 0:
        raise ValueError("no cells to fit a temperature on")
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("no temperature fits logits that are not finite")
    logits, labels = logits.double(), labels.long()

    def loss(log_t: float) -> float:
        return float(F.cross_entropy(logits / math.exp(log_t), labels))

    ratio = (5**0.5 - 1) / 2
    lowest, highest = (math.log(bound) for bound in bounds)
    low, high = lowest, highest
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > 1e-5:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = loss(right)
    found = (low + high) / 2
    bound = "low" if found < lowest + 1e-4 else "high" if found > highest - 1e-4 else None
    return Temperature(math.exp(found), bound)
