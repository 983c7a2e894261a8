"""Read tab-separated sheets with the line of every row, so that a fault can be pointed at."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from nuclass.core.errors import UserError, closest


@dataclass(frozen=True)
class Row:
    """One row of a sheet: its line in the file (from 1) and its values by column.

    ``origin`` names what gave a row that stands in no file; its line is 0.
    """

    line: int
    values: dict[str, str]
    origin: str = ""


def read_sheet(path: str | Path, columns: list[str], required: list[str]) -> tuple[list[Row], list[UserError]]:
    """Read a tab-separated sheet and return its rows and all faults of its form.

    Lines that start with ``#`` and empty lines are skipped. Optional columns may be left out and are
    then empty.

    Parameters
    ----------
    path
        The sheet, UTF-8, with or without a byte-order mark.
    columns, required
        The columns it may have, and those it must have.
    """
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return [], [UserError("a sheet is missing", where=file, fix="check the path in the configuration")]
    except UnicodeDecodeError:
        return [], [UserError("a sheet is not UTF-8 text", where=file, fix="save it again as UTF-8, tab-separated")]
    except (OSError, ValueError) as error:
        return [], [UserError("a sheet cannot be read", where=file, found=str(error))]
    numbered = [(number, text) for number, text in enumerate(lines, 1) if text.strip() and not text.startswith("#")]
    if not numbered:
        return [], [UserError("a sheet is empty", where=file, expected="a line with the columns, then the rows")]
    header_line, header_text = numbered[0]
    header = [name.strip() for name in header_text.split("\t")]
    faults = _check_header(file, header_line, header, columns, required)
    if faults:
        return [], faults
    rows = []
    for number, text in numbered[1:]:
        # Line by line: a quote that is not closed must not swallow the next rows.
        try:
            cells = next(csv.reader([text], delimiter="\t"))
        except csv.Error as error:
            faults.append(UserError("a row cannot be read", where=f"{file}, line {number}", found=str(error)))
            continue
        if len(cells) > len(header):
            faults.append(
                UserError(
                    "a row has too many values",
                    where=f"{file}, line {number}",
                    found=f"{len(cells)} values: {text.strip()[:80]}",
                    expected=f"{len(header)} values, separated by single tabs",
                )
            )
            continue
        cells += [""] * (len(header) - len(cells))
        values = dict.fromkeys(columns, "") | {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
        rows.append(Row(number, values))
    if not rows and not faults:
        faults.append(UserError("a sheet has no rows", where=file, expected="at least one row below the column names"))
    return rows, faults


def read_table(path: str | Path) -> list[dict[str, str]]:
    """Return the rows of a table of ours, tab-separated and UTF-8, by column; nothing where there is no such file.

    Lines that start with ``#`` and empty lines are skipped; a row that ends early lacks its last columns. A table of
    users is read by :func:`read_sheet`, which tells its faults.
    """
    file = Path(path)
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8-sig").splitlines()
    rows = [line.split("\t") for line in lines if line.strip() and not line.startswith("#")]
    return [dict(zip(rows[0], row, strict=False)) for row in rows[1:]]


def _check_header(file: Path, line: int, header: list[str], columns: list[str], required: list[str]) -> list[UserError]:
    where = f"{file}, line {line}"
    if len(header) == 1 and len(required) > 1:
        return [
            UserError(
                "a sheet has one column only",
                where=where,
                found=header[0][:80],
                expected="columns separated by tabs: " + ", ".join(columns),
                fix="save the sheet as tab-separated text",
            )
        ]
    faults = [
        UserError(
            f"unknown column '{name}'.{closest(name, columns)}",
            where=where,
            expected="columns out of " + ", ".join(columns),
            fix="correct the spelling, or delete the column",
        )
        for name in header
        if name not in columns
    ]
    faults += [
        UserError(f"the column '{name}' stands twice", where=where, fix="delete one of the two")
        for name in sorted({name for name in header if header.count(name) > 1})
    ]
    missing = [name for name in required if name not in header]
    if missing:
        faults.append(
            UserError(
                "a sheet lacks columns",
                where=where,
                found=", ".join(header),
                expected="also " + ", ".join(missing),
                fix="add the columns, separated by tabs",
            )
        )
    return faults
