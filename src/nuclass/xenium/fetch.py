"""Bring one slide's bundle, H&E image, alignment and published labels into one folder, under the study's names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nuclass.core.alone import alone_in
from nuclass.core.bundle_source import ALIGNMENT_CHOICES, EXPERIMENT, GRID, bundle_in_zip, parse_matrix
from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path
from nuclass.core.log import get_logger
from nuclass.core.own_files import own_file
from nuclass.xenium.download import FileChangedError, download, drop_part, first_that_exists, part_of, verify
from nuclass.xenium.fetch_given import CELL_GROUPS, bring_given, lacks_given
from nuclass.xenium.inventory import given_name, write_inventory
from nuclass.xenium.members import Choice, choose, require
from nuclass.xenium.registry import Dataset, RemoteFile, read_registry
from nuclass.xenium.remote import ForbiddenError, HttpSettings, NotFoundError
from nuclass.xenium.remote_zip import extract, fetch_member, open_ranges, open_zip
from nuclass.xenium.slide_folder import SlideFolder, open_folder

if TYPE_CHECKING:
    import pandas as pd

REGISTRY = "resources/datasets.tsv"
BUNDLES = "resources/bundles"
LOCK = ".fetch.lock"
IN_SHEET = "matrix in the slide sheet"
_WHOLE_ZIP = ".outs.zip"
_log = get_logger(__name__)


def needs_image(row: Mapping[str, Any], align: str = "given") -> bool:
    """Return whether a slide's DAPI image is needed: its position is to be found from the images.

    Parameters
    ----------
    row
        The slide's row of the sheet.
    align
        What holds where its column ``align`` is empty (config: alignment.align).
    """
    return (row.get("align") or align) == "register"


def fetch_slide(
    row: Mapping[str, Any],
    folder: str | Path,
    registry: Mapping[str, Dataset] | None = None,
    *,
    image: bool = False,
    align: str = "given",
    settings: HttpSettings | None = None,
    offline: bool = False,
) -> dict[str, Any]:
    """Bring what is needed of one slide into ``folder``; a later call goes on where one stopped.

    Files on this disk are linked, members of a zip on this disk unpacked; of a dataset only what is not
    here is downloaded. What was brought and verified before is not asked for again: size and time of
    change are compared with the record ``.fetched.json``.

    Parameters
    ----------
    row
        The slide's row of the sheet: ``slide source dataset path he alignment align given``; what it names as
        ``given`` stays where it is, and no other labels are brought.
    folder
        Where the files go; made if needed.
    registry
        The public datasets, for rows with source ``dataset``.
    image
        Whether the DAPI image in focus is needed.
    align
        What is done about the alignment where the row does not say: with ``register`` a slide needs none.
    settings
        How servers are asked.
    offline
        Ask nothing of the network; what is missing is told in one message.

    Returns
    -------
    The inventory, also written as bundle.json (see :func:`nuclass.xenium.inventory.write_inventory`).
    """
    place = open_folder(row, folder, registry, image)
    http = settings or HttpSettings()
    align = place.row["align"] or align
    held = "Another process is filling the folder of a slide"
    with alone_in(place.out, LOCK, held, fix="wait until it has ended, or end it"):
        place.record.drop_stale()
        if offline:
            raise_missing(missing_of(place, align))
        he = place.he_on_disk()
        # The small file first: a wrong alignment should not cost a download of gigabytes.
        alignment, alignment_source = _bring_alignment(place, he, align, http)
        given = bring_given(place, http)
        choice = _bring_members(place, http, offline)
        he_name = _bring_he(place, he, http)
        files = [name for name in (*choice.names, he_name, alignment, given) if name]
        return _finish(place, files, he_name, alignment, alignment_source)


def _experiment(folder: Path) -> dict[str, Any]:
    from nuclass.xenium.reader import read_bundle

    return read_bundle(folder).experiment


def _finish(
    place: SlideFolder, files: list[str], he: str, alignment: str | None, alignment_source: str | None
) -> dict[str, Any]:
    from nuclass.xenium.reader import read_bundle

    bundle = read_bundle(place.out)
    _ = bundle.pixel_size
    inventory = write_inventory(
        place.out,
        place.slide,
        place.source_name,
        bundle.version,
        he,
        files,
        alignment=alignment,
        alignment_source=alignment_source,
        hashes={name: place.record.files[name].sha256 for name in files if place.record.holds(name)},
    )
    (place.out / _WHOLE_ZIP).unlink(missing_ok=True)
    for name in files:
        drop_part(part_of(place.out / name))
    return inventory


def _bring_alignment(
    place: SlideFolder, he: Path | None, align: str, settings: HttpSettings
) -> tuple[str | None, str | None]:
    """Return the alignment's name in the folder and what it was made from; None and None where there is none."""
    from nuclass.xenium.alignment import read_alignment

    csv_name, zip_name = place.alignment_names()
    text = place.row["alignment"]
    matrix = _matrix(text)
    file = None if matrix else place.alignment_on_disk(he)
    if text and not matrix:
        file = Path(text)
        if not file.is_file():
            raise UserError(
                f"The alignment of slide '{place.slide}' is missing",
                where=text,
                expected=ALIGNMENT_CHOICES,
                fix="correct the column 'alignment' of the slide sheet, or what follows --alignment",
            )
    name = zip_name if file is not None and file.suffix.lower() == ".zip" else csv_name
    for other in (csv_name, zip_name):
        if other != name and place.record.how(other):
            place.record.remove(other)
    if matrix:
        _write_matrix(place, name, matrix, text)
    elif file is not None:
        # Read where it lies: a fault of it is then told with the name the user knows.
        read_alignment(file)
        place.link(file, name)
    elif place.keeps(name):
        place.record.add(name, place.record.how(name) or "found", _origin(place, name))
    elif not _download_alignment(place, name, align, settings):
        return None, None
    if file is None:
        read_alignment(place.out / name)
    return name, place.record.files[name].original.rpartition("/")[2]


def _matrix(text: str) -> list[list[float]] | None:
    """Return the matrix a field of the sheet states, None where it states none."""
    if text == GRID:
        return [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    return parse_matrix(text) if text and not Path(text).is_file() else None


def _write_matrix(place: SlideFolder, name: str, matrix: list[list[float]], text: str) -> None:
    lines = "".join(",".join(repr(value) for value in row) + "\n" for row in matrix)
    file = place.out / name
    if not (place.record.holds(name) and file.read_text(encoding="utf-8") == lines):
        with atomic_path(file) as temporary:
            temporary.write_text(lines, encoding="utf-8")
    place.record.add(name, "written", GRID if text == GRID else IN_SHEET)


def _origin(place: SlideFolder, name: str) -> str:
    """Return where a file that stays came from: as recorded, otherwise its own name."""
    return place.record.files[name].original if name in place.record.files else name


def _download_alignment(place: SlideFolder, name: str, align: str, settings: HttpSettings) -> bool:
    """Download the dataset's alignment; return False where there is none and none is needed."""
    if place.record.how(name):
        place.record.remove(name)
    remote = place.remote("alignment")
    try:
        if remote.addresses:
            _download(place, remote, name, settings)
            return True
    except (NotFoundError, ForbiddenError) as error:
        if isinstance(error, ForbiddenError) and (align != "register" or not remote.inferred):
            raise
        if align != "register":
            raise UserError(
                f"The alignment of slide '{place.slide}' is not at its address",
                where=error.where,
                found=error.found,
                expected=ALIGNMENT_CHOICES,
                fix="fill the column 'alignment' of the slide sheet (or --alignment), or set 'align' to register",
            ) from error
        _log.warning(
            "%s: no alignment at %s (%s); the position is found from the images", place.slide, error.where, error.found
        )
        return False
    if align == "register":
        return False
    raise UserError(
        f"No alignment is known for slide '{place.slide}'",
        where=place.row["path"] or place.source_name,
        found=remote.status if place.dataset else "none named *_he_imagealignment.csv beside the H&E or the output",
        expected=ALIGNMENT_CHOICES,
        fix="fill the column 'alignment' of the slide sheet (or --alignment), or set 'align' to register",
    )


def _download(place: SlideFolder, remote: RemoteFile, name: str, settings: HttpSettings) -> None:
    url, digest = download(remote.urls, place.out / name, settings, remote.records, remote.inferred)
    place.record.add(name, "download", url, digest)


def _bring_he(place: SlideFolder, he: Path | None, settings: HttpSettings) -> str:
    """Return the H&E's name in the folder."""
    name, remote = place.he_name(he), place.remote("he")
    if he is not None:
        place.link(he, name)
    elif place.record.how(name) == "download" and place.record.holds(name):
        _log.info("%s: present and verified", name)
    elif place.record.how(name) in ("", "found") and (place.out / name).is_file():
        if not place.record.holds(name):
            place.record.add(name, "found", name, verify(place.out / name, remote.records, str(place.out / name)))
    elif remote.addresses:
        _clear(place, name)
        _download(place, remote, name, settings)
    else:
        raise UserError(
            f"No H&E image is known for slide '{place.slide}'",
            where=place.row["path"] or place.source_name,
            found=remote.status if place.dataset else "none named *_he_image.ome.tif beside the output",
            fix="give its file in the column 'he' of the slide sheet, or with --he",
        )
    return name


def _clear(place: SlideFolder, name: str) -> None:
    """Make room for a file: what was downloaded and is no longer as it was goes aside, the rest goes."""
    if place.record.how(name) == "download" and (place.out / name).is_file():
        place.record.set_aside(name, "not as it was downloaded")
    elif place.record.how(name):
        place.record.remove(name)


def _bring_members(place: SlideFolder, settings: HttpSettings, offline: bool) -> Choice:
    """Bring the members of the output: linked, unpacked, or downloaded."""
    source = place.source
    if source is not None and not source.is_zip:
        experiment = _experiment(source.path)
        choice = choose(source.names, experiment, place.image)
        require(choice, source.path)
        if not place.image:
            # A link costs nothing, and the picture of the alignment gains by the image.
            choice = _with_image(choose(source.names, experiment, image=True), choice)
        for name in choice.names:
            place.link(source.path / name, name)
        return choice
    if source is not None:
        _verify_zip(place, source.path)
        return _unpack(place, source.path, source.prefix, source.names)
    present = place.members_present()
    if not present.missing and (offline or set(present.absent) <= set(place.record.absent)):
        for name in present.names:
            if not place.record.holds(name):
                place.record.add(name, place.record.how(name) or "found", name)
        _log.info("%s: all files of the bundle are present and verified", place.slide)
        return present
    return _download_members(place, settings)


def _with_image(with_image: Choice, without: Choice) -> Choice:
    return without if with_image.missing else with_image


def _verify_zip(place: SlideFolder, file: Path) -> None:
    """Compare an outs.zip that was put into the folder by hand with what is recorded of it, once."""
    records = place.remote("outs").records
    if file.parent == place.out and records and not place.record.holds(file.name):
        place.record.add(file.name, "found", file.name, verify(file, records, str(file)))


def _unpack(place: SlideFolder, archive_file: Path, prefix: str, names: Iterable[str]) -> Choice:
    """Unpack the members of a zip on this disk; those unpacked from it before are not unpacked again."""
    state = archive_file.stat()
    stamp = f"{archive_file.name}, {state.st_size} bytes, {state.st_mtime_ns}"

    def bring(name: str) -> None:
        entry = place.record.files.get(name)
        if entry and entry.original == stamp and place.record.holds(name):
            return
        extract(archive, prefix + name, place.out / name, archive_file)
        place.record.add(name, "zip", stamp)

    with open_zip(archive_file) as archive:
        return _bring_chosen(place, names, bring, archive_file)


def _bring_chosen(place: SlideFolder, names: Iterable[str], bring: Callable[[str], None], where: object) -> Choice:
    """Bring experiment.xenium and then, by what it says, the rest."""
    bring(EXPERIMENT)
    choice = choose(names, _experiment(place.out), place.image)
    require(choice, where)
    for name in choice.names:
        bring(name)
    place.record.absent = list(choice.absent)
    place.record.save()
    return choice


def _download_members(place: SlideFolder, settings: HttpSettings) -> Choice:
    """Download the members that are not here, by ranges of the zip, or the whole zip where there are none."""
    remote = place.remote("outs")
    if not remote.addresses:
        raise UserError(
            f"No address is known for the output of dataset '{place.source_name}'",
            where="resources/dataset_files.tsv",
            found=remote.status,
            fix="download outs.zip yourself and give its place as 'path' in the slide sheet",
        )
    whole = place.out / _WHOLE_ZIP
    if not whole.is_file():
        for last in (False, True):
            try:
                _, choice = first_that_exists(
                    remote.urls, lambda url: _by_ranges(place, remote, url, settings), remote.inferred
                )
            except FileChangedError as error:
                if last:
                    raise
                _log.warning("%s: %s; it is read anew", error.where, error.what)
                continue
            if choice is not None:
                return choice
            break
        _log.warning("%s: the server gives no ranges, so the whole zip is downloaded", remote.urls[0])
        download(remote.urls, whole, settings, remote.records, remote.inferred)
    with open_zip(whole) as archive:
        prefix, names = bundle_in_zip(archive, str(whole))
    return _unpack(place, whole, prefix, names)


def _by_ranges(place: SlideFolder, remote: RemoteFile, url: str, settings: HttpSettings) -> Choice | None:
    """Bring the members by ranges; None where the server gives none."""
    source = open_ranges(url, settings)
    if source is None:
        return None
    for record in remote.records:
        if record.kind == "bytes" and int(record.value) != source.total and not record.mirror:
            raise UserError(
                "The size of a file is not the recorded one",
                where=url,
                found=f"{source.total:,} bytes",
                expected=f"{int(record.value):,} bytes (recorded by {record.source})",
                fix="the file has changed at its source: look at it, then mend resources/dataset_files.tsv",
            )
    with open_zip(source) as archive:
        prefix, names = bundle_in_zip(archive, url)

        def bring(name: str) -> None:
            size = archive.getinfo(prefix + name).file_size
            present = place.out / name
            if place.keeps(name) and present.stat().st_size == size:
                if not place.record.holds(name):
                    place.record.add(name, "found", name)
                return
            if present.is_file() and not place.record.how(name):
                place.record.set_aside(name, f"{present.stat().st_size:,} bytes instead of {size:,}")
            else:
                _clear(place, name)
            fetch_member(archive, source, prefix + name, present)
            place.record.add(name, "download", url)

        return _bring_chosen(place, names, bring, url)


@dataclass(frozen=True)
class Missing:
    """A file that only the network has: whose, where it can be had, how large, and where it is to be put."""

    slide: str
    urls: tuple[str, ...]
    size: str
    place: Path
    instead: str = ""

    def __str__(self) -> str:
        """Return the lines that tell a person what to do."""
        lines = [f"{self.slide}: {self.place.name} ({self.size})"]
        lines += [f"  {'or  ' if number else 'from'} {url}" for number, url in enumerate(self.urls)]
        lines += [f"  to   {self.place}{self.instead}"]
        return "\n".join(lines)


def missing_of(place: SlideFolder, align: str) -> list[Missing]:
    """Return what of a slide would have to be downloaded; nothing is asked of the network."""
    found = []

    def add(kind: str, file: Path, instead: str = "") -> None:
        remote = place.remote(kind)
        urls = tuple(remote.urls) or (f"no address is known ({remote.status})",)
        found.append(Missing(place.slide, urls, remote.size, file, instead))

    if place.source is None and not (place.out / _WHOLE_ZIP).is_file():
        missing = place.members_present().missing
        if missing:
            add("outs", place.out / "outs.zip", f"\n  or, unpacked from it, to {place.out}: {'; '.join(missing)}")
    he = place.he_on_disk()
    if he is None and not place.keeps(place.he_name(he)):
        add("he", place.out / place.he_name(he))
    needs_none = align == "register" or place.row["alignment"] or place.alignment_on_disk(he)
    name = place.alignment_names()[0]
    if not needs_none and not place.keeps(name):
        add("alignment", place.out / name)
    if lacks_given(place):
        add(CELL_GROUPS, place.out / given_name(place.slide), "\n  or write none into the column 'given'")
    return found


def missing_files(
    rows: Iterable[Mapping[str, Any]],
    registry: Mapping[str, Dataset],
    folder: str | Path = BUNDLES,
    align: str = "given",
) -> list[Missing]:
    """Return what would have to be downloaded for the slides of a study.

    Parameters
    ----------
    rows
        Rows of the sheet; those with another source than ``dataset`` need nothing.
    registry
        The public datasets.
    folder
        The folder of the slides' folders.
    align
        What holds where a row's column ``align`` is empty.
    """
    found = []
    for row in rows:
        if row["source"] == "dataset":
            place = open_folder(row, Path(folder) / row["slide"], registry, needs_image(row, align))
            found += missing_of(place, row.get("align") or align)
    return found


def raise_missing(missing: Iterable[Missing]) -> None:
    """Raise one :class:`UserError` that lists all missing files; do nothing where there are none."""
    items = list(missing)
    if items:
        lines = "\n".join(f"    {line}" for item in items for line in str(item).split("\n"))
        raise UserError(
            f"fetch.offline is set, and {len(items)} {'file is' if len(items) == 1 else 'files are'} not here\n{lines}",
            fix="bring the files there, or give the place where they lie as 'path', 'he' and 'alignment' in the slide "
            "sheet, or set fetch.offline to false",
        )


def check_offline(config: Mapping[str, Any], slides: pd.DataFrame, root: str | Path = ".") -> None:
    """Tell, where fetch.offline is set, all files that the study lacks, in one message and before any job.

    Parameters
    ----------
    config
        The study's settings.
    slides
        The sheet, indexed by slide.
    root
        The folder of the study.
    """
    if not config["fetch"]["offline"] or not (slides["source"] == "dataset").any():
        return
    align = config.get("alignment", {}).get("align", "given")
    rows = [{"slide": str(slide), **row} for slide, row in slides.to_dict("index").items()]
    raise_missing(missing_files(rows, read_registry(own_file(REGISTRY, root)), Path(root) / BUNDLES, align))
