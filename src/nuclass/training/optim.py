"""Parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from nuclass.training.config import Optimizer

_NO_DECAY = ("cls_token", "reg_token", "register_tokens", "mask_token", "pos_embed", "embedding.weight")
_BLOCK = re.compile(r"(?:blocks|layer|layers|stages)\.(\d+)\.")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Say whether weight decay applies: matrices and kernels only; no norms, biases, tokens, embeddings."""
    return parameter.ndim >= 2 and not name.endswith(_NO_DECAY) and "weight_logits" not in name


def parameter_groups(model: nn.Module, settings: Optimizer, backbone: str = "backbone.") -> list[dict[str, Any]]:
    """Sort parameters into few groups, one for each pair of learning rate and decay.

    With ``llrd`` < 1 a transformer's block i of n gets ``lr_backbone * llrd^(n-1-i)`` and its embedding
    ``lr_backbone * llrd^n``; the last block and everything after it get ``lr_backbone``.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    inside = [name for name, _ in named if name.startswith(backbone)]
    depth = 1 + max((_block(name) for name in inside), default=-1)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        rate = settings.lr_head
        if name.startswith(backbone):
            rate = settings.lr_backbone * settings.llrd ** _layers_above(name, depth)
        decay = settings.weight_decay if decays(name, parameter) else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()]


def _block(name: str) -> int:
    match = _BLOCK.search(name)
    return int(match.group(1)) if match else -1


def _layers_above(name: str, depth: int) -> int:
    if depth == 0:
        return 0
    block = _block(name)
    if block >= 0:
        return depth - 1 - block
    is_input = any(part in name for part in ("embed", "cls_token", "reg_token", "register_tokens", "mask_token"))
    return depth if is_input else 0


def warmup_factor(step: int, settings: Optimizer, total_steps: int) -> float:
    """Return the factor of the learning rate at an optimizer step: linear warm-up, then constant or cosine to 0."""
    warmup = settings.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(groups: Iterable[dict[str, Any]], *, fused: bool = False) -> torch.optim.AdamW:
    """Return AdamW over parameter groups; fused kernels on CUDA."""
    return torch.optim.AdamW(list(groups), fused=fused or None)
