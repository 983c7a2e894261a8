"""Augmentation of whole batches on the device they lie on; every image gets its own parameters, without a loop.

Turns by right angles and mirrors are exact. All other movements go into one bilinear resampling whose borders are
reflected, so that no pixel appears that is not tissue of the window (but for :attr:`Augment.black_corners`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nuclass.core.ranges import NotNegative, PartialShare, Share

if TYPE_CHECKING:
    import torch
    from torch import Tensor


# Of float32 a thread: between them, the steps of a change then find an image in the processor's cache.
_CACHED_VALUES = 1 << 20


@dataclass(frozen=True)
class Augment:
    """Augmentation of a batch on the device it is trained on; see :mod:`nuclass.data.augment`.

    ``black_corners`` is a flaw of the original (:class:`nuclass.core.protocol.Protocol`), not a strength: mirrors
    alone, each with probability 1/2, in place of the eight symmetries; turns, shifts and zooms take the nearest pixel
    and fill with black; the stain stays. The strengths of all other changes are those given.
    """

    dihedral: bool = True
    rotate: NotNegative = 0.0
    shift: Share = 0.0
    zoom: PartialShare = 0.0
    stain_scale: NotNegative = 0.25
    stain_shift: NotNegative = 0.05
    stain_mix: NotNegative = 0.05
    brightness: Share = 0.1
    contrast: Share = 0.0
    saturation: Share = 0.0
    hue: Share = 0.0
    blur: Share = 0.5
    noise: Share = 0.01
    black_corners: bool = False


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
        draws = _draw(images, settings, generator)
        out = torch.empty(images.shape, device=images.device, memory_format=torch.channels_last)
        step = _images_at_once(images)
        for start in range(0, len(images), step):
            part = slice(start, start + step)
            drawn = {name: values[part] for name, values in draws.items()}
            out[part] = _change(images[part], drawn, black=settings.black_corners)
        return out


def _images_at_once(images: Tensor) -> int:
    """Return how many images to change together: all on a GPU, on a processor what its caches hold."""
    import torch

    if images.device.type != "cpu" or not len(images):
        return max(len(images), 1)
    return max(1, _CACHED_VALUES * torch.get_num_threads() // max(images[0].numel(), 1))


def _draw(images: Tensor, settings: Augment, generator: torch.Generator | None) -> dict[str, Tensor]:
    """Return the parameters of each image, first axis B, of the changes that are on; the order of drawing is fixed."""
    import torch

    from nuclass.data import image_ops as ops

    n = len(images)
    draws: dict[str, Tensor] = {}

    def uniform() -> Tensor:
        return torch.rand(n, generator=generator)

    def spread(strength: float) -> Tensor:
        """Return a number in +-strength an image, zeros (undrawn) where it is 0."""
        return (2 * uniform() - 1) * strength if strength else torch.zeros(n)

    if settings.dihedral and settings.black_corners:
        # Of the eight symmetries 0 is none, 2 both mirrors, 4 left-right, 6 top-bottom.
        draws["dihedral"] = 2 * torch.randint(0, 4, (n,), generator=generator)
    elif settings.dihedral:
        draws["dihedral"] = torch.randint(0, 8, (n,), generator=generator)
    if settings.rotate or settings.shift or settings.zoom:
        draws["degrees"], draws["zoom"] = spread(settings.rotate), 1 + spread(settings.zoom)
        draws["shift"] = torch.stack([spread(settings.shift), spread(settings.shift)], 1)
    if not settings.black_corners and (settings.stain_scale or settings.stain_shift or settings.stain_mix):
        strengths = (settings.stain_scale, settings.stain_shift, settings.stain_mix)
        draws["stain"], draws["stain_offset"] = ops.draw_stain(n, *strengths, generator=generator)
    if settings.blur:
        draws["blur"] = uniform() * settings.blur
    if settings.brightness:
        draws["brightness"] = 1 + spread(settings.brightness)
    if settings.contrast or settings.saturation:
        draws["contrast"], draws["saturation"] = 1 + spread(settings.contrast), 1 + spread(settings.saturation)
    if settings.hue:
        draws["hue"] = spread(settings.hue)
    if settings.noise:
        draws["noise"] = ops.noise_like(images, generator)
        draws["noise_share"] = 255 * settings.noise * uniform()
    return draws


def _change(images: Tensor, draws: dict[str, Tensor], *, black: bool = False) -> Tensor:
    """Apply what was drawn to uint8 images; returns float32 in [0, 1]. ``black``: see :func:`image_ops.move`."""
    import torch

    from nuclass.data import image_ops as ops

    def shaped(name: str) -> Tensor:
        return draws[name].to(images.device).view(-1, 1, 1, 1)

    images = ops.dihedral(images, draws["dihedral"]) if "dihedral" in draws else images.contiguous()
    x = images.float()
    if "degrees" in draws:
        x = ops.move(x, draws["degrees"], draws["shift"], draws["zoom"], black=black)
    if "stain" in draws:
        x = ops.change_stain(x, draws["stain"], draws["stain_offset"])
    if "blur" in draws:
        x = torch.lerp(x, ops.blur(x), shaped("blur"))
    if "brightness" in draws:
        x = x.mul_(shaped("brightness"))
    if "contrast" in draws:
        x = ops.contrast_and_saturation(x, draws["contrast"], draws["saturation"])
    if "hue" in draws:
        x = ops.turn_hue(x, draws["hue"])
    if "noise" in draws:
        x = x.addcmul_(draws["noise"], shaped("noise_share"))
    return x.mul_(1 / 255).clamp_(0, 1)
