"""The state of files on disk, by which a file that was looked at before is known again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

FORMAT = 1
"""Of the manifest ``patches.json``."""
SLIDE_FILE = "slide.h5"
"""The slide that virtual windows of an export point into; beside them, or above ``train/`` and ``test/``."""


def file_state(path: str | Path) -> dict[str, int]:
    """Return size and time of change of a file.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    """
    stat = Path(path).stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def patch_states(paths: Iterable[str | Path]) -> dict[str, list[int]]:
    """Return size and time of change of patch files, and of the slide that virtual ones of an export point into.

    A rule whose parameters hold them takes the files in again after any change, also one that a file's time hides: a
    file put back from elsewhere may be older than what was made from the one before.

    Parameters
    ----------
    paths
        The files of a data set; those that are missing are left out.
    """
    files = [Path(path) for path in paths]
    slides = {place / SLIDE_FILE for file in files for place in (file.parent, file.parent.parent)}
    found = [file for file in [*files, *sorted(slides)] if file.is_file()]
    return {str(file): list(file_state(file).values()) for file in found}
