"""Archives and checkpoints of others: nothing leaves its folder, no link is followed, no pickle is run."""

from __future__ import annotations

import ast
import json
import os
import pickle
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle_example import example
from nuclass.core.errors import UserError
from nuclass.synthetic.bundle import write_bundle
from nuclass.xenium.alignment import read_alignment
from nuclass.xenium.fetch import fetch_slide
from test_fuzz_readers import FUZZ, KEYPOINTS, MATRIX, told, written

LIBRARY = Path(__file__).parent.parent / "src" / "nuclass"


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def outs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outs")
    write_bundle(folder / "bundle", "s1", example())
    return folder / "bundle"


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


EVIL = ("../evil.txt", "../../evil.txt", "/tmp/nuclass_evil.txt", "morphology_focus/../../evil.ome.tif", "..\\evil.txt")


def test_members_of_a_zip_stay_in_their_folder(outs: Path, tmp_path: Path) -> None:
    packed = tmp_path / "in" / "outs.zip"
    packed.parent.mkdir()
    experiment = json.loads((outs / "experiment.xenium").read_text(encoding="utf-8"))
    experiment["images"]["morphology_focus_filepath"] = EVIL[3]
    with zipfile.ZipFile(packed, "w") as archive:
        for name in EVIL:
            archive.writestr(name, b"evil")
        archive.writestr("experiment.xenium", json.dumps(experiment))
        for file in sorted(outs.rglob("*")):
            if file.is_file() and file.name != "experiment.xenium":
                archive.write(file, str(file.relative_to(outs)))
    row = {"slide": "s1", "source": "local", "path": str(packed), "he": "", "alignment": "grid", "dataset": ""}
    he = written(tmp_path, "he.ome.tif", b"II*\0")
    target = tmp_path / "study" / "bundles" / "s1"
    told(lambda: fetch_slide(row | {"he": str(he), "align": "given"}, target, image=True))
    assert (target / "cells.parquet").is_file()
    assert not [name for name in files_below(tmp_path) if "evil" in name]
    assert not Path(EVIL[2]).exists()
    assert not [path for path in target.rglob("*") if path.is_symlink() and "he_image" not in path.name]


def test_a_link_in_a_zip_is_not_followed(outs: Path, tmp_path: Path) -> None:
    secret = written(tmp_path, "secret.txt", b"secret")
    packed = tmp_path / "outs.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted(outs.rglob("*")):
            if file.is_file() and file.name != "gene_panel.json":
                archive.write(file, str(file.relative_to(outs)))
        archive.writestr(link("gene_panel.json"), str(secret))
    row = {"slide": "s1", "source": "local", "path": str(packed), "he": "", "alignment": "grid", "dataset": ""}
    target = tmp_path / "s1"
    told(lambda: fetch_slide(row | {"he": str(written(tmp_path, "he.ome.tif", b"II*\0")), "align": "given"}, target))
    brought = target / "gene_panel.json"
    assert not brought.is_symlink()
    assert not brought.exists() or b"secret\n" not in brought.read_bytes() + b"\n"


@pytest.mark.parametrize("name", [*EVIL, "a/../../b.csv"])
def test_members_of_an_alignment_archive_are_never_unpacked(tmp_path: Path, name: str) -> None:
    packed = tmp_path / "in.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(name.replace(".txt", ".csv"), MATRIX)
        archive.writestr(link("link.csv"), "/etc/passwd")
    told(lambda: read_alignment(packed))
    assert files_below(tmp_path) == {"in.zip"}


@FUZZ
@given(cut=st.floats(0, 1), at=st.floats(0, 1), value=st.integers(0, 255))
def test_damaged_alignment_archives(
    tmp_path_factory: pytest.TempPathFactory, cut: float, at: float, value: int
) -> None:
    place = tmp_path_factory.getbasetemp()
    packed = place / "align.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_imagealignment.csv", MATRIX)
        archive.writestr("keypoints.csv", KEYPOINTS)
    content = bytearray(packed.read_bytes())
    content[int(at * (len(content) - 1))] = value
    told(lambda: read_alignment(written(place, "align.zip", bytes(content[: max(int(cut * len(content)), 4)]))))


class Evil:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil_ran",)


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / "evil_ran").exists(), "a pickle was run"


def test_checkpoints_run_no_code(inside: Path) -> None:
    import torch

    from nuclass.evaluation.leak import read_seen
    from nuclass.training.checkpoint import read_checkpoint
    from nuclass.training.imported import read_original

    torch.save({"format": 1, "model": "local", "state": {}, "extra": Evil()}, inside / "best.ckpt")
    (inside / "plain.ckpt").write_bytes(pickle.dumps(Evil()))
    for name in ("best.ckpt", "plain.ckpt"):
        for read in (read_checkpoint, read_original, read_seen):
            with pytest.raises(UserError):
                read(inside / name)


def test_arrays_of_a_zarr_run_no_code(inside: Path) -> None:
    """Zarr of version 2 knows a codec that unpickles."""
    import zarr

    from nuclass.xenium.cells_zarr import outlines

    packed = inside / "cells.zarr.zip"
    meta = {
        "zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|u1", "compressor": None, "fill_value": 0,
        "order": "C", "filters": [{"id": "pickle", "protocol": 5}],
    }  # fmt: skip
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(".zgroup", '{"zarr_format": 2}')
        archive.writestr("polygon_sets/.zgroup", '{"zarr_format": 2}')
        archive.writestr("polygon_sets/0/.zgroup", '{"zarr_format": 2}')
        for name in ("cell_id", *(f"polygon_sets/0/{part}" for part in ("vertices", "num_vertices", "cell_index"))):
            archive.writestr(f"{name}/.zarray", json.dumps(meta))
            archive.writestr(f"{name}/0", pickle.dumps(Evil()))
    assert zarr.__version__
    told(lambda: outlines(packed, "nucleus"))


# Not files that somebody gives: the running state of a training in its own work folder, and the job that a training
# hands to its other processes.
OWN_STATE = {"training/state.py", "training/launch.py"}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Yield the dotted name of every call of a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_nothing_is_unpickled_but_by_readers_that_refuse_code(path: Path) -> None:
    name = str(path.relative_to(LIBRARY))
    for called, node in calls(path):
        words = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called == "torch.load" and name not in OWN_STATE:
            safe = words.get("weights_only") == "True" or name == "training/imported.py"
            assert safe, f"{name}, line {node.lineno}: torch.load without weights_only=True"
        assert called not in ("pickle.load", "pickle.loads", "joblib.load", "pd.read_pickle", "eval", "exec")
        assert words.get("allow_pickle", "False") == "False", f"{name}, line {node.lineno}"
        if called == "yaml.load":
            assert words.get("Loader") == "_loader()", f"{name}, line {node.lineno}: a loader that is not the safe one"


def test_the_reader_of_the_originals_files_names_the_restricted_unpickler() -> None:
    text = (LIBRARY / "training/imported.py").read_text(encoding="utf-8")
    assert text.count("torch.load(") == text.count("**how)") == 2
    assert '"pickle_module": restricted_pickle' in text
