"""Python and the packages of this environment, against pyproject.toml and requirements.lock."""

from __future__ import annotations

import os
import platform
import re
import site
import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nuclass
from nuclass.core.provenance import package_versions
from nuclass.doctor.case import CONDA_INSTALL, INSTALL, REPOSITORY, Case
from nuclass.doctor.exam import Check, Finding, failed, passed, skipped, warned

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_SHOWN = 6
# Names of conda packages whose Python package is called otherwise.
_CONDA_NAMES = {
    "matplotlib-base": "matplotlib",
    "pytorch": "torch",
    "python-igraph": "igraph",
    "snakemake-minimal": "snakemake",
}


def plain(name: str) -> str:
    """Return a package's name as packages are compared: lower case, with hyphens."""
    return re.sub(r"[-_.]+", "-", name).lower()


def project() -> Mapping[str, Any]:
    """Return the section ``project`` of pyproject.toml."""
    told: Mapping[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return told


def direct(told: Mapping[str, Any]) -> dict[str, Requirement]:
    """Return what the workflow imports or runs itself, with the bounds of pyproject.toml, by plain name."""
    from packaging.requirements import Requirement

    lines = [*told["dependencies"], *told.get("optional-dependencies", {}).get("workflow", [])]
    wanted = [Requirement(line) for line in lines]
    return {plain(one.name): one for one in wanted if one.marker is None or one.marker.evaluate()}


def locked(text: str) -> dict[str, str]:
    """Return the versions of a lock file that are meant for this Python and system, by plain name."""
    from packaging.markers import Marker

    found = {}
    for line in re.findall(r"^([A-Za-z0-9].*?)(?: *\\)?$", text, re.MULTILINE):
        pinned, _, marker = line.partition(";")
        name, _, version = pinned.strip().partition("==")
        if version and (not marker.strip() or Marker(marker.strip()).evaluate()):
            found[plain(name.partition("[")[0])] = version.strip()
    return found


def installed(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    return {name: version for name, version in package_versions(names).items() if version is not None}


def version_here(name: str) -> str | None:
    """Return the version of a package that lies in this environment itself; None where it is missing or elsewhere."""
    own = Path(sys.prefix).resolve()
    for found in metadata.distributions(name=name):
        if Path(str(found.locate_file(""))).resolve().is_relative_to(own):
            return found.version
    return None


def _there(case: Case, names: Iterable[str]) -> dict[str, str]:
    """Return the versions of packages that are installed; in a job's own environment those that lie in it."""
    found = installed(names)
    if case.environment is None:
        return found
    # Snakemake appends its own packages to the path of a job, after those of the job's environment.
    own = {name: version_here(name) for name in found}
    return {name: version for name, version in own.items() if version is not None}


def closure(roots: Iterable[str]) -> set[str]:
    """Return packages with all that they need here, as their own metadata tell it."""
    from packaging.requirements import InvalidRequirement, Requirement

    seen: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for line in lines:
            try:
                one = Requirement(line)
            except InvalidRequirement:
                continue
            if one.marker is None or one.marker.evaluate({"extra": ""}):
                waiting.append(plain(one.name))
    return seen


def _shown(items: Iterable[str]) -> str:
    listed = sorted(items)
    more = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def python(case: Case) -> Finding:
    """The version of Python."""
    from packaging.specifiers import SpecifierSet

    wanted = str(project()["requires-python"])
    told = f"{platform.python_version()} at {sys.executable}"
    if SpecifierSet(wanted).contains(platform.python_version()):
        return passed(told)
    return failed(f"{told}; {wanted} is needed", f"{INSTALL} PYTHON=/path/to/python3.12")


def stage_packages(file: Path) -> set[str]:
    """Return the Python packages of a conda environment's file, by plain name."""
    import yaml

    told = yaml.safe_load(file.read_text(encoding="utf-8"))
    lines = [line for line in told.get("dependencies", []) if isinstance(line, str)]
    lines += [
        line for part in told.get("dependencies", []) if isinstance(part, Mapping) for line in part.get("pip", [])
    ]
    names = {plain(re.split(r"[=<>!~ \[;]", line.split("::")[-1].strip())[0]) for line in lines}
    return {_CONDA_NAMES.get(name, name) for name in names} - {"python", "pip"}


def _expected(case: Case) -> dict[str, Requirement]:
    """Return the packages that this environment is to have: all, or those of the stage that a job runs in."""
    wanted = direct(project())
    if case.environment is None:
        return wanted
    own = stage_packages(case.environment)
    return {name: one for name, one in wanted.items() if name in own}


def bounds(case: Case) -> Finding:
    """What the workflow imports itself: there, and new enough."""
    wanted = _expected(case)
    there = {**_there(case, wanted), **{plain(k): v for k, v in case.outer.items() if plain(k) in wanted}}
    missing = [name for name in wanted if name not in there]
    old = [
        f"{name} {there[name]} (needed: {one.specifier})"
        for name, one in wanted.items()
        if name in there and not one.specifier.contains(there[name], prereleases=True)
    ]
    if missing or old:
        parts = [f"missing: {_shown(missing)}"] * bool(missing) + [f"too old: {_shown(old)}"] * bool(old)
        return failed("; ".join(parts), _install(case))
    return passed(f"{len(wanted)} packages that the workflow uses are there and new enough")


def _install(case: Case) -> str:
    return f"rm -r .snakemake/conda; {CONDA_INSTALL}" if case.environment else INSTALL


def lock(case: Case) -> Finding:
    """Every version against the lock file, by which others got the same results."""
    pinned = locked((REPOSITORY / "requirements.lock").read_text(encoding="utf-8"))
    names = closure(_expected(case)) & set(pinned)
    there = _there(case, names)
    missing = sorted(names - set(there))
    other = [
        f"{name} {there[name]} (locked: {pinned[name]})"
        for name in sorted(there)
        if not _same(there[name], pinned[name])
    ]
    # Conda knows some packages under other names and splits others: there a missing name means nothing.
    if missing and case.environment is None:
        return failed(f"missing: {_shown(missing)}", INSTALL)
    if other:
        return warned(
            f"{len(other)} of {len(there)} packages are not of the locked version: {_shown(other)}",
            f"{_install(case)}   (other versions may work, and may give other numbers)",
        )
    return passed(f"{len(there)} packages, all of the locked version")


def _same(here: str, pinned: str) -> bool:
    # torch adds its build, as in 2.15.0+cpu.
    return here.partition("+")[0] == pinned.partition("+")[0]


def own_code(case: Case) -> Finding:
    """Which copy of the library answers: that of this folder, or another."""
    here = Path(nuclass.__file__).resolve()
    study = (case.root / "src" / "nuclass" / "__init__.py").resolve()
    if study.is_file() and study != here:
        return warned(
            f"this command is of {here.parents[2]}, the jobs of this folder use {study.parents[2]}",
            f"PYTHONPATH={study.parents[1]} nuclass doctor   (or, there: {INSTALL})",
        )
    return passed(f"nuclass {nuclass.__version__} in {here.parents[2]}")


def strangers(case: Case) -> Finding:
    """Packages from elsewhere that come before those of the environment."""
    given = [part for part in case.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    foreign = [part for part in given if Path(part).resolve() != (REPOSITORY / "src").resolve()]
    foreign = [part for part in foreign if Path(part).resolve() != (case.root / "src").resolve()]
    if case.environ.get("PYTHONHOME"):
        return failed(f"PYTHONHOME is {case.environ['PYTHONHOME']}", "unset PYTHONHOME")
    if foreign:
        return warned(
            f"PYTHONPATH leads to {', '.join(foreign)}, also inside every job's environment", "unset PYTHONPATH"
        )
    own = site.getusersitepackages()
    if own in sys.path and any(Path(own).glob("*.dist-info")):
        return warned(f"packages of {own} come before those of the environment", "export PYTHONNOUSERSITE=1")
    return passed("no packages from elsewhere")


def workflow_engine(case: Case) -> Finding:
    """Snakemake itself, which a job's own environment need not have."""
    version = case.outer.get("snakemake") or installed(["snakemake"]).get("snakemake")
    if version is None:
        return failed("Snakemake is not installed", INSTALL)
    wanted = direct(project())["snakemake"].specifier
    if not wanted.contains(version, prereleases=True):
        return failed(f"Snakemake {version}; {wanted} is needed", INSTALL)
    return passed(f"Snakemake {version}")


def compiled(case: Case) -> Finding:
    """Packages that bring compiled code are loaded once, in a process of their own."""
    from nuclass.doctor.commands import ask

    wanted = _expected(case)
    names = [
        name for name in ("h5py", "numcodecs", "openslide-python", "pyarrow", "scipy", "tifffile") if name in wanted
    ]
    modules = [name.removesuffix("-python") for name in names]
    script = "".join(f"print({name!r}, flush=True)\nimport {name}\n" for name in modules)
    answer = ask([sys.executable, "-c", script], case.environ, 30.0)
    if answer.well:
        return passed(f"{', '.join(modules)} load")
    if not modules:
        return skipped("none of them belongs to this environment")
    last = (answer.out.splitlines() or ["the first"])[-1]
    return failed(f"{last} does not load: {answer.reason}", _install(case))


CHECKS = [
    Check("packages", "Python", python),
    Check("packages", "Snakemake", workflow_engine),
    Check("packages", "own packages", bounds),
    Check("packages", "locked versions", lock, 30.0),
    Check("packages", "this library", own_code),
    Check("packages", "foreign packages", strangers),
    Check("packages", "compiled packages", compiled, 40.0),
]
