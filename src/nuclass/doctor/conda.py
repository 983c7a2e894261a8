"""Conda and containers, for runs with --sdm conda or --sdm apptainer; without these nothing of it is needed."""

from __future__ import annotations

import json
import re

from nuclass.doctor.case import Case
from nuclass.doctor.commands import ask, find
from nuclass.doctor.exam import Check, Finding, failed, passed, skipped, warned

LEAST = (24, 7, 1)
_LIKE = ("mamba", "micromamba", "pixi")


def version_in(text: str) -> tuple[int, ...]:
    """Return the first version in a text as numbers; empty without one."""
    match = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def client(case: Case) -> Finding:
    """The conda client: Snakemake 9 calls ``conda`` itself, from 24.7.1 on."""
    least = ".".join(map(str, LEAST))
    if find("conda", case.environ) is None:
        others = [name for name in _LIKE if find(name, case.environ)]
        if others:
            return warned(
                f"{', '.join(others)} is here, and no conda; Snakemake calls conda itself",
                "install Miniforge for --sdm conda; without that option nothing is needed",
            )
        return skipped("no conda on this machine; it is needed for --sdm conda only")
    answer = ask(["conda", "--version"], case.environ, 15.0)
    if not answer.well:
        return failed(
            f"conda does not answer: {answer.reason}", "conda --version   tells more; reinstall it if that fails"
        )
    version = version_in(answer.out)
    if not version:
        return warned(f"conda does not tell its version: {answer.out[:60]}", "conda update -n base conda")
    told = f"conda {'.'.join(map(str, version))}"
    if version < LEAST:
        return warned(f"{told}; --sdm conda needs {least} or later", "conda update -n base conda")
    return passed(told)


def priority(case: Case) -> Finding:
    """Strict channel priority, without which environments may come out otherwise."""
    if find("conda", case.environ) is None:
        return skipped("no conda on this machine")
    answer = ask(["conda", "config", "--show", "channel_priority", "--json"], case.environ, 15.0)
    if not answer.well:
        return warned(f"not told: {answer.reason}", "conda config --set channel_priority strict")
    try:
        value = str(json.loads(answer.out)["channel_priority"])
    except (ValueError, KeyError, TypeError):
        value = answer.out.rpartition(":")[2].strip() or "not told"
    if value == "strict":
        return passed("strict")
    return warned(
        f"{value}; packages of two channels may be mixed, and solving takes longer",
        "conda config --set channel_priority strict",
    )


def container(case: Case) -> Finding:
    """Apptainer or Singularity, for --sdm apptainer."""
    name = next((name for name in ("apptainer", "singularity") if find(name, case.environ)), None)
    if name is None:
        return skipped("no apptainer on this machine; it is needed for --sdm apptainer only")
    answer = ask([name, "--version"], case.environ, 10.0)
    if not answer.well:
        return warned(f"{name} does not answer: {answer.reason}", f"{name} --version   tells more")
    version = version_in(answer.out)
    if name == "singularity" and version and version < (3, 8):
        return warned(f"singularity {'.'.join(map(str, version))} is old", "install Apptainer 1.0 or later")
    return passed(answer.out.splitlines()[0] if answer.out else name)


CHECKS = [
    Check("conda", "conda", client, 20.0),
    Check("conda", "channel priority", priority, 20.0),
    Check("conda", "apptainer", container, 15.0),
]
