"""Better an alignment, or find one where none is given, by nuclei against haematoxylin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.slides.coarse import (
    PASSES,
    REFINE_PX,
    RIGHT_ANGLES,
    SCALE_STEP,
    Matcher,
    Placement,
    scales,
    search,
)
from nuclass.slides.evidence import Nuclei, Peak, View, find_peak, haematoxylin, measure_blocks, pooled
from nuclass.slides.geometry import Frames
from nuclass.slides.source import Source
from nuclass.xenium.morphology import read_morphology

_log = get_logger(__name__)
Floats = NDArray[np.float64]

# Noise reaches 4 (other sections, mirrored or turned slides, one real field and eight synthetic slides); true
# alignments lie at 20 and more.
CLEAR = 8.0
BLOCK_CLEAR = 6.0
_MIN_AFFINE = 8
_MAX_STRETCH = 1.1
_DAPI_PX = 400


@dataclass(frozen=True)
class Stage:
    """One pass of fitting: resolution of the picture, side of the blocks, reach of the search, inliers (all um)."""

    mpp: float
    block_um: float
    search_um: float
    inlier_um: float


AFTER_SEARCH = (Stage(2.0, 400, 80, 12), Stage(1.0, 250, 30, 4), Stage(0.6, 200, 10, 2))
AFTER_GIVEN = (Stage(1.0, 250, 60, 8), Stage(0.6, 200, 12, 2), Stage(0.6, 200, 8, 1.5))


@dataclass(frozen=True)
class Fit:
    """What came out of fitting.

    Attributes
    ----------
    frames
        The bettered frames.
    peak
        The pooled evidence at the last pass, measured before its last correction.
    model
        ``affine``, ``similarity``, ``translation`` or ``none`` (nothing was found to fit to).
    n_blocks
        Blocks the last correction rests on.
    tried
        For a registration: the placements looked at, best first.
    """

    frames: Frames
    peak: Peak | None
    model: str
    n_blocks: int
    tried: list[dict[str, Any]] = field(default_factory=list)

    @property
    def clear(self) -> bool:
        """Whether the nuclei stand out at the place found."""
        return self.peak is not None and self.peak.stands_out(CLEAR)


def view_of(source: Source, frames: Frames, mpp: float) -> View:
    """Return the H&E at about ``mpp`` (not coarser): a pyramid level, averaged down over whole px."""
    level = source.level_for(mpp / frames.mpp_he)
    shrink = max(int(mpp / (frames.mpp_he * level.factor) + 1e-6), 1)

    def read(x0: int, y0: int, width: int, height: int) -> NDArray[np.uint8]:
        from PIL import Image

        pixels = source.region(level, x0 * shrink, y0 * shrink, width * shrink, height * shrink)
        return pixels if shrink == 1 else np.asarray(Image.fromarray(pixels).reduce(shrink))

    factor = level.factor * shrink
    shape = (-(-level.height // shrink), -(-level.width // shrink))
    return View(read, shape, frames.mpp_he * factor, factor)


def refine(source: Source, frames: Frames, nuclei: Nuclei, stages: Sequence[Stage] = AFTER_GIVEN) -> Fit:
    """Move, turn and stretch an alignment until the nuclei of the bundle lie on those of the picture.

    Parameters
    ----------
    source, frames
        The H&E, and where the bundle is thought to lie on it.
    nuclei
        Outlines in micrometres.
    stages
        Passes, coarse to fine. Each measures the shift of many blocks and fits the map that explains most of them.
    """
    peak: Peak | None = None
    model, n_blocks = "none", 0
    for stage in stages:
        view = view_of(source, frames, stage.mpp)
        placed = nuclei.mapped(lambda xy, f=frames, v=view: f.um_to_he(xy) / v.factor)  # type: ignore[misc]
        blocks = measure_blocks(placed, view, stage.block_um, stage.search_um)
        if not blocks:
            continue
        peak = find_peak(pooled(blocks), view.mpp)
        peaks = [find_peak(block.landscape, view.mpp) for block in blocks]
        good = np.array([one.stands_out(BLOCK_CLEAR) for one in peaks])
        if not good.any():
            if not peak.stands_out(CLEAR):
                continue
            change, name, count = _shift(peak.x_um, peak.y_um, frames.mpp_he), "translation", len(blocks)
        else:
            at = np.array([block.centre for block in blocks])[good] * view.factor
            moved = np.array([(one.x_um, one.y_um) for one in peaks])[good] / frames.mpp_he
            change, name, count = _fit(at, moved, stage.inlier_um / frames.mpp_he)
        if count:
            frames = _changed(frames, change)
            model, n_blocks = name, count
    return Fit(frames, peak, model, n_blocks)


def register(source: Source, pixel_size: float, mpp: float, nuclei: Nuclei, dapi: Path | None = None) -> Fit:
    """Find the alignment of a bundle and an H&E without any prior.

    Parameters
    ----------
    source
        The H&E.
    pixel_size, mpp
        Micrometres per morphology pixel, and per pixel of the study.
    nuclei
        Outlines in micrometres.
    dapi
        The bundle's DAPI image; where there is none, the nuclei stand in for it.

    Raises
    ------
    UserError
        Nothing convincing was found. The best placement is told.
    """
    tried: list[dict[str, Any]] = []
    best: Fit | None = None
    for name, points, weight in _maps(nuclei, dapi, pixel_size):
        for placed in _placements(source, points, weight):
            frames = Frames(_he_to_morph(placed.matrix, pixel_size), pixel_size, mpp, source.shape)
            fit = refine(source, frames, nuclei, AFTER_SEARCH)
            score = fit.peak.score if fit.peak is not None else 0.0
            tried.append(
                {
                    "map": name,
                    "mirrored": placed.mirrored,
                    "turn_deg": placed.turn_deg,
                    "mpp_he": placed.mpp,
                    "correlation": placed.correlation,
                    "score": score,
                }
            )
            if best is None or score > (best.peak.score if best.peak is not None else 0.0):
                best = fit
            if fit.clear:
                break
        if best is not None and best.clear:
            break
    if best is None or not best.clear:
        found = max(tried, key=lambda one: one["score"], default=None)
        raise UserError(
            "The H&E could not be registered to the bundle",
            where=source.path,
            found=f"the best placement has a score of {found['score']:.1f}" if found else "no placement",
            expected=f"a score of {CLEAR:g} or more: nuclei of the bundle that lie on nuclei of the picture",
            fix="check that the H&E is of this section; if it is, give an alignment from Xenium Explorer",
        )
    return Fit(best.frames, best.peak, best.model, best.n_blocks, tried)


def _maps(nuclei: Nuclei, dapi: Path | None, pixel_size: float) -> list[tuple[str, Floats, Floats]]:
    """Return what stands for the nuclei seen from far: name, points (N, 2) in um, and weights."""
    from nuclass.xenium.polygons import ragged_area_and_centroid

    area, *_ = ragged_area_and_centroid(nuclei.xy[:, 0], nuclei.xy[:, 1], nuclei.start)
    maps: list[tuple[str, Floats, Floats]] = [("nuclei", nuclei.centre, area)]
    if dapi is None:
        _log.info("no DAPI image in the bundle: the outlines of its nuclei stand in for it")
        return maps
    image, factor = read_morphology(dapi, _DAPI_PX)
    # The lower half is background and glow of the tissue; a few saturated spots must not outweigh the rest.
    bright = np.clip(image - np.median(image[image > 0]) if (image > 0).any() else image, 0, np.percentile(image, 99.5))
    rows, columns = np.nonzero(bright > 0)
    points = ((np.stack([columns, rows], axis=1) + 0.5) * factor * pixel_size).astype(np.float64)
    return [("DAPI", points, bright[rows, columns].astype(np.float64)), *maps] if len(points) > 100 else maps


def _placements(source: Source, points: Floats, weight: Floats) -> Iterator[Placement]:
    """Yield placements, the likely ones first, each sharpened at higher resolutions."""
    overview, factor = source.overview(2 * REFINE_PX[-1])
    mpps = scales(points, source.shape).tolist()
    for number, (px, turns) in enumerate(PASSES):
        if number:
            what = "twice the resolution" if turns is RIGHT_ANGLES else "all other turns, which takes minutes"
            _log.info("no placement holds; trying %s", what)
        for placed in search(_matcher(points, weight, overview, factor, px), mpps, turns):
            _log.info(
                "seen from far: %s, turned by %.0f degrees, %.4f um/px: correlation %.2f",
                "mirrored" if placed.mirrored else "not mirrored",
                placed.turn_deg,
                placed.mpp,
                placed.correlation,
            )
            yield _sharpened(placed, points, weight, overview, factor)


def _sharpened(
    placed: Placement, points: Floats, weight: Floats, overview: NDArray[np.uint8], factor: float
) -> Placement:
    """Climb to the best scale and turn near a placement, with halved steps."""
    scale, turn = SCALE_STEP / 2, 1.0
    for px in REFINE_PX:
        matcher = _matcher(points, weight, overview, factor, px)
        for _ in range(2):
            near = [
                matcher.place(placed.mpp * float(np.exp(i * scale)), placed.turn_deg + j * turn, placed.mirrored)
                for i in (-1, 0, 1)
                for j in (-1, 0, 1)
            ]
            placed = max((one for one in near if one is not None), key=lambda one: one.correlation, default=placed)
            scale, turn = scale / 2, turn / 2
    return placed


def _matcher(points: Floats, weight: Floats, overview: NDArray[np.uint8], factor: float, px: int) -> Matcher:
    from PIL import Image

    height, width = overview.shape[:2]
    shrink = max(max(height, width) / px, 1.0)
    size = (max(round(width / shrink), 1), max(round(height / shrink), 1))
    small = np.asarray(Image.fromarray(overview).resize(size, Image.Resampling.BOX))
    return Matcher(points, weight, haematoxylin(small), factor * max(height, width) / max(size))


def _he_to_morph(um_to_he: Floats, pixel_size: float) -> Floats:
    inverse = np.linalg.inv(um_to_he).astype(np.float64)
    return np.diag([1 / pixel_size, 1 / pixel_size, 1.0]) @ inverse


def _shift(x_um: float, y_um: float, mpp: float) -> Floats:
    change = np.eye(3)
    change[:2, 2] = np.array([x_um, y_um]) / mpp
    return change


def _changed(frames: Frames, change: Floats) -> Frames:
    """Return frames whose H&E places are those of ``frames`` moved by ``change`` (3, 3), H&E px -> H&E px."""
    matrix = frames.alignment @ np.linalg.inv(change)
    return Frames(matrix, frames.pixel_size, frames.mpp_target, frames.he_shape)


def _fit(at: Floats, moved: Floats, inlier: float) -> tuple[Floats, str, int]:
    """Return the map that explains the moves (N, 2) at points (N, 2), its kind, and how many agree with it."""
    from skimage.measure import ransac
    from skimage.transform import SimilarityTransform

    keep = np.ones(len(at), bool)
    if len(at) >= 4:
        _, keep = ransac((at, at + moved), SimilarityTransform, 2, inlier, max_trials=400, rng=0)
        if keep is None or keep.sum() < max(3, 0.3 * len(at)):
            return np.eye(3), "none", 0
    at, goal = at[keep], (at + moved)[keep]
    change: Floats = np.eye(3)
    if len(at) >= _MIN_AFFINE and _spread(at) > 0.05:
        solution, *_ = np.linalg.lstsq(np.column_stack([at, np.ones(len(at))]), goal, rcond=None)
        change[:2] = solution.T
        stretch = np.linalg.svd(change[:2, :2], compute_uv=False)
        if stretch[0] / stretch[1] < _MAX_STRETCH:
            return change, "affine", len(at)
    if len(at) >= 2:
        return _similar(at, goal), "similarity", len(at)
    change = np.eye(3)
    change[:2, 2] = (goal - at).mean(axis=0)
    return change, "translation", len(at)


def _spread(points: Floats) -> float:
    """Return the smaller over the larger extent of points (N, 2): 0 on a line."""
    values = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    return float(values[1] / max(values[0], 1e-12))


def _similar(at: Floats, goal: Floats) -> Floats:
    """Return the least-squares similarity (turn, scale, shift; no mirror), after Umeyama 1991."""
    mean_at, mean_goal = at.mean(axis=0), goal.mean(axis=0)
    a, b = at - mean_at, goal - mean_goal
    norm = (a**2).sum()
    cos, sin = (a * b).sum() / norm, (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / norm
    change = np.eye(3)
    change[:2, :2] = [[cos, -sin], [sin, cos]]
    change[:2, 2] = mean_goal - change[:2, :2] @ mean_at
    return change
