"""What the gate does: by class, by who is right, as a probability, by uncertainty, and where on the slide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nuclass.core.class_names import ALL
from nuclass.core.files import read_json
from nuclass.figures.style import (
    BRANCH_COLOURS,
    DOUBLE_MM,
    GREY,
    Classes,
    class_dots,
    cohort_name,
    empty_panel,
    new_figure,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import SubFigure

MIN_CELLS = 10
"""Bins of fewer cells are left out of the curve, not of the CSV or the error."""
MOST_COLUMNS = 4
"""Maps side by side, at most."""
_MAP_REST_MM = 12.0
"""Title and bar of scale of a map."""
_TRUTHS = {
    "both": ("Both right", GREY),
    "only_local": ("Only local", BRANCH_COLOURS["local"]),
    "only_global": ("Only global", BRANCH_COLOURS["global"]),
    "neither": ("Neither", "#BBBBBB"),
}


def draw_gate(
    tables: Mapping[str, str | Path],
    summary: str | Path,
    outputs: Sequence[str | Path],
    csv: str | Path,
    *,
    classes: str | Path,
    style: str | Path,
    synthetic: bool,
) -> None:
    """Draw the tables of :func:`nuclass.evaluation.gate_behaviour.describe_gate_of_cohorts`.

    ``tables`` maps ``by_class by_truth reliability by_uncertainty map`` to CSV files. The upper panels are of all
    cohorts pooled, the maps of one slide each.
    """
    sheet = Classes.read(classes)
    parts = {name: pd.read_csv(path, keep_default_na=False, na_values=[""]) for name, path in tables.items()}
    pooled = {name: table[table["cohort"] == ALL] for name, table in parts.items() if name != "map"}
    overall = read_json(summary)["cohorts"][ALL]
    squares = parts["map"]
    slides = list(dict.fromkeys(squares["slide"]))
    columns = min(MOST_COLUMNS, max(len(slides), 1))
    map_rows = -(-max(len(slides), 1) // columns)
    top_mm = max(70.0, 4.4 * len(pooled["by_class"]) + 14)
    map_mm = map_rows * (min(_map_mm(squares, columns), 60.0) + _MAP_REST_MM)
    fig = new_figure(style, DOUBLE_MM, top_mm + map_mm)
    above, below = fig.subfigures(2, 1, squeeze=False, height_ratios=[top_mm, map_mm])[:, 0]
    upper = above.add_gridspec(2, 3, width_ratios=[1.3, 1, 1], height_ratios=[1, 1.25])
    _by_class(above.add_subplot(upper[:, 0]), pooled["by_class"], sheet)
    _by_truth(above.add_subplot(upper[0, 1:]), pooled["by_truth"])
    _reliability(above.add_subplot(upper[1, 1]), pooled["reliability"], overall)
    _uncertainty(above.add_subplot(upper[1, 2]), pooled["by_uncertainty"], overall)
    _maps(below, squares, columns, map_rows)
    numbers = pd.concat([table.assign(panel=name) for name, table in parts.items()], ignore_index=True)
    first = ["panel", "cohort", "slide", "class", "truth"]
    save_figure(fig, outputs, csv, numbers[[*first, *numbers.columns.difference(first)]], synthetic=synthetic)


def _boxes(ax: Axes, rows: pd.DataFrame, colours: Sequence[str]) -> None:
    """Draw the middle half as a bar, the middle nine tenths as a line, the median as a tick, the mean as a dot."""
    place = np.arange(len(rows))
    q = {name: rows[name].to_numpy(float) for name in ("q05", "q25", "median", "q75", "q95", "mean")}
    ax.hlines(place, q["q05"], q["q95"], color=colours, lw=0.8, zorder=2)
    ax.barh(place, q["q75"] - q["q25"], left=q["q25"], height=0.5, color=colours, alpha=0.45, lw=0, zorder=3)
    ax.vlines(q["median"], place - 0.25, place + 0.25, color=colours, lw=1.4, zorder=4)
    ax.scatter(q["mean"], place, s=6, color="white", edgecolor="#333333", linewidth=0.5, zorder=5)
    ax.axvline(0.5, color="#888888", lw=0.6, ls=(0, (3, 2)), zorder=1)
    ax.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.4, -0.6))
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    ax.grid(axis="x")
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0, pad=9)


def _by_class(ax: Axes, table: pd.DataFrame, sheet: Classes) -> None:
    names = sheet.ordered(table["class"])
    rows = table.set_index("class").loc[names]
    _boxes(ax, rows, ["#6A6A6A"] * len(names))
    ax.set_yticks(np.arange(len(names)), [sheet.full(name) for name in names])
    class_dots(ax, sheet, names, axis="y", offset=-0.04)
    ax.set(title="By class", xlabel="Gate (weight of global)")


def _by_truth(ax: Axes, table: pd.DataFrame) -> None:
    rows = table.set_index("truth").loc[list(_TRUTHS)]
    _boxes(ax, rows, [colour for _, colour in _TRUTHS.values()])
    cells = rows["cells"].astype(int)
    ax.set_yticks(np.arange(len(rows)), [f"{_TRUTHS[name][0]} ({cells[name]:,})" for name in rows.index])
    ax.tick_params(axis="y", pad=3)
    ax.set(title="By who is right", xlabel="Gate (weight of global)")


def _reliability(ax: Axes, table: pd.DataFrame, overall: Mapping[str, Any]) -> None:
    ax.set_title("Where exactly one is right", pad=20)
    shown = table[table["cells"] >= MIN_CELLS]
    if not len(shown):
        empty_panel(ax, "Too few cells that\nonly one branch has right")
        return
    ax.plot([0, 1], [0, 1], color="#BBBBBB", lw=0.6, ls=(0, (3, 2)), zorder=1)
    colour = BRANCH_COLOURS["fused"]
    # A bin with too few cells leaves a gap: a line across it would look measured.
    drawn = table[["gate", "global_right"]].where(table["cells"] >= MIN_CELLS)
    ax.plot(drawn["gate"], drawn["global_right"], color=colour, lw=0.9, zorder=2)
    size = 6 + 34 * shown["cells"] / shown["cells"].max()
    ax.scatter(shown["gate"], shown["global_right"], s=size, color=colour, linewidth=0, zorder=3)
    ax.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="Gate", ylabel="Share: global right")
    text = f"AUROC {_text(overall['auroc'])}\ncalibration error {_text(overall['calibration_error'])}"
    ax.text(0.98, 0.04, text, transform=ax.transAxes, ha="right", va="bottom", fontsize=6)
    ax.grid()


def _uncertainty(ax: Axes, table: pd.DataFrame, overall: Mapping[str, Any]) -> None:
    x = table["uncertainty"].to_numpy(float)
    colour = BRANCH_COLOURS["fused"]
    ax.fill_between(x, table["q25"], table["q75"], color=colour, alpha=0.2, lw=0)
    rho = _text(overall["spearman_uncertainty"])
    ax.plot(x, table["mean"], color=colour, marker="o", ms=2.6, label=f"gate (rank correlation {rho})")
    for branch in ("local", "global"):
        ax.plot(x, table[f"accuracy_{branch}"], color=BRANCH_COLOURS[branch], lw=0.9, label=f"{branch} right")
    ax.set_title("By local's uncertainty", pad=20)
    ax.set(ylim=(0, 1.02), xlabel="Entropy of local / ln C", ylabel="Gate, share right")
    handles, labels = ax.get_legend_handles_labels()
    gate = ax.legend(handles[:1], labels[:1], loc="lower left", bbox_to_anchor=(-0.02, 1.09))
    ax.add_artist(gate)
    ax.legend(handles[1:], labels[1:], loc="lower left", bbox_to_anchor=(-0.02, 1.01), ncols=2)
    ax.grid()


def _text(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2f}"


def _turned(part: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners (N, 2) of a slide's squares, the longer side across, and width and height (2,), um.

    A slide higher than wide is turned by a quarter to the left: its top is at the left.
    """
    corners, side = part[["x_um", "y_um"]].to_numpy(float), float(part["side_um"].iloc[0])
    low, high = corners.min(axis=0), corners.max(axis=0) + side
    if np.diff(high - low)[0] > 0:
        corners = np.stack([corners[:, 1], low[0] + high[0] - side - corners[:, 0]], axis=1)
        low, high = corners.min(axis=0), corners.max(axis=0) + side
    return corners - low, high - low


def _map_mm(squares: pd.DataFrame, columns: int) -> float:
    """Return the height of the highest map, each being as wide as its column."""
    width = (DOUBLE_MM - 22) / columns - 4
    sizes = [_turned(part)[1] for _, part in squares.groupby("slide", sort=False)]
    return width * max((float(high / wide) for wide, high in sizes), default=0.5)


def _maps(fig: SubFigure, squares: pd.DataFrame, columns: int, rows: int) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    spread = float(np.nanquantile(np.abs(squares["gate"] - 0.5), 0.98))
    reach = min(0.5, max(0.1, np.ceil(spread * 20) / 20))
    colours = LinearSegmentedColormap.from_list("gate", [BRANCH_COLOURS["local"], "#F3F0EA", BRANCH_COLOURS["global"]])
    scale = Normalize(0.5 - reach, 0.5 + reach)
    grid = fig.add_gridspec(rows, columns + 1, width_ratios=[1] * columns + [0.05])
    for place, (slide, part) in enumerate(squares.groupby("slide", sort=False)):
        ax = fig.add_subplot(grid[place // columns, place % columns])
        _map(ax, part, colours, scale)
        ax.set_title(f"{cohort_name(str(slide))}: open for {100 * _open(part):.0f} %")
    beyond = {(True, True): "both", (True, False): "min", (False, True): "max"}
    values = squares["gate"]
    extend = beyond.get((bool((values < scale.vmin).any()), bool((values > scale.vmax).any())), "neither")
    bar = fig.colorbar(ScalarMappable(scale, colours), cax=fig.add_subplot(grid[:, columns]), extend=extend)
    bar.set_label("Mean gate (local to global)")
    bar.outline.set_linewidth(0.4)  # type: ignore[operator]


def _open(part: pd.DataFrame) -> float:
    return float((part["open_share"] * part["cells"]).sum() / part["cells"].sum())


def _map(ax: Axes, part: pd.DataFrame, colours: Colormap, scale: Normalize) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    side = float(part["side_um"].iloc[0])
    corners, (right, bottom) = _turned(part)
    patches = PatchCollection([Rectangle((x, y), side, side) for x, y in corners], cmap=colours, norm=scale, lw=0)
    patches.set_array(part["gate"].to_numpy(float))
    patches.set_edgecolor("face")
    patches.set_linewidth(0.2)
    ax.add_collection(patches)
    bar = _round(0.3 * right)
    foot = bottom + 0.06 * right
    ax.plot([0, bar], [foot, foot], color="#333333", lw=1.2, solid_capstyle="butt")
    length = f"{bar / 1000:g} mm" if bar >= 1000 else f"{bar:g} µm"
    ax.text(bar + 0.02 * right, foot, length, va="center", ha="left", fontsize=5.5)
    ax.set(xlim=(0, right), ylim=(foot + 0.03 * right, 0), aspect="equal", anchor="NW")
    ax.set_axis_off()


def _round(length: float) -> float:
    """Return the largest of 1, 2, 5 times a power of ten that is not longer."""
    power = 10.0 ** np.floor(np.log10(max(length, 1e-9)))
    return float(max(step * power for step in (1, 2, 5) if step * power <= length))
