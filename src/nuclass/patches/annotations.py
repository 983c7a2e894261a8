"""Read and write ``annotations.json``: one object, cell id -> record, streamed, since it holds gigabytes."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path
from nuclass.core.names import CELL_ID

if TYPE_CHECKING:
    import pandas as pd

FIELDS = (
    "micron_per_pixel",
    "magnification",
    "image_modality",
    "slide_id",
    "tissue_type",
    "patient_id",
    "has_padding_flags",
    "has_truncation_flags",
    "centroid_x",
    "centroid_y",
    "class_id",
    "micron_x_centroid",
    "micron_y_centroid",
)
LABEL = "label"
LABEL_FIELDS = ("class_id", "label", "cell_type", "type", "annotation")
ORIGINAL_NAMES = {
    "B_Cell": "B Cell",
    "Endocrine": "Endocrine 1",
    "Endothelial_TumorAssociated": "Tumor_Associated_Endothelial",
    "Epithelial_Airway": "Airway_epithelium",
    "Epithelial_Alveolar": "Alveolar",
    "Epithelial_Malignant": "Malignant",
    "T_Cell": "T Cell",
}
"""Classes whose own name the original's mapping does not know (it drops such cells) -> one that it maps to them."""
REQUIRED = ("centroid_x", "centroid_y")
_TEXT = ("tissue_type", "slide_id", "patient_id")
_NUMBERS = ("centroid_x", "centroid_y", "micron_x_centroid", "micron_y_centroid", "micron_per_pixel")

_CHUNK = 1 << 22
_MAX_RECORD = 1 << 26
_ROWS = 20_000
_SPACE = " \t\r\n"
_SHOWN_CHARACTERS = 60


def read_annotations(path: str | Path, required: Sequence[str] = REQUIRED) -> pd.DataFrame:
    """Read the annotations of many cells, one record in memory at a time.

    Parameters
    ----------
    path
        The file, whatever its size.
    required
        Columns that every record must have a value for.

    Returns
    -------
    One row a cell in the order of the file: cell_id (text as written, leading zeros kept), label (from class_id, else
    label, cell_type, type, annotation; ``""`` where a record has none), and where the file has them tissue_type,
    slide_id, patient_id (text, ``""`` where a record has none), centroid_x, centroid_y (px), micron_x_centroid,
    micron_y_centroid (um) and micron_per_pixel (NaN where a record has none).

    Raises
    ------
    UserError
        The file is missing, cut off, no JSON, or not one object of records; an id repeats; a required field is missing
        or no number; no record has a label.
    """
    import pandas as pd

    ids: list[str] = []
    texts: dict[str, list[str]] = {name: [] for name in (LABEL, *_TEXT)}
    numbers: dict[str, array[float]] = {name: array("d") for name in _NUMBERS}
    missing: dict[str, tuple[int, str]] = {}
    seen: set[str] = set()
    interned: dict[str, str] = {}
    for cell, record in _records(Path(path)):
        ids.append(cell)
        values = {**record, LABEL: _label(record)}
        for name in required:
            if values.get(name) is None or values[name] == "":
                count, first = missing.get(name, (0, cell))
                missing[name] = (count + 1, first)
        for name, column in texts.items():
            value = values.get(name)
            if value is not None:
                seen.add(name)
            text = "" if value is None or value != value else str(value)
            column.append(interned.setdefault(text, text))
        for name, numeric in numbers.items():
            value = values.get(name)
            if value is not None:
                seen.add(name)
            numeric.append(_number(value, name, cell, path))
    if ids and not any(texts[LABEL]):
        missing[LABEL] = (len(ids), ids[0])
    _refuse_missing(path, ids, missing)
    _refuse_doubled(path, ids)
    columns: dict[str, Any] = {CELL_ID: ids}
    columns |= {name: column for name, column in texts.items() if name in seen or name == LABEL}
    columns |= {name: np.frombuffer(column, np.float64) for name, column in numbers.items() if name in seen}
    return pd.DataFrame(columns)


def peek_annotations(path: str | Path) -> dict[str, Any]:
    """Return the first record of a file of any size, with ``cell_id`` and ``label`` added.

    Raises
    ------
    UserError
        As :func:`read_annotations`, for the first record alone.
    """
    for cell, record in _records(Path(path), 1 << 16):
        return {**record, CELL_ID: cell, LABEL: _label(record)}
    raise _empty(path)


def write_annotations(path: str | Path, frame: pd.DataFrame) -> None:
    """Write the records of cells, indented by two, :data:`FIELDS` in their order; atomic.

    Parameters
    ----------
    path
        The file to write.
    frame
        One row a cell: cell_id and all of :data:`FIELDS`. NaN is written as null.

    Raises
    ------
    UserError
        A column is missing, an id repeats, or there is no row.
    """
    absent = [name for name in (CELL_ID, *FIELDS) if name not in frame]
    if absent:
        raise UserError("A table lacks fields of the annotations", where=path, found=f"no {', '.join(absent)}")
    if frame.empty:
        raise UserError("There are no cells to write", where=path, found="0 cells")
    _refuse_doubled(path, frame[CELL_ID].astype(str).tolist())
    template = ",\n".join(f'    "{name}": %s' for name in FIELDS)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write("{\n")
        for start in range(0, len(frame), _ROWS):
            part = frame.iloc[start : start + _ROWS]
            keys = [json.dumps(str(cell)) for cell in part[CELL_ID]]
            columns = [_encoded(part[name]) for name in FIELDS]
            records = (
                f"  {key}: {{\n{template % values}\n  }}"
                for key, values in zip(keys, zip(*columns, strict=True), strict=True)
            )
            stream.write(",\n" if start else "")
            stream.write(",\n".join(records))
        stream.write("\n}\n")


def _encoded(column: pd.Series[Any]) -> list[str]:
    """Return each value as JSON; the few different texts of a column are encoded once."""
    if column.dtype.kind == "f":
        return [repr(value) if value == value and abs(value) != np.inf else "null" for value in column.tolist()]
    values = column.tolist()
    known = {value: json.dumps(value) for value in set(values)}
    return [known[value] for value in values]


def _label(record: dict[str, Any]) -> str:
    """Return the first label that says something; pandas writes null where there was none, json NaN."""
    for name in LABEL_FIELDS:
        value = record.get(name)
        if value is not None and value != "" and value == value:
            return str(value)
    return ""


def _number(value: Any, name: str, cell: str, path: str | Path) -> float:
    if value is None:
        return np.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            found = "a whole number of more than 300 digits"
    else:
        found = repr(value)[:_SHOWN_CHARACTERS]
    raise UserError(
        "A field of the annotations is no number",
        where=f"{path}, cell {cell}, {name}",
        found=found,
        expected="a number, not in quotes",
        fix="write the annotations again",
    )


def _refuse_missing(path: str | Path, ids: list[str], missing: dict[str, tuple[int, str]]) -> None:
    if not ids:
        raise _empty(path)
    if not missing:
        return
    told = [f"{name}: missing in {count} of {len(ids)}, first {first}" for name, (count, first) in missing.items()]
    fix = "write the annotations again with these fields"
    if LABEL in missing:
        fix += f"; the label may be named {', '.join(LABEL_FIELDS)}"
    raise UserError("Fields of the annotations are missing", where=path, found="; ".join(told), fix=fix)


def _refuse_doubled(path: str | Path, ids: list[str]) -> None:
    if len(set(ids)) == len(ids):
        return
    seen: set[str] = set()
    doubled = [cell for cell in ids if cell in seen or seen.add(cell)]  # type: ignore[func-returns-value]
    raise UserError(
        "Cell ids repeat in the annotations",
        where=path,
        found=f"{len(doubled)} repeats, among them {', '.join(doubled[:3])}",
        expected="each cell once",
        fix="write the annotations again with each cell once",
    )


def _empty(path: str | Path) -> UserError:
    return UserError("The annotations hold no cell", where=path, found="an empty object", fix="write them again")


def _broken(path: Path, found: str, fix: str = "copy or write the file again; it may be cut off") -> UserError:
    return UserError(
        "The annotations are not valid JSON",
        where=path,
        found=found,
        expected="one object, cell id -> record",
        fix=fix,
    )


def _unlike(path: Path, found: str) -> UserError:
    return UserError(
        "The annotations are not one object of records",
        where=path,
        found=found,
        expected='{"<cell id>": {"class_id": ..., "centroid_x": ..., ...}, ...}',
        fix='with pandas: frame.to_json(path, orient="index")',
    )


def _records(path: Path, chunk: int = _CHUNK) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield id and record of each cell; only about ``chunk`` characters are in memory."""
    text = _Text(path, chunk)
    try:
        with text:
            opening = text.next_sign()
            if opening != "{":
                raise _unlike(path, f"it begins with {opening!r}" if opening else "an empty file")
            text.skip()
            if text.next_sign() == "}":
                text.skip()
                text.expect_end()
                return
            while True:
                if text.next_sign() == "}":
                    raise _broken(path, f"a comma before the closing brace at character {text.place}", "take it out")
                cell = text.value()
                if not isinstance(cell, str):
                    raise _broken(path, f"an id that is no text: {cell!r}")
                text.expect(":")
                record = text.value()
                if not isinstance(record, dict):
                    raise _unlike(path, f"under {cell!r} no record but {str(record)[:_SHOWN_CHARACTERS]}")
                if cell in FIELDS or cell in LABEL_FIELDS:
                    raise _unlike(path, f"the field {cell!r} in place of a cell id: fields first, cells below them")
                yield cell, record
                if text.expect(",", "}") == "}":
                    text.expect_end()
                    return
    except UnicodeDecodeError as error:
        raise UserError(
            "The annotations are not text", where=path, found=str(error), expected="JSON in UTF-8", fix="write it again"
        ) from error
    except IsADirectoryError as error:
        raise UserError("The annotations are a folder", where=path, expected="a file of JSON") from error
    except PermissionError as error:
        raise UserError("The annotations may not be read", where=path, fix="ask for the right to read them") from error
    except FileNotFoundError as error:
        raise UserError("The annotations are missing", where=path, fix="check the path, or make the file") from error


class _Text:
    """A file of JSON, read in pieces and decoded value by value."""

    def __init__(self, path: Path, chunk: int) -> None:
        self.path = path
        self.chunk = chunk
        self._decode = json.JSONDecoder().raw_decode
        self._buffer = ""
        self._at = self._before = 0
        self._ended = False

    def __enter__(self) -> _Text:
        self._stream = self.path.open(encoding="utf-8-sig")
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def _more(self) -> bool:
        """Read a further piece; return whether there was one."""
        if self._ended:
            return False
        piece = self._stream.read(self.chunk)
        self._ended = not piece
        self._before += self._at
        self._buffer = self._buffer[self._at :] + piece
        self._at = 0
        return bool(piece)

    def next_sign(self) -> str:
        """Return the next sign that is no white space, without passing it; empty at the end."""
        while True:
            while self._at < len(self._buffer):
                if self._buffer[self._at] not in _SPACE:
                    return self._buffer[self._at]
                self._at += 1
            if not self._more():
                return ""

    def skip(self) -> None:
        """Pass the sign that was looked at."""
        self._at += 1

    @property
    def place(self) -> int:
        """How many characters were passed."""
        return self._before + self._at

    def expect_end(self) -> None:
        """Refuse a file that goes on, such as two that were joined."""
        if self.next_sign():
            raise _broken(
                self.path, f"more text after the closing brace, at character {self.place}", "keep one object alone"
            )

    def expect(self, *signs: str) -> str:
        """Pass one of these signs and return it."""
        sign = self.next_sign()
        if sign not in signs or not sign:
            raise _broken(
                self.path,
                f"{sign!r} in place of {' or '.join(signs)} at character {self.place}"
                if sign
                else "its end in the middle",
            )
        self.skip()
        return sign

    def value(self) -> Any:
        """Decode and pass the next value, reading on where the piece ends within it."""
        self.next_sign()
        while True:
            try:
                value, end = self._decode(self._buffer, self._at)
            except RecursionError as error:
                raise _broken(self.path, f"values nested too deep at character {self.place}") from error
            except json.JSONDecodeError as error:
                # An error far from the end of the piece is one of the file.
                open_end = error.msg.startswith("Unterminated") or error.pos > len(self._buffer) - 16
                small = len(self._buffer) - self._at < _MAX_RECORD
                if open_end and small and self._more():
                    continue
                if open_end and small:
                    raise _broken(self.path, "its end in the middle") from error
                raise _broken(self.path, f"{error.msg} at character {self._before + error.pos}") from error
            except ValueError as error:
                # Python reads no whole number of more than 4300 digits.
                raise _broken(self.path, f"{error} (at character {self.place})") from error
            self._at = end
            return value
