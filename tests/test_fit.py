"""Around the steps of a fit: errors that name their cause, signals, what is chosen, logged and handed on."""

from __future__ import annotations

import csv
import dataclasses
import logging
import os
import signal
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from fit_example import PLAIN, TinyData, TinyModule, digest, outcome, run
from nuclass.core.errors import UserError
from nuclass.core.files import read_json
from nuclass.data.modules import Loading
from nuclass.training import callbacks, fit, keeping, live
from nuclass.training.callbacks import Losses
from nuclass.training.display import FitProgress
from nuclass.training.interruption import Signals, StoppedError, leaving
from nuclass.training.state import clear_work, differences, fingerprint, prepare, save_atomically

RARELY = replace(PLAIN, save_every_min=9.0)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Wild(TinyModule):
    """Its loss is no number at the sixth step."""

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.global_step == 5 else loss


@pytest.mark.parametrize("look_every", [1, 4])
def test_a_loss_that_is_no_number_names_its_batch_and_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look_every: int
) -> None:
    """Also where the losses are looked at every few steps, as on a GPU; then later steps had NaN weights already."""
    if look_every > 1:
        on_gpu = callbacks.Record.on_train_start

        def seldom(record: Any, *args: Any) -> None:
            on_gpu(record, *args)
            record._look_every = look_every

        monkeypatch.setattr(callbacks.Record, "on_train_start", seldom)
    with pytest.raises(UserError, match="not a finite number") as caught:
        run(tmp_path, RARELY, Wild())
    text = str(caught.value)
    loader = TinyData(Loading(8, 0, seed=5)).train_dataloader()
    rows = list(loader.sampler)[5]
    assert "epoch 0, batch 5" in text
    assert f"lung_1/cell-{rows[0]}, lung_1/cell-{rows[1]}" in text
    assert "and 3 more" in text
    assert not (tmp_path / "last.ckpt").exists()


def test_no_state_with_weights_that_are_no_numbers_is_saved(tmp_path: Path) -> None:
    class Broken(TinyModule):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if self.global_step == 3:
                next(self.parameters()).grad.fill_(float("inf"))

    with pytest.raises(UserError, match="A weight is not a finite number") as caught:
        run(tmp_path, replace(PLAIN), Broken(), grad_clip=0.0)
    assert "after optimizer step 4" in str(caught.value)
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] == 3


def test_a_measure_that_is_no_number_is_told(tmp_path: Path) -> None:
    class Blind(TinyModule):
        def logits(self, batch: Any, images: torch.Tensor) -> torch.Tensor:
            return super().logits(batch, images) * float("nan")

    with pytest.raises(UserError, match="measure of the val cells"):
        run(tmp_path, RARELY, Blind())


def test_sums_of_losses_do_not_depend_on_when_they_are_looked_at() -> None:
    values = torch.rand(200, generator=torch.Generator().manual_seed(1))
    sums = set()
    for every in (1, 7, 200):
        losses = Losses()
        for number, value in enumerate(values):
            losses.add(0, number, value, None, 3)
            if len(losses) >= every:
                losses.look()
        losses.look()
        sums.add((losses.total, losses.cells))
    assert len(sums) == 1


@pytest.mark.parametrize("step", ["training_step", "validation_step"])
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] data. DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_too_little_memory_names_the_batch_to_try(tmp_path: Path, step: str, error: Exception) -> None:
    def fail(*_: Any) -> None:
        raise error

    module = TinyModule()
    setattr(module, step, fail)
    with pytest.raises(UserError, match="memory of the device") as caught:
        run(tmp_path, replace(RARELY, accumulate=3), module)
    assert "try batch_size 4 with accumulate 6" in str(caught.value)


def test_a_real_allocation_that_fails_is_one_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    assert fit.out_of_memory(caught.value)
    assert not fit.out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_full_disk_keeps_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = torch.save, []

    def full(content: Any, stream: Any) -> None:
        calls.append(1)
        if len(calls) == 6:
            with Path("/dev/full").open("wb") as nowhere:
                real(content, nowhere)
        real(content, stream)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="disk is full") as caught:
        run(tmp_path)
    assert "last.ckpt" in str(caught.value)
    monkeypatch.setattr(torch, "save", real)
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] == 5
    assert not list(tmp_path.glob(".*"))


class Asked(TinyModule):
    """Gets a signal at its ``number``-th training or validation step."""

    def __init__(self, where: str, number: int, name: str = "SIGTERM") -> None:
        super().__init__()
        self.where, self.number, self.name, self.calls = where, number, name, 0

    def _count(self, where: str) -> None:
        self.calls += where == self.where
        if where == self.where and self.calls == self.number:
            os.kill(os.getpid(), getattr(signal, self.name))

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self._count("train")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self._count("val")
        super().validation_step(batch, batch_idx)


ASKED = [
    ("train", 4, "SIGTERM", {"global_step": 4, "rows": 0}),
    ("train", 4, "SIGUSR1", {"global_step": 4, "rows": 0}),
    ("train", 4, "SIGINT", {"global_step": 4, "rows": 0}),
    ("train", 11, "SIGTERM", {"global_step": 11, "rows": 0}),
    ("val", 3, "SIGTERM", {"global_step": 11, "rows": 0}),
    ("val", 5, "SIGTERM", {"global_step": 11, "rows": 0}),
    ("train", 12, "SIGTERM", {"global_step": 12, "rows": 1}),
]


@pytest.mark.parametrize(("where", "number", "name", "state"), ASKED)
def test_asked_to_leave_it_saves_and_says_so(
    tmp_path: Path, where: str, number: int, name: str, state: dict[str, int]
) -> None:
    before = [signal.getsignal(getattr(signal, item)) for item in ("SIGTERM", "SIGUSR1", "SIGINT")]
    module = Asked(where, number, name)
    with pytest.raises(StoppedError) as caught:
        run(tmp_path / "work", RARELY, module)
    assert f"Stopped by {name}, state saved in {tmp_path / 'work'}" in str(caught.value)
    assert module.calls == number
    saved = torch.load(tmp_path / "work" / "last.ckpt", weights_only=False)
    assert saved["global_step"] == state["global_step"]
    assert len(saved["callbacks"]["Record"]["rows"]) == state["rows"]
    assert [signal.getsignal(getattr(signal, item)) for item in ("SIGTERM", "SIGUSR1", "SIGINT")] == before
    straight = outcome(tmp_path / "straight", *run(tmp_path / "straight", RARELY))
    assert outcome(tmp_path / "work", *run(tmp_path / "work", RARELY)) == straight


def test_lightning_never_takes_the_signals(tmp_path: Path) -> None:
    """Its handler waits for the other processes, who may be elsewhere."""
    seen: list[Any] = []

    class Data(TinyData):
        def val_dataloader(self) -> Any:
            seen.append(getattr(signal.getsignal(signal.SIGTERM), "__self__", None))
            return super().val_dataloader()

    run(tmp_path, replace(PLAIN, max_epochs=1), data=Data(Loading(8, 0, seed=5)))
    assert [type(handler) for handler in seen] == [Signals]


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    class Impatient(TinyModule):
        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("went on")

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, RARELY, Impatient())


def test_work_saved_part_by_part_is_left_at_once() -> None:
    with pytest.raises(StoppedError, match=r"SIGTERM, state saved in parts"), leaving("parts"):
        os.kill(os.getpid(), signal.SIGTERM)
    ignored = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.received == 0
    finally:
        signal.signal(signal.SIGUSR1, ignored)


def test_a_finished_run_trains_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, result = run(tmp_path)
    monkeypatch.setattr(pl, "Trainer", None)
    again, same = run(tmp_path)
    assert digest(again) == digest(module)
    assert same.history == result.history
    assert same.best == result.best


class Scored(TinyModule):
    """Validates to given values, one after the other."""

    scores: tuple[float, ...] = ()

    def on_validation_epoch_end(self) -> None:
        self.step = getattr(self, "step", -1) + 1
        self.log("val_f1_macro", self.scores[self.step])


@pytest.mark.parametrize(
    ("mode", "scores", "best", "validations"),
    [
        ("max", (0.1, 0.5, 0.5, 0.4, 0.9), 1, 4),
        ("min", (0.3, 0.2, 0.2, 0.2, 0.1), 1, 4),
        ("max", (0.1, 0.2, 0.3, 0.2, 0.4), 4, 5),
    ],
)
def test_the_best_is_the_earlier_of_equals_and_patience_counts_validations(
    tmp_path: Path, mode: str, scores: tuple[float, ...], best: int, validations: int
) -> None:
    module = Scored()
    module.scores = scores
    settings = replace(PLAIN, patience=2, max_epochs=1, validate_every=0.2)
    weights: list[str] = []
    module.on_validation_epoch_start = lambda: weights.append(digest(module.model))
    fitted, result = run(tmp_path, settings, module, mode=mode)
    assert len(result.history) == validations
    assert result.best is result.history[best]
    assert digest(fitted.model) == weights[best]
    assert len(set(weights)) == validations
    assert [path.name for path in tmp_path.glob("best-*")] == [f"best-{result.best['step']}.ckpt"]


def test_settings_reach_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Seen(Exception):  # noqa: N818
        pass

    def spy(**options: Any) -> None:
        raise Seen(options)

    monkeypatch.setattr(fit.pl, "Trainer", spy)
    settings = replace(
        PLAIN, accumulate=4, precision="bf16-mixed", deterministic=True, validate_every=0.25, max_epochs=7
    )
    with pytest.raises(Seen) as caught:
        run(tmp_path, settings, grad_clip=0.5)
    options = caught.value.args[0]
    expected = {
        "accumulate_grad_batches": 4, "precision": "bf16-mixed", "deterministic": True, "val_check_interval": 0.25,
        "max_epochs": 7, "gradient_clip_val": 0.5, "accelerator": "cpu", "devices": 1, "num_nodes": 1,
        "use_distributed_sampler": False,
    }  # fmt: skip
    assert {key: options[key] for key in expected} == expected
    with pytest.raises(Seen) as caught:
        run(tmp_path / "2", replace(PLAIN, validate_every=3.0), grad_clip=0.0)
    options = caught.value.args[0]
    assert (options["check_val_every_n_epoch"], options["val_check_interval"]) == (3, None)
    assert options["gradient_clip_val"] is None


def test_mixed_precision_on_a_processor_and_determinism(tmp_path: Path) -> None:
    settings = replace(PLAIN, precision="bf16-mixed", deterministic=True, max_epochs=1)
    first, result = run(tmp_path / "1", settings)
    assert result.history[0]["train_loss"] > 0
    assert digest(first) == digest(run(tmp_path / "2", settings)[0])
    assert digest(first) != digest(run(tmp_path / "3", replace(settings, precision="32-true"))[0])
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_state_of_another_run_is_removed_with_a_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "nuclass")
    run(tmp_path, replace(PLAIN, max_epochs=1))
    assert prepare(tmp_path, fingerprint(settings=dataclasses.asdict(PLAIN), seed=5)) is None
    assert "it is of another run; settings.max_epochs: it was 1, it is 3\n" in caplog.text
    assert not list(tmp_path.glob("*.ckpt"))
    assert not (tmp_path / "log" / "metrics.csv").exists()
    caplog.clear()
    (tmp_path / "last.ckpt").write_bytes(b"half")
    assert prepare(tmp_path, fingerprint(settings=dataclasses.asdict(PLAIN), seed=5)) is None
    assert "cannot be read" in caplog.text


def test_only_what_changes_a_result_counts_for_the_identity() -> None:
    def of(**trainer: Any) -> str:
        return fingerprint("local", {"trainer": {"batch_size": 8, **trainer}}, 3)

    assert of(workers=4) == of(workers=0, save_every_min=1, logger="wandb", log_every=3)
    assert of(batch_size=9) != of()
    assert of(devices=2) != of()
    assert of() == fingerprint("local", {"trainer": {"batch_size": 8}}, 3)
    before, now = {"a": {"b": 1, "c": "x" * 99}}, {"a": {"b": 1, "c": "y"}, "d": None}
    assert differences(before, now) == ["a.c is another"]


def test_best_weights_that_are_gone_start_it_anew(tmp_path: Path) -> None:
    _, first = run(tmp_path, replace(PLAIN, max_epochs=1))
    next(tmp_path.glob("best-*")).unlink()
    _, again = run(tmp_path, replace(PLAIN, max_epochs=1))
    assert again.best["val_loss"] == first.best["val_loss"]


def test_cleared_work_keeps_its_log(tmp_path: Path) -> None:
    run(tmp_path, replace(PLAIN, max_epochs=1))
    clear_work(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    clear_work(tmp_path / "none")


def test_metrics_grow_and_go_on(tmp_path: Path) -> None:
    """Rows that a killed run wrote after its state are not there twice."""
    with pytest.raises(StoppedError):
        run(tmp_path, replace(RARELY, log_every=2), Asked("train", 7))
    path = tmp_path / "log" / "metrics.csv"
    with path.open("a") as stream:
        stream.write("999,0,,,,,,\n")
    run(tmp_path, replace(RARELY, log_every=2))
    with path.open() as stream:
        rows = list(csv.DictReader(stream))
    training = [int(row["step"]) for row in rows if row["train_loss"]]
    assert training == list(range(2, 34, 2))
    assert [int(row["step"]) for row in rows if row["val_f1_macro"]] == [11, 22, 33]
    assert all(float(row["cells_per_s"]) > 0 for row in rows if row["train_loss"])
    assert all(float(row["learning_rate"]) >= float(row["learning_rate_lowest"]) for row in rows if row["train_loss"])


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboard"), ("wandb", "wandb")])
def test_a_logger_that_is_not_installed_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setattr(live, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="not installed") as caught:
        run(tmp_path, replace(PLAIN, logger=name))
    assert f"pip install {package}" in str(caught.value)
    assert not tmp_path.joinpath("run.json").exists()


@pytest.mark.parametrize(("name", "kind"), [("tensorboard", "TensorBoardLogger"), ("wandb", "WandbLogger")])
def test_options_reach_the_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str) -> None:
    made: list[Any] = []

    class Fake:
        def __init__(self, **options: Any) -> None:
            self.options, self.seen, self.status = options, [], ""
            made.append(self)

        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            self.seen.append((step, metrics))

        def finalize(self, status: str) -> None:
            self.status = status

    module = types.ModuleType("lightning.pytorch.loggers")
    setattr(module, kind, Fake)
    monkeypatch.setitem(sys.modules, "lightning.pytorch.loggers", module)
    monkeypatch.setattr(live, "find_spec", lambda _: object())
    run(tmp_path, replace(PLAIN, logger=name, log_every=5, max_epochs=1))
    (logger,) = made
    identity = read_json(tmp_path / "run.json")["identity"]
    assert identity in logger.options.values()
    assert logger.options["save_dir"] == tmp_path / "log"
    if name == "wandb":
        assert logger.options["resume"] == "allow"
        assert logger.options["project"] == "nuclass"
    assert [step for step, _ in logger.seen] == [5, 10, 11]
    assert {"train_loss", "learning_rate", "cells_per_s"} <= logger.seen[0][1].keys()
    assert "val_f1_macro" in logger.seen[-1][1]
    assert logger.status == "success"


def test_progress_is_told_ever_more_rarely(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("nuclass.training.display.time.monotonic", lambda: clock[0])
    caplog.set_level(logging.INFO, "nuclass")
    progress = FitProgress("local model", 10, 8640, done=8640)
    progress.best = "val_f1_macro 0.712"
    for _ in range(8640):
        clock[0] += 10
        progress.advance(100)
    lines = [record.getMessage() for record in caplog.records]
    assert 100 < len(lines) < 160
    assert lines[0] == (
        "local model: epoch 2 of 10, 10 %, 10 cells/s, 21 h 36 min left at most, val_f1_macro 0.712"
        .replace("21 h 36 min", lines[0].split("cells/s, ")[1].split(" left")[0])
    )  # fmt: skip
    assert "epoch 2 of 10, 20 %" in lines[-1]


def test_a_bar_is_drawn_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("nuclass.training.display._DRAW_EVERY_S", 0.0)
    run(tmp_path, replace(PLAIN, max_epochs=1))
    assert "cells/s" in capsys.readouterr().err


def test_loaders_that_cannot_skip_go_on_from_an_epochs_end(tmp_path: Path) -> None:
    class Loader:
        def __init__(self, inner: Any) -> None:
            self.inner = inner
            self.sampler = types.SimpleNamespace(set_epoch=inner.set_epoch)

        def __len__(self) -> int:
            return len(self.inner)

        def __iter__(self) -> Any:
            return iter(self.inner)

    class Data(TinyData):
        def train_dataloader(self) -> Any:
            return Loader(super().train_dataloader())

    def data() -> Data:
        return Data(Loading(8, 0, seed=5))

    straight = outcome(tmp_path / "1", *run(tmp_path / "1", data=data()))
    with pytest.raises(StoppedError):
        run(tmp_path / "2", module=Asked("train", 15), data=data())
    assert outcome(tmp_path / "2", *run(tmp_path / "2", data=data())) == straight


def test_a_state_is_whole_or_the_one_before(tmp_path: Path) -> None:
    save_atomically({"a": 1}, tmp_path / "x.ckpt")
    with pytest.raises(AttributeError):
        save_atomically({"a": lambda: 1}, tmp_path / "x.ckpt")
    assert torch.load(tmp_path / "x.ckpt") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]
    assert issubclass(keeping.AtomicIO, object)
