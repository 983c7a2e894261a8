"""What the benchmarks of windows share: steps in processes of their own, memory, tables for docs/performance.md."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_BLOCK = r"(<!-- bench: {} -->\n)(.*?)(<!-- end -->)"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def publish(name: str, text: str, page: Path | None) -> None:
    """Print a table, and put it between its marks ``<!-- bench: name -->`` and ``<!-- end -->`` of ``page``."""
    sys.stdout.write(f"{name}\n\n{text}\n\n")
    sys.stdout.flush()
    if page is None:
        return
    old = page.read_text(encoding="utf-8")
    pattern = re.compile(_BLOCK.format(re.escape(name)), re.DOTALL)
    if not pattern.search(old):
        raise SystemExit(f"{page} has no place <!-- bench: {name} --> for a table")
    page.write_text(pattern.sub(lambda found: found[1] + text + "\n" + found[3], old), encoding="utf-8")


def verdict(value: float, goal: float, most: bool = False) -> str:
    """Return a goal in words, and whether ``value`` reaches it; ``most`` for goals that are upper bounds."""
    met = value <= goal if most else value >= goal
    return f"{'at most' if most else 'at least'} {goal:,g}: {'met' if met else 'missed'}"


def machine(busy: float) -> str:
    """Return a line about the machine; ``busy`` is the load of other work when the run began."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores ({model}), Python {platform.python_version()}; load before the run {busy:.1f}."


def step(script: str, *arguments: object) -> dict[str, Any]:
    """Run ``script --step ARGUMENTS`` as a process of its own; return the JSON in the last line that it prints."""
    command = [sys.executable, script, "--step", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def peak_mb() -> float:
    """Return the peak resident size of this process in MB, as the kernel keeps it.

    ``getrusage`` would give the larger of this and the size of the process that started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def before_mb() -> float:
    """Forget the peak so far; return the resident size now in MB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return memory_mb()["Rss"]


def memory_mb(pid: int | str = "self") -> dict[str, float]:
    """Return the memory of a process in MB: ``Rss``, ``Pss`` (shared pages by shares) and ``Private``."""
    values: dict[str, float] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        key, number = line.split()[:2]
        values[key.rstrip(":")] = int(number) * 1024 / 1e6
    private = values["Private_Clean"] + values["Private_Dirty"]
    return {"Rss": values["Rss"], "Pss": values["Pss"], "Private": private}


def folder_bytes(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
