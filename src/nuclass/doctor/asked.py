"""What the rules ask of a machine at least, as far as the rule files say it in numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_RULE = re.compile(r"^ *(?:rule (\w+)|use rule (\w+) as (\w+) with):", re.MULTILINE)
_MEMORY = re.compile(r"^ +mem_mb=(?:mem\()?(\d+)\b", re.MULTILINE)
_THREADS = re.compile(r"^ +threads: (\d+)$", re.MULTILINE)
_RUNTIME = re.compile(r"^ +runtime=([^\n]+?),?$", re.MULTILINE)
_GPU = re.compile(r"^ +gpu=(?!0,?$)", re.MULTILINE)
_COMMENT = re.compile(r"#.*")


@dataclass(frozen=True)
class Asked:
    """What one rule asks for.

    Attributes
    ----------
    memory_mb
        The least memory in MB, before its input is counted; None where a function tells it.
    threads
        Threads; None where a function tells it.
    runtime_min
        The longest time limit in minutes that the rule names; None where it names no number.
    gpu
        Whether it asks for GPUs where its network needs one.
    exact
        Whether ``runtime_min`` is all that the rule says of its time; else it is the largest number of an expression.
    """

    memory_mb: int | None
    threads: int | None
    runtime_min: int | None
    gpu: bool
    exact: bool = True


def read_rules(folder: Path) -> dict[str, Asked]:
    """Return what the rules of ``*.smk`` in a folder ask for, by name; a derived rule asks what its base asks.

    Only numbers that stand in the files are read: no rule is run, and functions of the input are left out.
    """
    bodies: dict[str, str] = {}
    for file in sorted(folder.glob("*.smk")):
        text = file.read_text(encoding="utf-8")
        marks = list(_RULE.finditer(text))
        ends = [mark.start() for mark in marks[1:]] + [len(text)]
        for mark, end in zip(marks, ends, strict=False):
            body = text[mark.end() : end]
            if mark[1]:
                bodies[mark[1]] = body
            else:
                bodies[mark[3]] = body + bodies.get(mark[2], "")
    return {name: _asked(body) for name, body in bodies.items() if "output:" in body}


def _asked(body: str) -> Asked:
    memory, threads, runtime = _MEMORY.search(body), _THREADS.search(body), _RUNTIME.search(body)
    minutes = [int(number) for number in re.findall(r"\b\d+\b", _COMMENT.sub("", runtime[1]))] if runtime else []
    return Asked(
        int(memory[1]) if memory else None,
        int(threads[1]) if threads else None,
        max(minutes) if minutes else None,
        _GPU.search(body) is not None,
        runtime is not None and runtime[1].strip().isdigit(),
    )


def minutes_of(value: Any) -> int | None:
    """Return a time limit of a profile in minutes: a number, or text such as ``12h``, ``2d``, ``90m``; else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return int(value)
    match = re.fullmatch(r"\s*(\d+)\s*([smhdw]?)\w*\s*", str(value))
    if not match:
        return None
    factor = {"": 1.0, "s": 1 / 60, "m": 1.0, "h": 60.0, "d": 1440.0, "w": 10080.0}[match[2]]
    return int(int(match[1]) * factor)


def runtimes(rules: Mapping[str, Asked], profile: Mapping[str, Any]) -> dict[str, int]:
    """Return the time limit in minutes of each rule under a profile, which wins; rules without a number are left out.

    A number among the profile's ``default-resources`` counts for no rule: all name their own.
    """
    found: dict[str, int] = {}
    own = profile.get("set-resources")
    own = own if isinstance(own, Mapping) else {}
    for name, asked in rules.items():
        given = own.get(name)
        minutes = minutes_of(given.get("runtime")) if isinstance(given, Mapping) and "runtime" in given else None
        minutes = minutes if minutes is not None else asked.runtime_min
        if minutes is not None:
            found[name] = minutes
    return found
