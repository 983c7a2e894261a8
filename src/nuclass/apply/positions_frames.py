"""Frames in which users give positions, and the way from each to H&E level-0 px."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nuclass.apply.positions_found import Points
from nuclass.core.bundle_source import GRID, parse_matrix
from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.own_cells import HE, MORPH_UM, PX, UM, Given, no_alignment
from nuclass.slides.geometry import MAX_ANISOTROPY, Frames

_log = get_logger(__name__)

_ENOUGH, _SPAN = 0.95, 0.3
_LEVELS = (2, 4, 8, 16, 32)
_USUAL_MPP = (0.25, 0.5, 1.0)
_MPP_APART = 0.03


def aligned_frames(
    alignment: Path | str | None,
    *,
    mpp_he: float,
    he_shape: tuple[int, int],
    pixel_size: float = MORPH_UM,
    where: object = None,
) -> tuple[Frames, list[str]]:
    """Return the frames of an alignment, and what is to be said of them.

    Parameters
    ----------
    alignment
        The file, the word ``grid`` (the H&E lies on the morphology pixels), or a matrix as text.
    mpp_he, he_shape
        Of the H&E: um per px, and (height, width) in px.
    pixel_size
        Micrometres per morphology px.
    where
        What needs the alignment, for the message where there is none.

    Raises
    ------
    UserError
        There is no alignment, or it cannot be read.
    """
    notes = []
    matrix, settled = _matrix(alignment, pixel_size, where)
    if not settled:
        matrix, note = _settled(matrix, pixel_size, mpp_he)
        notes.append(note)
    frames = Frames(matrix, pixel_size, he_shape=he_shape)
    if abs(frames.mpp_he / mpp_he - 1) > _MPP_APART:
        note = f"by the alignment a px of the H&E is {frames.mpp_he:.4g} um, taken is {mpp_he:.4g} um"
        _log.warning("%s: %s", alignment, note)
        notes.append(note)
    return frames, notes


def aligned_scale(
    alignment: Path | str | None, *, he_shape: tuple[int, int], pixel_size: float = MORPH_UM, where: object = None
) -> float | None:
    """Return micrometres per H&E px by an alignment; None, with a warning, where it does not tell them.

    Parameters
    ----------
    alignment, pixel_size, where
        See :func:`aligned_frames`.
    he_shape
        (height, width) of the H&E in px: a homography has its scale at the centre.

    Raises
    ------
    UserError
        There is no alignment, or it cannot be read.
    """
    matrix, settled = _matrix(alignment, pixel_size, where)
    if not settled:
        _log.warning("%s: it may lead to morphology px or to um, so it tells no scale of the H&E", alignment)
        return None
    frames = Frames(matrix, pixel_size, he_shape=he_shape)
    if frames.anisotropy > MAX_ANISOTROPY:
        _log.warning(
            "%s: it stretches one axis %.4g times as much as the other, so it tells no scale of the H&E",
            alignment, frames.anisotropy,
        )  # fmt: skip
        return None
    _log.info("%s: by this alignment a px of the H&E is %.4g um", alignment, frames.mpp_he)
    return frames.mpp_he


def _matrix(alignment: Path | str | None, pixel_size: float, where: object) -> tuple[NDArray[np.float64], bool]:
    """Return the matrix (3, 3) from H&E px, and whether it is known to lead to morphology px, not perhaps to um."""
    from nuclass.xenium.alignment import read_alignment

    if alignment is None:
        raise no_alignment(where)
    text = str(alignment)
    typed = None if Path(text).is_file() else parse_matrix(text)
    if text == GRID:
        return np.eye(3), True
    if typed is not None:
        return np.array(typed), True
    read = read_alignment(alignment, pixel_size=pixel_size)
    return read.matrix, read.unit != "unsettled"


def _settled(matrix: NDArray[np.float64], pixel_size: float, mpp_he: float) -> tuple[NDArray[np.float64], str]:
    """Return a matrix to morphology px, of one that leads there or to um: the reading that gives the H&E's scale."""
    in_px = float(np.sqrt(abs(np.linalg.det(matrix[:2, :2] / matrix[2, 2]))))
    as_px, as_um = abs(math.log(in_px * pixel_size / mpp_he)), abs(math.log(in_px / mpp_he))
    if as_px <= as_um:
        return matrix, "the alignment was taken as leading to morphology px, by its scale"
    in_morph = np.diag([1 / pixel_size, 1 / pixel_size, 1.0]) @ matrix
    return in_morph, "the alignment was taken as leading to um, by its scale"


def check_inside(
    given: Points,
    xy_he: Points,
    frame: Given,
    *,
    where: object,
    mpp_he: float,
    he_shape: tuple[int, int],
) -> int:
    """Return how many positions lie outside the image.

    Parameters
    ----------
    given
        (N, 2) as in the file, in ``frame``.
    xy_he
        (N, 2) the same in H&E px.

    Raises
    ------
    UserError
        More than half do; the frames in which they would fit are named.
    """
    outside = len(xy_he) - _inside(xy_he, he_shape)
    if 2 * outside <= len(xy_he):
        return outside
    (x0, y0), (x1, y1) = xy_he.min(axis=0), xy_he.max(axis=0)
    height, width = he_shape
    if frame.needs_alignment:
        fix = "check the alignment: it must map H&E px to morphology px, and belong to this image"
    else:
        fits = _that_fit(given, frame, mpp_he, he_shape)
        fix = "check that the positions are of this image and not of a part of it, and state their frame by --frame"
        if fits:
            fix = f"the positions would fit {' or '.join(fits)}"
    raise UserError(
        "Most positions lie outside the image",
        where=where,
        found=f"{outside:,} of {len(xy_he):,}; "
        f"read as {frame} they span x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f} px",
        expected=f"positions on an image of {width} x {height} px",
        fix=fix,
    )


def _inside(xy: Points, he_shape: tuple[int, int]) -> int:
    return int(((xy >= 0) & (xy <= (he_shape[1], he_shape[0]))).all(axis=1).sum())


def _that_fit(given: Points, frame: Given, mpp_he: float, he_shape: tuple[int, int]) -> list[str]:
    """Return the frames in which the positions would lie on the image and fill a good part of it, in words."""
    now = frame.scale(mpp_he)
    candidates = [(Given(HE).scale(mpp_he), "--frame he"), (Given(UM).scale(mpp_he), "--frame um (micrometres)")]
    candidates += [(Given(PX, mpp).scale(mpp_he), f"--frame px@{mpp:g}") for mpp in _USUAL_MPP]
    candidates += [
        (float(n), f"--frame px@{mpp_he * n:.4g} (px of a pyramid level {n} times smaller)") for n in _LEVELS
    ]
    fitting: list[tuple[float, str]] = []
    for scale, words in candidates:
        known = any(abs(scale / other - 1) < 0.01 for other, _ in fitting)
        if abs(scale / now - 1) > 0.01 and not known and _fills(given * scale, he_shape):
            fitting.append((scale, words))
    if _fills(given[:, ::-1] * now, he_shape):
        fitting.append((now, "with x and y exchanged (--columns x=..,y=.. in a table)"))
    # The largest that fits fills most of the image.
    return [words for _, words in sorted(fitting, key=lambda one: -one[0])[:2]]


def _fills(xy: Points, he_shape: tuple[int, int]) -> bool:
    on = _inside(xy, he_shape) >= _ENOUGH * len(xy)
    span = (xy.max(axis=0) - xy.min(axis=0)) / (he_shape[1], he_shape[0])
    return bool(on and span.max() >= _SPAN)
