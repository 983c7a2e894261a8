"""FiLM against concatenation: metrics, maps of the embeddings, accuracy by organ, confusion, reliability."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from nuclass.core.class_names import ALL, ORGAN_USES
from nuclass.core.files import read_json
from nuclass.core.readings import EMBEDDING_METRICS, HIGHER
from nuclass.figures.confusion import confusion_panel, outer_labels, used_classes
from nuclass.figures.embedding_map import Colouring, by_class, by_organ, draw_legend, legend_mm, map_panel
from nuclass.figures.pages import FOOT_MM, axes_mm, mm_figure, save_pages, text_mm
from nuclass.figures.style import DOUBLE_MM, GREY, LIGHT, Classes, empty_panel, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGES = ("metrics", "embedding", "organs", "confusion", "reliability")
"""What each page is called in file names; the first has none."""
COLOURS = {"film": "#009E73", "concat": "#CC79A7", "none": GREY}
METRICS = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro-F1",
    "auroc_macro": "Macro AUROC",
    "silhouette": "Silhouette (cosine)",
    "calinski_harabasz": "Calinski-Harabasz index",
    "davies_bouldin": "Davies-Bouldin index",
    "nn1": "Nearest cell is of its class",
    "nn1_same_organ": "… nearest within its organ",
    "nn1_cross_organ": "… nearest in another organ",
    "organ_identifiability": "Organ told by 5 neighbours",
    "organ_leakage": "Organ leakage index",
    "ece": "Calibration error",
}
MIN_CELLS = 20
"""Bins of fewer cells are left out of a reliability curve, not of the numbers."""
_OTHER_COLOURS = ("#0072B2", "#E69F00", "#56B4E9", "#333333")
_LINE_MM = 5.0


@dataclass(frozen=True)
class Comparison:
    """What the pages show: ``result`` the metrics, the other tables as :func:`draw_film_vs_concat` explains."""

    result: Mapping[str, Any]
    cells: pd.DataFrame
    organs: pd.DataFrame
    confusion: pd.DataFrame
    reliability: pd.DataFrame

    @property
    def models(self) -> list[str]:
        """The models, the one that the others are compared with first."""
        return list(self.result["models"])

    def colour(self, name: str) -> str:
        """Return a model's colour."""
        others = [model for model in self.models if model not in COLOURS]
        return COLOURS.get(name) or _OTHER_COLOURS[others.index(name) % len(_OTHER_COLOURS)]

    @property
    def told(self) -> str:
        """Cells, classes and organs, for a line below a title."""
        organs = ", ".join(f"{name} {cells:,}" for name, cells in self.result["organs"].items())
        count, classes = self.result["n_cells"], len(self.result["classes"])
        return (
            f"The same {count:,} random cells for every model (seed {self.result['seed']}), {classes} classes; {organs}"
        )


def draw_film_vs_concat(
    result: str | Path,
    tables: Mapping[str, str | Path],
    outputs: Sequence[str | Path],
    csv: str | Path,
    *,
    classes: str | Path,
    style: str | Path,
    synthetic: bool,
) -> None:
    """Draw the pages :data:`PAGES` of local models that use the organ in different ways.

    Parameters
    ----------
    result
        JSON of :func:`nuclass.evaluation.embedding_space.compare_embeddings`.
    tables
        The tables of :func:`nuclass.evaluation.organ_use.describe_organ_use` by their names: ``cells`` as Parquet,
        ``organs confusion reliability`` as CSV.
    outputs
        As :func:`nuclass.figures.pages.save_pages` takes them, in the order of :data:`PAGES`.
    csv
        All numbers drawn: ``page``, then the columns of that page's table.
    """
    sheet = Classes.read(classes)
    parts = {name: pd.read_csv(tables[name]) for name in ("organs", "confusion", "reliability")}
    found = Comparison(read_json(result), pd.read_parquet(tables["cells"]), **parts)
    values = metric_numbers(found)
    pages = _pages(found, values, sheet, style, FOOT_MM if synthetic else 0.0)
    numbers = pd.concat(
        [
            values.assign(page="metrics"),
            found.organs.assign(page="organs"),
            found.confusion.assign(page="confusion"),
            found.reliability.assign(page="reliability"),
            found.cells.rename(columns={"model": "name"}).round({"umap_1": 4, "umap_2": 4}).assign(page="embedding"),
        ],
        ignore_index=True,
    ).astype({"cells": "Int64"})
    save_pages(pages, outputs, csv, numbers[["page", *numbers.columns.drop("page")]], synthetic=synthetic)


def metric_numbers(found: Comparison) -> pd.DataFrame:
    """Return ``metric name value low high`` of every model, and of the first minus each other one."""
    rows = []
    first, *others = found.models
    nan = float("nan")
    for metric in EMBEDDING_METRICS:
        values = {name: _float(found.result["models"][name].get(metric)) for name in found.models}
        rows += [(metric, name, value, nan, nan) for name, value in values.items()]
        for name in others:
            pair = f"{first}-{name}"
            known = found.result["differences"].get(pair, {}).get(metric, {})
            value = _float(known.get("value", values[first] - values[name]))
            rows.append((metric, pair, value, _float(known.get("low")), _float(known.get("high"))))
    return pd.DataFrame(rows, columns=["metric", "name", "value", "low", "high"])


def _pages(found: Comparison, values: pd.DataFrame, sheet: Classes, style: str | Path, foot: float) -> Iterator[Figure]:
    yield _metrics(found, values, style, foot)
    yield _embedding(found, sheet, style, foot)
    yield _organs(found, style)
    yield _confusion(found, sheet, style)
    yield _reliability(found, style)


def _metrics(found: Comparison, values: pd.DataFrame, style: str | Path, foot: float) -> Figure:
    """Draw the table of metrics."""
    first, *others = found.models
    height = 16 + _LINE_MM * (len(METRICS) + 1.2) + 6 + foot
    fig = mm_figure(style, DOUBLE_MM, height)
    text_mm(fig, 1.5, 1.5, "Local models that use the organ in different ways", fontsize=8, weight="bold")
    text_mm(fig, 1.5, 6.2, found.told, fontsize=5.5, color="#555555")
    ax = axes_mm(fig, 0, 10, DOUBLE_MM, height - 10 - foot)
    ax.set_axis_off()
    ax.set(xlim=(0, DOUBLE_MM), ylim=(height - 10 - foot, 0))
    own_mm = 22.0 if len(found.models) <= 4 else 80.0 / len(found.models)
    widths = [own_mm] * len(found.models) + [(135 - own_mm * len(found.models)) / max(len(others), 1)] * len(others)
    edges = 46 + np.cumsum(widths)
    heads = [_title(name) for name in found.models] + [f"{_title(first)} minus\n{_title(n).lower()}" for n in others]
    for x, head in zip(edges, heads, strict=True):
        # A line each: lines of one text move with the letters in them that reach below.
        for line, text in enumerate(reversed(head.split("\n"))):
            ax.text(x, 4.8 - 2.5 * line, text, fontsize=6, weight="bold", ha="right", va="baseline")
    at = values.set_index(["metric", "name"])
    ax.plot([1.5, DOUBLE_MM - 1.5], [6, 6], color="#333333", lw=0.7)
    for row, (metric, label) in enumerate(METRICS.items()):
        y = 6 + _LINE_MM * (row + 0.55)
        better = EMBEDDING_METRICS[metric]
        if row % 2:
            ax.axhspan(y - _LINE_MM / 2, y + _LINE_MM / 2, xmin=0.008, xmax=0.992, color="#F6F6F6", lw=0, zorder=0)
        ax.text(1.5, y, f"{label}  {'↑' if better == HIGHER else '↓'}", fontsize=6, va="center")
        own = {name: float(at.loc[(metric, name), "value"]) for name in found.models}
        digits = 0 if any(abs(value) >= 100 for value in own.values()) else 3
        best = (max if better == HIGHER else min)((v for v in own.values() if v == v), default=float("nan"))
        for x, value in zip(edges, own.values(), strict=False):
            # As in the table, those with the same three digits as the best are bold as well.
            weight = "bold" if value == value and _number(value) == _number(best) else "normal"
            ax.text(x, y, _number(value, digits), fontsize=6, ha="right", va="center", weight=weight)
        for x, name in zip(edges[len(own) :], others, strict=True):
            cell = at.loc[(metric, f"{first}-{name}")]
            clear = cell["low"] > 0 or cell["high"] < 0
            weight = "bold" if clear else "normal"
            ax.text(x, y, _difference(cell, digits), fontsize=6, ha="right", va="center", weight=weight)
    foot_y = 6 + _LINE_MM * (len(METRICS) + 0.15)
    ax.plot([1.5, DOUBLE_MM - 1.5], [foot_y, foot_y], color="#333333", lw=0.7)
    note = (
        "↑ more, ↓ less is better. Bold: best of the models; of differences, the interval leaves out 0. "
        "In brackets: 95 % interval, paired bootstrap over squares of tissue."
    )
    ax.text(1.5, foot_y + 3, note, fontsize=5.5, color="#555555", va="center")
    for text in found.result["notes"]:
        foot_y += 3
        ax.text(1.5, foot_y + 3, text, fontsize=5.5, color="#555555", va="center")
    return fig


def _embedding(found: Comparison, sheet: Classes, style: str | Path, foot: float) -> Figure:
    """Draw the map of each model, by class and by organ."""
    ways: list[Colouring] = [by_class(found.cells, sheet), by_organ(found.cells)]
    models, left, top, gap = found.models, 5.0, 6.0, 2.0
    side = min(58.0, (DOUBLE_MM - left - 0.5 - gap * (len(models) - 1)) / len(models))
    legends = [legend_mm([way], columns=5) for way in ways]
    height = top + sum(side + legend + 3 for legend in legends) + foot
    fig = mm_figure(style, DOUBLE_MM, height)
    for column, model in enumerate(models):
        text_mm(fig, left + column * (side + gap), 1.5, _title(model), fontsize=7, weight="bold")
    for way, legend in zip(ways, legends, strict=True):
        name = axes_mm(fig, 0, top, left, side)
        name.set_axis_off()
        name.text(0.35, 0.5, way.heading, rotation=90, ha="center", va="center", fontsize=7, weight="bold")
        for column, model in enumerate(models):
            ax = axes_mm(fig, left + column * (side + gap), top, side, side)
            map_panel(ax, found.cells[found.cells["model"] == model], way, side)
        draw_legend(fig, way, left, top + side + 1, DOUBLE_MM - left, legend, columns=5)
        top += side + legend + 3
    return fig


def _organs(found: Comparison, style: str | Path) -> Figure:
    """Draw accuracy by organ, and the difference to the first model, with intervals."""
    table = found.organs
    organs = [ALL, *sorted(set(table["organ"]) - {ALL})]
    fig = new_figure(style, DOUBLE_MM, 26 + (4.2 * len(found.models) + 3) * len(organs))
    left, right = fig.subplots(1, 2, sharey=True, width_ratios=[1.35, 1])
    first, *others = found.models
    _bars(left, table, organs, {name: (_title(name), found.colour(name)) for name in found.models})
    pairs = {f"{first}-{n}": (f"{_title(first)} minus {_title(n).lower()}", found.colour(n)) for n in others}
    if pairs:
        _bars(right, table, organs, pairs, bars=False)
        right.axvline(0, color="#333333", lw=0.6, zorder=1)
    else:
        empty_panel(right, "One model only")
    cells = table.drop_duplicates("organ").set_index("organ")["cells"]
    names = ["All organs" if organ == ALL else organ.capitalize() for organ in organs]
    left.set_yticks(range(len(organs)), [f"{n}\n{cells[o]:,} cells" for n, o in zip(names, organs, strict=True)])
    left.set(xlim=(0, 1), xlabel="Accuracy")
    right.set_xlabel("Difference in accuracy")
    left.set_ylim(len(organs) - 0.45, -0.55)
    for ax in (left, right):
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x")
        ax.locator_params(axis="x", nbins=6)
        handles, labels = ax.get_legend_handles_labels()
        ax.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1.005), ncols=len(labels) or 1)
    return fig


def _bars(
    ax: Axes,
    table: pd.DataFrame,
    organs: Sequence[str],
    names: Mapping[str, tuple[str, str]],
    *,
    bars: bool = True,
) -> None:
    step = 0.8 / max(len(names), 1)
    for place, (name, (label, colour)) in enumerate(names.items()):
        rows = table[table["name"] == name].set_index("organ").reindex(organs)
        y = np.arange(len(organs)) - 0.4 + step * (place + 0.5)
        value, low, high = (rows[key].to_numpy(float) for key in ("value", "low", "high"))
        if bars:
            ax.barh(y, value, height=0.85 * step, color=colour, alpha=0.55, lw=0, label=label, zorder=2)
            ax.hlines(y, low, high, color="#333333", lw=0.8, zorder=3)
        else:
            ax.hlines(y, low, high, color=colour, lw=1.0, zorder=2)
            ax.scatter(value, y, s=13, color=colour, linewidth=0, zorder=3, label=label)


def _confusion(found: Comparison, sheet: Classes, style: str | Path) -> Figure:
    """Draw the matrix of each model, and that of the first minus the second."""
    first, *others = found.models
    table = found.confusion
    own = {name: table[table["name"] == name] for name in found.models}
    names = used_classes(own.values(), sheet)
    pair = f"{first}-{others[0]}" if others else ""
    panels = [*own, *([pair] if pair else [])]
    columns = 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // columns)
    side = (DOUBLE_MM - 62) / columns
    fig = new_figure(style, DOUBLE_MM, min(rows * (side + 7) + 18, 240))
    axes = fig.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    image = change = None
    for ax, name in zip(axes.flat, panels, strict=False):
        if name in own:
            image = confusion_panel(ax, own[name], names, sheet)
            ax.set_title(f"{_title(name)}  (n = {int(own[name]['cells'].sum()):,})")
        else:
            change = _difference_panel(ax, table[table["name"] == pair], names, sheet)
            ax.set_title(f"{_title(first)} minus {_title(others[0]).lower()}")
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    outer_labels(axes, names, sheet)
    for drawn, label in ((image, "Share of the class's cells"), (change, "Difference of the shares")):
        if drawn is not None:
            bar = fig.colorbar(drawn, ax=axes[0 if drawn is image else -1].tolist(), shrink=0.6, aspect=22, pad=0.015)
            bar.set_label(label)
            bar.outline.set_visible(False)  # type: ignore[operator]
    return fig


def _difference_panel(ax: Axes, table: pd.DataFrame, names: Sequence[str], sheet: Classes) -> Any:
    rate = table.pivot(index="true", columns="predicted", values="rate").reindex(index=names, columns=names)
    values = rate.to_numpy(float)
    reach = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 0.0
    reach = max(0.1, np.ceil(reach * 10) / 10)
    ax.set_facecolor(LIGHT)
    image = ax.imshow(np.ma.masked_invalid(values), cmap="PiYG", vmin=-reach, vmax=reach)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value) and abs(value) >= 0.005:
            ink = "white" if abs(value) > 0.7 * reach else "#222222"
            weight = "bold" if row == column else "normal"
            text = f"{100 * value:.0f}".replace("-", "−")
            ax.text(column, row, text, ha="center", va="center", fontsize=5, color=ink, weight=weight)
    places = np.arange(len(names))
    ax.set_xticks(places, [sheet.short(name) for name in names], rotation=90)
    ax.set_xticks(places[1:] - 0.5, minor=True)
    ax.set_yticks(places[1:] - 0.5, minor=True)
    ax.grid(which="minor", color="white", lw=0.6)
    ax.tick_params(which="both", length=0)
    ax.tick_params(pad=7)
    ax.spines[:].set_visible(False)
    return image


def _reliability(found: Comparison, style: str | Path) -> Figure:
    """Draw confidence against accuracy of each model, with the histogram of confidence below."""
    fig = new_figure(style, DOUBLE_MM, 82)
    axes = fig.subplots(2, len(found.models), squeeze=False, sharex=True, sharey="row", height_ratios=[4, 1])
    for column, name in enumerate(found.models):
        rows = found.reliability[found.reliability["name"] == name]
        above, below = axes[:, column]
        colour = found.colour(name)
        error = _float(found.result["models"][name].get("ece"))
        above.plot([0, 1], [0, 1], color="#BBBBBB", lw=0.6, ls=(0, (3, 2)), zorder=1)
        shown = rows[rows["cells"] >= MIN_CELLS]
        if shown.empty:
            above.text(0.5, 0.5, "Too few cells", ha="center", va="center", color=GREY)
        above.plot(shown["confidence"], shown["accuracy"], color=colour, marker="o", ms=3, lw=0.9)
        above.set_title(f"{_title(name)}: calibration error {_number(error)}")
        above.set(xlim=(0, 1.02), ylim=(0, 1.02))
        above.grid()
        share = 100 * rows["cells"] / max(rows["cells"].sum(), 1)
        width = (rows["high"] - rows["low"]).to_numpy(float)
        below.bar(rows["low"] + width / 2, share, width=0.92 * width, color=colour, alpha=0.75, linewidth=0)
        below.set_xlabel("Confidence")
    axes[0, 0].set_ylabel("Accuracy in the bin")
    axes[1, 0].set_ylabel("Cells (%)")
    return fig


def _title(name: str) -> str:
    return ORGAN_USES.get(name, name)


def _number(value: float, digits: int = 3) -> str:
    return "-" if value != value else f"{value:,.{digits}f}".replace("-", "−")


def _difference(cell: pd.Series[Any], digits: int) -> str:
    value, low, high = (float(cell[key]) for key in ("value", "low", "high"))
    sign = "+" if value > 0 else ""
    interval = f" ({_number(low, digits)}, {_number(high, digits)})" if low == low else ""
    return f"{sign}{_number(value, digits)}{interval}"


def _float(value: float | None) -> float:
    return float("nan") if value is None else float(value)
