"""Fetching a slide: from folders and zips on this disk, from a server, by hand, and not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bundle_example import example
from http_server import Server, serve
from nuclass.cli import main
from nuclass.core.errors import UserError
from nuclass.core.files import read_json, sha256, write_json
from nuclass.synthetic.bundle import write_bundle
from nuclass.xenium.fetch import fetch_slide, missing_files, needs_image, raise_missing
from nuclass.xenium.reader import read_bundle
from nuclass.xenium.registry import Address, Dataset, Record, RemoteFile
from nuclass.xenium.remote import HttpSettings
from nuclass.xenium.slide_folder import local_inputs

QUICK = HttpSettings(timeout_s=0.5, attempts=3, pause_s=0.01)
IMAGE = "morphology_focus/morphology_focus_0000.ome.tif"
MATRIX = "0,1.2,5\n-1.2,0,900\n0,0,1"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, its H&E and its alignment under 10x names, and the same as a zip."""
    folder = tmp_path_factory.mktemp("source")
    write_bundle(folder / "outs", "x", example())
    (folder / "outs" / "bundle.json").unlink()
    experiment = folder / "outs" / "experiment.xenium"
    experiment.write_text(
        experiment.read_text(encoding="utf-8").replace('"synthetic"', '"XETG00001"'), encoding="utf-8"
    )
    (folder / "X_he_image.ome.tif").write_bytes(os.urandom(1_500_000))
    (folder / "X_he_imagealignment.csv").write_text(MATRIX, encoding="utf-8")
    with zipfile.ZipFile(folder / "X_outs.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((folder / "outs").rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder / "outs").as_posix())
    return folder


@pytest.fixture
def server(source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    for file in source.glob("X_*"):
        (folder / file.name).symlink_to(file)
    with serve(folder) as state:
        yield state


NAMES = {"outs": "X_outs.zip", "he": "X_he_image.ome.tif", "alignment": "X_he_imagealignment.csv"}


def registry(server: Server, **files: RemoteFile | None) -> dict[str, Dataset]:
    known = {kind: RemoteFile("X", kind, (Address(server.url(name), "seen"),)) for kind, name in NAMES.items()}
    return {"X": Dataset("X", files={kind: file for kind, file in {**known, **files}.items() if file})}


def local(source: Path, path: str = "outs", **values: str) -> dict[str, str]:
    return {"slide": "s", "source": "local", "path": str(source / path), **values}


DATASET = {"slide": "s", "source": "dataset", "dataset": "X"}


def fetch(row: dict[str, str], out: Path, known: dict[str, Dataset] | None = None, **options: Any) -> dict[str, Any]:
    return fetch_slide(row, out, known, settings=options.pop("settings", QUICK), **options)


def check(inventory: dict[str, Any], source: Path, out: Path) -> None:
    """Check that all files are those of the source, and readable as a bundle."""
    assert inventory == read_json(out / "bundle.json")
    assert inventory["he"] == "s_he_image.ome.tif"
    for name, entry in inventory["files"].items():
        original = source / {"s_he_image.ome.tif": "X_he_image.ome.tif"}.get(name, f"outs/{name}")
        if name != "s_he_imagealignment.csv":
            assert entry == {"bytes": original.stat().st_size, "sha256": sha256(original)}, name
    assert not [file for file in out.rglob("*") if ".part" in file.name]
    assert not (out / "transcripts.parquet").exists()
    assert len(read_bundle(out).cells()) == 60


def he_and_alignment(source: Path) -> dict[str, str]:
    return {"he": str(source / "X_he_image.ome.tif"), "alignment": str(source / "X_he_imagealignment.csv")}


def test_local_folder_is_linked(source: Path, tmp_path: Path) -> None:
    for _ in range(2):
        inventory = fetch(local(source, **he_and_alignment(source)), tmp_path / "s")
    check(inventory, source, tmp_path / "s")
    assert all((tmp_path / "s" / name).is_symlink() for name in inventory["files"])
    assert (inventory["alignment"], inventory["image"]) == ("s_he_imagealignment.csv", IMAGE)
    assert inventory["alignment_source"] == "X_he_imagealignment.csv"
    assert (inventory["source"], inventory["slide"]) == ("local", "s")
    assert "morphology.ome.tif" not in inventory["files"]


def test_folder_one_level_deeper_with_its_he(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "mine"
    shutil.copytree(source, place, ignore=shutil.ignore_patterns("*.zip"))
    check(fetch(local(place, ""), tmp_path / "s"), source, tmp_path / "s")
    assert set(local_inputs(local(place, ""), tmp_path / "s")) == {"experiment", "he", "alignment"}
    shutil.copytree(source / "outs", place / "outs_2")
    with pytest.raises(UserError) as caught:
        fetch(local(place, ""), tmp_path / "t")
    assert f"{place / 'outs'} and {place / 'outs_2'}" in str(caught.value)


@pytest.mark.parametrize("path", ["X_outs.zip", ""])
def test_local_zip(source: Path, tmp_path: Path, path: str) -> None:
    place = tmp_path / "mine"
    shutil.copytree(source, place, ignore=shutil.ignore_patterns("outs"))
    (place / "Y_he_image.ome.tif").write_bytes(b"another dataset's")
    inventory = fetch(local(place, path), tmp_path / "s")
    check(inventory, source, tmp_path / "s")
    assert inventory["image"] is None
    cells = tmp_path / "s" / "cells.parquet"
    assert not cells.is_symlink()
    before = cells.stat().st_mtime_ns
    inventory = fetch(local(place, path), tmp_path / "s", image=True)
    assert inventory["image"] == IMAGE
    assert cells.stat().st_mtime_ns == before
    assert local_inputs(local(place, path), tmp_path / "s")["experiment"] == str(place / "X_outs.zip")


def test_zip_with_a_folder_inside(source: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "run.zip", "w") as archive:
        for path in sorted((source / "outs").rglob("*")):
            archive.write(path, f"run_7/outs/{path.relative_to(source / 'outs').as_posix()}")
    row = {**local(tmp_path, "run.zip"), **he_and_alignment(source)}
    check(fetch(row, tmp_path / "s"), source, tmp_path / "s")


def test_bad_places(source: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.zip").write_bytes((source / "X_outs.zip").read_bytes()[:-3000])
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("letter.txt", "hello")
    (tmp_path / "empty").mkdir()
    for path, told in (
        ("cut.zip", "a file is no zip, or is cut off"),
        ("other.zip", "the zip holds no Xenium output"),
        ("empty", "a folder is no Xenium output"),
        ("gone", "the folder or zip of a Xenium output is missing"),
    ):
        with pytest.raises(UserError, match=told) as caught:
            fetch({**local(tmp_path, path), **he_and_alignment(source)}, tmp_path / "s")
        assert str(tmp_path / path) in str(caught.value)
    assert not (tmp_path / "s" / "bundle.json").exists()


def test_output_without_a_file(source: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(source / "outs", tmp_path / "outs")
    row = {**local(tmp_path), **he_and_alignment(source)}
    shutil.rmtree(bundle / "morphology_focus")
    fetch(row, tmp_path / "s")
    with pytest.raises(UserError, match="no the DAPI image in focus"):
        fetch(row, tmp_path / "s", image=True)
    (bundle / "cell_feature_matrix.h5").unlink()
    with pytest.raises(UserError, match=r"found: +no cell_feature_matrix\.h5"):
        fetch(row, tmp_path / "s")


@pytest.mark.parametrize(
    ("text", "matrix", "told"),
    [
        ("grid", "1.0,0.0,0.0\n0.0,1.0,0.0\n0.0,0.0,1.0\n", "grid"),
        ("0,1.2,5; -1.2,0,900", "0.0,1.2,5.0\n-1.2,0.0,900.0\n0.0,0.0,1.0\n", "matrix in the slide sheet"),
        ("2,0,5,0,2,9,1e-8,0,1", "2.0,0.0,5.0\n0.0,2.0,9.0\n1e-08,0.0,1.0\n", "matrix in the slide sheet"),
    ],
)
def test_alignment_in_words(source: Path, tmp_path: Path, text: str, matrix: str, told: str) -> None:
    fetch({**local(source), **he_and_alignment(source)}, tmp_path / "s")
    inventory = fetch({**local(source), **he_and_alignment(source), "alignment": text}, tmp_path / "s")
    written = tmp_path / "s" / "s_he_imagealignment.csv"
    assert written.read_text(encoding="utf-8") == matrix
    assert not written.is_symlink()
    assert inventory["alignment_source"] == told
    assert (source / "X_he_imagealignment.csv").read_text(encoding="utf-8") == MATRIX
    fetch({**local(source), **he_and_alignment(source)}, tmp_path / "s")
    assert written.is_symlink()


def test_without_an_alignment(source: Path, tmp_path: Path) -> None:
    he = tmp_path / "he.ome.tif"
    shutil.copy(source / "X_he_image.ome.tif", he)
    row = local(source, he=str(he))
    with pytest.raises(UserError, match="No alignment is known for slide 's'") as caught:
        fetch(row, tmp_path / "s")
    assert "the word 'grid'" in str(caught.value)
    inventory = fetch({**row, "align": "register"}, tmp_path / "s")
    assert (inventory["alignment"], inventory["alignment_source"]) == (None, None)
    assert [needs_image(row, align) for align in ("given", "refine", "register")] == [False, False, True]
    assert needs_image({"align": "given"}, "register") is False


def test_preview_name_of_the_alignment_is_kept(source: Path, tmp_path: Path) -> None:
    shutil.copy(source / "X_he_image.ome.tif", tmp_path / "Y_he_image.ome.tif")
    (tmp_path / "Y_he_alignment.csv").write_text(MATRIX, encoding="utf-8")
    inventory = fetch(local(source, he=str(tmp_path / "Y_he_image.ome.tif")), tmp_path / "s")
    assert inventory["alignment"] == "s_he_imagealignment.csv"
    assert inventory["alignment_source"] == "Y_he_alignment.csv"


def test_a_file_in_the_folder_itself_is_not_linked_to_itself(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    out.mkdir()
    shutil.copy(source / "X_he_image.ome.tif", out / "s_he_image.ome.tif")
    row = {**local(source), **he_and_alignment(source), "he": str(out / "s_he_image.ome.tif")}
    check(fetch(row, out), source, out)
    assert not (out / "s_he_image.ome.tif").is_symlink()


def test_remote_takes_only_what_is_needed(server: Server, source: Path, tmp_path: Path) -> None:
    inventory = fetch(DATASET, tmp_path / "s", registry(server))
    check(inventory, source, tmp_path / "s")
    assert inventory["source"] == "X"
    assert inventory["image"] is None
    assert not (tmp_path / "s" / "morphology_focus").exists()
    with zipfile.ZipFile(source / "X_outs.zip") as archive:
        taken = [name for name in inventory["files"] if not name.startswith("s_")]
        needed = sum(archive.getinfo(name).compress_size for name in taken)
        directory = (source / "X_outs.zip").stat().st_size - archive.start_dir
    assert server.sent["X_outs.zip"] <= 1.05 * (needed + directory)
    assert inventory["alignment_source"] == "X_he_imagealignment.csv"


def test_nothing_is_asked_for_what_is_present(server: Server, source: Path, tmp_path: Path) -> None:
    first = fetch(DATASET, tmp_path / "s", registry(server))
    server.forget()
    (tmp_path / "s" / "bundle.json").unlink()
    assert fetch(DATASET, tmp_path / "s", registry(server)) == first
    assert not server.requests
    os.utime(tmp_path / "s" / "cells.parquet")
    assert fetch(DATASET, tmp_path / "s", registry(server), offline=True) == first
    assert not server.requests
    again = fetch(DATASET, tmp_path / "s", registry(server), image=True)
    assert again["image"] == IMAGE
    assert {name for name, _, _ in server.requests} == {"X_outs.zip"}
    assert server.sent["X_outs.zip"] < 1.1 * (source / "outs" / IMAGE).stat().st_size + 10_000


def test_a_file_that_was_spoilt_is_fetched_again(server: Server, source: Path, tmp_path: Path) -> None:
    fetch(DATASET, tmp_path / "s", registry(server))
    for name in ("cells.parquet", "s_he_image.ome.tif"):
        (tmp_path / "s" / name).write_bytes(b"spoilt")
    check(fetch(DATASET, tmp_path / "s", registry(server)), source, tmp_path / "s")


def test_server_without_ranges(server: Server, source: Path, tmp_path: Path) -> None:
    server.ranges = False
    check(fetch(DATASET, tmp_path / "s", registry(server)), source, tmp_path / "s")
    assert not [file for file in (tmp_path / "s").iterdir() if file.name.endswith(".zip")]
    server.forget()
    fetch(DATASET, tmp_path / "s", registry(server))
    assert not server.requests


def test_interrupted_fetch_goes_on(server: Server, source: Path, tmp_path: Path) -> None:
    server.fault("X_he_image.ome.tif").cut = [1_000_000]
    once = HttpSettings(timeout_s=0.5, attempts=1, pause_s=0.01)
    with pytest.raises(UserError, match="A download failed"):
        fetch(DATASET, tmp_path / "s", registry(server), settings=once)
    assert not (tmp_path / "s" / "bundle.json").exists()
    server.forget()
    check(fetch(DATASET, tmp_path / "s", registry(server)), source, tmp_path / "s")
    assert server.sent == {"X_he_image.ome.tif": 500_000}


@pytest.mark.parametrize("kind", ["outs", "he", "alignment"])
def test_refusal_names_the_address(server: Server, tmp_path: Path, kind: str) -> None:
    gone = RemoteFile("X", kind, (Address(server.url("gone"), "inferred"), Address(server.url("lost"), "inferred")))
    with pytest.raises(UserError, match="HTTP 404") as caught:
        fetch(DATASET, tmp_path / "s", registry(server, **{kind: gone}))
    assert server.url("gone") in str(caught.value)
    assert server.url("lost") in str(caught.value)
    assert not (tmp_path / "s" / "bundle.json").exists()


def test_inferred_address_gives_way_to_the_next(server: Server, source: Path, tmp_path: Path) -> None:
    both = (
        Address(server.url("X_he_unaligned_image.ome.tif"), "inferred"),
        Address(server.url(NAMES["he"]), "inferred"),
    )
    known = registry(server, he=RemoteFile("X", "he", both))
    check(fetch(DATASET, tmp_path / "s", known), source, tmp_path / "s")


@pytest.mark.parametrize("status", [403, 404])
def test_guessed_address_that_is_refused(server: Server, source: Path, tmp_path: Path, status: int) -> None:
    server.fault("guess.tif").status = status
    guess = Address(server.url("guess.tif"), "inferred")
    known = registry(server, he=RemoteFile("X", "he", (guess, Address(server.url(NAMES["he"]), "inferred"))))
    check(fetch(DATASET, tmp_path / "s", known), source, tmp_path / "s")
    known = registry(server, he=RemoteFile("X", "he", (guess, Address(server.url("gone"), "inferred"))))
    with pytest.raises(UserError) as caught:
        fetch(DATASET, tmp_path / "t", known)
    assert f"where:      {guess.url}, {server.url('gone')}\n  found:      HTTP {status} " in str(caught.value)
    known = registry(server, alignment=RemoteFile("X", "alignment", (guess,)))
    with pytest.raises(UserError, match=f"HTTP {status}"):
        fetch(DATASET, tmp_path / "u", known)
    assert fetch({**DATASET, "align": "register"}, tmp_path / "v", known)["alignment"] is None


def test_dataset_without_an_alignment(server: Server, tmp_path: Path) -> None:
    for alignment in (None, RemoteFile("X", "alignment", (Address(server.url("gone"), "inferred"),))):
        known = registry(server, alignment=alignment)
        with pytest.raises(UserError, match="or set 'align' to register"):
            fetch(DATASET, tmp_path / "s", known)
        assert fetch({**DATASET, "align": "register"}, tmp_path / "t", known, image=True)["alignment"] is None
        assert fetch({**DATASET, "alignment": "grid"}, tmp_path / "u", known)["alignment_source"] == "grid"


def test_no_address_of_the_he(server: Server, source: Path, tmp_path: Path) -> None:
    known = registry(server, he=None)
    with pytest.raises(UserError, match="No H&E image is known for slide 's'"):
        fetch(DATASET, tmp_path / "s", known)
    fetch({**DATASET, "he": str(source / NAMES["he"])}, tmp_path / "s", known)


def test_recorded_values(server: Server, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def known(kind: str, *records: Record) -> dict[str, Dataset]:
        return registry(server, **{kind: RemoteFile("X", kind, (Address(server.url(NAMES[kind]), "seen"),), records)})

    with pytest.raises(UserError, match="The size of a file is not the recorded one"):
        fetch(DATASET, tmp_path / "a", known("outs", Record("bytes", "5", "me", False)))
    with pytest.raises(UserError, match="The md5 of a file is not the recorded one"):
        fetch(DATASET, tmp_path / "b", known("he", Record("md5", "0" * 32, "me", False)))
    fetch(DATASET, tmp_path / "c", known("he", Record("sha256", "0" * 64, "me", True)))
    assert "recorded for a mirror copy" in caplog.text


def test_dataset_whose_files_are_here(server: Server, source: Path, tmp_path: Path) -> None:
    check(fetch({**DATASET, "path": str(source)}, tmp_path / "s", registry(server)), source, tmp_path / "s")
    assert not server.requests
    bundle = shutil.copytree(source / "outs", tmp_path / "only the output")
    check(fetch({**DATASET, "path": str(bundle)}, tmp_path / "t", registry(server)), source, tmp_path / "t")
    assert {name for name, _, _ in server.requests} == {NAMES["he"], NAMES["alignment"]}


@pytest.mark.parametrize("zipped", [True, False])
def test_files_put_there_by_hand(server: Server, source: Path, tmp_path: Path, zipped: bool) -> None:
    out = tmp_path / "s"
    if zipped:
        out.mkdir()
        shutil.copy(source / "X_outs.zip", out / "outs.zip")
    else:
        shutil.copytree(source / "outs", out)
        (out / "transcripts.parquet").unlink()
    for kind in ("he", "alignment"):
        shutil.copy(source / NAMES[kind], out)
    for _ in range(2):
        check(fetch(DATASET, out, registry(server), offline=True), source, out)
    assert not server.requests
    assert (out / "outs.zip").exists() == zipped


def test_a_half_file_put_there_by_hand_is_set_aside(server: Server, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    out.mkdir()
    (out / "cells.parquet").write_bytes((source / "outs/cells.parquet").read_bytes()[:500])
    check(fetch(DATASET, out, registry(server)), source, out)
    assert (out / "cells.parquet.wrong").stat().st_size == 500


def test_folder_of_another_dataset(server: Server, tmp_path: Path) -> None:
    known = registry(server)
    fetch(DATASET, tmp_path / "s", known)
    known["Y"] = Dataset("Y", files=known["X"].files)
    with pytest.raises(UserError) as caught:
        fetch({**DATASET, "dataset": "Y"}, tmp_path / "s", known)
    assert str(caught.value).startswith("The folder of a slide holds the files of something else\n")
    assert "files of the dataset X, such as " in str(caught.value)


def test_synthetic_files_are_not_taken_for_real_ones(server: Server, source: Path, tmp_path: Path) -> None:
    out = shutil.copytree(source / "outs", tmp_path / "s")
    shutil.copy(source / NAMES["he"], out / "s_he_image.ome.tif")
    experiment = read_json(out / "experiment.xenium")
    write_json(out / "experiment.xenium", {**experiment, "instrument_sn": "synthetic"})
    assert [item.place.name for item in missing_files([DATASET], registry(server), tmp_path)] == [
        *("outs.zip", "s_he_image.ome.tif", "s_he_imagealignment.csv"),
    ]
    assert (out / "cells.parquet").exists()
    check(fetch(DATASET, out, registry(server)), source, out)
    assert {name for name, _, _ in server.requests} == set(NAMES.values())


def test_links_to_another_source_give_way(source: Path, tmp_path: Path) -> None:
    fetch({**local(source), **he_and_alignment(source)}, tmp_path / "s")
    other = shutil.copytree(source / "outs", tmp_path / "other")
    (other / "gene_panel.json").unlink()
    inventory = fetch({**local(tmp_path, "other"), **he_and_alignment(source)}, tmp_path / "s")
    assert "gene_panel.json" not in inventory["files"]
    assert not (tmp_path / "s" / "gene_panel.json").exists()


def test_offline_lists_every_missing_file(server: Server, tmp_path: Path, source: Path) -> None:
    known = registry(server, outs=RemoteFile("X", "outs", (Address(server.url("X_outs.zip"), "seen"),), (), "26.7 GB"))
    with pytest.raises(UserError) as caught:
        fetch(DATASET, tmp_path / "s", known, offline=True)
    out = tmp_path / "s"
    assert str(caught.value) == (
        "fetch.offline is set, and 3 files are not here\n"
        "    s: outs.zip (26.7 GB)\n"
        f"      from {server.url('X_outs.zip')}\n"
        f"      to   {out / 'outs.zip'}\n"
        f"      or, unpacked from it, to {out}: experiment.xenium; cells.parquet or cells.csv.gz or cells.csv; "
        "cell_feature_matrix.h5; nucleus_boundaries.parquet or nucleus_boundaries.csv.gz or nucleus_boundaries.csv or "
        "cells.zarr.zip\n"
        "    s: s_he_image.ome.tif (size not known)\n"
        f"      from {server.url('X_he_image.ome.tif')}\n"
        f"      to   {out / 's_he_image.ome.tif'}\n"
        "    s: s_he_imagealignment.csv (size not known)\n"
        f"      from {server.url('X_he_imagealignment.csv')}\n"
        f"      to   {out / 's_he_imagealignment.csv'}\n"
        "  to mend it: bring the files there, or give the place where they lie as 'path', 'he' and 'alignment' in the "
        "slide sheet, or set fetch.offline to false"
    )
    assert not server.requests
    rows = [DATASET, {**DATASET, "slide": "t", "path": str(source)}, {"slide": "u", "source": "local"}]
    rows.append({**DATASET, "slide": "v", "align": "register"})
    missing = missing_files(rows, known, tmp_path)
    assert [(item.slide, item.place.name) for item in missing] == [
        *(("s", name) for name in ("outs.zip", "s_he_image.ome.tif", "s_he_imagealignment.csv")),
        *(("v", name) for name in ("outs.zip", "v_he_image.ome.tif")),
    ]
    assert "the DAPI image in focus" in str(missing[3])
    raise_missing([])


def test_command(server: Server, tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = "dataset\ttitle\trole\torgan\txoa_version\tfacts\tevidence"
    (tmp_path / "datasets.tsv").write_text(f"{columns}\nX\tA set\ttrain 1\tlung\t3.0.0\t\t\n", encoding="utf-8")
    rows = "".join(f"X\t{kind}\t{server.url(name)}\tseen\n" for kind, name in NAMES.items())
    (tmp_path / "dataset_files.tsv").write_text(f"dataset\tfile\turl\tstatus\n{rows}", encoding="utf-8")
    given = ["fetch", "--registry", str(tmp_path / "datasets.tsv")]
    assert main([*given, "--list"]) == 0
    assert capsys.readouterr().out == "X\n  lung, analysis 3.0.0; train 1; outs.zip: size not known\n"
    assert main([*given, "X", "--out", str(tmp_path / "X")]) == 0
    assert read_json(tmp_path / "X" / "bundle.json")["he"] == "X_he_image.ome.tif"
    assert main([*given, "Z", "--out", str(tmp_path / "Z")]) == 1
    assert "There is no dataset 'Z'" in capsys.readouterr().err
    assert main([*given, "X"]) == 1
    assert "No folder is named" in capsys.readouterr().err


def test_a_wrong_zip_put_there_by_hand(server: Server, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    out.mkdir()
    shutil.copy(source / "X_outs.zip", out / "outs.zip")
    records = (Record("md5", "0" * 32, "me", False),)
    known = registry(server, outs=RemoteFile("X", "outs", (Address(server.url("X_outs.zip"), "seen"),), records))
    with pytest.raises(UserError, match=r"The md5 of a file is not the recorded one\n.*outs\.zip"):
        fetch(DATASET, out, known)
    assert (out / "outs.zip.wrong").is_file()


def test_leftovers_of_a_killed_job_go(server: Server, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    out.mkdir()
    for name in (".4711.cells.parquet", "cells.parquet.part", "cells.parquet.part.json"):
        (out / name).write_bytes(b"half")
    check(fetch(DATASET, out, registry(server)), source, out)
    assert not (out / ".4711.cells.parquet").exists()


def test_a_killed_process_goes_on(server: Server, source: Path, tmp_path: Path) -> None:
    rows = "".join(f"X\t{kind}\t{server.url(name)}\tseen\n" for kind, name in NAMES.items())
    columns = "dataset\ttitle\trole\torgan\txoa_version\tfacts\tevidence"
    (tmp_path / "datasets.tsv").write_text(f"{columns}\nX\tA set\ttrain 1\tlung\t3.0.0\t\t\n", encoding="utf-8")
    (tmp_path / "dataset_files.tsv").write_text(f"dataset\tfile\turl\tstatus\n{rows}", encoding="utf-8")
    server.fault(NAMES["he"]).stall = [800_000]
    given = ["fetch", "X", "--out", str(tmp_path / "X"), "--registry", str(tmp_path / "datasets.tsv")]
    part = tmp_path / "X" / "X_he_image.ome.tif.part"
    with subprocess.Popen([sys.executable, "-m", "nuclass.cli", *given], stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 20
        while not (part.is_file() and part.stat().st_size > 700_000) and time.monotonic() < end:
            time.sleep(0.02)
        process.kill()
    kept = part.stat().st_size
    server.forget()
    assert main(given) == 0
    assert server.sent == {NAMES["he"]: 1_500_000 - kept}
    assert sha256(tmp_path / "X" / "X_he_image.ome.tif") == sha256(source / NAMES["he"])
