"""A network with its normalisation and its way of pooling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nuclass.core.errors import UserError


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
        The dictionary it was built from, complete enough to build it again.
    feature_dim
        D.
    kind
        ``tokens`` (a vision transformer) or ``map`` (a convolutional network).
    prefix_tokens
        Class and register tokens before the patch tokens; 0 for ``map``.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: nn.Module, settings: dict[str, Any], library: str, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.net = net
        self.settings = settings
        self.library = library
        self.input_px = int(settings["input_px"])
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.pool: nn.Module | None = None
        if library == "transformers":
            config: Any = net.config
            self.kind, self.prefix_tokens = "tokens", 1 + int(config.num_register_tokens)
            self.feature_dim = int(config.hidden_size)
        else:
            self._describe_timm(settings)

    def _describe_timm(self, settings: dict[str, Any]) -> None:
        net: Any = self.net
        is_vit = hasattr(net, "blocks") and hasattr(net, "num_prefix_tokens")
        self.kind, self.prefix_tokens = ("tokens", int(net.num_prefix_tokens)) if is_vit else ("map", 0)
        self.feature_dim = int(net.num_features)
        if settings.get("pool", "native") == "center":
            if is_vit:
                raise UserError(
                    "This backbone has no feature map to pool",
                    where="backbone.pool",
                    found=f"pool: center with {settings['name']}",
                    expected="pool: native for a vision transformer",
                    fix="remove the key 'pool'",
                )
            reduction = net.feature_info[-1]["reduction"]
            side = -(-self.input_px // reduction)
            self.pool = CenterPool(side, side)
            self.feature_dim *= 2

    def normalise(self, images: Tensor) -> Tensor:
        """Return ``(images - mean) / std`` in float32; ``images`` in [0, 1]."""
        return (images.float() - self.mean) / self.std

    def checkpoint_gradients(self) -> None:
        """Keep no activations inside the blocks; compute them again in the backward pass."""
        net: Any = self.net
        if self.library == "transformers":
            enable = getattr(net, "activation_checkpointing_enable", net.gradient_checkpointing_enable)
            enable()
        else:
            net.set_grad_checkpointing(True)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of ``images`` (B, 3, S, S) in [0, 1] as (B, D)."""
        return self.pool_tokens(self.spatial(images))

    def spatial(self, images: Tensor) -> Tensor:
        """Return what is pooled: tokens (B, T, D) after the final norm, or the last feature map (B, C, h, w)."""
        if images.shape[-1] != self.input_px or images.shape[-2] != self.input_px:
            raise ValueError(f"the backbone expects {self.input_px} px, got {tuple(images.shape[-2:])}")
        pixels = self.normalise(images)
        if self.library == "transformers":
            return self.net(pixel_values=pixels).last_hidden_state
        return self.net.forward_features(pixels)  # type: ignore[operator]

    def pool_tokens(self, spatial: Tensor) -> Tensor:
        """Return (B, D) from the output of :meth:`spatial`."""
        if self.library == "transformers":
            return spatial[:, 0]
        if self.pool is not None:
            return self.pool(spatial)
        return self.net.forward_head(spatial, pre_logits=True)  # type: ignore[operator]


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
