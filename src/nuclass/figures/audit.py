"""What each flaw of the original does to the macro-F1: on the cohorts, on val, and how far a report then flatters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nuclass.figures.style import BRANCH_COLOURS, DOUBLE_MM, GREY, empty_panel, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK = "#333333"
_COLOURS = {
    "as expected": BRANCH_COLOURS["global"],
    "against expectation": BRANCH_COLOURS["fused"],
    "not seen": GREY,
    "changes nothing": "#C9C9C9",
}
_ARROWS = {"lower": "◂", "higher": "▸", "no change": "="}
_ROW_MM = 4.2


def draw_audit(
    audit: str | Path, outputs: Sequence[str | Path], csv: str | Path, *, style: str | Path, synthetic: bool
) -> None:
    """Draw each switch's difference to the corrected protocol where it is judged, cohorts beside val, and the flattery.

    Parameters
    ----------
    audit
        From :func:`nuclass.evaluation.audit.audit`: the reference first, then one row a switch.
    """
    table = pd.read_csv(audit)
    text = ["expected", "expected_on", "verdict", "val_expected", "val_verdict", "idle", "metric"]
    table[text] = table[text].astype(object).fillna("")
    switches = table[table["expected"] != ""].reset_index(drop=True)
    reference = table[table["expected"] == ""].head(1)
    fig = new_figure(style, DOUBLE_MM, 24 + _ROW_MM * max(len(switches), 3))
    axes = fig.subplots(1, 3, width_ratios=[1.25, 0.9, 0.7], sharey=True)
    if switches.empty or reference.empty:
        empty_panel(axes[0], "No flaw of the original was audited")
        for ax in axes[1:]:
            ax.set_axis_off()
    else:
        left, middle, right = axes
        _differences(left, switches)
        _reported(middle, switches, reference.iloc[0])
        _flattery(right, switches)
        handles, labels = left.get_legend_handles_labels()
        order = [labels.index(name) for name in _COLOURS if name in labels]
        fig.legend(
            [handles[i] for i in order], [labels[i] for i in order], loc="outside upper left", ncols=len(_COLOURS)
        )
        handles, labels = middle.get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper right", ncols=2)
    save_figure(fig, outputs, csv, table, synthetic=synthetic)


def _judged(table: pd.DataFrame) -> dict[str, pd.Series[float]]:
    """Return the differences that the verdicts are on, with their ends."""
    on_val = table["expected_on"] == "val"
    return {
        end: table[f"difference{end}"].where(~on_val, table[f"val_difference{end}"]) for end in ("", "_low", "_high")
    }


def _differences(ax: Axes, table: pd.DataFrame) -> None:
    ax.axvline(0, color=_INK, lw=0.6, zorder=1)
    noise = table["seed_noise"].to_numpy(float)
    spread = float(np.nanmax(np.where(table["expected_on"] == "cohorts", noise, np.nan))) if len(noise) else np.nan
    if np.isfinite(spread) and spread > 0:
        ax.axvspan(-spread, spread, color="#F1F1F1", lw=0, zorder=0)
    _dots(ax, _judged(table), table["verdict"], on_val=(table["expected_on"] == "val").to_numpy(), labelled=True)
    too = {end: table[f"val_difference{end}"].where(table["val_expected"] != "") for end in ("", "_low", "_high")}
    _dots(ax, too, table["val_verdict"], on_val=np.ones(len(table), bool), shift=0.28)
    transform = ax.get_yaxis_transform()
    for place, (_, row) in enumerate(table.iterrows()):
        ax.text(1.01, place, _told(row), transform=transform, va="center", ha="left", fontsize=5.5, color=_INK)
    names = [row["switch"] + (" (accuracy)" if row["metric"] == "accuracy" else "") for _, row in table.iterrows()]
    ax.set_yticks(np.arange(len(table)), names)
    ax.set_ylim(len(table) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.set_xlabel("Macro-F1 minus corrected, on the cohorts (open: on val)")
    ax.set_title("Effect of one flaw (grey band: seeds; ◂ ▸ =: expected)", fontsize=6.5)


def _dots(
    ax: Axes,
    values: Mapping[str, pd.Series[float]],
    verdicts: pd.Series[str],
    *,
    on_val: np.ndarray,
    shift: float = 0.0,
    labelled: bool = False,
) -> None:
    """Draw differences with their intervals in the colours of their verdicts, hollow where they are on val."""
    for verdict, colour in _COLOURS.items():
        mine = (verdicts == verdict).to_numpy()
        if not mine.any():
            continue
        places = np.flatnonzero(mine) + shift
        value, low, high = (part[mine].astype(float) for part in values.values())
        fill = np.where(on_val[mine], "white", colour)
        ax.hlines(places, low, high, color=colour, lw=1.0, zorder=2)
        ax.scatter(value, places, s=13, facecolor=fill, edgecolor=colour, linewidth=0.8, zorder=3)
        if labelled:
            ax.scatter([], [], s=13, color=colour, label=verdict)


def _told(row: pd.Series[str]) -> str:
    """Return the signs of what theory expects, and on which cells where it is not the cohorts."""
    first = _ARROWS.get(row["expected"], "") + (" on val" if row["expected_on"] == "val" else "")
    return f"{first}  {_ARROWS[row['val_expected']]} on val" if row["val_expected"] else first


def _reported(ax: Axes, table: pd.DataFrame, reference: pd.Series[float]) -> None:
    places = np.arange(len(table))
    known = table["val"].notna().to_numpy()
    part = table[known]
    ax.axvline(float(reference["estimate"]), color=_INK, lw=0.6, ls=(0, (3, 2)), zorder=1)
    ax.hlines(places[known], part["estimate"], part["val"], color="#C9C9C9", lw=1.2, zorder=2)
    same = table["estimate"].where(table["metric"] == "macro_f1")
    ax.scatter(same, places, s=13, color=BRANCH_COLOURS["fused"], zorder=3, label="cohorts")
    ax.scatter(
        part["val"], places[known], s=15, facecolor="white", edgecolor=_INK, linewidth=0.8, zorder=3,
        label="val, which chose the models",
    )  # fmt: skip
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.set_xlabel("Macro-F1 of the fused model")
    ax.set_title("Levels (dashed: corrected)", fontsize=6.5)


def _flattery(ax: Axes, table: pd.DataFrame) -> None:
    """Draw how much more than the corrected protocol's a report flatters, with its interval."""
    places = np.arange(len(table))
    ax.axvline(0, color=_INK, lw=0.6, zorder=1)
    ax.hlines(places, table["flattery_low"], table["flattery_high"], color=_INK, lw=1.0, zorder=2)
    ax.scatter(table["flattery"], places, s=13, color=_INK, zorder=3)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.set_xlabel("Optimism, less corrected")
    ax.set_title("Flatters by", fontsize=6.5)
