"""One slide's folder while it is filled: what the sheet says of it, and where its files may lie on this disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nuclass.core.bundle_source import (
    EXPERIMENT,
    BundleSource,
    find_alignment,
    find_given,
    find_he,
    locate_bundle,
    source_folders,
)
from nuclass.core.errors import UserError
from nuclass.core.files import read_json
from nuclass.core.leftovers import temporary_name
from nuclass.xenium.inventory import alignment_name, given_name
from nuclass.xenium.members import Choice, choose, names_in
from nuclass.xenium.record import FetchRecord
from nuclass.xenium.registry import Dataset, RemoteFile


def image_name(slide: str, source: str) -> str:
    """Return the study's name of an H&E image: ``{slide}_he_image.ome.tif``, or with the source's own kind."""
    lower = source.lower()
    known = lower.endswith((".tif", ".tiff", ".btf"))
    return f"{slide}_he_image{'.ome.tif' if known else Path(source).suffix}"


@dataclass(frozen=True)
class SlideFolder:
    """A slide's folder and what is to be in it.

    Attributes
    ----------
    slide
        The slide's name.
    out
        The folder.
    row
        The slide's row of the sheet: ``source dataset path he alignment align given``.
    dataset
        The dataset, for slides that come from one.
    image
        Whether the DAPI image in focus is needed.
    """

    slide: str
    out: Path
    row: Mapping[str, str]
    dataset: Dataset | None
    image: bool

    @property
    def source_name(self) -> str:
        """The dataset's name, or ``local``."""
        return self.dataset.name if self.dataset else "local"

    @cached_property
    def source(self) -> BundleSource | None:
        """Where the Xenium output lies on this disk: ``path``, or an outs.zip put into the folder by hand."""
        if self.row.get("path"):
            return locate_bundle(self.row["path"])
        zips = sorted(file for file in self.out.glob("*outs.zip") if not file.name.startswith("."))
        if len(zips) > 1:
            raise UserError(
                "More than one outs.zip lies in the folder of a slide",
                where=self.out,
                found=", ".join(file.name for file in zips),
                expected="one",
                fix="delete or move the others",
            )
        return locate_bundle(zips[0]) if zips else None

    @cached_property
    def record(self) -> FetchRecord:
        """The record of what was brought before."""
        origin = f"the dataset {self.dataset.name}" if self.dataset else self.row["path"]
        return FetchRecord(self.out, origin, self._own)

    @cached_property
    def places(self) -> tuple[list[Path], str]:
        """Where the H&E and the alignment may lie, and how their names begin."""
        if self.source is None:
            return [self.out], ""
        folders, stem = source_folders(self.source, self.row.get("path") or self.out)
        return [*folders, self.out], stem

    @property
    def _own(self) -> tuple[str, ...]:
        return f"{self.slide}_he_image", given_name(self.slide)

    def _is_ours(self, file: Path) -> bool:
        """Whether a file has a name of the study's, which says nothing of where it came from."""
        return file.parent == self.out and file.name.startswith(self._own)

    def he_on_disk(self) -> Path | None:
        """Return the H&E that the sheet names or that lies beside the output, or None."""
        if self.row.get("he"):
            file = Path(self.row["he"])
            if not file.is_file():
                raise UserError(
                    f"The H&E image of slide '{self.slide}' is missing",
                    where=file,
                    found="a folder" if file.is_dir() else "nothing at this path",
                    expected="the file of the H&E image",
                    fix="correct the column 'he' of the slide sheet, or what follows --he",
                )
            return file
        folders, stem = self.places
        return find_he(folders, stem, self._is_ours)

    def alignment_on_disk(self, he: Path | None) -> Path | None:
        """Return the alignment that lies beside the H&E or the output, or None."""
        folders, stem = self.places
        return find_alignment(he, folders, stem, self._is_ours)

    def given_on_disk(self) -> Path | None:
        """Return the published labels that lie beside the output, or None."""
        folders, stem = self.places
        return find_given(folders, stem, self._is_ours)

    def remote(self, kind: str) -> RemoteFile:
        """Return a file of the dataset; one without addresses for a slide that comes from none."""
        return self.dataset.file(kind) if self.dataset else RemoteFile("", kind)

    def he_name(self, he: Path | None) -> str:
        """Return the name the H&E has in the folder."""
        return image_name(self.slide, he.name if he else self.remote("he").name or "he.ome.tif")

    def keeps(self, name: str) -> bool:
        """Return whether a file lies in the folder that needs no fetching: fetched before, or put there by hand."""
        if self.record.how(name) in ("", "found"):
            return (self.out / name).is_file()
        return self.record.how(name) in ("download", "zip") and self.record.holds(name)

    def members_present(self) -> Choice:
        """Choose among the files that lie in the folder already, leaving out what belongs to another source."""
        names = [name for name in names_in(self.out) if self.keeps(name)]
        experiment = read_json(self.out / EXPERIMENT) if EXPERIMENT in names else {}
        return choose(names, experiment if isinstance(experiment, Mapping) else {}, self.image)

    def link(self, source: Path, name: str) -> None:
        """Make ``name`` in the folder a link to a file, replacing what was there in one step."""
        target = self.out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and target.samefile(source):
            # A file that lies in the folder itself must not become a link to itself.
            self.record.add(name, "link" if target.is_symlink() else "found", source.name)
            return
        temporary = temporary_name(target)
        temporary.symlink_to(source.resolve())
        temporary.replace(target)
        self.record.add(name, "link", source.name)

    def alignment_names(self) -> tuple[str, str]:
        """Return the names an alignment may have in the folder: a csv, or Explorer's zip."""
        name = alignment_name(self.slide)
        return name, name.removesuffix(".csv") + ".zip"


def open_folder(
    row: Mapping[str, Any], out: str | Path, registry: Mapping[str, Dataset] | None, image: bool
) -> SlideFolder:
    """Return a slide's folder for a row of the sheet; see :class:`SlideFolder`."""
    from nuclass.xenium.registry import dataset_named

    values = {
        key: str(row.get(key) or "")
        for key in ("slide", "source", "dataset", "path", "he", "alignment", "align", "given")
    }
    dataset = dataset_named(dict(registry or {}), values["dataset"]) if values["source"] == "dataset" else None
    return SlideFolder(values["slide"], Path(out), values, dataset, image)


def local_inputs(row: Mapping[str, Any], folder: str | Path) -> dict[str, str]:
    """Return the files on this disk that a row of the sheet leads to, for a workflow to watch.

    ``experiment`` (experiment.xenium or the zip), ``he``, ``alignment`` and ``given``, as far as they are there.
    Labels that the row itself names are not among them: no file of the bundle depends on those. ``folder`` is the
    slide's folder.
    """
    place = open_folder({**row, "source": "local"}, folder, None, image=False)
    found: dict[str, str] = {}
    given = None
    if row.get("path"):
        source = locate_bundle(row["path"])
        found["experiment"] = str(source.path if source.is_zip else source.path / EXPERIMENT)
        he = place.he_on_disk()
        alignment = None if row.get("alignment") else place.alignment_on_disk(he)
        given = None if row.get("given") else place.given_on_disk()
    else:
        he, alignment = (Path(row["he"]) if row.get("he") else None), None
    if row.get("alignment") and Path(row["alignment"]).is_file():
        alignment = Path(row["alignment"])
    files = (("he", he), ("alignment", alignment), ("given", given))
    return found | {name: str(file) for name, file in files if file}
