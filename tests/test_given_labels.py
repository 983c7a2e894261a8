"""Given labels: read from the formats they are published in, matched to cells, mapped, combined with the markers'."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given as over
from hypothesis import settings
from hypothesis import strategies as st

from given_example import ONTOLOGY, cells_table, marker_table
from nuclass.core.bundle_source import GivenFile, parse_given
from nuclass.core.errors import UserError
from nuclass.core.files import write_json
from nuclass.labels.agreement import agreement
from nuclass.labels.given import (
    LABEL_COLUMNS,
    check_given,
    combine,
    given_file,
    given_labels,
    given_summary,
    match_given,
    read_given,
)
from nuclass.labels.ontology import load_ontology
from nuclass.synthetic.cell_groups import NAMES, UNASSIGNED, write_cell_groups

REPOSITORY = Path(__file__).parent.parent
ROWS = [("aaaa-1", "T Cells"), ("bbbb-1", "Tumor Cells"), ("cccc-1", ""), ("dddd-1", "Unassigned")]


def message(path: object) -> str:
    with pytest.raises(UserError) as caught:
        read_given(str(path))
    assert str(caught.value).count("\n") >= 1
    return str(caught.value)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def workbook(path: Path, sheets: dict[str, pd.DataFrame]) -> Path:
    with pd.ExcelWriter(path, engine="openpyxl") as book:
        for name, frame in sheets.items():
            frame.to_excel(book, sheet_name=name, index=False)
    return path


@pytest.fixture
def breast(tmp_path: Path) -> Path:
    """A workbook in the layout of the published breast annotation: several sheets, integer ids of XOA 1.0."""
    sheets = {
        "scFFPE-Seq": pd.DataFrame({"Barcode": ["AAAC-1", "AAAG-1"], "Annotation": ["Stromal", "DCIS 1"]}),
        "Visium": pd.DataFrame({"Barcode": ["AA-1"], "Cluster": [7], "Annotation": ["Stromal"]}),
        "Xenium R1 Fig1-5 (supervised)": pd.DataFrame({"Barcode": [1, 2, 3], "Cluster": ["DCIS_1", "Unlabeled", "T"]}),
        "Xenium R2 Fig1-5 (supervised)": pd.DataFrame({"Barcode": [1, 2], "Cluster": ["Stromal", "DCIS_2"]}),
        "Notes": pd.DataFrame({"text": ["nothing"]}),
    }
    return workbook(tmp_path / "Cell_Barcode_Type_Matrices.xlsx", sheets)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x_cell_groups.csv", "cell_id,group,color\n{0},#fff\n{1},#000\n{2},\n{3},#000\n"),
        ("semicolons.csv", "\ufeffBarcode;Cluster\n{0}\n{1}\n{2}\n{3}\n"),
        ("tabs.tsv", "cell\tcell_type\n{0}\n{1}\n{2}\n{3}\n"),
        ("pandas.csv", ",Unnamed,label\n{0}\n{1}\n{2}\n{3}\n"),
        ("r.txt", '"annotation"\n{0}\n{1}\n{2}\n{3}\n'),
        ("index.csv", ",cell_id,celltype\n0,{0}\n1,{1}\n2,{2}\n3,{3}\n"),
    ],
)
def test_text(tmp_path: Path, name: str, text: str) -> None:
    mark = ";" if "semi" in name else "," if name.endswith(".csv") else "\t"
    middle = f"{mark}x{mark}" if name == "pandas.csv" else mark
    rows = [f'{cell}{middle}"{label}"' if label else f"{cell}{middle}NA" for cell, label in ROWS]
    file = write(tmp_path / name, text.format(*rows))
    assert list(read_given(file).itertuples(index=False, name=None)) == ROWS
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert list(read_given(packed).itertuples(index=False, name=None)) == ROWS
    check_given(packed)


@pytest.mark.parametrize("kind", ["column", "index", "category"])
def test_parquet(tmp_path: Path, kind: str) -> None:
    frame = pd.DataFrame(ROWS, columns=["cell_id", "cell_type"]).replace("", None)
    frame["score"] = 0.5
    if kind == "index":
        frame = frame.set_index("cell_id").rename_axis(None)
    if kind == "category":
        frame["cell_type"] = frame["cell_type"].astype("category")
    frame.to_parquet(tmp_path / "x.parquet")
    assert list(read_given(tmp_path / "x.parquet").itertuples(index=False, name=None)) == ROWS


def test_ids_stay_as_they_are(tmp_path: Path) -> None:
    file = write(tmp_path / "x.csv", "cell_id,group\n007,T Cells\n7,B Cells\n1e3,Ductal\n")
    assert list(read_given(file)["cell_id"]) == ["007", "7", "1e3"]
    pd.DataFrame({"barcode": ["007", "8"], "group": ["a", "b"]}).to_excel(tmp_path / "x.xlsx", index=False)
    assert list(read_given(tmp_path / "x.xlsx")["cell_id"]) == ["007", "8"]


def test_workbook(breast: Path) -> None:
    frame = read_given(f"{breast}::Xenium R1 Fig1-5 (supervised)")
    assert list(frame.itertuples(index=False, name=None)) == [("1", "DCIS_1"), ("2", "Unlabeled"), ("3", "T")]
    assert list(read_given(f"{breast}::Visium::Barcode,Annotation")["raw_label"]) == ["Stromal"]


def test_workbook_with_one_sheet_of_cells(tmp_path: Path) -> None:
    sheets = {
        "About": pd.DataFrame({"text": ["hello"]}),
        "Cells": pd.DataFrame({"Barcode": [1.0, 2.0], "Cluster": ["a", None]}),
    }
    frame = read_given(workbook(tmp_path / "x.xlsx", sheets))
    assert list(frame.itertuples(index=False, name=None)) == [("1", "a"), ("2", "")]


def test_which_sheet(breast: Path) -> None:
    assert message(breast) == (
        "a workbook has more than one sheet that may hold the labels\n"
        f"  where:      {breast}\n"
        "  found:      scFFPE-Seq; Visium; Xenium R1 Fig1-5 (supervised); Xenium R2 Fig1-5 (supervised)\n"
        "  expected:   the name of one\n"
        f"  to mend it: name it: {breast}::scFFPE-Seq"
    )
    told = message(f"{breast}::Xenium R1 Fig1-5")
    assert told.startswith(
        "a workbook has no sheet 'Xenium R1 Fig1-5'. Did you mean 'Xenium R1 Fig1-5 (supervised)'?\n"
    )
    told = message(f"{breast}::Visium")
    assert f"to mend it: name both: {breast}::Visium::Barcode,Cluster" in told
    assert "more than one column of labels (Cluster, Annotation)" in told


def test_which_columns(tmp_path: Path) -> None:
    file = write(tmp_path / "x.csv", "cell_id,cluster,cell_type,score\na,1,T Cells,2\n")
    assert message(file) == (
        "the columns of given labels are not clear\n"
        f"  where:      {file}\n"
        "  found:      more than one column of labels (cluster, cell_type) known by name, of cell_id, cluster, "
        "cell_type, score\n"
        "  expected:   one column of ids, such as cell_id or barcode, and one of labels, such as group or cell_type\n"
        f"  to mend it: name both: {file}::cell_id,cluster"
    )
    assert list(read_given(f"{file}::cell_id,cell_type")["raw_label"]) == ["T Cells"]
    assert message(f"{file}::cell_id,cel_type") == (
        "a file of given labels has no column 'cel_type'. Did you mean 'cell_type'?\n"
        f"  where:      {file}\n"
        "  expected:   one of cell_id, cluster, cell_type, score"
    )
    none = write(tmp_path / "y.csv", "x,y\n1,2\n")
    assert "no column of ids and no column of labels known by name, of x, y" in message(none)
    assert f"name both: {none}::ID_COLUMN,LABEL_COLUMN" in message(none)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "cell_id,group\na,T\nb,B\na,B\n",
            [
                "cells have more than one given label",
                "1 cells, such as a: 'T', 'B'",
                "one label a cell",
            ],
        ),
        ("cell_id,group\na,\nb,NA\n", ["a file of given labels holds none", "2 cells, each without a label"]),
        ("cell_id,group\na,1\nb,12\n", ["given labels are numbers, not names", "1, 12", "::ID_COLUMN,LABEL_COLUMN"]),
        ("cell_id,group\n,T\nb,B\n", ["given labels have no id", "1 rows, the first with the label 'T'"]),
        ("", ["a file of given labels is empty", "a line of column names"]),
        ("<!DOCTYPE html><html>no</html>", ["a file of given labels is a web page"]),
        ('cell_id,group\na,"T\nb,B\n', ["a file of given labels cannot be read", "unexpected end of data"]),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, told: list[str]) -> None:
    file = write(tmp_path / "x.csv", text)
    shown = message(file)
    assert shown.startswith(told[0] + "\n")
    assert f"  where:      {file}\n" in shown + "\n"
    for part in told[1:]:
        assert part in shown


def test_a_name_that_holds_the_separator(tmp_path: Path) -> None:
    file = write(tmp_path / "x.csv", 'cell_id,group\na,"MT-High, Jun+/Fos+"\nb,MT-High, Jun+/Fos+\n')
    assert message(file) == (
        "a row of given labels has too many values\n"
        f"  where:      {file}, line 3\n"
        "  found:      3 values: b,MT-High, Jun+/Fos+\n"
        "  expected:   2 values, as there are columns\n"
        "  to mend it: put names that hold the separator in quotes"
    )


def test_bad_files(tmp_path: Path) -> None:
    assert message(tmp_path / "gone.csv").startswith("a file of given labels is missing\n")
    (tmp_path / "latin.csv").write_bytes("cell_id,group\na,Zelle \xfc\n".encode("latin-1"))
    assert "as text in UTF-8" in message(tmp_path / "latin.csv")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"cell_id,group\n" + b"a,b\n" * 90_000)[:-40])
    for name in ("cut.csv.gz", "x.xlsx", "x.parquet"):
        if not (tmp_path / name).exists():
            (tmp_path / name).write_bytes(b"no such thing")
        assert message(tmp_path / name).startswith("a file of given labels cannot be read\n")
    told = message(write(tmp_path / "x.rds", "x"))
    assert told.startswith("given labels of this kind cannot be read\n")
    assert ".rds" in told
    assert "*.xlsx" in told


def test_notation() -> None:
    assert parse_given("a b.csv") == GivenFile("a b.csv")
    assert parse_given("a.csv::id, label") == GivenFile("a.csv", "", ("id", "label"))
    assert parse_given("a.csv::,label") == GivenFile("a.csv", "", ("", "label"))
    assert parse_given("a.xlsx::My, sheet") == GivenFile("a.xlsx", "My, sheet")
    assert parse_given("a.xlsx::::id,label") == GivenFile("a.xlsx", "", ("id", "label"))
    for text in ("a.csv::Sheet 1", "a.csv::x::id,label", "::id,label", "a.csv::a,b,c", "a.xlsx::S::a"):
        with pytest.raises(UserError, match="the place of given labels cannot be understood") as caught:
            parse_given(text)
        assert text in str(caught.value)


def test_rows_that_repeat(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    file = write(tmp_path / "x.csv", "cell_id,group\na,\nb,B\na,T\nb,B\n")
    assert list(read_given(file).itertuples(index=False, name=None)) == [("b", "B"), ("a", "T")]
    assert "1 rows repeat another" in caplog.text


def test_where_the_labels_are(tmp_path: Path) -> None:
    write_json(tmp_path / "bundle.json", {"given": "s_cell_groups.csv"})
    assert given_file(tmp_path, "") == str(tmp_path / "s_cell_groups.csv")
    assert given_file(tmp_path, "mine.xlsx::Sheet 1") == "mine.xlsx::Sheet 1"
    assert given_file(tmp_path, "none") is None
    write_json(tmp_path / "bundle.json", {"given": None})
    assert given_file(tmp_path, "") is None


@pytest.mark.parametrize(
    ("ids", "bundle"),
    [
        (["a-1", "b-1"], ["b-1", "x-1", "a-1"]),
        (["a", "b"], ["b-1", "x-1", "a-1"]),
        (["a-1", "b-1"], ["b", "x", "a"]),
        (["1.0", "2.0"], ["2", "3", "1"]),
    ],
)
def test_match(ids: list[str], bundle: list[str]) -> None:
    given = pd.DataFrame({"cell_id": ids, "raw_label": ["T Cells", "B Cells"]})
    matched = match_given(given, cells_table(bundle), "x.csv")
    assert list(matched["cell_id"]) == bundle
    assert list(matched["raw_label"]) == ["B Cells", "", "T Cells"]


def test_labels_of_another_slide(caplog: pytest.LogCaptureFixture) -> None:
    given = pd.DataFrame({"cell_id": ["a-1", "b-1", "c-1", "d-1"], "raw_label": ["T", "B", "", "M"]})
    cells = cells_table(["a-1", "x-1", "c-1", "y-1"])
    with pytest.raises(UserError) as caught:
        match_given(given, cells, "mine.csv")
    assert str(caught.value) == (
        "given labels are of another slide\n"
        "  where:      mine.csv\n"
        "  found:      1 of its 3 labelled ids are among the 4 cells of the bundle; it has ids such as a-1, b-1, c-1, "
        "the bundle such as a-1, x-1, c-1\n"
        "  expected:   at least half of the labelled ids in the bundle\n"
        "  to mend it: give the labels of this slide, made on the same version of its output, in the column 'given'"
    )
    match_given(given, cells_table(["a-1", "b-1", "y-1"]), "mine.csv")
    assert "1 of 3 labelled ids are not in the bundle" in caplog.text


def test_plain_numbers_fit_any_slide(caplog: pytest.LogCaptureFixture) -> None:
    given = pd.DataFrame({"cell_id": ["1", "2"], "raw_label": ["T", "B"]})
    match_given(given, cells_table(["1", "2", "3"]), "x.csv")
    assert "fit the cells of any slide" in caplog.text


def test_labels_of_every_kind() -> None:
    cells = cells_table(list("abcdefg"), dropped=("g",))
    names = ["T Cells", "Plasma", "Unassigned", "Strange", "", "Tumor Cells", "T Cells"]
    labels = given_labels(pd.DataFrame({"cell_id": cells["cell_id"], "raw_label": names}), cells, ONTOLOGY)
    assert tuple(labels.columns) == LABEL_COLUMNS
    assert list(labels["raw_label"]) == names
    assert list(labels["cell_type"]) == ["T_Cell", "Plasma_Cell", "", "", "", "Epithelial_Malignant", ""]
    assert list(labels["class"]) == ["T_Cell", "", "", "", "", "Epithelial_Malignant", ""]
    assert list(labels["status"]) == [
        "labelled",
        "labelled",
        "abstained",
        "abstained",
        "abstained",
        "labelled",
        "dropped",
    ]
    assert list(labels["reason"]) == [
        *("", "no_class", "left_out: no identity", "unmapped", "no_given_label", "", "low_counts")
    ]
    assert list(labels["source"]) == ["given", "given", "given", "given", "", "given", ""]
    assert list(labels["confidence"]) == list(labels["margin"]) == [1, 1, 0, 0, 0, 1, 0]
    assert labels["confidence_released"].isna().all()
    assert set(labels["cluster"]) == {-1}


def test_counts_of_given_labels(tmp_path: Path) -> None:
    file = write(tmp_path / "x.csv", "cell_id,group\na,T Cells\nb,Plasma\nc,Unassigned\nd,Strange\ne,\nz,B_Cell\n")
    given = read_given(file)
    matched = match_given(given, cells_table(list("abcdef")), file)
    told = given_summary(f"{file}::cell_id,group", given, matched, ONTOLOGY)
    assert len(told.pop("sha256")) == 64
    assert told == {
        "file": f"{file}::cell_id,group",
        "ids": 6,
        "labelled_ids": 5,
        "ids_not_in_bundle": 1,
        "cells": 6,
        "cells_with_label": 4,
        "mapped": 2,
        "with_class": 1,
        "left_out": 1,
        "unmapped": 1,
    }


def test_given_then_markers() -> None:
    cells = cells_table(list("abcdefghi"), dropped=("i",))
    names = ["T Cells", "Plasma", "Unassigned", "Strange", "", "Myeloid", "Myeloid", "Lymphoid", "T Cells"]
    said = ["B_Cell", "B_Cell", "T_Cell", "", "Macrophage", "Macrophage", "Ductal", "B_Cell", "T_Cell"]
    given = given_labels(pd.DataFrame({"cell_id": cells["cell_id"], "raw_label": names}), cells, ONTOLOGY)
    both = combine(given, marker_table(cells, said), ONTOLOGY)
    assert tuple(both.columns) == LABEL_COLUMNS
    assert list(both["cell_type"]) == [
        "T_Cell",
        "Plasma_Cell",
        "T_Cell",
        "",
        "Macrophage",
        "Macrophage",
        "",
        "B_Cell",
        "",
    ]
    assert list(both["source"]) == [*["given"] * 2, *["markers"] * 6, ""]
    assert list(both["reason"]) == ["", "no_class", "", "unsure", "", "", "markers_contradict", "", "low_counts"]
    assert list(both["raw_label"])[:4] == ["T Cells", "Plasma", "T_Cell", ""]
    assert list(both["cluster"]) == list(range(9)), "clusters are those of the markers"
    assert both["confidence_released"].isna().tolist() == [True, True, *[False] * 7]


def test_a_cell_that_the_markers_dropped_stays_dropped() -> None:
    cells = cells_table(["a", "b"])
    given = given_labels(pd.DataFrame({"cell_id": ["a", "b"], "raw_label": ["T Cells"] * 2}), cells, ONTOLOGY)
    both = combine(given, marker_table(cells_table(["a", "b"], dropped=("b",)), ["", ""]), ONTOLOGY)
    assert both["status"].tolist() == ["labelled", "dropped"]
    assert both["cell_type"].tolist() == ["T_Cell", ""]


def test_tables_of_different_cells_are_refused() -> None:
    cells, other = cells_table(["a", "b"]), cells_table(["b", "a"])
    with pytest.raises(ValueError, match="not of the same cells"):
        combine(marker_table(cells, ["", ""]), marker_table(other, ["", ""]), ONTOLOGY)
    with pytest.raises(ValueError, match="not of the same cells"):
        agreement(marker_table(cells, ["", ""]), marker_table(other, ["", ""]), ONTOLOGY)


names_of = st.sampled_from(["T Cells", "Tumor Cells", "Plasma", "Unassigned", "Myeloid", "Strange", ""])
types_of = st.sampled_from(["", *ONTOLOGY.cell_types])


@settings(max_examples=60, deadline=None)
@over(st.data())
def test_no_cell_is_lost_or_doubled(data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.text("abcd", min_size=1, max_size=4), min_size=1, max_size=12, unique=True))
    bundle = [f"{name}-1" for name in ids]
    cells = cells_table(bundle, tuple(data.draw(st.lists(st.sampled_from(bundle), unique=True))))
    inside = data.draw(st.lists(st.sampled_from(bundle), min_size=1, unique=True))
    outside = [f"zz{k}-1" for k in range(data.draw(st.integers(0, len(inside))))]
    labels = ["T Cells", *(data.draw(names_of) for _ in inside[1:]), *("" for _ in outside)]
    given = pd.DataFrame({"cell_id": [*inside, *outside], "raw_label": labels})
    given = given.sample(frac=1, random_state=data.draw(st.integers(0, 99)))
    matched = match_given(given, cells, "x.csv")
    assert dict(zip(inside, labels, strict=False)).items() <= dict(matched.itertuples(index=False, name=None)).items()
    own = given_labels(matched, cells, ONTOLOGY)
    markers = marker_table(cells, [data.draw(types_of) for _ in bundle])
    for table in (matched, own, combine(own, markers, ONTOLOGY)):
        assert list(table["cell_id"]) == bundle
    both = combine(own, markers, ONTOLOGY)
    assert (both["status"] == "dropped").equals(cells["status"] == "dropped")
    assert ((both["status"] == "labelled") == (both["cell_type"] != "")).all()
    assert (both.loc[own["status"] == "labelled", "source"] == "given").all()


def test_published_names_are_known() -> None:
    """The vocabularies of the pancreas, of the breast workbook and of the synthetic labels."""
    ontology = load_ontology(REPOSITORY / "resources/label_ontology.yaml")
    pancreas = (
        "Acinar;B Cells;CFTR- Tumor Cells;CXCL9/10 Cells;Ductal;Endocrine 1;Endocrine 2;Endothelial;Fibroblasts;"
        "Lymphatic Endothelial Cells;Macrophages;Mast Cells;Metaplastic Cells;Smooth Muscle Cells;T Cells;Tumor Cells"
    ).split(";")
    breast = (
        "B_Cells;CD4+_T_Cells;CD8+_T_Cells;DCIS_1;DCIS_2;Endothelial;IRF7+_DCs;Invasive_Tumor;LAMP3+_DCs;Macrophages_1;"
        "Macrophages_2;Mast_Cells;Myoepi_ACTA2+;Myoepi_KRT15+;Perivascular-Like;Prolif_Invasive_Tumor;Stromal;"
        "Stromal_&_T_Cell_Hybrid;T_Cell_&_Tumor_Hybrid;Unlabeled"
    ).split(";")
    own = [name for names in NAMES.values() for name in names] + [UNASSIGNED]
    assert ontology.unmapped(pd.Series(pancreas + breast + own)).empty
    for class_name, names in NAMES.items():
        first = ontology.resolve(pd.Series(list(names)[:1]))
        assert first["class"].tolist() == [class_name]


def test_synthetic_labels_are_good_but_not_perfect(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    classes = list(rng.choice(list(NAMES), 4000))
    poor = rng.random(4000) < 0.05
    ids = [f"c{k}-1" for k in range(4000)]
    for name in ("a.csv", "b.csv"):
        write_cell_groups(tmp_path / name, ids, classes, poor, np.random.default_rng(2))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    given = read_given(tmp_path / "a.csv")
    assert 0.97 < len(given) / len(ids) < 0.995
    matched = match_given(given, cells_table(ids), "a.csv")
    labels = given_labels(matched, cells_table(ids), load_ontology(REPOSITORY / "resources/label_ontology.yaml"))
    kept = labels["status"] == "labelled"
    assert 0.9 < kept.mean() < 0.97
    assert 0.93 < (labels["class"] == classes)[kept].mean() < 0.97
    assert (labels["reason"] == "left_out: no identity")[poor].mean() > 0.3
