"""Batches: seeded shuffling per epoch, whole batches at once, neighbours together where tiles are decoded."""

from __future__ import annotations

import atexit
import os
import signal
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from nuclass.core.errors import UserError
from nuclass.data.datasets import Batch, Index, InMemoryWindows, Rows, WindowDataset

BLOCK_CELLS = 256
POOL_BLOCKS = 16
PREFETCH = 2


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
        256 neighbours, takes them in pools of at least 16 and permutes within a pool: not a uniform shuffle, but
        the tiles of a pool fit into a cache. A batch is a fair draw from 16 places drawn from all slides: the
        shares of slides and classes scatter in it no more than in ``1 / (1 / 16 + 1 / batch_size)`` cells drawn
        one by one. Without it the shuffle is uniform.
    rank, world_size
        This process and their number. All agree on an epoch's rows; rank ``r`` takes batches ``r, r + world_size,
        ...``. Shuffled, all ranks get equally many: what is left over is dropped with ``drop_last``, else the first
        batches come again. In order, every row comes once over all ranks, and each rank has a batch.

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
        order: NDArray[Any] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if weights is not None and not shuffle:
            raise ValueError("Weighted sampling needs shuffle=True")
        if order is not None and len(order) != n:
            raise ValueError(f"An order of {len(order)} for {n} rows")
        if not 0 <= rank < world_size:
            raise ValueError(f"Rank {rank} of {world_size} processes")
        if 0 < n < world_size:
            raise UserError(
                "There are fewer cells than processes",
                found=f"{n} cells for {world_size} processes",
                fix="use fewer devices",
            )
        self.n, self.batch_size, self.shuffle, self.seed, self.drop_last = n, batch_size, shuffle, seed, drop_last
        self.rank, self.world_size = rank, world_size
        self.order = None if order is None else np.asarray(order, _smallest(n))
        self.epoch = 0
        self._start = 0
        self._edges = self._cut()
        self.weights: NDArray[np.float64] | None = None
        if weights is not None:
            values = np.asarray(weights, dtype=np.float64)
            if values.shape != (n,) or not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
                raise ValueError(f"Weights must be {n} finite numbers of at least 0, not all 0")
            self.weights = values / values.sum()

    def __len__(self) -> int:
        return len(self._batches())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next pass shows."""
        self.epoch = epoch

    def start_at(self, batch: int) -> None:
        """Let the next pass, and it alone, leave out this rank's batches before number ``batch``."""
        self._start = batch

    def __iter__(self) -> Iterator[list[int]]:
        rows, batches = self.rows(self.epoch), self._batches()[self._start :]
        self.epoch += 1
        self._start = 0
        for k in batches:
            yield rows[self._edges[k] : self._edges[k + 1]].tolist()

    def _cut(self) -> NDArray[np.int64]:
        """Return where batches begin and end among the rows of an epoch."""
        full, rest = divmod(self.n, self.batch_size)
        count = full + int(rest > 0 and not (self.drop_last and full > 0))
        if 0 < count < self.world_size:
            return np.linspace(0, self.n, self.world_size + 1).astype(np.int64)
        return np.minimum(np.arange(count + 1) * self.batch_size, self.n)

    def _batches(self) -> NDArray[np.int64]:
        """Return the numbers of this rank's batches."""
        count = len(self._edges) - 1
        if not self.shuffle:
            return np.arange(self.rank, count, self.world_size)
        each = count // self.world_size if self.drop_last else -(-count // self.world_size)
        return (self.rank + self.world_size * np.arange(each)) % max(count, 1)

    def rows(self, epoch: int) -> NDArray[Any]:
        """Return all rows of an epoch, one after the other."""
        base = np.arange(self.n, dtype=_smallest(self.n)) if self.order is None else self.order
        if not self.shuffle:
            return base
        rng = np.random.default_rng((self.seed, epoch))
        if self.weights is not None:
            drawn = rng.choice(self.n, size=self.n, p=self.weights).astype(base.dtype)
            base = drawn if self.order is None else base[np.sort(self._places()[drawn])]
        if self.order is None:
            return rng.permutation(base)
        first = int(rng.integers(1, BLOCK_CELLS + 1))
        blocks = np.array_split(base, range(first, len(base), BLOCK_CELLS))
        turn = rng.permutation(len(blocks))
        # What is left over goes into the last pool: alone it would be a pool of few places.
        pools = np.split(turn, range(POOL_BLOCKS, len(turn) - POOL_BLOCKS + 1, POOL_BLOCKS))
        return np.concatenate([rng.permutation(np.concatenate([blocks[i] for i in pool])) for pool in pools])

    def _places(self) -> NDArray[Any]:
        assert self.order is not None
        places = np.empty_like(self.order)
        places[self.order] = np.arange(self.n)
        return places


class BatchLoader:
    """Batches of a dataset in memory, by one indexing operation each; no workers, no collating.

    Parameters
    ----------
    dataset
        Windows or other rows in memory.
    batch_size, shuffle, seed, drop_last, weights, rank, world_size
        See :class:`BlockBatchSampler`; the shuffle is uniform.
    pin_memory
        Give batches in page-locked memory, from which a GPU copies while it computes.

    Lightning takes it as a data loader: it has a length and ``sampler.set_epoch``, and looks for
    ``batch_sampler``.
    """

    batch_sampler = None

    def __init__(
        self, dataset: InMemoryWindows | Rows, batch_size: int, *, pin_memory: bool = False, **sampling: Any
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.pin_memory = pin_memory
        self.sampler = BlockBatchSampler(len(dataset), batch_size, **sampling)

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next pass shows."""
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Batch]:
        for rows in self.sampler:
            batch = self.dataset[rows]
            yield {name: values.pin_memory() for name, values in batch.items()} if self.pin_memory else batch


class _Told(Dataset[Any]):
    """Windows cut in a worker process, which hands a :class:`UserError` over as an item.

    Raised there, the text that a person reads would begin with a traceback of the worker.
    """

    def __init__(self, windows: WindowDataset) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: Index) -> Batch | UserError:
        try:
            return self.windows[index]
        except UserError as error:
            return error


class _WorkerLoader(DataLoader[Any]):
    """A loader of :class:`_Told`: an error of a worker is raised here, where its batch was to come."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        batches = super().__iter__()
        _PASSES[batches] = os.getpid()
        for batch in batches:
            if isinstance(batch, UserError):
                raise batch
            yield batch


def make_loader(
    dataset: InMemoryWindows | WindowDataset | Rows,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    weights: ArrayLike | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> BatchLoader | DataLoader[Any]:
    """Return the loader that suits the dataset; both yield the same dicts of tensors.

    What lies in memory gets a :class:`BatchLoader`. Windows that are cut when needed get a torch DataLoader
    with ``num_workers`` processes and locality-aware shuffling; what they give does not depend on how many there
    are. Unshuffled loaders keep the rows' order.
    """
    options: dict[str, Any] = {
        "shuffle": shuffle, "seed": seed, "drop_last": drop_last, "weights": weights,
        "rank": rank, "world_size": world_size,
    }  # fmt: skip
    if not isinstance(dataset, WindowDataset):
        return BatchLoader(dataset, batch_size, pin_memory=pin_memory, **options)
    order = dataset.locality_order() if shuffle else None
    sampler = BlockBatchSampler(len(dataset), batch_size, order=order, **options)
    kind = _WorkerLoader if num_workers else DataLoader
    return kind(
        _Told(dataset) if num_workers else dataset,
        sampler=sampler,  # type: ignore[arg-type]
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        prefetch_factor=PREFETCH if num_workers > 0 else None,
        worker_init_fn=_begin,
        # Of its own, or starting a pass would move the random numbers of dropout.
        generator=torch.Generator().manual_seed(seed),
    )


def _begin(_: int) -> None:
    """Open files anew, and leave signals to the main process, which may want batches still; without it workers end."""
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    worker = get_worker_info()
    assert worker is not None
    worker.dataset.windows.open_anew()  # type: ignore[attr-defined]


# Passes by worker processes, and the process that each belongs to.
_PASSES: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


@atexit.register
def _end_passes() -> None:
    """End the workers of passes that were broken off: they ignore the request by which Python would end them."""
    for batches, process in list(_PASSES.items()):
        if process == os.getpid():
            batches._shutdown_workers()


def _smallest(n: int) -> type[np.int32] | type[np.int64]:
    return np.int32 if n < 2**31 else np.int64


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
