"""Class activation maps: on toys where one spot decides the class, the map's peak is that spot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nuclass.interpret.gradcam import (
    LEAST_SIDE,
    class_activation,
    described,
    explained,
    gated_map,
    log_odds,
    target_layer,
    to_grid,
    to_window,
)
from nuclass.models.backbones import build_backbone

torch.set_num_threads(1)
SIDE = 64
BACKBONES = {
    "convolutional": {
        "name": "timm:test_resnet",
        "input_px": SIDE,
        "kwargs": {"output_stride": 8, "stem_type": "", "stem_width": 16},
    },
    "convolutional, coarse at its end": {
        "name": "timm:test_resnet",
        "input_px": SIDE,
        "kwargs": {"stem_type": "", "stem_width": 16},
    },
    "transformers": {
        "name": "dinov3",
        "input_px": SIDE,
        "config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_register_tokens": 4,
            "patch_size": 8,
            "image_size": SIDE,
            "layerscale_value": 0.5,
        },
    },
    "timm transformer": {
        "name": "timm:test_vit",
        "input_px": SIDE,
        "kwargs": {"img_size": SIDE, "patch_size": 8},
    },
}


COLOURS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.1, 0.9], [0.9, 0.9, 0.1]])


def spots(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Noisy grey images with one spot at a random place (x, y); its colour is the class."""
    rng = np.random.default_rng(seed)
    images = 0.5 + 0.05 * torch.from_numpy(rng.normal(size=(n, 3, SIDE, SIDE))).float()
    labels = torch.from_numpy(rng.integers(0, len(COLOURS), n))
    place = 8 * rng.integers(1, SIDE // 8 - 1, (n, 2))
    for i, (x, y) in enumerate(place):
        images[i, :, y : y + 8, x : x + 8] = COLOURS[labels[i]][:, None, None]
    return images.clamp(0, 1), labels, place + 4


@pytest.fixture(scope="module", params=sorted(BACKBONES))
def toy(request):
    """A network that has learned to name the spot's colour."""
    torch.manual_seed(0)
    backbone = build_backbone(BACKBONES[request.param])
    model = torch.nn.Sequential(backbone, torch.nn.Linear(backbone.feature_dim, len(COLOURS)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3 if backbone.kind == "tokens" else 3e-3)
    images, labels, _ = spots(512, 1)
    for epoch in range(12):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval(), backbone


def test_the_peak_is_the_spot_that_decides(toy):
    model, backbone = toy
    images, labels, place = spots(64, 2)
    maps, logits = class_activation(backbone, lambda: model(images))
    assert (logits.argmax(1) == labels).float().mean() > 0.95
    large = to_window(maps, SIDE)
    peak = large.flatten(1).argmax(1)
    found = np.stack([(peak % SIDE).numpy(), (peak // SIDE).numpy()], 1)
    near = np.abs(found - place).max(1) <= 12  # one and a half places of the network's grid
    assert near.mean() > 0.9


def test_maps_have_the_networks_grid_and_keep_no_gradient(toy):
    model, backbone = toy
    images, _, _ = spots(3, 3)
    maps, logits = class_activation(backbone, lambda: model(images), torch.tensor([0, 1, 2]))
    assert maps.shape == (3, 8, 8)
    assert (maps >= 0).all()
    assert not maps.requires_grad
    assert not logits.requires_grad
    assert not target_layer(backbone)._forward_hooks


@pytest.mark.parametrize(
    ("px", "words", "side"),
    [(224, "last stage", 7), (208, "last stage", 7), (192, "stage 4 of 5", 12), (80, "stage 3 of 5", 10),
     (40, "stage 2 of 5", 10), (8, "stage 1 of 5", 4)],
)  # fmt: skip
def test_a_coarse_last_stage_gives_way_to_an_earlier_one(px, words, side):
    backbone = build_backbone({"name": "timm:resnet10t", "input_px": px, "kwargs": {"channels": [8, 8, 8, 8]}}).eval()
    head = torch.nn.Linear(backbone.feature_dim, 2)
    maps, _ = class_activation(backbone, lambda: head(backbone(torch.rand(1, 3, px, px))))
    assert described(backbone, maps) == f"{words}, {side} × {side}"
    assert (side >= LEAST_SIDE) == (px > 8)
    assert explained(backbone).last == (words == "last stage")


def test_transformers_are_explained_at_the_last_block():
    backbone = build_backbone(BACKBONES["timm transformer"])
    assert explained(backbone).module is backbone.explained_layer()
    assert described(backbone, torch.zeros(1, 8, 8)) == "last block, 8 × 8"


def test_an_earlier_stage_weighs_places_by_their_own_gradients():
    backbone = build_backbone(BACKBONES["convolutional, coarse at its end"]).eval()
    head = torch.nn.Linear(backbone.feature_dim, 3)
    images = torch.rand(2, 3, SIDE, SIDE)
    kept = []
    explained(backbone).module.register_forward_hook(lambda _, __, output: kept.append(output))
    logits = head(backbone(images))
    (slope,) = torch.autograd.grad(log_odds(logits, logits.argmax(1)).sum(), kept[0])
    expected = (slope.clamp_min(0) * kept[0]).sum(1)
    maps, _ = class_activation(backbone, lambda: head(backbone(images)))
    assert torch.allclose(maps, expected.clamp_min(0), rtol=1e-3, atol=1e-6)


def test_a_frozen_model_can_be_explained(toy):
    model, backbone = toy
    images, _, _ = spots(2, 4)
    before, _ = class_activation(backbone, lambda: model(images))
    model.requires_grad_(False)
    with torch.no_grad():
        after, _ = class_activation(backbone, lambda: model(images))
    model.requires_grad_(True)
    assert torch.allclose(before, after, atol=1e-5)


def test_the_other_class_gives_another_map(toy):
    model, backbone = toy
    images, labels, _ = spots(8, 5)
    own, _ = class_activation(backbone, lambda: model(images), labels)
    other, _ = class_activation(backbone, lambda: model(images), (labels + 1) % 3)
    assert not torch.allclose(own, other)


def test_class_and_register_tokens_are_left_out():
    backbone = build_backbone(BACKBONES["transformers"])
    tokens = torch.full((1, 1 + 4 + 64, 2), -1.0)
    tokens[0, 5:] = torch.arange(64.0)[:, None]
    grid = to_grid(tokens, backbone)
    assert grid.shape == (1, 2, 8, 8)
    assert grid[0, 0].flatten().tolist() == list(range(64))
    with pytest.raises(ValueError, match="square"):
        to_grid(tokens[:, :-1], backbone)


def test_a_map_is_scaled_and_an_empty_one_stays_empty():
    maps = torch.zeros(2, 4, 4)
    maps[0, 1, 2] = 3.0
    large = to_window(maps, 40)
    assert large.shape == (2, 40, 40)
    assert float(large[0].max()) == 1.0
    assert float(large[1].max()) == 0.0
    row, column = divmod(int(large[0].argmax()), 40)
    assert abs(row - 15) <= 1
    assert abs(column - 25) <= 1


def test_the_gated_map_has_the_local_one_in_the_middle():
    local, wide = torch.ones(1, 4, 4), torch.zeros(1, 10, 10)
    gated = gated_map(local, wide, torch.tensor([0.25]))
    assert gated.shape == (1, 10, 10)
    assert float(gated[0, 3:7, 3:7].min()) == 0.75
    assert float(gated.sum()) == pytest.approx(16 * 0.75)
    assert torch.equal(gated_map(local, wide + 1, torch.tensor([1.0])), wide + 1)


def test_log_odds_by_hand():
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log()
    assert float(log_odds(logits, torch.tensor([1]))) == pytest.approx(0.0, abs=1e-6)
    assert float(log_odds(logits, torch.tensor([0]))) == pytest.approx(np.log(0.25))
