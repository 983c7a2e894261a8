"""Read the list of data sets that models are evaluated on: the original's holdout JSON, with every fault at once.

The file is an object, name -> ``{root, mode, tissue}``, or a list of these with ``name``. ``root`` is a folder with
``annotations.json``, ``patches_224x224.h5`` and ``patches_1024x1024.h5``, or a slide's folder in the results of this
workflow (``results/slides/NAME``). ``mode`` is ``xenium_exact``. ``tissue`` is one of the model's organs, or
``unknown``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from nuclass.core.errors import UserError, closest
from nuclass.core.files import read_json
from nuclass.core.log import get_logger
from nuclass.core.patch_rows import PARTS, find_patches, organ_in, patch_names
from nuclass.data.vocabulary import UNKNOWN

_log = get_logger(__name__)
MODE = "xenium_exact"
KEYS = ("name", "root", "mode", "tissue")
STORE, CELLS = "he.ome.zarr", "cells.parquet"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_PATTERN = '{"ovary": {"root": "/data/ovary", "mode": "xenium_exact", "tissue": "ovary"}, ...}'


@dataclass(frozen=True)
class Holdout:
    """One data set to evaluate models on.

    Attributes
    ----------
    name
        Names the folder of its results.
    root
        Where its files lie.
    organ
        The model's organ, or ``unknown``.
    of_study
        Whether ``root`` is a slide's folder in the results of this workflow, and not one of patch files.
    """

    name: str
    root: Path
    organ: str
    of_study: bool = False


def read_holdouts(
    path: str | Path, *, organs: Sequence[str], windows: Mapping[str, int], select: Sequence[str] = ()
) -> list[Holdout]:
    """Read and check a list of data sets.

    Parameters
    ----------
    path
        The JSON file. A relative ``root`` starts from the current folder, else from the folder of this file.
    organs
        The model's organs. A tissue that it does not know is told and counts as ``unknown``, where it has that.
    windows
        Sides of the model's windows in px, ``local`` and ``global``, which name the files of patches.
    select
        Names to keep; empty keeps all. Files and tissues of the others are not looked at.

    Raises
    ------
    UserError
        The file is missing or not JSON; or, all in one, whatever is wrong in it, and names in ``select`` that it does
        not have.
    """
    file = Path(path)
    faults: list[str] = []
    entries = _entries(file, faults)
    names = [name for name, _ in entries]
    faults += _repeated(names)
    for name in dict.fromkeys(select):
        if name not in names:
            faults.append(f"--select {name}: no such data set.{closest(name, names)} There are: {', '.join(names)}")
    chosen = []
    for name, entry in entries:
        known = _check_keys(name, entry, faults)
        if select and name not in select:
            continue
        root, of_study = _root(name, known.get("root"), file, windows, faults)
        organ = _organ(name, known.get("tissue"), organs, faults)
        chosen.append(Holdout(name, root, organ, of_study))
    if not entries and not faults:
        faults.append(f"no data set; expected {_PATTERN}")
    if faults:
        number = f"{len(faults)} faults" if len(faults) > 1 else "1 fault"
        raise UserError(
            "The list of data sets to evaluate on cannot be used",
            where=file,
            found="\n    ".join([number, *faults]),
            fix="correct these entries; all others are sound" if len(entries) > 1 else "correct the file",
        )
    return chosen


def _entries(file: Path, faults: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return name and content of each entry, those of the same name too."""
    read_json(file)
    data = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_Pairs)
    if isinstance(data, list) and not isinstance(data, _Pairs):
        pairs = [(_name_in(item, number), item) for number, item in enumerate(data, start=1)]
        nameless = [name for name, item in pairs if isinstance(item, _Pairs) and name != dict(item).get("name")]
        faults += [f"{name}: no name; expected in a list: name, such as lung_h" for name in nameless]
    elif isinstance(data, _Pairs):
        pairs = list(data)
    else:
        faults.append(f"{_kind(data)} in place of data sets; expected {_PATTERN}")
        return []
    entries = []
    for name, content in pairs:
        if not _NAME.fullmatch(name):
            faults.append(f"the name '{name}': expected letters, digits, and . _ + - after the first")
        if not isinstance(content, _Pairs):
            faults.append(f"{name}: {_kind(content)}; expected an object with root, mode and tissue")
            continue
        for key, number in Counter(key for key, _ in content).items():
            if number > 1:
                faults.append(f"{name}.{key}: stands {number} times; expected once")
        entries.append((name, dict(content)))
    return entries


class _Pairs(list[tuple[str, Any]]):
    """The keys and values of a JSON object, with those that repeat."""


def _name_in(item: Any, number: int) -> str:
    name = dict(item).get("name") if isinstance(item, _Pairs) else None
    return str(name) if isinstance(name, str) and name else f"entry_{number}"


def _kind(value: Any) -> str:
    if isinstance(value, _Pairs | list):
        return "an object" if isinstance(value, _Pairs) else "a list"
    kinds = {str: "the text", bool: "the value", int: "the number", float: "the number"}
    return f"{kinds[type(value)]} {str(value)[:40]}" if type(value) in kinds else "nothing (null)"


def _repeated(names: Sequence[str]) -> list[str]:
    told = [f"{name}: stands {n} times; expected once" for name, n in Counter(names).items() if n > 1]
    alike = Counter(name.casefold() for name in set(names))
    return told + [
        f"{name}: differs from another name in upper and lower case alone" for name, n in alike.items() if n > 1
    ]


def _check_keys(name: str, entry: dict[str, Any], faults: list[str]) -> dict[str, str]:
    """Return the values that are text; tell keys that are unknown, missing or no text, and another mode."""
    for key in entry:
        if key not in KEYS:
            faults.append(f"{name}.{key}: an unknown key.{closest(key, list(KEYS))} Valid: root, mode, tissue")
    known = {}
    for key, expected in (("root", "a folder"), ("mode", f"'{MODE}'"), ("tissue", "an organ of the model, or unknown")):
        value = entry.get(key)
        if key not in entry:
            faults.append(f"{name}.{key}: missing; expected {expected}")
        elif not isinstance(value, str) or not value.strip():
            faults.append(f"{name}.{key}: {json.dumps(value)}; expected {expected}")
        else:
            known[key] = value.strip()
    mode = known.get("mode")
    if mode is not None and mode != MODE:
        near = f" Did you mean '{MODE}'?" if get_close_matches(mode, [MODE]) else ""
        faults.append(f"{name}.mode: '{mode}'; expected '{MODE}', the only one.{near}")
    return known


def _root(name: str, text: str | None, file: Path, windows: Mapping[str, int], faults: list[str]) -> tuple[Path, bool]:
    """Return the folder of a data set, and whether it is a slide's of this workflow."""
    if text is None:
        return Path(), False
    where = f"{name}.root"
    try:
        given = Path(text).expanduser()
        root = given if given.exists() or given.is_absolute() else file.parent / given
        there = root.exists()
    except (OSError, RuntimeError, ValueError) as error:
        faults.append(f"{where}: {text[:60]!r} is no path ({error})")
        return Path(), False
    if not there:
        tried = "" if given.is_absolute() else f", neither from here nor from {file.parent}"
        near = _nearest_folder(root)
        faults.append(f"{where}: nothing at {given}{tried}; expected a folder.{near}")
        return root, False
    if (root / CELLS).is_file():
        if not (root / STORE).exists() and not (root / "patches.json").is_file():
            faults.append(f"{where}: {root} has {CELLS} but neither {STORE} nor patches.json")
        return root, True
    divided = [part for part in PARTS if (root / part).is_dir() and _any_file(root / part, windows)]
    if divided and not _any_file(root, windows):
        parts = " or ".join(str(root / part) for part in divided)
        faults.append(f"{where}: {root} is divided into {' and '.join(divided)}; expected one part: {parts}")
        return root, False
    try:
        find_patches(root, windows)
    except UserError as error:
        told = error.found if error.found is not None else error.what
        faults.append(f"{where}: {told} in {root}; expected {', '.join(patch_names(windows).values())}")
    return root, False


def _any_file(folder: Path, windows: Mapping[str, int]) -> bool:
    return any((folder / name).is_file() for name in patch_names(windows).values())


def _nearest_folder(root: Path) -> str:
    if not root.parent.is_dir():
        return ""
    return closest(root.name, sorted(path.name for path in root.parent.iterdir() if path.is_dir()))


def _organ(name: str, tissue: str | None, organs: Sequence[str], faults: list[str]) -> str:
    """Return the model's organ that a tissue names; ``unknown`` for one that it does not know."""
    known = [organ for organ in organs if organ != UNKNOWN]
    if tissue is None:
        return UNKNOWN
    wanted = tissue.casefold()
    if wanted in known:
        return wanted
    named = organ_in(tissue)
    if named in known:
        return named
    near = "" if named or wanted == UNKNOWN else closest(wanted, known)
    valid = ", ".join([*known, *([UNKNOWN] if UNKNOWN in organs else [])])
    if near or UNKNOWN not in organs:
        why = "the model has no place for other organs" if UNKNOWN not in organs else "no organ of the model"
        faults.append(f"{name}.tissue: '{tissue}', {why}; expected {valid}.{near}")
    elif wanted != UNKNOWN:
        _log.warning(
            "%s: the model did not see the organ '%s' (%s); it takes it as unknown", name, tissue, ", ".join(known)
        )
    return UNKNOWN
