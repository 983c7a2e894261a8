"""What the study is made of: organs and classes as two-ring donuts, and the plain counts as bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nuclass.core.names import TEST, TRAIN, VAL
from nuclass.figures.style import DOUBLE_MM, GREY, Classes, empty_panel, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FLOOR_DEG = 2.0
_TITLES = {"train": "Training slides", "cohort": "Cohorts (held out)"}
_COLUMNS = ("role", "ring", "organ", "class", "slide", "cells", "share", "angle_deg")
_ORGAN_GREY = "#5F6B73"
_NUMBERED_DEG = 5.0


def draw_dataset_composition(
    counts: str | Path,
    outputs: Sequence[str | Path],
    csv: str | Path,
    *,
    classes: str | Path,
    style: str | Path,
    synthetic: bool,
) -> None:
    """Draw the labelled cells by organ and class for training and cohorts, and by slide.

    ``counts`` is the composition table ``slide organ role split class cells``; cells in a buffer between
    splits are used by none and not drawn. The wedges follow the square root of the share, with a
    floor of two degrees for a class, as in the published figure, so that small organs and classes
    can be seen; the bars below have the true scale.

    ``csv`` has one row a wedge and a part of a bar: ``role ring organ class slide cells share angle_deg``. ``ring`` is
    ``organ``, ``class`` or ``bar``; ``share`` is of the role's, the organ's or the slide's cells; angles are degrees.
    """
    sheet = Classes.read(classes)
    table = pd.read_csv(counts)
    table = table[table["split"].isin([TRAIN, VAL, TEST])]
    names = sheet.ordered(table["class"])
    slides = list(dict.fromkeys(table.sort_values("role", ascending=False, kind="stable")["slide"]))
    bars_mm = 4.6 * max(len(slides), 2) + 14
    fig = new_figure(style, DOUBLE_MM, 82 + bars_mm)
    grid = fig.add_gridspec(2, 3, height_ratios=[76, bars_mm], width_ratios=[1, 1, 0.42])
    numbers = []
    for column, role in enumerate(("train", "cohort")):
        ax = fig.add_subplot(grid[0, column])
        part = table[table["role"] == role]
        if part["cells"].sum():
            organs = part.drop_duplicates("slide").set_index("slide")["organ"].reindex(slides).dropna().unique()
            numbers.append(_donut(ax, part, list(organs), names, sheet).assign(role=role))
        else:
            empty_panel(ax, "No labelled cells")
        ax.set_title(_TITLES[role], loc="center")
    _legend(fig.add_subplot(grid[0, 2]), names, sheet)
    bars = fig.add_subplot(grid[1, :])
    if len(slides):
        _bars(bars, table, slides, names, sheet)
    else:
        empty_panel(bars, "No labelled cells")
    by_slide = table.groupby(["role", "slide", "organ", "class"], sort=False)["cells"].sum().reset_index()
    by_slide["share"] = by_slide["cells"] / by_slide.groupby("slide")["cells"].transform("sum")
    numbers.append(by_slide.assign(ring="bar"))
    save_figure(fig, outputs, csv, pd.concat(numbers, ignore_index=True).reindex(columns=_COLUMNS), synthetic=synthetic)


def wedge_angles(counts: np.ndarray, span: float, floor: float = 0.0) -> np.ndarray:
    """Return angles that follow the square root of the counts, fill ``span`` degrees, and keep a floor."""
    root = np.sqrt(np.asarray(counts, dtype=np.float64))
    angles = span * root / root.sum()
    small = angles < floor
    if small.any() and not small.all() and floor * small.sum() < span:
        rest = span - floor * small.sum()
        angles = np.where(small, floor, rest * root / root[~small].sum())
    return np.asarray(angles)


def _donut(ax: Axes, table: pd.DataFrame, order: Sequence[str], names: Sequence[str], sheet: Classes) -> pd.DataFrame:
    from matplotlib.patches import Wedge

    organs = table.groupby("organ")["cells"].sum().reindex(order)
    organs = organs[organs > 0]
    start, rows = 90.0, []
    for organ, angle in zip(organs.index, wedge_angles(organs.to_numpy(), 360.0), strict=True):
        ax.add_patch(Wedge((0, 0), 0.68, start - angle, start, width=0.24, fc=_ORGAN_GREY, ec="white", lw=1.2))
        _text(ax, organ.capitalize(), 0.56, start - angle / 2, size=5.5, color="white", along=angle < 32)
        rows.append(_wedge("organ", organ, "", organs[organ], organs.sum(), angle))
        classes = table[table["organ"] == organ].groupby("class")["cells"].sum()
        classes = classes.reindex([n for n in names if classes.get(n, 0) > 0])
        edge = start
        for name, width in zip(classes.index, wedge_angles(classes.to_numpy(), angle, FLOOR_DEG), strict=True):
            share = classes[name] / organs[organ]
            wedge = Wedge((0, 0), 1.0, edge - width, edge, width=0.3, fc=sheet.colour(name), ec="white", lw=0.5)
            ax.add_patch(wedge)
            if width >= _NUMBERED_DEG:
                _text(ax, f"{100 * share:.0f}", 1.07, edge - width / 2, size=5, color="#333333")
            rows.append(_wedge("class", organ, name, classes[name], organs[organ], width))
            edge -= width
        start -= angle
    ax.text(0, 0, f"{int(organs.sum()):,}\ncells", ha="center", va="center", fontsize=7, weight="bold", color="#333333")
    ax.set(xlim=(-1.16, 1.16), ylim=(-1.16, 1.16), aspect="equal")
    ax.set_axis_off()
    return pd.DataFrame(rows)


def _wedge(ring: str, organ: str, name: str, cells: int, of: int, angle: float) -> dict[str, object]:
    return {"ring": ring, "organ": organ, "class": name, "cells": cells, "share": cells / of, "angle_deg": angle}


def _text(ax: Axes, text: str, radius: float, degrees: float, *, size: float, color: str, along: bool = False) -> None:
    x, y = radius * np.cos(np.deg2rad(degrees)), radius * np.sin(np.deg2rad(degrees))
    turn = degrees % 360 if along else (degrees - 90) % 360
    turn = turn - 180 if 90 < turn < 270 else turn
    ax.text(x, y, text, ha="center", va="center", fontsize=size, color=color, rotation=turn if radius < 1 else 0)


def _legend(ax: Axes, names: Sequence[str], sheet: Classes) -> None:
    from matplotlib.patches import Patch

    ax.set_axis_off()
    handles = [Patch(color=sheet.colour(n), label=sheet.full(n), lw=0) for n in names]
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(-0.1, 0.58), labelspacing=0.55, handleheight=0.9)
    note = (
        "Angles are not shares: they follow\nthe square root of the cells, at least\n"
        f"{FLOOR_DEG:g}° a class, as published. Numbers:\nper cent of the organ's cells, not at\nwedges below "
        f"{_NUMBERED_DEG:g}°. The bars have the\ntrue scale."
    )
    ax.text(-0.1, -0.04, note, transform=ax.transAxes, va="bottom", fontsize=5.5, color="#555555", linespacing=1.4)


def _bars(ax: Axes, table: pd.DataFrame, slides: Sequence[str], names: Sequence[str], sheet: Classes) -> None:
    wide = table.pivot_table(index="slide", columns="class", values="cells", aggfunc="sum", fill_value=0)
    wide = wide.reindex(index=slides, columns=names, fill_value=0)
    roles = table.drop_duplicates("slide").set_index("slide")["role"].reindex(slides)
    places = np.arange(len(slides)) + 0.6 * (roles == "cohort").to_numpy()
    left = np.zeros(len(slides))
    for name in names:
        cells = wide[name].to_numpy(float)
        ax.barh(places, cells, left=left, height=0.74, color=sheet.colour(name), edgecolor="white", linewidth=0.25)
        left += cells
    for place, total in zip(places, left, strict=True):
        ax.text(total, place, f" {int(total):,}", va="center", ha="left", fontsize=5.5, color=GREY)
    ax.set_yticks(places, [slide.replace("_", " ") for slide in slides])
    ax.set(ylim=(places.max() + 0.6, -0.6), xlim=(0, left.max() * 1.06))
    ax.set_xlabel("Labelled cells in train, validation and test (linear scale)")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
