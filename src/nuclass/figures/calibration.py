"""Reliability: does a confidence of 0.8 mean right in 8 of 10? Before and after calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from nuclass.core.files import read_json
from nuclass.figures.style import BRANCH_COLOURS, DOUBLE_MM, GREY, MODEL_NAMES, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIN_CELLS = 20
_COLOURS = {"local": BRANCH_COLOURS["local"], "global": BRANCH_COLOURS["global"], "gate": BRANCH_COLOURS["fused"]}


def draw_calibration(
    reliability: Mapping[str, str | Path],
    metrics: Mapping[str, str | Path],
    outputs: Sequence[str | Path],
    csv: str | Path,
    *,
    style: str | Path,
    synthetic: bool,
) -> None:
    """Draw one reliability diagram a model, with the histogram of confidence below.

    Bins with fewer than :data:`MIN_CELLS` cells are left out of the curve, not of the CSV or the ECE.

    ``reliability`` and ``metrics`` map a model to its ``reliability.csv`` and ``metrics.json``.
    """
    fig = new_figure(style, DOUBLE_MM, 92)
    axes = fig.subplots(2, len(reliability), sharex=True, squeeze=False, height_ratios=[4, 1])
    tables = []
    for column, (model, path) in enumerate(reliability.items()):
        table = pd.read_csv(path)
        summary = read_json(metrics[model])
        _diagram(axes[0, column], table, summary, _COLOURS.get(model, GREY))
        _histogram(axes[1, column], table, _COLOURS.get(model, GREY))
        axes[0, column].set_title(MODEL_NAMES.get(model, model), pad=23)
        tables.append(table.assign(model=model))
    axes[0, 0].set_ylabel("Accuracy in the bin")
    axes[1, 0].set_ylabel("Cells (%)")
    for ax in axes[:, 1:].flat:
        ax.tick_params(labelleft=False)
    top = max(ax.get_ylim()[1] for ax in axes[1])
    for ax in axes[1]:
        ax.set_ylim(0, top)
    numbers = pd.concat(tables, ignore_index=True)
    save_figure(
        fig,
        outputs,
        csv,
        numbers[["model", "stage", "low", "high", "cells", "confidence", "accuracy"]],
        synthetic=synthetic,
    )


def _diagram(ax: Axes, table: pd.DataFrame, summary: Mapping[str, Any], colour: str) -> None:
    ax.plot([0, 1], [0, 1], color="#BBBBBB", lw=0.6, ls=(0, (3, 2)), zorder=1)
    eces = {"before": summary["before_calibration"]["ece"], "after": summary["ece"]}
    for stage, ink, face in (("before", GREY, "white"), ("after", colour, colour)):
        rows = table[(table["stage"] == stage) & (table["cells"] >= MIN_CELLS)]
        ax.plot(
            rows["confidence"],
            rows["accuracy"],
            color=ink,
            marker="o",
            ms=2.8,
            mfc=face,
            mec=ink,
            mew=0.8,
            lw=0.9,
            label=f"{stage} calibration, ECE {eces[stage]:.3f}",
        )
    ax.set(xlim=(0, 1.02), ylim=(0, 1.02))
    ax.grid()
    ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.01))


def _histogram(ax: Axes, table: pd.DataFrame, colour: str) -> None:
    for stage in ("after", "before"):
        rows = table[table["stage"] == stage]
        share = 100 * rows["cells"] / max(rows["cells"].sum(), 1)
        width = rows["high"] - rows["low"]
        filled = stage == "after"
        ax.bar(
            rows["low"] + width / 2,
            share,
            width=width * 0.92,
            color=colour if filled else "none",
            alpha=0.75 if filled else 1,
            edgecolor="none" if filled else GREY,
            linewidth=0.6,
        )
    ax.set_xlabel("Confidence")
    ax.set_xlim(0, 1.02)
