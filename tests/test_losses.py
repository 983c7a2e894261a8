"""Every formula of the losses, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from nuclass.models import losses
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
