"""Pictures of labelled slides and tables on the labels: what is drawn is what was given, in the formats asked for."""

from __future__ import annotations

import colorsys
import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.text import Text
from PIL import Image

from nuclass.core.errors import UserError
from nuclass.core.files import write_json
from nuclass.figures import labelling_panels as panels
from nuclass.figures.labelling import chosen_markers, draw_slide_labels
from nuclass.figures.labelling_panels import HEADING, CellTypes, legend_columns, legend_entries, map_size, read_slide
from nuclass.figures.labelling_study import draw_labelling
from nuclass.figures.style import Classes
from nuclass.labels.agreement import agreement
from nuclass.labels.measures import RULES, confidence_counts, funnel_counts, type_counts
from nuclass.labels.ontology import CLASSES, load_ontology
from nuclass.tables.labelling import label_agreement, label_confidence
from nuclass.tables.layout import EMPTY, SYNTHETIC_NOTE
from table_example import follows_the_sheet, lay_out
from table_example import rows as markdown_rows

ROOT = Path(__file__).parents[1]
SHEET = ROOT / "resources" / "classes.tsv"
OTHERS = [f"Other_{k:02d}" for k in range(30)]
CLASS_OF = {name: name for name in CLASSES} | {"Lymphatic_Endothelial": "Endothelial"} | dict.fromkeys(OTHERS, "")
LOOK = {"class_of": CLASS_OF, "classes": SHEET, "style": ROOT / "resources" / "style" / "nuclass.mplstyle"}
TYPES = CellTypes(CLASS_OF, Classes.read(SHEET))


def write_slide(
    folder: Path, types: list[str], n: int = 400, *, width: float = 900, height: float = 700, source: str = "markers"
) -> dict[str, Path]:
    """Write labels, cells, layout and evidence of a made-up slide."""
    rng = np.random.default_rng(n)
    folder.mkdir(parents=True, exist_ok=True)
    name = np.array(types or [""], dtype=object)[rng.integers(0, max(len(types), 1), n)]
    confidence = rng.uniform(0.3, 1, n)
    status = np.where(
        rng.random(n) < 0.1, "dropped", np.where((confidence < 0.6) | (name == ""), "abstained", "labelled")
    )
    labels = pd.DataFrame({"cell_id": [f"c{k:06d}-1" for k in range(n)], "cluster": rng.integers(0, 7, n)})
    labels["raw_label"] = name
    labels["cell_type"] = np.where(status == "labelled", name, "")
    labels["class"] = labels["cell_type"].map({**CLASS_OF, "": ""})
    labels["confidence"] = np.where(status == "dropped", np.nan, confidence if source == "markers" else np.nan)
    labels["margin"], labels["confidence_released"] = confidence, labels["confidence"]
    labels["source"], labels["status"] = source, status
    reasons = np.where(labels["class"] == "", "no_class", "")
    labels["reason"] = np.select([status == "dropped", status == "abstained"], ["low_counts", "unsure"], reasons)
    xy = rng.random((n, 2)) * [width, height]
    cells = pd.DataFrame({"cell_id": labels["cell_id"], "x_um": xy[:, 0], "y_um": xy[:, 1]})
    laid = labels.loc[status != "dropped", ["cell_id"]].assign(umap_1=1.0, umap_2=2.0)
    laid[["umap_1", "umap_2"]] = rng.normal(size=(len(laid), 2))
    genes = [f"{t[:4]}{k}" for t in types for k in range(6)]
    evidence = pd.DataFrame(
        [
            (
                t,
                g,
                "positive" if g.startswith(t[:4]) and t not in OTHERS else "",
                k + 1,
                (k + 1) / 9,
                0.1 * (k % 10),
                1.0,
                2.0,
            )
            for t in types
            for k, g in enumerate(genes)
        ],
        columns=["cell_type", "gene", "listed", "rank", "mean", "fraction", "log2_fold", "score"],
    )
    paths = {
        k: folder / f for k, f in (("labels", "labels.parquet"), ("cells", "cells.parquet"), ("umap", "umap.parquet"))
    }
    for key, frame in (("labels", labels), ("cells", cells), ("umap", laid)):
        frame.to_parquet(paths[key])
    evidence.to_csv(folder / "markers.csv", index=False)
    return {**paths, "markers": folder / "markers.csv"}


def draw(
    paths: dict[str, Path], folder: Path, name: str = "s", endings: tuple[str, ...] = ("pdf", "png")
) -> pd.DataFrame:
    draw_slide_labels(
        "slide_1", paths, [folder / f"{name}.{e}" for e in endings], folder / f"{name}.csv",
        organ="lung", min_confidence=0.6, synthetic=True, **LOOK,
    )  # fmt: skip
    return pd.read_csv(folder / f"{name}.csv", keep_default_na=False)


# Order and colours of the types


def test_every_type_has_a_colour_of_its_own_on_every_slide() -> None:
    colours = {name: TYPES.colour(name) for name in CLASS_OF}
    assert len(set(colours.values())) == len(CLASS_OF)
    for name in CLASSES:
        assert colours[name] == Classes.read(SHEET).colour(name)
    # A type of no class is duller than any class, and neither black nor the grey of cells without a label.
    for name in OTHERS:
        red, green, blue = (int(colours[name][k : k + 2], 16) / 255 for k in (1, 3, 5))
        assert 0.1 < colorsys.rgb_to_hls(red, green, blue)[2] < 0.3
    tint = colours["Lymphatic_Endothelial"]
    assert colorsys.rgb_to_hls(*(int(tint[k : k + 2], 16) / 255 for k in (1, 3, 5)))[1] > 0.7
    assert TYPES.colour("") == panels.ABSTAINED_COLOUR


def test_types_of_a_class_come_first_in_the_order_of_the_classes() -> None:
    names = ["Other_03", "Lymphatic_Endothelial", "Endothelial", "T_Cell", "Other_01", "B_Cell", "Unheard_Of", ""]
    assert TYPES.ordered(names) == [
        "B_Cell", "T_Cell", "Endothelial", "Lymphatic_Endothelial", "Other_01", "Other_03", "Unheard_Of",
    ]  # fmt: skip


def test_a_heading_of_the_legend_never_stands_last_in_a_column() -> None:
    counts = pd.DataFrame(
        {"cell_type": ["B_Cell", "T_Cell", "Other_01"], "class": ["B_Cell", "T_Cell", ""], "cells": [3, 2, 1]}
    )
    entries = legend_entries(counts, 7, TYPES)
    assert [text for kind, text, _ in entries if kind != HEADING] == [
        "B Cell  3",
        "T Cell  2",
        "Other 01  1",
        "Abstained  7",
    ]
    for columns in range(1, 6):
        parts = legend_columns(entries, columns)
        assert len(parts) <= columns
        assert [entry for part in parts for entry in part] == entries
        assert all(part[-1][0] != HEADING for part in parts)
    assert legend_columns([], 3) == [[]]


def test_genes_of_the_dot_plot() -> None:
    rows = [
        ("A", "a1", "positive", 3, 4.0), ("A", "a2", "positive", 1, 1.0), ("A", "x", "", 2, 1.0),
        ("A", "n", "negative", 4, 0.0),
        ("B", "a1", "positive", 2, 2.0), ("B", "a2", "", 3, 0.0), ("B", "x", "", 1, 0.0), ("B", "n", "", 4, 0.0),
        ("C", "a1", "", 1, 1.0), ("C", "a2", "", 2, 1.0), ("C", "x", "", 3, 0.0), ("C", "n", "", 4, 0.0),
    ]  # fmt: skip
    evidence = pd.DataFrame(rows, columns=["cell_type", "gene", "listed", "rank", "mean"]).assign(fraction=0.5)
    found = chosen_markers(evidence, ["A", "B", "C"])
    # Of A its two listed genes by rank; B's only one is taken; C has none listed, and its best is taken too.
    genes = found.drop_duplicates("gene").sort_values("place")
    assert genes[["gene", "of"]].to_numpy().tolist() == [["a2", "A"], ["a1", "A"]]
    assert found.set_index(["cell_type", "gene"]).loc[("B", "a1"), "scaled"] == 0.5
    alone = chosen_markers(evidence, ["C"])
    assert alone["gene"].tolist() == ["a1"]
    assert chosen_markers(evidence, []).empty


# One page a slide


def test_numbers_drawn_are_the_numbers_given(tmp_path: Path) -> None:
    types = ["T_Cell", "B_Cell", "Epithelial_Malignant", "Other_04"]
    paths = write_slide(tmp_path / "in", types)
    numbers = draw(paths, tmp_path)
    labels = pd.read_parquet(paths["labels"])
    legend = numbers[numbers["panel"] == "legend"].set_index("row")["value"].astype(float)
    assert legend.to_dict() == labels.loc[labels["status"] == "labelled", "cell_type"].value_counts().to_dict()
    bins = numbers.query("panel == 'confidence' and measure == 'cells'")["value"].astype(float)
    assert bins.tolist() == confidence_counts(labels)["cells"].tolist()
    steps = numbers.query("panel == 'funnel' and measure == 'cells'").set_index("row")["value"].astype(float)
    assert steps.to_dict() == funnel_counts(labels).groupby("step")["cells"].first().to_dict()
    lost = numbers.query("panel == 'funnel' and measure == 'lost'").set_index("column")["value"].astype(float)
    assert lost["low_counts"] == (labels["status"] == "dropped").sum()
    assert lost["Other_04"] == (labels["cell_type"] == "Other_04").sum()
    evidence = pd.read_csv(paths["markers"]).set_index(["cell_type", "gene"])
    for measure in ("fraction", "mean"):
        drawn = (
            numbers.query("panel == 'markers' and measure == @measure")
            .set_index(["row", "column"])["value"]
            .astype(float)
        )
        # Four genes of each type of a class; the one of the other type is among them.
        assert len(drawn) == 4 * 3 * 4
        np.testing.assert_allclose(drawn, evidence.loc[drawn.index, measure])


def test_files_of_a_slide(tmp_path: Path) -> None:
    paths = write_slide(tmp_path / "in", ["T_Cell", "Other_01"])
    draw(paths, tmp_path, endings=("pdf", "png", "svg"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "s.csv", "s.pdf", "s.png", "s.svg"]
    content = (tmp_path / "s.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") == 1
    text = (tmp_path / "s.svg").read_text()
    for word in (
        "slide 1",
        "lung",
        "labels from markers",
        "threshold 0.6",
        "T Cell",
        "Other 01",
        "synthetic study",
        "µm",
    ):
        assert word in text
    with Image.open(tmp_path / "s.png") as image:
        assert image.width == pytest.approx(277 / 25.4 * 300, abs=2)
        assert np.asarray(image.convert("L")).std() > 5


def test_the_same_slide_gives_the_same_picture(tmp_path: Path) -> None:
    paths = write_slide(tmp_path / "in", ["T_Cell", "B_Cell"])
    digests = []
    for name in ("a", "b"):
        draw(paths, tmp_path, name)
        digests.append(
            [hashlib.sha256((tmp_path / f"{name}.{e}").read_bytes()).hexdigest() for e in ("pdf", "png", "csv")]
        )
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("types", "options"),
    [
        (["T_Cell"], {}),
        ([], {}),
        (["T_Cell", "B_Cell"], {"source": "given"}),
        ([*CLASSES[:12], *OTHERS[:8]], {"width": 4000, "height": 700}),
        (list(CLASS_OF), {"width": 500, "height": 2000, "n": 3000}),
        (["B_Cell"], {"n": 1}),
    ],
    ids=["one type", "no type", "given", "twenty types, wide", "all types, tall", "one cell"],
)
def test_slides_of_every_kind_are_drawn(tmp_path: Path, types: list[str], options: dict) -> None:
    paths = write_slide(tmp_path / "in", types, **options)
    numbers = draw(paths, tmp_path, endings=("png",))
    labels = pd.read_parquet(paths["labels"])
    assert numbers.query("panel == 'legend'")["value"].astype(float).sum() == (labels["status"] == "labelled").sum()
    assert (tmp_path / "s.png").stat().st_size > 20_000


def axis_words(ax: Axes) -> list[Text]:
    return [*ax.get_yticklabels(), *ax.get_xticklabels(), ax.xaxis.label, ax.yaxis.label]


def test_no_words_of_a_crowded_page_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nuclass.figures.labelling as module

    kept = []
    monkeypatch.setattr(module, "save_figure", lambda fig, *_, **__: kept.append(fig))
    for options in (
        {"width": 900.0, "height": 700.0},
        {"width": 4000.0, "height": 800.0},
        {"width": 500.0, "height": 900.0},
    ):
        paths = write_slide(tmp_path / "in", [*CLASSES[:12], *OTHERS[:8]], 2000, **options)
        draw_slide_labels("s", paths, [], tmp_path / "s.csv", organ="lung", min_confidence=0.6, synthetic=True, **LOOK)
        fig = kept.pop()
        fig.canvas.draw()
        skipped = {str(k) for k in range(40)}
        texts = [t for ax in fig.axes for t in [*ax.texts, ax._left_title, *(axis_words(ax) if ax.axison else [])]]
        legends = [t for ax in fig.axes if ax.get_legend() for t in ax.get_legend().get_texts()]
        shown = [t for t in [*texts, *legends] if t.get_text() and t.get_visible() and t.get_text() not in skipped]
        boxes = [t.get_window_extent() for t in shown]
        page = fig.bbox
        for i, box in enumerate(boxes):
            assert box.x0 >= page.x0 - 1, shown[i]
            assert box.x1 <= page.x1 + 1, shown[i]
            for j in range(i):
                other = boxes[j]
                wide = min(box.x1, other.x1) - max(box.x0, other.x0)
                high = min(box.y1, other.y1) - max(box.y0, other.y0)
                assert wide < 1 or high < 2, (shown[i].get_text(), shown[j].get_text())


def test_a_cell_without_a_place_or_without_a_label_is_told(tmp_path: Path) -> None:
    paths = write_slide(tmp_path, ["T_Cell"])
    cells = pd.read_parquet(paths["cells"])
    cells[3:].to_parquet(paths["cells"])
    with pytest.raises(UserError, match="no position") as told:
        read_slide("s", paths["labels"], paths["cells"], paths["umap"])
    assert "3 cells, such as c000000-1" in str(told.value)
    cells.to_parquet(paths["cells"])
    layout = pd.read_parquet(paths["umap"])
    layout.loc[layout.index[0], "cell_id"] = "of another slide"
    layout.to_parquet(paths["umap"])
    with pytest.raises(UserError, match="no label") as told:
        read_slide("s", paths["labels"], paths["cells"], paths["umap"])
    assert "of another slide" in str(told.value)


def test_abstained_cells_are_drawn_below_and_dropped_ones_not_at_all(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    paths = write_slide(tmp_path, ["T_Cell", "B_Cell"])
    data = read_slide("s", paths["labels"], paths["cells"], paths["umap"])
    fig, ax = plt.subplots()
    panels.map_panel(ax, data.cells, TYPES, 1000)
    drawn = ax.collections[0]
    counts = data.cells["status"].value_counts()
    assert len(drawn.get_offsets()) == counts["labelled"] + counts["abstained"]
    grey = (drawn.get_facecolors()[:, :3].std(axis=1) == 0) & (drawn.get_facecolors()[:, 0] > 0.8)
    assert grey.sum() == counts["abstained"]
    assert grey[: counts["abstained"]].all()
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert ax.get_aspect() == 1
    plt.close(fig)


def test_points_shrink_with_the_cells_and_maps_keep_their_shape() -> None:
    sizes = [panels._point_size(n, 8000, 0.55, panels._MAP_POINTS_PT2) for n in (10, 2000, 30_000, 600_000, 10**8)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[3] * 600_000 == pytest.approx(0.55 * 8000 * (72 / 25.4) ** 2)
    cells = pd.DataFrame({"x_um": [0.0, 400.0], "y_um": [0.0, 100.0], "status": "labelled"})
    assert map_size(cells, 160, 80) == pytest.approx((160, 40))
    assert map_size(cells, 160, 20) == pytest.approx((80, 20))


# All slides


def test_study(tmp_path: Path) -> None:
    slides = {
        "a_1": write_slide(tmp_path / "a", ["T_Cell", "B_Cell", "Other_02"]),
        "b_1": write_slide(tmp_path / "b", ["T_Cell", "Fibroblast"], 300, width=4000, height=500),
        "c_1": write_slide(tmp_path / "c", ["Acinar"], 200, source="given"),
    }
    draw_labelling(
        slides, [tmp_path / f"l.{e}" for e in ("pdf", "png", "svg")], tmp_path / "l.csv",
        organs={"a_1": "lung", "b_1": "colon", "c_1": "pancreas"}, min_confidence={"a_1": 0.6, "b_1": 0.7, "c_1": None},
        synthetic=True, **LOOK,
    )  # fmt: skip
    numbers = pd.read_csv(tmp_path / "l.csv", keep_default_na=False)
    for slide, paths in slides.items():
        labels = pd.read_parquet(paths["labels"])
        part = numbers[(numbers["slide"] == slide) & (numbers["panel"] == "legend")]
        assert (
            part.set_index("row")["value"].astype(float).to_dict()
            == type_counts(labels).set_index("cell_type")["cells"].to_dict()
        )
    text = (tmp_path / "l.svg").read_text()
    total = sum((pd.read_parquet(p["labels"])["cell_type"] == "T_Cell").sum() for p in slides.values())
    for word in ("a 1", "colon", f"T Cell  {total}", "These labels carry no confidence", "synthetic study", "Other 02"):
        assert word in text
    assert (tmp_path / "l.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(tmp_path / "l.png") as image:
        assert image.width == pytest.approx(183 / 25.4 * 300, abs=2)


def test_study_without_slides(tmp_path: Path) -> None:
    draw_labelling({}, [tmp_path / "l.svg"], tmp_path / "l.csv", organs={}, min_confidence={}, synthetic=False, **LOOK)
    assert "No slide to show" in (tmp_path / "l.svg").read_text()
    assert "synthetic study" not in (tmp_path / "l.svg").read_text()


# Tables


def write_agreement(folder: Path, given: str = "TTTTTTBBBP", markers: str = "TTTTBaBBTP") -> dict[str, Path]:
    """Write what labelling a slide leaves of the comparison of given labels with those of the markers."""
    names = {"T": "T_Cell", "B": "B_Cell", "P": "Plasma_Cell", "a": ""}
    ontology = load_ontology(ROOT / "resources" / "label_ontology.yaml")

    def table(letters: str) -> pd.DataFrame:
        kinds = [names[letter] for letter in letters]
        return pd.DataFrame(
            {
                "cell_id": [str(k) for k in range(len(kinds))],
                "cell_type": kinds,
                "class": [ontology.class_of(kind) if kind else "" for kind in kinds],
                "status": ["labelled" if kind else "abstained" for kind in kinds],
            }
        )

    folder.mkdir(exist_ok=True)
    found = agreement(table(given), table(markers), ontology)
    found.scores.to_csv(folder / "scores.csv", index=False)
    write_json(folder / "summary.json", {"organ": "lung", "agreement": found.summary})
    return {"summary": folder / "summary.json", "scores": folder / "scores.csv"}


def write_none(folder: Path) -> dict[str, Path]:
    """Write what labelling leaves where no labels are given."""
    folder.mkdir(exist_ok=True)
    (folder / "scores.csv").write_text("level,name,given_cells,marker_cells,both,precision,recall,f1\n")
    write_json(folder / "summary.json", {"organ": "lung"})
    return {"summary": folder / "summary.json", "scores": folder / "scores.csv"}


def test_agreement_table(tmp_path: Path) -> None:
    slides = {
        "a_1": write_agreement(tmp_path / "a"),
        "b_1": write_none(tmp_path / "b"),
        "c_1": write_agreement(tmp_path / "c", "TT", "TT"),
    }
    text = lay_out(label_agreement(slides), tmp_path / "t", synthetic=True)
    rows = markdown_rows(tmp_path / "t.md")
    # Ten given, nine by both; the plasma cell has no class by both. Of the T cells 4 of 5 agree, of the B cells 2 of 3.
    recall = (4 / 5 + 2 / 3) / 2
    kappa = (6 / 8 - (5 * 5 + 3 * 3) / 64) / (1 - (5 * 5 + 3 * 3) / 64)
    expected = ["10", "8", "0.750", f"{recall:.3f}", f"{kappa:.3f}", f"{(8 / 10 + 4 / 6) / 2:.3f}"]
    assert next(row for row in rows if row[:2] == ["a_1", "class"])[2:] == expected
    assert next(row for row in rows if row[:2] == ["c_1", "class"])[2:] == ["2", "2", "1.000", "1.000", EMPTY, "1.000"]
    assert not [row for row in rows if row[0] == "b_1"]
    assert ["B Cell", "0.667 (3)", EMPTY] in rows
    assert ["T Cell", "0.800 (5)", "1.000 (2)"] in rows
    names = ["T_Cell", "B_Cell"]
    assert follows_the_sheet(lambda sheet: label_agreement(slides, classes=sheet), tmp_path, names)
    assert SYNTHETIC_NOTE in text
    data = pd.read_csv(tmp_path / "t.csv", keep_default_na=False, na_values={"value": ""})
    found = data.query("slide == 'a_1' and level == 'class' and name == 'B_Cell'").set_index("measure")["value"]
    assert found.to_dict() == pytest.approx(
        {"given_cells": 3, "marker_cells": 3, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3}
    )


def test_agreement_table_without_given_labels(tmp_path: Path) -> None:
    for slides in ({}, {"a": write_none(tmp_path / "a")}):
        assert "No slide of this study has given labels" in lay_out(label_agreement(slides), tmp_path / "t")
        assert pd.read_csv(tmp_path / "t.csv").columns.tolist() == ["slide", "level", "name", "measure", "value"]


def test_confidence_table(tmp_path: Path) -> None:
    values = [(100.0, 0.9, 0.7, 0.65, 0.684, *[np.nan] * 3), (50.0, 0.8, 0.5, 0.4, 0.5, 0.99, 0.95, 0.98)]
    rules = pd.DataFrame(values, columns=list(RULES))
    rules.insert(0, "slide", ["a", "b"])
    least = {"min_confidence": 0.55, "released_min": 0.6}
    text = lay_out(label_confidence(rules, **least), tmp_path / "t")
    rows = markdown_rows(tmp_path / "t.md")
    assert rows[0][-3:] == ["accuracy", "accuracy, original", "accuracy, as many"]
    assert rows[3] == ["b", "50", "80.0 %", "50.0 %", "40.0 %", "0.500", "0.990", "0.950", "0.980"]
    assert rows[2][-3:] == [EMPTY] * 3
    assert "0.55 and above" in text
    lay_out(label_confidence(rules[:1], **least), tmp_path / "t")
    assert "accuracy" not in markdown_rows(tmp_path / "t.md")[0]
    assert "No slide has labels from markers." in lay_out(label_confidence(rules[:0], **least), tmp_path / "t")
