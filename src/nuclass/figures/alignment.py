"""Does the H&E lie where the cells are? One overlay a slide, and what is left of the offset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nuclass.core.files import read_json
from nuclass.figures.style import BRANCH_COLOURS, DOUBLE_MM, GREY, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_KEYS = (
    "mpp_he",
    "embedded_mpp",
    "rotation_deg",
    "mirrored",
    "residual_um",
    "residual_x_um",
    "residual_y_um",
    "residual_sem_um",
    "score",
    "verdict",
)
_COLUMNS = 4
_MAX_PX = 700
_VERDICT = {"pass": BRANCH_COLOURS["global"], "warn": BRANCH_COLOURS["local"], "fail": BRANCH_COLOURS["fused"]}


def draw_alignment(
    alignments: Mapping[str, str | Path],
    overlays: Mapping[str, str | Path],
    outputs: Sequence[str | Path],
    csv: str | Path,
    *,
    style: str | Path,
    synthetic: bool,
) -> None:
    """Draw the overlay of every slide and the residual offsets between nuclei and picture.

    ``alignments`` and ``overlays`` map a slide to its ``alignment.json`` and ``alignment.png``.
    """
    slides = list(alignments)
    facts = pd.DataFrame([_facts(slide, read_json(alignments[slide])) for slide in slides])
    rows = -(-len(slides) // _COLUMNS)
    fig = new_figure(style, DOUBLE_MM, rows * 47 + 62)
    grid = fig.add_gridspec(rows + 1, _COLUMNS, height_ratios=[*[47] * rows, 58])
    for place, slide in enumerate(slides):
        ax = fig.add_subplot(grid[place // _COLUMNS, place % _COLUMNS])
        _overlay(ax, overlays[slide], facts.iloc[place])
    _residuals(fig.add_subplot(grid[rows, :2]), facts)
    _scales(fig.add_subplot(grid[rows, 2:]), facts)
    save_figure(fig, outputs, csv, facts, synthetic=synthetic)


def _facts(slide: str, data: Mapping[str, Any]) -> dict[str, Any]:
    return {"slide": slide, **{key: data.get(key) for key in _KEYS}}


def _overlay(ax: Axes, path: str | Path, facts: pd.Series) -> None:
    from PIL import Image

    with Image.open(path) as opened:
        picture = opened.convert("RGB")
        picture.thumbnail((_MAX_PX, _MAX_PX))
    ax.imshow(np.asarray(picture), interpolation="antialiased")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.set_title(str(facts["slide"]).replace("_", " "), pad=2)
    turned = "" if facts["rotation_deg"] is None else f"{facts['rotation_deg']:.1f}°"
    mirror = ", mirrored" if facts["mirrored"] else ""
    ax.set_xlabel(f"{facts['mpp_he']:.4f} µm/px, {turned}{mirror}", fontsize=5.5, color="#555555")


def _residuals(ax: Axes, facts: pd.DataFrame) -> None:
    x, y, sem = (pd.to_numeric(facts[f"residual_{k}_um"]).to_numpy(float) for k in ("x", "y", "sem"))
    reach = float(np.nanmax(np.abs([x, y]) + sem)) if np.isfinite(x).any() else 0.0
    reach = max(0.6, reach * 1.25)
    for radius in (0.25, 0.5, 1.0, 2.0, 5.0):
        if radius < reach:
            ax.add_patch(_circle(radius))
            ax.text(0, radius, f"{radius:g} µm", fontsize=5, color=GREY, ha="center", va="bottom")
    ax.axhline(0, color="#DDDDDD", lw=0.5, zorder=0)
    ax.axvline(0, color="#DDDDDD", lw=0.5, zorder=0)
    for place, row in facts.reset_index(drop=True).iterrows():
        if np.isfinite(x[place]):
            colour = _VERDICT.get(str(row["verdict"]), GREY)
            ax.errorbar(x[place], y[place], sem[place], sem[place], fmt="o", ms=3, color=colour, lw=0.7)
            ax.annotate(
                str(row["slide"]).replace("_", " "),
                (x[place], y[place]),
                xytext=(3, 2 if place % 2 else -2),
                textcoords="offset points",
                fontsize=5,
                va="bottom" if place % 2 else "top",
            )
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    ax.set(xlabel="Offset along x (µm)", ylabel="Offset along y (µm)", title="Residual offset of the nuclei")


def _circle(radius: float) -> Any:
    from matplotlib.patches import Circle

    return Circle((0, 0), radius, fill=False, ec="#CCCCCC", lw=0.5, ls=(0, (3, 2)))


def _scales(ax: Axes, facts: pd.DataFrame) -> None:
    places = np.arange(len(facts))
    measured = pd.to_numeric(facts["mpp_he"]).to_numpy(float)
    stated = pd.to_numeric(facts["embedded_mpp"]).to_numpy(float)
    known = np.isfinite(stated)
    ax.hlines(places[known], measured[known], stated[known], color="#CCCCCC", lw=0.8, zorder=1)
    ax.scatter(
        stated[known],
        places[known],
        s=14,
        marker="D",
        fc="white",
        ec=GREY,
        lw=0.8,
        label="stated by the file",
        zorder=2,
    )
    ax.scatter(measured, places, s=14, color=BRANCH_COLOURS["global"], label="from the alignment", zorder=3)
    ax.set_yticks(places, [slide.replace("_", " ") for slide in facts["slide"]])
    ax.set(ylim=(len(facts) - 0.5, -0.5), xlabel="H&E pixel size (µm/px)", title="Scale of the H&E")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.legend(loc="best")
