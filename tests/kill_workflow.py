"""Kill a run of the workflow again and again at random moments, let it end, and compare it with one that ran straight.

Used by test_killed_workflow.py on a small study; by hand on any, in a clone of the repository of its own:

    python tests/kill_workflow.py FOLDER --goal demo --kills 10 --spread 900 --against STRAIGHT
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MADE = ("results", "resources/bundles", "resources/truth")
WAYS = ("all at once", "a job", "Snakemake alone", "SIGTERM", "Ctrl-C")
TIMES = ("seconds", "train_seconds", "seconds_per_epoch", "cells_per_second", "memory_mb")
"""What metrics and histories of trainings say of time and memory; all else in them is compared."""
ENDS_IN_S = 60.0
STAMP = ".snakemake_timestamp"
"""What Snakemake itself puts into folders that are outputs."""
BY_ITSELF = "ended by itself"
State = dict[str, tuple[int, int]]


@dataclass
class Killed:
    """What the rounds of a killed run came to.

    Attributes
    ----------
    rounds
        How each start ended: the way it was killed, and after how many seconds.
    again
        Files that were finished when a round ended, and were made again later.
    outlived
        Rounds after which jobs went on for a minute without their Snakemake.
    told
        Output of the last start, which ran to the end.
    status
        Its exit status.
    """

    rounds: list[tuple[str, float]] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    outlived: list[str] = field(default_factory=list)
    told: str = ""
    status: int = 1


class Run:
    """Snakemake in a session of its own, with all that it starts."""

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        # Python starts a child with SIGINT ignored where its own parent, such as a shell's background job, ignores it.
        environment = {key: value for key, value in os.environ.items() if key != "SNAKEMAKE_PROFILE"}
        self.log = (folder / "killed.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "snakemake", *arguments],
            cwd=folder,
            env=environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def members(self) -> list[int]:
        """Return the processes of the session, the first one among them."""
        return [pid for pid, session in _processes() if session == self.process.pid]

    def jobs(self) -> list[int]:
        """Return the processes that run a rule's script."""
        return [pid for pid in self.members() if re.search(rb"/scripts/tmp\w+\.\w+\.py", _command(pid))]

    def send(self, way: str, chance: random.Random) -> bool:
        """Kill in one of the ways; returns False where there was nothing to kill."""
        if way == "a job":
            jobs = self.jobs()
            if jobs:
                _signal([chance.choice(jobs)], signal.SIGKILL)
            return bool(jobs)
        if way == "all at once":
            _signal(self.members(), signal.SIGKILL)
        elif way == "Snakemake alone":
            _signal([self.process.pid], signal.SIGKILL)
        elif way == "SIGTERM":
            _signal([self.process.pid], signal.SIGTERM)
        else:
            os.killpg(self.process.pid, signal.SIGINT)
        return True

    def wait(self) -> bool:
        """Wait for Snakemake's end, and for that of the jobs it has left; returns whether these had to be killed."""
        self.process.wait()
        end = time.monotonic() + ENDS_IN_S
        while (left := self.members()) and time.monotonic() < end:
            time.sleep(0.1)
        _signal(left, signal.SIGKILL)
        self.log.close()
        return bool(left)


def _processes() -> Iterator[tuple[int, int]]:
    """Yield every living process with its session."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                yield int(entry.name), int(fields[3])


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _signal(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def kill_again_and_again(
    folder: Path, arguments: Sequence[str], kills: int, spread: float, seed: int, say: Callable[[str], None] = str
) -> Killed:
    """Start Snakemake, kill it, start it again as a user would, until it was killed often enough; then to the end.

    Parameters
    ----------
    folder
        A copy of the repository of its own.
    arguments
        Of Snakemake.
    kills
        How often to kill. A job that is killed does not end the run: the rest of it goes on first, as far as it can.
    spread
        Seconds over which the kills are spread: the pauses before them come to this together.
    seed
        Of the moments and the ways.
    """
    chance = random.Random(seed)
    found = Killed()
    finished: State = {}
    pauses = [chance.uniform(0.3, 1.7) * spread / kills for _ in range(kills)]
    ways = [WAYS[number % len(WAYS)] for number in range(kills)]
    chance.shuffle(ways)
    for pause, way in zip(pauses, ways, strict=True):
        run = Run(folder, arguments)
        start = time.monotonic()
        if not _ends(run, pause):
            while not run.send(way, chance) and run.process.poll() is None:
                time.sleep(0.05)
            # What does not hang on the job goes on: some of it, then the rest is killed too.
            if way == "a job" and not _ends(run, 0.3 * pause):
                run.send("all at once", chance)
        else:
            way = BY_ITSELF
        if run.wait():
            found.outlived.append(way)
        found.rounds.append((way, time.monotonic() - start))
        found.again += _made_again(folder, finished)
        finished |= _finished(folder)
        say(f"{way} after {found.rounds[-1][1]:.1f} s; {len(finished)} files are finished")
        subprocess.run([sys.executable, "-m", "snakemake", "--unlock", *arguments], cwd=folder, capture_output=True)
    run = Run(folder, arguments)
    run.wait()
    found.status = run.process.returncode
    found.again += _made_again(folder, finished)
    found.told = (folder / "killed.log").read_text(encoding="utf-8", errors="replace")
    return found


def _ends(run: Run, limit: float) -> bool:
    """Return whether a run ends by itself within a time, seconds."""
    try:
        run.process.wait(limit)
    except subprocess.TimeoutExpired:
        return False
    return True


def _finished(folder: Path) -> State:
    """Return the files that Snakemake has noted as made, as they lie there now."""
    notes = folder / ".snakemake" / "metadata"
    markers = folder / ".snakemake" / "incomplete"
    half = {path.relative_to(markers) for path in markers.rglob("*") if path.is_file()}
    found: State = {}
    for path in notes.rglob("*") if notes.is_dir() else []:
        if not path.is_file() or path.relative_to(notes) in half:
            continue
        name = base64.b64decode("".join(path.relative_to(notes).parts).replace("@", ""), altchars=b"_-").decode()
        file = folder / name
        if json.loads(path.read_text(encoding="utf-8")).get("incomplete") is False and file.exists():
            found[name] = _stamp(file)
    return found


def _stamp(file: Path) -> tuple[int, int]:
    return file.stat().st_ino, file.stat().st_mtime_ns


def _made_again(folder: Path, finished: State) -> list[str]:
    return [name for name, stamp in finished.items() if not (folder / name).exists() or _stamp(folder / name) != stamp]


def contents(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that the workflow has made, without :data:`TIMES`; of links where they lead."""
    found = {}
    for part in MADE:
        for path in sorted((folder / part).rglob("*")):
            if path.is_symlink():
                found[str(path.relative_to(folder))] = f"link to {os.readlink(path)}"  # noqa: PTH115
            elif path.is_file() and path.name != STAMP:
                found[str(path.relative_to(folder))] = hashlib.sha256(_timeless(path)).hexdigest()
    return found


def _timeless(path: Path) -> bytes:
    """Return a file's bytes; of metrics and histories of trainings what is no time."""
    content = path.read_bytes()
    if path.name == "metrics.json":
        return re.sub(rb'"(%s)": [\d.]+' % "|".join(TIMES).encode(), b"", content)
    if path.name == "history.csv":
        head, *rows = (line.split(",") for line in content.decode().splitlines())
        kept = [place for place, name in enumerate(head) if name not in TIMES]
        return "\n".join(",".join(row[place] for place in kept) for row in [head, *rows]).encode()
    return content


def leftovers(folder: Path) -> list[str]:
    """Return what no finished run leaves: hidden files, parts of files, running states."""
    found = []
    for part in (*MADE, "work"):
        for path in (folder / part).rglob("*"):
            if path.name == STAMP:
                continue
            state = part == "work" and path.is_file() and path.parent.name != "log"
            if path.name.startswith(".") or path.name.endswith((".part", ".tmp")) or state:
                found.append(str(path.relative_to(folder)))
    return sorted(found)


def differences(folder: Path, straight: Path) -> list[str]:
    """Return the names of files that differ, or that one of two runs lacks."""
    one, other = contents(folder), contents(straight)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def main() -> int:
    """Run from the command line; exit status 1 if a finished file was made again or something was left behind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--goal", nargs="+", default=["demo"])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--spread", type=float, default=600, help="seconds over which the kills are spread")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cores", default="2")
    parser.add_argument("--against", type=Path, help="a folder where the same goal ran straight")
    options = parser.parse_args()
    write = sys.stdout.write
    say = lambda words: (write(f"{words}\n"), sys.stdout.flush())  # noqa: E731
    arguments = ["--cores", options.cores, *options.goal]
    found = kill_again_and_again(options.folder, arguments, options.kills, options.spread, options.seed, say)
    left = leftovers(options.folder)
    say(f"exit status {found.status}; made again: {found.again or 'nothing'}; left behind: {left or 'nothing'}")
    say(f"jobs that outlived Snakemake: {found.outlived or 'none'}")
    if options.against:
        say("\n".join(["files that differ:", *differences(options.folder, options.against)]))
    return int(bool(found.status or found.again or found.outlived or left))


if __name__ == "__main__":
    sys.exit(main())
