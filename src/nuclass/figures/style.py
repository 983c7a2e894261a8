"""The shared look: sizes, class colours and order, model colours, and how a figure is saved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd

from nuclass.core.class_names import class_order, class_title, cohort_title
from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path, write_csv
from nuclass.core.names import MODELS, title

mpl.use("Agg")

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SINGLE_MM, DOUBLE_MM = 89.0, 183.0
NOTE = "synthetic study"
_REPORT_PX, _REPORT_DPI = 1500, 200
"""Most pixels across and most pixels an inch of the JPEG that the report shows."""

# Most are Okabe and Ito's. The grey comes near the others where red or green is not seen; its marker is hollow.
BRANCH_COLOURS = {
    **{"local": "#E69F00", "global": "#0072B2", "mean": "#8C8C8C"},
    **{"fused": "#C2185B", "safe": "#009E73", "oracle": "#333333"},
}
BRANCH_MARKERS = {"local": "o", "global": "s", "mean": "D", "fused": "o", "safe": "^", "oracle": "_"}
BRANCH_NAMES = {name: title(name) for name in BRANCH_COLOURS}
MODEL_NAMES = {name: title(name) for name in MODELS}
GREY, LIGHT = "#8C8C8C", "#EDEDED"


@dataclass(frozen=True)
class Classes:
    """Short name, group and colour of each class, in the one order that every figure uses."""

    table: pd.DataFrame

    @classmethod
    def read(cls, path: str | Path) -> Classes:
        """Read ``resources/classes.tsv`` with the columns ``class short group colour``."""
        table = pd.read_csv(path, sep="\t", dtype=str, comment=None)
        missing = [c for c in ("class", "short", "group", "colour") if c not in table]
        if missing:
            raise UserError("The class sheet lacks columns", where=path, found=list(table.columns), expected=missing)
        return cls(table.set_index("class"))

    def ordered(self, names: Iterable[str]) -> list[str]:
        """Return the names group by group in the sheet's order; classes the sheet lacks come last, by name."""
        return class_order(names, self.table["group"].to_dict())

    def colour(self, name: str) -> str:
        """Return the class's colour; grey for a class the sheet lacks."""
        return str(self.table.loc[name, "colour"]) if name in self.table.index else GREY

    def full(self, name: str) -> str:
        """Return the class's whole name for a label."""
        return class_title(name)

    def short(self, name: str) -> str:
        """Return the class's short name."""
        return str(self.table.loc[name, "short"]) if name in self.table.index else name.replace("_", " ")


def new_figure(style: str | Path, width_mm: float, height_mm: float) -> Figure:
    """Return an empty figure of exactly that size, in the shared style."""
    import matplotlib.pyplot as plt

    plt.style.use(str(style))
    return plt.figure(figsize=(width_mm / 25.4, height_mm / 25.4))


def save_figure(
    fig: Figure, outputs: Sequence[str | Path], csv: str | Path, numbers: pd.DataFrame, *, synthetic: bool
) -> None:
    """Write the figure in the format of each output's suffix, and its numbers as CSV.

    With ``synthetic`` the foot of the figure says so in small print. The width stays as it was set. A ``.jpg`` is the
    picture of the report: at most 200 dpi and 1500 px across, so that a report of many figures can be mailed.
    """
    import matplotlib.pyplot as plt
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    foot_mm = 3.2 if synthetic else 0.0
    height_mm = fig.get_figheight() * 25.4
    engine = fig.get_layout_engine()
    if foot_mm and isinstance(engine, ConstrainedLayoutEngine):
        engine.set(rect=(0, foot_mm / height_mm, 1, 1 - foot_mm / height_mm))
    if foot_mm:
        fig.text(0.995, 0.6 / height_mm, NOTE, ha="right", va="bottom", fontsize=5, color=GREY, style="italic")
    for path in outputs:
        with atomic_path(path) as temporary:
            fig.savefig(temporary, format=Path(path).suffix[1:], **file_options(fig, Path(path).suffix))
    plt.close(fig)
    write_csv(csv, numbers)


def file_options(fig: Figure, suffix: str) -> dict[str, Any]:
    """Return how a figure is written in a format: no date in a PDF, a picture of the report small enough to mail."""
    if suffix == ".pdf":
        return {"metadata": {"CreationDate": None}}
    if suffix == ".jpg":
        dpi = min(_REPORT_DPI, _REPORT_PX / fig.get_figwidth())
        return {"dpi": dpi, "pil_kwargs": {"quality": 85, "subsampling": 0, "optimize": True}}
    return {}


def empty_panel(ax: Axes, message: str) -> None:
    """Say in the panel why there is nothing to draw."""
    ax.set_axis_off()
    ax.text(0.5, 0.5, message, ha="center", va="center", color=GREY, transform=ax.transAxes)


def cohort_name(name: str) -> str:
    """Return a cohort's name for a title."""
    return cohort_title(name)


def class_dots(ax: Axes, classes: Classes, names: Sequence[str], *, axis: str, offset: float, size: float = 9) -> None:
    """Draw the colours of the classes outside an axis, beside their tick labels."""
    places = np.arange(len(names))
    fixed = np.full(len(names), offset)
    transform = ax.get_yaxis_transform() if axis == "y" else ax.get_xaxis_transform()
    x, y = (fixed, places) if axis == "y" else (places, fixed)
    colours = [classes.colour(name) for name in names]
    ax.scatter(x, y, s=size, c=colours, marker="s", linewidths=0, transform=transform, clip_on=False, zorder=5)


def error_bars(
    ax: Axes, x: np.ndarray, y: np.ndarray, low: np.ndarray, high: np.ndarray, branch: str, *, horizontal: bool = True
) -> None:
    """Draw values with intervals in the look of a branch."""
    colour, marker = BRANCH_COLOURS[branch], BRANCH_MARKERS[branch]
    hollow = branch in ("mean", "oracle")
    if horizontal:
        ax.hlines(y, low, high, color=colour, lw=0.8, zorder=2)
    else:
        ax.vlines(x, low, high, color=colour, lw=0.8, zorder=2)
    flat = marker == "_"
    ax.scatter(
        x,
        y,
        s=26 if flat else 11,
        marker=marker,
        facecolor="white" if hollow and not flat else colour,
        edgecolor=None if flat else colour,
        linewidth=0.9,
        zorder=3,
        label=BRANCH_NAMES[branch],
    )
