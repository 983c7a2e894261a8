"""What each slide's panel can tell is known before any cell is labelled, and laid out for all slides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nuclass.core.errors import UserError
from nuclass.core.files import write_json
from nuclass.labels.markers import load_markers
from nuclass.labels.ontology import load_ontology
from nuclass.labels.panel_check import check_panel, judge_panel
from nuclass.tables.labelling import panel_classes
from nuclass.tables.layout import EMPTY
from table_example import follows_the_sheet, lay_out

TABLES = {"markers": "resources/markers/markers.tsv", "ontology": "resources/label_ontology.yaml"}
T, B = ["CD3E", "CD3D", "CD2", "TRAC", "IL7R", "CD247"], ["MS4A1", "CD79A", "CD79B", "CD19", "BANK1", "TCL1A"]
ENDOTHELIUM = ["VWF", "CDH5", "CLDN5"]


def bundle(folder: Path, genes: list[str]) -> Path:
    """Write a folder that holds nothing but the panel."""
    folder.mkdir()
    targets = [{"type": {"descriptor": "gene", "data": {"name": gene, "id": gene}}} for gene in genes]
    write_json(folder / "gene_panel.json", {"payload": {"targets": targets}})
    return folder


def check(folder: Path, genes: list[str], **other: Any) -> pd.DataFrame:
    out = folder / "panel.csv"
    wanted = {"bundle": bundle(folder / "b", genes), **TABLES, "extra_markers": None, "organ": "breast", "out": out}
    check_panel(**{**wanted, **other})
    return pd.read_csv(out, keep_default_na=False).set_index("cell_type")


def test_the_genes_of_the_bundle_decide(tmp_path: Path) -> None:
    table = check(tmp_path, [*T, *B])
    assert table.loc[["T_Cell", "B_Cell"], "verdict"].tolist() == ["can be told"] * 2
    assert table.loc["Fibroblast", "verdict"] == "cannot be found"


def test_own_markers_count(tmp_path: Path) -> None:
    own = tmp_path / "own.tsv"
    rows = "".join(f"Adipocyte\tGENE{k}\tpositive\t*\tmine\n" for k in range(5))
    own.write_text("cell_type\tgene\tsign\torgans\tsource\n" + rows, encoding="utf-8")
    table = check(tmp_path, [*T, *B, *(f"GENE{k}" for k in range(5))], extra_markers=own)
    assert table.loc["Adipocyte", "verdict"] == "can be told"


def test_a_type_that_is_left_out_is_neither_judged_nor_a_rival() -> None:
    ontology, markers = load_ontology(TABLES["ontology"]), load_markers(TABLES["markers"])
    genes = sorted(set(markers["gene"]))
    whole = judge_panel(genes, markers, ontology, "breast").set_index("cell_type")
    rival = whole.loc["Endothelial", "rival"]
    part = judge_panel(genes, markers, ontology, "breast", [rival]).set_index("cell_type")
    assert rival not in part.index
    assert part.loc["Endothelial", "rival"] not in ("", rival)
    with pytest.raises(UserError, match=r"Fibroblas\. Did you mean 'Fibroblast'"):
        judge_panel(genes, markers, ontology, "breast", ["Fibroblas"])


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        (["GENE1", "GENE2"], "The panel cannot tell cell types apart"),
        ([g.capitalize() for g in [*T, *B, *ENDOTHELIUM]] * 2, "The panel looks like one of another species"),
    ],
)
def test_a_panel_that_markers_cannot_label_is_told_at_once(tmp_path: Path, genes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(tmp_path, genes)
    assert not (tmp_path / "panel.csv").exists()
    (tmp_path / "given").mkdir()
    table = check(tmp_path / "given", genes, source="given")
    assert set(table["verdict"]) == {"cannot be found"}, "given labels need no markers"


def test_the_table_of_all_slides(tmp_path: Path) -> None:
    files, organs = {}, {"a": "breast", "b": "breast", "c": "heart"}
    for slide, genes in (("a", [*T, *B]), ("b", [*T, *B, *ENDOTHELIUM]), ("c", [*T, *B])):
        (tmp_path / slide).mkdir()
        check(tmp_path / slide, genes, organ=organs[slide])
        files[slide] = tmp_path / slide / "panel.csv"
    text = lay_out(panel_classes(files, organs=organs), tmp_path / "panels")
    table = pd.read_csv(tmp_path / "panels.csv", keep_default_na=False)
    assert len(table) == sum(len(pd.read_csv(file)) for file in files.values())
    assert table.groupby("slide")["organ"].unique().map(list).to_dict() == {s: [o] for s, o in organs.items()}
    assert "| T Cell | yes | yes | yes |" in text
    assert "| Endothelial | no | weak | no |" in text
    assert "| a | Endothelial | cannot be found |" in text
    assert "| b | Endothelial | weak | only 3 markers" in text
    assert f"| Epithelial Malignant | no | no | {EMPTY} |" in text, "does not occur in the heart"
    names = ["T_Cell", "Endothelial", "B_Cell"]
    assert follows_the_sheet(lambda sheet: panel_classes(files, organs=organs, classes=sheet), tmp_path, names)
    assert "Epithelial Alveolar" not in text, "a class that occurs in no organ of the study has no row"
