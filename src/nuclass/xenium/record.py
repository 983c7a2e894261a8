"""What was brought into a slide's folder, so that what is present and verified is asked for no more."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from nuclass.core.bundle_source import ALIGNMENT_NAMES, EXPERIMENT, GIVEN_NAMES, HE_NAMES
from nuclass.core.errors import UserError
from nuclass.core.files import read_json, sha256, write_json
from nuclass.core.log import get_logger
from nuclass.xenium.members import names_in

RECORD = ".fetched.json"
STALE = "stale"
_log = get_logger(__name__)


@dataclass(frozen=True)
class Entry:
    """A file as it was when it was brought.

    Attributes
    ----------
    bytes, mtime_ns
        Size and time of change; as long as both stay, the file is not read again.
    sha256
        Its checksum.
    how
        ``link``, ``zip`` (unpacked from one on this disk), ``download``, ``found`` (put here by hand) or
        ``written``.
    original
        The name or address it came from.
    """

    bytes: int
    mtime_ns: int
    sha256: str
    how: str
    original: str


class FetchRecord:
    """The record of one folder, kept in ``.fetched.json`` in it.

    ``absent`` lists files that the source does not have. Files of another source that the folder served
    before are ``stale``; so is a synthetic bundle under the slide's name, of which there is no record.

    Parameters
    ----------
    folder
        The folder.
    origin
        The source the folder serves now.
    own
        How the study's own names of H&E, alignment and published labels begin.
    """

    def __init__(self, folder: Path, origin: str, own: tuple[str, ...]) -> None:
        self.folder = folder
        self.origin = origin
        self.absent: list[str] = []
        self.files: dict[str, Entry] = {}
        self._stale: list[str] = []
        if (folder / RECORD).is_file():
            self._load(origin)
        elif _is_synthetic(folder):
            self._stale = [name for name in names_in(folder) if name.startswith(own) or not _by_hand(name)]

    def _load(self, origin: str) -> None:
        try:
            data = read_json(self.folder / RECORD)
            files = {name: Entry(**entry) for name, entry in data["files"].items()}
            before, absent = str(data["origin"]), [str(name) for name in data["absent"]]
        except (UserError, KeyError, TypeError, AttributeError) as error:
            _log.warning("%s: not readable (%s); the files are looked at anew", self.folder / RECORD, error)
            return
        if before != origin:
            kept = [name for name, entry in files.items() if entry.how in ("download", "found")]
            if any((self.folder / name).exists() for name in kept):
                raise UserError(
                    "The folder of a slide holds the files of something else",
                    where=self.folder,
                    found=f"files of {before}, such as {kept[0]}",
                    expected=f"files of {origin}",
                    fix="delete or move that folder, or give the slide another name in the sheet",
                )
            self._stale = [name for name in files if name not in kept]
            return
        self.files, self.absent = files, absent

    def drop_stale(self) -> None:
        """Delete links and unpacked files of another source, and what a killed job left unfinished."""
        for place in (self.folder, self.folder / "morphology_focus"):
            for file in place.glob(".[0-9]*.*"):
                file.unlink(missing_ok=True)
        for name in self._stale:
            (self.folder / name).unlink(missing_ok=True)
        self._stale = []

    def how(self, name: str) -> str:
        """Return how a file was brought; empty where that is not known, ``stale`` for one of another source."""
        if name in self._stale:
            return STALE
        return self.files[name].how if name in self.files else ""

    def holds(self, name: str) -> bool:
        """Return whether a file is there as it was brought; read it only if its time of change differs."""
        entry, file = self.files.get(name), self.folder / name
        if entry is None or not file.is_file():
            return False
        state = file.stat()
        if state.st_size != entry.bytes:
            return False
        if state.st_mtime_ns == entry.mtime_ns:
            return True
        if sha256(file) != entry.sha256:
            return False
        self.add(name, entry.how, entry.original, entry.sha256)
        return True

    def add(self, name: str, how: str, original: str, digest: str | None = None) -> None:
        """Record a file; its SHA-256 is computed where it is not given or known."""
        file = self.folder / name
        state = file.stat()
        known = self.files.get(name)
        if digest is None and known and (known.bytes, known.mtime_ns) == (state.st_size, state.st_mtime_ns):
            digest = known.sha256
        self.files[name] = Entry(state.st_size, state.st_mtime_ns, digest or sha256(file), how, original)
        self.save()

    def remove(self, name: str) -> None:
        """Delete a file that was brought, and its record."""
        self.files.pop(name, None)
        (self.folder / name).unlink(missing_ok=True)
        self.save()

    def set_aside(self, name: str, why: str) -> None:
        """Rename a file that is not what it should be to ``NAME.wrong``."""
        file = self.folder / name
        _log.warning("%s: %s; it is moved aside as %s.wrong", file, why, file.name)
        self.files.pop(name, None)
        file.replace(file.with_name(file.name + ".wrong"))

    def save(self) -> None:
        """Write the record."""
        files = {name: asdict(entry) for name, entry in sorted(self.files.items())}
        write_json(self.folder / RECORD, {"origin": self.origin, "absent": sorted(self.absent), "files": files})


def _by_hand(name: str) -> bool:
    """Return whether a name is one under which people put files of a real slide beside a synthetic one."""
    return any(fnmatchcase(name, pattern) for pattern in ("*outs.zip", *HE_NAMES, *ALIGNMENT_NAMES, *GIVEN_NAMES))


def _is_synthetic(folder: Path) -> bool:
    """Return whether the bundle in a folder is one of the synthetic study."""
    try:
        content = read_json(folder / EXPERIMENT)
    except UserError:
        return False
    return isinstance(content, dict) and content.get("instrument_sn") == "synthetic"
