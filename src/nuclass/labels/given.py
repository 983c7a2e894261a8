"""Given labels, such as published annotations: read, matched to a slide's cells, mapped to cell types.

They are named by a file and, where names alone do not decide, by what of it is meant (see
:func:`nuclass.core.bundle_source.parse_given`)::

    labels.csv
    labels.csv::cell_id,cell_type
    labels.xlsx::Sheet 2
    labels.xlsx::Sheet 2::cell_id,cell_type
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nuclass.core.bundle_source import NO_GIVEN, parse_given
from nuclass.core.errors import UserError
from nuclass.core.files import read_json, sha256
from nuclass.core.log import get_logger
from nuclass.core.names import ABSTAINED, CELL_ID, DROPPED, LABELLED
from nuclass.labels.given_tables import open_table
from nuclass.labels.ontology import UNKNOWN, Ontology, plain

RAW = "raw_label"
LABEL_COLUMNS = (
    *(CELL_ID, "cluster", RAW, "cell_type", "class"),
    *("confidence", "margin", "confidence_released", "source", "status", "reason"),
)
NO_LABEL, UNMAPPED, NO_CLASS, CONTRADICTED = "no_given_label", "unmapped", "no_class", "markers_contradict"
EMPTY = ("", "NA", "N/A", "NaN", "nan", "<NA>", "None", "null")
"""Texts that stand for no label."""

_log = get_logger(__name__)


def given_file(bundle: str | Path, text: str) -> str | None:
    """Return where a slide's given labels are, None where it has none.

    Parameters
    ----------
    bundle
        The slide's folder with bundle.json, which names the labels that came with the slide.
    text
        What the sheet of slides says: a file, ``none``, or nothing for those that came with the slide.
    """
    if text == NO_GIVEN:
        return None
    if text:
        return text
    name = read_json(Path(bundle) / "bundle.json").get("given")
    return str(Path(bundle) / name) if name else None


def check_given(path: str | Path) -> None:
    """Raise a :class:`UserError` if a file of labels cannot be used; of its rows none is read."""
    open_table(parse_given(str(path)))


def read_given(path: str | Path) -> pd.DataFrame:
    """Read given labels from CSV or TSV (also .gz), Parquet, or a workbook.

    Parameters
    ----------
    path
        The file, and after ``::`` its sheet and its columns where their names do not decide.

    Returns
    -------
    ``cell_id`` and ``raw_label`` as text, one row an id in the order of the file; an empty label where the file
    has the id but no label (nothing, or one of ``EMPTY``).

    Raises
    ------
    UserError
        The file, sheet or columns cannot be told; an id has two labels or a label no id; the labels are numbers.
    """
    table = open_table(parse_given(str(path)))
    frame = table.load()
    frame.columns = pd.Index([CELL_ID, RAW])
    frame = frame.apply(lambda column: column.str.strip())
    frame[RAW] = frame[RAW].where(~frame[RAW].isin(EMPTY), "")
    without = (frame[CELL_ID] == "") & (frame[RAW] != "")
    if without.any():
        raise UserError(
            "given labels have no id",
            where=table.shown,
            found=f"{int(without.sum()):,} rows, the first with the label '{frame.loc[without, RAW].iloc[0]}'",
            expected="an id in every row",
        )
    frame = _one_row_each(frame[frame[CELL_ID] != ""], table.shown)
    named = frame.loc[frame[RAW] != "", RAW]
    if named.empty:
        raise UserError(
            "a file of given labels holds none",
            where=table.shown,
            found=f"{len(frame):,} cells, each without a label",
            expected="names of cell types",
        )
    if named.str.fullmatch(r"-?\d+(\.\d+)?").all():
        raise UserError(
            "given labels are numbers, not names",
            where=table.shown,
            found=", ".join(named.drop_duplicates().head(5)),
            expected="names of cell types; the number of a cluster says nothing by itself",
            fix="name the column of the names: " + table.notation,
        )
    return frame


def _one_row_each(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return one row an id; a row without a label gives way to one with a label."""
    stated = frame[frame[RAW] != ""].drop_duplicates()
    twice = stated[stated[CELL_ID].duplicated(keep=False)]
    if len(twice):
        first = twice[CELL_ID].iloc[0]
        names = ", ".join(f"'{name}'" for name in twice.loc[twice[CELL_ID] == first, RAW])
        raise UserError(
            "cells have more than one given label",
            where=where,
            found=f"{twice[CELL_ID].nunique():,} cells, such as {first}: {names}",
            expected="one label a cell",
            fix="delete the rows that are wrong, or name the right columns",
        )
    if len(stated) < (frame[RAW] != "").sum():
        _log.info("%s: %d rows repeat another", where, (frame[RAW] != "").sum() - len(stated))
    last = frame.assign(_empty=frame[RAW] == "").sort_values("_empty", kind="stable").drop_duplicates(CELL_ID)
    return last.sort_index()[[CELL_ID, RAW]].reset_index(drop=True)


def match_given(given: pd.DataFrame, cells: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    """Join given labels to the cells of a bundle.

    Ids count as the same where they differ in a ``-1`` at the end that only one side has, or in a ``.0`` that a
    spreadsheet left.

    Parameters
    ----------
    given
        From :func:`read_given`.
    cells
        The slide's table of cells; of its columns ``cell_id`` is read.
    path
        Where the labels came from, for messages.

    Returns
    -------
    ``cell_id`` and ``raw_label``, one row a cell of the bundle in its order; empty labels where there is none.

    Raises
    ------
    UserError
        If the bundle knows fewer than half of the labelled ids: the labels are of another slide.
    """
    labelled = given[given[RAW] != ""]
    ids, how = _as_in_bundle(labelled[CELL_ID], cells[CELL_ID])
    labelled = _one_row_each(labelled.assign(**{CELL_ID: ids}), str(path))
    known = labelled[CELL_ID].isin(cells[CELL_ID])
    if 2 * int(known.sum()) < len(labelled) or labelled.empty:
        raise UserError(
            "given labels are of another slide",
            where=path,
            found=f"{int(known.sum()):,} of its {len(labelled):,} labelled ids are among the {len(cells):,} cells of "
            f"the bundle; it has ids such as {_examples(given[CELL_ID])}, "
            f"the bundle such as {_examples(cells[CELL_ID])}",
            expected="at least half of the labelled ids in the bundle",
            fix="give the labels of this slide, made on the same version of its output, in the column 'given'",
        )
    if how:
        _log.info("%s: ids are taken %s", path, how)
    if not known.all():
        _log.warning("%s: %d of %d labelled ids are not in the bundle", path, (~known).sum(), len(labelled))
    if cells[CELL_ID].str.fullmatch(r"\d+").all():
        _log.warning(
            "%s: ids are plain numbers, which fit the cells of any slide; the agreement with the markers tells", path
        )
    found = labelled.set_index(CELL_ID)[RAW].reindex(cells[CELL_ID])
    return pd.DataFrame({CELL_ID: cells[CELL_ID].to_numpy(), RAW: found.fillna("").to_numpy(object)})


def _as_in_bundle(ids: pd.Series[Any], bundle: pd.Series[Any]) -> tuple[pd.Series[Any], str]:
    """Return ids in the form in which most of them are known, and that form in words."""
    whole = ids.str.replace(r"\.0$", "", regex=True)
    forms = (
        (ids, ""),
        (ids + "-1", "with '-1' at their end"),
        (ids.str.replace(r"-1$", "", regex=True), "without '-1' at their end"),
        (whole, "without '.0' at their end"),
    )
    known = [int(form.isin(bundle).sum()) for form, _ in forms]
    return forms[int(np.argmax(known))]


def _examples(ids: pd.Series[Any]) -> str:
    return ", ".join(ids.head(3))


def given_labels(given: pd.DataFrame, cells: pd.DataFrame, ontology: Ontology) -> pd.DataFrame:
    """Turn matched labels into a table of labels.

    A name that the ontology maps to a cell type labels the cell, with the class of that type where it has one
    (otherwise reason ``no_class``). Cells without a label, with a name that the ontology leaves out
    (``left_out: WHY``) or does not know (``unmapped``) are abstained; cells dropped before stay so.

    Parameters
    ----------
    given
        From :func:`match_given`.
    cells
        The slide's table of cells: ``cell_id status reason``, in the same order.
    ontology
        Names to cell types.

    Returns
    -------
    The columns ``LABEL_COLUMNS``, one row a cell. Confidence and margin are 1 where there is a label, else 0.
    """
    check_same_cells(given, cells)
    raw = given[RAW].reset_index(drop=True)
    found = ontology.resolve(raw)
    dropped = cells["status"].to_numpy() == DROPPED
    empty, typed = (raw == "").to_numpy(), (found["cell_type"] != "").to_numpy()
    note = found["note"].to_numpy(object)
    why = np.select(
        [dropped, empty, typed & (found["class"] != "").to_numpy(), typed, note == UNKNOWN],
        [cells["reason"].to_numpy(object), NO_LABEL, "", NO_CLASS, UNMAPPED],
        np.array([f"left_out: {text}" for text in note], object),
    )
    labelled = typed & ~dropped
    return pd.DataFrame(
        {
            CELL_ID: cells[CELL_ID].to_numpy(),
            "cluster": -1,
            RAW: raw.to_numpy(object),
            "cell_type": found["cell_type"].where(labelled, "").to_numpy(object),
            "class": found["class"].where(labelled, "").to_numpy(object),
            "confidence": labelled.astype(np.float32),
            "margin": labelled.astype(np.float32),
            "confidence_released": np.full(len(cells), np.nan, np.float32),
            "source": np.where(empty | dropped, "", "given").astype(object),
            "status": np.select([dropped, labelled], [DROPPED, LABELLED], ABSTAINED).astype(object),
            "reason": why,
        }
    )[list(LABEL_COLUMNS)]


def check_same_cells(first: pd.DataFrame, second: pd.DataFrame) -> None:
    """Raise a :class:`ValueError` unless two tables are of the same cells in the same order."""
    if not np.array_equal(first[CELL_ID].to_numpy(), second[CELL_ID].to_numpy()):
        raise ValueError("the two tables are not of the same cells in the same order")


def combine(given: pd.DataFrame, markers: pd.DataFrame, ontology: Ontology) -> pd.DataFrame:
    """Put given labels before those of the markers.

    A cell whose given name is a cell type keeps it; every other cell has what the markers say, with one
    exception: a name that is no cell type but a lineage of the ontology, or the first part of the name of some
    (``Myeloid``; ``Lymphoid`` for ``Lymphoid_T``), rules out the other lineages. Where the markers say one of
    those, the cell is abstained (``markers_contradict``).

    Parameters
    ----------
    given, markers
        Tables of labels of the same cells in the same order.
    ontology
        Cell types and their lineages.

    Returns
    -------
    A table of labels; ``source`` says which of the two a row is from. Clusters are those of the markers.
    """
    check_same_cells(given, markers)
    taken = ((given["status"] == LABELLED) & (markers["status"] != DROPPED)).to_numpy()
    columns = [name for name in LABEL_COLUMNS if name not in (CELL_ID, "cluster")]
    combined = markers.reset_index(drop=True)[list(LABEL_COLUMNS)].copy()
    for name in columns:
        combined[name] = combined[name].where(~taken, given[name].to_numpy())
    combined.loc[combined["status"] == DROPPED, "source"] = ""
    lineages = {name: kind.lineage for name, kind in ontology.cell_types.items()}
    lineage = combined["cell_type"].map(lineages)
    for name in given[RAW].unique():
        allowed = _lineages_of(str(name), set(lineages.values()))
        if allowed:
            here = (given[RAW] == name).to_numpy() & ~taken & (combined["status"] == LABELLED).to_numpy()
            against = here & ~lineage.isin(allowed).to_numpy()
            combined.loc[against, ["cell_type", "class", "status", "reason"]] = ["", "", ABSTAINED, CONTRADICTED]
    return combined


def _lineages_of(name: str, lineages: set[str]) -> set[str]:
    """Return the lineages that a name stands for by itself or as the first part of theirs."""
    short = plain(name).removesuffix("cell")
    return {kind for kind in lineages if short and short in (plain(kind), plain(kind.partition("_")[0]))}


def counted(labels: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Return how many cells of a table of labels have each status, type, class and reason."""
    columns = {"cells": "status", "cell_types": "cell_type", "classes": "class", "reasons": "reason"}
    return {
        key: {str(value): int(n) for value, n in labels.loc[labels[column] != "", column].value_counts().items()}
        for key, column in columns.items()
    }


def given_summary(path: str | Path, given: pd.DataFrame, matched: pd.DataFrame, ontology: Ontology) -> dict[str, Any]:
    """Return what is to be told of given labels: the file and its SHA-256, and counts of ids and cells.

    ``ids``, ``labelled_ids``, ``ids_not_in_bundle`` (of the labelled ones), ``cells``, ``cells_with_label``, and of
    those ``mapped`` to a cell type, ``with_class``, ``left_out`` and ``unmapped``.
    """
    file = parse_given(str(path)).path
    found = ontology.resolve(matched.loc[matched[RAW] != "", RAW])
    typed, unknown = found["cell_type"] != "", found["note"] == UNKNOWN
    labelled = int((given[RAW] != "").sum())
    return {
        "file": str(path),
        "sha256": sha256(file),
        "ids": len(given),
        "labelled_ids": labelled,
        "ids_not_in_bundle": labelled - len(found),
        "cells": len(matched),
        "cells_with_label": len(found),
        "mapped": int(typed.sum()),
        "with_class": int((found["class"] != "").sum()),
        "left_out": int((~typed & ~unknown).sum()),
        "unmapped": int((~typed & unknown).sum()),
    }
