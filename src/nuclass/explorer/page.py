"""The page of the explorer: its own files, put together, and the list of slides that it offers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path
from nuclass.explorer.chunks import write_chunk

INDEX = "index.html"


def write_page(
    sources: str | Path,
    index: str | Path,
    assets: str | Path,
    study: str | Path,
    *,
    name: str,
    slides: Sequence[Mapping[str, Any]],
    windows: Mapping[str, int],
    mpp: float,
    synthetic: bool,
) -> None:
    """Copy the page and its scripts, and write what it needs to know of the study.

    Parameters
    ----------
    sources
        Folder with ``index.html``, ``explorer.css``, ``js`` and ``vendor``.
    index, assets, study
        Outputs in one folder: the page, the folder of all that it loads, and the list of slides, a script.
    name
        Of the study, shown in the title.
    slides
        ``name organ role`` and ``picture`` (whether there are tiles) of each; their files lie in ``slides/{name}``.
    windows
        Sides of the ``local`` and the ``global`` window, px of ``mpp``.
    mpp
        Micrometres per pixel of the slides.
    synthetic
        Whether the page has to say that the slides are synthetic.
    """
    root = Path(sources)
    if not (root / INDEX).is_file():
        raise UserError("The page of the explorer is missing", where=root / INDEX, fix="restore resources/explorer")
    with atomic_path(assets) as folder:
        shutil.copytree(root, folder, ignore=shutil.ignore_patterns(INDEX, "README.md"))
    facts = {"name": name, "slides": list(slides), "windows": dict(windows), "mpp": mpp, "synthetic": synthetic}
    write_chunk(study, "study", facts)
    with atomic_path(index) as path:
        shutil.copyfile(root / INDEX, path)
