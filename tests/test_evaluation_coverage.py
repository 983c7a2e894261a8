"""Intervals on simulated studies whose true accuracy and F1 are known; errors and classes cluster in space."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import norm

from nuclass.evaluation import paired_bootstrap, spatial_blocks

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
