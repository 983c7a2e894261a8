"""Single members of a remote zip: few bytes moved, every fault recovered or told."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from http_server import Server, serve
from nuclass.core.errors import UserError
from nuclass.xenium.remote import HttpSettings
from nuclass.xenium.remote_zip import extract, fetch_member, open_ranges, open_zip

QUICK = HttpSettings(timeout_s=0.5, attempts=3, pause_s=0.01)
WANTED = ("a/cells.parquet", "b/table.csv")
CONTENT = {
    "a/first.bin": os.urandom(2_000_000),
    "a/cells.parquet": os.urandom(1_500_000),
    "a/between.bin": os.urandom(2_000_000),
    "b/table.csv": b"".join(b"%d,%d\n" % (i, i * i) for i in range(60_000)),
    "b/last.bin": os.urandom(2_000_000),
}


def pack(file: Path, *, zip64: bool = False, comment: bytes = b"", small: bool = False) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = comment
        for name, data in CONTENT.items():
            if zip64:
                with archive.open(name, "w", force_zip64=True) as stream:
                    stream.write(data)
            else:
                archive.writestr(name, data[:3000] if small else data)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    pack(folder / "outs.zip")
    with serve(folder) as state:
        yield state


def take(server: Server, out: Path, http: HttpSettings = QUICK) -> int:
    """Fetch the wanted members and return the most bytes that may have moved: 1.05 x theirs and the directory."""
    source = open_ranges(server.url("outs.zip"), http)
    assert source is not None
    with open_zip(source) as archive:
        for name in WANTED:
            fetch_member(archive, source, name, out / name)
        needed = sum(archive.getinfo(name).compress_size for name in WANTED)
        return int(1.05 * (needed + source.total - archive.start_dir))


def whole(out: Path, cut: int | None = None) -> bool:
    return all((out / name).read_bytes() == CONTENT[name][:cut] for name in WANTED)


@pytest.mark.parametrize("small", [False, True])
def test_bytes_moved(server: Server, tmp_path: Path, small: bool) -> None:
    pack(server.folder / "outs.zip", small=small)
    most = take(server, tmp_path / "out")
    assert whole(tmp_path / "out", 3000 if small else None)
    assert server.sent["outs.zip"] <= most
    assert len(server.requests) == 3 + len(WANTED)
    assert not [file for file in (tmp_path / "out").rglob("*") if ".part" in file.name]


def test_comment_at_the_end(server: Server, tmp_path: Path) -> None:
    pack(server.folder / "outs.zip", comment=b"made by hand" * 20)
    take(server, tmp_path / "out")
    assert whole(tmp_path / "out")


def test_zip64(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        # Small limits make the writer use the records that files above 4 GB need.
        patch.setattr(zipfile, "ZIP64_LIMIT", 1000)
        pack(server.folder / "outs.zip", zip64=True)
    data = (server.folder / "outs.zip").read_bytes()
    assert b"PK\x06\x06" in data[-200:]
    most = take(server, tmp_path / "out")
    assert whole(tmp_path / "out")
    assert server.sent["outs.zip"] <= most


def test_dropped_and_stalled(server: Server, tmp_path: Path) -> None:
    server.fault("outs.zip").cut = [700_000]
    server.fault("outs.zip").stall = [400_000]
    most = take(server, tmp_path / "out")
    assert whole(tmp_path / "out")
    assert server.sent["outs.zip"] <= most


def test_a_member_is_gone_on_with_by_a_later_call(server: Server, tmp_path: Path) -> None:
    server.fault("outs.zip").cut = [1_000_000]
    with pytest.raises(UserError, match="A download failed"):
        take(server, tmp_path / "out", HttpSettings(timeout_s=0.5, attempts=1, pause_s=0.01))
    server.forget()
    most = take(server, tmp_path / "out")
    assert whole(tmp_path / "out")
    assert server.sent["outs.zip"] <= most - 1_000_000


def offset(server: Server, name: str) -> int:
    with zipfile.ZipFile(server.folder / "outs.zip") as archive:
        return archive.getinfo(name).header_offset + 1000


def test_corruption_on_the_way_is_mended(server: Server, tmp_path: Path) -> None:
    server.fault("outs.zip").flip = offset(server, WANTED[0])
    server.fault("outs.zip").flips = 4
    take(server, tmp_path / "out")
    assert whole(tmp_path / "out")


def test_damaged_member(server: Server, tmp_path: Path) -> None:
    server.fault("outs.zip").flip = offset(server, WANTED[0])
    with pytest.raises(UserError) as caught:
        take(server, tmp_path / "out")
    told = str(caught.value)
    assert told.startswith(f"A file inside a zip is damaged\n  where:      {WANTED[0]} of {server.url('outs.zip')}\n")
    assert "expected:   1,500,000 bytes with the CRC-32 " in told
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_file()]


def test_changed_between_directory_and_members(server: Server, tmp_path: Path) -> None:
    source = open_ranges(server.url("outs.zip"), QUICK)
    assert source is not None
    with open_zip(source) as archive:
        pack(server.folder / "outs.zip", comment=b"another")
        with pytest.raises(UserError, match="A file changed on the server while it was read"):
            fetch_member(archive, source, WANTED[0], tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_server_without_ranges(server: Server) -> None:
    server.ranges = False
    assert open_ranges(server.url("outs.zip"), QUICK) is None


Spoil = Callable[[Path], None]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-50_000]), "A file is no zip, or is cut off"),
        (lambda file: file.write_bytes(b"text" * 1000), "A file is no zip, or is cut off"),
        (lambda file: file.write_bytes(b"PK"), "A file is no zip, or is cut off"),
        (lambda file: file.write_bytes(b"<html><title>Sign in</title></html>"), "web page instead of a file"),
        (lambda file: file.unlink(), "HTTP 404"),
    ],
)
def test_no_zip(server: Server, spoil: Spoil, told: str, tmp_path: Path) -> None:
    spoil(server.folder / "outs.zip")
    with pytest.raises(UserError, match=told) as caught:
        take(server, tmp_path / "out")
    assert server.url("outs.zip") in str(caught.value)


def test_locked_member(tmp_path: Path) -> None:
    pack(tmp_path / "x.zip")
    data = bytearray((tmp_path / "x.zip").read_bytes())
    place = data.rindex(b"PK\x01\x02")
    data[place + 8] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    with open_zip(tmp_path / "x.zip") as archive, pytest.raises(UserError, match="cannot be unpacked"):
        extract(archive, "b/last.bin", tmp_path / "y", tmp_path / "x.zip")


def test_disk_full_while_unpacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    pack(tmp_path / "x.zip")
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with open_zip(tmp_path / "x.zip") as archive, pytest.raises(UserError, match="The disk is full"):
        extract(archive, WANTED[0], tmp_path / "y", tmp_path / "x.zip")
    assert [file.name for file in tmp_path.iterdir()] == ["x.zip"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 3000)), min_size=1, max_size=5))
def test_a_range_file_reads_as_a_file(server: Server, places: list[tuple[int, int]]) -> None:
    data = bytes(i % 251 for i in range(8000))
    (server.folder / "plain.bin").write_bytes(data)
    file = open_ranges(server.url("plain.bin"), QUICK)
    assert file is not None
    local = io.BytesIO(data)
    for start, length in places:
        assert (file.seek(start), file.read(length)) == (local.seek(start), local.read(length))
        assert file.tell() == local.tell()


def test_a_server_that_lies_about_ranges_gives_none(server: Server) -> None:
    server.fault("outs.zip").other_range = True
    assert open_ranges(server.url("outs.zip"), QUICK) is None
