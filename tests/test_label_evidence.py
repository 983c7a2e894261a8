"""Marker evidence, layout, and the counts and scores of labels: hand-computed cases and scanpy's own numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from nuclass.core.errors import UserError
from nuclass.labels.evidence import MARKER_COLUMNS, fuzzy_graph, marker_evidence, umap_coordinates
from nuclass.labels.measures import (
    STEPS,
    compare_confidence,
    confidence_counts,
    confidence_of,
    funnel_counts,
    type_counts,
)

NO_MARKERS = pd.DataFrame(columns=["cell_type", "gene", "sign"])


def table(rows: list[tuple[str, str, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["cell_type", "gene", "sign"])


def random_counts(n: int = 300, genes: int = 12, seed: int = 0) -> tuple[sparse.csr_matrix, list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    types = np.array(["A", "B", "C", ""], dtype=object)[rng.integers(0, 4, n)]
    rate = np.full((n, genes), 0.6)
    for k, name in enumerate("ABC"):
        rate[types == name, 3 * k : 3 * k + 3] += 2
    return sparse.csr_matrix(rng.poisson(rate)), [f"g{k}" for k in range(genes)], types


# The evidence of markers


def test_evidence_by_hand() -> None:
    # Depth 10 in each cell, so that nothing is scaled; the last cell has no type and must not count.
    counts = sparse.csr_matrix([[3, 7, 0], [1, 9, 0], [0, 2, 8], [0, 2, 8], [10, 0, 0]])
    markers = table(
        [("A", "g0", "positive"), ("A", "g2", "negative"), ("Z", "g1", "positive"), ("B", "absent", "positive")]
    )
    found = marker_evidence(counts, ["g0", "g1", "g2"], ["A", "A", "B", "B", ""], markers, top=1)
    assert list(found.columns) == list(MARKER_COLUMNS)
    row = found.set_index(["cell_type", "gene"]).loc[("A", "g0")]
    assert row["listed"] == "positive"
    assert row["mean"] == pytest.approx((np.log(4) + np.log(2)) / 2)
    assert row["fraction"] == 1
    assert row["log2_fold"] == pytest.approx(np.log2(2.01 / 0.01))
    deviation = np.std([np.log(4), np.log(2)], ddof=1)
    assert row["score"] == pytest.approx((np.log(4) + np.log(2)) / 2 / (deviation / np.sqrt(2)))
    assert found.set_index(["cell_type", "gene"]).loc[("A", "g2"), "listed"] == "negative"
    # A type that no cell has, and a gene that the panel lacks, are not shown.
    assert set(found["cell_type"]) == {"A", "B"}
    assert "absent" not in set(found["gene"])


def test_fold_is_over_the_mean_of_the_other_types_whatever_their_numbers() -> None:
    # Depth 10 in each cell: 8 in A; 2 in B, which has three cells, and 0 in C, which has one. Their mean is 1.
    counts = sparse.csr_matrix([[8, 2], [2, 8], [2, 8], [2, 8], [0, 10]])
    found = marker_evidence(counts, ["g0", "g1"], list("ABBBC"), NO_MARKERS).set_index(["cell_type", "gene"])
    assert found.loc[("A", "g0"), "log2_fold"] == pytest.approx(np.log2(8.01 / 1.01))


def test_evidence_has_every_type_by_every_gene_shown() -> None:
    counts, genes, types = random_counts()
    found = marker_evidence(counts, genes, types, table([("A", "g11", "positive")]), top=2)
    shown = set(found["gene"])
    assert "g11" in shown
    assert len(found) == 3 * len(shown)
    best = found[found["rank"] <= 2].groupby("cell_type")["gene"].agg(set)
    assert best["A"] < {"g0", "g1", "g2"}
    assert best["C"] < {"g6", "g7", "g8"}
    assert (found.groupby("cell_type")["rank"].diff().dropna() > 0).all()


def test_scores_are_those_of_scanpy() -> None:
    import anndata as ad
    import scanpy as sc

    counts, genes, types = random_counts(400, seed=3)
    found = marker_evidence(counts, genes, types, NO_MARKERS, top=len(genes))
    typed = types != ""
    data = ad.AnnData(
        counts[typed].astype(np.float64),
        obs=pd.DataFrame({"type": pd.Categorical(types[typed])}),
        var=pd.DataFrame(index=genes),
    )
    data.obs_names = [f"c{k}" for k in range(data.n_obs)]
    sc.pp.normalize_total(data)
    sc.pp.log1p(data)
    sc.tl.rank_genes_groups(data, "type", method="t-test")
    for name in "ABC":
        theirs = sc.get.rank_genes_groups_df(data, name).set_index("names")["scores"]
        ours = found[found["cell_type"] == name].set_index("gene")["score"]
        np.testing.assert_allclose(ours, theirs.reindex(ours.index), rtol=1e-4)
        assert ours.index.tolist() == theirs.index.tolist()
        mean = np.asarray(data[data.obs["type"] == name].X.mean(0)).ravel()
        shown = found[found["cell_type"] == name].set_index("gene")["mean"].reindex(genes)
        np.testing.assert_allclose(shown, mean, rtol=1e-5)


def test_evidence_does_not_depend_on_the_parts_it_is_summed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, genes, types = random_counts()
    whole = marker_evidence(counts, genes, types, NO_MARKERS)
    monkeypatch.setattr("nuclass.labels.evidence._CHUNK", 7)
    pd.testing.assert_frame_equal(whole, marker_evidence(counts, genes, types, NO_MARKERS))


def test_evidence_without_types_with_one_and_with_empty_cells() -> None:
    counts, genes, types = random_counts(40)
    none = marker_evidence(counts, genes, np.full(40, "", dtype=object), NO_MARKERS)
    assert none.empty
    assert list(none.columns) == list(MARKER_COLUMNS)
    one = marker_evidence(counts, genes, np.full(40, "A", dtype=object), NO_MARKERS, top=3)
    assert one["score"].isna().all()
    assert one["log2_fold"].isna().all()
    assert one["mean"].is_monotonic_decreasing
    empty = marker_evidence(sparse.csr_matrix((4, 2)), ["a", "b"], ["A", "A", "B", "B"], NO_MARKERS)
    assert (empty[["mean", "fraction", "log2_fold", "score"]] == 0).all(axis=None)
    with pytest.raises(UserError, match="do not fit"):
        marker_evidence(counts, genes, types[:-1], NO_MARKERS)


# The layout


def blobs(n: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, 10)).astype(np.float32)
    x[: n // 2] += 6
    return x


def test_layout_is_the_same_twice_and_keeps_groups_apart() -> None:
    x, ids = blobs(120), np.array([f"c{k}" for k in range(120)])
    first = umap_coordinates(x, ids, seed=4)
    pd.testing.assert_frame_equal(first, umap_coordinates(x, ids, seed=4))
    assert first["cell_id"].tolist() == ids.tolist()
    place = first[["umap_1", "umap_2"]].to_numpy()
    gap = np.linalg.norm(place[:60].mean(0) - place[60:].mean(0))
    assert gap > 2 * place[:60].std(0).max()


def test_layout_takes_a_fixed_choice_of_many_cells() -> None:
    x, ids = blobs(80), np.array([f"c{k:02d}" for k in range(80)])
    some = umap_coordinates(x, ids, seed=1, limit=30)
    assert len(some) == 30
    assert some["cell_id"].is_monotonic_increasing
    assert some["cell_id"].tolist() == umap_coordinates(x, ids, seed=1, limit=30)["cell_id"].tolist()
    assert some["cell_id"].tolist() != umap_coordinates(x, ids, seed=2, limit=30)["cell_id"].tolist()


@pytest.mark.parametrize("n", [0, 1, 3, 9, 10, 12])
def test_layout_of_few_cells(n: int) -> None:
    place = umap_coordinates(blobs(n), [str(k) for k in range(n)], seed=0)
    assert len(place) == n
    assert np.isfinite(place[["umap_1", "umap_2"]].to_numpy()).all()


def test_layout_of_equal_cells_and_of_one_component() -> None:
    for x in (np.zeros((40, 5)), np.arange(40.0)[:, None]):
        place = umap_coordinates(x, [str(k) for k in range(40)], seed=0)
        assert np.isfinite(place[["umap_1", "umap_2"]].to_numpy()).all()


def test_layout_refuses_what_it_cannot_lay_out() -> None:
    x = blobs(20)
    with pytest.raises(UserError, match="do not fit"):
        umap_coordinates(x, ["a"], seed=0)
    x[3, 1] = np.nan
    with pytest.raises(UserError, match="1 of 20 cells, such as 3"):
        umap_coordinates(x, [str(k) for k in range(20)], seed=0)


def test_graph_is_that_of_umap_learn() -> None:
    from sklearn.neighbors import NearestNeighbors
    from umap.umap_ import fuzzy_simplicial_set

    x = blobs(200)
    distances, nearest = NearestNeighbors(n_neighbors=14).fit(x).kneighbors()
    own = np.arange(200)[:, None]
    theirs, _, _ = fuzzy_simplicial_set(
        x, 15, np.random.RandomState(0), "euclidean", knn_indices=np.hstack([own, nearest]),
        knn_dists=np.hstack([np.zeros((200, 1)), distances]).astype(np.float32),
    )  # fmt: skip
    assert abs(theirs - fuzzy_graph(nearest, distances)).max() < 1e-4


# Counts of the labels


def labels() -> pd.DataFrame:
    rows = [
        ("a", "T_Cell", "T_Cell", "T_Cell", 0.95, 0.7, "labelled", ""),
        ("b", "T_Cell", "T_Cell", "T_Cell", 0.80, 0.5, "labelled", ""),
        ("c", "Plasma_Cell", "Plasma_Cell", "", 0.90, 0.9, "labelled", "no_class"),
        ("d", "B_Cell", "", "", 0.30, 0.8, "abstained", "unsure"),
        ("e", "B_Cell", "", "", 0.90, 0.2, "abstained", "doublet"),
        ("f", "", "", "", np.nan, np.nan, "dropped", "low_counts"),
        ("g", "", "", "", np.nan, np.nan, "dropped", "low_counts"),
        ("h", "", "", "", np.nan, np.nan, "dropped", "no_nucleus"),
    ]
    names = ["cell_id", "raw_label", "cell_type", "class", "confidence", "confidence_released", "status", "reason"]
    return pd.DataFrame(rows, columns=names).assign(source="markers", cluster=0, margin=0.5)


CLASS_OF = {"T_Cell": "T_Cell", "B_Cell": "B_Cell", "Plasma_Cell": ""}


def test_funnel() -> None:
    found = funnel_counts(labels())
    assert found.to_numpy().tolist() == [
        [STEPS[0], 8, 0, "", 0],
        [STEPS[1], 5, 3, "low_counts", 2],
        [STEPS[1], 5, 3, "no_nucleus", 1],
        [STEPS[2], 3, 2, "unsure", 1],
        [STEPS[2], 3, 2, "doublet", 1],
        [STEPS[3], 2, 1, "Plasma_Cell", 1],
    ]
    empty = funnel_counts(labels()[:0])
    assert empty["cells"].tolist() == [0, 0, 0, 0]


def test_confidence_in_bins() -> None:
    found = confidence_counts(labels(), bins=4)
    both = dict(list(found.groupby("status")))
    assert both["labelled"]["cells"].tolist() == [0, 0, 0, 3]
    assert both["abstained"]["cells"].tolist() == [0, 1, 0, 1]
    assert both["abstained"]["share"].tolist() == [0, 0.5, 0, 0.5]
    assert confidence_counts(labels().assign(confidence=np.nan))["share"].isna().all()
    assert confidence_counts(labels().assign(confidence=1.0))["cells"].sum() == 5


def test_types_are_counted_where_labelled() -> None:
    assert type_counts(labels()).to_numpy().tolist() == [["T_Cell", "T_Cell", 2], ["Plasma_Cell", "", 1]]
    assert type_counts(labels()[3:]).empty


# Our confidence and the original's


def test_rules_by_hand() -> None:
    truth = pd.DataFrame(
        {"cell_id": list("abcdefgh"), "class": ["T_Cell", "B_Cell", "", "B_Cell", "B_Cell", "", "", ""]}
    )
    found = compare_confidence(labels(), CLASS_OF, truth=truth)
    # Named by markers: a to e. Ours keeps a and b; the original a and d, not c, which has no class.
    assert found["cells"] == 5
    assert found["kept"] == pytest.approx(0.4)
    assert found["kept_released"] == pytest.approx(0.4)
    assert found["both"] == pytest.approx(0.2)
    assert found["overlap"] == pytest.approx(1 / 3)
    assert found["accuracy"] == pytest.approx(0.5)
    assert found["accuracy_released"] == pytest.approx(1.0)
    assert found["accuracy_as_many"] == pytest.approx(0.5)
    fewer = compare_confidence(labels(), CLASS_OF, truth=truth, released_min=0.75)
    assert fewer["kept_released"] == pytest.approx(0.2)
    assert fewer["accuracy_as_many"] == 1
    assert np.isnan(compare_confidence(labels(), CLASS_OF, truth=truth, released_min=0.0)["accuracy_as_many"])
    assert compare_confidence(labels(), CLASS_OF, released_min=0.5)["kept_released"] == pytest.approx(0.6)


def test_rules_without_truth_and_without_cells() -> None:
    assert np.isnan(compare_confidence(labels(), CLASS_OF)["accuracy"])
    given = compare_confidence(labels().assign(source="given"), CLASS_OF)
    assert given["cells"] == 0
    assert np.isnan(given["kept"])
    with pytest.raises(UserError, match="unknown to the truth"):
        compare_confidence(labels(), CLASS_OF, truth=pd.DataFrame({"cell_id": ["a"], "class": ["T_Cell"]}))


def test_rules_of_slides(tmp_path: Path) -> None:
    labels().to_parquet(tmp_path / "labels.parquet")
    truth = pd.DataFrame({"cell_id": list("abcdefgh"), "class": "T_Cell"})
    truth.to_parquet(tmp_path / "truth.parquet")
    paths = {"x": tmp_path / "labels.parquet", "y": tmp_path / "labels.parquet"}
    found = confidence_of(paths, CLASS_OF, {"y": tmp_path / "truth.parquet"}).set_index("slide")
    assert np.isnan(found.loc["x", "accuracy"])
    assert found.loc["y", "accuracy"] == 1
    assert found.loc["y", "accuracy_released"] == 0.5
