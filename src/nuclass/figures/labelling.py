"""How the cells were labelled: one page a slide, and one row a slide for the whole study."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nuclass.core.names import ABSTAINED
from nuclass.figures.labelling_panels import (
    CellTypes,
    Entry,
    SlideLabels,
    confidence_panel,
    counted,
    legend_columns,
    legend_entries,
    legend_panel,
    long_table,
    map_panel,
    map_size,
    read_slide,
    umap_by_cluster,
    umap_by_type,
)
from nuclass.figures.style import Classes, empty_panel, new_figure, save_figure
from nuclass.labels.measures import confidence_counts, funnel_counts, type_counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

_PAGE_MM = (277.0, 186.0)
_LEFT_MM, _RIGHT_MM = 163.0, 108.0
_MAP_MM, _LEFT_HIGH_MM = 80.0, 178.0
_LEGEND_MM, _LEGEND_ROW_MM, _GAP_MM = 52.0, 3.3, 5.0
_WIDE = 0.62
"""A map that fills less than this share of its height, across the whole width, has its legend below."""
_MAX_GENES, _MAX_OF_TYPE = 66, 4
_FUNNEL_SHADES = ("#C9D6E2", "#93B1CB", "#5483AA", "#1F4E79")
_REASONS_SHOWN = 4


def draw_slide_labels(
    slide: str,
    paths: Mapping[str, str | Path],
    outputs: Sequence[str | Path],
    csv: str | Path,
    *,
    organ: str,
    min_confidence: float | None,
    class_of: Mapping[str, str],
    classes: str | Path,
    style: str | Path,
    synthetic: bool,
) -> None:
    """Draw one slide: map, layouts, markers by cell type, confidence and losses.

    Parameters
    ----------
    slide
        Its name.
    paths
        Its files: ``labels cells umap markers``.
    outputs, csv
        The pictures, one a format, and the numbers drawn: ``panel row column measure value``.
    organ
        Named in the heading.
    min_confidence
        The threshold, marked in the histogram; ``None`` marks none.
    class_of
        Class ("" where none) of each cell type of the ontology.
    """
    types = CellTypes(class_of, Classes.read(classes))
    data = read_slide(slide, paths["labels"], paths["cells"], paths["umap"])
    evidence = pd.read_csv(paths["markers"], keep_default_na=False, na_values={"log2_fold": "", "score": ""})
    counts, funnel, bins = type_counts(data.cells), funnel_counts(data.cells), confidence_counts(data.cells)
    names = types.ordered(counts["cell_type"])
    dots = chosen_markers(evidence, names)
    fig = new_figure(style, *_PAGE_MM)
    fig.suptitle(_heading(data, organ), x=0.005, ha="left", fontsize=8, weight="bold")
    outer = fig.add_gridspec(1, 2, width_ratios=[_LEFT_MM, _RIGHT_MM])
    entries = legend_entries(counts, int((data.cells["status"] == ABSTAINED).sum()), types)
    map_mm = _map_height(data, entries)
    left = outer[0].subgridspec(2, 1, height_ratios=[map_mm, _LEFT_HIGH_MM - map_mm])
    _map_and_legend(fig, left[0], data, entries, types)
    _dots(fig, left[1], dots, names, types, _LEFT_HIGH_MM - map_mm)
    right = outer[1].subgridspec(3, 2, height_ratios=[56, 40, 74])
    titles = ("UMAP by cell type", "UMAP by Leiden cluster")
    first, second = (fig.add_subplot(right[0, k]) for k in (0, 1))
    umap_by_type(first, data.umap, types, 50)
    umap_by_cluster(second, data.umap, 50)
    for ax, title in zip((first, second), titles, strict=True):
        ax.set_title(title)
    _confidence(fig.add_subplot(right[1, :]), data, bins, min_confidence)
    _funnel(fig.add_subplot(right[2, :]), funnel, types)
    numbers = pd.concat([counted(counts, funnel, bins), _measured(dots)], ignore_index=True)
    save_figure(fig, outputs, csv, numbers, synthetic=synthetic)


def chosen_markers(evidence: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Choose the genes of the dot plot: of each type its listed positive markers of the best rank.

    A type without a listed marker shows the gene of the best rank that the data have. A gene stands once, with the
    first type that it is chosen for.

    Returns
    -------
    One row a type and gene: the columns of the evidence, ``of`` (the type that the gene was chosen for), ``place``
    (of the gene along the axis) and ``scaled`` (mean over the gene's largest mean of any type).
    """
    per_type = int(np.clip(_MAX_GENES // max(len(names), 1), 1, _MAX_OF_TYPE))
    chosen: dict[str, str] = {}
    for name in names:
        own = evidence[evidence["cell_type"] == name].sort_values("rank", kind="stable")
        listed = own[own["listed"] == "positive"]
        best = (listed if len(listed) else own.head(1))["gene"]
        for gene in [g for g in best if g not in chosen][:per_type]:
            chosen[str(gene)] = name
    table = evidence[evidence["gene"].isin(list(chosen)) & evidence["cell_type"].isin(list(names))].copy()
    table["of"] = table["gene"].map(chosen)
    table["place"] = table["gene"].map({gene: k for k, gene in enumerate(chosen)})
    largest = table.groupby("gene")["mean"].transform("max")
    table["scaled"] = np.where(largest > 0, table["mean"] / largest.where(largest > 0, 1), 0.0)
    return table


def _heading(data: SlideLabels, organ: str) -> str:
    found = [s for s in ("markers", "given") if (data.cells["source"] == s).any()]
    source = {"markers": "labels from markers", "given": "given labels"}
    text = " and ".join(source[s] for s in found) or "no labels"
    return f"{data.slide.replace('_', ' ')}  ·  {organ}  ·  {data.n_cells:,} cells  ·  {text}"


def _map_height(data: SlideLabels, entries: Sequence[Entry]) -> float:
    """Return the height (mm) of the map with its legend, which stands beside the map, or below a wide one."""
    wide = map_size(data.cells, _LEFT_MM, _MAP_MM)[1]
    below = _LEGEND_ROW_MM * max(map(len, legend_columns(entries, 3)))
    return wide + 10 + below if wide < _WIDE * _MAP_MM else _MAP_MM


def _map_and_legend(
    fig: Figure, spec: SubplotSpec, data: SlideLabels, entries: Sequence[Entry], types: CellTypes
) -> None:
    size = map_size(data.cells, _LEFT_MM, _MAP_MM)
    if size[1] < _WIDE * _MAP_MM:
        columns, least = 3, 1
        parts = legend_columns(entries, columns)
        grid = spec.subgridspec(2, 1, height_ratios=[size[1] + 7, _LEGEND_ROW_MM * max(map(len, parts))])
    else:
        size = map_size(data.cells, _LEFT_MM - _LEGEND_MM - _GAP_MM, _MAP_MM - 6)
        beside = _LEFT_MM - size[0] - _GAP_MM
        columns = 2 if beside > 1.8 * _LEGEND_MM and len(entries) > 20 else 1
        least = int(_MAP_MM / (_LEGEND_ROW_MM + 0.3))
        parts = legend_columns(entries, columns, least)
        grid = spec.subgridspec(1, 2, width_ratios=[size[0] + _GAP_MM, beside])
    ax = fig.add_subplot(grid[0])
    map_panel(ax, data.cells, types, size[0] * size[1])
    ax.set_title("Cells in place")
    rows = max(least, *map(len, parts))
    legend_panel(fig.add_subplot(grid[1]), parts, columns, rows, 6 if rows <= 27 else 4.8)


def _dots(
    fig: Figure, spec: SubplotSpec, dots: pd.DataFrame, names: Sequence[str], types: CellTypes, height_mm: float
) -> None:
    grid = spec.subgridspec(2, 1, height_ratios=[5, height_mm - 5])
    head, ax = fig.add_subplot(grid[0]), fig.add_subplot(grid[1])
    head.set(xlim=(0, _LEFT_MM - 36), ylim=(0, 1))
    head.set_axis_off()
    head.text(0, 0.5, "Markers by cell type", weight="bold", fontsize=7, va="center")
    if dots.empty:
        empty_panel(ax, "No cell has a type" if not names else "No gene to show")
        return
    genes = dots.drop_duplicates("gene").sort_values("place")
    rows, columns = max(len(names), 12), max(len(genes), 30)
    step = min((_LEFT_MM - 38) / columns, (height_mm - 20) / rows)
    biggest = (0.92 * step * 72 / 25.4) ** 2
    where = dots["cell_type"].map({name: k for k, name in enumerate(names)})
    points = ax.scatter(
        dots["place"], where, s=biggest * dots["fraction"], c=dots["scaled"], cmap="YlGnBu", vmin=0, vmax=1,
        edgecolor="#777777", linewidth=0.2, zorder=3,
    )  # fmt: skip
    ax.set(xlim=(-0.7, columns - 0.3), ylim=(rows - 0.4, -1.0))
    ax.set_yticks(range(len(names)), [types.full(name) for name in names])
    ax.xaxis.tick_top()
    ax.set_xticks(range(len(genes)), list(genes["gene"]), rotation=90, fontsize=5)
    ax.tick_params(length=0, pad=3)
    ax.spines[:].set_visible(False)
    ax.hlines(range(len(names)), -0.5, len(genes) - 0.5, color="#EEEEEE", lw=0.5, zorder=1)
    for name, part in genes.groupby("of", sort=False):
        ends = [part["place"].min() - 0.4, part["place"].max() + 0.4]
        ax.plot(ends, [-0.8] * 2, color=types.colour(str(name)), lw=2, solid_capstyle="butt")
    _dot_keys(head, points, biggest)


def _dot_keys(head: Axes, points: PathCollection, biggest: float) -> None:
    """Say what the size and the colour of the dots mean."""
    radius = biggest**0.5 / 2 * 25.4 / 72
    for x, share, text in ((40, 0.1, "10"), (49, 0.5, "50"), (59, 1.0, "100 % of cells")):
        head.scatter(x, 0.5, s=biggest * share, c="#BBBBBB", edgecolor="#777777", linewidth=0.2, clip_on=False)
        head.text(x + radius * share**0.5 + 1.2, 0.5, text, fontsize=6, va="center")
    bar = head.inset_axes((90, 0.32, 10, 0.36), transform=head.transData)
    head.figure.colorbar(points, cax=bar, orientation="horizontal", ticks=[])
    head.text(89, 0.5, "0", fontsize=6, va="center", ha="right")
    head.text(101, 0.5, "1  mean, of the largest", fontsize=6, va="center")


def _confidence(ax: Axes, data: SlideLabels, bins: pd.DataFrame, threshold: float | None) -> None:
    cells = data.cells["status"].value_counts().to_dict()
    confidence_panel(ax, bins, cells, threshold)
    ax.set_title("Confidence")
    if ax.axison:
        ax.set(xlabel="Confidence of the label", ylabel="Cells of the kind, %")
        # Above the bars, which may stand anywhere.
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.2, columnspacing=1.2)


def _funnel(ax: Axes, funnel: pd.DataFrame, types: CellTypes) -> None:
    ax.set_title("Cells left after each step")
    steps = funnel.drop_duplicates("step").reset_index(drop=True)
    total = max(int(steps["cells"].iloc[0]), 1)
    ax.barh(steps.index, total, height=0.3, color="#F2F2F2")
    ax.barh(steps.index, steps["cells"], height=0.3, color=list(_FUNNEL_SHADES)[: len(steps)])
    for place, (step, cells, dropped) in enumerate(steps[["step", "cells", "dropped"]].itertuples(index=False)):
        share = f"  ({100 * cells / total:.1f} %)" if place else ""
        head = f"{step[:1].upper()}{step[1:]}: {cells:,}{share}"
        ax.text(0, place - 0.19, head, fontsize=6, va="bottom", weight="bold")
        if dropped:
            part = funnel[(funnel["step"] == step) & (funnel["lost"] > 0)]
            ax.text(0, place + 0.19, _reasons(part, types), fontsize=5.5, va="top", color="#666666", linespacing=1.15)
    ax.set(xlim=(0, total), ylim=(len(steps) - 0.45, -0.4))
    ax.set_axis_off()


def _reasons(part: pd.DataFrame, types: CellTypes) -> str:
    """Return what was lost, and why, in at most two lines."""
    shown = part.head(_REASONS_SHOWN)
    texts = [f"{types.full(str(why))} {lost:,}" for why, lost in zip(shown["reason"], shown["lost"], strict=True)]
    rest = int(part["lost"].sum() - shown["lost"].sum())
    if rest:
        texts.append(f"{len(part) - len(shown)} other reasons {rest:,}")
    whole = f"−{int(part['lost'].sum()):,}:  {', '.join(texts)}"
    return "\n".join(textwrap.wrap(whole, 86)[:2])


def _measured(dots: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers of the dot plot in one long table."""
    parts = [
        long_table("markers", dots["cell_type"], dots["gene"], measure, dots[measure])
        for measure in ("fraction", "mean", "scaled")
    ]
    return pd.concat(parts, ignore_index=True)
