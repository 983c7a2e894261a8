"""Every formula of the losses, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

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


def test_weights_of_the_original_let_one_empty_class_flatten_all_others():
    # beta 0.9999: n = 100 -> 1e-4 / (1 - 0.9999^100); n = 0 -> 1e-4 / 1e-8, and the mean over both is 1
    counts = torch.tensor([100, 0])
    seen, empty = 1e-4 / (1 - 0.9999**100), 1e-4 / 1e-8
    weights = losses.effective_number_weights(counts, guard=False)
    assert weights.tolist() == pytest.approx([2 * seen / (seen + empty), 2 * empty / (seen + empty)], rel=1e-5)
    assert weights[0] < 1e-5
    assert losses.effective_number_weights(counts).tolist() == [1, 0]
    full = torch.tensor([100, 7, 30000])
    assert torch.equal(
        losses.effective_number_weights(full, guard=False), losses.effective_number_weights(full, guard=True)
    )


def test_beta_zero_weighs_all_classes_alike():
    assert losses.effective_number_weights(torch.tensor([5, 50, 0]), beta=0.0).tolist() == [1, 1, 0]


def test_weighted_smooth_cross_entropy_by_hand():
    # p = (1/2, 1/4, 1/4), s = 0.3, weights (2, 1, 4); labels 0 and 2; sum divided by the labels' weights, 2 + 4
    logits = log(0.5, 0.25, 0.25).repeat(2, 1)
    weights = torch.tensor([2.0, 1.0, 4.0])
    one, two = math.log(2), math.log(4)
    spread = 0.3 / 3 * (2 * one + 1 * two + 4 * two)
    expected = (0.7 * 2 * one + spread + 0.7 * 4 * two + spread) / (2 + 4)
    found = losses.balanced_cross_entropy(logits, torch.tensor([0, 2]), weights, 0.3)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_equal_weights_are_no_weights():
    torch.manual_seed(0)
    logits, labels = torch.randn(9, 4), torch.arange(9) % 4
    weighted = losses.balanced_cross_entropy(logits, labels, torch.full((4,), 7.0), 0.1)
    assert float(weighted) == pytest.approx(float(F.cross_entropy(logits, labels, label_smoothing=0.1)), rel=1e-6)


def test_uncertainty_weight_is_the_square_of_the_doubt():
    weight = losses.uncertainty_weight(log(0.8, 0.2).repeat(2, 1), torch.tensor([0, 1]), gamma=2)
    assert weight.tolist() == pytest.approx([0.04, 0.64])


def test_gamma_is_the_power_of_the_doubt():
    logits, labels = log(0.75, 0.25), torch.tensor([0])
    assert [float(losses.uncertainty_weight(logits, labels, gamma)) for gamma in (0, 1, 3)] == pytest.approx(
        [1, 0.25, 0.25**3]
    )


def test_doubt_without_a_label_is_the_entropy():
    # H(0.8, 0.2) / ln 2 = 0.7219; certainty counts nothing, ignorance all
    logits = torch.cat([log(0.8, 0.2), log(0.5, 0.5), torch.tensor([[90.0, -90.0]])])
    entropy = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2)) / math.log(2)
    assert losses.entropy_weight(logits, 2).tolist() == pytest.approx([entropy**2, 1, 0], abs=1e-6)
    assert losses.entropy_weight(logits, 1).tolist() == pytest.approx([entropy, 1, 0], abs=1e-6)


@pytest.mark.parametrize("kind", ["label", "entropy"])
def test_the_weights_gradient_is_cut_unless_asked_for(kind):
    def weight(detach: bool) -> tuple[torch.Tensor, torch.Tensor]:
        local = torch.tensor([[0.3, -0.2, 0.1]], requires_grad=True)
        if kind == "label":
            return local, losses.uncertainty_weight(local, torch.tensor([1]), detach=detach)
        return local, losses.entropy_weight(local, detach=detach)

    local, cut = weight(True)
    assert not cut.requires_grad
    local, kept = weight(False)
    assert torch.equal(cut, kept)
    kept.sum().backward()
    assert local.grad.abs().max() > 0.01
    if kind == "label":
        p = local.detach().softmax(1)[0].tolist()
        # d/dz_j (1 - p_y)^2 = -2 (1 - p_y) p_y ([j = y] - p_j)
        expected = [-2 * (1 - p[1]) * p[1] * (float(j == 1) - p[j]) for j in range(3)]
        assert local.grad[0].tolist() == pytest.approx(expected, rel=1e-5)


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


def test_the_guided_term_is_a_mean_of_weighted_cells():
    fused = log(0.5, 0.5).repeat(2, 1)
    loss = losses.guided_loss(
        fused, fused, torch.tensor([0, 1]), torch.tensor([0.4, 1.0]), torch.ones(2),
        label_smoothing=0.0, own_weight=0.0, fused_weight=3.0,
    )  # fmt: skip
    # divided by two cells, not by the sum of their weights
    assert float(loss) == pytest.approx(3 * (0.4 + 1.0) * math.log(2) / 2)


def test_smoothing_spreads_both_terms():
    fused, own = log(0.5, 0.25, 0.25), log(0.25, 0.25, 0.5)
    loss = losses.guided_loss(
        fused, own, torch.tensor([0]), torch.tensor([0.5]), torch.tensor([2.0, 1.0, 1.0]),
        label_smoothing=0.3, own_weight=0.3,
    )  # fmt: skip
    one, two = math.log(2), math.log(4)
    first = 0.5 * (0.7 * one + 0.1 * (one + two + two))
    second = (0.7 * 2 * two + 0.1 * (2 * two + two + one)) / 2
    assert float(loss) == pytest.approx(first + 0.3 * second, rel=1e-6)


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


def test_temperature_is_scipys_minimum():
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        logits = (0.5 + 3 * seed) * torch.randn(300, 4, generator=generator)
        truth = torch.randint(0, 4, (300,), generator=generator)
        labels = torch.where(torch.rand(300, generator=generator) < 0.6, logits.argmax(1), truth)
        z, rows = logits.double().numpy(), range(300)

        def loss(log_t, z=z, labels=labels, rows=rows):
            scaled = z / math.exp(log_t)
            return float(np.mean(logsumexp(scaled, axis=1) - scaled[rows, labels.numpy()]))

        best = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded", options={"xatol": 1e-9})
        assert losses.fit_temperature(logits, labels) == pytest.approx(math.exp(best.x), rel=2e-5)
        assert losses.find_temperature(logits, labels).bound is None


def test_a_val_of_one_class_has_a_temperature():
    torch.manual_seed(0)
    logits = torch.randn(200, 3) + torch.tensor([1.0, 0, 0])
    found = losses.find_temperature(logits, torch.zeros(200))
    assert found.bound is None
    assert 0.05 < found.value < 20


def test_a_temperature_at_its_bound_is_told():
    separated = 8.0 * F.one_hot(torch.arange(30) % 3).float()
    low = losses.find_temperature(separated, torch.arange(30) % 3)
    assert low.bound == "low"
    assert low.value == pytest.approx(0.05, rel=1e-3)
    high = losses.find_temperature(separated, (1 + torch.arange(30)) % 3)
    assert high.bound == "high"
    assert high.value == pytest.approx(20, rel=1e-3)


def test_logits_that_are_no_numbers_have_no_temperature():
    with pytest.raises(ValueError, match="not finite"):
        losses.fit_temperature(torch.tensor([[0.0, float("nan")]]), torch.tensor([0]))


def test_alpha_rises_and_stays():
    assert [alpha_schedule(epoch, 2) for epoch in range(4)] == [0.25, 0.625, 1.0, 1.0]
    assert alpha_schedule(0, 0) == 1.0
