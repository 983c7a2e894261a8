"""Batches: seeded shuffling per epoch, whole batches at once, neighbours together where tiles are decoded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import DataLoader, Sampler

from nuclass.data.datasets import Batch, InMemoryWindows, WindowDataset

BLOCK_CELLS = 256
POOL_BLOCKS = 16


class BlockBatchSampler(Sampler[list[int]]):
    """Batches of row numbers, different in every epoch, the same for the same seed and epoch.

    Parameters
    ----------
    n
        Number of rows.
    batch_size
        Rows in a batch.
    shuffle
        Without it, rows come in their own order (or that of ``order``).
    seed
        Of the shuffling; epoch ``e`` uses the stream ``(seed, e)``.
    drop_last
        Leave out a last batch that is not full (not if it is the only one).
    weights
        Draw ``n`` rows with replacement with these relative weights, instead of each once. Needs ``shuffle``.
    order
        Rows in an order in which neighbours follow each other. Given this, shuffling permutes blocks of
        256 neighbours, takes them in pools of 16 and permutes within a pool: not a uniform shuffle, but
        the tiles of a pool fit into a cache. Without it the shuffle is uniform.

    Lightning and DistributedSampler-style loops call :meth:`set_epoch`; if nobody does, every pass over
    the sampler is the next epoch.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        weights: ArrayLike | None = None,
        order: NDArray[np.int64] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if weights is not None and not shuffle:
            raise ValueError("Weighted sampling needs shuffle=True")
        if order is not None and len(order) != n:
            raise ValueError(f"An order of {len(order)} for {n} rows")
        self.n, self.batch_size, self.shuffle, self.seed, self.drop_last = n, batch_size, shuffle, seed, drop_last
        self.order = order
        self.epoch = 0
        self.weights: NDArray[np.float64] | None = None
        if weights is not None:
            values = np.asarray(weights, dtype=np.float64)
            if values.shape != (n,) or not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
                raise ValueError(f"Weights must be {n} finite numbers of at least 0, not all 0")
            self.weights = values / values.sum()

    def __len__(self) -> int:
        full, rest = divmod(self.n, self.batch_size)
        return full + int(rest > 0 and not (self.drop_last and full > 0))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next pass shows."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        rows = self.rows(self.epoch)
        self.epoch += 1
        for k in range(len(self)):
            yield rows[k * self.batch_size : (k + 1) * self.batch_size].tolist()

    def rows(self, epoch: int) -> NDArray[np.int64]:
        """Return all rows of an epoch, one after the other."""
        base = np.arange(self.n) if self.order is None else self.order
        if not self.shuffle:
            return base
        rng = np.random.default_rng((self.seed, epoch))
        if self.weights is not None:
            drawn = rng.choice(self.n, size=self.n, p=self.weights)
            base = drawn if self.order is None else base[np.sort(self._ranks()[drawn])]
        if self.order is None:
            return rng.permutation(base)
        first = int(rng.integers(1, BLOCK_CELLS + 1))
        blocks = np.array_split(base, range(first, len(base), BLOCK_CELLS))
        turn = rng.permutation(len(blocks))
        pools = [
            np.concatenate([blocks[i] for i in turn[start : start + POOL_BLOCKS]])
            for start in range(0, len(turn), POOL_BLOCKS)
        ]
        return np.concatenate([rng.permutation(pool) for pool in pools])

    def _ranks(self) -> NDArray[np.int64]:
        assert self.order is not None
        ranks = np.empty(self.n, np.int64)
        ranks[self.order] = np.arange(self.n)
        return ranks


class BatchLoader:
    """Batches of a dataset in memory, by one indexing operation each; no workers, no collating.

    Parameters
    ----------
    dataset
        Windows in memory.
    batch_size, shuffle, seed, drop_last, weights
        See :class:`BlockBatchSampler`; the shuffle is uniform.

    Lightning takes it as a data loader: it has a length and ``sampler.set_epoch``, and looks for
    ``batch_sampler``.
    """

    batch_sampler = None

    def __init__(
        self,
        dataset: InMemoryWindows,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        weights: ArrayLike | None = None,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.sampler = BlockBatchSampler(
            len(dataset), batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last, weights=weights
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next pass shows."""
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Batch]:
        for rows in self.sampler:
            yield self.dataset[rows]


def make_loader(
    dataset: InMemoryWindows | WindowDataset,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    weights: ArrayLike | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> BatchLoader | DataLoader[Any]:
    """Return the loader that suits the dataset; both yield the same dicts of tensors.

    Windows in memory get a :class:`BatchLoader`. Windows that are cut when needed get a torch DataLoader
    with ``num_workers`` processes and locality-aware shuffling. Unshuffled loaders keep the rows' order.
    """
    options: dict[str, Any] = {"shuffle": shuffle, "seed": seed, "drop_last": drop_last, "weights": weights}
    if isinstance(dataset, InMemoryWindows):
        return BatchLoader(dataset, batch_size, **options)
    order = dataset.locality_order() if shuffle else None
    sampler = BlockBatchSampler(len(dataset), batch_size, order=order, **options)
    return DataLoader(
        dataset,
        sampler=sampler,  # type: ignore[arg-type]
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
    )


def balanced_weights(labels: ArrayLike, power: float = 1.0) -> NDArray[np.float64]:
    """Return a sampling weight a cell, ``count(class) ** -power``; 0 where the label is -1.

    ``power`` 1 shows all classes equally often, 0 changes nothing, 0.5 lies between.
    """
    values = torch.as_tensor(np.asarray(labels, dtype=np.int64)).numpy()
    weights = np.zeros(len(values))
    known = values >= 0
    _, inverse, counts = np.unique(values[known], return_inverse=True, return_counts=True)
    weights[known] = counts[inverse].astype(np.float64) ** -power
    return weights
