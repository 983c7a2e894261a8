"""One table from every name under which a label may arrive to a cell type and a class of the study."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.errors import UserError, closest
from nuclass.core.own_files import own_file
from nuclass.core.schema import read_yaml

CLASSES = (
    "Acinar",
    "B_Cell",
    "Cardiomyocyte",
    "Ductal",
    "Endocrine",
    "Endothelial",
    "Endothelial_TumorAssociated",
    "Epithelial_Airway",
    "Epithelial_Alveolar",
    "Epithelial_Malignant",
    "Fibroblast",
    "Macrophage",
    "Mast_Cell",
    "Smooth_Muscle",
    "T_Cell",
    "Tumor_Associated_Fibroblast",
)
"""The 16 classes of the study, in the order of a full model's output."""

LINEAGES = (
    "Adipose",
    "Endothelial",
    "Epithelial",
    "Erythroid",
    "Fibroblast",
    "Gonadal",
    "Haematopoietic",
    "Lymphoid_B",
    "Lymphoid_T",
    "Mast",
    "Melanocytic",
    "Mesothelial",
    "Mural",
    "Muscle",
    "Myeloid",
    "Neural",
    "Plasma",
)
"""Broad compartments; two types of one lineage are harder to tell apart than two of different ones."""

UNKNOWN = "unknown label"
DEFAULT = Path("resources/label_ontology.yaml")

_KEYS = ("class", "lineage", "synonyms", "note")
_NEAREST = 3


@dataclass(frozen=True)
class CellType:
    """One type: its class of the study ("" = none), its lineage, and why it has no class."""

    name: str
    class_name: str
    lineage: str
    note: str


@dataclass(frozen=True)
class Ontology:
    """Cell types by name, every known spelling with its type, and the names that are no type with the reason."""

    cell_types: dict[str, CellType]
    synonyms: dict[str, str]
    left_out: dict[str, str]

    @cached_property
    def _loose(self) -> dict[str, str]:
        return {plain(name): name for name in (*self.synonyms, *self.left_out)}

    def known(self, name: str) -> str:
        """Return the spelling of this ontology that a raw name means, or "" where it means none."""
        if name in self.synonyms or name in self.left_out:
            return name
        return self._loose.get(plain(name), "")

    def class_of(self, cell_type: str) -> str:
        """Return the class of a cell type, "" where it has none."""
        return self.cell_types[cell_type].class_name

    def resolve(self, raw: pd.Series) -> pd.DataFrame:
        """Map raw labels to cell types and classes.

        Names are found exactly, or without regard to case, blanks, underscores, hyphens and a plural s.

        Returns
        -------
        Columns ``cell_type``, ``class`` and ``note``, with the index of ``raw``. ``note`` says why there is no
        class: the note of the type, the reason why the name is left out, or "unknown label". All three are
        empty where ``raw`` is missing or empty.
        """
        names = raw.astype("string").fillna("").str.strip().astype(object)
        found = {name: self._resolve(str(name)) for name in names.unique()}
        rows = [found[name] for name in names]
        return pd.DataFrame(rows, columns=["cell_type", "class", "note"], index=raw.index, dtype=object)

    def _resolve(self, name: str) -> tuple[str, str, str]:
        if not name:
            return "", "", ""
        spelling = self.known(name)
        if spelling in self.left_out:
            return "", "", self.left_out[spelling]
        if spelling not in self.synonyms:
            return "", "", UNKNOWN
        kind = self.cell_types[self.synonyms[spelling]]
        return kind.name, kind.class_name, "" if kind.class_name else kind.note

    def unmapped(self, raw: pd.Series) -> pd.DataFrame:
        """List the raw labels that this ontology does not know.

        Returns
        -------
        Columns ``raw_label``, ``cells`` and ``nearest`` (up to three known names, joined by "; "), most cells first.
        """
        counts = raw.astype("string").fillna("").str.strip().value_counts()
        unknown = [(str(name), int(n)) for name, n in counts.items() if name and not self.known(str(name))]
        rows = [(name, n, "; ".join(self.nearest(name))) for name, n in sorted(unknown, key=lambda x: (-x[1], x[0]))]
        return pd.DataFrame(rows, columns=["raw_label", "cells", "nearest"])

    def nearest(self, name: str) -> list[str]:
        """Return up to three known names that are spelt most like ``name``, one of each type."""
        from difflib import get_close_matches

        result: dict[str, str] = {}
        for match in get_close_matches(plain(name), list(self._loose), n=5 * _NEAREST, cutoff=0.6):
            spelling = self._loose[match]
            result.setdefault(self.synonyms.get(spelling, spelling), spelling)
        return list(result.values())[:_NEAREST]


def plain(name: str) -> str:
    """Return a name without case, blanks, underscores, hyphens and a plural s at its end."""
    short = re.sub(r"[\s_\-]+", "", name.casefold())
    return short.removesuffix("s") if len(short) > 1 else short


def default_ontology() -> Path:
    """Return the path of the ontology that comes with the project: of this folder's study, else the repository's."""
    return own_file(DEFAULT)


def load_ontology(path: str | Path) -> Ontology:
    """Read and check an ontology (YAML with ``cell_types`` and ``left_out``).

    Raises
    ------
    UserError
        With all faults at once: an unknown class, lineage or key, a lineage or a reason that is missing, a name
        under two types.
    """
    file = Path(path)
    data = _read(file)
    faults: list[str] = []
    types: dict[str, CellType] = {}
    owners: dict[str, list[tuple[str, str]]] = {}
    for name, entry in _mapping(data.get("cell_types"), "cell_types", faults).items():
        kind, spellings = _cell_type(str(name), entry, faults)
        types[kind.name] = kind
        for spelling in dict.fromkeys((kind.name, *spellings)):
            owners.setdefault(plain(spelling), []).append((spelling, kind.name))
    if not types and not faults:
        faults.append("cell_types: there is no cell type")
    left_out: dict[str, str] = {}
    for name, reason in _mapping(data.get("left_out", {}), "left_out", faults).items():
        left_out[str(name)] = str(reason or "")
        owners.setdefault(plain(str(name)), []).append((str(name), "left_out"))
        if not reason:
            faults.append(f"left_out: '{name}' has no reason")
    faults += _double(owners)
    if faults:
        raise UserError(
            "The ontology has faults",
            where=file,
            found="; ".join(faults),
            expected="cell_types with class (one of the study's, or null), lineage and synonyms; a name only once",
            fix="correct these entries",
        )
    synonyms = {spelling: owner for pairs in owners.values() for spelling, owner in pairs if owner != "left_out"}
    return Ontology(types, synonyms, left_out)


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError("The ontology is missing", where=file, fix="check the key 'ontology' of the configuration")
    data = read_yaml(file)
    if not isinstance(data, dict) or "cell_types" not in data:
        raise UserError(
            "The ontology has no cell types",
            where=file,
            found=f"the keys {', '.join(map(str, data))}" if isinstance(data, dict) else type(data).__name__,
            expected="the keys cell_types and left_out",
            fix="take resources/label_ontology.yaml as a pattern",
        )
    return data


def _mapping(value: Any, key: str, faults: list[str]) -> dict[Any, Any]:
    if isinstance(value, dict):
        return value
    if value is not None:
        faults.append(f"{key}: {type(value).__name__} where names with entries are expected")
    return {}


def _cell_type(name: str, entry: Any, faults: list[str]) -> tuple[CellType, list[str]]:
    if not isinstance(entry, dict):
        faults.append(f"{name}: no class and no lineage")
        return CellType(name, "", "", ""), []
    for key in entry:
        if key not in _KEYS:
            faults.append(f"{name}: unknown key '{key}'.{closest(str(key), list(_KEYS))}")
    class_name, lineage, note = (str(entry.get(key) or "") for key in ("class", "lineage", "note"))
    if "class" not in entry:
        faults.append(f"{name}: the class is missing (null where the study has none)")
    elif class_name and class_name not in CLASSES:
        faults.append(f"{name}: unknown class '{class_name}'.{closest(class_name, list(CLASSES))}")
    if not lineage:
        faults.append(f"{name}: the lineage is missing")
    elif lineage not in LINEAGES:
        faults.append(f"{name}: unknown lineage '{lineage}'.{closest(lineage, list(LINEAGES))}")
    if not class_name and not note and "class" in entry:
        faults.append(f"{name}: a type without a class needs a note that says why")
    synonyms = entry.get("synonyms") or []
    if not isinstance(synonyms, list) or not all(isinstance(item, str) for item in synonyms):
        faults.append(f"{name}: synonyms is no list of names")
        synonyms = []
    return CellType(name, class_name, lineage, note), synonyms


def _double(owners: dict[str, list[tuple[str, str]]]) -> Iterable[str]:
    for pairs in owners.values():
        if len({owner for _, owner in pairs}) > 1:
            yield (
                "'"
                + "', '".join(dict.fromkeys(name for name, _ in pairs))
                + "': one name under "
                + " and ".join(dict.fromkeys(owner for _, owner in pairs))
            )
