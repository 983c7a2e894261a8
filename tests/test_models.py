"""Backbones by name, and the three networks: sizes, inputs, what is drawn per sample, what is stored."""

from __future__ import annotations

import inspect

import pytest
import torch

from nuclass.core.errors import UserError
from nuclass.models.backbones import REGISTRY, build_backbone, count_parameters, find_weights
from nuclass.models.gate import GateModel
from nuclass.models.global_ import GlobalModel
from nuclass.models.heads import OrganFiLM
from nuclass.models.local import LocalModel

TINY_CNN = {"name": "timm:test_resnet", "input_px": 64, "pool": "center"}
TINY_DINO = {
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


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_registered_architectures_have_their_exact_size(name):
    spec = REGISTRY[name]
    with torch.device("meta"):
        backbone = build_backbone({"name": name}, load_weights=False)
    assert count_parameters(backbone.net) == spec.parameters
    assert backbone.feature_dim == spec.feature_dim
    assert backbone.prefix_tokens == {"uni2-h": 9, "dinov3-vitl16": 5}[name]


def test_uni2_h_has_the_published_tensors():
    with torch.device("meta"):
        net = build_backbone({"name": "uni2-h"}, load_weights=False).net
    state = net.state_dict()
    assert len(state) == 343
    assert count_parameters(net) == 681_394_176
    assert state["reg_token"].shape == (1, 8, 1536)
    assert state["blocks.0.mlp.fc1.weight"].shape == (8192, 1536)
    assert state["blocks.23.mlp.fc2.weight"].shape == (1536, 4096)


def test_missing_weights_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("NUCLASS_BACKBONES", raising=False)
    with pytest.raises(UserError) as caught:
        find_weights(REGISTRY["uni2-h"], tmp_path)
    text = str(caught.value)
    assert str(tmp_path / "backbones" / "MahmoodLab" / "UNI2-h") in text
    assert "hf download MahmoodLab/UNI2-h" in text


def test_weights_are_found_in_the_users_folder_first(tmp_path, monkeypatch):
    folder = tmp_path / "mine" / "MahmoodLab" / "UNI2-h"
    folder.mkdir(parents=True)
    (folder / "pytorch_model.bin").touch()
    monkeypatch.setenv("NUCLASS_BACKBONES", str(tmp_path / "mine"))
    assert find_weights(REGISTRY["uni2-h"], tmp_path) == folder


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "uni2h"}, ["Did you mean 'uni2-h'"]),
        ({"name": "timm:resnet1888", "input_px": 64}, ["timm has no network", "resnet1888"]),
        ({"name": "timm:test_resnet"}, ["input_px"]),
        ({"name": "timm:test_resnet", "input_pixel": 64}, ["unknown key", "input_px"]),
        ({"name": "timm:test_vit", "input_px": 160, "pool": "center"}, ["pool"]),
        ({"name": "folder", "path": "/nowhere"}, ["config.json"]),
        ({"name": "dinov3", "config": {"hidden_size": "wide"}}, ["configuration is not valid"]),
    ],
)
def test_wrong_backbones_are_named(settings, words):
    with pytest.raises(UserError) as caught:
        build_backbone(settings)
    assert all(word in str(caught.value) for word in words)


def test_a_wrong_weight_file_is_refused_by_its_first_tensor(tmp_path):
    file = tmp_path / "weights.bin"
    state = build_backbone(TINY_CNN).net.state_dict()
    state["conv1.0.weight"] = state["conv1.0.weight"][:, :1]
    torch.save(state, file)
    with pytest.raises(UserError, match=r"conv1\.0\.weight"):
        build_backbone({**TINY_CNN, "weights": str(file)})


def test_a_weight_file_is_loaded(tmp_path):
    first = build_backbone(TINY_CNN)
    torch.save(first.net.state_dict(), tmp_path / "weights.bin")
    second = build_backbone({**TINY_CNN, "weights": str(tmp_path / "weights.bin")})
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(first.eval().net(x), second.eval().net(x))


def test_a_saved_folder_gives_the_same_features(tmp_path):
    first = build_backbone(TINY_DINO).eval()
    first.net.save_pretrained(tmp_path / "context")
    second = build_backbone({"name": "folder", "path": str(tmp_path / "context"), "input_px": 32}).eval()
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(first(x), second(x))
    assert torch.equal(first(x), first.net(pixel_values=first.normalise(x)).pooler_output)


def test_features_do_not_accept_another_size():
    with pytest.raises(ValueError, match="64 px"):
        build_backbone(TINY_CNN)(torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize("settings", [TINY_CNN, {"name": "timm:test_vit", "input_px": 160}, TINY_DINO])
def test_every_kind_gives_its_features(settings):
    backbone = build_backbone(settings).eval()
    side = backbone.input_px
    assert backbone(torch.rand(2, 3, side, side)).shape == (2, backbone.feature_dim)


def test_center_pooling_knows_the_middle():
    pool = build_backbone({**TINY_CNN, "input_px": 160}).pool
    weights = torch.softmax(pool.weight_logits.flatten(), 0).view_as(pool.weight_logits)
    assert torch.allclose(weights, weights.flip(0))
    side = weights.shape[0]
    assert weights[side // 2, side // 2] > 3 * weights[0, 0]


def local_model(**options):
    return LocalModel(build_backbone(TINY_CNN), n_organs=3, n_classes=4, organ_dim=8, hidden=16, **options)


def global_model(**options):
    return GlobalModel(build_backbone(TINY_CNN), context_dim=12, n_classes=4, project=8, hidden=16, **options)


def test_film_is_the_published_size_and_formula():
    film = OrganFiLM(8, 64, 1536)
    assert sum(p.numel() for p in film.modulation.parameters()) == 404_608
    small = OrganFiLM(2, 4, 3).eval()
    x, organ = torch.randn(1, 3), torch.tensor([1])
    gamma, beta = small.modulation(small.embedding(organ)).chunk(2, 1)
    assert torch.allclose(small(x, organ), x * (1 + gamma) + beta)


def test_a_hidden_organ_is_the_last_one():
    film = OrganFiLM(4, 8, 5, organ_dropout=1.0)
    x = torch.randn(2, 5)
    hidden = film.train()(x, torch.tensor([0, 1]))
    film.eval()
    assert torch.allclose(hidden, film(x, torch.tensor([3, 3])))
    assert not torch.allclose(hidden, film(x, torch.tensor([0, 1])))


def test_the_organ_changes_the_answer():
    model = local_model().eval()
    x = torch.rand(1, 3, 64, 64)
    assert not torch.allclose(model(x, torch.tensor([0])).logits, model(x, torch.tensor([1])).logits)


def test_shapes_of_the_branches():
    x, organ = torch.rand(2, 3, 64, 64), torch.tensor([0, 1])
    a = local_model().eval()(x, organ)
    b = global_model().eval()(x, torch.randn(2, 12))
    assert a.logits.shape == b.logits.shape == (2, 4)
    assert b.features.shape == (2, 16)


def test_context_is_dropped_sample_by_sample():
    torch.manual_seed(0)
    model = global_model(context_dropout=0.5, dropout=0.0).train()
    out = model.classify(torch.randn(400, model.backbone.feature_dim), torch.randn(400, 12))
    dropped = (out.features[:, 8:] == 0).all(1).float().mean()
    assert 0.4 < float(dropped) < 0.6
    model.eval()
    out = model.classify(torch.randn(50, model.backbone.feature_dim), torch.randn(50, 12))
    assert not (out.features[:, 8:] == 0).all(1).any()


def test_alpha_is_saved_with_the_weights():
    first = global_model().eval()
    first.alpha.fill_(0.625)
    second = global_model().eval()
    second.load_state_dict(first.state_dict())
    assert float(second.alpha) == 0.625
    x, context = torch.rand(1, 3, 64, 64), torch.randn(1, 12)
    assert torch.equal(first(x, context).logits, second(x, context).logits)


def test_the_global_model_uses_both_inputs():
    model = global_model().eval()
    x, context = torch.rand(2, 3, 64, 64), torch.randn(2, 12)
    logits = model(x, context).logits
    assert not torch.allclose(logits, model(x.flip(0), context).logits)
    assert not torch.allclose(logits, model(x, context.flip(0)).logits)


def test_no_forward_takes_a_label():
    for model in (LocalModel, GlobalModel, GateModel):
        for method in (model.forward, getattr(model, "classify", model.forward), getattr(model, "fuse", model.forward)):
            names = set(inspect.signature(method).parameters)
            assert not names & {"y", "label", "labels", "target", "targets"}
