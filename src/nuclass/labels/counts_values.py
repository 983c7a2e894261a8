"""Whether the values of a table are counts, and the counts behind values that were normalised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger

_log = get_logger(__name__)

_LOG_LIMIT = 20.0
_BASES = (np.e, 2.0, 10.0)
_LEAST = (1, 2, 3)
_CLOSE, _SHARE = 0.05, 0.99


def are_counts(values: Any) -> bool:
    """Return whether a matrix holds something, and whole numbers from 0 alone."""
    data = _entries(values)
    if not len(data):
        return False
    return bool(np.isfinite(data).all() and data.min() >= 0 and np.array_equal(data, np.round(data)) and data.any())


def are_amounts(values: Any) -> bool:
    """Return whether a matrix holds no negative and no missing value."""
    data = _entries(values)
    return bool(len(data) == 0 or (np.isfinite(data).all() and data.min() >= 0))


def _entries(values: Any) -> np.ndarray:
    return np.asarray(values.data if sparse.issparse(values) else values, float).ravel()


def as_counts(matrix: sparse.csr_matrix, file: Path, cells: Sequence[str], genes: Sequence[str]) -> sparse.csr_matrix:
    """Return a matrix (cells x genes) as counts: as it is, or those behind normalised values.

    Raises
    ------
    UserError
        Where a value is negative or missing.
    """
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    missing, negative = ~np.isfinite(matrix.data), matrix.data < 0
    for what, bad in (("missing", missing), ("negative", negative)):
        if bad.any():
            first = int(np.argmax(bad))
            row = int(np.searchsorted(matrix.indptr, first, side="right")) - 1
            raise UserError(
                "A table of counts holds values that are no counts",
                where=file,
                found=f"{int(bad.sum()):,} {what} values, the first in cell {cells[row]}, "
                f"gene {genes[matrix.indices[first]]}",
                expected="whole numbers from 0: transcripts of a gene in a cell",
                fix="give the counts as they were before normalisation and scaling"
                if what == "negative"
                else "write 0 where no transcript was found; a line that is cut off lacks values, too",
            )
    if not matrix.nnz or are_counts(matrix):
        return matrix
    if (found := recovered(matrix)) is not None:
        _log.warning("%s: the values are normalised counts; the counts were found back from them", file)
        return found
    _log.warning("%s: the values are no whole numbers; they are taken as counts as they are", file)
    return matrix


def recovered(matrix: sparse.csr_matrix) -> sparse.csr_matrix | None:
    """Return the counts behind scale x counts, or their logarithm, the scale being each cell's own; None if none."""
    values = matrix.data.astype(np.float64)
    if not len(values) or not np.isfinite(values).all() or values.min() < 0:
        return None
    forms = [np.power(base, values) - 1 for base in _BASES] if values.max() < _LOG_LIMIT else []
    for form in (*forms, values):
        if (counts := _whole(form, matrix.indptr)) is not None:
            return sparse.csr_matrix((counts, matrix.indices, matrix.indptr), shape=matrix.shape)
    return None


def _whole(values: np.ndarray, indptr: np.ndarray) -> np.ndarray | None:
    """Return values (nnz,) as multiples of each cell's smallest one, or of its half or third."""
    sizes = np.diff(indptr)
    filled = np.flatnonzero(sizes)
    cell = np.repeat(np.arange(len(filled)), sizes[filled])
    unit = values / np.minimum.reduceat(values, indptr[filled])[cell]
    best = np.full(len(values), np.inf)
    off = np.full(len(filled), np.inf)
    for least in _LEAST:
        counts = unit * least
        worst = np.maximum.reduceat(np.abs(counts - np.round(counts)), indptr[filled])
        better = worst < np.where(off < _CLOSE, 0, off)
        best = np.where(better[cell], counts, best)
        off = np.where(better, worst, off)
    if np.mean(np.abs(best - np.round(best)) < _CLOSE) < _SHARE:
        return None
    return np.round(best).astype(np.float32)
