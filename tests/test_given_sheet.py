"""The columns labels and given of the sheet of slides, and the published labels that are fetched with a slide."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bundle_example import example
from http_server import Server, serve
from nuclass.core.errors import UserError
from nuclass.core.files import read_json, sha256
from nuclass.core.slides_sheet import read_slides
from nuclass.labels.given import check_given
from nuclass.synthetic.bundle import write_bundle
from nuclass.xenium.fetch import fetch_slide, missing_files
from nuclass.xenium.registry import Address, Dataset, RemoteFile, read_registry
from nuclass.xenium.remote import HttpSettings
from nuclass.xenium.slide_folder import local_inputs

REPOSITORY = Path(__file__).parent.parent
SCHEMA = yaml.safe_load((REPOSITORY / "config/schemas/slides.schema.yaml").read_text(encoding="utf-8"))
GROUPS = "cell_id,group,color\na-1,T Cells,#fff\n"
QUICK = HttpSettings(timeout_s=0.5, attempts=2, pause_s=0.01)
DATASET = {"slide": "s", "source": "dataset", "dataset": "X"}
KINDS = {
    "outs": "X_outs.zip",
    "he": "X_he_image.ome.tif",
    "alignment": "X_he_imagealignment.csv",
    "cell_groups": "X_cell_groups.csv",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A study with an output and its labels beside it, one without, and labels elsewhere."""
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        for name in ("experiment.xenium", "cells.parquet", "cell_feature_matrix.h5", "nucleus_boundaries.parquet"):
            (tmp_path / place / name).touch()
        (tmp_path / place / "X_he_image.ome.tif").touch()
    (tmp_path / "a/X_cell_groups.csv").write_text(GROUPS, encoding="utf-8")
    (tmp_path / "mine.csv").write_text("cell_id,cluster,cell_type\na-1,2,T Cells\n", encoding="utf-8")
    (tmp_path / "resources").mkdir()
    for name in ("datasets.tsv", "dataset_files.tsv"):
        (tmp_path / "resources" / name).write_bytes((REPOSITORY / "resources" / name).read_bytes())
    return tmp_path


def faults(root: Path, mode: str = "markers", **values: str) -> str:
    """Return what is said of a sheet whose first slide has these values."""
    first = {"slide": "s", "organ": "ovary", "role": "train", "patient": "p", "source": "local", "alignment": "grid"}
    second = {"slide": "breast_1", "organ": "breast", "role": "cohort", "patient": "q", "source": "synthetic"}
    columns = list(SCHEMA["properties"])
    lines = ["\t".join(columns)] + [
        "\t".join(row.get(name, "") for name in columns) for row in ({**first, **values}, second)
    ]
    (root / "slides.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _, found = read_slides(root, "slides.tsv", SCHEMA, labels=mode, read_given=check_given)
    return "\n".join(map(str, found))


OVARY = {"source": "dataset", "dataset": "Xenium_Prime_Ovarian_Cancer_FFPE_XRrun"}
KIDNEY = {"source": "dataset", "dataset": "Xenium_V1_hKidney_cancer_section"}
SYNTHETIC = {"source": "synthetic", "alignment": ""}


@pytest.mark.parametrize(
    ("mode", "values"),
    [
        ("markers", {"path": "b"}),
        ("given_then_markers", {"path": "b"}),
        ("given", {"path": "a"}),
        ("given", {"path": "b", "labels": "markers"}),
        ("given", {"path": "b", "given": "mine.csv::cell_id,cell_type"}),
        ("markers", {"path": "a", "given": "mine.csv::cell_id,cell_type"}),
        ("markers", {"path": "a", "given": "none"}),
        ("markers", {**OVARY, "labels": "given_then_markers"}),
        ("markers", {**KIDNEY, "path": "a", "labels": "given"}),
        ("markers", {**SYNTHETIC, "given": "none"}),
        ("given_then_markers", SYNTHETIC),
    ],
)
def test_places_of_labels(root: Path, mode: str, values: dict[str, str]) -> None:
    assert faults(root, mode, **values) == ""


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"path": "b", "labels": "given"},
            [
                "no given labels are known for a slide\n",
                "found:      labels 'given', and no *_cell_groups.csv beside the Xenium output\n",
                "expected:   the file of the labels in the column 'given'\n",
                "to mend it: fill the column 'given', or set 'labels' to markers",
            ],
        ),
        ({"path": "b", "labels": "given_then_markers"}, ["labels 'given_then_markers', and no *_cell_groups.csv"]),
        ({"path": "a", "labels": "given", "given": "none"}, ["labels 'given', and given 'none'"]),
        ({**KIDNEY, "labels": "given"}, ["labels 'given', and no address of cell_groups"]),
        ({**SYNTHETIC, "labels": "given"}, ["a synthetic slide without published labels; they come with breast_1"]),
        ({"path": "a", "given": "gone.csv"}, ["the file of column 'given' is missing\n", "found:      gone.csv\n"]),
        ({"path": "a", "given": "mine.csv::a"}, ["the place of given labels cannot be understood\n", "mine.csv::a\n"]),
        ({"path": "a", "given": "mine.csv"}, ["the columns of given labels are not clear\n", "(cluster, cell_type)"]),
        ({"path": "a", "labels": "marker"}, ["column labels is not valid. Did you mean 'markers'?"]),
        ({**SYNTHETIC, "given": "mine.csv"}, ["a synthetic slide takes no given\n"]),
    ],
)
def test_wrong_places_of_labels(root: Path, values: dict[str, str], told: list[str]) -> None:
    text = faults(root, **values)
    for part in (*told, "slides.tsv, line 2 (slide 's')"):
        assert part in text
    assert text.count("where:") == 1


def test_every_slide_needs_labels_where_the_configuration_says_given(root: Path) -> None:
    assert "no given labels are known" in faults(root, "given", path="b")


def test_two_files_of_labels(root: Path) -> None:
    (root / "a/Y_cell_groups.csv").write_text(GROUPS, encoding="utf-8")
    told = faults(root, path="a")
    assert "more than one file of cell groups lies beside the output" in told
    assert "give the right one in the column 'given'" in told


def test_the_paper_has_given_labels_of_two_slides() -> None:
    registry = read_registry(REPOSITORY / "resources/datasets.tsv")
    rows, _ = read_slides(REPOSITORY, "config/slides_paper.tsv", SCHEMA)
    asked = {row.values["slide"]: row.values["dataset"] for row in rows if row.values["labels"]}
    assert set(asked) == {"ovary_1", "pancreas_1"}
    assert {name for name, known in registry.items() if known.file("cell_groups").addresses} == set(asked.values())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output, its H&E, alignment and published labels under 10x names."""
    folder = tmp_path_factory.mktemp("source")
    write_bundle(folder / "outs", "x", example())
    (folder / "outs" / "bundle.json").unlink()
    with zipfile.ZipFile(folder / KINDS["outs"], "w") as archive:
        for path in sorted((folder / "outs").rglob("*")):
            archive.write(path, path.relative_to(folder / "outs").as_posix())
    (folder / KINDS["he"]).write_bytes(os.urandom(1000))
    (folder / KINDS["alignment"]).write_text("1,0,0\n0,1,0\n0,0,1\n", encoding="utf-8")
    (folder / KINDS["cell_groups"]).write_text(GROUPS, encoding="utf-8")
    return folder


@pytest.fixture
def server(source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "served").mkdir()
    for name in KINDS.values():
        (tmp_path / "served" / name).symlink_to(source / name)
    with serve(tmp_path / "served") as state:
        yield state


def registry(server: Server, name: str = KINDS["cell_groups"], status: str = "seen") -> dict[str, Dataset]:
    files = {kind: RemoteFile("X", kind, (Address(server.url(file), "seen"),)) for kind, file in KINDS.items()}
    files["cell_groups"] = RemoteFile("X", "cell_groups", (Address(server.url(name), status),))
    return {"X": Dataset("X", files=files)}


def fetch(out: Path, known: dict[str, Dataset] | None, **row: Any) -> dict[str, Any]:
    inventory = fetch_slide({**DATASET, **row}, out, known, settings=QUICK)
    assert inventory == read_json(out / "bundle.json")
    return inventory


def test_published_labels_are_downloaded_once(server: Server, source: Path, tmp_path: Path) -> None:
    inventory = fetch(tmp_path / "s", registry(server))
    assert inventory["given"] == "s_cell_groups.csv"
    assert inventory["files"]["s_cell_groups.csv"]["sha256"] == sha256(source / KINDS["cell_groups"])
    server.forget()
    assert fetch(tmp_path / "s", registry(server)) == inventory
    assert not server.requests
    (tmp_path / "s/s_cell_groups.csv").write_text("spoilt", encoding="utf-8")
    assert fetch(tmp_path / "s", registry(server)) == inventory


@pytest.mark.parametrize("text", ["none", "mine.csv"])
def test_a_row_with_labels_of_its_own_needs_no_published_ones(server: Server, tmp_path: Path, text: str) -> None:
    inventory = fetch(tmp_path / "s", registry(server, "gone.csv"), given=text)
    assert inventory["given"] is None
    assert "s_cell_groups.csv" not in inventory["files"]


def test_published_labels_that_are_gone(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError) as caught:
        fetch(tmp_path / "s", registry(server, "gone.csv"))
    assert str(caught.value) == (
        "The published labels of slide 's' are not at their address\n"
        f"  where:      {server.url('gone.csv')}\n"
        "  found:      HTTP 404 Not Found\n"
        "  to mend it: give their file in the column 'given' of the slide sheet, or write none there to do without"
    )
    assert fetch(tmp_path / "t", registry(server, "gone.csv", "inferred"))["given"] is None
    assert "no published labels at" in caplog.text


def test_labels_beside_the_output_are_linked(source: Path, tmp_path: Path) -> None:
    row = {"source": "local", "path": str(source)}
    inventory = fetch(tmp_path / "s", None, **row)
    assert inventory["given"] == "s_cell_groups.csv"
    assert (tmp_path / "s/s_cell_groups.csv").resolve() == source / KINDS["cell_groups"]
    watched = local_inputs({"slide": "s", **row}, tmp_path / "s")
    assert watched["given"] == str(source / KINDS["cell_groups"])
    assert "given" not in local_inputs({"slide": "s", **row, "given": "mine.csv"}, tmp_path / "s")
    assert fetch(tmp_path / "s", None, **row, given="none")["given"] is None
    assert not (tmp_path / "s/s_cell_groups.csv").exists()


def test_labels_put_there_by_hand(server: Server, source: Path, tmp_path: Path) -> None:
    for name in ("s_cell_groups.csv", KINDS["cell_groups"]):
        out = tmp_path / name.removesuffix(".csv")
        out.mkdir()
        (out / name).write_text(GROUPS, encoding="utf-8")
        assert fetch(out, registry(server, "gone.csv"))["given"] == "s_cell_groups.csv"


def test_labels_of_a_synthetic_slide_are_not_those_of_a_real_one(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "s"
    write_bundle(out, "s", example())
    (out / "s_cell_groups.csv").write_text("cell_id,group\nmade up,T\n", encoding="utf-8")
    inventory = fetch(out, registry(server))
    assert inventory["files"]["s_cell_groups.csv"]["bytes"] == len(GROUPS)


def test_labels_put_beside_a_synthetic_bundle_are_kept(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "s"
    write_bundle(out, "s", example())
    (out / KINDS["cell_groups"]).write_text(GROUPS, encoding="utf-8")
    assert fetch(out, registry(server, "gone.csv"))["given"] == "s_cell_groups.csv"


def test_missing_labels_are_told_offline(server: Server, tmp_path: Path) -> None:
    def kinds(**row: str) -> list[str]:
        rows = [{"align": "", **DATASET, **row}]
        return [item.place.name for item in missing_files(rows, registry(server), tmp_path)]

    assert kinds()[-1] == "s_cell_groups.csv"
    assert kinds(given="none") == kinds()[:-1]
    guess = registry(server, status="inferred")
    assert "s_cell_groups.csv" not in [item.place.name for item in missing_files([DATASET], guess, tmp_path)]
