"""Losses and weights as pure functions. A test works each out by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-8


def normalised_entropy(probabilities: Tensor) -> Tensor:
    """Return ``-sum p ln p / ln C`` of (B, C), as (B,), in [0, 1]."""
    p = probabilities.clamp_min(EPSILON)
    classes = torch.tensor(float(probabilities.shape[1]), device=p.device)
    return -(p * p.log()).sum(1) / classes.log()


def effective_number_weights(counts: Tensor, beta: float = 0.9999) -> Tensor:
    """Return class weights by the effective number of samples (Cui et al., 2019).

    ``w_c = (1 - beta) / (1 - beta^n_c)``, scaled so that the mean over the classes that occur is 1. A class that
    does not occur gets weight 0: without this guard it would get a huge weight and flatten all others.

    Parameters
    ----------
    counts
        Cells per class, (C,).
    """
    counts = counts.double()
    seen = counts > 0
    weights = torch.zeros_like(counts)
    weights[seen] = (1 - beta) / (1 - beta ** counts[seen]) if beta < 1 else 1 / counts[seen]
    return (weights / weights[seen].mean()).float() if seen.any() else weights.float()


def uncertainty_weight(local_logits: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """Return ``(1 - p_A(y))^gamma`` (B,), without gradient.

    ``local_logits`` (B, C) come from the frozen local model: cells it already gets right weigh little.
    """
    probability = local_logits.detach().softmax(1).gather(1, labels[:, None])[:, 0]
    return (1 - probability).clamp(0, 1) ** gamma


def guided_loss(
    fused_logits: Tensor,
    global_logits: Tensor,
    labels: Tensor,
    weight: Tensor,
    class_weights: Tensor,
    *,
    label_smoothing: float = 0.05,
    own_weight: float = 0.3,
) -> Tensor:
    """Return ``mean_i[w_i CE(z_fused, y)] + own_weight CE_weighted(z_B, y)``.

    Parameters
    ----------
    fused_logits, global_logits
        ``z_A + g z_B`` and ``z_B``, (B, C).
    weight
        :func:`uncertainty_weight`, (B,).
    class_weights
        :func:`effective_number_weights`, (C,); only in the second term.
    """
    fused = F.cross_entropy(fused_logits, labels, reduction="none", label_smoothing=label_smoothing)
    own = F.cross_entropy(global_logits, labels, weight=class_weights, label_smoothing=label_smoothing)
    return (weight.detach() * fused).mean() + own_weight * own


def fit_temperature(logits: Tensor, labels: Tensor, bounds: tuple[float, float] = (0.05, 20.0)) -> float:
    """Return the temperature T that minimises the mean cross-entropy of ``logits / T`` (Guo et al., 2017).

    The loss is convex in 1/T, so a golden-section search over ln T within ``bounds`` finds it; no learning
    rate to choose and no failure to converge.
    """
    if len(labels) == 0:
        raise ValueError("no cells to fit a temperature on")
    logits, labels = logits.double(), labels.long()

    def loss(log_t: float) -> float:
        return float(F.cross_entropy(logits / torch.tensor(log_t).exp(), labels))

    ratio = (5**0.5 - 1) / 2
    low, high = (float(torch.tensor(bound).log()) for bound in bounds)
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
    return float(torch.tensor((low + high) / 2).exp())
