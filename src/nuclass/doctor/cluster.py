"""Slurm: its commands, Snakemake's plugin, and whether the profile fits this cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

from nuclass.core.errors import closest
from nuclass.doctor.accounting import CHECKS as ACCOUNTING
from nuclass.doctor.asked import Asked, read_rules, runtimes
from nuclass.doctor.case import INSTALL, REPOSITORY, SLURM_PROFILE, Case
from nuclass.doctor.commands import ask, find
from nuclass.doctor.exam import Check, Finding, failed, passed, skipped, warned
from nuclass.doctor.networks import uses_of, wants_gpu
from nuclass.doctor.slurm import COMMANDS, LIMIT_S, NO_SLURM, has_slurm, listed, value_of

PLUGIN = "snakemake-executor-plugin-slurm"
_SHOWN = 5
_OF_PUBLISHED = (("embed", ""), ("train", "_linear"), ("train", "_finetuned"), ("predict", ""))


@dataclass(frozen=True)
class Partition:
    """A partition: whether it is the default and up, its longest job in minutes (None: no limit), and its GPUs."""

    name: str
    default: bool
    up: bool
    longest: int | None
    gpus: tuple[str, ...]


def commands(case: Case) -> Finding:
    """The commands of Slurm."""
    missing = [name for name in COMMANDS if find(name, case.environ) is None]
    if len(missing) == len(COMMANDS):
        return skipped(f"{NO_SLURM}; it is needed for --profile slurm only")
    if missing:
        return failed(f"{', '.join(missing)} not found, the others are", "load the module of Slurm, or mend PATH")
    answer = ask(["sinfo", "--version"], case.environ, LIMIT_S)
    if not answer.well:
        return failed(f"sinfo --version: {answer.reason}", "ask the cluster's administrator")
    return passed(answer.out.splitlines()[0] if answer.out else "there")


def partitions(environ: Mapping[str, str]) -> tuple[list[Partition], str]:
    """Return the partitions of the cluster, and why they are not told."""
    answer = ask(["sinfo", "--noheader", "--format=%P|%a|%l|%G"], environ, LIMIT_S)
    if not answer.well:
        return [], answer.reason
    found: dict[str, Partition] = {}
    for line in answer.out.splitlines():
        parts = [part.strip() for part in line.split("|")]
        if len(parts) != 4:
            continue
        name = parts[0].rstrip("*")
        gpus = tuple(re.findall(r"gpu[^,]*", parts[3]))
        known = found.get(name)
        found[name] = Partition(
            name,
            parts[0].endswith("*") or bool(known and known.default),
            parts[1] == "up",
            minutes(parts[2]),
            tuple(dict.fromkeys((known.gpus if known else ()) + gpus)),
        )
    return list(found.values()), "" if found else "sinfo shows no partition"


def minutes(text: str) -> int | None:
    """Return a time of Slurm in minutes, None for ``infinite``.

    ``days-hours:minutes:seconds``, ``hours:minutes:seconds`` or ``minutes:seconds``, as sinfo writes it.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", text)
    if not match:
        return None
    days, hours, mins, last = (int(part) if part else 0 for part in match.groups())
    if match[3] is None:
        # One number alone: minutes, or hours behind days.
        return days * 1440 + last * 60 if match[1] else last
    if match[1] and match[2] is None:
        return days * 1440 + mins * 60 + last
    return days * 1440 + hours * 60 + mins + (1 if last else 0)


def controller(case: Case) -> Finding:
    """The controller answers, with its partitions."""
    if not has_slurm(case):
        return skipped(NO_SLURM)
    there, reason = partitions(case.environ)
    if not there:
        return failed(
            f"the cluster does not answer: {reason}",
            "scontrol ping   tells whether slurmctld is up; if not, wait or ask",
        )
    told = ", ".join(map(_words, there[:_SHOWN]))
    return passed(f"{len(there)} partitions: {told}{' and others' if len(there) > _SHOWN else ''}")


def _words(one: Partition) -> str:
    marks = ["default"] * one.default + ["down"] * (not one.up) + list(one.gpus[:1])
    return one.name + (f" ({', '.join(marks)})" if marks else "")


def plugin(case: Case) -> Finding:
    """Snakemake's plugin for Slurm."""
    version = case.outer.get(PLUGIN)
    if version is None:
        try:
            version = metadata.version(PLUGIN)
        except metadata.PackageNotFoundError:
            told = "the plugin of Snakemake for Slurm is not installed"
            return failed(told, INSTALL) if has_slurm(case) else skipped(f"{told}; {NO_SLURM}")
    return passed(f"{PLUGIN} {version}")


def profile(case: Case) -> Finding:
    """The profile is found under the name that the command gives."""
    if not case.profile:
        told = f"there is no {SLURM_PROFILE} in {case.root.absolute()}"
        return failed(told, f"git checkout {SLURM_PROFILE}") if has_slurm(case) else skipped(told)
    link = case.root / "slurm"
    if not (link / "config.yaml").is_file():
        return warned("the link slurm is missing, so --profile slurm finds nothing", "ln -s profiles/slurm slurm")
    return passed(f"{SLURM_PROFILE}, by the link slurm")


def _places(name: str | None, known: Mapping[str, Partition], default: Partition | None) -> list[Partition]:
    """Return the partitions that a job may go to, as far as they are there; the default where none is named."""
    if not listed(name):
        return [default] if default else []
    return [known[part] for part in listed(name) if part in known]


def _gpu_rules(case: Case, rules: Mapping[str, Asked]) -> list[str]:
    """Return the rules that ask for a GPU in this study."""
    if not case.sound or not any(use.needs_gpu for use in uses_of(case.study.models)):
        return []
    return [name for name, asked in rules.items() if asked.gpu]


def partitions_named(case: Case) -> list[Finding] | Finding:
    """The partitions of the profile exist, are up, and those of GPU jobs have GPUs."""
    if not has_slurm(case):
        return skipped(NO_SLURM)
    there, reason = partitions(case.environ)
    if not there:
        return skipped(f"the cluster does not answer: {reason}")
    rules = read_rules(REPOSITORY / "rules")
    known = {one.name: one for one in there}
    default = next((one for one in there if one.default), None)
    named = {rule: value_of(rule, "slurm_partition", case.profile) for rule in rules}
    wrong = sorted({part for name in named.values() for part in listed(name) if part not in known})
    if wrong:
        near = closest(wrong[0], list(known))
        return failed(
            f"{SLURM_PROFILE} names {', '.join(wrong)}; there are {', '.join(known)}.{near}",
            f"correct slurm_partition in {SLURM_PROFILE}",
        )
    if default is None and any(name is None for name in named.values()):
        return failed(
            f"no partition is the default, and {SLURM_PROFILE} names none for all rules",
            f"slurm_partition: {there[0].name}   under default-resources in {SLURM_PROFILE}",
        )
    down = sorted({name for name in named.values() if name and not any(known[part].up for part in listed(name))})
    if down:
        return failed(f"down: {', '.join(down)}", f"wait, or name another slurm_partition in {SLURM_PROFILE}")
    used = ", ".join(dict.fromkeys(name or f"{default.name if default else ''} (default)" for name in named.values()))
    return [passed(f"jobs go to {used}"), _gpus(case, rules, known, default, named)]


def _gpus(
    case: Case,
    rules: Mapping[str, Asked],
    known: Mapping[str, Partition],
    default: Partition | None,
    named: Mapping[str, str | None],
) -> Finding:
    name = "GPUs of the cluster"
    needy = _gpu_rules(case, rules)
    able = [one.name for one in known.values() if one.gpus]
    if not needy:
        return skipped("the study's networks need no GPU" if case.sound else "the study cannot be read", name)
    if not able:
        return failed("no partition shows GPUs (sinfo, column GRES)", "ask for access to a partition with GPUs", name)
    without = []
    for rule in needy:
        places = _places(named[rule], known, default)
        if places and not any(one.gpus for one in places):
            without.append(rule)
    if without:
        shown = ", ".join(without[:_SHOWN]) + (f" and {len(without) - _SHOWN} more" if len(without) > _SHOWN else "")
        return failed(
            f"{shown} go to a partition without GPUs; with GPUs: {', '.join(able)}",
            f"slurm_partition: {able[0]}   for each of these rules under set-resources in {SLURM_PROFILE}",
            name,
        )
    return passed(f"{len(needy)} rules ask for GPUs, and go where there are some ({', '.join(able)})", name)


def time_limits(case: Case) -> list[Finding] | Finding:
    """Time that the rules ask for against the longest job of their partition."""
    if not has_slurm(case):
        return skipped(NO_SLURM)
    if not case.sound:
        return skipped("the study cannot be read")
    there, reason = partitions(case.environ)
    if not there:
        return skipped(f"the cluster does not answer: {reason}")
    known = {one.name: one for one in there}
    default = next((one for one in there if one.default), None)
    long: dict[str, tuple[int, int, str]] = {}
    rules = read_rules(REPOSITORY / "rules")
    asked = runtimes(rules, case.profile, _is_small(case))
    asked = {rule: time for rule, time in asked.items() if rule not in _idle(case)}
    unknown: dict[str, str] = {}
    for rule, wanted in asked.items():
        place = value_of(rule, "slurm_partition", case.profile)
        places = _places(place, known, default)
        limits = [one.longest for one in places if one.longest is not None]
        if not places:
            unknown[rule] = place or "no default"
        elif len(limits) == len(places) and wanted > max(limits):
            long[rule] = (wanted, max(limits), ",".join(one.name for one in places))
    return [*_too_long(asked, long, unknown), *_not_compared(unknown)]


def _not_compared(unknown: Mapping[str, str]) -> list[Finding]:
    names = ", ".join(sorted(set(unknown.values())))
    told = f"{len(unknown)} rules not compared: their partition is not there ({names})"
    return [skipped(told, "time limits, rest")] if unknown else []


def _too_long(
    asked: Mapping[str, int], long: Mapping[str, tuple[int, int, str]], unknown: Mapping[str, str]
) -> list[Finding]:
    """Return the finding on the rules whose partition is there; ``long`` has minutes asked for, limit and partition."""
    compared = [wanted for rule, wanted in asked.items() if rule not in unknown]
    if not compared:
        return []
    if not long:
        return [passed(f"no rule asks for more time than its partition gives (the longest {max(compared)} min)")]
    shown = sorted(long, key=lambda rule: -long[rule][0])
    told = ", ".join(f"{rule} {long[rule][0]} min (partition {long[rule][2]}: {long[rule][1]})" for rule in shown)
    return [
        failed(
            f"asks for more than its partition gives, so it would never start: {told}",
            f"runtime: {long[shown[0]][1]}   for each of them under set-resources in {SLURM_PROFILE}; "
            "trainings go on in the next job",
        )
    ]


def _is_small(case: Case) -> bool:
    """Return whether the study has drawn slides and small networks alone."""
    large = any(use.large for use in uses_of(case.study.models))
    return set(case.study.slides["source"]) == {"synthetic"} and not large


def _idle(case: Case) -> set[str]:
    """Return rules that this study has no job for, as far as that is plain: they may ask for what they like."""
    idle = set() if set(case.study.slides["source"]) & {"dataset", "local"} else {"fetch_bundle"}
    if not any(use.part.startswith("baseline") and wants_gpu(use.backbone) for use in uses_of(case.study.models)):
        idle |= {f"{stage}_baseline{head}" for stage, head in _OF_PUBLISHED}
    return idle


CHECKS = [
    Check("cluster", "commands", commands, 15.0),
    Check("cluster", "plugin", plugin),
    Check("cluster", "profile", profile),
    Check("cluster", "controller", controller, 15.0),
    Check("cluster", "partitions", partitions_named, 60.0),
    Check("cluster", "time limits", time_limits, 15.0),
    *ACCOUNTING,
]
