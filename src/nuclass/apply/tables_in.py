"""Read the positions of cells from a table: CSV, TSV or Parquet."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nuclass.apply.positions_found import CELLS, FARTHEST, NEVER_CELLS, REGIONS, Found, counted, opened, unique_ids
from nuclass.apply.positions_frames import FRAMES_TOLD, HE, UM, Given
from nuclass.core.errors import UserError, closest

if TYPE_CHECKING:
    import pyarrow as pa

    # Gives the pieces of a table with the columns of these numbers, by their numbers.
    Pieces = Callable[[list[int]], Iterator[pa.Table]]

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
_TYPE = "object_type"
_DELIMITERS = (",", "\t", ";", "|")
_LONGEST_HEAD = 1 << 20
_BLOCK = 1 << 22
_ROWS = 1 << 16
_MISSING = ("", "na", "n/a", "nan", "null", "none")
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
    """Which columns are read, by number, and the frame their names say."""

    x: int
    y: int
    id: int | None
    id_stated: bool
    object_type: int | None
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
    kind = folded.index(_TYPE) if folded.count(_TYPE) == 1 else None
    return Chosen(x, y, found, stated, kind, frame.name if frame else said)


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


def read_table(
    file: Path, *, parquet: bool, columns: Mapping[str, str], frame: Given | None, needs_frame: bool = True
) -> Found:
    """Read positions from a table.

    Parameters
    ----------
    file
        Parquet, or text with a header; comma, tab, semicolon or ``|`` between the columns; text may be packed (.gz).
    parquet
        Which of the two.
    columns
        See :func:`parse_columns`.
    frame
        What the user stated.
    needs_frame
        Whether it is an error that neither the user nor the names state one.

    Raises
    ------
    UserError
        The file is damaged or empty, the columns are unclear, a value is no number, or a stated id is not unique.
    """
    reader = _parquet if parquet else _text
    with _told(file, "Parquet" if parquet else "a CSV table with a header"), reader(file) as (names, pieces, comma):
        chosen = choose(file, names, columns, frame, needs_frame)
        optional = [number for number in (chosen.id, chosen.object_type) if number is not None]
        wanted = sorted({chosen.x, chosen.y, *optional})
        xy, ids, kinds = _collect(file, names, chosen, pieces(wanted), comma)
    notes: list[str] = []
    keep = np.asarray(~np.isnan(xy).any(axis=1))
    if not keep.all():
        notes.append(f"{counted(int((~keep).sum()), 'row')} without a position left out")
    if kinds is not None:
        keep &= _cells_only(kinds, notes)
    if not keep.any():
        raise UserError(
            "The table holds no positions",
            where=file,
            found="; ".join(notes) or "no rows",
            expected="one row a cell",
        )
    kept_ids = None if ids is None else [name for name, kept in zip(ids, keep.tolist(), strict=True) if kept]
    names_of_cells = _ids(file, names, chosen, kept_ids, notes)
    what = f"{counted(int(keep.sum()), 'position')} of columns '{names[chosen.x]}' and '{names[chosen.y]}'"
    return Found(xy[keep], names_of_cells, what, chosen.frame, None, notes)


def _ids(
    file: Path, names: Sequence[str], chosen: Chosen, values: list[str] | None, notes: list[str]
) -> NDArray[np.object_] | None:
    if values is None or chosen.id is None:
        return None
    unique = unique_ids(values)
    if unique is None and chosen.id_stated:
        times = Counter(values)
        twice = next(name for name in values if name == "" or times[name] > 1)
        raise UserError(
            "The ids of the cells are not unique",
            where=f"{file}, column '{names[chosen.id]}'",
            found=f"'{twice}' more than once" if twice else "a row without an id",
            expected="an id of its own for each cell",
            fix="name another column, or leave id out of --columns: the cells are then numbered",
        )
    if unique is None:
        notes.append(f"column '{names[chosen.id]}' not used as id, as its values are not unique")
    return unique


def _cells_only(kinds: Sequence[str], notes: list[str]) -> NDArray[np.bool_]:
    """Return which rows are cells by QuPath's column of types: no tiles, and no annotations beside cells."""
    small = np.array([kind.strip().lower() for kind in kinds], dtype=object)
    never = np.isin(small, list(NEVER_CELLS))
    regions = np.isin(small, list(REGIONS)) & np.isin(small, list(CELLS)).any()
    for mask, word in ((never, "tile, core or image"), (regions, "annotation")):
        if mask.any():
            notes.append(f"{counted(int(mask.sum()), 'row')} of type {word} left out")
    return ~(never | regions)


def _collect(
    file: Path, names: Sequence[str], chosen: Chosen, pieces: Iterator[pa.Table], comma: bool
) -> tuple[NDArray[np.float64], list[str] | None, list[str] | None]:
    """Put together x and y (N, 2), NaN where there is none, ids and types."""
    parts: list[NDArray[np.float64]] = []
    ids: list[str] | None = None if chosen.id is None else []
    kinds: list[str] | None = None if chosen.object_type is None else []
    rows = 0
    for piece in pieces:
        xy = np.empty((piece.num_rows, 2))
        for axis, column in enumerate((chosen.x, chosen.y)):
            values = piece.column(str(column))
            where = f"{file}, column '{names[column]}'"
            xy[:, axis] = _numbers(values, where, rows, comma)
        parts.append(xy)
        for target, number in ((ids, chosen.id), (kinds, chosen.object_type)):
            if target is not None:
                target.extend(_as_text(value) for value in piece.column(str(number)).to_pylist())
        rows += piece.num_rows
    return np.concatenate(parts) if parts else np.empty((0, 2)), ids, kinds


def _numbers(values: pa.ChunkedArray, where: str, before: int, comma: bool) -> NDArray[np.float64]:
    """Return a column as float64, NaN where it is empty; text and numbers off any slide are an error with their row."""
    import pandas as pd
    import pyarrow as pa

    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_floating(values.type) or pa.types.is_integer(values.type) or pa.types.is_decimal(values.type):
        out = np.array(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)
        shown: Any = out
        missing = np.isnan(out)
    else:
        text = pd.Series(values.cast(pa.string()).to_pylist(), dtype=object).fillna("").str.strip()
        shown = text.to_numpy()
        missing = text.str.lower().isin(_MISSING).to_numpy(bool)
        plain = text.str.replace(",", ".", regex=False) if comma else text
        out = pd.to_numeric(plain, errors="coerce").to_numpy(np.float64, na_value=np.nan).copy()
        out[missing] = np.nan
    bad = ~missing & ~(np.abs(out) <= FARTHEST)
    if bad.any():
        row = int(np.argmax(bad))
        raise UserError(
            "A position is not a number on any slide",
            where=f"{where}, row {before + row + 1:,}",
            found=repr(str(shown[row])[:60]),
            expected=f"a number of at most {FARTHEST:g}, or nothing",
        )
    return out


@contextmanager
def _told(file: Path, expected: str) -> Iterator[None]:
    """Turn the errors of a table that cannot be read into a :class:`UserError`."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, csv.Error, UnicodeError, ValueError, OverflowError) as error:
        text = " ".join(str(error).split())
        what = "The table holds no rows" if "Empty CSV" in text else "The table of positions cannot be read"
        raise UserError(
            what,
            where=file,
            found=text[:200] or type(error).__name__,
            expected=expected,
            fix="write it again; it may be cut off, or a row may have more or fewer values than the header",
        ) from error


@contextmanager
def _parquet(file: Path) -> Iterator[tuple[list[str], Pieces, bool]]:
    """Open a Parquet; the pieces have the columns' numbers as names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with opened(file), pq.ParquetFile(file, pre_buffer=False) as table:
        names = list(table.schema_arrow.names)
        if len(set(names)) != len(names):
            raise ValueError("two columns of the same name")

        def pieces(numbers: list[int]) -> Iterator[pa.Table]:
            wanted = [names[number] for number in numbers]
            for name in wanted:
                if pa.types.is_nested(table.schema_arrow.field(name).type):
                    raise ValueError(f"column '{name}' holds lists or objects")
            for batch in table.iter_batches(_ROWS, columns=wanted, use_threads=False):
                piece = pa.Table.from_batches([batch]).select(wanted)
                yield piece.rename_columns([str(number) for number in numbers])

        yield names, pieces, False


@contextmanager
def _text(file: Path) -> Iterator[tuple[list[str], Pieces, bool]]:
    """Open a table of text; the pieces have the columns' numbers as names, all values are text."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    encoding = _encoding(file)
    with opened(file) as (_, content):
        reader = io.TextIOWrapper(content, "utf-8-sig" if encoding == "utf8" else encoding)
        head = reader.readline(_LONGEST_HEAD)
        reader.detach()
    if len(head) >= _LONGEST_HEAD:
        raise ValueError(f"the first line has more than {_LONGEST_HEAD:,} letters")
    if not head.strip():
        raise ValueError("the first line is empty" if head else "an empty file")
    delimiter = max(_DELIMITERS, key=_unquoted(head).count)
    names = next(csv.reader([head.rstrip("\r\n")], delimiter=delimiter))
    if all(_is_number(name) for name in names):
        raise ValueError("the first line holds numbers and no names of columns")
    with opened(file) as (_, content):

        def pieces(numbers: list[int]) -> Iterator[pa.Table]:
            wanted = [str(number) for number in numbers]
            options = arrow_csv.ConvertOptions(column_types=dict.fromkeys(wanted, pa.string()), include_columns=wanted)
            every = [str(i) for i in range(len(names))]
            table = arrow_csv.open_csv(
                pa.PythonFile(content, "r"),
                arrow_csv.ReadOptions(
                    use_threads=False, block_size=_BLOCK, skip_rows=1, column_names=every, encoding=encoding
                ),
                arrow_csv.ParseOptions(delimiter=delimiter),
                options,
            )
            return (pa.Table.from_batches([batch]) for batch in table)

        yield names, pieces, delimiter == ";"


def _encoding(file: Path) -> str:
    with opened(file) as (_, content):
        start = content.read(_BLOCK)
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


def _unquoted(line: str) -> str:
    return re.sub(r'"[^"]*"', "", line)


def _as_text(value: Any) -> str:
    """Return an id or a type as text, whether written as text, bytes, whole or other number; "" where it is missing."""
    if value is None or value != value:
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
