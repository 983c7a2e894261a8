"""Read the cells of a GeoJSON as QuPath, CellViT, StarDist and others write it, as a stream."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from nuclass.apply.geojson_in_events import (
    BY_PROPERTIES,
    CELL_RINGS,
    EMPTY,
    HOLES,
    NO_SHAPE,
    OTHER,
    SPLIT,
    TILES,
    CellEvents,
)
from nuclass.apply.positions_found import Found, Outlines, counted, kept_only, offsets_of, unique_ids
from nuclass.core.errors import UserError
from nuclass.core.own_cells import opened
from nuclass.core.progress import BYTES, Progress

_CHUNK = 1 << 16
# No name or number of a GeoJSON is longer; what is would be held in memory whole.
_LONGEST = 1 << 22
_BOM = b"\xef\xbb\xbf"
# QuPath writes measurements that are not known so, though JSON has no word for them.
_SPECIAL = re.compile(rb"(?:^|(?<=[:,\[\s]))-?(?:NaN|Infinity)(?=[,\]}\s]|$)")
# No cell is that large: a circle of 113 um. Regions are.
MAX_AREA_UM2 = 10_000.0
# Nuclei have 15 to 150 um^2, whole cells up to 400.
_USUAL_UM2 = (8.0, 600.0)


def read_geojson(file: Path, unit_um: float) -> Found:
    """Read the cells of a GeoJSON, or of a JSON as HoVer-Net and CellViT write it.

    A feature collection, a list of features, one feature, or features line by line; each polygon of a MultiPolygon
    and each point of a MultiPoint is a cell, but a detection or cell of QuPath in a few parts is its largest part. Of
    a QuPath cell the nucleus counts. A position is the area centroid of the outer ring. Annotations of QuPath are
    regions where there are cells or detections beside them; tiles and TMA cores, and whatever is larger than any
    cell, are none either.

    Parameters
    ----------
    file
        The file, or packed as ``.gz``.
    unit_um
        About how many um one unit of the coordinates is.

    Raises
    ------
    UserError
        The file is damaged, holds no cells, or a feature is wrong; its number is told.
    """
    cells = _parse(file)
    if not cells.lengths:
        _refuse_empty(file, cells, [])
    vertices = np.frombuffer(cells.xy, np.float64).reshape(-1, 2)
    lengths = np.frombuffer(cells.lengths, np.int64)
    area, xy = _measured(vertices, lengths)
    points = np.frombuffer(cells.points, np.uint8) > 0
    notes = _counts(cells)
    keep = _cells_only(cells, area * unit_um**2, notes)
    if not keep.any():
        _refuse_empty(file, cells, notes)
    flat = ~(area > 0)
    if (lost := int((flat & ~points & keep).sum())) > 0:
        notes.append(f"{counted(lost, 'outline')} without an area taken as a point")
    with_area = keep & ~flat
    outlines = None
    if with_area.any():
        rows = kept_only(Outlines(vertices, offsets_of(lengths)), with_area).vertices
        outlines = Outlines(rows, offsets_of(np.where(flat, 0, lengths)[keep]))
        _judge_size(float(np.median(area[with_area])) * unit_um**2, notes)
    ids = _names(cells, keep)
    if ids is not None and cells.counts[BY_PROPERTIES]:
        notes.append("cells named by the properties of their features")
    n_points = int((points & keep).sum())
    kinds = [counted(n, word) for n, word in ((int(keep.sum()) - n_points, "outline"), (n_points, "point")) if n]
    return Found(xy[keep], ids, f"{' and '.join(kinds)} of a GeoJSON", None, outlines, notes)


def _names(cells: CellEvents, keep: NDArray[np.bool_]) -> NDArray[np.object_] | None:
    """Return the name of each cell to keep (N,), None where there are none, or not one for each.

    A feature is named by its ``id``, else by ``cell_id`` or ``id`` of its properties; never by QuPath's ``name``, which
    is for the eye and may be that of many.
    Cells that share a feature have its name and their number in it: ``a-1``, ``a-2``. Where most cells do, features
    are classes and no cells, and their names no use.
    """
    parts = np.frombuffer(cells.parts, np.int64)[keep]
    if 2 * np.count_nonzero(parts) > len(parts):
        return None
    names = [cell for cell, kept in zip(cells.ids, keep.tolist(), strict=True) if kept]
    for place in np.flatnonzero(parts).tolist():
        names[place] = names[place] and f"{names[place]}-{parts[place]}"
    return unique_ids(names)


def _parse(file: Path) -> CellEvents:
    """Send the file through ijson, a piece at a time."""
    import ijson

    cells = CellEvents(file)
    events = ijson.sendable_list()
    with opened(file) as (raw, content), Progress(file.stat().st_size, f"read {file.name}", BYTES) as progress:
        parser = ijson.basic_parse_coro(events, use_float=True, multiple_values=True)
        silent = read = 0
        try:
            for chunk in _chunks(content):
                parser.send(chunk)
                silent = 0 if events else silent + len(chunk)
                if silent > _LONGEST:
                    cells.fail("A text in the JSON has no end", f"{silent:,} bytes", "GeoJSON")
                cells.feed(events)
                events.clear()
                read, before = raw.tell(), read
                progress.advance(read - before)
            parser.close()
            cells.feed(events)
        # Parsers of ijson differ in what they raise for text that is no JSON or no UTF-8, and for numbers too large.
        except (ijson.JSONError, ValueError, ArithmeticError, StopIteration) as error:
            cells.feed(events)
            raise _no_json(file, cells, error) from error
    if not cells.collections and not cells.number:
        raise _no_json(file, cells, ValueError("nothing in it"))
    return cells


def _chunks(content: IO[bytes]) -> Iterator[bytes]:
    """Yield the content in pieces that end behind a comma, NaN and Infinity replaced by null."""
    rest, first = b"", True
    while block := content.read(_CHUNK):
        block = rest + block
        if first:
            block, first = block.removeprefix(_BOM), False
        cut = block.rfind(b",") + 1 or len(block)
        block, rest = block[:cut], block[cut:]
        yield _finite(block)
    if rest:
        yield _finite(rest)


def _finite(block: bytes) -> bytes:
    return _SPECIAL.sub(b"null", block) if b"NaN" in block or b"Infinity" in block else block


def _no_json(file: Path, cells: CellEvents, error: BaseException) -> UserError:
    text = " ".join(str(error).split("\n")[0].split())
    return UserError(
        "The file is not valid JSON",
        where=f"{file}, after feature {cells.number:,}" if cells.number else file,
        found=text[:200] or type(error).__name__,
        expected="GeoJSON in UTF-8",
        fix="export or copy it again; it may be cut off",
    )


def _measured(
    vertices: NDArray[np.float64], lengths: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return areas (N,) and positions (N, 2): area centroids, means where there is no area."""
    from nuclass.xenium.polygons import ragged_area_and_centroid

    area, x, y = ragged_area_and_centroid(vertices[:, 0], vertices[:, 1], offsets_of(lengths)[:-1])
    return area, np.stack([x, y], axis=1)


def _counts(cells: CellEvents) -> list[str]:
    words = (
        (CELL_RINGS, "cell outline beside a nucleus not used", "cell outlines beside nuclei not used"),
        (SPLIT, "cell in several parts taken by its largest", "cells in several parts taken by their largest"),
        (HOLES, "hole ignored", "holes ignored"),
        (EMPTY, "empty outline left out", "empty outlines left out"),
        (NO_SHAPE, "feature without a geometry left out", "features without a geometry left out"),
        (OTHER, "line left out", "lines left out"),
        (TILES, "tile or core left out", "tiles or cores left out"),
    )
    return [counted(cells.counts[key], one, many) for key, one, many in words if cells.counts[key]]


def _cells_only(cells: CellEvents, area_um2: NDArray[np.float64], notes: list[str]) -> NDArray[np.bool_]:
    """Return which (N,) are cells: no regions, nothing too large."""
    keep = np.ones(len(area_um2), bool)
    if cells.counts["cells"]:
        regions = np.frombuffer(cells.regions, np.uint8) > 0
        keep &= ~regions
        if regions.any():
            notes.append(f"{counted(int(regions.sum()), 'annotation')} left out")
    large = keep & (area_um2 > MAX_AREA_UM2)
    if large.any():
        notes.append(f"{counted(int(large.sum()), 'outline')} larger than {MAX_AREA_UM2:,.0f} um^2 left out")
    return keep & ~large


def _judge_size(median_um2: float, notes: list[str]) -> None:
    low, high = _USUAL_UM2
    if not low <= median_um2 <= high:
        notes.append(f"the median outline has {median_um2:.3g} um^2, unlike a nucleus: is the frame right?")


def _refuse_empty(file: Path, cells: CellEvents, notes: list[str]) -> None:
    raise UserError(
        "The GeoJSON holds no cells",
        where=file,
        found="; ".join(notes or _counts(cells)) or "no features",
        expected="outlines or points of cells",
        fix="export the cells or detections, not the regions around them; if the outlines are too large, state --frame",
    )
