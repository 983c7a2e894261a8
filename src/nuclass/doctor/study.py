"""The configured study: settings and sheets, and what earlier runs left in its folder."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from nuclass.core.errors import UserError
from nuclass.core.progress import readable_bytes
from nuclass.doctor.case import Case
from nuclass.doctor.exam import Check, Finding, failed, of_error, passed, warned

_SHOWN = 3
MUCH = 50e9


def settings(case: Case) -> list[Finding]:
    """Settings, sheets, tables and models, as the workflow checks them when it starts."""
    named = ", ".join(str(file) for file in case.files) or "another workflow"
    if case.files and not (case.root / case.files[0]).is_file():
        return [
            failed(
                f"there is no {case.files[0]} in {case.root.absolute()}",
                "run it in the study's folder (a clone of the repository), or name that: --directory FOLDER",
            )
        ]
    try:
        study = case.study
    except UserError as error:
        return [of_error(error)]
    told = (
        f"'{study.config['study']}' of {named}: {len(study.train_slides)} training slides, "
        f"{len(study.cohorts)} cohorts; settings, sheets, tables and models are sound"
    )
    return [passed(told)]


def _runs_here(root: Path) -> list[int]:
    """Return the processes of this machine that are Snakemake at work in the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")[:4]
            named = any(Path(word.decode(errors="replace")).name == "snakemake" for word in words)
            if named and (entry / "cwd").resolve(strict=True) == root.resolve():
                found.append(int(entry.name))
        except OSError:
            continue
    return sorted(found)


def locks(case: Case) -> Finding:
    """Locks of Snakemake: of a run at work, or of one that was killed."""
    left = [file for file in (case.root / ".snakemake" / "locks").glob("*.lock") if file.is_file()]
    if not left:
        return passed("none")
    running = _runs_here(case.root)
    if running:
        return passed(f"of a run at work here (process {running[0]})")
    return warned(
        f"{len(left)} locks in .snakemake/locks, and no Snakemake at work in this folder on this machine",
        "if no other machine runs it either: snakemake --unlock",
    )


def half_made(case: Case) -> Finding:
    """Outputs of jobs that were killed; Snakemake keeps a mark of each while it is made."""
    folder = case.root / ".snakemake" / "incomplete"
    marks = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    names = sorted(name for name in map(_decoded, marks) if name and (case.root / name).exists())
    if not names or _runs_here(case.root):
        return passed("none" if not names else f"{len(names)}, of a run at work here")
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return warned(
        f"{len(names)} of jobs that were killed: {shown}",
        "nothing: the next run makes them anew (rerun-incomplete stands in profiles/default)",
    )


def _decoded(mark: Path) -> str:
    """Return the output that a mark is of: its name is that of the output in base64, long ones in folders with @."""
    try:
        return base64.urlsafe_b64decode("".join(part.removeprefix("@") for part in mark.parts).encode()).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""


def running_state(case: Case) -> Finding:
    """States under work/ from which trainings and features go on."""
    work = case.root / "work"
    if not work.is_dir():
        return passed("none: nothing was stopped")
    sizes: dict[str, int] = {}
    for file in work.rglob("*"):
        if file.is_file() and not file.is_symlink():
            part = "/".join(file.relative_to(work).parts[:2][: max(1, len(file.relative_to(work).parts) - 1)])
            sizes[part] = sizes.get(part, 0) + file.stat().st_size
    if not sizes:
        return passed("none: nothing was stopped")
    largest = sorted(sizes, key=lambda part: -sizes[part])[:_SHOWN]
    told = ", ".join(f"work/{part} {readable_bytes(sizes[part])}" for part in largest)
    more = f" and {len(sizes) - _SHOWN} more" if len(sizes) > _SHOWN else ""
    total = sum(sizes.values())
    found = f"{told}{more}, {readable_bytes(total)} in all; what was stopped goes on from there"
    if total > MUCH:
        return warned(found, "once all is made, rm -rf work gives the space back")
    return passed(found)


CHECKS = [
    Check("study", "settings and sheets", settings, 60.0),
    Check("study", "locks of Snakemake", locks),
    Check("study", "half-made outputs", half_made),
    Check("study", "running state", running_state, 20.0),
]
