"""Small parts: the classification head, and the ways in which the organ's name reaches it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FILM, CONCAT, NONE = "film", "concat", "none"
ORGAN_WAYS = (FILM, CONCAT, NONE)


def make_head(width: int, hidden: int, n_classes: int, dropout: float) -> nn.Sequential:
    """Return Dropout, Linear, SiLU, Dropout, Linear: (B, width) to logits (B, n_classes).

    With ``hidden`` 0 it is Dropout, Linear: a linear classifier.
    """
    if hidden == 0:
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, n_classes))
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(width, hidden),
        nn.SiLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, n_classes),
    )


class OrganEmbedding(nn.Module):
    """A learned vector an organ; the last organ is the unknown one.

    In training each cell's organ becomes unknown with probability ``organ_dropout``, so that a slide of an organ
    never seen can be typed too.

    Parameters
    ----------
    n_organs
        Organs, the unknown one included.
    organ_dim
        Width of the vectors.
    """

    def __init__(self, n_organs: int, organ_dim: int, organ_dropout: float = 0.0) -> None:
        super().__init__()
        self.organ_dropout = organ_dropout
        self.embedding = nn.Embedding(n_organs, organ_dim)

    def embed(self, organ: Tensor) -> Tensor:
        """Return the vectors (B, organ_dim) of ``organ`` (B,), int64."""
        if self.training and self.organ_dropout > 0:
            dropped = torch.rand(organ.shape, device=organ.device) < self.organ_dropout
            organ = organ.masked_fill(dropped, self.embedding.num_embeddings - 1)
        vectors: Tensor = self.embedding(organ)
        return vectors


class OrganFiLM(OrganEmbedding):
    """Feature-wise linear modulation: ``x * (1 + gamma(organ)) + beta(organ)`` (Perez et al., 2018).

    ``(gamma, beta) = Linear(SiLU(Linear(embedding)))``, its hidden layer ``max(64, 2 organ_dim)`` wide.

    Parameters
    ----------
    width
        Width of the features; they keep it.

    Others as for :class:`OrganEmbedding`.
    """

    def __init__(self, n_organs: int, organ_dim: int, width: int, organ_dropout: float = 0.0) -> None:
        super().__init__(n_organs, organ_dim, organ_dropout)
        hidden = max(64, 2 * organ_dim)
        self.width = width
        self.modulation = nn.Sequential(nn.Linear(organ_dim, hidden), nn.SiLU(), nn.Linear(hidden, 2 * width))

    def forward(self, features: Tensor, organ: Tensor) -> Tensor:
        """Modulate ``features`` (B, D) by ``organ`` (B,), int64."""
        gamma, beta = self.modulation(self.embed(organ)).chunk(2, 1)
        return features * (1 + gamma) + beta


class OrganConcat(OrganEmbedding):
    """The organ's vector behind the features: ``[x ; embedding(organ)]``, what FiLM is compared with.

    Parameters are those of :class:`OrganFiLM`; features become ``width + organ_dim`` wide.
    """

    def __init__(self, n_organs: int, organ_dim: int, width: int, organ_dropout: float = 0.0) -> None:
        super().__init__(n_organs, organ_dim, organ_dropout)
        self.width = width + organ_dim

    def forward(self, features: Tensor, organ: Tensor) -> Tensor:
        """Return (B, D + organ_dim) of ``features`` (B, D) and ``organ`` (B,), int64."""
        return torch.cat([features, self.embed(organ).to(features.dtype)], 1)
