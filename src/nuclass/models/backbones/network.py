"""A network with its normalisation and its way of pooling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nuclass.core.errors import UserError
from nuclass.models.backbones.forms import Form, HubForm
from nuclass.models.backbones.weights import WeightFile


class CenterPool(nn.Module):
    """Pool a feature map to ``[weighted mean ; mean]``, the weights learned per place.

    A plain mean cannot tell the cell in the middle from its neighbours. The weights start as a Gaussian around
    the middle (standard deviation a fifth of the side) and are a softmax over the places, one set for all channels.
    Input (B, C, h, w), output (B, 2C).
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        y = (torch.arange(height) + 0.5) / height - 0.5
        x = (torch.arange(width) + 0.5) / width - 0.5
        self.weight_logits = nn.Parameter(-(y[:, None] ** 2 + x[None, :] ** 2) / (2 * 0.2**2))

    def forward(self, features: Tensor) -> Tensor:
        """Pool a feature map (B, C, h, w)."""
        weights = torch.softmax(self.weight_logits.flatten(), 0).view_as(self.weight_logits)
        return torch.cat([(features * weights).sum((2, 3)), features.mean((2, 3))], 1)


class Backbone(nn.Module):
    """A network with its normalisation: images in [0, 1], shape (B, 3, S, S), to features (B, D).

    Attributes
    ----------
    settings
        The dictionary it was built from, complete enough to build it again without any file.
    library
        ``timm``, ``transformers`` or ``open_clip``.
    form
        How the network gives tokens or maps.
    kind
        ``tokens`` (a vision transformer) or ``map`` (a convolutional network).
    prefix_tokens
        Class and register tokens before the patch tokens; 0 for ``map``.
    token_dim, feature_dim
        Width of a token or place, and D.
    weights
        The file that the weights came from; None after a random start, and for an architecture that a checkpoint fills.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        settings: dict[str, Any],
        library: str,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        form: Form,
        weights: WeightFile | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.settings = settings
        self.library = library
        self.weights = weights
        self.input_px = int(settings["input_px"])
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.form = form
        self.kind, self.prefix_tokens = self.form.kind, self.form.prefix_tokens
        self.token_dim, self.feature_dim = self.form.token_dim, self.form.feature_dim
        self.pool: nn.Module | None = None
        if settings.get("pool", "native") == "center":
            self._pool_by_center()

    def _pool_by_center(self) -> None:
        net: Any = self.net
        if self.kind != "map" or not hasattr(net, "feature_info"):
            raise UserError(
                "This backbone has no feature map to pool",
                where="backbone.pool",
                found=f"pool: center with {self.settings['name']}",
                expected="pool: native for a vision transformer",
                fix="remove the key 'pool'",
            )
        side = -(-self.input_px // net.feature_info[-1]["reduction"])
        self.pool = CenterPool(side, side)
        self.feature_dim *= 2

    def normalise(self, images: Tensor) -> Tensor:
        """Return ``(images - mean) / std`` in float32; ``images`` in [0, 1]."""
        return (images.float() - self.mean) / self.std

    def checkpoint_gradients(self) -> None:
        """Keep no activations inside the blocks; compute them again in the backward pass."""
        self.form.checkpoint(self.net)

    def explained_layer(self) -> nn.Module:
        """Return the module whose output an activation map is made of."""
        return self.form.explained(self.net)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of ``images`` (B, 3, S, S) in [0, 1] as (B, D)."""
        return self.pool_tokens(self.spatial(images))

    def spatial(self, images: Tensor) -> Tensor:
        """Return what is pooled: tokens (B, T, D) after the final norm, or the last feature map (B, C, h, w)."""
        if images.shape[-1] != self.input_px or images.shape[-2] != self.input_px:
            raise ValueError(f"the backbone expects {self.input_px} px, got {tuple(images.shape[-2:])}")
        pixels = self.normalise(images).to(next(self.net.parameters()).dtype)
        return self.form.spatial(self.net, pixels)

    def pool_tokens(self, spatial: Tensor) -> Tensor:
        """Return (B, D) from the output of :meth:`spatial`."""
        return self.form.pool(self.net, spatial) if self.pool is None else self.pool(spatial)


def dinov3_form(net: Any) -> HubForm:
    """Return the form of a DINOv3 vision transformer, whose feature is the class token."""
    width = int(net.config.hidden_size)
    blocks = "model.layer" if hasattr(net, "model") else "layer"
    return HubForm("tokens", 1 + int(net.config.num_register_tokens), width, width, blocks, "norm1")


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
