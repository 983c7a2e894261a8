"""Cell types from transcripts: marker seeds, class profiles learned from them, posteriors, abstention.

1. Scores. Expression is normalised to the median depth, logged and scaled by gene. A class's score is the mean
   of its positive markers, each weighted by how few classes share it, less half the mean of its negatives.
2. Seeds. A cell is a seed of its best class where the margin is wide, or where its cluster at any resolution
   agrees. A class without enough seeds is not in the slide. Cells of one cluster with next to no seeds around them
   are another type, one without markers here (a hepatocyte, a plasma cell): it competes and gets no label.
3. Posteriors. Each class's expression profile is the mean of its seeds. A cell's counts are multinomial under
   ``(1 - s) profile + s neighbours``, where the neighbours' mean within reach stands for transcripts that the
   segmentation gave to the wrong cell. The likelihood is tempered, since genes are not independent, and the
   prior is the mean of two shares of the classes: among the nearest cells in expression, and in the slide.
   Profiles, freed of the neighbours' part, and posteriors are refined in turn (expectation maximisation).
4. Abstention. Below ``min_confidence``; where a mixture of two classes explains a cell much better than one; where
   the cell is most likely of another type.

Clusters vote; their numbers carry no meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.spatial import cKDTree

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.names import ABSTAINED, CELL_ID, DROPPED, KEPT, LABELLED
from nuclass.labels.cluster import cluster, standardised
from nuclass.labels.markers import MarkerSet, marker_sets

if TYPE_CHECKING:
    from anndata import AnnData

_log = get_logger(__name__)

_CHUNK = 20_000
_PSEUDO = 1e-5
_SLIDE_PRIOR = 1.0
"""Weight of the slide's class shares in the prior, against 1 for those of the nearest cells."""
_MIN_OTHER = 10
"""Cells that another type must have at the least."""


@dataclass(frozen=True)
class Settings:
    """The ``labels`` section of the configuration; see the comments there."""

    n_pcs: int = 30
    n_neighbors: int = 15
    resolutions: tuple[float, ...] = (0.5, 1.0, 2.0)
    min_confidence: float = 0.6
    min_seeds: int = 6
    seed_margin: float = 0.5
    other_seeds: float = 0.2
    spill: float = 0.12
    spill_um: float = 16.0
    temperature: float = 2.0
    rounds: int = 4
    doublet_gain: float = 6.0
    seed: int = 42

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """Take the settings from a section of the configuration."""
        return cls(**{**values, "resolutions": tuple(values.get("resolutions", cls.resolutions))})


@dataclass(frozen=True)
class LabelResult:
    """Labels (one row a cell of the bundle), evidence (one row a cluster and class), and a summary."""

    labels: pd.DataFrame
    evidence: pd.DataFrame
    summary: dict[str, Any] = field(default_factory=dict)


def label_cells(
    adata: AnnData, cells: pd.DataFrame, markers: pd.DataFrame, organ: str, settings: Settings
) -> LabelResult:
    """Assign a class to every kept cell, or abstain.

    Parameters
    ----------
    adata
        Counts, cells x genes, ``obs_names`` the cell ids; at least the kept cells.
    cells
        The slide's table of cells: ``cell_id``, ``status``, ``reason``, ``x_um``, ``y_um``.
    markers
        From :func:`nuclass.labels.markers.load_markers`.
    organ
        The slide's organ: classes that do not occur in it are no candidates.

    Raises
    ------
    UserError
        Where no class can be found with this panel, or no cell was kept.
    """
    kept = cells[cells["status"] == KEPT].reset_index(drop=True)
    if kept.empty:
        raise UserError("No cell is left to label", found="0 kept cells", fix="lower the thresholds under 'qc'")
    candidates, absent = marker_sets(markers, organ, list(adata.var_names))
    if len(candidates) < 2:
        raise UserError(
            "The panel cannot tell classes apart",
            found="; ".join(f"{name}: {why}" for name, why in absent.items()),
            expected="three positive markers of at least two classes",
            fix="add markers of this panel's genes to the marker table",
        )
    data = adata[kept[CELL_ID].tolist()]
    counts = sparse.csr_matrix(data.X, dtype=np.float32)
    clusters, nearest, _ = cluster(data, settings)
    scaled = standardised(counts)
    score = _scores(scaled, list(data.var_names), candidates)
    smooth = 0.5 * score + 0.5 * score[nearest].mean(1)
    seeds, present = _seeds(smooth, clusters, settings)
    names = [candidates[k].name for k in present]
    start, others = _others(seeds, len(candidates), clusters, nearest, settings)
    xy_um = kept[["x_um", "y_um"]].to_numpy()
    posterior, pairs = _posteriors(counts, xy_um, start, [*present, *others], nearest, settings)
    labels = _decide(cells, kept, clusters, posterior, pairs, names, settings)
    evidence = _evidence(clusters, score, posterior, [c.name for c in candidates], names)
    summary = {
        "organ": organ,
        "candidates": [c.name for c in candidates],
        "not_candidates": absent,
        "not_found": [c.name for k, c in enumerate(candidates) if k not in present],
        "other_types": len(others),
        "seeds": {name: int((seeds == k).sum()) for k, name in zip(present, names, strict=True)},
        "cells": labels["status"].value_counts().to_dict(),
        "classes": labels.loc[labels["status"] == LABELLED, "class"].value_counts().to_dict(),
        "reasons": labels.loc[labels["status"] != LABELLED, "reason"].value_counts().to_dict(),
    }
    return LabelResult(labels, evidence, summary)


def _scores(scaled: np.ndarray, genes: list[str], candidates: list[MarkerSet]) -> np.ndarray:
    """Return marker scores (N, C) from scaled expression (N, G)."""
    index = {gene: k for k, gene in enumerate(genes)}
    shared = pd.Series([gene for c in candidates for gene in c.positive]).value_counts()
    score = np.zeros((len(scaled), len(candidates)), np.float32)
    for k, marker in enumerate(candidates):
        weight = np.array([1.0 / shared[gene] for gene in marker.positive], np.float32)
        score[:, k] = scaled[:, [index[g] for g in marker.positive]] @ (weight / weight.sum())
        if marker.negative:
            score[:, k] -= 0.5 * np.maximum(scaled[:, [index[g] for g in marker.negative]], 0).mean(1)
    return score


def _seeds(score: np.ndarray, clusters: pd.DataFrame, settings: Settings) -> tuple[np.ndarray, list[int]]:
    """Return each cell's seed class (-1: none) and the classes that are present."""
    order = np.sort(score, axis=1)
    best, margin = score.argmax(1), order[:, -1] - order[:, -2]
    agrees = np.zeros(len(score), bool)
    for column in clusters:
        codes = clusters[column].to_numpy()
        mean = np.stack([np.bincount(codes, score[:, k]) for k in range(score.shape[1])], 1)
        agrees |= mean.argmax(1)[codes] == best
    confident = (margin > settings.seed_margin) | (agrees & (margin > 0.4 * settings.seed_margin))
    confident &= order[:, -1] > settings.seed_margin
    seeds = np.where(confident, best, -1)
    needed = max(settings.min_seeds, int(0.002 * len(score)))
    present = [k for k in range(score.shape[1]) if (seeds == k).sum() >= needed]
    if len(present) < 2:
        raise UserError(
            "Too few classes are found in this slide",
            found=f"{len(present)} with at least {needed} certain cells",
            expected="two or more",
            fix="check that the organ in the slides sheet is right and that the counts are of this slide",
        )
    return np.where(np.isin(seeds, present), seeds, -1), present


def _others(
    seeds: np.ndarray, n_candidates: int, clusters: pd.DataFrame, nearest: np.ndarray, settings: Settings
) -> tuple[np.ndarray, list[int]]:
    """Return the starting classes with the other types added, and the codes of these, from ``n_candidates`` on.

    A cell may be of another type where it is no seed and fewer than the share ``other_seeds`` of its nearest
    cells are: among cells of the study's classes about half or more are seeds. Such cells of one cluster of
    the finest resolution make up one other type, if they are enough.
    """
    codes = clusters[max(clusters, key=float)].to_numpy()
    foreign = (seeds < 0) & ((seeds >= 0)[nearest].mean(1) < settings.other_seeds)
    start = seeds.copy()
    others: list[int] = []
    needed = max(_MIN_OTHER, settings.min_seeds, int(0.002 * len(seeds)))
    for code in np.flatnonzero(np.bincount(codes, foreign) >= needed):
        others.append(n_candidates + len(others))
        start[foreign & (codes == code)] = others[-1]
    return start, others


def _posteriors(
    counts: sparse.csr_matrix,
    xy_um: np.ndarray,
    seeds: np.ndarray,
    present: list[int],
    nearest: np.ndarray,
    settings: Settings,
) -> tuple[np.ndarray, np.ndarray]:
    """Return posteriors (N, P) over the classes present and the gain of the best pair of classes (N,)."""
    background = _neighbours(counts, xy_um, settings.spill_um)
    weight = np.stack([seeds == k for k in present], 1).astype(np.float32)
    posterior, profile = weight, None
    gain = np.zeros(len(seeds), np.float32)
    for turn in range(settings.rounds):
        profile = _profiles(counts, background, weight, profile, settings.spill)
        share = weight[nearest].mean(1) + _SLIDE_PRIOR * weight.mean(0) / max(weight.sum(1).mean(), 1e-9) + 1e-3
        prior = np.log(share / share.sum(1, keepdims=True))
        last = turn == settings.rounds - 1
        parts = [
            _likelihood(
                counts[i : i + _CHUNK], background[i : i + _CHUNK], profile, prior[i : i + _CHUNK], settings, last
            )
            for i in range(0, counts.shape[0], _CHUNK)
        ]
        posterior = np.concatenate([part[0] for part in parts])
        gain = np.concatenate([part[1] for part in parts])
        weight = np.where(posterior > 0.8, posterior, 0).astype(np.float32)
    return posterior, gain


def _profiles(
    counts: sparse.csr_matrix, background: np.ndarray, weight: np.ndarray, last: np.ndarray | None, spill: float
) -> np.ndarray:
    """Return the classes' profiles (P, G) from weighted cells, each summing to 1.

    With the profiles of the turn before, each transcript counts by how likely it is the cell's own and not
    a neighbour's.
    """
    total = np.full((weight.shape[1], counts.shape[1]), 0.5)
    for i in range(0, counts.shape[0], _CHUNK):
        part, dense = weight[i : i + _CHUNK], counts[i : i + _CHUNK].toarray()
        if last is not None:
            own = (1 - spill) * (part / np.maximum(part.sum(1, keepdims=True), 1e-9)) @ last
            dense *= own / (own + spill * background[i : i + _CHUNK] + 1e-9)
        total += part.T @ dense
    return total / total.sum(1, keepdims=True)


def _likelihood(
    counts: sparse.csr_matrix,
    background: np.ndarray,
    profile: np.ndarray,
    prior: np.ndarray,
    settings: Settings,
    with_pairs: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the posteriors (n, P) of a chunk and, if asked, how much better a mixture of two classes fits."""
    dense = counts.toarray()
    spill = settings.spill * background
    logs = [np.log((1 - settings.spill) * row + spill + _PSEUDO) for row in profile]
    likelihood = np.stack([(dense * log).sum(1) for log in logs], 1)
    tempered = likelihood / settings.temperature + prior
    tempered -= tempered.max(1, keepdims=True)
    posterior = np.exp(tempered)
    posterior /= posterior.sum(1, keepdims=True)
    gain = np.zeros(len(dense), np.float32)
    if with_pairs:
        best = likelihood.max(1)
        top = likelihood.argmax(1)
        for a in range(len(profile)):
            rows = np.flatnonzero(top == a)
            for b in range(len(profile)):
                if a != b and len(rows):
                    half = 0.5 * (profile[a] + profile[b])
                    log = np.log((1 - settings.spill) * half + spill[rows] + _PSEUDO)
                    gain[rows] = np.maximum(gain[rows], (dense[rows] * log).sum(1) - best[rows])
        gain /= settings.temperature
    return posterior, gain


def _neighbours(counts: sparse.csr_matrix, xy_um: np.ndarray, reach: float) -> np.ndarray:
    """Return the mean profile (N, G) of the cells within ``reach`` of each cell; rows without any are 0."""
    pairs = cKDTree(xy_um).query_pairs(reach, output_type="ndarray")
    n = len(xy_um)
    rows = np.concatenate([pairs[:, 0], pairs[:, 1]])
    columns = np.concatenate([pairs[:, 1], pairs[:, 0]])
    graph = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(n, n))
    total = np.asarray((graph @ counts).todense(), np.float32)
    return total / np.maximum(total.sum(1, keepdims=True), 1)


def _decide(
    cells: pd.DataFrame,
    kept: pd.DataFrame,
    clusters: pd.DataFrame,
    posterior: np.ndarray,
    gain: np.ndarray,
    names: list[str],
    settings: Settings,
) -> pd.DataFrame:
    """Return the labels of all cells of the bundle; columns of ``posterior`` beyond ``names`` are other types."""
    named, other = posterior[:, : len(names)], posterior[:, len(names) :].sum(1)
    order = np.sort(named, axis=1)
    confidence = order[:, -1]
    margin = np.maximum(confidence - np.maximum(order[:, -2], other), 0)
    best = np.where(other > confidence, "", np.array(names, dtype=object)[named.argmax(1)])
    reason = np.select(
        [other > confidence, gain > settings.doublet_gain, confidence < settings.min_confidence],
        ["other_type", "doublet", "unsure"],
        "",
    )
    found = pd.DataFrame(
        {
            CELL_ID: kept[CELL_ID],
            "cluster": clusters.iloc[:, len(clusters.columns) // 2].to_numpy(),
            "raw_label": best,
            "confidence": confidence.astype(np.float32),
            "margin": margin.astype(np.float32),
            "status": np.where(reason == "", LABELLED, ABSTAINED),
            "reason": reason,
        }
    )
    labels = cells[[CELL_ID]].merge(found, on=CELL_ID, how="left")
    dropped = labels["status"].isna()
    labels["status"] = labels["status"].fillna(DROPPED)
    labels.loc[dropped, "reason"] = cells.loc[dropped.to_numpy(), "reason"].to_numpy()
    labels["cluster"] = labels["cluster"].fillna(-1).astype(int)
    labels["raw_label"] = labels["raw_label"].fillna("")
    labels["class"] = labels["raw_label"].where(labels["status"] == LABELLED, "")
    return labels[[CELL_ID, "cluster", "raw_label", "class", "confidence", "margin", "status", "reason"]]


def _evidence(
    clusters: pd.DataFrame, score: np.ndarray, posterior: np.ndarray, candidates: list[str], names: list[str]
) -> pd.DataFrame:
    """Return, for each resolution, cluster and class: cells, mean marker score, mean posterior."""
    full = np.zeros_like(score)
    full[:, [candidates.index(name) for name in names]] = posterior[:, : len(names)]
    tables = []
    for column in clusters:
        codes = clusters[column].to_numpy()
        size = np.bincount(codes)
        for k, name in enumerate(candidates):
            tables.append(
                pd.DataFrame(
                    {
                        "resolution": column,
                        "cluster": np.arange(len(size)),
                        "cells": size,
                        "class": name,
                        "marker_score": np.bincount(codes, score[:, k]) / size,
                        "posterior": np.bincount(codes, full[:, k]) / size,
                    }
                )
            )
    return pd.concat(tables, ignore_index=True)
