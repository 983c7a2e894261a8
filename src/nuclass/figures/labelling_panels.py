"""Panels that the pictures of labelled slides share, and one colour for each cell type."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.names import ABSTAINED, CELL_ID, DROPPED, LABELLED
from nuclass.figures.style import Classes, empty_panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

NUMBERS = ("panel", "row", "column", "measure", "value")
"""Columns of the numbers drawn: one number a row."""
Entry = tuple[str, str, str]
HEADING = "heading"
ABSTAINED_COLOUR = "#DADADA"
BAR_COLOURS = {LABELLED: "#0072B2", ABSTAINED: "#BDBDBD"}
THRESHOLD_COLOUR = "#C2185B"
"""Of the histograms of confidence."""
_COLUMNS = ("cluster", "cell_type", "class", "confidence", "source", "status", "reason")
_GOLDEN = 0.381966
_FIRST_HUE, _LIGHTNESS = 0.36, (0.36, 0.54, 0.72)
"""Of a handful tried, these keep the dull colours furthest from those of the classes."""
_PALEST = 0.65
_DULL, _BRIGHT = 0.20, 0.55
_MM_TO_PT = 72 / 25.4
_SMALLEST_UM = 40.0
_LENGTHS_UM = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
_MAP_POINTS_PT2 = (0.04, 5.0)
_UMAP_POINTS_PT2 = (0.5, 3.0)


@dataclass(frozen=True)
class CellTypes:
    """Order and colour of every cell type, the same on all slides.

    A type named as its class has the class's colour. Another type of that class has a lighter tint of it, in the
    order of the names. A type of no class has a dull colour: three levels of lightness in turn, and within each the
    hue goes round by the golden section, by the type's place among all such types of the ontology in the order of
    their names. So a colour does not depend on the slide.

    Parameters
    ----------
    class_of
        Class of each cell type of the ontology, "" for none.
    classes
        The sheet of classes.
    """

    class_of: Mapping[str, str]
    classes: Classes

    def ordered(self, names: Iterable[str]) -> list[str]:
        """Return the types: those of a class in the order of the classes, then those of none by name."""
        found = sorted(set(names) - {""})
        rank = {name: k for k, name in enumerate(self.classes.ordered(set(self.class_of.values()) - {""}))}

        def key(name: str) -> tuple[int, bool, str]:
            own = self.class_of.get(name, "")
            return rank.get(own, len(rank)), name != own, name

        return sorted(found, key=key)

    def colour(self, name: str) -> str:
        """Return the type's colour; light grey for ""."""
        if not name:
            return ABSTAINED_COLOUR
        own = self.class_of.get(name, "")
        if own:
            siblings = sorted((n for n, c in self.class_of.items() if c == own), key=lambda n: (n != own, n))
            place, last = siblings.index(name) + (own not in siblings), len(siblings) - (own in siblings)
            return _lighter(self.classes.colour(own), _PALEST * place / max(last, 1))
        others = sorted({n for n, c in self.class_of.items() if not c} | {name})
        return _spread(others.index(name), _DULL)

    def full(self, name: str) -> str:
        """Return the type's name for a label."""
        return self.classes.full(name)


@dataclass(frozen=True)
class SlideLabels:
    """What is drawn of one slide.

    ``cells`` has columns of the labels and ``x_um y_um``, one row a cell of the bundle; ``umap`` has the same columns
    of the labels and ``umap_1 umap_2``, one row a cell laid out.
    """

    slide: str
    cells: pd.DataFrame
    umap: pd.DataFrame

    @property
    def n_cells(self) -> int:
        """Return the number of cells of the bundle."""
        return len(self.cells)


def read_slide(slide: str, labels: str | Path, cells: str | Path, umap: str | Path) -> SlideLabels:
    """Read and join the tables of a slide.

    Raises
    ------
    UserError
        Where a labelled cell has no position, or the layout has a cell without a label.
    """
    table = pd.read_parquet(labels, columns=[CELL_ID, *_COLUMNS])
    places = pd.read_parquet(cells, columns=[CELL_ID, "x_um", "y_um"])
    joined = table.merge(places, on=CELL_ID, how="left", validate="one_to_one")
    layout = pd.read_parquet(umap).merge(table, on=CELL_ID, how="left", validate="one_to_one")
    for lost, file, what in (
        (joined[joined["x_um"].isna()], cells, "position"),
        (layout[layout["status"].isna()], labels, "label"),
    ):
        if len(lost):
            raise UserError(
                f"Cells of a slide have no {what}",
                where=f"{file}, slide {slide}",
                found=f"{len(lost)} cells, such as {lost[CELL_ID].iloc[0]}",
                expected="cells, labels and layout of one run",
                fix="make the labels of the slide again",
            )
    # Ids take more memory than all other columns together.
    return SlideLabels(slide, joined.drop(columns=CELL_ID), layout.drop(columns=CELL_ID))


def map_panel(ax: Axes, cells: pd.DataFrame, types: CellTypes, area_mm2: float, bar_um: float = 0.0) -> None:
    """Draw the cells that were not dropped in their places, in the colours of their types; abstained ones below.

    ``bar_um`` is the length of the bar of scale, by default :func:`scale_um`.
    """
    shown = cells[cells["status"] != DROPPED]
    ax.set_aspect("equal", anchor="NW")
    ax.set_axis_off()
    if shown.empty:
        empty_panel(ax, "No cell was kept")
        return
    x, y = shown["x_um"].to_numpy(float), shown["y_um"].to_numpy(float)
    size = _point_size(len(shown), area_mm2, 0.55, _MAP_POINTS_PT2)
    order = _drawing_order(shown)
    ax.scatter(x[order], y[order], c=_colours(shown, types)[order], s=size, marker="o", linewidths=0, rasterized=True)
    pad = 0.01 * max(np.ptp(x), np.ptp(y))
    across, down = (max(float(np.ptp(v)) / 2 + pad, _SMALLEST_UM / 2) for v in (x, y))
    middle = (x.min() + x.max()) / 2, (y.min() + y.max()) / 2
    ax.set(xlim=(middle[0] - across, middle[0] + across), ylim=(middle[1] + down, middle[1] - down))
    _scale_bar(ax, bar_um or scale_um(cells))


def scale_um(cells: pd.DataFrame) -> float:
    """Return the length (um) of a slide's bar of scale, at most a quarter of its width; endless without a cell."""
    x = cells.loc[cells["status"] != DROPPED, "x_um"]
    width = max(float(np.ptp(x)), _SMALLEST_UM) if len(x) else np.inf
    return float([length for length in _LENGTHS_UM if length <= 0.25 * width][-1]) if len(x) else np.inf


def map_size(cells: pd.DataFrame, width_mm: float, height_mm: float) -> tuple[float, float]:
    """Return width and height (mm) of a slide's map within a space."""
    shown = cells[cells["status"] != DROPPED]
    if shown.empty:
        return width_mm, height_mm
    across, down = (max(float(np.ptp(shown[c])), _SMALLEST_UM) for c in ("x_um", "y_um"))
    scale = min(width_mm / across, height_mm / down)
    return across * scale, down * scale


def umap_panel(ax: Axes, layout: pd.DataFrame, colours: NDArray[Any], side_mm: float) -> None:
    """Draw the layout in the given colours, one a row; cells without a type below the rest."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    if layout.empty:
        empty_panel(ax, "No cell to lay out")
        return
    order = _drawing_order(layout)
    x, y = layout["umap_1"].to_numpy(float)[order], layout["umap_2"].to_numpy(float)[order]
    size = _point_size(len(layout), side_mm**2, 0.18, _UMAP_POINTS_PT2)
    ax.scatter(x, y, c=colours[order], s=size, linewidths=0, rasterized=True)
    ax.margins(0.04)


def umap_by_type(ax: Axes, layout: pd.DataFrame, types: CellTypes, side_mm: float) -> None:
    """Draw the layout in the colours of the cell types."""
    umap_panel(ax, layout, _colours(layout, types), side_mm)


def umap_by_cluster(ax: Axes, layout: pd.DataFrame, side_mm: float) -> None:
    """Draw the layout by cluster, each with its number in its middle; the colours mean nothing else."""
    import matplotlib.patheffects as effects

    clusters = layout["cluster"].to_numpy(int)
    found = np.unique(clusters[clusters >= 0])
    shades = {code: cluster_colour(place) for place, code in enumerate(found)}
    umap_panel(ax, layout, np.array([shades.get(code, ABSTAINED_COLOUR) for code in clusters], dtype=object), side_mm)
    halo = [effects.withStroke(linewidth=1.4, foreground="white")]
    for code in found:
        x, y = layout.loc[clusters == code, ["umap_1", "umap_2"]].median()
        ax.text(x, y, str(code), fontsize=5.5, ha="center", va="center", path_effects=halo, color="#111111")


def cluster_colour(place: int) -> str:
    """Return a colour for the cluster at this place."""
    return _spread(place, _BRIGHT)


def confidence_panel(ax: Axes, bins: pd.DataFrame, cells: Mapping[str, int], threshold: float | None) -> None:
    """Draw the confidence of labelled and abstained cells, each as per cent of its own."""
    drawn = bins.dropna(subset=["share"])
    if drawn.empty:
        empty_panel(ax, "These labels carry no confidence")
        return
    width = float(bins["high"].iloc[0] - bins["low"].iloc[0])
    look: dict[str, Any] = {"width": width, "align": "edge", "alpha": 0.85, "linewidth": 0}
    for status, colour in BAR_COLOURS.items():
        part = drawn[drawn["status"] == status]
        if len(part):
            ax.bar(part["low"], 100 * part["share"], label=f"{status} ({cells[status]:,})", color=colour, **look)
    if threshold is not None:
        ax.axvline(threshold, color=THRESHOLD_COLOUR, lw=0.9, ls=(0, (3, 1.5)), label=f"threshold {threshold:g}")
    ax.set(xlim=(0, 1), ylim=(0, None))


def legend_columns(entries: Sequence[Entry], columns: int, rows: int = 1) -> list[list[Entry]]:
    """Share the entries out to columns of at least ``rows``; a heading is never the last of its column."""
    while True:
        parts: list[list[Entry]] = [[]]
        for place, entry in enumerate(entries):
            widow = entry[0] == HEADING and len(parts[-1]) == rows - 1 and rows > 1 and place + 1 < len(entries)
            if len(parts[-1]) >= rows or widow:
                parts.append([])
            parts[-1].append(entry)
        if len(parts) <= columns:
            return parts
        rows += 1


def legend_panel(ax: Axes, parts: Sequence[Sequence[Entry]], columns: int, rows: int, size: float = 6) -> None:
    """Write a legend: entries of :func:`legend_entries`, shared out by :func:`legend_columns`."""
    ax.set_axis_off()
    ax.set(xlim=(0, columns), ylim=(rows - 0.5, -0.5))
    for x, part in enumerate(parts):
        for y, (kind, text, colour) in enumerate(part):
            if kind == HEADING:
                ax.text(x, y, text, fontsize=size, weight="bold", va="center")
            else:
                ax.scatter(x + 0.02, y, s=size * 2.8, c=colour, marker="s", linewidths=0, clip_on=False)
                ax.text(x, y, f"    {text}", fontsize=size, va="center")


def legend_entries(counts: pd.DataFrame, abstained: int, types: CellTypes) -> list[Entry]:
    """Return the entries of a legend (kind, text, colour): types of a class, of none, and abstained, with cells."""
    cells = counts.set_index("cell_type")["cells"].to_dict()
    names = types.ordered(cells)
    out: list[Entry] = []
    groups = {
        "Classes of the study": [n for n in names if types.class_of.get(n, "")],
        "Of no class of the study": [n for n in names if not types.class_of.get(n, "")],
    }
    for heading, group in groups.items():
        if group:
            out.append((HEADING, heading, ""))
            out += [("entry", f"{types.full(name)}  {cells[name]:,}", types.colour(name)) for name in group]
    if abstained:
        out += [(HEADING, "Without a label", ""), ("entry", f"Abstained  {abstained:,}", ABSTAINED_COLOUR)]
    return out


def counted(counts: pd.DataFrame, funnel: pd.DataFrame, bins: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers of legend, histogram and funnel in one long table."""
    left = funnel.drop_duplicates("step")
    lost = funnel[funnel["lost"] > 0]
    parts = [
        long_table("legend", counts["cell_type"], counts["class"], "cells", counts["cells"]),
        long_table("confidence", bins["status"], bins["low"].map("{:.2f}".format), "cells", bins["cells"]),
        long_table("confidence", bins["status"], bins["low"].map("{:.2f}".format), "share", bins["share"]),
        long_table("funnel", left["step"], "", "cells", left["cells"]),
        long_table("funnel", lost["step"], lost["reason"], "lost", lost["lost"]),
    ]
    return pd.concat(parts, ignore_index=True)


def long_table(panel: str, row: pd.Series, column: pd.Series | str, measure: str, value: pd.Series) -> pd.DataFrame:
    """Return one number a row, in the columns of :data:`NUMBERS`."""
    table = pd.DataFrame({"panel": panel, "row": row, "column": column, "measure": measure, "value": value})
    return table.astype({name: "float" if name == "value" else "object" for name in NUMBERS}).reset_index(drop=True)


def _point_size(n: int, area_mm2: float, fill: float, limits: tuple[float, float]) -> float:
    """Return the area of a marker (pt^2) such that ``n`` of them cover that share of a space."""
    return float(np.clip(fill * area_mm2 * _MM_TO_PT**2 / max(n, 1), *limits))


def _drawing_order(cells: pd.DataFrame) -> NDArray[Any]:
    """Return rows in a fixed random order, those without a type first, so that no class lies on top by its name."""
    order = np.random.default_rng(0).permutation(len(cells))
    return order[np.argsort((cells["cell_type"] != "").to_numpy()[order], kind="stable")]


def _colours(cells: pd.DataFrame, types: CellTypes) -> NDArray[Any]:
    from matplotlib.colors import to_rgba

    names, codes = np.unique(cells["cell_type"].to_numpy(str), return_inverse=True)
    return np.array([to_rgba(types.colour(str(name))) for name in names])[codes]


def _scale_bar(ax: Axes, length: float) -> None:
    """Draw a bar of so many micrometres below the left end of a map."""
    from matplotlib.transforms import ScaledTranslation

    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    left, bottom = ax.get_xlim()[0], ax.get_ylim()[0]
    below = ax.transData + ScaledTranslation(0, -4 / 72, ax.figure.dpi_scale_trans)
    look: dict[str, Any] = {"transform": below, "clip_on": False}
    ax.plot([left, left + length], [bottom] * 2, color="#222222", lw=1.5, solid_capstyle="butt", **look)
    gap = 0.012 * (ax.get_xlim()[1] - left)
    ax.text(left + length + gap, bottom, text, fontsize=5.5, va="center", ha="left", **look)


def _spread(place: int, saturation: float) -> str:
    """Return one of many colours of one saturation: three levels of lightness, hues by the golden section in each."""
    turn, level = divmod(place, 3)
    hue = (_FIRST_HUE + turn * _GOLDEN + level / 9) % 1
    return _hex(colorsys.hls_to_rgb(hue, _LIGHTNESS[level], saturation))


def _lighter(colour: str, share: float) -> str:
    from matplotlib.colors import to_rgb

    return _hex([v + (1 - v) * share for v in to_rgb(colour)])


def _hex(rgb: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * value):02X}" for value in rgb)
