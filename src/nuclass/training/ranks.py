"""What the processes of one run tell each other: whether to leave or save, and the cells each of them has seen."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nuclass.training.interruption import Signals


def several() -> bool:
    """Say whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather(values: Tensor) -> Tensor:
    """Return the rows of all processes, one process's after the other's, the same on all; alone, ``values`` itself.

    Processes may have different numbers of rows (N, ...).
    """
    if not several():
        return values
    size = dist.get_world_size()
    counts = [torch.zeros(1, dtype=torch.int64, device=values.device) for _ in range(size)]
    dist.all_gather(counts, torch.tensor([len(values)], device=values.device))
    rows = [int(count) for count in counts]
    padded = values.new_zeros((max(rows), *values.shape[1:]))
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, rows, strict=True)])


@dataclass(frozen=True)
class Wish:
    """What is to be done at this step: leave because of a signal (0: none), save the state."""

    signal: int = 0
    save: bool = False

    def __bool__(self) -> bool:
        return self.signal > 0 or self.save


class Agreement:
    """Bring all processes to leave and to save at the same step, without waiting for the device.

    Each process asks at the same steps. What one of them wishes is known to all one question later, over a channel
    of its own between the processors.

    Parameters
    ----------
    signals
        Tells whether this process was asked to leave.
    save_every_s
        Seconds from one saved state to the next.
    """

    def __init__(self, signals: Signals, save_every_s: float) -> None:
        self.signals, self.save_every_s = signals, save_every_s
        self._last = time.monotonic()
        self._group: Any = None
        self._pending: tuple[Any, Tensor] | None = None
        self._just_saved = False

    def connect(self) -> None:
        """Open the channel; called by all processes once they know each other."""
        if several():
            self._group = dist.new_group(backend="gloo")

    def ask(self) -> Wish:
        """Return what all processes do now."""
        due = time.monotonic() - self._last >= self.save_every_s
        own = Wish(self.signals.received, due)
        if self._group is None:
            return own
        agreed = self._take()
        flags = torch.tensor([own.signal, int(own.save)])
        self._pending = dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group, async_op=True), flags
        return agreed

    def _take(self) -> Wish:
        if self._pending is None:
            return Wish()
        work, flags = self._pending
        work.wait()
        self._pending = None
        stale, self._just_saved = self._just_saved, False
        return Wish(int(flags[0]), bool(flags[1]) and not stale)

    def saved(self) -> None:
        """Start the clock anew; a wish to save that is still on its way is fulfilled."""
        self._last = time.monotonic()
        self._just_saved = self._pending is not None

    def finish(self) -> None:
        """Wait for what is still on its way."""
        if self._pending is not None:
            self._pending[0].wait()
            self._pending = None

    def least(self, number: int) -> int:
        """Return the smallest of all processes' numbers."""
        if self._group is None:
            return number
        value = torch.tensor([number])
        dist.all_reduce(value, op=dist.ReduceOp.MIN, group=self._group)
        return int(value)

    def collect(self, values: list[float]) -> list[list[float]]:
        """Return the numbers of all processes, by rank, on all of them."""
        if self._group is None:
            return [values]
        own = torch.tensor(values, dtype=torch.float64)
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(parts, own, group=self._group)
        return [part.tolist() for part in parts]


def same_buffers(module: torch.nn.Module) -> None:
    """Give all processes the first one's buffers, such as running means of a batch norm."""
    if several():
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)
