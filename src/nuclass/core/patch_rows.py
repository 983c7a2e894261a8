"""Slides that come as files of windows: their rows in the sheet, and data sets that the environment names."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nuclass.core.errors import UserError
from nuclass.core.names import ORGANS
from nuclass.core.sheets import Row

PATCHES = "patches"
DATA_DIRS, DATA_ROOT = "NUCLASS_DATA_DIRS", "NUCLASS_DATA_ROOT"
ANNOTATIONS = "annotations.json"
PARTS = {"train": "train", "test": "val"}
"""Folders of a data set that is divided already -> our split: the original's test chose its models."""


@dataclass(frozen=True)
class PatchFolder:
    """Where the files of one slide's windows lie.

    Attributes
    ----------
    files
        Split ("" where the data set is not divided, else train and val) -> the files ``annotations``, ``local`` and
        ``global``.
    """

    path: Path
    files: Mapping[str, Mapping[str, Path]]

    @property
    def paths(self) -> list[Path]:
        """All files, split by split."""
        return [file for part in self.files.values() for file in part.values()]


def patch_names(windows: Mapping[str, int]) -> dict[str, str]:
    """Return the names of a data set's three files, by role, for the sides of the windows in px."""
    return {"annotations": ANNOTATIONS} | {
        role: f"patches_{windows[role]}x{windows[role]}.h5" for role in ("local", "global")
    }


def find_patches(path: str | Path, windows: Mapping[str, int]) -> PatchFolder:
    """Find the three files of a data set in its folder, or in ``train/`` and ``test/`` below it.

    Raises
    ------
    UserError
        There is no such folder, a file is missing, or files lie both in the folder and below it.
    """
    folder, names = Path(path), patch_names(windows)
    listed = ", ".join(names.values())
    if not folder.is_dir():
        raise UserError(
            "the folder of a slide's patch files is missing",
            where=folder,
            found="a file" if folder.exists() else "nothing at this path",
            expected=f"a folder with {listed}, or with train/ and test/ that hold them",
            fix="correct the path",
        )
    here = {role: folder / name for role, name in names.items()}
    below = {part: {role: folder / part / name for role, name in names.items()} for part in PARTS}
    flat = any(file.is_file() for file in here.values())
    divided = [part for part, files in below.items() if any(file.is_file() for file in files.values())]
    if flat and divided:
        raise UserError(
            "patch files lie both in a folder and below it",
            where=folder,
            found=f"files in the folder itself and in {' and '.join(f'{part}/' for part in divided)}",
            expected="one of the two",
            fix="move one set elsewhere",
        )
    wanted = {"": here} if flat or not divided else {PARTS[part]: below[part] for part in PARTS}
    missing = [file for files in wanted.values() for file in files.values() if not file.is_file()]
    if missing:
        raise UserError(
            "a slide's patch files are not complete",
            where=folder,
            found="no " + ", no ".join(str(file.relative_to(folder)) for file in missing),
            expected=f"{listed}, in the folder or in both train/ and test/",
            fix="add the file; if its windows have another size, set 'windows' in the configuration",
        )
    return PatchFolder(folder, wanted)


def organ_in(text: str) -> str:
    """Return the study's organ that a free text such as "Human Colon Cancer FFPE" names, "" where it names none."""
    words = re.findall(r"[a-z]+", text.lower())
    alike = {"ovarian": "ovary", "hepatic": "liver", "renal": "kidney", "pancreatic": "pancreas", "cardiac": "heart"}
    found = {alike.get(word, word) for word in words} & set(ORGANS)
    return found.pop() if len(found) == 1 else ""


Peek = Callable[[Path], Mapping[str, object]]


def rows_from_environment(
    rows: Sequence[Row],
    windows: Mapping[str, int],
    root: Path,
    peek: Peek | None,
    environ: Mapping[str, str],
    columns: Sequence[str],
) -> tuple[list[Row], list[UserError]]:
    """Apply ``NUCLASS_DATA_DIRS`` and ``NUCLASS_DATA_ROOT`` to the rows of the sheet.

    ``NUCLASS_DATA_DIRS`` (folders, separated as in PATH) stands for all training slides. Without it,
    ``NUCLASS_DATA_ROOT`` is the folder that relative paths of ``patches`` rows start from; where the sheet has no such
    row, the data set that it is, or else all data sets in it, stand for the training slides. Cohorts stay those of the
    sheet. An empty variable is as none.

    Parameters
    ----------
    root
        The folder that relative paths start from.
    peek
        Reads the first record of an ``annotations.json``: its ``tissue_type`` tells the organ, its ``patient_id`` the
        donor.
    columns
        The columns of the sheet.
    """
    if environ.get(DATA_DIRS):
        folders = [Path(part.strip()).expanduser() for part in environ[DATA_DIRS].split(os.pathsep) if part.strip()]
        if not folders:
            told = f"folders of data sets, separated by '{os.pathsep}'"
            return list(rows), [UserError(f"{DATA_DIRS} names no folder", expected=told, fix="correct it, or unset it")]
        return _replace_training(rows, folders, DATA_DIRS, windows, root, peek, columns)
    if not environ.get(DATA_ROOT):
        return list(rows), []
    base = Path(environ[DATA_ROOT]).expanduser()
    if not (root / base).is_dir():
        return list(rows), [UserError(f"{DATA_ROOT} is no folder", found=str(base), fix="correct it, or unset it")]
    if any(row.values["source"] == PATCHES for row in rows):
        return [_based(row, base, root) for row in rows], []
    folders = [base / folder.name for folder in sorted((root / base).iterdir()) if _holds_patches(folder, windows)]
    if _holds_patches(root / base, windows):
        folders = [base]
    if not folders:
        fault = UserError(
            f"no data set lies in the folder of {DATA_ROOT}",
            where=base,
            expected=f"folders with {', '.join(patch_names(windows).values())}, or with train/ and test/ of these",
            fix=f"correct it, unset it, or name the folders in {DATA_DIRS}",
        )
        return list(rows), [fault]
    return _replace_training(rows, folders, DATA_ROOT, windows, root, peek, columns)


def fingerprint(path: Path, windows: Mapping[str, int]) -> str:
    """Return what tells a data set from all others, be it a link, a copy, or named by its part ``train/`` or ``test/``.

    It is made of the sizes of its files and of how its annotations begin; ``""`` where files are missing, which
    :func:`find_patches` tells.
    """
    folder = path.resolve()
    other = {"train": "test", "test": "train"}.get(folder.name)
    if other and _holds_patches(folder.parent / other, windows):
        folder = folder.parent
    try:
        files = find_patches(folder, windows).files
    except UserError:
        return ""
    parts = []
    for split, of_part in files.items():
        with of_part["annotations"].open("rb") as file:
            begin = hashlib.sha256(file.read(4096)).hexdigest()
        parts.append(f"{split} {begin} {' '.join(str(file.stat().st_size) for file in of_part.values())}")
    return "; ".join(parts)


def _holds_patches(folder: Path, windows: Mapping[str, int]) -> bool:
    names = patch_names(windows).values()
    return any((folder / part / name).is_file() for part in ("", *PARTS) for name in names)


def _based(row: Row, base: Path, root: Path) -> Row:
    path = row.values["path"]
    if row.values["source"] != PATCHES or not path or not (root / base / path).exists():
        return row
    return Row(row.line, row.values | {"path": str(base / path)})


def _replace_training(
    rows: Sequence[Row],
    folders: Sequence[Path],
    variable: str,
    windows: Mapping[str, int],
    root: Path,
    peek: Peek | None,
    columns: Sequence[str],
) -> tuple[list[Row], list[UserError]]:
    kept = [row for row in rows if row.values["role"] != "train"]
    made, faults = [], []
    for folder, name in zip(folders, _names_of([root / folder for folder in folders]), strict=True):
        try:
            values = _described(root / folder, name, windows, peek) | {"path": str(folder)}
            made.append(Row(0, dict.fromkeys(columns, "") | values, f"{variable}, {folder}"))
        except UserError as error:
            place = variable if error.where is None else f"{variable}, {error.where}"
            faults.append(UserError(error.what, where=place, found=error.found, expected=error.expected, fix=error.fix))
    return made + kept, faults


def _names_of(folders: Sequence[Path]) -> list[str]:
    """Name slides after their folders, and after the folder above too where several folders have one name."""
    places = [folder.resolve() for folder in folders]
    names = [_as_name(place.name) for place in dict.fromkeys(places)]
    above = [f"{_as_name(place.parent.name)}_{_as_name(place.name)}" for place in places]
    return [
        longer if names.count(_as_name(place.name)) > 1 else _as_name(place.name)
        for place, longer in zip(places, above, strict=True)
    ]


def _as_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_-") or "slide"


def _described(folder: Path, name: str, windows: Mapping[str, int], peek: Peek | None) -> dict[str, str]:
    """Return the row of a data set but for its path: organ and donor as its first record says."""
    first = next(iter(find_patches(folder, windows).files.values()))["annotations"]
    record = peek(first) if peek is not None else {}
    tissue = str(record.get("tissue_type", ""))
    organ = organ_in(tissue) or organ_in(folder.name.replace("_", " "))
    if peek is not None and not organ:
        raise UserError(
            "the organ of a data set is not known",
            where=first,
            found=f"tissue_type '{tissue}'",
            expected="a text that names one of " + ", ".join(ORGANS),
            fix="write the slide into the sheet instead, with its organ",
        )
    patient = str(record.get("patient_id") or name)
    return {"slide": name, "organ": organ, "role": "train", "patient": patient, "source": PATCHES}
