"""What happens around the steps of a fit: seeds, losses and their check, the record of validations, the best state."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.training.display import FitProgress
from nuclass.training.ranks import Agreement, same_buffers
from nuclass.training.state import save_atomically

_log = get_logger(__name__)
_LOOK_EVERY = 50
_NAMED_CELLS = 5


def step_number(trainer: pl.Trainer, batch: int) -> int:
    """Return the number of a batch among those of all processes in its epoch."""
    return batch * trainer.world_size + trainer.global_rank


class Seeds(pl.Callback):
    """Seed what is random on the device, such as dropout, at every batch by the run's seed, the epoch and the batch.

    So a run that goes on in the middle of an epoch needs no random state. The module's ``seed`` is taken.
    """

    def __init__(self) -> None:
        self._cuda: torch.Generator | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the generator of the device."""
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.init()
            self._cuda = torch.cuda.default_generators[device.index or 0]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed; ``torch.manual_seed`` would ask every kind of device, a hundred times slower."""
        seed = (int(getattr(pl_module, "seed", 0)) * 1009 + trainer.current_epoch) * 1_000_003
        seed += step_number(trainer, batch_idx)
        torch.default_generator.manual_seed(seed)
        if self._cuda is not None:
            self._cuda.manual_seed(seed)


class Losses:
    """The losses of training batches, kept on their device and looked at together, now and then.

    Parameters
    ----------
    names
        Turns rows of the training set into names of cells, for the message about a loss that is not finite.
    """

    def __init__(self, names: Any = None) -> None:
        self.total, self.cells = 0.0, 0
        self.recent, self.recent_cells = 0.0, 0
        self.names = names
        self._open: list[tuple[int, int, Tensor, Tensor | None, int]] = []

    def __len__(self) -> int:
        return len(self._open)

    def add(self, epoch: int, batch: int, loss: Tensor, rows: Tensor | None, cells: int) -> None:
        """Keep a batch's loss."""
        self._open.append((epoch, batch, loss, rows, cells))

    def look(self) -> None:
        """Add the losses up, one after the other, so that the sum does not depend on when it is asked for.

        Raises
        ------
        UserError
            One is not finite; the message names the first batch and its cells.
        """
        if not self._open:
            return
        values = torch.stack([item[2].detach() for item in self._open]).double().tolist()
        for (epoch, batch, _, rows, cells), value in zip(self._open, values, strict=True):
            if not math.isfinite(value):
                raise UserError(
                    "The loss is not a finite number",
                    where=f"epoch {epoch}, batch {batch}{self._cells(rows)}",
                    found=value,
                    fix="look at these cells, lower the learning rates, or set precision: 32-true",
                )
            self.total += value * cells
            self.cells += cells
            self.recent += value * cells
            self.recent_cells += cells
        self._open.clear()

    def take_recent(self) -> float:
        """Return the mean since the last call."""
        self.look()
        mean = self.recent / max(self.recent_cells, 1)
        self.recent, self.recent_cells = 0.0, 0
        return mean

    def _cells(self, rows: Tensor | None) -> str:
        if rows is None:
            return ""
        shown: Sequence[Any] = rows[:_NAMED_CELLS].tolist()
        if self.names is not None:
            shown = self.names(shown)
        more = f" and {len(rows) - len(shown)} more" if len(rows) > len(shown) else ""
        return f", cells {', '.join(map(str, shown))}{more}"


class Record(pl.Callback):
    """Collect one row a validation, check the losses, show progress, write live numbers; part of the saved state."""

    def __init__(self, description: str, monitor: str, agreement: Agreement, log_every: int, make_loggers: Any) -> None:
        self.rows: list[dict[str, Any]] = []
        self.description, self.monitor, self.agreement = description, monitor, agreement
        self.log_every, self._make_loggers = log_every, make_loggers
        self.losses = Losses()
        self.sums: list[list[float]] = []
        self._loggers: list[Any] = []
        self._progress: FitProgress | None = None
        self._seconds_before, self._start = 0.0, time.monotonic()
        self._trained = 0.0
        self._since: float | None = None
        self._look_every = 1
        self._logged = (0, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far, what came since the last one (sums of losses a process, training), the seconds."""
        return {"rows": self.rows, "sums": self.sums, "seconds": self._seconds(), "trained": self._train_seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what an interrupted run had."""
        self.rows = list(state_dict["rows"])
        self.sums = list(state_dict["sums"])
        self._seconds_before, self._trained = float(state_dict["seconds"]), float(state_dict["trained"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the display and the loggers."""
        if self.sums:
            total, cells = self.sums[trainer.global_rank] if trainer.global_rank < len(self.sums) else (0.0, 0.0)
            self.losses.total, self.losses.cells = total, int(cells)
        self.losses.names = getattr(trainer.datamodule, "cell_names", None)  # type: ignore[attr-defined]
        on_cpu = trainer.strategy.root_device.type == "cpu"
        self._look_every = 1 if on_cpu else min(_LOOK_EVERY, self.log_every)
        self._start = self._since = time.monotonic()
        if trainer.is_global_zero:
            self._progress = FitProgress(
                self.description, int(trainer.max_epochs or 1), int(trainer.num_training_batches), _seen(trainer)
            )
            self._progress.best = self._best()
            self._loggers = self._make_loggers(trainer.global_step)
            self._logged = (0, time.monotonic())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss, which ``outputs`` holds divided by the accumulated batches; look at it where it is time to."""
        cells = len(batch["label"]) if "label" in batch else len(next(iter(batch.values())))
        parts = trainer.accumulate_grad_batches
        loss = outputs["loss"] * parts if parts > 1 else outputs["loss"]
        self.losses.add(trainer.current_epoch, batch_idx, loss, batch.get("index"), cells)
        if len(self.losses) >= self._look_every:
            self.losses.look()
        if self._progress is not None:
            self._progress.advance(cells * trainer.world_size)
            stepped = (batch_idx + 1) % parts == 0
            if stepped and trainer.global_step % self.log_every == 0:
                self._log_training(trainer)

    def check(self, module: pl.LightningModule) -> None:
        """Raise where a loss or a weight is not finite, and agree on the sums; all call it before a state is saved."""
        self.losses.look()
        finite = torch.stack([p.detach().isfinite().all() for p in module.parameters()]).all()
        if not bool(finite):
            raise UserError(
                "A weight is not a finite number",
                where=f"epoch {module.current_epoch}, after optimizer step {module.global_step}",
                fix="lower the learning rates, set a grad_clip, or set precision: 32-true",
            )
        self.sums = self.agreement.collect([self.losses.total, float(self.losses.cells)])

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock of training."""
        self._trained, self._since = self._train_seconds(), None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add a row; ``train_loss`` is the mean over the cells since the row before, of all processes.

        ``train_seconds`` and ``train_cells`` are those since the row before, without validation.
        """
        self.losses.look()
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val_")}
        for name in {self.monitor, "val_loss"} & metrics.keys():
            if not math.isfinite(metrics[name]):
                raise UserError(
                    "A measure of the val cells is not a finite number",
                    where=f"{name} in epoch {trainer.current_epoch}",
                    found=metrics[name],
                    fix="lower the learning rates, or set precision: 32-true",
                )
        sums = self.agreement.collect([self.losses.total, float(self.losses.cells)])
        total, cells = (sum(part[k] for part in sums) for k in (0, 1))
        row = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "seconds": round(self._seconds(), 2),
            "train_loss": total / cells if cells else float("nan"),
            **metrics,
            "learning_rate": max(_rates(trainer)),
            "train_seconds": round(self._trained, 3),
            "train_cells": int(cells),
            "memory_mb": _peak_memory(trainer.strategy.root_device),
        }
        self.losses.total, self.losses.cells = 0.0, 0
        self._trained, self._since = 0.0, time.monotonic()
        self.rows.append(row)
        if trainer.is_global_zero:
            shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            _log.info("%s: epoch %d, %s", self.description, trainer.current_epoch, shown)
            self._write({"epoch": trainer.current_epoch, "seconds": self._seconds(), **metrics}, trainer)
        if self._progress is not None:
            self._progress.best = self._best()

    def close(self, status: str) -> None:
        """Close the display and the loggers."""
        if self._progress is not None:
            self._progress.close()
        for logger in self._loggers:
            logger.finalize(status)
        self._loggers = []

    def _best(self) -> str:
        return f"{self.monitor} {self.rows[-1][self.monitor]:.3f}" if self.rows else ""

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._start

    def _train_seconds(self) -> float:
        return self._trained + (0.0 if self._since is None else time.monotonic() - self._since)

    def _log_training(self, trainer: pl.Trainer) -> None:
        assert self._progress is not None
        cells, now = self._progress.cells, time.monotonic()
        rates = _rates(trainer)
        numbers = {
            "epoch": float(trainer.current_epoch),
            "seconds": self._seconds(),
            "train_loss": self.losses.take_recent(),
            "learning_rate": max(rates),
            "learning_rate_lowest": min(rates),
            "cells_per_s": (cells - self._logged[0]) / max(now - self._logged[1], 1e-9),
        }
        device = trainer.strategy.root_device
        if device.type == "cuda":
            numbers["gpu_memory_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
        self._logged = (cells, now)
        self._write(numbers, trainer)

    def _write(self, numbers: dict[str, float], trainer: pl.Trainer) -> None:
        for logger in self._loggers:
            logger.log_metrics(numbers, trainer.global_step)


def _peak_memory(device: torch.device) -> float:
    """Return the peak so far in MB: of tensors on a GPU, else of all that this process held."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1)


def _seen(trainer: pl.Trainer) -> int:
    """Return the batches of all epochs that were seen before this start."""
    epochs = trainer.fit_loop.epoch_progress.current
    begun = trainer.fit_loop.batch_idx + 1 if epochs.ready > epochs.completed else 0
    return int(epochs.completed * trainer.num_training_batches + begun)


def _rates(trainer: pl.Trainer) -> list[float]:
    return [float(group["lr"]) for group in trainer.optimizers[0].param_groups]


class Best(pl.Callback):
    """Keep the weights of the best validation, the earlier one of equals, and stop after ``patience`` without a better.

    The weights lie in ``best-<step>.ckpt``; a saved state names its file, so both always belong together.
    """

    def __init__(self, work: Path, monitor: str, mode: str, patience: int) -> None:
        self.work, self.monitor, self.patience = work, monitor, patience
        self._sign = 1.0 if mode == "max" else -1.0
        self.score: float | None = None
        self.file: str | None = None
        self.waited = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, its file and the validations since."""
        return {"score": self.score, "file": self.file, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what an interrupted run had."""
        self.score, self.file, self.waited = (state_dict[key] for key in ("score", "file", "waited"))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let all processes validate the same network, down to its running means."""
        same_buffers(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare, save, stop."""
        if self.monitor not in trainer.callback_metrics:
            raise ValueError(f"The module logs no {self.monitor}")
        score = self._sign * float(trainer.callback_metrics[self.monitor])
        if self.score is None or score > self.score:
            self.score, self.waited = score, 0
            self.file = f"best-{trainer.global_step}.ckpt"
            if trainer.is_global_zero:
                save_atomically(pl_module.state_dict(), self.work / self.file)
        else:
            self.waited += 1
            trainer.should_stop = trainer.should_stop or self.waited >= self.patience

    def forget_others(self) -> None:
        """Remove the weights that no saved state names any more."""
        for path in self.work.glob("best-*.ckpt"):
            if path.name != self.file:
                path.unlink(missing_ok=True)
