"""Fetching: links to local bundles, and downloads from a server with and without ranges."""

from __future__ import annotations

import shutil
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bundle_example import example
from nuclass.core.errors import UserError
from nuclass.core.files import read_json, sha256
from nuclass.synthetic.bundle import write_bundle
from nuclass.xenium.download import download
from nuclass.xenium.fetch import dataset_row, fetch_local, fetch_remote, read_registry
from nuclass.xenium.reader import read_bundle

REGISTRY = Path(__file__).parent.parent / "resources" / "datasets.tsv"


class Handler(SimpleHTTPRequestHandler):
    """A file server with optional ranges and faults on demand."""

    ranges = True
    fail_first: dict[str, int]
    cut_at: dict[str, int]
    sent: dict[str, int]

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        name = self.path.lstrip("/")
        file = Path(self.directory) / name
        if not file.is_file():
            return self.send_error(404)
        if body and self.fail_first.get(name, 0) > 0:
            self.fail_first[name] -= 1
            return self.send_error(503)
        data = file.read_bytes()
        start, stop = 0, len(data)
        wanted = self.headers.get("Range") if self.ranges else None
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1, len(data)) if last else len(data)
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return None
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        else:
            self.send_response(200)
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if body:
            part = data[start:stop]
            if name in self.cut_at and len(part) > self.cut_at[name]:
                part = part[: self.cut_at.pop(name)]
            self.sent[name] = self.sent.get(name, 0) + len(part)
            with_error = len(part) < stop - start
            try:
                self.wfile.write(part)
            except (BrokenPipeError, ConnectionResetError):
                with_error = True
            if with_error:
                self.close_connection = True
        return None


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with its H&E and alignment, and the same as on a server."""
    folder = tmp_path_factory.mktemp("source")
    write_bundle(folder / "bundle", "x", example())
    (folder / "he_image.ome.tif").write_bytes(bytes(range(256)) * 12000)
    (folder / "he_imagealignment.csv").write_text("0,1.2,5\n-1.2,0,900\n0,0,1")
    with zipfile.ZipFile(folder / "outs.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((folder / "bundle").rglob("*")):
            if path.is_file() and path.name != "bundle.json":
                archive.write(path, path.relative_to(folder / "bundle").as_posix())
    return folder


@pytest.fixture
def server(source: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Handler]]]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    kind = type("Served", (Handler,), {"fail_first": {}, "cut_at": {}, "sent": {}})
    http = ThreadingHTTPServer(("127.0.0.1", 0), lambda *arguments: kind(*arguments, directory=str(source)))
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}", kind
    http.shutdown()
    http.server_close()


def row(address: str, **changes: str) -> dict[str, str]:
    return {
        "dataset": "example",
        "url_outs": f"{address}/outs.zip",
        "url_he": f"{address}/he_image.ome.tif",
        "url_alignment": f"{address}/he_imagealignment.csv",
        **changes,
    }


def test_local_bundle_is_linked(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "slide"
    for _ in range(2):
        inventory = fetch_local(
            source / "bundle", source / "he_image.ome.tif", source / "he_imagealignment.csv", out, "ovary_7"
        )
    assert inventory == read_json(out / "bundle.json")
    assert (inventory["he"], inventory["alignment"]) == ("ovary_7_he_image.ome.tif", "ovary_7_he_imagealignment.csv")
    assert all((out / name).is_symlink() for name in inventory["files"])
    assert inventory["files"][inventory["he"]]["sha256"] == sha256(source / "he_image.ome.tif")
    assert "morphology_focus/morphology_focus_0000.ome.tif" in inventory["files"]
    assert "morphology.ome.tif" not in inventory["files"]
    assert len(read_bundle(out).cells()) == 60


def test_local_bundle_without_what_it_needs(source: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(source / "bundle", tmp_path / "bundle")
    he, alignment = source / "he_image.ome.tif", source / "he_imagealignment.csv"
    with pytest.raises(UserError, match="alignment of slide 's' is missing"):
        fetch_local(bundle, he, "", tmp_path / "out", "s")
    (bundle / "cell_feature_matrix.h5").unlink()
    with pytest.raises(UserError, match=r"cell_feature_matrix\.h5"):
        fetch_local(bundle, he, alignment, tmp_path / "out", "s")
    assert not (tmp_path / "out" / "bundle.json").exists()


def test_remote_takes_only_what_is_needed(server: tuple[str, type[Handler]], source: Path, tmp_path: Path) -> None:
    address, kind = server
    kind.fail_first = {"he_image.ome.tif": 1, "outs.zip": 1}
    inventory = fetch_remote(row(address), tmp_path, "ovary_7", pause_s=0.01)
    assert inventory["source"] == "example"
    for name, entry in inventory["files"].items():
        original = {"ovary_7_he_image.ome.tif": "he_image.ome.tif"}.get(name, f"bundle/{name}")
        if name != "ovary_7_he_imagealignment.csv":
            assert entry["sha256"] == sha256(source / original), name
    assert not list(tmp_path.rglob("*.part"))
    assert not (tmp_path / "transcripts.parquet").exists()
    assert len(read_bundle(tmp_path).cells()) == 60
    kind.sent.clear()
    assert fetch_remote(row(address), tmp_path, "ovary_7", pause_s=0.01) == inventory
    assert kind.sent.get("he_image.ome.tif", 0) <= (source / "he_image.ome.tif").stat().st_size


def test_server_without_ranges(server: tuple[str, type[Handler]], tmp_path: Path) -> None:
    address, kind = server
    kind.ranges = False
    inventory = fetch_remote(row(address), tmp_path, "s", pause_s=0.01)
    assert "cells.parquet" in inventory["files"]
    assert not (tmp_path / "outs.zip").exists()


def test_broken_transfer_goes_on_where_it_stopped(
    server: tuple[str, type[Handler]], source: Path, tmp_path: Path
) -> None:
    address, kind = server
    name = "he_image.ome.tif"
    kind.cut_at = {name: 2_000_000}
    target = download(f"{address}/{name}", tmp_path / "he.tif", pause_s=0.01)
    assert sha256(target) == sha256(source / name)
    size = (source / name).stat().st_size
    assert kind.sent[name] < 2 * size
    (tmp_path / "two.tif.part").write_bytes((source / name).read_bytes()[:1000])
    kind.cut_at = {name: 10}
    with pytest.raises(UserError, match="1 attempts"):
        download(f"{address}/{name}", tmp_path / "two.tif", attempts=1)
    assert not (tmp_path / "two.tif").exists()
    assert sha256(download(f"{address}/{name}", tmp_path / "two.tif")) == sha256(source / name)


@pytest.mark.parametrize("extra", [0, 5])
def test_a_part_of_full_length_or_more(
    server: tuple[str, type[Handler]], source: Path, tmp_path: Path, extra: int
) -> None:
    address, kind = server
    name = "he_image.ome.tif"
    (tmp_path / "he.tif.part").write_bytes((source / name).read_bytes() + b"x" * extra)
    assert sha256(download(f"{address}/{name}", tmp_path / "he.tif", pause_s=0.01)) == sha256(source / name)
    assert (kind.sent.get(name, 0) == 0) == (extra == 0)


@pytest.mark.parametrize("key", ["url_outs", "url_he", "url_alignment"])
def test_refusal_names_the_address(server: tuple[str, type[Handler]], tmp_path: Path, key: str) -> None:
    address, _ = server
    with pytest.raises(UserError, match="HTTP 404") as caught:
        fetch_remote(row(address, **{key: f"{address}/gone"}), tmp_path, "s", pause_s=0.01)
    assert f"{address}/gone" in str(caught.value)
    assert not (tmp_path / "bundle.json").exists()


def test_not_a_zip_and_no_address(server: tuple[str, type[Handler]], tmp_path: Path) -> None:
    address, _ = server
    with pytest.raises(UserError, match="not a zip"):
        fetch_remote(row(address, url_outs=f"{address}/he_image.ome.tif"), tmp_path, "s", pause_s=0.01)
    with pytest.raises(UserError, match="No address is known"):
        fetch_remote(row(address, url_he=""), tmp_path, "s")


def test_registry() -> None:
    registry = read_registry(REGISTRY)
    assert len(registry) == 20
    assert registry["url_outs"].str.match(r"https://[^ ]+_outs\.zip$").all()
    for name in ("url_he", "url_alignment"):
        assert (registry[name].eq("") | registry[name].str.match(r"https://[^ ]+$")).all()
    assert dataset_row(registry, "Xenium_V1_hColon_Cancer_Add_on_FFPE")["organ"] == "colon"
    with pytest.raises(UserError, match="Did you mean 'Xenium_V1_human_Pancreas_FFPE'"):
        dataset_row(registry, "Xenium_V1_human_Pancreas_FFP")
