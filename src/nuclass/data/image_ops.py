"""What augmentation is made of: batched changes of float images (B, 3, H, W) in [0, 255], each image its own way.

Stain is changed in optical density ``OD = -ln((I + 1) / 256)``, where dyes add up (Beer-Lambert). The change is a
per-sample linear map: unmix into haematoxylin, eosin and a residual (Ruifrok and Johnston, 2001), scale and
shift each, mix back. Slides differ in stain and scanner; a model must not lean on either.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

HED = torch.tensor([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
HED = HED / HED.norm(dim=1, keepdim=True)
"""Colours of haematoxylin, eosin and the rest in optical density of red, green and blue, rows of length 1."""
_GREY = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601


def dihedral(images: Tensor, operation: Tensor) -> Tensor:
    """Apply one of the eight symmetries of the square to each image; exact, no interpolation.

    ``operation`` (B,) in 0..7: quarter turns (``operation % 4``), mirrored first where ``operation >= 4``. Square
    images in any memory become contiguous ones.
    """
    if images.device.type == "cpu":
        return _dihedral_on_cpu(images, operation)
    result = torch.empty(images.shape, dtype=images.dtype, device=images.device)
    for k in range(8):
        chosen = (operation == k).nonzero()[:, 0].to(images.device)
        if len(chosen):
            part = images[chosen]
            part = part.flip(-1) if k >= 4 else part
            result[chosen] = torch.rot90(part, k % 4, (-2, -1))
    return result


def _dihedral_on_cpu(images: Tensor, operation: Tensor) -> Tensor:
    """Copy each image once along reversed and swapped axes, which numpy has views for; six times as fast there."""
    given, result = images.numpy(), np.empty(images.shape, images.numpy().dtype)
    for image, turned, k in zip(given, result, operation.tolist(), strict=True):
        turned[:] = np.rot90(image[..., ::-1] if k >= 4 else image, k % 4, (-2, -1))
    return torch.from_numpy(result)


def move(x: Tensor, degrees: Tensor, shift: Tensor, zoom: Tensor, *, black: bool = False) -> Tensor:
    """Turn, shift and enlarge each image in one bilinear resampling, borders reflected.

    Parameters
    ----------
    degrees
        Turn around the middle, (B,), counter-clockwise as the image is seen.
    shift
        How far the picture then moves to the right and down, (B, 2), in shares of its side.
    zoom
        Enlargement around the middle, (B,); meant for 0.9 to 1.1, since shrinking does not filter.
    black
        Take the nearest pixel, and black for what lies outside, as the original does.
    """
    angle = degrees * (math.pi / 180)
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    # Where each pixel of the result comes from, in units of half a side: the movements undone in reverse.
    linear = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    theta = torch.cat([linear, -linear @ (2 * shift)[:, :, None]], 2).to(x.device, x.dtype)
    n, _, height, width = x.shape
    across = (2 * torch.arange(width, device=x.device) + 1) / width - 1
    down = (2 * torch.arange(height, device=x.device) + 1) / height - 1
    grid = torch.empty(n, height, width, 2, device=x.device, dtype=x.dtype)
    for axis in (0, 1):
        along_x, along_y, start = (theta[:, axis, k].view(n, 1, 1) for k in range(3))
        torch.add(along_x * across, along_y * down[:, None] + start, out=grid[..., axis])
    mode, padding = ("nearest", "zeros") if black else ("bilinear", "reflection")
    return F.grid_sample(x, grid, mode=mode, padding_mode=padding, align_corners=False)


def reduce_truncated(images: Tensor, side: int) -> Tensor:
    """Return uint8 images (B, 3, H, W) at ``side`` px as the original makes them: bilinear, decimals cut off.

    Bilinear without a filter: the mean of 2 x 2 px where the side is halved, a sample of the picture where it shrinks
    more. A few at a time, since whole windows in float32 take much memory.
    """

    def reduced(part: Tensor) -> Tensor:
        return F.interpolate(part.float(), size=(side, side), mode="bilinear", align_corners=False)

    return torch.cat([reduced(part).to(torch.uint8) for part in images.split(8)])


def draw_stain(
    n: int, scale: float, shift: float, mix: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw a change of stain for each of ``n`` images; strengths as in :class:`nuclass.data.augment.Augment`.

    Returns
    -------
    ``linear`` (n, 3, 3) and ``offset`` (n, 3, 1) of :func:`change_stain`: stains are scaled, shifted and mixed.
    """

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(n, *shape, generator=generator) - 1

    factor = 1 + scale * uniform(3)
    stain_to_rgb = HED @ (torch.eye(3) + mix * uniform(3, 3))
    linear = torch.linalg.inv(HED) @ (factor[:, :, None] * stain_to_rgb)
    added = (shift * uniform(3))[:, None, :] @ stain_to_rgb
    offset = math.log(256) * (1 - linear.sum(1, keepdim=True)) - added
    return linear.mT, offset.mT


def change_stain(x: Tensor, linear: Tensor, offset: Tensor) -> Tensor:
    """Apply ``ln(I + 1) -> linear ln(I + 1) + offset``.

    With ``OD = ln 256 - ln(I + 1)`` every change of the stains is one such map per image.
    """
    brightness = (x + 1).log_().view(len(x), 3, -1)
    changed = torch.baddbmm(offset.to(x.device), linear.to(x.device), brightness)
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
    value = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - low
    # Sums of products with 0 and 1: torch.where takes twenty times as long on a processor.
    is_red = (red == value).float()
    is_green = (green == value).float() * (1 - is_red)
    is_blue = 1 - is_red - is_green
    hue = (green - blue).mul_(is_red)
    hue.addcmul_((blue - red).add_(chroma, alpha=2), is_green)
    hue.addcmul_((red - green).add_(chroma, alpha=4), is_blue)
    hue = hue.div_(chroma.clamp_min(1e-6)).add_(6 * turns.to(x.device).view(-1, 1, 1)).remainder_(6)
    result = torch.empty_like(x)
    shares = ((hue - 3).abs_().sub_(1), (hue - 2).abs_().neg_().add_(2), (hue - 4).abs_().neg_().add_(2))
    for channel, share in enumerate(shares):
        torch.addcmul(low, chroma, share.clamp_(0, 1), out=result[:, channel])
    return result


def blur(x: Tensor) -> Tensor:
    """Return a 3 x 3 binomial blur, edges repeated."""
    return _blur_along(_blur_along(x, -1), -2).mul_(1 / 16)


def _blur_along(x: Tensor, axis: int) -> Tensor:
    """Return the sums of each value's two neighbours along an axis and twice itself, edges repeated."""
    result = torch.empty_like(x)
    values, sums = x.movedim(axis, 0), result.movedim(axis, 0)
    last = len(values) - 1
    torch.add(values[:-2], values[2:], out=sums[1:-1])
    torch.add(values[0], values[min(1, last)], out=sums[0])
    torch.add(values[max(last - 1, 0)], values[last], out=sums[last])
    return result.add_(x, alpha=2)


def noise_like(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return unit Gaussian noise; seeded on the CPU generator, drawn on the device of ``images``."""
    if images.device.type == "cpu":
        return torch.randn(images.shape, generator=generator)
    seed = int(torch.randint(0, 2**62, (), generator=generator))
    device_generator = torch.Generator(images.device).manual_seed(seed)
    return torch.randn(images.shape, generator=device_generator, device=images.device)
