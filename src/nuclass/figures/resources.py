"""What the study took: time and memory of its jobs, by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nuclass.core.amounts import GIB_IN_MIB, duration, memory, time_scale
from nuclass.figures.style import DOUBLE_MM, GREY, empty_panel, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOTAL = "total"
_WALL, _CPU, _INK = "#1F4E79", "#9DBAD5", "#333333"
_NONE = "not measured"
_COLUMNS = ["stage", "rule", "job", "jobs", "seconds", "cpu_seconds", "peak_mib"]
_DAY, _HOUR, _MINUTE = 86400.0, 3600.0, 60.0
_TIMES: dict[float, str] = {
    **dict(zip((0.1, 1.0, 10.0), ("0.1 s", "1 s", "10 s"), strict=True)),
    **dict(zip((_MINUTE, 10 * _MINUTE), ("1 min", "10 min"), strict=True)),
    **dict(zip((_HOUR, 10 * _HOUR, 4 * _DAY, 40 * _DAY), ("1 h", "10 h", "4 d", "40 d"), strict=True)),
}
_GIB = {step * 10.0**power: f"{step * 10.0**power:,g}" for power in range(-3, 5) for step in (1, 2, 5)}


def draw_resources(
    jobs: str | Path,
    stages: str | Path,
    outputs: Sequence[str | Path],
    csv: str | Path,
    *,
    style: str | Path,
    synthetic: bool,
) -> None:
    """Draw wall and CPU time by stage, and time and peak memory of each job; the stages from top to bottom.

    ``jobs`` and ``stages`` are the tables of :func:`nuclass.evaluation.usage.read_usage` and
    :func:`~nuclass.evaluation.usage.summarise_usage`. The CSV has a row a stage (``job`` empty) and a row a job.
    """
    single = pd.read_csv(jobs, keep_default_na=False, na_values=dict.fromkeys(_COLUMNS[4:], ""))
    single = single[single["seconds"].notna()]
    summary = pd.read_csv(stages)
    rows = summary[summary["stage"] != TOTAL].reset_index(drop=True)
    fig = new_figure(style, DOUBLE_MM, 6.6 * max(len(rows), 3) + 22)
    axes = fig.subplots(1, 3, sharey=True, width_ratios=[1.25, 1, 1])
    if single.empty:
        empty_panel(axes[1], "No job left a benchmark file")
        axes[0].set_axis_off()
        axes[2].set_axis_off()
    else:
        _totals(axes[0], rows)
        _single(axes[1], single, list(rows["stage"]), "seconds")
        _single(axes[2], single, list(rows["stage"]), "peak_mib")
        axes[0].set_yticks(range(len(rows)), [_label(row) for row in rows.to_dict("records")])
        axes[0].set_ylim(len(rows) - 0.45, -0.55)
    numbers = pd.concat([summary.assign(rule="", job=""), single.assign(jobs=1)], ignore_index=True)
    save_figure(fig, outputs, csv, numbers[_COLUMNS], synthetic=synthetic)


def _label(row: dict[str, object]) -> str:
    return f"{row['stage']}\n{row['jobs']:,} {'job' if row['jobs'] == 1 else 'jobs'}"


def _totals(ax: Axes, rows: pd.DataFrame) -> None:
    """Draw wall and CPU time of each stage, summed over its jobs, as bars from zero."""
    wall, cpu = rows["seconds"].to_numpy(float), rows["cpu_seconds"].to_numpy(float)
    top = float(np.nanmax([*wall, *cpu]))
    scale, unit = time_scale(top)
    ran = rows["jobs"].to_numpy() > 0
    for values, shift, colour, name in ((wall, -0.19, _WALL, "wall time"), (cpu, 0.19, _CPU, "CPU time")):
        places, ends = np.arange(len(rows)) + shift, np.nan_to_num(values) / scale
        ax.barh(places, ends, height=0.36, color=colour, label=name)
        for place, end, value in zip(places[ran], ends[ran], values[ran], strict=True):
            _note(ax, end, place, duration(value) if value == value else _NONE)
    for place in np.flatnonzero(~ran):
        _nothing(ax, float(place))
    ax.set_title("All jobs of a stage")
    ax.set(xlabel=f"Time, summed over jobs ({unit})", xlim=(0, 1.3 * top / scale or 1))
    ax.tick_params(axis="y", length=0)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1.005), ncols=2)
    ax.grid(axis="x")


def _single(ax: Axes, jobs: pd.DataFrame, stages: Sequence[str], column: str) -> None:
    """Draw each job's value as a dot and the stage's largest in full colour, on a logarithmic axis."""
    of_time = column == "seconds"
    scale = 1 if of_time else GIB_IN_MIB
    known = jobs[jobs[column] > 0]
    for place, stage in enumerate(stages):
        values = np.sort(known.loc[known["stage"] == stage, column].to_numpy(float))
        if not len(values):
            _nothing(ax, place)
            continue
        # Jobs of like values are spread up and down, in the same way each time.
        spread = 0.22 * np.sin(2.4 * np.arange(len(values) - 1))
        ax.scatter(values[:-1] / scale, place + spread, s=8, color=_CPU, linewidths=0, zorder=2)
        ax.scatter(values[-1:] / scale, [place], s=14, color=_WALL, linewidths=0, zorder=3)
        _note(ax, values[-1] / scale, place, duration(values[-1]) if of_time else memory(values[-1]), gap=4)
    if len(known):
        low, high = known[column].min() / scale, known[column].max() / scale
        left, right = low / 1.4, high * max((high / low) ** 0.4, 2.5)
        ax.set(xscale="log", xlim=(left, right))
        _plain_ticks(ax, _TIMES if of_time else _GIB)
        ax.grid(axis="x")
    ax.set_title("Time of each job" if of_time else "Peak memory of each job")
    ax.set_xlabel("Wall time" if of_time else "Resident memory (GiB)")
    ax.tick_params(axis="y", length=0)


def _plain_ticks(ax: Axes, words: Mapping[float, str]) -> None:
    """Put few of these ticks on a logarithmic axis: every one, or every second, or powers of ten alone."""
    left, right = ax.get_xlim()
    inside = [tick for tick in words if left <= tick <= right]
    tens = [tick for tick in inside if f"{tick:e}".startswith("1.0")]
    if words is _GIB and len(tens) >= 3:
        inside = tens
    inside = inside[:: 1 if len(inside) <= 6 else 2]
    ax.set_xticks(inside, [words[tick] for tick in inside])
    ax.set_xticks([], minor=True)


def _nothing(ax: Axes, place: float) -> None:
    ax.text(0.03, place, _NONE, va="center", fontsize=5.5, color=GREY, transform=ax.get_yaxis_transform())


def _note(ax: Axes, x: float, y: float, text: str, gap: float = 2) -> None:
    ax.annotate(text, (x, y), (gap, 0), textcoords="offset points", va="center", fontsize=5.5, color=_INK)
