"""The sheet of slides: every fault of its rows, told with line and slide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nuclass.core.across_rows import across_rows, place_of
from nuclass.core.bundle_source import (
    ALIGN_WORDS,
    ALIGNMENT_CHOICES,
    GIVEN_NOTATION,
    GRID,
    LABEL_WORDS,
    NEEDED,
    NO_GIVEN,
    BundleSource,
    find_alignment,
    find_given,
    find_he,
    locate_bundle,
    parse_given,
    parse_matrix,
    source_folders,
)
from nuclass.core.errors import UserError, closest
from nuclass.core.names import ORGANS
from nuclass.core.own_files import own_file
from nuclass.core.patch_rows import PATCHES, Peek, find_patches, fingerprint, rows_from_environment
from nuclass.core.schema import check_settings
from nuclass.core.sheets import Row, read_sheet, read_table

Reader = Callable[[Path], Any]
DATASETS = Path("resources/datasets.tsv")
DATASET_FILES = Path("resources/dataset_files.tsv")
SYNTHETIC_ORGANS = ("breast", "colon", "lung", "ovary", "pancreas")
SYNTHETIC_GIVEN = ("breast_1",)
"""Synthetic slides whose bundle comes with published labels."""


def read_slides(
    root: Path,
    path: Any,
    schema: Mapping[str, Any],
    align: str = "given",
    read_alignment: Reader | None = None,
    labels: str = "markers",
    read_given: Callable[[str], Any] | None = None,
    windows: Mapping[str, int] | None = None,
    peek_patches: Peek | None = None,
    environ: Mapping[str, str] | None = None,
    held_out: bool = False,
) -> tuple[list[Row], list[UserError]]:
    """Read the sheet of slides and check every row; return the rows and all faults.

    Parameters
    ----------
    root
        The folder that relative paths start from.
    path
        The sheet, relative to ``root``; anything but text gives nothing, for that is told elsewhere.
    schema
        What a row may hold.
    align
        What is done about the alignment of slides whose column ``align`` is empty.
    read_alignment
        Reads an alignment file and raises a :class:`UserError` for a fault of it; without, the files are only
        looked for.
    labels
        Where the labels come from of slides whose column ``labels`` is empty.
    read_given
        Checks a file of given labels, named in the notation of the sheet (see
        :func:`nuclass.core.bundle_source.parse_given`), and raises a :class:`UserError` for a fault of it; without,
        the files are only looked for.
    windows
        Sides of the windows, which name the files of slides that come as patches.
    peek_patches
        Reads the first record of an ``annotations.json``.
    environ
        Environment variables that name data sets; see :mod:`nuclass.core.patch_rows`.
    held_out
        Training slides will be held out by the settings, so the sheet needs no cohort of its own.
    """
    if not isinstance(path, str):
        return [], []
    rows, faults = read_sheet(root / path, list(schema["properties"]), list(schema["required"]))
    windows = windows or {"local": 224, "global": 1024}
    rows, lacking = rows_from_environment(rows, windows, root, peek_patches, environ or {}, list(schema["properties"]))
    faults += lacking
    for row in rows:
        faults += _row_faults(path, row, schema)
    datasets = _datasets(root)
    of_rows: list[UserError] = []
    data = []
    for row in rows:
        values = row.values
        try:
            if values["source"] == PATCHES:
                place = fingerprint(root / values["path"], windows) if values["path"] else ""
                found = _patches_faults(root, values, windows)
            else:
                source, found = _source_faults(root, values, datasets, values["align"] or align, read_alignment)
                found += _labels_faults(root, values, source, datasets, labels, read_given)
                place = str(source.path.resolve()) + source.prefix if source else values["dataset"]
        except (OSError, ValueError) as error:
            place, found = "", [_no_path(error)]
        data.append(place)
        of_rows += [_placed(fault, path, row) for fault in found]
    return rows, [*faults, *across_rows(path, rows, data, held_out, not lacking), *of_rows]


def _no_path(error: Exception) -> UserError:
    return UserError(
        "a path of a slide cannot be followed",
        found=" ".join(str(error).split())[:200],
        fix="correct the columns path, he, alignment and given, or the right to read there",
    )


def _placed(fault: UserError, path: str, row: Row) -> UserError:
    """Return a fault with the line of the sheet before the place it names itself."""
    where = _place(path, row) + (f", {fault.where}" if fault.where else "")
    return UserError(fault.what, where=where, found=fault.found, expected=fault.expected, fix=fault.fix)


def _place(path: str, row: Row) -> str:
    return f"{place_of(path, row)} (slide '{row.values['slide']}')"


def _row_faults(path: str, row: Row, schema: Mapping[str, Any]) -> list[UserError]:
    _, faults = check_settings(row.values, schema, lambda at: f"{path}, line {row.line}")
    return [
        UserError(
            fault.what.replace("the value of", "the value of column", 1),
            where=_place(path, row),
            found=fault.found,
            expected=fault.expected,
            fix=fault.fix,
        )
        for fault in faults
    ]


def _datasets(root: Path) -> dict[str, set[str]] | None:
    """Return the files that have an address, for every dataset of the registry; None if there is no registry."""
    registry = own_file(DATASETS, root)
    if not registry.is_file():
        return None
    known: dict[str, set[str]] = {row["dataset"]: set() for row in read_table(registry)}
    for row in read_table(registry.with_name(DATASET_FILES.name)):
        if row.get("url"):
            known.setdefault(row["dataset"], set()).add(row["file"])
    return known


def _source_faults(
    root: Path,
    values: Mapping[str, str],
    datasets: Mapping[str, set[str]] | None,
    align: str,
    read_alignment: Reader | None,
) -> tuple[BundleSource | None, list[UserError]]:
    """Return where the Xenium output lies on this disk, and what is wrong with the places of a row."""
    source = values["source"]
    faults = [_no_such_word("align", values["align"], ALIGN_WORDS)] * (values["align"] not in ("", *ALIGN_WORDS))
    if source == "synthetic":
        real_only = values["organ"] in ORGANS and values["organ"] not in SYNTHETIC_ORGANS
        return None, (
            faults
            + [_no_such_tissue(values["organ"])] * real_only
            + [
                UserError(
                    f"a synthetic slide takes no {column}",
                    found=values[column],
                    expected="an empty field",
                    fix="empty it, or set source to 'local'",
                )
                for column in ("dataset", "path", "he", "alignment", "given")
                if values[column] not in ("", NO_GIVEN if column == "given" else "")
            ]
        )
    if source not in ("dataset", "local"):
        return None, faults
    faults += _dataset_faults(values, datasets) if source == "dataset" else _local_faults(values)
    found: BundleSource | None = None
    if values["path"]:
        try:
            found = locate_bundle(root / values["path"])
            faults += _member_faults(found, values["path"])
        except UserError as error:
            faults.append(error)
    # Where the output itself cannot be found, that is the one thing to say.
    blocked = found is None and (bool(values["path"]) or source == "local")
    addresses = {"he", "alignment"} if blocked else set()
    if source == "dataset":
        addresses |= (datasets or {}).get(values["dataset"], {"he", "alignment"})
    he, he_faults = _he(root, values, found, "he" not in addresses)
    needed = align != "register" and "alignment" not in addresses
    alignment, alignment_faults = _alignment(root, values, found, he, needed)
    if alignment is not None and read_alignment is not None:
        try:
            read_alignment(alignment)
        except UserError as error:
            alignment_faults.append(error)
    return found, faults + he_faults + alignment_faults


def _patches_faults(root: Path, values: Mapping[str, str], windows: Mapping[str, int]) -> list[UserError]:
    """Return what is wrong with a slide that comes as files of windows."""
    faults = [
        UserError(
            f"a slide of patch files takes no {column}",
            found=values[column],
            expected="an empty field: places and labels are those of its annotations.json",
            fix="empty it",
        )
        for column in ("dataset", "he", "alignment", "align", "labels", "given")
        if values[column]
    ]
    if not values["path"]:
        return [
            *faults,
            UserError("a slide of patch files names no folder", expected="its folder in the column 'path'"),
        ]
    try:
        find_patches(root / values["path"], windows)
    except UserError as error:
        faults.append(error)
    return faults


def _labels_faults(
    root: Path,
    values: Mapping[str, str],
    source: BundleSource | None,
    datasets: Mapping[str, set[str]] | None,
    labels: str,
    read_given: Callable[[str], Any] | None,
) -> list[UserError]:
    """Return what is wrong with where the labels of a slide come from."""
    word, text = values["labels"], values["given"]
    faults = [_no_such_word("labels", word, LABEL_WORDS)] * (word not in ("", *LABEL_WORDS))
    known = text not in ("", NO_GIVEN)
    if known and values["source"] != "synthetic":
        faults += _given_faults(root, text, read_given)
    if not text:
        try:
            known = _has_given(root, values, source, datasets)
        except UserError as error:
            return [*faults, error]
    # The configuration may ask for given labels where there are some; a row that asks for them must have them.
    if not known and ((word or labels) == "given" or word == "given_then_markers"):
        faults.append(
            UserError(
                "no given labels are known for a slide",
                found=f"labels '{word or labels}', and " + ("given 'none'" if text else _searched(values)),
                expected="the file of the labels in the column 'given'",
                fix="fill the column 'given', or set 'labels' to markers",
            )
        )
    return faults


def _given_faults(root: Path, text: str, read_given: Callable[[str], Any] | None) -> list[UserError]:
    try:
        given = parse_given(text)
        if not (root / given.path).is_file():
            return [_missing("given", given.path)]
        if read_given is not None:
            read_given(f"{root / given.path}{text.removeprefix(given.path)}")
    except UserError as error:
        return [error]
    return []


def _has_given(
    root: Path, values: Mapping[str, str], source: BundleSource | None, datasets: Mapping[str, set[str]] | None
) -> bool:
    """Return whether labels come with a slide: in its synthetic bundle, beside its output, or with its dataset."""
    if values["source"] == "synthetic":
        return values["slide"] in SYNTHETIC_GIVEN
    if source is not None and find_given(*source_folders(source, root / values["path"])) is not None:
        return True
    if values["source"] == "dataset":
        return "cell_groups" in (datasets or {}).get(values["dataset"], {"cell_groups"})
    # Where the output itself cannot be found, that is the one thing to say.
    return source is None


def _searched(values: Mapping[str, str]) -> str:
    if values["source"] == "synthetic":
        return "a synthetic slide without published labels; they come with " + ", ".join(SYNTHETIC_GIVEN)
    if values["source"] == "dataset":
        return "no address of cell_groups" + (", no *_cell_groups.csv beside the output" if values["path"] else "")
    return "no *_cell_groups.csv beside the Xenium output"


def _no_such_word(column: str, word: str, words: Sequence[str]) -> UserError:
    return UserError(
        f"the value of column {column} is not valid.{closest(word, list(words))}",
        found=word,
        expected=f"one of {', '.join(words)}, or nothing for the value of the configuration",
    )


def _no_such_tissue(organ: str) -> UserError:
    return UserError(
        "no synthetic tissue exists for an organ",
        found=organ,
        expected="one of " + ", ".join(SYNTHETIC_ORGANS),
        fix="choose one of these, or give a real slide",
    )


def _dataset_faults(values: Mapping[str, str], datasets: Mapping[str, set[str]] | None) -> list[UserError]:
    name = values["dataset"]
    if not name:
        return [UserError("a slide names no dataset", expected=f"a name of {DATASETS} in the column 'dataset'")]
    if datasets is None or name in datasets:
        return []
    return [
        UserError(
            f"the dataset '{name}' is not known.{closest(name, list(datasets))}",
            expected=f"a name of {DATASETS}",
            fix="correct the name, or add the dataset with its addresses to that table",
        )
    ]


def _local_faults(values: Mapping[str, str]) -> list[UserError]:
    faults = []
    if values["dataset"]:
        faults.append(
            UserError(
                "a local slide takes no dataset",
                found=values["dataset"],
                expected="an empty field",
                fix="empty it, or set source to 'dataset'; 'path' may then stay",
            )
        )
    if not values["path"]:
        faults.append(
            UserError("a local slide names no Xenium output", expected="its folder or outs.zip in the column 'path'")
        )
    return faults


def _member_faults(found: BundleSource, shown: str) -> list[UserError]:
    return [
        UserError(
            f"a bundle lacks {' or '.join(names)}",
            found=f"{shown} without it",
            expected="a complete Xenium output",
            fix="copy the file from the run's output",
        )
        for names in NEEDED
        if not set(names) & set(found.names)
    ]


def _he(
    root: Path, values: Mapping[str, str], found: BundleSource | None, needed: bool
) -> tuple[Path | None, list[UserError]]:
    """Return where the H&E lies on this disk, and what is wrong with it."""
    if values["he"]:
        file = root / values["he"]
        return (file, []) if file.is_file() else (None, [_missing("he", values["he"])])
    try:
        he = find_he(*source_folders(found, root / values["path"])) if found else None
    except UserError as error:
        return None, [error]
    if he is None and needed:
        return None, [
            UserError(
                "no H&E image is known for a slide",
                found="none named *_he_image.ome.tif beside the Xenium output" if found else "no address of one",
                expected="its file in the column 'he'",
            )
        ]
    return he, []


def _alignment(
    root: Path, values: Mapping[str, str], found: BundleSource | None, he: Path | None, needed: bool
) -> tuple[Path | None, list[UserError]]:
    """Return the file of the alignment, None where there is none, and what is wrong with the row."""
    text = values["alignment"]
    if text == GRID:
        return None, []
    if text:
        if (root / text).is_file():
            return root / text, []
        try:
            return None, [] if parse_matrix(text) else [_missing("alignment", text)]
        except UserError as error:
            return None, [error]
    try:
        folders, stem = source_folders(found, root / values["path"]) if found else ([], "")
        file_found = find_alignment(he, folders, stem)
    except UserError as error:
        return None, [error]
    if file_found is None and needed:
        return None, [
            UserError(
                "no alignment is known for a slide",
                found="none named *_he_imagealignment.csv beside the H&E or the Xenium output"
                if he or found
                else "no address of one",
                expected=ALIGNMENT_CHOICES,
                fix="fill the column 'alignment', or set 'align' to register",
            )
        ]
    return file_found, []


def _missing(column: str, shown: str) -> UserError:
    return UserError(
        f"the file of column '{column}' is missing",
        found=shown,
        expected={"alignment": ALIGNMENT_CHOICES, "given": f"{GIVEN_NOTATION}, or the word none"}.get(column),
        fix=f"correct the column '{column}'",
    )
