"""A run that is killed at any moment and started again ends as one that was never interrupted, to the last bit."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fit_example import PLAIN, TinyModule, die, killed_at, outcome, run
from nuclass.training import callbacks, fit, keeping

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
    "half a state": lambda: half_written(3),
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
    replace(PLAIN, accumulate=3, validate_every=1.0, save_every_min=0.0004),
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
    assert outcome(tmp_path / "work", *run(tmp_path / "work", settings)) == straight["outcome"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an uninterrupted run of the second case comes to, and how long it takes."""
    work = tmp_path_factory.mktemp("straight")
    start = time.monotonic()
    return {"outcome": outcome(work, *run(work, CASES[1])), "seconds": time.monotonic() - start}
