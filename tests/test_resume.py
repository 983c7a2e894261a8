"""A run that is killed at any moment and started again ends as one that was never interrupted, to the last bit."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fit_example import PLAIN, RATES, TinyData, TinyModule, die, fork, killed_at, outcome, results, run, windows
from nuclass.core.errors import UserError
from nuclass.data.datasets import InMemoryWindows
from nuclass.data.modules import Loading
from nuclass.training import callbacks, fit, keeping
from nuclass.training.composition import DrawnBatches, WeightedDraw
from nuclass.training.interruption import StoppedError

torch.set_num_threads(1)
SIGKILL = -signal.SIGKILL


@pytest.fixture(autouse=True)
def one_thread():
    """A process that is forked off must not inherit threads that others started."""
    torch.set_num_threads(1)


def before(owner: Any, name: str, number: int, after: bool = False) -> None:
    """Die when ``owner.name`` is called for the ``number``-th time, before or after its work."""
    real, calls = getattr(owner, name), []

    def mined(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == number and not after:
            die()
        result = real(*args, **kwargs)
        if len(calls) == number:
            die()
        return result

    setattr(owner, name, mined)


def half_written(number: int) -> None:
    """Die in the middle of writing a state or the best weights, for the ``number``-th time."""
    real, calls = torch.save, []

    def mined(content: Any, stream: Any) -> None:
        calls.append(1)
        if len(calls) == number:
            stream.write(b"PK" * 500)
            stream.flush()
            die()
        real(content, stream)

    torch.save = mined


MOMENTS = {
    "first batch": lambda: before(TinyModule, "training_step", 1),
    "a batch": lambda: before(TinyModule, "training_step", 5),
    "after an optimizer step": lambda: before(TinyModule, "lr_scheduler_step", 3, after=True),
    "in a validation": lambda: before(TinyModule, "validation_step", 3),
    "at a validation's end": lambda: before(keeping.Keep, "on_validation_end", 1),
    "after the best weights": lambda: before(callbacks.Best, "on_validation_end", 1, after=True),
    "half a state": lambda: half_written(5),
    "before the rename": lambda: before(os, "fsync", 4),
    "after a state": lambda: before(keeping.Keep, "_save", 7, after=True),
    "between epochs": lambda: before(keeping.Keep, "on_train_epoch_end", 1, after=True),
    "a later batch": lambda: before(TinyModule, "training_step", 14),
    "before the last state": lambda: before(keeping.Keep, "on_train_epoch_end", 2),
    "before the outputs": lambda: before(fit.FitResult, "__init__", 1),
}
CASES = [
    replace(PLAIN, accumulate=1, validate_every=1.0),
    replace(PLAIN, accumulate=2, validate_every=0.25),
    replace(PLAIN, accumulate=3, validate_every=0.25, save_every_min=0.0004),
    replace(PLAIN, accumulate=1, validate_every=0.25, workers=1, patience=4),
    replace(PLAIN, accumulate=2, validate_every=2.0, workers=1, max_epochs=4),
]
NAMES = ["plain", "accumulated, often validated", "saved now and then", "workers, stopped early", "every other epoch"]


@pytest.mark.parametrize("settings", CASES, ids=NAMES)
def test_killed_again_and_again(tmp_path: Path, settings: Any) -> None:
    straight = outcome(tmp_path / "straight", *run(tmp_path / "straight", settings))
    killed = 0
    for arrange in MOMENTS.values():
        status = killed_at(tmp_path / "work", arrange, lambda: run(tmp_path / "work", settings))
        assert status in (SIGKILL, 0)
        killed += status == SIGKILL
    assert killed >= 8
    assert outcome(tmp_path / "work", *run(tmp_path / "work", settings)) == straight
    assert not list((tmp_path / "work").glob(".*"))


@pytest.mark.parametrize("moment", list(MOMENTS))
def test_killed_once(tmp_path: Path, moment: str, straight: dict[str, Any]) -> None:
    settings = CASES[1]
    killed_at(tmp_path / "work", MOMENTS[moment], lambda: run(tmp_path / "work", settings))
    if (tmp_path / "work" / "last.ckpt").exists():
        assert torch.load(tmp_path / "work" / "last.ckpt", weights_only=False)["global_step"] > 0
    assert outcome(tmp_path / "work", *run(tmp_path / "work", settings)) == straight["outcome"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an uninterrupted run of the second case comes to, and how long it takes."""
    # After other tests of the same process the first run was once seen to differ in the last bits from all later ones,
    # killed or not; why is not known. This is made before the threads of a test are set.
    torch.set_num_threads(1)
    run(tmp_path_factory.mktemp("first"), CASES[1])
    work = tmp_path_factory.mktemp("straight")
    start = time.monotonic()
    return {"outcome": outcome(work, *run(work, CASES[1])), "seconds": time.monotonic() - start}


def test_killed_from_outside_at_any_time(tmp_path: Path, straight: dict[str, Any]) -> None:
    """By the clock, wherever the run is; each start takes it further, or not."""
    chance = random.Random(7)
    for _ in range(8):
        pid = fork(lambda: run(tmp_path / "work", CASES[1]), tmp_path / "ignored.pt")
        time.sleep(chance.uniform(0.05, 1.0) * straight["seconds"])
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert outcome(tmp_path / "work", *run(tmp_path / "work", CASES[1])) == straight["outcome"]


def test_the_backbone_stays_frozen_in_an_epoch_that_goes_on(tmp_path: Path) -> None:
    rates = replace(RATES, freeze_epochs=1)

    def train(name: str) -> Any:
        return outcome(tmp_path / name, *run(tmp_path / name, module=TinyModule(rates)))

    straight = train("straight")
    killed_at(tmp_path / "work", MOMENTS["a batch"], lambda: train("work"))
    assert torch.load(tmp_path / "work" / "last.ckpt", weights_only=False)["epoch"] == 0
    assert train("work") == straight


def test_batches_that_were_seen_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(PLAIN, max_epochs=1)
    killed_at(tmp_path, lambda: before(TinyModule, "training_step", 8), lambda: run(tmp_path, settings))
    made: list[int] = []
    real = InMemoryWindows.__getitem__
    monkeypatch.setattr(InMemoryWindows, "__getitem__", lambda self, rows: made.append(len(self)) or real(self, rows))
    run(tmp_path, settings)
    assert made.count(90) == 11 - 7


def test_a_start_without_a_state_begins_at_the_first_batch(tmp_path: Path) -> None:
    loader = TinyData(Loading(8, 0, seed=5)).train_dataloader()
    whole = [batch["index"].tolist() for batch in loader]
    loader.set_epoch(0)
    loader.sampler.start_at(4)
    assert [batch["index"].tolist() for batch in loader] == whole[4:]
    loader.set_epoch(0)
    assert [batch["index"].tolist() for batch in loader] == whole


def test_composition_batches_skip_and_are_shared() -> None:
    held = windows(50, 1)
    draw = WeightedDraw(np.ones(50), 50, 3)
    whole = [batch["index"].tolist() for batch in DrawnBatches(held, 8, draw)]
    assert sorted(row for rows in whole for row in rows) == list(range(50))
    draw.start_at(5)
    assert [batch["index"].tolist() for batch in DrawnBatches(held, 8, draw)] == whole[5:]
    parts = [[batch["index"].tolist() for batch in DrawnBatches(held, 8, draw, rank, 2)] for rank in (0, 1)]
    assert parts == [whole[0:6:2], whole[1:6:2]]
    with pytest.raises(UserError, match="fewer batches than processes"):
        DrawnBatches(held, 8, draw, 0, 8)


def test_a_signal_to_all_processes_spares_the_workers(tmp_path: Path) -> None:
    """A scheduler signals the workers too; these go on, so that the step can be finished."""
    settings = replace(CASES[3], save_every_min=9.0, max_epochs=200, patience=999)
    log = tmp_path / "work" / "log" / "metrics.csv"

    def train() -> Any:
        os.setpgrp()
        return run(tmp_path / "work", settings)

    pid = fork(train, tmp_path / "0.pt")
    while not log.exists() or log.read_text().count("\n") < 4:
        time.sleep(0.01)
    os.killpg(pid, signal.SIGTERM)
    (error,) = results([pid], tmp_path)
    assert isinstance(error, StoppedError), error
