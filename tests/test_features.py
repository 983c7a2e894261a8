"""Feature files: what they hold and depend on, how they are read, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from nuclass.core.errors import UserError
from nuclass.data.features import FeatureKey, check_key, feature_shape, read_features, read_key, write_features
from peak_memory import held, measured

KEY = FeatureKey(
    backbone="dinov3-vitl16",
    sha256="0123456789abcdef",
    window_px=1024,
    mpp=0.25,
    read_level=1,
    input_px=512,
    pooling="cls",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    precision="bfloat16",
)
VIEWS = replace(KEY, views=2, augment=(("blur", 0.5), ("dihedral", True)), seed=42)
OTHER = {
    "backbone": "uni2-h",
    "sha256": "f",
    "window_px": 224,
    "mpp": 0.5,
    "read_level": 0,
    "input_px": 384,
    "pooling": "cls+mean",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "precision": "float32",
    "views": 3,
    "augment": (("blur", 0.4), ("dihedral", True)),
    "seed": 43,
    "truncated": True,
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("shape", [(10_000, 6), (50, 8, 6)])
def test_round_trip_in_any_order(tmp_path, shape):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    ids = [f"{i:05d}" for i in range(shape[0])]
    path = tmp_path / "new" / "a.h5"
    write_features(path, ids, values, KEY)
    pick = np.random.default_rng(1).integers(0, shape[0], 40)
    found = read_features(path, [ids[i] for i in pick])
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, values[pick].astype(np.float16))
    np.testing.assert_array_equal(read_features(path, ids), values.astype(np.float16))
    assert read_features(path, []).shape == (0, *shape[1:])
    assert feature_shape(path) == shape
    assert names(path.parent) == ["a.h5"]


def test_a_file_is_the_same_whenever_it_is_written(tmp_path):
    content = []
    for name in ("a.h5", "b.h5"):
        write_features(tmp_path / name, ["a", "b"], np.ones((2, 3)), KEY)
        content.append((tmp_path / name).read_bytes())
        time.sleep(1.1)
    assert content[0] == content[1]


def test_features_of_several_slides_fill_one_array(tmp_path):
    for slide, ids in (("a", ["1", "2", "3"]), ("b", ["1", "9"])):
        values = np.array([[ord(slide) + int(i)] for i in ids], np.float32)
        write_features(tmp_path / slide, ids, values, KEY)
    out = np.zeros((4, 2, 1), np.float16)
    read_features(tmp_path / "a", np.array(["3", "1"], dtype=object), out=out[:, 1], rows=np.array([0, 2]))
    read_features(tmp_path / "b", ["9", "1"], out=out[:, 1], rows=np.array([3, 1]))
    assert out[:, 1, 0].tolist() == [ord("a") + 3, ord("b") + 1, ord("a") + 1, ord("b") + 9]
    assert not out[:, 0].any()


def test_ids_are_kept_as_they_are(tmp_path):
    ids = ["007", "7", "Zelle-ä", "aaaabbbb-1", " x"]
    write_features(tmp_path / "a.h5", ids, np.arange(5)[:, None], KEY)
    assert read_features(tmp_path / "a.h5", ids[::-1])[:, 0].tolist() == [4, 3, 2, 1, 0]
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["cell_id"].asstr()[:].tolist() == ids
    with pytest.raises(UserError, match="the first: 07"):
        read_features(tmp_path / "a.h5", ["07"])


def memory_of_reading(path, ids):
    read_features(path, ids[:10])  # what is imported for it is not counted
    found, peak, _ = held(read_features, path, ids)
    return found, peak


def test_reading_holds_one_block_beside_the_result(tmp_path):
    ids = np.array([f"{i:06d}" for i in range(40_000)])
    values = np.random.default_rng(0).normal(size=(len(ids), 256)).astype(np.float16)
    write_features(tmp_path / "a.h5", ids, values, KEY)
    order = np.random.default_rng(1).permutation(len(ids))
    found, peak = measured(memory_of_reading, tmp_path / "a.h5", ids[order])
    np.testing.assert_array_equal(found, values[order])
    assert peak < found.nbytes * 1.4


class TestKey:
    def test_every_field_counts(self):
        assert set(OTHER) == {field.name for field in fields(FeatureKey)}
        digests = {replace(VIEWS, **{name: value}).digest for name, value in OTHER.items()}
        assert len(digests | {VIEWS.digest}) == len(OTHER) + 1

    def test_how_a_number_is_written_does_not_count(self):
        whole = replace(KEY, mpp=1, mean=(0, 0, 0), views=1, augment=(("noise", 0), ("dihedral", True)))
        again = replace(KEY, mpp=1.0, mean=[0.0, 0.0, 0.0], views=1, augment=(("dihedral", 1.0), ("noise", 0.0)))
        assert whole == again
        assert whole.digest == again.digest

    def test_survives_the_file(self, tmp_path):
        for key in (KEY, VIEWS):
            write_features(tmp_path / "a.h5", ["a"], np.ones((1, 3)), key)
            assert read_key(tmp_path / "a.h5") == key
            with h5py.File(tmp_path / "a.h5") as file:
                assert file.attrs["digest"] == key.digest
                assert json.loads(file.attrs["key"])["pooling"] == "cls"
        assert VIEWS.plain() == KEY

    @pytest.mark.parametrize("name", OTHER)
    def test_another_key_is_told_field_by_field(self, tmp_path, name):
        path = tmp_path / "a.h5"
        write_features(path, ["a"], np.ones((1, 3)), VIEWS)
        read_features(path, ["a"], key=VIEWS)
        with pytest.raises(UserError) as caught:
            read_features(path, ["a"], key=replace(VIEWS, **{name: OTHER[name]}))
        assert caught.value.what == "Features are not of the kind asked for"
        assert caught.value.found == VIEWS.tell([name])
        assert caught.value.expected == replace(VIEWS, **{name: OTHER[name]}).tell([name])

    def test_the_message(self):
        with pytest.raises(UserError) as caught:
            check_key(KEY, replace(KEY, pooling="cls+mean", read_level=0), "They differ", "a.h5", "compute again")
        assert str(caught.value).splitlines() == [
            "They differ",
            "  where:      a.h5",
            "  found:      read_level = 1, pooling = cls",
            "  expected:   read_level = 0, pooling = cls+mean",
            "  to mend it: compute again",
        ]

    def test_a_changed_key_is_found(self, tmp_path):
        path = tmp_path / "a.h5"
        write_features(path, ["a"], np.ones((1, 3)), KEY)
        with h5py.File(path, "r+") as file:
            file.attrs["key"] = file.attrs["key"].replace('"read_level": 1', '"read_level": 2')
        with pytest.raises(UserError, match="was changed after it was written"):
            read_key(path)
        with h5py.File(path, "r+") as file:
            file.attrs["key"] = json.dumps({"backbone": "x"})
        with pytest.raises(UserError, match=r"other fields than this version's[\s\S]*found: +backbone\n"):
            read_key(path)
        with h5py.File(path, "r+") as file:
            del file.attrs["key"]
        with pytest.raises(UserError, match="does not say what its features depend on"):
            read_key(path)


class TestMistakes:
    def test_cells_and_files_that_are_missing(self, tmp_path):
        path = tmp_path / "a.h5"
        write_features(path, ["a", "b"], np.ones((2, 3)), KEY)
        with pytest.raises(UserError, match="2 of 3 cells are not among the 2 stored, the first: c, d"):
            read_features(path, ["c", "a", "d"])
        with pytest.raises(UserError, match="A feature file is missing"):
            read_features(tmp_path / "none.h5", ["a"])
        path.write_bytes(path.read_bytes()[:300])
        with pytest.raises(UserError, match="A feature file cannot be read"):
            read_features(path, ["a"])

    def test_ids_that_repeat(self, tmp_path):
        path = tmp_path / "a.h5"
        write_features(path, ["a", "b", "c"], np.arange(3.0)[:, None], KEY)
        assert read_features(path, ["c", "a", "c"])[:, 0].tolist() == [2, 0, 2]
        with h5py.File(path, "r+") as file:
            file["cell_id"][1] = b"a"
        with pytest.raises(UserError, match=r"Cell ids repeat in a feature file[\s\S]*1 repeats, the first: a"):
            read_features(path, ["c", "a"])

    def test_other_files(self, tmp_path):
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file["images"] = np.zeros((2, 3), np.uint8)
        with pytest.raises(UserError, match=r"This is no feature file[\s\S]*images uint8 \(2, 3\)"):
            read_features(path, ["a"])
        with h5py.File(path, "w") as file:
            file.create_dataset("cell_id", data=np.array(["a"], dtype=object), dtype=h5py.string_dtype())
            file["features"] = np.zeros((1, 3), np.float16)
        with pytest.raises(UserError, match="This is no feature file"):
            read_features(path, ["a"])

    def test_what_is_not_finite_in_half_precision(self, tmp_path):
        path = tmp_path / "a.h5"
        values = np.ones((6, 3), np.float32)
        values[1, 2], values[2, 0], values[4] = np.nan, 1e6, -np.inf
        with pytest.raises(UserError) as caught:
            write_features(path, list("abcdef"), values, KEY)
        assert caught.value.what == "Features are not finite in half precision"
        assert caught.value.found == "3 of 6 cells, the first: b, c, e"
        assert not list(tmp_path.iterdir())
        write_features(path, ["a"], np.full((1, 3), 65_504.0), KEY)

    def test_ids_and_rows(self, tmp_path):
        with pytest.raises(ValueError, match="2 ids, of which 1 different"):
            write_features(tmp_path / "a.h5", ["a", "a"], np.ones((2, 3)), KEY)
        with pytest.raises(ValueError, match="1 ids for features of shape"):
            write_features(tmp_path / "a.h5", ["a"], np.ones((2, 3)), KEY)
        assert not list(tmp_path.iterdir())


class TestFullDisk:
    def test_it_is_seen_before_writing(self, tmp_path, monkeypatch):
        path = tmp_path / "a.h5"
        write_features(path, ["a"], np.ones((1, 3)), KEY)
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 1_500_000))
        with pytest.raises(UserError, match=r"The disk is full[\s\S]*3\.1 MB are needed, 1\.5 MB are free"):
            write_features(path, [str(i) for i in range(1000)], np.zeros((1000, 1024)), KEY)
        assert read_features(path, ["a"]).tolist() == [[1, 1, 1]]
        assert names(tmp_path) == ["a.h5"]

    @pytest.mark.skipif(not shutil.which("unshare"), reason="needs a disk of its own")
    def test_it_is_seen_while_writing(self, tmp_path):
        """A real disk of 1 MB, which says it has more: the error is ours, and the process lives on."""
        code = f"""
import collections, os, shutil, sys
import numpy as np
sys.path.insert(0, {str(Path(__file__).parent)!r})
from nuclass.core.errors import UserError
from nuclass.data.features import write_features
from test_features import KEY
shutil.disk_usage = lambda _: collections.namedtuple("usage", "free")(1e12)
try:
    write_features("{tmp_path}/disk/a.h5", [str(i) for i in range(1000)], np.zeros((1000, 1024)), KEY)
except UserError as error:
    print(error.what, os.listdir("{tmp_path}/disk"))
"""
        (tmp_path / "disk").mkdir()
        mount = f"mount -t tmpfs -o size=1m none {tmp_path}/disk"
        if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
            pytest.skip("no disk of its own can be mounted here")
        script = tmp_path / "write.py"
        script.write_text(code)
        command = ["unshare", "-rm", "sh", "-c", f"{mount} && exec {sys.executable} {script}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(r"The disk is full \[\]\s*", done.stdout)
