"""Learning rates by blocks and weight decay, for every family of networks, by their parameters' names."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from nuclass.models.backbones import build_backbone
from nuclass.models.global_ import GlobalModel
from nuclass.models.local import LocalModel
from nuclass.training.config import Optimizer
from nuclass.training.optim import decays, make_optimizer, parameter_groups, warmup_factor

PAPER = Optimizer(lr_head=3e-4, lr_backbone=3e-6, llrd=0.85, weight_decay=2e-5)


def by_name(model: nn.Module, settings: Optimizer = PAPER, **options) -> dict[str, tuple[float, float]]:
    """Return (learning rate, decay) of each parameter; each must be in one group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in parameter_groups(model, settings, **options):
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    return found


@pytest.fixture(scope="module")
def uni() -> LocalModel:
    with torch.device("meta"):
        return LocalModel(build_backbone({"name": "uni2-h"}, load_weights=False), 8, 16)


def test_uni2_h_has_the_published_rates(uni):
    rates = {name: rate for name, (rate, _) in by_name(uni).items()}
    assert len(rates) == 354
    net = "backbone.net."
    for block in range(24):
        of_block = {rate for name, rate in rates.items() if name.startswith(f"{net}blocks.{block}.")}
        assert list(of_block) == pytest.approx([3e-6 * 0.85 ** (23 - block)])
    for name in ("patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed", "cls_token", "reg_token"):
        assert rates[net + name] == pytest.approx(3e-6 * 0.85**24)
        assert rates[net + name] == pytest.approx(6.07e-8, rel=1e-3)
    assert rates[net + "norm.weight"] == rates[net + "norm.bias"] == 3e-6
    assert {rate for name, rate in rates.items() if not name.startswith(net)} == {3e-4}


def test_uni2_h_decays_matrices_alone(uni):
    decay = {name: value for name, (_, value) in by_name(uni).items()}
    # No part of the network lacks decay but by these ends of names.
    without = {re.sub(r"\d+", "#", name) for name, value in decay.items() if value == 0}
    assert without == {
        "norm.weight", "norm.bias", "film.embedding.weight", "film.modulation.#.bias", "head.#.bias",
        *(f"backbone.net.{name}" for name in (
            "cls_token", "reg_token", "pos_embed", "patch_embed.proj.bias", "norm.weight", "norm.bias",
            "blocks.#.norm#.weight", "blocks.#.norm#.bias", "blocks.#.attn.qkv.bias", "blocks.#.attn.proj.bias",
            "blocks.#.ls#.gamma", "blocks.#.mlp.fc#.bias",
        )),
    }  # fmt: skip
    assert set(decay.values()) == {0.0, 2e-5}


def test_groups_are_few_and_hold_all(uni):
    groups = parameter_groups(uni, PAPER)
    assert len(groups) <= 2 * (24 + 2)
    assert sum(len(group["params"]) for group in groups) == 354
    assert len(parameter_groups(uni, Optimizer(llrd=1.0))) == 4


def test_the_originals_decay_is_everywhere(uni):
    assert {decay for _, decay in by_name(uni, decay_everywhere=True).values()} == {2e-5}
    rates = {name: rate for name, (rate, _) in by_name(uni).items()}
    assert {name: rate for name, (rate, _) in by_name(uni, decay_everywhere=True).items()} == rates
    assert len(parameter_groups(uni, PAPER, decay_everywhere=True)) <= 24 + 2


def clip() -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(CLIPVisionConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2))


def dinov3() -> nn.Module:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    return DINOv3ViTModel(DINOv3ViTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2))


def coca() -> nn.Module:
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    return _build_vision_tower(
        16, CLIPVisionCfg(image_size=28, layers=3, width=64, patch_size=14, attentional_pool=True, attn_pooler_heads=2)
    )


def by_timm(name: str, **arguments):
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=0, **arguments)

    return build


FAMILIES = {
    # name -> network, number of blocks, names of (first block, last block, input, output), matrices without decay
    "dinov3": (dinov3, 3, r"layer\.0\.", r"layer\.2\.", r"^embeddings\.", r"^norm\.",
               {"embeddings.cls_token", "embeddings.mask_token", "embeddings.register_tokens"}),
    "clip": (clip, 3, r"encoder\.layers\.0\.", r"encoder\.layers\.2\.", r"embeddings|pre_layrnorm",
             r"post_layernorm|visual_projection", {"vision_model.embeddings.position_embedding.weight"}),
    "open_clip": (coca, 3, r"resblocks\.0\.", r"resblocks\.2\.", r"^(class_emb|positional_emb|conv1|ln_pre)",
                  r"^(attn_pool|ln_post|proj$)", {"positional_embedding", "attn_pool.query"}),
    "beit3": (by_timm("beit3_base_patch16_224", depth=3), 3, r"blocks\.0\.", r"blocks\.2\.",
              r"^(cls_token|pos_embed|patch_embed)", r"^(fc_norm|norm)", {"cls_token", "pos_embed"}),
    "resnet": (by_timm("resnet10t"), 4, r"^layer1\.", r"^layer4\.", r"^(conv1|bn1)", r"^$", set()),
    "convnext": (by_timm("convnext_atto"), 4, r"^stages\.0\.", r"^stages\.3\.", r"^stem\.", r"^head\.norm", set()),
    "efficientnet": (by_timm("efficientnet_b0"), 7, r"^blocks\.0\.", r"^blocks\.6\.", r"^(conv_stem|bn1)",
                     r"^(conv_head|bn2)", set()),
    "swin": (by_timm("swin_tiny_patch4_window7_224"), 4, r"^layers\.0\.", r"^layers\.3\.", r"^patch_embed",
             r"^norm\.", {"layers.#.blocks.#.attn.relative_position_bias_table"}),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_blocks(family):
    build, depth, first, last, start, end, tables = FAMILIES[family]
    with torch.device("meta"):
        model = nn.ModuleDict({"backbone": nn.ModuleDict({"net": build()}), "head": nn.Linear(4, 2)})
    inner = "backbone.net."
    rates = {name.removeprefix(inner): rate for name, (rate, _) in by_name(model).items() if name.startswith(inner)}

    def found(pattern: str) -> list[float]:
        values = {rate for name, rate in rates.items() if re.search(pattern, name)}
        assert values or pattern == "^$", f"{pattern} is the name of nothing"
        return list(values)

    assert found(first) == pytest.approx([3e-6 * 0.85 ** (depth - 1)])
    assert found(last) == [3e-6]
    assert found(start) == pytest.approx([3e-6 * 0.85**depth])
    assert set(found(end)) <= {3e-6}
    assert sorted(set(rates.values())) == pytest.approx([3e-6 * 0.85**k for k in range(depth, -1, -1)])
    net = model["backbone"]["net"]
    without = {re.sub(r"\d+", "#", name) for name, p in net.named_parameters() if p.ndim >= 2 and not decays(name, p)}
    assert without == tables
    assert not any(decays(name, p) for name, p in net.named_parameters() if p.ndim < 2)
    assert len(parameter_groups(model, PAPER)) <= 2 * (depth + 2)


def test_blocks_that_are_not_known_are_told(caplog):
    model = nn.ModuleDict({"backbone": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))})
    rates = {rate for rate, _ in by_name(model).values()}
    assert rates == {3e-6}
    assert "llrd 0.85 does nothing" in caplog.text
    caplog.clear()
    parameter_groups(model, Optimizer())
    assert not caplog.text


def test_frozen_parameters_are_in_no_group(uni):
    model = GlobalModel(build_backbone({"name": "timm:test_vit", "input_px": 160}), 8, 3)
    model.backbone.requires_grad_(False)
    assert not any(name.startswith("backbone.") for name in by_name(model))
    assert {rate for rate, _ in by_name(model).values()} == {3e-4}


def test_the_fused_optimizer_steps_as_the_plain_one():
    torch.manual_seed(0)
    first, second = nn.Linear(5, 4), nn.Linear(5, 4)
    second.load_state_dict(first.state_dict())
    x = torch.randn(3, 5)
    for model, fused in ((first, True), (second, False)):
        optimizer = make_optimizer(parameter_groups(model, Optimizer(lr_head=0.1, weight_decay=0.3)), fused=fused)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    assert torch.allclose(first.weight, second.weight, atol=1e-6)
    assert torch.allclose(first.bias, second.bias, atol=1e-6)


def test_adamw_by_hand():
    """First step: decay p (1 - lr wd), then minus lr sign(gradient), for both moments are corrected for their start."""
    weight = nn.Parameter(torch.tensor([[2.0, -1.0]]))
    optimizer = make_optimizer([{"params": [weight], "lr": 0.1, "weight_decay": 0.5}])
    weight.grad = torch.tensor([[0.3, -4.0]])
    optimizer.step()
    assert weight.tolist() == [pytest.approx([2 * 0.95 - 0.1, -0.95 + 0.1], rel=1e-5)]


def test_without_a_gradient_nothing_moves_or_decays():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = make_optimizer([{"params": [weight], "lr": 0.1, "weight_decay": 0.5}])
    optimizer.step()
    assert torch.equal(weight, torch.ones(2, 2))
    assert not optimizer.state


def test_warmup_then_constant_or_cosine():
    constant = Optimizer(warmup_steps=4)
    assert [warmup_factor(step, constant, 100) for step in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    cosine = Optimizer(warmup_steps=10, schedule="cosine")
    assert [warmup_factor(step, cosine, 110) for step in (9, 10, 60, 110, 500)] == pytest.approx([1, 1, 0.5, 0, 0])
    assert warmup_factor(0, Optimizer(warmup_steps=0), 0) == 1.0
