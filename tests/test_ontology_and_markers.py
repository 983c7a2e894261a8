"""The two tables that labels stand on: complete, consistent, and clear about faults."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from nuclass.core.errors import UserError
from nuclass.labels.markers import load_markers, marker_sets
from nuclass.labels.ontology import CLASSES, load_ontology


def test_the_classes_are_the_sixteen_in_order() -> None:
    assert len(CLASSES) == 16
    assert list(CLASSES) == sorted(CLASSES)
    known = {"Acinar": 0, "Ductal": 3, "Endothelial": 5, "Fibroblast": 10, "Macrophage": 11, "T_Cell": 14}
    assert {name: CLASSES.index(name) for name in known} == known


def test_every_class_has_its_own_name_a_colour_and_markers() -> None:
    ontology = load_ontology("resources/ontology.tsv")
    look = pd.read_csv("resources/classes.tsv", sep="\t")
    markers = load_markers("resources/markers/markers.tsv")
    assert all(ontology.classes[name] == name for name in CLASSES)
    assert look["class"].tolist() == list(CLASSES)
    assert look["colour"].is_unique
    positive = markers[markers["sign"] == "positive"].groupby("class").size()
    assert (positive.reindex(CLASSES).fillna(0) >= 5).all()
    assert not markers.duplicated(["class", "gene"]).any(), "a gene is both for and against a class"
    assert (markers["source"] != "").all()


def test_raw_labels_are_mapped_left_out_or_reported() -> None:
    raw = pd.Series(["VEGFA+ Tumor Cells", "Pericyte", "Neutrophil", "Somethingelse", "T_Cell", None])
    classes, unknown = load_ontology("resources/ontology.tsv").map(raw)
    assert classes.tolist() == ["Epithelial_Malignant", "", "", "", "T_Cell", ""]
    assert unknown == {"Somethingelse": 1}


def test_a_wrong_class_is_named_with_its_row(tmp_path: Path) -> None:
    file = tmp_path / "ontology.tsv"
    file.write_text("raw_label\tclass\tnote\nT cells\tT_Cells\t\n")
    with pytest.raises(UserError) as caught:
        load_ontology(file)
    assert f"{file}, row 2, column class" in str(caught.value)
    assert "Did you mean 'T_Cell'?" in str(caught.value)


def test_a_label_with_two_classes_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ontology.tsv"
    file.write_text("raw_label\tclass\tnote\nX\tT_Cell\t\nX\tB_Cell\t\n")
    with pytest.raises(UserError, match="A raw label has two classes"):
        load_ontology(file)


def test_all_faults_of_a_marker_table_come_at_once(tmp_path: Path) -> None:
    file = tmp_path / "markers.tsv"
    file.write_text("class\tgene\tsign\torgans\tsource\nT_Cel\tCD3E\tpositive\t*\tx\nT_Cell\tCD3D\tplus\tlungs\tx\n")
    with pytest.raises(UserError) as caught:
        load_markers(file)
    text = str(caught.value)
    assert "row 2: unknown class 'T_Cel'. Did you mean 'T_Cell'?" in text
    assert "row 3: sign 'plus'" in text
    assert "row 3: unknown organ 'lungs'. Did you mean 'lung'?" in text


def test_the_panel_decides_which_classes_can_be_found() -> None:
    markers = load_markers("resources/markers/markers.tsv")
    found, absent = marker_sets(markers, "lung", ["CD3E", "CD3D", "CD2", "MS4A1", "SFTPC"])
    assert [m.name for m in found] == ["T_Cell"]
    assert found[0].negative == ("MS4A1",)
    assert absent["B_Cell"] == "the panel holds 1 of its markers; 3 are needed"
    assert absent["Acinar"] == "does not occur in lung"
