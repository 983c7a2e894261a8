"""Outlines and cell ids of cells.zarr.zip, for bundles without tables of boundaries."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from nuclass.xenium.tables import broken

CELLS_ZARR = "cells.zarr.zip"
_LETTERS = np.array(list("abcdefghijklmnop"))


def cell_id_text(ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return cell ids as text.

    Parameters
    ----------
    ids
        (N,) or (N, 1) whole numbers before XOA 1.3, written as they are; (N, 2) prefix and suffix since,
        written as the prefix's 8 hexadecimal digits in the letters a to p, then ``-suffix``.
    """
    ids = np.asarray(ids)
    if ids.ndim == 1 or ids.shape[1] == 1:
        return ids.reshape(-1).astype(str).astype(object)
    prefix = ids[:, 0].astype(np.uint32)
    digits = (prefix[:, None] >> np.arange(28, -4, -4, dtype=np.uint32)) & 15
    letters = _LETTERS[digits]
    return np.array([f"{''.join(row)}-{suffix}" for row, suffix in zip(letters, ids[:, 1], strict=True)], object)


@contextmanager
def open_zarr(file: Path) -> Iterator[Any]:
    """Open a Zarr zip of a bundle for reading; a broken or a wrong one is a :class:`UserError`."""
    import zarr

    try:
        store = zarr.storage.ZipStore(file, mode="r")
        try:
            yield zarr.open_group(store, mode="r")
        finally:
            store.close()
    except (zipfile.BadZipFile, OSError, KeyError, ValueError, RuntimeError, AttributeError) as error:
        raise broken(file, error, "a zip of Zarr arrays as the instrument writes it") from error


def outlines(file: Path, kind: Literal["nucleus", "cell"]) -> pd.DataFrame | None:
    """Return outlines as the table of boundaries states them, or None where the file holds none.

    Since XOA 2.0 there are ``polygon_sets`` with a cell for each outline, and the table has ``label_id``,
    the outline's row from 1; before, ``polygon_vertices`` with one nucleus and one cell a row.
    """
    with open_zarr(file) as root:
        if "polygon_sets" in root:
            names = list(root.attrs.get("polygon_set_names", ("nucleus", "cell")))
            if kind not in names:
                return None
            group = root["polygon_sets"][str(names.index(kind))]
            vertices, count = group["vertices"][:], group["num_vertices"][:]
            owner, labelled = group["cell_index"][:].astype(np.int64), True
        elif "polygon_vertices" in root:
            index = ("nucleus", "cell").index(kind)
            vertices, count = root["polygon_vertices"][index], root["polygon_num_vertices"][index]
            owner, labelled = np.arange(len(count)), False
        else:
            return None
        ids = cell_id_text(root["cell_id"][:])
    points = vertices.reshape(len(count), -1, 2)
    kept = np.arange(points.shape[1]) < np.asarray(count)[:, None]
    row = np.nonzero(kept)[0]
    frame = pd.DataFrame({"cell_id": pd.Categorical.from_codes(owner[row], ids)})
    frame["vertex_x"], frame["vertex_y"] = points[kept].T
    return frame.assign(label_id=row + 1) if labelled else frame
