"""Figures of a finished run: every file is opened, and what they draw is computed again, from the predictions.

A run is looked for in the repository (``make demo``, ``make full``), or where ``NUCLASS_RUN`` says. Without one these
tests are left out.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from pypdf import PdfReader
from sklearn.metrics import confusion_matrix, f1_score

from browser import CHROMIUM, chromium

REPOSITORY = Path(__file__).parent.parent
RUN = Path(os.environ.get("NUCLASS_RUN", REPOSITORY)) / "results"
FIGURES = RUN / "figures"
MODELS = ("local", "global", "gate")
DRAWN_AS = {"local": "local", "global": "global", "gate": "fused"}
WIDTHS_MM = (89, 183)
pytestmark = pytest.mark.skipif(
    not (FIGURES / "confusion.csv").is_file(), reason="there is no finished run: make demo first"
)


def stems(ending: str) -> list[str]:
    return sorted(path.stem for path in FIGURES.glob(f"*.{ending}")) or ["none"]


def predictions(model: str) -> pd.DataFrame:
    """Return the test cells of all cohorts."""
    files = sorted((RUN / "predictions" / model).glob("*_h.parquet"))
    table = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    for name in ("slide", "split", "label", "prediction"):
        table[name] = table[name].astype(str)
    return table[(table["split"] == "test") & (table["label"] != "")]


def numbers(name: str) -> pd.DataFrame:
    return pd.read_csv(FIGURES / f"{name}.csv", keep_default_na=False, na_values=[""])


@pytest.mark.parametrize("name", stems("pdf"))
def test_every_pdf_is_a_figure_of_a_journals_width_with_text_as_text(name: str) -> None:
    reader = PdfReader(FIGURES / f"{name}.pdf")
    assert len(reader.pages)
    for page in reader.pages:
        width, height = (float(side) / 72 * 25.4 for side in page.mediabox[2:])
        assert min(abs(width - wanted) for wanted in WIDTHS_MM) < 0.5, width
        assert 20 < height <= 242, height
        assert len(page.extract_text().split()) >= 5
        fonts = page["/Resources"]["/Font"]
        assert len(fonts)
        for font in (one.get_object() for one in fonts.values()):
            assert font["/Subtype"] != "/Type3", "glyphs are drawings, not text"
            inner = font.get("/DescendantFonts", [font])[0].get_object()
            assert "/FontFile2" in inner["/FontDescriptor"], "the font is not in the file"


@pytest.mark.parametrize("name", stems("png"))
def test_every_png_has_300_dpi_and_nothing_cut_off(name: str) -> None:
    with Image.open(FIGURES / f"{name}.png") as picture:
        assert np.allclose(picture.info["dpi"], 300, atol=0.5)
        pixels = np.asarray(picture.convert("RGB"))
    assert min(abs(pixels.shape[1] / 300 * 25.4 - wanted) for wanted in WIDTHS_MM) < 0.5
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20, "blank"
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (border == 255).all(), "something reaches beyond the edge"


@pytest.mark.parametrize("name", stems("pdf"))
def test_every_figure_has_its_numbers(name: str) -> None:
    table = numbers(name)
    assert len(table)
    assert not table.isna().all(axis=1).any()


@pytest.mark.parametrize("model", MODELS)
def test_confusion_counts_are_those_of_the_predictions(model: str) -> None:
    """The figure shows the fused model; the evaluation's own files, all three."""
    cells = predictions(model)
    for cohort, part in cells.groupby("slide"):
        written = pd.read_csv(RUN / "evaluation" / model / cohort / "confusion.csv").pivot_table(
            "cells", "true", "predicted"
        )
        names = list(written.columns)
        expected = confusion_matrix(part["label"], part["prediction"], labels=names)
        assert expected.sum() == len(part)
        assert np.array_equal(written.loc[names].to_numpy(), expected)
        if model == "gate":
            drawn = numbers("confusion").query("cohort == @cohort").pivot_table("cells", "true", "predicted")
            assert np.array_equal(drawn.reindex(index=names, columns=names).fillna(0).to_numpy(), expected)


@pytest.mark.parametrize("model", MODELS)
def test_f1_of_each_class_is_scikit_learns(model: str) -> None:
    drawn = numbers("per_class_f1").query("metric == 'f1' and name == @DRAWN_AS[@model]")
    cells = predictions(model)
    compared = 0
    for cohort, part in [*cells.groupby("slide"), ("all", cells)]:
        rows = drawn[drawn["cohort"] == cohort].set_index("class")["value"]
        found = f1_score(part["label"], part["prediction"], labels=list(rows.index), average=None, zero_division=0)
        assert rows.to_numpy() == pytest.approx(found, abs=1e-9)
        compared += len(rows)
    assert compared >= 20


@pytest.mark.parametrize("model", MODELS)
def test_accuracies_of_the_branches(model: str) -> None:
    drawn = numbers("branches").query("metric == 'accuracy' and branch == @DRAWN_AS[@model]").set_index("cohort")
    for cohort, part in predictions(model).groupby("slide"):
        assert drawn.loc[cohort, "value"] == pytest.approx((part["label"] == part["prediction"]).mean(), abs=1e-9)
        assert drawn.loc[cohort, "low"] <= drawn.loc[cohort, "value"] <= drawn.loc[cohort, "high"]


def test_one_branch_or_the_other_is_the_oracle() -> None:
    a, b = (predictions(name).set_index(["slide", "cell_id"]) for name in ("local", "global"))
    either = (a["prediction"] == a["label"]) | (b["prediction"] == b["label"]).reindex(a.index)
    drawn = numbers("branches").query("metric == 'accuracy' and branch == 'oracle'").set_index("cohort")
    for cohort, right in either.groupby("slide"):
        assert drawn.loc[cohort, "value"] == pytest.approx(right.mean(), abs=1e-9)


@pytest.mark.parametrize("model", MODELS)
def test_reliability_after_calibration_is_that_of_the_predictions(model: str) -> None:
    cells = predictions(model)
    drawn = numbers("calibration")
    if "panel" in drawn:
        drawn = drawn[drawn["panel"] == "reliability"]
    drawn = drawn[(drawn["model"] == model) & (drawn["stage"] == "after")]
    drawn = drawn[drawn["cohort"] == "all"] if "cohort" in drawn else drawn
    assert drawn["cells"].sum() == len(cells)
    right = (cells["label"] == cells["prediction"]).to_numpy()
    sure = cells["confidence"].to_numpy()
    for row in drawn.itertuples():
        inside = (sure > row.low) & (sure <= row.high)
        assert inside.sum() == row.cells
        if row.cells:
            assert row.accuracy == pytest.approx(right[inside].mean(), abs=1e-9)
            assert row.confidence == pytest.approx(sure[inside].mean(), abs=1e-6)


def test_the_funnel_counts_cells_of_the_tables() -> None:
    drawn = numbers("funnel")
    for slide, rows in drawn.groupby("slide"):
        cells = pd.read_parquet(RUN / "slides" / slide / "cells.parquet")
        steps = rows["cells"].astype(int).tolist()
        assert steps == sorted(steps, reverse=True)
        assert steps[0] == len(cells)
        assert steps[0] - steps[-1] == rows["dropped"].astype(int).sum()


def test_the_composition_counts_labelled_cells() -> None:
    """Of the cohorts, whose cells are all of the split test: slide by slide, and of each organ."""
    drawn = numbers("dataset_composition").query("role == 'cohort' and cells > 0").dropna(subset="class")
    cells = predictions("gate")
    for column, rows in (("slide", drawn[drawn["slide"].notna()]), ("organ", drawn[drawn["slide"].isna()])):
        found = rows.set_index([column, "class"])["cells"].sort_index()
        expected = cells.groupby([cells[column].astype(str), "label"]).size()
        assert found.to_dict() == expected.to_dict()


def drawn_numbers(name: str) -> pd.DataFrame:
    """Return the numbers of a figure that not every run has made."""
    if not (FIGURES / f"{name}.csv").is_file():
        pytest.skip(f"the run has no figure {name}")
    return numbers(name)


def both_branches() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the local and the global model's predictions of the same cells, in one order."""
    a, b = (predictions(name).set_index(["slide", "cell_id"]) for name in ("local", "global"))
    return a, b.reindex(a.index)


def probabilities(cells: pd.DataFrame) -> pd.DataFrame:
    return cells[[name for name in cells if name.startswith("prob_")]].rename(columns=lambda name: name[5:])


def test_complementarity_counts_who_is_right() -> None:
    drawn = drawn_numbers("complementarity").set_index("class")
    a, b = both_branches()
    right = pd.DataFrame({"label": a["label"], "a": a["prediction"] == a["label"], "b": b["prediction"] == a["label"]})
    parts = {"Both": right["a"] & right["b"], "A_only": right["a"] & ~right["b"]}
    parts |= {"B_only": ~right["a"] & right["b"], "Neither": ~right["a"] & ~right["b"]}
    for name, rows in [*right.groupby("label").groups.items(), ("all classes", right.index)]:
        assert drawn.loc[name, "N"] == len(rows)
        for kind, chosen in parts.items():
            assert drawn.loc[name, kind] == chosen.loc[rows].sum(), (name, kind)
        gap = right.loc[rows, "b"].mean() - right.loc[rows, "a"].mean()
        assert drawn.loc[name, "difference"] == pytest.approx(gap, abs=1e-9)
    assert len(drawn) == right["label"].nunique() + 1


def test_the_gate_is_that_of_the_predictions() -> None:
    drawn = drawn_numbers("gate")
    cells = predictions("gate").set_index(["slide", "cell_id"])
    gates = cells["gate"].astype(float)
    pooled = drawn[drawn["cohort"] == "all"]
    by_class = pooled[pooled["panel"] == "by_class"].set_index("class")
    for name, part in gates.groupby(cells["label"]):
        assert by_class.loc[name, "cells"] == len(part)
        found = by_class.loc[name, ["mean", "median", "q05", "q95"]].astype(float)
        assert found.tolist() == pytest.approx([part.mean(), *part.quantile([0.5, 0.05, 0.95])], abs=1e-6)
    a, b = both_branches()
    right_a, right_b = a["prediction"] == a["label"], b["prediction"] == a["label"]
    by_truth = pooled[pooled["panel"] == "by_truth"].set_index("truth")
    for name, chosen in (("only_local", right_a & ~right_b), ("only_global", right_b & ~right_a)):
        assert by_truth.loc[name, "cells"] == chosen.sum()
        assert float(by_truth.loc[name, "mean"]) == pytest.approx(gates.reindex(a.index)[chosen].mean(), abs=1e-6)
    squares = drawn[drawn["panel"] == "map"]
    for slide, part in gates.groupby(level="slide"):
        own = squares[squares["slide"] == slide]
        assert own["cells"].sum() == len(part)
        assert (own["cells"] * own["gate"]).sum() / len(part) == pytest.approx(part.mean(), abs=1e-6)


@pytest.mark.parametrize("way", ["mean", "product", "max_confidence"])
def test_what_the_gate_wins_over_a_simple_rule(way: str) -> None:
    drawn = drawn_numbers("fusion")
    drawn = drawn[(drawn["metric"] == "accuracy") & (drawn["name"] == f"fused-{way}")]
    a, b = both_branches()
    fused = predictions("gate").set_index(["slide", "cell_id"]).reindex(a.index)
    p, q = probabilities(a), probabilities(b)
    rules = {"mean": p + q, "product": p * q, "max_confidence": p.where(p.max(axis=1) >= q.max(axis=1), q)}
    gain = (fused["prediction"] == fused["label"]).astype(float) - (rules[way].idxmax(axis=1) == a["label"])
    found = drawn.set_index("cohort")["value"]
    assert found["all"] == pytest.approx(gain.mean(), abs=1e-9)
    for cohort, part in gain.groupby(level="slide"):
        if cohort in found:
            assert found[cohort] == pytest.approx(part.mean(), abs=1e-9)


def test_the_maps_of_embeddings_show_cells_of_the_predictions() -> None:
    drawn = drawn_numbers("umap")
    cells = {model: predictions(model).set_index(["slide", "cell_id"]) for model in MODELS}
    assert set(drawn["model"]) == set(MODELS)
    for model, part in drawn.groupby("model"):
        assert len(part) == min(20_000, len(cells[model]))
        known = cells[model].loc[pd.MultiIndex.from_frame(part[["slide", "cell_id"]])]
        for column in ("label", "prediction", "organ"):
            assert known[column].astype(str).tolist() == part[column].tolist()


def test_the_slides_are_counted_from_the_predictions() -> None:
    drawn = drawn_numbers("spatial").set_index(["slide", "class"])
    for slide, part in predictions("gate").groupby("slide"):
        right = part["label"] == part["prediction"]
        whole = drawn.loc[slide, "all classes"]
        assert (whole["cells"], whole["right"]) == (len(part), right.sum())
        assert float(whole["confidence"]) == pytest.approx(part["confidence"].mean(), abs=1e-5)
        assert float(whole["gate"]) == pytest.approx(part["gate"].mean(), abs=1e-5)
        for name, own in part.groupby("label"):
            row = drawn.loc[slide, name]
            assert (row["cells"], row["predicted"]) == (len(own), (part["prediction"] == name).sum())
            assert row["right"] == right.loc[own.index].sum()


@pytest.mark.parametrize("switch", ["reference", "first_organ"])
def test_a_row_of_the_audit(switch: str) -> None:
    """Macro-F1 over the classes of enough cells, of the variant's own predictions of the cohorts."""
    drawn = drawn_numbers("audit").query("metric == 'macro_f1'").set_index("switch")
    files = sorted((RUN / "variants" / switch / "predictions" / "gate").glob("*_h.parquet"))
    if switch not in drawn.index or not files:
        pytest.skip(f"the run has no variant {switch}")
    cells = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    label, called = cells["label"].astype(str), cells["prediction"].astype(str)
    chosen = (cells["split"].astype(str) == "test") & (label != "")
    label, called = label[chosen], called[chosen]
    counts = label.value_counts()
    settings = yaml.safe_load((RUN / "provenance" / "config.yaml").read_text(encoding="utf-8"))["evaluation"]
    names = sorted(counts.index[counts >= settings["min_support"]])
    assert drawn.loc[switch, "cells"] == len(label)
    expected = f1_score(label, called, labels=names, average="macro", zero_division=0)
    assert float(drawn.loc[switch, "estimate"]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
@pytest.mark.parametrize(("name", "whole"), [("overview", False), ("report", True)])
def test_the_report_opens_and_holds_every_figure_and_table(name: str, whole: bool, tmp_path: Path) -> None:
    file = RUN / f"{name}.html"
    if not file.is_file():
        pytest.skip(f"the run has no {name}.html")
    with chromium(tmp_path) as page:
        page.open(file.resolve().as_uri())
        page.wait("document.readyState == 'complete' && document.body.innerText.includes('NuClass')")
        shown = json.loads(page.run("JSON.stringify(Object.fromEntries(Object.entries(results).map("
                                    "([key, one]) => [key, [one.caption.length, one.data_uri.length]])))"))  # fmt: skip
        assert not [text for text in page.problems if "tailwindcss" not in text]
    for caption, content in shown.values():
        assert caption > 40
        assert content > 100
    made = {f"results/figures/{path.name}" for path in FIGURES.glob("*.jpg")}
    made |= {f"results/tables/{path.name}" for path in (RUN / "tables").glob("*.csv")}
    found = {key for key in shown if key.startswith(("results/figures/", "results/tables/"))}
    assert len(found) >= 15
    assert found == made if whole else found <= made
