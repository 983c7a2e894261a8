"""Where the processes of a run come from: one, several started here for several devices, or torchrun's and srun's."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Literal

import torch

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.ranks import started_ranks
from nuclass.training.config import Trainer
from nuclass.training.interruption import Signals, StoppedError, signal_name
from nuclass.training.state import save_atomically

_GRACE_S = 10.0
"""Seconds that the processes have to tell their errors once one of them has ended."""
_log = get_logger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a run trains.

    Attributes
    ----------
    accelerator
        ``cpu`` | ``gpu``, or another of Lightning's.
    devices
        Number on a node, or indices, as Lightning takes them.
    per_node, nodes
        Processes on a node; nodes.
    by
        Who starts the processes: ``nobody`` (there is one), ``us``, ``torchrun``, ``srun``.
    """

    accelerator: str
    devices: int | list[int]
    per_node: int = 1
    nodes: int = 1
    by: Literal["nobody", "us", "torchrun", "srun"] = "nobody"
    indices: list[int] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """The first device, on which a run goes on alone."""
        if self.accelerator in ("gpu", "cuda"):
            return torch.device("cuda", self.indices[0] if self.indices else 0)
        return torch.device(self.accelerator if self.accelerator == "mps" else "cpu")


def find_place(run: Trainer, accelerator: str) -> Place:
    """Return where a run trains, by its settings and by who started this process.

    Raises
    ------
    UserError
        Devices that are not there, several nodes without torchrun or srun, or another number of processes than the
        settings ask for.
    """
    devices, indices = _devices(run.devices, accelerator)
    per_node = devices if isinstance(devices, int) else len(devices)
    started = started_ranks()
    wanted = per_node * run.num_nodes
    if started.by != "nobody":
        if started.world_size != wanted:
            raise UserError(
                f"{started.by} started another number of processes than the settings ask for",
                where="trainer.devices, trainer.num_nodes",
                found=f"{started.world_size} processes",
                expected=f"{wanted}: {per_node} a node, {run.num_nodes} nodes",
                fix="start one process a device, or change the settings",
            )
        return Place(accelerator, devices, per_node, run.num_nodes, started.by, indices)
    if run.num_nodes > 1:
        raise UserError(
            "Several nodes need a process a device on each of them",
            where="trainer.num_nodes",
            found=f"{run.num_nodes} nodes and one process",
            fix=f"start it by srun --ntasks-per-node={per_node} or torchrun --nnodes={run.num_nodes}",
        )
    return Place(accelerator, devices, per_node, 1, "us" if per_node > 1 else "nobody", indices)


def _devices(given: int | list[int] | str, accelerator: str) -> tuple[int | list[int], list[int]]:
    from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    try:
        if accelerator in ("gpu", "cuda"):
            wanted = -1 if given == "auto" else given
            indices = CUDAAccelerator.parse_devices(wanted)
            if not indices:
                raise MisconfigurationException("there is no CUDA GPU")
            return list(indices), list(indices)
        if accelerator == "cpu":
            count = len(given) if isinstance(given, list) else given
            return CPUAccelerator.parse_devices(1 if count == "auto" else count), []
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise UserError(
            "The devices are not there",
            where="trainer.devices",
            found=f"{given!r}: {str(error).strip().splitlines()[0]}",
            fix="name fewer devices, or set accelerator: cpu",
        ) from error
    return 1 if given == "auto" or isinstance(given, str) else given, []


def environment(place: Place) -> Any:
    """Return Lightning's plugin for who started the processes; Slurm's own requeueing stays off."""
    from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

    if place.by == "srun":
        return SLURMEnvironment(auto_requeue=False)
    return TorchElasticEnvironment() if place.by == "torchrun" else LightningEnvironment()


class CrashedError(Exception):
    """A process of a run ended by an error that is not the user's; holds its traceback."""


class KilledError(UserError):
    """A process of a run ended without a word."""


def run_ranks(job: Any, place: Place, work: Path) -> Any:
    """Run ``job(signals)`` in a process for each device of this machine; returns what the first one returned.

    The job is written to a file of ``work``, from which all processes map it: its tensors are in memory once. When
    one process ends early, the others are ended; when this one is killed, they end by themselves.

    Raises
    ------
    UserError, StoppedError
        What a process raised. A process that was killed is one too.
    CrashedError
        A process ended by another error.
    """
    path = work / f".{os.getpid()}.start.pt"
    save_atomically(job, path)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    environ = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "NODE_RANK": "0",
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
        "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path),
    }
    threads = max(1, torch.get_num_threads() // place.per_node)
    members: list[_Member] = []

    def forward(number: int) -> None:
        for member in members:
            member.ask_to_leave()

    with Signals(forward) as signals, _ended(members):
        for rank in range(place.per_node):
            members.append(_Member(rank, path, threads, environ))
        outcome = _supervise(members, work)
    path.unlink(missing_ok=True)
    if isinstance(outcome, StoppedError) or (signals.received and isinstance(outcome, KilledError)):
        raise StoppedError(signals.received or getattr(outcome, "number", 0), work)
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


class _Member:
    """One process of a run, as its starter sees it."""

    def __init__(self, rank: int, path: Path, threads: int, environ: dict[str, str]) -> None:
        self.rank = rank
        self.outcome: Any = None
        self.told = False
        self.receiver, sender = Pipe(duplex=False)
        command = [sys.executable, "-m", __name__, str(path), str(sender.fileno()), str(rank), str(threads)]
        with sender:
            self.process = subprocess.Popen(
                command, env=environ | {"LOCAL_RANK": str(rank)}, pass_fds=[sender.fileno()], stdin=subprocess.DEVNULL
            )

    def listen(self, seconds: float) -> None:
        """Take up what the process tells: log lines, and its outcome."""
        try:
            while self.receiver.poll(seconds):
                kind, content = self.receiver.recv()
                if kind == "log":
                    name, level, text = content
                    get_logger(name).log(level, text)
                else:
                    self.told, self.outcome = True, content
                seconds = 0
        except (EOFError, OSError):
            time.sleep(min(seconds, 0.05))

    def ask_to_leave(self) -> None:
        """Pass a signal on, under the name of SIGTERM."""
        with contextlib.suppress(OSError):
            self.process.terminate()

    def ended(self) -> bool:
        """Say whether the process is gone."""
        return self.process.poll() is not None

    def failed(self) -> bool:
        """Say whether the process ended, or is about to, without a result."""
        return isinstance(self.outcome, BaseException) or (self.ended() and not self.told)


def _supervise(members: list[_Member], work: Path) -> Any:
    """Wait for all processes, or for the first that fails; returns a result or an error."""
    deadline = None
    while not all(member.ended() for member in members):
        for member in members:
            member.listen(0.2 / len(members))
        if deadline is None and any(member.failed() for member in members):
            deadline = time.monotonic() + _GRACE_S
        own = any(isinstance(member.outcome, UserError) for member in members)
        stopping = any(isinstance(member.outcome, StoppedError) for member in members)
        if deadline is not None and ((own and not stopping) or time.monotonic() > deadline):
            break
    for member in members:
        member.listen(0)
    outcomes = [member.outcome for member in members if isinstance(member.outcome, BaseException)]
    for kind in (StoppedError, UserError):
        found = [outcome for outcome in outcomes if isinstance(outcome, kind)]
        if found:
            return found[0]
    killed = [member for member in members if member.ended() and not member.told]
    if killed:
        return _killed(killed[0], len(members), work)
    return outcomes[0] if outcomes else members[0].outcome


def _killed(member: _Member, count: int, work: Path) -> KilledError:
    status = int(member.process.returncode)
    found = f"ended by {signal_name(-status)}" if status < 0 else f"exit status {status}"
    return KilledError(
        "A process of the training ended before its time",
        where=f"process {member.rank + 1} of {count}",
        found=found,
        fix="SIGKILL often means too little memory: give more, or use fewer workers; then start again, "
        f"it goes on from the state in {work}",
    )


@contextlib.contextmanager
def _ended(members: list[_Member]) -> Iterator[None]:
    """Leave no process behind."""
    try:
        yield
    finally:
        for member in members:
            if not member.ended():
                member.process.kill()
            member.process.wait()
            member.receiver.close()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _main(path: str, descriptor: str, rank: str, threads: str) -> None:
    """Run a job as one of its processes: ``python -m nuclass.training.launch FILE PIPE RANK THREADS``."""
    import logging

    sender = Connection(int(descriptor), readable=False)
    lock = threading.Lock()
    parent = os.getppid()

    def tell(kind: str, content: Any) -> None:
        with lock, contextlib.suppress(OSError):
            sender.send((kind, content))

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tell("log", (record.name, record.levelno, record.getMessage()))

    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    logging.getLogger().addHandler(Forward(logging.INFO if rank == "0" else logging.ERROR))
    logging.getLogger("nuclass").setLevel(logging.INFO)
    torch.set_num_threads(int(threads))
    try:
        with Signals(interactive=False) as signals:
            job = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
            outcome = job(signals)
    except UserError as error:
        tell("outcome", error)
        sys.exit(1)
    except BaseException:  # noqa: BLE001
        tell("outcome", CrashedError(f"in process {rank}:\n{traceback.format_exc()}"))
        sys.exit(1)
    tell("outcome", outcome if rank == "0" else None)
    sender.close()


def _end_with(parent: int) -> None:
    """End this process at once when its parent is gone, whatever it waits for."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    from nuclass.training import launch

    launch._main(*sys.argv[1:])
