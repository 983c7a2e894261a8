"""The table of public datasets: what is known of each, and of each of its files."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from nuclass.core.errors import UserError, closest
from nuclass.core.schema import raise_faults
from nuclass.core.sheets import Row, read_sheet

FILES = "dataset_files.tsv"
FETCHED = ("outs", "he", "alignment", "cell_groups")
_DATASET_COLUMNS = ["dataset", "title", "role", "organ", "xoa_version", "facts", "evidence"]
_FILE_COLUMNS = [
    *("dataset", "file", "url", "status", "bytes", "bytes_source", "size_note"),
    *("sha256", "sha256_source", "md5", "md5_source", "evidence"),
]
_WITH_ADDRESS = ("seen", "inferred")
_WITHOUT = ("not found", "none reported", "not recorded")


@dataclass(frozen=True)
class Record:
    """A size or checksum that somebody wrote down.

    Attributes
    ----------
    kind
        ``bytes``, ``sha256`` or ``md5``.
    value
        The value, hexadecimal for checksums.
    source
        Who wrote it down.
    mirror
        Whether it was written down for a copy elsewhere and not for the file at its own address.
    """

    kind: str
    value: str
    source: str
    mirror: bool


@dataclass(frozen=True)
class Address:
    """One address of a file and whether it was ``seen`` in use or ``inferred`` from names."""

    url: str
    status: str


@dataclass(frozen=True)
class RemoteFile:
    """A file of a dataset: its addresses in the order they are tried, and what is recorded of it.

    ``status`` says why there is no address where there is none.
    """

    dataset: str
    file: str
    addresses: tuple[Address, ...] = ()
    records: tuple[Record, ...] = ()
    size_note: str = ""
    status: str = "not found"

    @property
    def urls(self) -> list[str]:
        """The addresses alone."""
        return [address.url for address in self.addresses]

    @property
    def inferred(self) -> list[str]:
        """The addresses that were never seen in use."""
        return [address.url for address in self.addresses if address.status == "inferred"]

    @property
    def name(self) -> str:
        """The file's own name, from its first address."""
        return self.urls[0].partition("?")[0].rpartition("/")[2] if self.addresses else ""

    @property
    def size(self) -> str:
        """The size in words, as far as it is known."""
        exact = [record.value for record in self.records if record.kind == "bytes"]
        return f"{int(exact[0]):,} bytes" if exact else self.size_note or "size not known"


@dataclass(frozen=True)
class Dataset:
    """A public dataset; ``files`` by kind: those that are fetched (``FETCHED``), and others."""

    name: str
    title: str = ""
    role: str = ""
    organ: str = ""
    xoa_version: str = ""
    facts: str = ""
    evidence: str = ""
    files: dict[str, RemoteFile] = field(default_factory=dict)

    def file(self, kind: str) -> RemoteFile:
        """Return a file, without addresses where none is known."""
        return self.files.get(kind, RemoteFile(self.name, kind))


def read_registry(file: str | Path) -> dict[str, Dataset]:
    """Read ``datasets.tsv`` and ``dataset_files.tsv`` beside it; return the datasets by name.

    Raises
    ------
    UserError
        With all faults of both tables, each with its line.
    """
    path = Path(file)
    rows, faults = read_sheet(path, _DATASET_COLUMNS, _DATASET_COLUMNS)
    of_files, more = read_sheet(path.with_name(FILES), _FILE_COLUMNS, ["dataset", "file", "url", "status"])
    faults += more
    names: dict[str, int] = {}
    for row in rows:
        name = row.values["dataset"]
        if not name or name in names:
            what = "a dataset stands twice" if name else "a row names no dataset"
            faults.append(
                UserError(what, where=f"{path}, line {row.line}", found=name or None, expected="one row each")
            )
        names.setdefault(name, row.line)
    for row in of_files:
        faults += _row_faults(path.with_name(FILES), row, list(names) if rows else None)
    raise_faults(faults, "The table of datasets cannot be used")
    files: dict[str, dict[str, RemoteFile]] = {}
    for row in of_files:
        _add(files.setdefault(row.values["dataset"], {}), row.values)
    return {
        row.values["dataset"]: Dataset(
            name=row.values["dataset"],
            **{column: row.values[column] for column in _DATASET_COLUMNS[1:]},
            files=files.get(row.values["dataset"], {}),
        )
        for row in rows
    }


def dataset_named(registry: dict[str, Dataset], name: str, file: str | Path = "resources/datasets.tsv") -> Dataset:
    """Return one dataset; an unknown name is a :class:`UserError` that proposes the nearest."""
    if name not in registry:
        raise UserError(
            f"There is no dataset '{name}'.{closest(name, list(registry))}",
            where=file,
            expected=f"one of {len(registry)} names in its column 'dataset'; nuclass fetch --list shows them",
            fix="correct the name, or add the dataset with its addresses",
        )
    return registry[name]


def _add(files: dict[str, RemoteFile], values: dict[str, str]) -> None:
    known = files.get(values["file"])
    records = tuple(
        Record(kind, values[kind].lower(), source.strip(), mark == "mirror")
        for kind in ("bytes", "sha256", "md5")
        if values[kind]
        for mark, _, source in [values[f"{kind}_source"].partition(":")]
    )
    address = (Address(values["url"], values["status"]),) if values["url"] else ()
    files[values["file"]] = RemoteFile(
        dataset=values["dataset"],
        file=values["file"],
        addresses=(known.addresses if known else ()) + address,
        records=(known.records if known else ()) + records,
        size_note=(known.size_note if known else "") or values["size_note"],
        status=known.status if known else values["status"],
    )


def _row_faults(path: Path, row: Row, datasets: list[str] | None) -> list[UserError]:
    values, where = row.values, f"{path}, line {row.line}"
    faults = []
    name = values["dataset"]
    if datasets is not None and name not in datasets:
        faults.append(
            UserError(
                f"a file's dataset '{name}' is not known.{closest(name, datasets)}",
                where=where,
                expected="a name of datasets.tsv",
            )
        )
    if not re.fullmatch(r"[a-z0-9_]+", values["file"]):
        faults.append(
            UserError("a row names no file", where=where, found=values["file"] or None, expected=", ".join(FETCHED))
        )
    wanted = _WITH_ADDRESS if values["url"] else _WITHOUT
    if values["status"] not in wanted:
        about = "with an address" if values["url"] else "without an address"
        faults.append(
            UserError(
                f"the status of a file is not valid.{closest(values['status'], list(wanted))}",
                where=where,
                found=values["status"] or "nothing",
                expected=f"{about} one of {', '.join(wanted)}",
            )
        )
    if values["url"] and not re.fullmatch(r"https?://[^\s/]+/\S+", values["url"]):
        faults.append(UserError("an address is not valid", where=where, found=values["url"], expected="https://..."))
    forms = {"bytes": r"[0-9]+", "sha256": r"[0-9a-fA-F]{64}", "md5": r"[0-9a-fA-F]{32}"}
    words = {"bytes": "a whole number", "sha256": "64 hexadecimal digits", "md5": "32 hexadecimal digits"}
    for kind, form in forms.items():
        if values[kind] and not re.fullmatch(form, values[kind]):
            faults.append(
                UserError(f"the {kind} of a file is not valid", where=where, found=values[kind], expected=words[kind])
            )
        source = values[f"{kind}_source"]
        if bool(values[kind]) != bool(source) or (source and not re.match(r"(original|mirror): *\S", source)):
            faults.append(
                UserError(
                    f"the source of a file's {kind} is not told",
                    where=where,
                    found=source or "nothing",
                    expected="'original: WHO' for the file itself, 'mirror: WHO' for a copy elsewhere",
                )
            )
    return faults
