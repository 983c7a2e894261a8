"""The picture of an alignment that is judged at a glance: fields with nuclei, the landscape, the map of residuals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nuclass.core.files import atomic_path
from nuclass.slides.evidence import Nuclei
from nuclass.slides.geometry import Frames
from nuclass.slides.register import view_of
from nuclass.slides.source import Source
from nuclass.slides.verdict import FAIL, PASS, WARN, Limits, Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIELD_UM = 80.0
FIELD_MPP = 0.3
COLOURS = {PASS: "#1b7f4b", WARN: "#b36b00", FAIL: "#b3261e"}
_OUTLINE, _FRAME = "#19f5c1", "#111111"
_SCALE_STEPS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
_FIELDS = 4
_OVERVIEW_PX = 1400


@dataclass(frozen=True)
class Field:
    """A square of the H&E: ``image`` (S, S, 3); outlines of the bundle's nuclei in its px; where it lies (H&E px)."""

    image: NDArray[np.uint8]
    outlines: list[NDArray[np.float64]]
    mpp: float
    centre_he: tuple[float, float]
    side_he: float
    residual_um: float | None = None


def choose_places(blocks: pd.DataFrame, frames: Frames, nuclei: Nuclei, source: Source) -> list[dict[str, float]]:
    """Return up to four places to show (``x_he y_he residual_um``), in reading order.

    The block that is farthest off, and the fullest blocks of the thirds of the slide, each at its most crowded nucleus.
    Where no block could be measured they are nuclei on the picture; where none lies on it there is no place.

    Parameters
    ----------
    blocks
        ``x_he y_he dx_um dy_um n_nuclei clear`` of :class:`nuclass.slides.verdict.Measured`.
    frames, nuclei, source
        The slide; ``nuclei`` in um.
    """
    he = frames.um_to_he(nuclei.centre)
    height, width = source.shape
    on = he[((he >= 0) & (he < (width, height))).all(axis=1)]
    if not len(blocks) or not len(on):
        rows = np.linspace(0, max(len(on) - 1, 0), min(_FIELDS, len(on))).round().astype(int).tolist()
        return [{"x_he": float(on[r, 0]), "y_he": float(on[r, 1]), "residual_um": np.nan} for r in rows]
    blocks = blocks.reset_index(drop=True)
    residual = pd.Series(np.hypot(blocks["dx_um"], blocks["dy_um"])).where(blocks["clear"].astype(bool))
    chosen = [] if residual.isna().all() else [int(residual.idxmax())]
    along = blocks["x_he" if width >= height else "y_he"]
    thirds = np.minimum((along.rank(method="first") - 1) * 3 // len(blocks), 2)
    chosen += [int(group["n_nuclei"].idxmax()) for _, group in blocks.drop(index=chosen).groupby(thirds)]
    places = []
    for row in chosen[:_FIELDS]:
        x, y = _crowded(on, (blocks["x_he"][row], blocks["y_he"][row]), FIELD_UM / frames.mpp_he)
        places.append({"x_he": x, "y_he": y, "residual_um": float(residual[row])})
    return sorted(places, key=lambda place: (place["y_he"], place["x_he"]))


def _crowded(he: NDArray[np.float64], near: tuple[float, float], side: float) -> tuple[float, float]:
    """Return the nucleus near a place with the most others around it, both within ``side`` along each axis.

    The nearest one where none is that near.
    """
    from scipy.spatial import cKDTree

    here = he[(np.abs(he - near) < side).all(axis=1)]
    if not len(here):
        here = he[[int(np.argmin(np.hypot(*(he - near).T)))]]
    counts = cKDTree(here).query_ball_point(here, side / 2, p=np.inf, return_length=True)
    x, y = here[int(np.argmax(counts))]
    return float(x), float(y)


def cut_field(
    source: Source, frames: Frames, nuclei: Nuclei, centre_he: tuple[float, float], residual_um: float = np.nan
) -> Field:
    """Cut one field of 80 um around a place (x, y), H&E px, with the outlines (``nuclei``, um) that touch it."""
    view = view_of(source, frames, FIELD_MPP)
    size = max(round(FIELD_UM / view.mpp), 8)
    x0, y0 = (int(np.floor(v / view.factor - size / 2 + 0.5)) for v in centre_he)
    placed = frames.um_to_he(nuclei.centre) / view.factor - (x0, y0)
    reach = 15.0 / view.mpp
    near = np.flatnonzero(((placed > -reach) & (placed < size + reach)).all(axis=1))
    lines = [frames.um_to_he(line) / view.factor - (x0, y0) for line in nuclei.polygons(near)]
    middle = ((x0 + size / 2) * view.factor, (y0 + size / 2) * view.factor)
    residual = float(residual_um) if np.isfinite(residual_um) else None
    return Field(view.read(x0, y0, size, size), lines, view.mpp, middle, size * view.factor, residual)


def draw_overlay(
    path: str | Path,
    source: Source,
    frames: Frames,
    nuclei: Nuclei,
    measured: Measured,
    limits: Limits,
    record: dict[str, Any],
) -> None:
    """Write the picture as PNG.

    Parameters
    ----------
    path
        Where to.
    source, frames, nuclei
        The H&E, its frames, the bundle's nuclei in um.
    measured, limits
        What was measured, and what it is judged by.
    record
        What ``alignment.json`` holds: slide, verdict, reasons, notes and numbers for the heading.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    places = choose_places(measured.blocks, frames, nuclei, source)
    fields = [cut_field(source, frames, nuclei, (p["x_he"], p["y_he"]), p["residual_um"]) for p in places]
    height, width = source.shape
    heading = _heading(record)
    figure = Figure(dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    top, map_axes, small = _panels(figure, width / height, 0.19 * (heading.count("\n") + 1) + 0.25)
    overview, factor = source.overview(_OVERVIEW_PX)
    extent = (0.0, overview.shape[1] * factor, overview.shape[0] * factor, 0.0)
    _draw_overview(top, overview, extent, fields, frames)
    _draw_map(map_axes, top, overview, extent, measured, limits, frames)
    _draw_landscape(small[0], measured, limits)
    for letter, place in zip("abcd", small[1:], strict=True):
        if ord(letter) - ord("a") < len(fields):
            draw_field(place, fields[ord(letter) - ord("a")], letter)
        else:
            place.set_axis_off()
    title = figure.suptitle(heading, fontsize=9, x=0.012, ha="left", linespacing=1.35)
    title.set_color(COLOURS[record["verdict"]])
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def draw_field(ax: Axes, field: Field, letter: str) -> None:
    """Draw one field with its outlines, a scale bar and its residual."""
    from matplotlib.collections import LineCollection

    size = field.image.shape[0]
    ax.imshow(field.image, extent=(0, size, size, 0), interpolation="antialiased")
    closed = [np.vstack([line, line[:1]]) for line in field.outlines]
    ax.add_collection(LineCollection(closed, colors="#00000088", linewidths=1.7))
    ax.add_collection(LineCollection(closed, colors=_OUTLINE, linewidths=0.8))
    ax.set(xlim=(0, size), ylim=(size, 0))
    scale_bar(ax, field.mpp, size, size)
    ax.set_title(letter, loc="left", fontsize=9, weight="bold", pad=3)
    if field.residual_um is not None:
        ax.set_title(f"off by {field.residual_um:.1f} µm", loc="right", fontsize=7, pad=3)
    _bare(ax)


def scale_bar(ax: Axes, mpp: float, width: float, height: float) -> None:
    """Draw a bar of a round length in the lower left; ``mpp`` um per unit of the axes."""
    from matplotlib.patheffects import withStroke

    length = max((step for step in _SCALE_STEPS if step / mpp <= 0.3 * width), default=_SCALE_STEPS[0])
    x, y = 0.04 * width, height - 0.05 * min(width, height)
    halo = [withStroke(linewidth=3, foreground="white")]
    ax.plot([x, x + length / mpp], [y, y], color=_FRAME, lw=2.2, solid_capstyle="butt", path_effects=halo)
    label = f"{length} µm" if length < 1000 else f"{length // 1000} mm"
    middle = (x + length / mpp / 2, y)
    ax.annotate(label, middle, (0, 3), textcoords="offset points", ha="center", size=7, path_effects=halo)


def _panels(figure: Figure, aspect: float, heading: float) -> tuple[Axes, Axes, list[Axes]]:
    """Lay out overview, map, and five small panels for a slide of this width over height."""
    ratio = float(np.clip(aspect, 1 / 4, 4))
    if ratio > 1.7:
        tall = 2 * 11.6 / ratio + 0.6
        figure.set_size_inches(12, tall + 2.9 + heading)
        maps, last = figure.subfigures(2, 1, height_ratios=[tall, 2.9], squeeze=False)[:, 0]
    elif ratio < 0.6:
        wide = 2 * 9.0 * ratio + 0.2
        figure.set_size_inches(wide + 6.0, 9.6 + heading)
        maps, last = figure.subfigures(1, 2, width_ratios=[wide, 6.0], squeeze=False)[0]
    else:
        tall = 5.8 / ratio + 0.6
        figure.set_size_inches(12, tall + 2.9 + heading)
        maps, last = figure.subfigures(2, 1, height_ratios=[tall, 2.9], squeeze=False)[:, 0]
    small: list[Axes] = list(last.subplots(*((3, 2) if ratio < 0.6 else (1, 5)), squeeze=False).ravel())
    for spare in small[5:]:
        spare.set_axis_off()
    first, second = maps.subplots(*((2, 1) if ratio > 1.7 else (1, 2)), squeeze=False).ravel()
    return first, second, small[:5]


def _heading(record: dict[str, Any]) -> str:
    turn = f"turned {record['rotation_deg']:.1f}°" + (", mirrored" if record["mirrored"] else "")
    parts = [f"H&E {record['mpp_he']:.4f} µm/px, {turn}", f"alignment: {record['align']}"]
    if record["residual_um"] is not None:
        sem = f" ± {1.96 * record['residual_sem_um']:.2f}" if record["residual_sem_um"] is not None else ""
        parts.append(f"residual {record['residual_um']:.2f}{sem} µm")
    if record["score"] is not None:
        parts.append(f"score {record['score']:.0f}")
    parts.append(f"{record['n_measured']:,} of {record['n_nuclei']:,} nuclei measured")
    lines = [f"{record['slide']}:  {record['verdict'].upper()}", "   |   ".join(parts)]
    said = [text.replace(" um", " µm") for text in (*record["reasons"], *record["notes"])]
    return "\n".join([*lines, *(fill(text[:1].upper() + text[1:], 150) for text in said)])


def _draw_overview(
    ax: Axes,
    image: NDArray[np.uint8],
    extent: tuple[float, float, float, float],
    fields: list[Field],
    frames: Frames,
) -> None:
    from matplotlib.patches import Rectangle

    ax.imshow(image, extent=extent, interpolation="antialiased")
    side = max(0.012 * max(extent[1], extent[2]), fields[0].side_he if fields else 0)
    for letter, field in zip("abcd", fields, strict=False):
        x, y = field.centre_he
        ax.add_patch(Rectangle((x - side / 2, y - side / 2), side, side, fill=False, ec=_FRAME, lw=1.2))
        ax.annotate(letter, (x - side / 2, y - side / 2), (0, 2), textcoords="offset points", weight="bold", size=9)
    scale_bar(ax, frames.mpp_he, extent[1], extent[2])
    _bare(ax)


def _draw_map(
    ax: Axes,
    beside: Axes,
    image: NDArray[np.uint8],
    extent: tuple[float, float, float, float],
    measured: Measured,
    limits: Limits,
    frames: Frames,
) -> None:
    pale = (255 - (255 - image.astype(np.uint16)) // 4).astype(np.uint8)
    ax.imshow(pale, extent=extent, interpolation="antialiased")
    ax.set(xlim=extent[:2], ylim=extent[2:])
    clear, unclear = measured.clear_blocks, measured.blocks[~measured.blocks["clear"]]
    ax.scatter(unclear["x_he"], unclear["y_he"], marker="x", s=16, c="#888888", lw=0.9)
    if len(clear):
        size = np.hypot(clear["dx_um"], clear["dy_um"])
        # Arrows are drawn larger than life; the longest spans about a twelfth of the slide.
        longest = max(float(size.max()), limits.pass_um) / frames.mpp_he
        grow = max(extent[1], extent[2]) / 12 / longest
        colours = {"c": size, "cmap": "viridis", "vmin": 0, "vmax": limits.fail_um}
        ax.scatter(clear["x_he"], clear["y_he"], s=14, ec="#333333", lw=0.4, zorder=3, **colours)
        drawn = ax.quiver(
            clear["x_he"], clear["y_he"], clear["dx_um"] / frames.mpp_he, clear["dy_um"] / frames.mpp_he, size,
            angles="xy", scale_units="xy", scale=1 / grow, cmap="viridis", clim=(0, limits.fail_um), width=0.004,
        )  # fmt: skip
        # The bar takes its room from both pictures, so that they stay of one size.
        bar = ax.figure.colorbar(drawn, ax=[beside, ax], location="bottom", shrink=0.6, aspect=40, pad=0.015)
        bar.set_label(f"residual of each block (µm); arrows {grow:.0f} times as long", fontsize=7)
        bar.ax.tick_params(labelsize=6)
    else:
        ax.set_title("no block with a distinct peak", fontsize=7, loc="left", pad=3)
    _bare(ax)


def _draw_landscape(ax: Axes, measured: Measured, limits: Limits) -> None:
    from matplotlib.patches import Circle

    if measured.landscape is None or measured.peak is None:
        ax.text(0.5, 0.5, "no nuclei to measure\non the picture", ha="center", va="center", fontsize=8)
        ax.set_axis_off()
        return
    reach = (len(measured.landscape) / 2) * measured.mpp
    shown = ax.imshow(measured.landscape, extent=(-reach, reach, reach, -reach), cmap="magma", interpolation="nearest")
    for radius, colour in ((limits.pass_um, COLOURS[PASS]), (limits.fail_um, COLOURS[FAIL])):
        ax.add_patch(Circle((0, 0), radius, fill=False, ec="white", lw=1.6))
        ax.add_patch(Circle((0, 0), radius, fill=False, ec=colour, lw=0.9))
    ax.plot(measured.peak.x_um, measured.peak.y_um, "+", color="#19c8ff", ms=9, mew=1.4)
    ax.tick_params(labelsize=6)
    ax.set_xlabel("shift of the nuclei (µm)", fontsize=7)
    ax.set_title("darker inside nuclei than around (s.d.)", fontsize=7, loc="left", pad=3)
    bar = ax.figure.colorbar(shown, ax=ax, shrink=0.7, aspect=20, pad=0.02)
    bar.ax.tick_params(labelsize=6)


def _bare(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_aspect("equal")
    for spine in ax.spines.values():
        spine.set_linewidth(0.6)
