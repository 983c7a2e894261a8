"""Names of files that are being written, and what writers that were killed left under such names."""

from __future__ import annotations

import os
import shutil
import socket
import time
from functools import cache
from pathlib import Path

from nuclass.core.log import get_logger

FOREIGN_AGE_S = 6 * 3600.0
"""What a writer on another machine left is taken for dead when nothing in it changed for so long, seconds."""
_log = get_logger(__name__)


def temporary_name(final: Path) -> Path:
    """Return the name beside ``final`` under which this process writes it, ``.<process>-<machine>.<name>``.

    What writers of the same file that were killed have left is removed first. One that is alive is left alone; of
    one on another machine only its silence can tell, see :data:`FOREIGN_AGE_S`.
    """
    for path in _left_in(final.parent, os.getpid()).pop(final.name, []):
        if _is_dead(path):
            _log.debug("%s was left by a process that was killed; removed", path)
            remove(path)
    return final.with_name(f".{os.getpid()}-{_machine()}.{final.name}")


def remove(path: Path) -> None:
    """Remove a file or a folder, where it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@cache
def _left_in(folder: Path, process: int) -> dict[str, list[Path]]:
    """Return a folder's unfinished files by their final names, as they are when ``process`` first writes there."""
    found: dict[str, list[Path]] = {}
    try:
        names = [path.name for path in folder.iterdir()]
    except (FileNotFoundError, PermissionError):
        # A folder may allow to write in it and not to list it.
        return found
    for name in names:
        owner, dot, final = name[1:].partition(".")
        if name.startswith(".") and dot and final and _owner(owner)[0]:
            found.setdefault(final, []).append(folder / name)
    return found


def _owner(text: str) -> tuple[int, str]:
    """Return the process and the machine that a name tells; process 0 where it tells none."""
    process, _, machine = text.partition("-")
    return (int(process) if process.isascii() and process.isdigit() else 0), machine


def _is_dead(path: Path) -> bool:
    process, machine = _owner(path.name[1:].partition(".")[0])
    if machine in ("", _machine()):
        # Under its own number a process finds only what one before it left: the list is made before it writes.
        return process == os.getpid() or not _alive(process)
    return time.time() - _changed(path) > FOREIGN_AGE_S


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _changed(path: Path) -> float:
    """Return when a file, or anything in a folder, was last written; now, where it is just vanishing."""
    try:
        inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else []
        return max(item.lstat().st_mtime for item in [path, *inside])
    except FileNotFoundError:
        return time.time()


@cache
def _machine() -> str:
    name = socket.gethostname().split(".")[0]
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)
