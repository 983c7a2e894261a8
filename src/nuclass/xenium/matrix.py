"""The feature matrix of a bundle (HDF5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nuclass.core.errors import UserError
from nuclass.xenium.tables import COPY_AGAIN, broken

GENE_EXPRESSION = "Gene Expression"
_LAYOUT = "a 10x feature matrix in HDF5 with the groups matrix and matrix/features"


def read_matrix(file: Path) -> tuple[Any, list[str], pd.DataFrame]:
    """Read a 10x feature matrix in HDF5.

    Returns
    -------
    The counts (cells x features, CSR, of the type written), the barcodes, and the features: columns
    ``id name feature_type``.

    Raises
    ------
    UserError
        The file is cut off, of another kind, or its parts disagree in size.
    """
    import h5py
    from scipy.sparse import csr_matrix

    try:
        with h5py.File(file, "r") as stream:
            group = stream["matrix"]
            n_features, n_cells = (int(v) for v in group["shape"][:])
            data, indptr = group["data"][:], group["indptr"][:]
            # Written as 64 bit; features are never that many.
            indices = group["indices"].astype(np.int32)[:]
            barcodes = [decoded(v) for v in group["barcodes"][:]]
            features = read_features(stream)
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise _unreadable(file, error) from error
    sizes = (len(barcodes), len(features), len(indptr), len(indices), len(data))
    if len(indptr) != n_cells + 1 or sizes != (n_cells, n_features, n_cells + 1, int(indptr[-1]), int(indptr[-1])):
        raise UserError(
            "The parts of the feature matrix do not fit together",
            where=file,
            found=f"{sizes[0]} barcodes, {sizes[1]} features, {sizes[3]} entries",
            expected=f"{n_cells} barcodes, {n_features} features, {int(indptr[-1]) if len(indptr) else 0} entries",
            fix=COPY_AGAIN,
        )
    if len(indices) and (int(indices.max()) >= n_features or int(indices.min()) < 0):
        raise UserError(
            "The feature matrix names features that it does not have",
            where=file,
            found=f"feature {int(indices.max()) + 1}",
            expected=f"at most {n_features}",
            fix=COPY_AGAIN,
        )
    return csr_matrix((data, indices, indptr), shape=(n_cells, n_features)), barcodes, features


def read_features(stream: Any) -> pd.DataFrame:
    """Return the features of an open matrix file: columns ``id name feature_type``."""
    described = stream["matrix/features"]
    return pd.DataFrame({c: [decoded(v) for v in described[c][:]] for c in ("id", "name", "feature_type")})


def feature_types(file: Path) -> pd.Series[Any]:
    """Return the feature type by feature name, without reading the counts."""
    import h5py

    try:
        with h5py.File(file, "r") as stream:
            features = read_features(stream)
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise _unreadable(file, error) from error
    return features.drop_duplicates("name").set_index("name")["feature_type"]


def whole_counts(file: Path, matrix: Any) -> Any:
    """Return counts of genes as integers; other values are a :class:`UserError` (proteins alone have them)."""
    if matrix.dtype.kind in "iu":
        return matrix
    values = matrix.data
    bad = ~(np.isfinite(values) & (values == np.rint(values)))
    if bad.any():
        raise UserError(
            "A count of genes is not a whole number",
            where=f"{file}, matrix/data",
            found=f"{values[int(np.argmax(bad))]} ({int(bad.sum())} values)",
            expected="whole numbers of transcripts",
            fix="take the matrix as the instrument wrote it, not a normalised one",
        )
    return matrix.astype(np.int32)


def decoded(value: Any) -> str:
    """Return a text of HDF5 as str."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _unreadable(file: Path, error: BaseException) -> UserError:
    told = broken(file, error, _LAYOUT)
    if told.what == "A file of the bundle cannot be read":
        return UserError(
            "The feature matrix cannot be read", where=file, found=told.found, expected=_LAYOUT, fix=told.fix
        )
    return told
