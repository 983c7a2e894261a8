"""The local model (Path A): one 56 um window and the organ's name."""

from __future__ import annotations

import copy
from typing import NamedTuple

from torch import Tensor, nn

from nuclass.models.backbones import Backbone
from nuclass.models.heads import CONCAT, FILM, NONE, ORGAN_WAYS, OrganConcat, OrganFiLM, make_head

ORGAN_DIM = {FILM: 64, CONCAT: 32, NONE: 0}
"""Width of the organ's vector in the published models, by the way it is used."""


class Output(NamedTuple):
    """What the local and the global model return: features (B, D) that enter the head, and logits (B, C)."""

    features: Tensor
    logits: Tensor


class _Heads(nn.Module):
    """Layer norm, the organ, head: what comes after a backbone."""

    norm: nn.LayerNorm
    film: OrganFiLM | None
    concat: OrganConcat | None
    head: nn.Sequential

    def classify(self, features: Tensor, organ: Tensor) -> Output:
        """Classify backbone features (B, D) of ``organ`` (B,), int64."""
        features = self.norm(features)
        if self.film is not None:
            features = self.film(features, organ)
        if self.concat is not None:
            features = self.concat(features, organ)
        return Output(features, self.head(features))


class LocalModel(_Heads):
    """Backbone, layer norm, the organ, head.

    Parameters
    ----------
    backbone
        Gives D features from an image.
    n_organs, n_classes
        Sizes of the vocabularies; the last organ is the unknown one.
    organ
        How the organ is used: ``film`` modulates the features, ``concat`` puts its vector behind them, ``none``
        leaves it out; then the model has no parameters for it and answers alike for all organs.
    organ_dim
        Width of the organ's vector; None is the published one, 64 for ``film`` and 32 for ``concat``.
    hidden, dropout, organ_dropout
        Width of the head's hidden layer (0: none, a linear head), and dropout probabilities.

    Raises
    ------
    ValueError
        For another word in ``organ``.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_organs: int,
        n_classes: int,
        *,
        organ: str = FILM,
        organ_dim: int | None = None,
        hidden: int = 1024,
        dropout: float = 0.2,
        organ_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if organ not in ORGAN_WAYS:
            raise ValueError(f"organ must be one of {', '.join(ORGAN_WAYS)}, not {organ!r}")
        width, dim = backbone.feature_dim, ORGAN_DIM[organ] if organ_dim is None else organ_dim
        self.backbone = backbone
        self.norm = nn.LayerNorm(width)
        self.film = OrganFiLM(n_organs, dim, width, organ_dropout) if organ == FILM else None
        self.concat = OrganConcat(n_organs, dim, width, organ_dropout) if organ == CONCAT else None
        self.head = make_head(width if self.concat is None else self.concat.width, hidden, n_classes, dropout)

    def forward(self, images: Tensor, organ: Tensor) -> Output:
        """Classify ``images`` (B, 3, S, S) in [0, 1] of ``organ`` (B,)."""
        return self.classify(self.backbone(images), organ)


class LocalHeads(_Heads):
    """A copy of all that a local model has after its backbone.

    Parameters
    ----------
    model
        The local model; it is not changed.
    """

    def __init__(self, model: LocalModel) -> None:
        super().__init__()
        self.norm = copy.deepcopy(model.norm)
        self.film = copy.deepcopy(model.film)
        self.concat = copy.deepcopy(model.concat)
        self.head = copy.deepcopy(model.head)
