"""Controls of the local model's activation maps: other weights, the original's layer, attention alone."""

from __future__ import annotations

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
    """Draw one row a cell: its crop, the local map, and four things to hold it against.

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
    last = f"Attention rollout,\n{_WHOSE[whose]}" if whose in _WHOSE else "Attention\nrollout"
    fig, axes = new_grid(style, len(table), [*(column.title for column in _LOCAL), last], foot_mm=8)
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
    save_figure(fig, outputs, csv, table, synthetic=synthetic)


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
