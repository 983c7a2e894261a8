"""Readers of files that others made: a result or words, whatever the bytes, and no memory beyond their worth."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nuclass.core.config import load_study
from nuclass.core.errors import UserError
from nuclass.core.files import read_json
from nuclass.core.schema import read_yaml
from nuclass.core.sheets import read_sheet
from nuclass.evaluation.holdouts import read_holdouts
from nuclass.labels.markers import load_markers
from nuclass.labels.ontology import load_ontology
from nuclass.patches.annotations import peek_annotations, read_annotations
from nuclass.patches.patch_file import PatchFile
from nuclass.patches.trio import open_trio
from nuclass.training.config import parse_models
from nuclass.xenium.alignment import read_alignment

REPOSITORY = Path(__file__).parent.parent
WINDOWS = {"local": 8, "global": 16}
ORGANS = ("lung", "ovary", "unknown")
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
WORDS = (
    "",
    "NaN",
    "inf",
    "-1e400",
    "1e308",
    "0",
    "1",
    "2.5",
    "1,5",
    "x",
    '"',
    "'",
    "\ufeff",
    "#",
    "é",
    "\u2212",
    "a" * 40,
)
MATRIX = "1.2,0.1,300\n-0.1,1.2,50\n0,0,1\n"
KEYPOINTS = "fixedX,fixedY,alignmentX,alignmentY\n1,2,3,4\n500,2,400,4\n1,700,3,600\n500,700,400,600\n250,300,200,260\n"
RECORD = {"class_id": "T Cell", "centroid_x": 4.5, "centroid_y": 6.5, "micron_per_pixel": 0.25, "tissue_type": "lung"}
ANNOTATIONS = json.dumps({f"c{i}": RECORD for i in range(4)})
SHEET = (REPOSITORY / "config/slides.tsv").read_text(encoding="utf-8")
HOLDOUTS = (
    '{"a": {"root": ".", "mode": "xenium_exact", "tissue": "ovary"}, "b": {"root": "x", "mode": "y", "tissue": 3}}'
)


def told(read: Callable[[], Any]) -> Any:
    """Run a reader; what it raises must be words for the user."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except UserError:
        return None


def broken(whole: str) -> st.SearchStrategy[bytes]:
    """Bytes that are a file of this kind with something wrong: cut, mixed up, other words in it; or anything."""
    content = whole.encode()
    cut = st.integers(0, len(content)).map(lambda n: content[:n])
    spots = st.lists(st.tuples(st.integers(0, len(content)), st.sampled_from(WORDS)), min_size=1, max_size=4)

    def changed(places: list[tuple[int, str]]) -> bytes:
        text = content
        for at, word in places:
            text = text[:at] + word.encode() + text[at + len(word) :]
        return text

    swapped = st.tuples(st.integers(0, max(len(content) - 1, 0)), st.binary(min_size=1, max_size=3)).map(
        lambda pair: content[: pair[0]] + pair[1] + content[pair[0] + 1 :]
    )
    tables = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=5), max_size=6).flatmap(
        lambda rows: st.sampled_from([",", "\t", ";", " "]).map(
            lambda sign: "\n".join(sign.join(row) for row in rows).encode()
        )
    )
    return st.one_of(cut, spots.map(changed), swapped, tables, st.binary(max_size=200))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def written(folder: Path, name: str, content: bytes) -> Path:
    file = folder / name
    file.write_bytes(content)
    return file


@FUZZ
@given(content=st.one_of(broken(MATRIX), broken(KEYPOINTS)))
def test_alignment(place: Path, content: bytes) -> None:
    found = told(lambda: read_alignment(written(place, "alignment.csv", content)))
    assert found is None or np.isfinite(found.matrix).all()


@pytest.mark.parametrize(
    "content",
    [
        MATRIX.replace("300", "9" * 400),
        KEYPOINTS.replace("500", "1e308"),
        KEYPOINTS.replace("500", "1e-320"),
        "x" * 200_000,
        "1," * 100_000,
        "fixedX," * 70_000,
    ],
)
def test_alignment_of_odd_numbers_and_lengths(place: Path, content: str) -> None:
    told(lambda: read_alignment(written(place, "alignment.csv", content.encode())))


def test_an_alignment_file_is_not_read_without_end(place: Path) -> None:
    with pytest.raises(UserError, match="The alignment file is too large"):
        read_alignment("/dev/zero")
    bomb = place / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("alignment.csv", b"0" * (1 << 25))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(UserError, match="The alignment file is too large"):
        read_alignment(bomb)


@FUZZ
@given(content=broken(ANNOTATIONS))
def test_annotations(place: Path, content: bytes) -> None:
    file = written(place, "annotations.json", content)
    told(lambda: read_annotations(file))
    told(lambda: peek_annotations(file))


@FUZZ
@given(
    data=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from([*RECORD, "label", "c1", "c2"]), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
def test_json_of_any_shape(place: Path, data: Any) -> None:
    file = written(place, "any.json", json.dumps(data).encode())
    told(lambda: read_annotations(file))
    told(lambda: read_holdouts(file, organs=ORGANS, windows=WINDOWS))


@pytest.mark.parametrize(
    "content",
    ['{"a": ' * 5000, "[" * 100_000, '{"a": {"centroid_x": ' + "9" * 6000 + "}}", '{"a": "' + "x" * 10**6, '"\\ud800"'],
    ids=["objects", "lists", "digits", "open text", "half a sign"],
)
def test_json_that_is_deep_long_or_large(place: Path, content: str) -> None:
    file = written(place, "deep.json", content.encode())
    told(lambda: read_annotations(file))
    told(lambda: peek_annotations(file))
    told(lambda: read_json(file))
    told(lambda: read_holdouts(file, organs=ORGANS, windows=WINDOWS))


@FUZZ
@given(content=broken(HOLDOUTS))
def test_holdouts(place: Path, content: bytes) -> None:
    told(lambda: read_holdouts(written(place, "holdouts.json", content), organs=ORGANS, windows=WINDOWS))


@pytest.mark.parametrize("root", ["~nobody_here/x", "a" * 5000, "a\u0000b", "/dev/null", "..", "\ud800"])
def test_a_root_that_is_no_path(place: Path, root: str) -> None:
    entry = {"a": {"root": root, "mode": "xenium_exact", "tissue": "ovary"}}
    file = written(place, "holdouts.json", json.dumps(entry).encode())
    with pytest.raises(UserError, match="The list of data sets to evaluate on cannot be used"):
        read_holdouts(file, organs=ORGANS, windows=WINDOWS)


@FUZZ
@given(content=broken(SHEET))
def test_sheets(place: Path, content: bytes) -> None:
    columns = SHEET.splitlines()
    header = next(line for line in columns if not line.startswith("#")).split("\t")
    told(lambda: read_sheet(written(place, "sheet.tsv", content), header, header[:5]))


PATHS = st.sampled_from(
    ["", "x", "..", "/dev/null", "~", "a" * 300, "a\u0000b", "*", "::", "none", "grid", "1,2;3", "é/ü"]
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    source=st.sampled_from(["local", "patches", "dataset", "synthetic", "?"]),
    values=st.lists(PATHS, min_size=7, max_size=7),
)
def test_slide_sheets(place: Path, source: str, values: list[str]) -> None:
    dataset, path, he, alignment, align, labels, given_ = values
    header = "slide organ role patient source dataset path he alignment align labels given".split()
    row = ["s1", "lung", "train", "p1", source, dataset, path, he, alignment, align, labels, given_]
    text = "\n".join("\t".join(line) for line in (header, row, [*"s2 lung cohort p2 synthetic".split(), *[""] * 7]))
    written(place, "slides.tsv", (text + "\n").encode())
    config = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text(encoding="utf-8"))
    config |= {key: str(REPOSITORY / config[key]) for key in ("ontology", "markers", "models")}
    told(lambda: load_study(config | {"slides": "slides.tsv"}, place, read_alignment=read_alignment))


@FUZZ
@given(content=broken((REPOSITORY / "config/config.yaml").read_text(encoding="utf-8")[:3000]))
def test_yaml(place: Path, content: bytes) -> None:
    told(lambda: read_yaml(written(place, "config.yaml", content)))


@pytest.mark.parametrize(
    "content",
    [
        "a: &a [*a]",
        "a: 2001-99-99",
        "a: !!timestamp x",
        "a: !!int x",
        "a: " + "9" * 6000,
        "? {a: 1}\n: 2",
        "a: !!python/object/apply:os.system [ls]",
        "a: !!binary é",
        "a: 1\n---\nb: 2",
        "[" * 20_000,
        "- " * 20_000,
        "{a: " * 20_000,
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    ],
    ids=str,
)
def test_yaml_of_evil_form(place: Path, content: str) -> None:
    """What is nested too deep would end the process, and aliases of aliases its memory."""
    file = written(place, "config.yaml", content.encode())
    done = subprocess.run(
        [sys.executable, "-c", "import sys, test_fuzz_readers as t; t.told(lambda: t.read_yaml(sys.argv[1]))", file],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=60,
    ) if len(content) > 10_000 else None  # fmt: skip
    if done is not None:
        assert done.returncode == 0, done.stderr[-500:]
        return
    with pytest.raises(UserError):
        read_yaml(file)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    settings_=st.recursive(
        st.none() | st.booleans() | st.integers(-5, 10**6) | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.integers(0, 3), inner, max_size=3)
        ),
        max_leaves=6,
    ),
    key=st.sampled_from(["slides", "models", "ontology", "markers", "windows", "mpp", "splits", "labels", "protocol"]),
)
def test_configurations_of_any_shape(place: Path, settings_: Any, key: str) -> None:
    config = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text(encoding="utf-8")) | {key: settings_}
    tables = {"ontology": load_ontology}
    told(lambda: load_study(config, REPOSITORY, tables=tables, read_markers=load_markers, check_models=parse_models))


MARKERS = (REPOSITORY / "resources/markers/markers.tsv").read_text(encoding="utf-8")


@FUZZ
@given(content=broken("".join(MARKERS.splitlines(keepends=True)[:12])))
def test_markers(place: Path, content: bytes) -> None:
    told(lambda: load_markers(written(place, "markers.tsv", content)))


# Patch files.


def patch_file(path: Path, layout: str = "merged") -> bytes:
    windows = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
    with h5py.File(path, "w") as file:
        if layout == "merged":
            file.create_dataset("images", data=windows, chunks=(1, 8, 8, 3), compression="lzf")
            file.create_dataset("keys", data=[f"c{i}" for i in range(4)], dtype=h5py.string_dtype())
        elif layout == "plain":
            file["images"] = windows
            file["keys"] = np.array([f"c{i}" for i in range(4)], "S4")
        else:
            for i in range(4):
                file[f"c{i}"] = windows[i]
    return path.read_bytes()


def look(path: Path) -> None:
    """Do all that a study does with a file of windows."""
    with PatchFile(path) as file:
        _ = file.keys, file.sources, file.padded()
        file.look_at_all()
        file.read(np.arange(file.count)[:8])


@pytest.fixture(scope="module", params=["merged", "plain", "per_key"])
def patches(request: pytest.FixtureRequest, place: Path) -> bytes:
    return patch_file(place / "whole.h5", request.param)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(cut=st.floats(0, 1), noise=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4))
def test_damaged_patch_files(place: Path, patches: bytes, cut: float, noise: list[tuple[float, int]]) -> None:
    content = bytearray(patches)
    for at, value in noise:
        content[int(at * (len(content) - 1))] = value
    if not noise:
        content = content[: int(cut * len(content))]
    told(lambda: look(written(place, "damaged.h5", bytes(content))))


@FUZZ
@given(content=st.binary(max_size=300))
def test_patch_files_of_any_bytes(place: Path, content: bytes) -> None:
    for start in (b"", b"\x89HDF\r\n\x1a\n"):
        told(lambda start=start: look(written(place, "any.h5", start + content)))


DTYPES = ("u1", "i1", "u2", "f4", "f8", "S3", "bool", "c8", "V5")


@FUZZ
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 9), max_size=5).map(tuple),
    keys=st.sampled_from(["text", "bytes", "numbers", "2d", "scalar", "none", "group", "latin"]),
)
def test_patch_files_of_other_types_and_shapes(place: Path, dtype: str, shape: tuple[int, ...], keys: str) -> None:
    path = place / "other.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("images", shape=shape, dtype=dtype)
        n = shape[0] if shape else 1
        if keys == "group":
            file.create_group("keys")
        elif keys == "latin":
            file["keys"] = np.array([b"\xe9" + str(i).encode() for i in range(n)], "S4")
        elif keys != "none":
            values: Any = {"text": [f"c{i}" for i in range(n)], "numbers": list(range(n)), "2d": np.ones((n, 2))}
            values |= {"scalar": 3, "bytes": np.array([f"c{i}" for i in range(n)], "S4")}
            kind = {"dtype": h5py.string_dtype()} if keys == "text" else {}
            file.create_dataset("keys", data=values[keys], **kind)
    told(lambda: look(path))


def test_a_file_that_claims_more_than_it_holds(place: Path) -> None:
    """Neither a window of a million px nor a billion ids may take the memory that they would need."""
    path = place / "claims.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("images", shape=(2, 10**6, 10**6, 3), dtype="u1", chunks=(1, 64, 64, 3))
        file["keys"] = np.array([b"a", b"b"])
    with pytest.raises(UserError, match="Windows have the wrong shape"):
        look(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("images", shape=(10**9, 8, 8, 3), dtype="u1", chunks=(1, 8, 8, 3))
        file.create_dataset("keys", shape=(10**9,), dtype="S8", chunks=(1000,))
    with pytest.raises(UserError, match="The cell ids of a file of windows were never written"):
        look(path)
    with h5py.File(path, "w") as file:
        file["a"], file["b"] = h5py.SoftLink("/nowhere"), h5py.ExternalLink("/etc/passwd", "/x")
    with pytest.raises(UserError):
        look(path)


@FUZZ
@given(which=st.sampled_from(["annotations.json", "patches_8x8.h5", "patches_16x16.h5"]), cut=st.floats(0, 0.99))
def test_a_trio_with_a_file_that_is_cut_off(place: Path, which: str, cut: float) -> None:
    folder = place / "trio"
    folder.mkdir(exist_ok=True)
    (folder / "annotations.json").write_text(ANNOTATIONS, encoding="utf-8")
    patch_file(folder / "patches_8x8.h5")
    with h5py.File(folder / "patches_16x16.h5", "w") as file:
        file["images"] = np.zeros((4, 16, 16, 3), np.uint8)
        file["keys"] = [f"c{i}" for i in range(4)]
    content = (folder / which).read_bytes()
    (folder / which).write_bytes(content[: int(cut * len(content))])
    told(lambda: open_trio(folder, WINDOWS, 0.25).close())
