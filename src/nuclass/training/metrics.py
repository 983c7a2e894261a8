"""The few numbers that training itself needs; nuclass.evaluation computes the rest."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def confusion(labels: Tensor, predictions: Tensor, n_classes: int) -> Tensor:
    """Return counts (C, C), rows true, columns predicted."""
    return torch.bincount(labels.long() * n_classes + predictions.long(), minlength=n_classes**2).view(
        n_classes, n_classes
    )


def f1_per_class(labels: Tensor, predictions: Tensor, n_classes: int) -> Tensor:
    """Return F1 per class (C,); NaN where a class does not occur among the labels."""
    table = confusion(labels, predictions, n_classes).double()
    support, predicted, right = table.sum(1), table.sum(0), table.diagonal()
    f1 = 2 * right / (support + predicted).clamp_min(1)
    return torch.where(support > 0, f1, torch.nan)


def macro_f1(labels: Tensor, predictions: Tensor, n_classes: int) -> float:
    """Return the mean F1 over the classes that occur among the labels."""
    return float(f1_per_class(labels, predictions, n_classes).nanmean())


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error of the top class, ``bins`` equal bins of confidence (Guo et al., 2017)."""
    confidence, prediction = probabilities.max(1)
    right = (prediction == labels).double()
    index = (confidence * bins).long().clamp_max(bins - 1)
    zeros = torch.zeros(bins, dtype=torch.double)
    gap = zeros.index_add(0, index, right - confidence.double()).abs()
    return float(gap.sum() / max(len(labels), 1))


def summarise(logits: Tensor, labels: Tensor, classes: list[str]) -> dict[str, Any]:
    """Return accuracy, macro-F1, log loss, ECE and F1 per class of logits (N, C)."""
    logits = logits.float()
    predictions = logits.argmax(1)
    per_class = f1_per_class(labels, predictions, len(classes))
    return {
        "n": len(labels),
        "accuracy": float((predictions == labels).double().mean()),
        "f1_macro": float(per_class.nanmean()),
        "log_loss": float(F.cross_entropy(logits, labels)),
        "ece": calibration_error(logits.softmax(1), labels),
        "f1_per_class": {name: float(value) for name, value in zip(classes, per_class, strict=True)},
    }
