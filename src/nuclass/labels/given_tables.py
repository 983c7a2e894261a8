"""Find the two columns of given labels, ids and labels, in any table: CSV, TSV, Parquet, workbook."""

from __future__ import annotations

import csv
import gzip
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.bundle_source import GivenFile, is_web_page
from nuclass.core.errors import UserError, closest

# Names without case, blanks and signs. An index that was written along is used only where nothing else is an id.
ID_NAMES = ("cellid", "barcode", "barcodes", "cellbarcode", "cell")
INDEX_NAMES = ("", "index", "id", "unnamed0", "indexlevel0")
LABEL_NAMES = (
    *("group", "cluster", "label", "labels", "celltype", "celltypes", "annotation", "annotations"),
    *("class", "classid", "cellgroup", "cellclass", "rawlabel"),
)
_TEXT = (".csv", ".tsv", ".txt")
_ENDINGS = ("*.csv", "*.tsv", "*.txt (each also .gz)", "*.parquet", "*.xlsx")


@dataclass(frozen=True)
class GivenTable:
    """A table whose columns are found.

    Attributes
    ----------
    shown
        File and sheet, for messages.
    notation
        How another choice of columns would be written.
    load
        Reads the two columns, as text.
    """

    shown: str
    notation: str
    load: Callable[[], pd.DataFrame]


def open_table(given: GivenFile) -> GivenTable:
    """Find the columns of a file of labels; its rows are not read before ``load``.

    Raises
    ------
    UserError
        The file is missing or cannot be read, its sheet or its columns cannot be told.
    """
    file = Path(given.path)
    if not file.is_file():
        raise UserError(
            "a file of given labels is missing",
            where=file,
            found="a folder" if file.is_dir() else "nothing at this path",
            fix="correct the path, in the slide sheet the column 'given'",
        )
    name = file.name.lower().removesuffix(".gz")
    with _readable(file):
        if given.is_workbook:
            return _workbook(file, given)
        if name.endswith(_TEXT):
            return _text(file, given)
        if name.endswith(".parquet"):
            return _parquet(file, given)
    raise UserError(
        "given labels of this kind cannot be read", where=file, found=file.suffix, expected=", ".join(_ENDINGS)
    )


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turn what readers raise on a broken file into a :class:`UserError`."""
    import pyarrow as pa

    broken = (
        *(OSError, EOFError, ValueError, KeyError, zlib.error, zipfile.BadZipFile),
        *(csv.Error, pd.errors.ParserError, pa.ArrowException),
    )
    try:
        yield
    except broken as error:
        raise UserError(
            "a file of given labels cannot be read",
            where=file,
            found=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
            expected="a whole table, as text in UTF-8",
            fix="write or download the file again",
        ) from error


def _text(file: Path, given: GivenFile) -> GivenTable:
    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream:
        head = stream.read(1 << 16)
    if is_web_page(head):
        raise UserError("a file of given labels is a web page", where=file, fix="download the file itself")
    # A cut through a character or a line is no fault of the file.
    lines = [line for line in head.decode("utf-8-sig", "ignore").splitlines() if line.strip()][:2]
    if not lines:
        raise UserError("a file of given labels is empty", where=file, expected="a line of column names, then rows")
    mark = max("\t,;", key=lambda sign: len(_cells(lines[0], sign)))
    columns = _cells(lines[0], mark)
    if len(lines) > 1 and len(_cells(lines[1], mark)) == len(columns) + 1:
        # R leaves the name of the row names out.
        columns.insert(0, "")
    chosen = _choose(columns, given, str(file))

    def load() -> pd.DataFrame:
        with _readable(file):
            return _rows(file, mark, len(columns), chosen)

    return GivenTable(str(file), f"{file}::ID_COLUMN,LABEL_COLUMN", load)


def _rows(file: Path, mark: str, width: int, chosen: tuple[int, int]) -> pd.DataFrame:
    """Read two columns; a row with too many values is an error, for pandas would cut it without a word."""
    first, second = chosen
    found: list[tuple[str, str]] = []
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=mark, strict=True)
        next(row for row in reader if any(cell.strip() for cell in row))
        for row in reader:
            if len(row) > width:
                raise UserError(
                    "a row of given labels has too many values",
                    where=f"{file}, line {reader.line_num}",
                    found=f"{len(row)} values: {mark.join(row)[:80]}",
                    expected=f"{width} values, as there are columns",
                    fix="put names that hold the separator in quotes",
                )
            if row:
                row += [""] * (width - len(row))
                found.append((row[first], row[second]))
    return pd.DataFrame(found, columns=[0, 1], dtype=object)


def _cells(line: str, mark: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=mark))]


def _parquet(file: Path, given: GivenFile) -> GivenTable:
    import pyarrow.parquet as pq

    from nuclass.xenium.tables import as_arrow_text

    columns = list(pq.read_schema(file).names)
    chosen = [columns[k] for k in _choose(columns, given, str(file))]

    def load() -> pd.DataFrame:
        with _readable(file):
            table = pq.read_table(file, columns=chosen)
            return pd.DataFrame({k: as_arrow_text(table[name]).to_pandas() for k, name in enumerate(chosen)}).fillna("")

    return GivenTable(str(file), f"{file}::ID_COLUMN,LABEL_COLUMN", load)


def _workbook(file: Path, given: GivenFile) -> GivenTable:
    with pd.ExcelFile(file, engine="openpyxl") as book:
        sheet = _sheet(book, given, file)
        columns = _header(book, sheet)
    chosen = _choose(columns, given, f"{file}::{sheet}")

    def load() -> pd.DataFrame:
        with _readable(file):
            frame = pd.read_excel(file, sheet, header=None, skiprows=1, usecols=list(chosen), dtype=object)
        frame = frame[list(chosen)]
        return frame.apply(lambda column: column.map(_as_text)).astype(str)

    return GivenTable(f"{file}::{sheet}", f"{file}::{sheet}::ID_COLUMN,LABEL_COLUMN", load)


def _header(book: pd.ExcelFile, sheet: str) -> list[str]:
    row = book.parse(sheet, header=None, nrows=1, dtype=object)
    return [] if row.empty else [_as_text(value) for value in row.iloc[0]]


def _as_text(value: Any) -> str:
    """Return a cell of a sheet as text: whole numbers without a point, nothing for an empty one."""
    if pd.isna(value):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _sheet(book: pd.ExcelFile, given: GivenFile, file: Path) -> str:
    """Return the sheet of a workbook: the one that is named, or the only one with a column of ids."""
    sheets = [str(name) for name in book.sheet_names]
    if given.sheet:
        if given.sheet in sheets:
            return given.sheet
        raise UserError(
            f"a workbook has no sheet '{given.sheet}'.{closest(given.sheet, sheets)}",
            where=file,
            expected="one of " + "; ".join(sheets),
        )
    named = (*ID_NAMES, *INDEX_NAMES[1:])
    fitting = [name for name in sheets if any(_plain(column) in named for column in _header(book, name))]
    candidates = fitting or sheets
    if len(candidates) == 1:
        return candidates[0]
    raise UserError(
        "a workbook has more than one sheet that may hold the labels",
        where=file,
        found="; ".join(candidates),
        expected="the name of one",
        fix=f"name it: {given.path}::{candidates[0]}",
    )


def _plain(name: str) -> str:
    return "".join(mark for mark in name.casefold() if mark.isalnum())


def _choose(columns: Sequence[str], given: GivenFile, where: str) -> tuple[int, int]:
    """Return the places of the column of ids and of that of labels."""
    if given.columns is not None:
        missing = [name for name in given.columns if name not in columns]
        if missing:
            raise UserError(
                f"a file of given labels has no column '{missing[0]}'.{closest(missing[0], list(columns))}",
                where=where,
                expected="one of " + ", ".join(columns),
            )
        return columns.index(given.columns[0]), columns.index(given.columns[1])
    plain = [_plain(name) for name in columns]
    labels = [k for k, name in enumerate(plain) if name in LABEL_NAMES]
    ids = [k for k, name in enumerate(plain) if name in ID_NAMES]
    ids = ids or [k for k, name in enumerate(plain) if name in INDEX_NAMES]
    if len(ids) == len(labels) == 1:
        return ids[0], labels[0]
    example = [columns[found[0]] if found else word for found, word in ((ids, "ID_COLUMN"), (labels, "LABEL_COLUMN"))]
    told = [
        f"{'no column' if not found else 'more than one column'} of {what}"
        + (f" ({', '.join(columns[k] for k in found)})" if found else "")
        for what, found in (("ids", ids), ("labels", labels))
        if len(found) != 1
    ]
    sheet = f"::{where.rpartition('::')[2]}" if given.is_workbook else ""
    raise UserError(
        "the columns of given labels are not clear",
        where=where,
        found=f"{' and '.join(told)} known by name, of {', '.join(columns) or 'none'}",
        expected="one column of ids, such as cell_id or barcode, and one of labels, such as group or cell_type",
        fix=f"name both: {given.path}{sheet}::{','.join(example)}",
    )
