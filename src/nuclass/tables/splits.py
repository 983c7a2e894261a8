"""The table on the splits: how each slide is divided, and how far apart its splits lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.files import read_json
from nuclass.core.names import BUFFER, SPLITS, VAL
from nuclass.tables.layout import Cell, Table, grid, share

_COLUMNS = (
    *("slide", "role", "layout", "fold"),
    *(f"{kind}_{split}" for kind in ("cells", "labelled") for split in SPLITS),
    *("buffer_share", "absent_from_val", "margin_px", "overlapping_cells"),
)
_LAYOUTS = {"whole": "whole", "box": "central box", "given": "as given"}
_TOTAL = "total"


def split_rows(reports: Sequence[str | Path]) -> pd.DataFrame:
    """Return one row a slide from the ``results/splits/{slide}.json``.

    Columns: ``slide role layout fold``, ``cells_`` and ``labelled_`` train, val, test and buffer, ``buffer_share`` (of
    the labelled cells), ``absent_from_val`` (common classes, separated by a semicolon), ``margin_px`` (between
    the nearest windows of different splits) and ``overlapping_cells`` (cells of a split that reach into another).
    """
    return pd.DataFrame([_row(read_json(file)) for file in reports], columns=list(_COLUMNS))


def _row(report: dict[str, Any]) -> dict[str, Any]:
    whole = report["layout"] == "whole"
    return {
        "slide": report["slide"],
        "role": report["role"],
        "layout": report["layout"],
        "fold": f"{report['fold']} of {report['folds']}" if "folds" in report else "",
        **{f"cells_{split}": report["cells"].get(split, 0) for split in SPLITS},
        **{f"labelled_{split}": report["labelled"].get(split, 0) for split in SPLITS},
        "buffer_share": report.get("buffer_share"),
        "absent_from_val": "" if whole else "; ".join(report["absent_classes"].get(VAL, [])),
        "margin_px": report.get("margin_px"),
        "overlapping_cells": None if whole else sum(report["overlapping_cells"].values()),
    }


def splits_table(reports: Sequence[str | Path]) -> Table:
    """Lay out how each slide is divided, with a row of totals that the CSV lacks."""
    data = split_rows(reports)
    whole = {"margin_px": "Int64", "overlapping_cells": "Int64"}
    data = data.astype({"buffer_share": float, **whole})
    rows = [_shown(row) for row in data.to_dict("records")]
    sums = {name: int(data[name].sum()) for name in _COLUMNS if name.startswith(("cells_", "labelled_"))}
    cut = data[data["buffer_share"].notna()]
    held = cut[[f"labelled_{split}" for split in SPLITS]].to_numpy().sum()
    held_back = cut[f"labelled_{BUFFER}"].sum() / held if held else None
    total = {"slide": _TOTAL, "role": "", "layout": "", "fold": "", **sums, "buffer_share": held_back}
    rows.append(_shown({**total, "absent_from_val": "", "margin_px": data["margin_px"].min(), "overlapping_cells": 0}))
    notes = [
        "Cells by split, labelled ones in brackets. Buffer: cells that no one uses, so that splits lie apart; the "
        "share is of the labelled cells of slides that are divided. Absent from val: classes common on the slide "
        "and that validation has no cell of. Margin: px between the nearest two of the largest windows of different "
        "splits; below 0 they overlap. A cohort is all test.",
    ]
    if data["overlapping_cells"].sum():
        told = ", ".join(
            f"{row['slide']} {row['overlapping_cells']:,}"
            for row in data.to_dict("records")
            if row["overlapping_cells"]
        )
        notes.append(f"Protocol released (no_buffer): cells whose windows reach into another split's: {told}.")
    return Table("Splits", data, [grid(rows, left=3, wide={"absent from val": 0.15})], notes)


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    layout = _LAYOUTS.get(row["layout"], row["layout"]) + (f", fold {row['fold']}" if row["fold"] else "")
    counts = {split: (int(row[f"cells_{split}"]), int(row[f"labelled_{split}"])) for split in SPLITS}
    margin = row["margin_px"]
    return {
        "slide": Cell(str(row["slide"]), bold=row["slide"] == _TOTAL),
        "role": row["role"],
        "layout": layout,
        **{n: Cell(cells, behind=f"{labelled:,}") if cells else Cell() for n, (cells, labelled) in counts.items()},
        "buffer share": share(row["buffer_share"]),
        "absent from val": row["absent_from_val"],
        "margin, px": None if pd.isna(margin) else int(margin),
    }
