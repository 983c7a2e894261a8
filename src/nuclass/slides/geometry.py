"""The frames of a slide and the one truth for its scale.

Four frames, all continuous, origin in the top-left corner, x = column and y = row. Pixel ``i`` covers
``[i, i + 1)`` and its centre lies at ``i + 0.5``.

======== ============================================ ==============================================
frame    unit                                         from the frame before
======== ============================================ ==============================================
um       micrometres of the Xenium bundle
morph    level-0 pixels of the morphology image       ``x_morph = x_um / pixel_size``
he       level-0 pixels of the H&E file               ``(x_he, y_he) = A^-1 (x_morph, y_morph)``
px       level-0 pixels of the slide store            ``x_px = x_he * mpp_he / mpp_target``
======== ============================================ ==============================================

``A`` is the alignment file of 10x Genomics, which maps H&E pixels to morphology pixels. The scale of the
H&E follows from it alone: ``mpp_he = sqrt(|det A|) * pixel_size``. What the image file says about its own
pixel size is never used, because it is wrong in about half of the public files.

The original divides by the root instead (:attr:`Frames.inverted_mpp`): its px are ``mpp_target * |det A|`` um wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nuclass.core.errors import UserError

Points = NDArray[np.float64]
Matrix = NDArray[np.float64]
Frame = Literal["um", "morph", "he", "px"]

# A choice, not a measurement: beyond this the map stretches one axis in a way no rigid placement does.
MAX_ANISOTROPY = 1.05


@dataclass(frozen=True, eq=False)
class Frames:
    """Conversions between the frames of one slide, vectorised over ``(N, 2)`` points.

    Parameters
    ----------
    alignment
        3 x 3 matrix, H&E px -> morphology px. An affine matrix or a homography.
    pixel_size
        Micrometres per morphology pixel, from ``experiment.xenium``.
    mpp_target
        Micrometres per pixel of the slide store.
    he_shape
        ``(height, width)`` of the H&E at level 0. Needed for a homography only, whose scale differs
        from place to place and is taken at the centre of the image.
    inverted_mpp
        A flaw of the original, for comparison: the store is scaled as if ``mpp_he`` were ``pixel_size /
        sqrt(|det A|)``. Measures in micrometres stay true; only the frame ``px`` changes.

    Raises
    ------
    UserError
        The matrix is not 3 x 3, not finite or not invertible, or a size is not positive.
    """

    alignment: NDArray[np.float64]
    pixel_size: float
    mpp_target: float = 0.25
    he_shape: tuple[int, int] | None = None
    inverted_mpp: bool = False

    def __post_init__(self) -> None:
        matrix = np.asarray(self.alignment, dtype=np.float64)
        if matrix.shape != (3, 3):
            raise UserError(
                "The alignment matrix has the wrong shape",
                found=" x ".join(map(str, matrix.shape)),
                expected="3 x 3",
                fix="export the alignment again; the file has three rows of three numbers",
            )
        if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-12 or abs(matrix[2, 2]) < 1e-12:
            raise UserError(
                "The alignment matrix cannot be inverted",
                found=matrix.tolist(),
                expected="a finite matrix with a determinant other than 0",
                fix="export the alignment again",
            )
        for name in ("pixel_size", "mpp_target"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0):
                raise UserError("A pixel size is not positive", where=name, found=value, expected="micrometres, > 0")
        object.__setattr__(self, "alignment", matrix / matrix[2, 2])
        if not self.is_affine and self.he_shape is None:
            raise UserError(
                "The scale of a homography depends on the place, and the size of the H&E is not known",
                where="he_shape",
                fix="give the height and width of the H&E",
            )

    @property
    def is_affine(self) -> bool:
        """Whether the last row is 0, 0, 1 (else the alignment is a homography)."""
        return bool(np.allclose(self.alignment[2], (0.0, 0.0, 1.0), rtol=0, atol=1e-12))

    def jacobian(self, xy_he: ArrayLike | None = None) -> NDArray[np.float64]:
        """Return the 2 x 2 derivative d(morph)/d(he) at one H&E point (default: the image centre).

        For an affine matrix this is its upper left block everywhere. For a homography with rows ``a``,
        ``b``, ``c`` and ``w = c . (x, y, 1)`` it is ``([a; b] - m c^T) / w``, ``m`` the mapped point.
        """
        if self.is_affine:
            return self.alignment[:2, :2].copy()
        if xy_he is None:
            assert self.he_shape is not None
            xy_he = (self.he_shape[1] / 2, self.he_shape[0] / 2)
        point = np.append(np.asarray(xy_he, dtype=np.float64), 1.0)
        u, v, w = self.alignment @ point
        mapped = np.array([u / w, v / w])
        return (self.alignment[:2, :2] - np.outer(mapped, self.alignment[2, :2])) / w

    @property
    def mpp_he(self) -> float:
        """Micrometres per H&E pixel: ``sqrt(|det A2x2|) * pixel_size`` (homography: at the image centre)."""
        return decompose(self.jacobian()).scale * self.pixel_size

    @property
    def scale(self) -> float:
        """Slide-store pixels per H&E pixel."""
        taken = self.pixel_size**2 / self.mpp_he if self.inverted_mpp else self.mpp_he
        return taken / self.mpp_target

    @property
    def mpp_store(self) -> float:
        """Micrometres per px that the store really has: ``mpp_target``, but for ``inverted_mpp``."""
        return self.mpp_he / self.scale if self.inverted_mpp else self.mpp_target

    @property
    def mirrored(self) -> bool:
        """Whether the H&E is a mirror image of the morphology image (negative determinant)."""
        return decompose(self.jacobian()).mirrored

    @property
    def rotation_deg(self) -> float:
        """Angle in degrees, in (-180, 180], by which the H&E's x axis is turned in the morphology frame.

        Positive turns from x towards y (clockwise on a screen, where y points down). For a mirrored
        slide it is the turn after flipping y: ``A = s R(angle) diag(1, -1)``.
        """
        return decompose(self.jacobian()).rotation_deg

    @property
    def anisotropy(self) -> float:
        """Largest over smallest local scale; 1 for rotation, mirror and uniform scale."""
        return decompose(self.jacobian()).anisotropy

    def matrix(self, source: Frame, target: Frame) -> Matrix:
        """Return the 3 x 3 matrix from one frame to another, by their names.

        Parameters
        ----------
        source, target
            ``um``, ``morph``, ``he`` or ``px``.
        """
        to_um = {
            "um": np.eye(3),
            "morph": _scaling(self.pixel_size),
            "he": compose(self.alignment, _scaling(self.pixel_size)),
            "px": compose(_scaling(1 / self.scale), self.alignment, _scaling(self.pixel_size)),
        }
        for name in (source, target):
            if name not in to_um:
                raise ValueError(f"There is no frame {name!r}; expected one of {', '.join(to_um)}")
        return compose(to_um[source], invert(to_um[target]))

    def convert(self, xy: ArrayLike, source: Frame, target: Frame) -> Points:
        """Convert points (N, 2) from one frame to another, by their names."""
        return project(self.matrix(source, target), xy)

    def um_to_morph(self, xy_um: ArrayLike) -> Points:
        """Micrometres -> morphology px."""
        return _points(xy_um) / self.pixel_size

    def morph_to_um(self, xy_morph: ArrayLike) -> Points:
        """Morphology px -> micrometres."""
        return _points(xy_morph) * self.pixel_size

    def he_to_morph(self, xy_he: ArrayLike) -> Points:
        """H&E px -> morphology px, the direction of the alignment file."""
        return project(self.alignment, xy_he)

    def morph_to_he(self, xy_morph: ArrayLike) -> Points:
        """Morphology px -> H&E px."""
        return project(invert(self.alignment), xy_morph)

    def he_to_px(self, xy_he: ArrayLike) -> Points:
        """H&E px -> slide-store px."""
        return _points(xy_he) * self.scale

    def px_to_he(self, xy_px: ArrayLike) -> Points:
        """Slide-store px -> H&E px."""
        return _points(xy_px) / self.scale

    def um_to_he(self, xy_um: ArrayLike) -> Points:
        """Micrometres -> H&E px."""
        return self.morph_to_he(self.um_to_morph(xy_um))

    def he_to_um(self, xy_he: ArrayLike) -> Points:
        """H&E px -> micrometres."""
        return self.morph_to_um(self.he_to_morph(xy_he))

    def um_to_px(self, xy_um: ArrayLike) -> Points:
        """Micrometres -> slide-store px."""
        return self.he_to_px(self.um_to_he(xy_um))

    def px_to_um(self, xy_px: ArrayLike) -> Points:
        """Slide-store px -> micrometres."""
        return self.he_to_um(self.px_to_he(xy_px))

    def store_shape(self, he_shape: tuple[int, int]) -> tuple[int, int]:
        """Return ``(height, width)`` of the store for an H&E of that shape.

        Rounded to nearest, so that the centre of every store pixel lies on the H&E.
        """
        height, width = (max(int(np.floor(n * self.scale + 0.5)), 1) for n in he_shape)
        return height, width


@dataclass(frozen=True)
class Decomposition:
    """What a map does to a small figure.

    Attributes
    ----------
    scale
        Root of the area's factor: target px per source px.
    rotation_deg
        The turn of the x axis in degrees, in (-180, 180], positive from x towards y.
    mirrored
        Whether left and right are exchanged; the turn is then what follows after flipping y.
    anisotropy
        Largest over smallest scale, 1 for a similarity.
    """

    scale: float
    rotation_deg: float
    mirrored: bool
    anisotropy: float


def decompose(matrix: ArrayLike) -> Decomposition:
    """Return scale, turn, mirroring and anisotropy of a 2 x 2 matrix, or of an affine 3 x 3 one."""
    full = np.asarray(matrix, dtype=np.float64)
    linear = full[:2, :2] / full[2, 2] if full.shape == (3, 3) else full
    determinant = float(np.linalg.det(linear))
    singular = np.linalg.svd(linear, compute_uv=False)
    return Decomposition(
        scale=float(np.sqrt(abs(determinant))),
        rotation_deg=float(np.degrees(np.arctan2(linear[1, 0], linear[0, 0]))),
        mirrored=determinant < 0,
        anisotropy=float(singular[0] / singular[1]),
    )


def compose(*matrices: ArrayLike) -> Matrix:
    """Return the 3 x 3 matrix that applies the given ones one after the other, the first one first."""
    out: Matrix = np.eye(3)
    for matrix in matrices:
        out = np.asarray(matrix, dtype=np.float64) @ out
    return out / out[2, 2] if abs(out[2, 2]) > 1e-12 else out


def invert(matrix: ArrayLike) -> Matrix:
    """Return the inverse of a 3 x 3 affine matrix or homography, its last number 1 where it can be.

    Raises
    ------
    UserError
        The matrix has no inverse.
    """
    given = np.asarray(matrix, dtype=np.float64)
    if not np.isfinite(given).all() or np.linalg.matrix_rank(given / np.abs(given).max(axis=0).clip(1e-300)) < 3:
        raise UserError(
            "The matrix cannot be inverted", found=given.tolist(), expected="a map that keeps the plane", fix=None
        )
    inverse: Matrix = np.linalg.inv(given).astype(np.float64)
    if np.array_equal(given[2], (0.0, 0.0, 1.0)):
        # Rounding would leave a last row that is a little off and turn an affine map into a homography.
        inverse[2] = (0.0, 0.0, 1.0)
    return inverse / inverse[2, 2] if abs(inverse[2, 2]) > 1e-12 else inverse


def project(matrix: ArrayLike, xy: ArrayLike) -> Points:
    """Apply a 3 x 3 matrix to points (..., 2), with the division of a homography."""
    given, points = np.asarray(matrix, dtype=np.float64), _points(xy)
    mapped = points @ given[:, :2].T + given[:, 2]
    return mapped[..., :2] / mapped[..., 2:]


def window_origin(xy: ArrayLike, size: int) -> NDArray[np.int64]:
    """Return the integer top-left pixel of the square window of ``size`` px around each point.

    ``floor(xy - size / 2 + 0.5)`` for ``xy`` of shape ``(N, 2)`` or ``(2,)``, in the same frame. The
    window covers ``[x0, x0 + size)``; its centre is within half a pixel of the point.
    """
    return np.floor(np.asarray(xy, dtype=np.float64) - size / 2 + 0.5).astype(np.int64)


def _points(xy: ArrayLike) -> Points:
    points = np.asarray(xy, dtype=np.float64)
    if points.ndim == 0 or points.shape[-1] != 2:
        raise ValueError(f"Points must have x and y in the last axis; got shape {points.shape}")
    return points


def _scaling(factor: float) -> Matrix:
    return np.diag([factor, factor, 1.0])
