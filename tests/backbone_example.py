"""Small backbones of the registered kinds, and files that look like those of the hub."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nuclass.core.errors import UserError
from nuclass.models.backbones import REGISTRY, BackboneSpec, build_backbone

SMALL: dict[str, BackboneSpec] = {
    "uni2-h": replace(
        REGISTRY["uni2-h"],
        arguments={**REGISTRY["uni2-h"].arguments, "img_size": 42, "depth": 2, "num_heads": 4, "embed_dim": 48},
        input_px=42,
        feature_dim=48,
    ),
    "dinov3-vitl16": replace(
        REGISTRY["dinov3-vitl16"],
        arguments={
            **REGISTRY["dinov3-vitl16"].arguments,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        input_px=64,
        feature_dim=32,
    ),
    "plip": replace(
        REGISTRY["plip"],
        arguments={
            **REGISTRY["plip"].arguments,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 96,
            "projection_dim": 24,
        },
        input_px=96,
        feature_dim=24,
    ),
    "loki": replace(
        REGISTRY["loki"],
        arguments={
            **REGISTRY["loki"].arguments,
            "image_size": 42,
            "width": 32,
            "layers": 2,
            "heads": 2,
            "attn_pooler_heads": 2,
            "output_dim": 24,
        },
        input_px=42,
        feature_dim=24,
    ),
    "musk": replace(
        REGISTRY["musk"],
        arguments={**REGISTRY["musk"].arguments, "img_size": 48, "depth": 2, "num_heads": 4, "embed_dim": 32},
        input_px=48,
        feature_dim=32,
    ),
}
"""Registered backbones with fewer and narrower layers: the same code builds, loads and runs them."""

TINY_DINO: dict[str, Any] = {
    "name": "dinov3",
    "input_px": 32,
    "config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_register_tokens": 4,
        "patch_size": 8,
        "image_size": 32,
    },
}
TINY_CNN: dict[str, Any] = {"name": "timm:test_resnet", "input_px": 64, "pool": "center"}


def images(side: int, count: int = 2, seed: int = 0) -> Tensor:
    """Return random images (count, 3, side, side) in [0, 1]."""
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def clip_model() -> Any:
    """Return a whole CLIP, images and texts, of the small PLIP's sizes."""
    from transformers import CLIPConfig, CLIPModel

    arguments = dict(SMALL["plip"].arguments)
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    projection = arguments.pop("projection_dim")
    config = CLIPConfig(text_config={**text, "vocab_size": 99}, vision_config=arguments, projection_dim=projection)
    return CLIPModel(config).eval()


def clip_file() -> dict[str, Tensor]:
    """Return the tensors of a file as PLIP's, with the position tables that older versions kept."""
    state = dict(clip_model().state_dict())
    state["vision_model.embeddings.position_ids"] = torch.arange(10)[None]
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return state


def coca_model() -> Any:
    """Return a whole CoCa, with text tower and decoder, of the small LOKI's sizes."""
    from open_clip.coca_model import CoCa

    own = dict(SMALL["loki"].arguments)
    shared = {"context_length": 8, "vocab_size": 99, "width": 24, "heads": 2, "layers": 1}
    return CoCa(
        embed_dim=own["output_dim"],
        multimodal_cfg={**shared, "attn_pooler_heads": 2},
        text_cfg={**shared, "embed_cls": True, "output_tokens": True},
        vision_cfg={
            "image_size": own["image_size"],
            "patch_size": own["patch_size"],
            "width": own["width"],
            "layers": own["layers"],
            "head_width": own["width"] // own["heads"],
            "attentional_pool": True,
            "attn_pooler_heads": own["attn_pooler_heads"],
            "output_tokens": True,
        },
    ).eval()


def training_checkpoint(state: dict[str, Tensor]) -> dict[str, Any]:
    """Return a checkpoint as open_clip writes it while it trains: on several devices, with a NumPy number."""
    import numpy as np

    return {
        "epoch": 3,
        "name": "coca",
        "state_dict": {f"module.{name}": value for name, value in state.items()},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": np.float64(1e-4)}]},
    }


def musk_file(seed: int = 0) -> dict[str, Tensor]:
    """Return the tensors of a file as MUSK's by the names of torchscale: experts A and B, texts and two heads."""
    own = SMALL["musk"].arguments
    width, depth, grid = own["embed_dim"], own["depth"], own["img_size"] // 16
    random = torch.Generator().manual_seed(seed)

    def tensor(*shape: int) -> Tensor:
        return 0.2 * torch.randn(*shape, generator=random)

    state = {
        "beit3.text_embed.weight": tensor(50, width),
        "beit3.vision_embed.mask_token": tensor(1, 1, width),
        "beit3.vision_embed.cls_token": tensor(1, 1, width),
        "beit3.vision_embed.proj.weight": tensor(width, 3, 16, 16),
        "beit3.vision_embed.proj.bias": tensor(width),
        "beit3.encoder.embed_positions.A.weight": tensor(grid * grid + 3, width),
        "beit3.encoder.embed_positions.B.weight": tensor(40, width),
        "vision_head.weight": tensor(width, width),
        "language_head.weight": tensor(width, width),
        "logit_scale": torch.tensor(2.6),
    }
    shapes = {f"self_attn.{part}_proj.{{}}": (width, width) for part in ("q", "k", "v", "out")}
    shapes |= {"ffn.{}.fc1": (4 * width, width), "ffn.{}.fc2": (width, 4 * width)}
    norms = {"self_attn_layer_norm.{}": width, "self_attn.inner_attn_ln.{}": width, "final_layer_norm.{}": width}
    norms["ffn.{}.ffn_layernorm"] = 4 * width
    for expert in "AB":
        for block in range(depth):
            start = f"beit3.encoder.layers.{block}."
            for name, shape in shapes.items():
                state[f"{start}{name.format(expert)}.weight"] = tensor(*shape)
                state[f"{start}{name.format(expert)}.bias"] = tensor(shape[0])
            for name, size in norms.items():
                state[f"{start}{name.format(expert)}.weight"] = 1 + tensor(size)
                state[f"{start}{name.format(expert)}.bias"] = tensor(size)
        state[f"beit3.encoder.layer_norm.{expert}.weight"] = 1 + tensor(width)
        state[f"beit3.encoder.layer_norm.{expert}.bias"] = tensor(width)
    return state


def musk_feature(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """Return the class token (B, D) of BEiT-3's image half, computed from the original's tensors by its formulas.

    Wang et al., Image as a Foreign Language, 2022: pre-norm blocks with a norm more after attention and inside the MLP
    (sub-LN), positions that start at row 2, eps 1e-5, exact GELU.
    """
    heads = SMALL["musk"].arguments["num_heads"]
    depth = SMALL["musk"].arguments["depth"]

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    patches = F.conv2d(
        pixels, state["beit3.vision_embed.proj.weight"], state["beit3.vision_embed.proj.bias"], stride=16
    )
    x = patches.flatten(2).transpose(1, 2)
    x = torch.cat([state["beit3.vision_embed.cls_token"].expand(len(x), -1, -1), x], 1)
    x = x + state["beit3.encoder.embed_positions.A.weight"][2:]
    for block in range(depth):
        start = f"beit3.encoder.layers.{block}."
        y = norm(x, f"{start}self_attn_layer_norm.A")
        q, k, v = (
            linear(y, f"{start}self_attn.{part}_proj.A").unflatten(-1, (heads, -1)).transpose(1, 2) for part in "qkv"
        )
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        y = norm((weights @ v).transpose(1, 2).flatten(2), f"{start}self_attn.inner_attn_ln.A")
        x = x + linear(y, f"{start}self_attn.out_proj.A")
        y = linear(norm(x, f"{start}final_layer_norm.A"), f"{start}ffn.A.fc1")
        x = x + linear(norm(F.gelu(y), f"{start}ffn.A.ffn_layernorm"), f"{start}ffn.A.fc2")
    return norm(x, "beit3.encoder.layer_norm.A")[:, 0]


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No hub, no cache, no folder of the user's own; the registered backbones are small."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("NUCLASS_BACKBONES", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name, spec in SMALL.items():
        monkeypatch.setitem(REGISTRY, name, spec)


def refusal(settings: dict[str, object], **options: object) -> str:
    with pytest.raises(UserError) as caught:
        build_backbone(settings, **options)
    return str(caught.value)
