"""The H&E alignment file: H&E pixels to morphology pixels."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nuclass.core.errors import UserError

_KEYPOINTS = ("fixedX", "fixedY", "alignmentX", "alignmentY")
_EXPECTED = (
    "a 3x3 matrix of numbers, three lines of three separated by commas (H&E pixels to morphology pixels), "
    f"or keypoints with the header {','.join(_KEYPOINTS)}"
)
_FIX = "export the alignment again from Xenium Explorer, or take the *_he_imagealignment.csv of the dataset"
# A matrix whose inverse loses more than this is of no use: well above any real one in pixels.
_MAX_CONDITION = 1e12


def read_alignment(file: str | Path) -> npt.NDArray[np.float64]:
    """Read an alignment as a matrix (3, 3), float64, H&E pixels to morphology pixels.

    Both frames are continuous, with the origin at the image's top left corner. The matrix may be a
    homography; its last row is kept as written. A keypoints file of Xenium Explorer (``fixed`` the
    morphology image, ``alignment`` the H&E) is turned into the affine map that fits all its points
    in the least-squares sense.

    Raises
    ------
    UserError
        If the file is missing, not 3x3, not numeric, or the matrix cannot be inverted.
    """
    path = Path(file)
    rows = _rows(path)
    if tuple(cell.strip().lower() for cell in rows[0]) == tuple(name.lower() for name in _KEYPOINTS):
        return _invertible(path, _fit(path, _numbers(path, rows[1:], 4, first_line=2)))
    if len(rows) != 3 or any(len(row) != 3 for row in rows):
        widths = sorted({len(row) for row in rows})
        shape = f"{len(rows)} lines of {' or '.join(map(str, widths))} values"
        raise UserError("The alignment is not a 3x3 matrix", where=path, found=shape, expected=_EXPECTED, fix=_FIX)
    return _invertible(path, _numbers(path, rows, 3, first_line=1))


def _rows(path: Path) -> list[list[str]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(
            "The alignment file is missing", where=path, found="no such file", expected=_EXPECTED, fix=_FIX
        ) from error
    except UnicodeDecodeError as error:
        raise UserError("The alignment file is not text", where=path, expected=_EXPECTED, fix=_FIX) from error
    rows = [row for row in csv.reader(text.splitlines()) if any(cell.strip() for cell in row)]
    if not rows:
        raise UserError("The alignment file is empty", where=path, expected=_EXPECTED, fix=_FIX)
    return rows


def _numbers(path: Path, rows: list[list[str]], width: int, first_line: int) -> npt.NDArray[np.float64]:
    values = np.empty((len(rows), width))
    for i, row in enumerate(rows):
        if len(row) != width:
            raise UserError(
                "A line of the alignment file has the wrong length",
                where=f"{path}, line {i + first_line}",
                found=f"{len(row)} values",
                expected=f"{width} values",
                fix=_FIX,
            )
        for j, cell in enumerate(row):
            try:
                values[i, j] = float(cell)
            except ValueError:
                values[i, j] = np.nan
            if not np.isfinite(values[i, j]):
                raise UserError(
                    "A value of the alignment is not a number",
                    where=f"{path}, line {i + first_line}, value {j + 1}",
                    found=repr(cell.strip()),
                    expected=_EXPECTED,
                    fix=_FIX,
                )
    return values


def _fit(path: Path, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the least-squares affine map from alignment (H&E) to fixed (morphology) points."""
    if len(points) < 3:
        raise UserError(
            "Too few keypoints for an alignment",
            where=path,
            found=f"{len(points)} points",
            expected="at least 3, not on one line",
            fix="set more keypoints in Xenium Explorer and export them again",
        )
    source = np.column_stack([points[:, 2:4], np.ones(len(points))])
    solution, _, rank, _ = np.linalg.lstsq(source, points[:, :2], rcond=None)
    if rank < 3:
        raise UserError(
            "The keypoints lie on one line",
            where=path,
            found=f"{len(points)} points on a line",
            expected="at least 3 points that span the tissue",
            fix="set more keypoints in Xenium Explorer and export them again",
        )
    return np.vstack([solution.T, [0.0, 0.0, 1.0]])


def _invertible(path: Path, matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # Offsets are thousands of pixels; without them the condition number tells of the map alone.
    scaled = matrix / np.maximum(np.abs(matrix).max(axis=0, keepdims=True), 1e-300)
    singular = np.linalg.cond(scaled) > _MAX_CONDITION or abs(np.linalg.det(matrix[:2, :2])) < 1e-12
    if singular:
        raise UserError(
            "The alignment matrix cannot be inverted",
            where=path,
            found=f"determinant {np.linalg.det(matrix):.3g}",
            expected="a map that keeps the plane: scale, rotation, mirroring, offset",
            fix=_FIX,
        )
    return matrix
