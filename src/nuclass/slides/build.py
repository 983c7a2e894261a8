"""The table of a slide's cells: where each one lies in every frame, and why some are left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.names import CELL_COLUMNS, CELL_ID, DROPPED, KEPT
from nuclass.slides.geometry import Frames, window_origin
from nuclass.slides.store import padded_fraction

if TYPE_CHECKING:
    from anndata import AnnData

_log = get_logger(__name__)

# In the order they are asked; a cell carries the first that holds.
REASONS = ("no_nucleus", "low_counts", "few_genes", "control_probes", "too_small", "too_large", "off_slide")
_KEYS = {
    "no_nucleus": "require_nucleus",
    "low_counts": "min_transcripts",
    "few_genes": "min_genes",
    "control_probes": "max_control_fraction",
    "too_small": "min_cell_area",
    "too_large": "max_cell_area",
    "off_slide": "max_off_slide",
}


class CellSource(Protocol):
    """What is needed of a bundle (:class:`nuclass.xenium.reader.Bundle`)."""

    def cells(self) -> pd.DataFrame:
        """One row a cell, micrometres."""

    def counts(self) -> AnnData:
        """Cells x genes, rows named by cell id."""


def build_cells_table(
    bundle: CellSource, frames: Frames, he_shape: tuple[int, int], qc: Mapping[str, Any], window: int = 224
) -> pd.DataFrame:
    """Place the cells of a bundle on the H&E and mark those that are unfit, with the reason.

    Parameters
    ----------
    bundle
        Gives ``cells()`` and ``counts()``.
    frames
        The slide's frames.
    he_shape
        ``(height, width)`` of the H&E at level 0, px.
    qc
        ``min_transcripts``, ``min_genes``, ``max_control_fraction`` (of genes and controls together),
        ``require_nucleus``, ``max_off_slide`` (largest share of the window that may lie off the H&E).
    window
        Side of that window in store px: the local view.

    Returns
    -------
    One row a cell in the order of the bundle, columns :data:`nuclass.core.names.CELL_COLUMNS`. A cell's place
    in all frames is its nucleus centroid, or its cell centroid where it has no nucleus.

    Raises
    ------
    UserError
        The bundle has no cells, or none is left; the counts of all reasons are told.
    """
    cells = bundle.cells().reset_index(drop=True)
    if cells.empty:
        raise UserError("The bundle has no cells", where="cells table of the bundle", fix="check the bundle")
    table = _placed(cells, frames)
    table["n_genes"] = _genes_per_cell(bundle.counts(), table[CELL_ID])
    table["reason"] = _reasons(table, frames.store_shape(he_shape), qc, window)
    table["status"] = np.where(table["reason"] == "", KEPT, DROPPED)
    if not (table["status"] == KEPT).any():
        _refuse(table, he_shape, qc)
    return table[list(CELL_COLUMNS)]


def funnel(cells: pd.DataFrame) -> dict[str, int]:
    """Count the cells of a table: ``total``, each reason in the order it is asked, ``kept``."""
    counts = cells.loc[cells["status"] == DROPPED, "reason"].value_counts()
    known = {reason: int(counts.get(reason, 0)) for reason in REASONS}
    other = {str(reason): int(n) for reason, n in counts.items() if reason not in known}
    return {"total": len(cells), **known, **other, KEPT: int((cells["status"] == KEPT).sum())}


def _placed(cells: pd.DataFrame, frames: Frames) -> pd.DataFrame:
    """Return ids, all frames and the numbers of the cells table."""
    nucleus = cells[["nucleus_x_um", "nucleus_y_um"]].to_numpy(np.float64)
    cell = cells[["x_centroid", "y_centroid"]].to_numpy(np.float64)
    um = np.where(np.isnan(nucleus).any(axis=1, keepdims=True), cell, nucleus)
    he = frames.um_to_he(um)
    table = pd.DataFrame({CELL_ID: cells["cell_id"].astype(str)})
    for name, points in (("um", um), ("morph", frames.um_to_morph(um)), ("he", he), ("px", frames.he_to_px(he))):
        table[f"x_{name}"], table[f"y_{name}"] = points[:, 0], points[:, 1]
    table["cell_x_um"], table["cell_y_um"] = cell[:, 0], cell[:, 1]
    has_nucleus = ~np.isnan(nucleus).any(axis=1)
    counted = pd.to_numeric(cells["nucleus_count"]).astype("float64")
    table["nucleus_count"] = counted.where(counted.notna(), has_nucleus.astype(float)).astype("int64")
    for name in ("transcript_counts", "control_counts"):
        table[name] = cells[name].astype("int64")
    for name in ("nucleus_area", "cell_area"):
        table[name] = cells[name].astype("float64")
    table["_has_nucleus"] = has_nucleus & (table["nucleus_count"] > 0)
    return table


def _genes_per_cell(counts: AnnData, ids: pd.Series[str]) -> NDArray[np.int64]:
    """Return how many genes each cell has at least one transcript of."""
    matrix: Any = counts.X
    detected = np.asarray((matrix > 0).sum(axis=1)).ravel().astype(np.int64)
    per_cell = pd.Series(detected, index=counts.obs_names.astype(str))
    missing = ~ids.isin(per_cell.index)
    if missing.any():
        raise UserError(
            "Cells of the cells table are not in the count matrix",
            where="cell_feature_matrix.h5",
            found=f"{int(missing.sum())} of {len(ids)} cells, the first is {ids[missing].iloc[0]}",
            expected="every cell in both",
            fix="take both files from the same bundle",
        )
    return per_cell.loc[ids].to_numpy()


def _reasons(
    table: pd.DataFrame, store_shape: tuple[int, int], qc: Mapping[str, Any], window: int
) -> NDArray[np.object_]:
    counts = table["transcript_counts"].to_numpy(np.float64)
    control = table["control_counts"].to_numpy(np.float64)
    area = table["cell_area"].to_numpy(np.float64)
    share = control / np.maximum(counts + control, 1.0)
    origin = window_origin(table[["x_px", "y_px"]].to_numpy(), window)
    off = padded_fraction(origin[:, 0], origin[:, 1], window, store_shape)
    fails = {
        "no_nucleus": ~table["_has_nucleus"].to_numpy() & bool(qc["require_nucleus"]),
        "low_counts": counts < qc["min_transcripts"],
        "few_genes": table["n_genes"].to_numpy() < qc["min_genes"],
        "control_probes": share > qc["max_control_fraction"],
        "too_small": area < qc["min_cell_area"],
        "too_large": area > qc["max_cell_area"],
        "off_slide": off > qc["max_off_slide"],
    }
    reason = np.full(len(table), "", dtype=object)
    for name in reversed(REASONS):
        reason[fails[name]] = name
    return reason


def _refuse(table: pd.DataFrame, he_shape: tuple[int, int], qc: Mapping[str, Any]) -> None:
    counts = {name: n for name, n in funnel(table).items() if n and name not in ("total", KEPT)}
    worst = max(counts, key=lambda name: counts[name])
    if worst == "off_slide":
        low, high = (table[["x_he", "y_he"]].agg(how).round().astype(int).tolist() for how in ("min", "max"))
        fix = (
            f"check the alignment file: the cells land at x {low[0]} to {high[0]}, y {low[1]} to {high[1]} "
            f"of an H&E of {he_shape[1]} x {he_shape[0]} px; its matrix must map H&E px to morphology px"
        )
    else:
        key = _KEYS[worst]
        fix = f"check the bundle, or change qc: {key} in the config (now {qc[key]})"
    raise UserError(
        "No cell of the slide is left after quality control",
        where="step build_slide",
        found=f"{len(table)} cells, all dropped: " + ", ".join(f"{name} {n}" for name, n in counts.items()),
        expected="at least one kept cell",
        fix=fix,
    )
