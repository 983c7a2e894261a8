"""Requests over HTTP: one way to ask, for whole files and for ranges, with every fault told apart."""

from __future__ import annotations

import http.client
import random
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, TypeVar

import nuclass
from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.progress import readable_seconds

T = TypeVar("T")
BLOCK = 1 << 18
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_PAUSE_S = 120.0
_LONGEST_WAIT_S = 900.0
# A line that brings so much between two faults is slow but alive: its faults are not counted.
_ALIVE = 1 << 20
_BY_HAND = "or download the file with a browser and give its place in the slide sheet (path, he, alignment)"
_log = get_logger(__name__)


@dataclass(frozen=True)
class HttpSettings:
    """How servers are asked.

    Attributes
    ----------
    user_agent
        The name given to servers.
    timeout_s
        Seconds without a byte after which an answer counts as stalled.
    attempts
        Tries in a row that bring less than a megabyte.
    pause_s
        The first pause between two tries; each further one is twice as long, up to two minutes.
    """

    user_agent: str = f"nuclass-workflow/{nuclass.__version__}"
    timeout_s: float = 60.0
    attempts: int = 6
    pause_s: float = 2.0

    @classmethod
    def from_config(cls, section: Mapping[str, Any]) -> HttpSettings:
        """Return the settings of the section ``fetch`` of a configuration."""
        agent = str(section.get("user_agent") or cls.user_agent)
        return cls(agent, float(section.get("timeout_s", cls.timeout_s)), int(section.get("attempts", cls.attempts)))


class TransientError(OSError):
    """A fault of the line or the server that may be gone in a moment."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        self.wait_s = wait_s
        super().__init__(message)


class ChangedError(TransientError):
    """What was downloaded before does not belong to the file that the server has now."""


class WrongRangeError(TransientError):
    """A server answers 206 but does not send the range that was asked for."""


class PastEndError(TransientError):
    """A range was asked for that begins at or after the end of a file of ``total`` bytes."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        super().__init__("the file on the server is shorter than what was downloaded before")


class NotFoundError(UserError):
    """There is no file at an address; another address may have it."""


class RefusalError(UserError):
    """A server or a proxy does not give what was asked for, and asking again is of no use."""


class ForbiddenError(RefusalError):
    """A server answers 401 or 403; some do so where there is no file."""


class Answer:
    """The body of an answer, read block by block; use as a context manager.

    Attributes
    ----------
    partial
        Whether the server sends the range that was asked for, and not the whole file.
    start
        The position in the file of the first byte.
    total
        The size of the whole file in bytes, None where the server does not say.
    length
        How many bytes the body has, None where the server does not say.
    endless
        Whether nothing tells the end of the body but the end of the connection.
    validator
        What tells this state of the file from a later one: a strong ETag, or the time of its last
        change; empty where the server gives neither.
    """

    def __init__(self, response: http.client.HTTPResponse, url: str, start: int, stop: int | None) -> None:
        self._response = response
        self._url = url
        self._done = 0
        headers = response.headers
        packed = headers.get("Content-Encoding", "identity").strip().lower()
        if packed not in ("", "identity"):
            raise RefusalError(
                "A server sends a file packed",
                where=url,
                found=f"Content-Encoding: {packed}",
                expected="the file as it is, as the request says",
                fix=f"a proxy may stand between: go past it (no_proxy), {_BY_HAND}",
            )
        self.partial = response.status == 206
        length = headers.get("Content-Length", "")
        self.length = int(length) if length.isdigit() else None
        self.start, self.total = 0, self.length
        if self.partial:
            match = re.match(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("Content-Range", ""))
            if not match or int(match[1]) != start or (stop is not None and int(match[2]) >= stop):
                raise WrongRangeError(f"the server sent another range ({headers.get('Content-Range')}) than asked for")
            self.start = start
            self.total = int(match[3]) if match[3].isdigit() else None
            self.length = int(match[2]) - start + 1
        # Neither a length nor pieces with a mark at the end: a body that is cut off looks like a whole one.
        self.endless = self.length is None and not response.chunked
        etag = headers.get("ETag", "")
        self.validator = etag if etag.startswith('"') else headers.get("Last-Modified", "")
        self._first = self._refuse_pages(headers.get_content_type())

    def _refuse_pages(self, kind: str) -> bytes:
        """Return the first block; a web page instead of a file is a :class:`UserError`."""
        if kind != "text/html" and self.start:
            return b""
        block = self._read()
        begin = block[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        if kind == "text/html" or begin.startswith((b"<!doctype html", b"<html")):
            title = re.search(rb"<title[^>]*>(.*?)</title>", block, re.IGNORECASE | re.DOTALL)
            text = " ".join(title[1].decode("utf-8", "replace").split()) if title else ""
            raise RefusalError(
                "The server sent a web page instead of a file",
                where=self._url,
                found=f"a page with the title '{text}'" if text else "HTML",
                expected="the file",
                fix="open the address in a browser: a proxy or a login may stand between; "
                f"mend that or the address, {_BY_HAND}",
            )
        return block

    def read(self) -> bytes:
        """Return the next bytes, nothing at the end; a body that ends early is a :class:`TransientError`."""
        if self._first:
            block, self._first = self._first, b""
            return block
        return self._read()

    def _read(self) -> bytes:
        try:
            # One receive at a time: what came before a stall is not lost.
            block = self._response.read1(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise _line_fault(error, self._url) from error
        self._done += len(block)
        if not block and self.length is not None and self._done < self.length:
            raise TransientError(f"the connection ended after {self._done:,} of {self.length:,} bytes")
        return block

    def __enter__(self) -> Answer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._response.close()


def ask(
    url: str, settings: HttpSettings, start: int | None = None, stop: int | None = None, validator: str = ""
) -> Answer:
    """Ask for a file, or for its bytes from ``start`` up to, not including, ``stop``.

    Parameters
    ----------
    url
        The address.
    settings
        How to ask.
    start, stop
        The range; without ``start`` the whole file.
    validator
        Ask for the range only if the file is still in this state (see :class:`Answer`); of a changed
        file the server then sends the whole.

    Raises
    ------
    TransientError
        For a fault that may pass.
    NotFoundError
        If there is no file at the address.
    RefusalError
        For any other answer that is no file.
    """
    if not re.match(r"https?://[^/\s]", url, re.IGNORECASE):
        raise UserError("An address is not valid", where=url, expected="https://...")
    headers = {"User-Agent": settings.user_agent, "Accept": "*/*", "Accept-Encoding": "identity"}
    if start is not None:
        headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        if validator:
            headers["If-Range"] = validator
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=settings.timeout_s
        )
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(error, url, settings) from error
    except urllib.error.URLError as error:
        raise _line_fault(error.reason if isinstance(error.reason, OSError) else error, url) from error
    except (OSError, http.client.HTTPException) as error:
        raise _line_fault(error, url) from error
    except ValueError as error:
        raise UserError("An address is not valid", where=url, found=str(error), expected="https://...") from error
    try:
        if response.status not in (200, 206):
            raise _no_file(url, response.status, response.reason)
        return Answer(response, url, start or 0, stop)
    except BaseException:
        response.close()
        raise


def _refusal(error: urllib.error.HTTPError, url: str, settings: HttpSettings) -> Exception:
    """Return the fault that an answer other than 2xx stands for."""
    status, reason = error.code, str(error.reason)
    if status == 416:
        size = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        return PastEndError(int(size) if size.isdigit() else None)
    if status in _TRANSIENT:
        return TransientError(f"HTTP {status} {reason}", _retry_after(error.headers.get("Retry-After")))
    if status in (404, 410):
        return NotFoundError(
            "There is no file at an address",
            where=url,
            found=f"HTTP {status} {reason}",
            expected="HTTP 200 or 206",
            fix=f"it may have moved: correct the address in resources/dataset_files.tsv, {_BY_HAND}",
        )
    if status in (401, 403):
        return ForbiddenError(
            "A server refuses to give a file",
            where=url,
            found=f"HTTP {status} {reason}",
            expected="HTTP 200 or 206",
            fix=f"it may refuse the user agent '{settings.user_agent}' or the address may be private: "
            f"set fetch.user_agent in the configuration, {_BY_HAND}",
        )
    if status == 407:
        return RefusalError(
            "A proxy wants a login",
            where=url,
            found=f"HTTP {status} {reason}",
            fix="put user and password into the environment variable https_proxy",
        )
    return _no_file(url, status, reason)


def _no_file(url: str, status: int, reason: str) -> RefusalError:
    return RefusalError(
        "A server does not give a file",
        where=url,
        found=f"HTTP {status} {' '.join(reason.split())}",
        expected="HTTP 200 or 206",
        fix=f"check the address in resources/dataset_files.tsv, {_BY_HAND}",
    )


def _line_fault(error: BaseException, url: str) -> Exception:
    """Return what a fault of the connection means: one that may pass, or one that will not."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ssl.SSLCertVerificationError):
        return RefusalError(
            "A server's certificate is not trusted",
            where=url,
            found=text,
            fix="if a proxy of your institute signs connections, name its certificates in SSL_CERT_FILE",
        )
    if re.search(r"Tunnel connection failed: 4\d\d", text):
        return RefusalError(
            "A proxy refuses the connection", where=url, found=text, fix="check the environment variable https_proxy"
        )
    if isinstance(error, TimeoutError):
        return TransientError("the server sent nothing for too long")
    if isinstance(error, socket.gaierror):
        text = f"the name of the server is not found ({text})"
    return TransientError(text + _by_proxy(url))


def _by_proxy(url: str) -> str:
    """Return words on the proxy that stands between, without its password; nothing where there is none."""
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    return f", through the proxy {proxy.rpartition('@')[2]} of the environment variable {parts.scheme}_proxy"


def _retry_after(text: str | None) -> float:
    """Return the seconds a server asks to wait, given as a number or a date."""
    if not text:
        return 0.0
    if text.strip().isdigit():
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return 0.0


def patiently(work: Callable[[], T], what: str, settings: HttpSettings, brought: Callable[[], int] = lambda: 0) -> T:
    """Call ``work`` until it succeeds, with growing, scattered pauses after each transient fault.

    Parameters
    ----------
    work
        What to do; it goes on where it stopped.
    what
        The address, for messages.
    settings
        How often, and how long the first pause is.
    brought
        Gives the bytes that are there already; a fault after new ones begins the count anew.

    Raises
    ------
    RefusalError
        After too many faults in a row.
    """
    # What is downloaded anew is no progress: only more than ever before is.
    faults, most = 0, brought()
    while True:
        try:
            return work()
        except TransientError as error:
            now = brought()
            faults = 1 if now - most >= _ALIVE else faults + 1
            most = max(most, now)
            if faults >= settings.attempts or error.wait_s > _LONGEST_WAIT_S:
                waits = f"; the server asks to wait {readable_seconds(error.wait_s)}" if error.wait_s else ""
                raise RefusalError(
                    "A download failed",
                    where=what,
                    found=f"{error} ({faults} {'attempt' if faults == 1 else 'attempts'}){waits}",
                    expected="the whole file",
                    fix="check the network and start again; what has arrived is kept",
                ) from error
            pause = min(settings.pause_s * 2 ** (faults - 1), _LONGEST_PAUSE_S) * random.uniform(0.7, 1.3)
            pause = max(pause, error.wait_s)
            _log.warning(
                "%s: %s; attempt %d of %d follows in %s",
                what,
                error,
                faults + 1,
                settings.attempts,
                readable_seconds(pause),
            )
            time.sleep(pause)
