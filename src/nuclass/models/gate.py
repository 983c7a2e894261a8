"""The gate: a weight in (0, 1) between the local and the global model, cell by cell."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nuclass.models.losses import normalised_entropy

STATISTICS = ("max_a", "max_b", "entropy_a", "entropy_b", "margin_a", "margin_b", "difference", "abs_difference")


def gate_statistics(p_a: Tensor, p_b: Tensor) -> Tensor:
    """Return the eight statistics (B, 8) of two sets of probabilities (B, C), in the order of ``STATISTICS``.

    Maxima, entropies divided by ln C, margins between the two highest, and the difference of the maxima
    ``d = max p_B - max p_A`` with its absolute value.
    """
    top_a, top_b = p_a.topk(2, 1).values, p_b.topk(2, 1).values
    difference = top_b[:, 0] - top_a[:, 0]
    return torch.stack(
        [
            top_a[:, 0],
            top_b[:, 0],
            normalised_entropy(p_a),
            normalised_entropy(p_b),
            top_a[:, 0] - top_a[:, 1],
            top_b[:, 0] - top_b[:, 1],
            difference,
            difference.abs(),
        ],
        1,
    )


def mix(p_a: Tensor, p_b: Tensor, g: Tensor) -> Tensor:
    """Return ``(1 - g) p_A + g p_B``; probabilities (B, C), ``g`` (B,) the weight of the global model."""
    return (1 - g)[:, None] * p_a + g[:, None] * p_b


def _projection(width: int, project: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, project), nn.SiLU(), nn.Dropout(dropout))


class GateModel(nn.Module):
    """``g = sigmoid(MLP([f_A ; f_B ; 8 statistics]))``.

    Parameters
    ----------
    dim_a, dim_b
        Widths of the local and global models' features.
    project
        Width of each projection; 0 leaves the features out and uses the statistics alone.
    hidden
        Widths of the MLP's hidden layers.
    """

    def __init__(
        self, dim_a: int, dim_b: int, *, project: int = 128, hidden: tuple[int, ...] = (256, 64), dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.project_a = _projection(dim_a, project, dropout) if project else None
        self.project_b = _projection(dim_b, project, dropout) if project else None
        layers: list[nn.Module] = []
        width = 2 * project + len(STATISTICS)
        for size in hidden:
            layers += [nn.Linear(width, size), nn.SiLU(), nn.Dropout(dropout)]
            width = size
        layers.append(nn.Linear(width, 1))
        self.mlp = nn.Sequential(*layers)

    def forward(self, features_a: Tensor, features_b: Tensor, p_a: Tensor, p_b: Tensor) -> Tensor:
        """Return the gate's logits (B,); ``p_a`` and ``p_b`` are calibrated probabilities (B, C)."""
        parts = [gate_statistics(p_a, p_b)]
        if self.project_a is not None and self.project_b is not None:
            parts = [self.project_a(features_a), self.project_b(features_b), *parts]
        return self.mlp(torch.cat(parts, 1))[:, 0]
