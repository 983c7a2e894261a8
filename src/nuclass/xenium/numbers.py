"""Tables of numbers as people and programs write them: separators, decimal commas, headers, encodings."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from nuclass.core.bundle_source import is_web_page
from nuclass.core.errors import UserError

# A separator with the decimal sign. Blanks (None) come last: they also stand around other separators.
_DIALECTS: tuple[tuple[str | None, str], ...] = (
    (";", "."),
    ("\t", "."),
    (",", "."),
    (None, "."),
    (";", ","),
    ("\t", ","),
    (",", ","),
    (None, ","),
)
_NUMBER = {
    ".": re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([ed][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE),
    ",": re.compile(r"[+-]?(\d+,?\d*|,\d+)([ed][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE),
}
_NOT_THOUSANDS = re.compile(r"^[+-]?(0|\d{4,}|),|,(\d{0,2}|\d{4,})([eE]|$)")
_CONTROL = re.compile("[\\x00-\\x08\\x0e-\\x1f]")
_PICTURES = {
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    b"II+\0": "a BigTIFF image",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89HDF": "an HDF5 file",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF document",
    b"\x1f\x8b": "a gzip archive",
    b"\x93NUMPY": "a NumPy array",
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
}


@dataclass(frozen=True)
class Line:
    """One line with content: its number in the file (from 1) and its cells, stripped."""

    number: int
    cells: tuple[str, ...]


@dataclass(frozen=True)
class TextTable:
    """A text table: its lines and the decimal sign of its numbers."""

    lines: tuple[Line, ...]
    decimal: str

    def value(self, cell: str) -> float | None:
        """Return a cell as a number (NaN and infinity too, D for E as Fortran writes it), or None where it is none."""
        if not _NUMBER[self.decimal].fullmatch(cell):
            return None
        return float(re.sub("(?<=[0-9.,])[dD]", "e", cell).replace(",", "."))

    def numeric(self, line: Line) -> bool:
        """Whether every cell of the line is a number."""
        return all(self.value(cell) is not None for cell in line.cells)


def plain_name(cell: str) -> str:
    """Return a column's name in lower case, without blanks and underscores."""
    return re.sub(r"[\s_]", "", cell).lower()


def decode_text(content: bytes, where: str | Path, what: str, expected: str, fix: str) -> str:
    """Return the text of a file in UTF-8, UTF-16 with a mark (Excel's "Unicode text"), or Windows-1252.

    Raises
    ------
    UserError
        If the bytes are an image, an archive, a web page or no text at all; ``what`` names the file
        ("alignment file") in the message.
    """
    for magic, kind in _PICTURES.items():
        if content.startswith(magic):
            raise UserError(f"The {what} is {kind}", where=where, expected=expected, fix=fix)
    if is_web_page(content):
        first = content.decode("utf-8", "replace").strip().splitlines()[0][:80]
        raise UserError(f"The {what} is a web page, not a table", where=where, found=first, expected=expected, fix=fix)
    utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    for encoding in ("utf-16",) if utf16 else ("utf-8-sig", "cp1252"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if not _CONTROL.search(text):
            return text.replace("\u2212", "-")
    raise UserError(f"The {what} is not text", where=where, found=repr(content[:16]), expected=expected, fix=fix)


def read_table(text: str, where: str | Path, names: tuple[str, ...] = ()) -> TextTable:
    """Split a text into cells by the separator and decimal sign under which most lines are numbers.

    Empty lines (Excel writes ``,,,``) and lines that begin with ``#`` are left out. Separators: semicolon,
    tab, comma, blanks; a decimal comma is taken only where no other reading gives numbers, and refused
    where it may as well separate thousands.

    Parameters
    ----------
    text
        The content.
    where
        The file, for messages.
    names
        Column names; a separator that cuts the first line into cells with one of them wins.
    """
    numbered = [(i, line.strip(" \ufeff\xa0")) for i, line in enumerate(re.split(r"\r\n|\n|\r", text), 1)]
    kept = [(i, line) for i, line in numbered if line.strip(" \t,;\"'") and not line.lstrip().startswith("#")]
    best, most = TextTable((), "."), (-1, -1, -1)
    for separator, decimal in _DIALECTS:
        lines = tuple(Line(i, _cells(line, separator)) for i, line in kept)
        table = TextTable(lines, decimal)
        named = sum(plain_name(cell) in names for cell in lines[0].cells) if lines else 0
        good = sum(len(line.cells) > 1 and _numbers_in(table, line) for line in lines)
        numbers = sum(table.value(cell) is not None for line in lines for cell in line.cells)
        if (named, good, numbers) > most:
            best, most = table, (named, good, numbers)
    if best.decimal == ",":
        _refuse_thousands(best, where)
    return best


def _numbers_in(table: TextTable, line: Line) -> bool:
    """Whether a line holds at least two numbers and no more than one other cell (a row's name)."""
    count = sum(table.value(cell) is not None for cell in line.cells)
    return count >= 2 and count >= len(line.cells) - 1


def _cells(line: str, separator: str | None) -> tuple[str, ...]:
    if separator is None:
        cells = line.split()
    else:
        try:
            cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
        except csv.Error:
            # A cell longer than any number or name.
            cells = line.split(separator)
        if len(cells) == 1 and separator in cells[0]:
            # A whole line in quotes: Excel, where the text stood in one column.
            cells = cells[0].split(separator)
    cells = [cell.strip().strip("\"'").strip() for cell in cells]
    while len(cells) > 1 and not cells[-1]:
        cells.pop()
    return tuple(cells)


def _refuse_thousands(table: TextTable, where: str | Path) -> None:
    """Refuse numbers such as 1,289 alone, which may be 1.289 or 1289."""
    with_comma = [(line, cell) for line in table.lines for cell in line.cells if "," in cell and table.value(cell)]
    if with_comma and not any(_NOT_THOUSANDS.search(cell) for _, cell in with_comma):
        line, cell = with_comma[0]
        raise UserError(
            "The commas in the numbers may mark decimals or thousands",
            where=f"{where}, line {line.number}",
            found=cell,
            expected="numbers with a decimal point",
            fix="write the numbers with a point and separate them by commas",
        )
