"""Controls of activation maps: attention rollout, weights drawn anew, the first layer, the share in the cell."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from backbone_example import SMALL, TINY_DINO
from nuclass.core.errors import UserError
from nuclass.interpret.controls import (
    cell_radius,
    first_convolution,
    in_cell,
    learned_below,
    released_maps,
    spearman,
)
from nuclass.interpret.gradcam import local_inputs, local_maps
from nuclass.interpret.rollout import attention_maps, has_attention, rollout, rollout_map
from nuclass.models.backbones import REGISTRY, build_backbone
from nuclass.models.local import LocalModel

torch.set_num_threads(1)
SIDE, EPOCHS = 64, 10
CNN: dict[str, Any] = {
    "name": "timm:test_resnet",
    "input_px": SIDE,
    "kwargs": {"output_stride": 8, "stem_type": "", "stem_width": 8},
}
VIT: dict[str, Any] = {"name": "timm:test_vit", "input_px": SIDE, "kwargs": {"img_size": SIDE, "patch_size": 8}}
COLOURS = torch.tensor([[230, 26, 26], [26, 26, 230], [230, 230, 26]], dtype=torch.uint8)


def patches(n: int, seed: int, *, anywhere: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Grey images (N, 3, S, S) uint8 whose class is the colour of a patch in the upper right quadrant, or anywhere."""
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(110, 145, (n, 3, SIDE, SIDE), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, len(COLOURS), n))
    places = 8 * rng.integers(1, 7, (n, 2)) if anywhere else 8 * rng.integers(0, 2, (n, 2)) + [40, 8]
    for i, (x, y) in enumerate(places):
        images[i, :, y : y + 8, x : x + 8] = COLOURS[labels[i]][:, None, None]
    return images, labels


class Reader:
    """Gives prepared windows in the place of those of a slide."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images.movedim(1, -1).numpy()

    def read(self, frame: pd.DataFrame, size: int, level: int, out_px: int) -> np.ndarray:
        assert (size, level, out_px) == (224, 1, SIDE)
        return self.images[: len(frame)]


CHECKPOINT = {
    "input": {"read_level": 1, "input_px": SIDE},
    "windows": {"local": 224},
    "classes": ["red", "blue", "yellow"],
    "organs": ["lung", "unknown"],
    "temperature": 2.0,
}


@pytest.fixture(scope="module", params=["convolutional", "transformer"])
def model(request) -> LocalModel:
    """A baseline (layer norm, a linear layer) that has learned the patch's colour."""
    torch.manual_seed(0)
    backbone = build_backbone(CNN if request.param == "convolutional" else VIT)
    made = LocalModel(backbone, 2, 3, organ="none", hidden=0, dropout=0.0)
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-3 if backbone.kind == "tokens" else 3e-3)
    images, labels = patches(512, 1, anywhere=True)
    organ = torch.zeros(32, dtype=torch.long)
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(made(images[rows] / 255, organ).logits, labels[rows]).backward()
            optimizer.step()
    return made.eval().requires_grad_(False)


def mapped(model: LocalModel, n: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images, labels = patches(n, 2)
    cells = pd.DataFrame({"organ": ["lung"] * n})
    pixels, organ = local_inputs(CHECKPOINT, cells, Reader(images), torch.device("cpu"))  # type: ignore[arg-type]
    assert float(pixels.max()) <= 1
    maps, logits = local_maps(model, pixels, organ)
    return maps, logits, labels


def test_a_baselines_map_lies_in_the_quadrant_that_decides(model):
    maps, logits, labels = mapped(model)
    assert (logits.argmax(1) == labels).float().mean() > 0.95
    half = maps.shape[-1] // 2
    inside = maps[:, :half, half:].flatten(1)
    assert (inside.amax(1) == maps.amax((1, 2))).float().mean() > 0.7
    assert (inside.sum(1) / maps.sum((1, 2))).mean() > 0.33


def test_other_weights_give_another_map(model):
    maps, _, labels = mapped(model)
    images, _ = patches(32, 2)
    organ = torch.zeros(32, dtype=torch.long)
    torch.manual_seed(5)
    settings = CNN if model.backbone.kind == "map" else VIT
    fresh = LocalModel(build_backbone(settings), 2, 3, organ="none", hidden=0, dropout=0.0).eval()
    own = model.state_dict()
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    names = [name for name in own if name.startswith("backbone.") and own[name].numel() > 4]

    def same(a: dict[str, torch.Tensor]) -> float:
        return float(np.mean([torch.equal(a[name], fresh.state_dict()[name]) for name in names]))

    learned_below(fresh, model, 1.0)
    assert same(before) == 1
    random, _ = local_maps(fresh, images / 255, organ, labels)
    assert not torch.allclose(random / random.sum(), maps / maps.sum(), atol=1e-4)
    assert np.nanmean(spearman(maps, random)) < 0.5
    learned_below(fresh, model, 0.5)
    first = names[0]
    assert torch.equal(fresh.state_dict()[first], own[first])
    assert 0.3 < same(own) < 0.8
    learned_below(fresh, model, 0.0)
    assert same(own) == 1
    assert not torch.equal(fresh.head[1].weight, model.head[1].weight)


def test_the_released_map_is_that_of_the_first_layer(model):
    images, _ = patches(3, 4)
    organ = torch.zeros(3, dtype=torch.long)
    maps = released_maps(model, images / 255, organ)
    layer = first_convolution(model.backbone)
    side = SIDE // int(layer.stride[0])
    assert maps.shape == (3, side, side)
    clone = copy.deepcopy(model).requires_grad_(True)
    kept = []
    first_convolution(clone.backbone).register_forward_hook(lambda _, __, output: kept.append(output))
    logits = clone(images / 255, organ).logits
    (slope,) = torch.autograd.grad(logits.max(1).values.sum(), kept[0])
    expected = (slope.mean((2, 3), keepdim=True) * kept[0]).sum(1).clamp_min(0)
    assert torch.allclose(maps, expected, rtol=1e-3, atol=1e-5)


def test_rollout_by_hand():
    a = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]])
    b = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    # (b + I) / 2 @ (a + I) / 2
    expected = torch.tensor([[1.0, 0.0], [0.5, 0.5]]) @ torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    assert torch.allclose(rollout([a, b])[0], expected)
    nothing = torch.eye(3)[None]
    assert torch.equal(rollout([nothing, nothing]), nothing)


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, spec in SMALL.items():
        monkeypatch.setitem(REGISTRY, name, spec)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("settings", [*({"name": name} for name in SMALL), TINY_DINO, VIT], ids=str)
def test_attention_of_every_family_sums_to_one(settings):
    torch.manual_seed(0)
    backbone = build_backbone(settings, load_weights=False).eval()
    images = torch.rand(2, 3, backbone.input_px, backbone.input_px)
    maps = attention_maps(backbone, images)
    tokens = backbone.spatial(images)
    assert has_attention(backbone)
    assert len(maps) == len(backbone.net.get_submodule(backbone.form.blocks))
    for one in [*maps, rollout(maps)]:
        assert one.shape == (2, tokens.shape[1], tokens.shape[1])
        assert torch.allclose(one.sum(-1), torch.ones(2, tokens.shape[1]), atol=1e-5)
    grid = rollout_map(backbone, images)
    assert grid.shape[1] ** 2 == tokens.shape[1] - backbone.prefix_tokens
    row = rollout(maps)[:, 0, backbone.prefix_tokens :]
    assert torch.allclose(grid.flatten(1), row, atol=1e-6)


def test_recorded_attention_is_that_of_the_network():
    backbone = build_backbone(VIT).eval()
    block = backbone.net.get_submodule("blocks.0")
    seen = []
    block.norm1.register_forward_hook(lambda _, __, output: seen.append(output))
    images = torch.rand(1, 3, SIDE, SIDE)
    first = attention_maps(backbone, images)[0]
    heads = block.attn.num_heads
    q, k, _ = block.attn.qkv(seen[0]).reshape(1, seen[0].shape[1], 3, heads, -1).permute(2, 0, 3, 1, 4)
    expected = (block.attn.q_norm(q) @ block.attn.k_norm(k).transpose(-1, -2) * block.attn.scale).softmax(-1).mean(1)
    assert torch.allclose(first, expected, atol=1e-5)


def test_a_network_whose_attention_is_not_seen_is_refused():
    assert not has_attention(build_backbone(CNN))
    backbone = build_backbone(VIT).eval()
    for block in backbone.net.get_submodule("blocks"):
        block.attn.fused_attn = False
    with pytest.raises(UserError, match="cannot be read"):
        attention_maps(backbone, torch.rand(1, 3, SIDE, SIDE))


def test_rank_correlation():
    a = torch.arange(9.0).reshape(1, 3, 3)
    found = spearman(torch.cat([a, a, a]), torch.cat([a**3, -a, a * 0 + 1]))
    assert found[:2] == pytest.approx([1, -1])
    assert np.isnan(found[2])


def test_the_share_in_the_cell(tmp_path):
    pd.DataFrame({"cell_area": [1.0, np.pi * 4, np.nan]}).to_parquet(tmp_path / "cells.parquet")
    cells = pd.DataFrame({"slide": ["a", "a"], "row": [2, 1]})
    radius = cell_radius(cells, {"a": tmp_path / "cells.parquet"}, 0.25)
    assert np.isnan(radius[0])
    assert radius[1] == pytest.approx(8)
    even = torch.ones(3, 4, 4)
    middle = torch.zeros(1, 64, 64)
    middle[0, 30:34, 30:34] = 1
    assert in_cell(even, 64, np.array([8.0, 20.0, np.nan]))[:2] == pytest.approx([1, 1])
    area = np.pi * 8**2 / 64**2
    assert in_cell(middle, 64, np.array([8.0]))[0] == pytest.approx(1 / area, rel=0.05)
    assert in_cell(1 - middle, 64, np.array([2.0]))[0] < 0.1
    assert np.isnan(in_cell(0 * middle, 64, np.array([8.0]))[0])
