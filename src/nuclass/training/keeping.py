"""Save the running state at the right moments, and go on from it in the middle of an epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.plugins.io import TorchCheckpointIO

from nuclass.training.callbacks import Best, Record
from nuclass.training.interruption import Signals, StoppedError
from nuclass.training.ranks import Agreement
from nuclass.training.state import LAST, save_atomically

_VALIDATION = "epoch_loop.val_loop.batch_progress"


class AtomicIO(TorchCheckpointIO):
    """Write a checkpoint under another name, flush it to the disk, then rename it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save, see :func:`nuclass.training.state.save_atomically`."""
        save_atomically(checkpoint, Path(path))


class Keep(pl.Callback):
    """Save the state after the optimizer step, validation or epoch at which it is due, and leave where a signal asks.

    It is saved between optimizer steps alone, when no gradient is half accumulated. Just before a validation it is
    saved as one that begins with this validation; so one that is cut off costs no training.

    Parameters
    ----------
    work
        Folder of the state.
    record, best
        Checked before, tidied after a state is saved.
    agreement, signals
        Who wishes to save or to leave.
    validate_every
        Epochs from one validation to the next; below 1 several an epoch, whole optimizer steps apart.
    """

    def __init__(
        self,
        work: Path,
        record: Record,
        best: Best,
        agreement: Agreement,
        signals: Signals,
        validate_every: float,
    ) -> None:
        self.work, self.record, self.best = work, record, best
        self.agreement, self.signals, self.validate_every = agreement, signals, validate_every
        self.seen = 0
        self.mid_epoch = self.finished = False
        self._pending = self._saved_pending = False
        self._asks = 0
        self._skips = True

    def state_dict(self) -> dict[str, Any]:
        """Return how many batches of the epoch were seen, and whether the run is over."""
        return {"seen": self.seen, "mid_epoch": self.mid_epoch, "finished": self.finished}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what an interrupted run had."""
        self.seen, self.mid_epoch = state_dict["seen"], state_dict["mid_epoch"]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keep away Lightning's handlers of signals, which end a process with status 0 or wait for other processes."""
        connector = getattr(trainer, "_signal_connector", None)
        if connector is not None:
            connector.register_signal_handlers = _nothing

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the channel between the processes."""
        self.agreement.connect()
        loop = trainer.fit_loop.epoch_loop
        if trainer.world_size > 1 and hasattr(loop, "_broadcast_sigterm_tensor"):
            # Lightning asks the first process at every batch and waits for the device; agreement does neither.
            loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave out the batches that were seen, and bring the module to the epoch it is in."""
        self.signals.listen()
        self._align(trainer)
        self._skips = hasattr(_sampler(trainer), "start_at")
        if self.mid_epoch:
            _sampler(trainer).start_at(self.seen)
            pl_module.on_train_epoch_start()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin an epoch at its first batch."""
        self.seen, self.mid_epoch = 0, False
        if self._skips:
            _sampler(trainer).start_at(0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save or leave after an optimizer step, unless a validation or the epoch's end follows: these do it."""
        seen = batch_idx + 1
        last = seen == trainer.num_training_batches
        if seen % trainer.accumulate_grad_batches and not last:
            return
        self.seen = seen
        wish = self.agreement.ask()
        if wish and not last and not self._validates(trainer, seen):
            self._save(trainer, pl_module)
            self._leave(wish.signal)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Agree on how many val batches all processes have."""
        batches = trainer.num_val_batches
        self._asks = self.agreement.least(int(batches[0] if isinstance(batches, list) else batches))
        self._saved_pending = False

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Save or leave in the middle of a validation; the state begins with it."""
        if batch_idx >= self._asks:
            return
        wish = self.agreement.ask()
        if wish and not self._saved_pending:
            self._pending = True
            self._save(trainer, pl_module)
            self._pending, self._saved_pending = False, True
        self._leave(wish.signal)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what the validation found; the last one of an epoch is saved with the epoch."""
        if self.seen == trainer.num_training_batches:
            return
        self.finished = trainer.should_stop
        self._save(trainer, pl_module)
        if not self.finished:
            self._leave(self.agreement.ask().signal)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save at the end of an epoch."""
        self.finished = trainer.should_stop or trainer.current_epoch + 1 >= int(trainer.max_epochs or 1)
        self._save(trainer, pl_module, mid_epoch=False)
        if not self.finished:
            self._leave(self.agreement.ask().signal)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Tell the trainer's loops whether a validation is to be done first, as if it had been cut off at its start."""
        # Lightning counts a resumed validation's first batch twice, and would do it again; so counts are set here.
        begun = int(self._pending)
        count = {"ready": begun, "started": begun, "processed": 0, "completed": 0}
        progress = {"total": count, "current": dict(count), "is_last_batch": False}
        checkpoint["loops"]["fit_loop"][_VALIDATION] = progress

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule, *, mid_epoch: bool = True) -> None:
        if mid_epoch and not self._skips and not self.finished:
            return
        self.record.check(module)
        self.mid_epoch = mid_epoch
        trainer.save_checkpoint(self.work / LAST)
        self.agreement.saved()
        if trainer.is_global_zero:
            self.best.forget_others()

    def _leave(self, number: int) -> None:
        if number:
            raise StoppedError(number, self.work)

    def _align(self, trainer: pl.Trainer) -> None:
        """Let validations within an epoch follow whole optimizer steps."""
        step, batches = trainer.accumulate_grad_batches, int(trainer.num_training_batches)
        if self.validate_every < 1:
            wanted = int(batches * self.validate_every) // step * step
            trainer.val_check_batch = min(max(wanted, step), batches)

    def _validates(self, trainer: pl.Trainer, seen: int) -> bool:
        every, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch or 1
        return bool(every) and seen % int(every or 1) == 0 and (trainer.current_epoch + 1) % epochs == 0


def _sampler(trainer: pl.Trainer) -> Any:
    loader = trainer.train_dataloader
    return getattr(loader, "sampler", loader)


def _nothing() -> None:
    """Stand in for what is not needed."""
