"""The rule that tells malignant from normal epithelium: tumours proliferate.

Normal epithelium and the tumour that grew from it share most of their genes, so markers alone decide little. Outside
crypts and follicles normal epithelium divides about as rarely as the stroma around it; carcinomas divide several times
as often (Ki-67 counts of pathology rest on the same fact). So each cluster of epithelial cells moves the malignant
score of its cells by how much more of its transcripts come from genes of the cell cycle than in the stroma of the same
slide. What the markers say stays in the sum: a cluster with the whole programme of a normal type needs more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

MALIGNANT = "Epithelial_Malignant"
EPITHELIAL = "Epithelial"
STROMAL = ("Fibroblast", "Endothelial", "Mural")
CELL_CYCLE = (
    "MKI67", "TOP2A", "CENPF", "RRM2", "UBE2C", "CDK1", "BIRC5", "TYMS", "PCLAF", "MYBL2", "CCNB1", "CDC20", "TPX2",
    "NUSAP1", "AURKA", "CCNB2",
)  # fmt: skip
"""Genes of S, G2 and M phase that are hardly expressed outside them (Tirosh et al., Science 2016)."""

PER_DOUBLING = 0.5
"""What each doubling of the rate over the stroma's adds to the malignant score, standard deviations of expression."""
LIMITS = (-0.5, 1.5)
_PSEUDO = 3.0
_MIN_STROMA = 50


def malignant_bonus(
    counts: sparse.csr_matrix, genes: Sequence[str], codes: np.ndarray, lineage: np.ndarray, prior: float
) -> np.ndarray:
    """Return what the rule adds to the malignant score of each cell (N,); 0 outside clusters of epithelium.

    Parameters
    ----------
    counts
        Counts (N, G).
    codes
        The cluster of each cell, within its lineage.
    lineage
        The lineage of each cell's cluster (N,), as text.
    prior
        What is added at the stroma's own rate: above 0 where most epithelium of such sections is malignant.
    """
    bonus = np.zeros(len(codes), np.float32)
    columns = [k for k, gene in enumerate(genes) if gene in CELL_CYCLE]
    stroma = np.isin(lineage, STROMAL)
    if stroma.sum() < _MIN_STROMA:
        stroma = lineage != EPITHELIAL
    if not columns or not stroma.any():
        return np.where(lineage == EPITHELIAL, prior, bonus).astype(np.float32)
    cycle = np.asarray(counts[:, columns].sum(1), np.float64).ravel()
    depth = np.asarray(counts.sum(1), np.float64).ravel()
    base = (cycle[stroma].sum() + 1) / (depth[stroma].sum() + 1)
    n = int(codes.max()) + 1
    expected = np.bincount(codes, depth, n) * base
    ratio = (np.bincount(codes, cycle, n) + _PSEUDO) / (expected + _PSEUDO)
    added = np.clip(PER_DOUBLING * np.log2(ratio), *LIMITS)[codes] + prior
    return np.where(lineage == EPITHELIAL, added, 0.0).astype(np.float32)
