"""Boxes, arrows and pictures placed in millimetres, for figures that explain rather than count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]
INK, SOFT, PALE = "#222222", "#6B6B6B", "#F4F4F4"


@dataclass(frozen=True)
class Box:
    """A rectangle in mm from the top left of the figure, with the middles of its sides."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> Point:
        """Middle of the left side."""
        return self.x, self.y + self.height / 2

    @property
    def right(self) -> Point:
        """Middle of the right side."""
        return self.x + self.width, self.y + self.height / 2

    @property
    def top(self) -> Point:
        """Middle of the upper side."""
        return self.x + self.width / 2, self.y

    @property
    def bottom(self) -> Point:
        """Middle of the lower side."""
        return self.x + self.width / 2, self.y + self.height


class Canvas:
    """A figure whose coordinates are mm from its top left corner, x to the right and y downwards.

    Parameters
    ----------
    fig
        An empty figure of the wanted size; its layout engine is taken away, so that nothing moves.
    """

    def __init__(self, fig: Figure) -> None:
        fig.set_layout_engine("none")
        self.fig = fig
        self.width, self.height = (side * 25.4 for side in fig.get_size_inches())
        self.ax: Axes = fig.add_axes((0, 0, 1, 1))
        self.ax.set(xlim=(0, self.width), ylim=(self.height, 0))
        self.ax.set_axis_off()

    def band(self, box: Box, colour: str, share: float = 0.1) -> None:
        """Draw a rounded area behind boxes that belong together: ``colour`` at that share, the rest white."""
        from matplotlib.colors import to_rgb

        face = [1 - share * (1 - value) for value in to_rgb(colour)]
        self._round(box, facecolor=face, edgecolor="none", zorder=0.5, radius=1.6)

    def box(self, box: Box, text: str, *, colour: str = SOFT, fill: str = "white", **look: Any) -> Box:
        """Draw a box with a text in its middle, and return it."""
        self._round(box, facecolor=fill, edgecolor=colour, linewidth=0.7, zorder=3, radius=0.9)
        x, y = box.x + box.width / 2, box.y + box.height / 2
        self.text((x, y), text, ha="center", va="center", **look)
        return box

    def text(self, at: Point, text: str, **look: Any) -> None:
        """Write a text; 5.5 pt unless told otherwise."""
        self.ax.text(*at, text, **{"fontsize": 5.5, "color": INK, "zorder": 4, "linespacing": 1.25, **look})

    def arrow(self, points: Sequence[Point], *, colour: str = SOFT, dashed: bool = False) -> None:
        """Draw a line through the points, with a head at the last."""
        from matplotlib.patches import FancyArrowPatch
        from matplotlib.path import Path

        look: dict[str, Any] = {"arrowstyle": "-|>,head_length=2.6,head_width=1.1"}
        look |= {"mutation_scale": 1, "shrinkA": 0, "shrinkB": 0, "joinstyle": "miter", "capstyle": "butt"}
        if dashed:
            # A dashed line would draw the head's outline dashed as well.
            (x0, y0), (x1, y1) = points[-2:]
            share = max(1 - 2.0 / max(float(np.hypot(x1 - x0, y1 - y0)), 2.0), 0.0)
            corner = (x0 + share * (x1 - x0), y0 + share * (y1 - y0))
            line = [*points[:-1], corner]
            self.ax.plot(*zip(*line, strict=True), color=colour, linewidth=0.8, linestyle=(0, (2.4, 1.4)), zorder=2)
            points = [corner, points[-1]]
        self.ax.add_patch(FancyArrowPatch(path=Path(list(points)), **look, color=colour, linewidth=0.8, zorder=2))

    def joint(self, at: Point, colour: str = SOFT) -> None:
        """Draw the dot where a line branches."""
        self.ax.scatter(*at, s=4.5, c=colour, linewidths=0, zorder=2.5)

    def picture(self, box: Box) -> Axes:
        """Return axes that fill a box, without ticks."""
        area = (box.x / self.width, 1 - (box.y + box.height) / self.height)
        ax = self.fig.add_axes((*area, box.width / self.width, box.height / self.height))
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(True)
        ax.spines[:].set(color=SOFT, linewidth=0.5)
        return ax

    def placeholder(self, box: Box, text: str) -> None:
        """Draw a grey box that says why there is no picture."""
        self._round(box, facecolor=PALE, edgecolor="#BBBBBB", linewidth=0.5, zorder=3, radius=0.9, linestyle="--")
        middle = (box.x + box.width / 2, box.y + box.height / 2)
        self.text(middle, text, ha="center", va="center", color=SOFT, fontsize=5)

    def _round(self, box: Box, radius: float, **look: Any) -> None:
        from matplotlib.patches import FancyBboxPatch

        style = f"round,pad=0,rounding_size={radius}"
        self.ax.add_patch(FancyBboxPatch((box.x, box.y), box.width, box.height, boxstyle=style, **look))
