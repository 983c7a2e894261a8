"""Slides that come as files of windows: rows of the sheet, and data sets named by the environment."""

from __future__ import annotations

import os
import shutil
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
        (folder / name).write_text(f'{{"folder": "{folder}"}}')
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
    # Also where a folder of that name lies in the study itself.
    trio(tmp_path / "mine")
    assert read(tmp_path, sheet, environ={"NUCLASS_DATA_ROOT": "root"})[0][0].values["path"] == "root/mine"


def test_data_root_may_be_the_data_set_itself(tmp_path):
    for part in ("train", "test"):
        trio(tmp_path / "colon" / part)
    rows, faults = read(tmp_path, COHORT, environ={"NUCLASS_DATA_ROOT": "colon"})
    assert not faults
    assert [(row.values["slide"], row.values["path"]) for row in rows[:-1]] == [("colon", "colon")]


def test_relative_folders_start_at_the_study(tmp_path, monkeypatch):
    trio(tmp_path / "study" / "lung")
    monkeypatch.chdir(tmp_path)
    for environ in ({"NUCLASS_DATA_DIRS": " lung :"}, {"NUCLASS_DATA_ROOT": "."}, {"NUCLASS_DATA_ROOT": "lung/"}):
        rows, faults = read(Path("study"), COHORT, environ=environ)
        assert not faults
        assert [(row.values["slide"], row.values["path"]) for row in rows[:-1]] == [("lung", "lung")]


def told(root: Path, environ: dict[str, str], sheet: str = "", **options) -> list[str]:
    return [str(fault) for fault in read(root, sheet, environ=environ, **options)[1]]


def test_faults_of_the_environment(tmp_path):
    (fault,) = told(tmp_path, {"NUCLASS_DATA_ROOT": str(tmp_path / "none")}, COHORT)
    assert "NUCLASS_DATA_ROOT is no folder" in fault
    (tmp_path / "empty").mkdir()
    (fault,) = told(tmp_path, {"NUCLASS_DATA_ROOT": str(tmp_path / "empty")}, COHORT)
    assert "no data set lies in the folder of NUCLASS_DATA_ROOT" in fault
    (fault,) = told(tmp_path, {"NUCLASS_DATA_DIRS": ": :"}, COHORT)
    assert "NUCLASS_DATA_DIRS names no folder" in fault
    (fault,) = told(tmp_path, {"NUCLASS_DATA_DIRS": "gone"}, COHORT)
    assert "NUCLASS_DATA_DIRS, " in fault
    assert "nothing at this path" in fault
    trio(tmp_path / "skin")
    (fault,) = told(tmp_path, {"NUCLASS_DATA_DIRS": "skin"}, COHORT, peek_patches=lambda path: {"tissue_type": "skin"})
    assert "the organ of a data set is not known" in fault
    assert "tissue_type 'skin'" in fault


def test_the_environment_beside_a_sheet_that_cannot_be_read(tmp_path):
    trio(tmp_path / "lung")
    faults = told(tmp_path, {"NUCLASS_DATA_DIRS": "lung"})
    assert "a sheet has no rows" in faults[0]
    assert "no slide with role 'cohort'" in faults[1]


def test_folders_of_one_name_are_named_after_the_one_above_too(tmp_path):
    for place in ("a/lung", "b/lung", "c"):
        trio(tmp_path / place)
    rows, faults = read(tmp_path, COHORT, environ={"NUCLASS_DATA_DIRS": "a/lung:b/lung:c"})
    assert not [fault for fault in faults if "organ" not in str(fault)]
    assert [row.values["slide"] for row in rows] == ["a_lung", "b_lung", "c", "lung_h"]


def test_a_folder_named_like_a_slide_of_the_sheet_is_told(tmp_path):
    trio(tmp_path / "lung_h")
    (fault,) = told(tmp_path, {"NUCLASS_DATA_DIRS": "lung_h"}, COHORT)
    assert "the slide 'lung_h' stands twice" in fault
    assert "where:      NUCLASS_DATA_DIRS, lung_h and slides.tsv, line 2" in fault
    assert "rename one" in fault


SAME = "lung_h\tlung\tcohort\tP9\tpatches\t{}\t\n"


@pytest.mark.parametrize(
    ("folders", "sheet"),
    [
        ("lung:lung/", COHORT),
        ("lung:linked", COHORT),
        ("lung:copied", COHORT),
        ("cut/train:cut/test", COHORT),
        ("cut:cut/test", COHORT),
        ("lung", SAME.format("lung")),
        ("lung", SAME.format("linked")),
        ("lung", SAME.format("copied")),
        ("cut/train", SAME.format("cut/test")),
    ],
)
def test_one_data_set_is_never_two_slides(tmp_path, folders, sheet):
    trio(tmp_path / "lung")
    for part in ("train", "test"):
        trio(tmp_path / "cut" / part)
    (tmp_path / "linked").symlink_to("lung")
    shutil.copytree(tmp_path / "lung", tmp_path / "copied")
    faults = told(tmp_path, {"NUCLASS_DATA_DIRS": folders}, sheet, peek_patches=lambda path: {"tissue_type": "lung"})
    (fault,) = [fault for fault in faults if "folder that holds both" in fault]
    assert "two slides have the same data" in fault
    assert not [fault for fault in faults if "stands twice" in fault]


def test_data_sets_that_differ_are_two_slides(tmp_path):
    for place in ("lung", "other", "cut/train", "cut/test"):
        trio(tmp_path / place)
    environ = {"NUCLASS_DATA_DIRS": "lung:cut"}
    assert not told(tmp_path, environ, SAME.format("other"), peek_patches=lambda path: {"tissue_type": "lung"})


def test_a_bundle_or_dataset_is_never_two_slides(tmp_path):
    def faults(*rows: str) -> str:
        return "\n".join(told(tmp_path, {}, "".join(rows)))

    (tmp_path / "run" / "outs").mkdir(parents=True)
    (tmp_path / "run" / "outs" / "experiment.xenium").write_text("{}")
    row = "{}\tlung\t{}\t{}\tlocal\t{}\t\n"
    twice = row.format("a", "train", "P1", "run"), row.format("b", "cohort", "P2", "run/outs")
    message = faults(*twice)
    assert "two slides have the same data" in message
    assert "slides.tsv, lines 2 and 3" in message
    assert "'a' (train), run and 'b' (cohort), run/outs" in message
    # Two ways to label one cohort are no leak.
    both = row.format("a", "cohort", "P1", "run"), row.format("b", "cohort", "P1", "run/outs")
    assert "same data" not in faults(*both, "t\tlung\ttrain\tP3\tsynthetic\t\t\n")
    assert "same data" not in faults("t\tlung\ttrain\tP3\tsynthetic\t\t\n", COHORT)


def test_a_slide_named_as_all_cohorts_together_is_told(tmp_path):
    (fault,) = told(tmp_path, {}, "all\tlung\ttrain\tP3\tsynthetic\t\t\n" + COHORT)
    assert "cannot be named 'all'" in fault


def test_without_variables_rows_stay_as_they_are():
    rows = [Row(2, {"slide": "a", "role": "train", "source": "synthetic", "path": ""})]
    assert rows_from_environment(rows, WINDOWS, Path(), None, {}, list(SCHEMA["properties"])) == (rows, [])
