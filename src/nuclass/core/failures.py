"""How a command that failed is told: in words, with a status; a traceback only on request."""

from __future__ import annotations

import errno
import sys
import traceback

import nuclass
from nuclass.core.errors import UserError

FAILED, STOPPED = 1, 130
"""Status of a command that could not do its work, and of one that Ctrl-C ended. 2 is that of a misspelt command."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_MANY_FILES = (errno.EMFILE, errno.ENFILE)


def tell_error(error: BaseException, debug: bool = False) -> int:
    """Write to standard error why a command ended, and return its status.

    Parameters
    ----------
    error
        What it ended with.
    debug
        Whether the traceback comes before the words.
    """
    if debug:
        sys.stderr.write("".join(traceback.format_exception(error)))
    if isinstance(error, KeyboardInterrupt):
        sys.stderr.write(f"{str(error) or 'Stopped.'}\n")
        return STOPPED
    sys.stderr.write(f"{in_words(error, debug)}\n")
    return FAILED


def in_words(error: BaseException, debug: bool = False) -> UserError:
    """Return an error as one that speaks to the user; what nothing is known of is called a fault of the program."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return _memory(error)
    if isinstance(error, OSError) and (error.errno or error.filename):
        return _system(error)
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("nuclass"):
        return UserError(
            "A package is missing",
            where=sys.executable,
            found=str(error),
            fix="install what the program needs into this environment: pip install . in its folder, or make setup",
        )
    shown = "" if debug else "; --debug added to the command shows where"
    return UserError(
        "This is a fault of the program, not of your files",
        found=f"{type(error).__name__}: {' '.join(str(error).split())[:500]}{shown}",
        fix="report it where the program comes from, with the command, the text that --debug prints, and the version: "
        f"nuclass {nuclass.__version__}, Python {sys.version.split()[0]}",
    )


def _memory(error: BaseException) -> UserError:
    on_gpu = "CUDA" in str(error)
    return UserError(
        "The memory of the GPU does not suffice" if on_gpu else "The memory does not suffice",
        found=" ".join(str(error).split())[:200] or None,
        fix="end other programs on it, or take smaller pieces: a smaller batch"
        + (", or --device cpu" if on_gpu else ", fewer workers; or use a machine with more memory"),
    )


def _system(error: OSError) -> UserError:
    where = error.filename
    if error.errno in _FULL:
        return UserError(
            "The disk is full",
            where=where,
            found=error.strerror,
            fix="free space or quota on that disk and give the same command again; finished files are kept",
        )
    if isinstance(error, PermissionError):
        return UserError("There is no right to read or write a file", where=where, found=error.strerror)
    if isinstance(error, FileNotFoundError):
        return UserError("A file is missing", where=where, found=error.strerror, fix="check the path in the command")
    if isinstance(error, IsADirectoryError | NotADirectoryError):
        return UserError("A folder stands where a file is wanted, or a file where a folder is", where=where)
    if error.errno in _MANY_FILES:
        return UserError(
            "Too many files are open", where=where, found=error.strerror, fix="raise the limit (ulimit -n 4096)"
        )
    return UserError(
        "The system refused to read or write",
        where=where,
        found=error.strerror or str(error),
        fix="check the disk and the path, and give the same command again",
    )
