"""What a panel can tell apart: the verdicts, the files a panel is read from, and the command that prints it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from nuclass.cli_panel import add_panel
from nuclass.core.errors import UserError
from nuclass.labels.coverage import VERDICTS, class_coverage, panel_coverage
from nuclass.labels.markers import load_markers
from nuclass.labels.ontology import CellType, Ontology, load_ontology
from nuclass.labels.panel_files import read_panel

GROUPS = {
    "T cells": {"T_Cell"},
    "B cells": {"B_Cell"},
    "plasma cells": {"Plasma_Cell"},
    "macrophages": {"Macrophage"},
    "other myeloid cells": {"Monocyte", "Plasmacytoid_Dendritic_Cell", "Dendritic_Cell"},
    "malignant epithelium": {"Epithelial_Malignant"},
    "normal epithelium": {"Epithelial_Luminal_Progenitor", "Epithelial_Luminal_Mature", "Myoepithelial"},
    "fibroblasts": {"Fibroblast"},
    "endothelium": {"Endothelial"},
}


@pytest.fixture(scope="module")
def ontology() -> Ontology:
    return load_ontology("resources/label_ontology.yaml")


@pytest.fixture(scope="module")
def markers() -> pd.DataFrame:
    return load_markers("resources/markers/markers.tsv")


def toy(**types: str) -> tuple[pd.DataFrame, Ontology]:
    """Return a marker table and an ontology; each type's genes are letters, the negative ones after a minus."""
    rows = []
    for name, letters in types.items():
        positive, _, negative = letters.partition("-")
        rows += [
            (name, gene, sign, "*") for sign, part in (("positive", positive), ("negative", negative)) for gene in part
        ]
    kinds = {name: CellType(name, "", "Myeloid", "toy") for name in types}
    return pd.DataFrame(rows, columns=["cell_type", "gene", "sign", "organs"]), Ontology(kinds, {}, {})


def verdicts(table: pd.DataFrame, ontology: Ontology, genes: str) -> dict[str, tuple[str, str]]:
    frame = panel_coverage(table, ontology, "lung", list(genes)).set_index("cell_type")
    return {str(name): (row["verdict"], row["rival"]) for name, row in frame.iterrows()}


def told(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("group", list(GROUPS))
def test_the_breast_panel_tells_the_groups_of_a_breast_section(
    markers: pd.DataFrame, ontology: Ontology, real_data: Path, group: str
) -> None:
    genes = read_panel(real_data / "xenium_panels_10x" / "Xenium_hBreast_v1_metadata.csv")
    frame = panel_coverage(markers, ontology, "breast", genes).set_index("cell_type")
    assert "can be told" in frame.loc[sorted(GROUPS[group]), "verdict"].tolist()


def test_the_colon_panel_is_known_to_lack_stroma(markers: pd.DataFrame, ontology: Ontology, real_data: Path) -> None:
    genes = read_panel(real_data / "xenium_panels_10x" / "reference_panels" / "hColon.csv")
    coverage = panel_coverage(markers, ontology, "colon", genes)
    classes = class_coverage(coverage).set_index("class")["verdict"]
    assert classes["Fibroblast"] == classes["Endothelial"] == classes["Smooth_Muscle"] == "cannot be found"
    assert classes["T_Cell"] == "can be told"
    assert "Acinar" not in classes.index


def test_verdicts_follow_the_stated_thresholds() -> None:
    table, ontology = toy(Many="abcde", Few="fghi", Least="jkl", Poor="mn", Base="opqrst", Close="opqru")
    found = verdicts(table, ontology, "abcdefghijklmnopqrstu")
    assert found["Many"][0] == "can be told"
    assert found["Few"][0] == found["Least"][0] == "weak"
    assert found["Poor"] == ("cannot be found", "")
    assert found["Close"] == ("cannot be told from Base", "Base")
    assert found["Base"] == ("weak", "Close")


def test_a_type_that_is_left_out_keeps_no_gene_from_being_anothers_own() -> None:
    table, ontology = toy(Base="opqrst", Close="opqru")
    frame = panel_coverage(table, ontology, "lung", list("opqrstu")).set_index("cell_type")
    assert frame.loc["Base", "own_genes"] == "o, p, q, r, s, t"
    assert frame.loc["Close", "own_genes"] == "u"


def test_the_rival_lacks_fewest_of_the_markers_and_the_genes_that_tell_are_named() -> None:
    table, ontology = toy(One="abcdefg-xh", Kin="abcdhij", Far="axyzvw")
    frame = panel_coverage(table, ontology, "lung", list("abcdefghijxyzvw")).set_index("cell_type")
    assert frame.loc["One", "rival"] == "Kin"
    assert frame.loc["One", "for"] == "e, f, g"
    assert frame.loc["One", "against"] == "h"
    assert frame.loc["One", "telling"] == 4
    assert frame.loc["One", "own_genes"] == "e, f, g"
    assert frame.loc["One", "verdict"] == "can be told"


def test_a_type_with_two_genes_against_its_rival_is_weak() -> None:
    table, ontology = toy(One="abcdef", Kin="abcdghi")
    frame = panel_coverage(table, ontology, "lung", list("abcdefghi")).set_index("cell_type")
    assert frame.loc["One", ["verdict", "why"]].tolist() == ["weak", "only e, f against Kin"]
    assert frame.loc["Kin", "verdict"] == "can be told"


def test_only_genes_of_the_panel_count(markers: pd.DataFrame, ontology: Ontology) -> None:
    frame = panel_coverage(markers, ontology, "lung", ["CD3E", "CD3D", "MS4A1", "NOTHING"]).set_index("cell_type")
    assert frame.loc["T_Cell", ["positive", "genes", "verdict"]].tolist() == [2, "CD3E, CD3D", "cannot be found"]
    assert frame.loc["T_Cell", "why"] == "the panel holds 2 of its markers; 3 are needed"
    assert set(frame["verdict"]) == {"cannot be found"}


def test_rows_come_best_verdict_first(markers: pd.DataFrame, ontology: Ontology) -> None:
    genes = sorted(set(markers["gene"]))[::3]
    ranks = [
        next(i for i, v in enumerate(VERDICTS) if verdict.startswith(v))
        for verdict in panel_coverage(markers, ontology, "lung", genes)["verdict"]
    ]
    assert ranks == sorted(ranks)


def test_an_organ_that_is_none_is_told(markers: pd.DataFrame, ontology: Ontology) -> None:
    assert "Did you mean 'lung'?" in told(lambda: panel_coverage(markers, ontology, "lungs", []))


# --- files of a panel

WANTED = ["CD3E", "MS4A1", "EPCAM"]


def targets(*names: str) -> str:
    genes = [{"type": {"descriptor": "gene", "data": {"id": "ENSG0", "name": name}}} for name in names]
    control = {"type": {"descriptor": "negative_control_probe", "data": {"name": "NegControl"}}}
    return json.dumps({"payload": {"targets": [*genes, control]}})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "Genes,Ensembl_ID,Annotation\nCD3E,ENSG1,T\nMS4A1,ENSG2,B\nEPCAM,ENSG3,E\n"),
        ("a.csv", "\ufeffgene_name,gene_id\r\nCD3E,ENSG1\r\nMS4A1,ENSG2\r\nEPCAM,ENSG3\r\n"),
        ("a.tsv", "id\tGene Symbol\n1\tCD3E\n2\tMS4A1\n3\tEPCAM\n4\tCD3E\n"),
        ("a.txt", "CD3E\nMS4A1\n\nEPCAM\n"),
        ("a.txt", "gene\nCD3E\nMS4A1\nEPCAM"),
        ("gene_panel.json", targets(*WANTED)),
    ],
)
def test_a_panel_is_read_from_any_of_its_files(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_bytes(text.encode())
    assert read_panel(file) == WANTED


def test_every_real_panel_is_read(real_data: Path) -> None:
    folder = real_data / "xenium_panels_10x"
    sizes = pd.read_csv(folder / "reference_panels" / "manifest.csv").set_index("file")["n_genes"]
    for name, size in sizes.items():
        assert len(read_panel(folder / "reference_panels" / str(name))) == size, name
    assert len(read_panel(folder / "Xenium_hBreast_v1_metadata.csv")) == 280
    assert len(read_panel(real_data / "xenium_v3.0.0_mouse_ileum_tiny")) == 5006


def test_a_bundle_and_a_matrix_give_their_genes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "cell_feature_matrix.h5", "w") as stream:
        names = [*WANTED, "NegControlProbe_1"]
        types = ["Gene Expression"] * 3 + ["Negative Control Probe"]
        for key, values in (("id", names), ("name", names), ("feature_type", types)):
            stream[f"matrix/features/{key}"] = np.array(values, dtype="S")
    assert read_panel(tmp_path) == WANTED
    assert read_panel(tmp_path / "cell_feature_matrix.h5") == WANTED
    (tmp_path / "gene_panel.json").write_text(targets("CD3E"), encoding="utf-8")
    assert read_panel(tmp_path) == ["CD3E"]


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("a.csv", "name,id\nCD3E,1\n", "found:      columns name, id"),
        ("a.csv", "", "The panel holds no gene"),
        ("a.csv", "gene,id\n", "The panel holds no gene"),
        ("a.csv", "gene\nENSG00000198851\nENSG00000156738\n", "2 of 2, such as ENSG00000198851"),
        ("a.json", "{}", "found:      no 'payload'"),
        ("a.json", "[1]", "The gene panel has an unknown layout"),
        ("a.json", "{", "A file is not valid JSON"),
        ("a.h5ad", "no HDF5", "The matrix cannot be read"),
    ],
)
def test_a_file_that_is_no_panel_is_told(tmp_path: Path, name: str, text: str, part: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    message = told(lambda: read_panel(file))
    assert part in message
    assert str(file) in message


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    assert "The panel is missing" in told(lambda: read_panel(tmp_path / "none.csv"))
    assert "gene_panel.json or cell_feature_matrix.h5 in it" in told(lambda: read_panel(tmp_path))
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00g")
    assert "The panel is not text" in told(lambda: read_panel(tmp_path / "a.csv"))


# --- the command


def run(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    add_panel(parser.add_subparsers())
    options = parser.parse_args(["panel", *map(str, arguments)])
    options.run(options)


@pytest.fixture
def setting(tmp_path: Path) -> Path:
    file = tmp_path / "setting.yaml"
    file.write_text("ontology: resources/label_ontology.yaml\n", encoding="utf-8")
    return file


def test_the_command_prints_and_writes(tmp_path: Path, setting: Path, capsys: pytest.CaptureFixture[str]) -> None:
    panel = tmp_path / "panel.txt"
    panel.write_text("\n".join(["CD3E", "CD3D", "CD3G", "CD2", "TRAC", "MS4A1", "CD79A", "CD79B"]), encoding="utf-8")
    for suffix in ("csv", "md"):
        run(panel, "--organ", "lung", "--genes", "--out", tmp_path / f"out.{suffix}", "--configfile", setting)
    printed = capsys.readouterr().out
    assert f"{panel}: 8 genes, 8 of them markers; lung" in printed
    row = next(line for line in printed.splitlines() if line.startswith("T_Cell "))
    assert row.split()[:6] == ["T_Cell", "T_Cell", "5", "can", "be", "told"]
    assert "  T_Cell: CD3E*, CD3D*, CD3G*, CD2*, TRAC*" in printed
    assert "Of the 12 classes of the study that occur here, 1 can be told." in printed
    assert "  Macrophage: cannot be found: the panel holds 0 of its markers; 3 are needed" in printed
    frame = pd.read_csv(tmp_path / "out.csv", keep_default_na=False).set_index("cell_type")
    assert frame.loc["B_Cell", ["positive", "verdict", "why"]].tolist() == [3, "weak", "only 3 markers"]
    lines = (tmp_path / "out.md").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("| cell_type | class |")
    assert len(lines) == len(frame) + 2
    assert {line.count("|") for line in lines} == {lines[0].count("|")}


def test_own_markers_count_in_the_command(tmp_path: Path, setting: Path, capsys: pytest.CaptureFixture[str]) -> None:
    panel, own = tmp_path / "panel.txt", tmp_path / "own.tsv"
    panel.write_text("NEWA\nNEWB\nNEWC\nNEWD\nNEWE\n", encoding="utf-8")
    rows = "".join(f"Podocyte\tNEW{letter}\tpositive\t*\tmine\n" for letter in "ABCDE")
    own.write_text("cell_type\tgene\tsign\torgans\tsource\n" + rows, encoding="utf-8")
    run(panel, "--organ", "lung", "--markers", own, "--configfile", setting)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Podocyte"))
    assert "can be told" in line


def test_a_wrong_ending_of_the_output_is_told(tmp_path: Path, setting: Path) -> None:
    message = told(lambda: run(tmp_path, "--organ", "lung", "--out", "a.xlsx", "--configfile", setting))
    assert "a file that ends in .csv or .md" in message


def test_a_mouse_panel_is_told_by_the_command(real_data: Path, setting: Path) -> None:
    bundle = real_data / "xenium_v3.0.0_mouse_ileum_tiny"
    message = told(lambda: run(bundle, "--organ", "colon", "--configfile", setting))
    assert message.startswith("The panel looks like one of another species")
    assert str(bundle) in message
