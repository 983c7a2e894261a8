"""Local models that use the organ in different ways, seen closely: maps, organs, mistakes and confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from nuclass.core.progress import Progress
from nuclass.evaluation.bootstrap import paired_bootstrap, spatial_blocks
from nuclass.evaluation.embedding_map import cells_on_map
from nuclass.evaluation.embedding_space import same_cells, unit_rows
from nuclass.evaluation.metrics import confusion, reliability
from nuclass.evaluation.predictions import Predictions

PARTS = ("cells", "organs", "confusion", "reliability")
ALL = "all"


def describe_organ_use(
    models: Mapping[str, Sequence[str | Path]],
    *,
    subset: int,
    seed: int,
    draws: int,
    mpp: float,
    block_um: float,
    bins: int = 10,
) -> dict[str, pd.DataFrame]:
    """Return what the pages of the comparison of FiLM and concatenation show, of the cells of its table.

    The cells and classes are those of :func:`nuclass.evaluation.embedding_space.compare_embeddings` with the same
    arguments, which explains them.

    Returns
    -------
    dict
        For each of :data:`PARTS` a table:

        ``cells``: :data:`nuclass.evaluation.embedding_map.MAP_COLUMNS`, one row a model and cell.
        ``organs``: ``organ cells name value low high``: accuracy of each model, and of each pair the earlier minus
        the later (``film-concat``), with 95 % intervals by paired bootstrap over squares of tissue; ``all`` first.
        ``confusion``: ``name true predicted cells rate``; the rows of a class add up to one. Of each pair
        the difference of the rates, without cells.
        ``reliability``: ``name low high cells confidence accuracy`` in bins of equal width.

    Raises
    ------
    UserError
        As :func:`nuclass.evaluation.embedding_space.compare_embeddings`.
    """
    found = same_cells(models, subset, seed)
    pairs = list(combinations(found, 2))
    maps = []
    with Progress(len(found), "maps of embeddings", "models") as bar:
        for name, one in found.items():
            maps.append(cells_on_map(name, one, unit_rows(np.asarray(one.embeddings), one.table), seed))
            bar.advance()
    return {
        "cells": pd.concat(maps, ignore_index=True),
        "organs": _by_organ(found, pairs, draws=draws, seed=seed, mpp=mpp, block_um=block_um),
        "confusion": _confusion(found, pairs),
        "reliability": pd.concat(
            [reliability(one.y, one.probs, bins=bins).assign(name=name) for name, one in found.items()],
            ignore_index=True,
        )[["name", "low", "high", "cells", "confidence", "accuracy"]],
    }


def _by_organ(
    found: Mapping[str, Predictions],
    pairs: Sequence[tuple[str, str]],
    *,
    draws: int,
    seed: int,
    mpp: float,
    block_um: float,
) -> pd.DataFrame:
    first = next(iter(found.values()))
    organs = first.table["organ"].to_numpy(str)
    rows = []
    for organ in [ALL, *sorted(set(organs))]:
        chosen = np.flatnonzero((organs == organ) | (organ == ALL))
        part = {name: one.take(chosen) for name, one in found.items()}
        table, y = part[next(iter(part))].table, first.y[chosen]
        x_um, y_um = (table[column].to_numpy(np.float64) * mpp for column in ("x_px", "y_px"))
        blocks = spatial_blocks(table["slide"], x_um, y_um, block_um)
        probs = {name: one.probs for name, one in part.items()}
        drawn = paired_bootstrap(y, probs, blocks, first.classes, pairs=pairs, draws=draws, seed=seed)
        for name, values in {**drawn["models"], **drawn["differences"]}.items():
            rows.append({"organ": organ, "cells": len(y), "name": name, **values["accuracy"]})
    return pd.DataFrame(rows)


def _confusion(found: Mapping[str, Predictions], pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    tables = {name: confusion(one.y, one.predicted, one.classes) for name, one in found.items()}
    parts = [table.assign(name=name) for name, table in tables.items()]
    for one, other in pairs:
        rate = tables[one]["rate"] - tables[other]["rate"]
        parts.append(tables[one].assign(name=f"{one}-{other}", cells=pd.NA, rate=rate))
    table = pd.concat([part.astype({"cells": "Int64"}) for part in parts], ignore_index=True)
    return table[["name", "true", "predicted", "cells", "rate"]]
