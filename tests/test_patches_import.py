"""Slides that come as patch files: what importing writes, the labels it makes of the names, and the rule."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nuclass.core.errors import UserError
from nuclass.core.files import read_json, write_parquet
from nuclass.labels.given import LABEL_COLUMNS
from nuclass.labels.named import label_named_cells, labels_of_names
from nuclass.labels.ontology import default_ontology, load_ontology
from nuclass.patches.export import export_patches
from nuclass.patches.importing import import_patches
from nuclass.patches.patch_windows import PatchWindows
from nuclass.patches.states import patch_states
from patch_example import SIDES, build_slide
from trio_example import crop, picture, write_trio, write_windows

REPOSITORY = Path(__file__).parent.parent
SMALL = {"local": 32, "global": 64}
COLUMNS = ["cell_id", "x_um", "y_um", "x_px", "y_px", "status", "reason", "given_label", "given_split"]
IMAGE = picture(300, 400)


def places(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform((0, 0), (400, 300), (n, 2))


def take_in(folder: Path, out: Path, windows: dict[str, int] = SMALL, mpp: float = 0.25) -> pd.DataFrame:
    files = {"cells": out / "cells.parquet", "manifest": out / "patches.json"}
    frame = import_patches(folder=folder, **files, windows=windows, mpp=mpp, slide="mine")
    written = pd.read_parquet(out / "cells.parquet")
    pd.testing.assert_frame_equal(written, frame.reset_index(drop=True), check_dtype=False)
    return written


def test_one_folder(tmp_path):
    """Ids keep their leading zeros; rows follow the annotations, whatever the order of the windows."""
    ids, xy = ["0012", "12", "0007", "aaaabcde-1", "z"], places(5)
    write_trio(tmp_path / "d", IMAGE, xy, ids, sizes=(32, 64), shuffle=4)
    cells = take_in(tmp_path / "d", tmp_path / "out")
    assert list(cells.columns) == COLUMNS
    assert cells["cell_id"].tolist() == ids
    np.testing.assert_array_equal(cells[["x_px", "y_px"]], xy)
    np.testing.assert_array_equal(cells[["x_um", "y_um"]], xy * 0.25 + (7, 0))
    assert set(cells["status"]) == {"kept"}
    assert set(cells["reason"]) == set(cells["given_split"]) == {""}
    assert cells["given_label"].tolist() == ["Macrophage", "T_Cell", "Fibroblast", "Macrophage", "T_Cell"]

    manifest = read_json(tmp_path / "out" / "patches.json")
    assert {key: manifest[key] for key in ("format", "mpp", "windows", "sides")} == {
        "format": 1,
        "mpp": 0.25,
        "windows": SMALL,
        "sides": SMALL,
    }
    (part,) = manifest["parts"]
    assert (part["folder"], part["split"]) == (str(tmp_path / "d"), "")
    for role, size in SMALL.items():
        path = tmp_path / "d" / f"patches_{size}x{size}.h5"
        stat = path.stat()
        assert part["files"][role] == {
            "path": str(path),
            "size": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
            "side": size,
            "layout": "merged",
            "shape": [size, size, 3],
            "count": 5,
        }
    rows = pd.read_parquet(tmp_path / "out" / "patches.parquet")
    assert rows["cell_id"].tolist() == ids
    assert rows.dtypes.astype(str).to_dict() | {"cell_id": ""} == {
        "cell_id": "",
        "part": "int8",
        "local": "int32",
        "global": "int32",
    }
    windows = PatchWindows(tmp_path / "out" / "patches.json").cut(range(5), xy, 32, 0, 32)
    np.testing.assert_array_equal(windows, np.stack([crop(IMAGE, x, y, 32) for x, y in xy]))


def test_train_and_test_folders(tmp_path):
    """The original's test chose its models, so it is our val."""
    xy = places(9)
    ids = [f"c{i}" for i in range(9)]
    write_trio(tmp_path / "d" / "train", IMAGE, xy[:6], ids[:6], sizes=(32, 64))
    write_trio(tmp_path / "d" / "test", IMAGE, xy[6:], ids[6:], sizes=(32, 64), layouts=("per_key", "per_key"))
    cells = take_in(tmp_path / "d", tmp_path / "out")
    assert cells["given_split"].tolist() == ["train"] * 6 + ["val"] * 3
    assert cells["cell_id"].tolist() == ids
    parts = read_json(tmp_path / "out" / "patches.json")["parts"]
    assert [part["split"] for part in parts] == ["train", "val"]
    assert [part["files"]["global"]["layout"] for part in parts] == ["merged", "per_key"]
    assert pd.read_parquet(tmp_path / "out" / "patches.parquet")["part"].tolist() == [0] * 6 + [1] * 3


@pytest.mark.parametrize("lacks", ["nothing", "one of one cell", "one of all"])
def test_micrometres_are_stated_or_follow_from_pixels_but_are_never_mixed(tmp_path, lacks):
    """The two frames may be moved and turned against each other."""
    xy = places(4)
    write_trio(tmp_path / "d", IMAGE, xy, list("abcd"), sizes=(32, 64))
    annotations = tmp_path / "d" / "annotations.json"
    records = json.loads(annotations.read_text())
    if lacks == "one of one cell":
        del records["c"]["micron_x_centroid"]
    if lacks == "one of all":
        records = {cell: record | {"micron_y_centroid": None} for cell, record in records.items()}
    annotations.write_text(json.dumps(records))
    cells = take_in(tmp_path / "d", tmp_path / "out")
    np.testing.assert_allclose(cells[["x_um", "y_um"]], xy * 0.25 + ((7, 0) if lacks == "nothing" else 0))


def test_the_scale_is_that_of_the_annotations(tmp_path):
    write_trio(tmp_path / "d", IMAGE, places(4), list("abcd"), sizes=(32, 64), fields={"micron_per_pixel": 0.2512})
    take_in(tmp_path / "d", tmp_path / "out")
    assert read_json(tmp_path / "out" / "patches.json")["mpp"] == 0.2512
    with pytest.raises(UserError, match="another scale than the study"):
        take_in(tmp_path / "d", tmp_path / "other", mpp=0.5)
    assert not (tmp_path / "other").exists()


def test_grey_windows_and_those_with_alpha_are_taken_and_told(tmp_path, caplog):
    ids, xy = list("abcd"), places(4)
    write_trio(tmp_path / "d", IMAGE, xy, ids, sizes=(32, 64))
    crops = {size: np.stack([crop(IMAGE, x, y, size) for x, y in xy]) for size in (32, 64)}
    write_windows(tmp_path / "d" / "patches_32x32.h5", ids, crops[32][..., 0])
    alpha = np.full((4, 64, 64, 1), 255, np.uint8)
    alpha[1] = 0
    write_windows(tmp_path / "d" / "patches_64x64.h5", ids, np.concatenate([crops[64], alpha], -1), "per_key")
    take_in(tmp_path / "d", tmp_path / "out")
    assert "mine: patches_32x32.h5: the windows are grey" in caplog.text
    assert "mine: patches_64x64.h5: the windows have an alpha channel; they are laid over white" in caplog.text
    windows = PatchWindows(tmp_path / "out" / "patches.json")
    np.testing.assert_array_equal(windows.cut([2, 0], xy[[2, 0]], 32, 0, 32)[..., 1], crops[32][[2, 0], ..., 0])
    seen = windows.cut([0, 1], xy[:2], 64, 0, 64)
    np.testing.assert_array_equal(seen[0], crops[64][0])
    assert (seen[1] == 255).all()


@pytest.mark.parametrize("divided", [False, True])
def test_the_slide_of_virtual_windows_is_watched(tmp_path, monkeypatch, divided):
    store, cells, labels = build_slide(tmp_path)
    splits = cells[["cell_id"]].assign(split=np.where(cells["x_px"] < 200, "train", "val")) if divided else None
    who = {"slide": "s", "organ": "lung", "patient": "p", "mpp": 0.25}
    export_patches(store, cells, labels, tmp_path / "d", SIDES, **who, virtual=True, splits=splits)
    monkeypatch.chdir(tmp_path)
    take_in(Path("d"), tmp_path / "out", SIDES)
    monkeypatch.chdir(tmp_path / "out")
    slide = tmp_path / "d" / "slide.h5"
    parts = read_json("patches.json")["parts"]
    assert len(parts) == 1 + divided
    for part in parts:
        for file in part["files"].values():
            (source,) = file["sources"]
            assert Path(source["path"]).is_absolute()
            assert Path(source["path"]).samefile(slide)
    PatchWindows("patches.json")
    os.utime(slide)
    with pytest.raises(UserError, match=r"(?s)A patch file changed since it was imported.*slide\.h5.*start snakemake"):
        PatchWindows("patches.json")
    take_in(tmp_path / "d", tmp_path / "out", SIDES)
    PatchWindows("patches.json")
    slide.unlink()
    with pytest.raises(UserError, match=r"(?s)A patch file is missing.*slide\.h5"):
        PatchWindows("patches.json")
    with pytest.raises(UserError, match="The slide that virtual windows are cut from is missing"):
        take_in(tmp_path / "d", tmp_path / "out", SIDES)


def test_states_hold_what_a_rule_is_to_watch(tmp_path):
    for name in ("a/train/one.h5", "a/test/two.h5", "a/slide.h5", "a/test/other.h5"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    files = [tmp_path / name for name in ("a/train/one.h5", "a/test/two.h5", "a/test/none.h5")]
    states = patch_states(files)
    assert list(states) == [str(tmp_path / name) for name in ("a/train/one.h5", "a/test/two.h5", "a/slide.h5")]
    stat = files[0].stat()
    assert states[str(files[0])] == [stat.st_size, stat.st_mtime_ns]
    os.utime(tmp_path / "a/slide.h5", (1, 1))
    assert patch_states(files) != states
    assert list(patch_states([tmp_path / "a/slide.h5"])) == [str(tmp_path / "a/slide.h5")]


def test_a_data_set_that_does_not_fit_leaves_nothing_behind(tmp_path):
    write_trio(tmp_path / "d", IMAGE, places(4), list("abcd"), sizes=(32, 64))
    annotations = tmp_path / "d" / "annotations.json"
    records = json.loads(annotations.read_text())
    del records["c"]
    annotations.write_text(json.dumps(records))
    with pytest.raises(UserError, match="The three files are of different cells"):
        take_in(tmp_path / "d", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def ontology():
    return load_ontology(default_ontology())


class TestLabels:
    NAMES = ("T Cells", "tcell", "NK Cells", "Macrophag", "Unassigned", "nan", "", " Fibroblast ")

    def cells(self, names=NAMES):
        ids = [f"{i:03d}" for i in range(len(names))]
        return pd.DataFrame({"cell_id": ids, "status": "kept", "reason": "", "given_label": list(names)})

    def test_names_become_labels(self, ontology):
        cells = self.cells()
        labels = labels_of_names(cells, ontology)
        assert tuple(labels.columns) == LABEL_COLUMNS
        assert labels["cell_id"].tolist() == cells["cell_id"].tolist()
        assert labels["raw_label"].tolist() == [*self.NAMES[:5], "", "", "Fibroblast"]
        assert labels["class"].tolist() == ["T_Cell", "T_Cell", "", "", "", "", "", "Fibroblast"]
        assert labels["cell_type"].tolist() == ["T_Cell", "T_Cell", "NK_Cell", "", "", "", "", "Fibroblast"]
        assert labels["status"].tolist() == ["labelled"] * 3 + ["abstained"] * 4 + ["labelled"]
        none = "no_given_label"
        assert labels["reason"].tolist() == [
            *("", "", "no_class", "unmapped", "left_out: no identity", none, none, ""),
        ]
        assert labels["source"].tolist() == ["given"] * 5 + ["", "", "given"]
        assert labels["confidence"].tolist() == [1, 1, 1, 0, 0, 0, 0, 1]

    def test_files_and_what_is_told(self, tmp_path, caplog):
        write_parquet(tmp_path / "cells.parquet", self.cells())
        label_named_cells(
            cells=tmp_path / "cells.parquet", ontology=default_ontology(), out=tmp_path / "labels", name="mine"
        )
        assert tuple(pd.read_parquet(tmp_path / "labels" / "labels.parquet").columns) == LABEL_COLUMNS
        summary = read_json(tmp_path / "labels" / "summary.json")
        assert summary["source"] == "given"
        assert summary["cells"] == {"labelled": 4, "abstained": 4}
        assert summary["classes"] == {"T_Cell": 2, "Fibroblast": 1}
        assert summary["reasons"]["unmapped"] == 1
        (unmapped,) = summary["unmapped"]
        assert (unmapped["raw_label"], unmapped["cells"]) == ("Macrophag", 1)
        assert "Macrophage" in unmapped["nearest"]
        assert "label 'Macrophag' of 1 cells is not known; nearest: Macrophage" in caplog.text

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (("qqq", "xxx", "qqq"), r"No label of the slide is known\n  where: +mine\n  found: +'qqq' 2, 'xxx' 1\n"),
            (("NK", "NK", ""), r"No label of the slide has a class of the study\n.*\n  found: +'NK' 2\n"),
            (("", "nan"), r"No label of the slide is known\n.*\n  found: +no label at all\n"),
            ([f"q{i}" for i in range(25)], r"'q19' 1 and 5 more\n"),
        ],
    )
    def test_no_label_that_counts(self, ontology, names, message):
        with pytest.raises(UserError, match=message):
            labels_of_names(self.cells(names), ontology, "mine")


@pytest.mark.workflow
def test_the_rule_takes_a_data_set_in(tmp_path):
    study, data = tmp_path / "study", tmp_path / "data"
    for name in ("config", "resources", "rules", "scripts", "src", "workflow", "profiles", "envs"):
        skipped = shutil.ignore_patterns("bundles", "truth", "__pycache__")
        shutil.copytree(REPOSITORY / name, study / name, ignore=skipped)
    windows = {"local": 32, "global": 64}
    write_trio(data / "train", IMAGE, places(6), [f"0{i}" for i in range(6)], sizes=(32, 64))
    write_trio(data / "test", IMAGE, places(3, 1), [f"1{i}" for i in range(3)], sizes=(32, 64))
    (study / "config" / "slides.tsv").write_text(
        "slide\torgan\trole\tpatient\tsource\tpath\n"
        f"mine\tlung\ttrain\tP1\tpatches\t{data}\n"
        "lung_h\tlung\tcohort\tP2\tsynthetic\t\n"
    )
    (study / "own.yaml").write_text(f"windows: {json.dumps(windows)}\n")
    goals = ["results/labels/mine/labels.parquet", "results/slides/mine/patches.json"]
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--configfile", "own.yaml", "--", *goals]
    environment = {key: value for key, value in os.environ.items() if key != "SNAKEMAKE_PROFILE"}

    def run():
        done = subprocess.run(command, cwd=study, env=environment, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout + done.stderr

    code, told = run()
    assert code == 0, told
    assert "Slide mine: its cells, labels and files of windows" in told
    cells = pd.read_parquet(study / "results" / "slides" / "mine" / "cells.parquet")
    assert cells["given_split"].value_counts().to_dict() == {"train": 6, "val": 3}
    labels = pd.read_parquet(study / "results" / "labels" / "mine" / "labels.parquet")
    assert set(labels["class"]) == {"Macrophage", "T_Cell", "Fibroblast"}
    assert "Nothing to be done" in run()[1]
    # A small file with another time is the same one to Snakemake, but not to the list of files.
    os.utime(data / "train" / "patches_32x32.h5", (1, 1))
    with pytest.raises(UserError, match="changed since it was imported"):
        PatchWindows(study / "results" / "slides" / "mine" / "patches.json")
    assert run()[0] == 0
    PatchWindows(study / "results" / "slides" / "mine" / "patches.json")
    assert "Nothing to be done" in run()[1]
    write_trio(data / "test", IMAGE, places(3, 1), ["10", "11", "00"], sizes=(32, 64))
    code, told = run()
    assert code == 1
    assert "Cells are in train and in test" in told
    assert "Traceback" not in told
