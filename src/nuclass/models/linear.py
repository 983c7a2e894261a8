"""The linear head on standardised features of a frozen backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nuclass.models.local import Output


class LinearHead(nn.Module):
    """``z = W (x - mean) / std + b + o[organ]``: features (B, D) of organs (B,) to logits (B, C).

    The offset ``o`` of an organ is what a linear layer makes of ``[x ; e(organ)]``, for any embedding e of at least
    as many dimensions as there are organs: ``W_e e(organ)`` is a free vector for each organ. The unknown organ has
    offset 0.

    Parameters
    ----------
    width, n_classes
        D and C.
    n_organs
        Organs, the unknown one last; 0 leaves the organ out.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, n_classes: int, n_organs: int = 0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.weight = nn.Parameter(torch.zeros(n_classes, width))
        self.bias = nn.Parameter(torch.zeros(n_classes))
        self.offset = nn.Parameter(torch.zeros(n_organs, n_classes)) if n_organs else None

    def forward(self, features: Tensor, organ: Tensor) -> Output:
        """Return the standardised features (B, D) and the logits (B, C)."""
        x = (features.float() - self.mean) / self.std
        logits = x @ self.weight.T + self.bias
        return Output(x, logits if self.offset is None else logits + self.offset[organ])
