"""The doctor's report: for a terminal, and as JSON."""

from __future__ import annotations

import os
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import nuclass
from nuclass.doctor.exam import GROUPS, Result

_COLOURS = {"pass": "32", "warn": "33", "fail": "31", "skip": "2"}
_NAME = 22


def counts_of(results: Sequence[Result]) -> dict[str, int]:
    """Return how many results have each verdict, all four named."""
    counted: Counter[str] = Counter(result.verdict for result in results)
    return {verdict: counted[verdict] for verdict in _COLOURS}


def as_json(results: Sequence[Result], study: str | None) -> dict[str, Any]:
    """Return the report as plain data: counts, and one entry a result in the order of the report."""
    return {
        "nuclass": nuclass.__version__,
        "study": study,
        "counts": counts_of(results),
        "checks": [{**asdict(result), "seconds": round(result.seconds, 2)} for result in results],
    }


def as_text(results: Sequence[Result], colours: bool = False, width: int = 120) -> str:
    """Return the report in lines of at most ``width`` characters, the groups in their order, the counts last."""

    def paint(verdict: str, text: str) -> str:
        return f"\x1b[{_COLOURS[verdict]}m{text}\x1b[0m" if colours else text

    lines: list[str] = []
    for group in dict.fromkeys(result.group for result in results):
        lines += ["", GROUPS[group]]
        for result in (one for one in results if one.group == group):
            lines += _told(result, paint(result.verdict, result.verdict.upper()), width)
    counts = counts_of(results)
    told = [paint(verdict, f"{number} {verdict.upper()}") for verdict, number in counts.items() if number]
    if counts["fail"]:
        elsewhere = {"cluster": "--profile slurm", "conda": "--sdm conda"}
        options = [elsewhere.get(result.group, "") for result in results if result.verdict == "fail"]
        how = "" if "" in options else f" with {' and '.join(dict.fromkeys(options))}"
        end = f"The study will not run as it is{how}: mend what is marked FAIL."
    elif counts["warn"]:
        end = "Nothing stands in the way; read what is marked WARN."
    else:
        end = "All is well."
    return "\n".join([*lines, "", f"{', '.join(told)}. {end}"]).lstrip("\n") + "\n"


def tell(results: Sequence[Result]) -> None:
    """Write the report to standard output; in colours on a terminal, unless ``NO_COLOR`` is set."""
    sys.stdout.write(as_text(results, sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    sys.stdout.flush()


def _told(result: Result, verdict: str, width: int) -> list[str]:
    indent = " " * (8 + _NAME)
    label = f"{result.name:<{_NAME}}"
    if len(result.name) >= _NAME:
        label += "\n" + indent
    lines = [line for part in result.found.split("\n") for line in _wrapped(part, max(width - len(indent), 30))]
    told = [f"  {verdict}  {label}{(lines or [''])[0]}", *(indent + line for line in lines[1:])]
    if result.remedy:
        # A command must stay in one piece to be copied.
        told += [f"{indent}> {line}" for line in result.remedy.split("\n")]
    return told


def _wrapped(text: str, width: int) -> list[str]:
    """Return a line in parts of at most ``width`` characters, all indented as it is; words stay whole."""
    indent = text[: len(text) - len(text.lstrip())]
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
