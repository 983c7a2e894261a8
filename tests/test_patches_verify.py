"""The check of a data set: each fault gives the verdict of its own rule."""

from __future__ import annotations

import json
import shutil

import h5py
import numpy as np
import pytest

from nuclass.patches.export import export_patches
from nuclass.patches.verify import verify_patches
from patch_example import SIDES, build_slide, records, write_h5, write_trio

IDS = ["0012", "0007", "abc-1", "b", "c", "d"]
WHO = {"slide": "s", "organ": "ovary", "patient": "p", "mpp": 0.25}


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    store, cells, labels = build_slide(folder)
    export_patches(store, cells, labels, folder / "trio", SIDES, **WHO)
    return store, cells, labels, folder / "trio"


@pytest.fixture
def copy(slide, tmp_path):
    return shutil.copytree(slide[3], tmp_path / "copy")


def verdicts(folder, **options):
    checks = verify_patches(folder, SIDES, options.pop("mpp", 0.25), **options)
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


def failed(checks):
    return [name for name, check in checks.items() if check.verdict == "fail"]


def change(path, row, image):
    with h5py.File(path, "r+") as file:
        file["images"][row] = image(file["images"][row])


def test_an_export_passes_against_its_slide_and_itself(slide):
    store, cells, _, folder = slide
    checks = verdicts(folder, store=store, cells=cells, against=folder)
    assert {check.verdict for check in checks.values()} == {"pass"}
    assert checks["global pixels against the slide"].found == "all 40 equal to the last bit"
    assert checks["local pixels against the other data set"].found == "all 40 equal to the last bit"
    assert "places against the slide" in checks


@pytest.mark.parametrize("role", SIDES)
def test_one_pixel_that_differs_is_found(slide, copy, role):
    store, cells, _, folder = slide

    def spoil(image):
        image[3, 4, 1] ^= 1
        return image

    change(copy / f"patches_{SIDES[role]}x{SIDES[role]}.h5", 7, spoil)
    checks = verdicts(copy, store=store, cells=cells, against=folder)
    assert failed(checks) == [f"{role} pixels against the slide", f"{role} pixels against the other data set"]
    check = checks[f"{role} pixels against the slide"]
    assert check.found == "1 of 40 windows differ, by up to 1 grey levels"
    assert check.detail == "such as 0007"


def test_only_the_sample_is_looked_at(slide, copy):
    store, cells, *_ = slide
    change(copy / "patches_32x32.h5", 7, lambda image: 255 - image)
    found = {seed: failed(verdicts(copy, store=store, cells=cells, sample=10, seed=seed)) for seed in range(12)}
    assert any(found.values())
    assert not all(found.values())
    assert found[3] == failed(verdicts(copy, store=store, cells=cells, sample=10, seed=3))
    assert verdicts(copy, sample=10)["double local windows"].found == "none of 10 looked at"
    assert failed(verdicts(copy, store=store, cells=cells, sample=0))


def test_padding_with_black_is_told_apart_from_other_pixels(slide, copy):
    """The original pads with zeros; the tissue must still be equal."""
    store, cells, *_ = slide
    xy = cells.sort_values("cell_id")[["x_px", "y_px"]].to_numpy()
    with h5py.File(copy / "patches_128x128.h5", "r+") as file:
        for row, (x, y) in enumerate(xy):
            x0, y0 = int(np.floor(x - 63.5)), int(np.floor(y - 63.5))
            image = file["images"][row]
            image[:, : max(-x0, 0)] = 0
            image[: max(-y0, 0)] = 0
            image[:, max(store.shape[1] - x0, 0) :] = 0
            image[max(store.shape[0] - y0, 0) :] = 0
            file["images"][row] = image
        padded = int((file["padded"][:] > 0).sum())
    checks = verdicts(copy, store=store, cells=cells)
    assert failed(checks) == []
    assert checks["global pixels against the slide"].verdict == "warn"
    assert (
        checks["global pixels against the slide"].found == f"{padded} of 40 windows are padded with black, else equal"
    )
    assert checks["black edges global windows"].verdict == "warn"
    assert checks["black edges global windows"].found.startswith(f"{padded} of 40")
    assert checks["local pixels against the slide"].verdict == "pass"


def test_black_and_double_windows(tmp_path):
    images = write_trio(tmp_path, IDS)
    local, wide = images["local"], images["global"]
    local[2] = 0
    wide[4] = wide[1]
    wide[2:4] = 255
    write_h5(tmp_path / "patches_32x32.h5", IDS, local)
    write_h5(tmp_path / "patches_128x128.h5", IDS, wide)
    checks = verdicts(tmp_path)
    assert failed(checks) == ["black local windows"]
    assert checks["black local windows"].found == "1 of 6 looked at"
    assert checks["black local windows"].detail.startswith("abc-1: rows that the original's writer failed on")
    assert checks["black edges local windows"].verdict == "pass"
    assert checks["double global windows"].verdict == "warn"
    assert checks["double global windows"].found == "1 of 6 looked at", "white windows are alike without being doubles"
    assert checks["double local windows"].verdict == "pass"


def test_places_and_cells_of_the_slide(slide, copy):
    store, cells, *_ = slide
    moved = cells.assign(x_px=cells["x_px"] + 3)
    checks = verdicts(copy, store=store, cells=moved)
    assert "places against the slide" in failed(checks)
    assert checks["places against the slide"].found == "40 of 40 elsewhere, up to 3.00 px"
    dropped = cells.assign(status=np.where(cells["cell_id"] == "0007", "dropped", "kept"))
    checks = verdicts(copy, store=store, cells=dropped)
    assert failed(checks) == ["cells of the slide"]
    assert checks["cells of the slide"].found == "1 of 40 are not"
    assert checks["cells of the slide"].detail == "such as 0007"


def test_another_data_set(tmp_path):
    write_trio(tmp_path / "a", IDS)
    images = write_trio(tmp_path / "b", IDS[::-1])
    for role, side in SIDES.items():
        write_h5(tmp_path / f"b/patches_{side}x{side}.h5", IDS[::-1], images[role], "per_key")
    checks = verdicts(tmp_path / "a", against=tmp_path / "b")
    assert failed(checks) == [
        "labels of the other data set",
        *(f"{role} pixels against the other data set" for role in SIDES),
    ]
    assert checks["labels of the other data set"].found == "6 of 6 differ"
    assert checks["labels of the other data set"].detail == "0012: Tumour and T"
    write_trio(tmp_path / "c", [*IDS[:5], "e"])
    checks = verdicts(tmp_path / "a", against=tmp_path / "c")
    assert failed(checks) == ["cells of the other data set"]
    assert checks["cells of the other data set"].found == "1 cells only here, 1 only there"
    write_trio(tmp_path / "d", IDS, sides={"local": 32, "global": 64})
    assert (
        verdicts(tmp_path / "a", against=tmp_path / "d")["global pixels against the other data set"].verdict
        == "skipped"
    )
    check = verdicts(tmp_path / "a", against=tmp_path / "none")["the other data set"]
    assert check.verdict == "fail"
    assert "the folder of a slide's patch files is missing" in check.found


def test_half_size_windows_against_the_slide(slide, copy):
    store, cells, *_ = slide
    with h5py.File(copy / "patches_128x128.h5") as file:
        keys, images = [key.decode() for key in file["keys"][:]], file["images"][:].astype(np.uint16)
    total = images[:, ::2, ::2] + images[:, 1::2, ::2] + images[:, ::2, 1::2] + images[:, 1::2, 1::2]
    write_h5(copy / "patches_128x128.h5", keys, ((total + 2) // 4).astype(np.uint8))
    checks = verdicts(copy, store=store, cells=cells)
    assert failed(checks) == []
    assert checks["size of the windows"].verdict == "warn"
    assert checks["global pixels against the slide"].verdict == "pass"


def write_without_ids(folder):
    images = write_trio(folder, IDS)
    write_h5(folder / "patches_32x32.h5", IDS[:5], images["local"][:5])


def write_overlap(folder):
    write_trio(folder / "train", IDS[:4])
    write_trio(folder / "test", IDS[3:])


def cut_off(folder):
    write_trio(folder, IDS)
    path = folder / "patches_128x128.h5"
    path.write_bytes(path.read_bytes()[:-1000])


def broken_json(folder):
    write_trio(folder, IDS)
    path = folder / "annotations.json"
    path.write_text(path.read_text()[:-50])


FAULTS = {
    "ids": (write_without_ids, "1 not in patches_32x32.h5 (d)"),
    "train and test": (write_overlap, "1 in both (b)"),
    "files": (cut_off, "cut off"),
    "annotations": (broken_json, "its end in the middle"),
    "scale": (lambda folder: write_trio(folder, IDS, micron_per_pixel=0.5), "micron_per_pixel 0.5"),
    "size of the windows": (lambda folder: write_trio(folder, IDS, sides={"local": 16, "global": 128}), "16 px"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_fails_its_rule_alone(tmp_path, name):
    make, words = FAULTS[name]
    make(tmp_path)
    checks = verdicts(tmp_path)
    assert failed(checks) == [name]
    assert words in checks[name].found
    for path in tmp_path.rglob("*.h5"):
        path.write_bytes(b"")
        assert not h5py.is_hdf5(path), "the check left a file open"


def test_no_data_set(tmp_path):
    checks = verdicts(tmp_path)
    assert failed(checks) == ["files"]
    assert "no annotations.json" in checks["files"].found


def test_odd_but_usable_is_a_warning(tmp_path):
    write_trio(tmp_path, IDS, patient_id=None, magnification=None, micron_per_pixel=None)
    with h5py.File(tmp_path / "patches_32x32.h5") as file:
        grey = file["images"][..., 0]
    write_h5(tmp_path / "patches_32x32.h5", IDS, grey)
    checks = verdicts(tmp_path)
    assert failed(checks) == []
    assert checks["files"].verdict == checks["annotations"].verdict == checks["scale"].verdict == "warn"
    assert "grey" in checks["files"].detail
    assert checks["annotations"].detail == "the first record lacks micron_per_pixel, magnification, patient_id"
    assert checks["scale"].found == "not stated"


def test_cells_without_a_label_are_a_warning(tmp_path):
    write_trio(tmp_path, IDS)
    made = records(IDS)
    made["b"]["class_id"] = None
    (tmp_path / "annotations.json").write_text(json.dumps(made))
    check = verdicts(tmp_path)["annotations"]
    assert (check.verdict, check.found, check.detail) == ("warn", "6 records, 2 classes", "1 cells have no label")


def test_labels_under_another_name_are_no_fault(tmp_path):
    write_trio(tmp_path, IDS)
    made = records(IDS, class_id=None, cell_type="T")
    (tmp_path / "annotations.json").write_text(json.dumps(made))
    check = verdicts(tmp_path)["annotations"]
    assert (check.verdict, check.found) == ("warn", "6 records, 1 classes")
    assert check.detail == "the first record lacks class_id"
