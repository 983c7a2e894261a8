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
    width, height = max(across * zoom, 3.2), down * zoom
    figure = Figure(figsize=(width + 0.9, height + 1.25), dpi=150)
    FigureCanvasAgg(figure)
    total_w, total_h = figure.get_size_inches()
    axes = figure.add_axes((0.7 / total_w, 0.55 / total_h, width / total_w, height / total_h))
    size = float(np.clip(22_000 * (zoom / 3.3) ** 2 / max(seen.sum(), 1), 0.3, 9.0))
    for name in (BUFFER, TRAIN, VAL, TEST):
        rows = seen & (names == name)
        if rows.any():
            label = f"{_NAMES[name]} {rows.sum():,}"
            axes.scatter(xy[rows, 0], xy[rows, 1], s=size, c=COLOURS[name], linewidths=0, label=label)
    _draw_cuts(axes, report, scale)
    _draw_window(axes, low, high, window_px * scale, margin)
    axes.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), aspect="equal", xlabel="x (mm)", ylabel="y (mm)")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.text(0.7 / total_w, 1 - 0.22 / total_h, report.get("slide", ""), fontsize=11, weight="bold", va="center")
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0, 1, 0),
        borderaxespad=0.4,
        ncols=4 if width > 5 else 2,
        frameon=False,
        fontsize=8,
        markerscale=float(np.sqrt(28 / size)),
        handletextpad=0.2,
        columnspacing=1.2,
        borderpad=0,
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


def _draw_window(axes: Axes, low: np.ndarray, high: np.ndarray, side: float, margin: float) -> None:
    """Outline one window of the largest size in a corner, to scale."""
    from matplotlib.patches import Rectangle

    if side > 0.6 * float((high - low).min()):
        return
    x0, y0 = high[0] - margin - side, high[1] - margin - side
    axes.add_patch(Rectangle((x0, y0), side, side, fc=(1, 1, 1, 0.75), ec="black", lw=0.9, zorder=4))
    axes.text(x0 + side / 2, y0 + side / 2, "largest\nwindow", ha="center", va="center", fontsize=6, zorder=5)
