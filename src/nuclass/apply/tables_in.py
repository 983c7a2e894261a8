"""Read the positions of cells from a table: CSV, TSV or Parquet."""

from __future__ import annotations

import csv
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nuclass.apply.positions_found import CELLS, FARTHEST, NEVER_CELLS, REGIONS, Found, counted, unique_ids
from nuclass.core.bundle_source import he_stem
from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.own_cells import Given, opened
from nuclass.core.own_tables import Chosen, choose, header_of, unreadable

if TYPE_CHECKING:
    import pyarrow as pa

    # Gives the pieces of a table with the columns of these numbers, by their numbers.
    Pieces = Callable[[list[int]], Iterator[pa.Table]]

_log = get_logger(__name__)
_BLOCK = 1 << 22
_ROWS = 1 << 16
_MISSING = ("", "na", "n/a", "nan", "null", "none")


def read_table(
    file: Path,
    *,
    parquet: bool,
    columns: Mapping[str, str],
    frame: Given | None,
    image: str | Path | None = None,
    needs_frame: bool = True,
) -> Found:
    """Read positions from a table.

    Parameters
    ----------
    file
        Parquet, or text with a header; comma, tab, semicolon or ``|`` between the columns; text may be packed (.gz).
    parquet
        Which of the two.
    columns
        See :func:`nuclass.core.own_tables.parse_columns`.
    frame
        What the user stated.
    image
        The H&E: of a table whose column ``Image`` names several, the rows of this one are taken.
    needs_frame
        Whether it is an error that neither the user nor the names state one.

    Raises
    ------
    UserError
        The file is damaged or empty, the columns are unclear, a value is no number, a stated id is not unique, or the
        table is of several images, none or more than one of which bears the H&E's name.
    """
    reader = _parquet if parquet else _text
    with _told(file, "Parquet" if parquet else "a CSV table with a header"), reader(file) as (names, pieces, comma):
        chosen = choose(file, names, columns, frame, needs_frame)
        optional = [number for number in (chosen.id, chosen.object_type, chosen.image) if number is not None]
        wanted = sorted({chosen.x, chosen.y, *optional})
        rows = _collect(file, names, chosen, pieces(wanted), comma)
    notes: list[str] = []
    mine = np.ones(len(rows.xy), bool)
    if len(rows.images) > 1:
        mine = _of_image(f"{file}, column '{names[chosen.image or 0]}'", rows, image)
        notes.append(f"{counted(int((~mine).sum()), 'row')} of other images left out")
    elif rows.images and image is not None and not _named_like(next(iter(rows.images)), image):
        note = f"column '{names[chosen.image or 0]}' names '{next(iter(rows.images))[:60]}', taken to be this slide"
        _log.warning("%s: %s; the slide's file is %s", file, note, Path(image).name)
        notes.append(note)
    without = mine & np.isnan(rows.xy).any(axis=1)
    if without.any():
        notes.append(f"{counted(int(without.sum()), 'row')} without a position left out")
    keep = mine & ~without
    if rows.kinds is not None:
        keep &= _cells_only(rows.kinds, mine, notes)
    if not keep.any():
        raise UserError(
            "The table holds no positions",
            where=file,
            found="; ".join(notes) or "no rows",
            expected="one row a cell",
        )
    kept_ids = None if rows.ids is None else [name for name, kept in zip(rows.ids, keep.tolist(), strict=True) if kept]
    names_of_cells = _ids(file, names, chosen, kept_ids, notes)
    if names_of_cells is None:
        names_of_cells = np.array([str(row + 1) for row in np.flatnonzero(keep).tolist()], dtype=object)
        notes.append("cells numbered by their rows")
    what = f"{counted(int(keep.sum()), 'position')} of columns '{names[chosen.x]}' and '{names[chosen.y]}'"
    return Found(rows.xy[keep], names_of_cells, what, chosen.frame, None, notes)


@dataclass
class _Rows:
    """What is read of a table.

    Attributes
    ----------
    xy
        (N, 2), NaN where there is none.
    ids, kinds
        (N,) ids, and types by QuPath's column; None without a column.
    images
        Names of images in the order of the table, with their numbers from 1.
    image
        (N,) the number of a row's image, 0 where it names none; empty without a column.
    """

    xy: NDArray[np.float64]
    ids: list[str] | None
    kinds: list[str] | None
    images: dict[str, int] = field(default_factory=dict)
    image: array[int] = field(default_factory=lambda: array("q"))


def _named_like(known: str, image: str | Path) -> bool:
    """Whether the name of an image may be that of the slide's file: programs add series, or drop endings."""
    stem, mine = he_stem(known).casefold(), he_stem(Path(image).name).casefold()
    return stem.startswith(mine) or mine.startswith(stem)


def _of_image(where: str, rows: _Rows, image: str | Path | None) -> NDArray[np.bool_]:
    """Return which rows (N,) are of the slide, by the name of its file, else by that without its ending."""
    name = "" if image is None else Path(image).name
    ways = (
        [known for known in rows.images if known == name],
        [known for known in rows.images if known == he_stem(name)],
        [known for known in rows.images if he_stem(known) == he_stem(name)],
    )
    mine = next((found for found in ways if found), [])
    if len(mine) != 1:
        shown = sorted(rows.images)
        raise UserError(
            "The table is of several images, and it is not clear which of them is the slide",
            where=where,
            found=", ".join(known[:60] for known in shown[:6])
            + (f" and {len(shown) - 6} more" if len(shown) > 6 else ""),
            expected=f"one of the name of the slide's file, {name}" if name else "a table of one image",
            fix="export the measurements of this image alone",
        )
    return np.asarray(np.frombuffer(rows.image, np.int64) == rows.images[mine[0]])


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


def _cells_only(kinds: Sequence[str], mine: NDArray[np.bool_], notes: list[str]) -> NDArray[np.bool_]:
    """Return which rows are cells by QuPath's column of types: no tiles, nor annotations if cells are ``mine`` (N,)."""
    small = np.array([kind.strip().lower() for kind in kinds], dtype=object)
    never = mine & np.isin(small, list(NEVER_CELLS))
    regions = mine & np.isin(small, list(REGIONS)) & (mine & np.isin(small, list(CELLS))).any()
    for mask, word in ((never, "tile, core or image"), (regions, "annotation")):
        if mask.any():
            notes.append(f"{counted(int(mask.sum()), 'row')} of type {word} left out")
    return ~(never | regions)


def _collect(file: Path, names: Sequence[str], chosen: Chosen, pieces: Iterator[pa.Table], comma: bool) -> _Rows:
    """Put the pieces of a table together."""
    parts: list[NDArray[np.float64]] = []
    ids: list[str] | None = None if chosen.id is None else []
    kinds: list[str] | None = None if chosen.object_type is None else []
    images: dict[str, int] = {}
    image = array("q")
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
        if chosen.image is not None:
            named = (_as_text(value).strip() for value in piece.column(str(chosen.image)).to_pylist())
            image.extend(images.setdefault(name, len(images) + 1) if name else 0 for name in named)
        rows += piece.num_rows
    return _Rows(np.concatenate(parts) if parts else np.empty((0, 2)), ids, kinds, images, image)


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
        raise unreadable(file, error, expected) from error


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

    header = header_of(file, _BLOCK)
    with opened(file) as (_, content):

        def pieces(numbers: list[int]) -> Iterator[pa.Table]:
            wanted = [str(number) for number in numbers]
            options = arrow_csv.ConvertOptions(column_types=dict.fromkeys(wanted, pa.string()), include_columns=wanted)
            every = [str(i) for i in range(len(header.names))]
            table = arrow_csv.open_csv(
                pa.PythonFile(content, "r"),
                arrow_csv.ReadOptions(
                    use_threads=False, block_size=_BLOCK, skip_rows=1, column_names=every, encoding=header.encoding
                ),
                arrow_csv.ParseOptions(delimiter=header.delimiter),
                options,
            )
            return (pa.Table.from_batches([batch]) for batch in table)

        yield header.names, pieces, header.delimiter == ";"


def _as_text(value: Any) -> str:
    """Return an id or a type as text, whether written as text, bytes, whole or other number; "" where it is missing."""
    if value is None or value != value:
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
