"""Windows from patch files: the same pixels as from the slide, in any layout, and what is wrong is told."""

from __future__ import annotations

import json
import multiprocessing
import pickle

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nuclass.core.errors import UserError
from nuclass.core.files import write_json, write_parquet
from nuclass.patches.importing import import_patches
from nuclass.patches.patch_windows import PatchWindows
from nuclass.patches.slide_windows import SlideWindows
from nuclass.patches.windows import WindowReader, open_windows
from peak_memory import held, measured
from trio_example import crop, halved, picture, store_of, write_trio, write_windows

HEIGHT, WIDTH = 1300, 1500
N = 14
WINDOWS = {"local": 224, "global": 1024}
SMALL = {"local": 32, "global": 64}
LAYOUTS = [("merged", "merged"), ("per_key", "per_key"), ("merged", "per_key")]


def cells(n: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    xy = np.concatenate([rng.uniform((0, 0), (WIDTH, HEIGHT), (n - 2, 2)), [[0.0, 0.0], [WIDTH, HEIGHT]]])
    return [f"{i:04d}" for i in rng.permutation(n)], xy


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    image = picture(HEIGHT, WIDTH)
    return store_of(tmp_path_factory.mktemp("slide"), image), image


def imported(folder, out, windows=SMALL, mpp=0.25):
    import_patches(
        folder=folder, cells=out / "cells.parquet", manifest=out / "patches.json", windows=windows, mpp=mpp, slide="s"
    )
    return out / "patches.json"


@pytest.fixture(scope="module")
def small(slide, tmp_path_factory):
    """Return layouts -> manifest of small windows, their ids, places and pixels."""
    folder = tmp_path_factory.mktemp("small")
    ids, xy = cells(40)
    found = {}
    for layouts in LAYOUTS:
        name = "_".join(layouts)
        write_trio(folder / name, slide[1], xy, ids, sizes=(32, 64), layouts=layouts, shuffle=3)
        found[layouts] = imported(folder / name, folder / f"{name}_out")
    crops = {size: np.stack([crop(slide[1], x, y, size) for x, y in xy]) for size in (32, 64)}
    return found, ids, xy, crops


@pytest.mark.parametrize("layouts", LAYOUTS[:2], ids=str)
def test_windows_equal_the_slides_exact_ones(slide, tmp_path, layouts):
    path, image = slide
    ids, xy = cells(N)
    options = {"chunks": (1, 224, 224, 3), "compression": "lzf"} if layouts[0] == "merged" else {}
    write_trio(tmp_path / "trio", image, xy, ids, layouts=layouts, shuffle=1)
    if options:
        whole = h5py.File(tmp_path / "trio" / "patches_224x224.h5")["images"][:]
        keys = h5py.File(tmp_path / "trio" / "patches_224x224.h5")["keys"].asstr()[:]
        write_windows(tmp_path / "trio" / "patches_224x224.h5", list(keys), whole, **options)
    files = PatchWindows(imported(tmp_path / "trio", tmp_path / "out", WINDOWS))
    store = SlideWindows(path)
    assert files.mpp == store.mpp == 0.25
    rows = np.random.default_rng(0).permutation(N)
    for size, out_px in ((224, 96), (224, 224), (1024, 512), (1024, 128), (1024, 1024)):
        expected = store.cut(None, xy[rows], size, 0, out_px)
        # Patch files are read exactly, whatever level is asked for.
        for level in (0, 1):
            np.testing.assert_array_equal(files.cut(rows, xy[rows], size, level, out_px), expected)
    assert np.isnan(files.padded(rows, xy[rows], 224)).all()


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.integers(0, 39), max_size=60), layouts=st.sampled_from(LAYOUTS))
def test_any_rows_in_any_order_with_repeats(small, rows, layouts):
    found, _, xy, crops = small
    with_rows = np.array(rows, np.int64)
    windows = PatchWindows(found[layouts])
    assert len(windows) == 40
    for size in (32, 64):
        got = windows.cut(with_rows, xy[with_rows], size, 0, size)
        assert got.shape == (len(rows), size, size, 3)
        np.testing.assert_array_equal(got, crops[size][with_rows])


@pytest.mark.parametrize("layouts", LAYOUTS[:2], ids=str)
def test_each_window_is_read_once_in_the_order_of_the_file(small, monkeypatch, layouts):
    found, _, xy, crops = small
    windows = PatchWindows(found[layouts])
    file = windows._file(0, "local")
    read, places = file.read, []
    monkeypatch.setattr(file, "read", lambda rows, keys=None: (places.extend(rows.tolist()), read(rows, keys))[1])
    monkeypatch.setattr("nuclass.patches.patch_windows.CHUNK_BYTES", 32 * 32 * 3 * 7)
    rows = np.array([5, 3, 39, 3, 0, 17, 5, *range(20, 30)])
    np.testing.assert_array_equal(windows.cut(rows, xy[rows], 32, 0, 32), crops[32][rows])
    assert places == sorted(set(places))
    assert len(places) == len(set(rows.tolist()))


def test_files_of_one_dataset_a_cell_are_not_listed_again(small, monkeypatch):
    found, _, xy, crops = small
    windows = PatchWindows(found["per_key", "per_key"])
    np.testing.assert_array_equal(windows.cut([4, 2], xy[[4, 2]], 32, 0, 32), crops[32][[4, 2]])
    assert all("keys" not in file.__dict__ for file in windows._open.values())


def test_train_and_test_folders_read_as_one_slide(slide, tmp_path):
    _, image = slide
    ids, xy = cells(20)
    write_trio(tmp_path / "d" / "train", image, xy[:12], ids[:12], sizes=(32, 64), shuffle=1)
    write_trio(tmp_path / "d" / "test", image, xy[12:], ids[12:], sizes=(32, 64), layouts=("per_key", "merged"))
    windows = PatchWindows(imported(tmp_path / "d", tmp_path / "out"))
    rows = np.random.default_rng(0).permutation(20)
    np.testing.assert_array_equal(
        windows.cut(rows, xy[rows], 32, 0, 32), np.stack([crop(image, *xy[row], 32) for row in rows])
    )


def test_the_share_off_the_slide_is_read_where_the_files_hold_it(slide, small, tmp_path):
    path, image = slide
    ids, xy = cells(30)
    write_trio(tmp_path / "d" / "train", image, xy[:20], ids[:20], sizes=(32, 64), shuffle=1)
    write_trio(tmp_path / "d" / "test", image, xy[20:], ids[20:], sizes=(32, 64), shuffle=1)
    with h5py.File(tmp_path / "d" / "test" / "patches_32x32.h5", "a") as file:
        order = [ids.index(key) for key in file["keys"].asstr()[:]]
        expected = SlideWindows(path).padded(None, xy, 32)
        file["padded"] = expected[order]
    windows = PatchWindows(imported(tmp_path / "d", tmp_path / "out"))
    rows = np.array([29, 3, 28, 20, 29])
    got = windows.padded(rows, xy[rows], 32)
    assert expected[29] == 0.75
    np.testing.assert_array_equal(got, [expected[29], np.nan, expected[28], expected[20], expected[29]])
    assert np.isnan(windows.padded(rows, xy[rows], 64)).all()


def test_global_windows_at_half_size(slide, tmp_path):
    path, image = slide
    ids, xy = cells(20)
    write_trio(tmp_path / "d", image, xy, ids, sizes=(32, 64))
    write_windows(tmp_path / "d" / "patches_64x64.h5", ids, halved(np.stack([crop(image, x, y, 64) for x, y in xy])))
    windows = PatchWindows(imported(tmp_path / "d", tmp_path / "out"))
    assert windows.sides == {"local": 32, "global": 32}
    rows, store = np.arange(20), SlideWindows(path)
    np.testing.assert_array_equal(windows.cut(rows, xy, 64, 0, 32), store.cut(None, xy, 64, 0, 32))
    # Means of rounded means: a grey level may be lost.
    difference = windows.cut(rows, xy, 64, 0, 16).astype(int) - store.cut(None, xy, 64, 0, 16)
    assert np.abs(difference).max() <= 1
    with pytest.raises(UserError, match=r"stored smaller[\s\S]*windows of 64 px stored at 32 px\n  expected: +64 px"):
        windows.cut(rows, xy, 64, 0, 64)


def test_a_size_that_no_file_holds(small):
    windows = PatchWindows(small[0]["merged", "merged"])
    message = r"No patch file holds windows of the size asked for\n.*\n  found: +48 px\n  expected: +32 px or 64 px"
    with pytest.raises(UserError, match=message):
        windows.cut([0], [[0, 0]], 48, 0, 48)
    with pytest.raises(ValueError, match="need the rows"):
        windows.cut(None, [[0, 0]], 32, 0, 32)


@pytest.fixture
def own(slide, tmp_path):
    """Return a data set of its own, that a test may damage, and its manifest."""
    ids, xy = cells(12)
    write_trio(tmp_path / "d", slide[1], xy, ids, sizes=(32, 64))
    return tmp_path / "d", imported(tmp_path / "d", tmp_path / "out")


def test_a_file_that_changed_is_told(own):
    folder, manifest = own
    with h5py.File(folder / "patches_64x64.h5", "a") as file:
        file["images"][0] = 0
    with pytest.raises(
        UserError, match=r"A patch file changed since it was imported[\s\S]*64x64[\s\S]*start snakemake again"
    ):
        open_windows(manifest)
    imported(folder, manifest.parent)
    assert open_windows(manifest).cut([0], [[0, 0]], 64, 0, 64).max() == 0


def test_other_mistakes_are_told(own, tmp_path):
    folder, manifest = own
    with pytest.raises(UserError, match="A file is missing"):
        open_windows(tmp_path / "no.json")
    text = json.loads(manifest.read_text())
    write_json(tmp_path / "later.json", {**text, "format": 2})
    with pytest.raises(UserError, match=r"list of patch files that this version reads[\s\S]*format 2[\s\S]*format 1"):
        open_windows(tmp_path / "later.json")
    write_json(tmp_path / "alone.json", text)
    with pytest.raises(UserError, match=r"The rows of the patch files are missing[\s\S]*alone\.parquet"):
        open_windows(tmp_path / "alone.json")
    (folder / "patches_32x32.h5").unlink()
    with pytest.raises(UserError, match=r"A patch file is missing[\s\S]*32x32[\s\S]*put it back"):
        open_windows(manifest)


def _read_in_child(windows, rows, queue):
    queue.put(windows.cut(rows, np.zeros((len(rows), 2)), 32, 0, 32).tobytes())


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("layouts", LAYOUTS[:2], ids=str)
def test_other_processes_read_the_same(small, method, layouts):
    found, _, _, crops = small
    windows = PatchWindows(found[layouts])
    rows = np.array([9, 2, 30])
    windows.cut(rows, np.zeros((3, 2)), 32, 0, 32)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_read_in_child, args=(windows, rows, queue))
    child.start()
    assert queue.get(timeout=60) == crops[32][rows].tobytes()
    child.join()
    np.testing.assert_array_equal(windows.cut(rows, np.zeros((3, 2)), 32, 0, 32), crops[32][rows])
    assert len(pickle.dumps(windows)) < 1000


def test_a_study_of_a_store_and_of_patch_files(slide, small, monkeypatch):
    path, _ = slide
    found, _, xy, crops = small
    reader = WindowReader({"a": path, "b": found["merged", "per_key"]})
    frame = pd.DataFrame(
        {
            "slide": pd.Categorical(["a", "b"] * 40),
            "row": np.repeat(np.arange(40, dtype=np.int32), 2),
            "x_px": np.repeat(xy[:, 0], 2),
            "y_px": np.repeat(xy[:, 1], 2),
        }
    ).sample(frac=1, random_state=1)
    got = reader.read(frame, 32, 0, 32)
    np.testing.assert_array_equal(got, crops[32][frame["row"]])
    np.testing.assert_array_equal(
        reader.read(frame, 64, 0, 16), pickle.loads(pickle.dumps(reader)).read(frame, 64, 0, 16)
    )
    # From patch files, rows are asked for in their order, not in that of the places.
    asked = []
    cut = PatchWindows.cut
    monkeypatch.setattr(PatchWindows, "cut", lambda self, rows, *rest: (asked.extend(rows), cut(self, rows, *rest))[1])
    reader.read(frame, 32, 0, 32)
    assert asked == list(range(40))
    only_store = frame[frame["slide"] == "a"].drop(columns="row")
    np.testing.assert_array_equal(reader.read(only_store, 32, 0, 32), crops[32][frame["row"][frame["slide"] == "a"]])
    with pytest.raises(
        UserError, match=r"need the rows of the cells[\s\S]*patches\.json[\s\S]*without the column 'row'"
    ):
        reader.read(frame.drop(columns="row"), 32, 0, 32)


def memory_of_windows(path):
    import pyarrow as pa

    before = pa.total_allocated_bytes()
    windows, _, kept = held(PatchWindows, path)
    return len(windows), kept + pa.total_allocated_bytes() - before


@pytest.mark.parametrize("layout", ["merged", "per_key"])
def test_two_million_cells_take_little_memory(tmp_path, layout):
    n = 2_000_000
    (tmp_path / "f.h5").write_bytes(b"x")
    stat = (tmp_path / "f.h5").stat()
    file = {"path": str(tmp_path / "f.h5"), "size": 1, "mtime_ns": stat.st_mtime_ns, "layout": layout}
    write_json(
        tmp_path / "patches.json",
        {
            "format": 1,
            "mpp": 0.25,
            "windows": WINDOWS,
            "sides": WINDOWS,
            "parts": [{"files": dict.fromkeys(WINDOWS, file)}],
        },
    )
    rows = np.arange(n, dtype=np.int32)
    ids = [f"aaaa{i:08x}-1" for i in range(n)]
    write_parquet(
        tmp_path / "patches.parquet",
        pd.DataFrame({"cell_id": ids, "part": np.zeros(n, np.int8), "local": rows, "global": rows}),
    )
    found, kept = measured(memory_of_windows, tmp_path / "patches.json")
    assert found == n
    assert kept < 100e6
