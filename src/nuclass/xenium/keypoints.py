"""The affine map of a set of keypoints, with its residuals and the points that are wrong."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger

_log = get_logger(__name__)

Floats = npt.NDArray[np.float64]

# A point placed by hand lies within a nucleus or two of its place; nearer than this none is called wrong.
GROSS_UM = 10.0
# In two dimensions 0.2 % of good points lie beyond 3.5 standard deviations.
_CUT = 3.5
_TRIALS = 3000
# Points whose extent across is less than this part of their extent along do not fix a map.
_FLAT = 1e-3
_FIX = "set more keypoints in Xenium Explorer, spread over the tissue, and export them again"


@dataclass(frozen=True, eq=False)
class KeypointFit:
    """How well keypoints agree with the affine map fitted to them.

    Attributes
    ----------
    n
        Number of points N.
    residual_um
        (N,) distance between the mapped H&E point and the fixed one, um. NaN with three points, which
        every affine map meets.
    rmse_um
        Root mean square residual of the points used, um; NaN with three points.
    used
        (N,) whether the point took part in the fit.
    worst
        The three points that lie farthest off: number of the point in the file (from 1) and residual, um.
    model
        Always ``affine``.
    """

    n: int
    residual_um: Floats
    rmse_um: float
    used: npt.NDArray[np.bool_]
    worst: list[tuple[int, float]]
    model: str = "affine"


def fit_keypoints(
    he: npt.ArrayLike, fixed: npt.ArrayLike, *, pixel_size: float, robust: bool = True, where: str | Path = "keypoints"
) -> tuple[Floats, KeypointFit]:
    """Fit the affine map from H&E points to morphology points by least squares.

    Parameters
    ----------
    he
        (N, 2) points, H&E px.
    fixed
        (N, 2) the same points, morphology px.
    pixel_size
        Micrometres per morphology px.
    robust
        Leave out grossly wrong points: those that lie more than 10 um and 3.5 standard deviations off
        the map on which the closest half of the points agrees (least median of squares). Without, or where
        there is none, the fit is over all points. Needs five points; fewer cannot outvote a wrong one.
    where
        The file, for messages.

    Returns
    -------
    The matrix (3, 3), H&E px to morphology px, and how well the points agree.

    Raises
    ------
    UserError
        If there are fewer than three points or they lie on one line.
    """
    source, target = np.asarray(he, np.float64).reshape(-1, 2), np.asarray(fixed, np.float64).reshape(-1, 2)
    n = len(source)
    if n < 3:
        found = f"{n} point{'' if n == 1 else 's'}"
        raise UserError(
            "Too few keypoints for an alignment",
            where=where,
            found=found,
            expected="at least 3, not on one line",
            fix=_FIX,
        )
    used = np.ones(n, bool)
    _spanning(source, target, used, where)
    if robust and n >= 5:
        used = _agreeing(source, target, GROSS_UM / pixel_size)
        _spanning(source, target, used, where)
    matrix = _affine(source[used], target[used])
    residual = _distance(matrix, source, target) * pixel_size if n > 3 else np.full(n, np.nan)
    rmse = float(np.sqrt(np.mean(residual[used] ** 2)))
    order = np.argsort(-residual, kind="stable")[:3]
    worst = [(int(i) + 1, float(residual[i])) for i in order] if n > 3 else []
    fit = KeypointFit(n=n, residual_um=residual, rmse_um=rmse, used=used, worst=worst)
    _say(fit, where)
    return matrix, fit


def _say(fit: KeypointFit, where: str | Path) -> None:
    if fit.n == 3:
        _log.warning("%s: three keypoints fix the map exactly; how wrong they are cannot be told", where)
        return
    named = ", ".join(f"point {row} {um:.1f} um" for row, um in fit.worst)
    _log.info("%s: %d keypoints, RMSE %.2f um; the worst: %s", where, fit.n, fit.rmse_um, named)
    if not fit.used.all():
        out = ", ".join(f"point {i + 1} ({fit.residual_um[i]:.0f} um)" for i in np.flatnonzero(~fit.used))
        _log.warning("%s: %d of %d keypoints left out as wrong: %s", where, int((~fit.used).sum()), fit.n, out)


def _affine(source: Floats, target: Floats) -> Floats:
    """Return the least-squares affine matrix (3, 3), solved about the points' centre for accuracy."""
    centre, goal = source.mean(0), target.mean(0)
    linear = np.linalg.lstsq(source - centre, target - goal, rcond=None)[0].T
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = linear, goal - linear @ centre
    return matrix


def _distance(matrix: Floats, source: Floats, target: Floats) -> Floats:
    off = source @ matrix[:2, :2].T + matrix[:2, 2] - target
    return np.asarray(np.hypot(off[:, 0], off[:, 1]), np.float64)


def _agreeing(source: Floats, target: Floats, gross: float) -> npt.NDArray[np.bool_]:
    """Return which points agree, by least median of squares over triples; ``gross`` in morphology px."""
    n = len(source)
    best, lowest = np.ones(n, bool), np.inf
    half = (n + 4) // 2
    for triple in _triples(n):
        if _flatness(source[triple]) < _FLAT or _flatness(target[triple]) < _FLAT:
            continue
        distance = _distance(_affine(source[triple], target[triple]), source, target)
        middle = np.partition(distance, half - 1)[half - 1]
        if middle < lowest:
            lowest, best = middle, distance <= middle
    # Two rounds from the agreeing half: its fit, its spread, the points within.
    for _ in range(3):
        distance = _distance(_affine(source[best], target[best]), source, target)
        if _flatness(source[best]) < _FLAT:
            return np.ones(n, bool)
        spread = np.sort(distance)[half - 1] / 1.177 * (1 + 5 / (n - 3))
        best = distance <= max(gross, _CUT * spread)
    return best


def _triples(n: int) -> npt.NDArray[np.int64]:
    """Return triples of points: all of them where they are few, otherwise a fixed random choice."""
    if comb(n, 3) <= _TRIALS:
        return np.array(list(combinations(range(n), 3)), np.int64)
    random = np.random.default_rng(0)
    return np.array([random.choice(n, 3, replace=False) for _ in range(_TRIALS)], np.int64)


def _flatness(points: Floats) -> float:
    """Return the extent across over the extent along of a set of points; 0 on a line."""
    singular = np.linalg.svd(points - points.mean(0), compute_uv=False)
    return float(singular[1] / singular[0]) if singular[0] > 0 else 0.0


def _spanning(source: Floats, target: Floats, used: npt.NDArray[np.bool_], where: str | Path) -> None:
    for name, points in (("H&E", source[used]), ("morphology", target[used])):
        if _flatness(points) < _FLAT:
            raise UserError(
                "The keypoints lie on one line",
                where=where,
                found=f"{int(used.sum())} points on a line in the {name} image",
                expected="at least 3 points that span the tissue",
                fix=_FIX,
            )
