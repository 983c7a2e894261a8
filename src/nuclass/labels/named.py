"""Labels of a slide whose table of cells brings them, as that of patch files does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.files import write_json, write_parquet
from nuclass.core.log import get_logger
from nuclass.core.names import CELL_ID
from nuclass.labels.given import EMPTY, NO_LABEL, RAW, UNMAPPED, counted, given_labels
from nuclass.labels.ontology import Ontology, load_ontology

GIVEN_LABEL = "given_label"
_SHOWN = 20
_log = get_logger(__name__)


def label_named_cells(*, cells: str | Path, ontology: str | Path, out: str | Path, name: str = "") -> pd.DataFrame:
    """Turn the names in a slide's table of cells into its labels; write ``summary.json`` and ``labels.parquet``.

    Parameters
    ----------
    cells
        ``cells.parquet`` with the column given_label.
    ontology
        The table of names and classes.
    out
        The folder of the two files.
    name
        The slide, for messages.

    Returns
    -------
    The labels.

    Raises
    ------
    UserError
        No name is known to the ontology, or none of the known ones has a class.
    """
    frame = pd.read_parquet(cells, columns=[CELL_ID, "status", "reason", GIVEN_LABEL])
    table = load_ontology(ontology)
    labels = labels_of_names(frame, table, name or str(cells))
    unmapped = table.unmapped(labels.loc[labels["reason"] == UNMAPPED, RAW])
    for row in unmapped.itertuples():
        _log.warning(
            "label '%s' of %d cells is not known; nearest: %s", row.raw_label, row.cells, row.nearest or "none"
        )
    folder = Path(out)
    write_json(folder / "summary.json", {"source": "given", **counted(labels), "unmapped": unmapped.to_dict("records")})
    write_parquet(folder / "labels.parquet", labels)
    _log.info("labelled %s", counted(labels)["cell_types"])
    return labels


def labels_of_names(cells: pd.DataFrame, ontology: Ontology, name: str = "") -> pd.DataFrame:
    """Return the labels of cells whose names are given.

    Parameters
    ----------
    cells
        Columns cell_id, status, reason, given_label.
    ontology
        Names to cell types and classes.
    name
        The slide, for messages.

    Returns
    -------
    A table of labels as :func:`nuclass.labels.given.given_labels` makes it, rows as in ``cells``.

    Raises
    ------
    UserError
        No name is known to the ontology, or none of the known ones has a class.
    """
    raw = cells[GIVEN_LABEL].astype(str).str.strip()
    given = pd.DataFrame({CELL_ID: cells[CELL_ID].to_numpy(), RAW: raw.where(~raw.isin(EMPTY), "").to_numpy()})
    labels = given_labels(given, cells.reset_index(drop=True), ontology)
    if (labels["class"] == "").all():
        raise _no_class(labels, name)
    return labels


def _no_class(labels: pd.DataFrame, name: str) -> UserError:
    typed = (labels["cell_type"] != "").any()
    found: dict[Any, int] = labels.loc[labels["reason"] != NO_LABEL, RAW].value_counts().to_dict()
    shown = ", ".join(f"'{label}' {cells:,}" for label, cells in list(found.items())[:_SHOWN])
    more = f" and {len(found) - _SHOWN:,} more" if len(found) > _SHOWN else ""
    return UserError(
        "No label of the slide has a class of the study" if typed else "No label of the slide is known",
        where=name or None,
        found=f"{shown}{more}" if found else "no label at all",
        expected="names of cell types that the ontology lists",
        fix="write the names of the types into class_id of the annotations: these are numbers, perhaps of clusters"
        if found and all(str(label).replace(".", "", 1).isdigit() for label in found)
        else "add the names as synonyms to the file that 'ontology' names in the configuration",
    )
