"""Many cells as points: their size, their order, their legend, and a bar of scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nuclass.core.names import ORGANS
from nuclass.figures.labelling_panels import cluster_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

RIGHT_COLOUR, WRONG_COLOUR = "#BECAD2", "#B2182B"
RIGHT, WRONG = "right", "wrong"
_PALETTE = ("#A5C5DC", "#726046", "#41321A", "#48677B", "#D4BEA0", "#16384B", "#7695AB", "#A28E72")
"""One an organ, in the order of :data:`nuclass.core.names.ORGANS`.

Dull, so that no organ looks like a class: four steps of lightness (22, 42, 60 and 78 in CIELAB), each once bluish and
once yellowish, for these two tints and lightness stay apart in every kind of colour vision.
"""
_LENGTHS_UM = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
_MM_TO_PT = 72 / 25.4


def organ_colours(organs: Sequence[str]) -> dict[str, str]:
    """Return one colour an organ, the same in every figure; other organs than the study's have further ones."""
    others = sorted(set(organs) - set(ORGANS))
    known = dict(zip(ORGANS, _PALETTE, strict=True))
    return {name: known.get(name) or cluster_colour(others.index(name)) for name in sorted(set(organs))}


def slide_colours(slides: Sequence[str]) -> dict[str, str]:
    """Return one colour a slide, by its place among these."""
    names = list(dict.fromkeys(slides))
    if len(names) <= len(_PALETTE):
        return dict(zip(names, _PALETTE[: len(names)], strict=True))
    return {name: cluster_colour(place) for place, name in enumerate(names)}


def point_size(n: int, area_mm2: float, fill: float, limits: tuple[float, float]) -> float:
    """Return the area of a marker (pt^2) such that ``n`` of them cover that share of a space, within the limits."""
    return float(np.clip(fill * area_mm2 * _MM_TO_PT**2 / max(n, 1), *limits))


def random_order(n: int) -> NDArray[Any]:
    """Return a fixed random order of ``n`` points, so that none lies on top by its name or place in a file."""
    return np.random.default_rng(0).permutation(n)


def rgba(names: NDArray[Any], colours: Mapping[str, str]) -> NDArray[np.float32]:
    """Return the colour (N, 4) of each name (N,)."""
    from matplotlib.colors import to_rgba

    found, codes = np.unique(np.asarray(names, dtype=str), return_inverse=True)
    table = np.array([to_rgba(colours[str(name)]) for name in found], dtype=np.float32).reshape(-1, 4)
    return table[codes]


def scale_bar(ax: Axes, width_um: float, below_pt: float = 5.0) -> None:
    """Draw a bar of at most a quarter of a map ``width_um`` wide below its left end, with its length."""
    from matplotlib.transforms import ScaledTranslation

    fitting = [length for length in _LENGTHS_UM if length <= 0.25 * width_um]
    length = fitting[-1] if fitting else _LENGTHS_UM[0]
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length} µm"
    left, bottom = ax.get_xlim()[0], ax.get_ylim()[0]
    below = ax.transData + ScaledTranslation(0, -below_pt / 72, ax.figure.dpi_scale_trans)
    look: dict[str, Any] = {"transform": below, "clip_on": False}
    ax.plot([left, left + length], [bottom] * 2, color="#222222", lw=1.3, solid_capstyle="butt", **look)
    gap = 0.012 * (ax.get_xlim()[1] - left)
    ax.text(left + length + gap, bottom, text, fontsize=5.5, va="center", ha="left", **look)


def square_legend(
    ax: Axes,
    entries: Sequence[tuple[str, str]],
    *,
    columns: int = 1,
    row_mm: float = 2.9,
    size: float = 5.5,
    heading: str = "",
) -> None:
    """Fill axes with a legend of squares: (text, colour), column by column, from the top."""
    box, fig = ax.get_position(), ax.figure
    width_mm = box.width * fig.get_figwidth() * 25.4  # type: ignore[union-attr]
    height_mm = box.height * fig.get_figheight() * 25.4  # type: ignore[union-attr]
    ax.set_axis_off()
    ax.set(xlim=(0, width_mm), ylim=(height_mm / row_mm, 0))
    first = 1 if heading else 0
    if heading:
        ax.text(0, 0.5, heading, fontsize=size + 0.5, weight="bold", va="center")
    rows = legend_rows(len(entries), columns)
    for place, (text, colour) in enumerate(entries):
        column, row = divmod(place, rows)
        x, y = column * width_mm / columns, first + row + 0.5
        ax.scatter(x + 0.7, y, s=size * 2.4, c=colour, marker="s", linewidths=0, clip_on=False)
        ax.text(x + 2.0, y, text, fontsize=size, va="center")


def legend_rows(entries: int, columns: int) -> int:
    """Return the rows that so many entries take in so many columns."""
    return -(-max(entries, 1) // columns)
