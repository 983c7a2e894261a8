"""Read a Xenium bundle by what its files hold, not by the version it names.

What differs between the versions of the analysis (XOA), and what is made of it:

=================== =========================================== =====================================
part                versions                                    here
=================== =========================================== =====================================
experiment.xenium   1.0: no ``major_version``; capital X and    only ``pixel_size`` and ``images`` are
                    suffixes in the version; ``xenium_ranger``  used; ``version`` for messages
cell ids            1.0-1.2 whole numbers, since then text;     ``str``; no cell is ``UNASSIGNED``
                    bytes in Parquet up to 1.3; no cell is -1
                    or ``UNASSIGNED``
tables              CSV, CSV.gz or Parquet                      the first that is there, Parquet first
cells               columns are added with each version         missing ones are 0, NaN or derived
outlines            ``label_id`` since 2.0; early builds of     a nucleus is a label, else a ring that
                    2.0 write all nuclei of a cell as one       closes; of several the largest counts
                    outline without it
no outline tables   cells.zarr.zip: ``polygon_sets`` since      read from there
                    2.0, ``polygon_vertices`` before
feature matrix      feature types other than genes; proteins    genes alone, whole numbers
                    (4.0) with fractions
DAPI image          morphology_focus.ome.tif, since 2.0         by experiment.xenium, else by name
                    morphology_focus/..0000.., 4.0 ch0000_dapi
clusters            analysis.tar.gz, a folder, analysis.zarr    :mod:`nuclass.xenium.analysis`
=================== =========================================== =====================================

Tested on a real bundle of 3.0.0.15 and on real experiment.xenium files of 1.0.1, 1.0.2, 3.0.0.15 and
4.0.0.19. The layouts of 1.0.1, 1.0.2, 1.3, 1.7, 2.0, 2.x, 3.0 after xeniumranger and 4.0 with proteins are
tested on rewritten bundles, made from descriptions of the formats (``tests/xenium_versions.py``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from nuclass.core.bundle_source import EXPERIMENT
from nuclass.core.errors import UserError
from nuclass.core.files import read_json
from nuclass.core.log import get_logger
from nuclass.xenium import tables
from nuclass.xenium.cells_zarr import CELLS_ZARR, outlines
from nuclass.xenium.matrix import GENE_EXPRESSION, read_matrix, whole_counts
from nuclass.xenium.members import focus_image, names_in
from nuclass.xenium.polygons import closed_rings, crosses_itself, outline_starts, ragged_area_and_centroid

if TYPE_CHECKING:
    import pyarrow as pa
    from anndata import AnnData

_log = get_logger(__name__)

MATRIX = "cell_feature_matrix.h5"
UNASSIGNED = "UNASSIGNED"
_ALWAYS = "the Xenium instrument or xeniumranger writes it into every output bundle"
_MAKERS = {
    EXPERIMENT: _ALWAYS,
    "cells": _ALWAYS,
    MATRIX: _ALWAYS,
    "nucleus_boundaries": "the Xenium instrument or xeniumranger writes it where nuclei were segmented",
    "cell_boundaries": _ALWAYS,
    "transcripts": "the Xenium instrument or xeniumranger writes it; it is the largest table of the bundle",
}
_CELL_COUNTS = ("control_probe_counts", "control_codeword_counts")
_TEXT = ("cell_id", "feature_name", "fov_name", "codeword_category")


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
        file = self._file(EXPERIMENT, ("",))
        try:
            content = read_json(file)
        except UserError as error:
            told = tables.broken(file, error, "a JSON object")
            raise told if "web page" in told.what else error from None
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
        text = str(text or self.experiment.get("analysis_sw_version") or "").strip()
        return re.sub(r"^xenium(ranger)?-", "", text, flags=re.IGNORECASE)

    def morphology_focus(self) -> Path | None:
        """Return the DAPI image in focus: what experiment.xenium names, else the known names; None if absent."""
        name = focus_image(names_in(self.folder), self.experiment)
        return self.folder / name if name is not None else None

    def cells(self) -> pd.DataFrame:
        """Return one row a cell, in the order of the bundle.

        Columns: ``cell_id`` (str), ``x_centroid y_centroid`` (cell, um), ``transcript_counts``
        (genes, qv >= 20), ``control_counts`` (control probes and control codewords together),
        ``cell_area nucleus_area`` (um^2), ``nucleus_count`` (Int64; the number of outlines in bundles
        before 2.0, which do not state it), ``nucleus_x_um nucleus_y_um`` (area centroid of the nucleus
        outline, of the largest where there are several; NaN where there is none, or where its outline
        crosses itself so that it has no centroid) and ``centroid`` (``nucleus``, or ``cell`` where
        only the cell's is known).

        Raises
        ------
        UserError
            The table is missing, broken or empty, lacks a column, names a cell twice, or has a coordinate
            or a count that is no number.
        """
        return self._cells.copy()

    @cached_property
    def _cells(self) -> pd.DataFrame:
        file = self._table("cells")
        coordinates, areas = ["x_centroid", "y_centroid"], ["cell_area", "nucleus_area"]
        raw = tables.load(
            file, ["cell_id", *coordinates, "transcript_counts"], [*_CELL_COUNTS, *areas, "nucleus_count"]
        )
        cell_id = _cell_ids(file, raw["cell_id"])
        row_name = _row_name(cell_id)
        tables.finite(file, raw, coordinates, row_name)
        out = pd.DataFrame({"cell_id": cell_id})
        for name in coordinates:
            out[name] = raw[name].astype("float64")
        out["transcript_counts"] = tables.to_count(file, raw["transcript_counts"], "transcript_counts", row_name)
        out["control_counts"] = np.zeros(len(raw), np.int64)
        for name in _CELL_COUNTS:
            if name in raw:
                out["control_counts"] += tables.to_count(file, raw[name], name, row_name)
        for name in areas:
            out[name] = tables.to_number(file, raw[name], name, row_name) if name in raw else np.nan
        nuclei = self.nuclei()
        out["nucleus_count"] = _nucleus_count(raw, nuclei, cell_id)
        unclear = nuclei.loc[~nuclei["simple"], "cell_id"]
        if len(unclear):
            _log.warning(
                "%s: the nucleus outlines of %d cells cross themselves, the first is %s; the cell's centroid is used",
                self.folder,
                unclear.nunique(),
                unclear.iloc[0],
            )
        clear = nuclei[~nuclei["cell_id"].isin(unclear)]
        largest = clear.sort_values("area", kind="stable").drop_duplicates("cell_id", keep="last").set_index("cell_id")
        out["nucleus_x_um"] = cell_id.map(largest["x_um"]).astype("float64")
        out["nucleus_y_um"] = cell_id.map(largest["y_um"]).astype("float64")
        out["centroid"] = np.where(out["nucleus_x_um"].notna(), "nucleus", "cell")
        return out

    def nuclei(self) -> pd.DataFrame:
        """Return one row a nucleus: ``cell_id``, ``area`` (um^2), ``x_um y_um`` (area centroid), ``simple``.

        Where the outlines have no labels, a nucleus is a ring that closes. Such a ring is not ``simple`` if it
        crosses itself, as several nuclei joined in one outline do. Outlines without an area are left out.
        """
        vertices = self.boundaries("nucleus")
        x, y = vertices["vertex_x"].to_numpy(), vertices["vertex_y"].to_numpy()
        start = packed = outline_starts(vertices)
        owner = vertices["cell_id"]
        simple = np.ones(len(start), bool)
        if "label_id" not in vertices:
            start, length = closed_rings(x, y, start)
            simple = ~crosses_itself(x, y, start, length)
            # Padding between rings belongs to none of them.
            packed = np.append(0, np.cumsum(length)[:-1]).astype(np.int64) if len(length) else length
            rows = np.repeat(start - packed, length) + np.arange(length.sum())
            x, y = x[rows], y[rows]
        area, cx, cy = ragged_area_and_centroid(x, y, packed)
        frame = pd.DataFrame({"cell_id": owner.iloc[start].to_numpy(), "area": area, "x_um": cx, "y_um": cy})
        frame["simple"] = simple
        return frame[(area > 0) | ~simple].reset_index(drop=True)

    def boundaries(self, kind: Literal["nucleus", "cell"]) -> pd.DataFrame:
        """Return the outlines' vertices: ``cell_id`` (categories of str), ``vertex_x vertex_y`` (um), ``label_id``.

        From the table of boundaries, or from cells.zarr.zip where there is none. The rows of a polygon
        stand together. Before 2.0 there is no ``label_id``; early builds of 2.0 lack it too and merge the nuclei of one
        cell into one outline.
        """
        if kind not in ("nucleus", "cell"):
            raise ValueError(f"kind is {kind!r}; expected 'nucleus' or 'cell'")
        stem, frame = f"{kind}_boundaries", None
        file = tables.find_file(self.folder, stem)
        if file is None and (self.folder / CELLS_ZARR).is_file():
            file = self.folder / CELLS_ZARR
            frame = outlines(file, kind)
        if file is None or (file.name == CELLS_ZARR and frame is None):
            raise self._missing(stem, tables.ENDINGS)
        if frame is None:
            frame = tables.load(file, ["cell_id", "vertex_x", "vertex_y"], ["label_id"], repeated=["cell_id"])
        tables.finite(file, frame, ["vertex_x", "vertex_y"], _row_name(frame["cell_id"]))
        return frame

    def has_transcripts(self) -> bool:
        """Whether the table of transcripts is there."""
        return tables.find_file(self.folder, "transcripts") is not None

    def transcript_columns(self) -> list[str]:
        """Return the names of the columns of the table of transcripts."""
        return tables.table_columns(self._table("transcripts"))

    def transcripts(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the transcripts, text as str; ``columns`` limits what is read.

        Unassigned transcripts have the cell id ``UNASSIGNED`` in every version (-1 in old files).
        """
        file = self._table("transcripts")
        frame = tables.load(file, tables.table_columns(file) if columns is None else columns)
        for column in set(_TEXT) & set(frame):
            frame[column] = tables.as_text(frame[column])
        if "cell_id" in frame:
            frame["cell_id"] = frame["cell_id"].mask(frame["cell_id"] == "-1", UNASSIGNED)
        return frame

    def transcript_batches(self, columns: Sequence[str], rows: int = 1 << 20) -> Iterator[pa.Table]:
        """Yield the transcripts as Arrow tables of at most ``rows`` rows, text as strings.

        As :meth:`transcripts`, in memory that does not grow with their number.
        """
        import pyarrow.compute as pc

        file = self._table("transcripts")
        for table in tables.batches(file, tables.choose(file, columns), rows):
            for column in set(_TEXT) & set(columns):
                text = tables.as_arrow_text(table[column])
                if column == "cell_id":
                    text = pc.if_else(pc.fill_null(pc.equal(text, "-1"), True), UNASSIGNED, text)
                table = table.set_column(table.column_names.index(column), column, text)
            yield table

    def counts(self) -> AnnData:
        """Return the counts of genes, cells x genes, rows as in :meth:`cells`.

        ``X`` is an integer CSR matrix; ``obs_names`` are the cell ids; ``var_names`` the gene names,
        made unique with ``-1``, ``-2``...; ``var["gene_id"]`` the ids. Controls, unassigned codewords and
        proteins are left out.
        """
        from anndata import AnnData
        from anndata.utils import make_index_unique

        file = self._file(MATRIX, ("",))
        matrix, barcodes, features = read_matrix(file)
        keep = features["feature_type"] == GENE_EXPRESSION
        if not keep.any():
            raise UserError(
                "The feature matrix holds no genes",
                where=file,
                found=", ".join(sorted(set(features["feature_type"]))) or "no features",
                expected=f"features of type {GENE_EXPRESSION}",
                fix="check that the bundle is of a gene expression run",
            )
        cells = self._cells["cell_id"]
        rows = _rows_of(file, cells, barcodes)
        if len(rows) != len(barcodes) or (np.diff(rows) != 1).any():
            matrix = matrix[rows]
        chosen = whole_counts(file, matrix[:, keep.to_numpy()])
        chosen.sort_indices()
        genes = features[keep]
        var = pd.DataFrame({"gene_id": genes["id"].to_numpy(), "gene_name": genes["name"].to_numpy()})
        var.index = make_index_unique(pd.Index(genes["name"].astype(str)))
        return AnnData(X=chosen, obs=pd.DataFrame(index=pd.Index(cells.astype(str), name=None)), var=var)

    def _table(self, stem: str) -> Path:
        return self._file(stem, tables.ENDINGS)

    def _file(self, stem: str, endings: Sequence[str]) -> Path:
        """Return the first file ``stem + ending`` that exists."""
        file = tables.find_file(self.folder, stem, endings)
        if file is None:
            raise self._missing(stem, endings)
        return file

    def _missing(self, stem: str, endings: Sequence[str]) -> UserError:
        names = " or ".join(f"{stem}{ending}" for ending in endings)
        return UserError(
            "A file of the Xenium bundle is missing",
            where=self.folder,
            found=f"no {names}" if self.folder.is_dir() else "a file" if self.folder.is_file() else "no such folder",
            expected=f"{names} ({_MAKERS.get(stem, 'part of every bundle')})",
            fix="give the unpacked folder that holds experiment.xenium, or copy the file from the instrument's output",
        )


def read_bundle(folder: str | Path) -> Bundle:
    """Open a bundle; a :class:`UserError` if the folder or its experiment.xenium is missing or broken.

    Parameters
    ----------
    folder
        The folder that holds experiment.xenium, or that file.
    """
    place = Path(folder)
    bundle = Bundle(place.parent if place.name == EXPERIMENT and place.is_file() else place)
    _ = bundle.experiment
    return bundle


def _row_name(cell_id: pd.Series[Any]) -> Callable[[int], str]:
    return lambda row: f"row {row + 1}, cell {cell_id.iloc[row]}"


def _cell_ids(file: Path, column: pd.Series[Any]) -> pd.Series[Any]:
    """Return the ids of the cells table as str, each once."""
    if column.empty:
        raise UserError(
            "The bundle has no cells",
            where=file,
            found="a table without rows",
            expected="one row per cell",
            fix="check that cells were segmented in this region, or copy the file again from the bundle",
        )
    cell_id = tables.as_text(column).astype(str).rename("cell_id")
    if cell_id.duplicated().any():
        raise UserError(
            "A cell id stands twice in the bundle",
            where=f"{file}, column cell_id",
            found=str(cell_id[cell_id.duplicated()].iloc[0]),
            expected="one row per cell",
            fix="copy the file again from the bundle",
        )
    return cell_id


def _rows_of(file: Path, cells: pd.Series[Any], barcodes: Sequence[str]) -> Any:
    """Return the row of each cell in the matrix; barcodes of no cell are left out."""
    index = pd.Index(barcodes)
    if index.has_duplicates:
        raise UserError(
            "A cell id stands twice in the feature matrix",
            where=f"{file}, matrix/barcodes",
            found=str(index[index.duplicated()][0]),
            expected="each cell once",
            fix="copy the file again from the bundle",
        )
    order = index.get_indexer(pd.Index(cells))
    if (order < 0).any():
        raise UserError(
            f"{int((order < 0).sum())} of {len(cells)} cells have no row in the feature matrix",
            where=file,
            found=f"no barcode {cells.iloc[int(np.argmax(order < 0))]!r}",
            expected="the cells of the cells table",
            fix="take both files from the same run of the analysis",
        )
    if len(index) > len(cells):
        _log.info(
            "%s: %d of %d barcodes are of no cell of the table; left out", file, len(index) - len(cells), len(index)
        )
    return order


def _nucleus_count(raw: pd.DataFrame, nuclei: pd.DataFrame, cell_id: pd.Series[Any]) -> pd.Series[Any]:
    """Return the number of nuclei of each cell (Int64): as written, otherwise the number of outlines."""
    if "nucleus_count" not in raw:
        return cell_id.map(nuclei["cell_id"].value_counts()).fillna(0).astype("Int64").rename("nucleus_count")
    count = pd.to_numeric(raw["nucleus_count"], errors="coerce").to_numpy(np.float64, na_value=np.nan)
    known = np.isfinite(count)
    return pd.Series(np.where(known, count, 0).astype(np.int64), index=raw.index, dtype="Int64").mask(~known)
