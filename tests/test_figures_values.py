"""Colours and scales of figures where values lie at 0, or beyond what the scale shows."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from nuclass.figures.complementarity import _lead
from nuclass.figures.gate import _maps
from nuclass.figures.style import BRANCH_COLOURS, GREY, new_figure
from test_workflow import REPOSITORY

STYLE = REPOSITORY / "resources/style/nuclass.mplstyle"


def squares(gates: np.ndarray) -> pd.DataFrame:
    """Squares of 100 um in a row, on one slide."""
    return pd.DataFrame(
        {"slide": "lung_h", "x_um": 100.0 * np.arange(len(gates)), "y_um": 0.0, "side_um": 100.0}
        | {"gate": gates, "cells": 9, "open_share": (gates > 0.5).astype(float)}
    )


@pytest.mark.parametrize(("beyond", "extend"), [([], "neither"), ([0.1], "min"), ([0.9], "max"), ([0.1, 0.9], "both")])
def test_the_scale_of_the_gate_has_points_where_values_lie_beyond_it(beyond: list[float], extend: str) -> None:
    """Of 400 squares two per cent lie outside the scale, which ends at 0.1 from the middle here."""
    mpl.use("Agg")
    fig = new_figure(STYLE, 183, 60)
    gates = np.concatenate([np.linspace(0.42, 0.58, 400), beyond])
    _maps(fig.subfigures(1, 1), squares(gates), 1, 1)
    bar = next(ax for ax in fig.subfigs[0].axes if ax.get_ylabel() == "Mean gate (local to global)")
    colorbar = bar._colorbar  # type: ignore[attr-defined]
    assert (colorbar.vmin, colorbar.vmax) == pytest.approx((0.4, 0.6))
    assert colorbar.extend == extend


def test_a_difference_of_nothing_is_grey() -> None:
    """Neither branch is ahead: neither has its colour."""
    mpl.use("Agg")
    rows = pd.DataFrame(
        {"difference": [0.1, 0.0, -0.1], "low": [0.05, -0.05, -0.15], "high": [0.15, 0.05, -0.05]}
        | {"p_holm": [0.001, 0.001, 0.001]}
    )
    ax = new_figure(STYLE, 90, 60).subplots()
    _lead(ax, rows)
    expected = [BRANCH_COLOURS["global"], GREY, BRANCH_COLOURS["local"]]
    lines, dots = (part for part in ax.collections[:2])
    assert [to_hex(colour) for colour in lines.get_colors()] == [to_hex(name) for name in expected]
    assert [to_hex(colour) for colour in dots.get_facecolor()] == [to_hex(name) for name in expected]
