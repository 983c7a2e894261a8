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
_FUNCTION = re.compile(r"^def (\w+)\([^\n]*\):\n((?: +[^\n]*\n|\n)*)", re.MULTILINE)
_TEXT = re.compile(r'""".*?"""', re.DOTALL)
_CALLED = re.compile(r"(\w+)\(")


@dataclass(frozen=True)
class Asked:
    """What one rule asks for.

    Attributes
    ----------
    memory_mb
        The least memory in MB, before its input is counted; None where a function tells it.
    threads
        Threads; None where a function tells it.
    shortest_min, longest_min
        The time limit in minutes in a study of small slides and networks, and in others; None where it names no number.
    gpu
        Whether it asks for GPUs where its network needs one.
    """

    memory_mb: int | None
    threads: int | None
    shortest_min: int | None
    longest_min: int | None
    gpu: bool


def read_rules(folder: Path) -> dict[str, Asked]:
    """Return what the rules of ``*.smk`` in a folder ask for, by name; a derived rule asks what its base asks.

    Only numbers that stand in the files are read, also those of a function that tells a time limit: no rule is run.
    """
    texts = [file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.smk"))]
    functions = {match[1]: _TEXT.sub("", match[2]) for text in texts for match in _FUNCTION.finditer(text)}
    bodies: dict[str, str] = {}
    for text in texts:
        marks = list(_RULE.finditer(text))
        ends = [mark.start() for mark in marks[1:]] + [len(text)]
        for mark, end in zip(marks, ends, strict=False):
            body = text[mark.end() : end]
            if mark[1]:
                bodies[mark[1]] = body
            else:
                base = bodies.get(mark[2], "")
                # Resources are taken over as a whole or not at all.
                bodies[mark[3]] = body + (base.partition("resources:")[0] if "resources:" in body else base)
    return {name: _asked(body, functions) for name, body in bodies.items() if "output:" in body}


def _asked(body: str, functions: Mapping[str, str]) -> Asked:
    memory, threads, runtime = _MEMORY.search(body), _THREADS.search(body), _RUNTIME.search(body)
    told = runtime[1] if runtime else ""
    told += "".join(functions.get(name, "") for name in _CALLED.findall(told))
    # Numbers of named arguments (per_gb=10) are no time limits.
    minutes = [int(number) for number in re.findall(r"(?<!=)\b\d+\b", told)]
    return Asked(
        int(memory[1]) if memory else None,
        int(threads[1]) if threads else None,
        min(minutes, default=None),
        max(minutes, default=None),
        _GPU.search(body) is not None,
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


def runtimes(rules: Mapping[str, Asked], profile: Mapping[str, Any], small: bool = False) -> dict[str, int]:
    """Return the time limit in minutes of each rule under a profile, which wins; rules without a number are left out.

    A number among the profile's ``default-resources`` counts for no rule: all name their own. ``small`` is a study of
    small slides and networks.
    """
    found: dict[str, int] = {}
    own = profile.get("set-resources")
    own = own if isinstance(own, Mapping) else {}
    for name, asked in rules.items():
        given = own.get(name)
        minutes = minutes_of(given.get("runtime")) if isinstance(given, Mapping) and "runtime" in given else None
        if minutes is None:
            minutes = asked.shortest_min if small else asked.longest_min
        if minutes is not None:
            found[name] = minutes
    return found
