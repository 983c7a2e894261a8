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
from nuclass.labels.assign import LabelResult, Settings, label_cells, unlabelled
from nuclass.labels.counts_table import cells_of, read_counts
from nuclass.labels.evidence import marker_evidence, umap_coordinates
from nuclass.labels.given import (
    combine,
    counted,
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

    Nothing is written before all is computed, and ``labels.parquet``, which the next stages read, is written last.

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
    name
        What the slide is called in messages and in the table of agreement.

    Raises
    ------
    UserError
        Where the counts lack cells of the table, given labels are wanted and there are none, they are of another
        slide, or no cell gets a class.
    """
    table = _cells(cells)
    markers, ontology = tables.read()
    theirs = _given(table, _given_file(bundle, given), source, name)
    counts = _counts(bundle, table)
    how = Settings.from_dict(settings)
    _need_cells(table, how, cells)
    result = _by_markers(counts, table, markers, organ, ontology, how, source, bundle)
    labels, compared, told = _with_given(result.labels, table, ontology, theirs, source, name)
    _need_classes(labels, bundle)
    evidence = {
        "evidence.csv": result.evidence,
        "markers.csv": _marker_table(counts, labels, markers),
        **compared,
    }
    umap = _umap(result, table, how.seed)
    folder = Path(out)
    for file, frame in evidence.items():
        write_csv(folder / file, frame, float_format="%.4f")
    write_parquet(folder / "posteriors.parquet", result.posteriors)
    write_parquet(folder / "umap.parquet", umap)
    write_json(folder / "summary.json", {**result.summary, **counted(labels), "source": source, **told})
    write_parquet(folder / "labels.parquet", labels)
    _log.info("labelled %s", labels.loc[labels["cell_type"] != "", "cell_type"].value_counts().to_dict())


def _by_markers(
    counts: AnnData,
    table: pd.DataFrame,
    markers: pd.DataFrame,
    organ: str,
    ontology: Ontology,
    how: Settings,
    source: str,
    bundle: str | Path,
) -> LabelResult:
    """Label by markers; where given labels count and markers cannot label the slide, say so and go on without."""
    try:
        check_species(list(counts.var_names), markers, bundle)
        return label_cells(counts, table, markers, organ, ontology, how)
    except UserError as error:
        if source != "given":
            raise
        _log.warning("markers cannot label this slide; the given labels count all the same. %s", error)
        return unlabelled(counts, table, how, str(error))


def label_table(
    *,
    counts: str | Path,
    tables: Tables,
    organ: str,
    settings: dict[str, Any],
    min_transcripts: int,
    min_genes: int,
    out: str | Path,
    evidence: str | Path | None = None,
) -> pd.DataFrame:
    """Label a plain table of counts, write the labels (``.parquet`` or ``.csv``) and return them.

    Places are used where the table has them (``x_um`` and ``y_um``, or ``x_centroid`` and ``y_centroid``). Into the
    folder ``evidence`` go what the labels rest on: ``posteriors.parquet evidence.csv markers.csv summary.json``.
    """
    _need_place(Path(out), Path(counts))
    if evidence is not None and Path(evidence).exists() and not Path(evidence).is_dir():
        raise UserError("--evidence is a file", found=evidence, expected="a folder, which is made where there is none")
    markers, ontology = tables.read()
    data = read_counts(counts, set(markers["gene"]))
    check_species(list(data.var_names), markers, counts)
    cells = cells_of(data, min_transcripts, min_genes)
    how = Settings.from_dict(settings)
    _need_cells(cells, how, counts)
    result = label_cells(data, cells, markers, organ, ontology, how)
    labels = result.labels
    if evidence is not None:
        folder = Path(evidence)
        write_csv(folder / "evidence.csv", result.evidence, float_format="%.4f")
        write_csv(folder / "markers.csv", _marker_table(data, labels, markers), float_format="%.4f")
        write_parquet(folder / "posteriors.parquet", result.posteriors)
        write_json(folder / "summary.json", result.summary)
    write = write_csv if Path(out).suffix == ".csv" else write_parquet
    write(out, labels)
    return labels


def _need_place(out: Path, counts: Path) -> None:
    """Stop before the work where its result could not be written."""
    if out.suffix not in (".parquet", ".csv"):
        raise UserError("--out is no file that can be written", found=out, expected="a .parquet or .csv file")
    if out.is_dir():
        raise UserError("--out is a folder", found=out, expected="a .parquet or .csv file")
    if out.resolve() == counts.resolve():
        raise UserError("--out is the table of counts itself", found=out, expected="another file")
    if file := next((folder for folder in out.absolute().parents if folder.exists() and not folder.is_dir()), None):
        raise UserError("--out lies in a file, not in a folder", where=out, found=f"{file} is a file")


def _counts(bundle: str | Path, table: pd.DataFrame) -> AnnData:
    """Return the slide's counts, checked against its table of cells."""
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
    return counts


def _cells(path: str | Path) -> pd.DataFrame:
    """Return the slide's table of cells, with what labelling needs of it."""
    file = Path(path)
    needed = [CELL_ID, "status", "reason"]
    fix = "give the cells.parquet that 'nuclass build-slide' wrote"
    if not file.is_file():
        raise UserError("The slide's table of cells is missing", where=file, fix=fix)
    try:
        table = pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise UserError(
            "The slide's table of cells cannot be read", where=file, found=str(error).split("\n")[0], fix=fix
        ) from error
    if missing := [name for name in needed if name not in table]:
        raise UserError(
            "The slide's table of cells lacks columns",
            where=file,
            found=", ".join(map(str, table.columns)),
            expected=", ".join(missing),
            fix=fix,
        )
    return table


def _need_cells(table: pd.DataFrame, how: Settings, where: str | Path) -> None:
    """Stop where the kept cells cannot make two types."""
    kept, wanted = int((table["status"] == KEPT).sum()), 2 * how.min_seeds
    if kept >= wanted:
        return
    dropped = table.loc[table["status"] != KEPT, "reason"].value_counts().to_dict()
    raise UserError(
        "Too few cells are left to label",
        where=where,
        found=f"{kept:,} of {len(table):,}" + (f"; dropped: {_listed(dropped)}" if dropped else ""),
        expected=f"at least {wanted}, for two types of labels.min_seeds cells each",
        fix="check that the counts are whole, or lower the thresholds under 'qc'" if dropped else None,
    )


def _given_file(bundle: str | Path, given: str) -> str | None:
    return given_file(bundle, given) if given or (Path(bundle) / "bundle.json").is_file() else None


@dataclass(frozen=True)
class _Given:
    """Given labels: the file, its rows, and those of the slide's cells."""

    file: str
    rows: pd.DataFrame
    matched: pd.DataFrame


def _given(table: pd.DataFrame, file: str | None, source: str, name: str) -> _Given | None:
    """Read given labels and match them to the cells; without a file there are none."""
    if file is not None:
        rows = read_given(file)
        return _Given(file, rows, match_given(rows, table, file))
    if source == "given":
        raise UserError(
            "A slide's labels are to be given, and there is no file of them",
            where=name or None,
            expected="a file in the column 'given' of the slides sheet, or with --given",
            fix="name it there, or let markers decide (column 'labels', or --labels markers)",
        )
    return None


def _with_given(
    own: pd.DataFrame, table: pd.DataFrame, ontology: Ontology, given: _Given | None, source: str, name: str
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame], dict[str, Any]]:
    """Return the labels that count, the tables of the comparison, and what the summary tells of it."""
    empty = {"agreement.csv": _PAIRS, "scores.csv": _SCORES, "unmapped.csv": _UNMAPPED}
    if given is None:
        return own, {path: pd.DataFrame(columns=columns) for path, columns in empty.items()}, {}
    theirs = given_labels(given.matched, table, ontology).assign(cluster=own["cluster"].to_numpy())
    found = agreement(theirs, own, ontology, name)
    labels = {"markers": own, "given": theirs}.get(source)
    if labels is None:
        labels = combine(theirs, own, ontology)
    unmapped = ontology.unmapped(given.matched["raw_label"])
    for row in unmapped.itertuples():
        _log.warning("given label '%s' of %d cells is not known; nearest: %s", row.raw_label, row.cells, row.nearest)
    compared = dict(zip(empty, (found.pairs, found.scores, unmapped), strict=True))
    told = {
        "given": given_summary(given.file, given.rows, given.matched, ontology),
        "agreement": found.summary,
        "markers": counted(own),
    }
    return labels, compared, told


def _need_classes(labels: pd.DataFrame, bundle: str | Path) -> None:
    if (labels["class"] != "").any():
        return
    counts = counted(labels)
    raise UserError(
        "No cell of the slide gets a class of the study",
        where=f"step label_cells, {bundle}",
        found="; ".join(f"{key}: {_listed(counts[key])}" for key in ("reasons", "cell_types") if counts[key]),
        fix="lower labels.min_confidence, or see with 'nuclass panel' which types the panel can tell",
    )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _marker_table(counts: AnnData, labels: pd.DataFrame, markers: pd.DataFrame) -> pd.DataFrame:
    rows = labels.loc[labels["cell_type"] != "", [CELL_ID, "cell_type"]]
    matrix = sparse.csr_matrix(counts[rows[CELL_ID].tolist()].X)
    return marker_evidence(matrix, list(counts.var_names), rows["cell_type"].to_numpy(), markers)


def _umap(result: LabelResult, table: pd.DataFrame, seed: int) -> pd.DataFrame:
    kept = table.loc[table["status"] == KEPT, CELL_ID].to_numpy()
    return umap_coordinates(result.clusters.components, kept, seed)
