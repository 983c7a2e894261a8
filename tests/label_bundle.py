"""A bundle whose cells are those of the panel simulator, with the table of cells that the slides stage would write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bundle_example import circles
from nuclass.core.files import write_parquet
from nuclass.synthetic.bundle import BundleData, cell_ids, write_bundle
from panel_simulator import simulate_panel

PIXEL = 0.2125


@dataclass(frozen=True)
class LabelBundle:
    """Folder of the bundle, its table of cells, the same table read, and the fine type of each cell."""

    folder: Path
    cells_file: Path
    cells: pd.DataFrame
    truth: pd.Series


def write_label_bundle(folder: Path, n: int = 700, seed: int = 5) -> LabelBundle:
    """Write ``bundle/`` and ``cells.parquet`` of a breast section."""
    slide = simulate_panel("breast", n=n, seed=seed)
    xy = slide.cells[["x_um", "y_um"]].to_numpy(float)
    xy = xy - xy.min(0) + 12.0
    side = int(np.ceil((xy.max() + 12.0) / PIXEL))
    counts = slide.counts.X.tocoo()
    times = counts.data.astype(int)
    cell, gene = np.repeat(counts.row, times), np.repeat(counts.col, times)
    names = list(slide.counts.var_names)
    transcripts = pd.DataFrame(
        {
            "x_um": xy[cell, 0],
            "y_um": xy[cell, 1],
            "z_um": 15.0,
            "feature_name": pd.Categorical.from_codes(gene, names),
            "qv": 40.0,
            "cell": cell,
        }
    )
    ids = cell_ids(len(xy), seed)
    data = BundleData(
        cell_id=ids,
        cell_polygons=circles(xy, np.full(len(xy), 4.5)),
        nucleus_polygons=circles(xy, np.full(len(xy), 2.5)),
        genes=pd.DataFrame({"id": [f"ENSG{k:011d}" for k in range(len(names))], "name": names}),
        transcripts=transcripts,
        morphology=np.full((side, side), 200, np.uint16),
        seed=seed,
    )
    write_bundle(folder / "bundle", "slide_1", data)
    cells = slide.cells.assign(cell_id=ids, x_um=xy[:, 0], y_um=xy[:, 1])
    write_parquet(folder / "cells.parquet", cells)
    truth = pd.Series(slide.truth.to_numpy(), index=ids, name="truth")
    return LabelBundle(folder / "bundle", folder / "cells.parquet", cells, truth)
