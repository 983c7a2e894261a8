"""Files over HTTP: streamed, resumed, verified, never half under their final name."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from nuclass.core.errors import UserError
from nuclass.core.files import write_json
from nuclass.core.log import get_logger
from nuclass.core.progress import BYTES, Progress, readable_bytes
from nuclass.xenium.registry import Record
from nuclass.xenium.remote import (
    Answer,
    ChangedError,
    ForbiddenError,
    HttpSettings,
    NotFoundError,
    PastEndError,
    RefusalError,
    WrongRangeError,
    ask,
    patiently,
)

T = TypeVar("T")
_log = get_logger(__name__)


class FileChangedError(UserError):
    """A file on a server became another one while parts of it were being read."""


@dataclass(frozen=True)
class FileState:
    """Which state of a file on a server is meant: its size and what the server calls it."""

    total: int | None
    validator: str

    def differs(self, other: FileState) -> bool:
        """Return whether two states cannot be the same; what a server does not tell is taken as equal."""
        sizes = self.total is not None and other.total is not None and self.total != other.total
        names = bool(self.validator) and bool(other.validator) and self.validator != other.validator
        return sizes or names


def part_of(target: Path) -> Path:
    """Return where the bytes of an unfinished file are kept."""
    return target.with_name(target.name + ".part")


def drop_part(part: Path) -> None:
    """Forget an unfinished file."""
    part.unlink(missing_ok=True)
    _note_file(part).unlink(missing_ok=True)


def _note_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


@dataclass(frozen=True)
class _Note:
    """What an unfinished file is a part of."""

    url: str
    start: int
    stop: int | None
    total: int | None
    validator: str

    @property
    def state(self) -> FileState:
        return FileState(self.total, self.validator)


def _read_note(part: Path) -> _Note | None:
    """Return what is known of an unfinished file; None where it cannot be gone on with."""
    try:
        return _Note(**json.loads(_note_file(part).read_text(encoding="utf-8"))) if part.is_file() else None
    except (OSError, ValueError, TypeError):
        return None


def fetch_range(
    url: str,
    part: Path,
    settings: HttpSettings,
    start: int = 0,
    stop: int | None = None,
    state: FileState | None = None,
    room: int = 0,
    what: str = "",
) -> None:
    """Bring the bytes of a file from ``start`` up to, not including, ``stop`` into ``part``.

    What lies there of an earlier call is gone on with, if the file on the server is still the same;
    a note beside it (``.part.json``) tells.

    Parameters
    ----------
    url
        The address.
    part
        Where the bytes go.
    settings
        How to ask.
    start, stop
        The range in bytes; by default the whole file.
    state
        The state the file must be in.
    room
        Bytes of disk needed beside the range itself.
    what
        A name for messages; by default the address.

    Raises
    ------
    FileChangedError
        If the file is not in ``state``.
    UserError
        For a refusal, for a fault that does not pass, for a full disk.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    ranged = start > 0 or stop is not None

    def done() -> int:
        return part.stat().st_size if part.is_file() else 0

    def work() -> None:
        note = _read_note(part)
        if note and ((note.url, note.start, note.stop) != (url, start, stop) or (state and state.differs(note.state))):
            note = None
        have = done() if note else 0
        end = stop if stop is not None or note is None else note.total
        if note and end is not None and start + have >= end:
            if start + have == end:
                return
            have = 0
        first = start + have
        known = state.validator if state else note.validator if note else ""
        try:
            answer = ask(url, settings, first if ranged or have else None, stop, known)
        except PastEndError as error:
            drop_part(part)
            if state:
                raise file_changed(url) from error
            raise
        except WrongRangeError:
            if not ranged:
                drop_part(part)
            raise
        with answer:
            now = FileState(answer.total, answer.validator)
            if state and (state.differs(now) or not answer.partial):
                raise file_changed(url)
            if answer.partial and have and note and note.state.differs(now):
                drop_part(part)
                raise ChangedError("the file on the server has changed; it is downloaded anew")
            have = have if answer.partial else 0
            _write(answer, part, _Note(url, start, stop, now.total, now.validator), have, room, what or url)

    patiently(work, what or url, settings, done)


def file_changed(url: str) -> FileChangedError:
    """Return the error that tells of a file that became another one."""
    return FileChangedError(
        "A file changed on the server while it was read", where=url, fix="start again; it is then read anew"
    )


def _write(answer: Answer, part: Path, note: _Note, have: int, room: int, what: str) -> None:
    """Append the body to what is there (``have`` bytes), or begin with it."""
    _check_room(part, (answer.length or 0) + room)
    name = part.name.removesuffix(".part")
    _log.info("%s: from %s%s", name, what, f", going on after {readable_bytes(have)}" if have else "")
    total = have + answer.length if answer.length is not None else 0
    if answer.endless:
        _log.warning("%s: the server does not say how long the file is; if it is cut off, nothing tells", what)
    with _disk_faults(part):
        if not have:
            part.unlink(missing_ok=True)
        write_json(_note_file(part), asdict(note))
        with part.open("ab") as stream, Progress(total, name, BYTES, done=have) as progress:
            while block := answer.read():
                stream.write(block)
                progress.advance(len(block))


def _check_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(
            "There is not enough room on the disk",
            where=path.parent,
            found=f"{readable_bytes(free)} free",
            expected=f"{readable_bytes(needed)} for {path.name.removesuffix('.part')}",
            fix="free space and start again; what has arrived is kept",
        )


@contextmanager
def _disk_faults(path: Path) -> Iterator[None]:
    """Turn a full disk into words."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                "The disk is full",
                where=path,
                found=str(error),
                fix="free space or quota on that disk and start again; what has arrived is kept",
            ) from error
        raise


def first_that_exists(urls: Sequence[str], work: Callable[[str], T], inferred: Collection[str] = ()) -> tuple[str, T]:
    """Do ``work`` with the first address that has a file; return the address and the result.

    An address in ``inferred`` was never seen in use: there a 403 is taken to mean that there may be no file.

    Raises
    ------
    NotFoundError
        If none has, with all addresses.
    RefusalError
        Of ``work``, with the other addresses of the file named.
    """
    gone: list[UserError] = []
    for url in urls:
        try:
            return url, work(url)
        except NotFoundError as error:
            gone.append(error)
            if len(gone) < len(urls):
                _log.warning("%s: %s; the next address is tried", url, error.found)
        except RefusalError as error:
            if isinstance(error, ForbiddenError) and url in inferred and url != urls[-1]:
                gone.append(error)
                _log.warning("%s: %s; the next address is tried", url, error.found)
                continue
            others = [other for other in urls if other != url]
            if not others:
                raise
            fix = f"{error.fix or ''}; other addresses of the file: {', '.join(others)}".removeprefix("; ")
            raise RefusalError(
                error.what, where=error.where, found=error.found, expected=error.expected, fix=fix
            ) from error
    if len(gone) == 1:
        raise gone[0]
    first = next((error for error in gone if isinstance(error, ForbiddenError)), gone[0])
    raise NotFoundError(
        "There is no file at any of its addresses",
        where=", ".join(str(error.where) for error in gone),
        found=", ".join(str(error.found) for error in gone),
        expected=first.expected,
        fix=first.fix,
    )


def download(
    urls: Sequence[str],
    target: str | Path,
    settings: HttpSettings,
    records: Sequence[Record] = (),
    inferred: Collection[str] = (),
) -> tuple[str, str]:
    """Download a file, going on where an earlier call stopped, and verify it.

    Parameters
    ----------
    urls
        The file's addresses, tried in their order.
    target
        Where it goes; until it is whole and verified, its bytes lie in ``target`` + ``.part``.
    settings
        How to ask.
    records
        Size and checksums, as far as they are known.
    inferred
        Those of the addresses that were never seen in use.

    Returns
    -------
    The address it came from, and its SHA-256.
    """
    path = Path(target)
    part = part_of(path)
    note = _read_note(part)
    ordered = sorted(urls, key=lambda url: not (note and note.url == url))
    url, _ = first_that_exists(ordered, lambda address: fetch_range(address, part, settings), inferred)
    digest = verify(part, records, url)
    part.replace(path)
    drop_part(part)
    return url, digest


def verify(file: Path, records: Sequence[Record], where: str) -> str:
    """Compare a file with what is recorded of it and return its SHA-256.

    A difference to a record of a mirror copy is a warning. Any other difference is a
    :class:`UserError`, and the file is moved aside as ``NAME.wrong``.
    """
    kinds = {"sha256"} | {record.kind for record in records if record.kind != "bytes"}
    values = {**digests(file, sorted(kinds)), "bytes": str(file.stat().st_size)}
    for record in records:
        actual = values[record.kind]
        if actual == record.value:
            continue
        if record.mirror:
            _log.warning(
                "%s: its %s is %s, while %s was recorded for a mirror copy (%s); the file is kept",
                *(where, record.kind, actual, record.value, record.source),
            )
            continue
        name = file.name.removesuffix(".part")
        wrong = file.with_name(name + ".wrong")
        file.replace(wrong)
        drop_part(file)
        raise UserError(
            f"The {record.kind} of a file is not the recorded one",
            where=where,
            found=actual,
            expected=f"{record.value} (recorded by {record.source})",
            fix=f"the file was moved to {wrong}; start again; if it comes again, the file has changed at its "
            "source: look at it, then mend or empty the value in resources/dataset_files.tsv",
        )
    return values["sha256"]


def digests(file: Path, kinds: Sequence[str]) -> dict[str, str]:
    """Return checksums of a file (``sha256``, ``md5``) as hexadecimal text, reading it once."""
    sums = {kind: hashlib.new(kind, usedforsecurity=False) for kind in kinds}
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            for each in sums.values():
                each.update(block)
    return {kind: each.hexdigest() for kind, each in sums.items()}
