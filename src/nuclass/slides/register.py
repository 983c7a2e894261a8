"""Better an alignment, or find one where none is given, by nuclei against haematoxylin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
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
    TURN_STEP,
    Matcher,
    Placement,
    scales,
    search,
)
from nuclass.slides.evidence import Nuclei, Peak, View, find_peak, haematoxylin, measure_blocks, pooled
from nuclass.slides.geometry import Frames, project
from nuclass.slides.source import Source
from nuclass.xenium.morphology import read_morphology

_log = get_logger(__name__)
Floats = NDArray[np.float64]

# Other sections, mirrored and turned slides reach 5.6 over eight squares and more, 7.6 in one of a hundred and more
# single squares (docs/alignment.md); true alignments 12 over one square, 20 and more over several.
CLEAR = 10.0
BLOCK_CLEAR = 6.0
# Fewer blocks say how far, not how turned.
_MIN_SIMILAR, _MIN_AFFINE = 4, 8
_MAX_STRETCH = 1.1
# Blocks that must agree on a map; and distances within which they do, as multiples of the pass's.
_SOME = 0.3
_WIDER_INLIERS = (1, 2, 4)
# Where so many blocks each show a distinct peak, the picture is of this section however warped it is.
_MOST = 0.75
_DAPI_PX = 400
_FEWEST_NUCLEI = 30
# Once a px of the small picture is this small, blocks find the rest.
_FINE_ENOUGH_UM = 4.0


@dataclass(frozen=True)
class Stage:
    """One pass of fitting: resolution of the picture, side of the blocks, reach of the search, inliers (all um)."""

    mpp: float
    block_um: float
    search_um: float
    inlier_um: float


AFTER_SEARCH = (Stage(2.0, 400, 80, 12), Stage(1.0, 250, 30, 4), Stage(0.6, 200, 16, 2))
AFTER_GIVEN = (Stage(1.0, 250, 60, 8), Stage(0.6, 200, 16, 2), Stage(0.6, 200, 16, 1.5))


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
        ``affine``, ``similarity``, ``translation``, ``unchanged`` (nothing is better), ``none`` (no nuclei stand out).
    n_blocks
        Blocks the last correction rests on.
    share_clear
        Share of the blocks that each show a distinct peak, at the last pass; 0 where the correction rests on few.
    tried
        For a registration: the placements looked at, in their order; the last one is used.
    """

    frames: Frames
    peak: Peak | None
    model: str
    n_blocks: int
    share_clear: float = 0.0
    tried: list[dict[str, Any]] = field(default_factory=list)

    @property
    def clear(self) -> bool:
        """Whether the nuclei stand out at the place found: all together, or in most of the blocks each."""
        return self.peak is not None and (self.peak.stands_out(CLEAR) or self.share_clear > _MOST)


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
    model, n_blocks, share = "none", 0, 0.0
    for stage in stages:
        view = view_of(source, frames, stage.mpp)
        placed = nuclei.mapped(lambda xy, f=frames, v=view: f.um_to_he(xy) / v.factor)  # type: ignore[misc]
        blocks = measure_blocks(placed, view, stage.block_um, stage.search_um)
        if not blocks:
            continue
        peak = find_peak(pooled(blocks), view.mpp)
        peaks = [find_peak(block.landscape, view.mpp) for block in blocks]
        good = np.array([one.stands_out(BLOCK_CLEAR) for one in peaks])
        share = float(good.mean())
        change, name, count = np.eye(3), "none", 0
        if good.sum() >= _MIN_SIMILAR:
            at = np.array([block.centre for block in blocks])[good] * view.factor
            moved = np.array([(one.x_um, one.y_um) for one in peaks])[good] / frames.mpp_he
            change, name, count = _fit(at, moved, stage.inlier_um / frames.mpp_he)
        if not count and peak.stands_out(BLOCK_CLEAR):
            change, name, count = _shift(peak.x_um, peak.y_um, frames.mpp_he), "translation", len(blocks)
        if count:
            frames = _changed(frames, change)
            model, n_blocks = (name if name != "unchanged" or model == "none" else model), count
    return Fit(frames, peak, model, n_blocks, share if n_blocks >= _MIN_AFFINE else 0.0)


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
        There are too few nuclei, or nothing convincing was found. The best placement is told.
    """
    if len(nuclei) < _FEWEST_NUCLEI:
        raise UserError(
            "The bundle has too few nuclei to register its H&E by",
            where=source.path,
            found=f"{len(nuclei)} nuclei",
            expected=f"{_FEWEST_NUCLEI} or more",
            fix="give an alignment from Xenium Explorer",
        )
    tried: list[dict[str, Any]] = []
    for name, placed in _placements(source, _maps(nuclei, dapi, pixel_size)):
        frames = Frames(_he_to_morph(placed.matrix, pixel_size), pixel_size, mpp, source.shape)
        fit = refine(source, frames, nuclei, AFTER_SEARCH)
        tried.append(
            {
                "map": name,
                "mirrored": placed.mirrored,
                "turn_deg": placed.turn_deg,
                "mpp_he": placed.mpp,
                "correlation": placed.correlation,
                "score": fit.peak.score if fit.peak is not None else 0.0,
            }
        )
        if fit.clear:
            return replace(fit, tried=tried)
    score = max((one["score"] for one in tried), default=None)
    raise UserError(
        "The H&E could not be registered to the bundle",
        where=source.path,
        found="no placement" if score is None else f"the best of {len(tried)} placements has a score of {score:.1f}",
        expected=f"a score of {CLEAR:g} or more: nuclei of the bundle that lie on nuclei of the picture",
        fix="check that the H&E is of this section; if it is, give an alignment from Xenium Explorer",
    )


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


def _placements(source: Source, maps: Sequence[tuple[str, Floats, Floats]]) -> Iterator[tuple[str, Placement]]:
    """Yield placements with the map they come from, the likely ones first, each sharpened at higher resolutions."""
    overview, factor = source.overview(2 * REFINE_PX[-1])
    for number, (px, turns, wider) in enumerate(PASSES):
        if number:
            what = "twice the resolution" if turns is RIGHT_ANGLES else "all other turns, which takes minutes"
            _log.info("no placement holds; trying %s", what)
        for name, points, weight in maps:
            mpps = scales(points, source.shape, wider).tolist()
            finer = [_matcher(points, weight, overview, factor, one) for one in REFINE_PX]
            for placed in search(_matcher(points, weight, overview, factor, px), mpps, turns):
                _log.info(
                    "seen from far, %s: %s, turned by %.0f degrees, %.4f um/px: correlation %.2f",
                    name,
                    "mirrored" if placed.mirrored else "not mirrored",
                    placed.turn_deg,
                    placed.mpp,
                    placed.correlation,
                )
                yield name, _sharpened(placed, finer)


def _sharpened(placed: Placement, matchers: Sequence[Matcher]) -> Placement:
    """Climb to the best scale and turn near a placement, with halved steps."""
    scale, turn = SCALE_STEP / 2, TURN_STEP / 2
    for matcher in matchers:
        for _ in range(2):
            for grow, more in ((scale, 0.0), (0.0, turn)):
                near = [
                    matcher.place(placed.mpp * float(np.exp(i * grow)), placed.turn_deg + i * more, placed.mirrored)
                    for i in (-1, 0, 1)
                ]
                placed = max((one for one in near if one is not None), key=lambda one: one.correlation, default=placed)
            scale, turn = scale / 2, turn / 2
        if matcher.factor * placed.mpp < _FINE_ENOUGH_UM:
            break
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
    """Return the map that leaves points (N, 2) nearest to where their moves (N, 2) lead, its kind, and who agrees.

    Some moves are wrong, and sections are warped: a map that fits a corner to the last half micrometre can be worse
    than one that fits most of it roughly. So maps to those within several distances of one similarity are compared, by
    the mean distance left over all points; ``unchanged`` where none betters it, ``none`` where too few agree.
    """
    from skimage.measure import ransac
    from skimage.transform import SimilarityTransform

    goal = at + moved
    found: tuple[Floats, str, int] = (np.eye(3), "none", 0)
    least = float(np.hypot(*moved.T).mean())
    for wider in _WIDER_INLIERS:
        _, keep = ransac((at, goal), SimilarityTransform, 2, wider * inlier, max_trials=400, rng=0)
        if keep is None or keep.sum() < max(_MIN_SIMILAR, _SOME * len(at)):
            continue
        if not found[2]:
            found = (found[0], "unchanged", int(keep.sum()))
        change, name = _mapped(at[keep], goal[keep])
        left = float(np.hypot(*(project(change, at) - goal).T).mean())
        if left < least:
            found, least = (change, name, int(keep.sum())), left
    return found


def _mapped(at: Floats, goal: Floats) -> tuple[Floats, str]:
    """Return the least-squares map from points to points (N, 2): affine where there are enough, else a similarity."""
    if len(at) >= _MIN_AFFINE and _spread(at) > 0.05:
        solution, *_ = np.linalg.lstsq(np.column_stack([at, np.ones(len(at))]), goal, rcond=None)
        change: Floats = np.eye(3)
        change[:2] = solution.T
        stretch = np.linalg.svd(change[:2, :2], compute_uv=False)
        if stretch[0] / stretch[1] < _MAX_STRETCH:
            return change, "affine"
    return _similar(at, goal), "similarity"


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
