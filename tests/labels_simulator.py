"""A small simulator of Xenium counts, independent of the synthetic study and of the marker table.

Profiles come from the hand-written programmes below: markers at uneven strength, shared lineage genes, genes of no
table, and leaky expression of everything everywhere. Some programme genes are in no marker table, and many markers of
the table are in no programme.
"""

from __future__ import annotations

from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
from scipy import sparse
from scipy.spatial import cKDTree

EPITHELIAL = ["EPCAM", "KRT8", "KRT18", "KRT19", "CDH1", "CLDN4", "ELF3"]
STROMAL = ["DCN", "LUM", "COL1A1", "COL1A2", "COL5A2", "PDGFRA", "FBLN1"]
VESSEL = ["PECAM1", "VWF", "CDH5", "CLDN5", "EGFL7", "KDR", "RAMP2"]
LEUKOCYTE = ["PTPRC", "CXCR4", "CD69"]
PROGRAMMES: dict[str, list[str]] = {
    "Acinar": ["CPA1", "CPB1", "PRSS1", "CTRC", "CEL", "AMY2A", "GATM", "CUZD1"],
    "B_Cell": [*LEUKOCYTE, "MS4A1", "CD79A", "CD79B", "CD19", "BANK1", "TCL1A", "SPIB"],
    "Cardiomyocyte": ["MYH7", "TNNT2", "TNNI3", "MYBPC3", "RYR2", "ACTN2", "TTN"],
    "Ductal": [*EPITHELIAL, "CFTR", "SOX9", "SCTR", "AQP1", "ANXA4", "SPP1", "KRT7"],
    "Endocrine": ["CHGA", "INS", "GCG", "SCG2", "SCGN", "PCSK1", "ABCC8"],
    "Endothelial": [*VESSEL, "ACKR1", "SELE", "CA4", "FCN3"],
    "Endothelial_TumorAssociated": [*VESSEL, "ESM1", "ANGPT2", "PLVAP", "APLN", "INSR"],
    "Epithelial_Airway": [*EPITHELIAL, "FOXJ1", "SCGB1A1", "CAPS", "RSPH1", "DNAH5", "TP63"],
    "Epithelial_Alveolar": [*EPITHELIAL[:3], "SFTPC", "SFTPD", "SFTPA1", "AGER", "LAMP3", "NAPSA"],
    "Epithelial_Malignant": [*EPITHELIAL, "CD24", "MKI67", "TOP2A", "CENPF", "ERBB2", "MET", "SOX4"],
    "Fibroblast": [*STROMAL, "PI16", "DPT", "CFD", "SFRP2", "MFAP5", "ADH1B"],
    "Macrophage": ["PTPRC", "CD163", "MRC1", "C1QA", "C1QC", "CD14", "CD68", "MS4A7", "AIF1"],
    "Mast_Cell": ["PTPRC", "CPA3", "TPSAB1", "KIT", "MS4A2", "HPGDS", "SLC18A2"],
    "Smooth_Muscle": ["MYH11", "DES", "CNN1", "ACTG2", "ACTA2", "TAGLN", "LMOD1", "MYLK"],
    "T_Cell": [*LEUKOCYTE, "CD3E", "CD3D", "CD2", "TRAC", "IL7R", "CD8A", "GZMK", "CCL5"],
    "Tumor_Associated_Fibroblast": [*STROMAL, "FAP", "POSTN", "COL11A1", "MMP11", "CTHRC1", "THBS2", "INHBA"],
}
LUNG = {
    "Epithelial_Malignant": 0.24, "Epithelial_Airway": 0.08, "Epithelial_Alveolar": 0.1, "Fibroblast": 0.14,
    "Tumor_Associated_Fibroblast": 0.13, "T_Cell": 0.1, "B_Cell": 0.06, "Macrophage": 0.05, "Endothelial": 0.05,
    "Endothelial_TumorAssociated": 0.025, "Mast_Cell": 0.012, "Smooth_Muscle": 0.013,
}  # fmt: skip
PANCREAS = {
    "Epithelial_Malignant": 0.24, "Ductal": 0.1, "Acinar": 0.12, "Endocrine": 0.05, "Fibroblast": 0.14,
    "Tumor_Associated_Fibroblast": 0.13, "T_Cell": 0.07, "B_Cell": 0.03, "Macrophage": 0.05, "Endothelial": 0.035,
    "Endothelial_TumorAssociated": 0.02, "Mast_Cell": 0.015,
}  # fmt: skip
SHARES = {"lung": LUNG, "pancreas": PANCREAS}


@dataclass(frozen=True)
class Slide:
    """Counts, the table of cells that the slides stage would write, and what each cell really is."""

    counts: anndata.AnnData
    cells: pd.DataFrame
    truth: pd.Series


def simulate(
    organ: str = "lung", n: int = 2000, seed: int = 0, spill: float = 0.12, doublets: float = 0.04, poor: float = 0.05,
    shares: dict[str, float] | None = None, drop_genes: tuple[str, ...] = (), extra: int = 90, house: int = 25,
) -> Slide:  # fmt: skip
    """Draw a slide: patchy tissue, profiles, counts, spill-over to neighbours, doublets, poor cells."""
    rng = np.random.default_rng(seed)
    shares = shares or SHARES[organ]
    names = sorted(shares)
    genes, profile = _profiles(rng, names, extra, house)
    side = np.sqrt(n * 80.0)
    xy = rng.uniform(0, side, (n, 2))
    label = _tissue(rng, xy, names, np.array([shares[name] for name in names]), side)
    totals = rng.lognormal(np.log(100), 0.4, n).clip(30, 300)
    totals[rng.random(n) < poor] *= 0.15
    rate = rng.gamma(6.0, 1 / 6.0, (n, len(genes))) * profile[label]
    counts = rng.poisson(totals[:, None] * rate / rate.sum(axis=1, keepdims=True))
    counts = _spill(rng, counts, xy, spill)
    near = cKDTree(xy).query(xy, k=2)[1][:, 1]
    pairs = np.flatnonzero(rng.random(n) < doublets)
    counts[pairs] += counts[near[pairs]]
    kept = [i for i, gene in enumerate(genes) if gene not in drop_genes]
    ids = [f"cell{i:05d}" for i in range(n)]
    matrix = anndata.AnnData(
        sparse.csr_matrix(counts[:, kept].astype(np.float32)),
        obs=pd.DataFrame(index=ids),
        var=pd.DataFrame(index=[genes[i] for i in kept]),
    )
    good = (counts.sum(axis=1) >= 10) & ((counts > 0).sum(axis=1) >= 5)
    cells = pd.DataFrame({
        "cell_id": ids, "x_um": xy[:, 0], "y_um": xy[:, 1], "status": np.where(good, "kept", "dropped"),
        "reason": np.where(good, "", "low_counts"),
    })  # fmt: skip
    return Slide(matrix, cells, pd.Series([names[i] for i in label], index=ids))


def _profiles(rng: np.random.Generator, names: list[str], extra: int, house: int) -> tuple[list[str], np.ndarray]:
    known = sorted({gene for programme in PROGRAMMES.values() for gene in programme})
    genes = known + [f"GENE{i}" for i in range(extra)] + [f"HOUSE{i}" for i in range(house)]
    place = {gene: i for i, gene in enumerate(genes)}
    base = rng.lognormal(-1.2, 0.9, len(genes)) * 0.12
    base[len(known) + extra :] = rng.lognormal(0.3, 0.5, house)
    assert len(place) == len(genes), "a programme names one of the unnamed genes"
    profile = np.tile(base, (len(names), 1))
    for row, name in enumerate(names):
        programme = [place[gene] for gene in PROGRAMMES[name]]
        profile[row, programme] += rng.lognormal(0.5, 0.6, len(programme))
        own = len(known) + rng.choice(extra, 8, replace=False)
        profile[row, own] += rng.lognormal(0.0, 0.5, 8)
        leaky = rng.choice(len(known), 6, replace=False)
        profile[row, leaky] += rng.lognormal(-1.3, 0.4, 6)
    return genes, profile


def _tissue(rng: np.random.Generator, xy: np.ndarray, names: list[str], share: np.ndarray, side: float) -> np.ndarray:
    """Draw classes in patches: each class has sources, and a cell prefers the classes whose sources are near."""
    weight = np.zeros((len(xy), len(names)))
    for column in range(len(names)):
        sources = rng.uniform(0, side, (6, 2))
        distance = np.min(np.linalg.norm(xy[:, None] - sources[None], axis=2), axis=1)
        weight[:, column] = 0.15 + np.exp(-((distance / (0.1 * side)) ** 2))
    scale = np.ones(len(names))
    for _ in range(200):
        chance = weight * scale
        chance /= chance.sum(axis=1, keepdims=True)
        scale *= share / share.sum() / chance.mean(axis=0)
    pick = (rng.random(len(xy))[:, None] > np.cumsum(chance, axis=1)).sum(axis=1)
    return np.minimum(pick, len(names) - 1)


def _spill(rng: np.random.Generator, counts: np.ndarray, xy: np.ndarray, share: float) -> np.ndarray:
    """Move a share of the transcripts of each cell to one of its five nearest cells, each on its own."""
    near = cKDTree(xy).query(xy, k=6)[1][:, 1:]
    lost = rng.binomial(counts, share)
    out = counts - lost
    cell, gene = np.nonzero(lost)
    for i, g in zip(np.repeat(cell, lost[cell, gene]), np.repeat(gene, lost[cell, gene]), strict=True):
        out[near[i, rng.integers(5)], g] += 1
    return out
