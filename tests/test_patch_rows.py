"""Slides that come as files of windows: rows of the sheet, and data sets named by the environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from nuclass.core.errors import UserError
from nuclass.core.patch_rows import find_patches, organ_in, rows_from_environment
from nuclass.core.sheets import Row
from nuclass.core.slides_sheet import read_slides

SCHEMA = yaml.safe_load((Path(__file__).parent.parent / "config" / "schemas" / "slides.schema.yaml").read_text())
WINDOWS = {"local": 224, "global": 1024}
NAMES = ("annotations.json", "patches_224x224.h5", "patches_1024x1024.h5")
HEADER = "slide\torgan\trole\tpatient\tsource\tpath\tlabels\n"
COHORT = "lung_h\tlung\tcohort\tP9\tsynthetic\t\t\n"


def trio(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("{}")
    return folder


def read(root: Path, text: str, **options):
    (root / "slides.tsv").write_text(HEADER + text)
    return read_slides(root, "slides.tsv", SCHEMA, windows=WINDOWS, **options)


@pytest.mark.parametrize(
    ("text", "organ"),
    [
        ("Human Colon Cancer FFPE", "colon"),
        ("ovarian cancer", "ovary"),
        ("Lung", "lung"),
        ("kidney and liver", ""),
        ("skin", ""),
    ],
)
def test_organ_of_a_free_text(text, organ):
    assert organ_in(text) == organ


def test_files_are_found_flat_and_divided(tmp_path):
    flat = find_patches(trio(tmp_path / "flat"), WINDOWS)
    assert list(flat.files) == [""]
    assert [path.name for path in flat.paths] == list(NAMES)
    trio(tmp_path / "cut" / "train")
    trio(tmp_path / "cut" / "test")
    divided = find_patches(tmp_path / "cut", WINDOWS)
    # The original chose its models by its test part.
    assert {split: files["local"].parent.name for split, files in divided.files.items()} == {
        "train": "train",
        "val": "test",
    }


def test_other_windows_have_other_names(tmp_path):
    trio(tmp_path / "a", ("annotations.json", "patches_96x96.h5", "patches_512x512.h5"))
    assert find_patches(tmp_path / "a", {"local": 96, "global": 512}).files[""]["global"].name == "patches_512x512.h5"
    with pytest.raises(UserError, match=r"no patches_224x224\.h5, no patches_1024x1024\.h5"):
        find_patches(tmp_path / "a", WINDOWS)


def test_faults_of_a_folder(tmp_path):
    with pytest.raises(UserError, match="folder of a slide's patch files is missing"):
        find_patches(tmp_path / "none", WINDOWS)
    trio(tmp_path / "both")
    trio(tmp_path / "both" / "train")
    with pytest.raises(UserError, match=r"(?s)both in a folder and below it.*files in the folder itself and in train/"):
        find_patches(tmp_path / "both", WINDOWS)
    trio(tmp_path / "half" / "train")
    with pytest.raises(UserError, match=r"no test/annotations.json, no test/patches_224x224.h5"):
        find_patches(tmp_path / "half", WINDOWS)


def test_a_row_of_the_sheet(tmp_path):
    trio(tmp_path / "mine")
    rows, faults = read(tmp_path, "a\tlung\ttrain\tP1\tpatches\tmine\t\n" + COHORT)
    assert not faults
    assert rows[0].values["path"] == "mine"


def test_faults_of_a_row_name_its_line(tmp_path):
    text = "a\tlung\ttrain\tP1\tpatches\t\tmarkers\nb\tlung\ttrain\tP2\tpatches\tnowhere\t\n" + COHORT
    _, faults = read(tmp_path, text)
    told = [str(fault) for fault in faults]
    assert len(told) == 3
    assert "takes no labels" in told[0]
    assert "slides.tsv, line 2 (slide 'a')" in told[0]
    assert "names no folder" in told[1]
    assert "folder of a slide's patch files is missing" in told[2]
    assert "slides.tsv, line 3 (slide 'b')" in told[2]


def test_data_dirs_stand_for_the_training_slides(tmp_path):
    first, second = trio(tmp_path / "in" / "Lung-Cancer-v1+5k"), trio(tmp_path / "in" / "colon" / "train").parent
    trio(second / "test")
    environ = {"NUCLASS_DATA_DIRS": os.pathsep.join([str(first), str(second)]), "NUCLASS_DATA_ROOT": "not read"}
    sheet = "x\tovary\ttrain\tP1\tsynthetic\t\t\n" + COHORT

    def record(path: Path) -> dict[str, str]:
        return {"tissue_type": "Lung tumour" if "Lung" in str(path) else "Human Colon Cancer FFPE", "patient_id": ""}

    rows, faults = read(tmp_path, sheet, environ=environ, peek_patches=record)
    assert not faults
    assert [(r.values["slide"], r.values["organ"], r.values["role"], r.values["source"]) for r in rows] == [
        ("Lung-Cancer-v1_5k", "lung", "train", "patches"),
        ("colon", "colon", "train", "patches"),
        ("lung_h", "lung", "cohort", "synthetic"),
    ]
    assert rows[0].values["patient"] == "Lung-Cancer-v1_5k"
    assert rows[1].values["path"] == str(second)


def test_data_root_is_searched_where_the_sheet_names_no_patches(tmp_path):
    for name in ("Kidney-1", "Heart"):
        trio(tmp_path / "root" / name)
    (tmp_path / "root" / "notes").mkdir()
    sheet = "x\tovary\ttrain\tP1\tsynthetic\t\t\n" + COHORT
    rows, faults = read(tmp_path, sheet, environ={"NUCLASS_DATA_ROOT": str(tmp_path / "root")})
    assert not [fault for fault in faults if "organ" not in str(fault)]
    assert [row.values["slide"] for row in rows] == ["Heart", "Kidney-1", "lung_h"]
    assert [row.values["organ"] for row in rows[:2]] == ["heart", "kidney"]


def test_data_root_is_where_relative_paths_start(tmp_path):
    trio(tmp_path / "root" / "mine")
    sheet = "a\tlung\ttrain\tP1\tpatches\tmine\t\n" + COHORT
    rows, faults = read(tmp_path, sheet, environ={"NUCLASS_DATA_ROOT": str(tmp_path / "root")})
    assert not faults
    assert rows[0].values["path"] == str(tmp_path / "root" / "mine")


def test_faults_of_the_environment(tmp_path):
    def told(environ: dict[str, str], **options) -> str:
        return "\n".join(str(fault) for fault in read(tmp_path, "", environ=environ, **options)[1])

    assert "NUCLASS_DATA_ROOT is no folder" in told({"NUCLASS_DATA_ROOT": str(tmp_path / "none")})
    (tmp_path / "empty").mkdir()
    assert "no data set lies in the folder of NUCLASS_DATA_ROOT" in told({"NUCLASS_DATA_ROOT": str(tmp_path / "empty")})
    trio(tmp_path / "skin")
    message = told({"NUCLASS_DATA_DIRS": str(tmp_path / "skin")}, peek_patches=lambda path: {"tissue_type": "skin"})
    assert "the organ of a data set is not known" in message
    assert "tissue_type 'skin'" in message
    assert "NUCLASS_DATA_DIRS, " in message


def test_two_folders_of_one_name_are_told(tmp_path):
    first, second = trio(tmp_path / "a" / "lung"), trio(tmp_path / "b" / "lung")
    environ = {"NUCLASS_DATA_DIRS": os.pathsep.join([str(first), str(second)])}
    faults = read(tmp_path, COHORT, environ=environ)[1]
    assert "the slide 'lung' stands twice" in str(faults[0])
    assert "NUCLASS_DATA_DIRS and NUCLASS_DATA_DIRS" in str(faults[0])


def test_without_variables_rows_stay_as_they_are():
    rows = [Row(2, {"slide": "a", "role": "train", "source": "synthetic", "path": ""})]
    assert rows_from_environment(rows, WINDOWS, Path(), None, {}) == (rows, [])
