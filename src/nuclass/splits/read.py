"""The columns of a slide's cell table that the split goes by."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from nuclass.core.names import CELL_ID
from nuclass.splits.given import GIVEN_SPLIT


def read_cells(path: str | Path) -> pd.DataFrame:
    """Return cell_id, x_px, y_px, and given_split where the table has it."""
    import pyarrow.parquet as pq

    there = pq.read_schema(path).names
    return pd.read_parquet(path, columns=[CELL_ID, "x_px", "y_px", *([GIVEN_SPLIT] if GIVEN_SPLIT in there else [])])
