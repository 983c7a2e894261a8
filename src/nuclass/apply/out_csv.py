"""The predictions as CSV, for eyes and spreadsheets."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nuclass.apply.out_read import PLACES, Run
from nuclass.core.files import atomic_path


def write_table(run: Run, path: str | Path) -> None:
    """Write all columns of all cells: places to 0.01, other numbers to four digits, nothing for none."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        first = True
        for frame in run.parts():
            places = {
                name: np.where(np.isfinite(values), np.char.mod("%.2f", values), "")
                for name in PLACES
                for values in [frame[name].to_numpy(np.float64)]
            }
            frame = frame.assign(**places)
            frame.to_csv(stream, index=False, header=first, float_format="%.4g", lineterminator="\n")
            first = False
        if first:
            stream.write(",".join(run.columns) + "\n")
