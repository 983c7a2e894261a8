"""Nuclei that were found in an image, kept beside the results: to look for them again takes minutes."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nuclass.apply.positions import Outlines, Positions
from nuclass.core.files import atomic_path
from nuclass.core.log import get_logger

_log = get_logger(__name__)


def kept_cells(path: Path, key: dict[str, Any], find: Callable[[], Positions]) -> Positions:
    """Return what ``find`` finds, or what an earlier call of the same ``key`` kept in the file ``path``.

    Parameters
    ----------
    key
        What the nuclei depend on, plain values.
    """
    told = json.dumps(key, sort_keys=True)
    known = _read(path, told)
    if known is not None:
        _log.info("%s: %d nuclei are there from an earlier run", path, len(known))
        return known
    found = find()
    empty = found.outlines is None
    vertices = np.empty((0, 2)) if found.outlines is None else found.outlines.vertices
    offsets = np.empty(0, np.int64) if found.outlines is None else found.outlines.offsets
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(
            stream,
            key=np.array([told, found.source, found.kind, "" if empty else "outlines"]),
            cell_id=found.cell_id.astype(str),
            xy=found.xy,
            vertices=vertices,
            offsets=offsets,
        )
    return found


def _read(path: Path, told: str) -> Positions | None:
    """Return the kept nuclei, None where there are none of this key."""
    if not path.is_file():
        return None
    try:
        with np.load(path) as stored:
            key, source, kind, outlined = stored["key"].tolist()
            if key != told:
                return None
            outlines = Outlines(stored["vertices"], stored["offsets"]) if outlined else None
            return Positions(stored["cell_id"].astype(object), stored["xy"], outlines, source, kind)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        # A file that another version wrote, or that is cut off, is made again.
        return None
