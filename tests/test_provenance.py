"""What a run was made from."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from nuclass.core.errors import UserError
from nuclass.core.files import sha256, write_json
from nuclass.core.provenance import checkpoint_versions, git_state, places, run_record
from test_workflow import snakemake

ROOT = Path(__file__).parents[1]


def stated(path: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "size": 12, "mtime_ns": 5, **more}


def recorded(folder: Path, parts: list[dict[str, Any]]) -> dict[str, Any]:
    write_json(folder / "patches.json", {"mpp": 0.25, "windows": {"local": 224}, "parts": parts})
    write_json(folder / "bundle.json", {"source": "local", "files": {"x": {"sha256": "ab", "bytes": 3}}})
    (folder / "sheet.tsv").write_text("slide\n")
    return run_record(
        {"study": "mine"},
        [folder / "sheet.tsv"],
        {"b": folder / "bundle.json"},
        folder,
        {"a": folder / "patches.json"},
    )


def test_slides_of_patch_files_are_recorded_by_their_files(tmp_path: Path) -> None:
    local = stated("/data/a/patches_224x224.h5", side=224, sources=[stated("/data/a/slide.h5"), stated("/b/slide.h5")])
    part = {"folder": "/data/a", "annotations": stated("/data/a/annotations.json"), "files": {"local": local}}
    record = recorded(tmp_path, [part])
    facts = {"bytes": 12, "mtime_ns": 5}
    names = ("annotations.json", "patches_224x224.h5", "slide.h5", "2/slide.h5")
    assert record["patches"] == {
        "a": {"mpp": 0.25, "windows": {"local": 224}, "folder": "/data/a", "files": dict.fromkeys(names, facts)}
    }
    assert record["bundles"]["b"]["files"] == {"x": {"sha256": "ab", "bytes": 3}}
    assert record["bundles"]["b"]["bytes"] == 3
    sheet = tmp_path / "sheet.tsv"
    assert record["inputs"] == {str(sheet): {"bytes": 6, "sha256": sha256(sheet)}}
    assert record["code"]["commit"] is None


def test_files_of_train_and_test_are_all_recorded(tmp_path: Path) -> None:
    parts = [
        {
            "folder": f"/data/a/{name}",
            "annotations": stated(f"/data/a/{name}/annotations.json"),
            "files": {role: stated(f"/data/a/{name}/{role}.h5") for role in ("local", "global")},
        }
        for name in ("train", "test")
    ]
    found = recorded(tmp_path, parts)["patches"]["a"]
    assert found["folder"] == "/data/a"
    files = ("annotations.json", "local.h5", "global.h5")
    assert set(found["files"]) == {f"{part}/{name}" for part in ("train", "test") for name in files}


def test_places_tell_no_folder_and_are_never_the_same() -> None:
    paths = ["config/a.tsv", "/x/a.tsv", "/y/a.tsv", "a.tsv", "/in/b/c"]
    assert places(paths, "/in") == {
        "config/a.tsv": "config/a.tsv",
        "/x/a.tsv": "2/a.tsv",
        "/y/a.tsv": "3/a.tsv",
        "a.tsv": "a.tsv",
        "/in/b/c": "b/c",
    }


@pytest.mark.parametrize("protocol", [2, 4])
def test_versions_are_those_in_the_checkpoint(tmp_path: Path, protocol: int) -> None:
    versions = {"nuclass": "0.1", "torch": "9.8", "python": "9.8"}
    versions["python"] = versions["torch"]
    for data, expected in (
        ({"format": 2, "versions": versions, "classes": ["versions"]}, versions),
        ({"format": 1, "model": "local", "config": {}}, {}),
    ):
        with zipfile.ZipFile(tmp_path / "best.ckpt", "w") as archive:
            archive.writestr("best/data.pkl", pickle.dumps(data, protocol))
        assert checkpoint_versions(tmp_path / "best.ckpt") == expected


def test_versions_are_those_that_a_real_checkpoint_was_written_with(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from nuclass.training.checkpoint import save_checkpoint

    save_checkpoint(tmp_path / "best.ckpt", {"model": "local"}, {"weight": torch.zeros(2)})
    assert checkpoint_versions(tmp_path / "best.ckpt")["torch"] == str(torch.__version__)


def test_a_file_that_is_no_checkpoint_is_told(tmp_path: Path) -> None:
    (tmp_path / "best.ckpt").write_text("no")
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint_versions(tmp_path / "best.ckpt")


@pytest.mark.workflow
def test_given_labels_and_files_of_sections_are_inputs_of_the_record(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "config", tmp_path / "config")
    shutil.copytree(ROOT / "resources", tmp_path / "resources", ignore=shutil.ignore_patterns("bundles", "truth"))
    sheet = (tmp_path / "config/slides.tsv").read_text(encoding="utf-8")
    plain = "ovary_1\tovary\ttrain\tovary_donor_1\tsynthetic" + "\t" * 7
    own = "ovary_1\tovary\ttrain\tovary_donor_1\tlocal\t\touts\t\tgrid\t\t\town.csv::cell_id,cell_type"
    assert plain in sheet
    (tmp_path / "config/slides.tsv").write_text(sheet.replace(plain, own), encoding="utf-8")
    (tmp_path / "outs").mkdir()
    for name in ("experiment.xenium", "cells.parquet", "cell_feature_matrix.h5", "nucleus_boundaries.parquet",
                 "X_he_image.ome.tif"):  # fmt: skip
        (tmp_path / "outs" / name).touch()
    (tmp_path / "own.csv").write_text("cell_id,cell_type\na,T Cells\n", encoding="utf-8")
    told = ("--snakefile", str(ROOT / "workflow/Snakefile"), "--cores", "1", "--filegraph")
    done = snakemake(*told, "--", "results/provenance/run.json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    node = done.stdout.split("record_provenance", 1)[1].split("</table>", 1)[0]
    missing = [name for name in ("own.csv", "slides.tsv", "models/demo.yaml", "demo_short.yaml") if name not in node]
    assert not missing, node


def test_a_copy_of_a_version_is_its_commit_whatever_repository_it_lies_in(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    copy = tmp_path / ".snakemake/nuclass" / ("5" * 40)
    copy.mkdir(parents=True)
    assert git_state(copy) == {"commit": "5" * 40, "dirty": False}
    assert git_state(tmp_path)["commit"] is None, "no commit yet"
