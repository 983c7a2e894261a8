"""Cohorts as they lie: label, prediction, errors, confidence and gate of every cell on its slide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.names import PROBABILITY_PREFIX
from nuclass.figures.pages import FOOT_MM, axes_mm, mm_figure, save_pages, text_mm
from nuclass.figures.points import (
    RIGHT_COLOUR,
    WRONG_COLOUR,
    legend_rows,
    point_size,
    random_order,
    rgba,
    scale_bar,
    square_legend,
)
from nuclass.figures.style import BRANCH_COLOURS, DOUBLE_MM, Classes, cohort_name, empty_panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

TRUTH, PREDICTION, ERRORS, CONFIDENCE, GATE = "label", "prediction", "errors", "confidence", "gate"
PANELS = (TRUTH, PREDICTION, ERRORS, CONFIDENCE, GATE)
NUMBERS = ("slide", "class", "cells", "predicted", "right", "accuracy", "confidence", "gate")
ALL_CLASSES = "all classes"
_HEADINGS = {TRUTH: "Label", PREDICTION: "Prediction", ERRORS: "Errors", CONFIDENCE: "Confidence", GATE: "Gate"}
_COLUMNS = ("cell_id", "x_px", "y_px", "label", "prediction", "confidence", "gate")
_POINTS_PT2 = (0.05, 5.0)
_FILL = 0.28
_PAGE_MM, _GAP_MM, _TITLE_MM, _KEY_MM, _ROW_MM = 240.0, 3.0, 5.0, 6.0, 2.9
_SMALLEST_UM = 40.0
_PICTURE_PX = 600
_PALEST, _GREYS = 0.6, 8
"""What black becomes, of white; and the step of the greys: few of them keep the files small."""
_MARGIN_MM = 1.5
_WIDE_MM = DOUBLE_MM - 2 * _MARGIN_MM
_MIDDLE = "#C4C0B8"
"""Of the gate's colours; paler would not be seen on the picture."""
_STEPS = 41
"""Of the colours of confidence and gate."""


@dataclass(frozen=True)
class SlideMap:
    """A cohort as it is drawn: one row a cell with ``x_um y_um`` (um of the slide store) and the columns of the panels.

    ``frame`` is left, right, top, bottom (um); ``picture`` the H&E of that frame in grey (h, w), or none.
    """

    slide: str
    cells: pd.DataFrame
    placeless: int
    frame: tuple[float, float, float, float]
    picture: NDArray[np.uint8] | None

    @property
    def aspect(self) -> float:
        """Height of the frame over its width."""
        left, right, top, bottom = self.frame
        return (bottom - top) / (right - left)

    @property
    def accuracy(self) -> float:
        """Share of right cells; NaN without cells."""
        return float(self.cells["right"].mean()) if len(self.cells) else float("nan")

    @property
    def facts(self) -> str:
        """Name, cells and accuracy, for a title."""
        if self.cells.empty:
            return f"{cohort_name(self.slide)}: no cell"
        lost = f", {self.placeless:,} more have no place" if self.placeless else ""
        return f"{cohort_name(self.slide)}: {len(self.cells):,} cells, accuracy {self.accuracy:.3f}{lost}"


def draw_spatial(
    tables: Mapping[str, str | Path],
    stores: Mapping[str, str | Path],
    outputs: Sequence[str | Path],
    csv: str | Path,
    *,
    mpp: float,
    classes: str | Path,
    style: str | Path,
    synthetic: bool,
) -> None:
    """Draw all cohorts on the first page, one row each, and then one page each.

    The points are the rows of the prediction tables; the CSV counts them by slide and class (:data:`NUMBERS`).

    Parameters
    ----------
    tables
        Slide to the fused model's prediction table. Cells whose label is no class of the model are left out, as in
        every score.
    stores
        Slide to its slide store; slides that have none have no picture behind the cells.
    outputs
        As :func:`nuclass.figures.pages.save_pages` takes them, for 1 + S pages.
    mpp
        Micrometres a pixel of ``x_px y_px``.
    """
    sheet = Classes.read(classes)
    slides = [read_slide_map(slide, path, stores.get(slide), mpp) for slide, path in tables.items()]
    counted = [slide_numbers(one, sheet) for one in slides]
    numbers = pd.concat(counted, ignore_index=True) if counted else pd.DataFrame(columns=list(NUMBERS))
    foot = FOOT_MM if synthetic else 0.0
    save_pages(_pages(slides, sheet, style, foot), outputs, csv, numbers, synthetic=synthetic)


def read_slide_map(slide: str, table: str | Path, store: str | Path | None, mpp: float) -> SlideMap:
    """Read a cohort's cells and the picture behind them.

    Raises
    ------
    UserError
        Where the table lacks columns.
    """
    import pyarrow.parquet as pq

    names = pq.read_schema(table).names
    missing = [name for name in _COLUMNS if name not in names]
    if missing:
        raise UserError("A prediction table lacks columns", where=table, found=names, expected=missing)
    cells = pd.read_parquet(table, columns=list(_COLUMNS[1:]))
    known = [name.removeprefix(PROBABILITY_PREFIX) for name in names if name.startswith(PROBABILITY_PREFIX)]
    cells = cells[cells["label"].isin(known)]
    cells = cells.assign(
        x_um=cells["x_px"] * mpp, y_um=cells["y_px"] * mpp, right=cells["label"] == cells["prediction"]
    ).drop(columns=["x_px", "y_px"])
    placed = np.isfinite(cells[["x_um", "y_um"]].to_numpy(float)).all(axis=1)
    cells = cells[placed].reset_index(drop=True)
    frame = _frame(cells)
    picture = None if store is None or cells.empty else _picture(store, frame)
    return SlideMap(slide, cells, int((~placed).sum()), frame, picture)


def slide_numbers(one: SlideMap, sheet: Classes) -> pd.DataFrame:
    """Return :data:`NUMBERS` of a slide: all classes, then each that occurs or is predicted.

    ``predicted`` counts cells called so, ``accuracy`` is the share of the class's cells that are right, ``confidence``
    and ``gate`` are means over its cells.
    """
    cells = one.cells
    rows = [_counted(one.slide, ALL_CLASSES, cells, len(cells))]
    for name in sheet.ordered(set(cells["label"]) | set(cells["prediction"])):
        rows.append(_counted(one.slide, name, cells[cells["label"] == name], int((cells["prediction"] == name).sum())))
    return pd.DataFrame(rows, columns=list(NUMBERS))


def _counted(slide: str, name: str, cells: pd.DataFrame, predicted: int) -> dict[str, Any]:
    means = {key: float(cells[key].mean()) if len(cells) else np.nan for key in ("right", CONFIDENCE, GATE)}
    return {
        "slide": slide,
        "class": name,
        "cells": len(cells),
        "predicted": predicted,
        "right": int(cells["right"].sum()),
        "accuracy": means["right"],
        CONFIDENCE: means[CONFIDENCE],
        GATE: means[GATE],
    }


def _frame(cells: pd.DataFrame) -> tuple[float, float, float, float]:
    if cells.empty:
        return 0.0, 1.0, 0.0, 1.0
    x, y = cells["x_um"].to_numpy(float), cells["y_um"].to_numpy(float)
    pad = 0.01 * max(np.ptp(x), np.ptp(y))
    across, down = (max(float(np.ptp(v)) / 2 + pad, _SMALLEST_UM / 2) for v in (x, y))
    middle = (x.min() + x.max()) / 2, (y.min() + y.max()) / 2
    return middle[0] - across, middle[0] + across, middle[1] - down, middle[1] + down


def _picture(store: str | Path, frame: tuple[float, float, float, float]) -> NDArray[np.uint8]:
    """Return the H&E of a frame in light grey, from the level of the store that is just large enough."""
    from PIL import Image

    from nuclass.slides.store import SlideStore

    left, right, top, bottom = frame
    with SlideStore(store) as slide:
        pixels = max(right - left, bottom - top) / slide.mpp
        level = min(slide.levels - 1, max(0, int(np.floor(np.log2(max(pixels / _PICTURE_PX, 1))))))
        scale = slide.mpp * 2**level
        x0, y0 = int(np.floor(left / scale)), int(np.floor(top / scale))
        image = slide.region(x0, y0, round((right - left) / scale), round((bottom - top) / scale), level)
    step = max(1, int(np.ceil(max(image.shape[:2]) / _PICTURE_PX)))
    small = np.asarray(Image.fromarray(image).convert("L").reduce(step), dtype=np.float64)
    light = 255 * _PALEST + (1 - _PALEST) * small
    return np.asarray(np.minimum(np.round(light / _GREYS) * _GREYS, 255), dtype=np.uint8)


def _pages(slides: Sequence[SlideMap], sheet: Classes, style: str | Path, foot: float) -> Iterator[Figure]:
    yield _overview(slides, sheet, style, foot)
    for one in slides:
        yield _page(one, sheet, style, foot)


def _overview(slides: Sequence[SlideMap], sheet: Classes, style: str | Path, foot: float) -> Figure:
    entries = _class_entries(slides, sheet)
    columns = 5
    legend = 3 + _ROW_MM * (legend_rows(len(entries), columns) + 1)
    side = (_WIDE_MM - _GAP_MM * (len(PANELS) - 1)) / len(PANELS)
    fixed = 4 + _KEY_MM + legend + foot + len(slides) * (_TITLE_MM + _GAP_MM)
    side *= min(1.0, (_PAGE_MM - fixed) / max(sum(one.aspect for one in slides) * side, 1e-9))
    height = fixed + sum(one.aspect for one in slides) * side
    fig = mm_figure(style, DOUBLE_MM, max(height, 25.0))
    if not slides:
        empty_panel(axes_mm(fig, 0, 0, DOUBLE_MM, 25), "There is no cohort")
        return fig
    pitch = (_WIDE_MM + _GAP_MM) / len(PANELS)
    top = 4.0
    for column, panel in enumerate(PANELS):
        text_mm(fig, _MARGIN_MM + column * pitch, 0.8, _HEADINGS[panel], fontsize=7, weight="bold")
    for one in slides:
        text_mm(fig, _MARGIN_MM, top + 0.9, one.facts, fontsize=6.5)
        last = one is slides[-1]
        for column, panel in enumerate(PANELS):
            ax = axes_mm(fig, _MARGIN_MM + column * pitch, top + _TITLE_MM, side, side * one.aspect)
            _panel(ax, one, panel, sheet, side, keyed=last)
            if column == 0 and len(one.cells):
                scale_bar(ax, one.frame[1] - one.frame[0], below_pt=3.0)
        top += _TITLE_MM + side * one.aspect + _GAP_MM
    square_legend(
        axes_mm(fig, _MARGIN_MM, top + _KEY_MM, _WIDE_MM, legend),
        entries,
        columns=columns,
        row_mm=_ROW_MM,
        heading="Classes",
    )
    return fig


def _page(one: SlideMap, sheet: Classes, style: str | Path, foot: float) -> Figure:
    entries = _class_entries([one], sheet, counts=True)
    columns, side = _best_grid(one.aspect, foot)
    rows = -(-(len(PANELS) + 1) // columns)
    cell = _TITLE_MM + side * one.aspect + _KEY_MM
    below = max(0.0, _ROW_MM * (len(entries) + 2) - cell)
    fig = mm_figure(style, DOUBLE_MM, 6 + rows * cell + below + foot)
    text_mm(fig, _MARGIN_MM, 1.2, one.facts, fontsize=7, weight="bold")
    pitch = (_WIDE_MM + _GAP_MM) / columns
    for place, panel in enumerate(PANELS):
        row, column = divmod(place, columns)
        left, top = _MARGIN_MM + column * pitch, 6 + row * cell
        text_mm(fig, left, top + 1, _heading(one, panel), fontsize=6.5)
        ax = axes_mm(fig, left, top + _TITLE_MM, side, side * one.aspect)
        _panel(ax, one, panel, sheet, side, keyed=True)
        if len(one.cells):
            scale_bar(ax, one.frame[1] - one.frame[0])
    row, column = divmod(len(PANELS), columns)
    space = (_MARGIN_MM + column * pitch, 6 + row * cell + _TITLE_MM, side, cell + below - _TITLE_MM)
    square_legend(axes_mm(fig, *space), entries, row_mm=_ROW_MM, heading="Class: cells with the label, predicted")
    return fig


def _best_grid(aspect: float, foot: float) -> tuple[int, float]:
    """Return the columns of a page's panels, two or three, and their width in mm, for the largest panels."""
    found = []
    for columns in (2, 3):
        rows = -(-(len(PANELS) + 1) // columns)
        widest = (_WIDE_MM - _GAP_MM * (columns - 1)) / columns
        room = (_PAGE_MM - 6 - foot) / rows - _TITLE_MM - _KEY_MM
        found.append((min(widest, room / aspect), columns))
    side, columns = max(found)
    return columns, side


def _heading(one: SlideMap, panel: str) -> str:
    if panel == ERRORS and len(one.cells):
        wrong = int((~one.cells["right"]).sum())
        return f"Errors: {wrong:,} cells, {100 * wrong / len(one.cells):.1f} %"
    if panel in (CONFIDENCE, GATE) and len(one.cells):
        return f"{_HEADINGS[panel]}: mean {one.cells[panel].mean():.2f}"
    return _HEADINGS[panel]


def _class_entries(slides: Sequence[SlideMap], sheet: Classes, counts: bool = False) -> list[tuple[str, str]]:
    labels = pd.concat([one.cells["label"] for one in slides]).value_counts() if slides else pd.Series(dtype=int)
    calls = pd.concat([one.cells["prediction"] for one in slides]).value_counts() if slides else labels
    out = []
    for name in sheet.ordered({*labels.index, *calls.index}):
        text = f"{sheet.full(name)}  {labels.get(name, 0):,}, {calls.get(name, 0):,}" if counts else sheet.full(name)
        out.append((text, sheet.colour(name)))
    return out


def _panel(ax: Axes, one: SlideMap, panel: str, sheet: Classes, side: float, *, keyed: bool) -> None:
    left, right, top, bottom = one.frame
    ax.set(xlim=(left, right), ylim=(bottom, top))
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    if one.cells.empty:
        empty_panel(ax, "No cell with a label\nhas a place")
        return
    ax.set_rasterization_zorder(1.5)
    if one.picture is not None:
        ax.imshow(
            one.picture, extent=(left, right, bottom, top), cmap="gray", vmin=0, vmax=255, aspect="auto", zorder=0
        )
        ax.set(xlim=(left, right), ylim=(bottom, top))
    order = random_order(len(one.cells))
    size = point_size(len(one.cells), side**2 * one.aspect, _FILL, _POINTS_PT2)
    x, y = (one.cells[name].to_numpy(float)[order] for name in ("x_um", "y_um"))
    # Smooth edges mix colours by the thousand; without them the picture in the PDF takes a third of the bytes.
    ax.scatter(x, y, c=_colours(one, panel, sheet)[order], s=size, linewidths=0, antialiased=False, zorder=1)
    if keyed:
        _key(ax, panel)


def _colours(one: SlideMap, panel: str, sheet: Classes) -> NDArray[np.float32]:
    cells = one.cells
    if panel in (TRUTH, PREDICTION):
        names = cells[panel].to_numpy(str)
        return rgba(names, {str(name): sheet.colour(str(name)) for name in np.unique(names)})
    if panel == ERRORS:
        return rgba(cells["right"].to_numpy().astype(str), {"True": RIGHT_COLOUR, "False": WRONG_COLOUR})
    return np.asarray(_scale(panel)(cells[panel].to_numpy(float)), dtype=np.float32)


def _scale(panel: str) -> Colormap:
    """Return the colours of a number from 0 to 1; the gate's are those of the figure of the gate."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    if panel == CONFIDENCE:
        return colormaps["viridis"].resampled(_STEPS)
    ends = [BRANCH_COLOURS["local"], _MIDDLE, BRANCH_COLOURS["global"]]
    return LinearSegmentedColormap.from_list("gate", ends, N=_STEPS)


def _key(ax: Axes, panel: str) -> None:
    """Draw the key of the panel's colours below its right end, at a place fixed in mm."""
    if panel in (TRUTH, PREDICTION):
        return
    box, fig = ax.get_position(), ax.figure
    high, wide = (fig.get_figheight() * 25.4, fig.get_figwidth() * 25.4)  # type: ignore[union-attr]
    length = 14.0 if panel == ERRORS else min(18.0, 0.35 * box.width * wide)
    free = 0.0 if panel == ERRORS else 6.5
    place = (box.x1 - (length + free) / wide, box.y0 - 2.6 / high, length / wide, 1.2 / high)
    key = fig.add_axes(place)
    key.set_yticks([])
    key.spines[:].set_visible(False)
    if panel == ERRORS:
        key.set(xlim=(0, length), ylim=(0, 1))
        key.set_xticks([])
        for start, text, colour in ((0.0, "right", RIGHT_COLOUR), (7.0, "wrong", WRONG_COLOUR)):
            key.scatter(start, 0.5, s=13, marker="s", c=colour, linewidths=0, clip_on=False)
            key.text(start + 1.2, 0.5, text, fontsize=5.5, va="center")
        return
    ends = {CONFIDENCE: ("0", "1"), GATE: ("local", "global")}[panel]
    key.imshow(np.linspace(0, 1, 64)[None], cmap=_scale(panel), aspect="auto", extent=(0, 1, 0, 1))
    key.set_xticks([])
    key.text(-0.06, 0.45, ends[0], fontsize=5.5, va="center", ha="right")
    key.text(1.06, 0.45, ends[1], fontsize=5.5, va="center", ha="left")
