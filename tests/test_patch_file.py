"""HDF5 files of windows: both layouts, odd pictures, files that cannot be used."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nuclass.core.errors import UserError
from nuclass.patches.patch_file import PatchFile
from patch_example import write_h5

RNG = np.random.default_rng(1)
IMAGES = RNG.integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
IDS = [f"{i:03d}" for i in range(9)]
ROWS = [4, 0, 8, 4, 1, 2, 3]


def told(path: Path) -> str:
    with pytest.raises(UserError) as error, PatchFile(path) as file:
        _ = file.keys
    return str(error.value)


@pytest.mark.parametrize("layout", ["merged", "per_key"])
def test_rows_come_in_the_order_asked(tmp_path, layout):
    write_h5(tmp_path / "a.h5", IDS, IMAGES, layout)
    with PatchFile(tmp_path / "a.h5") as file:
        assert (file.layout, file.side, file.count, file.keys, file.notes) == (layout, 16, 9, IDS, [])
        np.testing.assert_array_equal(file.read(ROWS), IMAGES[ROWS])
        np.testing.assert_array_equal(file.read(ROWS, [IDS[row] for row in ROWS]), IMAGES[ROWS])
        assert file.read([]).shape == (0, 16, 16, 3)
        with pytest.raises(IndexError):
            file.read([9])


@pytest.mark.parametrize("options", [{}, {"chunks": True}, {"chunks": (2, 8, 16, 3), "compression": "gzip"}])
def test_any_storage_gives_the_same(tmp_path, options):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", data=IMAGES, **options)
        file.create_dataset("keys", data=[i.encode() for i in IDS])
    file = PatchFile(tmp_path / "a.h5")
    np.testing.assert_array_equal(file.read(ROWS), IMAGES[ROWS])
    assert (file._map is not None) == (not options), "plain numbers in one block are memory-mapped, others are not"
    again = pickle.loads(pickle.dumps(file))
    assert again._file is None
    np.testing.assert_array_equal(again.read(ROWS), IMAGES[ROWS])


def test_a_forked_process_opens_the_file_itself(tmp_path):
    """Two processes that share one open file move each other's place in it."""
    write_h5(tmp_path / "a.h5", IDS, IMAGES)
    file = PatchFile(tmp_path / "a.h5")
    file.read([0])
    mine = file._file
    child = os.fork()
    if child == 0:
        same = file._open() is mine
        os._exit(int(same or not (file.read(ROWS) == IMAGES[ROWS]).all()))
    assert os.waitpid(child, 0)[1] == 0
    assert file._open() is mine


@pytest.mark.parametrize("layout", ["merged", "per_key"])
def test_grey_and_alpha_are_read_and_told(tmp_path, layout):
    write_h5(tmp_path / "grey.h5", IDS, IMAGES[..., 0], layout)
    file = PatchFile(tmp_path / "grey.h5")
    np.testing.assert_array_equal(file.read(ROWS), np.repeat(IMAGES[ROWS, :, :, :1], 3, -1))
    assert file.notes == ["the windows are grey; their one channel is repeated"]
    alpha = RNG.integers(0, 256, (9, 16, 16, 1), dtype=np.uint8)
    alpha[0], alpha[1] = 0, 255
    write_h5(tmp_path / "alpha.h5", IDS, np.concatenate([IMAGES, alpha], -1), layout)
    file = PatchFile(tmp_path / "alpha.h5")
    share = alpha / 255.0
    expected = np.rint(IMAGES * share + 255 * (1 - share))
    np.testing.assert_allclose(file.read(np.arange(9)), expected, atol=0.5)
    assert (file.read([0]) == 255).all()
    np.testing.assert_array_equal(file.read([1])[0], IMAGES[1])
    assert file.notes == ["the windows have an alpha channel; they are laid over white"]


# Names of datasets are C strings divided by "/"; ids of a merged file hold anything but NUL.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(TEXT | st.from_regex(r"0{1,3}[0-9]{1,4}", fullmatch=True), min_size=1, max_size=8, unique=True))
def test_ids_of_any_text_come_back(tmp_path, ids):
    images = IMAGES[np.arange(len(ids))]
    write_h5(tmp_path / "a.h5", ids, images)
    file = PatchFile(tmp_path / "a.h5")
    assert file.keys == ids
    np.testing.assert_array_equal(file.read(np.arange(len(ids))), images)
    names = [cell for cell in ids if "/" not in cell and cell != "."]
    if names and set(names) != {"images", "keys"}:
        write_h5(tmp_path / "b.h5", names, images[: len(names)], "per_key")
        file = PatchFile(tmp_path / "b.h5")
        assert file.keys == sorted(names, key=str.encode)
        order = [names.index(cell) for cell in file.keys]
        np.testing.assert_array_equal(file.read(np.arange(len(names))), images[order])


def write(path: Path, datasets: dict[str | bytes, object]) -> Path:
    with h5py.File(path, "w") as file:
        for name, data in datasets.items():
            file[name] = data
    return path


KEYS = [i.encode() for i in IDS]
BAD = {
    "empty ids": ({"images": IMAGES, "keys": [b"", b"1", b"", *KEYS[3:]]},
                  ["Windows have no cell id", "2 empty ids of 9, the first in row 0", "left black windows"]),
    "doubled ids": ({"images": IMAGES, "keys": [*KEYS[:8], KEYS[2]]},
                    ["Cell ids repeat in a file of windows", "1 repeats, among them 002"]),
    "numbers": ({"images": IMAGES, "keys": np.arange(9)}, ["are no text", "int64", "numbers lose leading zeros"]),
    "not UTF-8": ({"images": IMAGES, "keys": [b"\xff", *KEYS[1:]]}, ["A cell id is not UTF-8", "keys: 'utf-8' codec"]),
    "a name not UTF-8": ({b"\xff\xfe": IMAGES[0], "a": IMAGES[1]},
                         ["A cell id is not UTF-8", r"1 names of datasets, such as b'\xff\xfe'"]),
    "a link to nothing": ({"a": IMAGES[0], "b": h5py.SoftLink("/none")},
                          ["A cell has no window", "no dataset named 'b', or a link to nothing"]),
    "more than windows": ({"a": IMAGES[0], "coords": np.zeros((2, 2))},
                          ["coords", "the wrong type of number", "if 'coords' is no window, take it out of the file"]),
    "fewer ids": ({"images": IMAGES, "keys": KEYS[:8]},
                  ["does not fit its ids", "images (9, 16, 16, 3), keys (8,)", "one id for each window"]),
    "floats": ({"images": IMAGES / 255.0, "keys": KEYS}, ["the wrong type of number", "float64", "uint8, 0 to 255"]),
    "not square": ({"images": IMAGES[:, :8], "keys": KEYS}, ["the wrong shape", "8 x 16 x 3", "S x S x 3: square"]),
    "channels first": ({"images": np.moveaxis(IMAGES, -1, 1), "keys": KEYS}, ["the wrong shape", "3 x 16 x 16"]),
    "two channels": ({"images": IMAGES[..., :2], "keys": KEYS}, ["the wrong shape", "16 x 16 x 2"]),
    "no ids": ({"images": IMAGES}, ["an unknown layout", "images, but no keys"]),
    "no windows": ({"images": IMAGES[:0], "keys": np.array([], "S3")}, ["is empty", "0 windows"]),
    "nothing": ({}, ["is empty", "0 windows"]),
    "sizes differ": ({"a": IMAGES[0], "b": IMAGES[0, :8, :8]},
                     ["differ in size", "a: 16 x 16 x 3; b: 8 x 8 x 3", "one size for all"]),
    "a single number": ({"a": np.uint8(3)}, ["the wrong shape", "a single number"]),
    "a group": ({"a/b": IMAGES[0]}, ["an unknown layout", "a group named 'a'"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_files_that_cannot_be_used(tmp_path, case):
    datasets, words = BAD[case]
    message = told(write(tmp_path / "bad.h5", datasets))
    assert "bad.h5" in message
    for word in words:
        assert word in message


def test_a_window_of_another_size_is_told_when_all_are_looked_at_and_when_it_is_read(tmp_path):
    names = [f"{i:04d}" for i in range(200)]
    windows = {name: IMAGES[0, :8, :8] if name == "0101" else IMAGES[0] for name in names}
    file = PatchFile(write(tmp_path / "a.h5", windows))
    for look in (file.look_at_all, lambda: file.read([101])):
        with pytest.raises(UserError, match="0101: 8 x 8 x 3; the first: 16 x 16 x 3"):
            look()
    with PatchFile(write(tmp_path / "b.h5", windows | {"0101": IMAGES[0]})) as sound:
        sound.look_at_all()
    with (
        pytest.raises(UserError, match="float64"),
        PatchFile(write(tmp_path / "c.h5", windows | {"0101": IMAGES[0] / 255.0})) as other,
    ):
        other.look_at_all()
    with pytest.raises(UserError, match="no dataset named '0300'"):
        file.read([0], ["0300"])


def test_files_that_cannot_be_opened(tmp_path):
    write_h5(tmp_path / "a.h5", IDS, IMAGES)
    data = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.h5").write_text("cell,x,y\n" * 100)
    assert "A file of windows is cut off" in told(tmp_path / "cut.h5")
    assert "A file of windows is not HDF5" in told(tmp_path / "text.h5")
    assert "A file of windows is missing" in told(tmp_path / "none.h5")
    assert "A file of windows is a folder" in told(tmp_path)


def test_a_damaged_window_is_told(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        images = file.create_dataset("images", data=IMAGES, chunks=(1, 16, 16, 3), compression="gzip")
        file.create_dataset("keys", data=KEYS)
        chunk = images.id.get_chunk_info(5)
    data = bytearray((tmp_path / "a.h5").read_bytes())
    data[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\0" * chunk.size
    (tmp_path / "a.h5").write_bytes(bytes(data))
    file = PatchFile(tmp_path / "a.h5")
    np.testing.assert_array_equal(file.read([4]), IMAGES[[4]])
    with pytest.raises(UserError, match="Windows cannot be read") as error:
        file.read([5])
    assert "a.h5, rows 5 to 5" in str(error.value)


@pytest.mark.parametrize(("locking", "libver"), [("TRUE", "earliest"), ("FALSE", "latest")])
def test_a_file_still_being_written(tmp_path, locking, libver):
    """Told by the lock, and where there are no locks by the mark that new files carry."""
    writer = h5py.File(tmp_path / "a.h5", "w", libver=libver, locking=locking == "TRUE")
    writer.create_dataset("images", data=IMAGES)
    writer.flush()
    command = f"from nuclass.patches.patch_file import PatchFile; PatchFile({str(tmp_path / 'a.h5')!r})"
    environment = {**os.environ, "HDF5_USE_FILE_LOCKING": locking}
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, env=environment)
    writer.close()
    assert "UserError: A file of windows is open for writing" in done.stderr
    assert "wait for the program that writes it" in done.stderr


def test_ids_of_fixed_length_are_utf_8(tmp_path):
    ids = ["é1", "漢", *IDS[2:]]
    keys = np.array([cell.encode() for cell in ids])
    assert keys.dtype.kind == "S"
    assert PatchFile(write(tmp_path / "a.h5", {"images": IMAGES, "keys": keys})).keys == ids


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refused(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(h5py, "File", refused)
    assert "A file of windows may not be read" in told(tmp_path / "a.h5")


def test_virtual_windows_without_their_slide_are_refused(tmp_path):
    """HDF5 gives white windows for what is not there, without a word."""
    layout = h5py.VirtualLayout((3, 16, 16, 3), np.uint8)
    for row, (name, top, left) in enumerate([("slide.h5", 30, 0), ("other.h5", 30, 1), ("other.h5", 0, 0)]):
        layout[row] = h5py.VirtualSource(name, "slide", (64, 64, 3), np.uint8)[top : top + 16, left : left + 16]
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_virtual_dataset("images", layout, fillvalue=255)
        file.create_dataset("keys", data=[b"a", b"b", b"c"])

    def refused() -> str:
        with pytest.raises(UserError) as error, PatchFile(tmp_path / "v.h5") as file:
            file.look_at_all()
        return str(error.value)

    sources = [write(tmp_path / name, {"slide": np.zeros((46, 17, 3), np.uint8)}) for name in ("slide.h5", "other.h5")]
    with PatchFile(tmp_path / "v.h5") as file:
        file.look_at_all()
        assert file.sources == sources
    write(tmp_path / "other.h5", {"slide": np.zeros((46, 16, 3), np.uint8)})
    message = refused()
    assert "The slide that virtual windows are cut from is another one" in message
    assert f"{tmp_path / 'other.h5'}, slide" in message
    assert "46 x 16 x 3\n  expected:   at least 46 x 17 x 3" in message
    write(tmp_path / "other.h5", {"picture": np.zeros((46, 17, 3), np.uint8)})
    assert "no such dataset" in refused()
    (tmp_path / "other.h5").unlink()
    message = refused()
    assert "The slide that virtual windows are cut from is missing" in message
    assert str(tmp_path / "other.h5") in message
