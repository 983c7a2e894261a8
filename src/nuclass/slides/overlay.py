"""The picture of an alignment: the slide with its cells, and three fields with the outlines of their nuclei."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nuclass.core.files import atomic_path
from nuclass.core.names import KEPT
from nuclass.slides.geometry import Frames
from nuclass.slides.store import SlideStore

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIELD_UM = 100.0
_KEPT, _DROPPED, _OUTLINE, _FRAME = "#10d0a8", "#ffb000", "#19f5c1", "#111111"
_SCALE_STEPS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


def outlines_px(boundaries: pd.DataFrame, frames: Frames) -> pd.DataFrame:
    """Bring outlines to the store: columns ``polygon`` (0, 1, ...), ``cell_id``, ``x_px``, ``y_px``.

    ``boundaries`` has ``cell_id vertex_x vertex_y`` (um) and perhaps ``label_id``, polygon after polygon.
    """
    key = boundaries["label_id" if "label_id" in boundaries else "cell_id"]
    px = frames.um_to_px(boundaries[["vertex_x", "vertex_y"]].to_numpy(np.float64))
    number = (key != key.shift()).cumsum().to_numpy() - 1
    columns = {"polygon": number, "cell_id": boundaries["cell_id"].to_numpy(), "x_px": px[:, 0], "y_px": px[:, 1]}
    return pd.DataFrame(columns)


def draw_overlay(
    path: str | Path,
    store: SlideStore,
    cells: pd.DataFrame,
    outlines: pd.DataFrame,
    measured: dict[str, Any],
    title: str = "",
) -> None:
    """Write the picture as PNG.

    Parameters
    ----------
    path
        Where to.
    store, cells
        The slide.
    outlines
        What :func:`outlines_px` returns.
    measured
        What :func:`nuclass.slides.alignment.measure_alignment` returns; its verdict stands in the heading.
    title
        Name of the slide.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = store.shape
    fields = choose_fields(cells, store)
    wide = width >= height
    ratio = min(max(width, height) / min(width, height), 4.0)
    overview = 10.2 / ratio if wide else 10.2
    size = (10.4, overview + 3.9) if wide else (10.2 / ratio + 3.6, 11.0)
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    if wide:
        grid = figure.add_gridspec(2, 3, height_ratios=[overview, 3.3])
        top, places = grid[0, :], [grid[1, k] for k in range(3)]
    else:
        grid = figure.add_gridspec(3, 2, width_ratios=[10.2 / ratio, 3.3])
        top, places = grid[:, 0], [grid[k, 1] for k in range(3)]
    _draw_overview(figure.add_subplot(top), store, cells, fields)
    for letter, place, field in zip("abc", places, fields, strict=False):
        _draw_field(figure.add_subplot(place), store, outlines, field, letter)
    figure.suptitle(_heading(title, measured), fontsize=10, x=0.012, ha="left")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def choose_fields(cells: pd.DataFrame, store: SlideStore) -> list[tuple[float, float]]:
    """Return the centres (px) of three fields: the most crowded places of the thirds of the longer axis."""
    from scipy.spatial import cKDTree

    xy = cells.loc[cells["status"] == KEPT, ["x_px", "y_px"]].to_numpy(np.float64)
    half = FIELD_UM / store.mpp / 2
    height, width = store.shape
    axis = 0 if width >= height else 1
    inside = xy[((xy > half) & (xy < np.array([width, height]) - half)).all(axis=1)]
    if not len(inside):
        inside = xy
    neighbours = cKDTree(xy).query_ball_point(inside, half, return_length=True)
    edges = np.quantile(inside[:, axis], [0, 1 / 3, 2 / 3, 1])
    fields = []
    for low, high in pairwise(edges):
        here = np.flatnonzero((inside[:, axis] >= low) & (inside[:, axis] <= high))
        if len(here):
            x, y = inside[here[np.argmax(neighbours[here])]]
            fields.append((float(x), float(y)))
    return fields


def _heading(title: str, measured: dict[str, Any]) -> str:
    first = f"{title}   alignment: {measured['verdict']}".strip()
    turn = f"turned {measured['rotation_deg']:.1f}°" + (", mirrored" if measured["mirrored"] else "")
    parts = [f"H&E {measured['mpp_he']:.4f} µm/px, {turn}"]
    if measured["residual_um"] is not None:
        parts.append(f"residual {measured['residual_um']:.2f} µm, score {measured['score']:.0f}")
    parts.append(f"{measured['n_cells']:,} cells kept")
    return f"{first}\n{'   |   '.join(parts)}"


def _draw_overview(axes: Axes, store: SlideStore, cells: pd.DataFrame, fields: list[tuple[float, float]]) -> None:
    from matplotlib.patches import Rectangle

    image = store.thumbnail(1600)
    height, width = store.shape
    axes.imshow(image, extent=(0, width, height, 0), interpolation="antialiased")
    kept = (cells["status"] == KEPT).to_numpy()
    dot = float(np.clip(6000 / max(len(cells), 1), 0.15, 4.0))
    for chosen, colour, label in ((kept, _KEPT, "kept"), (~kept, _DROPPED, "left out")):
        if chosen.any():
            axes.scatter(
                cells["x_px"][chosen],
                cells["y_px"][chosen],
                s=dot,
                c=colour,
                linewidths=0,
                label=f"{label} ({int(chosen.sum()):,})",
                rasterized=True,
            )
    side = FIELD_UM / store.mpp
    for letter, (x, y) in zip("abc", fields, strict=False):
        axes.add_patch(Rectangle((x - side / 2, y - side / 2), side, side, fill=False, ec=_FRAME, lw=1.2))
        axes.annotate(letter, (x - side / 2, y - side / 2), (0, 2), textcoords="offset points", weight="bold", size=9)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.legend(loc="upper right", fontsize=7, markerscale=max(3.0 / dot**0.5, 1.0), framealpha=0.9, handletextpad=0.2)
    _scale_bar(axes, store.mpp, width, height)
    _bare(axes)


def _draw_field(axes: Axes, store: SlideStore, outlines: pd.DataFrame, field: tuple[float, float], letter: str) -> None:
    from matplotlib.collections import LineCollection

    size = round(FIELD_UM / store.mpp)
    image, _ = store.window(*field, size)
    x0, y0 = (int(np.floor(v - size / 2 + 0.5)) for v in field)
    axes.imshow(image, extent=(x0, x0 + size, y0 + size, y0), interpolation="nearest")
    lines = _lines_in(outlines, x0, y0, size)
    axes.add_collection(LineCollection(lines, colors="#00000088", linewidths=1.8))
    axes.add_collection(LineCollection(lines, colors=_OUTLINE, linewidths=0.9))
    axes.set_xlim(x0, x0 + size)
    axes.set_ylim(y0 + size, y0)
    _scale_bar(axes, store.mpp, size, size, (x0, y0))
    axes.set_title(letter, loc="left", fontsize=9, weight="bold", pad=3)
    _bare(axes)


def _lines_in(outlines: pd.DataFrame, x0: int, y0: int, size: int) -> list[NDArray[np.float64]]:
    """Return the polygons with a vertex in the square."""
    inside = outlines["x_px"].between(x0, x0 + size) & outlines["y_px"].between(y0, y0 + size)
    near = outlines[outlines["polygon"].isin(outlines.loc[inside, "polygon"].unique())]
    return [part[["x_px", "y_px"]].to_numpy() for _, part in near.groupby("polygon", sort=False)]


def _scale_bar(axes: Axes, mpp: float, width: float, height: float, origin: tuple[float, float] = (0.0, 0.0)) -> None:
    from matplotlib.patheffects import withStroke

    length = max((step for step in _SCALE_STEPS if step / mpp <= 0.25 * width), default=_SCALE_STEPS[0])
    x, y = origin[0] + 0.03 * width, origin[1] + height - 0.05 * min(width, height)
    halo = [withStroke(linewidth=3, foreground="white")]
    axes.plot([x, x + length / mpp], [y, y], color=_FRAME, lw=2.2, solid_capstyle="butt", path_effects=halo)
    label = f"{length} µm" if length < 1000 else f"{length // 1000} mm"
    axes.annotate(
        label, (x + length / mpp / 2, y), (0, 3), textcoords="offset points", ha="center", size=8, path_effects=halo
    )


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal")
    for spine in axes.spines.values():
        spine.set_linewidth(0.6)
