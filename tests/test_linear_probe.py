"""The linear head of the baselines: multinomial logistic regression against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from nuclass.training.linear_probe import Problem, Rows, head_outputs, moments

CPU = torch.device("cpu")
STRENGTH = 1e-3


def cells(n: int = 400, width: int = 6, n_classes: int = 3, seed: int = 0, noise: float = 1.5) -> Rows:
    """Return features of very unlike scales around a centre a class, labels of unequal frequency, organs."""
    rng = np.random.default_rng(seed)
    label = rng.choice(n_classes, n, p=[0.6, 0.3, 0.1])
    organ = rng.integers(0, 3, n)
    features = rng.normal(0, 2, (n_classes, width))[label] + rng.normal(0, noise, (n, width))
    features[:, 0] += organ
    features = features * np.logspace(-2, 2, width) + np.arange(width)
    return Rows(torch.from_numpy(features), torch.from_numpy(label), torch.from_numpy(organ))


def solve(rows: Rows, weights: torch.Tensor, n_organs: int, chunk: int = 64, strength: float = STRENGTH):
    problem = Problem(rows, weights, n_organs, *moments(rows.features, chunk), CPU, chunk)
    return problem.solve(strength, problem.start(), 500, 1e-7)


def of_scikit_learn(rows: Rows, weights: torch.Tensor, extra: np.ndarray | None = None):
    x = rows.features.numpy()
    x = (x - x.mean(0)) / x.std(0)
    x = x if extra is None else np.hstack([x, extra])
    sample = weights.numpy()[rows.label.numpy()]
    model = LogisticRegression(C=1 / (STRENGTH * sample.sum()), tol=1e-9, max_iter=10_000)
    return model.fit(x, rows.label.numpy(), sample_weight=sample), x


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.3, 0.7, 2.0]])
def test_the_head_is_that_of_scikit_learn(weights):
    rows, weights = cells(), torch.tensor(weights)
    fit = solve(rows, weights, 0)
    expected, x = of_scikit_learn(rows, weights)
    assert fit.converged
    _, logits = head_outputs(fit.head, rows.features, rows.organ, CPU)
    assert np.allclose(logits.softmax(1).numpy(), expected.predict_proba(x), atol=1e-4)
    # Adding a constant to the coefficients of all classes changes nothing; the penalty centres them.
    assert np.allclose(fit.head.weight.detach().numpy(), expected.coef_, atol=2e-3)


def test_an_organ_is_an_offset_of_its_own_and_the_unknown_one_has_none():
    rows, weights = cells(), torch.ones(3)
    rows = Rows(rows.features, rows.label, (rows.organ + rows.label) % 3)
    fit = solve(rows, weights, 4)
    expected, x = of_scikit_learn(rows, weights, np.eye(3)[rows.organ.numpy()])
    _, logits = head_outputs(fit.head, rows.features, rows.organ, CPU)
    assert np.allclose(logits.softmax(1).numpy(), expected.predict_proba(x), atol=1e-4)
    assert fit.head.offset.shape == (4, 3)
    assert (fit.head.offset[3] == 0).all()
    assert (fit.head.offset[:3].abs() > 0.1).any()


def test_a_separable_problem_is_recovered_whatever_the_scale_of_the_features():
    rows = cells(noise=0.05)
    fit = solve(rows, torch.ones(3), 0, strength=1e-5)
    _, logits = head_outputs(fit.head, rows.features, rows.organ, CPU)
    assert (logits.argmax(1) == rows.label).all()


def test_the_gradient_is_that_of_the_objective():
    rows = cells(60)
    problem = Problem(rows, torch.tensor([0.5, 1.0, 2.0]), 4, *moments(rows.features), CPU, 16)
    at = torch.from_numpy(np.random.default_rng(1).normal(0, 0.5, problem.start().shape))
    _, gradient = problem.value(at, 0.1)
    for place in ((0, 0), (1, 3), (2, 6), (1, 8), (2, -1)):
        step = torch.zeros_like(at)
        step[place] = 1e-5
        slope = (problem.value(at + step, 0.1)[0] - problem.value(at - step, 0.1)[0]) / 2e-5
        assert float(gradient[place]) == pytest.approx(float(slope), abs=1e-7)


def test_moments_are_those_of_all_cells_however_they_are_cut():
    rows = cells(1000)
    for chunk in (7, 100, 5000):
        mean, std = moments(rows.features, chunk)
        assert np.allclose(mean, rows.features.mean(0))
        assert np.allclose(std, rows.features.std(0, correction=0))


def test_a_constant_feature_is_left_alone():
    rows = cells(200)
    features = torch.cat([rows.features, torch.full((200, 1), 0.1, dtype=torch.double)], 1)
    _, std = moments(features, 64)
    assert std[-1] == 1
    fit = solve(Rows(features, rows.label), torch.ones(3), 0)
    assert fit.converged
    assert torch.isfinite(fit.head.weight).all()


def test_too_few_steps_are_told():
    rows = cells()
    problem = Problem(rows, torch.ones(3), 0, *moments(rows.features), CPU)
    fit = problem.solve(1e-6, problem.start(), 2, 1e-9)
    assert not fit.converged
    assert fit.gradient > 1e-9


def test_half_precision_features_in_a_mapped_file_give_the_same(tmp_path):
    rows = cells(300)
    array = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.float16, rows.features.shape)
    array[:] = rows.features.numpy()
    mapped = solve(Rows(torch.from_numpy(array), rows.label), torch.ones(3), 0)
    held = solve(Rows(torch.from_numpy(np.array(array)), rows.label), torch.ones(3), 0)
    assert torch.allclose(mapped.head.weight, held.head.weight)
