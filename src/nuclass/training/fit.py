"""One way to fit any module: best state, early stopping, history, going on after any interruption, clear errors."""

from __future__ import annotations

import inspect
import logging
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.ranks import started_ranks
from nuclass.training.callbacks import Best, Record, Seeds
from nuclass.training.compiling import failures_told, is_compiled, run_uncompiled_if_need_be
from nuclass.training.config import Trainer
from nuclass.training.interruption import Signals, StoppedError
from nuclass.training.keeping import AtomicIO, Keep
from nuclass.training.launch import Place, environment, find_place, run_ranks
from nuclass.training.live import check_logger, make_loggers
from nuclass.training.ranks import Agreement
from nuclass.training.state import LAST, LOGS, clear_work, fingerprint, kept, prepare

__all__ = ["FitResult", "StoppedError", "choose_accelerator", "choose_precision", "clear_work", "fingerprint", "fit"]
_log = get_logger(__name__)


@dataclass(frozen=True)
class FitResult:
    """What fitting gives.

    Attributes
    ----------
    history
        One row a validation.
    best
        The row of the best one.
    seconds
        Of this run, without what was done before an interruption.
    is_main
        False in all but the first of several processes that torchrun or srun started: these write nothing.
    """

    history: list[dict[str, Any]]
    best: dict[str, Any]
    seconds: float
    is_main: bool = True


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
    """Fit ``module`` and leave the best weights in it, in eval mode, on the first device it was trained on.

    An optimizer step sees ``batch_size * devices * num_nodes * accumulate`` cells. With several devices on one
    machine a process is started for each; under torchrun or srun each of theirs calls this.

    Parameters
    ----------
    data
        Gives training and validation batches (see :mod:`nuclass.data.modules`), set up already. Its
        ``cell_names(rows)`` names cells in messages. Training loaders whose sampler has ``start_at(batch)`` are
        gone on with in the middle of an epoch, others from the last epoch's end.
    work
        Folder for the running state: ``last.ckpt``, the weights of the best validation, ``log/metrics.csv``, which
        grows as the run goes. A run that was interrupted, in whatever way and at whatever moment, goes on from there
        to the same result if its ``identity`` (see :func:`nuclass.training.state.fingerprint`) is the same. The
        caller clears it after success; the log stays.
    monitor, mode
        Logged value that chooses the best state, the earlier one of equals, and stops after ``patience`` validations
        without a better one; ``max`` or ``min``.

    Raises
    ------
    StoppedError
        SIGTERM, SIGUSR1, SIGUSR2 or Ctrl-C came; the state is saved.
    UserError
        A loss that is not finite, too little memory, a full disk, a process that was killed, devices or packages that
        are not there.
    """
    _quiet()
    check_logger(run.logger)
    start = time.monotonic()
    main = started_ranks().rank == 0
    state = prepare(work, identity, main=main)
    place = find_place(run, choose_accelerator(run.accelerator))
    compiled, resume = is_compiled(network_of(module)), state is not None
    job = _Job(module, data, run, place, work, str(identity), description, monitor, mode, grad_clip, resume, compiled)
    if state is not None and kept(state, "Keep").get("finished"):
        _log.info("%s: training was finished before", description)
        outcome = _Outcome(kept(state, "Record")["rows"], kept(state, "Best")["file"])
    else:
        if state is not None:
            epoch, step = int(state["epoch"]), int(state["global_step"])
            _log.info("%s: going on from epoch %d, optimizer step %d, in %s", description, epoch, step, work)
        del state
        outcome = _train(job)
    best = torch.load(work / outcome.best, map_location="cpu", mmap=True, weights_only=True) if main else None
    if best is not None:
        module.load_state_dict(best)
    # The trainer leaves its module on the processor, where the cells of val would take hours.
    module.to(place.device).eval()
    chosen = min if mode == "min" else max
    row = chosen(outcome.rows, key=lambda item: item[monitor])
    return FitResult(outcome.rows, row, time.monotonic() - start, main)


@dataclass(frozen=True)
class _Outcome:
    """Rows of the history, and the file of the best weights in the work folder."""

    rows: list[dict[str, Any]]
    best: str


@dataclass
class _Job:
    """A fit as each of its processes runs it."""

    module: pl.LightningModule
    data: pl.LightningDataModule
    run: Trainer
    place: Place
    work: Path
    identity: str
    description: str
    monitor: str
    mode: str
    grad_clip: float
    resume: bool
    compiled: bool = False

    def __call__(self, signals: Signals) -> _Outcome:
        """Train to the end, or until a signal comes."""
        _quiet()
        run = self.run
        if self.compiled and not is_compiled(network := network_of(self.module)):
            # A compiled network does not survive the trip between processes.
            if run.compile == "auto":
                run_uncompiled_if_need_be()
            network.compile()
        agreement = Agreement(signals, 60 * run.save_every_min)
        record = Record(self.description, self.monitor, agreement, run.log_every, self._loggers)
        best = Best(self.work, self.monitor, self.mode, run.patience)
        keep = Keep(self.work, record, best, agreement, signals, run.validate_every)
        before = torch.are_deterministic_algorithms_enabled()
        trainer = pl.Trainer(**trainer_options(self), callbacks=[Seeds(), record, best, keep])
        status = "failed"
        try:
            last = self.work / LAST if self.resume else None
            trainer.fit(self.module, datamodule=self.data, ckpt_path=last, weights_only=False)
            status = "success"
        except SystemExit as error:
            # Lightning ends the process after a second Ctrl-C.
            raise KeyboardInterrupt from error
        finally:
            record.close(status)
            torch.use_deterministic_algorithms(before)
        agreement.finish()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if best.file is None:
            raise UserError(
                "Nothing was validated", where=self.description, fix="set validate_every to at most max_epochs"
            )
        return _Outcome(record.rows, best.file)

    def _loggers(self, step: int) -> list[Any]:
        return make_loggers(self.run.logger, self.work / LOGS, self.description, self.identity, step)


def trainer_options(job: _Job) -> dict[str, Any]:
    """Return what the settings of a run say in the words of Lightning's trainer."""
    run, place = job.run, job.place
    strategy: Any = "auto"
    if place.by != "nobody":
        from lightning.pytorch.strategies import DDPStrategy

        # Running means are made the same before each validation; at each step, unequal numbers of val batches hang.
        known = inspect.signature(torch.nn.parallel.DistributedDataParallel).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {"find_unused_parameters": True, buffers: False}
        strategy = DDPStrategy(**options)
    return {
        "accelerator": place.accelerator,
        "devices": place.devices,
        "num_nodes": place.nodes,
        "strategy": strategy,
        "plugins": [AtomicIO(), environment(place)],
        "precision": choose_precision(run.precision, run.accelerator),
        "deterministic": run.deterministic or None,
        "max_epochs": run.max_epochs,
        "val_check_interval": run.validate_every if run.validate_every < 1 else None,
        "check_val_every_n_epoch": max(1, round(run.validate_every)),
        "accumulate_grad_batches": run.accumulate,
        "gradient_clip_val": job.grad_clip or None,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "default_root_dir": job.work,
    }


def _train(job: _Job) -> _Outcome:
    """Train where the settings say; errors of memory get a message of their own."""
    try:
        if job.place.by == "us":
            return run_ranks(_Guarded(job), job.place, job.work)  # type: ignore[no-any-return]
        with Signals() as signals:
            outcome = _Guarded(job)(signals)
    except KeyboardInterrupt:
        sys.stderr.flush()
        raise
    if signals.received:
        raise StoppedError(signals.received, job.work)
    return outcome


@dataclass
class _Guarded:
    """A job whose errors of memory are told as the user's."""

    job: _Job

    def __call__(self, signals: Signals) -> _Outcome:
        """Run the job."""
        try:
            with failures_told(self.job.description):
                return self.job(signals)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            run = self.job.run
            if told := _told(error, self.job.description):
                raise told from error
            if not out_of_memory(error):
                raise
            raise UserError(
                "The memory of the device is not enough",
                where=self.job.description,
                found=(str(error).strip().splitlines() or [type(error).__name__])[0],
                fix=f"try batch_size {max(1, run.batch_size // 2)} with accumulate {run.accumulate * 2} "
                "(the same effective batch)",
            ) from error


def network_of(module: Any) -> torch.nn.Module:
    """Return what of a Lightning module is compiled: its model's backbone, or all of it where there is none."""
    model = getattr(module, "model", module)
    network: torch.nn.Module = getattr(model, "backbone", model)
    return network


def _told(error: BaseException, where: str) -> UserError | None:
    """Return the user's error for what ``deterministic`` asked for in vain; None for other errors."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "does not have a deterministic implementation" in first:
        return UserError(
            "An operation of the network gives other bits each time on this device",
            where=where,
            found=first.split(", but you set")[0],
            fix="set deterministic: false",
        )
    return None


def out_of_memory(error: BaseException) -> bool:
    """Say whether an error is one of too little memory, on a GPU or for the processor."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return any(mark in text for mark in ("DefaultCPUAllocator: can't allocate", "not enough memory", "out of memory"))


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
        ".*your dataloader is not resumable.*",
        ".*sync_dist=True.*",
        ".*in eval mode at the start of training.*",
        ".*find_unused_parameters=True was specified.*",
        ".*`srun` command is available.*",
    ):
        warnings.filterwarnings("ignore", message=message)
