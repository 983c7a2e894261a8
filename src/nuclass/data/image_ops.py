"""What augmentation is made of: batched changes of float images (B, 3, H, W) in [0, 255], each image its own way.

Stain is changed in optical density ``OD = -ln((I + 1) / 256)``, where dyes add up (Beer-Lambert). The change is a
per-sample linear map: unmix into haematoxylin, eosin and a residual (Ruifrok and Johnston, 2001), scale and
shift each, mix back. Slides differ in stain and scanner; a model must not lean on either.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_HED = torch.tensor([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
_HED = _HED / _HED.norm(dim=1, keepdim=True)
_GREY = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601


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


def move(x: Tensor, degrees: Tensor, shift: Tensor, zoom: Tensor) -> Tensor:
    """Turn, shift and enlarge each image in one bilinear resampling, borders reflected.

    Parameters
    ----------
    degrees
        Turn around the middle, (B,), counter-clockwise as the image is seen.
    shift
        How far the picture then moves to the right and down, (B, 2), in shares of its side.
    zoom
        Enlargement around the middle, (B,); meant for 0.9 to 1.1, since shrinking does not filter.
    """
    angle = degrees * (math.pi / 180)
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    # Where each pixel of the result comes from, in units of half a side: the movements undone in reverse.
    linear = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    theta = torch.cat([linear, -linear @ (2 * shift)[:, :, None]], 2)
    grid = F.affine_grid(theta.to(x.device, x.dtype), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def jitter_stain(x: Tensor, scale: float, shift: float, mix: float, generator: torch.Generator | None = None) -> Tensor:
    """Scale, shift and mix the stains of each image; strengths as in :class:`nuclass.data.augment.Augment`.

    With ``OD = ln 256 - ln(I + 1)`` the whole change is one affine map of ``ln(I + 1)`` per sample.
    """
    n = len(x)

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(n, *shape, generator=generator) - 1

    factor = 1 + scale * uniform(3)
    stain_to_rgb = _HED @ (torch.eye(3) + mix * uniform(3, 3))
    linear = torch.linalg.inv(_HED) @ (factor[:, :, None] * stain_to_rgb)
    added = (shift * uniform(3))[:, None, :] @ stain_to_rgb
    offset = math.log(256) * (1 - linear.sum(1, keepdim=True)) - added
    brightness = (x + 1).log_().view(n, 3, -1)
    changed = torch.baddbmm(offset.mT.to(x.device), linear.mT.to(x.device), brightness)
    return changed.exp_().sub_(1).clamp_(0, 255).view(x.shape)


def contrast_and_saturation(x: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Scale differences from the image's mean grey by ``contrast``, then from each pixel's grey by ``saturation``.

    Both factors are (B,). Grey is 0.299 R + 0.587 G + 0.114 B; its weights sum to 1, so both changes together are
    one affine map of the colours.
    """
    n = len(x)
    flat = x.reshape(n, 3, -1)
    weights = _GREY.to(x.device)
    contrast, saturation = (values.to(x.device).view(n, 1, 1) for values in (contrast, saturation))
    mean = torch.einsum("c,ncp->n", weights, flat).view(n, 1, 1) / flat.shape[2]
    linear = contrast * (saturation * torch.eye(3, device=x.device) + (1 - saturation) * weights.expand(3, 3))
    return torch.baddbmm((1 - contrast) * mean, linear, flat).view(x.shape)


def turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of each image by a share of the colour circle, (B,); HSV's value and chroma stay."""
    red, green, blue = x.unbind(1)
    value, place = x.max(1)
    chroma = value - x.amin(1)
    difference = torch.stack([green - blue, blue - red, red - green], 1).gather(1, place[:, None])[:, 0]
    hue = difference / chroma.clamp_min(1e-6) + 2 * place + 6 * turns.to(x.device).view(-1, 1, 1)
    result = torch.empty_like(x)
    for channel, start in enumerate((5, 3, 1)):
        k = (hue + start) % 6
        share = torch.minimum(k, 4 - k).clamp_(0, 1)
        torch.addcmul(value, chroma, share, value=-1, out=result[:, channel])
    return result


def blur(x: Tensor) -> Tensor:
    """Return a 3 x 3 binomial blur, edges repeated."""
    wide = F.pad(x, (1, 1, 0, 0), mode="replicate")
    x = torch.add(wide[..., :-2], wide[..., 2:]).add_(x, alpha=2)
    tall = F.pad(x, (0, 0, 1, 1), mode="replicate")
    return torch.add(tall[..., :-2, :], tall[..., 2:, :]).add_(x, alpha=2).mul_(1 / 16)


def noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return unit Gaussian noise; seeded on the CPU generator, drawn on the device of ``x``."""
    if x.device.type == "cpu":
        return torch.randn(x.shape, generator=generator)
    seed = int(torch.randint(0, 2**62, (), generator=generator))
    device_generator = torch.Generator(x.device).manual_seed(seed)
    return torch.randn(x.shape, generator=device_generator, device=x.device)
