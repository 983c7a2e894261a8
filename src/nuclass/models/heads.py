"""Small parts: the classification head and feature-wise modulation by the organ."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def make_head(width: int, hidden: int, n_classes: int, dropout: float) -> nn.Sequential:
    """Return Dropout, Linear, SiLU, Dropout, Linear: (B, width) to logits (B, n_classes)."""
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(width, hidden),
        nn.SiLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, n_classes),
    )


class OrganFiLM(nn.Module):
    """Feature-wise linear modulation: ``x * (1 + gamma(organ)) + beta(organ)``.

    The last index is the unknown organ. In training each sample's organ becomes unknown with probability
    ``organ_dropout``, so that a slide of an organ never seen can be typed too.

    Parameters
    ----------
    n_organs
        Organs, the unknown one included.
    organ_dim
        Width of the organ's embedding.
    width
        Width of the features.
    """

    def __init__(self, n_organs: int, organ_dim: int, width: int, organ_dropout: float = 0.0) -> None:
        super().__init__()
        hidden = max(64, 2 * organ_dim)
        self.organ_dropout = organ_dropout
        self.embedding = nn.Embedding(n_organs, organ_dim)
        self.modulation = nn.Sequential(nn.Linear(organ_dim, hidden), nn.SiLU(), nn.Linear(hidden, 2 * width))

    def forward(self, features: Tensor, organ: Tensor) -> Tensor:
        """Modulate ``features`` (B, D) by ``organ`` (B,), int64."""
        if self.training and self.organ_dropout > 0:
            dropped = torch.rand(organ.shape, device=organ.device) < self.organ_dropout
            organ = organ.masked_fill(dropped, self.embedding.num_embeddings - 1)
        gamma, beta = self.modulation(self.embedding(organ)).chunk(2, 1)
        return features * (1 + gamma) + beta
