"""What names the axes and closes the scales of figures, in shapes that the demo does not have."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest

from nuclass.figures.confusion import outer_labels
from nuclass.figures.gradcam_controls import verdict
from nuclass.figures.style import Classes
from nuclass.tables.latex import escape
from nuclass.tables.layout import Table, noted
from nuclass.tables.study import macro_note

SHEET = Path(__file__).parent.parent / "resources/classes.tsv"


@pytest.mark.parametrize("panels", [1, 2, 3, 4])
def test_every_column_of_confusion_matrices_is_named_below(panels):
    """Of three panels in two rows, the upper right one has none below it."""
    mpl.use("Agg")
    from matplotlib.figure import Figure

    axes = Figure().subplots(-(-panels // 2), min(panels, 2), squeeze=False, sharex=True, sharey=True)
    for ax in axes.flat[panels:]:
        ax.set_visible(False)
    outer_labels(axes, ["B_Cell"], Classes.read(SHEET))
    for column in axes.T:
        named = [ax for ax in column if ax.get_xlabel() == "Predicted class"]
        assert named == [[ax for ax in column if ax.get_visible()][-1]]
        assert named[0].xaxis.get_tick_params()["labelbottom"]
    assert all(ax.get_ylabel() == "Label" for ax in axes[:, 0])


@pytest.mark.parametrize(
    ("correlations", "told"),
    [
        ([0.38, 0.04, 0.36, -0.05, 0.40, -0.17], "too few cells"),
        ([0.05, -0.05, 0.02, -0.02], "tell of what was learned"),
        ([0.9, 0.95, 0.92], "hardly change"),
        ([0.3, 0.4, 0.35], "keep some likeness"),
        ([0.9, -0.4, 0.5, -0.1, 0.6, -0.2], "too few cells"),
    ],
)
def test_a_verdict_on_likeness_needs_enough_cells(correlations, told):
    table = pd.DataFrame({"spearman_whole": correlations, "in_cell_cam": 1.0, "in_cell_random": 1.0})
    assert told in verdict(table)
    assert ("too few" in verdict(table)) == (told == "too few cells")


def test_latex_of_greek_and_raised_digits():
    assert escape("γδ T, β, TGF-β, Ω, Α") == (r"$\gamma$$\delta$ T, $\beta$, TGF-$\beta$, $\Omega$, $\mathrm{A}$")
    assert escape("CD4⁺ ≈ 10³ µm²") == r"CD4$^{+}$ $\approx$ 10$^{3}$ $\mu$m$^{2}$"


def test_macro_averages_say_which_classes_count():
    assert macro_note(1) == []
    assert "at least 20 cells in the cohort" in macro_note(20)[0]


def test_further_notes_stand_below_a_table():
    table = Table("A", pd.DataFrame(), [], ("one",))
    assert list(noted(table, macro_note(20)).notes) == ["one", *macro_note(20)]
    assert table.notes == ("one",)
