"""A job whose Snakemake was killed ends too, so that the next start does not meet it at work on the same files."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from nuclass.core.log import get_logger

LOOK_EVERY_S = 1.0
_PROC = Path("/proc")
_log = get_logger(__name__)


def end_with_snakemake() -> threading.Thread | None:
    """Ask this process to leave, by SIGTERM, once the Snakemake that started it is gone.

    A training saves its state first. Jobs that Snakemake ends itself, and those of a cluster, whose own Snakemake
    runs beside them, notice nothing. Where the system does not tell of processes, or none of those above is a
    Snakemake, nothing is watched.

    Returns
    -------
    The thread that watches, where there is something to watch.
    """
    chain = _up_to_snakemake(os.getpid())
    if not chain:
        return None
    thread = threading.Thread(target=_watch, args=(chain,), name="nuclass-orphan", daemon=True)
    thread.start()
    return thread


def _up_to_snakemake(process: int) -> dict[int, int]:
    """Return the parent of this process, and of each above, up to the nearest Snakemake; empty where there is none."""
    chain: dict[int, int] = {}
    while parent := parent_of(process):
        chain[process] = parent
        if _is_snakemake(parent):
            return chain
        process = parent
    return {}


def _watch(chain: dict[int, int]) -> None:
    """Wait until a process of the chain has another parent: its own is gone. What cannot be read is looked at again."""
    while all(parent_of(process) in (parent, None) for process, parent in chain.items()):
        time.sleep(LOOK_EVERY_S)
    _log.warning("Snakemake, which started this job, is gone; the job ends too")
    os.kill(os.getpid(), signal.SIGTERM)


def parent_of(process: int) -> int | None:
    """Return the parent's number; 0 where there is none or the process is gone, None where that cannot be read now."""
    try:
        text = (_PROC / str(process) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except OSError:
        return None
    # The name in brackets may hold anything.
    return int(text.rpartition(")")[2].split()[1])


def words_of(process: int) -> list[str]:
    """Return the words of a process's command line; none where they cannot be read."""
    try:
        return [os.fsdecode(word) for word in (_PROC / str(process) / "cmdline").read_bytes().split(b"\0")]
    except OSError:
        return []


def _is_snakemake(process: int) -> bool:
    return any(Path(word).name == "snakemake" for word in words_of(process)[:4])
