"""How the cells of all slides were labelled: one row a slide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from nuclass.core.names import ABSTAINED
from nuclass.figures.labelling_panels import (
    BAR_COLOURS,
    HEADING,
    THRESHOLD_COLOUR,
    CellTypes,
    Entry,
    SlideLabels,
    confidence_panel,
    counted,
    legend_columns,
    legend_entries,
    legend_panel,
    map_panel,
    map_size,
    read_slide,
    scale_um,
    umap_by_type,
)
from nuclass.figures.style import DOUBLE_MM, Classes, empty_panel, new_figure, save_figure
from nuclass.labels.measures import STEPS, confidence_counts, funnel_counts, type_counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW_MM, _LEAST_ROW_MM, _PAGE_MM = 29.0, 18.0, 240.0
_LEGEND_ROW_MM, _LEGEND_COLUMNS = 3.3, 4
_WIDTHS_MM = (68.0, 29.0, 40.0, 42.0)
_KINDS = (
    ("study class", "#1F4E79"),
    ("other type", "#93B1CB"),
    ("abstained", "#BDBDBD"),
    ("dropped", "#E6E6E6"),
)


def draw_labelling(
    paths: Mapping[str, Mapping[str, str | Path]],
    outputs: Sequence[str | Path],
    csv: str | Path,
    *,
    organs: Mapping[str, str],
    min_confidence: Mapping[str, float | None],
    class_of: Mapping[str, str],
    classes: str | Path,
    style: str | Path,
    synthetic: bool,
) -> None:
    """Draw map, layout, confidence and share of labelled cells, one row a slide, on one page.

    Parameters
    ----------
    paths
        Slide to its files: ``labels cells umap``.
    outputs, csv
        The pictures, one a format, and the numbers drawn: ``slide panel row column measure value``.
    organs, min_confidence
        Of each slide: the organ, and the threshold to mark (``None``: none).
    class_of
        Class ("" where none) of each cell type of the ontology.
    """
    types = CellTypes(class_of, Classes.read(classes))
    rows = max(len(paths), 1)
    totals, numbers = [], []
    slides = {
        slide: read_slide(slide, files["labels"], files["cells"], files["umap"]) for slide, files in paths.items()
    }
    for slide, data in slides.items():
        counts, funnel, bins = type_counts(data.cells), funnel_counts(data.cells), confidence_counts(data.cells)
        totals.append(counts)
        numbers.append(counted(counts, funnel, bins).assign(slide=slide))
    pooled = pd.concat(totals).groupby("cell_type", as_index=False)["cells"].sum() if totals else pd.DataFrame()
    abstained = sum(int((data.cells["status"] == ABSTAINED).sum()) for data in slides.values())
    entries = legend_entries(pooled, abstained, types) if len(pooled) else []
    entries += _of_histograms(min_confidence.values()) if slides else []
    legend = legend_columns(entries, _LEGEND_COLUMNS)
    legend_rows = max(1, *map(len, legend))
    legend_mm = _LEGEND_ROW_MM * legend_rows + 4
    row_mm = max(min(_ROW_MM, (_PAGE_MM - legend_mm) / rows), _LEAST_ROW_MM)
    bar_um = min((scale_um(data.cells) for data in slides.values()), default=0.0)
    fig = new_figure(style, DOUBLE_MM, row_mm * rows + legend_mm)
    grid = fig.add_gridspec(rows + 1, 4, width_ratios=_WIDTHS_MM, height_ratios=[*[row_mm] * rows, legend_mm])
    for place, (slide, data) in enumerate(slides.items()):
        axes = [fig.add_subplot(grid[place, k]) for k in range(4)]
        _row(
            axes, data, organs[slide], min_confidence[slide], types, (row_mm, bar_um),
            first=place == 0, last=place == rows - 1,
        )  # fmt: skip
    if not slides:
        empty_panel(fig.add_subplot(grid[0, :]), "No slide to show")
    legend_panel(fig.add_subplot(grid[rows, :]), legend, _LEGEND_COLUMNS, legend_rows)
    table = pd.concat(numbers, ignore_index=True) if numbers else pd.DataFrame(columns=["slide"])
    table = table[["slide", *[c for c in table if c != "slide"]]]
    save_figure(fig, outputs, csv, table, synthetic=synthetic)


def _row(
    axes: Sequence[Axes], data: SlideLabels, organ: str, threshold: float | None, types: CellTypes,
    sizes: tuple[float, float], *, first: bool, last: bool,
) -> None:  # fmt: skip
    """Draw a slide; ``sizes`` are the height of its row (mm) and the length of the bar of scale (um)."""
    row_mm, bar_um = sizes
    size = map_size(data.cells, _WIDTHS_MM[0], row_mm - 7)
    map_panel(axes[0], data.cells, types, size[0] * size[1], bar_um)
    axes[0].set_title(f"{data.slide.replace('_', ' ')}  ·  {organ}")
    umap_by_type(axes[1], data.umap, types, row_mm - 5)
    confidence_panel(axes[2], confidence_counts(data.cells), data.cells["status"].value_counts().to_dict(), threshold)
    if first:
        for ax, title in zip(axes[1:], ("UMAP by cell type", "Confidence", "Cells of the bundle"), strict=True):
            ax.set_title(title)
    if axes[2].axison:
        axes[2].set_ylabel("Cells of\nthe kind, %")
        axes[2].set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
        if last:
            axes[2].set_xlabel("Confidence of the label")
    _shares(axes[3], funnel_counts(data.cells))


def _of_histograms(thresholds: Iterable[float | None]) -> list[Entry]:
    """Return the entries of the legend that explain the histograms; their bars leave no room for it."""
    entries: list[Entry] = [(HEADING, "Confidence, each kind 100 %", "")]
    entries += [("entry", status.capitalize(), colour) for status, colour in BAR_COLOURS.items()]
    marked = sorted({value for value in thresholds if value is not None})
    if marked:
        entries.append(("entry", f"Threshold {', '.join(f'{value:g}' for value in marked)}", THRESHOLD_COLOUR))
    return entries


def _shares(ax: Axes, funnel: pd.DataFrame) -> None:
    left = funnel.drop_duplicates("step").set_index("step")["cells"]
    total, kept, labelled, classed = (int(left[step]) for step in STEPS)
    ax.set_axis_off()
    ax.set(xlim=(0, 1), ylim=(6.4, -0.8))
    start = 0.0
    for place, ((name, colour), cells) in enumerate(
        zip(_KINDS, (classed, labelled - classed, kept - labelled, total - kept), strict=True)
    ):
        share = cells / total if total else 0.0
        ax.barh(0, share, left=start, height=1.1, color=colour)
        start += share
        y = 1.6 + 1.15 * place
        ax.scatter(0.02, y, s=14, c=colour, marker="s", linewidths=0)
        ax.text(0.06, y, name, fontsize=5.5, va="center")
        ax.text(0.74, y, f"{cells:,}", fontsize=5.5, va="center", ha="right")
        ax.text(0.98, y, f"{100 * share:.1f} %", fontsize=5.5, va="center", ha="right")
