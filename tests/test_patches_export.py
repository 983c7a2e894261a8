"""A slide written as the three files of the original, as pixels or as virtual windows."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest

from nuclass.core.errors import UserError
from nuclass.labels.ontology import default_ontology, load_ontology
from nuclass.patches import export, virtual
from nuclass.patches.annotations import FIELDS, ORIGINAL_NAMES, read_annotations
from nuclass.patches.export import export_patches
from nuclass.patches.stale import check_store_fits
from nuclass.patches.trio import open_trio
from nuclass.slides.store import SlideStore
from patch_example import HEIGHT, SIDES, WIDTH, build_slide, read_as_the_original

WHO = {"slide": "s_1", "organ": "ovary", "patient": "donor_7", "mpp": 0.25}


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return build_slide(tmp_path_factory.mktemp("slide"))


def write(slide, out, **options):
    return export_patches(*slide, out, SIDES, **{**WHO, **options})


def told(slide, out, **options):
    with pytest.raises(UserError) as error:
        write(slide, out, **options)
    return str(error.value)


def cut(image: np.ndarray, x: float, y: float, size: int) -> np.ndarray:
    """Cut a window by its definition, pixel by pixel of a padded picture."""
    padded = np.pad(image, ((size, size), (size, size), (0, 0)), constant_values=255)
    x0, y0 = (int(np.floor(value - size / 2 + 0.5)) for value in (x, y))
    return padded[y0 + size : y0 + 2 * size, x0 + size : x0 + 2 * size]


@pytest.mark.parametrize(
    "options",
    [{}, {"layout": "per_key"}, {"compression": "gzip"}, {"compression": "none"}, {"virtual": True}],
    ids=["lzf", "per_key", "gzip", "none", "virtual"],
)
def test_the_original_reads_every_window(slide, tmp_path, options):
    store, cells, _ = slide
    done = write(slide, tmp_path / "out", **options)
    assert done.cells == {"": len(cells)}
    image = store.region(0, 0, WIDTH, HEIGHT)
    for size in SIDES.values():
        found = read_as_the_original(tmp_path / f"out/patches_{size}x{size}.h5")
        assert list(found) == sorted(cells["cell_id"])
        for cell in cells.itertuples():
            np.testing.assert_array_equal(found[cell.cell_id], cut(image, cell.x_px, cell.y_px, size))
    names = {"annotations.json", "patches_32x32.h5", "patches_128x128.h5"} | (
        {"slide.h5"} if options.get("virtual") else set()
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_files_are_laid_out_for_reading_one_window(slide, tmp_path):
    store, cells, _ = slide
    write(slide, tmp_path / "out")
    with h5py.File(tmp_path / "out/patches_128x128.h5") as file:
        assert file["images"].chunks == (1, 128, 128, 3)
        assert file["images"].compression == "lzf"
        assert h5py.check_string_dtype(file["keys"].dtype) == ("utf-8", None)
        xy = cells.sort_values("cell_id")[["x_px", "y_px"]].to_numpy()
        assert file["padded"].dtype == np.float32
        np.testing.assert_allclose(file["padded"][:], store.padded_fractions(xy, 128), atol=1e-6)
    write(slide, tmp_path / "keys", layout="per_key")
    with h5py.File(tmp_path / "keys/patches_128x128.h5") as file:
        assert all(file[name].chunks == (128, 128, 3) for name in file)
        assert len(file) == len(cells)


def test_fields_hold_true_values(slide, tmp_path):
    _, cells, labels = slide
    write(slide, tmp_path / "out")
    read = pd.read_json(tmp_path / "out/annotations.json", orient="index", convert_axes=False)
    assert tuple(read) == FIELDS
    assert read.index.tolist() == cells["cell_id"].tolist() != sorted(cells["cell_id"])
    order = cells.merge(labels[["cell_id", "class"]]).set_index("cell_id").loc[read.index]
    for field, expected in {"micron_per_pixel": 0.25, "magnification": "40x", "image_modality": "bright field H&E",
                            "slide_id": "s_1", "tissue_type": "ovary", "patient_id": "donor_7",
                            "has_truncation_flags": False}.items():  # fmt: skip
        assert (read[field] == expected).all(), field
    for field, column in {"centroid_x": "x_px", "centroid_y": "y_px", "micron_x_centroid": "x_um",
                          "micron_y_centroid": "y_um"}.items():  # fmt: skip
        np.testing.assert_allclose(read[field], order[column], rtol=1e-12)
    assert read["class_id"].tolist() == order["class"].tolist()
    x, y = (np.floor(order[name].to_numpy() - 64 + 0.5) for name in ("x_px", "y_px"))
    off = (x < 0) | (y < 0) | (x + 128 > WIDTH) | (y + 128 > HEIGHT)
    assert off.any()
    assert not off.all()
    assert read["has_padding_flags"].tolist() == off.tolist()


@pytest.mark.parametrize("names", ["original", "study"])
def test_classes_have_names_that_the_original_knows_or_their_own(slide, tmp_path, names):
    """Its trainers drop cells with a name that their mapping lacks, such as that of a class itself."""
    store, cells, labels = slide
    ontology = load_ontology(default_ontology())
    classes = sorted({kind.class_name for kind in ontology.cell_types.values()} - {""})
    assert set(ORIGINAL_NAMES) <= set(classes)
    labels = labels.assign(**{"class": [classes[i % len(classes)] for i in range(len(labels))]})
    options = {} if names == "original" else {"class_names": "study"}
    write((store, cells, labels), tmp_path / "out", **options)
    written = read_annotations(tmp_path / "out/annotations.json").set_index("cell_id")["label"][cells["cell_id"]]
    expected = labels["class"].replace(ORIGINAL_NAMES) if names == "original" else labels["class"]
    assert written.tolist() == expected.tolist()
    assert ("T Cell" in set(written)) == (names == "original")
    assert ontology.resolve(written)["class"].tolist() == labels["class"].tolist(), "taken in again, they are the same"


def test_only_kept_cells_with_a_class_are_written(slide, tmp_path):
    store, cells, labels = slide
    labels, cells = labels.copy(), cells.copy()
    labels.loc[0, "status"] = "abstained"
    labels.loc[1, "class"] = ""
    labels.loc[2, "class"] = None
    cells.loc[3, "status"] = "dropped"
    done = write((store, cells, labels.sample(frac=1, random_state=3)), tmp_path / "out")
    assert done.left_out == {"without a class": 4}
    with open_trio(tmp_path / "out", SIDES, 0.25) as trio:
        assert trio.cells["cell_id"].tolist() == cells["cell_id"][4:].tolist()
        known = labels.set_index("cell_id")["class"].loc[trio.cells["cell_id"]]
        assert trio.cells["label"].tolist() == known.tolist()


@pytest.mark.parametrize("options", [{}, {"virtual": True}], ids=["pixels", "virtual"])
def test_splits_go_to_train_and_test(slide, tmp_path, options):
    store, cells, _ = slide
    names = np.array(["train", "val", "test", "buffer"])[np.arange(len(cells)) % 4]
    splits = pd.DataFrame({"cell_id": cells["cell_id"], "split": names}).sample(frac=1, random_state=1)
    done = write(slide, tmp_path / "out", splits=splits, **options)
    assert done.cells == {"train": 10, "test": 10}
    assert done.left_out == {"without a class": 0, "in test": 10, "in buffer": 10}
    with open_trio(tmp_path / "out", SIDES, 0.25) as trio:
        got = trio.cells.set_index("cell_id")["split"].to_dict()
        windows = trio.read("global", np.arange(20))
        ids = trio.rows["cell_id"]
    assert got == {c: s for c, s in zip(cells["cell_id"], names, strict=True) if s in ("train", "val")}
    xy = cells.set_index("cell_id").loc[ids, ["x_px", "y_px"]].to_numpy()
    np.testing.assert_array_equal(windows, store.windows(xy, 128))


def test_virtual_windows_move_with_their_folder(slide, tmp_path, monkeypatch):
    write(slide, tmp_path / "out", virtual=True)
    write(slide, tmp_path / "pixels")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "out", tmp_path / "elsewhere/moved")
    monkeypatch.chdir(tmp_path)
    for name in ("patches_32x32.h5", "patches_128x128.h5"):
        moved = read_as_the_original(tmp_path / "elsewhere/moved" / name)
        written = read_as_the_original(tmp_path / "pixels" / name)
        assert list(moved) == list(written)
        assert all((moved[cell] == written[cell]).all() for cell in moved)
    with h5py.File(tmp_path / "elsewhere/moved/patches_32x32.h5") as file:
        assert file["images"].is_virtual
        assert {source.file_name for source in file["images"].virtual_sources()} == {"slide.h5"}


def test_virtual_files_are_small_and_leave_white_out(slide, tmp_path):
    write(slide, tmp_path / "out", virtual=True)
    assert (tmp_path / "out/patches_128x128.h5").stat().st_size < 20_000 + 300 * 40
    with h5py.File(tmp_path / "out/slide.h5") as file:
        assert file["slide"].fillvalue == 255
        assert file["slide"].compression is None
        np.testing.assert_array_equal(file["slide"][:], slide[0].region(0, 0, WIDTH, HEIGHT))
    store = SlideStore(slide[0].path)
    store.region = lambda x, y, width, height: np.full((height, width, 3), 255, np.uint8)
    virtual.write_slide(store, tmp_path / "white.h5")
    with h5py.File(tmp_path / "white.h5") as file:
        assert file["slide"].id.get_storage_size() == 0
        assert (file["slide"][:] == 255).all()


def test_files_open_in_older_hdf5(slide, tmp_path):
    """The first bytes tell the version of the format: HDF5 2.0's own is 4 or more, and 1.14 refuses it."""
    write(slide, tmp_path / "out", virtual=True)
    for path in (tmp_path / "out").glob("*.h5"):
        assert path.read_bytes()[8] <= 3, path.name
        with h5py.File(path) as file:
            assert file.libver[0] == "earliest"


def test_too_many_cells_for_virtual_windows(slide, tmp_path, monkeypatch):
    assert virtual.MAX_VIRTUAL == 100_000
    monkeypatch.setattr(virtual, "MAX_VIRTUAL", 39)
    message = told(slide, tmp_path / "out", virtual=True)
    assert "There are too many cells for virtual windows" in message
    assert "40 cells" in message
    assert "at most 39" in message
    assert list(tmp_path.iterdir()) == []
    assert "need the merged layout" in told(slide, tmp_path / "out", virtual=True, layout="per_key")


def test_no_cells(slide, tmp_path):
    store, cells, labels = slide
    assert "No cell is left to export" in told((store, cells, labels.assign(status="abstained")), tmp_path / "out")
    splits = pd.DataFrame({"cell_id": cells["cell_id"], "split": "train"})
    assert "0 cells for test/" in told(slide, tmp_path / "out", splits=splits)
    assert "0 of 40 cells" in told(slide, tmp_path / "out", splits=splits.assign(split="test"))
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_another_run(slide, tmp_path):
    store, cells, labels = slide
    message = told(slide, tmp_path / "out", mpp=0.5)
    assert "The slide store has another scale than the study" in message
    assert "0.25 um/px\n  expected:   0.5 um/px" in message
    other = cells.assign(x_px=cells["x_he"] * 1.1)
    message = told((store, other, labels), tmp_path / "out")
    assert "The slide store is of another run than the table of cells" in message
    assert "40 of 40 cells lie elsewhere" in message
    assert f"by {0.1 * cells['x_he'].max():.1f} px" in message
    assert "x_px = x_he x 1, the scale the store was made with" in message
    beyond = cells.assign(x_px=cells["x_px"] + 40, x_he=cells["x_he"] + 40)
    message = told((store, beyond, labels), tmp_path / "out")
    assert "Cells lie off the slide store" in message
    assert f"x 0 to {WIDTH}, y 0 to {HEIGHT} px" in message
    dropped = beyond.assign(status=np.where(beyond["x_px"] > WIDTH, "dropped", "kept"))
    check_store_fits(store, dropped, 0.25)
    check_store_fits(store, cells.iloc[:0], 0.25)
    lost = cells.copy()
    lost.loc[7, "x_px"] = np.nan
    with pytest.raises(UserError, match=f"1 of 40 cells lie elsewhere, {lost['cell_id'][7]} by nan px"):
        check_store_fits(store, lost, 0.25)


def test_tables_of_other_cells(slide, tmp_path):
    store, cells, labels = slide
    gone = labels[labels["cell_id"] != "0007"]
    message = told((store, cells, gone), tmp_path / "out")
    assert "The labels are of other cells than the table of cells" in message
    assert "40 cells, 39 labels; 1 only in the table of cells (0007)" in message
    message = told((store, cells, labels.replace("0007", "7")), tmp_path / "out")
    assert "1 only in the table of cells (0007); 1 only in the labels (7)" in message
    twice = pd.concat([gone, gone.iloc[:1]])
    assert "other cells" in told((store, cells, twice), tmp_path / "out")
    splits = pd.DataFrame({"cell_id": gone["cell_id"], "split": "train"})
    assert "The splits are of other cells" in told(slide, tmp_path / "out", splits=splits)


@pytest.mark.parametrize(
    ("name", "layout"), [("a/b", "per_key"), (".", "per_key"), ("a\0b", "merged"), ("", "merged"), ("\ud800", "merged")]
)
def test_ids_that_hdf5_cannot_hold(slide, tmp_path, name, layout):
    store, cells, labels = slide
    change = {"0007": name}
    tables = (cells.replace({"cell_id": change}), labels.replace({"cell_id": change}))
    message = told((store, *tables), tmp_path / "out", layout=layout)
    assert "A cell id cannot be" in message
    assert f"1 ids, such as {name!r}" in message
    if layout == "per_key":
        write((store, *tables), tmp_path / "out")
        assert name in read_as_the_original(tmp_path / "out/patches_32x32.h5")


def test_a_folder_with_files_is_left_alone(slide, tmp_path):
    out = tmp_path / "out"
    write(slide, out)
    before = (out / "annotations.json").stat().st_mtime_ns
    message = told(slide, out)
    assert "The folder for the export is not empty" in message
    assert "--overwrite" in message
    (out / "notes.txt").write_text("mine")
    message = told(slide, out, replace=True)
    assert "notes.txt" in message
    assert (out / "annotations.json").stat().st_mtime_ns == before
    (out / "notes.txt").unlink()
    write(slide, out, replace=True, virtual=True)
    assert (out / "slide.h5").is_file()
    (tmp_path / "file").write_text("")
    assert "is a file" in told(slide, tmp_path / "file")


def test_the_space_is_looked_at_before(slide, tmp_path, monkeypatch):
    sizes = []
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(export.shutil, "disk_usage", lambda path: sizes.append(path) or usage(0, 0, 123_456))
    message = told(slide, tmp_path / "deep/out")
    assert sizes == [tmp_path], "the disk of the nearest folder that is there"
    assert "The disk has too little space for the windows" in message
    assert "123.5 kB free" in message
    assert "for 40 cells" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options", [{}, {"compression": "none"}, {"layout": "per_key"}, {"virtual": True}], ids=["lzf", "none", "keys", "v"]
)
def test_the_space_is_told_about_right(slide, tmp_path, monkeypatch, options):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(export.shutil, "disk_usage", lambda path: usage(0, 0, 0))
    number, unit = told(slide, tmp_path / "out", **options).split("about ")[1].split()[:2]
    monkeypatch.undo()
    write(slide, tmp_path / "out", **options)
    size = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert 0.9 * size < float(number) * {"kB": 1e3, "MB": 1e6}[unit] < 1.2 * size


JOB = """
import resource, sys, time
import pandas as pd
sys.path[:0] = [{tests!r}]
from patch_example import SIDES
from nuclass.core.errors import UserError
from nuclass.labels.ontology import default_ontology, load_ontology
from nuclass.patches import export
from nuclass.slides.store import SlideStore

class Slow(SlideStore):
    def batches(self, *args, **kwargs):
        for rows, images in super().batches(*args, **kwargs):
            print("batch", flush=True)
            time.sleep({pause})
            yield rows, images

if {limit}:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
    export._check_space = lambda *args: None
try:
    export.export_patches(Slow({store!r}), pd.read_parquet({cells!r}), pd.read_parquet({labels!r}), {out!r}, SIDES,
                          slide="s", organ="ovary", patient="p", mpp=0.25, layout={layout!r})
except UserError as error:
    print(error)
    sys.exit(1)
"""


def job(slide, folder: Path, **options: object) -> list[str]:
    store, cells, labels = slide
    cells.to_parquet(folder / "cells.parquet")
    labels.to_parquet(folder / "labels.parquet")
    places = {"store": str(store.path), "out": str(folder / "x/out"), "tests": str(Path(__file__).parent)}
    tables = {name: str(folder / f"{name}.parquet") for name in ("cells", "labels")}
    defaults = {"pause": 0, "limit": 0, "layout": "merged"}
    return [sys.executable, "-c", JOB.format(**{**defaults, **places, **tables, **options})]


def test_a_killed_export_leaves_nothing_and_can_be_run_again(slide, tmp_path):
    process = subprocess.Popen(job(slide, tmp_path, pause=60), stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "batch\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (left,) = (path.name for path in (tmp_path / "x").iterdir())
    assert re.fullmatch(rf"\.{process.pid}-\w+\.out", left), "all is made beside the final name"
    deadline = time.monotonic() + 10
    while Path(f"/proc/{process.pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    write(slide, tmp_path / "x/out")
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["out"], "what the killed one left is gone"
    with open_trio(tmp_path / "x/out", SIDES, 0.25) as trio:
        assert len(trio.rows) == 40


@pytest.mark.parametrize("layout", ["merged", "per_key"])
def test_a_disk_that_fills_up(slide, tmp_path, layout):
    done = subprocess.run(job(slide, tmp_path, limit=400_000, layout=layout), capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "The disk is full" in done.stdout
    assert "nothing was kept of this export" in done.stdout
    assert list((tmp_path / "x").iterdir()) == []


def test_annotations_come_last_and_whole(slide, tmp_path, monkeypatch):
    """No file stands under a final name until all are written."""

    def fails(*args):
        assert not (tmp_path / "out").exists()
        raise RuntimeError("stopped")

    monkeypatch.setattr(export, "write_annotations", fails)
    with pytest.raises(RuntimeError, match="stopped"):
        write(slide, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_the_annotations_are_json(slide, tmp_path):
    write(slide, tmp_path / "out")
    text = (tmp_path / "out/annotations.json").read_text()
    assert json.dumps(json.loads(text), indent=2) + "\n" == text


@pytest.mark.usefixtures("job_environment")
def test_the_job_of_the_workflow_writes_its_targets(slide, tmp_path):
    store, cells, labels = slide
    cells.to_parquet(tmp_path / "cells.parquet")
    labels.to_parquet(tmp_path / "labels.parquet")
    out = tmp_path / "results/patches/s_1"
    out.mkdir(parents=True)
    (out / "patches_128x128.h5").write_text("of an earlier run")
    inputs = {name: str(tmp_path / f"{name}.parquet") for name in ("cells", "labels")}
    job = SimpleNamespace(
        input=SimpleNamespace(store=str(store.path), **inputs),
        output=SimpleNamespace(annotations=str(out / "annotations.json")),
        params=SimpleNamespace(windows=SIDES, organ="ovary", patient="donor_7", mpp=0.25),
        wildcards=Wildcards(slide="s_1"),
        log=[str(tmp_path / "log")],
        threads=1,
        rule="export_patches",
    )
    script = Path(__file__).parent.parent / "scripts/export_patches.py"
    exec(compile(script.read_text(), script, "exec"), {"snakemake": job})
    assert {path.name for path in out.iterdir()} == {"annotations.json", "patches_32x32.h5", "patches_128x128.h5"}
    with open_trio(out, SIDES, 0.25) as trio:
        assert trio.cells["patient_id"].unique().tolist() == ["donor_7"]
    assert "40 cells written" in (tmp_path / "log").read_text()


class Wildcards(SimpleNamespace):
    def items(self):
        return vars(self).items()


@pytest.mark.parametrize("compression", ["lzf", "gzip", "none"])
def test_chunks_are_those_that_hdf5_reads(tmp_path, compression):
    from nuclass.patches.encode import chunk_options, encode

    rng = np.random.default_rng(0)
    flat, noise = np.full((16, 16, 3), 7, np.uint8), rng.integers(0, 256, (16, 16, 3), np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = file.create_dataset("images", (2, 16, 16, 3), np.uint8, **chunk_options((1, 16, 16, 3), compression))
        for row, image in enumerate((flat, noise)):
            data, left_out = encode(image[:, ::-1].copy()[:, ::-1], compression)
            assert left_out == (compression == "lzf" and row == 1)
            assert len(data) < flat.nbytes or row == 1 or compression == "none"
            made.id.write_direct_chunk((row, 0, 0, 0), data, left_out)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["images"].compression == (None if compression == "none" else compression)
        np.testing.assert_array_equal(file["images"][:], [flat, noise])


@pytest.mark.parametrize("layout", ["merged", "per_key"])
def test_windows_do_not_depend_on_the_threads(slide, tmp_path, layout):
    for threads in (1, 3):
        write(slide, tmp_path / str(threads), layout=layout, threads=threads)
    for size in SIDES.values():
        one, three = (read_as_the_original(tmp_path / f"{n}/patches_{size}x{size}.h5") for n in (1, 3))
        assert list(one) == list(three)
        assert all((one[cell] == three[cell]).all() for cell in one)
