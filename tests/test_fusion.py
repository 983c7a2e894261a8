from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from nuclass.core.errors import UserError
from nuclass.evaluation.branch import plain_mean
from nuclass.evaluation.fusion import fit_stacking, fit_temperature, max_confidence, product, temper
from nuclass.evaluation.policy import BASE, GAMMAS, OVERRIDE, TAUS, SafetyPolicy, fit_policy


def random_probs(rng: np.random.Generator, n: int, c: int) -> np.ndarray:
    return rng.dirichlet(np.ones(c), n)


def two_branches(n: int = 900, c: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels; a branch that knows classes 0 and 1, and one that knows 2 and 3."""
    rng = np.random.default_rng(seed)
    y = rng.integers(c, size=n)
    logits = rng.normal(0, 1, (2, n, c))
    logits[:, np.arange(n), y] += np.where(y < 2, [[3.0], [0.5]], [[0.5], [3.0]])
    p = np.exp(logits)
    p /= p.sum(axis=2, keepdims=True)
    return y, p[0], p[1]


def test_product_by_hand() -> None:
    a, b = np.array([[0.5, 0.3, 0.2]]), np.array([[0.1, 0.6, 0.3]])
    expected = np.array([0.05, 0.18, 0.06]) / 0.29
    np.testing.assert_allclose(product(a, b)[0], expected, rtol=1e-12)


def test_product_of_branches_that_exclude_each_other_is_finite() -> None:
    p = product(np.array([[1.0, 0.0, 0.0]]), np.array([[0.0, 1.0, 0.0]]))
    np.testing.assert_allclose(p.sum(), 1)
    assert p[0, 0] == pytest.approx(p[0, 1])
    assert p[0, 2] < 1e-5


def test_max_confidence_takes_the_surer_and_local_on_a_tie() -> None:
    a = np.array([[0.7, 0.3], [0.6, 0.4], [0.2, 0.8]])
    b = np.array([[0.4, 0.6], [0.1, 0.9], [0.8, 0.2]])
    np.testing.assert_array_equal(max_confidence(a, b), [[0.7, 0.3], [0.1, 0.9], [0.2, 0.8]])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(2, 8))
def test_every_rule_gives_rows_that_sum_to_one_and_keep_agreement(seed: int, n: int, c: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = random_probs(rng, n, c), random_probs(rng, n, c)
    agree = a.argmax(axis=1) == b.argmax(axis=1)
    for rule in (plain_mean, product, max_confidence):
        p = rule(a, b)
        np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-9)
        np.testing.assert_array_equal(p.argmax(axis=1)[agree], a.argmax(axis=1)[agree])
        np.testing.assert_allclose(rule(a, a).argmax(axis=1), a.argmax(axis=1))
        np.testing.assert_array_equal(temper(p, 1.7).argmax(axis=1), p.argmax(axis=1))
    np.testing.assert_allclose(product(a, b), product(b, a))


def test_temperature_is_found_again() -> None:
    y, a, _ = two_branches(3000)
    sharp = temper(a, 1 / 2.5)
    found = fit_temperature(y, sharp)
    assert found == pytest.approx(2.5 * fit_temperature(y, a), rel=0.02)
    losses = [log_loss(y, temper(sharp, t)) for t in (found * 0.8, found, found * 1.25)]
    assert losses[1] == min(losses)


def test_stacking_beats_each_branch_and_the_mean() -> None:
    y, a, b = two_branches(1200)
    stacking = fit_stacking(y, a, b)
    test_y, test_a, test_b = two_branches(1200, seed=9)
    p = stacking.predict(test_a, test_b)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    stacked = log_loss(test_y, p)
    assert stacked < min(log_loss(test_y, q) for q in (test_a, test_b, plain_mean(test_a, test_b)))


def test_stacking_leaves_a_class_it_never_saw_at_the_mean() -> None:
    y, a, b = two_branches(600)
    known = y != 2
    stacking = fit_stacking(y[known], a[known], b[known])
    p = stacking.predict(a, b)
    np.testing.assert_allclose(p[:, 2], plain_mean(a, b)[:, 2])
    np.testing.assert_allclose(p.sum(axis=1), 1)


def test_stacking_chooses_a_strong_penalty_for_few_cells_of_pure_noise() -> None:
    rng = np.random.default_rng(1)
    a, b = random_probs(rng, 150, 5), random_probs(rng, 150, 5)
    y = rng.integers(5, size=150)
    stacking = fit_stacking(y, a, b, groups=np.arange(150) // 5, strengths=(1e-4, 1.0))
    assert stacking.strength == 1e-4
    assert fit_stacking(y, a, b, strengths=(1e-4, 1.0)).strength == 1.0


def test_stacking_never_cuts_a_square(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn import model_selection

    seen, squares = [], np.arange(200) // 10
    original = model_selection.GroupKFold.split

    def watched(self: object, x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> object:
        for train, held in original(self, x, y, groups):
            seen.append(set(squares[train]) & set(squares[held]))
            yield train, held

    monkeypatch.setattr(model_selection.GroupKFold, "split", watched)
    y, a, b = two_branches(200)
    fit_stacking(y, a, b, groups=squares, strengths=(0.1, 1.0))
    assert len(seen) == 5
    assert not any(seen)


@pytest.mark.parametrize(
    ("y", "shape"), [(np.zeros(10, int), (10, 3)), (np.arange(10) % 3, (9, 3)), (np.arange(9) % 3, (10, 3))]
)
def test_stacking_refuses_one_class_and_shapes_that_do_not_fit(y: np.ndarray, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="Stacking cannot be fitted"):
        fit_stacking(y, random_probs(rng, 10, 3), random_probs(rng, *shape))


def rows(*pairs: tuple[float, int]) -> np.ndarray:
    """Probabilities of two classes, each row given by the confidence and the class."""
    out = np.zeros((len(pairs), 2))
    for row, (confidence, label) in enumerate(pairs):
        out[row, label], out[row, 1 - label] = confidence, 1 - confidence
    return out


def test_policy_by_hand() -> None:
    # Local calls 0 four times and is right three times; calls 1 twice and is right once. Global: 0 once, right; 1 five
    # times, right three times.
    y = np.array([0, 0, 0, 1, 1, 1])
    a = rows((0.9, 0), (0.9, 0), (0.6, 0), (0.6, 0), (0.8, 1), (0.7, 0))
    a[5] = [0.3, 0.7]
    a[2] = [0.4, 0.6]
    b = rows((0.7, 0), (0.7, 1), (0.8, 1), (0.8, 1), (0.9, 1), (0.9, 1))
    policy = fit_policy(y, a, b, np.full(6, 0.5))
    # Local: 0 at rows 0, 1, 3 (right at 0, 1); 1 at rows 2, 4, 5 (right at 4, 5). Global: 0 at row 0 (right); 1 at the
    # others (right at 3, 4, 5).
    np.testing.assert_allclose(policy.reliability_local, [2 / 3, 2 / 3])
    np.testing.assert_allclose(policy.reliability_global, [1.0, 3 / 5])
    # Products: local .6, .6, .4, .4, .533, .467; global .7, .42, .48, .48, .54, .54.
    expected = [True, False, True, True, True, True]
    base = SafetyPolicy(policy.reliability_local, policy.reliability_global, np.nan, np.nan, BASE, 0, 0, 0, 6)
    np.testing.assert_array_equal(base.takes_global(a, b, np.full(6, 0.5)), expected)
    # Right under base: rows 0 (0), 1 (local 0), 2 (1, wrong), 3, 4, 5.
    assert policy.accuracy_base == pytest.approx(5 / 6)
    assert policy.best_single == pytest.approx(4 / 6)
    assert policy.mode == BASE
    assert np.isnan(policy.tau)
    assert policy.accuracy == policy.accuracy_base


def test_override_needs_gate_and_lead() -> None:
    a, b = rows((0.6, 0), (0.6, 0), (0.9, 0), (0.9, 0)), rows((0.9, 1), (0.9, 1), (0.6, 1), (0.6, 1))
    # Reliabilities against the lead: base goes local, local, global, global.
    policy = SafetyPolicy(np.array([0.9, 0.1]), np.array([0.1, 0.5]), 0.6, 0.1, OVERRIDE, 0, 0, 0, 4)
    base = SafetyPolicy(np.array([0.9, 0.1]), np.array([0.1, 0.5]), 0.6, 0.1, BASE, 0, 0, 0, 4)
    assert not base.takes_global(a, b, np.ones(4)).any()
    taken = policy.takes_global(a, b, np.array([0.7, 0.6, 0.3, 0.9]))
    # Row 0: open and ahead. Row 1: g = tau is not above it. Rows 2, 3: local ahead.
    np.testing.assert_array_equal(taken, [True, False, False, False])
    other = SafetyPolicy(np.array([0.1, 0.1]), np.array([0.9, 0.9]), 0.6, 0.35, OVERRIDE, 0, 0, 0, 4)
    assert other.takes_global(a, b, np.zeros(4)).all()
    other = SafetyPolicy(np.array([0.1, 0.1]), np.array([0.9, 0.9]), 0.6, 0.25, OVERRIDE, 0, 0, 0, 4)
    np.testing.assert_array_equal(other.takes_global(a, b, np.zeros(4)), [True, True, False, False])
    # Closed means below 1 - tau = 0.4, not below tau.
    np.testing.assert_array_equal(other.takes_global(a, b, np.full(4, 0.5)), [True] * 4)
    np.testing.assert_array_equal(other.takes_global(a, b, np.full(4, 0.39)), [True, True, False, False])


def test_override_is_found_where_the_gate_knows() -> None:
    rng = np.random.default_rng(3)
    n = 2000
    y = rng.integers(2, size=n)
    # Exactly one is right: local in seven of ten, so that its reliability always wins, though global leads where right.
    global_right = rng.random(n) < 0.3
    a = rows(*zip(np.full(n, 0.65), np.where(global_right, 1 - y, y), strict=True))
    b = rows(*zip(np.where(global_right, 0.75, 0.60), np.where(global_right, y, 1 - y), strict=True))
    gate = np.where(global_right, 0.9, 0.1)
    policy = fit_policy(y, a, b, gate)
    assert policy.mode == OVERRIDE
    assert policy.tau in TAUS
    assert policy.gamma in GAMMAS
    assert policy.accuracy_base == pytest.approx(policy.best_single) == pytest.approx(1 - global_right.mean())
    assert policy.accuracy == 1
    assert policy.accuracy == pytest.approx(float((policy.apply(a, b, gate).argmax(axis=1) == y).mean()))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_policy_on_its_own_cells_is_never_below_its_base_and_picks_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=60)
    a, b, gate = random_probs(rng, 60, 3), random_probs(rng, 60, 3), rng.random(60)
    policy = fit_policy(y, a, b, gate)
    assert policy.accuracy >= policy.accuracy_base
    assert policy.mode == BASE or policy.accuracy >= policy.best_single
    p = policy.apply(a, b, gate)
    assert ((p == a).all(axis=1) | (p == b).all(axis=1)).all()
    assert float((p.argmax(axis=1) == y).mean()) == pytest.approx(policy.accuracy)


def test_grid_is_the_originals() -> None:
    assert TAUS == (0.30, 0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65, 0.70)
    assert GAMMAS == (0.0, 0.02, 0.04, 0.06, 0.08, 0.10, 0.12, 0.14, 0.16, 0.18, 0.20)


def test_policy_refuses_other_cells() -> None:
    rng = np.random.default_rng(0)
    a = random_probs(rng, 5, 3)
    with pytest.raises(UserError, match="not of the same cells and classes"):
        fit_policy(np.zeros(5, int), a, a, np.zeros(4))
    with pytest.raises(UserError, match="not of the same cells and classes"):
        fit_policy(np.zeros(0, int), a[:0], a[:0], np.zeros(0))
