"""One file over HTTP: resumed, retried, verified, and every refusal told in words."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from http_server import Server, serve
from nuclass.core.alone import alone_in
from nuclass.core.errors import UserError
from nuclass.core.progress import Progress, readable_bytes, readable_seconds
from nuclass.xenium import download as module
from nuclass.xenium.download import download
from nuclass.xenium.registry import Record
from nuclass.xenium.remote import HttpSettings

NAME = "he.tif"
DATA = os.urandom(3_000_000)
QUICK = HttpSettings(timeout_s=0.5, attempts=3, pause_s=0.01)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / NAME).write_bytes(DATA)
    with serve(folder) as state:
        yield state


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out" / NAME


def get(server: Server, target: Path, *records: Record, settings: HttpSettings = QUICK, name: str = NAME) -> str:
    return download([server.url(name)], target, settings, records)[1]


def left(target: Path) -> list[str]:
    return sorted(file.name for file in target.parent.iterdir())


def test_plain_download_in_one_request(server: Server, target: Path) -> None:
    assert get(server, target) == hashlib.sha256(DATA).hexdigest()
    assert target.read_bytes() == DATA
    assert left(target) == [NAME]
    assert len(server.requests) == 1
    assert server.requests[0][2]["User-Agent"].startswith("nuclass-workflow/")


def test_user_agent_is_settable(server: Server, target: Path) -> None:
    settings = HttpSettings.from_config({"user_agent": "curl/8.0", "timeout_s": 5, "attempts": 2, "offline": False})
    assert (settings.timeout_s, settings.attempts) == (5, 2)
    get(server, target, settings=settings)
    assert server.requests[0][2]["User-Agent"] == "curl/8.0"
    assert HttpSettings.from_config({"user_agent": ""}).user_agent.startswith("nuclass-workflow/")


@pytest.mark.parametrize("chunked", [False, True])
def test_dropped_connection_goes_on_where_it_stopped(server: Server, target: Path, chunked: bool) -> None:
    server.chunked = chunked
    server.fault(NAME).cut = [1_200_000, 700_000]
    get(server, target)
    assert target.read_bytes() == DATA
    assert server.sent[NAME] == len(DATA)
    assert [wanted for _, wanted, _ in server.requests] == ["", "bytes=1200000-", "bytes=1900000-"]
    assert all("If-Range" in headers for _, wanted, headers in server.requests if wanted)


def test_stalled_server(server: Server, target: Path) -> None:
    server.fault(NAME).stall = [1_000_000]
    start = time.monotonic()
    get(server, target)
    assert time.monotonic() - start < 3
    assert target.read_bytes() == DATA
    assert server.sent[NAME] < 1.1 * len(DATA)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_passing_faults_are_waited_for(server: Server, target: Path, status: int) -> None:
    fault = server.fault(NAME)
    fault.status, fault.times = status, 2
    get(server, target)
    assert target.read_bytes() == DATA
    assert len(server.requests) == 3


def test_retry_after_is_kept(server: Server, target: Path) -> None:
    fault = server.fault(NAME)
    fault.status, fault.times, fault.headers = 429, 1, {"Retry-After": "1"}
    start = time.monotonic()
    get(server, target)
    assert time.monotonic() - start >= 1
    fault.times, fault.headers = 1, {"Retry-After": "7200"}
    target.unlink()
    with pytest.raises(UserError, match=r"the server asks to wait 2 h 0 min"):
        get(server, target)


def test_a_fault_that_stays(server: Server, target: Path) -> None:
    server.fault(NAME).status = 503
    with pytest.raises(UserError) as caught:
        get(server, target)
    assert str(caught.value) == (
        "A download failed\n"
        f"  where:      {server.url(NAME)}\n"
        "  found:      HTTP 503 Service Unavailable (3 attempts)\n"
        "  expected:   the whole file\n"
        "  to mend it: check the network and start again; what has arrived is kept"
    )
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "what", "parts"),
    [
        (403, "A server refuses to give a file", ["HTTP 403 Forbidden", "'nuclass-workflow/", "set fetch.user_agent"]),
        (401, "A server refuses to give a file", ["HTTP 401", "download the file with a browser"]),
        (404, "There is no file at an address", ["HTTP 404 Not Found", "resources/dataset_files.tsv"]),
        (410, "There is no file at an address", ["HTTP 410"]),
        (400, "A server does not give a file", ["HTTP 400"]),
        (204, "A server does not give a file", ["HTTP 204"]),
        (407, "A proxy wants a login", ["https_proxy"]),
    ],
)
def test_refusals_are_final(server: Server, target: Path, status: int, what: str, parts: list[str]) -> None:
    server.fault(NAME).status = status
    with pytest.raises(UserError) as caught:
        get(server, target)
    told = str(caught.value)
    assert told.startswith(f"{what}\n  where:      {server.url(NAME)}\n")
    for part in parts:
        assert part in told
    assert len(server.requests) == 1
    assert not target.exists()


def test_a_web_page_is_no_file(server: Server, target: Path) -> None:
    server.fault(NAME).page = True
    with pytest.raises(UserError) as caught:
        get(server, target)
    assert "The server sent a web page instead of a file" in str(caught.value)
    assert "a page with the title 'Please log in'" in str(caught.value)
    server.faults.clear()
    (server.folder / NAME).write_bytes(b"  <!doctype HTML><p>moved</p>")
    with pytest.raises(UserError, match="web page instead of a file"):
        get(server, target)
    assert not target.exists()


def test_no_server_and_no_name(target: Path) -> None:
    with pytest.raises(UserError, match=r"A download failed\n.*127\.0\.0\.1:9/x\n.*refused \(3 attempts\)"):
        download(["http://127.0.0.1:9/x"], target, QUICK)
    with pytest.raises(UserError, match="An address is not valid"):
        download(["htp//x"], target, QUICK)


def test_truncated_file(server: Server, target: Path) -> None:
    server.fault(NAME).lie = 1000
    with pytest.raises(UserError, match="the connection ended after 3,000,000 of 3,001,000 bytes"):
        get(server, target)
    assert not target.exists()


def interrupted(server: Server, target: Path, after: int = 1_000_000) -> None:
    server.fault(NAME).cut = [after]
    with pytest.raises(UserError):
        get(server, target, settings=HttpSettings(timeout_s=0.5, attempts=1, pause_s=0.01))
    assert left(target) == [f"{NAME}.part", f"{NAME}.part.json"]
    server.forget()


def test_a_later_call_goes_on(server: Server, target: Path) -> None:
    interrupted(server, target)
    get(server, target)
    assert target.read_bytes() == DATA
    assert server.sent[NAME] == len(DATA) - 1_000_000
    assert left(target) == [NAME]


def test_an_ended_part_needs_no_request(server: Server, target: Path) -> None:
    interrupted(server, target)
    part = target.with_name(f"{NAME}.part")
    part.write_bytes(DATA)
    get(server, target)
    assert not server.requests
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("etags", [True, False])
def test_a_changed_file_is_not_glued_together(server: Server, target: Path, etags: bool) -> None:
    server.etags = etags
    interrupted(server, target)
    changed = os.urandom(2_500_000)
    (server.folder / NAME).write_bytes(changed)
    get(server, target)
    assert target.read_bytes() == changed


def test_a_part_of_unknown_origin_is_not_used(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.with_name(f"{NAME}.part").write_bytes(b"x" * 5000)
    get(server, target)
    assert target.read_bytes() == DATA
    assert left(target) == [NAME]


def test_no_ranges_begins_again(server: Server, target: Path) -> None:
    server.ranges = False
    interrupted(server, target)
    get(server, target)
    assert target.read_bytes() == DATA


def record(kind: str, value: str, mirror: bool = False) -> Record:
    return Record(kind, value, "somebody", mirror)


def test_verified(server: Server, target: Path) -> None:
    sums = [record(kind, hashlib.new(kind, DATA).hexdigest()) for kind in ("sha256", "md5")]
    get(server, target, *sums, record("bytes", str(len(DATA))))
    assert target.is_file()


@pytest.mark.parametrize(("kind", "value"), [("sha256", "0" * 64), ("md5", "0" * 32), ("bytes", "17")])
def test_a_wrong_file_is_moved_aside(server: Server, target: Path, kind: str, value: str) -> None:
    with pytest.raises(UserError) as caught:
        get(server, target, record(kind, value))
    actual = str(len(DATA)) if kind == "bytes" else hashlib.new(kind, DATA).hexdigest()
    told = str(caught.value)
    assert told.startswith(f"The {kind} of a file is not the recorded one\n")
    for part in (f"found:      {actual}", f"expected:   {value} (recorded by somebody)", f"{NAME}.wrong"):
        assert part in told
    assert left(target) == [f"{NAME}.wrong"]


def test_a_mirrors_checksum_only_warns(server: Server, target: Path, caplog: pytest.LogCaptureFixture) -> None:
    get(server, target, record("sha256", "0" * 64, mirror=True))
    assert target.is_file()
    assert "was recorded for a mirror copy (somebody); the file is kept" in caplog.text


def test_addresses_are_tried_in_order(server: Server, target: Path) -> None:
    url, _ = download([server.url("gone"), server.url(NAME)], target, QUICK)
    assert url == server.url(NAME)
    with pytest.raises(UserError) as caught:
        download([server.url("gone"), server.url("lost")], target.with_name("x"), QUICK)
    assert "There is no file at any of its addresses" in str(caught.value)
    assert f"{server.url('gone')}, {server.url('lost')}" in str(caught.value)
    server.fault("private").status = 403
    server.forget()
    with pytest.raises(UserError, match="HTTP 403") as caught:
        download([server.url("private"), server.url(NAME)], target.with_name("y"), QUICK)
    assert f"other addresses of the file: {server.url(NAME)}" in str(caught.value)
    assert len(server.requests) == 1


def test_the_part_of_a_second_address_is_gone_on_with(server: Server, target: Path) -> None:
    server.fault(NAME).cut = [1_000_000]
    urls = [server.url("gone"), server.url(NAME)]
    with pytest.raises(UserError, match="A download failed"):
        download(urls, target, HttpSettings(attempts=1))
    server.forget()
    download(urls, target, QUICK)
    assert server.sent == {NAME: len(DATA) - 1_000_000}


def test_not_enough_room(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1_000_000

    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(UserError) as caught:
        get(server, target)
    assert "found:      1.0 MB free" in str(caught.value)
    assert "expected:   3.0 MB for he.tif" in str(caught.value)
    assert not target.exists()


def test_disk_full_keeps_what_has_arrived(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = Path.open

    def small_disk(self: Path, mode: str = "r", *more: object, **names: object) -> object:
        stream = real_open(self, mode, *more, **names)  # type: ignore[call-overload]
        if mode != "ab":
            return stream
        real_write = stream.write

        class Full:
            def __enter__(self) -> Full:
                return self

            def __exit__(self, *_: object) -> None:
                stream.close()

            def write(self, block: bytes) -> int:
                if stream.tell() + len(block) > 1_000_000:
                    raise OSError(28, "No space left on device")
                return real_write(block)

        return Full()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", small_disk)
        with pytest.raises(UserError, match=r"The disk is full\n.*\n.*No space left on device"):
            get(server, target)
    assert not target.exists()
    kept = target.with_name(f"{NAME}.part").stat().st_size
    assert kept > 0
    server.forget()
    get(server, target)
    assert target.read_bytes() == DATA
    assert server.sent[NAME] == len(DATA) - kept


def test_progress_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress(4_500_000_000, "x", "bytes", done=500_000_000)
    progress.done = 1_500_000_000
    assert progress.line(20) == "1.5 GB of 4.5 GB (33 %), 50.0 MB/s, 1 min 0 s left"
    items = Progress(10, "x")
    items.done = 5
    assert items.line(5) == "5 of 10 items (50 %), 1.0 a second, 5.0 s left"
    assert readable_bytes(999_999) == "1.0 MB"
    assert [readable_seconds(s) for s in (2, 125, 4000)] == ["2.0 s", "2 min 5 s", "1 h 6 min"]


def test_a_server_that_lies_about_ranges(server: Server, target: Path) -> None:
    server.fault(NAME).cut = [600_000]
    server.fault(NAME).other_range = True
    get(server, target)
    assert target.read_bytes() == DATA
    assert [wanted for _, wanted, _ in server.requests] == ["", "bytes=600000-", ""]


def test_a_packed_body_is_no_file(server: Server, target: Path) -> None:
    server.fault(NAME).encoding = "gzip"
    with pytest.raises(UserError, match=r"A server sends a file packed\n(.*\n)*.*Content-Encoding: gzip"):
        get(server, target)
    assert not target.exists()


def test_a_body_without_an_end_warns(server: Server, target: Path, caplog: pytest.LogCaptureFixture) -> None:
    server.fault(NAME).endless = True
    get(server, target)
    assert target.read_bytes() == DATA
    assert "does not say how long the file is" in caplog.text


def test_a_dead_proxy_is_named_without_its_password(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr("urllib.request._opener", None)
    with pytest.raises(UserError) as caught:
        download(["http://host.invalid/a.bin"], target, QUICK)
    assert "through the proxy 127.0.0.1:1 of the environment variable http_proxy" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://host.invalid/a.bin", "http://", "host/a.bin"])
def test_an_address_that_is_none(target: Path, url: str) -> None:
    with pytest.raises(UserError, match="An address is not valid"):
        download([url], target, QUICK)


ALONE = (".lock", "Another process is filling the folder", "wait")


def test_one_process_a_folder(tmp_path: Path) -> None:
    other = "import sys; from nuclass.core.alone import alone_in; from pathlib import Path\n" + (
        f"with alone_in(Path(sys.argv[1]), *{ALONE}): print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", other, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        with pytest.raises(UserError, match="Another process is filling the folder"), alone_in(tmp_path, *ALONE):
            pass
        process.kill()
    with alone_in(tmp_path, *ALONE):
        pass


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "s"):
        with pytest.raises(UserError, match="cannot be made or written to"), alone_in(place, *ALONE):
            pass


def test_an_empty_folder_does_not_stay(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), alone_in(tmp_path / "new", *ALONE):
        raise ZeroDivisionError
    assert not (tmp_path / "new").exists()
    with alone_in(tmp_path / "new", *ALONE):
        (tmp_path / "new" / "result").touch()
    (tmp_path / "there").mkdir()
    with alone_in(tmp_path / "there", *ALONE):
        pass
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["new", "result", "there"]
