"""Slides of which only a part was scanned: the corner that positions count from.

Level 0 of such a file (MIRAX, Leica) is a plane with the scanned part somewhere on it. QuPath shows that part alone
and counts from its corner; what reads the file through openslide, as CellViT does, counts from that of the plane.
"""

from __future__ import annotations

import numpy as np

from nuclass.apply.positions_found import Points
from nuclass.core.errors import UserError
from nuclass.core.own_cells import CROP, IMAGE, Given
from nuclass.slides.source import Bounds


def corner_of(origin: str | None, bounds: Bounds | None, frame: Given, *, where: object) -> tuple[int, int]:
    """Return the place (x, y), H&E px, that positions of a file count from.

    Parameters
    ----------
    origin
        ``crop`` or ``image`` as the user says.
    bounds
        The scanned part, None where it begins in the corner of the plane: both corners are the same then.
    frame
        Frames of an alignment count from where that says.

    Raises
    ------
    UserError
        There are two corners, and the user does not say which.
    """
    if bounds is None or frame.needs_alignment:
        return 0, 0
    if origin is None:
        raise UserError(
            "It is not clear from which corner the positions count",
            where=where,
            found=f"a slide whose scanned part begins at x {bounds.x}, y {bounds.y} px of the whole plane",
            expected="--origin crop (the corner of that part) or --origin image (the corner of the plane)",
            fix="give --origin crop for positions from QuPath, --origin image for those of a tool that reads the whole "
            "plane, as CellViT does",
        )
    return (bounds.x, bounds.y) if origin == CROP else (0, 0)


def check_scanned(xy: Points, origin: str | None, bounds: Bounds | None, *, where: object) -> None:
    """Raise where most positions (N, 2), H&E px of the plane, lie outside the scanned part.

    Parameters
    ----------
    origin
        As :func:`corner_of` took it; None where the positions were not read by a corner: nothing is checked.
    """
    if bounds is None or origin is None:
        return
    outside = len(xy) - _inside(xy, bounds)
    if 2 * outside <= len(xy):
        return
    corner = np.array([bounds.x, bounds.y], np.float64)
    other, moved = (IMAGE, xy - corner) if origin == CROP else (CROP, xy + corner)
    fits = 2 * _inside(moved, bounds) > len(xy)
    (x0, y0), (x1, y1) = xy.min(axis=0), xy.max(axis=0)
    raise UserError(
        "Most positions lie outside the scanned part of the slide",
        where=where,
        found=f"{outside:,} of {len(xy):,}; with --origin {origin} they span x {x0:.0f} to {x1:.0f}, "
        f"y {y0:.0f} to {y1:.0f} px of the whole plane",
        expected=f"x {bounds.x} to {bounds.x + bounds.width}, y {bounds.y} to {bounds.y + bounds.height} px",
        fix=f"the positions would fit --origin {other}"
        if fits
        else "check that the positions are of this image, and state their frame by --frame",
    )


def _inside(xy: Points, bounds: Bounds) -> int:
    corner = np.array([bounds.x, bounds.y])
    return int(((xy >= corner) & (xy <= np.add(corner, (bounds.width, bounds.height)))).all(axis=1).sum())
