"""One way to fit any module: early stopping, best and last state, history, resume, clear errors."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from nuclass.core.errors import UserError
from nuclass.core.files import read_json, write_json
from nuclass.core.log import get_logger
from nuclass.core.progress import Progress
from nuclass.training.config import Trainer

_log = get_logger(__name__)


@dataclass(frozen=True)
class FitResult:
    """What fitting gives: ``history`` (one row a validation), the best row, seconds of this run."""

    history: list[dict[str, Any]]
    best: dict[str, Any]
    seconds: float
    is_main: bool = True


class History(pl.Callback):
    """Collect one row a validation and show progress; part of the saved state."""

    def __init__(self, description: str, monitor: str) -> None:
        self.rows: list[dict[str, Any]] = []
        self.description, self.monitor = description, monitor
        self._start = time.monotonic()
        self._progress: Progress | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the rows of an interrupted run."""
        self.rows = list(state_dict["rows"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the progress display."""
        total = int(trainer.num_training_batches) * int(trainer.max_epochs or 1)
        self._progress = Progress(total, self.description, "batches").__enter__()
        self._progress.advance(trainer.current_epoch * int(trainer.num_training_batches))

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Count a batch."""
        if self._progress is not None:
            self._progress.advance()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the epoch's training loss to its row."""
        loss = trainer.callback_metrics.get("train_loss")
        if self.rows and loss is not None:
            self.rows[-1]["train_loss"] = float(loss)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add a row."""
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val_")}
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        row = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "seconds": round(time.monotonic() - self._start, 2),
            "train_loss": float("nan"),
            **metrics,
            "learning_rate": max(rates),
        }
        self.rows.append(row)
        _log.info(
            "%s: epoch %d, %s",
            self.description,
            trainer.current_epoch,
            ", ".join(f"{k} {v:.4f}" for k, v in metrics.items()),
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the progress display."""
        if self._progress is not None:
            self._progress.__exit__(None, None, None)


def choose_accelerator(accelerator: str) -> str:
    """Return Lightning's accelerator; ``auto``: a CUDA GPU where there is one, else the processor."""
    if accelerator != "auto":
        return accelerator
    return "gpu" if torch.cuda.is_available() else "cpu"


def choose_precision(precision: str, accelerator: str = "auto") -> str:
    """Return Lightning's precision; ``auto``: bf16 mixed where the hardware multiplies bf16, else float32."""
    if precision != "auto":
        return precision
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return "bf16-mixed" if supported is not None and supported() else "32-true"


def fingerprint(*parts: Any) -> str:
    """Return a hash of plain values; a running state is only taken up by a run of the same fingerprint."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fit(
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    run: Trainer,
    *,
    work: Path,
    identity: str,
    description: str,
    monitor: str,
    mode: str = "max",
    grad_clip: float = 0.0,
) -> FitResult:
    """Fit ``module`` and leave the best weights in it, in eval mode, on the device it was trained on.

    Parameters
    ----------
    data
        Gives training and validation batches (see :mod:`nuclass.data.modules`).
    work
        Folder for the running state (``last.ckpt``, ``best.ckpt``); a run that was killed goes on from there if
        its ``identity`` is the same. Cleared after success by the caller.
    monitor, mode
        Logged value that chooses the best state and stops early; ``max`` or ``min``.
    """
    _quiet()
    resume = _prepare(work, identity)
    history = History(description, monitor)
    best = ModelCheckpoint(
        dirpath=work, filename="best", monitor=monitor, mode=mode, save_top_k=1, enable_version_counter=False
    )
    last = ModelCheckpoint(
        dirpath=work, filename="last", save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False
    )
    stop = EarlyStopping(monitor=monitor, mode=mode, patience=run.patience, check_on_train_epoch_end=False)
    trainer = pl.Trainer(
        accelerator=choose_accelerator(run.accelerator),
        devices=run.devices,
        precision=choose_precision(run.precision, run.accelerator),  # type: ignore[arg-type]
        max_epochs=run.max_epochs,
        val_check_interval=run.validate_every if run.validate_every < 1 else None,
        check_val_every_n_epoch=max(1, round(run.validate_every)),
        accumulate_grad_batches=run.accumulate,
        gradient_clip_val=grad_clip or None,
        callbacks=[history, best, stop, last],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=work,
    )
    if trainer.world_size > 1:
        raise UserError(
            "Training runs on one device",
            where="trainer.devices",
            found=f"{trainer.world_size} devices",
            expected="one",
            fix="set devices: 1, or a list with one index",
        )
    start = time.monotonic()
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=False)
    except torch.OutOfMemoryError as error:
        raise UserError(
            "The accelerator's memory is not enough",
            where=description,
            found=str(error).splitlines()[0],
            fix=f"try batch_size {max(1, run.batch_size // 2)} with accumulate {run.accumulate * 2} "
            "(the same effective batch)",
        ) from error
    if trainer.interrupted:
        raise KeyboardInterrupt
    state = torch.load(work / "best.ckpt", map_location="cpu", weights_only=False)
    module.load_state_dict(state["state_dict"])
    # The trainer leaves its module on the processor, where the cells of val would take hours.
    module.to(trainer.strategy.root_device).eval()
    chosen = min if mode == "min" else max
    row = chosen(history.rows, key=lambda item: item[monitor])
    return FitResult(history.rows, row, time.monotonic() - start)


def clear_work(work: Path) -> None:
    """Remove the running state after the outputs are written."""
    shutil.rmtree(work, ignore_errors=True)


def _prepare(work: Path, identity: str) -> Path | None:
    """Return the state to go on from, or None; a state of another run is removed."""
    note, last = work / "run.json", work / "last.ckpt"
    if last.is_file() and note.is_file() and read_json(note).get("identity") == identity:
        _log.info("Going on from %s", last)
        return last
    if work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True)
    write_json(note, {"identity": identity})
    return None


def _quiet() -> None:
    """Leave out the framework's hints that do not apply here (batches are in memory, no workers needed)."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory.*exists.*",
        ".*LeafSpec.*",
        ".*callbacks used to create the checkpoint.*",
        ".*GPU available but not used.*",
        ".*lr_scheduler.step.*before.*optimizer.step.*",
    ):
        warnings.filterwarnings("ignore", message=message)
