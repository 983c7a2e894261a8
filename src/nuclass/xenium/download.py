"""Files over HTTP: streamed, resumed, checked; members of a remote zip without the rest of it."""

from __future__ import annotations

import http.client
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.progress import Progress

_log = get_logger(__name__)
_BLOCK = 1 << 20
_AHEAD = 8 << 20
_TIMEOUT_S = 60
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
T = TypeVar("T")


class _TryAgainError(OSError):
    """A fault of the line or the server that may be gone in a moment."""


class _PastTheEndError(_TryAgainError):
    """A range was asked for that begins at or after the end of a file of ``total`` bytes."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        super().__init__("what was downloaded before does not belong to this file")


def _patiently(work: Callable[[], T], what: str, attempts: int, pause_s: float) -> T:
    """Call ``work`` until it succeeds, at most ``attempts`` times, waiting twice as long each time."""
    import aiohttp

    faults = (_TryAgainError, aiohttp.ClientError, TimeoutError, ConnectionError, http.client.HTTPException)
    for attempt in range(1, attempts + 1):
        try:
            return work()
        except faults as error:
            if attempt == attempts:
                raise UserError(
                    "A download failed",
                    where=what,
                    found=f"{error or type(error).__name__} ({attempts} attempts)",
                    expected="the whole file",
                    fix="check the network and start again; what is complete is kept",
                ) from error
            wait = pause_s * 2 ** (attempt - 1)
            _log.warning("%s: %s; attempt %d of %d follows in %.0f s", what, error, attempt + 1, attempts, wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def _refused(url: str, status: int, reason: str) -> UserError:
    return UserError(
        "The server does not give a file",
        where=url,
        found=f"HTTP {status} {reason}",
        expected="HTTP 200 or 206",
        fix="check the address in resources/datasets.tsv; the dataset may have moved",
    )


def _request(url: str, start: int = 0) -> http.client.HTTPResponse:
    headers = {"User-Agent": "nuclass", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S
        )
    except urllib.error.HTTPError as error:
        if error.code == 416:
            size = (error.headers.get("Content-Range") or "").rpartition("/")[2]
            raise _PastTheEndError(int(size) if size.isdigit() else None) from error
        if error.code in _TRANSIENT:
            raise _TryAgainError(f"HTTP {error.code} {error.reason}") from error
        raise _refused(url, error.code, str(error.reason)) from error
    except urllib.error.URLError as error:
        raise _TryAgainError(str(error.reason)) from error
    if response.status not in (200, 206):
        raise _refused(url, response.status, response.reason)
    return response


def download(url: str, path: str | Path, *, attempts: int = 5, pause_s: float = 2.0) -> Path:
    """Download ``url`` to ``path``; nothing is done if it is there in full.

    The data go to ``path`` + ``.part``, which a later call continues with a Range request; the name
    is given when the size is the one the server states.

    Raises
    ------
    UserError
        With the address: at once for an answer such as 404, after ``attempts`` for a broken line.
    """
    target = Path(path)
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)

    def work() -> None:
        if target.exists() and target.stat().st_size == _size(url):
            return
        done = part.stat().st_size if part.exists() else 0
        try:
            total = _append(url, part, done)
        except _PastTheEndError as error:
            if error.total != done:
                part.unlink(missing_ok=True)
                raise
            total = done
        size = part.stat().st_size
        if total is not None and size != total:
            raise _TryAgainError(f"{size} of {total} bytes")
        part.replace(target)

    _patiently(work, url, attempts, pause_s)
    return target


def _size(url: str) -> int | None:
    """Return the size in bytes as the server states it, or None."""
    with _request(url) as response:
        length = response.headers.get("Content-Length")
    return int(length) if length is not None else None


def _append(url: str, part: Path, done: int) -> int | None:
    """Write what follows after ``done`` bytes (all of it if the server knows no ranges); return the full size."""
    with _request(url, done) as response:
        resumed = response.status == 206 and done > 0
        start = done if resumed else 0
        length = response.headers.get("Content-Length")
        left = int(length) if length is not None else None
        if resumed:
            _log.info("%s: continuing after %.1f MB", part.name.removesuffix(".part"), done / 1e6)
        with part.open("ab" if resumed else "wb") as stream, Progress(left or 0, url, "bytes") as progress:
            while block := response.read(_BLOCK):
                stream.write(block)
                progress.advance(len(block))
    return start + left if left is not None else None


@contextmanager
def remote_zip(url: str, whole: str | Path, *, attempts: int = 5, pause_s: float = 2.0) -> Iterator[zipfile.ZipFile]:
    """Open a zip on a server and read only what is asked of it, by HTTP ranges.

    Parameters
    ----------
    url
        The zip.
    whole
        Where the whole zip is downloaded to if the server knows no ranges; it stays there.
    """
    import fsspec

    def connect() -> zipfile.ZipFile | None:
        # fsspec turns every refusal into FileNotFoundError or a client error without the address.
        _request(url).close()
        stream = fsspec.filesystem("http", client_kwargs={"trust_env": True}).open(url, "rb", block_size=_AHEAD)
        if not stream.seekable():
            return None
        try:
            return zipfile.ZipFile(stream)
        except ValueError as error:
            if "range" in str(error).lower():
                return None
            raise

    try:
        archive = _patiently(connect, url, attempts, pause_s)
        if archive is None:
            _log.warning("%s: the server knows no ranges, so the whole file is downloaded", url)
            archive = zipfile.ZipFile(download(url, whole, attempts=attempts, pause_s=pause_s))
    except zipfile.BadZipFile as error:
        raise UserError("A download is not a zip file", where=url, found=str(error), expected="outs.zip") from error
    with archive:
        yield archive


def extract(
    archive: zipfile.ZipFile, member: str, path: str | Path, *, attempts: int = 5, pause_s: float = 2.0
) -> Path:
    """Copy one member of a zip to ``path`` (its checksum is verified); nothing is done if it is there in full."""
    target = Path(path)
    info = archive.getinfo(member)
    if target.exists() and target.stat().st_size == info.file_size:
        return target
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)

    def work() -> None:
        try:
            with archive.open(info) as source, part.open("wb") as stream:
                shutil.copyfileobj(_Counted(source, info.file_size, member), stream, _BLOCK)
        except zipfile.BadZipFile as error:
            raise _TryAgainError(str(error)) from error
        if part.stat().st_size != info.file_size:
            raise _TryAgainError(f"{part.stat().st_size} of {info.file_size} bytes")
        part.replace(target)

    _patiently(work, f"{member} of {archive.filename or 'the remote zip'}", attempts, pause_s)
    return target


class _Counted:
    """A stream that shows how much was read."""

    def __init__(self, stream: object, total: int, name: str) -> None:
        self._stream = stream
        self._progress = Progress(total, name, "bytes")

    def read(self, size: int = -1) -> bytes:
        block: bytes = self._stream.read(size)  # type: ignore[attr-defined]
        self._progress.advance(len(block))
        if not block:
            self._progress.__exit__(None, None, None)
        return block
