"""Several processes train as one: real ones, on the processor."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fit_example import (
    NO_AUGMENT,
    PLAIN,
    MinedModule,
    TinyData,
    TinyModule,
    fork,
    outcome,
    results,
    run,
    start_ranks,
)
from forked import waited
from nuclass.core.errors import UserError
from nuclass.core.ranks import Started, started_ranks
from nuclass.data.augment import to_unit
from nuclass.data.modules import Loading
from nuclass.training import callbacks, keeping, launch
from nuclass.training.interruption import StoppedError
from rank_jobs import Job

TWO = replace(PLAIN, devices=2, batch_size=4, max_epochs=2, validate_every=0.5)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """A process that is forked off must not inherit threads that others started."""
    torch.set_num_threads(1)


def data(settings: Any) -> TinyData:
    """33 val cells in batches of 4: one process gets five of them, the other four."""
    return TinyData(Loading(settings.batch_size, 0, seed=5), n_val=33)


def rank_run(work: Path, settings: Any = TWO, module: Any = None) -> tuple[Any, ...]:
    """Fit as one of several; returns what must not differ, and whether this is the first process."""
    fitted, result = run(work, settings, module or TinyModule(), data(settings))
    return outcome(work, fitted, result), result.is_main, len(list(fitted.parameters()))


class Watched(TinyModule):
    """Notes which cells it validated, what it wrote, and the losses of its first steps."""

    def __init__(self) -> None:
        super().__init__(augment=NO_AUGMENT, dropout=0.0)
        self.validated: list[list[int]] = []
        self.gradients: list[torch.Tensor] = []

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.validated.append([])

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.validated[-1] += batch["index"].tolist()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.gradients.append(torch.cat([p.grad.flatten().clone() for p in self.parameters()]))


def watched_run(work: Path, settings: Any) -> dict[str, Any]:
    written: list[str] = []
    real = callbacks.save_atomically
    for module in (callbacks, keeping):
        module.save_atomically = lambda content, path: written.append(path.name) or real(content, path)
    module, result = run(work, settings, Watched(), data(settings))
    rows = [{k: v for k, v in row.items() if "seconds" not in k and k != "memory_mb"} for row in result.history]
    return {
        "validated": module.validated, "gradients": module.gradients, "rows": rows, "written": written,
        "main": result.is_main,
    }  # fmt: skip


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_take_the_steps_of_one_with_double_batches(tmp_path: Path, accumulate: int) -> None:
    two, one = (replace(TWO, devices=n, batch_size=8 // n, accumulate=accumulate) for n in (2, 1))
    pids = start_ranks(lambda rank: watched_run(tmp_path / "two", two), tmp_path)
    first, second = results(pids, tmp_path)
    alone = watched_run(tmp_path / "one", one)

    assert len(first["gradients"]) == len(alone["gradients"]) > 10
    for a, b, c in zip(first["gradients"], second["gradients"], alone["gradients"], strict=True):
        assert torch.equal(a, b)
        assert torch.allclose(a, c, atol=1e-5)
    assert first["rows"] == second["rows"]
    for a, c in zip(first["rows"], alone["rows"], strict=True):
        assert a == pytest.approx(c, rel=1e-4)
    for a, b in zip(first["validated"], second["validated"], strict=True):
        assert sorted(a + b) == list(range(33))
        assert {len(a), len(b)} == {17, 16}
    assert (first["main"], second["main"]) == (True, False)
    assert "last.ckpt" in first["written"]
    assert second["written"] == []


class Normed(TinyModule):
    """With running means, which each process has its own of."""

    def __init__(self) -> None:
        super().__init__()
        self.model.head = torch.nn.Sequential(torch.nn.BatchNorm1d(24), self.model.head)


def test_all_processes_validate_the_network_that_is_kept(tmp_path: Path) -> None:
    def train(rank: int) -> Any:
        cells = data(TWO)
        module, result = run(tmp_path / "work", TWO, Normed(), cells)
        if not result.is_main:
            return None
        with torch.inference_mode():
            whole = list(cells.whole_val_dataloader())
            logits = torch.cat([module.logits(batch, to_unit(batch["image"])) for batch in whole])
        loss = torch.nn.functional.cross_entropy(logits, torch.cat([batch["label"] for batch in whole]))
        return len(logits), float(loss), result.best["val_loss"]

    (n, loss, told), other = results(start_ranks(train, tmp_path), tmp_path)
    assert other is None
    assert n == 33
    assert loss == pytest.approx(told, rel=1e-5)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What two processes come to that nobody interrupts."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("straight")
    first, second = results(start_ranks(lambda rank: rank_run(folder / "work"), folder), folder)
    assert first[0][1:] == second[0][1:]
    return first[0]


def test_processes_that_were_killed_go_on(tmp_path: Path, straight: Any) -> None:
    work = tmp_path / "work"

    def train(rank: int) -> Any:
        os.environ["MINE"] = f"{rank}:5"
        return rank_run(work, module=MinedModule())

    assert results(start_ranks(train, tmp_path), tmp_path) == [-signal.SIGKILL] * 2
    first, _ = results(start_ranks(lambda rank: rank_run(work), tmp_path), tmp_path)
    assert first[0] == straight


def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path: Path, straight: Any) -> None:
    work = tmp_path / "work"

    def train(rank: int) -> Any:
        return rank_run(work, replace(TWO, save_every_min=9), Asking(rank))

    for error in results(start_ranks(train, tmp_path), tmp_path):
        assert isinstance(error, StoppedError)
        assert "SIGUSR1" in str(error)
    assert torch.load(work / "last.ckpt", weights_only=False)["global_step"] == 4
    first, _ = results(start_ranks(lambda rank: rank_run(work), tmp_path), tmp_path)
    assert first[0] == straight


class Asking(TinyModule):
    """Asks the second process to leave at its third step; the first learns of it one step later."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        if self.rank == 1 and batch_idx == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return super().training_step(batch, batch_idx)


def test_processes_started_here_end_as_those_of_torchrun(tmp_path: Path, straight: Any) -> None:
    work = tmp_path / "work"

    def train(rank: int) -> Any:
        os.environ["MINE"] = f"{rank}:7"
        return rank_run(work, module=MinedModule())

    results(start_ranks(train, tmp_path), tmp_path)
    result, is_main, _ = rank_run(work)
    assert is_main
    assert result == straight
    assert not list(work.glob(".*"))


def ranks(folder: Path, *what: str) -> Any:
    return launch.run_ranks(Job(what, folder), launch.Place("cpu", 2, 2, 1, "us"), folder)


def gone(folder: Path) -> bool:
    """Say whether no process of a job is left; one that ended and was waited for has no folder in /proc."""
    return not any(Path(f"/proc/{path.read_text()}").exists() for path in folder.glob("*.pid"))


def test_the_first_process_gives_the_result(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nuclass")
    assert ranks(tmp_path, "end", "end") == "result of 0"
    assert [record.getMessage() for record in caplog.records] == ["rank 0 is done"]
    assert gone(tmp_path)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        (("hang", "die"), "process 2 of 2"),
        (("hang", "user"), "The cell is wrong"),
        (("crash", "hang"), "ZeroDivisionError: oops"),
        (("crash", "die"), "ended by SIGKILL"),
    ],
)
def test_one_process_that_fails_ends_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: tuple[str, str], told: str
) -> None:
    monkeypatch.setattr(launch, "_GRACE_S", 0.5)
    with pytest.raises(launch.CrashedError if "oops" in told else UserError, match=told):
        ranks(tmp_path, *what)
    assert gone(tmp_path)


def test_a_signal_reaches_all_processes(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGUSR1)

    def ask() -> None:
        while len(list(tmp_path.glob("*.pid"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(StoppedError, match="SIGUSR1"):
        ranks(tmp_path, "wait", "wait")
    assert gone(tmp_path)
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_process_ends_with_its_parent(tmp_path: Path) -> None:
    def parent() -> None:
        fork(lambda: launch._end_with(os.getppid()), tmp_path / "never.pt")
        time.sleep(0.3)
        children = [int(pid) for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()]
        torch.save(children, tmp_path / "children.pt")
        os._exit(0)

    waited(fork(parent, tmp_path / "parent.pt"))
    (child,) = torch.load(tmp_path / "children.pt")
    end = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists() or "zombie" in Path(f"/proc/{child}/status").read_text()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_who_started_the_processes(names: pytest.MonkeyPatch) -> None:
    assert started_ranks() == Started()
    names.setenv("SLURM_PROCID", "0")
    names.setenv("SLURM_NTASKS", "4")
    assert started_ranks() == Started()
    names.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert started_ranks() == Started()
    names.setenv("SLURM_STEP_NUM_TASKS", "4")
    names.setenv("SLURM_PROCID", "3")
    assert started_ranks() == Started("srun", 3, 4)
    assert launch.find_place(replace(PLAIN, devices=2, num_nodes=2), "cpu").by == "srun"
    with pytest.raises(UserError, match="another number of processes") as caught:
        launch.find_place(replace(PLAIN, devices=2), "cpu")
    assert "4 processes" in str(caught.value)


def test_devices_that_are_not_there_and_nodes_alone(names: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="devices are not there"):
        launch.find_place(replace(PLAIN, devices=0), "cpu")
    names.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UserError, match=r"trainer\.devices"):
        launch.find_place(replace(PLAIN, devices=[0, 1]), "gpu")
    with pytest.raises(UserError, match="torchrun --nnodes=2"):
        launch.find_place(replace(PLAIN, num_nodes=2), "cpu")


def test_slurm_does_not_requeue_by_itself(names: pytest.MonkeyPatch) -> None:
    assert launch.environment(launch.Place("cpu", 2, 2, 1, "srun")).auto_requeue is False
    names.setenv("SLURM_NTASKS", "2")
    assert type(launch.environment(launch.Place("cpu", 1))).__name__ == "LightningEnvironment"
