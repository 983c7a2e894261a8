"""Transcripts of a tissue: profiles, depth, spill-over, doublets, poor cells and what no cell owns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from nuclass.synthetic.bundle import control_features
from nuclass.synthetic.classes import CLASSES, DEFAULT_DEPTH, DEPTH, HOUSEKEEPING, PROFILES, TUMOUR_GENES
from nuclass.synthetic.raster import area_and_centroid

SPILL = 0.16
"""Share of a cell's transcripts that the segmentation gives to a neighbour."""
UNASSIGNED = 0.08
POOR, DOUBLET, WITHOUT_NUCLEUS = 0.04, 0.04, 0.012
_CONTROL_RATE = {
    "negative_control_probe": 0.002,
    "negative_control_codeword": 0.0015,
    "genomic_control_probe": 0.0008,
    "unassigned_codeword": 0.004,
    "deprecated_codeword": 0.0004,
}


@dataclass(frozen=True)
class Panel:
    """The genes of the study and, per class, the relative rate of each (rows sum to 1)."""

    genes: list[str]
    rates: dict[str, np.ndarray]
    tumour: dict[str, np.ndarray]


def make_panel(rng: np.random.Generator) -> Panel:
    """Draw the study's panel: markers at uneven strength, each leaking into every other class."""
    markers = {gene for profile in PROFILES.values() for gene in profile}
    markers |= {gene for genes in TUMOUR_GENES.values() for gene in genes}
    genes = sorted(markers | set(HOUSEKEEPING))
    index = {gene: k for k, gene in enumerate(genes)}
    strength = np.exp(rng.normal(0, 0.45, len(genes)))
    leak = 0.07 * np.exp(rng.normal(0, 0.9, len(genes)))
    house = np.zeros(len(genes))
    house[[index[gene] for gene in HOUSEKEEPING]] = np.exp(rng.normal(-0.2, 0.7, len(HOUSEKEEPING)))
    rates: dict[str, np.ndarray] = {}
    for name in CLASSES:
        own = np.zeros(len(genes))
        for gene, level in PROFILES[name].items():
            own[index[gene]] = level
        rates[name] = own * strength * np.exp(rng.normal(0, 0.15, len(genes))) + leak
        rates[name] = rates[name] + house * np.exp(rng.normal(0, 0.35, len(genes)))
    tumour: dict[str, np.ndarray] = {}
    for organ, extra in TUMOUR_GENES.items():
        own = rates["Epithelial_Malignant"].copy()
        for gene in extra:
            own[index[gene]] += 0.9 * strength[index[gene]]
        tumour[organ] = own / own.sum()
    return Panel(genes, {name: rate / rate.sum() for name, rate in rates.items()}, tumour)


@dataclass(frozen=True)
class Expression:
    """What the instrument and the segmentation report.

    ``transcripts`` has x_um, y_um, z_um, feature_name, qv, cell (row of the tissue, -1 where
    unassigned) and overlaps_nucleus; ``merged_into`` gives for each cell the row whose record holds it
    (itself unless it was swallowed by a doublet); ``has_nucleus`` tells where a nucleus was segmented.
    """

    transcripts: pd.DataFrame
    merged_into: np.ndarray
    poor: np.ndarray
    has_nucleus: np.ndarray

    @property
    def reported(self) -> np.ndarray:
        """Rows of the tissue that have a record of their own."""
        return np.flatnonzero(self.merged_into == np.arange(len(self.merged_into)))


def express(
    cells: pd.DataFrame,
    organ: str,
    panel: Panel,
    nucleus: np.ndarray,
    cell_polygons: np.ndarray,
    rng: np.random.Generator,
) -> Expression:
    """Draw all transcripts of a section.

    ``nucleus`` and ``cell_polygons`` are closed outlines (N, V, 2) in micrometres.
    """
    n = len(cells)
    xy = cells[["x", "y"]].to_numpy(float)
    kinds = cells["class"].to_numpy()
    batch = np.exp(rng.normal(0, 0.12, len(panel.genes)))
    depth = np.array([DEPTH.get(kind, DEFAULT_DEPTH) for kind in kinds]) * np.exp(rng.normal(0, 0.4, n))
    poor = rng.random(n) < POOR
    depth[poor] *= rng.uniform(0.01, 0.12, int(poor.sum()))
    owners, genes = [], []
    for kind in np.unique(kinds):
        rows = np.flatnonzero(kinds == kind)
        rate = (panel.tumour[organ] if kind == "Epithelial_Malignant" else panel.rates[kind]) * batch
        noise = rng.gamma(4.0, 0.25, (len(rows), len(rate)))
        counts = rng.poisson(depth[rows, None] * (rate / rate.sum())[None, :] * noise)
        row, gene = np.nonzero(counts)
        times = counts[row, gene]
        owners.append(np.repeat(rows[row], times))
        genes.append(np.repeat(gene, times))
    owner, gene = np.concatenate(owners), np.concatenate(genes)
    order = np.argsort(owner, kind="stable")
    owner, gene = owner[order], gene[order]

    assigned = _spill(xy, owner, rng)
    merged = _merge_doublets(xy, area_and_centroid(nucleus)[0], poor, rng)
    has_nucleus = rng.random(n) >= WITHOUT_NUCLEUS
    has_nucleus[merged[merged != np.arange(n)]] = True
    names = np.array(panel.genes, dtype=object)[gene]
    extra_owner, extra_name = _controls(n, len(owner), rng)
    assigned = np.concatenate([assigned, extra_owner])
    place = np.concatenate([owner, np.where(extra_owner >= 0, extra_owner, rng.integers(0, n, len(extra_owner)))])
    frame = _locate(assigned, place, nucleus, cell_polygons, has_nucleus, rng)
    frame["feature_name"] = np.concatenate([names, extra_name])
    frame["cell"] = np.where(assigned >= 0, merged[np.maximum(assigned, 0)], -1)
    frame["qv"] = np.where(rng.random(len(frame)) < 0.05, rng.uniform(5, 19.9, len(frame)), 40.0).astype(np.float32)
    return Expression(frame, merged, poor, has_nucleus)


def _spill(xy: np.ndarray, owner: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give some transcripts to a near neighbour, and some to nobody."""
    reach, k = 16.0, min(5, len(xy))
    distance, neighbour = cKDTree(xy).query(xy, k=k)
    assigned = owner.copy()
    spilled = rng.random(len(owner)) < SPILL
    choice = rng.integers(1, max(k, 2), int(spilled.sum()))
    rows = owner[spilled]
    near = distance[rows, choice] < reach
    assigned[spilled] = np.where(near, neighbour[rows, choice], -1)
    assigned[rng.random(len(owner)) < UNASSIGNED] = -1
    return assigned


def _merge_doublets(xy: np.ndarray, area: np.ndarray, poor: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Choose pairs of touching cells that the segmentation takes for one: the one with the larger nucleus."""
    merged = np.arange(len(xy))
    used = poor.copy()
    distance, neighbour = cKDTree(xy).query(xy, k=2)
    for i in np.flatnonzero(rng.random(len(xy)) < DOUBLET):
        j = neighbour[i, 1]
        if distance[i, 1] < 13.0 and not used[i] and not used[j]:
            small, large = (i, j) if area[i] < area[j] else (j, i)
            merged[small] = large
            used[[i, j]] = True
    return merged


def _controls(n_cells: int, n_transcripts: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw control and unassigned codewords: half of them in cells. Returns owners (-1: none) and names."""
    owners, names = [], []
    for category, group in control_features().groupby("category", sort=False):
        number = int(rng.poisson(_CONTROL_RATE[str(category)] * n_transcripts))
        owners.append(np.where(rng.random(number) < 0.5, rng.integers(0, n_cells, number), -1))
        names.append(group["name"].to_numpy(object)[rng.integers(0, len(group), number)])
    return np.concatenate(owners), np.concatenate(names)


def _locate(
    assigned: np.ndarray,
    place: np.ndarray,
    nucleus: np.ndarray,
    cell_polygons: np.ndarray,
    has_nucleus: np.ndarray,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Put each transcript inside the outline of the cell it is assigned to (or beside its source)."""
    n = len(assigned)
    row = np.where(assigned >= 0, assigned, place)
    in_nucleus = (rng.random(n) < 0.5) & (assigned >= 0) & has_nucleus[row]
    vertex = rng.integers(0, nucleus.shape[1] - 1, n)
    centre = np.where(in_nucleus[:, None], nucleus[:, :-1].mean(1)[row], cell_polygons[:, :-1].mean(1)[row])
    rim = np.where(in_nucleus[:, None], nucleus[row, vertex], cell_polygons[row, vertex])
    share = np.sqrt(rng.random(n))[:, None]
    share = np.where(
        in_nucleus[:, None], 0.95 * share, np.where(assigned[:, None] >= 0, 0.5 + 0.45 * share, 1.2 + share)
    )
    xy = centre + share * (rim - centre)
    return pd.DataFrame(
        {
            "x_um": np.round(np.maximum(xy[:, 0], 0) * 64) / 64,
            "y_um": np.round(np.maximum(xy[:, 1], 0) * 64) / 64,
            "z_um": np.round(rng.uniform(8, 22, n) * 64) / 64,
            "overlaps_nucleus": in_nucleus,
        }
    )
