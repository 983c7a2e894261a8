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
    from matplotlib.figure import Figure

COLOURS = {TRAIN: "#0072b2", VAL: "#e69f00", TEST: "#009e73", BUFFER: "#b8b8b8"}
_NAMES = {TRAIN: "train", VAL: "validation", TEST: "test", BUFFER: "buffer (unused)"}
_LONG_SIDE_IN = 8.0
_HEAD_IN, _LINE_IN = 0.62, 0.19
_COVER = 0.35
"""Area of all dots together, as a share of the picture."""


def draw_split(
    path: str | Path,
    cells: pd.DataFrame,
    split: pd.Series,
    report: dict[str, Any],
    window_px: int,
    mpp: float,
) -> None:
    """Draw the cells of a slide, in millimetres of the slide store, with what it was cut along.

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
    # A slide of which nothing can be placed gets an empty picture, one window wide.
    drawn = xy[seen] if seen.any() else np.array([[0.0, 0.0], [window_px * scale] * 2])
    low, high = drawn.min(axis=0), drawn.max(axis=0)
    margin = max(0.02 * float((high - low).max()), window_px * scale / 20)
    low, high = low - margin, high + margin
    across, down = high - low
    zoom = _LONG_SIDE_IN / max(across, down)
    width, height, left = across * zoom, down * zoom, 0.65
    wide = width > 6.5
    head = _HEAD_IN + _LINE_IN * (1 if wide else 3)
    figure = Figure(figsize=(max(width, 3.6) + left + 0.15, height + head + 0.5), dpi=150)
    FigureCanvasAgg(figure)
    total_w, total_h = figure.get_size_inches()
    axes = figure.add_axes((left / total_w, 0.5 / total_h, width / total_w, height / total_h))
    size = float(np.clip(_COVER * width * height * 72**2 / max(seen.sum(), 1), 0.3, 9.0))
    for name in (TRAIN, VAL, TEST, BUFFER):
        rows = seen & (names == name)
        if rows.any():
            label = f"{_NAMES[name]} {rows.sum():,}"
            axes.scatter(xy[rows, 0], xy[rows, 1], s=size, c=COLOURS[name], linewidths=0, label=label)
    axes.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), aspect="equal", anchor="SW", xlabel="x (mm)")
    _draw_bands(axes, report, scale)
    _draw_blocks(axes, report, scale)
    _draw_window(axes, report, xy, names, window_px * scale, scale)
    axes.set_ylabel("y (mm)")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    _write_head(figure, report, left, wide, size)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _write_head(figure: Figure, report: dict[str, Any], left: float, wide: bool, size: float) -> None:
    """Write the slide's name, how it was cut, and the legend over the picture."""
    total_w, total_h = figure.get_size_inches()
    x = left / total_w
    figure.text(x, 1 - 0.18 / total_h, report.get("slide", ""), fontsize=11, weight="bold", va="center")
    figure.text(x, 1 - 0.41 / total_h, layout_in_words(report), fontsize=8, color="#444444", va="center")
    if not figure.axes[0].get_legend_handles_labels()[0]:
        return
    figure.legend(
        loc="upper left",
        bbox_to_anchor=(x, 1 - 0.55 / total_h),
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


def layout_in_words(report: dict[str, Any]) -> str:
    """Return how a slide was cut, such as ``blocks of 1,500 µm, fold 2 of 5``."""
    layout = report.get("layout", "")
    words = {"whole": "held out as a whole", "given": "split as given", "box": "central box, no buffer"}
    text = words.get(layout, layout)
    if "grid" in report:
        text += f" of {report['grid']['side_px'] * report['mpp']:,.0f} µm"
    if "folds" in report:
        text += f", fold {report['fold']} of {report['folds']}"
    if layout == "given" and report.get("no_buffer"):
        text += ", no buffer"
    return text


def _draw_bands(axes: Axes, report: dict[str, Any], scale: float) -> None:
    """Shade the gaps of bands, draw the cuts between folds, or outline the box of the released protocol."""
    from matplotlib.patches import Rectangle

    upright = report.get("axis") == "x"
    for start, end in np.asarray(report.get("edges_px", [])).reshape(-1, 2) * scale:
        (axes.axvspan if upright else axes.axhspan)(start, end, color="#000000", alpha=0.06, lw=0, zorder=0)
    if "cuts_px" in report:
        cuts = np.asarray(report["cuts_px"]) * scale
        for cut in cuts:
            (axes.axvline if upright else axes.axhline)(cut, color="black", lw=0.8)
        ends = np.sort(np.asarray(axes.get_xlim() if upright else axes.get_ylim()))
        middles = np.convolve(np.concatenate([ends[:1], cuts, ends[1:]]), [0.5, 0.5], mode="valid")
        for fold, middle in enumerate(middles, start=1):
            place = (middle, 0.98) if upright else (0.97, middle)
            _number(axes, fold, place, axes.get_xaxis_transform() if upright else axes.get_yaxis_transform())
    if "box_px" in report:
        x0, y0, x1, y1 = np.asarray(report["box_px"]) * scale
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec="black", lw=0.8))


def _draw_blocks(axes: Axes, report: dict[str, Any], scale: float) -> None:
    """Draw the grid; the borders of val and of test strongly, in their colour; of folds each block's number."""
    from matplotlib.collections import LineCollection

    if "grid" not in report:
        return
    grid = report["grid"]
    side, origin = grid["side_px"] * scale, np.asarray(grid["origin_px"]) * scale
    ranks = {(x, y): _rank(name, report) for x, y, name in grid["blocks"]}
    lines: dict[int, list[np.ndarray]] = {0: [], 1: [], 2: []}
    for (x, y), rank in ranks.items():
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            beside = ranks.get((x + dx, y + dy), 0)
            start = np.array([x + (dx > 0), y + (dy > 0)])
            edge = origin + np.array([start, [start[0] + abs(dy), start[1] + abs(dx)]]) * side
            # Of two blocks the higher one draws a border that parts them; inside one split it is thin.
            if rank > beside or beside == rank:
                lines[rank if rank > beside else 0].append(edge)
    axes.add_collection(LineCollection(lines[0], colors="#00000030", linewidths=0.5, zorder=2))
    for rank, name in ((1, VAL), (2, TEST)):
        # A dark line below the coloured one keeps it apart from cells of the same colour.
        for colour, width in (("black", 2.6), (COLOURS[name], 1.4)):
            drawn = LineCollection(lines[rank], colors=colour, linewidths=width, capstyle="projecting", zorder=2 + rank)
            axes.add_collection(drawn, autolim=False)
    if "folds" in report:
        for x, y, fold in grid["blocks"]:
            middle = origin + (np.array([x, y]) + 0.5) * side
            _number(axes, fold, tuple(middle), axes.transData, clip_on=True)


def _rank(name: str | int, report: dict[str, Any]) -> int:
    return int(name == report["fold"]) if "folds" in report else (TRAIN, VAL, TEST).index(str(name))


def _number(axes: Axes, number: int, place: tuple[float, float], transform: Any, **style: Any) -> None:
    box = {"boxstyle": "circle,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.75}
    axes.text(
        *place, str(number), transform=transform, ha="center", va="center", fontsize=7, bbox=box, zorder=5, **style
    )


def _draw_window(
    axes: Axes, report: dict[str, Any], xy: np.ndarray, names: np.ndarray, side: float, scale: float
) -> None:
    """Outline one window of the largest size to scale: in the first gap of bands, else around a cell of val.

    That cell is the one nearest to the middle of the slide, or of any split if val has none.
    """
    from matplotlib.patches import Rectangle

    seen = np.isfinite(xy).all(axis=1)
    if not seen.any():
        return
    rows = np.flatnonzero(seen & (names == VAL))
    rows = rows if len(rows) else np.flatnonzero(seen)
    middle = (xy[seen].min(axis=0) + xy[seen].max(axis=0)) / 2
    corner = xy[rows[np.abs(xy[rows] - middle).max(axis=1).argmin()]] - side / 2
    if report.get("edges_px"):
        along = "xy".index(report["axis"])
        corner = middle - side / 2
        corner[along] = report["edges_px"][0] * scale
    label = f"largest window ({side * 1000:.0f} µm)"
    for colour, width, told in (("white", 2.6, None), ("black", 1.0, label)):
        axes.add_patch(Rectangle(tuple(corner), side, side, fill=False, ec=colour, lw=width, zorder=6, label=told))
