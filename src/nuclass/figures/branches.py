"""What the branches reach alone, averaged, fused, and with a perfect choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nuclass.core.files import read_json
from nuclass.figures.style import BRANCH_COLOURS, DOUBLE_MM, cohort_name, error_bars, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BRANCHES = ("local", "global", "mean", "fused", "oracle")
_PARTS = {
    "both": ("Both right", "#C9C9C9"),
    "A_only": ("Only local right", BRANCH_COLOURS["local"]),
    "B_only": ("Only global right", BRANCH_COLOURS["global"]),
    "neither": ("Neither", "#EFEFEF"),
}


def draw_branches(
    comparison_json: str | Path,
    comparison_csv: str | Path,
    outputs: Sequence[str | Path],
    csv: str | Path,
    *,
    style: str | Path,
    synthetic: bool,
) -> None:
    """Draw accuracy and macro-F1 of the branches with intervals, and the share of cells each has right."""
    table = pd.read_csv(comparison_csv, keep_default_na=False, na_values={"value": "", "low": "", "high": ""})
    table = table[table["metric"].isin(["accuracy", "macro_f1"]) & table["name"].isin(BRANCHES)]
    cohorts = read_json(comparison_json)["cohorts"]
    fig = new_figure(style, DOUBLE_MM, 62)
    axes = fig.subplots(1, 3, width_ratios=[1, 1, 1.1])
    for ax, metric, label in zip(axes, ("accuracy", "macro_f1"), ("Accuracy", "Macro-F1"), strict=False):
        draw_scores(ax, table[table["metric"] == metric], list(cohorts), BRANCHES)
        ax.set_title(label)
    rows = _shares(axes[2], cohorts)
    axes[2].set_title("Which branch is right")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper left", ncols=len(BRANCHES))
    handles, labels = axes[2].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper right", ncols=len(_PARTS))
    numbers = table.drop(columns="class").rename(columns={"name": "branch"})
    save_figure(fig, outputs, csv, pd.concat([numbers, rows], ignore_index=True), synthetic=synthetic)


def draw_scores(ax: Axes, table: pd.DataFrame, cohorts: Sequence[str], branches: Sequence[str]) -> None:
    """Draw a metric of the branches with intervals, cohort by cohort; ``table``: ``cohort name value low high``."""
    step = 0.75 / len(branches)
    for place, branch in enumerate(branches):
        rows = table[table["name"] == branch].set_index("cohort").reindex(cohorts)
        x = np.arange(len(cohorts)) + (place - (len(branches) - 1) / 2) * step
        value, low, high = (rows[c].to_numpy(float) for c in ("value", "low", "high"))
        error_bars(ax, x, value, low, high, branch, horizontal=False)
    floor = float(np.nanmin(table["low"])) if table["low"].notna().any() else 0.0
    ax.set_ylim(max(0.0, np.floor(floor * 20 - 0.5) / 20), 1.0)
    ax.set_xlim(-0.6, len(cohorts) - 0.4)
    ax.set_xticks(np.arange(len(cohorts)), [_wrap(cohort_name(c)) for c in cohorts])
    ax.tick_params(axis="x", length=0)
    ax.grid(axis="y")
    for edge in np.arange(len(cohorts) - 1) + 0.5:
        ax.axvline(edge, color="#E4E4E4", lw=0.5)


def _wrap(name: str) -> str:
    return name.replace(" ", "\n", 1) if len(name) > 10 else name


def _shares(ax: Axes, cohorts: dict[str, dict[str, dict[str, float]]]) -> pd.DataFrame:
    rows = []
    for place, (name, result) in enumerate(cohorts.items()):
        counts = result["branches"]
        left = 0.0
        for key, (label, colour) in _PARTS.items():
            share = float(counts[key]) / float(counts["n_cells"])  # type: ignore[arg-type]
            ax.barh(place, share, left=left, height=0.62, color=colour, label=label if place == 0 else None)
            if share > 0.035:
                ink = "white" if key in ("A_only", "B_only") else "#333333"
                ax.text(
                    left + share / 2, place, f"{100 * share:.0f}", ha="center", va="center", fontsize=5.5, color=ink
                )
            rows.append({"cohort": name, "branch": key, "metric": "share", "value": share})
            left += share
    ax.set_yticks(np.arange(len(cohorts)), [cohort_name(c) for c in cohorts])
    ax.set(xlim=(0, 1), ylim=(len(cohorts) - 0.5, -0.5))
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    ax.set_xlabel("Cells")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return pd.DataFrame(rows)
