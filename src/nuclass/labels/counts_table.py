"""A plain table of counts, from anyone's pipeline: h5ad, 10x h5, CSV, TSV or Parquet."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.names import CELL_ID, DROPPED, KEPT
from nuclass.labels.counts_frame import PLACES, hits, is_control, no_gene, read_frame, readable
from nuclass.labels.counts_values import are_amounts, are_counts, as_counts, recovered
from nuclass.xenium.matrix import GENE_EXPRESSION, read_matrix

if TYPE_CHECKING:
    from anndata import AnnData

_log = get_logger(__name__)

_TEXT = (".csv", ".tsv", ".txt")
_KINDS = (".h5ad", ".h5", *_TEXT, ".parquet")
_FEATURE_TYPES = ("feature_types", "feature_type")
_LEAST_SPACING_UM = 1.0
_SAMPLE = 5000


def read_counts(path: str | Path, known: Collection[str]) -> AnnData:
    """Read counts, cells x genes, with unique cell ids and gene symbols.

    Parameters
    ----------
    path
        ``.h5ad``; ``.h5`` of Cell Ranger or Xenium; ``.csv``, ``.tsv``, ``.txt`` (also ``.gz``) or ``.parquet`` with
        cells or genes in rows and their names in the first column, the index or a column ``cell_id``.
    known
        Gene symbols of the marker table: they tell genes from cells and symbols from ids.

    Returns
    -------
    Counts as sparse float32. Where the values were normalised cell by cell, these are the counts behind them. ``obs``
    has ``x_um`` and ``y_um`` (micrometres) where the file names them so, or ``x_centroid`` and ``y_centroid``.

    Raises
    ------
    UserError
        Where the file is missing or cannot be read, holds no known gene, a cell twice, or values that are no counts.
    """
    file = Path(path)
    return _checked(_reader(file)(file, known), file, known)


def cells_of(data: AnnData, min_transcripts: int, min_genes: int) -> pd.DataFrame:
    """Return the table of cells that labelling wants: ``cell_id``, ``status``, ``reason``, and places if known."""
    counts = sparse.csr_matrix(data.X)
    depth, genes = np.asarray(counts.sum(1)).ravel(), np.diff(counts.indptr)
    reason = np.select([depth < min_transcripts, genes < min_genes], ["low_counts", "few_genes"], "")
    cells = pd.DataFrame({CELL_ID: data.obs_names.astype(str), "status": np.where(reason == "", KEPT, DROPPED)})
    cells["reason"] = reason
    if set(PLACES[0]) <= set(data.obs):
        places = data.obs[list(PLACES[0])].to_numpy(float)
        if why := _unusable(places):
            _log.warning("places are not used, so spill-over from a cell's neighbours is not allowed for: %s", why)
        else:
            cells[list(PLACES[0])] = places
    return cells


def _unusable(places: np.ndarray) -> str:
    """Return why places (N, 2) cannot be used, "" where they can."""
    from scipy.spatial import cKDTree

    known = np.isfinite(places).all(1)
    if not known.all():
        return f"{int((~known).sum()):,} of {len(known):,} are missing or no numbers"
    if len(places) < 2:
        return ""
    spacing = np.median(cKDTree(places).query(places[:: len(places) // _SAMPLE + 1], k=2)[0][:, 1])
    if spacing >= _LEAST_SPACING_UM:
        return ""
    return f"the next cell is {spacing:.3g} um away, as if they were no micrometres, or of several sections"


def _reader(file: Path) -> Callable[[Path, Collection[str]], AnnData]:
    if not file.is_file():
        raise _missing(file)
    name = file.name.lower()
    if name.removesuffix(".gz").endswith(_TEXT) or name.endswith(".parquet"):
        return _read_table
    if name.endswith((".h5", ".h5ad")):
        return _read_h5ad if name.endswith(".h5ad") or _is_anndata(file) else _read_10x
    raise UserError(
        "The kind of a table of counts is not known",
        where=file,
        found=f"the ending {file.suffix}" if file.suffix else "no ending",
        expected=", ".join(_KINDS) + "; text also with .gz",
        fix="write the counts as one of these, such as .h5ad (scanpy, anndata)",
    )


def _missing(file: Path) -> UserError:
    if not file.is_dir():
        return UserError("The table of counts is missing", where=file, fix="check the path")
    inside = {
        "experiment.xenium": "for a Xenium bundle leave --counts out and give --cells, or give its "
        "cell_feature_matrix.h5",
        "matrix.mtx.gz": "read it with scanpy.read_10x_mtx and write it as .h5ad",
        ".zgroup": "read it with anndata.read_zarr and write it as .h5ad",
        "zarr.json": "read it with anndata.read_zarr and write it as .h5ad",
    }
    fix = next((fix for name, fix in inside.items() if (file / name).exists()), "give one of the files in it")
    return UserError("The table of counts is a folder", where=file, expected="a file: " + ", ".join(_KINDS), fix=fix)


def _is_anndata(file: Path) -> bool:
    import h5py

    with readable(file), h5py.File(file, "r") as stream:
        return "obs" in stream and "var" in stream


def _read_h5ad(file: Path, known: Collection[str]) -> AnnData:
    import anndata

    with readable(file), warnings.catch_warnings():
        # Of doubled names we tell ourselves; that a file is of an older layout helps nobody.
        warnings.simplefilter("ignore")
        data = anndata.read_h5ad(file)
    if hits(data.obs_names, known) > max(hits(names, known) for names in _namings(data.var)):
        _log.warning("%s: the genes lie along obs; the table is turned", file)
        data = data.T
    values, var = _counts_of(data, file)
    if values is None:
        raise UserError("A table of counts holds no values", where=file, found="X, layers and raw are empty")
    named = max(_namings(var), key=lambda names: hits(names, known))
    if "spatial" in data.obsm and not any(set(pair) <= set(data.obs) for pair in PLACES):
        _log.warning(
            "%s: the places in obsm['spatial'] are not used, for nothing tells their unit; "
            "where they are micrometres, put them into obs as x_um and y_um",
            file,
        )
    return _assembled(values, data.obs, pd.Series(named.astype(str)), _types(var), file)


def _namings(var: pd.DataFrame) -> list[pd.Index]:
    """Return what the features are called: their index, and each column of text."""
    text = [name for name in var if not pd.api.types.is_numeric_dtype(var[name])]
    return [var.index.astype(str), *(pd.Index(var[name].astype(str)) for name in text)]


def _counts_of(data: AnnData, file: Path) -> tuple[Any, pd.DataFrame]:
    """Return the values that are counts, or that counts can be found back from, and their features."""
    places: dict[str, tuple[Any, pd.DataFrame]] = {"X": (data.X, data.var)}
    for name in data.layers:
        if "count" in name.lower() or name.lower() == "raw":
            places[f"layers['{name}']"] = (data.layers[name], data.var)
    if data.raw is not None:
        places["raw"] = (data.raw.X, data.raw.var)
    places = {name: place for name, place in places.items() if place[0] is not None}
    demands: tuple[Callable[[Any], Any], ...] = (
        are_counts,
        lambda values: recovered(sparse.csr_matrix(values, dtype=np.float32)) is not None,
        are_amounts,
    )
    for demand in demands:
        for name, (values, var) in places.items():
            if demand(values):
                if name != "X":
                    _log.warning("%s: X holds no counts; they are taken from %s", file, name)
                return values, var
    return places.get("X", next(iter(places.values()), (None, data.var)))


def _types(var: pd.DataFrame) -> pd.Series[Any] | None:
    return next((var[name].astype(str) for name in _FEATURE_TYPES if name in var), None)


def _read_10x(file: Path, known: Collection[str]) -> AnnData:
    matrix, barcodes, features = read_matrix(file)
    return _assembled(matrix, pd.DataFrame(index=barcodes), features["name"], features["feature_type"], file)


def _assembled(
    values: Any, obs: pd.DataFrame, names: pd.Series[Any], types: pd.Series[Any] | None, file: Path
) -> AnnData:
    """Return the genes among the features, those of one name added up."""
    from anndata import AnnData

    genes = ~names.map(is_control).to_numpy(bool)
    if types is not None and (types == GENE_EXPRESSION).any():
        genes &= (types == GENE_EXPRESSION).to_numpy()
    if not genes.all():
        _log.info("%s: %d features that are no genes are left out", file, int((~genes).sum()))
    matrix = sparse.csr_matrix(values, dtype=np.float32)[:, np.flatnonzero(genes)]
    codes, unique = pd.factorize(names[genes])
    if len(unique) < len(codes):
        _log.warning("%s: %d genes have more than one row of features; they are added up", file, _doubled(codes))
        sums = sparse.csr_matrix((np.ones(len(codes), np.float32), (np.arange(len(codes)), codes)))
        matrix = (matrix @ sums).tocsr()
    obs.index = obs.index.astype(str)
    _need_single(list(obs.index), list(unique), file)
    return AnnData(matrix, obs=obs, var=pd.DataFrame(index=pd.Index(unique.astype(str))))


def _doubled(codes: np.ndarray) -> int:
    return int((np.bincount(codes) > 1).sum())


def _read_table(file: Path, known: Collection[str]) -> AnnData:
    from anndata import AnnData

    table, places = read_frame(file, known)
    genes = pd.Index(table.columns.astype(str))
    _need_single(list(table.index), list(genes), file)
    wanted = ~genes.map(is_control).to_numpy(bool)
    matrix = sparse.csr_matrix(table.to_numpy(np.float32, na_value=np.nan)[:, wanted])
    obs = places if len(places.columns) else pd.DataFrame(index=table.index)
    return AnnData(matrix, obs=obs, var=pd.DataFrame(index=genes[wanted]))


def _checked(data: AnnData, file: Path, known: Collection[str]) -> AnnData:
    data.obs_names = data.obs_names.astype(str)
    for pair in PLACES:
        if set(pair) <= set(data.obs) and "x_um" not in data.obs:
            data.obs[list(PLACES[0])] = data.obs[list(pair)].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    cells, genes = list(data.obs_names), list(data.var_names.astype(str))
    if not cells:
        raise UserError("A table of counts holds no cell", where=file, found=f"{len(genes)} genes, no cells")
    if not hits(genes, known)[1]:
        raise no_gene(file, genes, cells[:3])
    data.X = as_counts(sparse.csr_matrix(data.X, dtype=np.float32), file, cells, genes)
    return data


def _need_single(cells: list[str], genes: list[str], file: Path) -> None:
    _need_names(cells, "cell", file, "put the name of the sample before each id")
    _need_names(genes, "gene", file, "delete one of the rows, or add them up")


def _need_names(names: list[str], what: str, file: Path, fix: str) -> None:
    index = pd.Index(names)
    empty = index.str.strip().isin(["", "nan"])
    if empty.any():
        raise UserError(f"A {what} has no name in a table of counts", where=file, found=f"{int(empty.sum())} without")
    if not index.is_unique:
        twice = index[index.duplicated()]
        raise UserError(
            f"A {what} stands twice in a table of counts",
            where=file,
            found=f"{len(twice)} doubled, such as {twice[0]}",
            expected=f"each {what} once",
            fix=fix,
        )
