"""A real HTTP server on this machine, with ranges, without, and with every fault a download can meet."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Faults:
    """What goes wrong with one file; numbers count down with each answer.

    Attributes
    ----------
    status, times, headers
        Answer with this status, the first ``times`` times (-1: always).
    cut
        Send so many bytes of a body, then end the connection, for each number in the list.
    stall
        Send so many bytes, then nothing, for each number in the list.
    lie
        State a Content-Length that is larger by so many bytes, always.
    page
        Send a web page with status 200, always.
    flip
        Positions in the file whose bytes are sent wrong, the first ``flips`` times.
    other_range
        Answer a range with the whole file, as status 206.
    encoding
        State this Content-Encoding.
    endless
        State no length; the connection ends the body.
    """

    status: int = 0
    times: int = -1
    headers: dict[str, str] = field(default_factory=dict)
    cut: list[int] = field(default_factory=list)
    stall: list[int] = field(default_factory=list)
    lie: int = 0
    page: bool = False
    flip: int | None = None
    flips: int = -1
    other_range: bool = False
    encoding: str = ""
    endless: bool = False


@dataclass
class Server:
    """A server of one folder.

    Attributes
    ----------
    address
        Where it is, without a slash at the end.
    folder
        What it serves.
    ranges, etags
        Whether it knows ranges, and tells a file's state.
    faults
        By file name.
    requests
        What was asked: name, range, headers.
    sent
        Bytes of bodies sent, by name.
    """

    folder: Path
    address: str = ""
    ranges: bool = True
    etags: bool = True
    chunked: bool = False
    faults: dict[str, Faults] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    released: threading.Event = field(default_factory=threading.Event)

    def fault(self, name: str) -> Faults:
        """Return the faults of a file, to be set."""
        return self.faults.setdefault(name, Faults())

    def url(self, name: str) -> str:
        """Return a file's address."""
        return f"{self.address}/{name}"

    def forget(self) -> None:
        """Forget what was asked and sent."""
        self.requests.clear()
        self.sent.clear()


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Serve a folder until the end of the block."""
    state = Server(folder)

    class Handler(_Handler):
        server_state = state

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    state.address = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.released.set()
        http.shutdown()
        http.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_state: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        state, name = self.server_state, self.path.lstrip("/")
        state.requests.append((name, self.headers.get("Range", ""), dict(self.headers.items())))
        faults = state.faults.get(name, Faults())
        if faults.status and faults.times != 0:
            faults.times -= 1
            return self._short(faults.status, b"no", faults.headers)
        if faults.page:
            body = b"<!DOCTYPE html><html><head><title>Please log in</title></head></html>"
            return self._short(200, body, {"Content-Type": "text/html; charset=utf-8"})
        file = state.folder / name
        if not file.is_file():
            return self._short(404, b"gone", {})
        return self._send(name, bytearray(file.read_bytes()), faults)

    def _short(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send(self, name: str, data: bytearray, faults: Faults) -> None:
        state = self.server_state
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        if faults.flip is not None and faults.flips != 0:
            faults.flips -= 1
            data[faults.flip] ^= 0xFF
        start, stop = 0, len(data)
        wanted = self.headers.get("Range") if state.ranges else None
        if wanted and self.headers.get("If-Range", etag) == etag:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1, len(data)) if last else len(data)
            if start >= len(data):
                return self._short(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            self.send_response(206)
            if faults.other_range:
                start, stop = 0, len(data)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        else:
            self.send_response(200)
        if state.etags:
            self.send_header("ETag", etag)
        body = bytes(data[start:stop])
        if faults.encoding:
            self.send_header("Content-Encoding", faults.encoding)
        if state.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif faults.endless:
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(body) + faults.lie))
        self.end_headers()
        return self._body(name, body, faults)

    def _body(self, name: str, body: bytes, faults: Faults) -> None:
        state = self.server_state
        cut = faults.cut.pop(0) if faults.cut and len(body) > faults.cut[0] else None
        stall = faults.stall.pop(0) if faults.stall and len(body) > faults.stall[0] else None
        limit = next((value for value in (cut, stall) if value is not None), len(body))
        part = body[:limit]
        state.sent[name] = state.sent.get(name, 0) + len(part)
        try:
            if state.chunked:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
                if cut is None:
                    self.wfile.write(b"0\r\n\r\n")
            else:
                self.wfile.write(part)
            self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):
            pass
        if stall is not None:
            state.released.wait(5)
            time.sleep(0)
        if cut is not None or stall is not None or faults.lie:
            self.close_connection = True
