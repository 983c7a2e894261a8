"""How many cells each step keeps, so that nothing is lost silently."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.names import BUFFER, CELL_ID, KEPT, LABELLED
from nuclass.data.cells import align_ids, cells_file, check_ids, labels_file, read_table, splits_file

if TYPE_CHECKING:
    import pyarrow as pa

STEPS = ("all cells", "kept by quality control", "labelled", "of a class of the study", "in train, val or test")
COLUMNS = ("slide", "step", "cells", "dropped", "reasons")


def funnel_table(slides: Sequence[dict[str, Any]], results: str | Path) -> pd.DataFrame:
    """Count the cells that are left after each step, slide by slide.

    Parameters
    ----------
    slides
        One dict a slide with the key ``slide`` (others are ignored).
    results
        The folder that holds ``slides/``, ``labels/`` and ``splits/``.

    Returns
    -------
    Columns slide, step, cells, dropped (against the step before), reasons (``"low_counts 12, no_nucleus 3"``,
    most frequent first); five rows a slide in the order of :data:`STEPS`.

    Raises
    ------
    UserError
        A step leaves no cell of a slide, or the tables hold different cells.
    """
    rows = [row for item in slides for row in _slide_rows(str(item["slide"]), Path(results))]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _slide_rows(slide: str, results: Path) -> list[tuple[str, str, int, int, str]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    cells_path, labels_path, split_path = (f(results, slide) for f in (cells_file, labels_file, splits_file))
    cells = read_table(cells_path, (CELL_ID, "status", "reason"))
    check_ids(cells, cells_path)
    labels = align_ids(cells, cells_path, read_table(labels_path, (CELL_ID, "class", "status", "reason")), labels_path)
    split = align_ids(cells, cells_path, read_table(split_path, (CELL_ID, "split")), split_path)["split"]
    everything = pa.chunked_array([pa.array(np.ones(cells.num_rows, bool))])
    steps: list[tuple[str, pa.ChunkedArray, pa.ChunkedArray, Path]] = [
        (STEPS[0], everything, split, cells_path),
        (STEPS[1], pc.equal(cells["status"], KEPT), _reason(cells), cells_path),
        (STEPS[2], pc.equal(labels["status"], LABELLED), _reason(labels), labels_path),
        (STEPS[3], pc.not_equal(labels["class"], ""), _reason(labels), labels_path),
        (STEPS[4], pc.not_equal(split, BUFFER), split, split_path),
    ]
    rows = []
    left = np.ones(cells.num_rows, bool)
    for step, passed, reason, path in steps:
        passes = passed.to_numpy()
        lost = left & ~passes
        left = left & passes
        counts = reason.filter(pa.array(lost)).to_pandas().value_counts()
        reasons = ", ".join(f"{name} {count}" for name, count in counts.items())
        if not left.any():
            raise UserError(
                f"No cell of a slide is left: the step '{step}' dropped the last ones",
                where=f"slide {slide}, {path}",
                found=f"{int(lost.sum())} cells dropped ({reasons or 'the table is empty'})",
                expected="at least one cell",
                fix="look at that step's input and at its thresholds in the configuration",
            )
        rows.append((slide, step, int(left.sum()), int(lost.sum()), reasons))
    return rows


def _reason(table: pa.Table) -> pa.ChunkedArray:
    """Return each row's reason, or its status where none is given."""
    import pyarrow.compute as pc

    return pc.if_else(pc.equal(table["reason"], ""), table["status"], table["reason"])
