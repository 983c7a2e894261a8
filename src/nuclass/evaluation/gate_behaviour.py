"""What the gate does: by class, by who is right, by how unsure the local branch is, and where on the slide."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.files import write_csv, write_json
from nuclass.core.names import GATE, GLOBAL, LOCAL, MODELS
from nuclass.core.readings import GATE_PARTS
from nuclass.evaluation.branch import gate_auroc
from nuclass.evaluation.compare import ALL
from nuclass.evaluation.predictions import Predictions, read_models

TRUTHS = ("both", "only_local", "only_global", "neither")
QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}
OPEN = 0.5
"""Above this weight the gate counts as open: the global branch weighs more."""


def summarise(gate: np.ndarray) -> dict[str, float | int]:
    """Return number, mean, quantiles and share of open gates of weights (N,); NaN where there is none."""
    g = np.asarray(gate, dtype=np.float64)
    if not len(g):
        return {"cells": 0, "mean": np.nan, **dict.fromkeys(QUANTILES, np.nan), "open_share": np.nan}
    quantiles = np.quantile(g, list(QUANTILES.values()))
    return {
        "cells": len(g),
        "mean": float(g.mean()),
        **{name: float(value) for name, value in zip(QUANTILES, quantiles, strict=True)},
        "open_share": float((g > OPEN).mean()),
    }


def by_class(gate: np.ndarray, y: np.ndarray, classes: tuple[str, ...]) -> pd.DataFrame:
    """Return the gate's distribution in each class that occurs; ``y`` (N,) holds indices into ``classes``."""
    present = np.flatnonzero(np.bincount(y, minlength=len(classes)))
    return pd.DataFrame([{"class": classes[i], **summarise(gate[y == i])} for i in present])


def by_truth(gate: np.ndarray, right_local: np.ndarray, right_global: np.ndarray) -> pd.DataFrame:
    """Return the gate's distribution where both, only one, or neither branch is right; all arrays are (N,)."""
    a, b = np.asarray(right_local, dtype=bool), np.asarray(right_global, dtype=bool)
    groups = dict(zip(TRUTHS, (a & b, a & ~b, ~a & b, ~a & ~b), strict=True))
    return pd.DataFrame([{"truth": name, **summarise(gate[rows])} for name, rows in groups.items()])


def reliability_of_gate(
    gate: np.ndarray, right_local: np.ndarray, right_global: np.ndarray, *, bins: int = 10
) -> pd.DataFrame:
    """Read g as the probability that the global branch is the right one, where exactly one is.

    Returns equal-width bins of g: ``low high cells gate global_right``, the last two being means within the bin and
    NaN where it is empty. A bin holds its upper edge; the first also 0.
    """
    conflict = np.asarray(right_local, dtype=bool) != np.asarray(right_global, dtype=bool)
    g, target = np.asarray(gate, dtype=np.float64)[conflict], np.asarray(right_global, dtype=np.float64)[conflict]
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.clip(np.searchsorted(edges, g, side="left") - 1, 0, bins - 1)
    cells = np.bincount(bin_of, minlength=bins)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_gate = np.bincount(bin_of, weights=g, minlength=bins) / cells
        share = np.bincount(bin_of, weights=target, minlength=bins) / cells
    return pd.DataFrame(
        {"low": edges[:-1], "high": edges[1:], "cells": cells, "gate": mean_gate, "global_right": share}
    )


def calibration_error(reliability: pd.DataFrame) -> float:
    """Return the mean over bins of |share - g|, weighted by cells; NaN where no cell is in conflict."""
    filled = reliability[reliability["cells"] > 0]
    if not len(filled):
        return float("nan")
    gap = (filled["global_right"] - filled["gate"]).abs()
    return float((gap * filled["cells"]).sum() / filled["cells"].sum())


def uncertainty(probs: np.ndarray) -> np.ndarray:
    """Return the entropy of each row (N,), divided by ln C: 0 is certain, 1 knows nothing."""
    from scipy.stats import entropy

    n_classes = probs.shape[1]
    return np.asarray(entropy(probs, axis=1) / np.log(n_classes)) if n_classes > 1 else np.zeros(len(probs))


def by_uncertainty(
    gate: np.ndarray, unsure: np.ndarray, right: Mapping[str, np.ndarray], *, bins: int = 10
) -> pd.DataFrame:
    """Return the gate in bins of equal cell count of the local branch's entropy, and who is right there.

    ``unsure`` (N,) is :func:`uncertainty` of the local branch, ``right`` maps a model to whether it is right (N,).
    Columns: ``bin low high uncertainty``, those of :func:`summarise`, and ``accuracy_<model>``.
    """
    bins = min(bins, len(gate))
    order = np.argsort(unsure, kind="stable")
    rows = []
    for number, members in enumerate(np.array_split(order, bins)):
        here = unsure[members]
        rows.append(
            {
                "bin": number,
                "low": float(here.min()),
                "high": float(here.max()),
                "uncertainty": float(here.mean()),
                **summarise(gate[members]),
                **{f"accuracy_{name}": float(np.mean(values[members])) for name, values in right.items()},
            }
        )
    return pd.DataFrame(rows)


def spearman(gate: np.ndarray, unsure: np.ndarray) -> float:
    """Return Spearman's rank correlation; NaN where either does not vary."""
    from scipy.stats import spearmanr

    if len(gate) < 2 or np.ptp(gate) == 0 or np.ptp(unsure) == 0:
        return float("nan")
    return float(spearmanr(gate, unsure).statistic)


def gate_map(slide: pd.Series, x_um: np.ndarray, y_um: np.ndarray, gate: np.ndarray, square_um: float) -> pd.DataFrame:
    """Return the mean gate and the share of open gates in each square of tissue that holds cells.

    ``x_um`` and ``y_um`` (N,) are micrometres in the slide store's frame. Columns: ``slide x_um y_um`` (upper left
    corner) ``side_um cells gate open_share``; slides in the order given, squares row by row.
    """
    if not square_um > 0:
        raise UserError("Squares of tissue need a side above 0", found=square_um, expected="micrometres")
    names = np.asarray(slide).astype(str)
    cells = pd.DataFrame(
        {
            "slide": pd.Categorical(names, dict.fromkeys(names)),
            "x_um": np.floor(np.asarray(x_um, dtype=np.float64) / square_um) * square_um,
            "y_um": np.floor(np.asarray(y_um, dtype=np.float64) / square_um) * square_um,
            "gate": gate,
            "open": np.asarray(gate) > OPEN,
        }
    )
    squares = cells.groupby(["slide", "y_um", "x_um"], sort=True, observed=True)
    out = squares.agg(cells=("gate", "size"), gate=("gate", "mean"), open_share=("open", "mean")).reset_index()
    out["slide"] = out["slide"].astype(str)
    out["side_um"] = float(square_um)
    return out[["slide", "x_um", "y_um", "side_um", "cells", "gate", "open_share"]]


def describe_gate(
    models: Mapping[str, Predictions], *, mpp: float, square_um: float, bins: int = 10
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Return the tables named :data:`GATE_PARTS` and a summary, of the three models on the same cells."""
    fused = models[GATE]
    table, y = fused.table, fused.y
    gate = check_gate(table["gate"].to_numpy(np.float64))
    right = {name: found.predicted == y for name, found in models.items()}
    a, b = right[LOCAL], right[GLOBAL]
    unsure = uncertainty(models[LOCAL].probs)
    tables = {
        "by_class": by_class(gate, y, fused.classes),
        "by_truth": by_truth(gate, a, b),
        "reliability": reliability_of_gate(gate, a, b, bins=bins),
        "by_uncertainty": by_uncertainty(gate, unsure, right, bins=bins),
        "map": gate_map(table["slide"], table["x_px"] * mpp, table["y_px"] * mpp, gate, square_um),
    }
    summary = {
        **summarise(gate),
        "conflicts": int((a != b).sum()),
        "auroc": gate_auroc(y, models[LOCAL].probs, models[GLOBAL].probs, gate),
        "calibration_error": calibration_error(tables["reliability"]),
        "spearman_uncertainty": spearman(gate, unsure),
    }
    return tables, summary


def check_gate(gate: np.ndarray) -> np.ndarray:
    """Return the weights (N,); raise where one is not between 0 and 1."""
    bad = ~((gate >= 0) & (gate <= 1))
    if bad.any():
        raise UserError(
            "The gate's weight is not between 0 and 1",
            where=f"row {int(np.flatnonzero(bad)[0])}",
            found=float(gate[bad][0]),
            fix="predict this slide again",
        )
    return gate


def describe_gate_of_cohorts(
    paths: Mapping[str, Mapping[str, str | Path]],
    outputs: Mapping[str, str | Path],
    summary: str | Path,
    *,
    mpp: float,
    square_um: float,
    bins: int = 10,
) -> None:
    """Describe the gate on each cohort and on all pooled; write one CSV for each of :data:`GATE_PARTS`, and a JSON.

    ``paths`` is model -> cohort -> prediction table. The map is written once, by slide.
    """
    cohorts = list(paths[GATE])
    found: dict[str, list[pd.DataFrame]] = {part: [] for part in GATE_PARTS}
    summaries = {}
    for name, members in ({cohort: [cohort] for cohort in cohorts} | {ALL: cohorts}).items():
        models = read_models({model: [paths[model][member] for member in members] for model in MODELS})
        tables, summaries[name] = describe_gate(models, mpp=mpp, square_um=square_um, bins=bins)
        for part, table in tables.items():
            if part != "map":
                table.insert(0, "cohort", name)
            if part != "map" or name == ALL:
                found[part].append(table)
    for part, path in outputs.items():
        write_csv(path, pd.concat(found[part], ignore_index=True))
    write_json(summary, {"open": OPEN, "square_um": square_um, "cohorts": summaries})
