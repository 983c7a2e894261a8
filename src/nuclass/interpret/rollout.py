"""Attention rollout: how much of each patch reaches the class token, by attention alone.

``R = A_L ... A_1`` with ``A_l = (W_l + I) / 2``, where W_l is the attention of block l, the mean over its heads, and
the identity stands for the path around it (Abnar and Zuidema, 2020). It knows no class: two classes have one rollout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nuclass.core.errors import UserError
from nuclass.interpret.gradcam import to_grid
from nuclass.models.backbones import Backbone


class _Attention(TorchFunctionMode):
    """Keep the attention (B, T, T), the mean over the heads, of every call in here.

    Networks of timm and transformers call one function, those of open_clip another.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            told = func(*args, **{**kwargs, "need_weights": True, "average_attn_weights": True})
            self.kept.append(told[1])
            return told
        if func is F.scaled_dot_product_attention:
            self.kept.append(_weights(*args, **kwargs))
        return func(*args, **kwargs)


def _weights(query: Tensor, key: Tensor, *_: Any, scale: float | None = None, **__: Any) -> Tensor:
    """Return ``softmax(q k' scale)``, (B, T, T), the mean over the heads of ``query`` and ``key`` (B, H, T, d)."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return (query.float() @ key.float().transpose(-1, -2) * scale).softmax(-1).mean(1)


def has_attention(backbone: Backbone) -> bool:
    """Return whether a backbone is a vision transformer with one list of blocks."""
    return backbone.kind == "tokens" and bool(backbone.form.blocks)


@torch.no_grad()
def attention_maps(backbone: Backbone, images: Tensor) -> list[Tensor]:
    """Return the attention of each block (B, T, T), rows summing to one, for ``images`` (B, 3, S, S) in [0, 1].

    Raises
    ------
    UserError
        The network's attention is not computed by functions known here.
    """
    with _Attention() as attention:
        tokens = backbone.spatial(images)
    blocks = len(backbone.net.get_submodule(backbone.form.blocks))  # type: ignore[arg-type]
    square = [weights for weights in attention.kept if weights.shape[-2:] == (tokens.shape[1],) * 2]
    if len(square) != blocks:
        raise UserError(
            "The attention of this backbone cannot be read",
            where=type(backbone.net).__name__,
            found=f"{len(square)} square tables of attention",
            expected=f"{blocks}, one a block",
            fix="leave out the figure gradcam_controls, or take another backbone",
        )
    return square


def rollout(attention: Sequence[Tensor]) -> Tensor:
    """Return the rollout (B, T, T) of the blocks' attention, first block first; rows sum to one."""
    identity = torch.eye(attention[0].shape[-1], device=attention[0].device)
    total = identity.expand_as(attention[0])
    for weights in attention:
        mixed = (weights.float() + identity) / 2
        total = mixed / mixed.sum(-1, keepdim=True) @ total
    return total


def rollout_map(backbone: Backbone, images: Tensor) -> Tensor:
    """Return what reaches the class token from each patch (B, h, w); without one, what reaches the patches' mean."""
    total = rollout(attention_maps(backbone, images))
    rows = total[:, :1] if backbone.prefix_tokens else total.mean(1, keepdim=True)
    return to_grid(rows.transpose(1, 2), backbone)[:, 0]
