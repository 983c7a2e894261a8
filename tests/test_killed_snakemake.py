"""A job does not outlive the Snakemake that started it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nuclass.core import orphans

JOB = """
import os, signal, sys, time
from pathlib import Path
from nuclass.core import orphans
orphans.LOOK_EVERY_S = 0.05
told = Path(sys.argv[1])
def leave(*_):
    (told / "asked").write_text("")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
watching = orphans.end_with_snakemake()
(told / "job").write_text(str(os.getpid()))
(told / "watching").write_text(str(watching is not None))
time.sleep(60)
"""
STARTER = """
import subprocess, sys, time
job = [sys.executable, "-c", sys.argv[1], sys.argv[2]]
subprocess.Popen(["bash", "-c", '"$@"; true', "bash", *job] if sys.argv[3] == "shell" else job)
time.sleep(60)
"""


def start(folder: Path, name: str, between: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start a job below a program of the given name; return the program and the job's process."""
    program = folder / name
    program.write_text(STARTER, encoding="utf-8")
    starter = subprocess.Popen([sys.executable, str(program), JOB, str(folder), between])
    until(lambda: (folder / "watching").exists())
    return starter, int((folder / "job").read_text(encoding="utf-8"))


def until(what, limit: float = 30.0) -> None:
    end = time.monotonic() + limit
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def is_there(process: int) -> bool:
    return Path(f"/proc/{process}/stat").exists() and ") Z " not in Path(f"/proc/{process}/stat").read_text()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell of processes")
@pytest.mark.parametrize("between", ["", "shell"])
def test_a_job_is_asked_to_leave_when_its_snakemake_was_killed(tmp_path: Path, between: str) -> None:
    starter, job = start(tmp_path, "snakemake", between)
    time.sleep(0.3)
    assert not (tmp_path / "asked").exists(), "as long as Snakemake lives the job is left in peace"
    starter.kill()
    starter.wait()
    until(lambda: not is_there(job))
    assert (tmp_path / "asked").exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell of processes")
def test_a_job_of_another_program_goes_on(tmp_path: Path) -> None:
    starter, job = start(tmp_path, "other", "")
    assert (tmp_path / "watching").read_text(encoding="utf-8") == "False"
    starter.kill()
    starter.wait()
    time.sleep(0.3)
    assert is_there(job)
    os.kill(job, signal.SIGKILL)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ENOMEM])
def test_a_look_that_fails_is_no_end(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many open files, say: the job looks again, and leaves only when its parent is gone."""
    looks = iter([OSError(number, "not now"), "7 (job (x) S 6 1", OSError(number, "not now"), "7 (job) S 1 1"])
    asked: list[tuple[int, int]] = []

    def read(*_: object, **__: object) -> str:
        look = next(looks)
        if isinstance(look, OSError):
            raise look
        return look

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(orphans, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(orphans.os, "kill", lambda *call: asked.append(call))
    orphans._watch({7: 6})
    assert asked == [(os.getpid(), signal.SIGTERM)]
    assert list(looks) == []


@pytest.mark.parametrize("error", [FileNotFoundError, ProcessLookupError])
def test_a_process_that_is_gone_is_told_from_a_look_that_fails(
    error: type[OSError], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(Path, "read_text", fail)
    assert orphans.parent_of(7) == 0


def test_where_the_system_tells_nothing_nothing_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans, "_PROC", tmp_path)
    assert orphans.end_with_snakemake() is None
