"""Whether the disk of the study does what the workflow relies on; tried in a folder that is deleted again."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nuclass.core.progress import readable_bytes
from nuclass.doctor.case import Case
from nuclass.doctor.exam import Check, Finding, failed, passed, skipped, warned
from nuclass.doctor.machine import places

if TYPE_CHECKING:
    from nuclass.core.needs import Needs
    from nuclass.core.sizes import Estimate

SKEW_S = 5.0
_SHOWN = 3
_FULL = (errno.ENOSPC, errno.EDQUOT)


def _tried(case: Case, attempt: Callable[[Path], Finding]) -> Finding:
    """Run an attempt in a new folder beside the results, and delete that."""
    place = places(case)["results/"]
    try:
        folder = Path(tempfile.mkdtemp(prefix=".doctor_", dir=place))
    except OSError as error:
        return _no_writing(place, error)
    try:
        return attempt(folder)
    except OSError as error:
        return _no_writing(place, error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _no_writing(place: Path, error: OSError) -> Finding:
    if error.errno in _FULL:
        return failed(f"{place} is full, or your quota is: {error.strerror}", "free space there, or take another disk")
    if error.errno == errno.EROFS:
        return failed(f"{place} is on a disk that can only be read", "take a clone on a disk of yours")
    return failed(f"{place} cannot be written to: {error.strerror}", f"chmod u+rwx {place}, or take another folder")


def writing(case: Case) -> Finding:
    """A file is written, and takes the place of another in one step."""

    def attempt(folder: Path) -> Finding:
        old, new = folder / "old", folder / "new"
        old.write_bytes(b"old")
        with new.open("wb") as stream:
            stream.write(bytes(1 << 20))
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(old)
        if old.stat().st_size != 1 << 20 or new.exists():
            return failed("a file that takes the place of another is not seen at once", "take another disk")
        return passed(f"works in {folder.parent}")

    return _tried(case, attempt)


def links(case: Case) -> Finding:
    """Links, by which bundles on this disk are brought into the study without a copy."""

    def attempt(folder: Path) -> Finding:
        file = folder / "file"
        file.write_bytes(b"x")
        kinds = {"symbolic": folder.joinpath("symbolic").symlink_to, "hard": folder.joinpath("hard").hardlink_to}
        missing = []
        for kind, link in kinds.items():
            try:
                link(file)
            except OSError:
                missing.append(kind)
        if "symbolic" in missing:
            return failed(
                "symbolic links cannot be made here",
                "take a disk of Linux for the study (no exFAT, no share of Windows)",
            )
        if missing:
            return warned(
                "hard links cannot be made here", "nothing: Snakemake and conda copy instead, which takes space"
            )
        return passed("symbolic and hard")

    return _tried(case, attempt)


def locks(case: Case) -> Finding:
    """Locks, by which two downloads of one slide keep apart."""

    def attempt(folder: Path) -> Finding:
        import fcntl

        with (folder / "lock").open("w", encoding="ascii") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                return warned(
                    f"this disk gives no locks ({error.strerror})",
                    "start one workflow at a time in this folder; or ask for a mount with locks (NFS: no 'nolock')",
                )
        return passed("work")

    return _tried(case, attempt)


def clock(case: Case) -> Finding:
    """The disk's clock against this machine's: Snakemake compares times of files."""

    def attempt(folder: Path) -> Finding:
        file = folder / "now"
        before = time.time()
        file.write_bytes(b"x")
        after = time.time()
        stamp = file.stat().st_mtime
        away = before - stamp if stamp < before else max(0.0, stamp - after)
        if away > SKEW_S:
            return warned(
                f"the clock of {folder.parent} is {away:.0f} s away from this machine's",
                "set both clocks by the network (NTP): Snakemake may think that new files are old",
            )
        return passed("this machine and the disk agree")

    return _tried(case, attempt)


def disk(case: Case) -> list[Finding]:
    """Free space against what the study will still need for all goals, disk by disk."""
    from nuclass.core.needs import study_needs

    if not case.sound:
        return [skipped("the study cannot be read")]
    wanted = _still(study_needs(case.study, case.root))
    by_disk: dict[int, list[str]] = {}
    at = {folder: case.nearest(folder) for folder in wanted}
    for folder, place in at.items():
        by_disk.setdefault(place.stat().st_dev, []).append(folder)
    return [_space(case.root.absolute(), at, {name: wanted[name] for name in names}) for names in by_disk.values()]


def _still(needs: Needs) -> dict[str, Estimate]:
    """Return what is still to come, by folder.

    Which jobs are done only Snakemake knows; here a folder is done when what is expected of it lies there.
    """
    from nuclass.core.needs import BY_WAY_OF_WORK
    from nuclass.core.sizes import NOTHING

    done = {one.folder: one.full for one in needs.folders}
    running = not all(done.get(folder, True) for folder in BY_WAY_OF_WORK)
    left = {one.folder: one.passing if one.full else one.left for one in needs.folders}
    return left if running else {**left, "work": NOTHING}


def _space(root: Path, at: Mapping[str, Path], wanted: Mapping[str, Estimate]) -> Finding:
    from nuclass.core.sizes import total

    largest = sorted(wanted, key=lambda folder: -wanted[folder].expected)[:_SHOWN]
    place = root if at[largest[0]].stat().st_dev == root.stat().st_dev else at[largest[0]]
    free = shutil.disk_usage(place).free
    needed = total(wanted.values())
    parts = ", ".join(f"{folder} {readable_bytes(wanted[folder].expected)}" for folder in largest)
    told = (
        f"{readable_bytes(free)} free in {place}; all goals will still need about {readable_bytes(needed.expected)}, "
        f"{readable_bytes(needed.low)} to {readable_bytes(needed.high)} (most of it {parts})"
    )
    if free < needed.expected:
        short = readable_bytes(needed.expected - free)
        return failed(told, f"free {short} or more there, or clone the study onto a larger disk")
    if free < needed.high:
        return warned(told, "it may be too little: free some space there, or watch it while the study runs")
    return passed(told)


CHECKS = [
    Check("machine", "writing and renaming", writing),
    Check("machine", "links", links),
    Check("machine", "locks", locks),
    Check("machine", "clock", clock),
    Check("machine", "disk space", disk, 30.0),
]
