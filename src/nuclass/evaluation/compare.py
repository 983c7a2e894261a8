"""Compare the branches, their mean, the fused model and the oracle on the same cells, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nuclass.core.files import write_csv, write_json
from nuclass.core.names import GATE, GLOBAL, LOCAL, MODELS
from nuclass.evaluation.bootstrap import paired_bootstrap, spatial_blocks
from nuclass.evaluation.branch import branches, oracle, plain_mean
from nuclass.evaluation.predictions import Predictions, read_models

ALL = "all"
FUSED, MEAN, ORACLE = "fused", "mean", "oracle"
PAIRS = ((FUSED, LOCAL), (FUSED, GLOBAL), (FUSED, MEAN))


def compare(
    predictions: Mapping[str, Predictions],
    *,
    mpp: float,
    block_um: float,
    draws: int,
    seed: int,
    min_support: int = 1,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Return intervals of local, global, mean, fused and oracle, paired differences and branch counts.

    ``predictions`` holds the models ``local``, ``global`` and ``gate`` on the same cells. Positions are
    slide-store pixels of ``mpp`` micrometres. All log losses are of calibrated probabilities; the mean
    is that of the two branches' calibrated probabilities.
    """
    p_local, p_global, p_fused = (predictions[model].probs for model in MODELS)
    fused = predictions[GATE]
    y, table = fused.y, fused.table
    blocks = spatial_blocks(table["slide"], table["x_px"].to_numpy() * mpp, table["y_px"].to_numpy() * mpp, block_um)
    values = {
        LOCAL: p_local,
        GLOBAL: p_global,
        MEAN: plain_mean(p_local, p_global),
        FUSED: p_fused,
        ORACLE: oracle(y, p_local, p_global),
    }
    result = paired_bootstrap(
        y,
        values,
        blocks,
        fused.classes,
        pairs=PAIRS,
        groups=groups,
        draws=draws,
        seed=seed,
        min_support=min_support,
    )
    result["branches"] = branches(y, p_local, p_global, p_fused, table["gate"].to_numpy(), min_support=min_support)
    return result


def compare_cohorts(
    paths: Mapping[str, Mapping[str, str | Path]],
    out_json: str | Path,
    out_csv: str | Path,
    *,
    mpp: float,
    block_um: float,
    draws: int,
    seed: int,
    min_support: int = 1,
) -> dict[str, Any]:
    """Compare the models on each cohort and on all cohorts pooled; write JSON and a flat table.

    ``paths`` is model -> cohort -> prediction table. The flat table has the columns ``cohort``, ``name``
    (a model, or ``fused-local`` for a difference), ``metric``, ``class`` (for F1 by class), ``value``,
    ``low`` and ``high``.
    """
    cohorts = list(paths[GATE])
    options = {"mpp": mpp, "block_um": block_um, "draws": draws, "seed": seed, "min_support": min_support}
    selections = {cohort: [cohort] for cohort in cohorts} | {ALL: cohorts}
    results: dict[str, Any] = {}
    for name, members in selections.items():
        models = read_models({model: [files[member] for member in members] for model, files in paths.items()})
        results[name] = compare(models, **options)  # type: ignore[arg-type]
    write_json(out_json, {"options": options, "cohorts": results})
    write_csv(out_csv, flatten(results))
    return results


def by_model(paths: Sequence[str | Path], models: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Sort prediction tables ``.../{model}/{slide}.parquet`` into model -> slide -> path."""
    files = [Path(path) for path in paths]
    return {model: {file.stem: file for file in files if file.parent.name == model} for model in models}


def flatten(results: Mapping[str, Any]) -> pd.DataFrame:
    """Return the comparison as a long table, one row a number."""
    rows: list[dict[str, Any]] = []
    for cohort, result in results.items():
        for name, values in {**result["models"], **result["differences"]}.items():
            for metric, value in values.items():
                if metric == "f1":
                    rows += [
                        {"cohort": cohort, "name": name, "metric": "f1", "class": label, **interval}
                        for label, interval in value.items()
                    ]
                elif metric != "groups":
                    rows.append({"cohort": cohort, "name": name, "metric": metric, "class": "", **value})
    return pd.DataFrame(rows, columns=["cohort", "name", "metric", "class", "value", "low", "high"]).replace(
        {np.inf: np.nan}
    )
