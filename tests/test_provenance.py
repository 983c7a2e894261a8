"""What a run was made from."""

from __future__ import annotations

from nuclass.core.files import write_json
from nuclass.core.provenance import run_record


def test_slides_of_patch_files_are_recorded_by_their_files(tmp_path):
    file = {"path": "/data/a/patches_224x224.h5", "size": 12, "mtime_ns": 5, "side": 224}
    manifest = {"mpp": 0.25, "windows": {"local": 224}, "parts": [{"folder": "/data/a", "files": {"local": file}}]}
    write_json(tmp_path / "patches.json", manifest)
    write_json(tmp_path / "bundle.json", {"source": "local", "files": {"x": {"sha256": "ab", "bytes": 3}}})
    (tmp_path / "sheet.tsv").write_text("slide\n")
    record = run_record(
        {"study": "mine"},
        [tmp_path / "sheet.tsv"],
        {"b": tmp_path / "bundle.json"},
        tmp_path,
        {"a": tmp_path / "patches.json"},
    )
    assert record["patches"] == {
        "a": {
            "mpp": 0.25,
            "windows": {"local": 224},
            "files": {"/data/a/patches_224x224.h5": {"bytes": 12, "mtime_ns": 5}},
        }
    }
    assert record["bundles"]["b"]["bytes"] == 3
    assert record["code"]["commit"] is None
