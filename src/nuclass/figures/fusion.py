"""The gate beside the branches, the plain mean, the safety policy and the oracle, and what it wins over each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nuclass.core.names import FUSED, GLOBAL, LOCAL, MEAN, ORACLE, title
from nuclass.figures.branches import draw_scores
from nuclass.figures.style import ALL, BRANCH_COLOURS, DOUBLE_MM, empty_panel, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SAFE = "safe"
BRANCHES = (LOCAL, GLOBAL, MEAN, FUSED, SAFE, ORACLE)
OTHERS = (LOCAL, GLOBAL, MEAN, "product", "max_confidence", "stacking", SAFE)
_METRICS = {"accuracy": "Accuracy", "macro_f1": "Macro-F1"}


def draw_fusion(
    comparison: str | Path, outputs: Sequence[str | Path], csv: str | Path, *, style: str | Path, synthetic: bool
) -> None:
    """Draw accuracy and macro-F1 by cohort, and the gate minus each other way over all cohorts, with intervals.

    ``comparison`` is the CSV of :func:`nuclass.evaluation.fusion.compare_fusions_of_cohorts`.
    """
    table = pd.read_csv(comparison, keep_default_na=False, na_values={"value": "", "low": "", "high": ""})
    table = table[table["metric"].isin(_METRICS) & (table["class"] == "")].drop(columns="class")
    cohorts = list(dict.fromkeys(table["cohort"]))
    scores = table[table["name"].isin(BRANCHES)]
    gaps = table[(table["cohort"] == ALL) & table["name"].isin([f"{FUSED}-{name}" for name in OTHERS])]
    fig = new_figure(style, DOUBLE_MM, 66)
    axes = fig.subplots(1, 3, width_ratios=[1, 1, 0.95])
    for ax, (metric, label) in zip(axes[:2], _METRICS.items(), strict=True):
        draw_scores(ax, scores[scores["metric"] == metric], cohorts, BRANCHES)
        ax.set_title(label)
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper left", ncols=len(BRANCHES))
    axes[2].set_title("Gate minus each, all cohorts")
    if gaps.empty:
        empty_panel(axes[2], "no difference is known")
    else:
        _differences(axes[2], gaps)
        handles, labels = axes[2].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper right", ncols=2)
    save_figure(fig, outputs, csv, pd.concat([scores, gaps]), synthetic=synthetic)


def _differences(ax: Axes, gaps: pd.DataFrame) -> None:
    """Draw the paired differences, those of accuracy filled and those of macro-F1 hollow."""
    names = [name for name in OTHERS if f"{FUSED}-{name}" in set(gaps["name"])]
    ink = BRANCH_COLOURS[FUSED]
    ax.axvline(0, color="#999999", lw=0.6, zorder=1)
    for metric, shift, face in (("accuracy", -0.16, ink), ("macro_f1", 0.16, "white")):
        rows = gaps[gaps["metric"] == metric].set_index("name").reindex([f"{FUSED}-{name}" for name in names])
        y = np.arange(len(names)) + shift
        ax.hlines(y, rows["low"], rows["high"], color=ink, lw=0.8, zorder=2)
        ax.scatter(
            rows["value"], y, s=11, facecolor=face, edgecolor=ink, linewidth=0.9, zorder=3, label=_METRICS[metric]
        )
    ax.set_yticks(np.arange(len(names)), [title(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel("Difference, 95 % interval")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
