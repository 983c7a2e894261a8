"""How far given labels and those of the markers agree, against counts made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from given_example import ONTOLOGY, cells_table, marker_table
from nuclass.labels.agreement import agreement


def test_agreement_by_hand() -> None:
    """Ten cells, of which the markers label eight; one of them is Plasma for both, one has no given label."""
    cells = cells_table([f"c{k}" for k in range(12)], dropped=("c11",))
    said = ["T_Cell"] * 4 + ["B_Cell"] * 3 + ["Plasma_Cell", "Ductal", "Ductal", "", "T_Cell"]
    found = ["T_Cell"] * 3 + ["B_Cell"] + ["B_Cell"] * 2 + ["T_Cell", "Plasma_Cell", "", "", "T_Cell", "T_Cell"]
    given, markers = marker_table(cells, said), marker_table(cells, found)
    result = agreement(given, markers, ONTOLOGY)
    pairs = result.pairs[result.pairs["level"] == "cell_type"].set_index(["given", "markers"])["cells"].to_dict()
    assert pairs == {
        ("B_Cell", "B_Cell"): 2,
        ("B_Cell", "T_Cell"): 1,
        ("Ductal", "abstained"): 2,
        ("Plasma_Cell", "Plasma_Cell"): 1,
        ("T_Cell", "B_Cell"): 1,
        ("T_Cell", "T_Cell"): 3,
    }
    rows = result.scores.set_index(["level", "name"])
    assert rows.loc[("class", "T_Cell"), ["precision", "recall", "f1"]].tolist() == [0.75, 0.75, 0.75]
    assert rows.loc[("class", "B_Cell"), ["precision", "recall", "f1"]].tolist() == pytest.approx([2 / 3] * 3)
    assert ("class", "no_class") not in rows.index, "Plasma for both says nothing of the classes"
    # Types: 6 of 8 agree; by chance (4 * 4 + 3 * 3 + 1) / 64. Classes: 5 of 7; by chance (16 + 9) / 49.
    levels = result.summary["levels"]
    assert levels["cell_type"]["accuracy"] == 6 / 8
    assert levels["cell_type"]["kappa"] == pytest.approx((6 / 8 - 26 / 64) / (1 - 26 / 64))
    assert levels["class"]["cells"] == 7
    assert levels["class"]["kappa"] == pytest.approx((5 / 7 - 25 / 49) / (1 - 25 / 49))
    assert levels["class"]["balanced_accuracy"] == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert levels["lineage"] == {**levels["cell_type"], "balanced_accuracy": levels["cell_type"]["balanced_accuracy"]}
    assert (result.summary["cells"], result.summary["both"]) == (10, 8)
    assert result.summary["share_labelled_by_markers"] == 0.8


def test_agreement_of_the_lineage_is_wider() -> None:
    cells = cells_table(list("abcd"))
    given = marker_table(cells, ["Ductal", "Ductal", "T_Cell", "Plasma_Cell"])
    markers = marker_table(cells, ["Epithelial_Malignant", "Ductal", "T_Cell", "T_Cell"])
    result = agreement(given, markers, ONTOLOGY)
    row = result.scores.set_index(["level", "name"]).loc[("class", "T_Cell")]
    assert row[["given_cells", "marker_cells", "both", "precision", "recall"]].tolist() == [1, 2, 1, 0.5, 1.0]
    levels = result.summary["levels"]
    assert [levels[level]["accuracy"] for level in ("cell_type", "class", "lineage")] == [0.5, 0.5, 0.75]


def test_labels_that_agree_by_chance_are_told(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(3)
    cells = cells_table([str(k) for k in range(400)])
    types = list(ONTOLOGY.cell_types)
    first = marker_table(cells, list(rng.choice(types, 400)))
    agreement(first, marker_table(cells, list(rng.choice(types, 400))), ONTOLOGY, "mine")
    assert "mine: given labels and markers agree hardly better than by chance" in caplog.text
    caplog.clear()
    agreement(first, first, ONTOLOGY)
    assert not caplog.text


def test_nothing_to_compare() -> None:
    cells = cells_table(["a"])
    result = agreement(marker_table(cells, [""]), marker_table(cells, ["T_Cell"]), ONTOLOGY)
    assert result.pairs.empty
    assert result.scores.empty
    assert result.summary["levels"]["class"] == {
        **{"cells": 0, "accuracy": None},
        **{"balanced_accuracy": None, "macro_f1": None, "kappa": None},
    }
