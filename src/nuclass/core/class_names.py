"""How classes, cohorts and ways to fuse are called, and in which order they stand: in tables and figures alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from nuclass.core.names import FUSED, GLOBAL, LOCAL, MEAN, ORACLE
from nuclass.core.own_files import own_file
from nuclass.core.readings import ALL_CLASSES
from nuclass.core.sheets import read_table

SHEET = "resources/classes.tsv"
ALL = "all"
WAYS = (LOCAL, GLOBAL, MEAN, FUSED, "product", "max_confidence", "stacking", "safe", ORACLE)
"""The branches and every way to fuse them, in the order of tables and figures."""
ORGAN_USES = {"film": "FiLM", "concat": "Concatenation", "none": "No organ"}
"""How the local model uses the organ, by the setting ``local.model.organ``."""


def class_title(name: str) -> str:
    """Return how a class is called: ``Endothelial_TumorAssociated`` is ``Endothelial Tumor Associated``."""
    if name == ALL_CLASSES:
        return "All classes"
    return name.replace("_", " ").replace("TumorA", "Tumor A")


def cohort_title(name: str) -> str:
    """Return how a cohort is called, ``all`` being all of them pooled."""
    return "All cohorts" if name == ALL else name.replace("_", " ")


def class_groups(sheet: str | Path | None = None) -> dict[str, str]:
    """Return class -> group in the order of ``resources/classes.tsv``, the study's own or the one that comes along."""
    rows = read_table(own_file(SHEET) if sheet is None else sheet)
    return {row["class"]: row.get("group", "") for row in rows if row.get("class")}


def class_order(names: Iterable[str], groups: Mapping[str, str] | None = None) -> list[str]:
    """Return the names, each once, group by group in the sheet's order; classes it lacks come last, by name.

    ``groups`` is from :func:`class_groups`; None reads the sheet.
    """
    known = class_groups() if groups is None else groups
    ranks = {group: rank for rank, group in enumerate(dict.fromkeys(known.values()))}
    sheet = sorted(known, key=lambda name: ranks[known[name]])
    found = set(names)
    return [name for name in sheet if name in found] + sorted(found - set(sheet))
