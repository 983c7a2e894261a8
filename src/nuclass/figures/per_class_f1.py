"""F1 of each class with its interval: local, global and fused, cohort by cohort."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nuclass.figures.style import (
    DOUBLE_MM,
    Classes,
    class_dots,
    cohort_name,
    empty_panel,
    error_bars,
    new_figure,
    save_figure,
)

BRANCHES = ("local", "global", "fused")


def draw_per_class_f1(
    comparison: str | Path,
    outputs: Sequence[str | Path],
    csv: str | Path,
    *,
    classes: str | Path,
    style: str | Path,
    synthetic: bool,
) -> None:
    """Draw F1 by class from ``comparison.csv``; one panel a cohort, one row a class."""
    sheet = Classes.read(classes)
    table = pd.read_csv(comparison, keep_default_na=False, na_values={"value": "", "low": "", "high": ""})
    table = table[(table["metric"] == "f1") & table["name"].isin(BRANCHES)].reset_index(drop=True)
    names = sheet.ordered(table["class"])
    cohorts = list(dict.fromkeys(table["cohort"]))
    fig = new_figure(style, DOUBLE_MM, max(30.0, 6.6 * len(names)) + 20)
    axes = fig.subplots(1, max(len(cohorts), 1), sharey=True, squeeze=False)[0]
    if not cohorts:
        empty_panel(axes[0], "No class to show")
    for ax, cohort in zip(axes, cohorts, strict=False):
        part = table[table["cohort"] == cohort]
        for place, branch in enumerate(BRANCHES):
            rows = part[part["name"] == branch]
            y = np.array([names.index(c) for c in rows["class"]]) + (place - 1) * 0.24
            error_bars(ax, rows["value"].to_numpy(), y, rows["low"].to_numpy(), rows["high"].to_numpy(), branch)
        for row in range(0, len(names), 2):
            ax.axhspan(row - 0.5, row + 0.5, color="#F5F5F5", lw=0, zorder=0)
        for row in sorted(set(range(len(names))) - {names.index(c) for c in part["class"]}):
            ax.text(0.5, row, "no cells", ha="center", va="center", fontsize=5, color="#AAAAAA")
        ax.set(title=cohort_name(cohort), xlim=(-0.03, 1.03), ylim=(len(names) - 0.5, -0.5), xlabel="F1")
        ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        ax.grid(axis="x")
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0, pad=9)
    if cohorts:
        axes[0].set_yticks(np.arange(len(names)), [sheet.full(n) for n in names])
        class_dots(axes[0], sheet, names, axis="y", offset=-0.06)
        handles, labels = axes[0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper right", ncols=len(BRANCHES))
    save_figure(fig, outputs, csv, table, synthetic=synthetic)
