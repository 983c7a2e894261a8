"""Augmentation: what each change does to a drawn image, what never appears, and what repeats."""

from __future__ import annotations

import colorsys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from nuclass.data import augment
from nuclass.data.augment import Augment, augment_images, to_unit
from nuclass.data.image_ops import (
    blur,
    change_stain,
    contrast_and_saturation,
    dihedral,
    draw_stain,
    move,
    turn_hue,
)
from nuclass.training.config import load_models, parse_models

OFF = Augment(**{field.name: type(field.default)(0) for field in fields(Augment)})
STRENGTHS = [field.name for field in fields(Augment) if not isinstance(field.default, bool)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(side: int = 65) -> torch.Tensor:
    """A smooth blob right of the middle and a smaller one above it, float (1, 3, S, S) in [0, 255]."""
    y, x = torch.meshgrid(torch.arange(side) - side // 2, torch.arange(side) - side // 2, indexing="ij")
    right = torch.exp(-(((x - side / 6) ** 2 + y**2) / (2 * 2.5**2)))
    above = torch.exp(-((x**2 + (y + side / 8) ** 2) / (2 * 2.0**2)))
    return 255 * torch.stack([right, above, (right + above) / 2])[None]


def centre(image: torch.Tensor) -> tuple[float, float]:
    """Centre of mass (x, y) from the middle."""
    side = image.shape[-1]
    place = torch.arange(side) - (side - 1) / 2
    return float((image.sum(0) * place).sum() / image.sum()), float((image.sum(1) * place).sum() / image.sum())


def uint8_images(n: int = 6, side: int = 16) -> torch.Tensor:
    return torch.randint(
        0, 256, (n, side, side, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    ).permute(0, 3, 1, 2)


def test_the_eight_symmetries_are_exact_and_different():
    image = uint8_images(1).expand(8, -1, -1, -1)
    turned = dihedral(image, torch.arange(8))
    assert len({turned[k].numpy().tobytes() for k in range(8)}) == 8
    assert torch.equal(turned[0], image[0])
    assert torch.equal(turned[4], image[0].flip(-1))
    for k in range(8):
        assert torch.equal(turned[k].flatten().sort().values, image[0].flatten().sort().values)


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_symmetries_are_quarter_turns_of_the_mirrored_image_in_any_memory(kind):
    images = torch.randint(0, 256, (8, 5, 5, 3), generator=torch.Generator().manual_seed(0)).to(kind).movedim(-1, 1)
    turned = dihedral(images, torch.arange(8))
    assert turned.is_contiguous()
    for k, (image, found) in enumerate(zip(images, turned, strict=True)):
        assert torch.equal(found, torch.rot90(image.flip(-1) if k >= 4 else image, k % 4, (-2, -1)))


def test_stain_of_strength_zero_changes_nothing_and_each_sample_gets_its_own():
    x = uint8_images(1).expand(4, -1, -1, -1).contiguous().float()
    still = change_stain(x, *draw_stain(4, 0, 0, 0))
    assert torch.allclose(still, x, atol=1e-2)
    changed = change_stain(x, *draw_stain(4, 0.25, 0.05, 0.05, seeded(1)))
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert not torch.allclose(changed[0], changed[1])


def test_stain_is_scaled_in_optical_density(monkeypatch):
    # the same factor for all three stains is that factor of the optical density
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.ones(shape))
    y = change_stain(torch.full((1, 3, 2, 2), 127.0), *draw_stain(1, 0.4, 0, 0))
    density = -np.log(128 / 256)
    assert float(y[0, 0, 0, 0]) == pytest.approx(np.exp(-1.4 * density) * 256 - 1, rel=1e-4)


def test_stains_are_scaled_shifted_and_mixed_pixel_by_pixel():
    """Optical density -> amounts of haematoxylin, eosin, rest -> changed amounts of changed dyes -> intensity."""
    x = uint8_images(3).float()
    y = change_stain(x, *draw_stain(3, 0.25, 0.05, 0.1, seeded(7))).numpy()
    stream = seeded(7)
    scale, mix, shift = (2 * torch.rand(3, *shape, generator=stream).numpy() - 1 for shape in ((3,), (3, 3), (3,)))
    dyes = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
    dyes /= np.linalg.norm(dyes, axis=1, keepdims=True)
    for i in range(3):
        density = -np.log((x[i].numpy().reshape(3, -1).T + 1) / 256)
        amounts = np.linalg.solve(dyes.T, density.T).T
        mixed = dyes @ (np.eye(3) + 0.1 * mix[i])
        changed = (amounts * (1 + 0.25 * scale[i]) + 0.05 * shift[i]) @ mixed
        expected = np.clip(256 * np.exp(-changed) - 1, 0, 255)
        np.testing.assert_allclose(y[i].reshape(3, -1).T, expected, atol=0.02)


@pytest.mark.parametrize("values", [1, 5000, 1 << 22])
def test_how_many_images_are_changed_at_once_does_not_matter(values, monkeypatch):
    settings = Augment(rotate=15, shift=0.05, zoom=0.05, contrast=0.2, saturation=0.2, hue=0.05)
    images = uint8_images(7, 32)
    whole = augment_images(images, settings, seeded(2))
    monkeypatch.setattr(augment, "_CACHED_VALUES", values)
    assert torch.equal(augment_images(images, settings, seeded(2)), whole)
    assert augment_images(images[:0], settings, seeded(2)).shape == (0, 3, 32, 32)


def test_augmentation_repeats_by_seed_and_leaves_its_input():
    images = uint8_images()
    before = images.clone()
    first, second, third = (augment_images(images, Augment(), torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(images, before)
    off = Augment(dihedral=False, stain_scale=0, stain_shift=0, stain_mix=0, brightness=0, blur=0, noise=0)
    assert torch.allclose(augment_images(images, off), to_unit(images))


def test_blur_keeps_a_flat_image():
    assert torch.allclose(blur(torch.full((1, 3, 5, 5), 0.3)), torch.full((1, 3, 5, 5), 0.3))


@pytest.mark.parametrize("shape", [(1, 4), (2, 3), (9, 8)])
def test_blur_is_the_binomial_of_both_axes(shape):
    x = torch.rand(2, 3, *shape)
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    expected = ndimage.convolve(x.numpy(), kernel[None, None], mode="nearest")
    np.testing.assert_allclose(blur(x), expected, atol=1e-6)


@pytest.mark.parametrize("side", [24, 31])
def test_movements_are_those_of_another_resampling(side):
    """Turn, zoom and shift together, borders reflected, against scipy; smooth images, for rounding of places."""
    rng = np.random.default_rng(side)
    x = ndimage.gaussian_filter(rng.uniform(0, 255, (5, 3, side, side)), (0, 0, 2, 2)).astype(np.float32)
    degrees, zoom = rng.uniform(-180, 180, 5), rng.uniform(0.8, 1.25, 5)
    shift = rng.uniform(-0.3, 0.3, (5, 2))
    moved = move(torch.from_numpy(x), *(torch.from_numpy(v).float() for v in (degrees, shift, zoom))).numpy()
    middle = (side - 1) / 2
    rows, columns = np.mgrid[:side, :side].astype(float)
    for i in range(5):
        right, down = columns - middle - shift[i, 0] * side, rows - middle - shift[i, 1] * side
        angle = np.deg2rad(degrees[i])
        # undo a turn counter-clockwise as seen (y runs down), then the enlargement
        from_x = (right * np.cos(angle) - down * np.sin(angle)) / zoom[i] + middle
        from_y = (right * np.sin(angle) + down * np.cos(angle)) / zoom[i] + middle
        for channel in range(3):
            expected = ndimage.map_coordinates(x[i, channel], [from_y, from_x], order=1, mode="reflect")
            np.testing.assert_allclose(moved[i, channel], expected, atol=0.02)


def test_a_turn_of_nothing_is_the_identity():
    x = uint8_images(4, 31).float()
    still = move(x, torch.zeros(4), torch.zeros(4, 2), torch.ones(4))
    assert torch.allclose(still, x, atol=0.02)


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_quarter_turns_are_those_of_rot90(quarter):
    x = uint8_images(2, 32).float()
    turned = move(x, torch.full((2,), 90.0 * quarter), torch.zeros(2, 2), torch.ones(2))
    assert torch.allclose(turned, torch.rot90(x, quarter, (-2, -1)), atol=0.05)


@pytest.mark.parametrize(
    ("degrees", "shift", "zoom"), [(30, (0.0, 0.0), 1.0), (0, (0.1, -0.05), 1.0), (-15, (0.1, 0.0), 1.1)]
)
def test_a_drawn_image_is_found_where_it_was_moved(degrees, shift, zoom):
    x = drawn()
    moved = move(x, torch.tensor([float(degrees)]), torch.tensor([shift]), torch.tensor([zoom]))
    angle = np.deg2rad(degrees)
    for channel in (0, 1):
        px, py = centre(x[0, channel])
        # counter-clockwise as seen: y runs down
        expected = (
            zoom * (px * np.cos(angle) + py * np.sin(angle)) + shift[0] * 65,
            zoom * (-px * np.sin(angle) + py * np.cos(angle)) + shift[1] * 65,
        )
        assert centre(moved[0, channel]) == pytest.approx(expected, abs=0.05)
        assert float(moved[0, channel].sum()) == pytest.approx(float(x[0, channel].sum()) * zoom**2, rel=0.02)


def test_borders_are_reflected_and_nothing_black_appears():
    moves = replace(OFF, rotate=45, shift=0.2, zoom=0.1)
    white = torch.full((16, 3, 40, 40), 255, dtype=torch.uint8)
    assert augment_images(white, moves, seeded()).min() > 0.9999
    grey = uint8_images(16, 40) // 2 + 100
    out = augment_images(grey, moves, seeded()) * 255
    assert out.min() >= 99.99
    assert out.max() <= 227.01
    # shifted by a quarter to the right, the left quarter mirrors what now lies right of it
    x = uint8_images(1, 40).float()
    y = move(x, torch.zeros(1), torch.tensor([[0.25, 0.0]]), torch.ones(1))
    assert torch.allclose(y[..., 10:], x[..., :30], atol=0.05)
    assert torch.allclose(y[..., :10], x[..., :10].flip(-1), atol=0.05)


def test_contrast_and_saturation_by_hand():
    x = torch.tensor([[200.0, 100.0], [50.0, 100.0], [0.0, 100.0]]).view(1, 3, 1, 2).repeat(3, 1, 1, 1)
    grey = 0.299 * 200 + 0.587 * 50
    mean = (grey + 100) / 2
    contrast, saturation = torch.tensor([0.5, 1.0, 1.5]), torch.tensor([1.0, 0.0, 0.5])
    y = contrast_and_saturation(x, contrast, saturation)[:, :, 0]
    assert y[0, :, 0].tolist() == pytest.approx([(v + mean) / 2 for v in (200, 50, 0)], rel=1e-5)
    assert y[1, :, 0].tolist() == pytest.approx([grey] * 3, rel=1e-5)
    assert y[1, :, 1].tolist() == pytest.approx([100] * 3, rel=1e-5)
    flat = [mean + 1.5 * (v - mean) for v in (200, 50, 0)]
    middle = 0.299 * flat[0] + 0.587 * flat[1] + 0.114 * flat[2]
    assert y[2, :, 0].tolist() == pytest.approx([(v + middle) / 2 for v in flat], rel=1e-5)


def test_hue_turns_as_in_hsv():
    x = uint8_images(4, 8).float()
    x[0, :, 0, 0] = 77.0
    turns = torch.tensor([0.05, -0.05, 1 / 3, 0.5])
    y = turn_hue(x, turns)
    for i, turn in enumerate(turns.tolist()):
        for pixel, found in zip(x[i].flatten(1).T.tolist(), y[i].flatten(1).T.tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            assert found == pytest.approx(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value), abs=0.02)
    assert torch.allclose(turn_hue(x, torch.zeros(4)), x, atol=1e-3)
    assert torch.allclose(turn_hue(x, torch.full((4,), 1 / 3)), x.roll(1, 1), atol=1e-2)


@pytest.mark.parametrize("name", STRENGTHS)
def test_every_image_of_a_batch_gets_its_own(name):
    images = uint8_images(1, 24).expand(6, -1, -1, -1)
    out = augment_images(images, replace(OFF, **{name: 10.0 if name == "rotate" else 0.2}), seeded())
    pairs = [(i, j) for i in range(6) for j in range(i)]
    assert not any(torch.allclose(out[i], out[j], atol=1e-4) for i, j in pairs)
    plain = to_unit(images)
    assert not torch.allclose(out, plain, atol=1e-4)


@pytest.mark.parametrize("name", ["rotate", "shift", "zoom", "brightness", "contrast", "saturation", "hue"])
def test_an_option_that_is_off_draws_no_number(name):
    """Studies that do not use it keep their random stream: the demo's numbers do not move."""
    images = uint8_images(3, 8)
    used, spare = seeded(4), seeded(4)
    augment_images(images, OFF, used)
    assert torch.equal(torch.rand(3, generator=used), torch.rand(3, generator=spare))
    augment_images(images, replace(OFF, **{name: 0.1}), used)
    torch.rand(2 if name == "shift" else 1, 3, generator=spare)
    assert torch.equal(torch.rand(3, generator=used), torch.rand(3, generator=spare))


def test_the_stream_of_the_demo_is_what_it_was():
    """Parameters are drawn in this order; a new option must not come in between while it is off."""
    images = uint8_images(2, 8)
    settings = Augment(dihedral=True, stain_scale=0, stain_shift=0, stain_mix=0, brightness=0.5, blur=0.5, noise=0)
    stream = seeded(9)
    turn, soft, light = torch.randint(0, 8, (2,), generator=stream), *torch.rand(2, 2, generator=stream)
    x = dihedral(images, turn).float()
    x = torch.lerp(x, blur(x), soft.view(-1, 1, 1, 1) * 0.5) * (1 + (2 * light.view(-1, 1, 1, 1) - 1) * 0.5)
    assert torch.allclose(augment_images(images, settings, seeded(9)), (x / 255).clamp(0, 1), atol=1e-6)


def test_the_papers_values_and_the_demos():
    paper = parse_models(load_models("config/models/paper.yaml")).local.augment
    assert (paper.rotate, paper.shift, paper.zoom) == (15, 0.05, 0.05)
    assert (paper.brightness, paper.contrast, paper.saturation, paper.hue) == (0.2, 0.2, 0.2, 0.05)
    demo = parse_models(load_models("config/models/demo.yaml")).local.augment
    assert not any(getattr(demo, name) for name in ("rotate", "shift", "zoom", "contrast", "saturation", "hue"))
    out = augment_images(uint8_images(8, 32), paper, seeded())
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert 0 <= out.min() <= out.max() <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same():
    settings = replace(parse_models(load_models("config/models/paper.yaml")).local.augment, noise=0.0)
    images = uint8_images(8, 64)
    there = augment_images(images.cuda(), settings, seeded()).cpu()
    assert torch.allclose(there, augment_images(images, settings, seeded()), atol=2e-3)


def test_composition_targets_are_not_moved_away_from_their_image():
    from nuclass.training.composition import _in_place

    kept = _in_place(Augment(rotate=15, shift=0.1, zoom=0.1, hue=0.1))
    assert (kept.dihedral, kept.rotate, kept.shift, kept.zoom, kept.hue) == (False, 0, 0, 0, 0.1)
