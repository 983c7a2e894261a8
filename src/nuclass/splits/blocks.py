"""Square blocks spread over a slide, dealt to train, val and test, or to folds, with a one-sided buffer.

Why no windows of two splits touch: a cell gives way if the square of half-side ``gap_px`` around it reaches into the
area of a block of a higher split (test over val over train). Places become block numbers by a function that never
decreases (scale, floor, clip), so of two cells nearer than ``gap_px`` in x and in y, each lies in a block that the
square of the other reaches. The lower of the two is therefore in the buffer, whatever the tissue looks like.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nuclass.core.errors import UserError
from nuclass.core.names import BUFFER, TEST, TRAIN, VAL
from nuclass.splits.search import Problem, deal_folds, deal_splits
from nuclass.splits.settings import SplitConfig

Rows = NDArray[np.bool_]
Places = NDArray[np.int64]
RANKS = (TRAIN, VAL, TEST)
LEAST_BLOCKS = 12
_BLOCKS_A_FOLD = 3


@dataclass(frozen=True, eq=False)
class Grid:
    """Squares of ``side`` px from ``origin``, ``shape`` of them in x and y; cells beyond belong to the outermost."""

    origin: NDArray[np.float64]
    side: float
    shape: tuple[int, int]

    def place(self, xy: NDArray[np.float64]) -> Places:
        """Return the column and row of the block of each cell, ``(N, 2)``."""
        index = np.floor((xy - self.origin) / self.side)
        return np.clip(index, 0, np.array(self.shape) - 1).astype(np.int64)


def lay_grid(xy: NDArray[np.float64], side: float, seed: int) -> Grid:
    """Lay the smallest grid over the cells ``xy`` ``(N, 2)``; where it stands over is drawn by the seed."""
    low, high = xy.min(axis=0), xy.max(axis=0)
    shape = np.floor((high - low) / side).astype(np.int64) + 1
    spare = shape * side - (high - low)
    origin = low - spare * np.random.default_rng((seed, 2)).uniform(0.05, 0.95, 2)
    return Grid(origin, side, (int(shape[0]), int(shape[1])))


class Blocks:
    """The blocks of one slide, with the labelled cells in each part of each.

    Parameters
    ----------
    xy
        Cells in store px, ``(N, 2)``.
    placed, counted
        Which of them have a place, and which of these are labelled, ``(N,)``.
    classes
        Their classes, ``(N,)``.
    config
        See :class:`SplitConfig`.

    Attributes
    ----------
    grid
        The :class:`Grid`.
    where
        Column and row of the blocks that hold labelled cells, ``(blocks, 2)``.
    cells
        Labelled cells of these, ``(blocks,)``.
    """

    def __init__(
        self, xy: NDArray[np.float64], placed: Rows, counted: Rows, classes: NDArray[np.object_], config: SplitConfig
    ) -> None:
        self._xy, self._placed, self._config = xy, placed, config
        self.grid = lay_grid(xy[counted], config.block_px, config.seed)
        own = xy[counted]
        codes, names = pd.factorize(classes[counted], sort=True)
        place = self.grid.place(own)
        flat = place[:, 0] * self.grid.shape[1] + place[:, 1]
        occupied, number = np.unique(flat, return_inverse=True)
        self.where = np.stack(np.divmod(occupied, self.grid.shape[1]), axis=1)
        self.cells = np.bincount(number, minlength=len(occupied))
        # A block's nine parts: the core, and what lies within the gap of one neighbour or of three.
        before = self.grid.place(own - config.gap_px) < place
        after = self.grid.place(own + config.gap_px) > place
        part = np.where(before, 0, np.where(after, 2, 1)) @ np.array([3, 1])
        shape = (len(occupied), 9, len(names))
        self._counts = np.bincount(np.ravel_multi_index((number, part, codes), shape), minlength=np.prod(shape))
        self._counts = self._counts.reshape(shape)

    def fit(self) -> str:
        """Return why blocks do not suit the slide, ``""`` where they do."""
        config = self._config
        filled = int((self.cells >= config.min_class_cells).sum())
        needed = max(LEAST_BLOCKS, _BLOCKS_A_FOLD * config.folds)
        if config.block_px <= 2 * config.gap_px:
            return f"blocks of {config.block_um:g} um are narrower than two buffers"
        if filled < needed:
            return f"{filled} blocks of {config.block_um:g} um are well filled, {needed} are needed"
        return ""

    def deal(self) -> NDArray[np.int64]:
        """Return the rank in :data:`RANKS`, or with folds the fold (from 1), of each block of ``where``."""
        config = self._config
        problem = Problem(
            self._counts, self._neighbours(), self.where, config.seed, config.min_class_cells, config.max_buffer_share
        )
        if config.folds:
            return deal_folds(problem, config.folds) + 1
        shares = [config.wanted.get(name, 0.0) for name in RANKS[: 3 if config.test else 2]]
        return deal_splits(problem, shares)

    def _neighbours(self) -> NDArray[np.int64]:
        """Return the blocks that each part lies near, ``(blocks, 9, 3)``; beyond the last for none."""
        n = len(self.where)
        number = np.full((self.grid.shape[0] + 2, self.grid.shape[1] + 2), n, np.int64)
        number[self.where[:, 0] + 1, self.where[:, 1] + 1] = np.arange(n)
        near = np.full((n, 9, 3), n, np.int64)
        for part, (dx, dy) in enumerate((i - 1, j - 1) for i in range(3) for j in range(3)):
            steps = [(x, y) for x in {0, dx} for y in {0, dy} if x or y]
            for slot, (x, y) in enumerate(steps):
                near[:, part, slot] = number[self.where[:, 0] + 1 + x, self.where[:, 1] + 1 + y]
        return near

    def assign(self, dealt: NDArray[np.int64]) -> NDArray[np.object_]:
        """Return the split of every cell, ``(N,)``: of its block, or buffer near a block of a higher split."""
        config, grid = self._config, self.grid
        if config.folds:
            dealt = (dealt == config.fold).astype(np.int64)
        ranks = np.zeros(grid.shape, np.int64)
        ranks[self.where[:, 0], self.where[:, 1]] = dealt
        xy = np.where(self._placed[:, None], self._xy, grid.origin)
        place = grid.place(xy)
        own = ranks[place[:, 0], place[:, 1]]
        first, last = grid.place(xy - config.gap_px), grid.place(xy + config.gap_px)
        split = np.array(RANKS, dtype=object)[own]
        for rank in (1, 2):
            split[(own < rank) & _any_between(ranks == rank, first, last)] = BUFFER
        split[~self._placed] = BUFFER
        return split

    def told(self, dealt: NDArray[np.int64]) -> dict[str, Any]:
        """Return what the report says of the blocks."""
        names = [int(value) if self._config.folds else RANKS[value] for value in dealt]
        return {
            "gap_px": self._config.gap_px,
            "grid": {
                "origin_px": self.grid.origin.tolist(),
                "side_px": self.grid.side,
                "shape": list(self.grid.shape),
                "blocks": [[int(x), int(y), name] for (x, y), name in zip(self.where, names, strict=True)],
            },
        }


def _any_between(marked: Rows, first: Places, last: Places) -> Rows:
    """Return whether any block from ``first`` to ``last``, both ``(N, 2)`` and both counted in, is marked."""
    total = np.zeros((marked.shape[0] + 1, marked.shape[1] + 1), np.int64)
    total[1:, 1:] = marked.cumsum(axis=0).cumsum(axis=1)
    (x0, y0), (x1, y1) = first.T, last.T + 1
    return (total[x1, y1] - total[x0, y1] - total[x1, y0] + total[x0, y0]) > 0


def cut_blocks(
    blocks: Blocks, counted: Rows, config: SplitConfig, slide: str
) -> tuple[NDArray[np.object_], dict[str, Any]]:
    """Deal the blocks and give each cell its split; return these and what is to be told.

    Raises
    ------
    UserError
        There are fewer blocks than parts, a part is left empty, or the buffer takes too much.
    """
    parts = config.folds or len(config.wanted)
    fix = "set splits: layout: bands, or a smaller block_um, or give the slide the role cohort"
    if len(blocks.where) < parts:
        raise UserError(
            "A training slide has too few blocks",
            where=slide or None,
            found=f"{len(blocks.where)} blocks of {config.block_um:g} um hold labelled cells",
            expected=f"at least {parts}",
            fix=fix,
        )
    dealt = blocks.deal()
    split = blocks.assign(dealt)
    held = {name: int((split[counted] == name).sum()) for name in (*RANKS, BUFFER)}
    lost = held[BUFFER] / int(counted.sum())
    empty = [name for name in (config.wanted if not config.folds else (TRAIN, VAL)) if not held[name]]
    if empty or lost > config.max_buffer_share:
        raise UserError(
            "A training slide cannot be cut into blocks",
            where=slide or None,
            found=f"nothing left for {', '.join(empty)}"
            if empty
            else f"{lost:.1%} of the labelled cells in the buffer",
            expected=f"labelled cells in every split, at most {config.max_buffer_share:.1%} in the buffer",
            fix=fix,
        )
    return split, blocks.told(dealt)
