"""The pictures of the summary: maps of the slide by class and by confidence, and how sure the model is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nuclass.apply.out_read import TYPED, UNCERTAIN
from nuclass.slides.store import Image, SlideStore

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Frame = tuple[float, float, float, float]
"""Left, right, top, bottom, um."""
MOST_DRAWN = 200_000
"""Cells on a map; of more an even sample is drawn, and the page says so."""
MAP_MM, HIGHEST_MM = 90.0, 96.0
_FOOT_MM, _HISTOGRAM_MM = 5.0, (90.0, 34.0)
_SMALLEST_UM, _SLIMMEST, _PAD = 60.0, 0.4, 0.03
_FAINT, _PICTURE_PX = 0.35, 900
DPI = 220
"""Of the pictures."""
_FILL, _POINTS_PT2 = 0.30, (0.06, 12.0)
_BINS = 40


@dataclass(frozen=True)
class View:
    """What is drawn of a slide.

    ``cells`` has one row a cell with ``x_um y_um class confidence status``; ``frame`` is what is seen, ``picture`` the
    H&E there, pale (h, w, 3), and ``extent`` the place of the picture.
    """

    cells: pd.DataFrame
    frame: Frame
    picture: Image
    extent: Frame

    @property
    def drawn(self) -> pd.DataFrame:
        """The cells in a random order, so that none lies on top by its place in the file; at most MOST_DRAWN."""
        from nuclass.figures.points import random_order

        return self.cells.iloc[random_order(len(self.cells))[:MOST_DRAWN]]


def view_of(cells: pd.DataFrame, store: str | Path) -> View:
    """Return the view of the cells' surroundings; of the whole slide where there is no cell."""
    with SlideStore(store, cache_mb=16) as slide:
        height, width = (side * slide.mpp for side in slide.shape)
        frame = _frame(cells, width, height)
        picture, extent = _pale(slide, frame)
    return View(cells, frame, picture, extent)


def class_map(view: View, colours: Mapping[str, str], style: str | Path) -> bytes:
    """Return the map of the classes as PNG; a cell without a class is grey."""
    from nuclass.figures.points import rgba
    from nuclass.figures.style import GREY

    names = view.drawn["class"].replace("", UNCERTAIN).to_numpy(dtype=str)
    return _png(_map(view, rgba(names, {**colours, UNCERTAIN: GREY}), style)[0])


def confidence_map(view: View, style: str | Path) -> bytes:
    """Return the map of the confidence as PNG, with its key."""
    from matplotlib import colormaps

    from nuclass.figures.pages import axes_mm

    scale = colormaps["viridis"]
    fig, width, height = _map(view, scale(view.drawn["confidence"].to_numpy(np.float64)), style)
    key = axes_mm(fig, width - 24, height + 2.2, 18, 1.6)
    key.imshow(np.linspace(0, 1, 64)[None], cmap=scale, aspect="auto", extent=(0, 1, 0, 1))
    key.set_axis_off()
    for place, text, side in ((-0.08, "0", "right"), (1.08, "1", "left")):
        key.text(place, 0.45, text, fontsize=6, va="center", ha=side)
    return _png(fig)


def confidence_bars(cells: pd.DataFrame, abstain_below: float | None, style: str | Path) -> bytes:
    """Return how many cells have which confidence as PNG, with the line below which the model abstains."""
    from nuclass.figures.style import GREY, empty_panel, new_figure

    fig = new_figure(style, *_HISTOGRAM_MM)
    ax = fig.add_subplot()
    if cells.empty:
        empty_panel(ax, "No cell has a prediction")
        return _png(fig)
    typed = (cells["status"] == TYPED).to_numpy()
    values = cells["confidence"].to_numpy(np.float64)
    ax.hist([values[typed], values[~typed]], bins=_BINS, range=(0, 1), stacked=True, color=["#0072B2", GREY])
    ax.set(xlim=(0, 1), xlabel="Confidence", ylabel="Cells")
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if abstain_below:
        ax.axvline(abstain_below, color="#222222", lw=0.8, ls="--")
        ax.text(
            abstain_below, 1.02, f"abstains below {abstain_below:g}", fontsize=6, transform=ax.get_xaxis_transform()
        )
    return _png(fig)


def _frame(cells: pd.DataFrame, width: float, height: float) -> Frame:
    """Return the cells' surroundings within a slide of this size (um), not too slim to be drawn."""
    if cells.empty:
        return 0.0, width, 0.0, height
    spans = [np.ptp(cells[name].to_numpy(np.float64)) for name in ("x_um", "y_um")]
    longest = max(*spans, _SMALLEST_UM)
    sides = []
    for name, span in zip(("x_um", "y_um"), spans, strict=True):
        middle = float(cells[name].min() + cells[name].max()) / 2
        half = max(span, _SLIMMEST * longest) / 2 + _PAD * longest
        sides += [middle - half, middle + half]
    left, right, top, bottom = sides
    inside = max(left, 0.0), min(right, width), max(top, 0.0), min(bottom, height)
    # Cells that lie beside the picture alone are shown there.
    return inside if inside[0] < inside[1] and inside[2] < inside[3] else (left, right, top, bottom)


def _pale(slide: SlideStore, frame: Frame) -> tuple[Image, Frame]:
    """Return the H&E of a frame, pale, from the level that is just large enough, and the frame it fills."""
    from PIL import Image as Pillow

    left, right, top, bottom = (value / slide.mpp for value in frame)
    longest = max(right - left, bottom - top)
    level = min(slide.levels - 1, max(0, int(np.floor(np.log2(max(longest / _PICTURE_PX, 1))))))
    at = 2**level
    x0, y0 = int(np.floor(left / at)), int(np.floor(top / at))
    width, height = max(int(np.ceil(right / at)) - x0, 1), max(int(np.ceil(bottom / at)) - y0, 1)
    factor = max(-(-max(width, height) // _PICTURE_PX), 1)
    rows = max(256 // factor, 1) * factor
    bands: list[Image] = []
    for y in range(0, height, rows):
        band = slide.region(x0, y0 + y, width, min(rows, height - y), level)
        bands.append(np.asarray(Pillow.fromarray(band).reduce(factor)))
    image = np.concatenate(bands)
    step = slide.mpp * at
    extent = (x0 * step, (x0 + image.shape[1] * factor) * step, y0 * step, (y0 + image.shape[0] * factor) * step)
    return np.asarray(255 - (255 - image.astype(np.float32)) * _FAINT, dtype=np.uint8), extent


def _map(view: View, colours: Any, style: str | Path) -> tuple[Figure, float, float]:
    """Return a map of the drawn cells in these colours (N, 4), its width and height in mm without the foot."""
    from nuclass.figures.pages import axes_mm, mm_figure
    from nuclass.figures.points import point_size, scale_bar
    from nuclass.figures.style import empty_panel

    left, right, top, bottom = view.frame
    aspect = (bottom - top) / (right - left)
    width = min(MAP_MM, HIGHEST_MM / aspect)
    fig = mm_figure(style, width, width * aspect + _FOOT_MM)
    ax: Axes = axes_mm(fig, 0, 0, width, width * aspect)
    x0, x1, y0, y1 = view.extent
    ax.imshow(view.picture, extent=(x0, x1, y1, y0), aspect="auto", interpolation="bilinear")
    ax.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    ax.spines[:].set_visible(True)
    ax.spines[:].set_color("#CCCCCC")
    cells = view.drawn
    if cells.empty:
        empty_panel(ax, "No cell has a prediction")
    else:
        size = point_size(len(cells), width**2 * aspect, _FILL, _POINTS_PT2)
        ax.scatter(cells["x_um"], cells["y_um"], c=colours, s=size, linewidths=0)
    scale_bar(ax, right - left, below_pt=7)
    return fig, width, width * aspect


def _png(fig: Figure) -> bytes:
    import matplotlib.pyplot as plt

    stream = BytesIO()
    fig.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    plt.close(fig)
    return stream.getvalue()
