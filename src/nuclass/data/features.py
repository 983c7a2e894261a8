"""Features of frozen backbones, one row a cell, in an HDF5 file that names its cells and what the features depend on.

Datasets ``cell_id`` (N, fixed-length UTF-8) and ``features`` (N, ...) float16, both contiguous; attributes ``key``
(JSON, see :class:`FeatureKey`) and ``digest`` (of the key).
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path

Half = NDArray[np.float16]
Ids = Sequence[str] | NDArray[Any]
BLOCK_CELLS = 4096
_HEADER_BYTES = 1 << 20
_AGAIN = "make it again with this version"


@dataclass(frozen=True)
class FeatureKey:
    """What features depend on, besides the cells and the pixels of their slide.

    Attributes
    ----------
    backbone, sha256
        Name of the network; SHA-256 of its weights and architecture.
    window_px, mpp, read_level, input_px
        Side of the window in level-0 px; micrometres a level-0 px; pyramid level read; side of what the network sees.
    pooling
        How its output becomes one vector, such as ``cls+mean``.
    mean, std
        Normalisation of values in [0, 1], a number a channel.
    precision
        In which the network computed: ``float32`` or ``bfloat16``.
    views, augment, seed
        Of features under augmentation: copies a cell, settings as sorted pairs (name, value), seed. Else 0, (), None.
    truncated
        Whether windows were reduced and normalised as the original does (protocol: truncated_context).
    """

    backbone: str
    sha256: str
    window_px: int
    mpp: float
    read_level: int
    input_px: int
    pooling: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    precision: str
    views: int = 0
    augment: tuple[tuple[str, float], ...] = ()
    seed: int | None = None
    truncated: bool = False

    def __post_init__(self) -> None:
        # 1 and 1.0 must give one digest, whichever a settings file says.
        object.__setattr__(self, "mpp", float(self.mpp))
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        pairs = sorted((str(name), float(value)) for name, value in dict(self.augment).items())
        object.__setattr__(self, "augment", tuple(pairs))

    @property
    def digest(self) -> str:
        """SHA-256 of all fields."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def plain(self) -> FeatureKey:
        """Return the key of the same features without augmentation."""
        return replace(self, views=0, augment=(), seed=None)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON knows: lists for tuples, a dictionary for ``augment``; ``truncated`` only where it is on."""
        data = asdict(self) | {"mean": list(self.mean), "std": list(self.std), "augment": dict(self.augment)}
        return data if self.truncated else {name: data[name] for name in data if name != "truncated"}

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: object) -> FeatureKey:
        """Undo :meth:`to_dict`; ``where`` is named in the error when a field is missing or unknown."""
        names = [field.name for field in fields(cls)]
        if set(names) != {*data, "truncated"}:
            raise UserError(
                "The key of features has other fields than this version's",
                where=where,
                found=", ".join(sorted(data)) or "none",
                expected=", ".join(sorted(names)),
                fix=_AGAIN,
            )
        return cls(**data | {"augment": tuple(data["augment"].items())})

    def differences(self, expected: FeatureKey) -> list[str]:
        """Return the names of the fields in which this key differs from ``expected``."""
        return [field.name for field in fields(self) if getattr(self, field.name) != getattr(expected, field.name)]

    def tell(self, names: Iterable[str]) -> str:
        """Return these fields as people read them: ``pooling = cls, read_level = 1``."""
        data = {"truncated": False, **self.to_dict()}
        return ", ".join(f"{name} = {data[name]}" for name in names)


def check_key(found: FeatureKey, expected: FeatureKey, what: str, where: object, fix: str) -> None:
    """Raise a :class:`UserError` that names the fields in which two keys differ, with both values."""
    names = found.differences(expected)
    if names:
        raise UserError(what, where=where, found=found.tell(names), expected=expected.tell(names), fix=fix)


def to_half(features: NDArray[Any], cell_ids: Ids, where: object) -> Half:
    """Return features (N, ...) in half precision.

    Raises
    ------
    UserError
        A feature is not finite in half precision (|value| < 65,520), with the first cells.
    """
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(features, dtype=np.float16)
    bad = np.flatnonzero(~np.isfinite(half.reshape(len(half), -1)).all(axis=1)) if half.size else ()
    if len(bad):
        first = ", ".join(_text(cell_ids[i]) for i in bad[:3])
        raise UserError(
            "Features are not finite in half precision",
            where=where,
            found=f"{len(bad)} of {len(half)} cells, the first: {first}",
            fix="check the backbone and the normalisation of its input",
        )
    return half


def encode_ids(cell_ids: Ids) -> NDArray[np.bytes_]:
    """Return ids as fixed-length UTF-8 ``(N,)``; raises ValueError when one repeats."""
    import pandas as pd

    ids = _utf8(cell_ids)
    different = len(pd.unique(ids.astype(object)))
    if different != len(ids):
        raise ValueError(f"{len(ids)} ids, of which {different} different")
    return ids


def write_features(path: str | Path, cell_ids: Ids, features: NDArray[Any], key: FeatureKey) -> None:
    """Write features as float16; for many cells see :func:`nuclass.data.feature_cache.cache_features`.

    Parameters
    ----------
    cell_ids
        ``N`` different ids.
    features
        ``(N, D)``, or ``(N, V, D)`` for V views of a cell (such as its rotations and mirrors).
    key
        What they depend on.

    Raises
    ------
    UserError
        A feature is not finite in half precision, or the disk is full.
    """
    ids = encode_ids(cell_ids)
    if features.ndim not in (2, 3) or len(features) != len(ids):
        raise ValueError(f"{len(ids)} ids for features of shape {features.shape}")
    write_parts(path, ids, features.shape[1:], [to_half(features, ids, path)], key)


def write_parts(
    path: str | Path, ids: NDArray[np.bytes_], shape: tuple[int, ...], parts: Iterable[Half], key: FeatureKey
) -> None:
    """Write a feature file from consecutive parts ``(n, *shape)``, of which one is held at a time."""
    target = Path(path)
    need = ids.nbytes + 2 * len(ids) * int(np.prod(shape)) + _HEADER_BYTES
    with atomic_path(target) as temporary:
        # HDF5 itself may end the process when the disk is full, so only its header is left to it.
        free = shutil.disk_usage(target.parent).free
        if free < need:
            raise OSError(errno.ENOSPC, f"{need / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free")
        with h5py.File(temporary, "w") as file:
            width = h5py.string_dtype("utf-8", max(1, ids.dtype.itemsize))
            places = [_allocate(file, "cell_id", (len(ids),), width), _allocate(file, "features", (len(ids), *shape))]
            file.attrs["key"] = json.dumps(key.to_dict())
            file.attrs["digest"] = key.digest
        done = 0
        with temporary.open("r+b") as stream:
            stream.seek(places[0])
            stream.write(ids.tobytes())
            stream.seek(places[1])
            for part in parts:
                if part.shape[1:] != shape or part.dtype != np.float16:
                    raise ValueError(f"A part of {part.dtype} {part.shape} for rows of float16 {shape}")
                stream.write(part.tobytes())
                done += len(part)
        if done != len(ids):
            raise ValueError(f"{len(ids)} ids for {done} rows of features")


def _allocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any = "<f2") -> int:
    """Create a contiguous dataset without writing it; returns where its bytes start in the file."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)
    kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
    dataset = h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), creation)
    return int(dataset.get_offset() or 0)


def read_features(
    path: str | Path,
    cell_ids: Ids,
    *,
    key: FeatureKey | None = None,
    out: NDArray[Any] | None = None,
    rows: NDArray[np.int64] | None = None,
) -> NDArray[Any]:
    """Return the features of these cells, in this order: float16 ``(N, D)`` or ``(N, V, D)``.

    Parameters
    ----------
    key
        What the features are to depend on; None takes the file as it is.
    out, rows
        Where given, cell ``i`` is written to ``out[rows[i]]`` and ``out`` is returned, so that the features of
        several slides fill one array. Beside it 4,096 rows are held.

    Raises
    ------
    UserError
        The file is missing, broken or no feature file, is of another key (which fields), or lacks some of the cells
        (how many, and the first).
    """
    with _open(path) as file:
        if key is not None:
            found = _stored_key(file, path)
            check_key(found, key, "Features are not of the kind asked for", path, "compute the features again")
        at = _rows_of(file["cell_id"][:], cell_ids, path)
        dataset = file["features"]
        if out is None:
            out = np.empty((len(at), *dataset.shape[1:]), np.float16)
        order = np.argsort(at, kind="stable")
        ordered = at[order]
        places = order if rows is None else np.asarray(rows)[order]
        for start in range(0, len(dataset), BLOCK_CELLS):
            first, last = np.searchsorted(ordered, (start, start + BLOCK_CELLS))
            if last > first:
                block = dataset[start : start + BLOCK_CELLS]
                out[places[first:last]] = block[ordered[first:last] - start]
    return out


def feature_shape(path: str | Path) -> tuple[int, ...]:
    """Return the shape of a file's features, ``(N, D)`` or ``(N, V, D)``."""
    with _open(path) as file:
        return tuple(file["features"].shape)


def read_key(path: str | Path) -> FeatureKey:
    """Return what a file's features depend on."""
    with _open(path) as file:
        return _stored_key(file, path)


def _stored_key(file: h5py.File, path: str | Path) -> FeatureKey:
    try:
        data = json.loads(file.attrs["key"])
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            "A feature file does not say what its features depend on", where=path, expected="attribute key", fix=_AGAIN
        ) from error
    key = FeatureKey.from_dict(data, path)
    if file.attrs.get("digest") != key.digest:
        raise UserError(
            "The key of a feature file was changed after it was written",
            where=path,
            found=f"digest {file.attrs.get('digest')}",
            expected=key.digest,
            fix="compute the features again",
        )
    return key


def _rows_of(stored: NDArray[Any], cell_ids: Ids, path: str | Path) -> NDArray[np.int64]:
    """Return the row of each id asked for among the stored ones."""
    import pandas as pd

    stored = stored.astype(f"S{stored.dtype.itemsize}")
    asked = _utf8(cell_ids)
    if len(asked) == len(stored) and (asked == stored).all():
        return np.arange(len(stored))
    index = pd.Index(stored.astype(object))
    if not index.is_unique:
        repeated = index[index.duplicated()]
        raise UserError(
            "Cell ids repeat in a feature file",
            where=path,
            found=f"{len(repeated)} repeats, the first: {_text(repeated[0])}",
            fix="compute the features of this slide again",
        )
    at = index.get_indexer(pd.Index(asked.astype(object)))
    missing = np.flatnonzero(at < 0)
    if len(missing):
        first = ", ".join(str(cell_ids[i]) for i in missing[:3])
        raise UserError(
            "Cells have no features",
            where=path,
            found=f"{len(missing)} of {len(asked)} cells are not among the {len(stored)} stored, the first: {first}",
            fix="compute the features of this slide again",
        )
    return at.astype(np.int64)


def _utf8(cell_ids: Ids) -> NDArray[np.bytes_]:
    ids = np.asarray(cell_ids)
    try:
        return ids.astype("S")
    except UnicodeEncodeError:
        return np.char.encode(ids.astype(str), "utf-8")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _open(path: str | Path) -> h5py.File:
    if not Path(path).is_file():
        raise UserError("A feature file is missing", where=path, fix="run the rule that makes it")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError("A feature file cannot be read", where=path, found=str(error), fix="make it again") from error
    known = {"cell_id", "features"} <= set(file)
    if not known or file["cell_id"].dtype.kind != "S" or len(file["cell_id"]) != len(file["features"]):
        found = ", ".join(
            f"{name} {getattr(item, 'dtype', '')} {getattr(item, 'shape', '')}" for name, item in file.items()
        )
        file.close()
        raise UserError(
            "This is no feature file",
            where=path,
            found=found or "no datasets",
            expected="datasets cell_id (N), text of fixed length, and features (N, ...)",
            fix=_AGAIN,
        )
    return file
