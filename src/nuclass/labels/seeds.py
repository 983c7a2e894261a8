"""Seeds: the cells that their markers, and their cluster's, make certain; and the cells of types without markers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nuclass.core.errors import UserError

if TYPE_CHECKING:
    from nuclass.labels.assign import Settings

_HEIGHT = 0.6
"""What the best score must be, as a share of the wide lead, where the cluster agrees: those of common types are low."""
_NARROW = 0.4
"""The narrower lead, as a share of the wide one."""
_TOGETHER = 0.15
"""Share of certain cells of a type among their nearest cells; in shuffled counts it is 0.03 to 0.09."""
_NAMED = 0.2
_ONE_GENE = 0.2
"""What must be left of a type's support in a cluster without its best marker, as a share."""
_MIN_OTHER = 10
"""Cells that another type must have at the least."""


@dataclass(frozen=True)
class Seeds:
    """Seed types of cells.

    ``types`` (N,) are places in ``present``, -1 for none; ``present`` are the candidates found; ``known`` (N,) tells
    where the lineage is certain, though the type may not be.
    """

    types: np.ndarray
    present: list[int]
    known: np.ndarray


def lead(score: np.ndarray) -> np.ndarray:
    """Return by how much the best of the columns leads the second (N,); infinite with one column."""
    if score.shape[1] < 2:
        return np.full(len(score), np.inf)
    order = np.partition(score, -2, axis=1)
    return order[:, -1] - order[:, -2]


def lineage_of_clusters(broad: np.ndarray, lineages: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return the lineage (N,) that the markers of each cell's cluster speak for most, from scores (N, L)."""
    return np.unique(lineages)[_sums(broad, codes).argmax(1)][codes]


def find_seeds(
    score: np.ndarray,
    broad: np.ndarray,
    lineages: np.ndarray,
    clusters: pd.DataFrame,
    nearest: np.ndarray,
    settings: Settings,
) -> Seeds:
    """Find the cells whose type is certain: first the lineage, then the type within it.

    At each of the two steps a wide lead is enough; a narrower one counts where the cell's cluster, at any resolution,
    has the same winner.

    Parameters
    ----------
    score, broad
        Marker scores of the candidates (N, C) and of the lineages (N, L), smoothed over the nearest cells.
    lineages
        The lineage of each candidate (C,).
    clusters
        Codes of the clusters, one column a resolution.
    nearest
        Indices (N, k) of the nearest cells in expression.

    Raises
    ------
    UserError
        Where there are not two types whose certain cells are alike: the counts say nothing.
    """
    names, home = np.unique(lineages), broad.argmax(1)
    best, within = np.zeros(len(score), int), np.full(len(score), np.inf)
    for k, name in enumerate(names):
        rows, own = np.flatnonzero(home == k), np.flatnonzero(lineages == name)
        part = score[np.ix_(rows, own)]
        best[rows], within[rows] = own[part.argmax(1)], lead(part)
    agrees_broad, agrees = np.zeros(len(score), bool), np.zeros(len(score), bool)
    for column in clusters:
        codes = clusters[column].to_numpy()
        agrees_broad |= _sums(broad, codes).argmax(1)[codes] == home
        agrees |= _leaders(score, broad, lineages, codes)[codes] == best
    wide, narrow = settings.seed_margin, _NARROW * settings.seed_margin
    between = lead(broad)
    top = broad.max(1)
    known = (top > wide) & (between > wide)
    known |= agrees_broad & (top > _HEIGHT * wide) & (between > narrow)
    confident = known & ((within > wide) | (agrees & (within > narrow)))
    seeds = np.where(confident, best, -1)
    needed = max(settings.min_seeds, int(settings.min_seed_share * len(score)))
    present = [k for k in range(score.shape[1]) if (seeds == k).sum() >= needed]
    together = [k for k in present if _coherence(seeds == k, nearest) >= _TOGETHER]
    if len(together) < 2:
        raise _too_few(f"{len(together)} with at least {needed} certain cells that are alike")
    place = np.full(score.shape[1] + 1, -1)
    place[present] = np.arange(len(present))
    return Seeds(place[seeds], present, known & np.isin(lineages[best], lineages[present]))


def _coherence(member: np.ndarray, nearest: np.ndarray) -> float:
    """Return the share of members among the members' nearest cells, 1 where it could not be larger."""
    return float(member[nearest[member]].mean() / min(1, max(member.sum() - 1, 1) / nearest.shape[1]))


def _leaders(score: np.ndarray, broad: np.ndarray, lineages: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return the type that leads in each cluster's leading lineage."""
    homes = np.unique(lineages)[_sums(broad, codes).argmax(1)]
    return np.where(homes[:, None] == lineages, _sums(score, codes), -np.inf).argmax(1)


def _sums(score: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return the sums (clusters, C) of scores: enough to tell which column leads."""
    return np.stack([np.bincount(codes, column) for column in score.T], 1)


def without_single_genes(seeds: Seeds, without: np.ndarray, full: np.ndarray, codes: np.ndarray) -> Seeds:
    """Return the seeds without those of clusters that bear a type's name for one gene alone; types left bare go too.

    Parameters
    ----------
    without, full
        Support of each candidate in each cluster (clusters, C), without its best marker and with it.
    codes
        The cluster of each cell. It bears the name of the type that it has most seeds of, if these are a fifth.

    Raises
    ------
    UserError
        Where there are not two types left.
    """
    types, known = seeds.types.copy(), seeds.known.copy()
    for code in range(len(full)):
        rows = np.flatnonzero(codes == code)
        counts = np.bincount(types[rows][types[rows] >= 0], minlength=len(seeds.present))
        kind = int(counts.argmax())
        candidate = seeds.present[kind]
        if counts[kind] > _NAMED * len(rows) and without[code, candidate] < _ONE_GENE * max(full[code, candidate], 0):
            own = rows[types[rows] == kind]
            types[own], known[own] = -1, False
    left = np.unique(types[types >= 0])
    if len(left) < 2:
        raise _too_few(f"{len(left)} with more than one of its markers")
    place = np.full(len(seeds.present) + 1, -1)
    place[left] = np.arange(len(left))
    return Seeds(place[types], [seeds.present[k] for k in left], known)


def _too_few(found: str) -> UserError:
    return UserError(
        "Too few cell types are found in this slide",
        found=found,
        expected="two or more",
        fix="check that the organ in the slides sheet is right and that the counts are of this slide",
    )


def find_others(seeds: Seeds, codes: np.ndarray, nearest: np.ndarray, settings: Settings) -> tuple[np.ndarray, int]:
    """Return the starting types with the other types added, from the last on, and how many these are.

    A cell may be of another type where its lineage is not known and that of fewer than the share ``other_seeds`` of
    its nearest cells is: among cells of the listed types it is known of about half or more. Such cells of one cluster
    (``codes``) make up one other type, if they are enough.
    """
    known = seeds.known | (seeds.types >= 0)
    foreign = ~known & (known[nearest].mean(1) < settings.other_seeds)
    start = seeds.types.copy()
    n_types, n_others = len(seeds.present), 0
    needed = max(_MIN_OTHER, settings.min_seeds, int(settings.min_seed_share * len(start)))
    for code in np.flatnonzero(np.bincount(codes, foreign) >= needed):
        start[foreign & (codes == code)] = n_types + n_others
        n_others += 1
    return start, n_others
