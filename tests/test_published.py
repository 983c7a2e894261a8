from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nuclass.core.errors import UserError
from nuclass.evaluation.published import GRADES, NOT_COMPARABLE, compare_published, read_published
from nuclass.tables.published import SYNTHETIC, paper_comparison
from table_example import lay_out

ROOT = Path(__file__).parents[1]
VALUES = ROOT / "resources" / "paper_values.tsv"
FACTS = {"mpp": 0.25, "window_local": 224, "window_global": 1024}


@pytest.fixture
def composition() -> pd.DataFrame:
    rows = [
        ("lung_h", "lung", "cohort", "test", "T_Cell", 30),
        ("lung_h", "lung", "cohort", "test", "Fibroblast", 70),
        ("ovary_h", "ovary", "cohort", "test", "Fibroblast", 300),
        ("lung_1", "lung", "train", "train", "T_Cell", 20),
        ("lung_1", "lung", "train", "val", "T_Cell", 5),
        ("lung_1", "lung", "train", "val", "Fibroblast", 75),
        ("lung_1", "lung", "train", "buffer", "Fibroblast", 1000),
        ("colon_1", "colon", "train", "train", "Fibroblast", 300),
    ]
    return pd.DataFrame(rows, columns=["slide", "organ", "role", "split", "class", "cells"])


@pytest.fixture
def comparison() -> pd.DataFrame:
    rows = [
        ("lung_h", "local", "f1", "T_Cell", 0.2),
        ("lung_h", "global", "f1", "T_Cell", 0.5),
        ("lung_h", "fused", "f1", "T_Cell", 0.6),
        ("lung_h", "fused", "f1", "Fibroblast", 0.8),
        ("ovary_h", "fused", "f1", "Fibroblast", 0.9),
        ("all", "fused", "f1", "Fibroblast", 0.99),
        ("all", "fused", "macro_f1", "", 0.7),
        ("all", "fused-local", "macro_f1", "", 0.1),
    ]
    table = pd.DataFrame(rows, columns=["cohort", "name", "metric", "class", "value"])
    return table.assign(in_macro=[label != "" for label in table["class"]])


def compared(comparison: pd.DataFrame, composition: pd.DataFrame, *, synthetic: bool = False) -> pd.DataFrame:
    table = compare_published(read_published(VALUES), comparison, composition, FACTS, synthetic=synthetic)
    return table.set_index("key")


def test_the_sheet_is_in_order() -> None:
    table = read_published(VALUES)
    assert len(table) > 100
    assert set(table["grade"]) <= set(GRADES)
    assert table["source"].str.len().min() > 10
    shares = table[table["metric"] == "cell_share"]
    assert (shares["grade"] == "F").all()
    sums = shares.groupby("cohort")["value"].sum()
    assert len(sums) == 11
    assert np.allclose(sums, 100, atol=0.6)
    whole = table[table["metric"] == "organ_share"]
    for training in (True, False):
        part = whole[whole["cohort"].str.startswith("train:") == training]
        assert part["value"].sum() == pytest.approx(100, abs=0.5)
    scores = table[table["unit"] == "fraction"]
    assert scores["value"].between(0, 1).all()
    quoted = table[table["source"].str.contains("dapidl")]
    assert (quoted["grade"] == "S").all()
    assert len(quoted) == (table["grade"] == "S").sum()


def test_training_totals_fit_the_shares() -> None:
    table = read_published(VALUES)
    cells = table[(table["metric"] == "cells") & table["cohort"].str.startswith("train:")].set_index("cohort")["value"]
    assert cells.sum() == pytest.approx(2_050_000, rel=0.005)
    shares = table[(table["metric"] == "cell_share") & table["cohort"].str.startswith("train:")]
    implied = (shares["value"] / 100 * cells.loc[shares["cohort"]].to_numpy()).groupby(shares["class"]).sum()
    totals = table[table["metric"] == "class_cells"].set_index("class")["value"]
    for name, total in totals.items():
        assert implied[name] == pytest.approx(total, rel=0.08, abs=1000), name


def test_cohorts_are_matched_by_organ_and_model(comparison: pd.DataFrame, composition: pd.DataFrame) -> None:
    table = compared(comparison, composition)
    assert table.loc["lung_t_cell_local", ["ours", "difference"]].tolist() == pytest.approx([20, 20 - 13.2])
    assert table.loc["lung_t_cell_global", "ours"] == pytest.approx(50)
    assert table.loc["lung_t_cell_fused", "difference"] == pytest.approx(60 - 54.1)
    assert table.loc["lung_t_cell_local", "ours_cohort"] == "lung_h"
    assert table.loc["overall_macro_f1", "difference"] == pytest.approx(0.7 - 0.6235)
    assert np.isnan(table.loc["overall_accuracy", "ours"])
    best = table.loc["best_class_f1", ["ours", "ours_cohort", "ours_class"]].tolist()
    assert best == [pytest.approx(90), "ovary_h", "Fibroblast"]
    assert table.loc["range_fibroblast_low", "ours"] == pytest.approx(0.8)
    assert table.loc["range_fibroblast_high", "ours"] == pytest.approx(0.9)
    assert np.isnan(table.loc["pancreas_endocrine_local", "ours"])
    assert np.isnan(table.loc["demo_local_accuracy", "ours"])
    assert "no counterpart" in table.loc["demo_local_accuracy", "what_differs"]


def test_the_best_class_has_enough_cells_and_a_name(
    comparison: pd.DataFrame, composition: pd.DataFrame, tmp_path: Path
) -> None:
    """A class of two cells may have an F1 of 1 by chance; of a class that is asked for it is no extreme either."""
    few = [("lung_h", "fused", "f1", "Mast_Cell", 1.0, False), ("lung_h", "fused", "f1", "Endothelial", 0.1, False)]
    few += [("ovary_h", "fused", "f1", "Endothelial", 0.4, True), ("ovary_h", "fused", "f1", "T_Cell", 0.3, False)]
    table = pd.concat([comparison, pd.DataFrame(few, columns=comparison.columns)], ignore_index=True)
    found = compared(table, composition)
    best = found.loc["best_class_f1", ["ours", "ours_cohort", "ours_class"]].tolist()
    assert best == [pytest.approx(90), "ovary_h", "Fibroblast"]
    assert found.loc["range_endothelial_low", ["ours", "ours_cohort", "ours_class"]].tolist() == [0.4, "ovary_h", ""]
    assert found.loc["range_t_cell_low", "ours"] == pytest.approx(0.6)
    table.to_csv(tmp_path / "c.csv", index=False)
    composition.to_csv(tmp_path / "n.csv", index=False)
    made = paper_comparison(VALUES, tmp_path / "c.csv", tmp_path / "n.csv", facts=FACTS, synthetic=False)
    text = lay_out(made, tmp_path / "t")
    assert "| F1 of the best class | Fused (gate), here Fibroblast, ovary_h | 96.0 % | P | 90.0 % |" in text
    assert "of classes with enough cells in their cohort to count in macro-F1" in text
    none = table.assign(in_macro=False)
    assert np.isnan(compared(none, composition).loc["best_class_f1", "ours"])


def test_counts_leave_the_buffer_out(comparison: pd.DataFrame, composition: pd.DataFrame) -> None:
    table = compared(comparison, composition)
    assert table.loc["cohort_lung_t_cell", "ours"] == pytest.approx(30)
    assert table.loc["train_lung_t_cell", "ours"] == pytest.approx(25)
    assert table.loc["cohort_lung_share", "ours"] == pytest.approx(25)
    assert table.loc["train_lung_share", "ours"] == pytest.approx(25)
    assert table.loc["train_lung_cells", "ours"] == 100
    assert table.loc["train_total_fibroblast", "ours"] == 375
    assert table.loc["study_cells", "ours"] == 800
    assert table.loc["study_organs", "ours"] == 3
    assert np.isnan(table.loc["cohort_lung_monocyte", "ours"])
    assert np.isnan(table.loc["train_heart_cells", "ours"])


def test_two_cohorts_of_an_organ_are_two_rows(comparison: pd.DataFrame, composition: pd.DataFrame) -> None:
    second = comparison[comparison["cohort"] == "lung_h"].assign(cohort="lung_x", value=0.4)
    cells = composition[composition["slide"] == "lung_h"].assign(slide="lung_x")
    table = compared(pd.concat([comparison, second]), pd.concat([composition, cells]))
    found = table.loc[["lung_t_cell_fused"]]
    assert found["ours_cohort"].tolist() == ["lung_h", "lung_x"]
    assert found["ours"].tolist() == pytest.approx([60, 40])


def test_grades_are_told_and_a_synthetic_study_gives_no_difference(
    comparison: pd.DataFrame, composition: pd.DataFrame, tmp_path: Path
) -> None:
    table = compared(comparison, composition, synthetic=True)
    assert table["difference"].isna().all()
    known = table[table["ours"].notna()]
    assert known["what_differs"].str.contains(NOT_COMPARABLE).all()
    lesser = table["grade"].isin(["S", "D", "I"])
    assert table["what_differs"].str.contains("not the paper's own words").equals(lesser)
    comparison.to_csv(tmp_path / "c.csv", index=False)
    composition.to_csv(tmp_path / "n.csv", index=False)
    for synthetic in (True, False):
        table = paper_comparison(VALUES, tmp_path / "c.csv", tmp_path / "n.csv", facts=FACTS, synthetic=synthetic)
        text = lay_out(table, tmp_path / "t", synthetic=synthetic)
        assert (SYNTHETIC in text) == synthetic
        rows = [[c.strip() for c in r.strip("|").split("|")] for r in text.splitlines() if r.startswith("| F1 of T")]
        local = next(row for row in rows if "Local" in row[1])
        assert local[:5] == ["F1 of T cells", "lung cohort, Local, T Cell, here lung_h", "13.2 % *", "S", "20.0 %"]
        assert local[5] == ("–" if synthetic else "+6.8 points")
        assert "## Published, without a counterpart here" in text


def broken(tmp_path: Path, old: str, new: str) -> Path:
    text = VALUES.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "v.tsv"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\t0.6235\t", "\tabout 0.6\t", "not a finite number"),
        ("\t0.6235\t", "\tnan\t", "not a finite number"),
        ("\t0.6235\tfraction\tS\t", "\t0.6235\tfraction\tX\t", "'X' is no grade"),
        ("\tmacro_f1\t0.6235", "\tmacro_f2\t0.6235", "Did you mean 'macro_f1'"),
        ("overall_accuracy\t", "overall_macro_f1\t", "stands once"),
        ("train:breast\t", "train:brest\t", "Did you mean 'train:breast'"),
        ("key\twhat", "key\tmeaning", "meaning"),
    ],
)
def test_faults_of_the_sheet_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_published(broken(tmp_path, old, new))


def test_a_value_needs_its_source(tmp_path: Path) -> None:
    line = next(row for row in VALUES.read_text().splitlines() if row.startswith("overall_macro_f1"))
    source = line.split("\t")[9]
    with pytest.raises(UserError, match="needs its source"):
        read_published(broken(tmp_path, line, line.replace(source, "")))
    with pytest.raises(UserError, match="missing"):
        read_published(tmp_path / "none.tsv")
