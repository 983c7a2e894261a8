"""The two tables that labels stand on: complete, consistent, sourced, and clear about faults."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from nuclass.core.errors import UserError
from nuclass.core.names import ORGANS
from nuclass.labels.markers import MIN_POSITIVE, check_species, load_markers, marker_sets, rows_of
from nuclass.labels.ontology import CLASSES, Ontology, load_ontology

ONTOLOGY = Path("resources/label_ontology.yaml")
MARKERS = Path("resources/markers/markers.tsv")
HEAD = "cell_type\tgene\tsign\torgans\tsource\n"
PANELS = {
    "hBreast": "hBreast",
    "hLung": "hLung",
    "hColon": "hColon",
    "hMulti": "hMulti",
    "hImmuno-Oncology": "hIO",
    "hSkin": "hSkin",
    "Prime 5K": "hPrime5K",
}

# What the original maps, name by name, and what it removes.
ORIGINAL = {
    "Acinar": "Acinar",
    "B_Cell": "B Cell; B Cells; B_lineage; Naive B Cell; Memory B Cell",
    "Cardiomyocyte": "Cardiomyocyte",
    "Ductal": "Ductal",
    "Endocrine": "Endocrine 1; Endocrine 2",
    "Endothelial": "Endothelial; Endothelial Cell; Stromal Associated Endothelial Cells; Lymphatic Endothelial Cells",
    "Endothelial_TumorAssociated": "Tumor_Associated_Endothelial; Tumor Associated Endothelial Cells",
    "Epithelial_Airway": "Airway_epithelium; Ciliated Epithelial Cells",
    "Epithelial_Alveolar": "Alveolar",
    "Epithelial_Malignant": "Malignant; Tumor Cells; Proliferative Tumor Cells; VEGFA+ Tumor Cells; "
    "Inflammatory Tumor Cells; SOX2-OT+ Tumor Cells; Malignant Cells Lining Cyst; CFTR- Tumor Cells; "
    "Tumor_epithelial; Metaplastic Cells",
    "Fibroblast": "Fibroblast; Fibroblasts; Stromal Cell",
    "Macrophage": "Macrophage; Macrophages",
    "Mast_Cell": "Mast Cells; Mast_Cell",
    "Smooth_Muscle": "Smooth Muscle Cells; Smooth_Muscle",
    "T_Cell": "T Cells; T Cell; T_cells; Regulatory T Cell; Effector CD4+ αβ T Cell; Effector CD8+ αβ T Cell; "
    "CD4+ αβ Memory T Cell; CD8+ αβ Memory T Cell; Naive Thymus Derived CD4+ αβ T Cell; Mature NK T Cell; "
    "Type I NK T Cell",
    "Tumor_Associated_Fibroblast": "Stromal Associated Fibroblasts; Tumor Associated Fibroblasts; Fibroblast/CAF; "
    "Fibroblast_PDGFRA_CAF; Tumor_Associated_Fibroblast",
    "": "Plasmacytoid Dendritic Cell; CD141+ Myeloid Dendritic Cell; CD1c+ Myeloid Dendritic Cell; "
    "Mature Conventional Dendritic Cell; Classical Monocyte; Intermediate Monocyte; Non Classical Monocyte; NK Cell; "
    "NK Cells; Neutrophil; Plasma Cell; Fallopian Tube Epithelium; Pericytes; Epithelial_Fallopian; Pericyte; "
    "Unassigned; Ambiguous/Low_confidence; Myeloid; T and NK Cells; CXCL9/10 Cells; SMC/Pericyte; Granulosa Cells; "
    "Erythrocyte; Hematopoietic Stem Cell; Hematopoietic_Stem_Cell",
}
BREAST_STUDY = {
    "B_Cells": "B_Cell",
    "CD4+_T_Cells": "T_Cell",
    "CD8+_T_Cells": "T_Cell",
    "DCIS_1": "Epithelial_Malignant",
    "DCIS_2": "Epithelial_Malignant",
    "Endothelial": "Endothelial",
    "Invasive_Tumor": "Epithelial_Malignant",
    "IRF7+_DCs": "Plasmacytoid_Dendritic_Cell",
    "LAMP3+_DCs": "Dendritic_Cell",
    "Macrophages_1": "Macrophage",
    "Macrophages_2": "Macrophage",
    "Mast_Cells": "Mast_Cell",
    "Myoepi_ACTA2+": "Myoepithelial",
    "Myoepi_KRT15+": "Myoepithelial",
    "Perivascular-Like": "Pericyte",
    "Prolif_Invasive_Tumor": "Epithelial_Malignant",
    "Stromal": "Fibroblast",
    "Stromal_&_T_Cell_Hybrid": "",
    "T_Cell_&_Tumor_Hybrid": "",
    "Unlabeled": "",
}


@pytest.fixture(scope="module")
def ontology() -> Ontology:
    return load_ontology(ONTOLOGY)


@pytest.fixture(scope="module")
def markers() -> pd.DataFrame:
    return load_markers(MARKERS)


def told(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


def written(folder: Path, text: str, name: str = "table") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


# --- the ontology


def test_the_classes_are_the_sixteen_in_order() -> None:
    assert len(CLASSES) == 16
    assert list(CLASSES) == sorted(CLASSES)
    known = {"Acinar": 0, "Ductal": 3, "Endothelial": 5, "Fibroblast": 10, "Macrophage": 11, "T_Cell": 14}
    assert {name: CLASSES.index(name) for name in known} == known


def test_every_class_is_a_cell_type_of_its_own_name_with_a_colour(ontology: Ontology) -> None:
    look = pd.read_csv("resources/classes.tsv", sep="\t")
    assert {name: ontology.class_of(name) for name in CLASSES} == {name: name for name in CLASSES}
    assert look["class"].tolist() == list(CLASSES)
    assert look["colour"].is_unique


@pytest.mark.parametrize("name", list(ORIGINAL))
def test_every_name_of_the_original_keeps_its_class(ontology: Ontology, name: str) -> None:
    raw = pd.Series(ORIGINAL[name].split("; "))
    found = ontology.resolve(raw)
    assert found["class"].tolist() == [name] * len(raw)
    if not name:
        assert (found["note"] != "").all(), "a name that is left out says why"
        assert "unknown label" not in found["note"].tolist()


def test_the_names_of_the_published_breast_study_are_known(ontology: Ontology) -> None:
    found = ontology.resolve(pd.Series(list(BREAST_STUDY)))
    assert found["cell_type"].tolist() == list(BREAST_STUDY.values())


@pytest.mark.parametrize("raw", ["t cells", "T-Cell", "T_CELLS", " T  cell ", "tcell"])
def test_case_blanks_and_plural_do_not_matter(ontology: Ontology, raw: str) -> None:
    assert ontology.resolve(pd.Series([raw]))["cell_type"].tolist() == ["T_Cell"]


def test_resolve_keeps_the_index_and_gives_the_reason(ontology: Ontology) -> None:
    raw = pd.Series(["VEGFA+ Tumor Cells", "Pericyte", "Myeloid", "Somethingelse", None, ""], index=list("abcdef"))
    found = ontology.resolve(raw)
    assert found.index.tolist() == list("abcdef")
    assert found["cell_type"].tolist() == ["Epithelial_Malignant", "Pericyte", "", "", "", ""]
    assert found["class"].tolist() == ["Epithelial_Malignant", "", "", "", "", ""]
    assert found["note"].tolist() == ["", "no class of the study", "too coarse", "unknown label", "", ""]


def test_categories_and_numbers_are_labels_too(ontology: Ontology) -> None:
    assert ontology.resolve(pd.Series(["T Cell"], dtype="category"))["class"].tolist() == ["T_Cell"]
    assert ontology.resolve(pd.Series([7, 7]))["note"].tolist() == ["unknown label"] * 2


def test_unmapped_names_come_with_counts_and_neighbours(ontology: Ontology) -> None:
    raw = pd.Series(["Fibroblazts"] * 2 + ["zzz"] * 5 + ["T Cells", "Myeloid", None])
    table = ontology.unmapped(raw)
    assert table.columns.tolist() == ["raw_label", "cells", "nearest"]
    assert table["raw_label"].tolist() == ["zzz", "Fibroblazts"]
    assert table["cells"].tolist() == [5, 2]
    assert table["nearest"][0] == ""
    assert "Fibroblast" in table["nearest"][1]
    assert len(table["nearest"][1].split("; ")) <= 3


def test_no_unmapped_names_give_an_empty_table(ontology: Ontology) -> None:
    table = ontology.unmapped(pd.Series(["T Cells"]))
    assert table.columns.tolist() == ["raw_label", "cells", "nearest"]
    assert table.empty


def test_all_faults_of_an_ontology_come_at_once(tmp_path: Path) -> None:
    text = """
cell_types:
  T_Cell: {class: T_Cel, lineage: Lymphoid_T, synonyms: [T cells, Lymphocyte]}
  B_Cell: {class: B_Cell, lineage: Lymfoid_B, synonyms: [lymphocytes]}
  Pericyte: {class: null, lineage: Mural}
  Smooth_Muscle: {class: Smooth_Muscle, sinonyms: [SMC]}
  Fibroblast: {lineage: Fibroblast, synonyms: SMC}
left_out:
  Lympho-cyte: mixed
  Unassigned:
"""
    message = told(lambda: load_ontology(written(tmp_path, text)))
    for part in (
        "T_Cell: unknown class 'T_Cel'. Did you mean 'T_Cell'?",
        "B_Cell: unknown lineage 'Lymfoid_B'. Did you mean 'Lymphoid_B'?",
        "Pericyte: a type without a class needs a note that says why",
        "Smooth_Muscle: unknown key 'sinonyms'. Did you mean 'synonyms'?",
        "Smooth_Muscle: the lineage is missing",
        "Fibroblast: the class is missing (null where the study has none)",
        "Fibroblast: synonyms is no list of names",
        "left_out: 'Unassigned' has no reason",
        "'Lymphocyte', 'lymphocytes', 'Lympho-cyte': one name under T_Cell and B_Cell and left_out",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("raw_label\tclass\tnote\nT cells\tT_Cell\t\n", "The ontology has no cell types"),
        ("[]", "The ontology has no cell types"),
        ("left_out: {}", "The ontology has no cell types"),
        ("cell_types: {}", "there is no cell type"),
        ("cell_types: [T_Cell]", "list where names with entries are expected"),
        ("cell_types:\n  A: {}\n  A: {}\n", "The key 'A' stands twice"),
        ("cell_types: {", "A file is not valid YAML"),
    ],
)
def test_a_file_that_is_no_ontology_is_told(tmp_path: Path, text: str, part: str) -> None:
    file = written(tmp_path, text)
    message = told(lambda: load_ontology(file))
    assert part in message
    assert str(file) in message


def test_a_missing_ontology_names_the_key(tmp_path: Path) -> None:
    assert "check the key 'ontology'" in told(lambda: load_ontology(tmp_path / "none.yaml"))


# --- the marker table


def test_every_class_and_type_of_the_table_has_enough_markers(markers: pd.DataFrame) -> None:
    positive = markers[markers["sign"] == "positive"].groupby("cell_type").size()
    assert set(CLASSES) <= set(positive.index)
    assert (positive >= 5).all(), positive[positive < 5].to_dict()
    negative = markers[markers["sign"] == "negative"].groupby("cell_type").size()
    assert (negative.reindex(positive.index).fillna(0) >= 4).all()


@pytest.mark.parametrize("organ", ORGANS)
def test_every_organ_has_the_lineages_that_any_section_holds(markers: pd.DataFrame, organ: str) -> None:
    held = set(rows_of(markers, organ)["cell_type"])
    everywhere = {"T_Cell", "NK_Cell", "B_Cell", "Plasma_Cell", "Macrophage", "Monocyte", "Neutrophil", "Mast_Cell"}
    everywhere |= {"Dendritic_Cell", "Plasmacytoid_Dendritic_Cell", "Endothelial", "Lymphatic_Endothelial", "Pericyte"}
    everywhere |= {"Smooth_Muscle", "Fibroblast", "Adipocyte", "Erythrocyte", "Schwann_Cell"}
    own = {
        "breast": {"Epithelial_Luminal_Progenitor", "Epithelial_Luminal_Mature", "Myoepithelial"},
        "colon": {"Enterocyte", "Goblet_Cell", "Enteroendocrine_Cell"},
        "heart": {"Cardiomyocyte"},
        "kidney": {"Kidney_Proximal_Tubule", "Kidney_Distal_Nephron", "Podocyte"},
        "liver": {"Hepatocyte", "Cholangiocyte"},
        "lung": {"Epithelial_Airway", "Epithelial_Alveolar"},
        "ovary": {"Granulosa_Cell", "Epithelial_Fallopian"},
        "pancreas": {"Acinar", "Ductal", "Endocrine"},
    }
    assert everywhere | own[organ] <= held
    assert ("Epithelial_Malignant" in held) == (organ != "heart")


def test_a_negative_marker_is_a_positive_one_of_the_types_it_names(markers: pd.DataFrame) -> None:
    positive = {name: set(rows["gene"]) for name, rows in markers[markers["sign"] == "positive"].groupby("cell_type")}
    for row in markers[markers["sign"] == "negative"].to_dict("records"):
        if row["gene"] == "PTPRC":
            assert row["source"].startswith("CD45")
            continue
        assert row["source"].startswith("marker of "), row
        for other in row["source"].removeprefix("marker of ").split(", "):
            assert row["gene"] in positive[other], f"{row['gene']} is no marker of {other}"


def test_a_source_is_a_panel_a_paper_or_the_type_that_has_the_gene(markers: pd.DataFrame) -> None:
    paper = re.compile(r".+, .+ \d{4}( \(.+\))?(; on the 10x .+ panel)?$")
    panel = re.compile(r"10x .+ panel: .+$")
    for source in markers.loc[markers["sign"] == "positive", "source"]:
        assert panel.match(source) or paper.match(source), source


def test_every_panel_that_a_source_names_says_so(markers: pd.DataFrame, real_data: Path) -> None:
    folder = real_data / "xenium_panels_10x" / "reference_panels"
    annotations = {title: annotated(folder / f"{stem}.csv") for title, stem in PANELS.items()}
    checked = 0
    for row in markers.to_dict("records"):
        gene, source = row["gene"], row["source"]
        if match := re.fullmatch(r"10x (.+) panel: (.+)", source):
            title, annotation = match.groups()
            assert annotation in annotations[title].get(gene, []), f"{gene}: {source}"
            checked += 1
        elif match := re.search(r"; on the 10x (.+) panel$", source):
            assert gene in annotations[match[1]], f"{gene}: {source}"
            checked += 1
    assert checked > 300


def annotated(file: Path) -> dict[str, list[str]]:
    """Return a panel's annotations by gene; the headers differ from panel to panel."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.reader(stream))
    head = [name.casefold() for name in rows[0]]
    gene = next(head.index(name) for name in ("gene", "genes", "gene_name") if name in head)
    note = next(head.index(name) for name in ("cell_type", "cell types", "annotation") if name in head)
    return {row[gene]: [part.strip() for part in row[note].split(";")] for row in rows[1:] if row}


def test_all_faults_of_a_marker_table_come_at_once(tmp_path: Path) -> None:
    rows = [
        "T_Cel\tCD3E\tpositive\t*\tx",
        "T_Cell\tCD3D\tplus\tlungs\tx",
        "T cells\tCD2\tpositive\t*\tx",
        "T_Cell\tCD3G\tpositive\t*\t",
        "B_Cell\tCD19\tpositive\t*\tx",
        "B_Cell\tCD19\tnegative\t*\tx",
        "B_Cell\tCD79A\tpositive\tlung,*\tx",
        "B_Cell\tCD79B\tpositive\tlung,lung\tx",
        "B_Cell\tCD79B\tpositive\tlung\tx",
    ]
    file = written(tmp_path, HEAD + "\n".join(rows))
    message = told(lambda: load_markers(file))
    for part in (
        str(file),
        "row 2: unknown cell type 'T_Cel'. Did you mean 'T_Cell'?",
        "row 3: sign 'plus' is neither 'positive' nor 'negative'",
        "row 3: unknown organ 'lungs'. Did you mean 'lung'?",
        "row 4: unknown cell type 'T cells'. Did you mean 'T_Cell'?",
        "row 5: source is empty",
        "row 7: CD19 of B_Cell stands in row 6 already, there as positive, here as negative",
        "row 8: organs 'lung,*': '*' means all organs and stands alone",
        "row 9: organ 'lung' stands twice",
        "row 10: CD79B of B_Cell stands in row 9 already",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("class\tgene\tsign\torgans\tsource\n", "add cell_type"),
        ("cell_type,gene,sign,organs,source\n", "separate the columns by tabs"),
        ("", "The marker table cannot be read"),
        (HEAD, "there is no row"),
    ],
)
def test_a_file_that_is_no_marker_table_is_told(tmp_path: Path, text: str, part: str) -> None:
    assert part in told(lambda: load_markers(written(tmp_path, text)))


def test_a_table_of_the_users_is_added_and_wins(tmp_path: Path, markers: pd.DataFrame) -> None:
    rows = "T_Cell\tCD3E\tpositive\tlung\tmine\nNeutrophil\tG0S2\tpositive\t*\tmine\n"
    both = load_markers(MARKERS, written(tmp_path, HEAD + rows))
    assert len(both) == len(markers) + 1
    mine = both[both["source"] == "mine"]
    assert mine["gene"].tolist() == ["CD3E", "G0S2"]
    assert ((both["cell_type"] == "T_Cell") & (both["gene"] == "CD3E")).sum() == 1


def test_the_table_that_comes_along_for_own_markers_is_empty_and_teaches(tmp_path: Path, markers: pd.DataFrame) -> None:
    own = Path("config/markers.tsv")
    pd.testing.assert_frame_equal(load_markers(MARKERS, own), markers)
    example = re.search(r"^# (T_Cell\t.*)$", own.read_text(encoding="utf-8"), re.MULTILINE)
    assert example is not None
    with_example = own.read_text(encoding="utf-8") + example[1] + "\n"
    both = load_markers(MARKERS, written(tmp_path, with_example))
    assert len(both) == len(markers) + 1, "the example adds nothing"


@pytest.mark.parametrize(
    "text",
    [
        "# a note\twith tabs\n\n" + HEAD + "# T_Cell\tCD3D\tup\n{}\n",
        '"# as a ""spreadsheet"" writes it"\t\t\t\t\n' + HEAD[:-1] + "\t\n{}\t\t\n\t\t\t\t\n",
        "\ufeff" + (HEAD + "{}\n").replace("\n", "\r\n"),
    ],
)
def test_notes_and_what_spreadsheets_add_are_no_rows(tmp_path: Path, markers: pd.DataFrame, text: str) -> None:
    row = 'Neutrophil\tG0S2\tpositive\t"breast,lung"\tmine # sure'
    both = load_markers(MARKERS, written(tmp_path, text.format(row)))
    assert len(both) == len(markers) + 1
    assert both.iloc[-1].tolist() == ["Neutrophil", "G0S2", "positive", "breast,lung", "mine # sure"]


def test_rows_are_told_by_their_line_in_the_file(tmp_path: Path) -> None:
    file = written(
        tmp_path, "# note\n\n" + HEAD + "# note\nT_Cel\tCD3E\tpositive\t*\tx\nT_Cell\tCD2\tno\t*\n", "own.tsv"
    )
    message = told(lambda: load_markers(MARKERS, file))
    assert "own.tsv, row 5: unknown cell type 'T_Cel'" in message
    assert "own.tsv, row 6: source is empty; own.tsv, row 6: sign 'no'" in message
    assert "a type of your own needs an entry in the ontology first (key 'ontology')" in message
    long = written(tmp_path, HEAD + "T_Cell\tCD2\tpositive\t*\tx\ty\n", "own.tsv")
    assert "row 2: 6 values in 5 columns" in told(lambda: load_markers(MARKERS, long))


def test_a_fault_in_either_table_names_its_file(tmp_path: Path) -> None:
    one = written(tmp_path, HEAD + "T_Cel\tCD3E\tpositive\t*\tx\n", "one.tsv")
    two = written(tmp_path, HEAD + "T_Cell\tCD3E\tno\t*\tx\n", "two.tsv")
    message = told(lambda: load_markers(one, two))
    assert "one.tsv, row 2: unknown cell type 'T_Cel'" in message
    assert "two.tsv, row 2: sign 'no'" in message
    assert "labels.extra_markers" in told(lambda: load_markers(MARKERS, tmp_path / "none.tsv"))


def test_types_of_an_own_ontology_can_have_markers(tmp_path: Path) -> None:
    own = written(tmp_path, "cell_types:\n  Nerve: {class: null, lineage: Neural, note: mine}\n", "own.yaml")
    table = written(tmp_path, HEAD + "Nerve\tPLP1\tpositive\t*\tmine\n")
    assert load_markers(table, ontology=own)["cell_type"].tolist() == ["Nerve"]
    assert "unknown cell type 'Nerve'" in told(lambda: load_markers(table))


# --- what a panel makes of it


def table_of(*rows: str) -> pd.DataFrame:
    return pd.DataFrame([row.split() for row in rows], columns=["cell_type", "gene", "sign", "organs"])


def test_the_panel_decides_which_types_can_be_found(markers: pd.DataFrame) -> None:
    found, absent = marker_sets(markers, "lung", ["CD3E", "CD3D", "CD2", "MS4A1", "SFTPC"])
    assert [m.name for m in found] == ["T_Cell"]
    assert set(found[0].positive) == {"CD3E", "CD3D", "CD2"}
    assert found[0].negative == ("MS4A1",)
    assert absent["B_Cell"] == "the panel holds 1 of its markers; 3 are needed"
    assert absent["Acinar"] == "does not occur in lung"
    assert set(absent) | {"T_Cell"} == set(markers["cell_type"])


def test_a_row_counts_only_in_its_own_organs() -> None:
    rows = [f"A {gene} positive *" for gene in "abc"] + ["A d positive lung,liver", "A e negative colon"]
    table = table_of(*rows)
    in_lung, _ = marker_sets(table, "lung", list("abcde"))
    in_colon, _ = marker_sets(table, "colon", list("abcde"))
    assert (in_lung[0].positive, in_lung[0].negative) == (("a", "b", "c", "d"), ())
    assert (in_colon[0].positive, in_colon[0].negative) == (("a", "b", "c"), ("e",))


def test_types_that_share_too_much_are_not_both_candidates() -> None:
    rows = [f"A {gene} positive *" for gene in "abcdx"] + [f"B {gene} positive *" for gene in "abcdyz"]
    found, absent = marker_sets(table_of(*rows), "lung", list("abcdxyz"))
    assert [m.name for m in found] == ["B"]
    assert absent == {"A": "the panel cannot tell it from B, which lacks 1 of its markers; 2 are needed"}
    found, _ = marker_sets(table_of(*rows, "A w positive *"), "lung", list("abcdxyzw"))
    assert [m.name for m in found] == ["A", "B"]


def test_of_two_that_share_all_the_one_with_more_markers_in_the_table_stays() -> None:
    rows = [f"A {gene} positive *" for gene in "abc"] + [f"B {gene} positive *" for gene in "abcd"]
    found, absent = marker_sets(table_of(*rows), "lung", list("abc"))
    assert [m.name for m in found] == ["B"]
    assert list(absent) == ["A"]


@pytest.mark.parametrize("organ", ["breast", "lung", "colon"])
def test_the_panel_of_an_organ_finds_its_types(markers: pd.DataFrame, real_data: Path, organ: str) -> None:
    file = real_data / "xenium_panels_10x" / "reference_panels" / f"h{organ.capitalize()}.csv"
    found, _ = marker_sets(markers, organ, list(annotated(file)))
    sets = {m.name: m for m in found}
    own = {
        "breast": {"Epithelial_Luminal_Progenitor", "Epithelial_Luminal_Mature", "Myoepithelial", "Pericyte"},
        "lung": {"Epithelial_Airway", "Epithelial_Alveolar", "Mesothelial_Cell", "Pericyte", "Endothelial"},
        "colon": {"Enterocyte", "Goblet_Cell", "Enteroendocrine_Cell", "Tuft_Cell"},
    }
    immune = {"T_Cell", "NK_Cell", "B_Cell", "Plasma_Cell", "Macrophage", "Monocyte", "Dendritic_Cell", "Mast_Cell"}
    assert own[organ] | immune | {"Epithelial_Malignant"} <= set(sets)
    assert all(len(m.positive) >= MIN_POSITIVE for m in found)


# --- another species


@pytest.mark.parametrize("panel", ["mMulti", "mBrain", "mPrime5K"])
def test_a_mouse_panel_is_told_from_a_human_one(markers: pd.DataFrame, real_data: Path, panel: str) -> None:
    genes = pd.read_csv(real_data / "xenium_panels_10x" / "reference_panels" / f"{panel}.csv")["gene"].tolist()
    message = told(lambda: check_species(genes, markers, "mouse.csv"))
    assert message.startswith("The panel looks like one of another species\n  where:      mouse.csv")
    assert "0 are spelt as in the marker table" in message


@pytest.mark.parametrize("panel", [*PANELS.values(), "hBrain"])
def test_a_human_panel_passes(markers: pd.DataFrame, real_data: Path, panel: str) -> None:
    check_species(list(annotated(real_data / "xenium_panels_10x" / "reference_panels" / f"{panel}.csv")), markers)


def test_few_odd_names_are_no_other_species(markers: pd.DataFrame) -> None:
    check_species(["CD3E", "CD19", "Cd4", "C1orf54", "mCherry"], markers)
    check_species(["GFAP", "RBFOX3"], markers)
    check_species(["Xyza", "Abcq", "Qwer"], markers)
    assert "such as Cd3e, Ms4a1; 0 are" in told(lambda: check_species(["Cd3e", "Ms4a1", "Xyz"], markers))
