"""A picture of a slide's split: every cell in the colour of its split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nuclass.core.files import atomic_path
from nuclass.core.names import BUFFER, TEST, TRAIN, VAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {TRAIN: "#0072b2", VAL: "#e69f00", TEST: "#009e73", BUFFER: "#b8b8b8"}
_NAMES = {TRAIN: "train", VAL: "validation", TEST: "test", BUFFER: "buffer (unused)"}
_LONG_SIDE_IN = 8.0


def draw_split(
    path: str | Path,
    cells: pd.DataFrame,
    split: pd.Series,
    report: dict[str, Any],
    window_px: int,
    mpp: float,
) -> None:
    """Draw the cells of a slide, in millimetres of the slide store.

    Parameters
    ----------
    path
        The PNG to write.
    cells
        Columns x_px, y_px; ``split`` gives the split of each row.
    report
        Of :func:`nuclass.splits.split_cells`.
    window_px
        The largest window, drawn once to scale.
    mpp
        Micrometres per px.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scale = mpp / 1000
    xy = cells[["x_px", "y_px"]].to_numpy(np.float64) * scale
    names = split.to_numpy()
    seen = np.isfinite(xy).all(axis=1)
    low, high = xy[seen].min(axis=0), xy[seen].max(axis=0)
    margin = 0.02 * float((high - low).max())
    low, high = low - margin, high + margin
    across, down = high - low
    zoom = _LONG_SIDE_IN / max(across, down)
    width, height, left = across * zoom, down * zoom, 0.65
    wide = width > 6.5
    head = 0.7 if wide else 1.0
    figure = Figure(figsize=(max(width, 3.4) + left + 0.15, height + head + 0.5), dpi=150)
    FigureCanvasAgg(figure)
    total_w, total_h = figure.get_size_inches()
    axes = figure.add_axes((left / total_w, 0.5 / total_h, width / total_w, height / total_h))
    size = float(np.clip(22_000 * (zoom / 3.3) ** 2 / max(seen.sum(), 1), 0.3, 9.0))
    for name in (TRAIN, VAL, TEST, BUFFER):
        rows = seen & (names == name)
        if rows.any():
            label = f"{_NAMES[name]} {rows.sum():,}"
            axes.scatter(xy[rows, 0], xy[rows, 1], s=size, c=COLOURS[name], linewidths=0, label=label)
    _draw_cuts(axes, report, scale)
    _draw_window(axes, report, low + margin, high - margin, window_px * scale, scale)
    axes.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), aspect="equal", anchor="SW", xlabel="x (mm)")
    axes.set_ylabel("y (mm)")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.text(left / total_w, 1 - 0.18 / total_h, report.get("slide", ""), fontsize=11, weight="bold", va="center")
    figure.legend(
        loc="upper left",
        bbox_to_anchor=(left / total_w, 1 - 0.34 / total_h),
        ncols=5 if wide else 2,
        frameon=False,
        fontsize=8,
        markerscale=float(np.sqrt(28 / size)),
        handletextpad=0.3,
        handlelength=1.2,
        columnspacing=1.2,
        borderpad=0,
        borderaxespad=0,
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_cuts(axes: Axes, report: dict[str, Any], scale: float) -> None:
    """Shade the gaps, or outline the box of the released protocol."""
    from matplotlib.patches import Rectangle

    edges = np.asarray(report.get("edges_px", [])) * scale
    for start, end in edges.reshape(-1, 2):
        if report["axis"] == "x":
            axes.axvspan(start, end, color="#000000", alpha=0.06, lw=0, zorder=0)
        else:
            axes.axhspan(start, end, color="#000000", alpha=0.06, lw=0, zorder=0)
    if "box_px" in report:
        x0, y0, x1, y1 = np.asarray(report["box_px"]) * scale
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec="black", lw=0.8))


def _draw_window(
    axes: Axes, report: dict[str, Any], low: np.ndarray, high: np.ndarray, side: float, scale: float
) -> None:
    """Outline one window of the largest size to scale: in the middle of the first gap, or in a corner."""
    from matplotlib.patches import Rectangle

    corner = high - side
    if report.get("edges_px"):
        along = "xy".index(report["axis"])
        corner = (low + high - side) / 2
        corner[along] = report["edges_px"][0] * scale
    label = f"largest window ({side * 1000:.0f} µm)"
    axes.add_patch(Rectangle(tuple(corner), side, side, fill=False, ec="black", lw=1.0, zorder=4, label=label))
