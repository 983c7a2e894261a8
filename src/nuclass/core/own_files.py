"""Files that come along with the program: the study's folder may have its own of the same name."""

from __future__ import annotations

from pathlib import Path

import nuclass


def home() -> Path:
    """Return the folder with ``config`` and ``resources``: the repository, or their copy in an installed package."""
    library = Path(nuclass.__file__).parent
    installed = library / "share"
    return installed if installed.is_dir() else library.parents[1]


def own_file(path: str | Path, root: str | Path = ".") -> Path:
    """Return a file of the study in ``root``, or where it has none of this name the one that comes along.

    A name that neither has is returned as one of the study, whose owner is told that it is missing.
    """
    place = Path(root) / path
    if place.exists():
        return place
    along = home() / path
    return along if along.exists() else place
