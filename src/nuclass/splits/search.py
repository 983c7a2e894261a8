"""Deal blocks to splits or folds: many seeded drafts, the best of them bettered block by block.

All of it runs on counts of cells by block, part of a block and class, so its cost does not depend on the number of
cells. The work is bounded by counts, not by a clock, so that the same seed gives the same result on any machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nuclass.core.names import TEST, TRAIN, VAL
from nuclass.splits.rate import Counts, penalty, rate, rate_folds

Deals = NDArray[np.int8]
_DRAFTS = 512
_MOVES = 192
_ROUNDS = 150
_STARTS = 6
_PATIENCE = 8
_WORK = 60_000


@dataclass(frozen=True, eq=False)
class Problem:
    """What there is to deal.

    Parameters
    ----------
    counts
        Labelled cells, ``(blocks, 9, classes)``, in nine parts of each block.
    near
        The blocks that each part lies near, ``(blocks, 9, 3)``; the number of blocks stands for none.
    where
        Column and row of each block, ``(blocks, 2)``.
    seed, min_class_cells, max_buffer_share
        See :class:`SplitConfig`.
    """

    counts: NDArray[np.int64]
    near: NDArray[np.int64]
    where: NDArray[np.int64]
    seed: int
    min_class_cells: int
    max_buffer_share: float

    @property
    def total(self) -> NDArray[np.int64]:
        """Labelled cells of each class."""
        return np.asarray(self.counts.sum(axis=(0, 1)), dtype=np.int64)

    def inside(self, ranks: Deals, n: int) -> Counts:
        """Return the cells that each of ``n`` ranks keeps, ``(M, n, classes)``, for ranks ``(M, blocks)``.

        A part of a block gives way if it lies near a block of a higher rank.
        """
        m, blocks = ranks.shape
        padded = np.concatenate([ranks, np.zeros((m, 1), np.int8)], axis=1)
        stays = padded[:, self.near].max(axis=3) <= ranks[:, :, None]
        cells = self.counts.reshape(blocks * 9, -1).astype(np.float32)
        kept = [
            (stays & (ranks == rank)[:, :, None]).reshape(m, blocks * 9).astype(np.float32) @ cells for rank in range(n)
        ]
        return np.stack(kept, axis=1).astype(np.float64)


def deal_splits(problem: Problem, shares: list[float]) -> NDArray[np.int64]:
    """Return the rank of each block (0 train, 1 val, 2 test), so that each rank comes near its share."""
    names, total = [TRAIN, VAL, TEST][: len(shares)], problem.total

    def score(ranks: Deals) -> Counts:
        inside = problem.inside(ranks, len(shares))
        absent, distance = rate(inside, shares, names, total, problem.min_class_cells)
        lost = 1 - inside.sum(axis=(1, 2)) / total.sum()
        return penalty(absent, distance, lost, problem.max_buffer_share, (inside.sum(axis=2) > 0).all(axis=1))

    rng = np.random.default_rng((problem.seed, 4))
    cells = problem.counts.sum(axis=(1, 2))
    drafts = np.stack([_draft(problem.where, cells, shares, rng) for _ in range(_size(_DRAFTS, problem, 1))])
    return _best(score, drafts, len(shares), problem, 1, rng)


def deal_folds(problem: Problem, folds: int) -> NDArray[np.int64]:
    """Return the fold of each block, from 0, so that all folds hold about the same of each class."""
    total = problem.total

    def score(deals: Deals) -> Counts:
        each = [problem.inside((deals == fold).astype(np.int8), 2) for fold in range(folds)]
        train, val = (np.stack([inside[:, rank] for inside in each], axis=1) for rank in (0, 1))
        absent, distance = rate_folds(val, train, total, problem.min_class_cells)
        usable = (val.sum(axis=2) > 0).all(axis=1) & (train.sum(axis=2) > 0).all(axis=1)
        lost = (1 - (val + train).sum(axis=2) / total.sum()).max(axis=1)
        return penalty(absent, distance, lost, problem.max_buffer_share, usable)

    rng = np.random.default_rng((problem.seed, 5))
    cells = problem.counts.sum(axis=(1, 2))
    drafts = np.stack([_striped(problem.where, cells, folds, rng) for _ in range(_size(_DRAFTS, problem, folds))])
    return _best(score, drafts, folds, problem, folds, rng)


def _size(most: int, problem: Problem, times: int) -> int:
    """Return how many deals to rate at a time, fewer where each costs more."""
    return int(np.clip(_WORK // (len(problem.where) * times), 24, most))


def _draft(where: NDArray[np.int64], cells: NDArray[np.int64], shares: list[float], rng: np.random.Generator) -> Deals:
    """Draw ranks: val, then test, are the blocks nearest to a few random places, more or less strictly."""
    ranks = np.zeros(len(where), np.int8)
    for rank in range(1, len(shares)):
        centres = where[rng.integers(0, len(where), rng.integers(1, 6))]
        far = np.abs(where[:, None] - centres[None]).max(axis=2).min(axis=1).astype(np.float64)
        far += rng.normal(0, 1, len(where)) * rng.choice([0.1, 0.5, 2.0, 20.0])
        order = np.argsort(np.where(ranks == 0, far, np.inf), kind="stable")
        sums = np.cumsum(cells[order])
        ranks[order[: max(int(np.searchsorted(sums, shares[rank] * sums[-1])), 1)]] = rank
    return ranks


def _striped(where: NDArray[np.int64], cells: NDArray[np.int64], folds: int, rng: np.random.Generator) -> Deals:
    """Draw folds of about as many cells each: stripes in a random direction, more or less strictly."""
    angle = rng.uniform(0, np.pi)
    along = where @ np.array([np.cos(angle), np.sin(angle)])
    along = along + rng.normal(0, 1, len(where)) * rng.choice([0.1, 0.7, 2.0, 20.0])
    order = np.argsort(along, kind="stable")
    middle = np.cumsum(cells[order]) - cells[order] / 2
    deal = np.empty(len(where), np.int8)
    deal[order] = np.minimum(middle / cells.sum() * folds, folds - 1)
    return deal


def _best(
    score: Callable[[Deals], Counts], drafts: Deals, n: int, problem: Problem, times: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return the best deal found by changing the best drafts, one block or a pair of blocks at a time."""
    scores = score(drafts)
    found: list[tuple[float, int, Deals]] = []
    moves = _size(_MOVES, problem, times)
    for start in np.argsort(scores, kind="stable")[:_STARTS]:
        deal, own, idle = drafts[start], float(scores[start]), 0
        for _ in range(_ROUNDS):
            changed = _moved(deal, n, moves, rng)
            rated = score(changed)
            best = int(np.argmin(rated))
            idle = 0 if rated[best] < own else idle + 1
            if not idle:
                deal, own = changed[best], float(rated[best])
            if idle == _PATIENCE:
                break
        found.append((own, len(found), deal))
    return min(found, key=lambda item: item[:2])[2].astype(np.int64)


def _moved(deal: Deals, n: int, moves: int, rng: np.random.Generator) -> Deals:
    """Return variants, ``(moves, blocks)``: two in three give one block to another part, the rest swap two blocks."""
    rows = np.arange(moves)
    out = np.repeat(deal[None], moves, axis=0)
    first, second = rng.integers(0, len(deal), (2, moves))
    given = (deal[first] + rng.integers(1, n, moves)) % n
    swap = rows % 3 == 0
    out[rows, first] = np.where(swap, deal[second], given)
    out[rows, second] = np.where(swap, deal[first], out[rows, second])
    return out
