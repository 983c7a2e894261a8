"""Labels on real gene panels, on simulated counts as hard as real ones, at the resolution of nine broad groups."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

from nuclass.labels.assign import Settings, label_cells
from nuclass.labels.cluster import cluster
from nuclass.labels.markers import load_markers, marker_sets
from nuclass.labels.ontology import load_ontology
from panel_simulator import Slide, simulate_panel

MARKERS = load_markers("resources/markers/markers.tsv")
ONTOLOGY = load_ontology("resources/label_ontology.yaml")
SETTINGS = Settings()
N = 3000
SEEDS = (501, 502)
KINDS = ("xenium", "scrna")
STROMA = ("fibroblast", "endothelial", "pericyte", "smooth_muscle", "glia")

GROUPS = {
    "T": ["T_Cell"],
    "B": ["B_Cell"],
    "plasma": ["Plasma_Cell"],
    "macrophage": ["Macrophage"],
    "myeloid": ["Monocyte", "Dendritic_Cell", "Plasmacytoid_Dendritic_Cell", "Neutrophil"],
    "malignant": ["Epithelial_Malignant"],
    "epithelial": [
        "Epithelial_Luminal_Mature", "Epithelial_Luminal_Progenitor", "Myoepithelial", "Epithelial_Airway",
        "Epithelial_Alveolar", "Enterocyte", "Goblet_Cell", "Enteroendocrine_Cell", "Tuft_Cell",
    ],
    "fibroblast": ["Fibroblast", "Tumor_Associated_Fibroblast"],
    "endothelial": ["Endothelial", "Endothelial_TumorAssociated", "Lymphatic_Endothelial"],
}  # fmt: skip
GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}


def grouped(types: pd.Series) -> np.ndarray:
    """Name the group of each cell type; types of no group keep their name, and no type is no group."""
    return types.map(lambda name: GROUP_OF.get(name, name)).to_numpy(str)


@dataclass(frozen=True)
class Scored:
    """Cells of the nine groups: their group, the best one found, whether it became a label, and the reason if not."""

    truth: np.ndarray
    best: np.ndarray
    kept: np.ndarray
    reason: np.ndarray

    def right(self, of: np.ndarray) -> float:
        return float((self.best == self.truth)[of].mean())

    def balanced(self, of: np.ndarray, best: np.ndarray | None = None) -> float:
        """Mean over the groups of the share of their cells in ``of`` that are found."""
        best = self.best if best is None else best
        groups = np.unique(self.truth)
        assert (np.unique(self.truth[of]) == groups).all(), "a group has no cell to score"
        return float(np.mean([(best == group)[of & (self.truth == group)].mean() for group in groups]))


@cache
def slide_of(panel: str, kind: str, seed: int, hard: bool, gone: tuple[str, ...]) -> Slide:
    noise = {"doublets": 0.08, **({"spill": 0.24} if kind == "xenium" else {})} if hard else {}
    return simulate_panel(panel, N, seed, kind, drop_genes=gone, **noise)


@cache
def scored(panel: str, kind: str, seed: int, hard: bool = False, gone: tuple[str, ...] = ()) -> Scored:
    slide = slide_of(panel, kind, seed, hard, gone)
    cells = slide.cells.drop(columns=["x_um", "y_um"]) if kind == "scrna" else slide.cells
    labels = label_cells(slide.counts, cells, MARKERS, panel, ONTOLOGY, SETTINGS).labels
    of = slide.coarse.isin([*GROUPS, *(STROMA if panel == "colon" else ())]).to_numpy()
    kept = labels["status"].to_numpy(str) == "labelled"
    return Scored(
        slide.coarse.to_numpy(str)[of], grouped(labels["raw_label"])[of], kept[of], labels["reason"].to_numpy(str)[of]
    )


@cache
def plain_recipe(panel: str, kind: str, seed: int) -> np.ndarray:
    """Name clusters by mean z-scores of the same markers: normalise, log, components, one Leiden clustering."""
    slide = slide_of(panel, kind, seed, False, ())
    data = slide.counts.copy()
    sc.pp.normalize_total(data)
    sc.pp.log1p(data)
    codes = cluster(sparse.csr_matrix(data.X), Settings(resolutions=(1.0,)), SETTINGS.n_neighbors).finest
    values = pd.DataFrame(data.X.toarray(), columns=data.var_names)
    values = (values - values.mean()) / (values.std() + 1e-9)
    candidates, _ = marker_sets(MARKERS, panel, data.var_names)
    score = np.stack([values[list(c.positive)].mean(axis=1) for c in candidates], 1)
    sums = np.stack([np.bincount(codes, column) for column in score.T], 1)
    names = pd.Series([c.name for c in candidates])
    of = slide.coarse.isin(list(GROUPS)).to_numpy()
    return grouped(names[sums.argmax(1)[codes]])[of]


def third_of_markers(panel: str, seed: int) -> tuple[str, ...]:
    """Choose a third of the panel's genes that are positive markers of some type."""
    genes = slide_of(panel, "xenium", seed, False, ()).counts.var_names
    listed = set(MARKERS.loc[MARKERS["sign"] == "positive", "gene"])
    own = sorted(set(genes) & listed)
    return tuple(np.random.default_rng(seed).permutation(own)[: len(own) // 3])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("panel", ["breast", "lung"])
def test_groups_are_right_on_most_cells(panel: str, kind: str, seed: int) -> None:
    result = scored(panel, kind, seed)
    assert result.kept.mean() >= 0.8
    assert result.balanced(result.kept) >= 0.85


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_better_than_a_plain_recipe_with_the_same_markers(kind: str, seed: int) -> None:
    result, plain = scored("breast", kind, seed), plain_recipe("breast", kind, seed)
    for of in (result.kept, np.ones_like(result.kept)):
        assert result.balanced(of) > result.balanced(of, plain) + 0.08


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("panel", ["breast", "lung"])
def test_kept_cells_are_clearly_better_than_abstained_ones(panel: str, kind: str) -> None:
    kept, rest = [], []
    for seed in SEEDS:
        result = scored(panel, kind, seed)
        kept.append(result.right(result.kept))
        rest.append(result.right(~result.kept & (result.best != "")))
    assert np.mean(kept) > np.mean(rest) + 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_twice_the_spill_and_doublets(kind: str) -> None:
    results = [scored("breast", kind, seed, hard=True) for seed in SEEDS]
    assert min(result.kept.mean() for result in results) >= 0.8
    balanced = [result.balanced(result.kept) for result in results]
    assert np.mean(balanced) >= 0.85
    assert min(balanced) >= 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_twice_the_spill_and_doublets_leave_more_cells_unlabelled(kind: str) -> None:
    share = [np.mean([scored("breast", kind, seed, hard).kept.mean() for seed in SEEDS]) for hard in (False, True)]
    assert share[1] < share[0]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_panel_without_a_third_of_its_marker_genes(kind: str, seed: int) -> None:
    gone = third_of_markers("breast", seed)
    assert len(gone) > 40
    result = scored("breast", kind, seed, gone=gone)
    assert result.kept.mean() >= 0.8
    assert result.balanced(result.kept) >= 0.8


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_stroma_without_markers_gets_no_name_of_another_type(kind: str, seed: int) -> None:
    genes = slide_of("colon", kind, seed, False, ()).counts.var_names
    found = {GROUP_OF.get(c.name, c.name) for c in marker_sets(MARKERS, "colon", genes)[0]}
    assert not found & {"fibroblast", "endothelial", "Pericyte", "Smooth_Muscle", "Schwann_Cell"}
    result = scored("colon", kind, seed)
    stroma = np.isin(result.truth, STROMA)
    assert (result.reason[stroma] == "other_type").mean() > 0.8
    assert result.kept[stroma].mean() < 0.1
    assert result.kept[~stroma].mean() > 0.8, "cells of types with markers are labelled all the same"
    assert result.right(result.kept & ~stroma) > 0.75


@pytest.mark.parametrize(("panel", "seed"), [("breast", 203), ("lung", 303), ("lung", 309)])
def test_a_tumour_is_named_although_its_dividing_cells_lie_together(panel: str, seed: int) -> None:
    result = scored(panel, "xenium", seed)
    tumour = result.truth == "malignant"
    assert result.kept[tumour].mean() > 0.8
    assert result.right(tumour & result.kept) > 0.85


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("filling", ["T", "fibroblast", "malignant"])
def test_a_group_that_fills_the_table_is_not_lost(filling: str, kind: str) -> None:
    others = {"T": 0.08, "B": 0.03, "plasma": 0.02, "macrophage": 0.06, "malignant": 0.08, "epithelial": 0.04,
              "fibroblast": 0.06, "endothelial": 0.05}  # fmt: skip
    slide = simulate_panel("breast", N, 503, kind, shares={**others, filling: 0.7})
    cells = slide.cells.drop(columns=["x_um", "y_um"]) if kind == "scrna" else slide.cells
    labels = label_cells(slide.counts, cells, MARKERS, "breast", ONTOLOGY, SETTINGS).labels
    of = (slide.coarse == filling).to_numpy() & (labels["status"] != "dropped").to_numpy()
    kept = of & (labels["status"] == "labelled").to_numpy()
    assert kept.sum() / of.sum() > 0.75
    assert (grouped(labels["raw_label"])[kept] == filling).mean() > 0.75
