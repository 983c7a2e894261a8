"""Backbones by name: the exact architectures, and small versions of them that run forward and backward."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from backbone_example import SMALL, TINY_CNN, TINY_DINO, images
from nuclass.core.errors import UserError
from nuclass.interpret.gradcam import class_activation
from nuclass.models.backbones import REGISTRY, build_backbone, count_parameters, describe

TENSORS = {"uni2-h": 343, "dinov3-vitl16": 415, "plip": 200, "loki": 307, "musk": 390}
PREFIX = {"uni2-h": 9, "dinov3-vitl16": 5, "plip": 1, "loki": 1, "musk": 1, "demo-context": 5, "demo-local": 0}
NAMED = {
    "uni2-h": {
        "reg_token": (1, 8, 1536),
        "pos_embed": (1, 256, 1536),
        "blocks.0.mlp.fc1.weight": (8192, 1536),
        "blocks.23.mlp.fc2.weight": (1536, 4096),
        "blocks.23.ls2.gamma": (1536,),
    },
    "dinov3-vitl16": {
        "embeddings.register_tokens": (1, 4, 1024),
        "embeddings.patch_embeddings.weight": (1024, 3, 16, 16),
        "norm.weight": (1024,),
    },
    "plip": {
        "vision_model.embeddings.patch_embedding.weight": (768, 3, 32, 32),
        "vision_model.embeddings.position_embedding.weight": (50, 768),
        "vision_model.encoder.layers.11.mlp.fc1.weight": (3072, 768),
        "visual_projection.weight": (512, 768),
    },
    "loki": {
        "conv1.weight": (1024, 3, 14, 14),
        "positional_embedding": (257, 1024),
        "transformer.resblocks.23.attn.in_proj_weight": (3072, 1024),
        "attn_pool.query": (256, 768),
        "proj": (768, 768),
    },
    "musk": {
        "pos_embed": (1, 577, 1024),
        "blocks.23.attn.norm.weight": (1024,),
        "blocks.23.mlp.norm.weight": (4096,),
        "norm.weight": (1024,),
    },
}
NEWER = {"name": "transformers", "input_px": 32}
TINY_CLIP = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
HUB_KINDS = {
    "vit": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "dinov2_with_registers": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    "siglip_vision_model": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "convnext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def _small(monkeypatch):
    for name, spec in SMALL.items():
        monkeypatch.setitem(REGISTRY, name, spec)


def hub(kind: str, **settings: object) -> dict[str, object]:
    size = {} if kind == "convnext" else {"image_size": 32, "patch_size": 8}
    return {**NEWER, "config": {"model_type": kind, **HUB_KINDS[kind], **size}, **settings}


EVERY = [pytest.param({"name": name}, id=name) for name in ("uni2-h", "dinov3-vitl16", "plip", "loki", "musk")] + [
    pytest.param(TINY_DINO, id="dinov3"),
    pytest.param(TINY_CNN, id="cnn"),
    pytest.param({"name": "timm:test_vit", "input_px": 160}, id="timm-vit"),
    *(pytest.param(hub(kind, pool="pooler" if "siglip" in kind else "native"), id=kind) for kind in HUB_KINDS),
]


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_registered_architectures_have_their_exact_size(name):
    spec = REGISTRY[name]
    with torch.device("meta"):
        backbone = build_backbone({"name": name}, load_weights=False)
    assert count_parameters(backbone.net) == spec.parameters
    assert (backbone.feature_dim, backbone.prefix_tokens) == (spec.feature_dim, PREFIX[name])
    assert all(parameter.is_meta for parameter in backbone.net.parameters())


@pytest.mark.parametrize("name", sorted(TENSORS))
def test_registered_architectures_have_the_published_tensors(name):
    with torch.device("meta"):
        state = build_backbone({"name": name}, load_weights=False).net.state_dict()
    assert len(state) == TENSORS[name]
    assert {key: tuple(state[key].shape) for key in NAMED[name]} == NAMED[name]


def test_uni2_h_has_its_published_number_of_parameters():
    assert REGISTRY["uni2-h"].parameters == 681_394_176
    assert REGISTRY["dinov3-vitl16"].parameters == 303_129_600


def test_the_image_half_of_loki_is_that_of_open_clips_own_coca():
    import open_clip

    whole = open_clip.create_model("coca_ViT-L-14", pretrained=None, device="meta")
    with torch.device("meta"):
        half = build_backbone({"name": "loki"}, load_weights=False).net
    assert {key: value.shape for key, value in half.state_dict().items()} == {
        key: value.shape for key, value in whole.visual.state_dict().items()
    }
    # Published: 638.5 million with text tower and decoder.
    assert count_parameters(whole) == 638_450_177
    assert [type(block.mlp.gelu) for block in half.transformer.resblocks] == [nn.GELU] * 24


def test_musk_as_a_whole_has_the_published_size():
    # Expert B repeats every layer; then texts (64,010 words), 1,024 + 2 positions, a mask token, two heads, a scale.
    width = 1024
    vision = REGISTRY["musk"].parameters
    embeddings = width * 3 * 256 + width + width + 577 * width
    language = vision - embeddings + 64_010 * width + 1024 * width
    rest = 2 * width + width + 2 * width * width + 1
    assert round((vision + language + rest) / 1e6, 1) == 675.2


def test_plip_has_the_architecture_of_clip_vit_b_32():
    from transformers import CLIPVisionConfig

    # The library's defaults are those of openai/clip-vit-base-patch32, from which PLIP was fine-tuned.
    usual = CLIPVisionConfig()
    assert {key: getattr(usual, key) for key in REGISTRY["plip"].arguments} == REGISTRY["plip"].arguments


def test_demo_networks_are_those_of_the_demos_settings():
    file = Path(__file__).parent.parent / "config" / "models" / "demo.yaml"
    models = yaml.safe_load(file.read_text(encoding="utf-8"))
    for name, section in (("demo-context", models["context"]), ("demo-local", models["local"])):
        spec, described = REGISTRY[name], describe(section["backbone"])
        assert described.parameters == spec.parameters == describe({"name": name}).parameters
        assert (described.input_px, described.feature_dim) == (spec.input_px, spec.feature_dim)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("settings", EVERY)
def test_every_kind_runs_forward_and_backward(settings):
    backbone = build_backbone(settings, load_weights=False).eval()
    x = images(backbone.input_px)
    spatial = backbone.spatial(x)
    features = backbone.pool_tokens(spatial)
    assert features.shape == (2, backbone.feature_dim)
    assert torch.equal(features, backbone(x))
    if backbone.kind == "tokens":
        places = spatial.shape[1] - backbone.prefix_tokens
        assert round(places**0.5) ** 2 == places
        assert spatial.shape == (2, spatial.shape[1], backbone.token_dim)
    else:
        assert spatial.shape[:2] == (2, backbone.token_dim)
        assert spatial.shape[2] == spatial.shape[3]
    assert not torch.allclose(features[0], features[1])
    (features * torch.linspace(-1, 1, features.shape[1])).sum().backward()
    used = [parameter for parameter in backbone.parameters() if parameter.grad is not None]
    assert len(used) >= len(list(backbone.parameters())) - 6
    assert all(parameter.grad.isfinite().all() for parameter in used)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("settings", EVERY)
def test_gradient_checkpointing_keeps_nothing_and_changes_nothing(settings):
    if settings.get("config", {}).get("model_type") == "convnext":
        with pytest.raises(UserError, match="cannot compute its activations again"):
            build_backbone(settings).checkpoint_gradients()
        return

    def run(checkpointed: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
        torch.manual_seed(0)
        backbone = build_backbone(settings, load_weights=False).train()
        if checkpointed:
            backbone.checkpoint_gradients()
        kept = 0

        def keep(value: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += value.numel()
            return value

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            features = backbone(images(backbone.input_px))
        before = kept
        features.square().sum().backward()
        gradients = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
        return features.detach(), gradients, before

    plain, slopes, kept = run(False)
    again, same, less = run(True)
    assert torch.allclose(plain, again, atol=1e-6)
    assert slopes.keys() == same.keys()
    assert all(torch.allclose(slopes[name], same[name], rtol=1e-4, atol=1e-6) for name in slopes)
    assert less < kept


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("settings", EVERY)
def test_half_precision_is_close(settings):
    backbone = build_backbone(settings, load_weights=False).eval()
    x = images(backbone.input_px)
    with torch.no_grad():
        exact = backbone(x)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = backbone(x)
        half = backbone.to(torch.bfloat16)(x)
    assert half.dtype == torch.bfloat16
    scale = exact.std()
    assert (mixed.float() - exact).abs().max() < 0.2 * scale + 0.02
    assert (half.float() - exact).abs().max() < 0.4 * scale + 0.04


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("settings", EVERY)
def test_every_kind_has_activation_maps(settings):
    backbone = build_backbone(settings, load_weights=False).eval()
    if backbone.library == "transformers" and backbone.kind == "map":
        with pytest.raises(UserError, match="Activation maps of this backbone are not known"):
            backbone.explained_layer()
        return
    if backbone.kind == "tokens":
        blocks = backbone.net.get_submodule(backbone.form.blocks)
        assert len(blocks) > 1
        assert blocks[-1].get_submodule(backbone.form.norm) is backbone.explained_layer()
    head = nn.Linear(backbone.feature_dim, 3)
    x = images(backbone.input_px)
    maps, logits = class_activation(backbone, lambda: head(backbone(x)))
    assert logits.shape == (2, 3)
    assert maps.shape[1] == maps.shape[2] > 1
    assert maps.min() >= 0
    assert maps.flatten(1).std(1).min() > 0


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("settings", EVERY)
def test_settings_build_the_same_network_again(settings):
    first = build_backbone(settings, load_weights=False).eval()
    again = build_backbone(json.loads(json.dumps(first.settings)), load_weights=False).eval()
    again.load_state_dict(first.state_dict(), strict=True)
    x = images(first.input_px)
    assert torch.equal(first(x), again(x))
    assert torch.equal(first.mean, again.mean)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("name", ["plip", "loki", "musk", "uni2-h"])
def test_backbones_can_be_copied_and_sent(name):
    backbone = build_backbone({"name": name}, load_weights=False).eval()
    x = images(backbone.input_px)
    for other in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert torch.equal(other(x), backbone(x))


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(("name", "other"), [("uni2-h", 56), ("dinov3-vitl16", 96), ("plip", 128), ("musk", 80)])
def test_other_input_sides(name, other):
    backbone = build_backbone({"name": name, "input_px": other}, load_weights=False).eval()
    patch = {"uni2-h": 14, "dinov3-vitl16": 16, "plip": 32, "musk": 16}[name]
    spatial = backbone.spatial(images(other))
    assert spatial.shape[1] == backbone.prefix_tokens + (other // patch) ** 2
    assert backbone.pool_tokens(spatial).shape == (2, backbone.feature_dim)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "uni2-h", "input_px": 230}, ["230 px with uni2-h", "a multiple of 14", "set input_px: 224"]),
        ({"name": "musk", "input_px": 224 + 8}, ["a multiple of 16"]),
        ({"name": "loki", "input_px": 448}, ["448 px with loki", "set input_px: 224"]),
        ({"name": "timm:vit_tiny_patch16_224", "input_px": 96}, ["kwargs: {img_size: 96}", "expected:   224 px"]),
        ({"name": "uni2h"}, ["Did you mean 'uni2-h'"]),
        ({"name": "msk"}, ["Did you mean 'musk'", "transformers:<folder or hub id>"]),
        ({"name": "timm:resnet1888", "input_px": 64}, ["timm has no network", "resnet1888"]),
        ({"name": "timm:test_resnet"}, ["input_px"]),
        ({"name": "timm:test_resnet", "input_px": 64, "kwargs": {"depht": 3}}, ["does not take these", "depht"]),
        ({"name": "timm:test_resnet", "input_px": 64, "weights": "required"}, ["has no registered weights"]),
        ({"name": "demo-local", "weights": "required"}, ["has no registered weights"]),
        ({"name": "timm:test_resnet", "input_pixel": 64}, ["unknown key", "input_px"]),
        ({"name": "timm:test_vit", "input_px": 160, "pool": "center"}, ["pool"]),
        ({**TINY_DINO, "pool": "center"}, ["cannot be pooled in this way", "native, cls, mean, pooler"]),
        ({**TINY_DINO, "pool": "centre"}, ["pool: not a valid value", "Did you mean 'center'"]),
        ({**TINY_DINO, "pool": "pooler"}, ["has no pooler"]),
        (hub("siglip_vision_model", pool="cls"), ["has no class token", "pool: mean"]),
        ({"name": "folder", "path": "/nowhere"}, ["config.json"]),
        ({"name": "transformers"}, ["needs to know which"]),
        ({"name": "transformers", "config": {"model_type": "vitt"}}, ["no model of this type", "Did you mean 'vit'"]),
        ({"name": "transformers", "config": {"model_type": "bert"}}, ["is no vision model", "bert"]),
        ({"name": "dinov3", "config": {"hidden_size": "wide"}}, ["The DINOv3 configuration is not valid"]),
    ],
)
def test_wrong_backbones_are_named(settings, words):
    with torch.device("meta"), pytest.raises(UserError) as caught:
        build_backbone(settings)
    assert [word for word in words if word not in str(caught.value)] == []


def test_features_do_not_accept_another_size():
    with pytest.raises(ValueError, match="64 px"):
        build_backbone(TINY_CNN)(torch.rand(1, 3, 32, 32))


def test_center_pooling_knows_the_middle():
    pool = build_backbone({**TINY_CNN, "input_px": 160}).pool
    weights = torch.softmax(pool.weight_logits.flatten(), 0).view_as(pool.weight_logits)
    assert torch.allclose(weights, weights.flip(0))
    side = weights.shape[0]
    assert weights[side // 2, side // 2] > 3 * weights[0, 0]


@pytest.mark.parametrize("kind", ["vit", "siglip_vision_model"])
def test_the_pooler_is_the_models_own(kind):
    backbone = build_backbone(hub(kind, pool="pooler")).eval()
    x = images(32)
    own = backbone.net(pixel_values=backbone.normalise(x)).pooler_output
    assert torch.allclose(backbone(x), own, atol=1e-6)


@pytest.mark.parametrize(("pool", "kind"), [("cls", "vit"), ("mean", "vit"), ("native", "siglip_vision_model")])
def test_tokens_are_pooled_as_asked(pool, kind):
    backbone = build_backbone(hub(kind, pool=pool)).eval()
    tokens = backbone.spatial(images(32))
    assert tokens.shape[1] == 16 + backbone.prefix_tokens
    expected = tokens[:, 0] if pool == "cls" else tokens[:, backbone.prefix_tokens :].mean(1)
    assert torch.equal(backbone.pool_tokens(tokens), expected)


def test_maps_with_channels_last_are_turned():
    backbone = build_backbone({"name": "timm:swin_tiny_patch4_window7_224", "input_px": 224}, load_weights=False).eval()
    with torch.no_grad():
        spatial = backbone.spatial(images(224, 1))
        assert spatial.shape == (1, 768, 7, 7)
        assert torch.allclose(backbone.pool_tokens(spatial), spatial.mean((2, 3)), atol=1e-5)


def test_a_description_takes_no_memory():
    described = describe({"name": "uni2-h", "input_px": 448})
    assert (described.parameters, described.input_px, described.gated) == (681_394_176, 448, True)
    other = describe({"name": "timm:vit_base_patch16_224", "input_px": 224, "mean": [0.5, 0.5, 0.5]})
    assert other.parameters == 85_798_656
    assert (other.library, other.architecture, other.feature_dim) == ("timm", "vit_base_patch16_224", 768)
    assert other.mean == (0.5, 0.5, 0.5)
    third = describe(hub("vit"))
    assert (third.library, third.architecture, third.feature_dim, third.input_px) == ("transformers", "vit", 32, 32)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"name": "timm:resnet10t", "input_px": "96"}, "input_px"),
        ({"name": "timm:resnet10t", "input_px": 0}, "input_px"),
        ({"name": "timm:resnet10t", "input_px": 96.5}, "input_px"),
        ({"name": "timm:resnet10t", "input_px": 96, "mean": [0.5, 0.5]}, "mean"),
        ({"name": "timm:resnet10t", "input_px": 96, "std": [0.5, 0.5, 0]}, "std"),
        ({"name": "uni2-h", "weights": None}, "weights"),
        ({"name": "timm:resnet10t", "input_px": 96, "pool": "mean"}, "pool: mean"),
        ({"name": "uni2-h", "weights": "none", "pool": "mean"}, "pool: mean"),
        ({"name": "demo-local", "kwargs": {"channels": [8, 8, 8, 8]}}, "kwargs: no key of 'demo-local'"),
        ({"name": "demo-context", "config": {"hidden_size": 64}}, "config: no key of 'demo-context'"),
        ({"name": "timm:resnet10t", "input_px": 96, "path": "x"}, "path: no key of"),
        ({"name": "dinov3", "config": {"hidden_sise": 64}}, "Did you mean 'hidden_size'"),
        ({"name": "transformers", "config": {"model_type": "vit", "hiden_size": 96}}, "Did you mean 'hidden_size'"),
        ({"name": "dinov3", "config": {"hidden_size": 64, "num_attention_heads": 5}}, "hidden_size 64"),
        ({"name": "dinov3", "input_px": 60, "config": {"hidden_size": 32, "num_attention_heads": 2}}, "multiple of 16"),
        ({**NEWER, "config": {"model_type": "clip_vision_model", **TINY_CLIP}, "pool": "cls"}, "pool: cls"),
        ({"name": "timm:resnet10t", "input_px": 96, "kwargs": {"in_chans": 1}}, "three channels"),
        ({"name": "timm:crossvit_9_240", "input_px": 240}, "several outputs"),
    ],
)
def test_a_setting_without_effect_or_sense_is_refused(settings, told):
    with torch.device("meta"), pytest.raises(UserError) as error:
        build_backbone(settings)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("name", "px", "kind", "prefix", "token_dim", "feature_dim"),
    [
        ("mobilenetv3_small_050", 64, "map", 0, 288, 1024),
        ("ghostnet_050", 64, "map", 0, 480, 1280),
        ("gmixer_12_224", 224, "tokens", 0, 384, 384),
        ("volo_d1_224", 224, "tokens", 1, 384, 384),
        ("xcit_nano_12_p16_224", 224, "tokens", 1, 128, 128),
        ("swin_tiny_patch4_window7_224", 224, "map", 0, 768, 768),
    ],
)
def test_any_network_of_timm_tells_its_true_width_and_form(name, px, kind, prefix, token_dim, feature_dim):
    with torch.device("meta"):
        backbone = build_backbone({"name": f"timm:{name}", "input_px": px}).eval()
        images = torch.zeros(2, 3, px, px)
        spatial = backbone.spatial(images)
        features = backbone(images)
    assert (backbone.kind, backbone.prefix_tokens, backbone.token_dim) == (kind, prefix, token_dim)
    assert spatial.shape[1 if kind == "map" else 2] == token_dim
    assert spatial.ndim == (4 if kind == "map" else 3)
    assert features.shape == (2, feature_dim)
    assert backbone.feature_dim == feature_dim
