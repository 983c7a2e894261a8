"""Label one slide, or one plain table of counts: from files to files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from scipy import sparse

from nuclass.core.errors import UserError
from nuclass.core.files import write_csv, write_json, write_parquet
from nuclass.core.log import get_logger
from nuclass.core.names import CELL_ID, KEPT
from nuclass.labels.agreement import agreement
from nuclass.labels.assign import LabelResult, Settings, label_cells
from nuclass.labels.counts_table import cells_of, read_counts
from nuclass.labels.coverage import panel_coverage
from nuclass.labels.evidence import marker_evidence, umap_coordinates
from nuclass.labels.given import (
    combine,
    given_file,
    given_labels,
    given_summary,
    match_given,
    read_given,
)
from nuclass.labels.markers import check_species, load_markers
from nuclass.labels.ontology import Ontology, load_ontology
from nuclass.xenium.reader import read_bundle

if TYPE_CHECKING:
    from anndata import AnnData

_log = get_logger(__name__)

FILES = (
    "labels.parquet",
    "posteriors.parquet",
    "evidence.csv",
    "markers.csv",
    "umap.parquet",
    "panel.csv",
    "summary.json",
)
"""Written for every slide; where labels are given, ``agreement.csv``, ``scores.csv`` and ``unmapped.csv`` besides."""
_PAIRS = ["level", "given", "markers", "cells"]
_SCORES = ["level", "name", "given_cells", "marker_cells", "both", "precision", "recall", "f1"]
_UNMAPPED = ["raw_label", "cells", "nearest"]


@dataclass(frozen=True)
class Tables:
    """The marker table, one of the user's own, and the ontology that both stand on."""

    markers: str | Path
    extra_markers: str | Path | None
    ontology: str | Path

    def read(self) -> tuple[pd.DataFrame, Ontology]:
        """Read them."""
        ontology = load_ontology(self.ontology)
        return load_markers(self.markers, self.extra_markers, ontology), ontology


def label_slide(
    *,
    bundle: str | Path,
    cells: str | Path,
    tables: Tables,
    organ: str,
    settings: dict[str, Any],
    out: str | Path,
    source: str = "markers",
    given: str = "",
    name: str = "",
) -> None:
    """Label the cells of a slide and write the files of :data:`FILES` into a folder.

    Parameters
    ----------
    bundle
        The slide's folder: the Xenium output, or one with the ``bundle.json`` of this workflow.
    cells
        The slide's ``cells.parquet``.
    settings
        The ``labels`` section of the configuration.
    source
        ``markers``, ``given`` or ``given_then_markers``.
    given
        The file of given labels, with its sheet and columns where they do not decide themselves; empty for the labels
        that came with the slide, ``none`` for none.

    Raises
    ------
    UserError
        Where the counts lack cells of the table, given labels are wanted and there are none, or no cell gets a class.
    """
    table = pd.read_parquet(cells)
    markers, ontology = tables.read()
    counts = _counts(bundle, table, markers)
    result = label_cells(counts, table, markers, organ, ontology, Settings.from_dict(settings))
    labels, compared, told = _with_given(result.labels, table, ontology, _file(bundle, given), source, name)
    _need_classes(labels, bundle, result)
    folder = Path(out)
    write_parquet(folder / "labels.parquet", labels)
    write_parquet(folder / "posteriors.parquet", result.posteriors)
    write_csv(folder / "evidence.csv", result.evidence, float_format="%.4f")
    write_csv(folder / "markers.csv", _marker_table(counts, labels, markers), float_format="%.4f")
    write_parquet(folder / "umap.parquet", _umap(result, table, Settings.from_dict(settings).seed))
    write_csv(folder / "panel.csv", panel_coverage(markers, ontology, organ, list(counts.var_names)))
    for file, frame in compared.items():
        write_csv(folder / file, frame, float_format="%.4f")
    write_json(folder / "summary.json", {**result.summary, "source": source, **told})
    _log.info("labelled %s", result.summary["cell_types"])


def label_table(
    *,
    counts: str | Path,
    tables: Tables,
    organ: str,
    settings: dict[str, Any],
    min_transcripts: int,
    min_genes: int,
    out: str | Path,
) -> pd.DataFrame:
    """Label a plain table of counts, write the labels (``.parquet`` or ``.csv``) and return them.

    Places are used where the table has them (``x_um`` and ``y_um``, or ``x_centroid`` and ``y_centroid``).
    """
    markers, ontology = tables.read()
    data = read_counts(counts, set(markers["gene"]))
    check_species(list(data.var_names), markers, counts)
    cells = cells_of(data, min_transcripts, min_genes)
    if not (cells["status"] == KEPT).any():
        raise UserError(
            "No cell of the table has counts enough",
            where=counts,
            found=f"{len(cells)} cells, {cells['reason'].value_counts().to_dict()}",
            expected=f"at least one with {min_transcripts} transcripts of {min_genes} genes",
            fix="check that the values are counts, or lower qc.min_transcripts and qc.min_genes",
        )
    labels = label_cells(data, cells, markers, organ, ontology, Settings.from_dict(settings)).labels
    write = write_csv if Path(out).suffix == ".csv" else write_parquet
    write(out, labels)
    return labels


def _counts(bundle: str | Path, table: pd.DataFrame, markers: pd.DataFrame) -> AnnData:
    """Return the slide's counts, checked against its table of cells and the markers' species."""
    counts = read_bundle(bundle).counts()
    missing = ~table[CELL_ID].isin(counts.obs_names)
    if missing.any():
        raise UserError(
            "Cells of the slide have no counts",
            where=f"{bundle}, cell_feature_matrix.h5",
            found=f"{int(missing.sum())} of {len(table)} missing, such as {table.loc[missing, CELL_ID].iloc[0]}",
            expected="one row of counts for each cell",
            fix="fetch the bundle again: its files are of different runs",
        )
    check_species(list(counts.var_names), markers, bundle)
    return counts


def _file(bundle: str | Path, given: str) -> str | None:
    return given_file(bundle, given) if given or (Path(bundle) / "bundle.json").is_file() else None


def _with_given(
    own: pd.DataFrame, table: pd.DataFrame, ontology: Ontology, file: str | None, source: str, name: str
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame], dict[str, Any]]:
    """Return the labels that count, the tables of the comparison, and what the summary tells of it."""
    empty = {"agreement.csv": _PAIRS, "scores.csv": _SCORES, "unmapped.csv": _UNMAPPED}
    if file is None:
        if source == "given":
            raise UserError(
                "A slide's labels are to be given, and there is no file of them",
                where=name or None,
                expected="a file in the column 'given' of the slides sheet",
                fix="name it there, or let markers decide (column 'labels')",
            )
        return own, {path: pd.DataFrame(columns=columns) for path, columns in empty.items()}, {}
    given = read_given(file)
    matched = match_given(given, table, file)
    theirs = given_labels(matched, table, ontology)
    found = agreement(theirs, own, ontology, name)
    labels = {"markers": own, "given": theirs}.get(source)
    if labels is None:
        labels = combine(theirs, own, ontology)
    unmapped = ontology.unmapped(matched["raw_label"])
    for row in unmapped.itertuples():
        _log.warning("given label '%s' of %d cells is not known; nearest: %s", row.raw_label, row.cells, row.nearest)
    compared = dict(zip(empty, (found.pairs, found.scores, unmapped), strict=True))
    return labels, compared, {"given": given_summary(file, given, matched, ontology), "agreement": found.summary}


def _need_classes(labels: pd.DataFrame, bundle: str | Path, result: LabelResult) -> None:
    if (labels["class"] != "").any():
        return
    raise UserError(
        "No cell of the slide gets a class of the study",
        where=f"step label_cells, {bundle}",
        found=str({**result.summary["reasons"], **result.summary["cell_types"]}),
        fix="lower labels.min_confidence, or look at evidence.csv and panel.csv",
    )


def _marker_table(counts: AnnData, labels: pd.DataFrame, markers: pd.DataFrame) -> pd.DataFrame:
    rows = labels.loc[labels["cell_type"] != "", [CELL_ID, "cell_type"]]
    matrix = sparse.csr_matrix(counts[rows[CELL_ID].tolist()].X)
    return marker_evidence(matrix, list(counts.var_names), rows["cell_type"].to_numpy(), markers)


def _umap(result: LabelResult, table: pd.DataFrame, seed: int) -> pd.DataFrame:
    kept = table.loc[table["status"] == KEPT, CELL_ID].to_numpy()
    return umap_coordinates(result.clusters.components, kept, seed)
