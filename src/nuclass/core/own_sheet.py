"""The sheet of one's own slides, which are typed by the study's models: every fault of its rows, with its line."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from nuclass.core.bundle_source import GRID, find_alignment, locate_bundle, parse_matrix, source_folders
from nuclass.core.errors import UserError, closest
from nuclass.core.own_cells import (
    CELLPOSE,
    DETECT,
    LARGEST_MPP,
    MISSPELT,
    Given,
    Kind,
    finds_nuclei,
    kind_of,
    method_of,
    no_alignment,
    parse_frame,
    use_faults,
)
from nuclass.core.own_tables import choose, header_of, parse_columns, unreadable
from nuclass.core.patch_rows import organ_in
from nuclass.core.schema import check_settings, raise_faults, read_yaml
from nuclass.core.sheets import Row, read_sheet

SCHEMA = "own.schema.yaml"
T = TypeVar("T")


def read_own(
    path: str, schemas: str | Path, root: str | Path = ".", organs: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Read the sheet and check every row; no sheet is no slides.

    Parameters
    ----------
    path
        The sheet, relative to ``root``; empty for none.
    schemas
        Folder of ``own.schema.yaml``.
    root
        The folder that paths start from.
    organs
        Those that the models will know: a name that is nearly one of them is misspelt.

    Returns
    -------
    By slide: ``image``, ``cells``, ``organ``, ``mpp`` (um per px, None where the file is to say it), and ``frame``,
    ``alignment``, ``columns`` and ``origin``, None where they are not stated.

    Raises
    ------
    UserError
        With all faults in one message.
    """
    if not path:
        return {}
    schema = read_yaml(Path(schemas) / SCHEMA)
    rows, faults = read_sheet(Path(root) / path, list(schema["properties"]), list(schema["required"]))
    for row in rows:
        faults += _faults(path, row, schema, Path(root), organs)
    counts = Counter(row.values["slide"] for row in rows)
    faults += [
        UserError("a slide stands in several rows", where=path, found=f"{name}, {n} times", fix="name each differently")
        for name, n in counts.items()
        if n > 1
    ]
    raise_faults(faults, "The sheet of own slides cannot be used")
    return {row.values["slide"]: _values(row) for row in rows}


def own_inputs(row: dict[str, Any], root: str | Path = ".") -> dict[str, str]:
    """Return the files that a slide is typed from, by what they are, as paths from the folder ``root``."""
    files = {"image": str(row["image"])}
    if not finds_nuclei(row["cells"]):
        files["cells"] = str(row["cells"])
    alignment = Path(root) / row["alignment"] if row["alignment"] else _beside(Path(root) / str(row["cells"]))
    if alignment is not None and alignment.is_file():
        files["alignment"] = str(alignment.relative_to(root) if alignment.is_relative_to(root) else alignment)
    return files


def _beside(cells: Path) -> Path | None:
    """Return the alignment that lies beside a Xenium run, None where there is none or the cells are of no run."""
    if not cells.exists() or kind_of(cells) != "bundle":
        return None
    return find_alignment(None, *source_folders(locate_bundle(cells), cells))


def _values(row: Row) -> dict[str, Any]:
    told: dict[str, Any] = {name: value or None for name, value in row.values.items() if name != "slide"}
    return told | {"mpp": float(told["mpp"]) if told["mpp"] else None}


def _faults(path: str, row: Row, schema: dict[str, Any], root: Path, organs: Sequence[str]) -> list[UserError]:
    where = f"{path}, line {row.line} (slide '{row.values['slide']}')"
    _, found = check_settings(row.values, schema, lambda _: where)
    found = [
        UserError(
            fault.what.replace("the value of", "the value of column", 1),
            where=where,
            found=fault.found,
            expected=fault.expected,
            fix=fault.fix,
        )
        for fault in found
    ]
    if not found:
        found += [fault for fault in (_organ_fault(row, where, organs), _mpp_fault(row, where)) if fault]
    files = {"image": row.values["image"], "cells": row.values["cells"]}
    if finds_nuclei(files["cells"]):
        del files["cells"]
    missing = [name for name, file in files.items() if file and not (root / file).exists()]
    found += [
        UserError(f"the file of column {name} is missing", where=where, found=files[name], fix="correct the path")
        for name in missing
    ]
    if row.values["cells"]:
        faults = _reading_faults(row.values, root, there="cells" not in missing)
        found += [_in_words_of_the_sheet(fault, where) for fault in faults]
    return found


def _organ_fault(row: Row, where: str, organs: Sequence[str]) -> UserError | None:
    organ = row.values["organ"].strip().casefold()
    near = "" if organ in organs or organ_in(organ) else closest(organ, list(organs), MISSPELT)
    if not near:
        return None
    return UserError("an organ is misspelt", where=f"{where}, column organ", found=f"'{organ}'", fix=near.strip())


def _mpp_fault(row: Row, where: str) -> UserError | None:
    told = row.values["mpp"]
    if not told or 0 < float(told) <= LARGEST_MPP:
        return None
    return UserError(
        "the scale of the H&E cannot be right",
        where=f"{where}, column mpp",
        found=f"{told} um/px",
        expected=f"above 0 and at most {LARGEST_MPP:g}",
        fix="write micrometres per px at full resolution: about 0.25 at 40x, 0.5 at 20x; or leave it empty",
    )


def _reading_faults(values: dict[str, str], root: Path, there: bool) -> list[UserError]:
    """Return what is wrong with how the cells are to be read, as far as the first lines of files tell."""
    faults: list[UserError] = []
    cells = values["cells"]
    place = cells if finds_nuclei(cells) else root / cells
    kind = _tried(faults, lambda: kind_of(place)) if there else None
    given = _tried(faults, lambda: parse_frame(values["frame"] or None))
    columns = _tried(faults, lambda: parse_columns(values["columns"] or None))
    if values["alignment"]:
        _tried(faults, lambda: _check_alignment(values["alignment"], root))
    if kind == DETECT and method_of(cells) == CELLPOSE:
        faults.append(
            UserError(
                "Detection by cellpose needs its weights, which the sheet cannot name",
                where="--cells",
                found=cells,
                expected=f"{DETECT}, or a file of positions",
                fix="find the nuclei by the command nuclass predict, which takes them",
            )
        )
    if kind is None or faults:
        return faults
    if kind == "csv":
        given = _tried(faults, lambda: _frame_of_table(root / cells, columns or {}, given))
    options = {name: values[name] or None for name in ("alignment", "columns", "origin")}
    faults += use_faults(cells, kind, given, options)
    if not faults:
        _tried(faults, lambda: _check_run(root / cells, kind, given, bool(values["alignment"])))
    return faults


def _tried(faults: list[UserError], call: Callable[[], T]) -> T | None:
    """Return what a call gives; a mistake that it tells joins the faults."""
    try:
        return call()
    except UserError as fault:
        faults.append(fault)
        return None


def _frame_of_table(file: Path, columns: dict[str, str], given: Given | None) -> Given | None:
    """Return the frame that the user states or the columns of a table of text say; they must be there."""
    try:
        names = header_of(file).names
    except (csv.Error, ValueError) as error:
        raise unreadable(file, error) from error
    chosen = choose(file, names, columns, given)
    return given or Given(str(chosen.frame))


def _check_alignment(text: str, root: Path) -> None:
    if text != GRID and not (root / text).is_file() and parse_matrix(text) is None:
        raise UserError(
            "the file of column alignment is missing",
            where="--alignment",
            found=text,
            expected="a file, the word grid (the H&E lies on the morphology pixels), or the numbers of a matrix",
        )


def _check_run(place: Path, kind: Kind, given: Given | None, aligned: bool) -> None:
    """Raise where a folder or zip is no Xenium run, or cells of one have no alignment, given or beside the run."""
    if kind == "bundle":
        folders, stem = source_folders(locate_bundle(place), place)
        aligned = aligned or find_alignment(None, folders, stem) is not None
    elif given is None or not given.needs_alignment:
        return
    if not aligned:
        raise no_alignment(place)


def _in_words_of_the_sheet(fault: UserError, where: str) -> UserError:
    """Return a fault of the command's options as one of the sheet's columns, which have the same names."""

    def told(text: object | None) -> str | None:
        return None if text is None else re.sub(r"--(frame|columns|alignment|origin|cells)\b", r"\1", str(text))

    place = "" if fault.where is None else re.sub(r"^--(\w+).*$", r"column \1", str(fault.where))
    return UserError(
        str(told(fault.what)),
        where=f"{where}, {told(place)}" if place else where,
        found=told(fault.found),
        expected=told(fault.expected),
        fix=told(fault.fix),
    )
