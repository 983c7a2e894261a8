"""Features of frozen backbones, one row a cell, in an HDF5 file that names its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path

_ROWS = 4096


def write_features(
    path: str | Path, cell_ids: Sequence[str], features: NDArray[Any], attrs: Mapping[str, Any] | None = None
) -> None:
    """Write features as float16.

    Parameters
    ----------
    cell_ids
        ``N`` different ids.
    features
        ``(N, D)``, or ``(N, V, D)`` for V views of a cell (such as its rotations and mirrors).
    attrs
        What they depend on: backbone, window_px, read_level, input_px, mpp, sha256.

    Raises
    ------
    UserError
        A feature is not finite in half precision (|value| < 65,520).
    """
    ids = [str(value) for value in cell_ids]
    if features.ndim not in (2, 3) or len(features) != len(ids) or len(set(ids)) != len(ids):
        raise ValueError(f"{len(ids)} ids ({len(set(ids))} different) for features of shape {features.shape}")
    with np.errstate(over="ignore"):
        half = features.astype(np.float16)
    bad = len(ids) - int(np.isfinite(half.reshape(len(ids), -1)).all(axis=1).sum())
    if bad:
        raise UserError(
            "Features are not finite in half precision",
            where=path,
            found=f"{bad} of {len(ids)} cells",
            fix="check the backbone and the normalisation of its input",
        )
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("cell_id", data=np.array(ids, dtype=object), dtype=h5py.string_dtype())
        file.create_dataset("features", data=half)
        for key, value in (attrs or {}).items():
            file.attrs[key] = value


def read_features(path: str | Path, cell_ids: Sequence[str]) -> NDArray[np.float32]:
    """Return the features of these cells, in this order: float32 ``(N, D)`` or ``(N, V, D)``.

    Raises
    ------
    UserError
        The file is missing, broken or no feature file, or lacks some of the cells (how many, and the first).
    """
    import pandas as pd

    with _open(path) as file:
        stored = pd.Index(file["cell_id"].asstr()[:])
        rows = stored.get_indexer(pd.Index([str(value) for value in cell_ids], dtype=object))
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            first = ", ".join(str(cell_ids[i]) for i in missing[:3])
            raise UserError(
                "Cells have no features",
                where=path,
                found=f"{len(missing)} of {len(rows)} cells are not among the {len(stored)} stored, the first: {first}",
                fix="compute the features of this slide again",
            )
        dataset = file["features"]
        out = np.empty((len(rows), *dataset.shape[1:]), np.float32)
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        for start in range(0, len(stored), _ROWS):
            first, last = np.searchsorted(ordered, (start, start + _ROWS))
            if last > first:
                block = dataset[start : start + _ROWS]
                out[order[first:last]] = block[ordered[first:last] - start]
    return out


def read_attributes(path: str | Path) -> dict[str, Any]:
    """Return what a feature file says it depends on."""
    with _open(path) as file:
        return {key: value.item() if hasattr(value, "item") else value for key, value in file.attrs.items()}


def _open(path: str | Path) -> h5py.File:
    if not Path(path).is_file():
        raise UserError("A feature file is missing", where=path, fix="run the rule that makes it")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError("A feature file cannot be read", where=path, found=str(error), fix="make it again") from error
    if not {"cell_id", "features"} <= set(file) or len(file["cell_id"]) != len(file["features"]):
        found = ", ".join(f"{name} {getattr(file[name], 'shape', '')}" for name in file)
        file.close()
        raise UserError(
            "This is no feature file", where=path, found=found, expected="datasets cell_id (N) and features (N, ...)"
        )
    return file
