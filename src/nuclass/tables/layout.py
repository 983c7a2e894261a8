"""What a table is: its cells with values and intervals, columns and notes; rendered as Markdown and as LaTeX."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path, write_csv
from nuclass.core.readings import HIGHER

EMPTY = "–"
NEAR, UNKNOWN, RARE = "†", "‡", "*"
SYNTHETIC_NOTE = (
    "Synthetic study: these numbers say whether the method works as designed, not how well it does on tissue."
)
_INTERVAL = "the 95 % interval of the paired difference to "


def number(value: Any, digits: int = 3) -> str:
    """Return a number with fixed digits, integers with thousands separated, a dash for nothing."""
    if _missing(value):
        return EMPTY
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if float(value).is_integer() and not isinstance(value, float):
        return f"{int(value):,}"
    return f"{float(value):.{digits}f}"


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes
    ----------
    value
        A number, or text; None, NaN or empty text for nothing, which a dash says.
    low, high
        95 % interval of the value, in its unit, where it has one.
    spread
        What stands behind ± , in the value's unit.
    digits
        Decimal places of value, interval and spread; whole numbers of type int have none.
    sign
        Whether a positive number has its plus.
    unit
        Behind the number: ``%``, ``px``.
    behind
        Text in brackets behind the value.
    bold
        The best of the cells it is compared with, or a difference whose interval leaves out 0.
    near, unknown
        Not told apart from the best, or not known whether: see :func:`mark_best`.
    rare
        The name of a class with too few cells to count in macro-F1.
    code
        A name as the settings spell it.
    """

    value: Any = None
    low: Any = None
    high: Any = None
    spread: Any = None
    digits: int = 3
    sign: bool = False
    unit: str = ""
    behind: str = ""
    bold: bool = False
    near: bool = False
    unknown: bool = False
    rare: bool = False
    code: bool = False

    @cached_property
    def text(self) -> str:
        """Value, unit, spread and interval as plain text, without any marks."""
        if _missing(self.value) or self.value == "":
            return EMPTY
        text = self._number(self.value)
        if not isinstance(self.value, str):
            text += f" {self.unit}" if self.unit else ""
            text += "" if _missing(self.spread) else f" ± {self.spread:.{self.digits}f}"
            text += f" ({self._number(self.low)} to {self._number(self.high)})" if self.has_interval else ""
        return f"{text} ({self.behind})" if self.behind else text

    @property
    def mark(self) -> str:
        """What stands behind a value that is compared with the best, or behind the name of a rare class."""
        return NEAR if self.near else UNKNOWN if self.unknown else RARE if self.rare else ""

    @property
    def has_interval(self) -> bool:
        """Whether both ends of the interval are known."""
        return not (_missing(self.low) or _missing(self.high))

    @property
    def leaves_out_zero(self) -> bool:
        """Whether there is an interval, and 0 lies outside it."""
        return self.has_interval and not self.low <= 0 <= self.high

    def _number(self, value: Any) -> str:
        if isinstance(value, bool | str):
            return number(value)
        plus = "+" if self.sign else ""
        if float(value).is_integer() and not isinstance(value, float):
            return f"{int(value):{plus},}"
        return f"{float(value):{plus},.{self.digits}f}"


def share(part: Any, whole: Any = 1) -> Cell:
    """Return a share of a whole in per cent, a dash where either is unknown or the whole is empty."""
    if _missing(part) or _missing(whole) or not whole:
        return Cell()
    return Cell(100.0 * float(part) / float(whole), digits=1, unit="%")


def difference(value: Any, low: Any = None, high: Any = None, digits: int = 3) -> Cell:
    """Return a difference with its sign, bold where its interval leaves out 0."""
    cell = Cell(None if _missing(value) else float(value), low, high, digits=digits, sign=True)
    return replace(cell, bold=cell.leaves_out_zero)


def mark_best(
    cells: Mapping[str, Cell], better: int = HIGHER, paired: Mapping[tuple[str, str], tuple[Any, Any]] | None = None
) -> dict[str, Cell]:
    """Return the cells with the best value in bold, and marks on those that are not known to be worse.

    The best is the best point value; those that show the same digits are bold as well. Of the others that is
    ``near`` whose paired difference to the best has an interval that includes 0, and ``unknown`` where no interval of
    it is known. Fewer than two values are no comparison, and stay as they are.

    Parameters
    ----------
    cells
        What is compared, by name; those without a value are left out.
    better
        :data:`nuclass.core.readings.HIGHER` or ``LOWER``.
    paired
        Ends of the interval of first minus second, by the pair of names; either order will do.
    """
    known = {name: cell for name, cell in cells.items() if not _missing(cell.value) and not isinstance(cell.value, str)}
    if len(known) < 2:
        return dict(cells)
    best = max(known, key=lambda name: better * float(known[name].value))
    shown = known[best]._number(known[best].value)
    marked = dict(cells)
    for name, cell in known.items():
        if cell._number(cell.value) == shown:
            marked[name] = replace(cell, bold=True)
            continue
        low, high = (paired or {}).get((name, best)) or (paired or {}).get((best, name)) or (None, None)
        gap = Cell(0.0, low, high)
        near = gap.has_interval and not gap.leaves_out_zero
        marked[name] = replace(cell, near=near, unknown=not gap.has_interval)
    return marked


def to_best(behind: Mapping[str, Mapping[str, Any]], metric: str) -> dict[tuple[str, str], tuple[Any, Any]]:
    """Return the intervals of differences to the best in a metric, as :func:`mark_best` takes them.

    ``behind`` is that of :func:`nuclass.evaluation.bootstrap.paired_bootstrap`.
    """
    found = {name: gaps[metric] for name, gaps in behind.items() if metric in gaps}
    return {(name, gap["best"]): (gap["low"], gap["high"]) for name, gap in found.items()}


@dataclass(frozen=True)
class Column:
    """A column: its head, whether it is text (left) or numbers (right), and its share of the width where text wraps."""

    name: str
    left: bool = False
    width: float = 0.0


@dataclass(frozen=True)
class Grid:
    """Rows of cells under heads.

    Attributes
    ----------
    heading
        Above it in Markdown, and in its caption in LaTeX.
    caption
        In its caption in LaTeX, in the place of the heading.
    empty
        What is said where there are no rows.
    """

    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Cell], ...]
    heading: str = ""
    caption: str = ""
    empty: str = "Nothing to show."

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        for row in self.rows:
            if list(row) != names:
                raise UserError("A row of a table has other columns than its head", found=list(row), expected=names)


def grid(
    rows: Iterable[Mapping[str, Any]],
    *,
    left: int = 1,
    texts: Sequence[str] = (),
    wide: Mapping[str, float] | None = None,
    heading: str = "",
    caption: str = "",
    empty: str = "Nothing to show.",
) -> Grid:
    """Return a grid with the columns of the first row.

    Parameters
    ----------
    rows
        Cells by column; what is not a :class:`Cell` becomes one.
    left
        How many columns at the left are text.
    texts
        Further columns of text.
    wide
        Columns of long text, which wraps in LaTeX, and their share of the width of the text.
    """
    made = [{key: cell if isinstance(cell, Cell) else Cell(cell) for key, cell in row.items()} for row in rows]
    names = list(made[0]) if made else []
    widths = wide or {}
    columns = tuple(
        Column(name, i < left or name in texts or name in widths, widths.get(name, 0)) for i, name in enumerate(names)
    )
    return Grid(columns, tuple(made), heading, caption, empty)


def _told_marks(marks: Collection[str]) -> list[str]:
    """Return the notes on the marks that are used, none without any."""
    told = [f"{NEAR}: not told apart from the best, for {_INTERVAL}it includes 0."] if NEAR in marks else []
    if UNKNOWN in marks:
        told.append(f"{UNKNOWN}: {'that interval' if told else f'{_INTERVAL}the best'} is not known.")
    compared = [f"{' '.join(told)} Without a mark it leaves out 0."] if told else []
    rare = f"{RARE}: a class with too few cells to count in macro-F1; chance has a large part in its F1."
    return [*compared, *([rare] if RARE in marks else [])]


@dataclass(frozen=True)
class Table:
    """A table: its numbers for the CSV, and what people see of them.

    Attributes
    ----------
    title
        What it is called.
    data
        All numbers, as the CSV has them.
    grids
        What is laid out, in order.
    notes
        Below the grids; code in backticks, words between asterisks are emphasised.
    lead
        Above the grids, in bold; empty for nothing.
    """

    title: str
    data: pd.DataFrame
    grids: Sequence[Grid]
    notes: Sequence[str] = field(default=())
    lead: str = ""

    def told(self, *, synthetic: bool, flaws: str) -> tuple[list[str], list[str]]:
        """Return what stands in bold above the grids, and all notes below them."""
        marks = {cell.mark for part in self.grids for row in part.rows for cell in row.values()}
        below = [*self.notes, *_told_marks(marks), *([SYNTHETIC_NOTE] if synthetic else [])]
        return [text for text in (flaws, self.lead) if text], below


def noted(table: Table, notes: Sequence[str]) -> Table:
    """Return a table with further notes."""
    return replace(table, notes=[*table.notes, *notes])


def save_table(
    table: Table, csv: str | Path, md: str | Path, tex: str | Path, *, synthetic: bool = False, flaws: str = ""
) -> None:
    """Write a table as CSV, as Markdown and as LaTeX.

    Parameters
    ----------
    tex
        Its name without the ending is that of the labels, after ``tab:``.
    synthetic
        Whether a note says that the study is synthetic.
    flaws
        Which flaws of the original the study has on, which stands above the table; empty for none.
    """
    from nuclass.tables.latex import to_latex

    write_csv(csv, table.data)
    with atomic_path(md) as temporary:
        temporary.write_text(to_markdown(table, synthetic=synthetic, flaws=flaws), encoding="utf-8")
    with atomic_path(tex) as temporary:
        text = to_latex(table, Path(tex).stem, synthetic=synthetic, flaws=flaws)
        temporary.write_text(text, encoding="utf-8")


def to_markdown(table: Table, *, synthetic: bool = False, flaws: str = "") -> str:
    """Return title, grids and notes as Markdown."""
    above, below = table.told(synthetic=synthetic, flaws=flaws)
    parts = []
    for part in table.grids:
        parts += [f"## {part.heading}"] if part.heading else []
        parts.append(_markdown(part) if part.rows else part.empty)
    return "\n\n".join([f"# {table.title}", *(f"**{text}**" for text in above), *parts, *below]) + "\n"


def _markdown(part: Grid) -> str:
    rule = [":---" if column.left else "---:" for column in part.columns]
    rows = [[_marked(row[column.name]) for column in part.columns] for row in part.rows]
    return "\n".join(_line(cells) for cells in ([column.name for column in part.columns], rule, *rows))


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _marked(cell: Cell) -> str:
    text = f"`{cell.text}`" if cell.code else cell.text
    return (f"**{text}**" if cell.bold else text) + (f" {cell.mark}" if cell.mark else "")
