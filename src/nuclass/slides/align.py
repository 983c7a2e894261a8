"""From an alignment as given to the one that is used: read, tried on the picture, bettered or found anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nuclass.core.errors import UserError
from nuclass.core.files import read_json
from nuclass.core.log import get_logger
from nuclass.slides.evidence import Nuclei, Peak, find_peak, measure_blocks, pooled
from nuclass.slides.geometry import Frames
from nuclass.slides.register import CLEAR, Fit, refine, register, view_of
from nuclass.slides.source import Source
from nuclass.xenium.polygons import outline_starts, ragged_area_and_centroid

if TYPE_CHECKING:
    from nuclass.xenium.alignment import Alignment
    from nuclass.xenium.reader import Bundle

_log = get_logger(__name__)
Floats = NDArray[np.float64]

GIVEN, REFINE, REGISTER = "given", "refine", "register"
WAYS = (GIVEN, REFINE, REGISTER)
# Enough blocks to tell one direction of a matrix from another; the verdict looks at more.
_QUICK_BLOCKS, _QUICK_MPP, _QUICK_BLOCK_UM, _QUICK_SEARCH_UM = 16, 1.0, 250.0, 30.0
_DISC_UM, _DISC_VERTICES = 3.0, 16


@dataclass(frozen=True)
class Reading:
    """One way to read a matrix, and what the picture says of it.

    ``name`` says how the matrix was read; ``peak`` is None where no nuclei land on the picture.
    """

    name: str
    matrix: Floats
    peak: Peak | None

    @property
    def score(self) -> float:
        """How clearly the nuclei stand out; 0 where they do not."""
        return self.peak.score if self.peak is not None and self.peak.stands_out(0) else 0.0

    @property
    def clear(self) -> bool:
        """Whether the nuclei stand out."""
        return self.peak is not None and self.peak.stands_out(CLEAR)


def nuclei_of(bundle: Bundle) -> Nuclei:
    """Return the outlines of a bundle's nuclei in um; discs of 3 um around its cells where it has none."""
    vertices = bundle.boundaries("nucleus")
    if len(vertices) == 0:
        _log.warning("the bundle has no outlines of nuclei; discs around its cells stand in for them")
        cells = bundle.cells()
        centre = cells[["x_centroid", "y_centroid"]].to_numpy(np.float64)
        angle = np.linspace(0, 2 * np.pi, _DISC_VERTICES, endpoint=False)
        ring = _DISC_UM * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        start = np.arange(len(centre), dtype=np.int64) * _DISC_VERTICES
        return Nuclei((centre[:, None] + ring).reshape(-1, 2), start, centre)
    start = outline_starts(vertices)
    xy = vertices[["vertex_x", "vertex_y"]].to_numpy(np.float64)
    _, x, y = ragged_area_and_centroid(xy[:, 0], xy[:, 1], start)
    return Nuclei(xy, start, np.stack([x, y], axis=1))


def look(source: Source, frames: Frames, nuclei: Nuclei) -> Peak | None:
    """Look quickly whether nuclei (um) lie on those of the picture; None where none lie on it."""
    view = view_of(source, frames, _QUICK_MPP)
    placed = nuclei.mapped(lambda xy: frames.um_to_he(xy) / view.factor)
    blocks = measure_blocks(placed, view, _QUICK_BLOCK_UM, _QUICK_SEARCH_UM, _QUICK_BLOCKS)
    return find_peak(pooled(blocks), view.mpp) if blocks else None


def readings(matrix: Floats, pixel_size: float) -> dict[str, Floats]:
    """Return the ways a matrix may be meant, each as H&E px -> morphology px."""
    to_px = np.diag([1 / pixel_size, 1 / pixel_size, 1.0])
    inverse = np.linalg.inv(matrix)
    swap = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
    return {
        "H&E px to morphology px": matrix,
        "H&E px to micrometres": to_px @ matrix,
        "morphology px to H&E px, the other direction": inverse,
        "micrometres to H&E px, the other direction": to_px @ inverse,
        "H&E px to morphology px with rows and columns exchanged": swap @ matrix @ swap,
    }


def find_transform(
    source: Source,
    bundle: Bundle,
    nuclei: Nuclei,
    alignment: Alignment | None,
    *,
    align: str,
    mpp: float,
    dapi: Path | None = None,
    given_as: str = "",
) -> tuple[Frames, dict[str, Any]]:
    """Return the frames that are used, and the record of how they came about.

    Parameters
    ----------
    source, bundle, nuclei
        The H&E, the bundle, its nuclei in um.
    alignment
        As read; None where none is given.
    align
        ``given``: used as it is. ``refine``: bettered on the picture. ``register``: found on the picture alone.
    mpp
        Micrometres per px of the study.
    dapi
        The DAPI image, for ``register``.
    given_as
        Where the alignment comes from, for the record.

    Returns
    -------
    The frames, and a dictionary: ``align given_as kind unit keypoints`` (fit of keypoints), ``readings`` (where the
    matrix was tried in several ways), ``model n_blocks moved_um`` (refine, register), ``tried`` (register), ``notes``.
    """
    record: dict[str, Any] = {"align": align, "given_as": given_as, "kind": None, "unit": None, "notes": []}
    if align == REGISTER or alignment is None:
        if align != REGISTER:
            raise UserError(
                "The slide has no alignment",
                where=source.path,
                expected="an alignment file, a matrix, the word 'grid', or align: register",
                fix="give one in the column 'alignment' of the slide sheet, or 'register' in its column 'align'",
            )
        fit = register(source, bundle.pixel_size, mpp, nuclei, dapi)
        if alignment is not None:
            record["notes"].append(f"the alignment given ({given_as}) was not used: the slide was registered anew")
        record |= {"model": fit.model, "n_blocks": fit.n_blocks, "tried": fit.tried}
        return fit.frames, record
    record |= {"kind": alignment.kind, "keypoints": _keypoints(alignment, record["notes"])}
    frames, record["unit"] = _as_meant(source, bundle, nuclei, alignment, mpp, record)
    if align == REFINE:
        frames = _refined(source, frames, nuclei, record)
    return frames, record


def _as_meant(
    source: Source, bundle: Bundle, nuclei: Nuclei, alignment: Alignment, mpp: float, record: dict[str, Any]
) -> tuple[Frames, str]:
    """Return the frames of the matrix as given; of an unsettled one as the picture says. Other readings are told."""
    ways = readings(alignment.matrix, bundle.pixel_size)
    direct = next(iter(ways))
    frames = Frames(ways[direct], bundle.pixel_size, mpp, source.shape)
    seen = [Reading(direct, frames.alignment, look(source, frames, nuclei))]
    if not seen[0].clear or alignment.unit == "unsettled":
        for name in list(ways)[1:]:
            other = _frames(ways[name], bundle.pixel_size, mpp, source)
            seen.append(Reading(name, ways[name], look(source, other, nuclei) if other is not None else None))
    best = max(seen, key=lambda one: one.score)
    record["readings"] = [{"as": one.name, "score": one.score, "clear": one.clear} for one in seen if len(seen) > 1]
    if alignment.unit == "unsettled":
        return _settled(source, bundle, mpp, seen[:2], record)
    if best is not seen[0] and best.clear:
        rows = "; ".join(", ".join(f"{value:.10g}" for value in row) for row in best.matrix)
        record["suggestion"] = {"as": best.name, "score": best.score, "matrix": best.matrix.tolist()}
        record["notes"].append(
            f"as given the matrix fits nowhere (score {seen[0].score:.1f}); read as {best.name} it fits (score "
            f"{best.score:.0f}). To use it so, write in the column 'alignment' of the slide sheet: {rows}"
        )
    return frames, direct


def _settled(
    source: Source, bundle: Bundle, mpp: float, seen: list[Reading], record: dict[str, Any]
) -> tuple[Frames, str]:
    """Decide the unit of a ``*_he_alignment.csv`` by what the picture says."""
    best, other = sorted(seen, key=lambda one: -one.score)
    said = f"{best.name} (score {best.score:.1f}), not {other.name} (score {other.score:.1f})"
    if not best.clear or other.clear:
        raise UserError(
            "The unit of the alignment cannot be decided",
            where=record["given_as"],
            found=f"{best.name}: score {best.score:.1f}; {other.name}: score {other.score:.1f}",
            expected=f"one of the two with a score of {CLEAR:g} or more, the other below",
            fix="give the matrix itself (H&E px to morphology px) in the slide sheet, or align: register",
        )
    record["notes"].append(f"files of this name come in two units; the picture says: {said}")
    _log.warning("%s is read as %s", record["given_as"], said)
    return Frames(best.matrix, bundle.pixel_size, mpp, source.shape), best.name


def _frames(matrix: Floats, pixel_size: float, mpp: float, source: Source) -> Frames | None:
    """Return frames, or None where a reading of a matrix makes no sense (no slide is scanned at such a scale)."""
    try:
        frames = Frames(matrix, pixel_size, mpp, source.shape)
    except UserError:
        return None
    return frames if 0.05 < frames.mpp_he < 5 else None


def _keypoints(alignment: Alignment, notes: list[str]) -> dict[str, Any] | None:
    fit = alignment.fit
    if fit is None:
        return None
    used = int(np.sum(fit.used))
    worst = ", ".join(f"point {row} {distance:.1f} um" for row, distance in fit.worst)
    notes.append(f"{used} of {fit.n} keypoints used, RMSE {fit.rmse_um:.2f} um, farthest off: {worst}")
    return {
        "n": fit.n,
        "used": used,
        "rmse_um": fit.rmse_um,
        "residual_um": fit.residual_um,
        "worst": [[int(row), float(distance)] for row, distance in fit.worst],
    }


def _refined(source: Source, frames: Frames, nuclei: Nuclei, record: dict[str, Any]) -> Frames:
    fit: Fit = refine(source, frames, nuclei)
    moved = np.hypot(*((fit.frames.um_to_he(nuclei.centre) - frames.um_to_he(nuclei.centre)) * frames.mpp_he).T)
    record |= {"model": fit.model, "n_blocks": fit.n_blocks, "moved_um": float(np.median(moved)) if len(moved) else 0.0}
    if fit.model == "none":
        record["notes"].append("nothing was found to better the alignment by: no nuclei stand out near where it says")
    elif fit.model == "unchanged":
        record["notes"].append(f"nothing betters the alignment: {fit.n_blocks} blocks agree with it")
    else:
        record["notes"].append(
            f"bettered by {record['moved_um']:.2f} um (median), {fit.model} map from {fit.n_blocks} blocks"
        )
    return fit.frames


def load_transform(file: str | Path) -> tuple[Frames, dict[str, Any]]:
    """Read ``transform.json``: the frames of a slide, and the whole record."""
    data: Mapping[str, Any] = read_json(file)
    matrix = np.asarray(data["matrix"], np.float64)
    height, width = data["he_shape"]
    return Frames(matrix, float(data["pixel_size"]), float(data["mpp"]), (int(height), int(width))), dict(data)
