"""The columns of a table of positions: which of them hold x, y, id, type and image, by the first line alone."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nuclass.core.errors import UserError, closest
from nuclass.core.own_cells import FRAMES_TOLD, HE, UM, Given, opened

# Names of x and y, folded by :func:`fold`, and the frame that they say by themselves.
PAIRS: tuple[tuple[str, str, str | None], ...] = (
    ("x_he", "y_he", HE),
    ("centroid_x_px", "centroid_y_px", HE),
    ("centroid_x_um", "centroid_y_um", UM),
    ("x", "y", None),
    ("x_centroid", "y_centroid", None),
    ("centroid_x", "centroid_y", None),
    ("x_um", "y_um", None),
    ("x_px", "y_px", None),
    ("x_morph", "y_morph", None),
    ("x_location", "y_location", None),
    ("x_coord", "y_coord", None),
    ("x_center", "y_center", None),
    ("center_x", "center_y", None),
    ("nucleus_x", "nucleus_y", None),
    ("cell_x", "cell_y", None),
    ("pos_x", "pos_y", None),
)
_IDS = ("cell_id", "object_id", "cellid", "nucleus_id", "id", "label")
_TYPE, _IMAGE = "object_type", "image"
_DELIMITERS = (",", "\t", ";", "|")
_LONGEST_HEAD = 1 << 20
_SAMPLE = 1 << 16
_COLUMNS_TOLD = "--columns x=NAME,y=NAME or x=NAME,y=NAME,id=NAME"


def fold(name: str) -> str:
    """Return a column's name in small letters and plain signs: ``Centroid X µm`` becomes ``centroid_x_um``."""
    lower = name.strip().lower().replace("âµ", "u").replace("µ", "u").replace("μ", "u")
    return re.sub(r"[^0-9a-z]+", "_", lower).strip("_")


def parse_columns(text: str | Mapping[str, str] | None) -> dict[str, str]:
    """Read ``x=Centroid X,y=Centroid Y,id=Object ID``; the id may be left out, None is nothing.

    Raises
    ------
    UserError
        The text has another form.
    """
    if text is None:
        return {}
    if isinstance(text, Mapping):
        out = dict(text)
    else:
        parts = re.split(r"(?:^|,)\s*(x|y|id)\s*=", text)
        names = parts[1::2]
        out = {key: value.strip() for key, value in zip(names, parts[2::2], strict=True)}
        if parts[0].strip() or len(out) != len(names):
            out = {}
    if not {"x", "y"} <= set(out) <= {"x", "y", "id"} or not all(out.values()) or out["x"] == out["y"]:
        raise UserError("The columns cannot be understood", where="--columns", found=repr(text), expected=_COLUMNS_TOLD)
    return out


@dataclass(frozen=True)
class Chosen:
    """Which columns are read, by number, and the frame their names say.

    ``image`` names the image of a row, in QuPath's tables of several.
    """

    x: int
    y: int
    id: int | None
    id_stated: bool
    object_type: int | None
    image: int | None
    frame: str | None


def choose(
    file: Path, names: Sequence[str], columns: Mapping[str, str], frame: Given | None, needs_frame: bool = True
) -> Chosen:
    """Choose the columns of x, y and id: those stated, otherwise those with a usual name.

    Raises
    ------
    UserError
        A stated column is missing, none or several have usual names, or the frame is neither stated nor said by the
        names.
    """
    folded = [fold(name) for name in names]
    if columns:
        x, y = (_stated(file, names, columns, key) for key in ("x", "y"))
        said = next((said for a, b, said in PAIRS if (a, b) == (folded[x], folded[y])), None)
    else:
        x, y, said = _usual(file, names, folded, frame)
    if frame is None and said is None and needs_frame:
        raise UserError(
            "The frame of the positions is not stated",
            where=f"{file}, columns '{names[x]}' and '{names[y]}'",
            found="numbers that may be px or micrometres",
            expected=FRAMES_TOLD,
            fix="add --frame he, --frame um, --frame px@0.25 or another of these",
        )
    stated = "id" in columns
    found = _stated(file, names, columns, "id") if stated else None
    if not stated:
        found = next((folded.index(name) for name in _IDS if folded.count(name) == 1), None)
    kind, image = (folded.index(name) if folded.count(name) == 1 else None for name in (_TYPE, _IMAGE))
    image = None if image in (x, y, found) else image
    return Chosen(x, y, found, stated, kind, image, frame.name if frame else said)


def _stated(file: Path, names: Sequence[str], columns: Mapping[str, str], key: str) -> int:
    wanted = columns[key]
    matches = [i for i, name in enumerate(names) if name == wanted]
    matches = matches or [i for i, name in enumerate(names) if fold(name) == fold(wanted)]
    if len(matches) != 1:
        raise UserError(
            "A stated column is not in the table" if not matches else "A stated column is there more than once",
            where=f"{file}, --columns {key}",
            found=_listed(names),
            expected=wanted,
            fix=f"name a column of the table.{closest(wanted, list(names))}",
        )
    return matches[0]


def _usual(file: Path, names: Sequence[str], folded: Sequence[str], frame: Given | None) -> tuple[int, int, str | None]:
    """Return the columns of x and y by their usual names: of the stated frame, of a known one, or the only ones."""
    present = [pair for pair in PAIRS if pair[0] in folded and pair[1] in folded]
    if frame is not None:
        fitting = [pair for pair in present if pair[2] == frame.name or pair[0] == f"x_{frame.name}"]
        candidates = fitting[:1] or [pair for pair in present if pair[2] is None]
    else:
        candidates = [pair for pair in present if pair[2] is not None][:1] or present
    unclear = [name for pair in candidates for name in pair[:2] if folded.count(name) > 1]
    if len(candidates) == 1 and not unclear:
        x, y, said = candidates[0]
        return folded.index(x), folded.index(y), said
    if candidates or unclear:
        what = "Several columns may hold the positions"
        used = {name for pair in candidates for name in pair[:2]}
        found = ", ".join(name for name, short in zip(names, folded, strict=True) if short in used)
    elif present:
        assert frame is not None
        what, found = f"The columns of the positions are in another frame than {frame}", f"{_listed(names)}"
    else:
        what, found = "No columns with positions were found", _listed(names)
    raise UserError(
        what,
        where=file,
        found=found,
        expected="x and y under a usual name, such as x_he and y_he, x and y, or QuPath's 'Centroid X µm'",
        fix=f"state them: {_COLUMNS_TOLD}",
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:40] for name in names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown or "no columns"


@dataclass(frozen=True)
class Header:
    """The first line of a table of text: its columns, what stands between them, and the encoding of the file."""

    names: list[str]
    delimiter: str
    encoding: str


def header_of(file: Path, sample: int = _SAMPLE) -> Header:
    """Read the first line of a table of text, which may be packed (.gz).

    Parameters
    ----------
    sample
        Bytes by which the encoding is told.

    Raises
    ------
    ValueError, csv.Error
        It is no line of names; see :func:`unreadable`.
    UserError
        The file cannot be opened.
    """
    encoding = _encoding(file, sample)
    with opened(file) as (_, content):
        reader = io.TextIOWrapper(content, "utf-8-sig" if encoding == "utf8" else encoding)
        head = reader.readline(_LONGEST_HEAD)
        reader.detach()
    if len(head) >= _LONGEST_HEAD:
        raise ValueError(f"the first line has more than {_LONGEST_HEAD:,} letters")
    if not head.strip():
        raise ValueError("the first line is empty" if head else "an empty file")
    delimiter = max(_DELIMITERS, key=re.sub(r'"[^"]*"', "", head).count)
    names = next(csv.reader([head.rstrip("\r\n")], delimiter=delimiter))
    if all(_is_number(name) for name in names):
        raise ValueError("the first line holds numbers and no names of columns")
    return Header(names, delimiter, encoding)


def unreadable(file: Path, error: BaseException, expected: str = "a CSV table with a header") -> UserError:
    """Return the fault that a table cannot be read, of what a reader raised."""
    text = " ".join(str(error).split())
    what = "The table holds no rows" if "Empty CSV" in text else "The table of positions cannot be read"
    return UserError(
        what,
        where=file,
        found=text[:200] or type(error).__name__,
        expected=expected,
        fix="write it again; it may be cut off, or a row may have more or fewer values than the header",
    )


def _encoding(file: Path, sample: int) -> str:
    with opened(file) as (_, content):
        start = content.read(sample)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    # A letter may be cut in two at the end.
    for end in range(4):
        try:
            start[: len(start) - end].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return "utf8"
    return "cp1252"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
