"""The rules that hold in a real bundle, checked: do its files belong together, and are the counts what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.files import read_json
from nuclass.xenium import tables
from nuclass.xenium.cells_zarr import CELLS_ZARR
from nuclass.xenium.matrix import GENE_EXPRESSION, feature_types
from nuclass.xenium.polygons import outline_starts, polygon_starts, ragged_area_and_centroid

if TYPE_CHECKING:
    from nuclass.xenium.reader import Bundle

Verdict = Literal["pass", "warn", "fail", "skipped"]
Ints = npt.NDArray[np.int64]

MIN_QV = 20.0
# Names of what is no gene, in files that do not say so otherwise.
CONTROL_PREFIXES = (
    "BLANK_",
    "NegControlProbe_",
    "NegControlCodeword_",
    "antisense_",
    "UnassignedCodeword_",
    "DeprecatedCodeword_",
    "Intergenic_Region_",
)
# Outline area over stated area. The outlines run through the centres of the border pixels and are simplified, so
# they are smaller: 0.934 to 0.978, median 0.961, in the real bundle of 3.0.0. A wrong unit or scale is far outside.
AREA_RATIO = (0.85, 1.10)
AREA_RATIO_FAIL = (0.60, 1.50)
_FEW = 0.01


@dataclass(frozen=True)
class Check:
    """One rule and its verdict.

    Attributes
    ----------
    name
        The rule.
    verdict
        ``pass``, ``warn`` (odd, of no consequence for the counts), ``fail`` (files that do not belong
        together or were changed) or ``skipped`` (a file is not there).
    found, expected
        In words or numbers.
    detail
        The cells or genes concerned, or why the rule was skipped.
    """

    name: str
    verdict: Verdict
    found: str
    expected: str
    detail: str = ""


@dataclass(frozen=True)
class _Counted:
    """What one pass over the transcripts gives: counts per cell (N,), transcripts of unknown cells, extent in um."""

    genes: Ints
    everything: Ints
    unknown: int
    first_unknown: str
    low: tuple[float, float]
    high: tuple[float, float]


def check_bundle(bundle: Bundle, transcripts: bool = True, rows: int = 1 << 20) -> list[Check]:
    """Check a bundle against the rules that hold in real ones.

    Parameters
    ----------
    bundle
        The bundle.
    transcripts
        Also count the transcripts (about two million a second); they are read in pieces of ``rows`` rows.
    rows
        Rows of the table of transcripts in memory at a time.

    Returns
    -------
    One :class:`Check` a rule, in a fixed order.

    Raises
    ------
    UserError
        A file is broken; a missing one only skips its rules, unless it is the table of cells.
    """
    cells = bundle.cells()
    raw = _raw_cells(bundle)
    counted, reason = _count_transcripts(bundle, cells["cell_id"], transcripts, rows)
    # One table of outlines at a time: each has tens of millions of vertices.
    nuclei = _check_owners("nucleus", _outlines(bundle, "nucleus"), cells["cell_id"])
    outlines = _outlines(bundle, "cell")
    return [
        _check_number(bundle, len(cells)),
        _check_genes(cells, counted, reason),
        _check_total(raw, counted, reason),
        _check_matrix(bundle, cells),
        _check_known(cells, counted, reason),
        nuclei,
        _check_owners("cell", outlines, cells["cell_id"]),
        _check_area(outlines, cells),
        _check_inside(outlines, cells, bundle.pixel_size),
        _check_panel(bundle),
        _check_region(bundle, cells, counted),
    ]


def format_checks(checks: Iterable[Check]) -> list[str]:
    """Return the checks as lines of text: the verdict, the rule, and what was found where it did not pass."""
    lines = []
    for check in checks:
        lines.append(f"{check.verdict.upper():<8}{check.name}: {check.found}")
        if check.verdict in ("warn", "fail"):
            lines.append(f"{'':<8}  expected: {check.expected}")
        if check.detail:
            lines.append(f"{'':<8}  {check.detail}")
    return lines


def worst_verdict(checks: Iterable[Check]) -> Verdict:
    """Return ``fail`` if a check failed, else ``warn`` if one warned, else ``pass``."""
    verdicts = {check.verdict for check in checks}
    return "fail" if "fail" in verdicts else "warn" if "warn" in verdicts else "pass"


def is_gene(names: pd.Index[Any], types: pd.Series[Any] | None) -> npt.NDArray[np.bool_]:
    """Return whether features are genes: by their type in the feature matrix, otherwise by their names.

    Parameters
    ----------
    names
        Feature names.
    types
        Feature type by name, or None where there is no matrix.
    """
    by_name = ~names.str.startswith(CONTROL_PREFIXES)
    if types is None:
        return np.asarray(by_name, bool)
    known = types.reindex(names)
    return np.where(known.notna(), known == GENE_EXPRESSION, by_name).astype(bool)


def _skipped(name: str, reason: str) -> Check:
    return Check(name, "skipped", "not checked", "", reason)


def _raw_cells(bundle: Bundle) -> pd.DataFrame:
    file = tables.find_file(bundle.folder, "cells")
    assert file is not None, "the cells were read before"
    columns = [c for c in tables.table_columns(file) if c.endswith("_counts")]
    frame = tables.load(file, ["cell_id"], columns)
    return frame.assign(cell_id=tables.as_text(frame["cell_id"]))


def _count_transcripts(bundle: Bundle, cell_id: pd.Series[Any], wanted: bool, rows: int) -> tuple[_Counted | None, str]:
    """Count each cell's good transcripts in one pass, or say why not."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from nuclass.xenium.reader import UNASSIGNED

    if not wanted:
        return None, "the transcripts were not asked for"
    if not bundle.has_transcripts():
        return None, "the bundle folder holds no table of transcripts"
    present = bundle.transcript_columns()
    marked = "is_gene" in present
    columns = ["cell_id", "feature_name", "qv", "x_location", "y_location", *(["is_gene"] if marked else [])]
    types = None
    if not marked and (matrix := tables.find_file(bundle.folder, "cell_feature_matrix.h5", ("",))) is not None:
        types = feature_types(matrix)
    n = len(cell_id)
    ids = pa.array([*cell_id, UNASSIGNED], pa.string())
    genes, everything = np.zeros(n, np.int64), np.zeros(n, np.int64)
    unknown, first_unknown = 0, ""
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for batch in bundle.transcript_batches(columns, rows):
        place = pc.index_in(batch["cell_id"], value_set=ids)
        if place.null_count:
            unknown += place.null_count
            first_unknown = first_unknown or batch["cell_id"].filter(pc.is_null(place))[0].as_py()
        row = pc.fill_null(place, n).to_numpy()
        if marked:
            gene = batch["is_gene"].to_numpy().astype(bool)
        else:
            coded = batch["feature_name"].combine_chunks().dictionary_encode()
            gene = is_gene(pd.Index(coded.dictionary.to_pylist()), types)[coded.indices.to_numpy()]
        good = (row < n) & (batch["qv"].to_numpy() >= MIN_QV)
        everything += np.bincount(row[good], minlength=n)
        genes += np.bincount(row[good & gene], minlength=n)
        for axis, name in enumerate(("x_location", "y_location")):
            extent = pc.min_max(batch[name]).as_py()
            if extent["min"] is not None:
                low[axis], high[axis] = min(low[axis], extent["min"]), max(high[axis], extent["max"])
    corners = (float(low[0]), float(low[1])), (float(high[0]), float(high[1]))
    return _Counted(genes, everything, unknown, first_unknown, *corners), ""


def _outlines(bundle: Bundle, kind: Literal["nucleus", "cell"]) -> pd.DataFrame | None:
    """Return the outlines with an ``outline`` number, or None where the bundle has none."""
    table = tables.find_file(bundle.folder, f"{kind}_boundaries")
    if table is None and not (bundle.folder / CELLS_ZARR).is_file():
        return None
    frame = bundle.boundaries(kind)
    start = outline_starts(frame)
    number = np.zeros(len(frame), np.int32)
    number[start] = 1
    frame["outline"] = np.cumsum(number, dtype=np.int32) - 1
    return frame


def _named(ids: pd.Series[Any], bad: npt.NDArray[np.bool_], words: Callable[[int], str]) -> str:
    rows = np.flatnonzero(bad)
    shown = "; ".join(f"{ids.iloc[i]}: {words(i)}" for i in rows[:3])
    return shown + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")


def _compare(name: str, ids: pd.Series[Any], stated: Ints, counted: Ints, expected: str) -> Check:
    """Return the check that two counts per cell are equal; the cells where they differ are named."""
    bad = stated != counted
    if not bad.any():
        return Check(name, "pass", f"equal in all {len(ids)} cells", expected)
    detail = _named(ids, bad, lambda i: f"table {stated[i]}, counted {counted[i]}")
    return Check(name, "fail", f"different in {int(bad.sum())} of {len(ids)} cells", expected, detail)


def _check_number(bundle: Bundle, n: int) -> Check:
    name, stated = "number of cells", bundle.experiment.get("num_cells")
    if stated is None:
        return _skipped(name, "experiment.xenium does not state num_cells")
    verdict: Verdict = "pass" if stated == n else "fail"
    detail = "" if stated == n else "the cells table and experiment.xenium are of different runs"
    return Check(name, verdict, f"{n} rows", f"{stated} by experiment.xenium", detail)


def _check_genes(cells: pd.DataFrame, counted: _Counted | None, reason: str) -> Check:
    name = "transcript_counts against the transcripts"
    if counted is None:
        return _skipped(name, reason)
    expected = "the number of the cell's gene transcripts with qv >= 20"
    return _compare(name, cells["cell_id"], cells["transcript_counts"].to_numpy(), counted.genes, expected)


def _check_total(raw: pd.DataFrame, counted: _Counted | None, reason: str) -> Check:
    name = "total_counts against the transcripts"
    if counted is None:
        return _skipped(name, reason)
    if "total_counts" not in raw:
        return _skipped(name, "the cells table has no total_counts")
    total = raw["total_counts"].to_numpy(np.int64)
    check = _compare(
        name, raw["cell_id"], total, counted.everything, "the number of the cell's transcripts with qv >= 20"
    )
    parts = raw.drop(columns=["cell_id", "total_counts"]).sum(axis=1).to_numpy(np.int64)
    genes_agree = (raw["transcript_counts"].to_numpy() == counted.genes).all()
    if check.verdict == "fail" and genes_agree and (total == parts).all() and (total <= counted.everything).all():
        note = "the sum of the table's own columns, so a kind of control has no column in this version"
        return Check(name, "warn", check.found, check.expected, f"it is {note}; {check.detail}")
    return check


def _check_matrix(bundle: Bundle, cells: pd.DataFrame) -> Check:
    name = "transcript_counts against the feature matrix"
    if tables.find_file(bundle.folder, "cell_feature_matrix.h5", ("",)) is None:
        return _skipped(name, "the bundle folder holds no cell_feature_matrix.h5")
    counts: Any = bundle.counts().X
    sums = np.asarray(counts.sum(axis=1)).ravel().astype(np.int64)
    expected = "the sum of the cell's genes in the matrix"
    return _compare(name, cells["cell_id"], cells["transcript_counts"].to_numpy(), sums, expected)


def _check_known(cells: pd.DataFrame, counted: _Counted | None, reason: str) -> Check:
    name = "cells of the transcripts"
    if counted is None:
        return _skipped(name, reason)
    expected = "every assigned transcript in a cell of the cells table"
    if counted.unknown == 0:
        return Check(name, "pass", f"all in the {len(cells)} cells", expected)
    found = f"{counted.unknown} transcripts of cells that the table lacks"
    return Check(name, "fail", found, expected, f"the first is of {counted.first_unknown}")


def _check_owners(kind: str, frame: pd.DataFrame | None, cell_id: pd.Series[Any]) -> Check:
    name = f"cells of the {kind} outlines"
    if frame is None:
        return _skipped(name, f"the bundle folder holds no {kind} outlines")
    owners = frame.drop_duplicates("outline")["cell_id"]
    bad = ~owners.isin(cell_id) & (owners != "UNASSIGNED")
    expected = "every outline of a cell of the cells table"
    if not bad.any():
        return Check(name, "pass", f"{len(owners)} outlines of {owners.nunique()} cells", expected)
    found = f"{int(bad.sum())} of {len(owners)} outlines of cells that the table lacks"
    return Check(name, "fail", found, expected, f"the first is of {owners[bad].iloc[0]}")


def _check_area(frame: pd.DataFrame | None, cells: pd.DataFrame) -> Check:
    name = "area of the cell outlines against cell_area"
    if frame is None:
        return _skipped(name, "the bundle folder holds no cell outlines")
    if cells["cell_area"].isna().all():
        return _skipped(name, "the cells table has no cell_area")
    start = polygon_starts(frame["outline"].to_numpy())
    area, _, _ = ragged_area_and_centroid(frame["vertex_x"], frame["vertex_y"], start)
    per_cell = pd.Series(area).groupby(frame["cell_id"].iloc[start].to_numpy()).sum()
    ratio = (cells["cell_id"].map(per_cell) / cells["cell_area"]).to_numpy(np.float64)
    known = np.isfinite(ratio)
    if not known.any():
        return _skipped(name, "no outline is of a cell of the table")
    middle = float(np.median(ratio[known]))
    odd = known & ((ratio < AREA_RATIO_FAIL[0]) | (ratio > AREA_RATIO_FAIL[1]))
    verdict: Verdict = "pass"
    if not AREA_RATIO_FAIL[0] <= middle <= AREA_RATIO_FAIL[1]:
        verdict = "fail"
    elif not AREA_RATIO[0] <= middle <= AREA_RATIO[1] or odd.sum() > _FEW * known.sum():
        verdict = "warn"
    expected = f"median ratio {AREA_RATIO[0]:.2f} to {AREA_RATIO[1]:.2f}, at most 1 % of cells far outside"
    found = f"median ratio {middle:.3f}, range {ratio[known].min():.3f} to {ratio[known].max():.3f}"
    detail = _named(cells["cell_id"], odd, lambda i: f"ratio {ratio[i]:.2f}") if verdict != "pass" and odd.any() else ""
    return Check(name, verdict, found, expected, detail)


def _check_inside(frame: pd.DataFrame | None, cells: pd.DataFrame, tolerance: float) -> Check:
    """Check the centroids against the box of the outline, in um; a concave cell may not hold its centroid itself."""
    name = "cell centroids inside their outlines' boxes"
    if frame is None:
        return _skipped(name, "the bundle folder holds no cell outlines")
    box = (
        frame.groupby("cell_id", observed=True)[["vertex_x", "vertex_y"]].agg(["min", "max"]).reindex(cells["cell_id"])
    )
    values, known = box.to_numpy(np.float64), ~box.isna().any(axis=1).to_numpy()
    xy = cells[["x_centroid", "y_centroid"]].to_numpy()
    outside = np.zeros(len(cells), bool)
    for axis in (0, 1):
        below, above = values[:, 2 * axis] - tolerance, values[:, 2 * axis + 1] + tolerance
        outside |= known & ((xy[:, axis] < below) | (xy[:, axis] > above))
    share = outside.sum() / max(known.sum(), 1)
    verdict: Verdict = "pass" if share == 0 else "warn" if share <= _FEW else "fail"
    detail = _named(cells["cell_id"], outside, lambda i: f"centroid {xy[i, 0]:.1f}, {xy[i, 1]:.1f} um")
    return Check(name, verdict, f"{int(outside.sum())} of {int(known.sum())} outside", "none outside", detail)


def _check_panel(bundle: Bundle) -> Check:
    name = "genes of the panel against the feature matrix"
    panel, matrix = bundle.folder / "gene_panel.json", bundle.folder / "cell_feature_matrix.h5"
    for file in (panel, matrix):
        if not file.is_file():
            return _skipped(name, f"the bundle folder holds no {file.name}")
    try:
        targets = read_json(panel)["payload"]["targets"]
        stated = {t["type"]["data"]["name"] for t in targets if t["type"]["descriptor"] == "gene"}
    except (KeyError, TypeError) as error:
        raise UserError(
            "The gene panel has an unknown layout",
            where=panel,
            found=f"no {error}",
            expected="payload, targets, type, descriptor",
            fix=tables.COPY_AGAIN,
        ) from error
    types = feature_types(matrix)
    genes = set(types.index[types == GENE_EXPRESSION])
    if stated == genes:
        return Check(name, "pass", f"the same {len(genes)} genes", "the same genes in both")
    sides = (("in the panel only", stated - genes), ("in the matrix only", genes - stated))
    detail = "; ".join(f"{len(s)} {words}, such as {', '.join(sorted(s)[:3])}" for words, s in sides if s)
    return Check(name, "fail", f"{len(stated)} genes and {len(genes)} in the matrix", "the same genes in both", detail)


def _check_region(bundle: Bundle, cells: pd.DataFrame, counted: _Counted | None) -> Check:
    """Check that cells and transcripts lie on the morphology image, or at least not above or left of it."""
    name = "coordinates inside the region"
    size, reason = _region(bundle)
    tolerance = bundle.pixel_size
    xy = cells[["x_centroid", "y_centroid"]].to_numpy()
    limit = np.array(size if size is not None else (np.inf, np.inf))
    outside = ((xy < -tolerance) | (xy > limit + tolerance)).any(axis=1)
    expected = "from 0 to " + (
        f"{limit[0]:.1f} x {limit[1]:.1f} um, the morphology image" if size else f"any um ({reason})"
    )
    if outside.any():
        detail = _named(cells["cell_id"], outside, lambda i: f"centroid {xy[i, 0]:.1f}, {xy[i, 1]:.1f} um")
        return Check(name, "fail", f"{int(outside.sum())} of {len(cells)} cells outside", expected, detail)
    found = f"all {len(cells)} cells inside"
    if counted is not None and np.isfinite(counted.low).all():
        # A choice: transcripts off the image change no count, so this alone is no failure.
        away = (np.array(counted.low) < -tolerance).any() or (np.array(counted.high) > limit + tolerance).any()
        (x0, y0), (x1, y1) = counted.low, counted.high
        found += f", transcripts at x {x0:.1f} to {x1:.1f}, y {y0:.1f} to {y1:.1f} um"
        return Check(name, "warn" if away else "pass", found, expected)
    return Check(name, "pass", found, expected)


def _region(bundle: Bundle) -> tuple[tuple[float, float] | None, str]:
    """Return width and height of the morphology image in um, or why they are not known."""
    import tifffile

    focus, stack = bundle.morphology_focus(), bundle.folder / "morphology.ome.tif"
    file = focus if focus is not None else stack
    if not file.is_file():
        return None, "no morphology image is there"
    try:
        with tifffile.TiffFile(file) as image:
            height, width = image.pages[0].shape[:2]
    except (tifffile.TiffFileError, OSError, ValueError, IndexError) as error:
        raise tables.broken(file, error, "an OME-TIFF") from error
    return (width * bundle.pixel_size, height * bundle.pixel_size), ""
