"""Where models look: the cell, and the class activation of each branch, of both as weighed, and of baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.names import title
from nuclass.figures.style import DOUBLE_MM, Classes, cohort_name, empty_panel, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CMAP = "inferno"
_ALPHA = 0.6
_PAGE_MM = 240.0
_LEFT_MM, _FOOT_MM, _LEAST_MM = 24.0, 7.0, 12.0
_NOTE_MM = 2.5
_FRAME = "#9A9A9A"


@dataclass(frozen=True)
class Column:
    """One column of pictures.

    Attributes
    ----------
    title
        Above it.
    image, cam
        Names of the arrays of windows and of maps; without a map the window alone.
    model
        Whose class and probability stand below; empty for none.
    wide
        Whether the window is the global one.
    """

    title: str
    image: str = "local_image"
    cam: str = ""
    model: str = ""
    wide: bool = False


CELL = Column("Cell")
OWN = (Column("Local", cam="local_cam", model="local"),)
ON_CELL = Column("Global, on the cell", cam="global_local_cam", model="global")
AROUND = (
    Column("Global, around it", "global_image", "global_cam", "global", wide=True),
    Column("Gate-weighted", "global_image", "gated_cam", "gate", wide=True),
)


def draw_branch_maps(
    maps: str | Path,
    cells: str | Path,
    outputs: Sequence[str | Path],
    csv: str | Path,
    *,
    windows: tuple[int, int],
    mpp: float,
    classes: str | Path,
    style: str | Path,
    synthetic: bool,
) -> None:
    """Draw one row a cell: its crop, the local map, both maps of the global model, and the gate-weighted map.

    Parameters
    ----------
    maps
        ``.npz`` with, for K cells, ``local_image`` (K, h, w, 3) and ``global_image`` (K, H, W, 3) as uint8, and in
        [0, 1] ``local_cam`` and ``global_local_cam`` (K, h, w) on the local window, ``global_cam`` and
        ``gated_cam`` (K, H, W) on the global one; where there is ``<map>_layer``, the words
        above the maps. None of them where there is no cell.
    cells
        One row a cell in the same order: ``slide cell_id label``, and for each of local, global and
        gate ``<model>_prediction <model>_probability``, and ``gate``.
    windows
        Sides of the local and the global window in pixels of ``mpp``.
    """
    table = pd.read_csv(cells, dtype={"cell_id": str})
    columns = (CELL, *OWN, ON_CELL, *AROUND)
    arrays = read_maps(maps, columns) if len(table) else {}
    fig = _grid(table, columns, arrays, windows, mpp, Classes.read(classes), style)
    save_figure(fig, outputs, csv, table, synthetic=synthetic)


def draw_gradcam(
    maps: str | Path,
    cells: str | Path,
    baseline_maps: str | Path,
    baseline_calls: str | Path,
    outputs: Sequence[str | Path],
    csv: str | Path,
    *,
    windows: tuple[int, int],
    mpp: float,
    classes: str | Path,
    style: str | Path,
    synthetic: bool,
) -> None:
    """Draw one row a cell: its crop, the maps of local, global and gate, and one of each fine-tuned baseline.

    Parameters
    ----------
    baseline_maps
        ``.npz`` with ``<name>_cam`` (K, h, w) on the local window for each baseline.
    baseline_calls
        The same cells in the same order: ``slide cell_id``, for each baseline ``<name>_prediction``,
        ``<name>_probability`` and ``<name>_stand_in``.

    Others as for :func:`draw_branch_maps`.
    """
    table, others = (pd.read_csv(path, dtype={"cell_id": str}) for path in (cells, baseline_calls))
    keys = ["slide", "cell_id"]
    if not table[keys].astype(str).equals(others[keys].astype(str)):
        raise UserError("The baselines' maps are of other cells", where=baseline_calls, fix="make them again")
    names = [name.removesuffix("_stand_in") for name in others if name.endswith("_stand_in")]
    table = table.join(others.drop(columns=keys))
    baselines = [Column(_named(name, table), cam=f"{name}_cam", model=name) for name in names]
    own = (CELL, *OWN, *(replace(column, title=_two_lines(column.title)) for column in AROUND))
    arrays = read_maps(maps, own) | read_maps(baseline_maps, baselines) if len(table) else {}
    fig = _grid(table, [*own, *baselines], arrays, windows, mpp, Classes.read(classes), style)
    save_figure(fig, outputs, csv, table, synthetic=synthetic)


def _named(name: str, table: pd.DataFrame) -> str:
    stand_in = bool(table[f"{name}_stand_in"].all())
    return f"{title(name)}\n(stand-in)" if stand_in else title(name)


def read_maps(path: str | Path, columns: Sequence[Column]) -> dict[str, np.ndarray]:
    """Return the arrays that columns need of a ``.npz``, with the words on maps' layers where it has them.

    Windows may lie in another file.
    """
    wanted = dict.fromkeys([column.cam for column in columns if column.cam])
    if any(not column.cam for column in columns):
        wanted |= dict.fromkeys(column.image for column in columns)
    with np.load(path) as stored:
        missing = [name for name in wanted if name not in stored]
        if missing:
            raise UserError("The file of activation maps lacks arrays", where=path, expected=missing)
        layers = [f"{name}_layer" for name in wanted if f"{name}_layer" in stored]
        return {name: stored[name] for name in (*wanted, *layers)}


def new_grid(
    style: str | Path,
    rows: int,
    titles: Sequence[str],
    notes: Sequence[str] = (),
    foot_mm: float = _FOOT_MM,
    below_mm: float = 0.0,
) -> tuple[Any, Any]:
    """Return a figure and its axes: a column for words, then one of square panels a title; no row is one that says so.

    The figure fits a page as long as panels are not below 12 mm; with more cells it is longer, with panels much smaller
    than a column allows narrower.

    Parameters
    ----------
    notes
        Small words between titles and panels, one a title.
    foot_mm, below_mm
        Room for the words below a panel, and below them all.
    """
    n, k = max(rows, 1), len(titles)
    top = 6.0 + 3.0 * any("\n" in text for text in titles) + _NOTE_MM * any(notes) + below_mm
    gaps = 2.0 * k
    side = min((DOUBLE_MM - _LEFT_MM - gaps) / k, max((_PAGE_MM - top - 4) / n - foot_mm, _LEAST_MM))
    rest = DOUBLE_MM - k * side - gaps
    left = rest if rest < 2 * _LEFT_MM else _LEFT_MM
    fig = new_figure(style, k * side + gaps + left, n * (side + foot_mm) + top + 4)
    axes = fig.subplots(n, k + 1, squeeze=False, width_ratios=[left / side, *[1] * k])
    if not rows:
        for ax in axes.flat:
            ax.set_axis_off()
        empty_panel(axes[0, (k + 1) // 2], "No cell fits the rule")
    for ax, text in zip(axes[0, 1:], titles, strict=True):
        ax.set_title(text, loc="center", linespacing=1.1, pad=10 if any(notes) else None)
    look: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center", "va": "bottom"}
    for ax, text in zip(axes[0, 1:], notes, strict=False):
        ax.annotate(text, (0.5, 1), xytext=(0, 2.5), fontsize=5, color="#555555", **look)
    return fig, axes


def _grid(
    table: pd.DataFrame,
    columns: Sequence[Column],
    arrays: Mapping[str, np.ndarray],
    windows: tuple[int, int],
    mpp: float,
    sheet: Classes,
    style: str | Path,
) -> Any:
    foot_mm = _FOOT_MM + 2.0 * (len(columns) > 5)
    notes = [str(arrays.get(f"{column.cam}_layer", "")) for column in columns]
    fig, axes = new_grid(style, len(table), [column.title for column in columns], notes, foot_mm)
    for row, facts in table.iterrows():
        describe(axes[row, 0], facts, sheet, f"gate g = {facts['gate']:.2f}")
        for ax, column in zip(axes[row, 1:], columns, strict=True):
            cam = arrays[column.cam][row] if column.cam else None
            show_map(ax, arrays[column.image][row], cam, windows[column.wide])
            scale_bar(ax, windows[column.wide], mpp, 50 if column.wide else 10)
            if column.wide:
                _square(ax, windows)
            elif not column.cam:
                mark_centre(ax, windows[0])
            if column.model:
                _caption(ax, facts, column.model, sheet, narrow=len(columns) > 5)
    return fig


def describe(ax: Axes, facts: pd.Series, sheet: Classes, last: str = "") -> None:
    """Write label, cohort and name of a cell beside its row, and a last line."""
    ax.set_axis_off()
    label = str(facts["label"])
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.scatter([0.96], [0.86], s=18, marker="s", color=sheet.colour(label), linewidths=0)
    name = _break(sheet.full(label))
    ax.text(0.99, 0.76, name, va="top", ha="right", fontsize=7, weight="bold")
    below = (0, -9.0 * (name.count("\n") + 1) - 3)
    lines = f"{cohort_name(str(facts['slide']))}\n{facts['cell_id']}\n{last}"
    look: dict[str, Any] = {"va": "top", "ha": "right", "fontsize": 5.5, "color": "#555555", "linespacing": 1.4}
    ax.annotate(lines, (0.99, 0.76), xytext=below, textcoords="offset points", **look)


def _break(name: str) -> str:
    return name.replace(" ", "\n") if len(name) > 11 else name


def _two_lines(text: str) -> str:
    """Break a text of several words in two lines, as even as can be."""
    words = text.split(" ")
    places = range(1, len(words))
    halves = [(" ".join(words[:i]), " ".join(words[i:])) for i in places] or [(text, "")]
    return "\n".join(min(halves, key=lambda half: max(map(len, half)))).rstrip("\n")


def _caption(ax: Axes, facts: pd.Series, model: str, sheet: Classes, *, narrow: bool) -> None:
    call, p = str(facts[f"{model}_prediction"]), float(facts[f"{model}_probability"])
    right = call == str(facts["label"])
    mark, colour = ("✓", "#1B7837") if right else ("✗", "#B2182B")
    name = sheet.full(call)
    name = _two_lines(name) if narrow and len(name) > 18 else name
    ax.set_xlabel(f"{mark} {name}\np = {p:.2f}", fontsize=5, color=colour, labelpad=1.5, linespacing=1.1)


def show_map(ax: Axes, image: np.ndarray, cam: np.ndarray | None, side: int) -> None:
    """Show a window (h, w, 3) of ``side`` px, and a map (h', w') in [0, 1] over it, the more opaque the higher."""
    ax.imshow(image, extent=(0, side, side, 0), interpolation="antialiased")
    if cam is not None:
        heat = np.asarray(cam, dtype=np.float32)
        alpha = _ALPHA * np.clip(heat * 1.6, 0, 1)
        look: dict[str, Any] = {"cmap": _CMAP, "vmin": 0, "vmax": 1, "interpolation": "bilinear"}
        ax.imshow(heat, extent=(0, side, side, 0), alpha=alpha, **look)
    ax.set(xlim=(0, side), ylim=(side, 0))
    ax.set_xticks([])
    ax.set_yticks([])
    # Beyond the slide a window is as white as the page.
    ax.spines[:].set_visible(True)
    ax.spines[:].set(color=_FRAME, linewidth=0.4)


def scale_bar(ax: Axes, side: int, mpp: float, length_um: int) -> None:
    """Draw a bar of so many micrometres into a window of ``side`` px."""
    length, pad = length_um / mpp, side * 0.05
    ax.plot([pad, pad + length], [side - pad] * 2, color="white", lw=2.2, solid_capstyle="butt")
    ax.plot([pad, pad + length], [side - pad] * 2, color="black", lw=1.3, solid_capstyle="butt")
    ax.text(pad, side - pad * 1.5, f"{length_um} µm", fontsize=5, color="black", va="bottom", ha="left").set_bbox(
        {"facecolor": "white", "alpha": 0.7, "pad": 0.6, "linewidth": 0}
    )


def mark_centre(ax: Axes, side: int) -> None:
    """Mark the middle of a window, where the cell's nucleus is, by short lines that leave it free."""
    middle = side / 2
    for colour, width in (("white", 1.6), ("black", 0.7)):
        for near, far in ((0.12, 0.2), (-0.12, -0.2)):
            ends = [middle + near * side, middle + far * side]
            ax.plot(ends, [middle] * 2, color=colour, lw=width, solid_capstyle="butt")
            ax.plot([middle] * 2, ends, color=colour, lw=width, solid_capstyle="butt")


def _square(ax: Axes, windows: tuple[int, int]) -> None:
    from matplotlib.patches import Rectangle

    corner = (windows[1] - windows[0]) / 2
    ax.add_patch(Rectangle((corner, corner), windows[0], windows[0], fill=False, ec="white", lw=1.4))
    ax.add_patch(Rectangle((corner, corner), windows[0], windows[0], fill=False, ec="black", lw=0.6))
