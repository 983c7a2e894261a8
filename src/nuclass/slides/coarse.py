"""Find where a bundle lies on an H&E from nothing: nuclei against haematoxylin, both seen from far.

The nuclei of the bundle give a map of nuclear density; a small picture of the H&E gives one of haematoxylin. The
first is turned, mirrored and scaled, laid over the second at every shift by Fourier transforms, and judged by
their correlation. All eight right-angle placements are tried, with scales in small steps and small turns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Steps fine enough that the next one still correlates: an edge moves by about a blur of the map.
SCALE_STEP = 0.05
TURN_STEP, _NEAR = 3.0, 3.0
_TURNS = np.arange(-45.0, 315.0, TURN_STEP).tolist()
RIGHT_ANGLES = tuple(turn for turn in _TURNS if min(turn % 90, 90 - turn % 90) <= _NEAR)
OTHER_TURNS = tuple(turn for turn in _TURNS if min(turn % 90, 90 - turn % 90) > _NEAR)
# Passes of the search: longer side of the picture in px, the turns that are tried, and how much wider than the picture
# the bundle's region may be. The first is enough where the tissue has shape; the second sees more, and finds a picture
# that shows a part of the region; the third is for slides that lie askew.
PASSES = ((96, RIGHT_ANGLES, 1.35), (192, RIGHT_ANGLES, 2.2), (128, OTHER_TURNS, 1.35))
REFINE_PX = (320, 640)
# The bundle's region may be narrower than the picture by this.
NARROWER = 4.0
# No slide is scanned coarser or finer, micrometres per px.
FINEST, COARSEST = 0.08, 1.1
_BLUR_PX = 1.2
_MIN_OVERLAP = 0.5


@dataclass(frozen=True)
class Placement:
    """A placement of the bundle on the H&E, and how well the two maps agree there.

    Attributes
    ----------
    matrix
        (3, 3) micrometres -> H&E level-0 px, a similarity with or without a mirror.
    correlation
        Pearson's correlation of the two maps, -1 to 1.
    mirrored, turn_deg, mpp
        What the matrix consists of: mirrored or not, degrees, micrometres per H&E px.
    """

    matrix: Floats
    correlation: float
    mirrored: bool
    turn_deg: float
    mpp: float


def similarity(mpp: float, turn_deg: float, mirrored: bool) -> Floats:
    """Return the 2 x 2 map um -> px: first the mirror (y changes sign), then the turn, then the scale."""
    angle = np.deg2rad(turn_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return turn @ np.diag([1.0, -1.0 if mirrored else 1.0]) / mpp


class Matcher:
    """Compares one map of the bundle with one small picture, at one resolution of the picture.

    Parameters
    ----------
    points_um, weight
        Centres (N, 2) of nuclei, and their areas.
    picture
        (H, W) haematoxylin of the whole H&E, small.
    factor
        H&E level-0 px per px of ``picture``.
    """

    def __init__(self, points_um: Floats, weight: Floats, picture: NDArray[np.float32], factor: float) -> None:
        from scipy.ndimage import gaussian_filter

        self.points, self.weight, self.factor = points_um, weight, factor
        self.low, self.high = points_um.min(axis=0), points_um.max(axis=0)
        smooth = gaussian_filter(picture.astype(np.float64), _BLUR_PX)
        # A few very dark folds must not outweigh the tissue.
        top = np.percentile(smooth, 99.5)
        self.picture = np.minimum(smooth, top) / max(float(top), 1e-9)
        self.border = float(np.mean([*self.picture[[0, -1]].ravel(), *self.picture[:, [0, -1]].ravel()]))
        self._padded: dict[int, tuple[tuple[int, int], NDArray[np.complex64], NDArray[np.complex64]]] = {}

    def place(self, mpp: float, turn_deg: float, mirrored: bool) -> Placement | None:
        """Return the best shift for one scale, turn and mirror; None where the map does not fit the picture."""
        from scipy.fft import irfft2, rfft2

        linear = similarity(mpp * self.factor, turn_deg, mirrored)
        template, support, origin = self._template(linear)
        room = _room(max(template.shape))
        shape, image, square = self._prepared(room)
        if template.shape[0] > shape[0] or template.shape[1] > shape[1]:
            return None
        area = support.sum()
        centred = np.where(support, template - template[support].mean(), 0.0)
        spread = np.sqrt((centred**2).sum())
        if area < 64 or spread == 0:
            return None
        mask = np.conj(rfft2(support.astype(np.float32), shape, workers=1))
        cross = irfft2(image * np.conj(rfft2(centred.astype(np.float32), shape, workers=1)), shape, workers=1)
        total = irfft2(image * mask, shape, workers=1)
        squares = irfft2(square * mask, shape, workers=1)
        variance = np.maximum(squares - total**2 / area, 1e-3 * area * self.picture.var())
        score = cross / (spread * np.sqrt(variance))
        score = score[: shape[0] - template.shape[0] + 1, : shape[1] - template.shape[1] + 1]
        row, column = (int(v) for v in np.unravel_index(int(score.argmax()), score.shape))
        shift = np.array([column, row], np.float64) - room - origin
        matrix = np.eye(3)
        matrix[:2, :2] = linear * self.factor
        matrix[:2, 2] = shift * self.factor
        return Placement(matrix, float(score[row, column]), mirrored, turn_deg, mpp)

    def _template(self, linear: Floats) -> tuple[Floats, NDArray[np.bool_], Floats]:
        """Return the nuclei as a map in the picture's px, where it is valid, and its origin under ``linear``."""
        from scipy.ndimage import gaussian_filter

        corners = np.array(
            [[self.low[0], self.low[1]], [self.high[0], self.low[1]], self.high, [self.low[0], self.high[1]]]
        )
        turned = corners @ linear.T
        points = self.points @ linear.T
        origin = np.floor(turned.min(axis=0)) - 1
        width, height = (np.ceil(turned.max(axis=0)) + 2 - origin).astype(int)
        place = np.floor(points - origin).astype(np.int64)
        flat = np.bincount(place[:, 1] * width + place[:, 0], self.weight, minlength=int(width * height))
        template = gaussian_filter(flat.reshape(int(height), int(width)).astype(np.float64), _BLUR_PX)
        # Where the bundle saw anything: the px whose centres, mapped back, lie between its corners.
        back = np.linalg.inv(linear)
        x, y = origin[0] + np.arange(width) + 0.5, (origin[1] + np.arange(height) + 0.5)[:, None]
        support = np.ones(template.shape, bool)
        for axis in (0, 1):
            along = back[axis, 0] * x + back[axis, 1] * y
            support &= (along >= self.low[axis]) & (along <= self.high[axis])
        return np.sqrt(template), support, origin

    def _prepared(self, room: int) -> tuple[tuple[int, int], NDArray[np.complex64], NDArray[np.complex64]]:
        """Return shape and transforms of the picture and its square, with room around it for a map over its edge.

        The room is filled with what is at the picture's edge: glass, or tissue that was cut through.
        """
        from scipy.fft import next_fast_len, rfft2

        if room not in self._padded:
            height, width = self.picture.shape
            shape = (next_fast_len(height + 2 * room, True), next_fast_len(width + 2 * room, True))
            padded = np.full(shape, self.border, np.float32)
            padded[room : room + height, room : room + width] = self.picture
            self._padded[room] = (shape, rfft2(padded, workers=1), rfft2(padded**2, workers=1))
        return self._padded[room]


def _room(template: int) -> int:
    """Return the room for a map of this side: what may hang over, in coarse steps, so that few shapes occur."""
    return round(1.25 ** np.ceil(np.log(max(_MIN_OVERLAP * template, 2)) / np.log(1.25)))


def scales(points_um: Floats, he_shape: tuple[int, int], wider: float) -> Floats:
    """Return the um per H&E px to try, in steps of :data:`SCALE_STEP`, from the sizes of region and picture."""
    region = float(np.ptp(points_um, axis=0).max())
    longest = max(he_shape)
    low, high = region / (wider * longest), NARROWER * region / longest
    if low < COARSEST and high > FINEST:
        low, high = max(low, FINEST), min(high, COARSEST)
    steps = int(np.ceil(np.log(high / low) / SCALE_STEP))
    return low * np.exp(SCALE_STEP * np.arange(steps + 1))


def search(matcher: Matcher, mpps: Iterable[float], turns: Iterable[float], most: int = 4) -> list[Placement]:
    """Try all combinations; return the best of each orientation (mirror and turn), the highest correlation first."""
    found: dict[tuple[bool, int], Placement] = {}
    for mpp, turn, mirrored in product(mpps, turns, (False, True)):
        placed = matcher.place(mpp, turn, mirrored)
        key = (mirrored, round(turn / 90) % 4)
        if placed is not None and (key not in found or placed.correlation > found[key].correlation):
            found[key] = placed
    return sorted(found.values(), key=lambda placed: -placed.correlation)[:most]
