"""Does the H&E lie where the cells are? A field of every slide with its nuclei, and what is left of the offset."""

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

    from nuclass.slides.overlay import Field

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
    "n_measured",
    "verdict",
)
_COLUMNS = 4
_SIDE_MM = (DOUBLE_MM - 10) / _COLUMNS
_OUTLINE = "#00E5A8"
_SCALE_UM = 20


def read_field(bundle: str | Path, transform: str | Path, alignment: Mapping[str, Any]) -> Field:
    """Cut the field of a slide that holds the most nuclei of those its own overlay shows.

    Parameters
    ----------
    bundle
        The folder of its bundle.
    transform
        Its ``transform.json``.
    alignment
        What its ``alignment.json`` holds.
    """
    from nuclass.slides.align import load_transform, nuclei_of
    from nuclass.slides.overlay import choose_places, cut_field
    from nuclass.slides.source import open_source
    from nuclass.xenium.reader import read_bundle

    frames, _ = load_transform(transform)
    nuclei = nuclei_of(read_bundle(bundle))
    with open_source(Path(bundle) / read_json(Path(bundle) / "bundle.json")["he"]) as source:
        blocks = pd.DataFrame(alignment["blocks"], columns=["x_he", "y_he", "dx_um", "dy_um", "n_nuclei", "clear"])
        places = choose_places(blocks, frames, nuclei, source)
        fields = [cut_field(source, frames, nuclei, (place["x_he"], place["y_he"])) for place in places]
        if not fields:
            height, width = source.shape
            fields = [cut_field(source, frames, nuclei, (width / 2, height / 2))]
    return max(fields, key=lambda field: len(field.outlines))


def draw_alignment(
    alignments: Mapping[str, Mapping[str, Any]],
    fields: Mapping[str, Field],
    outputs: Sequence[str | Path],
    csv: str | Path,
    *,
    style: str | Path,
    synthetic: bool,
    mpp: float,
) -> None:
    """Draw a field of every slide, the residual offsets between nuclei and picture, and the scales.

    ``alignments`` and ``fields`` map a slide to what ``alignment.json`` holds and to its :class:`Field`; ``mpp`` is
    that of the study's windows, um per px.
    """
    slides = list(alignments)
    facts = pd.DataFrame([{"slide": s, **{key: alignments[s].get(key) for key in _KEYS}} for s in slides])
    rows = -(-len(slides) // _COLUMNS)
    below_mm = 4.2 * max(len(slides), 4) + 18
    fig = new_figure(style, DOUBLE_MM, rows * (_SIDE_MM + 5) + below_mm)
    grid = fig.add_gridspec(rows + 1, _COLUMNS, height_ratios=[*[_SIDE_MM + 5] * rows, below_mm])
    for place, slide in enumerate(slides):
        _field(fig.add_subplot(grid[place // _COLUMNS, place % _COLUMNS]), fields[slide], facts.iloc[place])
    first = fig.add_subplot(grid[rows, :2])
    _residuals(first, facts, mpp)
    _scales(fig.add_subplot(grid[rows, 2:], sharey=first), facts)
    save_figure(fig, outputs, csv, facts, synthetic=synthetic)


def draw_alignment_of(
    paths: Mapping[str, Mapping[str, str | Path]],
    outputs: Sequence[str | Path],
    csv: str | Path,
    *,
    style: str | Path,
    synthetic: bool,
    mpp: float,
) -> None:
    """Read the fields of all slides and draw; ``paths`` is slide -> ``alignment transform bundle``."""
    alignments = {slide: read_json(files["alignment"]) for slide, files in paths.items()}
    fields = {
        slide: read_field(files["bundle"], files["transform"], alignments[slide]) for slide, files in paths.items()
    }
    draw_alignment(alignments, fields, outputs, csv, style=style, synthetic=synthetic, mpp=mpp)


def _field(ax: Axes, field: Field, facts: pd.Series) -> None:
    from matplotlib.collections import LineCollection

    size = field.image.shape[0]
    closed = [np.vstack([line, line[:1]]) for line in field.outlines]
    ax.imshow(field.image, extent=(0, size, size, 0), interpolation="antialiased")
    ax.add_collection(LineCollection(closed, colors="#00000066", linewidths=1.1))
    ax.add_collection(LineCollection(closed, colors=_OUTLINE, linewidths=0.6))
    length, pad = _SCALE_UM / field.mpp, size * 0.05
    ax.plot([pad, pad + length], [size - pad] * 2, color="white", lw=2.6, solid_capstyle="butt")
    ax.plot([pad, pad + length], [size - pad] * 2, color="black", lw=1.5, solid_capstyle="butt")
    text = ax.text(pad, size - pad * 1.6, f"{_SCALE_UM} µm", fontsize=5, ha="left", va="bottom")
    text.set_bbox({"facecolor": "white", "alpha": 0.75, "pad": 0.6, "linewidth": 0})
    ax.set(xlim=(0, size), ylim=(size, 0))
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    turn = "" if facts["rotation_deg"] is None else f"{facts['rotation_deg']:.1f}°"
    mirror = ", mirrored" if facts["mirrored"] else ""
    ax.set_title(str(facts["slide"]).replace("_", " "), pad=2.5)
    ax.set_title(f"{turn}{mirror}", loc="right", fontsize=5.5, weight="normal", color="#666666", pad=2.5)


def _residuals(ax: Axes, facts: pd.DataFrame, mpp: float) -> None:
    places = np.arange(len(facts))
    x, y, sem = (pd.to_numeric(facts[f"residual_{k}_um"]).to_numpy(float) for k in ("x", "y", "sem"))
    ax.axvspan(-mpp, mpp, color="#F1F1F1", lw=0, zorder=0, label=f"±1 px ({mpp:g} µm)")
    ax.axvline(0, color="#CCCCCC", lw=0.5, zorder=1)
    for values, name, branch, shift in ((x, "along x", "global", -0.14), (y, "along y", "fused", 0.14)):
        colour = BRANCH_COLOURS[branch]
        ax.errorbar(values, places + shift, xerr=1.96 * sem, fmt="o", ms=2.8, color=colour, lw=0.7, label=name)
    bad = facts["verdict"].isin(["warn", "fail"]).to_numpy()
    for place in places[bad | ~np.isfinite(x)]:
        ax.annotate(str(facts["verdict"].iloc[place]), (0.99, place), xycoords=("axes fraction", "data"), ha="right",
                    va="center", fontsize=5.5, color=BRANCH_COLOURS["fused"])  # fmt: skip
    reach = float(np.nanmax(np.abs([x, y]) + 1.96 * sem)) if np.isfinite(x).any() else 0.0
    reach = max(1.4 * mpp, 1.15 * reach)
    ax.set_yticks(places, [slide.replace("_", " ") for slide in facts["slide"]])
    ax.set(xlim=(-reach, reach), ylim=(len(facts) - 0.5, -0.5), xlabel="Residual offset of the nuclei (µm, 95 %)")
    ax.tick_params(axis="y", length=0)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3)


def _scales(ax: Axes, facts: pd.DataFrame) -> None:
    places = np.arange(len(facts))
    measured = pd.to_numeric(facts["mpp_he"]).to_numpy(float)
    stated = pd.to_numeric(facts["embedded_mpp"]).to_numpy(float)
    known = np.isfinite(stated)
    ax.hlines(places[known], measured[known], stated[known], color="#BBBBBB", lw=0.8, zorder=1)
    face: dict[str, Any] = {"facecolor": "white", "edgecolor": GREY, "linewidth": 0.8}
    ax.scatter(stated[known], places[known], s=20, marker="D", label="stated by the file", zorder=2, **face)
    ax.scatter(measured, places, s=9, color=BRANCH_COLOURS["global"], label="from the alignment", zorder=3)
    ax.set(xlabel="Pixel size of the H&E (µm)")
    ax.tick_params(axis="y", length=0, labelleft=False)
    ax.grid(axis="x")
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
