"""Targets and terms of the gate's loss as pure functions. A test works each out by hand.

The formulas and their factors are those of the original's gate training; what differs is told where it differs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nuclass.models.losses import EPSILON


class GateTargets(NamedTuple):
    """Targets of the gate: ``target`` t and ``weight`` w, ``delta`` = p_B(y) - p_A(y), each (B,), no gradient."""

    target: Tensor
    weight: Tensor
    delta: Tensor


def gate_targets(
    p_a: Tensor,
    p_b: Tensor,
    labels: Tensor,
    *,
    soft_k: float = 10.0,
    conflict_boost: float = 2.0,
    delta_scale: float = 1.0,
    delta_gamma: float = 1.0,
) -> GateTargets:
    """Return what the gate should say, and how much each cell counts.

    t = 1 where only the global model is right, 0 where only the local one is, else
    ``sigmoid(soft_k (p_B(y) - p_A(y)))``. w = ``1 + conflict_boost [exactly one is right] + delta_scale
    |p_B(y) - p_A(y)|^delta_gamma``.
    """
    p_a, p_b = p_a.detach(), p_b.detach()
    delta = (p_b.gather(1, labels[:, None]) - p_a.gather(1, labels[:, None]))[:, 0]
    right_a, right_b = p_a.argmax(1) == labels, p_b.argmax(1) == labels
    target = torch.sigmoid(soft_k * delta)
    target = torch.where(right_b & ~right_a, torch.ones_like(target), target)
    target = torch.where(right_a & ~right_b, torch.zeros_like(target), target)
    weight = 1 + conflict_boost * (right_a != right_b) + delta_scale * delta.abs() ** delta_gamma
    return GateTargets(target, weight, delta)


class GateLoss(NamedTuple):
    """The gate's loss and its terms before their factors, scalars."""

    total: Tensor
    mix: Tensor
    bce: Tensor
    align: Tensor
    entropy: Tensor
    aux: Tensor


def gate_loss(
    gate_logits: Tensor,
    p_a: Tensor,
    p_b: Tensor,
    labels: Tensor,
    targets: GateTargets,
    *,
    branch_logits: tuple[Tensor, Tensor] | None = None,
    pos_weight: float | Tensor = 1.0,
    mix_weight: float = 1.0,
    bce_weight: float = 1.0,
    align_weight: float = 0.1,
    entropy_weight: float = 0.05,
    aux_weight: float = 0.05,
) -> GateLoss:
    """Return the sum of five weighted terms.

    1. mix: ``mean[w (-ln(p_mix(y) + 1e-8))]``
    2. bce: ``mean[w BCE(g, t)]``, positive part times ``pos_weight``
    3. align: ``mean[w KL(p_sel || p_mix)]``, p_sel = p_B where t > 0.5, else p_A
    4. entropy: ``mean[H_b(g) |p_B(y) - p_A(y)|]``, H_b in nats
    5. aux: ``0.5 (CE(z_A, y) + CE(z_B, y))``, only where ``branch_logits`` are given: the heads learn too

    Parameters
    ----------
    gate_logits, labels
        (B,).
    p_a, p_b
        Calibrated probabilities, (B, C).
    targets
        Of :func:`gate_targets`.
    branch_logits
        Uncalibrated ``z_A``, ``z_B`` of heads that are trained, (B, C).
    pos_weight
        One number, or one a cell, (B,).
    """
    t, w, delta = targets
    g = torch.sigmoid(gate_logits)
    p_mix = (1 - g)[:, None] * p_a + g[:, None] * p_b
    mixed = -(w * (p_mix.gather(1, labels[:, None])[:, 0] + EPSILON).log()).mean()
    bce = F.binary_cross_entropy_with_logits(
        gate_logits, t, weight=w, pos_weight=torch.as_tensor(pos_weight, dtype=t.dtype, device=t.device)
    )
    selected = torch.where((t > 0.5)[:, None], p_b, p_a)
    divergence = (selected * ((selected + EPSILON).log() - (p_mix + EPSILON).log())).sum(1)
    align = (w * divergence).mean()
    binary_entropy = -(g * (g + EPSILON).log() + (1 - g) * (1 - g + EPSILON).log())
    entropy = (binary_entropy * delta.abs()).mean()
    aux = torch.zeros((), device=t.device)
    if branch_logits is not None:
        aux = 0.5 * (F.cross_entropy(branch_logits[0], labels) + F.cross_entropy(branch_logits[1], labels))
    total = mix_weight * mixed + bce_weight * bce + align_weight * align + entropy_weight * entropy + aux_weight * aux
    return GateLoss(total, mixed, bce, align, entropy, aux)


def auto_pos_weight(target: Tensor) -> float:
    """Return ``(1 - m) / m``, m the mean target over the whole fitting set, kept in [0.001, 0.999]."""
    mean = float(target.mean().clamp(1e-3, 1 - 1e-3))
    return (1 - mean) / mean


def batch_pos_weight(target: Tensor, cells: int = 12) -> Tensor:
    """Return :func:`auto_pos_weight` of each ``cells`` consecutive cells, repeated for them, (B,).

    The original's way: it sums the gradients of micro-batches of 12 and balances each by itself. All terms are
    means, so one batch of n such parts gives the gradient that n parts one after the other give.
    """
    parts = [part.mean().clamp(1e-3, 1 - 1e-3).expand(len(part)) for part in target.split(cells)]
    means = torch.cat(parts)
    return (1 - means) / means
