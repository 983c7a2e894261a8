"""A study and a machine for the doctor: settings in a folder, and programs of which each says what a test wants."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from nuclass.core.config import Study, merge_files
from nuclass.doctor.case import Case
from nuclass.doctor.exam import Check, Result, run_check
from nuclass.training.whole_study import load_whole_study

REPOSITORY = Path(__file__).parent.parent
BASE, PAPER = Path("config/config.yaml"), Path("config/paper.yaml")


@cache
def loaded(*files: Path) -> Study:
    """The checked study of settings of the repository."""
    return load_whole_study(merge_files(files, REPOSITORY), REPOSITORY, files)


def make_case(
    folder: Path, *, paper: bool = False, models: Mapping[str, Any] | None = None, slides: Any = None, **more: Any
) -> Case:
    """Return the case of a study in an empty folder, on a machine whose only programs are those in ``folder/bin``.

    ``models`` are laid over the sections of the models' settings; ``slides`` is a sheet in place of the study's.
    """
    files = (BASE, PAPER) if paper else (BASE,)
    study = loaded(*files)
    merged = copy.deepcopy(study.models)
    for name, section in (models or {}).items():
        merged[name] = {**merged[name], **section}
    study = replace(study, models=merged, slides=study.slides if slides is None else slides)
    (folder / "study").mkdir(exist_ok=True)
    (folder / "bin").mkdir(exist_ok=True)
    environ = {"PATH": str(folder / "bin"), "HOME": str(folder), **more.pop("environ", {})}
    case = Case(folder / "study", files, environ=environ, **more)
    case.__dict__["_study"] = study
    return case


def program(folder: Path, name: str, body: str) -> None:
    """Write a program into ``folder/bin``; its body may use what the shell itself knows."""
    (folder / "bin").mkdir(exist_ok=True)
    file = folder / "bin" / name
    file.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    file.chmod(0o755)


def distribution(folder: Path, name: str, version: str) -> Path:
    """Write what the installer leaves of a package into a folder that stands for site-packages, and return that."""
    place = folder / f"{name}-{version}.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    return folder


def write_study(folder: Path) -> Path:
    """Copy settings, tables and profiles of the repository, for what reads them from the study's folder."""
    for name in ("config", "profiles", "resources"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("bundles", "truth"))
    (folder / "slurm").symlink_to("profiles/slurm")
    return folder


def look(checks: list[Check], name: str, case: Case) -> list[Result]:
    """Run the check of this name and return what it found."""
    (check,) = (one for one in checks if one.name == name)
    return run_check(check, case)


def only(checks: list[Check], name: str, case: Case) -> Result:
    """Run the check of this name and return its one finding."""
    (result,) = look(checks, name, case)
    return result
