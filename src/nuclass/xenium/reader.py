"""Read a Xenium bundle by what its files hold, not by the version it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.files import read_json
from nuclass.core.log import get_logger
from nuclass.xenium.polygons import polygon_starts, ragged_area_and_centroid

if TYPE_CHECKING:
    from anndata import AnnData

_log = get_logger(__name__)

EXPERIMENT = "experiment.xenium"
MATRIX = "cell_feature_matrix.h5"
GENE_EXPRESSION = "Gene Expression"
UNASSIGNED = "UNASSIGNED"
_MAKERS = {
    EXPERIMENT: "the Xenium instrument or xeniumranger writes it into every output bundle",
    "cells": "the Xenium instrument or xeniumranger writes it into every output bundle",
    MATRIX: "the Xenium instrument or xeniumranger writes it into every output bundle",
    "nucleus_boundaries": "the Xenium instrument or xeniumranger writes it where nuclei were segmented",
    "cell_boundaries": "the Xenium instrument or xeniumranger writes it into every output bundle",
    "transcripts": "the Xenium instrument or xeniumranger writes it; it is the largest table of the bundle",
}


@dataclass(frozen=True)
class Bundle:
    """A Xenium bundle; nothing but experiment.xenium is read until it is asked for.

    All coordinates are Xenium micrometres, origin at the top left of the morphology image, unless
    a name says otherwise.
    """

    folder: Path

    @cached_property
    def experiment(self) -> dict[str, Any]:
        """The content of experiment.xenium."""
        content = read_json(self._file(EXPERIMENT, ("",)))
        if not isinstance(content, dict):
            raise UserError(
                "experiment.xenium does not hold a JSON object",
                where=self.folder / EXPERIMENT,
                found=type(content).__name__,
                fix="copy the file again from the bundle",
            )
        return content

    @cached_property
    def pixel_size(self) -> float:
        """Micrometres per pixel of the morphology image."""
        value = self.experiment.get("pixel_size")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < np.inf:
            raise UserError(
                "The bundle states no usable pixel size",
                where=f"{self.folder / EXPERIMENT}, key pixel_size",
                found="nothing" if value is None else repr(value),
                expected="a positive number of micrometres per pixel, 0.2125 on every known instrument",
                fix="copy experiment.xenium again from the bundle",
            )
        return float(value)

    @cached_property
    def version(self) -> str:
        """The version of the analysis that wrote the bundle, such as ``3.0.0.15``; of xeniumranger if it was rerun."""
        ranger = self.experiment.get("xenium_ranger")
        text = ranger.get("version") if isinstance(ranger, dict) else None
        text = str(text or self.experiment.get("analysis_sw_version") or "")
        return text[7:] if text.lower().startswith("xenium-") else text

    def cells(self) -> pd.DataFrame:
        """Return one row a cell, in the order of the bundle.

        Columns: ``cell_id`` (str), ``x_centroid y_centroid`` (cell, um), ``transcript_counts``
        (genes, qv >= 20), ``control_counts`` (control probes and control codewords together),
        ``cell_area nucleus_area`` (um^2), ``nucleus_count`` (Int64; the number of outlines in bundles
        before 2.0, which do not state it), ``nucleus_x_um nucleus_y_um`` (area centroid of the nucleus
        outline, of the largest where there are several; NaN where there is none).
        """
        return self._cells.copy()

    @cached_property
    def _cells(self) -> pd.DataFrame:
        file = self._file("cells")
        raw = _read_table(file)
        needed = ["cell_id", "x_centroid", "y_centroid", "transcript_counts"]
        _require(file, raw.columns, needed)
        cell_id = _text(raw["cell_id"])
        if cell_id.duplicated().any():
            raise UserError(
                "A cell id stands twice in the bundle",
                where=file,
                found=str(cell_id[cell_id.duplicated()].iloc[0]),
                expected="one row per cell",
                fix="copy the file again from the bundle",
            )
        zero = pd.Series(0, index=raw.index, dtype="int64")
        missing = pd.Series(np.nan, index=raw.index)
        out = pd.DataFrame({"cell_id": cell_id})
        out["x_centroid"] = raw["x_centroid"].astype("float64")
        out["y_centroid"] = raw["y_centroid"].astype("float64")
        out["transcript_counts"] = raw["transcript_counts"].astype("int64")
        controls = [raw.get(name, zero).astype("int64") for name in ("control_probe_counts", "control_codeword_counts")]
        out["control_counts"] = controls[0] + controls[1]
        out["cell_area"] = raw.get("cell_area", missing).astype("float64")
        out["nucleus_area"] = raw.get("nucleus_area", missing).astype("float64")
        nuclei = self._nuclei()
        out["nucleus_count"] = _nucleus_count(raw, nuclei, cell_id)
        largest = nuclei.sort_values("area", kind="stable").drop_duplicates("cell_id", keep="last").set_index("cell_id")
        out["nucleus_x_um"] = cell_id.map(largest["x"]).astype("float64")
        out["nucleus_y_um"] = cell_id.map(largest["y"]).astype("float64")
        return out

    def _nuclei(self) -> pd.DataFrame:
        """Return one row a nucleus: cell_id, area (um^2), centroid x, y (um)."""
        vertices = self.boundaries("nucleus")
        key = "label_id" if "label_id" in vertices else "cell_id"
        start = polygon_starts(vertices[key].to_numpy())
        area, x, y = ragged_area_and_centroid(vertices["vertex_x"], vertices["vertex_y"], start)
        return pd.DataFrame({"cell_id": vertices["cell_id"].to_numpy()[start], "area": area, "x": x, "y": y})

    def boundaries(self, kind: Literal["nucleus", "cell"]) -> pd.DataFrame:
        """Return the outlines' vertices: ``cell_id`` (str), ``vertex_x vertex_y`` (um), ``label_id`` where written.

        The rows of a polygon stand together. Early builds of 2.0 lack ``label_id`` and merge the
        nuclei of one cell into one outline.
        """
        if kind not in ("nucleus", "cell"):
            raise ValueError(f"kind is {kind!r}; expected 'nucleus' or 'cell'")
        file = self._file(f"{kind}_boundaries")
        frame = _read_table(file)
        _require(file, frame.columns, ["cell_id", "vertex_x", "vertex_y"])
        frame["cell_id"] = _text(frame["cell_id"])
        return frame[[c for c in ("cell_id", "vertex_x", "vertex_y", "label_id") if c in frame]]

    def transcripts(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the transcripts, text as str; ``columns`` limits what is read.

        Unassigned transcripts have the cell id ``UNASSIGNED`` in every version (-1 in old files).
        """
        file = self._file("transcripts")
        frame = _read_table(file, columns)
        for column in ("cell_id", "feature_name", "fov_name", "codeword_category"):
            if column in frame:
                frame[column] = _text(frame[column])
        if "cell_id" in frame:
            frame["cell_id"] = frame["cell_id"].mask(frame["cell_id"] == "-1", UNASSIGNED)
        return frame

    def counts(self) -> AnnData:
        """Return the counts of genes, cells x genes, rows as in :meth:`cells`.

        ``X`` is an integer CSR matrix; ``obs_names`` are the cell ids; ``var_names`` the gene names,
        made unique with ``-1``, ``-2``...; ``var["gene_id"]`` the ids. Controls, unassigned codewords and
        proteins are left out.
        """
        from anndata import AnnData
        from anndata.utils import make_index_unique

        matrix, barcodes, features = read_matrix(self._file(MATRIX, ("",)))
        keep = features["feature_type"] == GENE_EXPRESSION
        if not keep.any():
            raise UserError(
                "The feature matrix holds no genes",
                where=self.folder / MATRIX,
                found=", ".join(sorted(set(features["feature_type"]))) or "no features",
                expected=f"features of type {GENE_EXPRESSION}",
                fix="check that the bundle is of a gene expression run",
            )
        cells = self._cells["cell_id"]
        order = pd.Index(barcodes).get_indexer(pd.Index(cells))
        if (order < 0).any():
            raise UserError(
                f"{int((order < 0).sum())} of {len(cells)} cells have no row in the feature matrix",
                where=self.folder / MATRIX,
                found=f"no barcode {cells.iloc[int(np.argmax(order < 0))]!r}",
                expected="the cells of the cells table",
                fix="take both files from the same run of the analysis",
            )
        chosen = matrix[:, keep.to_numpy()][order]
        chosen.sort_indices()
        genes = features[keep]
        var = pd.DataFrame({"gene_id": genes["id"].to_numpy(), "gene_name": genes["name"].to_numpy()})
        var.index = make_index_unique(pd.Index(genes["name"].astype(str)))
        return AnnData(X=chosen, obs=pd.DataFrame(index=pd.Index(cells.astype(str), name=None)), var=var)

    def _file(self, stem: str, endings: Sequence[str] = (".parquet", ".csv.gz", ".csv")) -> Path:
        """Return the first file ``stem + ending`` that exists."""
        for ending in endings:
            file = self.folder / f"{stem}{ending}"
            if file.is_file():
                return file
        names = " or ".join(f"{stem}{ending}" for ending in endings)
        raise UserError(
            "A file of the Xenium bundle is missing",
            where=self.folder,
            found=f"no {names}" if self.folder.is_dir() else "no such folder",
            expected=f"{names} ({_MAKERS.get(stem, 'part of every bundle')})",
            fix="give the folder that holds experiment.xenium, or copy the file from the instrument's output",
        )


def read_bundle(folder: str | Path) -> Bundle:
    """Open a bundle; a :class:`UserError` if the folder or its experiment.xenium is missing or broken.

    Parameters
    ----------
    folder
        The folder that holds experiment.xenium.
    """
    bundle = Bundle(Path(folder))
    _ = bundle.experiment
    return bundle


def read_matrix(file: Path) -> tuple[Any, list[str], pd.DataFrame]:
    """Read a 10x feature matrix in HDF5.

    Returns
    -------
    The counts (cells x features, CSR, integer where all values are whole), the barcodes, and the
    features: columns ``id name feature_type``.
    """
    import h5py
    from scipy.sparse import csr_matrix

    try:
        with h5py.File(file, "r") as stream:
            group = stream["matrix"]
            n_features, n_cells = (int(v) for v in group["shape"][:])
            data, indices, indptr = group["data"][:], group["indices"][:], group["indptr"][:]
            barcodes = [_decode(v) for v in group["barcodes"][:]]
            described = group["features"]
            features = pd.DataFrame(
                {column: [_decode(v) for v in described[column][:]] for column in ("id", "name", "feature_type")}
            )
    except (OSError, KeyError) as error:
        raise UserError(
            "The feature matrix cannot be read",
            where=file,
            found=str(error),
            expected="a 10x feature matrix in HDF5 with the groups matrix and matrix/features",
            fix="copy the file again from the bundle; it may be cut off",
        ) from error
    if data.dtype.kind == "f" and np.array_equal(data, np.rint(data)):
        data = data.astype(np.int32)
    return csr_matrix((data, indices, indptr), shape=(n_cells, n_features)), barcodes, features


def _decode(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _text(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return identifiers or names as str, whether written as int, bytes, str or category."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return _text(column.astype(column.cat.categories.dtype))
    if column.dtype.kind in "iu":
        return column.astype(str)
    if len(column) and isinstance(column.iloc[0], bytes):
        return column.str.decode("utf-8")
    return column.astype(str)


def _read_table(file: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a Parquet or (gzipped) CSV table; a broken one is a :class:`UserError`."""
    import pyarrow as pa

    try:
        if file.suffix == ".parquet":
            return pd.read_parquet(file, columns=list(columns) if columns is not None else None)
        wanted = set(columns) if columns is not None else None
        return pd.read_csv(file, usecols=(lambda name: name in wanted) if wanted is not None else None)
    except (pa.ArrowInvalid, OSError, EOFError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(
            "A table of the bundle cannot be read",
            where=file,
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            expected="Parquet" if file.suffix == ".parquet" else "CSV",
            fix="copy the file again from the bundle; it may be cut off",
        ) from error


def _require(file: Path, columns: pd.Index[Any], needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in columns]
    if missing:
        raise UserError(
            "A table of the bundle lacks columns",
            where=file,
            found=", ".join(map(str, columns)),
            expected=", ".join(missing),
            fix="take the table from a Xenium bundle, without renaming its columns",
        )


def _nucleus_count(raw: pd.DataFrame, nuclei: pd.DataFrame, cell_id: pd.Series[Any]) -> pd.Series[Any]:
    """Return the number of nuclei of each cell (Int64): as written, otherwise the number of outlines."""
    if "nucleus_count" not in raw:
        return cell_id.map(nuclei["cell_id"].value_counts()).fillna(0).astype("Int64").rename("nucleus_count")
    count: npt.NDArray[np.float64] = raw["nucleus_count"].to_numpy(np.float64)
    known = np.isfinite(count)
    return pd.Series(np.where(known, count, 0).astype(np.int64), index=raw.index, dtype="Int64").mask(~known)
