"""The marker table: which genes speak for a cell type, which against it, and in which organs."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.errors import UserError, closest
from nuclass.core.names import ORGANS
from nuclass.labels.ontology import Ontology, default_ontology, load_ontology

COLUMNS = ("cell_type", "gene", "sign", "organs", "source")
POSITIVE, NEGATIVE = "positive", "negative"
MIN_POSITIVE = 3
"""A panel must hold this many positive markers of a cell type for the type to be found."""
MIN_OWN = 2
"""So many of them must be no positive marker of the rival, for each rival with which it shares any."""

_KNOWN_SHARE = 0.02
_OTHER_SHARE = 0.5


@dataclass(frozen=True)
class MarkerSet:
    """The markers of one cell type that count in an organ and that a panel holds."""

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]


def load_markers(
    path: str | Path, extra: str | Path | None = None, ontology: Ontology | str | Path | None = None
) -> pd.DataFrame:
    """Read and check a marker table (tab-separated: cell_type, gene, sign, organs, source; lines with # are notes).

    Parameters
    ----------
    path
        The table. ``sign`` is ``positive`` or ``negative``, ``organs`` is ``*`` or names joined by commas. Rows of
        one cell type may name different organs: a row counts where its own organs hold the organ of the slide.
    extra
        A table of the user's with the same columns, which may have no row yet. Its rows are added; a cell type and
        gene that stand in both tables are taken from this one.
    ontology
        Names of the cell types; by default the ontology of the project.

    Returns
    -------
    The rows of both tables, as text, in the order of the files.

    Raises
    ------
    UserError
        With all faults of all tables at once, each with its file and row.
    """
    if not isinstance(ontology, Ontology):
        ontology = load_ontology(ontology or default_ontology())
    files = [Path(path)] + ([Path(extra)] if extra else [])
    faults: list[str] = []
    tables = []
    for key, file in zip(("markers", "labels.extra_markers"), files, strict=False):
        table = _read(file, key)
        found = _faults(table, ontology)
        if table.empty and key == "markers":
            found.append("there is no row")
        faults += [f"{file.name}, {fault}" for fault in found] if len(files) > 1 else found
        tables.append(table)
    if faults:
        unknown = any("unknown cell type" in fault for fault in faults)
        raise UserError(
            "The marker table has faults",
            where=", ".join(map(str, files)),
            found="; ".join(faults),
            expected="a cell type of the ontology, a gene once a type, sign positive or negative, "
            "organs of the study or *, and a source",
            fix="correct these rows"
            + ("; a type of your own needs an entry in the ontology first (key 'ontology')" if unknown else ""),
        )
    table = pd.concat(tables, ignore_index=True)
    return table.drop_duplicates(["cell_type", "gene"], keep="last").sort_index().reset_index(drop=True)


def _read(file: Path, key: str) -> pd.DataFrame:
    if not file.is_file():
        raise UserError("The marker table is missing", where=file, fix=f"check the key '{key}' of the configuration")
    try:
        rows = _rows(file)
    except ValueError as error:
        raise UserError(
            "The marker table cannot be read",
            where=file,
            found=" ".join(str(error).split()),
            expected="text in UTF-8, columns separated by tabs: " + ", ".join(COLUMNS),
            fix="take resources/markers/markers.tsv as a pattern",
        ) from error
    names = list(rows.pop(min(rows)))
    content = [[*row, *[""] * (len(names) - len(row))] for row in rows.values()]
    table = pd.DataFrame(content, columns=names, index=list(rows), dtype=str)
    if missing := [name for name in COLUMNS if name not in table]:
        commas = len(table.columns) == 1 and "," in str(table.columns[0])
        raise UserError(
            "The marker table lacks columns",
            where=file,
            found=", ".join(map(str, table.columns)),
            expected=", ".join(COLUMNS),
            fix="separate the columns by tabs" if commas else f"add {', '.join(missing)}",
        )
    return table.loc[:, list(COLUMNS)].apply(lambda column: column.str.strip())


def _rows(file: Path) -> dict[int, list[str]]:
    """Return the fields of each line by its number in the file, without notes and empty lines.

    Raises
    ------
    ValueError
        Where it is no text, has no line of names or one with a name twice, a row with more fields, an open quote.
    """
    rows = {}
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        # A spreadsheet puts notes in quotes, and tabs at the ends of lines.
        if line.strip() and not line.lstrip(' "').startswith("#"):
            try:
                rows[number] = next(csv.reader([line.rstrip("\t")], delimiter="\t", strict=True))
            except csv.Error as error:
                raise ValueError(f"row {number}: {error}") from error
    if not rows:
        raise ValueError("no line of column names")
    names = rows[min(rows)]
    if len(set(names)) < len(names):
        raise ValueError(f"a column stands twice: {', '.join(names)}")
    width = len(names)
    if long := [
        f"row {number}: {len(row)} values in {width} columns" for number, row in rows.items() if len(row) > width
    ]:
        raise ValueError("; ".join(long))
    return rows


def _faults(table: pd.DataFrame, ontology: Ontology) -> list[str]:
    faults: list[str] = []
    first: dict[tuple[str, str], tuple[int, str]] = {}
    types = list(ontology.cell_types)
    for row, record in zip(table.index, table.to_dict("records"), strict=True):
        name, gene, sign = record["cell_type"], record["gene"], record["sign"]
        faults += [f"row {row}: {column} is empty" for column in COLUMNS if not record[column]]
        if name and name not in ontology.cell_types:
            faults.append(f"row {row}: unknown cell type '{name}'.{_nearest(name, types, ontology)}")
        if sign and sign not in (POSITIVE, NEGATIVE):
            faults.append(f"row {row}: sign '{sign}' is neither 'positive' nor 'negative'")
        faults += [f"row {row}: {fault}" for fault in _organ_faults(record["organs"])]
        if not name or not gene:
            continue
        if (name, gene) in first:
            before, other = first[name, gene]
            faults.append(
                f"row {row}: {gene} of {name} stands in row {before} already"
                + (f", there as {other}, here as {sign}" if other != sign else "")
            )
        first.setdefault((name, gene), (row, sign))
    return faults


def _nearest(name: str, types: list[str], ontology: Ontology) -> str:
    known = ontology.synonyms.get(ontology.known(name), "")
    return f" Did you mean '{known}'?" if known else closest(name, types)


def _organ_faults(entry: str) -> list[str]:
    organs = [organ.strip() for organ in entry.split(",")] if entry else []
    if "*" in organs and len(organs) > 1:
        return [f"organs '{entry}': '*' means all organs and stands alone"]
    doubled = [organ for organ, times in Counter(organs).items() if times > 1]
    faults = [f"organ '{organ}' stands twice" for organ in doubled]
    return faults + [
        f"unknown organ '{organ}'.{closest(organ, list(ORGANS))}"
        for organ in dict.fromkeys(organs)
        if organ != "*" and organ not in ORGANS
    ]


def rows_of(table: pd.DataFrame, organ: str) -> pd.DataFrame:
    """Return the rows of a marker table that count in an organ."""
    organs = table["organs"].str.split(r"\s*,\s*")
    return table[[entry == ["*"] or organ in entry for entry in organs]]


def marker_sets(table: pd.DataFrame, organ: str, genes: Sequence[str]) -> tuple[list[MarkerSet], dict[str, str]]:
    """Return the cell types that can be found in an organ with a panel, and why the others cannot.

    A type is a candidate where the panel holds :data:`MIN_POSITIVE` of its positive markers and where at least
    :data:`MIN_OWN` of these are no positive markers of the candidate that it shares most with. Of two types that
    share too much, the one with fewer markers of its own is left out; where these are as many, the one with fewer
    markers on the panel, then in the table.

    Parameters
    ----------
    table
        From :func:`load_markers`.
    organ
        An organ of the study.
    genes
        The genes of the panel.

    Returns
    -------
    The candidates sorted by name, and for each other type of the table the reason.
    """
    panel = set(genes)
    counting = rows_of(table, organ)
    held = counting[counting["gene"].isin(panel)]
    sets: dict[str, MarkerSet] = {}
    absent: dict[str, str] = {}
    for name in sorted(table["cell_type"].unique()):
        rows = held[held["cell_type"] == name]
        positive, negative = (tuple(rows.loc[rows["sign"] == sign, "gene"]) for sign in (POSITIVE, NEGATIVE))
        if not ((counting["cell_type"] == name) & (counting["sign"] == POSITIVE)).any():
            absent[name] = f"does not occur in {organ}"
        elif len(positive) < MIN_POSITIVE:
            absent[name] = f"the panel holds {len(positive)} of its markers; {MIN_POSITIVE} are needed"
        else:
            sets[name] = MarkerSet(name, positive, negative)
    sizes = Counter(table.loc[table["sign"] == POSITIVE, "cell_type"])
    while (twin := _twin(sets, sizes)) is not None:
        name, rival, own = twin
        absent[name] = f"the panel cannot tell it from {rival}, which lacks {own} of its markers; {MIN_OWN} are needed"
        del sets[name]
    return list(sets.values()), dict(sorted(absent.items()))


def _twin(sets: dict[str, MarkerSet], sizes: Counter[str]) -> tuple[str, str, int] | None:
    """Return the type with the fewest markers that its nearest rival lacks, if they are too few."""
    close = []
    for name, one in sets.items():
        for rival, other in sets.items():
            shared = len({*one.positive} & {*other.positive})
            own = len(one.positive) - shared
            if name != rival and shared and own < MIN_OWN:
                close.append((own, len(one.positive), sizes[name], name, rival))
    return (min(close)[3], min(close)[4], min(close)[0]) if close else None


def check_species(genes: Sequence[str], table: pd.DataFrame, where: object = None) -> None:
    """Stop where the genes of a panel are those of another species than the marker table's.

    Human genes are written in capitals (CD3E), those of mouse and rat with one (Cd3e). The panel is foreign where
    it holds next to no marker, but many once case is ignored.

    Raises
    ------
    UserError
        Where the panel looks like one of another species.
    """
    markers = set(table["gene"])
    upper = {gene.upper() for gene in markers}
    names = list(dict.fromkeys(map(str, genes)))
    known = [gene for gene in names if gene in markers]
    foreign = [gene for gene in names if gene not in markers and gene.upper() in upper]
    if len(foreign) > len(known) and len(known) < _KNOWN_SHARE * len(names) and _titled(names) > _OTHER_SHARE:
        raise UserError(
            "The panel looks like one of another species",
            where=where,
            found=f"{len(foreign)} genes are markers but for their spelling, such as {', '.join(foreign[:3])}; "
            f"{len(known)} are spelt as in the marker table",
            expected=f"human gene names, such as {', '.join(gene.upper() for gene in foreign[:3])}",
            fix="the markers are those of human tissue: leave this slide out, or give a marker table of its species",
        )


def _titled(names: list[str]) -> float:
    """Return the share of names that have lower-case letters after a capital, as in Cd3e."""
    words: list[Any] = [name for name in names if name[:1].isalpha()]
    return sum(name[1:] != name[1:].upper() for name in words) / max(len(words), 1)
