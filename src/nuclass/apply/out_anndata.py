"""The cells as AnnData: probabilities as the matrix, all else as annotations."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nuclass.apply.out_read import STATES, Run
from nuclass.core.files import atomic_path
from nuclass.core.names import CELL_ID, PROBABILITY_PREFIX

if TYPE_CHECKING:
    from anndata import AnnData

CLASS_COLUMNS = ("class", "prediction", "local_prediction", "global_prediction")


def write_anndata(run: Run, path: str | Path) -> None:
    """Write ``cells.h5ad``; see :func:`cells_table`.

    The file is made in memory: HDF5 ends the whole process where the disk under an open file is full.
    """
    import h5py
    from anndata.io import write_elem

    table, content = cells_table(run), io.BytesIO()
    table.strings_to_categoricals()
    with h5py.File(content, "w") as file:
        write_elem(file, "/", table, dataset_kwargs={"compression": "gzip"})
        # An element without a value, which readers before anndata 0.12 do not know.
        file.pop("raw", None)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def cells_table(run: Run) -> AnnData:
    """Return the cells that were typed or abstained, N of them, with C classes.

    ``X`` (N, C) float32: probabilities. ``obs``: all other columns, by cell id; classes are categories in the order of
    the figures, an empty one is missing. ``obsm["spatial"]`` (N, 2): micrometres. ``var``: full name and colour of each
    class. ``uns``: the colours of the categories as scanpy looks for them, and under ``nuclass`` what the run was.
    """
    import pandas as pd
    from anndata import AnnData

    table = run.table(shown=True)
    colours = run.colours()
    scored = [PROBABILITY_PREFIX + name for name in run.classes]
    obs = table.drop(columns=scored)
    obs[CELL_ID] = obs[CELL_ID].astype(object)
    uns: dict[str, Any] = {"nuclass": _facts(run)}
    for name in CLASS_COLUMNS:
        if name in obs:
            obs[name] = pd.Categorical(obs[name], categories=list(colours))
            uns[f"{name}_colors"] = list(colours.values())
    obs["status"] = pd.Categorical(obs["status"], categories=list(STATES)).remove_unused_categories()
    for name in ("organ", "reason"):
        if name in obs:
            obs[name] = pd.Categorical(obs[name].astype(object))
    obs.index = pd.Index(obs[CELL_ID].tolist(), dtype=object)
    var = pd.DataFrame(
        {
            "full_name": [run.sheet.full(name) for name in run.classes],
            "colour": [colours[name] for name in run.classes],
        },
        index=pd.Index(run.classes, dtype=object),
    )
    return AnnData(
        X=table[scored].to_numpy(np.float32),
        obs=obs,
        var=var,
        uns=uns,
        obsm={"spatial": table[["x_um", "y_um"]].to_numpy(np.float64)},
    )


def _facts(run: Run) -> dict[str, Any]:
    """Return what the run was, in the types that HDF5 knows; ``run`` holds all of it as JSON."""
    facts: dict[str, Any] = {name: str(run.facts[name]) for name in ("slide", "model", "organ") if name in run.facts}
    numbers = {name: run.facts[name] for name in ("mpp", "mpp_he", "abstain_below") if run.facts.get(name) is not None}
    left_out = int(run.facts["counts"]["left_out"])
    return {**facts, **numbers, "left_out": left_out, "run": json.dumps(run.facts)}
