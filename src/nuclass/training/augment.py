"""Augmentation of whole batches in torch, on any device; per-sample parameters, no loop over images.

Stain is changed in optical density ``OD = -ln((I + 1) / 256)``, where dyes add up (Beer-Lambert). The change is a
per-sample linear map: unmix into haematoxylin, eosin and a residual (Ruifrok and Johnston, 2001), scale and
shift each, mix back. Slides differ in stain and scanner; a model must not lean on either.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nuclass.training.config import Augment

_HED = torch.tensor([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
_HED = _HED / _HED.norm(dim=1, keepdim=True)
_BLUR = torch.tensor([1.0, 2.0, 1.0])


def to_unit(images: Tensor) -> Tensor:
    """Return uint8 images (B, 3, H, W) as float32 in [0, 1], channels last in memory."""
    return images.float().div_(255).contiguous(memory_format=torch.channels_last)


def augment_images(images: Tensor, settings: Augment, generator: torch.Generator | None = None) -> Tensor:
    """Return augmented float images in [0, 1].

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
    if settings.dihedral:
        images = dihedral(images, torch.randint(0, 8, (len(images),), generator=generator))
    x = to_unit(images)
    if settings.stain_scale or settings.stain_shift or settings.stain_mix:
        x = jitter_stain(x, settings, generator)
    if settings.blur:
        weight = torch.rand(len(x), generator=generator) * settings.blur
        x = torch.lerp(x, blur(x), weight.to(x.device).view(-1, 1, 1, 1))
    if settings.brightness:
        gain = 1 + (2 * torch.rand(len(x), generator=generator) - 1) * settings.brightness
        x = x * gain.to(x.device).view(-1, 1, 1, 1)
    if settings.noise:
        sigma = torch.rand(len(x), generator=generator).to(x.device).view(-1, 1, 1, 1) * settings.noise
        x = x + sigma * _noise_like(x, generator)
    return x.clamp_(0, 1)


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
    """Scale, shift and mix the stains of float images (B, 3, H, W) in [0, 1], each sample its own way."""
    n = len(x)

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(n, *shape, generator=generator) - 1

    scale = 1 + settings.stain_scale * uniform(3)
    turned = torch.eye(3) + settings.stain_mix * uniform(3, 3)
    stain_to_rgb = _HED @ turned
    linear = torch.linalg.inv(_HED) @ (scale[:, :, None] * stain_to_rgb)
    offset = (settings.stain_shift * uniform(3))[:, None, :] @ stain_to_rgb
    density = x.contiguous().view(n, 3, -1).mul(255 / 256).add_(1 / 256).log_().neg_()
    changed = torch.baddbmm(offset.mT.to(x.device), linear.mT.to(x.device), density)
    intensity = changed.neg_().exp_().mul_(256 / 255).sub_(1 / 255).clamp_(0, 1)
    return intensity.view(x.shape).contiguous(memory_format=torch.channels_last)


def blur(x: Tensor) -> Tensor:
    """Return a 3 x 3 binomial blur, edges repeated."""
    channels = x.shape[1]
    row = (_BLUR / _BLUR.sum()).to(x).view(1, 1, 1, 3).expand(channels, 1, 1, 3)
    x = F.conv2d(F.pad(x, (1, 1, 0, 0), mode="replicate"), row, groups=channels)
    return F.conv2d(F.pad(x, (0, 0, 1, 1), mode="replicate"), row.transpose(2, 3), groups=channels)


def _noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return unit Gaussian noise; seeded on the CPU generator, drawn on the device of ``x``."""
    if x.device.type == "cpu":
        return torch.randn(x.shape, generator=generator)
    seed = int(torch.randint(0, 2**62, (), generator=generator))
    device_generator = torch.Generator(x.device).manual_seed(seed)
    return torch.randn(x.shape, generator=device_generator, device=x.device)
