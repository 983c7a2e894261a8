"""Can the confidence be believed: reliability before and after calibration, and risk against coverage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from nuclass.core.files import read_json
from nuclass.figures.style import (
    BRANCH_COLOURS,
    DOUBLE_MM,
    GREY,
    MODEL_NAMES,
    empty_panel,
    new_figure,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIN_CELLS = 20
_COLOURS = {"local": BRANCH_COLOURS["local"], "global": BRANCH_COLOURS["global"], "gate": BRANCH_COLOURS["fused"]}
_STYLES = {"local": (0, (4, 1.2)), "global": (0, (1.2, 1)), "gate": "solid"}
_COLUMNS = [
    "panel",
    "model",
    "stage",
    "low",
    "high",
    "cells",
    "confidence",
    "accuracy",
    "coverage",
    "threshold",
    "risk",
]


def draw_calibration(
    reliability: Mapping[str, str | Path],
    risks: Mapping[str, str | Path],
    metrics: Mapping[str, str | Path],
    outputs: Sequence[str | Path],
    csv: str | Path,
    *,
    style: str | Path,
    synthetic: bool,
) -> None:
    """Draw a reliability diagram a model, its histogram of confidence below, and risk against coverage beside them.

    Bins with fewer than :data:`MIN_CELLS` cells are left out of the curve, not of the CSV or the ECE; curves of risk
    begin with as many cells.

    Parameters
    ----------
    reliability, risks, metrics
        Model -> its ``reliability.csv``, ``risk_coverage.csv`` and ``metrics.json``.
    """
    fig = new_figure(style, DOUBLE_MM, 70)
    shape = fig.add_gridspec(2, len(reliability) + 1, height_ratios=[4, 1], width_ratios=[1] * len(reliability) + [1.2])
    tops, feet, tables = [], [], []
    for column, (model, path) in enumerate(reliability.items()):
        table = pd.read_csv(path)
        top = fig.add_subplot(shape[0, column])
        foot = fig.add_subplot(shape[1, column], sharex=top)
        _diagram(top, table, read_json(metrics[model]), _COLOURS.get(model, GREY))
        _histogram(foot, table, _COLOURS.get(model, GREY))
        top.set_title(MODEL_NAMES.get(model, model), pad=22)
        top.tick_params(labelbottom=False, labelleft=column == 0)
        foot.tick_params(labelleft=column == 0)
        tops.append(top)
        feet.append(foot)
        tables.append(table.assign(panel="reliability", model=model))
    tops[0].set_ylabel("Accuracy in the bin")
    feet[0].set_ylabel("Cells (%)")
    for foot in feet:
        foot.set_ylim(0, max(ax.get_ylim()[1] for ax in feet))
    curves = {model: pd.read_csv(path) for model, path in risks.items()}
    areas = {model: float(read_json(metrics[model])["risk"]["aurc"]) for model in risks}
    beside = fig.add_subplot(shape[:, -1])
    beside.set_title("Risk and coverage", pad=22)
    _risks(beside, curves, areas)
    tables += [curve.assign(panel="risk", model=model, stage="after") for model, curve in curves.items()]
    numbers = pd.concat([table for table in tables if len(table)], ignore_index=True)
    save_figure(fig, outputs, csv, numbers.reindex(columns=_COLUMNS), synthetic=synthetic)


def _diagram(ax: Axes, table: pd.DataFrame, summary: Mapping[str, Any], colour: str) -> None:
    ax.plot([0, 1], [0, 1], color="#BBBBBB", lw=0.6, ls=(0, (3, 2)), zorder=1)
    eces = {"before": summary["before_calibration"]["ece"], "after": summary["ece"]}
    shown = table[table["cells"] >= MIN_CELLS]
    for stage, ink, face in (("before", GREY, "white"), ("after", colour, colour)):
        rows = shown[shown["stage"] == stage]
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
    if shown.empty:
        words = f"no bin has\n{MIN_CELLS} cells"
        ax.text(0.5, 0.5, words, ha="center", va="center", color=GREY, backgroundcolor="white")
    ax.set(xlim=(0, 1.02), ylim=(0, 1.02))
    ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
    ax.grid()
    ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.01))


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


def _risks(ax: Axes, curves: Mapping[str, pd.DataFrame], areas: Mapping[str, float]) -> None:
    """Draw the error rate of the surest cells against the share of cells that they are."""
    if not any(len(curve) for curve in curves.values()):
        empty_panel(ax, "no cell was judged")
        return
    for model, curve in curves.items():
        rows = curve[curve["cells"] >= min(MIN_CELLS, curve["cells"].max())]
        ax.plot(
            100 * rows["coverage"],
            100 * rows["risk"],
            color=_COLOURS.get(model, GREY),
            ls=_STYLES.get(model, "solid"),
            lw=1.1,
            marker="o",
            ms=2.8,
            markevery=[len(rows) - 1],
            clip_on=False,
            label=f"{MODEL_NAMES.get(model, model)}, AURC {areas[model]:.3f}",
        )
    ax.set(xlim=(0, 101.5), xlabel="Surest cells kept (%)", ylabel="Wrong among them (%)")
    # Room above for the legend, wherever the curves rise.
    ax.set_ylim(0, 1.35 * max(100 * curve["risk"].max() for curve in curves.values() if len(curve)) or 1)
    ax.grid()
    ax.legend(loc="upper left", bbox_to_anchor=(0.03, 0.99), handlelength=2.2)
    words = "all cohorts pooled,\nafter calibration"
    ax.text(0, 1.015, words, fontsize=6, va="bottom", linespacing=1.5, color="#333333", transform=ax.transAxes)
