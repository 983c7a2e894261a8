"""The sheet of one's own slides, which are typed by the study's models: every fault of its rows, with its line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from nuclass.core.errors import UserError
from nuclass.core.schema import check_settings, raise_faults, read_yaml
from nuclass.core.sheets import Row, read_sheet

SCHEMA = "own.schema.yaml"
DETECT = "detect"
"""In place of a file of positions: the nuclei are looked for in the image."""


def read_own(path: str, schemas: str | Path, root: str | Path = ".") -> dict[str, dict[str, Any]]:
    """Read the sheet and check every row; no sheet is no slides.

    Parameters
    ----------
    path
        The sheet, relative to ``root``; empty for none.
    schemas
        Folder of ``own.schema.yaml``.
    root
        The folder that paths start from.

    Returns
    -------
    By slide: ``image``, ``cells``, ``organ``, ``mpp`` (um per px, None where the file is to say it), and ``frame``,
    ``alignment`` and ``columns``, None where they are not stated.

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
        faults += _faults(path, row, schema, Path(root))
    counts = Counter(row.values["slide"] for row in rows)
    faults += [
        UserError("a slide stands in several rows", where=path, found=f"{name}, {n} times", fix="name each differently")
        for name, n in counts.items()
        if n > 1
    ]
    raise_faults(faults, "The sheet of own slides cannot be used")
    return {row.values["slide"]: _values(row) for row in rows}


def own_inputs(row: dict[str, Any]) -> dict[str, str]:
    """Return the files that a slide is typed from, by what they are."""
    files = {"image": str(row["image"])}
    if not _finds_nuclei(row["cells"]):
        files["cells"] = str(row["cells"])
    if row["alignment"] and Path(row["alignment"]).is_file():
        files["alignment"] = str(row["alignment"])
    return files


def _values(row: Row) -> dict[str, Any]:
    told: dict[str, Any] = {name: value or None for name, value in row.values.items() if name != "slide"}
    return told | {"mpp": float(told["mpp"]) if told["mpp"] else None}


def _faults(path: str, row: Row, schema: dict[str, Any], root: Path) -> list[UserError]:
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
    files = {"image": row.values["image"], "cells": row.values["cells"]}
    if _finds_nuclei(files["cells"]):
        del files["cells"]
    missing = [name for name, file in files.items() if file and not (root / file).exists()]
    found += [
        UserError(f"the file of column {name} is missing", where=where, found=files[name], fix="correct the path")
        for name in missing
    ]
    return found


def _finds_nuclei(cells: str) -> bool:
    return cells.partition(":")[0] == DETECT
