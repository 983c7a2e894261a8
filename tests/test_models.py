"""The three networks: sizes, inputs, what is drawn per sample, what is stored."""

from __future__ import annotations

import inspect

import torch

from nuclass.models.backbones import build_backbone
from nuclass.models.gate import GateModel
from nuclass.models.global_ import GlobalModel
from nuclass.models.heads import OrganFiLM
from nuclass.models.local import LocalModel

TINY_CNN = {"name": "timm:test_resnet", "input_px": 64, "pool": "center"}


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
