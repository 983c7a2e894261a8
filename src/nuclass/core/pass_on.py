"""SIGTERM to the Snakemake inside a cluster job reaches the scripts that it runs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import defaultdict
from pathlib import Path

from nuclass.core.orphans import parent_of, words_of

_SCRIPTS = ".snakemake/scripts/"
# A scheduler that tells all processes of a job has told the scripts by then.
AFTER_S = 2.0


def pass_on_sigterm(after_s: float = AFTER_S) -> None:
    """Send SIGTERM on to the scripts below this process, whenever it gets one itself.

    Slurm tells a job of its time limit, or that it is preempted, by SIGTERM. With ``ProctrackType=proctrack/cgroup``,
    as most clusters have it, that goes to the direct children of ``slurmstepd`` alone (proctrack_cgroup.c): to
    Snakemake, which starts no further job and waits, but tells the one that runs nothing. A training has to know, for
    it saves its state then.

    What Snakemake itself does about the signal stays as it is. Call it in the main thread; it lasts as long as the
    process.

    Parameters
    ----------
    after_s
        Seconds between the signal and its copy.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_wait, args=(read, after_s), name="nuclass-sigterm", daemon=True).start()


def _wait(read: int, after_s: float) -> None:
    while numbers := os.read(read, 64):
        if signal.SIGTERM in numbers:
            time.sleep(after_s)
            for process in scripts_below(os.getpid()):
                try:
                    os.kill(process, signal.SIGTERM)
                except ProcessLookupError:
                    continue


def scripts_below(process: int) -> list[int]:
    """Return the processes of Snakemake's scripts among those that a process has started, directly or not.

    Processes that a script has started are its own concern and not among them.
    """
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := parent_of(int(entry.name))):
            children[parent].append(int(entry.name))
    found, left = [], list(children[process])
    while left:
        one = left.pop()
        if _is_script(one):
            found.append(one)
        else:
            left += children[one]
    return sorted(found)


def _is_script(process: int) -> bool:
    """Return whether a process is Python at a script, not the shell that started it by one long word."""
    words = words_of(process)
    return bool(words) and Path(words[0]).name.startswith("python") and any(_SCRIPTS in word for word in words[1:])
