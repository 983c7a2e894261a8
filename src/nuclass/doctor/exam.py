"""One check: what it is about, how it is run so that it can neither crash nor hang, and what it found."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from nuclass.core.errors import UserError
from nuclass.doctor.case import INSTALL, Case

Verdict: TypeAlias = Literal["pass", "warn", "fail", "skip"]

GROUPS = {
    "machine": "This machine",
    "packages": "Python and packages",
    "gpu": "GPU",
    "study": "Study",
    "data": "Data",
    "weights": "Weights of the networks",
    "network": "Network",
    "cluster": "Cluster (Slurm)",
    "conda": "Conda and containers",
}


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes
    ----------
    verdict
        ``pass``, ``warn``, ``fail``, or ``skip`` where the check does not apply.
    found
        What there is, in words.
    remedy
        What to do; empty where there is nothing to do.
    name
        A name in place of the check's own, where it has one finding a slide or a network.
    """

    verdict: Verdict
    found: str
    remedy: str = ""
    name: str = ""


@dataclass(frozen=True)
class Check:
    """A check of a group.

    Attributes
    ----------
    group
        A key of :data:`GROUPS`.
    name
        What is looked at.
    run
        Looks, and returns one finding or several.
    limit_s
        Seconds after which it is given up.
    """

    group: str
    name: str
    run: Callable[[Case], Finding | Sequence[Finding]]
    limit_s: float = 10.0


@dataclass(frozen=True)
class Result:
    """A finding with its check's group and name, and the seconds the check took."""

    group: str
    name: str
    verdict: Verdict
    found: str
    remedy: str
    seconds: float


def passed(found: str, name: str = "") -> Finding:
    """Return a finding that all is well."""
    return Finding("pass", found, "", name)


def warned(found: str, remedy: str, name: str = "") -> Finding:
    """Return a finding that may cost time or a part of the results."""
    return Finding("warn", found, remedy, name)


def failed(found: str, remedy: str, name: str = "") -> Finding:
    """Return a finding that will stop the study."""
    return Finding("fail", found, remedy, name)


def skipped(found: str, name: str = "") -> Finding:
    """Return a finding that there is nothing to check, and why."""
    return Finding("skip", found, "", name)


def run_check(check: Check, case: Case) -> list[Result]:
    """Run one check within its time; an error of the check itself becomes a finding.

    The check runs in a thread that does not hold up the end of the process, so that a file system or a command
    that never answers is told and left behind.
    """
    start = time.monotonic()
    found: list[Finding] = []

    def look() -> None:
        found.extend(_guarded(check, case))

    thread = threading.Thread(target=look, name=f"doctor: {check.name}", daemon=True)
    thread.start()
    thread.join(check.limit_s)
    # A list that is filled at this moment counts as no answer.
    findings = list(found) or [
        warned(
            f"no answer within {check.limit_s:g} s", "see whether this disk, command or server hangs, then try again"
        )
    ]
    seconds = time.monotonic() - start
    return [
        Result(check.group, one.name or check.name, one.verdict, one.found, one.remedy, seconds) for one in findings
    ]


def _guarded(check: Check, case: Case) -> list[Finding]:
    try:
        found = check.run(case)
        return [found] if isinstance(found, Finding) else list(found)
    except UserError as error:
        return [of_error(error)]
    except ImportError as error:
        return [failed(f"a package cannot be loaded: {error}", INSTALL)]
    except Exception as error:  # noqa: BLE001
        return [warned(f"the check itself failed: {type(error).__name__}: {error}", "judge this point by yourself")]


def of_error(error: UserError, name: str = "") -> Finding:
    """Return the finding that an error for users is: its words, and its way to mend it."""
    parts = [error.what.rstrip(".")]
    parts += [f"{word}{value}" for word, value in (("", error.where), ("found ", error.found)) if value is not None]
    if error.expected is not None and not error.fix:
        return failed("; ".join(parts), f"expected: {error.expected}", name)
    return failed("; ".join(parts), error.fix or "mend what is named here", name)


def run_all(checks: Sequence[Check], case: Case) -> list[Result]:
    """Run the groups side by side and the checks of a group one after the other; results keep the order given."""
    by_group: dict[str, list[Check]] = {}
    for check in checks:
        by_group.setdefault(check.group, []).append(check)
    results: dict[str, list[Result]] = {group: [] for group in by_group}

    def work(group: str) -> None:
        for check in by_group[group]:
            results[group] += run_check(check, case)

    threads = [threading.Thread(target=work, args=(group,), daemon=True) for group in by_group]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [result for group in by_group for result in results[group]]
