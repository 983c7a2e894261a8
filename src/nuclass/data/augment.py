"""Augmentation of whole batches on the device they lie on; every image gets its own parameters, without a loop.

Turns by right angles and mirrors are exact. All other movements go into one bilinear resampling whose borders are
reflected, so that no pixel appears that is not tissue of the window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Augment:
    """Augmentation of a batch on the device it is trained on; see :mod:`nuclass.data.augment`."""

    dihedral: bool = True
    rotate: float = 0.0
    shift: float = 0.0
    zoom: float = 0.0
    stain_scale: float = 0.25
    stain_shift: float = 0.05
    stain_mix: float = 0.05
    brightness: float = 0.1
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    blur: float = 0.5
    noise: float = 0.01


def to_unit(images: Tensor) -> Tensor:
    """Return uint8 images (B, 3, H, W) as float32 in [0, 1], channels last in memory."""
    import torch

    return images.float().div_(255).contiguous(memory_format=torch.channels_last)


def augment_images(images: Tensor, settings: Augment, generator: torch.Generator | None = None) -> Tensor:
    """Return augmented float images in [0, 1], channels last in memory.

    Parameters
    ----------
    images
        uint8, (B, 3, S, S).
    settings
        Strengths; 0 (or false) switches one off, and then draws no random number for it.
    generator
        Random state on the CPU; small parameter tensors are drawn there, so results do not depend on the device
        (but for ``noise``, whose pixels are drawn on the device). Parameters are drawn for the whole batch, kind
        by kind: the same images in batches of another size are augmented in another way.
    """
    import torch

    with torch.autocast(images.device.type, enabled=False):
        return _augment(images, settings, generator)


def _augment(images: Tensor, settings: Augment, generator: torch.Generator | None) -> Tensor:
    import torch

    from nuclass.data import image_ops as ops

    n = len(images)

    def uniform() -> Tensor:
        return torch.rand(n, generator=generator)

    def spread(strength: float) -> Tensor:
        """Return a number in +-strength an image, zeros (undrawn) where it is 0."""
        return (2 * uniform() - 1) * strength if strength else torch.zeros(n)

    def shaped(values: Tensor) -> Tensor:
        return values.to(images.device).view(-1, 1, 1, 1)

    if settings.dihedral:
        images = ops.dihedral(images, torch.randint(0, 8, (n,), generator=generator))
    x = images.contiguous().float()
    if settings.rotate or settings.shift or settings.zoom:
        degrees, zoom = spread(settings.rotate), 1 + spread(settings.zoom)
        x = ops.move(x, degrees, torch.stack([spread(settings.shift), spread(settings.shift)], 1), zoom)
    if settings.stain_scale or settings.stain_shift or settings.stain_mix:
        strengths = (settings.stain_scale, settings.stain_shift, settings.stain_mix)
        x = ops.jitter_stain(x, *strengths, generator=generator)
    if settings.blur:
        x = torch.lerp(x, ops.blur(x), shaped(uniform()) * settings.blur)
    if settings.brightness:
        x = x.mul_(1 + (2 * shaped(uniform()) - 1) * settings.brightness)
    if settings.contrast or settings.saturation:
        x = ops.contrast_and_saturation(x, 1 + spread(settings.contrast), 1 + spread(settings.saturation))
    if settings.hue:
        x = ops.turn_hue(x, spread(settings.hue))
    if settings.noise:
        x = x.addcmul_(ops.noise_like(x, generator), 255 * settings.noise * shaped(uniform()))
    return x.mul_(1 / 255).clamp_(0, 1).contiguous(memory_format=torch.channels_last)
