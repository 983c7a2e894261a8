"""Controls of the local model's activation maps: other weights, the original's layer, attention alone."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nuclass.figures.gradcam import Column, describe, mark_centre, new_grid, read_maps, scale_bar, show_map
from nuclass.figures.style import Classes, empty_panel, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOCAL = (
    Column("Cell"),
    Column("Activation map\nof the local model", cam="cam"),
    Column("The same, weights\ndrawn anew", cam="random"),
    Column("As released:\nfirst layer", cam="released"),
)
_ROLLOUT = Column("", "rollout_image", "rollout")
_WHOSE = {"local": "local network", "context": "context network"}
_LINE, _LINE_MM = 135, 2.9
SAME, ALIKE = 0.5, 0.2
"""Mean rank correlations from which on maps with random weights are called the same, and alike."""


def draw_gradcam_controls(
    maps: str | Path,
    controls: str | Path,
    outputs: Sequence[str | Path],
    csv: str | Path,
    *,
    windows: tuple[int, int],
    mpp: float,
    classes: str | Path,
    style: str | Path,
    synthetic: bool,
) -> None:
    """Draw one row a cell: its crop, the local map, and four things to hold it against; and what comes of it in words.

    Parameters
    ----------
    maps
        ``.npz`` as :func:`nuclass.interpret.controls.compute_controls` returns it; empty where there is no cell.
    controls
        Its table, one row a cell in the same order.
    windows
        Sides of the local and the global window in pixels of ``mpp``.
    """
    sheet, table = Classes.read(classes), pd.read_csv(controls, dtype={"cell_id": str})
    whose = str(table["rollout_of"].iloc[0]) if len(table) else "none"
    columns = [*_LOCAL, _ROLLOUT] if whose in _WHOSE else list(_LOCAL)
    arrays = {}
    if len(table):
        arrays = read_maps(maps, _LOCAL) | (read_maps(maps, [Column(""), _ROLLOUT]) if whose in _WHOSE else {})
    titles = [column.title for column in _LOCAL]
    titles.append(f"Attention rollout,\n{_WHOSE[whose]}" if whose in _WHOSE else "Attention\nrollout")
    layer = str(table["layer"].iloc[0]) if len(table) else ""
    told = textwrap.wrap(verdict(table), _LINE) if len(table) else []
    notes = ["", layer, layer, "", ""] if layer else []
    fig, axes = new_grid(style, len(table), titles, notes, foot_mm=7, below_mm=_LINE_MM * len(told))
    for row, facts in table.iterrows():
        describe(axes[row, 0], facts, sheet)
        for ax, column in zip(axes[row, 1:], columns, strict=False):
            wide = column is _ROLLOUT and whose == "context"
            show_map(ax, arrays[column.image][row], arrays[column.cam][row] if column.cam else None, windows[wide])
            scale_bar(ax, windows[wide], mpp, 50 if wide else 10)
            _circle(ax, windows[wide], float(facts["radius_px"]))
            if column.cam:
                ax.set_xlabel(_words(facts, column.cam, sheet), fontsize=5, labelpad=1.5, linespacing=1.15)
        if whose not in _WHOSE:
            empty_panel(axes[row, -1], "No network here\nhas attention")
    if told:
        fig.supxlabel("\n".join(told), x=0.005, ha="left", fontsize=6, color="#222222", linespacing=1.3)
    save_figure(fig, outputs, csv, table, synthetic=synthetic)


def verdict(table: pd.DataFrame) -> str:
    """Return in words what the controls of all cells together say, one row a cell.

    Training draws maps to the cell, or away from it, where the mean difference of both shares over the cells is more
    than twice its standard error. The mean rank correlation is above or below the limits, :data:`SAME` and
    :data:`ALIKE`, where twice its standard error says so too.
    """
    known = table[["in_cell_cam", "in_cell_random"]].dropna()
    text = ""
    if len(known):
        own, random = known["in_cell_cam"].mean(), known["in_cell_random"].mean()
        cells = f"{len(known)} cell" + "s" * (len(known) != 1)
        text = f"Mean share in the cell over {cells}: {own:.1f} × chance with learned weights, "
        text += f"{random:.1f} × with random ones. {_drawn(known['in_cell_cam'] - known['in_cell_random'])} "
    alike = table["spearman_whole"].dropna()
    mean = float(alike.mean()) if len(alike) else np.nan
    if not np.isfinite(mean):
        return text + "Rank correlation with random weights: not known."
    error = float(alike.std(ddof=1)) / len(alike) ** 0.5 if len(alike) > 1 else np.inf
    if mean - 2 * error >= SAME:
        meaning = "the maps hardly change with the weights, so they tell of the picture, not of the model"
    elif mean - 2 * error >= ALIKE:
        meaning = "the maps keep some likeness when the weights go, so they tell of the picture as well"
    elif mean + 2 * error < ALIKE:
        meaning = "the maps change with the weights, so they tell of what was learned"
    else:
        meaning = "too few cells to say whether the maps change with the weights"
    return text + f"Mean rank correlation with random weights {_number(mean, '{:.2f}')}: {meaning}."


def _drawn(gap: pd.Series) -> str:
    if len(gap) < 2:
        return "One cell says nothing about training."
    error = float(gap.std(ddof=1)) / len(gap) ** 0.5
    if abs(gap.mean()) <= 2 * error:
        return "That is no clear difference: these cells do not show that training draws the map to the cell or away."
    towards = "to the cell" if gap.mean() > 0 else "away from the cell"
    return f"Training draws the map {towards}."


def _circle(ax: Axes, side: int, radius: float) -> None:
    """Draw the circle of the cell's area; where it is not known, mark the middle."""
    from matplotlib.patches import Circle

    if not np.isfinite(radius):
        mark_centre(ax, side)
        return
    for colour, width in (("white", 1.3), ("black", 0.6)):
        ax.add_patch(Circle((side / 2, side / 2), radius, fill=False, ec=colour, lw=width))


def _words(facts: pd.Series, name: str, sheet: Classes) -> str:
    inside = _number(facts[f"in_cell_{name}"], "{:.1f} × chance in the cell")
    call = sheet.full(str(facts["prediction"]))
    if name == "cam":
        call += f", p = {facts['probability']:.2f}"
    elif name == "random":
        call = "rank correlation " + _number(facts["spearman_whole"], "{:.2f}")
    elif name == "rollout":
        call = "one for all classes"
    return f"{call}\n{inside}"


def _number(value: float, form: str) -> str:
    return form.format(value).replace("-", "\N{MINUS SIGN}") if np.isfinite(value) else "not known"
