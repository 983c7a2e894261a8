"""Intervals on simulated studies whose true values are known; errors and classes cluster in space."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import norm

from nuclass.evaluation import paired_bootstrap, spatial_blocks
from nuclass.evaluation.bootstrap import Blocks

STUDIES, NAIVE, SIDE, SPACING_UM, BLOCK_UM, SMOOTH = 200, 40, 160, 10.0, 160.0, 1.0
SHARES = np.array([0.5, 0.3, 0.2])
RIGHT = np.array([0.85, 0.7, 0.6])
OTHER = np.array([1, 2, 0])


def true_values() -> dict[str, float]:
    """A cell of class c is called c with chance RIGHT[c], else OTHER[c]: ratios of expectations."""
    confusion = np.zeros((3, 3))
    confusion[np.arange(3), np.arange(3)] = SHARES * RIGHT
    confusion[np.arange(3), OTHER] += SHARES * (1 - RIGHT)
    f1 = 2 * np.diag(confusion) / (confusion.sum(0) + confusion.sum(1))
    return {"accuracy": float(np.diag(confusion).sum()), "macro_f1": float(f1.mean()), "f1_rare": float(f1[2])}


def field(rng: np.random.Generator) -> np.ndarray:
    """Standard normal at each cell, alike among neighbours."""
    smooth = gaussian_filter(rng.normal(size=(SIDE, SIDE)), SMOOTH, mode="wrap")
    # The variance that white noise keeps under this filter.
    impulse = np.zeros((SIDE, SIDE))
    impulse[0, 0] = 1
    kept = np.sqrt((gaussian_filter(impulse, SMOOTH, mode="wrap") ** 2).sum())
    return (smooth / kept).ravel()


def study(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    y = np.searchsorted(SHARES.cumsum()[:2], norm.cdf(field(rng)))
    right = norm.cdf(field(rng)) < RIGHT[y]
    return y, np.where(right, y, OTHER[y])


def coverage(block_um: float, studies: int, draws: int) -> dict[str, float]:
    """Share of the studies whose interval holds the truth."""
    truth = true_values()
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij"), -1).reshape(-1, 2) * SPACING_UM
    blocks = spatial_blocks(["s"] * len(grid), grid[:, 0], grid[:, 1], block_um)
    hits = dict.fromkeys(truth, 0)
    for number in range(studies):
        y, called = study(np.random.default_rng([7, number]))
        result = paired_bootstrap(y, {"m": called}, blocks, ["a", "b", "c"], draws=draws, seed=number)["models"]["m"]
        found = {"accuracy": result["accuracy"], "macro_f1": result["macro_f1"], "f1_rare": result["f1"]["c"]}
        for name, interval in found.items():
            hits[name] += interval["low"] <= truth[name] <= interval["high"]
    return {name: n / studies for name, n in hits.items()}


def test_intervals_of_blocks_hold_the_truth_95_times_in_100():
    error = 3 * np.sqrt(0.95 * 0.05 / STUDIES)
    for name, share in coverage(BLOCK_UM, STUDIES, 300).items():
        assert abs(share - 0.95) < error, name


def test_cells_taken_for_independent_give_intervals_that_are_too_narrow():
    for name, share in coverage(0, NAIVE, 100).items():
        assert share < 0.8, name


def test_paired_differences_are_narrower_than_unpaired_ones():
    rng = np.random.default_rng(3)
    y, first = study(rng)
    changed = rng.random(len(y)) < 0.03
    second = np.where(changed, OTHER[y], first)
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij"), -1).reshape(-1, 2) * SPACING_UM
    blocks = spatial_blocks(["s"] * len(y), grid[:, 0], grid[:, 1], BLOCK_UM)
    found = paired_bootstrap(
        y, {"a": first, "b": second}, blocks, ["a", "b", "c"], pairs=[("a", "b")], draws=500, seed=1
    )
    for metric in ("accuracy", "macro_f1", "weighted_f1", "balanced_accuracy"):
        paired = found["differences"]["a-b"][metric]
        alone = [found["models"][name][metric] for name in "ab"]
        assert paired["value"] == pytest.approx(alone[0]["value"] - alone[1]["value"])
        widths = [interval["high"] - interval["low"] for interval in alone]
        assert paired["high"] - paired["low"] < 0.4 * np.hypot(*widths)
        assert paired["low"] > 0


BLOCKS, CELLS = 80, 60
OF_NEST, FALSE_ALARM = 0.5, 0.002
MEANS, SHARED, OWN = {"a": 1.2, "b": 1.0}, 0.5, 0.25


def strips() -> Blocks:
    """Blocks of equally many cells."""
    return Blocks(np.repeat(np.arange(BLOCKS), CELLS), np.array(["s"] * BLOCKS))


def rare_study(rng: np.random.Generator, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """A class that makes up half of some ``blocks`` of 80; how well it is told differs by block, 70 % on average."""
    nests = rng.random(BLOCKS) < blocks / BLOCKS
    nests[rng.integers(BLOCKS)] |= not nests.any()
    y = (np.repeat(nests, CELLS) & (rng.random(BLOCKS * CELLS) < OF_NEST)).astype(int)
    chance = np.where(y == 1, np.repeat(rng.beta(1.4, 0.6, BLOCKS), CELLS), FALSE_ALARM)
    return y, (rng.random(len(y)) < chance).astype(int)


@pytest.mark.parametrize(("blocks", "least", "most"), [(3, 0.64, 0.83), (12, 0.84, 0.97)])
def test_a_class_in_few_blocks_has_intervals_that_are_too_narrow(blocks: int, least: float, most: float) -> None:
    """As docs/evaluation.md says, with the numbers."""
    support = blocks / BLOCKS * OF_NEST
    hits = support * 0.7
    truth = 2 * hits / (support + hits + (1 - support) * FALSE_ALARM)
    held = []
    for number in range(STUDIES):
        y, called = rare_study(np.random.default_rng([8, number]), blocks)
        found = paired_bootstrap(y, {"m": called}, strips(), ["common", "rare"], draws=300, seed=number)
        interval = found["models"]["m"]["f1"]["rare"]
        held.append(interval["low"] <= truth <= interval["high"])
    assert least < np.mean(held) < most


def soft_study(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Two models whose log-odds of the true class share what a block does to them; each adds its own."""
    shared = rng.normal(0, SHARED, BLOCKS)
    out = {}
    for name, mean in MEANS.items():
        odds = mean + np.repeat(shared + rng.normal(0, OWN, BLOCKS), CELLS) + rng.normal(size=BLOCKS * CELLS)
        out[name] = 1 / (1 + np.exp(-odds))
    return out


def soft_truth(mean: float) -> tuple[float, float]:
    """Accuracy, and the log loss by Gauss and Hermite's rule."""
    sd = np.sqrt(1 + SHARED**2 + OWN**2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    loss = (weights * np.log1p(np.exp(-(mean + sd * nodes)))).sum() / weights.sum()
    return float(norm.cdf(mean / sd)), float(loss)


def test_intervals_of_paired_differences_and_of_log_loss_hold_the_truth() -> None:
    (acc_a, loss_a), (acc_b, loss_b) = (soft_truth(mean) for mean in MEANS.values())
    truth = {"accuracy": acc_a - acc_b, "log_loss": loss_a - loss_b, "loss of a": loss_a}
    hits = dict.fromkeys(truth, 0)
    y = np.tile([0, 1], BLOCKS * CELLS // 2)
    for number in range(STUDIES):
        right = soft_study(np.random.default_rng([9, number]))
        probs = {name: np.where(y[:, None] == [0, 1], p[:, None], 1 - p[:, None]) for name, p in right.items()}
        found = paired_bootstrap(y, probs, strips(), ["x", "z"], pairs=[("a", "b")], draws=300, seed=number)
        gaps = found["differences"]["a-b"]
        intervals = {"accuracy": gaps["accuracy"], "log_loss": gaps["log_loss"]}
        intervals["loss of a"] = found["models"]["a"]["log_loss"]
        for name, interval in intervals.items():
            hits[name] += interval["low"] <= truth[name] <= interval["high"]
    for name, n in hits.items():
        assert 0.90 < n / STUDIES <= 0.99, name


def test_calibration_errors_of_calibrated_models_lie_within_their_intervals() -> None:
    """Percentiles alone lie above the value; moved back they hold what such a sample shows on average."""
    found = []
    for number in range(STUDIES // 2):
        rng = np.random.default_rng([10, number])
        sure = rng.uniform(0.5, 1, (2, BLOCKS * CELLS // 4))
        y = np.zeros(sure.shape[1], dtype=int)
        called = (rng.random(sure.shape) > sure).astype(int)
        probs = {
            name: np.where(c[:, None] == [0, 1], p[:, None], 1 - p[:, None])
            for name, c, p in zip("ab", called, sure, strict=True)
        }
        blocks = Blocks(np.repeat(np.arange(BLOCKS), CELLS // 4), np.array(["s"] * BLOCKS))
        result = paired_bootstrap(y, probs, blocks, ["x", "z"], pairs=[("a", "b")], draws=200, seed=number)
        found += [result["models"][name]["ece"] for name in "ab"]
        gap = result["differences"]["a-b"]["ece"]
        assert gap["low"] <= gap["value"] <= gap["high"]
    assert all(0 <= one["low"] <= one["value"] <= one["high"] for one in found)
    expected = np.mean([one["value"] for one in found])
    assert expected > 0.01, "no calibrated model has 0"
    assert np.mean([one["low"] <= expected <= one["high"] for one in found]) > 0.9
