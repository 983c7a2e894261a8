from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from fake_study import slide_sheet, write_predictions, write_slides, write_truth
from nuclass.core.files import read_json, write_json
from nuclass.evaluation import compare_cohorts, count_cells
from nuclass.evaluation.audit import COLUMNS as AUDIT_COLUMNS
from nuclass.evaluation.truth import score_study
from nuclass.figures.style import Classes
from nuclass.tables import study as tables
from nuclass.tables.ablation import audit
from nuclass.tables.layout import EMPTY, NEAR, SYNTHETIC_NOTE, UNKNOWN, Cell, number
from nuclass.tables.runtime import runtime
from table_example import follows_the_sheet, lay_out, rows

CLASSES = Path(__file__).parent.parent / "resources/classes.tsv"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    paths = write_predictions(folder / "predictions", n=300)
    options = {"mpp": 0.25, "block_um": 150}
    compare_cohorts(paths, folder / "c.json", folder / "c.csv", draws=50, seed=1, min_support=5, **options)
    slides = write_slides(folder, n=300)
    composition, quality = count_cells(slides["labels"], slides["splits"], slide_sheet())
    composition.to_csv(folder / "composition.csv", index=False)
    quality.to_csv(folder / "quality.csv", index=False)
    write_truth(folder / "truth", n=300)
    scores = score_study(
        labels=slides["labels"],
        predictions=paths,
        cells=slides["cells"],
        alignments=slides["alignment"],
        truth_folder=folder / "truth",
        mpp=0.25,
        window=224,
        evaluation={"block_um": 150, "bootstrap": 50, "seed": 1, "ece_bins": 15, "min_support": 5},
    )
    write_json(folder / "labels.json", scores["labels"])
    scores["criteria"].to_csv(folder / "criteria.csv", index=False)
    return folder


def test_numbers_as_text() -> None:
    assert number(1234) == "1,234"
    assert number(0.12345) == "0.123"
    assert number(float("nan")) == number(None) == EMPTY
    assert Cell(0.5, 0.4, 0.6).text == "0.500 (0.400 to 0.600)"
    assert Cell(0.5, float("nan"), float("nan")).text == "0.500"


def test_holdout_comparison(study: Path, tmp_path: Path) -> None:
    lay_out(tables.holdout_comparison(study / "c.csv"), tmp_path / "t", synthetic=True)
    text = (tmp_path / "t.md").read_text()
    assert SYNTHETIC_NOTE in text
    data = pd.read_csv(tmp_path / "t.csv")
    found = rows(tmp_path / "t.md")
    assert found[0] == ["model", "ovary h", "lung h", "pancreas h", "All cohorts"]
    part = data[(data["metric"] == "macro_f1") & (data["cohort"] == "ovary_h") & ~data["name"].str.contains("-|oracle")]
    best = part.loc[part["value"].idxmax()]
    assert UNKNOWN not in text, "the difference to the best of each row is known"
    bold = [row[1] for row in found[2:6] if row[1].startswith("**")]
    assert bold == [f"**{Cell(best['value'], best['low'], best['high']).text}**"]


def test_marks_are_those_of_the_difference_to_the_best(study: Path, tmp_path: Path) -> None:
    """In every column of models, whichever is the best: known to be worse, not told apart, and nothing in between."""
    lay_out(tables.holdout_comparison(study / "c.csv"), tmp_path / "t")
    data = pd.read_csv(tmp_path / "t.csv").query("metric == 'macro_f1'").set_index(["cohort", "name"])
    differences = read_json(study / "c.json")["cohorts"]
    found = rows(tmp_path / "t.md")
    start = next(place for place, row in enumerate(found) if row[0] == "model")
    for row in found[start + 2 : start + 6]:
        name = next(name for name in ("local", "global", "mean", "fused") if tables.title(name) == row[0])
        for cohort, cell in zip(differences, row[1:], strict=True):
            one = data.loc[(cohort, name)]
            best = data.loc[(cohort, one["best"])]
            assert one["behind"] == pytest.approx(one["value"] - best["value"], abs=1e-12)
            assert one["behind"] <= 0
            gap = differences[cohort]["differences"].get(f"fused-{name}")
            if one["best"] == "fused" and gap is not None:
                ends = [-gap["macro_f1"]["high"], -gap["macro_f1"]["low"]]
                assert [one["behind_low"], one["behind_high"]] == pytest.approx(ends)
            near = not cell.startswith("**") and one["behind_low"] <= 0 <= one["behind_high"]
            assert cell.endswith(NEAR) == near


def test_f1_by_class_of_every_cohort_in_the_order_and_names_of_the_figures(study: Path, tmp_path: Path) -> None:
    text = lay_out(tables.holdout_comparison(study / "c.csv"), tmp_path / "t")
    headings = [line.removeprefix("## F1 by class, ") for line in text.splitlines() if line.startswith("## F1 by")]
    assert headings == ["all cohorts", "ovary h", "lung h", "pancreas h"]
    data = pd.read_csv(tmp_path / "t.csv")
    sheet = Classes.read(CLASSES)
    for heading, cohort in zip(headings, ("all", "ovary_h", "lung_h", "pancreas_h"), strict=True):
        part = data[(data["metric"] == "f1") & (data["cohort"] == cohort) & (data["name"] == "fused")]
        body = text.split(f"## F1 by class, {heading}\n\n")[1].split("\n\n")[0].splitlines()[2:]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in body]
        assert [row[0] for row in cells] == [sheet.full(name) for name in sheet.ordered(part["class"])]
        values = part.set_index("class")["value"]
        shown = [row[4].replace("*", "").split(" ")[0] for row in cells]
        assert shown == [f"{values[name]:.3f}" for name in sheet.ordered(part["class"])]


def test_a_class_too_rare_for_macro_f1_is_marked(tmp_path: Path) -> None:
    """In the cohort where it is rare, and in the CSV; by the support that macro-F1 goes by."""
    base = tmp_path / "t"
    options = {"mpp": 0.25, "block_um": 150, "draws": 20, "seed": 1, "min_support": 12}
    paths = write_predictions(tmp_path / "p", n=300)
    results = compare_cohorts(paths, tmp_path / "c.json", tmp_path / "c.csv", **options)
    text = lay_out(tables.holdout_comparison(tmp_path / "c.csv", min_support=12), base)
    support = pd.read_parquet(paths["gate"]["pancreas_h"])["label"].value_counts()
    data = pd.read_csv(base.with_suffix(".csv"))
    of_class = data[(data["metric"] == "f1") & (data["name"] == "fused")]
    rare = {}
    for heading, cohort in (("all cohorts", "all"), ("ovary h", "ovary_h"), ("pancreas h", "pancreas_h")):
        part = of_class[of_class["cohort"] == cohort].set_index("class")
        assert set(part.index[part["in_macro"].astype(bool)]) == set(results[cohort]["macro_classes"])
        rare[cohort] = {tables.class_title(name) for name in part.index[~part["in_macro"].astype(bool)]}
        body = text.split(f"## F1 by class, {heading}\n\n")[1].split("\n\n")[0].splitlines()[2:]
        names = [line.strip("|").split("|")[0].strip() for line in body]
        assert {name.removesuffix(" *") for name in names if name.endswith(" *")} == rare[cohort]
    assert rare["pancreas_h"] == {tables.class_title(name) for name in support.index[support < 12]}
    assert rare["pancreas_h"]
    assert not rare["all"]
    assert data.loc[data["metric"] != "f1", "in_macro"].isna().all()
    told = "*: a class with too few cells to count in macro-F1"
    assert told in text
    assert "at least 12 cells in the cohort" in text
    tex = base.with_suffix(".tex").read_text()
    assert r"\rlap{*} &" in tex
    assert told in tex
    every = pd.read_csv(tmp_path / "c.csv", keep_default_na=False).replace({"in_macro": {"False": "True"}})
    every.to_csv(tmp_path / "every.csv", index=False)
    assert told not in lay_out(tables.holdout_comparison(tmp_path / "every.csv"), tmp_path / "e")


def test_the_notes_of_the_audit_say_what_its_words_mean(tmp_path: Path) -> None:
    table = pd.DataFrame([dict.fromkeys(AUDIT_COLUMNS) | {"switch": "reference", "estimate": 0.7}])
    table.to_csv(tmp_path / "in.csv", index=False)
    text = lay_out(audit(tmp_path / "in.csv", short=""), tmp_path / "a")
    for words in (
        "it holds what other cells would change, not what another seed would",
        "This holds for *flatters by* too, which is not compared with what seeds differ by.",
        "*cohorts*: slides that nothing was trained or chosen on",
        "*val*: the cells that chose the models",
        "*optimism*: val minus cohorts.",
        "*val minus corrected* less *minus corrected*, its interval by the normal approximation",
        "A flaw is *seen* where the interval of its difference leaves out 0 and the difference is larger than two runs",
        "*no change* is as expected also where the study is too small to show one.",
        "*changes nothing*: the reason stands under *What theory expects*.",
    ):
        assert words in text


def test_the_table_on_time_says_what_the_trainings_count(tmp_path: Path) -> None:
    numbers = "jobs seconds longest_seconds sampled cpu_seconds cores peak_mib".split()
    stage = {"stage": "total", **dict.fromkeys(numbers, 1), "longest_job": "", "peak_job": "", "missing": ""}
    pd.DataFrame([stage]).to_csv(tmp_path / "stages.csv", index=False)
    history = [{"epoch": 0, "seconds": 9.0, "train_seconds": 5.0, "train_cells": 100, "memory_mb": 1500.0}]
    write_json(tmp_path / "gate.json", {"parameters": 12, "n_train": 60, "history": history})
    text = lay_out(runtime(tmp_path / "stages.csv", {"gate": tmp_path / "gate.json"}, {}), tmp_path / "t")
    assert "| Gate | 12 |" in text
    assert "An epoch of the context backbone draws a number of windows from its cells" in text
    assert "one of the gate sees each cell in several views" in text


@pytest.mark.parametrize("alike", [True, False])
def test_equal_predictions_of_the_priors_are_told(tmp_path: Path, alike: bool) -> None:
    """The most frequent class of all training cells may be that of every organ, or not."""
    organs = ("ovary", "lung", "pancreas")
    kinds = [("T_Cell", 9 if organ == "lung" and not alike else 2) for organ in organs]
    cells = [
        (o, "train", name, n) for o, kind in zip(organs, kinds, strict=True) for name, n in (("Fibroblast", 8), kind)
    ]
    composition = pd.DataFrame(cells, columns=["organ", "split", "class", "cells"])
    paths = write_predictions(tmp_path / "p", n=120)
    options = {"mpp": 0.25, "block_um": 150, "draws": 20, "seed": 1, "composition": composition}
    compare_cohorts(paths, tmp_path / "c.json", tmp_path / "c.csv", **options)
    text = lay_out(tables.holdout_comparison(tmp_path / "c.csv"), tmp_path / "t")
    assert ("Majority class and organ's majority predict the same" in text) == alike
    assert "Each cohort is one slide" in text


def test_branches(study: Path, tmp_path: Path) -> None:
    lay_out(tables.branches(study / "c.json"), tmp_path / "t", synthetic=False)
    data = pd.read_csv(tmp_path / "t.csv")
    assert (data[["A_only", "B_only", "both", "neither"]].sum(axis=1) == data["n_cells"]).all()
    scores = read_json(study / "c.json")["cohorts"]["lung_h"]
    found = next(row for row in rows(tmp_path / "t.md") if row[0] == "lung h")
    ends = scores["models"]["local"]["accuracy"]
    assert Cell(scores["branches"]["scores"]["local"]["accuracy"], ends["low"], ends["high"]).text in found[1]
    assert not found[5].startswith("**"), "the oracle is no model"
    assert sum(cell.startswith("**") for cell in found[1:5]) >= 1
    assert SYNTHETIC_NOTE not in (tmp_path / "t.md").read_text()


def test_dataset(study: Path, tmp_path: Path) -> None:
    lay_out(tables.dataset(study / "composition.csv"), tmp_path / "t", synthetic=True)
    data = pd.read_csv(tmp_path / "t.csv")
    total = next(row for row in rows(tmp_path / "t.md") if row[0] == "**total**")
    assert int(total[-1].replace(",", "")) == data.loc[data["split"] != "buffer", "cells"].sum()


@pytest.mark.parametrize("with_truth", [True, False])
def test_label_quality(study: Path, tmp_path: Path, with_truth: bool) -> None:
    truth = study / "labels.json" if with_truth else None
    lay_out(tables.label_quality(study / "quality.csv", truth=truth), tmp_path / "t", synthetic=True)
    assert ("truth_macro_f1" in pd.read_csv(tmp_path / "t.csv")) == with_truth
    assert len(rows(tmp_path / "t.md")) == 10


def test_funnel_and_truth(study: Path, tmp_path: Path) -> None:
    steps = [("a", "all cells", 1100, 0, ""), ("a", "labelled", 80, 1020, "low_counts 1020")]
    pd.DataFrame(steps, columns=["slide", "step", "cells", "dropped", "reasons"]).to_csv(
        tmp_path / "f.csv", index=False
    )
    lay_out(tables.funnel(tmp_path / "f.csv"), tmp_path / "t", synthetic=True)
    assert rows(tmp_path / "t.md")[2] == ["a", "all cells", "1,100", "0", EMPTY]
    lay_out(tables.synthetic_truth(study / "criteria.csv"), tmp_path / "s", synthetic=True)
    criteria = pd.read_csv(study / "criteria.csv")
    verdicts = [row[-1] for row in rows(tmp_path / "s.md")[2:]]
    assert [v == "yes" for v in verdicts] == criteria["met"].tolist()


def test_classes_stand_in_the_order_of_the_sheet_that_is_given(study: Path, tmp_path: Path) -> None:
    kinds = ["T_Cell", "Fibroblast", "Endothelial"]
    composition = tmp_path / "composition.csv"
    slide = {"slide": "a", "organ": "lung", "role": "train", "split": "train", "cells": 1}
    pd.DataFrame([{**slide, "class": name} for name in kinds]).to_csv(composition, index=False)
    assert follows_the_sheet(lambda sheet: tables.dataset(composition, classes=sheet), tmp_path, kinds)
    assert follows_the_sheet(lambda sheet: tables.holdout_comparison(study / "c.csv", classes=sheet), tmp_path, kinds)
