"""The workflow and the three-stage method at a glance, with pictures of the study itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nuclass.core.names import LABELLED
from nuclass.figures.labelling_panels import CellTypes, cluster_colour, long_table
from nuclass.figures.pipeline_method import Method, draw_method
from nuclass.figures.pipeline_views import Views, read_views, study_counts
from nuclass.figures.schematic import INK, SOFT, Box, Canvas
from nuclass.figures.style import DOUBLE_MM, Classes, class_dots, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEIGHT_MM = 170.0
_SIDE, _GAP, _LEFT, _TOP = 31.0, 6.5, 1.0, 10.0
_TITLES = ("H&E of the slide", "Xenium transcripts", "Clusters", "Markers of each type", "Labels in place")
_LENGTHS_UM = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_LONG = 2.0
"""Of a slide that is longer than this many times its width, a square around the cell is shown."""
_NO_BUNDLE = "Not in this study:\nits slides come as\nwindows with labels"


def draw_pipeline(
    slide: str,
    organ: str,
    paths: Mapping[str, str | Path],
    composition: str | Path,
    outputs: Sequence[str | Path],
    csv: str | Path,
    *,
    method: Method,
    class_of: Mapping[str, str],
    classes: str | Path,
    style: str | Path,
    synthetic: bool,
) -> None:
    """Draw how labels are made, the three stages of the models, and what each part of the study is used for.

    Parameters
    ----------
    slide, organ
        The slide whose pictures are shown.
    paths
        Of :func:`nuclass.figures.pipeline_views.read_views`.
    composition
        Cells by ``slide organ role split class``.
    outputs, csv
        The pictures, one a format, and the numbers drawn: ``panel row column measure value``.
    method
        What the models are made of.
    class_of
        Class ("" where none) of each cell type of the ontology.
    """
    types = CellTypes(class_of, Classes.read(classes))
    views = read_views(slide, organ, paths, method.windows, types)
    counts = study_counts(composition)
    canvas = Canvas(new_figure(style, DOUBLE_MM, _HEIGHT_MM))
    labels = _draw_labels(canvas, views, types, method.mpp)
    draw_method(canvas, views, method, top=55.0)
    _draw_study(canvas, counts, top=142.0)
    study = pd.Series(counts)
    numbers = [*labels, long_table("study", pd.Series(study.index), "", "number", study.reset_index(drop=True))]
    if views.cell is not None:
        sides = pd.Series(method.windows)
        cell = pd.Series([str(views.cell["cell_id"])] * len(sides))
        numbers.append(long_table("windows", cell, pd.Series(sides.index), "px", sides.reset_index(drop=True)))
    save_figure(canvas.fig, outputs, csv, pd.concat(numbers, ignore_index=True), synthetic=synthetic)


def _draw_labels(canvas: Canvas, views: Views, types: CellTypes, mpp: float) -> list[pd.DataFrame]:
    name = views.slide.replace("_", " ")
    canvas.text((_LEFT, 3.2), "a", fontsize=9, weight="bold", va="center")
    heading = f"{labels_of(views.cells)} each slide, here {name} ({views.organ})"
    canvas.text((_LEFT + 4, 3.2), heading, fontsize=7, weight="bold", va="center")
    boxes = [Box(_LEFT + k * (_SIDE + _GAP), _TOP, _SIDE, _SIDE) for k in range(5)]
    for first, second in pairwise(boxes):
        canvas.arrow([(first.right[0] + 0.7, first.right[1]), (second.left[0] - 0.7, second.left[1])])
    for box, title in zip(boxes, _TITLES, strict=True):
        canvas.text((box.x, _TOP - 1.2), title, fontsize=6, weight="bold")
    if views.thumbnail is None or views.shape is None:
        for box in boxes:
            canvas.placeholder(box, _NO_BUNDLE)
        return []
    cells = len(views.cells)
    sides = " × ".join(f"{mpp * side / 1000:.1f}" for side in reversed(views.shape))
    part = "part of " if max(views.shape) > _LONG * min(views.shape) else ""
    _thumbnail(canvas.picture(boxes[0]), views, mpp)
    _caption(canvas, boxes[0], f"{mpp:g} µm/px, aligned with the\nrun; {part}{sides} mm")
    points = _transcripts(canvas, boxes[1], views, types, mpp)
    _caption(canvas, boxes[1], f"outlines of nuclei; {len(points):,} transcripts\nof markers, in their type's colour")
    n_clusters = _umap(canvas, boxes[2], views)
    _caption(canvas, boxes[2], f"Leiden, {n_clusters} clusters;\nUMAP of {len(views.umap):,} cells")
    _dots(canvas, boxes[3], views, types)
    _caption(canvas, boxes[3], "size: share of cells that have\nthe gene; colour: mean, of its largest")
    classed = _overlay(canvas.picture(boxes[4]), views, types)
    share = 100 * len(classed) / max(cells, 1)
    _caption(canvas, boxes[4], f"{len(classed):,} of {cells:,} cells ({share:.0f} %)\nhave a class of the study")
    genes, found, names = (series.value_counts() for series in (points["gene"], views.umap["cluster"], classed))
    dots = views.dots
    return [
        long_table("transcripts", pd.Series(genes.index), "", "transcripts", genes.reset_index(drop=True)),
        long_table("clusters", pd.Series(found.index), "", "cells", found.reset_index(drop=True)),
        *(long_table("markers", dots["cell_type"], dots["gene"], m, dots[m]) for m in ("fraction", "mean", "scaled")),
        long_table("labels", pd.Series(names.index), "", "cells", names.reset_index(drop=True)),
    ]


def _caption(canvas: Canvas, box: Box, text: str) -> None:
    canvas.text((box.x, box.y + box.height + 1.3), text, fontsize=5, va="top", color=SOFT)


def _thumbnail(ax: Axes, views: Views, mpp: float) -> None:
    height, width = views.shape or (1, 1)
    ax.imshow(np.asarray(views.thumbnail), extent=(0, width, height, 0), interpolation="antialiased")
    _scale(ax, _look_at(ax, views), mpp)
    if views.cell is not None:
        side = views.transcripts.side if views.transcripts is not None else 0
        x, y = float(views.cell["x_px"]) - side / 2, float(views.cell["y_px"]) - side / 2
        ax.plot([x, x + side, x + side, x, x], [y, y, y + side, y + side, y], color=INK, lw=0.8)


def _look_at(ax: Axes, views: Views) -> float:
    """Show the slide in a square, of a long one a part around the cell; return the square's side in px."""
    height, width = views.shape or (1, 1)
    side, middle = float(max(width, height)), np.array([width, height]) / 2
    if side > _LONG * min(width, height):
        side = float(min(width, height))
        if views.cell is not None:
            at = views.cell[["x_px", "y_px"]].to_numpy(float)
            middle = np.clip(at, side / 2, np.array([width, height]) - side / 2)
    (x, y), half = middle, side / 2
    ax.set(xlim=(x - half, x + half), ylim=(y + half, y - half), facecolor="#FBFBFB")
    return side


def _scale(ax: Axes, side_px: float, mpp: float) -> None:
    """Draw a bar of about a quarter of the picture in its lower left corner."""
    length = [value for value in _LENGTHS_UM if value <= 0.3 * side_px * mpp or value == _LENGTHS_UM[0]][-1]
    left, bottom = ax.get_xlim()[0] + 0.06 * side_px, ax.get_ylim()[0] - 0.06 * side_px
    ax.plot([left, left + length / mpp], [bottom] * 2, color="white", lw=2.6, solid_capstyle="butt")
    ax.plot([left, left + length / mpp], [bottom] * 2, color="black", lw=1.5, solid_capstyle="butt")
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length} µm"
    label = ax.text(left, bottom - 0.03 * side_px, text, fontsize=5, va="bottom")
    label.set_bbox({"facecolor": "white", "alpha": 0.8, "pad": 0.5, "linewidth": 0})


def _transcripts(canvas: Canvas, box: Box, views: Views, types: CellTypes, mpp: float) -> pd.DataFrame:
    from matplotlib.collections import LineCollection

    shown = views.transcripts
    if shown is None:
        canvas.placeholder(box, "No labelled cell\nto show")
        return pd.DataFrame({"gene": []})
    ax = canvas.picture(box)
    ax.imshow(shown.image, extent=(0, shown.side, shown.side, 0), alpha=0.55, interpolation="antialiased")
    closed = [np.vstack([line, line[:1]]) for line in shown.outlines]
    ax.add_collection(LineCollection(closed, colors=INK, linewidths=0.4))
    of = views.dots.drop_duplicates("gene").set_index("gene")["of"]
    colours = [types.colour(str(of[gene])) for gene in shown.points["gene"]]
    ax.scatter(shown.points["x"], shown.points["y"], s=2.2, c=colours, linewidths=0.2, edgecolors="white", zorder=3)
    ax.set(xlim=(0, shown.side), ylim=(shown.side, 0))
    _scale(ax, shown.side, mpp)
    return shown.points


def _umap(canvas: Canvas, box: Box, views: Views) -> int:
    import matplotlib.patheffects as effects

    clusters = views.umap["cluster"].to_numpy(int)
    found = np.unique(clusters[clusters >= 0])
    if not len(found):
        canvas.placeholder(box, "No cell to lay out")
        return 0
    ax = canvas.picture(box)
    shades = {code: cluster_colour(place) for place, code in enumerate(found)}
    x, y = (views.umap[c].to_numpy(float) for c in ("umap_1", "umap_2"))
    colours = [shades.get(code, "#DADADA") for code in clusters]
    size = float(np.clip(1500 / len(x), 0.3, 2))
    ax.scatter(x, y, s=size, c=colours, linewidths=0, rasterized=True)
    halo = [effects.withStroke(linewidth=1.2, foreground="white")]
    for code in found:
        middle = np.median(x[clusters == code]), np.median(y[clusters == code])
        ax.text(*middle, str(code), fontsize=5, ha="center", va="center", path_effects=halo)
    ax.margins(0.06)
    return len(found)


def _dots(canvas: Canvas, box: Box, views: Views, types: CellTypes) -> None:
    dots = views.dots
    if dots.empty:
        canvas.placeholder(box, "No type with a marker")
        return
    names = list(dict.fromkeys(dots.sort_values("place")["of"]))
    genes = dots.drop_duplicates("gene").sort_values("place")
    names += [name for name in types.ordered(dots["cell_type"]) if name not in names]
    wide, high = 10.5, 9.5
    ax = canvas.picture(Box(box.x + wide, box.y + high, box.width - wide, box.height - high))
    step = min((box.width - wide) / len(genes), (box.height - high) / len(names)) * 72 / 25.4
    rows = dots["cell_type"].map(names.index)
    ax.scatter(
        dots["place"], rows, s=(0.92 * step) ** 2 * dots["fraction"], c=dots["scaled"], cmap="YlGnBu", vmin=0, vmax=1,
        edgecolor="#777777", linewidth=0.2, zorder=3,
    )  # fmt: skip
    ax.set(xlim=(-0.6, len(genes) - 0.4), ylim=(len(names) - 0.4, -0.6))
    ax.xaxis.tick_top()
    ax.set_xticks(range(len(genes)), list(genes["gene"]), rotation=90, fontsize=5)
    of_class = [types.class_of.get(name, "") or name for name in names]
    ax.set_yticks(range(len(names)), [types.classes.short(name) for name in of_class], fontsize=5)
    ax.tick_params(axis="x", length=0, pad=1.5)
    ax.tick_params(axis="y", length=0, pad=5.5)
    class_dots(ax, types.classes, of_class, axis="y", offset=-0.045, size=6)


def _overlay(ax: Axes, views: Views, types: CellTypes) -> pd.Series[Any]:
    height, width = views.shape or (1, 1)
    ax.imshow(np.asarray(views.thumbnail), extent=(0, width, height, 0), alpha=0.35, interpolation="antialiased")
    cells = views.cells[(views.cells["status"] == LABELLED) & (views.cells["class"] != "")]
    order = np.random.default_rng(0).permutation(len(cells))
    shown = cells.iloc[order]
    colours = [types.classes.colour(name) for name in shown["class"]]
    side = _look_at(ax, views)
    size = float(np.clip(4000 / max(len(cells) * side**2 / (width * height), 1), 0.1, 4))
    ax.scatter(shown["x_px"], shown["y_px"], s=size, c=colours, linewidths=0, rasterized=True)
    return cells["class"]


def _number(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def labels_of(cells: pd.DataFrame) -> str:
    """Return the words for where the labels of a slide come from."""
    sources = set(cells["source"].astype(str)) if "source" in cells else set()
    if {"markers", "given"} <= sources:
        return "Labels given and from the transcripts of"
    return {"markers": "Labels from the transcripts of", "given": "Labels given for"}.get(
        next(iter(sources & {"markers", "given"}), ""), "Labels of"
    )


def _draw_study(canvas: Canvas, counts: Mapping[str, int], top: float) -> None:
    canvas.text((_LEFT, top), "c", fontsize=9, weight="bold", va="center")
    canvas.text((_LEFT + 4, top), "What each part of the study is used for", fontsize=7, weight="bold", va="center")
    n = counts
    trained, cohorts = _number(n["training_slides"], "slide"), _number(n["cohorts"], "slide")
    test = f"\nand {n['test_cells']:,} test cells" if n["test_cells"] else ""
    texts = (
        (
            "Training slides",
            f"{trained} of {_number(n['organs'], 'organ')},\n{n['classes']} classes",
        ),
        ("Part for training", f"{n['train_cells']:,} cells train the local\nand the global model{test}"),
        ("Part for validation", f"{n['val_cells']:,} cells choose, calibrate\nand fit the gate"),
        (
            "Cohorts, held out",
            f"{cohorts} not trained on,\n{n['cohort_cells']:,} cells, only reported on",
        ),
    )
    gap = 6.5
    width = (DOUBLE_MM - 2 * _LEFT - 3 * gap) / 4
    boxes = []
    for place, (head, text) in enumerate(texts):
        box = Box(_LEFT + place * (width + gap), top + 4.5, width, 15.5)
        canvas.box(box, "")
        canvas.text((box.x + width / 2, box.y + 3.6), head, fontsize=6, weight="bold", ha="center", va="center")
        canvas.text((box.x + width / 2, box.y + 9.8), text, ha="center", va="center")
        boxes.append(box)
    # Both parts are cut from the training slides; the cohorts come from nowhere else in the study.
    slides, train, val, _ = boxes
    canvas.arrow([slides.right, train.left])
    low = slides.bottom[1] + 2.2
    canvas.arrow([slides.bottom, (slides.bottom[0], low), (val.bottom[0], low), val.bottom])
    canvas.text((slides.bottom[0] + 1, low + 0.5), "cut in space", fontsize=5, color=SOFT, va="top")
