"""Where the cells of a slide lie, from whatever the user has: GeoJSON, a table, a Xenium run, or the image alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nuclass.apply.positions_found import Found, Outlines, Points, counted, head_of
from nuclass.apply.positions_frames import (
    HE,
    NAMES,
    UM,
    XENIUM_UM,
    Given,
    aligned_frames,
    check_inside,
    parse_frame,
)
from nuclass.core.bundle_source import EXPERIMENT, is_web_page
from nuclass.core.errors import UserError
from nuclass.core.log import get_logger

__all__ = ["DETECT", "Outlines", "Positions", "parse_frame", "read_positions"]

_log = get_logger(__name__)

Kind = Literal["geojson", "table", "bundle", "detected"]
# Instead of a file: find the nuclei on the image.
DETECT = "detect"
_BOM = b"\xef\xbb\xbf"
_SAME_SCALE = 0.01
_WIDE = (b"\xff\xfe", b"\xfe\xff")
_KINDS_TOLD = (
    "GeoJSON of QuPath, CellViT or StarDist; a CSV, TSV or Parquet table; the folder or outs.zip of a Xenium run; "
    f"or the word {DETECT}"
)


@dataclass(frozen=True)
class Positions:
    """The cells of one slide.

    Attributes
    ----------
    cell_id
        (N,) str, unique; as given, else ``1`` to ``N``.
    xy
        (N, 2) H&E level-0 px, continuous. Some may lie outside the image; ``source`` says how many.
    outlines
        Outlines of the nuclei in the same frame, None where there are none at all.
    source
        One line for records: what was read, how it was understood, what was left out.
    kind
        ``geojson``, ``table``, ``bundle`` or ``detected``.
    """

    cell_id: NDArray[np.object_]
    xy: Points
    outlines: Outlines | None
    source: str
    kind: Kind

    def __len__(self) -> int:
        return len(self.xy)


def read_positions(
    path: str | Path,
    *,
    frame: str | None = None,
    mpp: float | None = None,
    mpp_he: float,
    mpp_file: float | None = None,
    he_shape: tuple[int, int],
    alignment: Path | str | None = None,
    columns: str | Mapping[str, str] | None = None,
    image: str | Path | None = None,
    weights: str | Path | None = None,
) -> Positions:
    """Read where the cells of a slide lie, whatever file says it.

    Parameters
    ----------
    path
        A GeoJSON, a table, the folder or zip of a Xenium run; or ``detect``, ``detect:classical``,
        ``detect:cellpose`` to find the nuclei on ``image``. What a file is, its content says.
    frame
        ``he``, ``um``, ``px@0.25``, ``morph`` or ``xenium_um``, see :func:`parse_frame`. None for what the file says
        itself; a GeoJSON is in H&E px.
    mpp
        Micrometres per px of the frames ``px`` and ``um``, where ``frame`` has no ``@``.
    mpp_he
        Micrometres per H&E px.
    mpp_file
        What the H&E's file says of it: programs that opened the file reckoned their micrometres with that.
    he_shape
        (height, width) of the H&E at level 0, px.
    alignment
        Of the H&E to a Xenium run: a file, ``grid``, or a matrix as text. None looks beside the run.
    columns
        Of a table: ``x=NAME,y=NAME,id=NAME``.
    image
        The H&E, for ``detect``.
    weights
        File of weights, for ``detect:cellpose``.

    Raises
    ------
    UserError
        The file is missing, damaged or of no known kind, holds no cells, its frame is not clear, or most cells lie
        outside the image.
    """
    given = parse_frame(frame, mpp)
    word, _, method = str(path).partition(":")
    if word == DETECT:
        return _detected(method, given, image, weights, mpp_he, he_shape)
    file = Path(path)
    kind = _kind(file)
    if columns is not None and kind not in ("csv", "parquet"):
        raise UserError(
            "Columns are stated of a file that is no table", where=file, expected="a table, or no --columns"
        )
    if kind == "bundle":
        return _of_run(file, given, alignment, mpp_he, he_shape)
    if kind == "geojson":
        from nuclass.apply.geojson_in import read_geojson

        given = given or Given(HE)
        found = read_geojson(file, given.unit_um(mpp_he))
    else:
        from nuclass.apply.tables_in import parse_columns, read_table

        found = read_table(file, parquet=kind == "parquet", columns=parse_columns(columns), frame=given)
        if given is None and found.frame == UM:
            _check_um(file, mpp_he, mpp_file)
        given = given or Given(str(found.frame))
    if alignment is not None and not given.needs_alignment:
        raise UserError(
            "An alignment is given for positions that need none",
            where=file,
            found=f"--alignment {alignment}, positions in the frame {given}",
            expected="an alignment for positions of a Xenium run: --frame xenium_um or --frame morph",
            fix="state the frame, or leave --alignment out",
        )
    return _on_image(file, found, given, "geojson" if kind == "geojson" else "table", alignment, mpp_he, he_shape)


def _check_um(file: Path, mpp_he: float, mpp_file: float | None) -> None:
    """Raise where a table's own micrometres may be of another scale than the H&E is taken to have."""
    if mpp_file is None or abs(mpp_file / mpp_he - 1) <= _SAME_SCALE:
        return
    raise UserError(
        "It is not clear what the micrometres of the positions are",
        where=file,
        found=f"columns in um; the H&E's file says {mpp_file:.5g} um/px, --mpp {mpp_he:.5g}",
        expected="the scale by which they were reckoned",
        fix=f"give --frame um@{mpp_file:.6g} if by that of the file, as QuPath does, or --frame um if by --mpp",
    )


def _kind(file: Path) -> Literal["geojson", "csv", "parquet", "bundle"]:
    """Return what a file is, by its content."""
    if file.is_dir() or file.name == EXPERIMENT:
        return "bundle"
    head = head_of(file)
    if head.startswith(b"PK"):
        return "bundle"
    if head.startswith(b"PAR1"):
        return "parquet"
    start = head.removeprefix(_BOM).lstrip()
    if start.startswith((b"{", b"[")):
        return "geojson"
    if is_web_page(head):
        found, fix = "a web page or XML", "export GeoJSON or a table; a download may have answered with a page"
    elif b"\0" in head and not head.startswith(_WIDE):
        found, fix = f"a file that begins with {head[:8]!r}", "export GeoJSON or a table"
    elif not start:
        found, fix = "an empty file", "export it again"
    else:
        return "csv"
    raise UserError("The file of positions is of no known kind", where=file, found=found, expected=_KINDS_TOLD, fix=fix)


def _of_run(
    path: Path, given: Given | None, alignment: Path | str | None, mpp_he: float, he_shape: tuple[int, int]
) -> Positions:
    from nuclass.apply.positions_bundle import read_run

    if given is not None and given.name != XENIUM_UM:
        raise UserError(
            "A Xenium run has a frame of its own", where="--frame", found=str(given), expected="no --frame for a run"
        )
    found, frames = read_run(path, alignment=alignment, mpp_he=mpp_he, he_shape=he_shape)
    xy = frames.um_to_he(found.xy)
    outlines = found.outlines
    if outlines is not None:
        outlines = Outlines(frames.um_to_he(outlines.vertices), outlines.offsets)
    return _made(path, found, Given(XENIUM_UM), xy, outlines, "bundle", mpp_he, he_shape)


def _on_image(
    file: Path,
    found: Found,
    given: Given,
    kind: Kind,
    alignment: Path | str | None,
    mpp_he: float,
    he_shape: tuple[int, int],
) -> Positions:
    """Bring what a file holds to H&E px."""
    outlines = found.outlines
    if given.needs_alignment:
        frames, notes = aligned_frames(alignment, mpp_he=mpp_he, he_shape=he_shape, where=f"--frame {given}")
        found.notes += notes
        change = frames.um_to_he if given.name == XENIUM_UM else frames.morph_to_he
        xy = change(found.xy)
        vertices = None if outlines is None else change(outlines.vertices)
    else:
        scale = given.scale(mpp_he)
        xy = found.xy * scale
        vertices = None if outlines is None else outlines.vertices * scale
    if outlines is not None and vertices is not None:
        outlines = Outlines(vertices, outlines.offsets)
    return _made(file, found, given, xy, outlines, kind, mpp_he, he_shape)


def _made(
    path: Path,
    found: Found,
    given: Given,
    xy: Points,
    outlines: Outlines | None,
    kind: Kind,
    mpp_he: float,
    he_shape: tuple[int, int],
) -> Positions:
    assert given.name in NAMES
    outside = check_inside(found.xy, xy, given, where=path, mpp_he=mpp_he, he_shape=he_shape)
    notes = [*found.notes]
    if outside:
        notes.append(f"{counted(outside, 'lies', 'lie')} outside the image")
    ids = found.ids
    if ids is None:
        ids = np.array([str(i + 1) for i in range(len(xy))], dtype=object)
        notes.append("cells numbered in the order of the file")
    source = "; ".join([f"{path.name}: {found.what}, frame {given}", *notes])
    _log.info("%s", source)
    return Positions(ids, xy, outlines, source, kind)


def _detected(
    method: str,
    given: Given | None,
    image: str | Path | None,
    weights: str | Path | None,
    mpp_he: float,
    he_shape: tuple[int, int],
) -> Positions:
    from nuclass.apply.detect import detect_nuclei

    if given is not None:
        raise UserError(
            "Detected nuclei need no frame", where="--frame", found=str(given), expected=f"no --frame with {DETECT}"
        )
    if image is None:
        raise ValueError("detection needs the image")
    xy, outlines, what = detect_nuclei(image, mpp_he=mpp_he, method=method or "classical", weights=weights)
    found = Found(xy, None, what, HE, outlines)
    return _made(Path(image), found, Given(HE), xy, outlines, "detected", mpp_he, he_shape)
