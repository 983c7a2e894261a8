"""The H&E alignment: a matrix or keypoints of Xenium Explorer, in every spelling that is met.

Both frames are continuous, with the origin at the image's top left corner, x = column and y = row. The
direction is always taken as H&E pixels to morphology pixels, as 10x Genomics exports it; whether that
holds is for the verdict on the slide to say, not for the file.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.xenium.keypoints import KeypointFit, fit_keypoints
from nuclass.xenium.numbers import Line, TextTable, decode_text, plain_name, read_table

__all__ = ["Alignment", "KeypointFit", "read_alignment"]

_log = get_logger(__name__)

Matrix = npt.NDArray[np.float64]

# The one name whose target (micrometres or pixels) the sources disagree on.
_UNSETTLED = "_he_alignment.csv"
_KEYPOINTS = ("fixedx", "fixedy", "alignmentx", "alignmenty")
_SPELT = dict(zip(_KEYPOINTS, ("fixedX", "fixedY", "alignmentX", "alignmentY"), strict=True))
_EXPECTED = (
    "a 3x3 matrix of numbers, three lines of three separated by commas (H&E pixels to morphology pixels), "
    f"or keypoints with the header {','.join(_SPELT.values())}"
)
_FIX = "export the alignment again from Xenium Explorer, or take the *_he_imagealignment.csv of the dataset"
# A matrix whose inverse loses more than this is of no use: well above any real one in pixels.
_MAX_CONDITION = 1e12
# The last row of a homography in pixels is a millionth or so; at this it would fold the image.
_MAX_TILT = 1e-2
# Matrices and keypoints have hundreds of bytes; more is another file, such as a whole bundle.
_MAX_BYTES = 1 << 24
_MAX_NUMBER = 1e12


@dataclass(frozen=True, eq=False)
class Alignment:
    """An alignment as given.

    Attributes
    ----------
    matrix
        (3, 3) float64, H&E px to the target, exactly as written or as fitted. It may be a homography;
        its last row is kept.
    kind
        ``matrix`` or ``keypoints``.
    unit
        ``morphology_px``, or ``unsettled`` for a ``*_he_alignment.csv``, whose target is pixels by one
        source and micrometres by another.
    fit
        How well the keypoints agree; None for a matrix.
    """

    matrix: Matrix
    kind: Literal["matrix", "keypoints"]
    unit: Literal["morphology_px", "unsettled"]
    fit: KeypointFit | None = None


def read_alignment(
    file: str | Path, *, pixel_size: float = 0.2125, robust: bool = True, name: str | None = None
) -> Alignment:
    """Read an alignment file: a matrix, keypoints (``fixed`` the morphology image, ``alignment`` the H&E), or a zip.

    Text in UTF-8, UTF-16 or Windows-1252, any line ends; commas, semicolons, tabs or blanks between the numbers; a
    header and an index column or none; lines that begin with ``#`` are comments; a list of rows as JSON and NumPy write
    it. Two lines of three numbers get
    the last row 0, 0, 1, which the log says. Of a zip of CSVs the matrix is taken, else the keypoints.

    Parameters
    ----------
    file
        The file.
    pixel_size
        Micrometres per morphology px, for the residuals of keypoints.
    robust
        Leave out grossly wrong keypoints, see :func:`nuclass.xenium.keypoints.fit_keypoints`.
    name
        The file's original name or address, which decides ``unit``; by default its present name.

    Raises
    ------
    UserError
        If the file is missing, holds no alignment, a value is not a number, or the matrix cannot be inverted.
    """
    path = Path(file)
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(
            "The alignment file is missing", where=path, found="no such file", expected=_EXPECTED, fix=_FIX
        ) from error
    if len(content) > _MAX_BYTES:
        raise _too_large(path)
    original = re.split(r"[?#]", name or path.name)[0].lower()
    unsettled = original.endswith(_UNSETTLED)
    if content.startswith(b"PK"):
        return _from_zip(content, path, pixel_size, robust)
    return _from_text(content, str(path), pixel_size, robust, unsettled)


def _from_zip(content: bytes, path: Path, pixel_size: float, robust: bool) -> Alignment:
    """Return the matrix of an Explorer export, else its keypoints."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = [n for n in archive.namelist() if not n.endswith("/")]
            chosen = [n for n in names if n.lower().endswith((".csv", ".txt")) and not _hidden(n)]
            if sum(archive.getinfo(n).file_size for n in chosen) > _MAX_BYTES:
                raise _too_large(path)
            texts = {n: archive.read(n) for n in chosen}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise UserError("The alignment archive cannot be read", where=path, found=str(error), fix=_FIX) from error
    if "[Content_Types].xml" in names:
        raise UserError(
            "The alignment file is an Excel workbook", where=path, expected=_EXPECTED, fix="save the sheet as CSV"
        )
    found: dict[str, list[Alignment]] = {"matrix": [], "keypoints": []}
    reasons = []
    for member, text in texts.items():
        unsettled = member.lower().endswith(_UNSETTLED)
        try:
            alignment = _from_text(text, f"{path}, {member}", pixel_size, robust, unsettled)
        except UserError as error:
            reasons.append(f"{member}: {error.what[0].lower()}{error.what[1:]}")
        else:
            found[alignment.kind].append(alignment)
    if len(found["matrix"]) > 1 and any(
        not np.array_equal(a.matrix, found["matrix"][0].matrix) for a in found["matrix"]
    ):
        raise UserError(
            "The alignment archive holds several matrices",
            where=path,
            found=", ".join(names),
            expected="one matrix",
            fix="give the CSV of the H&E image alone",
        )
    for alignment in (*found["matrix"], *found["keypoints"]):
        return alignment
    raise UserError(
        "The alignment archive holds no alignment",
        where=path,
        found="; ".join(reasons) if reasons else ", ".join(names) or "no files",
        expected=_EXPECTED,
        fix=_FIX,
    )


def _too_large(path: Path) -> UserError:
    return UserError(
        "The alignment file is too large",
        where=path,
        found=f"more than {_MAX_BYTES >> 20} MB",
        expected=_EXPECTED,
        fix="give the file of the alignment alone",
    )


def _hidden(member: str) -> bool:
    """Whether a zip member is a leftover of the file system, such as macOS writes."""
    return "__MACOSX" in member or member.rpartition("/")[2].startswith(".")


def _from_text(content: bytes, where: str, pixel_size: float, robust: bool, unsettled: bool) -> Alignment:
    text = decode_text(content, where, "alignment file", _EXPECTED, _FIX)
    table = read_table(_unbracketed(text), where, _KEYPOINTS)
    if not table.lines:
        raise UserError("The alignment file is empty", where=where, expected=_EXPECTED, fix=_FIX)
    if {plain_name(cell) for cell in table.lines[0].cells} & set(_KEYPOINTS):
        points = _keypoints(table, where)
        matrix, fit = fit_keypoints(points[:, 2:], points[:, :2], pixel_size=pixel_size, robust=robust, where=where)
        return Alignment(_invertible(where, matrix), "keypoints", "morphology_px", fit)
    rows = _matrix_rows(table, where)
    if len(rows) not in (2, 3) or any(len(row.cells) != 3 for row in rows):
        widths = sorted({len(row.cells) for row in rows})
        shape = f"{len(rows)} line{'' if len(rows) == 1 else 's'} of {' or '.join(map(str, widths))} values"
        raise UserError("The alignment is not a 3x3 matrix", where=where, found=shape, expected=_EXPECTED, fix=_FIX)
    values = np.array([[_number(table, row, i, where) for i in range(3)] for row in rows])
    unit: Literal["morphology_px", "unsettled"] = "unsettled" if unsettled else "morphology_px"
    return Alignment(_invertible(where, _completed(values, where)), "matrix", unit)


def _unbracketed(text: str) -> str:
    """Return a list of rows, as JSON and Python write it, as lines; other text as it is."""
    if not re.match(r"\s*(array\()?\[\s*\[", text):
        return text
    rows = re.findall(r"\[([^\[\]]*)\]", text)
    return "\n".join(" ".join(row.split()) for row in rows)


def _matrix_rows(table: TextTable, where: str) -> tuple[Line, ...]:
    """Return the rows of a matrix without a header and an index column.

    The first line is a header if rows of numbers follow and it counts 0, 1, 2 as a data frame does, or is
    not numbers itself: before three rows any cell that is none, before two rows all of them, since a
    matrix with one broken number looks the same.
    """
    head, *rest = table.lines
    counts = head.cells[-3:] == ("0", "1", "2") and len(head.cells) <= 4
    if len(rest) == 2 and [table.value(cell) for cell in rest[1].cells] == [0, 0, 1]:
        # Three rows, the last one as every affine matrix has it: the first is a row too.
        return table.lines
    if len(rest) not in (2, 3) or (table.numeric(head) and not counts):
        return table.lines
    indexed = all(len(row.cells) == 4 for row in rest) and (len(head.cells) == 3 or not _is_value(table, head.cells[0]))
    if indexed:
        rest = [Line(row.number, row.cells[1:]) for row in rest]
    named = not any(_is_value(table, cell) for cell in head.cells)
    if not all(len(row.cells) == 3 and table.numeric(row) for row in rest) or not (counts or named or len(rest) == 3):
        return table.lines
    _log.info("%s: line %d is a header%s", where, head.number, " and the first column an index" if indexed else "")
    return tuple(rest)


def _is_value(table: TextTable, cell: str) -> bool:
    return table.value(cell) is not None


def _keypoints(table: TextTable, where: str) -> Matrix:
    """Return the keypoints (N, 4): fixed x, y, alignment x, y."""
    head, *rest = table.lines
    names = [plain_name(cell) for cell in head.cells]
    missing = [_SPELT[name] for name in _KEYPOINTS if name not in names]
    if missing:
        raise UserError(
            "The keypoints file lacks columns",
            where=f"{where}, line {head.number}",
            found=", ".join(head.cells),
            expected=", ".join(missing),
            fix=_FIX,
        )
    columns = [names.index(name) for name in _KEYPOINTS]
    return np.array([[_number(table, row, i, where) for i in columns] for row in rest]).reshape(-1, 4)


def _number(table: TextTable, row: Line, column: int, where: str) -> float:
    if column >= len(row.cells):
        raise UserError(
            "A line of the alignment file is too short",
            where=f"{where}, line {row.number}",
            found=f"{len(row.cells)} values",
            expected=f"at least {column + 1} values",
            fix=_FIX,
        )
    value = table.value(row.cells[column])
    if value is None or not np.isfinite(value) or abs(value) > _MAX_NUMBER:
        raise UserError(
            "A value of the alignment is not a number",
            where=f"{where}, line {row.number}, value {column + 1}",
            found=repr(row.cells[column]),
            expected=_EXPECTED,
            fix=_FIX,
        )
    return value


def _completed(values: Matrix, where: str) -> Matrix:
    """Return a matrix (3, 3); two rows get the last row of an affine map."""
    if len(values) == 3:
        return values
    _log.info("%s: six numbers, taken as the first two rows of an affine matrix; the last row is 0, 0, 1", where)
    return np.vstack([values, [0.0, 0.0, 1.0]])


def _invertible(where: str, matrix: Matrix) -> Matrix:
    if not matrix[2].any():
        raise UserError(
            "The last row of the alignment matrix is all zero",
            where=where,
            found="0, 0, 0",
            expected="0, 0, 1, or the last row of a homography",
            fix=_FIX,
        )
    if not matrix[:2, 2].any() and np.abs(matrix[2, :2]).max() > _MAX_TILT:
        raise UserError(
            "The alignment matrix is transposed",
            where=where,
            found=f"the offsets {matrix[2, 0]:g}, {matrix[2, 1]:g} in its last row, 0, 0 in its last column",
            expected="the offsets in the last column",
            fix="write its columns as rows",
        )
    # Offsets are thousands of pixels; without them the condition number tells of the map alone.
    scaled = matrix / np.maximum(np.abs(matrix).max(axis=0, keepdims=True), 1e-300)
    singular = abs(matrix[2, 2]) < 1e-12 or np.linalg.cond(scaled) > _MAX_CONDITION
    if singular or abs(np.linalg.det(matrix[:2, :2] / matrix[2, 2])) < 1e-12:
        raise UserError(
            "The alignment matrix cannot be inverted",
            where=where,
            found=f"determinant {np.linalg.det(matrix):.3g}",
            expected="a map that keeps the plane: scale, rotation, mirroring, offset",
            fix=_FIX,
        )
    return matrix
