"""The local model (Path A): one 56 um window and the organ's name."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from nuclass.models.backbones import Backbone
from nuclass.models.heads import OrganFiLM, make_head


class Output(NamedTuple):
    """What the local and the global model return: features (B, D) that enter the head, and logits (B, C)."""

    features: Tensor
    logits: Tensor


class LocalModel(nn.Module):
    """Backbone, layer norm, FiLM by the organ, head.

    Parameters
    ----------
    backbone
        Gives D features from an image.
    n_organs, n_classes
        Sizes of the vocabularies.
    organ_dim, hidden, dropout, organ_dropout
        Width of the organ's embedding, of the head's hidden layer, and dropout probabilities.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_organs: int,
        n_classes: int,
        *,
        organ_dim: int = 64,
        hidden: int = 1024,
        dropout: float = 0.2,
        organ_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.norm = nn.LayerNorm(backbone.feature_dim)
        self.film = OrganFiLM(n_organs, organ_dim, backbone.feature_dim, organ_dropout)
        self.head = make_head(backbone.feature_dim, hidden, n_classes, dropout)

    def forward(self, images: Tensor, organ: Tensor) -> Output:
        """Classify ``images`` (B, 3, S, S) in [0, 1] of ``organ`` (B,)."""
        return self.classify(self.backbone(images), organ)

    def classify(self, features: Tensor, organ: Tensor) -> Output:
        """Classify backbone features (B, D)."""
        features = self.film(self.norm(features), organ)
        return Output(features, self.head(features))
