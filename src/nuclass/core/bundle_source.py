"""Find a Xenium output, its H&E image and its alignment on this disk, in the ways people keep them."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nuclass.core.errors import UserError

EXPERIMENT = "experiment.xenium"
ALIGN_WORDS = ("given", "refine", "register")
GRID = "grid"
LABEL_WORDS = ("markers", "given", "given_then_markers")
NO_GIVEN = "none"
GIVEN_NAMES = ("*_cell_groups.csv",)
GIVEN_NOTATION = (
    "FILE, or FILE::ID_COLUMN,LABEL_COLUMN, of a workbook WORKBOOK.xlsx::SHEET or WORKBOOK.xlsx::SHEET::ID_COLUMN,"
    "LABEL_COLUMN"
)
HE_NAMES = ("*_he_image.ome.tif", "*_he_unaligned_image.ome.tif")
ALIGNMENT_NAMES = ("*_he_imagealignment.csv", "*_he_alignment.csv")
ALIGNMENT_CHOICES = (
    "its file, the word 'grid' (the H&E lies on the morphology pixel grid), six or nine numbers of a matrix "
    "(H&E px to morphology px, row by row), or align 'register' (the position is found from the images)"
)
# What the stages read of a bundle, the first of each group that is there; one of each must be.
NEEDED = (
    ("cells.parquet", "cells.csv.gz", "cells.csv"),
    ("cell_feature_matrix.h5",),
    # Without a table the outlines are read from the Zarr.
    ("nucleus_boundaries.parquet", "nucleus_boundaries.csv.gz", "nucleus_boundaries.csv", "cells.zarr.zip"),
)
_FOCUS_FOLDER = "morphology_focus"


@dataclass(frozen=True)
class BundleSource:
    """Where a Xenium output lies.

    Attributes
    ----------
    path
        The folder that holds experiment.xenium, or the zip.
    names
        What lies in it, relative to experiment.xenium, with ``/``; of a folder only its own files and
        those of morphology_focus.
    prefix
        Of a zip: the folder inside it that holds experiment.xenium, ending with ``/``, or nothing.
    """

    path: Path
    names: tuple[str, ...]
    prefix: str = ""

    @property
    def is_zip(self) -> bool:
        """Whether the output is a zip."""
        return self.path.is_file()


def locate_bundle(path: str | Path) -> BundleSource:
    """Find a Xenium output: a folder, a folder one level deeper, a zip, or a folder with one ``*outs.zip``.

    Its experiment.xenium stands for the folder.

    Raises
    ------
    UserError
        If there is nothing, no Xenium output, or more than one.
    """
    place = Path(path)
    if place.is_file():
        return _in_folder(place.parent) if place.name == EXPERIMENT else _in_zip(place)
    if not place.is_dir():
        raise UserError(
            "the folder or zip of a Xenium output is missing",
            where=place,
            found="nothing at this path",
            expected="the output folder of the Xenium run with experiment.xenium in it, or its outs.zip",
            fix="correct the path, in the slide sheet the column 'path'",
        )
    if (place / EXPERIMENT).is_file():
        return _in_folder(place)
    deeper = sorted(folder for folder in place.iterdir() if (folder / EXPERIMENT).is_file())
    zips = sorted(place.glob("*outs.zip"))
    found = deeper or zips
    if len(found) == 1:
        return _in_folder(found[0]) if deeper else _in_zip(found[0])
    if found:
        raise UserError(
            "more than one Xenium output lies in a folder",
            where=place,
            found=" and ".join(str(item) for item in found),
            expected="one",
            fix="give one of them in the column 'path'",
        )
    raise UserError(
        "a folder is no Xenium output",
        where=place,
        found=f"no {EXPERIMENT} in it or one level deeper, and no *outs.zip",
        expected="the output folder of the Xenium run with experiment.xenium in it, or its outs.zip",
        fix="correct the path, in the slide sheet the column 'path'",
    )


def _in_folder(folder: Path) -> BundleSource:
    files = [item.name for item in folder.iterdir() if item.is_file()]
    focus = folder / _FOCUS_FOLDER
    if focus.is_dir():
        files += [f"{_FOCUS_FOLDER}/{item.name}" for item in focus.iterdir() if item.is_file()]
    return BundleSource(folder, tuple(sorted(files)))


def _in_zip(file: Path) -> BundleSource:
    try:
        with zipfile.ZipFile(file) as archive:
            prefix, names = bundle_in_zip(archive, str(file))
    except (zipfile.BadZipFile, ValueError) as error:
        with file.open("rb") as stream:
            page = is_web_page(stream.read(400))
        raise UserError(
            "a file is a web page and no zip" if page else "a file is no zip, or is cut off",
            where=file,
            found=f"{file.stat().st_size:,} bytes; {error}",
            expected="the whole outs.zip of a Xenium run; the list of its files stands at its end",
            fix="copy or download it again",
        ) from error
    return BundleSource(file, names, prefix)


def is_web_page(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a web page, as a failed download leaves it."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:200].lower()
    return start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<error", b"<body"))


def bundle_in_zip(archive: zipfile.ZipFile, where: str) -> tuple[str, tuple[str, ...]]:
    """Return the folder inside a zip that holds experiment.xenium, and the names relative to it."""
    names = [name for name in archive.namelist() if not name.endswith("/")]
    anchors = [name for name in names if name.rpartition("/")[2] == EXPERIMENT]
    depth = min((name.count("/") for name in anchors), default=0)
    anchors = [name for name in anchors if name.count("/") == depth]
    if len(anchors) != 1:
        shown = " and ".join(anchors) if anchors else f"{len(names)} files, none of them {EXPERIMENT}"
        raise UserError(
            "the zip holds more than one Xenium output" if anchors else "the zip holds no Xenium output",
            where=where,
            found=shown,
            expected=f"one {EXPERIMENT}, as in the outs.zip of a Xenium run",
            fix="give the outs.zip of this slide",
        )
    prefix = anchors[0][: -len(EXPERIMENT)]
    inside = (name[len(prefix) :] for name in names if name.startswith(prefix))
    return prefix, tuple(name for name in inside if name and ".." not in name.split("/"))


def _only(found: list[Path], stem: str, what: str, column: str) -> Path | None:
    """Return the one file that was found, those with the stem first; several are an error, none is None."""
    found = [file for file in found if stem and file.name.startswith(stem)] or found
    if len(found) > 1:
        raise UserError(
            f"more than one {what}",
            where=found[0].parent,
            found=", ".join(file.name for file in found),
            expected="one",
            fix=f"give the right one in the column '{column}'",
        )
    return found[0] if found else None


def find_he(places: Iterable[str | Path], stem: str = "", skip: Callable[[Path], bool] | None = None) -> Path | None:
    """Return the H&E image that lies in one of the folders under a 10x name, or None.

    Parameters
    ----------
    places
        Folders to look in.
    stem
        A beginning that, where some of the names have it, rules out the others.
    skip
        Files that do not count.

    Raises
    ------
    UserError
        If there are several.
    """
    return _only(_matches(places, HE_NAMES, skip), stem, "H&E image lies beside the Xenium output", "he")


def find_alignment(
    he: str | Path | None, places: Iterable[str | Path], stem: str = "", skip: Callable[[Path], bool] | None = None
) -> Path | None:
    """Return the alignment that lies beside the H&E or in one of the folders under a 10x name, or None.

    The one that bears the H&E's own name comes first, then ``*_he_imagealignment.csv``, then
    ``*_he_alignment.csv``.
    """
    folders = list(places)
    if he is not None:
        own = Path(he)
        beside = own.with_name(he_stem(own.name) + "alignment.csv")
        if beside.is_file() and not (skip and skip(beside)):
            return beside
        folders.insert(0, own.parent)
    for pattern in ALIGNMENT_NAMES:
        found = _only(_matches(folders, (pattern,), skip), stem, "alignment lies beside the H&E image", "alignment")
        if found is not None:
            return found
    return None


def find_given(places: Iterable[str | Path], stem: str = "", skip: Callable[[Path], bool] | None = None) -> Path | None:
    """Return the published labels (``*_cell_groups.csv``) that lie in one of the folders, or None."""
    return _only(_matches(places, GIVEN_NAMES, skip), stem, "file of cell groups lies beside the output", "given")


@dataclass(frozen=True)
class GivenFile:
    """A file of given labels and what of it is meant.

    Attributes
    ----------
    path
        The file.
    sheet
        Of a workbook: the sheet, nothing where its name decides.
    columns
        The columns of ids and labels, None where their names decide.
    """

    path: str
    sheet: str = ""
    columns: tuple[str, str] | None = None

    @property
    def is_workbook(self) -> bool:
        """Whether the file is an Excel workbook, by its name."""
        return self.path.lower().endswith((".xlsx", ".xlsm"))


def parse_given(text: str) -> GivenFile:
    """Read what the sheet says of given labels: a file, and after ``::`` its sheet and its columns.

    ``labels.csv``, ``labels.csv::cell_id,cell_type``, ``labels.xlsx::Sheet 2``,
    ``labels.xlsx::Sheet 2::cell_id,cell_type``; the sheet may be empty.

    Raises
    ------
    UserError
        If the text has another form.
    """
    path, *choices = (part.strip() for part in text.split("::"))
    file = GivenFile(path)
    sheet = choices.pop(0) if file.is_workbook and choices else ""
    columns = tuple(name.strip() for name in choices[0].split(",")) if choices else None
    if not path or len(choices) > 1 or (columns is not None and (len(columns) != 2 or not columns[1])):
        raise UserError("the place of given labels cannot be understood", found=text, expected=GIVEN_NOTATION)
    return GivenFile(path, sheet, (columns[0], columns[1]) if columns else None)


def he_stem(name: str) -> str:
    """Return the name of an image without ``.ome.tif`` or its own ending."""
    for ending in (".ome.tif", ".ome.tiff"):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return Path(name).stem


def source_folders(source: BundleSource, path: str | Path) -> tuple[list[Path], str]:
    """Return where the H&E and alignment of an output may lie, and the beginning of their names.

    The folders are that of the output, that of the zip, and the folder the user gave.
    """
    given = Path(path)
    folders = [source.path.parent if source.is_zip else source.path]
    if given.is_dir():
        folders.append(given)
    stem = source.path.name.removesuffix("outs.zip") if source.is_zip else ""
    return folders, stem


def _matches(places: Iterable[str | Path], patterns: Sequence[str], skip: Callable[[Path], bool] | None) -> list[Path]:
    found: dict[Path, Path] = {}
    for place in places:
        for pattern in patterns:
            for file in sorted(Path(place).glob(pattern)):
                if file.is_file() and not (skip and skip(file)):
                    found.setdefault(file.resolve(), file)
    return list(found.values())


def parse_matrix(text: str) -> list[list[float]] | None:
    """Read a matrix written as text, or return None if the text is not meant as one.

    Six or nine numbers, row by row, separated by commas, semicolons or blanks: a matrix (3, 3) from
    H&E px to morphology px; of six numbers the last row is 0, 0, 1.

    Raises
    ------
    UserError
        If the text has a comma or semicolon but is no such matrix, or if it cannot be inverted.
    """
    if not any(mark in text for mark in ",;") or text.lower().endswith((".csv", ".zip", ".txt")):
        return None
    words = text.replace(",", " ").replace(";", " ").split()
    expected = "six or nine numbers, row by row, such as 1,0,0; 0,1,0"
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        wrong = next(word for word in words if not _is_number(word))
        raise UserError(
            "an alignment is neither a file nor a matrix", found=f"'{wrong}' in '{text}'", expected=expected
        ) from None
    if len(numbers) not in (6, 9):
        raise UserError(
            "a matrix has the wrong number of values", found=f"{len(numbers)} in '{text}'", expected=expected
        )
    numbers += [0.0, 0.0, 1.0][: 9 - len(numbers)]
    rows = [numbers[start : start + 3] for start in (0, 3, 6)]
    if not all(map(math.isfinite, numbers)) or determinant(rows) == 0:
        raise UserError(
            "a matrix cannot be inverted",
            found=text,
            expected="a matrix that leads from H&E px to morphology px, of finite numbers and without a scale of 0",
        )
    return rows


def determinant(rows: Sequence[Sequence[float]]) -> float:
    """Return the determinant of a matrix (3, 3)."""
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
