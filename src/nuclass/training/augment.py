"""Augmentation of whole batches in torch, on any device; per-sample parameters, no loop over images.

Stain is changed in optical density ``OD = -ln((I + 1) / 256)``, where dyes add up (Beer-Lambert). The change is a
per-sample linear map: unmix into haematoxylin, eosin and a residual (Ruifrok and Johnston, 2001), scale and
shift each, mix back. Slides differ in stain and scanner; a model must not lean on either.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nuclass.training.config import Augment

_HED = torch.tensor([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
_HED = _HED / _HED.norm(dim=1, keepdim=True)


def to_unit(images: Tensor) -> Tensor:
    """Return uint8 images (B, 3, H, W) as float32 in [0, 1], channels last in memory."""
    return images.float().div_(255).contiguous(memory_format=torch.channels_last)


def augment_images(images: Tensor, settings: Augment, generator: torch.Generator | None = None) -> Tensor:
    """Return augmented float images in [0, 1], channels last in memory.

    Parameters
    ----------
    images
        uint8, (B, 3, S, S).
    settings
        Strengths; 0 (or false) switches one off.
    generator
        Random state on the CPU; small parameter tensors are drawn there, so results do not depend on the device.
    """
    with torch.autocast(images.device.type, enabled=False):
        return _augment(images, settings, generator)


def _augment(images: Tensor, settings: Augment, generator: torch.Generator | None) -> Tensor:
    n = len(images)
    if settings.dihedral:
        images = dihedral(images, torch.randint(0, 8, (n,), generator=generator))
    x = images.contiguous().float()

    def uniform() -> Tensor:
        return torch.rand(n, generator=generator).to(x.device).view(-1, 1, 1, 1)

    if settings.stain_scale or settings.stain_shift or settings.stain_mix:
        x = jitter_stain(x, settings, generator)
    if settings.blur:
        x = torch.lerp(x, blur(x), uniform() * settings.blur)
    if settings.brightness:
        x = x.mul_(1 + (2 * uniform() - 1) * settings.brightness)
    if settings.noise:
        x = x.addcmul_(_noise_like(x, generator), 255 * settings.noise * uniform())
    return x.mul_(1 / 255).clamp_(0, 1).contiguous(memory_format=torch.channels_last)


def dihedral(images: Tensor, operation: Tensor) -> Tensor:
    """Apply one of the eight symmetries of the square to each image; exact, no interpolation.

    ``operation`` (B,) in 0..7: quarter turns (``operation % 4``), mirrored first where ``operation >= 4``.
    """
    result = torch.empty_like(images)
    for k in range(8):
        chosen = (operation == k).nonzero()[:, 0].to(images.device)
        if len(chosen):
            part = images[chosen]
            part = part.flip(-1) if k >= 4 else part
            result[chosen] = torch.rot90(part, k % 4, (-2, -1))
    return result


def jitter_stain(x: Tensor, settings: Augment, generator: torch.Generator | None = None) -> Tensor:
    """Scale, shift and mix the stains of float images (B, 3, H, W) in [0, 255], each sample its own way.

    With ``OD = ln 256 - ln(I + 1)`` the whole change is one affine map of ``ln(I + 1)`` per sample.
    """
    n = len(x)

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(n, *shape, generator=generator) - 1

    scale = 1 + settings.stain_scale * uniform(3)
    turned = torch.eye(3) + settings.stain_mix * uniform(3, 3)
    stain_to_rgb = _HED @ turned
    linear = torch.linalg.inv(_HED) @ (scale[:, :, None] * stain_to_rgb)
    shift = (settings.stain_shift * uniform(3))[:, None, :] @ stain_to_rgb
    offset = math.log(256) * (1 - linear.sum(1, keepdim=True)) - shift
    brightness = (x + 1).log_().view(n, 3, -1)
    changed = torch.baddbmm(offset.mT.to(x.device), linear.mT.to(x.device), brightness)
    return changed.exp_().sub_(1).clamp_(0, 255).view(x.shape)


def blur(x: Tensor) -> Tensor:
    """Return a 3 x 3 binomial blur, edges repeated."""
    wide = F.pad(x, (1, 1, 0, 0), mode="replicate")
    x = torch.add(wide[..., :-2], wide[..., 2:]).add_(x, alpha=2)
    tall = F.pad(x, (0, 0, 1, 1), mode="replicate")
    return torch.add(tall[..., :-2, :], tall[..., 2:, :]).add_(x, alpha=2).mul_(1 / 16)


def _noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return unit Gaussian noise; seeded on the CPU generator, drawn on the device of ``x``."""
    if x.device.type == "cpu":
        return torch.randn(x.shape, generator=generator)
    seed = int(torch.randint(0, 2**62, (), generator=generator))
    device_generator = torch.Generator(x.device).manual_seed(seed)
    return torch.randn(x.shape, generator=device_generator, device=x.device)
