"""``nuclass patches``: export, import and verify from the command line, in a study and outside of any."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pandas as pd
import pytest

from nuclass.cli import main
from nuclass.patches.trio import open_trio
from patch_example import SIDES, build_slide, read_as_the_original, records, write_trio

REPOSITORY = Path(__file__).parent.parent
SETTINGS = "windows:\n  local: 32\n  global: 128\nsplits:\n  buffer_um: 256\n"


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A folder with settings, a sheet and the results of one slide."""
    (tmp_path / "config").mkdir()
    for name in ("config.yaml", "schemas", "models"):
        (tmp_path / "config" / name).symlink_to(REPOSITORY / "config" / name)
    (tmp_path / "config/slides.tsv").write_text(
        "slide\torgan\trole\tpatient\tsource\novary_1\tovary\ttrain\tdonor_7\tsynthetic\n"
    )
    (tmp_path / "small.yaml").write_text(SETTINGS)
    slides, labels = tmp_path / "results/slides/ovary_1", tmp_path / "results/labels/ovary_1"
    for folder in (slides, labels, tmp_path / "results/splits"):
        folder.mkdir(parents=True)
    _, cells, table = build_slide(slides)
    cells.to_parquet(slides / "cells.parquet")
    table.to_parquet(labels / "labels.parquet")
    split = ["train" if x < 200 else "val" if x > 300 else "buffer" for x in cells["x_px"]]
    pd.DataFrame({"cell_id": cells["cell_id"], "split": split}).to_parquet(tmp_path / "results/splits/ovary_1.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    return main(["patches", *map(str, arguments), "--configfile", "small.yaml"])


def told(capsys) -> str:
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return "".join(line for line in error.splitlines(keepends=True) if " INFO " not in line)


def test_a_slide_of_the_study_is_exported_and_verified(study, capsys):
    assert run("export", "--slide", "ovary_1", "--out", "out") == 0
    assert capsys.readouterr().out == "Wrote out: 40 cells.\n"
    record = json.loads((study / "out/annotations.json").read_text())["0000"]
    assert (record["slide_id"], record["tissue_type"], record["patient_id"]) == ("ovary_1", "ovary", "donor_7")
    assert run("verify", "out", "--slide", "ovary_1", "--against", "out") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "out"
    assert all(line.startswith("PASS ") for line in lines[1:])
    assert "PASS    global pixels against the slide: all 40 equal to the last bit" in lines


def test_options_reach_the_files(study, capsys):
    labels = study / "results/labels/ovary_1/labels.parquet"
    pd.read_parquet(labels).replace({"class": {"T": "T_Cell"}}).to_parquet(labels)
    files = ["--split", "--layout", "per_key", "--compression", "gzip", "--class-names", "study"]
    names = ["--patient", "other", "--organ", "lung", "--name", "mine"]
    assert run("export", "--slide", "ovary_1", "--out", "out", *files, *names) == 0
    assert "cells in train/" in capsys.readouterr().out
    with h5py.File(study / "out/train/patches_32x32.h5") as file:
        assert {file[name].compression for name in file} == {"gzip"}
    written = json.loads((study / "out/test/annotations.json").read_text()).values()
    assert {record["class_id"] for record in written} == {"T_Cell", "Tumour"}
    record = next(iter(written))
    assert (record["slide_id"], record["tissue_type"], record["patient_id"]) == ("mine", "lung", "other")
    assert run("export", "--slide", "ovary_1", "--out", "out", "--overwrite", "--virtual") == 0
    assert sorted(path.name for path in (study / "out").iterdir()) == [
        "annotations.json", "patches_128x128.h5", "patches_32x32.h5", "slide.h5"]  # fmt: skip
    assert run("export", "--slide", "ovary_1", "--out", "out") == 1
    assert "The folder for the export is not empty" in told(capsys)


def test_paths_do_without_a_study(study, tmp_path, monkeypatch, capsys):
    results = study / "results"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    Path("small.yaml").write_text(SETTINGS)
    paths = ["--store", results / "slides/ovary_1/he.ome.zarr", "--cells", results / "slides/ovary_1/cells.parquet"]
    labels = ["--labels", results / "labels/ovary_1/labels.parquet"]
    assert run("export", *paths, *labels, "--out", "out") == 1
    message = told(capsys)
    assert "The annotations need the slide's name, organ and donor" in message
    assert "no --name, --organ, --patient" in message
    assert run("export", *paths, *labels, "--name", "n", "--organ", "ovary", "--patient", "p", "--out", "out") == 0
    assert len(read_as_the_original(Path("out/patches_32x32.h5"))) == 40
    assert run("verify", "out", *paths) == 0


def test_a_fault_gives_status_1_and_names_the_rule(study, capsys):
    run("export", "--slide", "ovary_1", "--out", "out")
    with h5py.File("out/patches_128x128.h5", "r+") as file:
        file["images"][4] = 0
    capsys.readouterr()
    assert run("verify", "out", "--slide", "ovary_1") == 1
    output = capsys.readouterr()
    assert "FAIL    black global windows: 1 of 40 looked at" in output.out
    assert "2 rules do not hold in the data set" in output.err
    assert "found:      black global windows, global pixels against the slide" in output.err


def test_a_data_set_is_imported(study, capsys):
    write_trio(study / "given", ["0012", "b", "c"])
    made = records(["0012", "b", "c"], class_id="Macrophage")
    (study / "given/annotations.json").write_text(json.dumps(made))
    assert run("import", "given", "--slide", "other") == 0
    assert capsys.readouterr().out == (
        "Wrote results/slides/other and results/labels/other: 3 cells, 3 with a class.\n"
    )
    cells = pd.read_parquet("results/slides/other/cells.parquet")
    assert cells["cell_id"].tolist() == ["0012", "b", "c"]
    assert pd.read_parquet("results/labels/other/labels.parquet")["class"].tolist() == ["Macrophage"] * 3
    assert Path("results/slides/other/patches.json").is_file()
    for arguments in (["verify", "given"], ["export", "--out", "out"]):
        assert run(*arguments, "--slide", "other") == 1
        message = told(capsys)
        assert "The slide came as patch files" in message
        assert "results/slides/other/patches.json" in message


def test_an_import_leaves_a_slide_with_an_image_alone(study, capsys):
    write_trio(study / "given", ["a", "b"], class_id="Macrophage")
    before = (study / "results/slides/ovary_1/cells.parquet").read_bytes()
    assert run("import", "given", "--slide", "ovary_1") == 1
    message = told(capsys)
    assert "There are results of a slide with an H&E image under this name" in message
    assert "choose another --slide or --results" in message
    assert (study / "results/slides/ovary_1/cells.parquet").read_bytes() == before
    assert not (study / "results/slides/ovary_1/patches.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "--out", "o"], ["It is not said which slide", "no --store, --cells, --labels"]),
        (["verify", "o", "--store", "s"], ["It is not said which slide", "nuclass patches verify", "no --cells"]),
        (
            ["export", "--slide", "lung_9", "--out", "o"],
            ["There is no slide store", "results/slides/lung_9/he.ome.zarr"],
        ),
        (["verify", "none"], ["1 rules do not hold", "files"]),
        (["verify", "none", "--sample", "-1"], ["--sample is negative"]),
        (["import", "none", "--slide", "x"], ["the folder of a slide's patch files is missing"]),
    ],
)
def test_mistakes_are_told(study, capsys, arguments, words):
    assert run(*arguments) == 1
    message = told(capsys)
    for word in words:
        assert word in message


def test_a_slide_that_the_sheet_does_not_know(study, capsys):
    for kind in ("slides", "labels"):
        (study / f"results/{kind}/strange").symlink_to(study / f"results/{kind}/ovary_1")
    assert run("export", "--slide", "strange", "--out", "out") == 1
    message = told(capsys)
    assert "no --organ, --patient; no slide 'strange' in the sheet" in message
    assert run("export", "--slide", "strange", "--organ", "ovary", "--patient", "p", "--out", "out") == 0


def test_tables_that_cannot_be_used(study, capsys):
    labels = study / "results/labels/ovary_1/labels.parquet"
    pd.read_parquet(labels).drop(columns="class").to_parquet(labels)
    assert run("export", "--slide", "ovary_1", "--out", "out") == 1
    assert "A table lacks columns" in told(capsys)
    labels.write_bytes(b"no table")
    assert run("export", "--slide", "ovary_1", "--out", "out") == 1
    assert "A table cannot be read" in told(capsys)
    labels.unlink()
    assert run("export", "--slide", "ovary_1", "--out", "out") == 1
    assert "A table is missing" in told(capsys)
    assert not (study / "out").exists()


@pytest.mark.parametrize("command", [[], ["export"], ["import"], ["verify"]])
def test_help_teaches_with_examples(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main(["patches", *command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"nuclass patches {command[0] if command else 'export'} " in text.split("example")[1]


def test_the_exported_trio_is_a_data_set_of_its_own(study):
    run("export", "--slide", "ovary_1", "--out", "out", "--split")
    with open_trio(study / "out", SIDES, 0.25) as trio:
        assert set(trio.cells["split"]) == {"train", "val"}
