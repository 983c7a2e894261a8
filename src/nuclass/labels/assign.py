"""Cell types from transcripts: marker seeds, profiles learned from them, posteriors, abstention.

1. Scores (``scores``). A type's score is the mean of its positive markers, scaled by gene, less that of its negatives.
   Epithelium and myeloid cells are clustered once more by themselves, and the malignant score of epithelium is
   weighed by how much it proliferates (``malignant``).
2. Seeds (``seeds``). A cell is a seed where first its lineage, then its type within the lineage is certain: by a wide
   lead, or by a narrower one that its cluster shares. A type without enough seeds is not in the slide. Cells of one
   cluster with next to no known cells around them are another type, one without markers here: it competes and gets
   no label.
3. Posteriors (``mixture``). Profiles of the types are learnt from their seeds; a cell's counts come from one profile
   and from what its neighbours spill. The prior is the mean of two shares: among the nearest cells in expression,
   and in the slide.
4. Abstention (``confidence``). Below ``min_confidence``, a calibrated chance that the label is right; where a mixture
   of two types explains a cell much better than one; where the cell is most likely of another type.

Clusters vote; their numbers carry no meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from nuclass.core.errors import UserError, closest
from nuclass.core.log import get_logger
from nuclass.core.names import ABSTAINED, CELL_ID, DROPPED, KEPT, LABELLED
from nuclass.labels.cluster import LARGE_PANEL, Clusters, cluster, cluster_within, variable_genes
from nuclass.labels.confidence import confidence, marker_lead
from nuclass.labels.malignant import CELL_CYCLE, EPITHELIAL, MALIGNANT, malignant_bonus
from nuclass.labels.markers import MarkerSet, marker_sets
from nuclass.labels.mixture import Fit, components, fit, with_surroundings
from nuclass.labels.released import K, released_confidence
from nuclass.labels.scores import marker_scores, marker_support, normalised
from nuclass.labels.seeds import find_others, find_seeds, lineage_of_clusters, without_single_genes

if TYPE_CHECKING:
    from anndata import AnnData

    from nuclass.labels.ontology import Ontology

_log = get_logger(__name__)

_TOLD = 6
_APART = (EPITHELIAL, "Myeloid")
"""Lineages clustered once more by themselves: their types are many and alike, and some of them rare."""
_MUCH, _LITTLE = 0.05, 0.01
_HALF, _LOST, _LARGE, _MIN_TOLD = 0.5, 0.2, 0.02, 20
"""A slide, or a large cluster, with a smaller share of labelled cells is told; how large, as a share and in cells."""
_MIN_COMPONENT = 60
"""Seeds that a component of a type needs besides ``min_seeds``."""


@dataclass(frozen=True)
class Settings:
    """The ``labels`` section of the configuration; see the comments there."""

    n_pcs: int = 30
    n_neighbors: int = 15
    resolutions: tuple[float, ...] = (0.5, 1.0, 2.0)
    min_confidence: float = 0.5
    min_seeds: int = 6
    min_seed_share: float = 0.002
    seed_margin: float = 0.5
    other_seeds: float = 0.2
    spill: float = 0.12
    spill_um: float = 16.0
    temperature: float = 2.0
    full_depth: float = 300.0
    rounds: int = 4
    doublet_gain: float = 6.0
    confidence: str = "calibrated"
    naming_slope: float = 1.85
    naming_offset: float = 0.57
    leave_out: tuple[str, ...] = ()
    malignant_prior: float = 0.2
    seed: int = 42

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """Take the settings from a section of the configuration."""
        own = {name: value for name, value in values.items() if name in cls.__dataclass_fields__}
        lists = {name: tuple(own.get(name, getattr(cls, name))) for name in ("resolutions", "leave_out")}
        return cls(**{**own, **lists})


@dataclass(frozen=True)
class LabelResult:
    """Labels and what they rest on.

    ``labels`` has a row for each cell of the table of cells. ``posteriors`` has one for each kept cell: ``cell_id``,
    one column a type found, ``other`` for types without markers, ``marker_lead`` and ``doublet_gain``. ``evidence`` has
    one for each cluster and candidate.
    """

    labels: pd.DataFrame
    posteriors: pd.DataFrame
    evidence: pd.DataFrame
    clusters: Clusters
    summary: dict[str, Any] = field(default_factory=dict)


def label_cells(
    adata: AnnData, cells: pd.DataFrame, markers: pd.DataFrame, organ: str, ontology: Ontology, settings: Settings
) -> LabelResult:
    """Assign a cell type, and by it a class, to every kept cell, or abstain.

    Parameters
    ----------
    adata
        Counts, cells x genes, ``obs_names`` the cell ids; at least the kept cells.
    cells
        The slide's table of cells: ``cell_id``, ``status``, ``reason`` and, where places are known, ``x_um``, ``y_um``.
    markers
        From :func:`nuclass.labels.markers.load_markers`.
    organ
        The slide's organ: types that do not occur in it are no candidates.
    ontology
        Gives each cell type its class.

    Raises
    ------
    UserError
        Where no type can be found with this panel, no cell was kept, a cell stands twice, or none has counts.
    """
    kept = cells[cells["status"] == KEPT].reset_index(drop=True)
    if kept.empty:
        raise UserError("No cell is left to label", found="0 kept cells", fix="lower the thresholds under 'qc'")
    _check_ids(adata, kept)
    genes = [str(gene) for gene in adata.var_names]
    candidates, absent = _candidates(markers, organ, genes, settings.leave_out)
    counts = sparse.csr_matrix(adata[kept[CELL_ID].tolist()].X, dtype=np.float32)
    counts, genes = _informative(counts, genes, candidates)
    if not counts.nnz:
        raise UserError("The cells have no counts", found=f"0 transcripts of {len(genes)} genes in {len(kept)} cells")
    places = kept[["x_um", "y_um"]].to_numpy(float) if {"x_um", "y_um"} <= set(kept) else None
    if places is not None and not np.isfinite(places).all():
        places = None
    lineages = np.array([ontology.cell_types[c.name].lineage for c in candidates])
    found = _type(counts, genes, places, candidates, lineages, settings)
    labels = _decide(cells, kept, found, settings)
    labels["class"] = ontology.resolve(labels["cell_type"])["class"].to_numpy()
    labels.loc[(labels["status"] == LABELLED) & (labels["class"] == ""), "reason"] = "no_class"
    summary = {
        "organ": organ,
        "candidates": [c.name for c in candidates],
        "not_candidates": absent,
        "not_found": [c.name for c in candidates if c.name not in found.names],
        "other_types": found.posterior.shape[1] - len(found.names),
        "seeds": {name: int((found.seeds == k).sum()) for k, name in enumerate(found.names)},
        "components": {name: int((found.component_types == k).sum()) for k, name in enumerate(found.names)},
        **{key: _counted(labels, column) for key, column in _COUNTED.items()},
        "warnings": _warnings(labels, ontology, candidates),
    }
    return LabelResult(labels, _posteriors(kept, found), _evidence(found, candidates), found.clusters, summary)


def unlabelled(adata: AnnData, cells: pd.DataFrame, settings: Settings, why: str) -> LabelResult:
    """Return the result of markers that cannot label a slide: clusters only, every kept cell abstained."""
    kept = cells[cells["status"] == KEPT].reset_index(drop=True)
    counts = sparse.csr_matrix(adata[kept[CELL_ID].tolist()].X, dtype=np.float32)
    counts, _ = _informative(counts, [str(gene) for gene in adata.var_names], [])
    clusters = cluster(normalised(counts), settings, settings.n_neighbors)
    nothing = np.zeros(len(kept))
    empty = np.zeros((len(kept), 0))
    seeds = np.full(len(kept), -1)
    found = _Found([], empty, clusters, seeds, np.zeros(0, int), empty, nothing, nothing, nothing)
    labels = _all_rows(
        cells, _rows(kept, found, np.full(len(kept), "", object), nothing, nothing, np.full(len(kept), "no_markers"))
    )
    columns = ["resolution", "cluster", "cells", "cell_type", "score", "posterior"]
    summary = {"warnings": [why], **{key: _counted(labels, column) for key, column in _COUNTED.items()}}
    return LabelResult(labels, _posteriors(kept, found), pd.DataFrame(columns=columns), clusters, summary)


def _check_ids(adata: AnnData, kept: pd.DataFrame) -> None:
    for what, ids in (("counts", adata.obs_names), ("table of cells", pd.Index(kept[CELL_ID]))):
        if not ids.is_unique:
            twice = ids[ids.duplicated()]
            raise UserError(
                f"A cell stands twice in the {what}",
                found=f"{len(twice)} doubled, such as {twice[0]}",
                expected="one row a cell",
            )


def _warnings(labels: pd.DataFrame, ontology: Ontology, candidates: list[MarkerSet]) -> list[str]:
    """Return what a reader of the labels must know, and log it."""
    told = [*_of_epithelium(labels, ontology, candidates), *_of_losses(labels)]
    for text in told:
        _log.warning(text)
    return told


def _of_epithelium(labels: pd.DataFrame, ontology: Ontology, candidates: list[MarkerSet]) -> Iterator[str]:
    """Warn where the section has epithelium and none of it is malignant."""
    typed = labels.loc[labels["cell_type"] != "", "cell_type"]
    epithelium = int(typed.map(lambda name: ontology.cell_types[name].lineage == EPITHELIAL).sum())
    malignant = int((typed == MALIGNANT).sum())
    possible = any(c.name == MALIGNANT for c in candidates)
    if possible and epithelium > _MUCH * len(typed) and malignant < _LITTLE * epithelium:
        yield (
            f"{malignant} of {epithelium} epithelial cells are malignant: if the section holds a tumour, it grows "
            "slowly and looks like normal epithelium (raise labels.malignant_prior, or give labels)"
        )


def _of_losses(labels: pd.DataFrame) -> Iterator[str]:
    """Warn where most cells, or most cells of a large cluster, have no label: a whole kind may be lost."""
    kept = labels[labels["status"] != DROPPED]
    good = kept["status"] == LABELLED
    why = kept["reason"].where(~good)
    if good.mean() < _HALF:
        yield (
            f"{int(good.sum())} of {len(kept)} cells are labelled; the most frequent reason is "
            f"{why.value_counts().index[0]} (is the organ right, and does the panel have markers of these cells?)"
        )
    for code, cells in kept.groupby("cluster"):
        rows = good[cells.index]
        if len(cells) >= max(_MIN_TOLD, _LARGE * len(kept)) and rows.mean() < _LOST:
            yield (
                f"cluster {code}: {int(rows.sum())} of {len(cells)} cells are labelled; the most frequent reason is "
                f"{why[cells.index].value_counts().index[0]}"
            )


_COUNTED = {"cells": "status", "cell_types": "cell_type", "classes": "class", "reasons": "reason"}


def _counted(labels: pd.DataFrame, column: str) -> dict[str, int]:
    return {str(name): int(n) for name, n in labels.loc[labels[column] != "", column].value_counts().items()}


@dataclass(frozen=True)
class _Found:
    """What is known of the kept cells; ``posterior`` (N, T) has the named types first, then the other types."""

    names: list[str]
    score: np.ndarray
    clusters: Clusters
    seeds: np.ndarray
    component_types: np.ndarray
    posterior: np.ndarray
    gain: np.ndarray
    lead: np.ndarray
    released: np.ndarray


def _type(
    counts: sparse.csr_matrix,
    genes: list[str],
    places_um: np.ndarray | None,
    candidates: list[MarkerSet],
    lineages: np.ndarray,
    settings: Settings,
) -> _Found:
    """Find the types of cells by clusters, scores, seeds and the mixture."""
    logged = normalised(counts)
    clusters = cluster(logged, settings, max(settings.n_neighbors, K - 1))
    _, broad = marker_scores(logged, genes, candidates, lineages)
    home = lineage_of_clusters(broad, lineages, clusters.finest)
    score, broad = marker_scores(logged, genes, candidates, lineages, home)
    home = lineage_of_clusters(broad, lineages, clusters.finest)
    # Dividing cells of all kinds lie together by the genes of the cell cycle, and would take a tumour's rate with them.
    steady = logged[:, [k for k, gene in enumerate(genes) if gene not in CELL_CYCLE]]
    groups = [np.flatnonzero(home == name) for name in _APART]
    nearest, finest = cluster_within(steady, groups, clusters, settings)
    names = [c.name for c in candidates]
    if MALIGNANT in names:
        score[:, names.index(MALIGNANT)] += malignant_bonus(counts, genes, finest, home, settings.malignant_prior)
    smooth = _smoothed(score, nearest)
    seeds = find_seeds(smooth, _smoothed(broad, nearest), lineages, clusters.codes, nearest, settings)
    support = marker_support(logged, genes, candidates, finest, lineages, home)
    seeds = without_single_genes(seeds, *support, finest)
    start, n_others = find_others(seeds, finest, nearest, settings)
    part, types = components(start, finest, len(seeds.present) + n_others, max(settings.min_seeds, _MIN_COMPONENT))
    spill = settings.spill if places_um is not None else 0.0
    around = with_surroundings(counts, places_um if spill else None, settings.spill_um)
    how = Fit(spill, settings.temperature, settings.full_depth, settings.rounds)
    posterior, gain = fit(around, part, types, nearest, how)
    _log.info("%d types found by %d components, %d other types", len(seeds.present), len(types), n_others)
    lead = marker_lead(smooth, np.array(seeds.present)[posterior[:, : len(seeds.present)].argmax(1)], nearest)
    released = released_confidence(counts, clusters.shown, posterior.argmax(1), clusters.nearest)
    found = [names[k] for k in seeds.present]
    return _Found(found, score, clusters, seeds.types, types, posterior, gain, lead, released)


def _smoothed(score: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """Return the mean of each cell's scores and those of its nearest cells on average."""
    result = 0.5 * score
    for column in nearest.T:
        result += 0.5 / nearest.shape[1] * score[column]
    return result


def _candidates(
    markers: pd.DataFrame, organ: str, genes: list[str], leave_out: tuple[str, ...]
) -> tuple[list[MarkerSet], dict[str, str]]:
    known = sorted(set(markers["cell_type"]))
    if unknown := [name for name in leave_out if name not in known]:
        raise UserError(
            "A cell type that is to be left out has no markers",
            where="labels.leave_out",
            found=", ".join(unknown) + closest(unknown[0], known),
            expected="names of the marker table",
        )
    candidates, absent = marker_sets(markers[~markers["cell_type"].isin(leave_out)], organ, genes)
    absent |= dict.fromkeys(leave_out, "left out (labels.leave_out)")
    if len(candidates) < 2:
        raise UserError(
            "The panel cannot tell cell types apart",
            found=_told(absent),
            expected="three positive markers of at least two cell types",
            fix="add markers of this panel's genes to a table of your own (labels.extra_markers)",
        )
    return candidates, absent


def _told(absent: dict[str, str]) -> str:
    """Return why types are no candidates: first those that occur in the organ, six at most."""
    order = sorted(absent, key=lambda name: absent[name].startswith("does not occur"))
    rest = len(absent) - _TOLD
    return "; ".join(f"{name}: {absent[name]}" for name in order[:_TOLD]) + (f"; and {rest} more" if rest > 0 else "")


def _informative(
    counts: sparse.csr_matrix, genes: list[str], candidates: list[MarkerSet]
) -> tuple[sparse.csr_matrix, list[str]]:
    """Return the counts and names of the genes that take part: all of a small panel."""
    if len(genes) <= LARGE_PANEL:
        return counts, genes
    listed = {gene for c in candidates for gene in (*c.positive, *c.negative)}
    wanted = set(variable_genes(counts).tolist()) | {k for k, gene in enumerate(genes) if gene in listed}
    keep = sorted(wanted)
    return counts[:, keep].tocsr(), [genes[k] for k in keep]


def _decide(cells: pd.DataFrame, kept: pd.DataFrame, found: _Found, settings: Settings) -> pd.DataFrame:
    """Return the labels of all cells of the bundle."""
    n = len(found.names)
    named, other = found.posterior[:, :n], found.posterior[:, n:].sum(1)
    order = np.sort(named, axis=1)
    top = order[:, -1]
    chance = confidence(top, found.lead, settings.naming_slope, settings.naming_offset)
    decisive = chance if settings.confidence == "calibrated" else found.released
    is_other = other > top
    best = np.where(is_other, "", np.array(found.names, dtype=object)[named.argmax(1)])
    reason = np.select(
        [
            is_other,
            found.gain > settings.doublet_gain,
            found.lead < 0,
            decisive < settings.min_confidence,
        ],
        ["other_type", "doublet", "markers_disagree", "unsure"],
        "",
    )
    margin = np.maximum(top - np.maximum(order[:, -2], other), 0)
    return _all_rows(cells, _rows(kept, found, best, chance, margin, reason))


def _rows(
    kept: pd.DataFrame,
    found: _Found,
    best: np.ndarray,
    chance: np.ndarray,
    margin: np.ndarray,
    reason: np.ndarray,
) -> pd.DataFrame:
    """Return the labels of the kept cells; a cell without a reason against it is labelled."""
    return pd.DataFrame(
        {
            CELL_ID: kept[CELL_ID],
            "cluster": found.clusters.shown,
            "raw_label": best,
            "cell_type": np.where(reason == "", best, ""),
            "class": "",
            "confidence": chance.astype(np.float32),
            "margin": margin.astype(np.float32),
            "confidence_released": found.released.astype(np.float32),
            "source": "markers",
            "status": np.where(reason == "", LABELLED, ABSTAINED),
            "reason": reason,
        }
    )


def _all_rows(cells: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the labels of all cells of the bundle: the dropped ones keep their reason."""
    labels = cells[[CELL_ID]].merge(rows, on=CELL_ID, how="left")
    dropped = labels["status"].isna()
    labels["status"] = labels["status"].fillna(DROPPED)
    labels.loc[dropped, "reason"] = cells.loc[dropped.to_numpy(), "reason"].to_numpy()
    labels["cluster"] = labels["cluster"].fillna(-1).astype(int)
    for column in ("raw_label", "cell_type", "class", "source"):
        labels[column] = labels[column].fillna("")
    return labels


def _posteriors(kept: pd.DataFrame, found: _Found) -> pd.DataFrame:
    n = len(found.names)
    table = pd.DataFrame(found.posterior[:, :n], columns=found.names)
    table.insert(0, CELL_ID, kept[CELL_ID].to_numpy())
    table["other"] = found.posterior[:, n:].sum(1)
    table["marker_lead"] = found.lead.astype(np.float32)
    table["doublet_gain"] = found.gain.astype(np.float32)
    return table


def _evidence(found: _Found, candidates: list[MarkerSet]) -> pd.DataFrame:
    """Return mean marker score and mean posterior, a row for each resolution, cluster and candidate."""
    chance = {name: found.posterior[:, k] for k, name in enumerate(found.names)}
    parts = []
    for resolution in found.clusters.codes:
        codes = found.clusters.codes[resolution].to_numpy()
        sizes = np.bincount(codes)
        for k, candidate in enumerate(candidates):
            likely = np.zeros(len(sizes))
            if candidate.name in chance:
                likely = np.bincount(codes, chance[candidate.name]) / sizes
            values = {
                "resolution": float(str(resolution)),
                "cluster": np.arange(len(sizes)),
                "cells": sizes,
                "cell_type": candidate.name,
                "score": np.bincount(codes, found.score[:, k]) / sizes,
                "posterior": likely,
            }
            parts.append(pd.DataFrame(values))
    return pd.concat(parts, ignore_index=True)
