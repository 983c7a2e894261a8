"""The three files of a data set against each other."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from nuclass.core.errors import UserError
from nuclass.patches.trio import open_trio
from patch_example import SIDES, records, write_h5, write_trio

IDS = ["0012", "0007", "abc-1", "b", "c", "d"]


def told(folder, mpp=0.25, windows=SIDES):
    with pytest.raises(UserError) as error:
        open_trio(folder, windows, mpp)
    return str(error.value)


@pytest.mark.parametrize("layout", ["merged", "per_key"])
def test_files_that_fit(tmp_path, layout):
    images = write_trio(tmp_path, IDS, layout)
    (tmp_path / "annotations.json").write_text(json.dumps(records(IDS[::-1])))
    with open_trio(tmp_path, SIDES, 0.25) as trio:
        assert trio.cells["cell_id"].tolist() == trio.rows["cell_id"].tolist() == IDS[::-1]
        assert (trio.sides, trio.mpp, trio.notes) == (SIDES, 0.25, [])
        assert trio.rows["part"].tolist() == [0] * 6
        assert trio.cells["split"].tolist() == [""] * 6
        for role in SIDES:
            np.testing.assert_array_equal(trio.read(role, [5, 0, 0]), images[role][[0, 5, 5]])


def test_train_and_test_below_the_folder(tmp_path):
    images = {part: write_trio(tmp_path / part, ids, seed=k) for k, (part, ids) in enumerate(
        {"train": IDS[:4], "test": IDS[4:]}.items())}  # fmt: skip
    with open_trio(tmp_path, SIDES, 0.25) as trio:
        assert [(part.split, part.folder.name) for part in trio.parts] == [("train", "train"), ("val", "test")]
        assert trio.cells["split"].tolist() == ["train"] * 4 + ["val"] * 2
        got = trio.read("local", [5, 1, 4, 0])
    np.testing.assert_array_equal(got[[0, 2]], images["test"]["local"][[1, 0]])
    np.testing.assert_array_equal(got[[1, 3]], images["train"]["local"][[1, 0]])


def test_global_windows_at_half_size(tmp_path):
    write_trio(tmp_path, IDS, sides={"local": 32, "global": 64})
    with open_trio(tmp_path, SIDES, 0.25) as trio:
        assert trio.sides == {"local": 32, "global": 64}
        assert trio.notes == ["the global windows are stored at half size, 64 of 128 px"]
    write_trio(tmp_path, IDS, sides={"local": 16, "global": 128})
    message = told(tmp_path)
    assert "Windows have another size than the study's" in message
    assert "patches_32x32.h5" in message
    assert "16 px\n  expected:   32 px\n" in message


def test_sides_of_train_and_test_differ(tmp_path):
    write_trio(tmp_path / "train", IDS[:3])
    write_trio(tmp_path / "test", IDS[3:], sides={"local": 32, "global": 64})
    assert "Windows of train and test differ in size" in told(tmp_path)


@pytest.mark.parametrize("name", ["patches_32x32.h5", "patches_128x128.h5"])
def test_ids_that_one_file_lacks(tmp_path, name):
    images = write_trio(tmp_path, IDS)
    role = "local" if "32" in name else "global"
    write_h5(tmp_path / name, [*IDS[:4], "strange"], images[role][:5])
    message = told(tmp_path)
    assert "The three files are of different cells" in message
    assert "6 cells in annotations.json" in message
    assert f"5 in {name}" in message
    assert f"2 not in {name} (c, d)" in message
    assert f"1 only in {name} (strange)" in message


def test_the_two_scales_hold_different_ids(tmp_path):
    images = write_trio(tmp_path, IDS)
    write_h5(tmp_path / "patches_128x128.h5", [f"x{cell}" for cell in IDS], images["global"])
    message = told(tmp_path)
    assert "6 not in patches_128x128.h5 (0012, 0007, abc-1, ...)" in message
    assert "patches_32x32.h5 (" not in message


@pytest.mark.parametrize("loser", ["annotations.json", "patches_32x32.h5", "patches_128x128.h5"])
def test_ids_that_lost_their_zeros(tmp_path, loser):
    ids = ["0012", "0007", "000"]
    images = write_trio(tmp_path, ids)
    short = ["12", "7", "0"]
    if loser == "annotations.json":
        (tmp_path / loser).write_text(json.dumps(records(short)))
    else:
        write_h5(tmp_path / loser, short, images["local" if "32" in loser else "global"])
    message = told(tmp_path)
    assert "Cell ids have lost their leading zeros" in message
    assert f"where:      {tmp_path / loser}" in message
    assert "12 where the other file has 0012 (3 cells)" in message
    assert "ids with leading zeros were read as numbers" in message


def test_a_cell_in_train_and_in_test(tmp_path):
    write_trio(tmp_path / "train", IDS[:4])
    write_trio(tmp_path / "test", IDS[3:])
    message = told(tmp_path)
    assert "Cells are in train and in test" in message
    assert "1 in both (b)" in message


def test_the_scale(tmp_path):
    write_trio(tmp_path, IDS, micron_per_pixel=0.415)
    message = told(tmp_path)
    assert "The windows have another scale than the study" in message
    assert "micron_per_pixel 0.415 in 6 cells" in message
    assert "0.25 um/px, the study's mpp, to within 1 %" in message
    write_trio(tmp_path, IDS, micron_per_pixel=0.2524)
    with open_trio(tmp_path, SIDES, 0.25) as trio:
        assert trio.mpp == pytest.approx(0.2524)
    write_trio(tmp_path, IDS, micron_per_pixel=0.2526)
    assert "another scale" in told(tmp_path)
    write_trio(tmp_path, IDS, micron_per_pixel=None)
    trio = open_trio(tmp_path, SIDES, 0.25)
    assert trio.mpp is None
    assert trio.notes == ["the annotations do not state micron_per_pixel; taken as 0.25 um/px"]


def test_positions(tmp_path):
    write_trio(tmp_path, IDS, centroid_y=None)
    assert "centroid_y: missing in 6 of 6, first 0012" in told(tmp_path)
    write_trio(tmp_path, IDS, centroid_x=float("nan"))
    message = told(tmp_path)
    assert "Cells have no position" in message
    assert "6 of 6, the first is 0012" in message
    assert "splits rest on where cells lie" in message


def test_ids_that_differ_by_blanks_are_quoted(tmp_path):
    write_trio(tmp_path, IDS)
    (tmp_path / "annotations.json").write_text(json.dumps(records([*IDS[:5], "d "])))
    message = told(tmp_path)
    assert "1 not in patches_32x32.h5 ('d ')" in message
    assert "1 only in patches_32x32.h5 (d)" in message


def test_a_window_of_another_size_among_many(tmp_path):
    ids = [f"{i:04d}" for i in range(200)]
    write_trio(tmp_path, ids, "per_key")
    with h5py.File(tmp_path / "patches_128x128.h5", "a") as file:
        del file["0101"]
        file["0101"] = np.zeros((64, 64, 3), np.uint8)
    message = told(tmp_path)
    assert "Windows of one file differ in size" in message
    assert "patches_128x128.h5" in message
    assert "0101: 64 x 64 x 3; the first: 128 x 128 x 3" in message


def test_cells_without_a_label_are_told(tmp_path):
    write_trio(tmp_path, IDS)
    made = records(IDS)
    made["b"]["class_id"] = made["c"]["class_id"] = None
    (tmp_path / "annotations.json").write_text(json.dumps(made))
    with open_trio(tmp_path, SIDES, 0.25) as trio:
        assert trio.notes == ["2 of 6 cells have no label"]
        assert trio.cells["label"].tolist().count("") == 2


def test_several_slides_in_one_data_set_are_told(tmp_path):
    write_trio(tmp_path, IDS)
    made = records(IDS)
    made["b"]["slide_id"] = "another"
    (tmp_path / "annotations.json").write_text(json.dumps(made))
    assert open_trio(tmp_path, SIDES, 0.25).notes == [
        "the cells are of 2 slides (s, another); their positions are taken as of one"
    ]


def test_files_in_the_folder_and_below(tmp_path):
    write_trio(tmp_path, IDS[:3])
    write_trio(tmp_path / "train", IDS[3:])
    assert "patch files lie both in a folder and below it" in told(tmp_path)
    (tmp_path / "annotations.json").unlink()
    for name in ("patches_32x32.h5", "patches_128x128.h5"):
        (tmp_path / name).unlink()
    assert "no test/annotations.json" in told(tmp_path)
