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
from nuclass.patches.importing import import_patches
from nuclass.patches.patch_windows import PatchWindows
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


def test_micrometres_follow_from_pixels_where_they_are_not_stated(tmp_path):
    xy = places(4)
    write_trio(tmp_path / "d", IMAGE, xy, list("abcd"), sizes=(32, 64), fields={"micron_y_centroid": None})
    annotations = tmp_path / "d" / "annotations.json"
    records = json.loads(annotations.read_text())
    del records["c"]["micron_x_centroid"]
    annotations.write_text(json.dumps(records))
    cells = take_in(tmp_path / "d", tmp_path / "out")
    np.testing.assert_allclose(cells["x_um"], xy[:, 0] * 0.25 + (7, 7, 0, 7))
    np.testing.assert_allclose(cells["y_um"], xy[:, 1] * 0.25)


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
    write_trio(data / "test", IMAGE, places(3, 1), ["10", "11", "00"], sizes=(32, 64))
    code, told = run()
    assert code == 1
    assert "Cells are in train and in test" in told
    assert "Traceback" not in told
