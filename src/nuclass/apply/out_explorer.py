"""The explorer's page of one slide of one's own: no labels, so the prediction and its confidence alone."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nuclass.apply.out_read import TABLE, Run
from nuclass.core.files import atomic_path
from nuclass.core.names import CELL_ID, GATE, GLOBAL, LOCAL, PROBABILITY_PREFIX
from nuclass.core.own_files import own_file

if TYPE_CHECKING:
    import pandas as pd

JPEG_QUALITY = 85
_WINDOWS = {LOCAL: 224, GLOBAL: 1024}
"""Px of the windows that the page shows around a cell where the model has none of that kind."""
_NAME_LENGTH = 60


def write_explorer(run: Run, store: str | Path, folder: str | Path) -> None:
    """Write ``index.html`` and all that it loads into a new folder: the slide as tiles, its cells, the page.

    The cells are those that were typed or abstained; the latter stand there without a class. How many were left out is
    told on the page.
    """
    from nuclass.explorer.cells import write_frames
    from nuclass.explorer.page import INDEX, write_page
    from nuclass.explorer.tiles import write_tiles

    name = folder_name(run.slide)
    frames, main = _frames(run)
    asked = run.facts.get("windows")
    windows = {**_WINDOWS, **(asked if isinstance(asked, dict) else {})}
    with atomic_path(folder) as root, _full_disk_told():
        here = root / "slides" / name
        write_frames(
            name,
            frames,
            here / "cells",
            where=run.folder / TABLE,
            sheet=run.sheet,
            main=main,
            colours=run.colours(),
            unpredicted=int(run.facts["counts"]["left_out"]),
        )
        write_tiles(name, store, here / "tiles", quality=JPEG_QUALITY)
        about = {"name": name, "title": run.slide, "organ": run.facts.get("organ") or "organ not known", "role": "own"}
        write_page(
            own_file("resources/explorer"),
            root / INDEX,
            root / "assets",
            root / "study.js",
            name=run.slide if len(run.slide) <= _NAME_LENGTH else run.slide[: _NAME_LENGTH - 1] + "…",
            slides=[{**about, "picture": True}],
            windows={kind: int(windows[kind]) for kind in _WINDOWS},
            mpp=float(run.facts["mpp"]),
            synthetic=False,
        )


@contextmanager
def _full_disk_told() -> Iterator[None]:
    """Give a full disk its number again where a folder was copied: such an error has none, and lists all files."""
    try:
        yield
    except shutil.Error as error:
        for number in (errno.ENOSPC, errno.EDQUOT):
            if f"[Errno {number}]" in str(error):
                raise OSError(number, os.strerror(number)) from error
        raise


def folder_name(slide: str) -> str:
    """Return a short name of letters, digits, ``_ - .`` for a folder and an address."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", slide).strip("._")[:_NAME_LENGTH] or "slide"


def _frames(run: Run) -> tuple[dict[str, pd.DataFrame], str]:
    """Return the tables by model, as the explorer takes them, and the model whose cells are shown."""
    table = run.table(shown=True)
    scored = [name for name in run.columns if name.startswith(PROBABILITY_PREFIX)]
    main = GATE if run.has_gate else str(run.facts["model"])
    kept = [CELL_ID, "x_px", "y_px", "confidence", *(["gate"] if run.has_gate else []), *scored]
    frames = {main: table[kept].assign(prediction=table["class"], said=table["prediction"])}
    for branch in (LOCAL, GLOBAL):
        columns = [f"{branch}_prediction", f"{branch}_confidence"]
        if branch != main and all(name in table for name in columns):
            part = table[[CELL_ID, *columns]]
            frames[branch] = part.set_axis([CELL_ID, "prediction", "confidence"], axis=1)
    numbers = [name for name in kept if name != CELL_ID]
    frames[main] = frames[main].astype(dict.fromkeys(numbers, np.float64))
    return frames, main
