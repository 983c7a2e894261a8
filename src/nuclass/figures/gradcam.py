"""Where each branch looks: the cell, and class activation of local, global and both as the gate weighs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nuclass.core.errors import UserError
from nuclass.figures.style import DOUBLE_MM, Classes, cohort_name, empty_panel, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ARRAYS = ("local_image", "global_image", "local_cam", "global_local_cam", "global_cam", "gated_cam")
_CMAP = "inferno"
_ALPHA = 0.6
_PAGE_MM = 240.0
_COLUMNS = ("Cell", "Local", "Global, on the cell", "Global, around it", "Gate-weighted")


def draw_gradcam(
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
        ``gated_cam`` (K, H, W) on the global one. None of them where there is no cell.
    cells
        One row a cell in the same order: ``slide cell_id label``, and for each of local, global and
        gate ``<model>_prediction <model>_probability``, and ``gate``.
    windows
        Sides of the local and the global window in pixels of ``mpp``.
    """
    sheet = Classes.read(classes)
    table = pd.read_csv(cells)
    arrays = _read_maps(maps) if len(table) else {}
    n = len(table)
    side = min((DOUBLE_MM - 34) / 5, (_PAGE_MM - 12) / max(n, 1) - 7)
    fig = new_figure(style, 5 * side + 34, max(n, 1) * (side + 7) + 8)
    axes = fig.subplots(max(n, 1), 6, squeeze=False, width_ratios=[24 / side, 1, 1, 1, 1, 1])
    if n == 0:
        for ax in axes.flat:
            ax.set_axis_off()
        empty_panel(axes[0, 2], "No cell fits the rule")
    for row, facts in table.iterrows():
        _describe(axes[row, 0], facts, sheet)
        _row(axes[row, 1:], {name: values[row] for name, values in arrays.items()}, windows, mpp)
        for ax, model in zip(axes[row, 2:], ("local", "global", "global", "gate"), strict=True):
            _caption(ax, facts, model, sheet)
    for ax, title in zip(axes[0, 1:], _COLUMNS, strict=True):
        ax.set_title(title, loc="center")
    save_figure(fig, outputs, csv, table, synthetic=synthetic)


def _read_maps(path: str | Path) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        missing = [name for name in _ARRAYS if name not in stored]
        if missing:
            raise UserError("The file of activation maps lacks arrays", where=path, expected=missing)
        return {name: stored[name] for name in _ARRAYS}


def _describe(ax: Axes, facts: pd.Series, sheet: Classes) -> None:
    ax.set_axis_off()
    label = str(facts["label"])
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.scatter([0.96], [0.86], s=18, marker="s", color=sheet.colour(label), linewidths=0)
    ax.text(0.99, 0.76, _break(sheet.full(label)), va="top", ha="right", fontsize=7, weight="bold")
    lines = f"{cohort_name(str(facts['slide']))}\n{facts['cell_id']}\ngate g = {facts['gate']:.2f}"
    ax.text(0.99, 0.48, lines, va="top", ha="right", fontsize=5.5, color="#555555", linespacing=1.5)


def _break(name: str) -> str:
    return name.replace(" ", "\n") if len(name) > 11 else name


def _caption(ax: Axes, facts: pd.Series, model: str, sheet: Classes) -> None:
    call, p = str(facts[f"{model}_prediction"]), float(facts[f"{model}_probability"])
    right = call == str(facts["label"])
    mark, colour = ("✓", "#1B7837") if right else ("✗", "#B2182B")
    ax.set_xlabel(f"{mark} {sheet.full(call)}\np = {p:.2f}", fontsize=5, color=colour, labelpad=1.5, linespacing=1.1)


def _row(axes: Any, arrays: dict[str, np.ndarray], windows: tuple[int, int], mpp: float) -> None:
    local, far = arrays["local_image"], arrays["global_image"]
    panels = (
        (local, None, windows[0]),
        (local, arrays["local_cam"], windows[0]),
        (local, arrays["global_local_cam"], windows[0]),
        (far, arrays["global_cam"], windows[1]),
        (far, arrays["gated_cam"], windows[1]),
    )
    for ax, (image, cam, side) in zip(axes, panels, strict=True):
        ax.imshow(image, extent=(0, side, side, 0), interpolation="antialiased")
        if cam is not None:
            heat = np.asarray(cam, dtype=np.float32)
            ax.imshow(
                heat,
                extent=(0, side, side, 0),
                cmap=_CMAP,
                vmin=0,
                vmax=1,
                alpha=_ALPHA * np.clip(heat * 1.6, 0, 1),
                interpolation="bilinear",
            )
        _frame(ax, side, windows, mpp)


def _frame(ax: Axes, side: int, windows: tuple[int, int], mpp: float) -> None:
    from matplotlib.patches import Rectangle

    length_um = 10 if side == windows[0] else 50
    length, pad = length_um / mpp, side * 0.05
    ax.plot([pad, pad + length], [side - pad] * 2, color="white", lw=2.2, solid_capstyle="butt")
    ax.plot([pad, pad + length], [side - pad] * 2, color="black", lw=1.3, solid_capstyle="butt")
    ax.text(pad, side - pad * 1.5, f"{length_um} µm", fontsize=5, color="black", va="bottom", ha="left").set_bbox(
        {"facecolor": "white", "alpha": 0.7, "pad": 0.6, "linewidth": 0}
    )
    if side == windows[1]:
        corner = (side - windows[0]) / 2
        ax.add_patch(Rectangle((corner, corner), windows[0], windows[0], fill=False, ec="white", lw=1.4))
        ax.add_patch(Rectangle((corner, corner), windows[0], windows[0], fill=False, ec="black", lw=0.6))
    ax.set(xlim=(0, side), ylim=(side, 0))
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
