"""The columns of a slide's tables that the split goes by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.names import CELL_ID
from nuclass.splits.given import GIVEN_SPLIT


def read_cells(path: str | Path) -> pd.DataFrame:
    """Return cell_id, x_px, y_px, and given_split where the table has it.

    Raises
    ------
    UserError
        The file is no Parquet, or has not these columns.
    """
    return _read(path, (CELL_ID, "x_px", "y_px"), (GIVEN_SPLIT,))


def read_labels(path: str | Path) -> pd.DataFrame:
    """Return cell_id, class and status; errors as for :func:`read_cells`."""
    return _read(path, (CELL_ID, "class", "status"))


def _read(path: str | Path, needed: Sequence[str], wanted: Sequence[str] = ()) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        there = pq.read_schema(path).names
        lacking = [name for name in needed if name not in there]
        if not lacking:
            return pd.read_parquet(path, columns=[*needed, *(name for name in wanted if name in there)])
    except pa.ArrowInvalid as error:
        raise UserError("A table cannot be read", where=path, found=str(error), expected="Parquet") from error
    raise UserError(
        f"A table has no {' and no '.join(lacking)}",
        where=path,
        found=", ".join(there),
        expected=f"the columns {', '.join(needed)}",
        fix="give the table that the workflow wrote for the slide",
    )
