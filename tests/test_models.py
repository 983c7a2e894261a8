"""The three networks: sizes, inputs, what is drawn per sample, what is stored."""

from __future__ import annotations

import inspect

import pytest
import torch

from nuclass.data.vocabulary import Vocabulary
from nuclass.models.backbones import build_backbone, count_parameters
from nuclass.models.gate import GateModel
from nuclass.models.global_ import GlobalModel
from nuclass.models.heads import OrganConcat, OrganFiLM
from nuclass.models.local import LocalHeads, LocalModel

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


@pytest.mark.parametrize("organ", ["film", "concat"])
def test_the_organ_changes_the_answer(organ):
    model = local_model(organ=organ).eval()
    x = torch.rand(1, 3, 64, 64)
    assert not torch.allclose(model(x, torch.tensor([0])).logits, model(x, torch.tensor([1])).logits)


def test_without_organ_there_are_no_parameters_for_it_and_no_effect():
    model = local_model(organ="none")
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"backbone", "norm", "head"}
    x = torch.rand(2, 3, 64, 64)
    for mode in (True, False):
        model.train(mode)
        answers = []
        for organ in ([0, 1], [2, 2]):
            torch.manual_seed(0)
            answers.append(model(x, torch.tensor(organ)))
        assert torch.equal(answers[0].logits, answers[1].logits)
        assert torch.equal(answers[0].features, answers[1].features)


def test_concat_puts_the_organ_behind_the_normed_features():
    model = local_model(organ="concat").eval()
    features, organ = torch.randn(2, model.backbone.feature_dim), torch.tensor([2, 0])
    out = model.classify(features, organ)
    assert torch.equal(out.features, torch.cat([model.norm(features), model.concat.embedding.weight[[2, 0]]], 1))
    assert torch.equal(out.logits, model.head(out.features))
    assert model.head[1].in_features == model.backbone.feature_dim + 8


def test_a_concatenated_organ_can_be_hidden_too():
    concat = OrganConcat(4, 8, 5, organ_dropout=1.0)
    x = torch.randn(2, 5)
    hidden = concat.train()(x, torch.tensor([0, 1]))
    assert torch.equal(hidden, concat.eval()(x, torch.tensor([3, 3])))


def test_organs_are_hidden_cell_by_cell():
    torch.manual_seed(0)
    film = OrganFiLM(3, 8, 5, organ_dropout=0.3).train()
    x = torch.randn(1, 5).expand(2000, 5)
    rows = film(x, torch.zeros(2000, dtype=torch.long))
    film.eval()
    unknown = torch.isclose(rows, film(x[:1], torch.tensor([2]))).all(1)
    known = torch.isclose(rows, film(x[:1], torch.tensor([0]))).all(1)
    assert (unknown ^ known).all()
    assert 0.25 < float(unknown.float().mean()) < 0.35


def test_an_organ_never_seen_is_the_unknown_one():
    vocabulary = Vocabulary(("a", "b", "c", "d"), ("colon", "lung", "unknown"))
    organ = torch.from_numpy(vocabulary.encode_organs(["liver", "unknown", "colon"]))
    assert organ.tolist() == [2, 2, 0]
    for way in ("film", "concat", "none"):
        model = local_model(organ=way).eval()
        logits = model(torch.rand(1, 3, 64, 64).expand(3, 3, 64, 64), organ).logits
        assert torch.isfinite(logits).all()
        assert torch.equal(logits[0], logits[1])
        assert torch.equal(logits[0], logits[2]) == (way == "none")


def test_another_word_for_the_organ_is_refused():
    with pytest.raises(ValueError, match="film, concat, none"):
        local_model(organ="gate")


def test_checkpoints_of_before_still_fit():
    # names and shapes of format 1
    own = {
        "norm.weight", "norm.bias", "film.embedding.weight", "film.modulation.0.weight", "film.modulation.0.bias",
        "film.modulation.2.weight", "film.modulation.2.bias", "head.1.weight", "head.1.bias", "head.4.weight",
        "head.4.bias",
    }  # fmt: skip
    assert {name for name in local_model().state_dict() if not name.startswith("backbone.")} == own
    assert {name for name in global_model().state_dict() if not name.startswith("backbone.")} == {
        *(f"{part}_projection.{name}" for part in ("local", "context") for name in
          ("0.weight", "0.bias", "1.weight", "1.bias")),
        *(f"head.{name}" for name in ("1.weight", "1.bias", "4.weight", "4.bias")),
        *(f"inner_gate.{name}" for name in ("0.weight", "0.bias", "2.weight", "2.bias")),
        "alpha",
    }  # fmt: skip


def test_a_copy_of_the_heads_answers_alike_and_is_its_own():
    model = local_model().eval()
    heads = LocalHeads(model).eval()
    features, organ = torch.randn(3, model.backbone.feature_dim), torch.tensor([0, 1, 2])
    assert torch.equal(heads.classify(features, organ).logits, model.classify(features, organ).logits)
    with torch.no_grad():
        heads.head[4].bias += 1
    assert not torch.equal(heads.classify(features, organ).logits, model.classify(features, organ).logits)
    assert not any(name.startswith("backbone") for name, _ in heads.named_parameters())


@pytest.fixture(scope="module")
def published():
    """The paper's sizes: eight organs, 16 classes, DINOv3's 1024 context features."""
    with torch.device("meta"):
        backbone = build_backbone({"name": "uni2-h"}, load_weights=False)
        ways = {way: LocalModel(backbone, 8, 16, organ=way) for way in ("film", "concat", "none")}
        return {**ways, "global": GlobalModel(backbone, 1024, 16)}


UNI, NORM, HEAD = 681_394_176, 2 * 1536, 1536 * 1024 + 1024 + 1024 * 16 + 16


@pytest.mark.parametrize(
    ("kind", "beside"),
    [
        # 404,608 are FiLM's two layers (64 -> 128 -> 3072); with 8 vectors of 64 before them
        ("film", NORM + 8 * 64 + 404_608 + HEAD),
        ("concat", NORM + 8 * 32 + 32 * 1024 + HEAD),
        ("none", NORM + HEAD),
        (
            "global",
            NORM + 1536 * 512 + 512 + 2 * 1024 + 1024 * 512 + 512  # both projections
            + 1024 * 1024 + 1024 + 1024 * 16 + 16  # head
            + 1025 * 256 + 256 + 256 + 1,  # inner gate
        ),
    ],
)  # fmt: skip
def test_exact_sizes_of_the_published_models(published, kind, beside):
    model = published[kind]
    assert count_parameters(model) == UNI + beside
    assert count_parameters(model.backbone) == UNI


def test_the_published_local_model_in_round_numbers(published):
    assert count_parameters(published["film"]) - UNI == 1_998_480
    assert count_parameters(published["global"]) - UNI == 2_645_777
    assert len(published["film"].state_dict()) == 354


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


def test_one_draw_for_a_whole_batch_as_in_the_original():
    torch.manual_seed(0)
    model = global_model(context_dropout=0.5, dropout=0.0).train()
    model.one_draw_a_batch = True
    local, context = torch.randn(30, model.backbone.feature_dim), torch.randn(30, 12)
    without = model.context_projection(torch.zeros(1, 12))
    shares = []
    for _ in range(60):
        c = model.classify(local, context).features[:, 8:]
        shares.append(float(torch.isclose(c, without).all(1).float().mean()))
    assert set(shares) == {0.0, 1.0}
    assert 0.3 < sum(shares) / 60 < 0.7
    # before the projection: what is left is the projection of nothing, not nothing
    assert without.abs().max() > 0


def test_a_context_left_out_is_nothing_at_all():
    model = global_model(context_dropout=0.999999, dropout=0.0).train()
    out = model.classify(torch.randn(5, model.backbone.feature_dim), torch.randn(5, 12))
    assert (out.features[:, 8:] == 0).all()


def test_alpha_weighs_the_context_alone():
    model = global_model().eval()
    local, context = torch.randn(3, model.backbone.feature_dim), torch.randn(3, 12)
    full = model.classify(local, context).features
    model.alpha.fill_(0.25)
    part = model.classify(local, context).features
    assert torch.equal(part[:, :8], full[:, :8])
    assert torch.allclose(part[:, 8:], full[:, 8:] / 4)


def test_fused_logits_by_hand():
    model = global_model().eval()
    output = model.classify(torch.randn(2, model.backbone.feature_dim), torch.randn(2, 12))
    z_a = torch.tensor([[2.0, 0, 0, 0], [0, 0, 0, 0]])
    fused = model.fuse(output, z_a)
    p = z_a.softmax(1)
    entropy = -(p * p.log()).sum(1) / torch.tensor(4.0).log()
    g = torch.sigmoid(model.inner_gate(torch.cat([output.features, entropy[:, None]], 1)))
    assert torch.allclose(fused, z_a + g * output.logits)
    assert torch.allclose(model.fuse(output, z_a, entropy), fused)
    assert not torch.allclose(model.fuse(output, z_a, torch.zeros(2)), fused)


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


@pytest.mark.parametrize("part", [LocalModel, LocalHeads, GlobalModel, GateModel, OrganFiLM, OrganConcat])
def test_no_forward_takes_a_label(part):
    methods = [getattr(part, name) for name in ("forward", "classify", "fuse", "embed") if hasattr(part, name)]
    assert methods
    for method in methods:
        names = set(inspect.signature(method).parameters)
        assert names <= {
            "self", "images", "organ", "features", "context", "local_features", "output", "local_logits", "hint",
            "features_a", "features_b", "p_a", "p_b", "input",
        }  # fmt: skip
