"""The gate beside other ways to fuse the same branches: what each reaches, and what the gate wins over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nuclass.core.class_names import ALL, WAYS
from nuclass.core.names import FUSED, GLOBAL, LOCAL, ORACLE, title
from nuclass.figures.style import BRANCH_COLOURS, DOUBLE_MM, cohort_name, empty_panel, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = (FUSED, *(name for name in WAYS if name not in (FUSED, LOCAL, GLOBAL, ORACLE)))
"""Both branches and the oracle are those of figure branches."""
OTHERS = SHOWN[1:]
COLUMNS = 5
"""Panels side by side, at most."""
_METRICS = {"accuracy": "Accuracy", "macro_f1": "Macro-F1"}
_SHIFT = {"accuracy": -0.16, "macro_f1": 0.16}
_INK = "#333333"


def draw_fusion(
    comparison: str | Path, outputs: Sequence[str | Path], csv: str | Path, *, style: str | Path, synthetic: bool
) -> None:
    """Draw what each way to fuse reaches over all cohorts, and the gate minus each cohort by cohort, with intervals.

    ``comparison`` is the CSV of :func:`nuclass.evaluation.gate_ablation.compare_fusions_of_cohorts`.
    """
    table = pd.read_csv(comparison, keep_default_na=False, na_values={"value": "", "low": "", "high": ""})
    table = table[table["metric"].isin(_METRICS) & (table["class"] == "")].drop(columns="class")
    scores = table[(table["cohort"] == ALL) & table["name"].isin(SHOWN)]
    gaps = table[table["name"].isin([f"{FUSED}-{name}" for name in OTHERS])]
    cohorts = sorted(dict.fromkeys(table["cohort"]), key=lambda name: name != ALL)
    columns = min(COLUMNS, len(cohorts) + 1)
    rows = -(-(len(cohorts) + 1) // columns)
    fig = new_figure(style, DOUBLE_MM, 8 + 52 * rows)
    axes = fig.subplots(rows, columns, squeeze=False, sharey=True)
    panels = iter(axes.flat)
    first = next(panels)
    _panel(first, scores, {name: name for name in SHOWN}, _INK)
    first.set(title="Reached, all cohorts", xlabel="Value, 95 % interval")
    handles, labels = first.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper left", ncols=2)
    reach = _reach(gaps)
    for cohort, ax in zip(cohorts, panels, strict=False):
        ax.set_title(f"Gate minus each\n{cohort_name(cohort)}")
        part = gaps[gaps["cohort"] == cohort]
        if part.empty:
            empty_panel(ax, "no difference is known")
            continue
        ax.axvline(0, color="#999999", lw=0.6, zorder=1)
        _panel(ax, part, {name: f"{FUSED}-{name}" for name in OTHERS}, BRANCH_COLOURS[FUSED])
        ax.set(xlim=(-reach, reach), xlabel="Difference")
    for ax in panels:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_yticks(np.arange(len(SHOWN)), [title(name) for name in SHOWN])
        ax.set_ylim(len(SHOWN) - 0.5, -0.5)
    save_figure(fig, outputs, csv, pd.concat([scores, gaps]), synthetic=synthetic)


def _reach(gaps: pd.DataFrame) -> float:
    """Return the end of the axis of differences, the same for all cohorts."""
    ends = gaps[["low", "high", "value"]].abs().to_numpy(float)
    return 1.08 * max(float(np.nanmax(ends)), 0.005) if np.isfinite(ends).any() else 1.0


def _panel(ax: Axes, table: pd.DataFrame, names: Mapping[str, str], ink: str) -> None:
    """Draw values with intervals, a way to fuse a row: those of accuracy filled, those of macro-F1 hollow."""
    for metric, label in _METRICS.items():
        rows = table[table["metric"] == metric].set_index("name").reindex(list(names.values()))
        y = np.array([SHOWN.index(name) for name in names]) + _SHIFT[metric]
        face = ink if metric == "accuracy" else "white"
        ax.hlines(y, rows["low"], rows["high"], color=ink, lw=0.8, zorder=2)
        ax.scatter(rows["value"], y, s=11, facecolor=face, edgecolor=ink, linewidth=0.9, zorder=3, label=label)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
