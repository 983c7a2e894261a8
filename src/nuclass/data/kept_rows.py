"""Rows computed once, part by part, and kept: an interrupted pass goes on, several processes share the work."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path, read_json, write_json
from nuclass.core.log import get_logger
from nuclass.core.ranks import started_ranks

PART_ROWS = 65_536
_LOOK_EVERY_S = 0.5
_log = get_logger(__name__)


def kept_rows(
    folder: Path, key: str, n: int, compute: Callable[[int, int], Tensor], part_rows: int = PART_ROWS
) -> Tensor:
    """Return ``n`` rows of numbers (n, ...), those in ``folder`` as they are, the others by ``compute``.

    Parameters
    ----------
    folder
        Where parts are kept, each written at once; of another ``key``, they are removed.
    key
        What the rows depend on.
    n
        Number of rows.
    compute
        ``compute(start, stop)`` returns rows; called for parts of ``part_rows``, whatever was kept before, so that
        the numbers do not depend on interruptions.

    Where torchrun or srun started several processes, process r computes parts r, r + processes, ..., and waits for
    those of the others.
    """
    started = started_ranks()
    note = folder / "key.json"
    wanted = {"key": key, "rows": n, "part": part_rows}
    if started.rank == 0 and not _same(note, wanted):
        for path in folder.glob("*.npy"):
            path.unlink()
        write_json(note, wanted)
    _wait(lambda: _same(note, wanted), note)
    starts = range(0, n, part_rows)
    paths = [folder / f"{start:010d}.npy" for start in starts]
    for path, start in list(zip(paths, starts, strict=True))[started.rank :: started.world_size]:
        if not path.is_file():
            values = compute(start, min(start + part_rows, n)).numpy()
            with atomic_path(path) as temporary, temporary.open("wb") as stream:
                np.save(stream, values)
    for path in paths:
        _wait(path.is_file, path)
    return torch.from_numpy(np.concatenate([np.load(path) for path in paths]))


def _same(note: Path, wanted: dict[str, object]) -> bool:
    if not note.is_file():
        return False
    try:
        return bool(read_json(note) == wanted)
    except UserError:
        return False


def _wait(ready: Callable[[], bool], what: Path) -> None:
    """Wait for another process's file."""
    told = time.monotonic()
    while not ready():
        if time.monotonic() - told > 60:
            _log.info("Waiting for another process to write %s", what)
            told = time.monotonic()
        time.sleep(_LOOK_EVERY_S)
