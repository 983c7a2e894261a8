"""One process at a time in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger

_log = get_logger(__name__)


@contextmanager
def alone_in(folder: Path, lock: str, what: str, fix: str) -> Iterator[None]:
    """Make a folder and keep other processes from writing into it at the same time.

    The lock is of this process alone, not of those that it starts, and goes with it, also where that is killed. File
    systems without locks give none.

    Parameters
    ----------
    folder
        Where the work is done.
    lock
        Name of the lock's file in it, which is removed at the end; so is a folder that was made and stayed empty.
    what, fix
        Said where the folder is taken: what is wrong, and what to do.

    Raises
    ------
    UserError
        Another process holds the lock, or the folder cannot be made or written to.
    """
    path = folder / lock
    made = not folder.exists()
    stream = _opened(path)
    try:
        while not _locked(stream, path, what, fix):
            stream.close()
            stream = _opened(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if made:
                # Work that failed at once leaves no empty folder.
                with suppress(OSError):
                    folder.rmdir()
    finally:
        stream.close()


def _opened(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise UserError(
            "The folder cannot be made or written to",
            where=path.parent,
            found=error.strerror,
            fix="give another folder, or the right to write there",
        ) from error


def _locked(stream: IO[str], path: Path, what: str, fix: str) -> bool:
    """Take the lock; False where the process that had it has removed its file meanwhile."""
    import fcntl

    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise UserError(what, where=path.parent, expected="one at a time", fix=fix) from error
    except OSError as error:
        _log.debug("%s: no lock (%s)", path, error)
        return True
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False
