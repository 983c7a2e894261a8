"""All checks in their groups, and one run of them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from nuclass.doctor.case import Case
from nuclass.doctor.exam import GROUPS, Check, Result, run_all


def all_checks() -> list[Check]:
    """Return all checks, group by group."""
    from nuclass.doctor import cluster, conda, data, file_system, gpu, machine, network, packages, study, weights

    modules = (machine, file_system, packages, gpu, study, data, weights, network, cluster, conda)
    checks = [check for module in modules for check in module.CHECKS]
    return sorted(checks, key=lambda check: list(GROUPS).index(check.group))


def examine(case: Case, only: Sequence[str] = ()) -> list[Result]:
    """Run the checks of all groups, or of some, and return what they found, group by group.

    Parameters
    ----------
    case
        What is looked at.
    only
        Keys of :data:`GROUPS`; empty for all.
    """
    checks = [check for check in all_checks() if not only or check.group in only]
    return run_all(checks, case)


def study_name(case: Case) -> str | None:
    """Return the name of the study, None where it cannot be read."""
    try:
        return str(case.study.config["study"]) if case.sound else None
    except ImportError:
        return None


def stage_of_job(file: str | Path) -> Path | None:
    """Return the file of the conda environment that a job of the workflow runs in, None in the whole environment.

    The whole environment has Snakemake; those of the stages that this is asked for have none.
    """
    try:
        metadata.version("snakemake")
    except metadata.PackageNotFoundError:
        return Path(file)
    return None
