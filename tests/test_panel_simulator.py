"""The panel simulator draws what it says: plausible, reproducible, and hard enough that no classifier is perfect."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.spatial import cKDTree
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from panel_simulator import COARSE, NICHES, PANELS, Slide, load_panel, simulate_panel

GROUPS = ["T", "B", "plasma", "macrophage", "myeloid", "malignant", "epithelial", "fibroblast", "endothelial"]
SIZES = {"breast": 280, "lung": 289, "colon": 322}


def _dense(slide: Slide) -> np.ndarray:
    return slide.counts.X.toarray()


def _share(slide: Slide, gene: str, of: np.ndarray) -> float:
    return float((_dense(slide)[of, slide.counts.var_names.get_loc(gene)] > 0).mean())


def _supervised(slide: Slide) -> float:
    """Cross-validated balanced accuracy of a logistic regression over the nine groups."""
    coarse = slide.coarse.to_numpy(str)
    of = np.isin(coarse, GROUPS)
    counts = _dense(slide)[of]
    values = np.log1p(1e2 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    guess = cross_val_predict(LogisticRegression(C=0.3, max_iter=300), values, coarse[of], cv=folds)
    return float(balanced_accuracy_score(coarse[of], guess))


@pytest.mark.parametrize("panel", PANELS)
def test_profiles_are_complete(panel: str) -> None:
    known = load_panel(panel)
    assert len(known.genes) == SIZES[panel] == len(set(known.genes))
    assert known.profile.shape == (len(known.types), len(known.genes))
    assert (known.profile >= 0).all()
    assert known.profile.max() <= 10
    assert set(GROUPS) <= set(known.types["coarse"])
    assert known.types["share"].sum() == pytest.approx(1, abs=0.02)
    assert (known.types[list(NICHES)].to_numpy(float) > 0).all()
    assert all(
        name in known.types.index for names in known.types["siblings"] for name in names.split(",") if name != "-"
    )


def test_a_type_has_one_coarse_group_in_all_panels() -> None:
    types = pd.concat([load_panel(panel).types for panel in PANELS])
    assert (types.groupby(level=0)["coarse"].nunique() == 1).all()
    assert set(types.index) == set(COARSE)


@pytest.mark.parametrize("panel", PANELS)
def test_most_genes_are_no_markers(panel: str) -> None:
    """Fewer than half of the genes stand out at least threefold in one coarse group."""
    known = load_panel(panel)
    groups = known.types["coarse"].to_numpy()
    by_group = np.sort([known.profile[groups == group].max(axis=0) for group in np.unique(groups)], axis=0)
    assert (by_group[-1] > 3 * (by_group[-2] + 0.05)).mean() < 0.5


@pytest.mark.parametrize("kind", ["xenium", "scrna"])
def test_a_seed_gives_one_slide(kind: str) -> None:
    first, again, other = (simulate_panel(n=400, seed=seed, kind=kind) for seed in (3, 3, 4))
    assert (first.counts.X != again.counts.X).nnz == 0
    pd.testing.assert_frame_equal(first.cells, again.cells)
    pd.testing.assert_series_equal(first.truth, again.truth)
    assert (first.counts.X != other.counts.X).nnz > 0


@pytest.mark.parametrize("panel", PANELS)
@pytest.mark.parametrize("kind", ["xenium", "scrna"])
def test_counts_cells_and_truth_belong_together(panel: str, kind: str) -> None:
    slide = simulate_panel(panel, n=500, seed=1, kind=kind)
    counts = _dense(slide)
    assert (counts == np.round(counts)).all()
    assert counts.min() >= 0
    assert list(slide.counts.obs_names) == list(slide.cells["cell_id"]) == list(slide.truth.index)
    assert list(slide.counts.var_names) == load_panel(panel).genes
    assert slide.cells[["x_um", "y_um"]].isna().all(axis=None) == (kind == "scrna")
    assert slide.counts.obs["patient"].nunique() == (8 if kind == "scrna" else 1)
    assert slide.coarse.notna().all()
    low = counts.sum(axis=1) < 10
    assert (slide.cells["status"].to_numpy()[low] == "dropped").all()


@pytest.mark.parametrize("panel", PANELS)
def test_depths_are_those_of_real_slides_and_tables(panel: str) -> None:
    slide, table = (simulate_panel(panel, n=3000, seed=2, kind=kind) for kind in ("xenium", "scrna"))
    assert 60 <= np.median(_dense(slide).sum(axis=1)) <= 150
    total, coarse = pd.Series(_dense(table).sum(axis=1)), table.coarse.to_numpy()
    assert 110 <= total.median() <= 200
    assert 45 <= total[coarse == "T"].median() <= 85
    assert 220 <= total[coarse == "malignant"].median() <= 380
    assert total.quantile(0.95) > 2.5 * total.median()


@pytest.mark.parametrize("kind", ["xenium", "scrna"])
def test_shares_are_respected_by_type_and_by_group(kind: str) -> None:
    shares = {"T_CD8": 0.2, "malignant": 0.5, "fibroblast": 0.25, "Mast": 0.05}
    slide = simulate_panel(n=4000, seed=5, kind=kind, shares=shares)
    found = slide.coarse.value_counts(normalize=True)
    for group, share in {"T": 0.2, "malignant": 0.5, "fibroblast": 0.25, "mast": 0.05}.items():
        assert found[group] == pytest.approx(share, abs=0.025), group
    assert set(slide.truth[slide.coarse == "T"]) == {"T_CD8"}
    with pytest.raises(AssertionError, match="T_CD9"):
        simulate_panel(n=400, shares={"T_CD9": 1.0})


def test_patients_of_a_table_differ_and_lack_types() -> None:
    table = simulate_panel(n=8000, seed=0, kind="scrna")
    found = pd.crosstab(table.counts.obs["patient"].to_numpy(), table.truth.to_numpy())
    assert (found == 0).to_numpy().any()
    malignant = found[[name for name in found if COARSE[name] == "malignant"]]
    assert ((malignant > 0).sum(axis=1) == 1).all()
    assert (malignant > 0).any(axis=0).sum() >= 3


def test_genes_can_be_left_out_without_changing_the_others() -> None:
    whole, part = simulate_panel(n=300), simulate_panel(n=300, drop_genes=("EPCAM", "CD3E"))
    assert set(whole.counts.var_names) - set(part.counts.var_names) == {"EPCAM", "CD3E"}
    assert (whole.counts[:, part.counts.var_names].X != part.counts.X).nnz == 0
    with pytest.raises(AssertionError, match="EPCAN"):
        simulate_panel(n=300, drop_genes=("EPCAN",))


def test_spill_over_moves_transcripts_to_neighbours_of_the_source() -> None:
    """CD3E of other cells is rare without spill-over; with it, it is found beside T cells rather than far away."""
    clean, spilt = (simulate_panel(n=6000, seed=4, spill=spill, doublets=0) for spill in (0.0, 0.2))
    assert (clean.truth == spilt.truth).all()
    xy, coarse = spilt.cells[["x_um", "y_um"]].to_numpy(), spilt.coarse.to_numpy()
    away = cKDTree(xy[coarse == "T"]).query(xy)[0]
    other = np.isin(coarse, ["malignant", "epithelial", "fibroblast", "endothelial"])
    beside, far = other & (away < 15), other & (away > 30)
    assert _share(spilt, "CD3E", beside) > 2 * _share(clean, "CD3E", beside)
    assert _share(spilt, "CD3E", beside) > 1.5 * _share(spilt, "CD3E", far)
    assert _dense(spilt).sum() == pytest.approx(_dense(clean).sum(), rel=0.02)


def test_ambient_rna_and_doublets_add_foreign_transcripts() -> None:
    def plasma_in_fibroblasts(**options: float) -> float:
        table = simulate_panel(n=4000, seed=6, kind="scrna", **options)
        return _share(table, "MZB1", table.coarse.to_numpy() == "fibroblast")

    clean = plasma_in_fibroblasts(ambient=0, doublets=0)
    assert plasma_in_fibroblasts(ambient=0.08, doublets=0) > 1.5 * clean
    assert plasma_in_fibroblasts(ambient=0, doublets=0.5) > 1.5 * clean


def test_tissue_has_ducts_with_an_outer_layer_and_nests() -> None:
    slide = simulate_panel(n=6000, seed=7)
    xy, truth, coarse = slide.cells[["x_um", "y_um"]].to_numpy(), slide.truth.to_numpy(), slide.coarse.to_numpy()
    near = cKDTree(xy).query(xy, k=7)[1][:, 1:]
    assert (coarse[near[coarse == "malignant"]] == "malignant").mean() > 0.6
    luminal = np.char.startswith(truth.astype(str), "Luminal")
    basal = truth == "Myoepithelial"
    assert luminal[near[basal]].mean() > 5 * luminal.mean()
    outside = coarse != "epithelial"
    assert outside[near[basal]].mean() > 1.6 * outside[near[luminal]].mean()
    assert (coarse[near[coarse == "B"]] == "B").mean() > 3 * (coarse == "B").mean()


def test_few_malignant_cells_cycle_in_a_slow_tumour() -> None:
    def cycling(kind_of_tumour: str) -> float:
        table = simulate_panel(n=3000, seed=1, kind="scrna", ambient=0, shares={kind_of_tumour: 0.8, "T": 0.2})
        of = table.coarse.to_numpy() == "malignant"
        genes = table.counts.var_names.get_indexer(["MKI67", "TOP2A", "CENPF"])
        return float((_dense(table)[of][:, genes].sum(axis=1) >= 4).mean())

    assert cycling("Malignant_luminal_A") < 0.12
    assert 0.12 < cycling("Malignant_basal") < 0.45


def test_tumours_of_two_patients_differ_more_than_their_t_cells() -> None:
    table = simulate_panel(n=6000, seed=2, kind="scrna", patients=2, shares={"Malignant_luminal_A": 0.5, "T_CD4": 0.5})
    values, coarse = _dense(table), table.coarse.to_numpy()
    patient = table.counts.obs["patient"].to_numpy()

    def distance(group: str) -> float:
        a, b = (values[(coarse == group) & (patient == name)].mean(axis=0) for name in ("P1", "P2"))
        seen = (a + b) > 0.4
        return float(np.std(np.log(a[seen] / a.sum() + 1e-6) - np.log(b[seen] / b.sum() + 1e-6)))

    assert distance("malignant") > 1.4 * distance("T")


@pytest.mark.parametrize("panel", PANELS)
@pytest.mark.parametrize("kind", ["xenium", "scrna"])
def test_a_supervised_classifier_is_good_and_not_perfect(panel: str, kind: str) -> None:
    assert 0.85 < _supervised(simulate_panel(panel, n=2500, seed=3, kind=kind)) < 0.975
