"""How the models learned: losses, validation scores and learning rate, with the state that was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.files import read_json
from nuclass.core.names import GATE, GLOBAL, LOCAL
from nuclass.figures.style import BRANCH_COLOURS, DOUBLE_MM, GREY, empty_panel, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONTEXT = "context"
_NAMES = {CONTEXT: "Context backbone", LOCAL: "Local", GLOBAL: "Global", GATE: "Gate"}
_COLOURS = {
    CONTEXT: "#009E73",
    LOCAL: BRANCH_COLOURS["local"],
    GLOBAL: BRANCH_COLOURS["global"],
    GATE: BRANCH_COLOURS["fused"],
}
_PANELS = {
    "Training loss": {"train_loss": "train loss"},
    "Validation loss": {"val_loss": "val loss", "val_log_loss": "val loss"},
    "Validation score": {"val_f1_macro": "macro-F1", "val_accuracy": "accuracy"},
    "Learning rate": {"learning_rate": "learning rate"},
}
_GREY_LINE, _ONCE = "val_accuracy", "val_f1_macro"


@dataclass(frozen=True)
class Curve:
    """One training: a row a validation, and which of them is the state that was kept.

    Attributes
    ----------
    rows
        ``phase epoch step``, ``x`` (optimizer steps from the start, over all phases) and the measures.
    chosen
        Place of the kept state in ``rows``; None where there is no row.
    """

    rows: pd.DataFrame
    chosen: int | None


def read_curve(metrics: str | Path, history: str | Path | None = None) -> Curve:
    """Return a training's history from ``history.csv``, or where that is None from the ``metrics.json`` itself.

    A file that is missing or has no row gives a curve without rows. Where no validation has a macro-F1, the kept state
    has the one of ``metrics``, which is of the same cells.

    Raises
    ------
    UserError
        The state that ``metrics`` calls the best is not in the history: the files are of different runs.
    """
    summary: dict[str, Any] = read_json(metrics) if Path(metrics).is_file() else {}
    rows = pd.DataFrame(summary.get("history", [])) if history is None else _read_rows(Path(history))
    if rows.empty:
        return Curve(pd.DataFrame(columns=["phase", "epoch", "step", "x"]), None)
    rows = rows.assign(phase=rows.get("phase", ""))
    ends = rows.groupby("phase", sort=False)["step"].max()
    rows["x"] = rows["step"] + rows["phase"].map(ends.cumsum() - ends)
    best = summary.get("best", {})
    found = np.flatnonzero((rows["step"] == best.get("step")) & (rows["phase"] == best.get("phase", "")))
    if best and not len(found):
        raise UserError(
            "The best state of a training is not in its history",
            where=history or metrics,
            found=f"step {best.get('step')} in {metrics}",
            expected=f"one of the steps {', '.join(map(str, rows['step']))}",
            fix="the files are of different runs: train the model again",
        )
    chosen = int(found[-1]) if len(found) else None
    own = summary.get("val", {}).get("f1_macro")
    if _ONCE not in rows and chosen is not None and own is not None:
        rows[_ONCE] = np.where(np.arange(len(rows)) == chosen, own, np.nan)
    return Curve(rows, chosen)


def _read_rows(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path) if path.is_file() else pd.DataFrame()
    except pd.errors.EmptyDataError:
        return pd.DataFrame()


def draw_training(
    metrics: Mapping[str, str | Path],
    histories: Mapping[str, str | Path],
    outputs: Sequence[str | Path],
    csv: str | Path,
    *,
    style: str | Path,
    synthetic: bool,
) -> None:
    """Draw the trainings side by side: one column a model, one row a measure, the kept state marked in each.

    Parameters
    ----------
    metrics
        Model (``context``, ``local``, ``global``, ``gate``) -> its ``metrics.json``.
    histories
        Model -> its ``history.csv``; for one that is not in it the history stands in its ``metrics.json``.
    """
    curves = {name: read_curve(path, histories.get(name)) for name, path in metrics.items()}
    fig = new_figure(style, DOUBLE_MM, 122)
    axes = fig.subplots(len(_PANELS), max(len(curves), 1), sharex="col", squeeze=False)
    for column, (name, curve) in enumerate(curves.items()):
        _column(list(axes[:, column]), name, curve)
    for ax, title in zip(axes[:, 0], _PANELS, strict=True):
        ax.set_ylabel(title)
    if not curves:
        for ax in axes.flat:
            ax.set_axis_off()
        empty_panel(axes[1, 0], "No model was trained")
    fig.align_ylabels(axes[:, 0])
    save_figure(fig, outputs, csv, _numbers(curves), synthetic=synthetic)


def _numbers(curves: Mapping[str, Curve]) -> pd.DataFrame:
    measures = list(dict.fromkeys(column for panel in _PANELS.values() for column in panel))
    columns = ["model", "phase", "epoch", "step", "x", *measures, "chosen"]
    parts = []
    for name, curve in curves.items():
        rows = curve.rows.reindex(columns=columns[1:-1])
        # Epochs count from 1 in figures.
        rows = rows.assign(model=name, epoch=rows["epoch"] + 1, chosen=np.arange(len(rows)) == curve.chosen)
        parts.append(rows[columns].astype(object))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _column(axes: Sequence[Axes], name: str, curve: Curve) -> None:
    axes[0].set_title(_NAMES.get(name, name), color="#222222", pad=13)
    if curve.rows.empty:
        for ax in axes:
            _say(ax, "No history kept")
        return
    axes[0].text(0, 1.035, _told(curve), transform=axes[0].transAxes, fontsize=5.5, color=GREY, va="bottom")
    for ax, measures in zip(axes, _PANELS.values(), strict=True):
        _panel(
            ax, {key: words for key, words in measures.items() if key in curve.rows}, curve, _COLOURS.get(name, GREY)
        )
    axes[-1].set_xlabel("Optimizer step")


def _say(ax: Axes, message: str) -> None:
    """Say in a panel why there is nothing to draw; its labels stay, and those of its column."""
    ax.text(0.5, 0.5, message, ha="center", va="center", color=GREY, transform=ax.transAxes)
    ax.tick_params(length=0, labelbottom=False, labelleft=False)
    ax.spines[:].set_visible(False)


def _told(curve: Curve) -> str:
    rows = curve.rows
    if curve.chosen is None:
        return f"{len(rows)} validations"
    best = rows.iloc[curve.chosen]
    last = rows.loc[rows["phase"] == best["phase"], "epoch"].max()
    phase = f" {best['phase']}" if best["phase"] else ""
    return f"kept:{phase} epoch {int(best['epoch']) + 1} of {int(last) + 1}, step {int(best['step']):,}"


def _panel(ax: Axes, measures: Mapping[str, str], curve: Curve, colour: str) -> None:
    rows, chosen = curve.rows, curve.chosen
    drawn = {key: words for key, words in measures.items() if rows[key].notna().any()}
    if not drawn:
        _say(ax, "Not measured")
        return
    few = len(rows) <= 12
    for start in rows.loc[rows["phase"] != rows["phase"].shift(), "x"].iloc[1:]:
        ax.axvline(start, color=GREY, lw=0.5, ls=(0, (1, 2)))
    if chosen is not None:
        ax.axvline(rows["x"].iloc[chosen], color=GREY, lw=0.6, ls=(0, (4, 2)), zorder=1)
    for order, (key, words) in enumerate(drawn.items()):
        ink = GREY if key == _GREY_LINE else colour
        once = rows[key].notna().sum() == 1 < len(rows)
        name, look = (f"{words}, kept state", "o") if once else (words, "o" if few else "")
        for number, (_, part) in enumerate(rows.groupby("phase", sort=False)):
            label = name if number == 0 else "_nolegend_"
            ax.plot(part["x"], part[key], color=ink, marker=look, ms=2.2, label=label, zorder=6 - order,
                    ls="" if once else "-")  # fmt: skip
        if chosen is not None:
            point = rows.iloc[[chosen]]
            ax.plot(
                point["x"], point[key], color=ink, marker="o", ms=4.5, mec="white", mew=0.6, ls="", zorder=6 - order
            )
    if {_GREY_LINE, _ONCE} & set(drawn):
        box: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "framealpha": 0.9, "borderpad": 0.2}
        # One point alone may lie in the corner.
        lonely = rows.get(_ONCE, rows["x"]).notna().sum() == 1 < len(rows)
        place: Literal["center right", "lower right"] = "center right" if lonely else "lower right"
        ax.legend(loc=place, frameon=True, bbox_to_anchor=(1.0, 0.5 if lonely else 0.02), **box)
    ax.grid(axis="y")
    ax.margins(y=0.12)
    ax.set_xlim(0, 1.05 * rows["x"].max())
    _readable(ax, rate="learning_rate" in drawn)


def _readable(ax: Axes, *, rate: bool) -> None:
    """Put few round numbers on the axes; a learning rate's begins at zero."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    if rate:
        low, high = ax.get_ylim()
        ax.set_ylim(min(low, -0.05 * high), 1.08 * high)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _rate(value)))


def _rate(value: float) -> str:
    if abs(value) < 1e-12:
        return "0"
    mantissa, power = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(power)}"
