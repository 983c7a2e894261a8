"""Single members of a zip, on a server or on this disk, without the rest of it."""

from __future__ import annotations

import io
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path
from nuclass.core.log import get_logger
from nuclass.xenium.download import FileState, drop_part, fetch_range, file_changed, part_of
from nuclass.xenium.remote import HttpSettings, WrongRangeError, ask, patiently

# The three records at the end of a zip without a comment: directory end, and locator and end of zip64.
_TAIL = 22 + 20 + 56
# Room for an extra field that the local header has and the directory has not.
_SLACK = 64
_log = get_logger(__name__)


class DamagedError(UserError):
    """A member of a zip does not unpack to what its directory says."""


class RangeFile(io.RawIOBase):
    """A file on a server, read-only: what is read is asked for exactly, byte by byte of the range.

    A part of it may be laid over from this disk; reads inside that part ask nothing.
    """

    def __init__(self, url: str, settings: HttpSettings, state: FileState, total: int) -> None:
        super().__init__()
        self.url, self.settings, self.state, self.total = url, settings, state, total
        self._position = 0
        self._laid: tuple[int, int, IO[bytes]] | None = None
        self._tail_start = max(total - _TAIL, 0)
        self._tail = self._ask(self._tail_start, total)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position; nothing is asked for."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.total}[whence]
        if base + offset < 0:
            raise ValueError("a position before the beginning of the file")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer, or what is left of the file."""
        start = self._position
        stop = min(start + len(buffer), self.total)
        if stop <= start:
            return 0
        data = self._get(start, stop)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    @contextmanager
    def laid_over(self, start: int, file: Path) -> Iterator[None]:
        """Read the bytes from ``start`` on from a file on this disk, as far as it goes."""
        with file.open("rb") as stream:
            self._laid = (start, start + file.stat().st_size, stream)
            try:
                yield
            finally:
                self._laid = None

    def _get(self, start: int, stop: int) -> bytes:
        if start >= self._tail_start:
            return self._tail[start - self._tail_start : stop - self._tail_start]
        if self._laid is not None and self._laid[0] <= start < self._laid[1]:
            first, last, stream = self._laid
            stream.seek(start - first)
            return stream.read(min(stop, last) - start)
        return self._ask(start, stop)

    def _ask(self, start: int, stop: int) -> bytes:
        got = bytearray()

        def work() -> bytes:
            while len(got) < stop - start:
                with ask(self.url, self.settings, start + len(got), stop, self.state.validator) as answer:
                    if not answer.partial or self.state.differs(FileState(answer.total, answer.validator)):
                        raise file_changed(self.url)
                    while block := answer.read():
                        got.extend(block)
            return bytes(got)

        return patiently(work, self.url, self.settings, lambda: len(got))


def open_ranges(url: str, settings: HttpSettings) -> RangeFile | None:
    """Open a file on a server for reading ranges of it; None where the server gives whole files only."""

    def probe() -> tuple[FileState, bool]:
        try:
            with ask(url, settings, 0, 1) as answer:
                return FileState(answer.total, answer.validator), answer.partial
        except WrongRangeError:
            return FileState(None, ""), False

    state, partial = patiently(probe, url, settings)
    if not partial or state.total is None:
        return None
    return RangeFile(url, settings, state, state.total)


@contextmanager
def open_zip(source: RangeFile | Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip on a server or on this disk; what is none is a :class:`UserError`."""
    where = source.url if isinstance(source, RangeFile) else source
    size = source.total if isinstance(source, RangeFile) else source.stat().st_size
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, ValueError) as error:
        raise UserError(
            "A file is no zip, or is cut off",
            where=where,
            found=f"{size:,} bytes; {error}",
            expected="the whole outs.zip of a Xenium run; the list of its files stands at its end",
            fix="check the address, or copy the file again",
        ) from error
    with archive:
        yield archive


def extract(archive: zipfile.ZipFile, member: str, target: str | Path, where: object) -> None:
    """Unpack a member to ``target``; its length and CRC-32 are checked.

    Raises
    ------
    DamagedError
        If the member's bytes are not those that were packed.
    UserError
        If it is packed in a way that cannot be read, or the disk is full.
    """
    info = archive.getinfo(member)
    try:
        with atomic_path(target) as temporary, archive.open(info) as source, temporary.open("wb") as stream:
            shutil.copyfileobj(source, stream, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DamagedError(
            "A file inside a zip is damaged",
            where=f"{member} of {where}",
            found=str(error) or type(error).__name__,
            expected=f"{info.file_size:,} bytes with the CRC-32 {info.CRC:08x}",
            fix="copy or download the zip again; if it comes again, the file is damaged at its source",
        ) from error
    except (NotImplementedError, RuntimeError) as error:
        raise UserError(
            "A file inside a zip cannot be unpacked",
            where=f"{member} of {where}",
            found=str(error),
            expected="plain or deflated files without a password",
            fix="unpack the zip yourself and give its folder as 'path' in the slide sheet",
        ) from error


def fetch_member(archive: zipfile.ZipFile, source: RangeFile, member: str, target: str | Path) -> None:
    """Bring one member of a zip on a server: its packed bytes in one request, then unpacked and checked.

    The packed bytes lie in ``target`` + ``.part`` until then, so that a broken transfer goes on where it
    stopped, also in a later call. A damaged member is asked for once more.
    """
    path, info = Path(target), archive.getinfo(member)
    part = part_of(path)
    start, stop = info.header_offset, _end(archive, info)
    what = f"{member} of {source.url}"
    for last in (False, True):
        fetch_range(source.url, part, source.settings, start, stop, source.state, info.file_size, what)
        try:
            with source.laid_over(start, part):
                extract(archive, member, path, source.url)
            break
        except DamagedError as error:
            drop_part(part)
            if last:
                raise
            _log.warning("%s: damaged (%s); it is asked for once more", what, error.found)
    drop_part(part)


def _end(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Return where a member ends at the latest."""
    later = [other.header_offset for other in archive.infolist() if other.header_offset > info.header_offset]
    name = len(info.orig_filename.encode("utf-8", "replace"))
    longest = info.header_offset + 30 + name + len(info.extra) + _SLACK + info.compress_size
    return min([*later, archive.start_dir, longest])
