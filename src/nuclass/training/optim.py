"""Parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from nuclass.core.log import get_logger
from nuclass.training.config import Optimizer

_log = get_logger(__name__)
_EMBEDDING = re.compile(r"(?<!patch_)embeddings?\.weight$")
_MATRIX = re.compile(r"(weight|(^|\.)proj)$")
_BLOCK = re.compile(r"(?:^|\.)(?:blocks|resblocks|layers?|stages|features|s)\.?(\d+)\.")
_OUTPUT = re.compile(r"(^|\.)proj$")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Say whether weight decay applies: matrices and kernels only.

    Not to norms, biases, class, register and mask tokens, positions, learned queries, embeddings of organs, tables
    of relative positions, and the factors of LayerScale.

    Parameters
    ----------
    name
        As ``named_parameters`` gives it; a matrix that belongs to no layer of its own is called ``proj``.
    """
    if parameter.ndim < 2 or not _MATRIX.search(name):
        return False
    return not (parameter.ndim == 2 and _EMBEDDING.search(name))


def parameter_groups(
    model: nn.Module, settings: Optimizer, backbone: str = "backbone.", *, decay_everywhere: bool = False
) -> list[dict[str, Any]]:
    """Sort parameters into few groups, one for each pair of learning rate and decay.

    With ``llrd`` < 1 block i of a backbone's n gets ``lr_backbone * llrd^(n-1-i)`` and what comes before the
    blocks ``lr_backbone * llrd^n``; the last block and everything after it get ``lr_backbone``. Blocks are those of
    a transformer, or the stages of a convolutional network.

    Parameters
    ----------
    model
        Its parameters that want a gradient are sorted.
    backbone
        What the names of the backbone's parameters begin with; all others get ``lr_head``.
    decay_everywhere
        The original's decay of every parameter, for a comparison; see :func:`decays`.
    """
    above = _layers_above([name for name, _ in model.named_parameters() if name.startswith(backbone)])
    if settings.llrd < 1 and above and not any(above.values()):
        _log.warning("llrd %g does nothing: the backbone's blocks are not known by their names", settings.llrd)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = settings.lr_backbone * settings.llrd ** above[name] if name in above else settings.lr_head
        decay = settings.weight_decay if decay_everywhere or decays(name, parameter) else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()]


def _layers_above(names: list[str]) -> dict[str, int]:
    """Return how many blocks lie between each of a backbone's parameters and its output.

    ``names`` are in the order of the network: what has no block's number belongs to the input where it comes
    before the first block, to the block before it, or to the output after the last one.
    """
    numbers = {name: int(match.group(1)) for name in names if (match := _BLOCK.search(name))}
    if not numbers:
        return dict.fromkeys(names, 0)
    last, depth = max(numbers.values()), 1 + max(numbers.values()) - min(numbers.values())
    above, here = {}, depth
    for name in names:
        if name in numbers:
            here = last - numbers[name]
        above[name] = 0 if _OUTPUT.search(name) else here
    return above


def warmup_factor(step: int, settings: Optimizer, total_steps: int) -> float:
    """Return the factor of the learning rate at an optimizer step: linear warm-up, then constant or cosine to 0."""
    warmup = settings.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return 0.5 * (1 + math.cos(math.pi * done))


class ClipsByNorm:
    """What a Lightning module needs to clip gradients beside the fused kernels of :func:`make_optimizer`."""

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm of all gradients; Lightning would refuse with fused kernels, though bf16 scales nothing."""
        if gradient_clip_val:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)


def make_optimizer(groups: Iterable[dict[str, Any]], *, fused: bool = True) -> torch.optim.AdamW:
    """Return AdamW over parameter groups.

    Parameters
    ----------
    fused
        One kernel for all tensors of a group: on a processor five times as fast as tensor by tensor. Not with
        ``16-mixed``, where gradients are unscaled before they are clipped.
    """
    return torch.optim.AdamW(list(groups), fused=fused)
