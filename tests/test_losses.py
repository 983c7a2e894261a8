"""Every formula of the losses, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from nuclass.models import gate_losses, losses
from nuclass.models.gate import gate_statistics, mix
from nuclass.models.global_ import alpha_schedule


def log(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def test_effective_numbers_of_two_classes():
    # beta 0.5: n = 1 -> 0.5/0.5 = 1; n = 2 -> 0.5/0.75 = 2/3; mean 5/6
    weights = losses.effective_number_weights(torch.tensor([1, 2]), beta=0.5)
    assert weights.tolist() == pytest.approx([6 / 5, 4 / 5])


def test_a_class_without_cells_weighs_nothing_and_changes_nothing():
    with_hole = losses.effective_number_weights(torch.tensor([100, 0, 1000]))
    without = losses.effective_number_weights(torch.tensor([100, 1000]))
    assert with_hole[1] == 0
    assert with_hole[[0, 2]].tolist() == pytest.approx(without.tolist())
    assert without.mean() == pytest.approx(1)


def test_no_cells_at_all_gives_no_weight():
    assert losses.effective_number_weights(torch.zeros(3)).tolist() == [0, 0, 0]


def test_beta_one_is_inverse_frequency():
    assert losses.effective_number_weights(torch.tensor([1, 3]), beta=1.0).tolist() == pytest.approx([1.5, 0.5])


def test_uncertainty_weight_is_the_square_of_the_doubt():
    weight = losses.uncertainty_weight(log(0.8, 0.2).repeat(2, 1), torch.tensor([0, 1]), gamma=2)
    assert weight.tolist() == pytest.approx([0.04, 0.64])


def test_no_gradient_reaches_the_teacher():
    teacher = torch.randn(4, 3, requires_grad=True)
    student = torch.randn(4, 3, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0])
    weight = losses.uncertainty_weight(teacher, labels)
    assert not weight.requires_grad
    losses.guided_loss(student, student, labels, weight, torch.ones(3)).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_guided_loss_adds_the_weighted_and_the_own_term():
    fused, own = log(0.5, 0.5), log(0.25, 0.75)
    loss = losses.guided_loss(
        fused, own, torch.tensor([0]), torch.tensor([0.4]), torch.ones(2), label_smoothing=0.0, own_weight=0.3
    )
    assert float(loss) == pytest.approx(0.4 * math.log(2) + 0.3 * math.log(4))


def test_class_weights_enter_the_own_term_only():
    fused, own = log(0.5, 0.5).repeat(2, 1), log(0.25, 0.75).repeat(2, 1)
    labels, weight = torch.tensor([0, 1]), torch.ones(2)
    loss = losses.guided_loss(fused, own, labels, weight, torch.tensor([3.0, 1.0]), label_smoothing=0.0, own_weight=1.0)
    expected = math.log(2) + (3 * math.log(4) + math.log(4 / 3)) / 4
    assert float(loss) == pytest.approx(expected)


def test_entropy_is_one_for_ignorance_and_zero_for_certainty():
    p = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0]])
    assert losses.normalised_entropy(p).tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


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


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_temperature_is_recovered(true):
    torch.manual_seed(0)
    logits = 2 * torch.randn(20000, 5)
    labels = torch.distributions.Categorical(logits=logits / true).sample()
    assert losses.fit_temperature(logits, labels) == pytest.approx(true, rel=0.05)


def test_temperature_lowers_the_log_loss_and_keeps_the_order():
    torch.manual_seed(1)
    labels = torch.randint(0, 3, (500,))
    logits = 8 * F.one_hot(labels, 3).float() + 6 * torch.randn(500, 3)
    t = losses.fit_temperature(logits, labels)
    assert F.cross_entropy(logits / t, labels) < F.cross_entropy(logits, labels)
    assert torch.equal((logits / t).argmax(1), logits.argmax(1))


def test_no_cells_to_calibrate_on():
    with pytest.raises(ValueError, match="no cells"):
        losses.fit_temperature(torch.zeros(0, 3), torch.zeros(0))


def test_alpha_rises_and_stays():
    assert [alpha_schedule(epoch, 2) for epoch in range(4)] == [0.25, 0.625, 1.0, 1.0]
    assert alpha_schedule(0, 0) == 1.0
