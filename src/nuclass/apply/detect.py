"""Find nuclei on an H&E where the user has no segmentation: block by block, each nucleus once.

``classical`` is a help and no more: haematoxylin by colour deconvolution, a threshold by Otsu, touching nuclei parted
by the watershed of the distance to their edge. ``cellpose`` runs a network of that library, with weights from a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nuclass.apply.positions_found import Outlines, Points, counted, offsets_of
from nuclass.core.errors import UserError
from nuclass.core.own_cells import CELLPOSE, CLASSICAL, DETECT, method_of
from nuclass.core.progress import Progress
from nuclass.slides.source import Source, open_source
from nuclass.slides.tiles import Image, SourceLevel

Labels = NDArray[np.int32]
Segment = Callable[[Image], Labels]

# Micrometres per px that nuclei are looked for at, and the coarsest that still shows them.
MPP, COARSEST = 0.5, 1.2
BLOCK_PX = 1024
_MARGIN_UM = 40.0
# A centroid may fall a little to this or that side of a border in the two blocks that see it.
_SLACK_UM, _SAME_UM = 1.5, 3.0
MIN_UM2, MAX_UM2 = 16.0, 400.0
_TISSUE = 0.01
_SAMPLES = 16
_FEWEST_PX = 1000
# How far the threshold of a block may lie from that of the slide.
_LOWEST, _HIGHEST = 0.8, 1.25
# Otsu parts dark from pale fibres too; nuclei are darker still.
_ABOVE = 1.15
_BLUR_UM, _OPEN_UM, _PART_UM, _APART_UM = 0.75, 0.75, 0.75, 4.0
# Nuclei are parted where the distance to the edge falls to this share of the smaller one's.
_WAIST = 0.8
_CELLPOSE_UM = 8.0


@dataclass(frozen=True)
class View:
    """The H&E at about :data:`MPP`: a level of its pyramid, averaged over ``shrink`` px each way.

    ``mpp`` is um per px of the view.
    """

    source: Source
    level: SourceLevel
    shrink: int
    mpp: float

    @property
    def factor(self) -> float:
        """Level-0 px per px of the view."""
        return self.level.factor * self.shrink

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in px of the view."""
        return -(-self.level.height // self.shrink), -(-self.level.width // self.shrink)

    def read(self, x0: int, y0: int, width: int, height: int) -> Image:
        """Return a rectangle (height, width, 3), white beyond the image."""
        from PIL import Image as Pillow

        n = self.shrink
        pixels = self.source.region(self.level, x0 * n, y0 * n, width * n, height * n)
        return pixels if n == 1 else np.asarray(Pillow.fromarray(pixels).reduce(n))


@dataclass
class _Nuclei:
    """Nuclei found so far: place in px of the view, block, whether in that block's own part, outline."""

    xy: list[tuple[float, float]] = field(default_factory=list)
    block: list[int] = field(default_factory=list)
    own: list[bool] = field(default_factory=list)
    rings: list[Points] = field(default_factory=list)


def detect_nuclei(
    image: str | Path,
    *,
    mpp_he: float,
    method: str = CLASSICAL,
    weights: str | Path | None = None,
    block_px: int = BLOCK_PX,
) -> tuple[Points, Outlines, str]:
    """Find the nuclei of an H&E.

    Parameters
    ----------
    image
        The H&E, see :func:`nuclass.slides.source.open_source`. It is never whole in memory.
    mpp_he
        Micrometres per px at level 0.
    method
        ``classical`` or ``cellpose``.
    weights
        For cellpose: the file of its weights.
    block_px
        Side of a block in px of about 0.5 um; blocks overlap by 40 um on each side.

    Returns
    -------
    Centroids (N, 2) in H&E px, the outlines in the same frame, and what was done in words.

    Raises
    ------
    UserError
        The image cannot be read or is too coarse, the method is not known or not installed, or there are no nuclei.
    """
    _check(image, method, mpp_he)
    with open_source(image) as source:
        view = view_of(source, mpp_he)
        places = list(_blocks(view, source, block_px))
        segment = _cellpose(weights, view.mpp) if method == CELLPOSE else _classical(view, places, block_px)
        margin = round(_MARGIN_UM / view.mpp)
        nuclei = _Nuclei()
        with Progress(len(places), "find nuclei", "blocks") as progress:
            for number, (x0, y0) in enumerate(places):
                side = block_px + 2 * margin
                labels = segment(view.read(x0 - margin, y0 - margin, side, side))
                _collect(nuclei, number, labels, (x0 - margin, y0 - margin), margin, block_px, view)
                progress.advance()
    keep = _each_once(nuclei, _SAME_UM / view.mpp)
    if not keep:
        raise UserError(
            "No nuclei were found on the image",
            where=image,
            found=f"{counted(len(places), 'block')} with tissue at {view.mpp:.3g} um/px",
            expected="an H&E whose nuclei are darker than the rest",
            fix="check the mpp, or give positions from a segmentation of your own",
        )
    xy = np.array([nuclei.xy[i] for i in keep]) * view.factor
    rings = [nuclei.rings[i] for i in keep]
    outlines = Outlines(np.concatenate(rings) * view.factor, offsets_of(np.array([len(ring) for ring in rings])))
    return xy, outlines, f"{counted(len(xy), 'nucleus', 'nuclei')} detected ({method}, at {view.mpp:.3g} um/px)"


def view_of(source: Source, mpp_he: float) -> View:
    """Return the H&E at about :data:`MPP`, not coarser unless the image is."""
    level = source.level_for(MPP / mpp_he)
    shrink = max(int(MPP / (mpp_he * level.factor) + 1e-6), 1)
    return View(source, level, shrink, mpp_he * level.factor * shrink)


def _check(image: str | Path, method: str, mpp_he: float) -> None:
    method_of(f"{DETECT}:{method}")
    if mpp_he > COARSEST:
        raise UserError(
            "The image is too coarse to see nuclei",
            where=image,
            found=f"{mpp_he:.3g} um/px",
            expected=f"at most {COARSEST:g} um/px",
            fix="give the image at full resolution, or check its mpp",
        )


def _blocks(view: View, source: Source, side: int) -> Iterator[tuple[int, int]]:
    """Yield the top-left px of the blocks that hold tissue."""
    from nuclass.slides.glass import glass

    small, factor = source.overview()
    tissue = ~glass(small)
    per_px = view.factor / factor
    for y0 in range(0, view.shape[0], side):
        for x0 in range(0, view.shape[1], side):
            top, left = int(y0 * per_px), int(x0 * per_px)
            bottom, right = int(np.ceil((y0 + side) * per_px)), int(np.ceil((x0 + side) * per_px))
            if tissue[top:bottom, left:right].mean() > _TISSUE:
                yield x0, y0


# Classical


def haematoxylin_of(rgb: Image, mpp: float) -> NDArray[np.float32]:
    """Return the haematoxylin (H, W) of a picture, a little smoothed."""
    from scipy.ndimage import gaussian_filter

    from nuclass.slides.evidence import haematoxylin

    smooth: NDArray[np.float32] = gaussian_filter(haematoxylin(rgb), _BLUR_UM / mpp)
    return smooth


def _classical(view: View, places: list[tuple[int, int]], side: int) -> Segment:
    """Return the classical segmentation with the slide's own threshold, from blocks spread over it."""
    from skimage.filters import threshold_otsu

    from nuclass.slides.glass import glass

    chosen = [places[i] for i in np.unique(np.linspace(0, len(places) - 1, _SAMPLES).astype(int))] if places else []
    values = []
    for x0, y0 in chosen:
        width, height = min(side, view.shape[1] - x0), min(side, view.shape[0] - y0)
        rgb = view.read(x0, y0, width, height)
        values.append(haematoxylin_of(rgb, view.mpp)[~glass(rgb)][::7])
    found = np.concatenate(values) if values else np.zeros(0, np.float32)
    slide = float(threshold_otsu(found)) if len(found) >= _FEWEST_PX and np.ptp(found) > 0 else np.inf

    def segment(rgb: Image) -> Labels:
        stain, tissue = haematoxylin_of(rgb, view.mpp), ~glass(rgb)
        here = stain[tissue]
        own = float(threshold_otsu(here)) if len(here) >= _FEWEST_PX and np.ptp(here) > 0 else slide
        return parted((stain > _ABOVE * np.clip(own, _LOWEST * slide, _HIGHEST * slide)) & tissue, view.mpp)

    return segment


def parted(mask: NDArray[np.bool_], mpp: float) -> Labels:
    """Return nuclei, numbered, from where they are: specks and threads removed, those that touch parted."""
    from scipy.ndimage import binary_fill_holes, distance_transform_edt, gaussian_filter, label
    from skimage.feature import peak_local_max
    from skimage.morphology import disk, opening
    from skimage.segmentation import watershed

    clean = binary_fill_holes(opening(mask, disk(max(round(_OPEN_UM / mpp), 1))))
    pieces, n = label(clean)
    if not n:
        return np.zeros(mask.shape, np.int32)
    inside = gaussian_filter(distance_transform_edt(clean), _PART_UM / mpp)
    peaks = peak_local_max(inside, min_distance=max(round(_APART_UM / mpp), 1), labels=pieces, exclude_border=False)
    markers = np.zeros(mask.shape, np.int32)
    peaks = _of_joined(peaks, pieces, inside)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    found: Labels = watershed(-inside, markers, mask=clean).astype(np.int32)
    return found


def _of_joined(peaks: NDArray[np.intp], pieces: Labels, inside: NDArray[np.floating]) -> NDArray[np.intp]:
    """Return the peaks (y, x) that a waist parts from every higher one of their piece."""
    from scipy.ndimage import find_objects, label

    owner = pieces[tuple(peaks.T)]
    order = np.lexsort((-inside[tuple(peaks.T)], owner))
    peaks, owner = peaks[order], owner[order]
    places = find_objects(pieces)
    keep = np.ones(len(peaks), bool)
    starts = np.flatnonzero(np.append(True, owner[1:] != owner[:-1])) if len(peaks) else np.zeros(0, np.intp)
    for start, stop in zip(starts, np.append(starts[1:], len(peaks)), strict=True):
        if stop - start == 1:
            continue
        box = places[owner[start] - 1]
        depth = np.where(pieces[box] == owner[start], inside[box], 0)
        local = peaks[start:stop] - (box[0].start, box[1].start)
        for i in range(1, stop - start):
            around, _ = label(depth > _WAIST * depth[tuple(local[i])])
            higher = local[:i][keep[start : start + i]]
            keep[start + i] = around[tuple(local[i])] not in around[tuple(higher.T)]
    return peaks[keep]


# Cellpose


def _cellpose(weights: str | Path | None, mpp: float) -> Segment:
    """Return the segmentation of cellpose."""
    try:
        from cellpose import models
    except ImportError as error:
        raise UserError(
            "Detection by cellpose needs the package cellpose",
            where="--cells detect:cellpose",
            found="it is not installed",
            fix="pip install cellpose, or --cells detect for the plain way",
        ) from error
    if weights is None or not Path(weights).is_file():
        raise UserError(
            "Detection by cellpose needs its weights",
            where="--weights",
            found="nothing" if weights is None else f"no file {weights}",
            expected="a file of weights on this disk, such as cpsam or nuclei",
            fix="download the weights as cellpose's documentation says, and name the file",
        )
    import torch

    model = models.CellposeModel(gpu=torch.cuda.is_available(), pretrained_model=str(weights))

    def segment(rgb: Image) -> Labels:
        return np.asarray(model.eval(rgb, diameter=_CELLPOSE_UM / mpp)[0]).astype(np.int32)

    return segment


# All blocks


def _collect(
    nuclei: _Nuclei, number: int, labels: Labels, corner: tuple[int, int], margin: int, side: int, view: View
) -> None:
    """Add the nuclei of a block whose centroid lies in its own part or just beside it."""
    from skimage.measure import regionprops

    slack = _SLACK_UM / view.mpp
    height, width = view.shape
    for region in regionprops(labels):
        if not MIN_UM2 <= region.area * view.mpp**2 <= MAX_UM2:
            continue
        y, x = (value + 0.5 for value in region.centroid)
        beside = max(margin - x, x - margin - side, margin - y, y - margin - side)
        place = (corner[0] + x, corner[1] + y)
        if beside > slack or not (0 <= place[0] < width and 0 <= place[1] < height):
            continue
        nuclei.xy.append(place)
        nuclei.block.append(number)
        nuclei.own.append(beside <= 0)
        shift = np.array([corner[0] + region.bbox[1], corner[1] + region.bbox[0]])
        nuclei.rings.append(_ring(region.image) + shift)


def _ring(mask: NDArray[np.bool_]) -> Points:
    """Return the outline (n, 2) of a mask, x and y, not closed; px ``i`` covers ``[i, i + 1)``."""
    from skimage.measure import approximate_polygon, find_contours

    padded = np.pad(mask, 1).astype(np.float32)
    longest = max(find_contours(padded, 0.5), key=len)
    simple = approximate_polygon(longest, 0.3)
    ring = (simple if len(simple) >= 4 else longest)[:-1]
    # The padding shifts by one px, the middle of a px lies half a px inside it.
    return np.asarray(ring[:, ::-1] - 0.5, np.float64)


def _each_once(nuclei: _Nuclei, reach: float) -> list[int]:
    """Return which nuclei to keep: of two at one place from two blocks the one that lies in its block's own part."""
    from scipy.spatial import cKDTree

    if not nuclei.xy:
        return []
    gone: set[int] = set()
    for a, b in sorted(cKDTree(np.array(nuclei.xy)).query_pairs(reach)):
        if nuclei.block[a] == nuclei.block[b] or a in gone or b in gone:
            continue
        gone.add(a if nuclei.own[b] and not nuclei.own[a] else b)
    return [i for i in range(len(nuclei.xy)) if i not in gone]
