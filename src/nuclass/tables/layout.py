"""Numbers and intervals as text, and tables as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.files import atomic_path, write_csv

EMPTY = "–"
SYNTHETIC_NOTE = (
    "Synthetic study: these numbers say whether the method works as designed, not how well it does on tissue."
)


def number(value: Any, digits: int = 3) -> str:
    """Return a number with fixed digits, integers with thousands separated, a dash for nothing."""
    if value is None or (isinstance(value, float) and value != value) or value is pd.NA:
        return EMPTY
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if float(value).is_integer() and not isinstance(value, float):
        return f"{int(value):,}"
    return f"{float(value):.{digits}f}"


def with_interval(value: Any, low: Any, high: Any, digits: int = 3) -> str:
    """Return ``value (low to high)``, or the value alone where there is no interval."""
    if number(low) == EMPTY or number(high) == EMPTY:
        return number(value, digits)
    return f"{float(value):.{digits}f} ({float(low):.{digits}f} to {float(high):.{digits}f})"


def markdown(rows: Sequence[Mapping[str, str]], columns: Sequence[str], left: int = 1) -> str:
    """Return a Markdown table; the first ``left`` columns are aligned left, the others right."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = [":---" if place < left else "---:" for place in range(len(columns))]
    return "\n".join([line(columns), line(rule), *[line([row[c] for c in columns]) for row in rows]])


def write_table(
    csv: str | Path,
    md: str | Path,
    data: pd.DataFrame,
    parts: Sequence[str],
    *,
    title: str,
    notes: Sequence[str] = (),
    synthetic: bool = False,
    flaws: str = "",
) -> None:
    """Write the numbers as CSV, and title, Markdown tables and notes as Markdown.

    ``flaws``, where not empty, says above the table which flaws of the original the study has on.
    """
    write_csv(csv, data)
    lines = [*notes, *([SYNTHETIC_NOTE] if synthetic else [])]
    with atomic_path(md) as temporary:
        temporary.write_text(
            "\n\n".join([f"# {title}", *([f"**{flaws}**"] if flaws else []), *parts, *lines]) + "\n", encoding="utf-8"
        )
