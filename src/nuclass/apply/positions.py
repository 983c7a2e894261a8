"""Where the cells of a slide lie, from whatever the user has: GeoJSON, a table, a Xenium run, or the image alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nuclass.apply.positions_crop import check_scanned, corner_of
from nuclass.apply.positions_found import Found, Outlines, Points, counted
from nuclass.apply.positions_frames import aligned_frames, check_inside
from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.own_cells import (
    CROP,
    DETECT,
    HE,
    NAMES,
    UM,
    XENIUM_UM,
    Given,
    check_reading,
    method_of,
    parse_frame,
    use_faults,
)
from nuclass.core.own_tables import parse_columns
from nuclass.slides.source import Bounds

__all__ = ["DETECT", "Outlines", "Positions", "parse_frame", "read_positions"]

_log = get_logger(__name__)

Kind = Literal["geojson", "table", "bundle", "detected"]
_APART_UM = 2.0
"""How far two scales may put the far corner of a slide apart, and still be one: less than a nucleus."""


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
    origin
        The corner that the numbers of the file counted from, ``crop`` or ``image``, on a slide of which only a part was
        scanned; None where there is one corner alone. ``xy`` counts from that of the whole plane in any case.
    mpp_aligned
        Micrometres per H&E px by the alignment, None where none was used.
    """

    cell_id: NDArray[np.object_]
    xy: Points
    outlines: Outlines | None
    source: str
    kind: Kind
    origin: str | None = None
    mpp_aligned: float | None = None

    def __len__(self) -> int:
        return len(self.xy)


@dataclass(frozen=True)
class _He:
    """The H&E: micrometres per px, (height, width) in px, the part that was scanned, the corner that files mean.

    Of its file: micrometres per px, and the height of a px over its width.
    """

    mpp: float
    shape: tuple[int, int]
    bounds: Bounds | None = None
    origin: str | None = None
    mpp_file: float | None = None
    aspect_file: float = 1.0

    def is_by_file(self, mpp: float) -> bool:
        """Whether a scale is that of the file: it leads nowhere to another nucleus."""
        return self.mpp_file is not None and abs(self.mpp_file - mpp) * max(self.shape) <= _APART_UM

    def px_per_unit(self, given: Given) -> Points:
        """Return (x, y) H&E px per unit of a frame that shares the H&E's corner.

        Programs that make micrometres by the file's scale, as QuPath does, multiply y by the height of its px.
        """
        by_file = given.name == UM and self.is_by_file(given.mpp or self.mpp)
        return given.scale(self.mpp) / np.array([1.0, self.aspect_file if by_file else 1.0])


def read_positions(
    path: str | Path,
    *,
    frame: str | None = None,
    mpp: float | None = None,
    mpp_he: float,
    mpp_file: float | None = None,
    aspect_file: float = 1.0,
    he_shape: tuple[int, int],
    alignment: Path | str | None = None,
    columns: str | Mapping[str, str] | None = None,
    image: str | Path | None = None,
    weights: str | Path | None = None,
    origin: str | None = None,
    bounds: Bounds | None = None,
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
    aspect_file
        Height of a px over its width, as the file says; micrometres that were reckoned with its scale follow it.
    he_shape
        (height, width) of the H&E at level 0, px.
    alignment
        Of the H&E to a Xenium run: a file, ``grid``, or a matrix as text. None looks beside the run.
    columns
        Of a table: ``x=NAME,y=NAME,id=NAME``.
    image
        The H&E, for ``detect`` and for tables of several images.
    weights
        File of weights, for ``detect:cellpose``.
    origin
        The corner that px and um of a file count from: ``crop`` (of the scanned part, as in QuPath) or ``image`` (of
        the whole plane). Needed where ``bounds`` are given, without effect else.
    bounds
        The scanned part, of :class:`nuclass.slides.source.Source`.

    Raises
    ------
    UserError
        The file is missing, damaged or of no known kind, holds no cells, its frame or corner is not clear, an option
        has no use, or most cells lie outside the image.
    """
    options = {"alignment": alignment, "columns": columns, "weights": weights, "origin": origin}
    kind, given = check_reading(path, frame, options, mpp)
    he = _He(mpp_he, he_shape, bounds, origin, mpp_file, aspect_file)
    if kind == DETECT:
        return _detected(method_of(path), image, weights, he)
    file = Path(path)
    if kind == "bundle":
        return _of_run(file, alignment, he)
    if kind == "geojson":
        from nuclass.apply.geojson_in import read_geojson

        given = given or Given(HE)
        corner = corner_of(origin, bounds, given, where=file)
        found = read_geojson(file, given.unit_um(mpp_he))
        return _on_image(file, found, given, corner, "geojson", alignment, he)
    from nuclass.apply.tables_in import read_table

    found = read_table(file, parquet=kind == "parquet", columns=parse_columns(columns), frame=given, image=image)
    if given is None:
        if found.frame == UM:
            _check_um(file, he)
        given = Given(str(found.frame))
        # What the columns say of the frame is known only now.
        for fault in use_faults(path, kind, given, options):
            raise fault
    corner = corner_of(origin, bounds, given, where=file)
    return _on_image(file, found, given, corner, "table", alignment, he)


def _check_um(file: Path, he: _He) -> None:
    """Raise where a table's own micrometres may be of another scale than the H&E is taken to have."""
    if he.mpp_file is None or he.is_by_file(he.mpp):
        return
    raise UserError(
        "It is not clear what the micrometres of the positions are",
        where=file,
        found=f"columns in um; the H&E's file says {he.mpp_file:.6g} um/px, --mpp {he.mpp:.6g}",
        expected="the scale by which they were reckoned",
        fix=f"give --frame um@{he.mpp_file:.6g} if by that of the file, as QuPath does, or --frame um if by --mpp",
    )


def _of_run(path: Path, alignment: Path | str | None, he: _He) -> Positions:
    from nuclass.apply.positions_bundle import read_run

    found, frames = read_run(path, alignment=alignment, mpp_he=he.mpp, he_shape=he.shape)
    xy = frames.um_to_he(found.xy)
    outlines = found.outlines
    if outlines is not None:
        outlines = Outlines(frames.um_to_he(outlines.vertices), outlines.offsets)
    return _made(path, found, Given(XENIUM_UM), xy, outlines, "bundle", he, mpp_aligned=frames.mpp_he)


def _on_image(
    file: Path,
    found: Found,
    given: Given,
    corner: tuple[int, int],
    kind: Kind,
    alignment: Path | str | None,
    he: _He,
) -> Positions:
    """Bring what a file holds to H&E px; its numbers count from ``corner`` (x, y), H&E px."""
    outlines, origin, aligned = found.outlines, None, None
    if given.needs_alignment:
        frames, notes = aligned_frames(alignment, mpp_he=he.mpp, he_shape=he.shape, where=f"--frame {given}")
        found.notes += notes
        aligned = frames.mpp_he
        change = frames.um_to_he if given.name == XENIUM_UM else frames.morph_to_he
        xy = change(found.xy)
        vertices = None if outlines is None else change(outlines.vertices)
    else:
        scale = he.px_per_unit(given)
        if scale[0] != scale[1]:
            found.notes.append(
                f"y by the height of a px, which the H&E's file says is {he.aspect_file:.6g} of its width"
            )
        xy = found.xy * scale + corner
        vertices = None if outlines is None else outlines.vertices * scale + corner
        if he.bounds is not None:
            origin = he.origin
            part = f"scanned part, x {corner[0]}, y {corner[1]} px" if origin == CROP else "whole plane"
            found.notes.append(f"counted from the corner of the {part}")
            check_scanned(xy, origin, he.bounds, where=file)
    if outlines is not None and vertices is not None:
        outlines = Outlines(vertices, outlines.offsets)
    return _made(file, found, given, xy, outlines, kind, he, origin, aligned)


def _made(
    path: Path,
    found: Found,
    given: Given,
    xy: Points,
    outlines: Outlines | None,
    kind: Kind,
    he: _He,
    origin: str | None = None,
    mpp_aligned: float | None = None,
) -> Positions:
    assert given.name in NAMES
    outside = check_inside(found.xy, xy, given, where=path, mpp_he=he.mpp, he_shape=he.shape)
    notes = [*found.notes]
    if outside:
        notes.append(f"{counted(outside, 'lies', 'lie')} outside the image")
    ids = found.ids
    if ids is None:
        ids = np.array([str(i + 1) for i in range(len(xy))], dtype=object)
        notes.append("cells numbered in the order " + ("of their places" if kind == "detected" else "of the file"))
    source = "; ".join([f"{path.name}: {found.what}, frame {given}", *notes])
    _log.info("%s", source)
    return Positions(ids, xy, outlines, source, kind, origin, mpp_aligned)


def _detected(method: str, image: str | Path | None, weights: str | Path | None, he: _He) -> Positions:
    from nuclass.apply.detect import detect_nuclei

    if image is None:
        raise ValueError("detection needs the image")
    xy, outlines, what = detect_nuclei(image, mpp_he=he.mpp, method=method, weights=weights)
    found = Found(xy, None, what, HE, outlines)
    return _made(Path(image), found, Given(HE), xy, outlines, "detected", he)
