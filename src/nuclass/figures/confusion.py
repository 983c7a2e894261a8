"""Confusion matrices: where each class's cells go, row by row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nuclass.core.files import atomic_path
from nuclass.figures.style import (
    DOUBLE_MM,
    LIGHT,
    MODEL_NAMES,
    SINGLE_MM,
    Classes,
    class_dots,
    cohort_name,
    new_figure,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CMAP = "Blues"


def draw_confusion(
    tables: Mapping[str, str | Path],
    outputs: Sequence[str | Path],
    csv: str | Path,
    *,
    classes: str | Path,
    style: str | Path,
    synthetic: bool,
) -> None:
    """Draw the row-normalised confusion matrices of cohorts side by side.

    ``tables`` maps a cohort to its ``confusion.csv``. All panels share one list of classes: those with
    cells, or predicted, in any of them.
    """
    sheet = Classes.read(classes)
    data = {name: pd.read_csv(path) for name, path in tables.items()}
    names = used_classes(data.values(), sheet)
    columns = 2 if len(data) > 1 else 1
    rows = -(-len(data) // columns)
    side = (DOUBLE_MM - 60) / columns
    fig = new_figure(style, DOUBLE_MM, rows * (side + 7) + 18)
    axes = fig.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    image = None
    for ax, (name, table) in zip(axes.flat, data.items(), strict=False):
        image = confusion_panel(ax, table, names, sheet)
        ax.set_title(f"{cohort_name(name)}  (n = {int(table['cells'].sum()):,})")
    for ax in axes.flat[len(data) :]:
        ax.set_visible(False)
    outer_labels(axes, names, sheet)
    if image is not None:
        bar = fig.colorbar(image, ax=axes, shrink=0.35, aspect=25, pad=0.015)
        bar.set_label("Share of the class's cells")
        bar.outline.set_visible(False)
    numbers = pd.concat([table.assign(cohort=name) for name, table in data.items()], ignore_index=True)
    save_figure(fig, outputs, csv, numbers[["cohort", "true", "predicted", "cells", "rate"]], synthetic=synthetic)


def draw_one_confusion(
    table: str | Path, png: str | Path, *, model: str, cohort: str, classes: str | Path, style: str | Path
) -> None:
    """Draw one model's confusion matrix of one cohort to ``png``."""
    import matplotlib.pyplot as plt

    sheet = Classes.read(classes)
    data = pd.read_csv(table)
    fig = new_figure(style, SINGLE_MM + 10, SINGLE_MM - 9)
    axes = fig.subplots(1, 1, squeeze=False)
    ax, names = axes[0, 0], used_classes([data], sheet)
    confusion_panel(ax, data, names, sheet)
    outer_labels(axes, names, sheet)
    title = f"{MODEL_NAMES.get(model, model)}, {cohort_name(cohort)}"
    ax.set(title=f"{title}  (n = {int(data['cells'].sum()):,})")
    with atomic_path(png) as temporary:
        fig.savefig(temporary, format="png")
    plt.close(fig)


def used_classes(tables: Iterable[pd.DataFrame], sheet: Classes) -> list[str]:
    """Return the classes that have cells or are predicted in any of the tables, in their order."""
    used: set[str] = set()
    for table in tables:
        positive = table[table["cells"] > 0]
        used |= set(positive["true"]) | set(positive["predicted"])
    return sheet.ordered(used)


def confusion_panel(ax: Axes, table: pd.DataFrame, names: Sequence[str], sheet: Classes) -> Any:
    """Draw one matrix of rates with each row's cells at its right; returns the image, for a bar of colours."""
    index = {"index": names, "columns": names}
    rate = table.pivot(index="true", columns="predicted", values="rate").reindex(**index).to_numpy(float)
    support = table.groupby("true")["cells"].sum().reindex(names).fillna(0).astype(int)
    ax.set_facecolor(LIGHT)
    image = ax.imshow(np.ma.masked_invalid(rate), cmap=_CMAP, vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(rate):
        if np.isfinite(value) and value >= 0.005:
            ink = "white" if value > 0.55 else "#222222"
            weight = "bold" if row == column else "normal"
            ax.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=5, color=ink, weight=weight)
    for row, n in enumerate(support):
        ax.text(len(names) - 0.35, row, f"{n:,}", ha="left", va="center", fontsize=5, color="#666666")
    places = np.arange(len(names))
    ax.set_xticks(places, [sheet.short(n) for n in names], rotation=90)
    ax.set_yticks(places, [sheet.full(n) for n in names])
    ax.tick_params(length=0, pad=7)
    ax.set_xticks(places[1:] - 0.5, minor=True)
    ax.set_yticks(places[1:] - 0.5, minor=True)
    ax.grid(which="minor", color="white", lw=0.6)
    ax.tick_params(which="minor", length=0)
    ax.spines[:].set_visible(False)
    return image


def outer_labels(axes: Any, names: Sequence[str], sheet: Classes) -> None:
    """Name the axes of a grid (rows, columns), with the classes' colours: left of each row, below each column.

    Where the last row is not full, a column is named below its lowest panel that is shown.
    """
    for ax in axes[:, 0]:
        class_dots(ax, sheet, names, axis="y", offset=-0.022)
        ax.set_ylabel("Label")
    for column in axes.T:
        lowest = [ax for ax in column if ax.get_visible()][-1]
        lowest.tick_params(axis="x", labelbottom=True)
        class_dots(lowest, sheet, names, axis="x", offset=-0.022)
        lowest.set_xlabel("Predicted class")
