"""A plain table of counts, from anyone's pipeline: h5ad, 10x h5, CSV, TSV or Parquet."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.names import CELL_ID, DROPPED, KEPT

if TYPE_CHECKING:
    from anndata import AnnData

_log = get_logger(__name__)

PLACES = (("x_um", "y_um"), ("x_centroid", "y_centroid"))
"""Names of columns that hold cells' places, in micrometres."""
_SYMBOLS = ("feature_name", "gene_symbols", "gene_symbol", "gene_name", "gene_names", "symbol")
_NO_GENES = {
    "n_counts", "n_genes", "total_counts", "transcript_counts", "control_probe_counts", "nucleus_area", "cell_area",
    "ncount_rna", "nfeature_rna", "percent.mt", "leiden", "louvain", "cluster", "batch", "sample", "patient",
}  # fmt: skip
_LOG_LIMIT = 20.0


def read_counts(path: str | Path, known: Collection[str]) -> AnnData:
    """Read counts, cells x genes, with unique cell ids and gene symbols.

    Parameters
    ----------
    path
        ``.h5ad``; ``.h5`` of Cell Ranger or Xenium; ``.csv``, ``.tsv``, ``.txt`` (also ``.gz``) or ``.parquet`` with
        cells or genes in rows and their names in the first column or index.
    known
        Gene symbols of the marker table: they tell genes from cells and ids from symbols.

    Returns
    -------
    Counts as sparse float32; ``obs`` has ``x_um`` and ``y_um`` (micrometres) where the file names them so, or
    ``x_centroid`` and ``y_centroid``.

    Raises
    ------
    UserError
        Where the file is missing or cannot be read, holds no known gene, or values that are no counts.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError("The table of counts is missing", where=file, fix="check the path")
    kind = [s for s in file.suffixes if s != ".gz"][-1:] or [""]
    readers = {".h5ad": _read_h5ad, ".h5": _read_10x}
    readers |= dict.fromkeys((".csv", ".tsv", ".txt", ".parquet"), _read_table)
    if kind[0] not in readers:
        raise UserError(
            "The kind of a table of counts is not known",
            where=file,
            found=kind[0] or "no ending",
            expected=", ".join(sorted(readers)) + ", text also with .gz",
        )
    try:
        data = readers[kind[0]](file, known)
    except (OSError, ValueError, KeyError) as error:
        raise UserError("The table of counts cannot be read", where=file, found=str(error).split("\n")[0]) from error
    return _checked(data, file, known)


def cells_of(data: AnnData, min_transcripts: int, min_genes: int) -> pd.DataFrame:
    """Return the table of cells that labelling wants: ``cell_id``, ``status``, ``reason``, and places if known."""
    counts = sparse.csr_matrix(data.X)
    depth, genes = np.asarray(counts.sum(1)).ravel(), np.diff(counts.indptr)
    reason = np.select([depth < min_transcripts, genes < min_genes], ["low_counts", "few_genes"], "")
    cells = pd.DataFrame({CELL_ID: data.obs_names.astype(str), "status": np.where(reason == "", KEPT, DROPPED)})
    cells["reason"] = reason
    for column in PLACES[0]:
        if column in data.obs:
            cells[column] = data.obs[column].to_numpy(float)
    return cells


def _read_h5ad(file: Path, known: Collection[str]) -> AnnData:
    import anndata

    data = anndata.read_h5ad(file)
    for name in _SYMBOLS:
        if not len(set(data.var_names) & set(known)) and name in data.var:
            data.var_names = data.var[name].astype(str)
    if not _are_counts(data.X):
        for where, values in (("layers['counts']", data.layers.get("counts")), ("raw", _raw(data))):
            if values is not None and _are_counts(values):
                _log.warning("%s: X holds no counts; they are taken from %s", file, where)
                data = data.copy()
                data.X = values
                break
    return data


def _raw(data: AnnData) -> Any:
    same = data.raw is not None and list(data.raw.var_names) == list(data.var_names)
    return data.raw.X if same else None


def _read_10x(file: Path, known: Collection[str]) -> AnnData:
    import scanpy as sc

    data = sc.read_10x_h5(file)
    data.var_names_make_unique()
    return data


def _read_table(file: Path, known: Collection[str]) -> AnnData:
    from anndata import AnnData

    if file.suffix == ".parquet":
        frame = pd.read_parquet(file)
        named = not isinstance(frame.index, pd.RangeIndex)
        frame = frame if named else frame.set_index(frame.columns[0])
    else:
        frame = pd.read_csv(file, sep=None, engine="python", nrows=2)
        separator = "\t" if frame.shape[1] < 2 or ".tsv" in file.suffixes else ","
        frame = pd.read_csv(file, sep=separator, index_col=0, dtype={0: str})
    if frame.index.name in known:
        raise UserError(
            "A table of counts has no names of its rows",
            where=file,
            found=f"the first column is '{frame.index.name}', a gene",
            expected="ids of the cells, or names of the genes, in the first column",
        )
    frame.index = frame.index.astype(str)
    frame.columns = frame.columns.astype(str)
    if frame.index.isin(list(known)).sum() > frame.columns.isin(list(known)).sum():
        frame = frame.T
    obs = pd.DataFrame(index=frame.index)
    for names in PLACES:
        if set(names) <= set(frame):
            obs[list(PLACES[0])] = frame[list(names)].to_numpy(float)
            frame = frame.drop(columns=list(names))
    other = [c for c in frame if c.lower() in _NO_GENES or not pd.api.types.is_numeric_dtype(frame[c])]
    if other:
        _log.warning("%s: columns that are no genes are left out: %s", file, ", ".join(other[:10]))
        frame = frame.drop(columns=other)
    return AnnData(sparse.csr_matrix(frame.to_numpy(np.float32)), obs=obs, var=pd.DataFrame(index=frame.columns))


def _checked(data: AnnData, file: Path, known: Collection[str]) -> AnnData:
    for names in PLACES:
        if set(names) <= set(data.obs) and "x_um" not in data.obs:
            data.obs[list(PLACES[0])] = data.obs[list(names)].to_numpy(float)
    data.obs_names = data.obs_names.astype(str)
    data.var_names = data.var_names.astype(str)
    for what, names in (("cell", data.obs_names), ("gene", data.var_names)):
        if not names.is_unique:
            twice = names[names.duplicated()]
            raise UserError(
                f"A {what} stands twice in a table of counts",
                where=file,
                found=f"{len(twice)} doubled, such as {twice[0]}",
                expected=f"each {what} once",
            )
    data.X = _as_counts(sparse.csr_matrix(data.X, dtype=np.float32), file)
    return data


def _are_counts(values: Any) -> bool:
    data = values.data if sparse.issparse(values) else np.asarray(values).ravel()
    return bool(len(data) == 0 or (data.min() >= 0 and np.array_equal(data, np.round(data))))


def _as_counts(matrix: sparse.csr_matrix, file: Path) -> sparse.csr_matrix:
    """Return counts; those of log-normalised counts are found back where each cell's smallest value is one."""
    matrix.eliminate_zeros()
    if not np.isfinite(matrix.data).all() or (matrix.nnz and matrix.data.min() < 0):
        raise UserError(
            "A table of counts holds values that are no counts",
            where=file,
            found="negative or missing values: scaled data?",
            expected="whole numbers from 0: transcripts of a gene in a cell",
            fix="give the counts before normalisation and scaling",
        )
    if _are_counts(matrix):
        return matrix
    if matrix.data.max() < _LOG_LIMIT and (found := _unlogged(matrix)) is not None:
        _log.warning("%s: the values are log-normalised counts; the counts were found back from them", file)
        return found
    _log.warning("%s: the values are no whole numbers; they are taken as counts as they are", file)
    return matrix


def _unlogged(matrix: sparse.csr_matrix) -> sparse.csr_matrix | None:
    """Return the counts behind log(1 + scale x counts), the scale being each cell's own; None if there are none."""
    values = np.expm1(matrix.data.astype(np.float64))
    filled = np.flatnonzero(np.diff(matrix.indptr))
    least = np.minimum.reduceat(values, matrix.indptr[filled])
    counts = values / np.repeat(least, np.diff(matrix.indptr)[filled])
    if np.mean(np.abs(counts - np.round(counts)) < 0.05) < 0.99:
        return None
    return sparse.csr_matrix((np.round(counts).astype(np.float32), matrix.indices, matrix.indptr), shape=matrix.shape)
