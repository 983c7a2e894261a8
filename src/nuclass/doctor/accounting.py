"""What Snakemake's plugin asks Slurm while it runs: what became of a job, and which account pays for it."""

from __future__ import annotations

import getpass
import re
from collections.abc import Mapping

from nuclass.core.errors import closest
from nuclass.doctor.case import SLURM_PROFILE, Case
from nuclass.doctor.commands import ask, find
from nuclass.doctor.exam import Check, Finding, failed, passed, skipped, warned
from nuclass.doctor.slurm import LIMIT_S, NO_SLURM, has_slurm, listed, resources_of, value_of

LEAST_AGE_S = 200
"""The plugin asks at least every 180 s; a job that is forgotten in between is waited for for ever."""
FIRST_ASKED_S = 40
"""Of the plugin, where the profile names none; where Slurm forgets within three times as much it turns to sacct."""
BY_SQUEUE, BY_SACCT = (f"slurm-status-command: {name}   in {SLURM_PROFILE}" for name in ("squeue", "sacct"))
LONGER = "ask the cluster's administrator for MinJobAge=300 in slurm.conf"


def remembered(environ: Mapping[str, str]) -> tuple[int | None, str]:
    """Return for how many seconds Slurm remembers finished jobs (0: for ever), and why that is not told."""
    answer = ask(["scontrol", "show", "config"], environ, LIMIT_S)
    if not answer.well:
        return None, answer.reason
    match = re.search(r"^\s*MinJobAge\s*=\s*(\d+)", answer.out, re.MULTILINE)
    return (int(match[1]), "") if match else (None, "scontrol show config names no MinJobAge")


def status(case: Case) -> Finding:
    """How Snakemake learns what became of a job: by squeue, which knows young jobs alone, or by sacct."""
    if not has_slurm(case):
        return skipped(NO_SLURM)
    mode = str(case.profile.get("slurm-status-command") or "")
    why = "as the profile says"
    has_sacct = find("sacct", case.environ) is not None
    if not mode:
        mode, why = ("sacct" if has_sacct else "squeue"), "the plugin's choice, for the profile names none"
    elif mode == "sacct" and not has_sacct:
        mode, why = "squeue", "for the profile names sacct, which is not found"
    age, reason = remembered(case.environ)
    if mode == "squeue" and age == 0 and has_sacct:
        mode, why = "sacct", "for the plugin takes MinJobAge 0, for ever, for too short"
    least = max(LEAST_AGE_S, 3 * _first_asked(case))
    enough = age is not None and (age >= least or (age == 0 and not has_sacct))
    if mode == "sacct":
        return _by_sacct(case, why, enough, age)
    told = f"asked by squeue, {why}"
    if age is None:
        return warned(
            f"{told}; for how long it remembers finished jobs is not told: {reason}",
            f"scontrol show config | grep MinJobAge   must tell {least} s or more; else {BY_SACCT}",
        )
    if enough:
        return passed(f"{told}; Slurm remembers finished jobs for {f'{age} s' if age else 'ever'} (MinJobAge)")
    remedy = BY_SACCT if _sacct_answers(case) == "" else LONGER
    told = f"{told}; but Slurm forgets finished jobs after {age} s (MinJobAge), and {least} s are needed"
    return failed(f"{told}: Snakemake may wait for them for ever", remedy)


def _first_asked(case: Case) -> int:
    given = str(case.profile.get("slurm-init-seconds-before-status-checks") or "")
    return int(given) if given.isdigit() else FIRST_ASKED_S


def _sacct_answers(case: Case) -> str:
    """Return why sacct does not work; empty where it does."""
    answer = ask(["sacct", "-X", "--noheader", "--starttime=now", "--format=JobID"], case.environ, LIMIT_S)
    return "" if answer.well else answer.reason


def _by_sacct(case: Case, why: str, enough: bool, age: int | None) -> Finding:
    reason = _sacct_answers(case)
    if reason:
        remedy = BY_SQUEUE if enough or age is None else f"{LONGER}, then {BY_SQUEUE}"
        return failed(f"asked by sacct, {why}, which does not work: {reason}", remedy)
    return warned(
        f"asked by sacct, {why}, which works; but the plugin, in version 2.8.0, then waits for ever for a job that is "
        "cancelled: sacct says CANCELLED by whom, and it knows CANCELLED alone",
        BY_SQUEUE if enough else f"after each scancel end Snakemake (Ctrl-C) and start it again; or {LONGER}",
    )


def accounts(environ: Mapping[str, str]) -> tuple[list[str], str]:
    """Return this user's accounts, asked for as the plugin does, and why it cannot go on; both are empty untold."""
    words = ["sacctmgr", "-n", "-s", "list", "user", getpass.getuser(), "format=account%256"]
    first = ask(words, environ, LIMIT_S)
    if first.well and first.out:
        return _names(first.out), ""
    if find("sacctmgr", environ) is None:
        return [], first.reason
    second = ask(["sshare", "-U", "--format", "Account%256", "--noheader"], environ, LIMIT_S)
    if second.well:
        return _names(second.out), ""
    return [], f"sacctmgr tells none{'' if first.well else f' ({first.reason})'}, sshare neither ({second.reason})"


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))


def account(case: Case) -> Finding:
    """The account that jobs are charged to is one of this user's; the plugin submits nothing otherwise."""
    if not has_slurm(case):
        return skipped(NO_SLURM)
    general, own = resources_of(case.profile)
    given = [value_of(rule, "slurm_account", case.profile) for rule in ("", *own)]
    named = list(dict.fromkeys(name for text in given for name in listed(text)))
    if "slurm_account" not in general and find("sacct", case.environ) is None:
        return failed(
            "sacct is not found: where no account is named the plugin asks it for one, and ends without it",
            f"load the module of Slurm, or slurm_account: NAME   under default-resources in {SLURM_PROFILE}",
        )
    if not named:
        return passed("your default account of Slurm")
    known, reason = accounts(case.environ)
    out = f"take slurm_account out of {SLURM_PROFILE}: jobs then go to your default account of Slurm"
    if reason:
        return failed(f"the plugin cannot compare {', '.join(named)}, and submits nothing: {reason}", out)
    if not known:
        return passed(f"{', '.join(named)}; not compared, for Slurm tells no accounts")
    wrong = [name for name in named if name.lower() not in {one.lower() for one in known}]
    if wrong:
        near = closest(wrong[0], known)
        return failed(
            f"{SLURM_PROFILE} names the account {', '.join(wrong)}; yours are {', '.join(known)}.{near}",
            f"correct slurm_account in {SLURM_PROFILE}",
        )
    return passed(f"{', '.join(named)}, known to Slurm")


CHECKS = [
    Check("cluster", "account", account, 30.0),
    Check("cluster", "state of jobs", status, 30.0),
]
