"""Maps of embeddings: where held-out cells lie in each model, by class, organ, slide, and by right and wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nuclass.core.names import title
from nuclass.figures.pages import FOOT_MM, axes_mm, mm_figure, save_pages, text_mm
from nuclass.figures.points import (
    RIGHT,
    RIGHT_COLOUR,
    WRONG,
    WRONG_COLOUR,
    legend_rows,
    organ_colours,
    point_size,
    random_order,
    rgba,
    slide_colours,
    square_legend,
)
from nuclass.figures.style import DOUBLE_MM, Classes, cohort_name, empty_panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = 15
"""With fewer cells a map shows nothing."""
_POINTS_PT2 = (0.35, 4.0)
_FILL = 0.14
_LEFT_MM, _TOP_MM, _GAP_MM, _ROW_MM = 5.0, 6.0, 2.0, 2.9
_PAGE_MM = 240.0
_SQUARES = 12
_MARK = (0.13, 0.035)
"""Squares along a map's side in which cells are counted, and the room of a mark in shares of the sides."""
_CSV = ("model", "slide", "organ", "cell_id", "label", "prediction", "umap_1", "umap_2")


@dataclass(frozen=True)
class Colouring:
    """One way to colour the cells: its heading, the name of each cell's group, and the groups' colours and texts.

    ``marks`` are short names of groups, written where most of their cells lie: colours alone do not tell many apart.
    """

    heading: str
    column: str
    colours: Mapping[str, str]
    texts: Mapping[str, str]
    marks: Mapping[str, str] = field(default_factory=dict)

    @property
    def entries(self) -> list[tuple[str, str]]:
        """The legend: text and colour of each group."""
        return [(self.texts[name], colour) for name, colour in self.colours.items()]


def draw_umap(
    maps: str | Path,
    outputs: Sequence[str | Path],
    csv: str | Path,
    *,
    classes: str | Path,
    style: str | Path,
    synthetic: bool,
) -> None:
    """Draw one row a model and one column a way to colour the cells.

    Parameters
    ----------
    maps
        From :func:`nuclass.evaluation.embedding_map.map_embeddings`. Where every slide has an organ of its own, the
        columns by organ and by slide would be the same picture, and are one.
    """
    sheet = Classes.read(classes)
    table = pd.read_parquet(maps)[list(_CSV)]
    cells = table.assign(outcome=(table["label"] == table["prediction"]).map({True: RIGHT, False: WRONG}))
    ways = [by_class(cells, sheet), *_by_place(cells), _by_outcome()]
    fig = _page(cells, ways, style, FOOT_MM if synthetic else 0.0)
    save_pages([fig], outputs, csv, table.round({"umap_1": 4, "umap_2": 4}), synthetic=synthetic)


def by_class(cells: pd.DataFrame, sheet: Classes) -> Colouring:
    """Return the colouring by label."""
    names = sheet.ordered(cells["label"].unique())
    colours, texts = {n: sheet.colour(n) for n in names}, {n: sheet.full(n) for n in names}
    return Colouring("By class", "label", colours, texts, {n: sheet.short(n) for n in names})


def by_organ(cells: pd.DataFrame) -> Colouring:
    """Return the colouring by organ."""
    colours = organ_colours(cells["organ"].unique())
    return Colouring("By organ", "organ", colours, {n: n.capitalize() for n in colours})


def _by_place(cells: pd.DataFrame) -> list[Colouring]:
    """Return the colourings by organ and by slide, one for both where each slide has an organ of its own."""
    pairs = cells[["organ", "slide"]].drop_duplicates()
    if len(pairs) == pairs["organ"].nunique():
        slides = dict(zip(pairs["organ"], pairs["slide"], strict=True))
        colours = organ_colours(pairs["organ"].tolist())
        texts = {organ: f"{organ.capitalize()} ({cohort_name(slides[organ])})" for organ in colours}
        return [Colouring("By organ and slide", "organ", colours, texts)]
    slides = slide_colours(sorted(pairs["slide"]))
    return [by_organ(cells), Colouring("By slide", "slide", slides, {n: cohort_name(n) for n in slides})]


def _by_outcome() -> Colouring:
    colours = {RIGHT: RIGHT_COLOUR, WRONG: WRONG_COLOUR}
    return Colouring("Right and wrong", "outcome", colours, {RIGHT: "Right", WRONG: "Wrong"})


def _page(cells: pd.DataFrame, ways: Sequence[Colouring], style: str | Path, foot: float) -> Figure:
    models = list(dict.fromkeys(cells["model"]))
    rows = max(len(models), 1)
    legend = legend_mm(ways)
    side = (DOUBLE_MM - _LEFT_MM - 0.5 - _GAP_MM * (len(ways) - 1)) / len(ways)
    side = min(side, (_PAGE_MM - _TOP_MM - legend - foot) / rows - _GAP_MM)
    fig = mm_figure(style, DOUBLE_MM, _TOP_MM + rows * (side + _GAP_MM) + legend + foot)
    if cells.empty:
        empty_panel(axes_mm(fig, 0, 0, DOUBLE_MM, _TOP_MM + side), "There is no cell to show")
        return fig
    for row, model in enumerate(models):
        part = cells[cells["model"] == model]
        top = _TOP_MM + row * (side + _GAP_MM)
        name = axes_mm(fig, 0, top, _LEFT_MM, side)
        name.set_axis_off()
        name.text(0.35, 0.5, title(str(model)), rotation=90, ha="center", va="center", fontsize=7, weight="bold")
        for column, way in enumerate(ways):
            ax = axes_mm(fig, _LEFT_MM + column * (side + _GAP_MM), top, side, side)
            map_panel(ax, part, way, side)
            if way.column == "outcome" and len(part) >= FEW:
                share_wrong(ax, part)
    for column, way in enumerate(ways):
        left = _LEFT_MM + column * (side + _GAP_MM)
        text_mm(fig, left, 1.5, way.heading, fontsize=7, weight="bold")
        draw_legend(fig, way, left, _TOP_MM + rows * (side + _GAP_MM) + 0.5, 0.92 * side, legend)
    return fig


def map_panel(ax: Axes, cells: pd.DataFrame, way: Colouring, side_mm: float) -> None:
    """Draw cells on their map (``umap_1 umap_2``) in their groups' colours, in random order, in axes that wide."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set(visible=True, color="#D0D0D0", linewidth=0.4)
    if len(cells) < FEW:
        empty_panel(ax, f"{len(cells)} cells: too few for a map")
        return
    order = random_order(len(cells))
    x, y = (cells[name].to_numpy(float)[order] for name in ("umap_1", "umap_2"))
    colours = rgba(cells[way.column].to_numpy(str), way.colours)[order]
    size = point_size(len(cells), side_mm**2, _FILL, _POINTS_PT2)
    ax.scatter(x, y, c=colours, s=size, alpha=0.75, linewidths=0, rasterized=True)
    _write_marks(ax, cells, way)
    ax.margins(0.03)
    low, high = ax.get_ylim()
    ax.set_ylim(low - 0.06 * (high - low), high)
    if cells[way.column].nunique() == 1 and way.column != "outcome":
        ax.text(0.5, 0.015, "one group only", transform=ax.transAxes, ha="center", va="bottom", fontsize=5.5)


def _write_marks(ax: Axes, cells: pd.DataFrame, way: Colouring) -> None:
    """Write the marks, each in the densest square of its group, the largest group first, none on another."""
    import matplotlib.patheffects as effects

    places = cells[["umap_1", "umap_2"]].to_numpy(float)
    low, span = places.min(axis=0), np.maximum(np.ptp(places, axis=0), 1e-9)
    halo = [effects.withStroke(linewidth=1.2, foreground="white")]
    taken: list[tuple[float, float]] = []
    for name in cells[way.column].value_counts().index:
        if name not in way.marks:
            continue
        own = (places[(cells[way.column] == name).to_numpy()] - low) / span
        square = np.minimum((own * _SQUARES).astype(int), _SQUARES - 1)
        code = square[:, 0] * _SQUARES + square[:, 1]
        x, y = map(float, own[code == np.bincount(code).argmax()].mean(axis=0))
        # A word at the edge begins, or ends, there.
        side = "left" if x < _MARK[0] / 2 else "right" if x > 1 - _MARK[0] / 2 else "center"
        middle = x + {"left": 0.5, "right": -0.5, "center": 0.0}[side] * _MARK[0]
        while any(abs(middle - a) < _MARK[0] and abs(y - b) < _MARK[1] for a, b in taken):
            y -= _MARK[1] / 2
        taken.append((middle, y))
        left, bottom = low + span * (x, y)
        ax.text(left, bottom, way.marks[name], fontsize=4.5, ha=side, va="center", path_effects=halo, color="#111111")


def share_wrong(ax: Axes, cells: pd.DataFrame) -> None:
    """Write the number and share of wrong cells into a map."""
    wrong = int((cells["outcome"] == WRONG).sum())
    text = f"{wrong:,} of {len(cells):,} wrong ({100 * wrong / max(len(cells), 1):.1f} %)"
    ax.text(0.985, 0.015, text, transform=ax.transAxes, ha="right", va="bottom", fontsize=5.5)


def legend_mm(ways: Sequence[Colouring], columns: int = 0) -> float:
    """Return the height in mm of the legends below maps; without ``columns`` of one or two columns."""
    return _ROW_MM * max(legend_rows(len(way.entries), columns or _columns(way)) for way in ways) + 1.5


def draw_legend(
    fig: Figure, way: Colouring, left: float, top: float, width: float, height: float, columns: int = 0
) -> None:
    """Draw the legend of a colouring in a space in mm; without ``columns`` in one or two."""
    square_legend(axes_mm(fig, left, top, width, height), way.entries, columns=columns or _columns(way), row_mm=_ROW_MM)


def _columns(way: Colouring) -> int:
    return 2 if len(way.entries) > 4 else 1
