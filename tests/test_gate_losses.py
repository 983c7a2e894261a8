"""The gate's network, targets and terms, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nuclass.models import gate_losses
from nuclass.models.gate import GateModel, gate_statistics, mix
from nuclass.training.config import GateTerms


def test_gate_targets_where_one_is_right_and_where_both_are():
    p_a = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]])
    p_b = torch.tensor([[0.2, 0.8], [0.8, 0.2], [0.7, 0.3]])
    labels = torch.tensor([0, 0, 0])
    t, w, delta = gate_losses.gate_targets(p_a, p_b, labels)
    assert t[:2].tolist() == [0.0, 1.0]
    assert float(t[2]) == pytest.approx(1 / (1 + math.exp(-10 * 0.1)), rel=1e-5)
    assert delta.tolist() == pytest.approx([-0.7, 0.5, 0.1])
    assert w.tolist() == pytest.approx([1 + 2 + 0.7, 1 + 2 + 0.5, 1 + 0.1])


def test_gate_targets_follow_their_powers():
    p_a, p_b = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    w = gate_losses.gate_targets(p_a, p_b, torch.tensor([0]), conflict_boost=5, delta_scale=3, delta_gamma=2).weight
    assert float(w) == pytest.approx(1 + 3 * 0.16)


def gate_terms(**factors: float) -> gate_losses.GateLoss:
    p_a, p_b, labels = torch.tensor([[0.6, 0.4]]), torch.tensor([[0.2, 0.8]]), torch.tensor([1])
    targets = gate_losses.gate_targets(p_a, p_b, labels)
    return gate_losses.gate_loss(torch.tensor([0.0]), p_a, p_b, labels, targets, **factors)


def test_gate_loss_by_hand():
    # g = 1/2: p_mix = (0.4, 0.6); B right, A wrong: t = 1, w = 1 + 2 + 0.4 = 3.4, delta = 0.4
    terms = gate_terms()
    assert float(terms.mix) == pytest.approx(-3.4 * math.log(0.6), rel=1e-5)
    assert float(terms.bce) == pytest.approx(3.4 * math.log(2), rel=1e-5)
    kl = 0.2 * math.log(0.2 / 0.4) + 0.8 * math.log(0.8 / 0.6)
    assert float(terms.align) == pytest.approx(3.4 * kl, rel=1e-5)
    assert float(terms.entropy) == pytest.approx(math.log(2) * 0.4, rel=1e-5)
    total = terms.mix + terms.bce + 0.1 * terms.align + 0.05 * terms.entropy
    assert float(terms.total) == pytest.approx(float(total))


def test_gate_factors_and_positive_weight():
    alone = gate_terms(mix_weight=0, bce_weight=0, align_weight=0, entropy_weight=2)
    assert float(alone.total) == pytest.approx(2 * float(alone.entropy))
    assert float(gate_terms(pos_weight=3).bce) == pytest.approx(3 * float(gate_terms().bce))


def test_the_fifth_term_is_the_heads_own_cross_entropy():
    p_a, p_b, labels = torch.tensor([[0.6, 0.4]]), torch.tensor([[0.2, 0.8]]), torch.tensor([1])
    targets = gate_losses.gate_targets(p_a, p_b, labels)
    z_a, z_b = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    gate = torch.tensor([0.0])
    without = gate_losses.gate_loss(gate, p_a, p_b, labels, targets)
    terms = gate_losses.gate_loss(gate, p_a, p_b, labels, targets, branch_logits=(z_a, z_b), aux_weight=0.05)
    # CE(z_A, 1) = ln 2; CE(z_B, 1) = ln(e + 1)
    assert float(terms.aux) == pytest.approx(0.5 * (math.log(2) + math.log(math.e + 1)), rel=1e-6)
    assert float(without.aux) == 0
    assert float(terms.total - without.total) == pytest.approx(0.05 * float(terms.aux), rel=1e-4)


def test_all_five_terms_are_means_over_cells():
    torch.manual_seed(0)
    p_a, p_b = torch.softmax(torch.randn(2, 6, 3), 2)
    z_a, z_b, gate = torch.randn(6, 3), torch.randn(6, 3), torch.randn(6)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    rows = [slice(i, i + 1) for i in range(6)]

    def terms(part: slice) -> gate_losses.GateLoss:
        targets = gate_losses.gate_targets(p_a[part], p_b[part], labels[part])
        logits = (z_a[part], z_b[part])
        return gate_losses.gate_loss(
            gate[part], p_a[part], p_b[part], labels[part], targets, branch_logits=logits, pos_weight=2.0
        )

    whole, single = terms(slice(0, 6)), [terms(row) for row in rows]
    for number, name in enumerate(whole._fields):
        assert float(whole[number]) == pytest.approx(np.mean([float(one[number]) for one in single]), rel=1e-5), name


def test_targets_carry_no_gradient_and_factors_are_the_originals():
    z = torch.randn(4, 3, requires_grad=True)
    targets = gate_losses.gate_targets(z.softmax(1), z.softmax(1).flip(0), torch.tensor([0, 1, 2, 0]))
    assert not any(part.requires_grad for part in targets)
    defaults = GateTerms()
    assert (defaults.soft_k, defaults.conflict_boost, defaults.delta_scale, defaults.delta_gamma) == (10, 2, 1, 1)
    factors = (defaults.mix_weight, defaults.bce_weight, defaults.align_weight, defaults.entropy_weight)
    assert (*factors, defaults.aux_weight) == (1, 1, 0.1, 0.05, 0.05)


def test_positive_weight_of_micro_batches_by_hand():
    target = torch.tensor([0.25, 0.25, 1.0, 0.0, 0.0, 0.0, 1.0])
    # means 0.25, 0.5, 0 (kept at 0.001), and 1 (kept at 0.999) of what is left
    found = gate_losses.batch_pos_weight(target, 2)
    assert found.tolist() == pytest.approx([3, 3, 1, 1, 999, 999, 0.001 / 0.999], rel=1e-3)


def test_one_batch_gives_the_gradient_of_its_micro_batches():
    torch.manual_seed(1)
    p_a, p_b = torch.softmax(2 * torch.randn(2, 48, 4), 2)
    labels = torch.randint(0, 4, (48,))
    logits = torch.randn(48, requires_grad=True)

    def loss(part: slice, weight: object) -> torch.Tensor:
        targets = gate_losses.gate_targets(p_a[part], p_b[part], labels[part])
        weight = weight if weight is not None else gate_losses.auto_pos_weight(targets.target)
        if weight == "each":
            weight = gate_losses.batch_pos_weight(targets.target, 12)
        return gate_losses.gate_loss(logits[part], p_a[part], p_b[part], labels[part], targets, pos_weight=weight).total

    (together,) = torch.autograd.grad(loss(slice(0, 48), "each"), logits)
    parts = [loss(slice(i, i + 12), None) / 4 for i in range(0, 48, 12)]
    (summed,) = torch.autograd.grad(sum(parts), logits)
    assert torch.allclose(together, summed, atol=1e-7)
    (whole,) = torch.autograd.grad(loss(slice(0, 48), None), logits)
    assert not torch.allclose(together, whole, rtol=0.02)


def test_automatic_positive_weight_is_bounded():
    assert gate_losses.auto_pos_weight(torch.tensor([0.25, 0.25])) == pytest.approx(3)
    assert gate_losses.auto_pos_weight(torch.zeros(4)) == pytest.approx(999, rel=1e-3)


def test_mixture_is_weighted_towards_the_global_model():
    p_a, p_b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert mix(p_a, p_b, torch.tensor([0.75])).tolist() == [[0.25, 0.75]]


def test_statistics_in_their_order():
    p_a, p_b = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.4, 0.35, 0.25]])
    entropy = [-sum(p * math.log(p) for p in row) / math.log(3) for row in ((0.7, 0.2, 0.1), (0.4, 0.35, 0.25))]
    expected = [0.7, 0.4, *entropy, 0.5, 0.05, -0.3, 0.3]
    assert gate_statistics(p_a, p_b)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_gate_of_the_published_size():
    gate = GateModel(1536, 1024, project=128, hidden=(256, 64))
    assert sum(p.numel() for p in gate.parameters()) == 417_409


def test_gate_sees_features_or_statistics_alone():
    p = torch.softmax(torch.randn(2, 5, 4), 2)
    features = torch.randn(2, 5, 6)
    with_features, alone = GateModel(6, 6, project=4).eval(), GateModel(6, 6, project=0).eval()
    assert with_features(*features, *p).shape == (5,)
    other = torch.randn(2, 5, 6)
    assert not torch.allclose(with_features(*features, *p), with_features(*other, *p))
    assert torch.equal(alone(*features, *p), alone(*other, *p))
