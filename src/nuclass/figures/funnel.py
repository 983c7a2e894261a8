"""How many cells of each slide are left after each step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nuclass.figures.style import DOUBLE_MM, empty_panel, new_figure, save_figure

_SHADES = ("#C9D6E2", "#93B1CB", "#5483AA", "#1F4E79")


def draw_funnel(
    table: str | Path, outputs: Sequence[str | Path], csv: str | Path, *, style: str | Path, synthetic: bool
) -> None:
    """Draw the cells left after each step, one row a slide and one panel a step.

    ``table`` holds ``slide step cells dropped reasons`` with the steps in order. The percentages are of
    the slide's first step.
    """
    data = pd.read_csv(table, keep_default_na=False)
    slides, steps = list(dict.fromkeys(data["slide"])), list(dict.fromkeys(data["step"]))
    fig = new_figure(style, DOUBLE_MM, 4.8 * max(len(slides), 2) + 22)
    axes = fig.subplots(1, max(len(steps), 1), sharex=True, sharey=True, squeeze=False)[0]
    if not steps:
        empty_panel(axes[0], "No slide to count")
    places = np.arange(len(slides))
    wide = data.pivot_table(index="slide", columns="step", values="cells", aggfunc="sum").reindex(slides)
    for number, (ax, step) in enumerate(zip(axes, steps, strict=False)):
        total, cells = wide[steps[0]].to_numpy(float), wide[step].to_numpy(float)
        ax.barh(places, total, height=0.72, color="#F2F2F2")
        ax.barh(places, cells, height=0.72, color=_SHADES[min(number, len(_SHADES) - 1)])
        for place, value, of in zip(places, cells, total, strict=True):
            share = f"  {100 * value / of:.0f} %" if number and of else ""
            ink = "white" if number >= 2 and value > 0.5 * np.nanmax(total) else "#222222"
            ax.text(0, place, f" {value:,.0f}{share}", va="center", ha="left", fontsize=5.5, color=ink)
        ax.set_title(step[:1].upper() + step[1:])
        ax.xaxis.set_major_locator(_few())
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.set_xlabel("Cells")
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
    if steps:
        axes[0].set_yticks(places, [slide.replace("_", " ") for slide in slides])
        axes[0].set(ylim=(len(slides) - 0.5, -0.5), xlim=(0, None))
    save_figure(fig, outputs, csv, data, synthetic=synthetic)


def _few() -> object:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(3)
