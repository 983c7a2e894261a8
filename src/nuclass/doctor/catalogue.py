"""All checks in their groups, and one run of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nuclass.doctor.case import INSTALL, Case
from nuclass.doctor.exam import GROUPS, Check, Result, failed, run_all


def _machine() -> list[Check]:
    from nuclass.doctor import file_system, machine

    return machine.CHECKS + file_system.CHECKS


def _packages() -> list[Check]:
    from nuclass.doctor.packages import CHECKS

    return CHECKS


def _gpu() -> list[Check]:
    from nuclass.doctor.gpu import CHECKS

    return CHECKS


def _study() -> list[Check]:
    from nuclass.doctor.study import CHECKS

    return CHECKS


def _data() -> list[Check]:
    from nuclass.doctor.data import CHECKS

    return CHECKS


def _weights() -> list[Check]:
    from nuclass.doctor.weights import CHECKS

    return CHECKS


def _network() -> list[Check]:
    from nuclass.doctor.network import CHECKS

    return CHECKS


def _cluster() -> list[Check]:
    from nuclass.doctor.cluster import CHECKS

    return CHECKS


def _conda() -> list[Check]:
    from nuclass.doctor.conda import CHECKS

    return CHECKS


_GROUPS = (_machine, _packages, _gpu, _study, _data, _weights, _network, _cluster, _conda)


def all_checks() -> list[Check]:
    """Return all checks, group by group; a group that cannot be loaded has one check, which tells why."""
    return [check for group, load in zip(GROUPS, _GROUPS, strict=True) for check in _loaded(group, load)]


def _loaded(group: str, load: Callable[[], list[Check]]) -> list[Check]:
    try:
        return load()
    except ImportError as error:
        told = failed(f"a package cannot be loaded: {error}", INSTALL)
        return [Check(group, "checks", lambda case: told)]


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
    return str(case.study.config["study"]) if case.sound else None


def stage_of_job(file: str | Path) -> Path | None:
    """Return the file of the conda environment that a job of the workflow runs in, None in the whole environment.

    The whole environment has Snakemake; those of the stages that this is asked for have none of their own. That it can
    be imported says nothing: Snakemake appends its own packages to the path of every job.
    """
    from nuclass.doctor.packages import version_here

    return None if version_here("snakemake") is not None else Path(file)
