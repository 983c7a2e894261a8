"""Label one slide: from its files to its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from nuclass.core.errors import UserError
from nuclass.core.files import write_csv, write_json, write_parquet
from nuclass.core.log import get_logger
from nuclass.core.names import LABELLED
from nuclass.labels.assign import Settings, label_cells
from nuclass.labels.markers import load_markers
from nuclass.labels.ontology import load_ontology
from nuclass.xenium.reader import read_bundle

_log = get_logger(__name__)


def label_slide(
    *,
    bundle: str | Path,
    cells: str | Path,
    markers: str | Path,
    ontology: str | Path,
    organ: str,
    settings: dict[str, Any],
    labels: str | Path,
    evidence: str | Path,
    summary: str | Path,
) -> None:
    """Label the cells of a bundle and write labels (Parquet), evidence (CSV) and summary (JSON).

    Raises
    ------
    UserError
        Where the counts lack cells of the table, or no cell keeps a label.
    """
    table = pd.read_parquet(cells)
    counts = read_bundle(bundle).counts()
    missing = ~table["cell_id"].isin(counts.obs_names)
    if missing.any():
        raise UserError(
            "Cells of the slide have no counts",
            where=f"{bundle}, cell_feature_matrix.h5",
            found=f"{int(missing.sum())} of {len(table)} missing, such as {table.loc[missing, 'cell_id'].iloc[0]}",
            expected="one row of counts for each cell",
            fix="fetch the bundle again: its files are of different runs",
        )
    result = label_cells(counts, table, load_markers(markers), organ, Settings.from_dict(settings))
    classes, unknown = load_ontology(ontology).map(result.labels["raw_label"])
    frame = result.labels
    frame["class"] = classes.where(frame["status"] == LABELLED, "")
    left_out = (frame["status"] == LABELLED) & (frame["class"] == "")
    frame.loc[left_out, ["status", "reason"]] = ["abstained", "not_in_ontology"]
    if not (frame["status"] == LABELLED).any():
        raise UserError(
            "No cell of the slide keeps a label",
            where=f"step label_cells, {bundle}",
            found=str(frame["reason"].value_counts().to_dict()),
            fix="lower labels.min_confidence, or look at the evidence table",
        )
    for name, count in unknown.items():
        _log.warning("raw label '%s' of %d cells is not in the ontology", name, count)
    _log.info("labelled %s", result.summary["classes"])
    write_parquet(labels, frame)
    write_csv(evidence, result.evidence, float_format="%.4f")
    write_json(summary, {**result.summary, "not_in_ontology": unknown})
