"""The marker table: which genes speak for a class, which against it, and where the class can occur."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from nuclass.core.errors import UserError, closest
from nuclass.core.names import ORGANS
from nuclass.labels.ontology import CLASSES

COLUMNS = ("class", "gene", "sign", "organs", "source")
MIN_POSITIVE = 3
"""A panel must hold this many positive markers of a class for the class to be found."""


@dataclass(frozen=True)
class MarkerSet:
    """The markers of one class that a panel holds."""

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]


def load_markers(path: str | Path) -> pd.DataFrame:
    """Read and check a marker table (tab-separated: class, gene, sign, organs, source).

    ``organs`` is ``*`` or names joined by commas. All faults are reported at once.
    """
    file = Path(path)
    if not file.exists():
        raise UserError("The marker table is missing", where=file, fix="check the key 'markers' of the configuration")
    table = pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False)
    if missing := [name for name in COLUMNS if name not in table]:
        raise UserError(
            "The marker table lacks columns", where=file, found=", ".join(table.columns), expected=", ".join(COLUMNS),
            fix=f"add {', '.join(missing)}",
        )  # fmt: skip
    faults = []
    for row, record in enumerate(table.to_dict("records"), start=2):
        if record["class"] not in CLASSES:
            faults.append(f"row {row}: unknown class '{record['class']}'.{closest(record['class'], list(CLASSES))}")
        if record["sign"] not in ("positive", "negative"):
            faults.append(f"row {row}: sign '{record['sign']}' is neither 'positive' nor 'negative'")
        for organ in record["organs"].split(","):
            if organ != "*" and organ not in ORGANS:
                faults.append(f"row {row}: unknown organ '{organ}'.{closest(organ, list(ORGANS))}")
    if faults:
        raise UserError(
            "The marker table has faults",
            where=file,
            found="; ".join(faults),
            expected="a class of the study, sign positive or negative, organs of the study or *",
            fix="correct these rows",
        )
    return table


def marker_sets(table: pd.DataFrame, organ: str, genes: list[str]) -> tuple[list[MarkerSet], dict[str, str]]:
    """Return the classes that can be found in an organ with a panel, and why the others cannot.

    Parameters
    ----------
    table
        From :func:`load_markers`.
    organ
        An organ of the study.
    genes
        The genes of the panel.
    """
    panel = set(genes)
    found, absent = [], {}
    for name, rows in table.groupby("class", sort=True):
        organs = {organ for entry in rows["organs"] for organ in entry.split(",")}
        positive = tuple(g for g in rows.loc[rows["sign"] == "positive", "gene"] if g in panel)
        negative = tuple(g for g in rows.loc[rows["sign"] == "negative", "gene"] if g in panel)
        if "*" not in organs and organ not in organs:
            absent[str(name)] = f"does not occur in {organ}"
        elif len(positive) < MIN_POSITIVE:
            absent[str(name)] = f"the panel holds {len(positive)} of its markers; {MIN_POSITIVE} are needed"
        else:
            found.append(MarkerSet(str(name), positive, negative))
    return found, absent
