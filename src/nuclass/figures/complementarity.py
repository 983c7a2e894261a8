"""Which branch is right on which cells, class by class, and by how much one is ahead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nuclass.core.class_names import ALL
from nuclass.core.readings import ALL_CLASSES
from nuclass.figures.style import (
    BRANCH_COLOURS,
    DOUBLE_MM,
    GREY,
    Classes,
    class_dots,
    new_figure,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVEL = 0.05
_PARTS = {
    "Both": ("Both right", "#C9C9C9"),
    "A_only": ("Only local right", BRANCH_COLOURS["local"]),
    "B_only": ("Only global right", BRANCH_COLOURS["global"]),
    "Neither": ("Neither", "#EFEFEF"),
}
_FLOATS = ("A_share", "difference", "low", "high", "p_value", "p_holm")


def draw_complementarity(
    counts: str | Path,
    outputs: Sequence[str | Path],
    csv: str | Path,
    *,
    classes: str | Path,
    style: str | Path,
    synthetic: bool,
) -> None:
    """Draw ``complementarity.csv`` of all cohorts pooled: shares of cells, and B minus A with its interval.

    A filled point: the exact McNemar test, corrected over the classes, is below :data:`LEVEL`.
    """
    sheet = Classes.read(classes)
    table = pd.read_csv(counts, keep_default_na=False, na_values=dict.fromkeys(_FLOATS, ""))
    table = table[table["cohort"] == ALL].reset_index(drop=True)
    names = [*sheet.ordered(set(table["class"]) - {ALL_CLASSES}), ALL_CLASSES]
    rows = table.set_index("class").loc[names]
    fig = new_figure(style, DOUBLE_MM, 5.2 * len(names) + 24)
    left, right = fig.subplots(1, 2, sharey=True, width_ratios=[1.5, 1])
    _shares(left, rows)
    _lead(right, rows)
    left.set_yticks(np.arange(len(names)), [f"{sheet.full(n)} ({int(rows.loc[n, 'N']):,})" for n in names])
    left.set_ylim(len(names) - 0.45, -0.55)
    left.tick_params(axis="y", length=0, pad=9)
    class_dots(left, sheet, names[:-1], axis="y", offset=-0.025)
    for ax in (left, right):
        ax.axhline(len(names) - 1.5, color="#BBBBBB", lw=0.5)
        ax.spines["left"].set_visible(False)
    handles, labels = left.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper left", ncols=len(_PARTS))
    handles, labels = right.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper right", ncols=2)
    save_figure(fig, outputs, csv, rows.reset_index(), synthetic=synthetic)


def _shares(ax: Axes, rows: pd.DataFrame) -> None:
    start = np.zeros(len(rows))
    for kind, (label, colour) in _PARTS.items():
        share = rows[f"{kind}_pct"].to_numpy(float)
        ax.barh(np.arange(len(rows)), share, left=start, height=0.68, color=colour, label=label)
        for place in np.flatnonzero(share > 4).tolist():
            ink = "white" if kind in ("A_only", "B_only") else "#333333"
            middle = start[place] + share[place] / 2
            ax.text(middle, place, f"{share[place]:.0f}", ha="center", va="center", fontsize=5.5, color=ink)
        start += share
    ax.set(title="Which branch is right", xlim=(0, 100), xlabel="Cells of the class (%)")


def _lead(ax: Axes, rows: pd.DataFrame) -> None:
    place = np.arange(len(rows))
    value, low, high, p = (100 * rows[c].to_numpy(float) for c in ("difference", "low", "high", "p_holm"))
    ax.axvline(0, color="#888888", lw=0.6, zorder=1)
    colours = np.select([value > 0, value < 0], [BRANCH_COLOURS["global"], BRANCH_COLOURS["local"]], GREY)
    ax.hlines(place, low, high, color=colours, lw=0.9, zorder=2)
    sure = p < 100 * LEVEL
    for chosen, label in ((sure, "McNemar, corrected: p < 0.05"), (~sure, "not so")):
        face = colours[chosen] if label != "not so" else "white"
        edge = colours[chosen]
        ax.scatter(value[chosen], place[chosen], s=13, facecolor=face, edgecolor=edge, linewidth=0.9, zorder=3)
        ax.scatter(
            [], [], s=13, facecolor=GREY if label != "not so" else "white", edgecolor=GREY, linewidth=0.9, label=label
        )
    limit = max(5.0, float(np.nanmax(np.abs([low, high])))) * 1.05
    ax.set(title="Global ahead of local", xlim=(-limit, limit), xlabel="Accuracy, global minus local (points)")
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)
