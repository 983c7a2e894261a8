"""Labels on counts that owe nothing to the synthetic study: its profiles, tissue and noise are of another make."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import f1_score

from labels_simulator import PROGRAMMES, SHARES, Slide, simulate
from nuclass.labels import assign
from nuclass.labels.assign import LabelResult, Settings, label_cells
from nuclass.labels.cluster import variable_genes
from nuclass.labels.markers import load_markers
from nuclass.labels.ontology import load_ontology

MARKERS = load_markers("resources/markers/markers.tsv")
ONTOLOGY = load_ontology("resources/label_ontology.yaml")


def label(slide: Slide, organ: str, **settings: Any) -> LabelResult:
    return label_cells(slide.counts, slide.cells, MARKERS, organ, ONTOLOGY, Settings(**settings))


def score(slide: Slide, result: LabelResult) -> tuple[float, float]:
    """Return the macro-F1 over the classes that are there, on labelled cells, and the share of cells labelled."""
    labelled = (result.labels["status"] == "labelled").to_numpy()
    truth, found = slide.truth.to_numpy()[labelled], result.labels["class"].to_numpy()[labelled]
    return f1_score(truth, found, labels=sorted(set(slide.truth)), average="macro"), labelled.mean()


@pytest.mark.parametrize(("organ", "seed"), [("lung", 11), ("pancreas", 12)])
def test_hard_pairs_and_rare_classes_are_found(organ: str, seed: int) -> None:
    slide = simulate(organ, n=2000, seed=seed)
    result = label(slide, organ)
    f1, kept = score(slide, result)
    assert f1 >= 0.95
    assert kept >= 0.85
    assert set(result.labels["class"]) - {""} == set(slide.truth)


@pytest.mark.parametrize("seed", [42, 44, 45])
def test_ten_cells_of_a_type_are_found_among_two_thousand(seed: int) -> None:
    slide = simulate("lung", n=2000, seed=seed, shares={**SHARES["lung"], "Mast_Cell": 0.004})
    mast = (slide.truth == "Mast_Cell").to_numpy()
    found = (label(slide, "lung").labels["class"] == "Mast_Cell").to_numpy()
    assert 10 <= mast.sum() <= 12
    assert (found & mast).sum() >= 9
    assert (found & ~mast).sum() <= 2


def test_abstained_cells_would_have_been_worse() -> None:
    slide = simulate("lung", seed=13)
    labels = label(slide, "lung").labels
    right = (labels["raw_label"].to_numpy() == slide.truth.to_numpy()).astype(float)
    status = labels["status"].to_numpy()
    assert right[status == "labelled"].mean() > right[status == "abstained"].mean() + 0.2


@pytest.mark.parametrize("seed", [14, 15])
def test_twice_the_spill_and_doublets(seed: int) -> None:
    slide = simulate("pancreas", seed=seed, spill=0.24, doublets=0.08)
    f1, kept = score(slide, label(slide, "pancreas"))
    assert f1 >= 0.92
    assert kept >= 0.85


def test_places_keep_what_neighbours_spill_from_looking_like_doublets() -> None:
    right, doublets = np.zeros(2), np.zeros(2)
    for seed in (14, 31):
        slide = simulate("pancreas", seed=seed, spill=0.36, doublets=0.0)
        for k, cells in enumerate((slide.cells, slide.cells.drop(columns=["x_um", "y_um"]))):
            labels = label_cells(slide.counts, cells, MARKERS, "pancreas", ONTOLOGY, Settings()).labels
            right[k] += (labels["raw_label"].to_numpy() == slide.truth.to_numpy()).mean()
            doublets[k] += (labels["reason"] == "doublet").sum()
    assert right[0] > right[1]
    assert doublets[0] < 0.75 * doublets[1]


@pytest.mark.parametrize("seed", [16, 17])
def test_a_panel_without_a_third_of_the_genes(seed: int) -> None:
    genes = sorted({gene for programme in PROGRAMMES.values() for gene in programme})
    gone = tuple(np.random.default_rng(seed).permutation(genes)[: len(genes) // 3])
    slide = simulate("lung", seed=seed, drop_genes=gone)
    result = label(slide, "lung")
    labels, truth = result.labels, slide.truth.to_numpy()
    blind = np.isin(truth, list(result.summary["not_candidates"]))
    labelled = (labels["status"] == "labelled").to_numpy()
    assert f1_score(truth[labelled & ~blind], labels["class"][labelled & ~blind], average="macro") >= 0.9
    assert labelled[~blind].mean() >= 0.85
    if blind.any():
        assert labelled[blind].mean() < 0.25, "cells of a class that the panel cannot show took the name of another"


@pytest.mark.parametrize(
    "absent", [("Endothelial_TumorAssociated", "Tumor_Associated_Fibroblast"), ("Endothelial", "Fibroblast")]
)
def test_the_absent_half_of_a_pair_is_not_invented(absent: tuple[str, ...]) -> None:
    shares = {name: share for name, share in SHARES["lung"].items() if name not in absent}
    slide = simulate("lung", seed=18, shares=shares)
    result = label(slide, "lung")
    assert result.labels["class"].isin(absent).sum() <= 5
    assert score(slide, result)[0] >= 0.95


@pytest.mark.parametrize("organ", ["lung", "pancreas"])
def test_types_without_markers_get_no_label(organ: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROGRAMMES, "Hepatocyte", [f"LIVER{i}" for i in range(9)])
    monkeypatch.setitem(PROGRAMMES, "Plasma", ["PTPRC", "CD79A", *[f"PLASMA{i}" for i in range(7)]])
    shares = {name: 0.8 * share for name, share in SHARES[organ].items()} | {"Hepatocyte": 0.14, "Plasma": 0.06}
    slide = simulate(organ, seed=2, shares=shares)
    result = label(slide, organ)
    labels, truth = result.labels, slide.truth.to_numpy()
    foreign = np.isin(truth, ["Hepatocyte", "Plasma"]) & (labels["status"] != "dropped").to_numpy()
    assert (labels.loc[foreign, "status"] == "labelled").mean() < 0.08
    others = labels[foreign & (labels["reason"] == "other_type").to_numpy()]
    assert len(others) > 0.8 * foreign.sum()
    assert (others["raw_label"] == "").all()
    assert result.summary["other_types"] >= 1
    known = ~np.isin(truth, ["Hepatocyte", "Plasma"]) & (labels["status"] == "labelled").to_numpy()
    assert f1_score(truth[known], labels.loc[known, "class"], average="macro") > 0.9


@pytest.mark.parametrize("gene", ["KIT", "CPA3"])
def test_one_gene_of_a_type_hardly_ever_gives_its_name(gene: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROGRAMMES, "Foreign", [*(f"FOREIGN{i}" for i in range(8)), gene])
    shares = {name: share for name, share in SHARES["lung"].items() if name != "Mast_Cell"} | {"Foreign": 0.06}
    other, named = [], []
    for seed in range(1, 5):
        slide = simulate("lung", n=1200, seed=seed, shares=shares)
        labels = label(slide, "lung").labels
        foreign = (slide.truth == "Foreign").to_numpy() & (labels["status"] != "dropped").to_numpy()
        other.append((labels.loc[foreign, "reason"] == "other_type").mean())
        named.append((labels.loc[foreign, "status"] == "labelled").mean())
    assert np.mean(other) > 0.7
    assert np.mean(named) < 0.3
    assert np.median(named) < 0.05


def test_labels_do_not_depend_on_the_order_of_genes_or_classes() -> None:
    slide = simulate("lung", n=1200, seed=19)
    mixed = slide.counts[:, np.random.default_rng(0).permutation(slide.counts.n_vars)].copy()
    first = label(slide, "lung").labels
    table = MARKERS.sample(frac=1, random_state=0)
    second = label_cells(mixed, slide.cells, table, "lung", ONTOLOGY, Settings()).labels
    assert (first["class"] == second["class"]).mean() > 0.98


def test_bounds_of_confidence_and_margin() -> None:
    labels = label(simulate("lung", n=1200, seed=20), "lung").labels
    seen = labels[labels["status"] != "dropped"]
    for column in ("confidence", "margin", "confidence_released"):
        assert seen[column].between(0, 1).all()
    assert (seen.loc[seen["status"] == "labelled", "confidence"] >= Settings().min_confidence).all()
    unsure = seen["reason"] == "unsure"
    assert (seen.loc[unsure, "confidence"] < Settings().min_confidence).all()


def test_cells_in_another_order_than_the_counts_keep_their_own_labels() -> None:
    slide = simulate("lung", n=1200, seed=21)
    turned = slide.cells.iloc[::-1].reset_index(drop=True)
    labels = label_cells(slide.counts, turned, MARKERS, "lung", ONTOLOGY, Settings()).labels
    labelled = labels[labels["status"] == "labelled"]
    assert (slide.truth[labelled["cell_id"]].to_numpy() == labelled["class"].to_numpy()).mean() > 0.95


def test_a_large_panel_is_reduced_on_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    slide = simulate("lung", n=1000, seed=22, extra=2400)
    widths: list[int] = []
    plain = assign.normalised
    monkeypatch.setattr(assign, "normalised", lambda counts: widths.append(counts.shape[1]) or plain(counts))
    result = label(slide, "lung")
    assert 2000 <= widths[0] < slide.counts.n_vars
    assert score(slide, result)[0] > 0.8


def test_variable_genes_are_those_that_vary() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.5, (400, 50))
    counts[:200, [3, 17]] = rng.poisson(4.0, (200, 2))
    counts[:, 30] = 0
    assert variable_genes(sparse.csr_matrix(counts), keep=2).tolist() == [3, 17]


def test_importing_the_library_does_not_import_scanpy() -> None:
    code = "import sys, nuclass.labels.assign, nuclass.labels.job; sys.exit('scanpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_empty_section_of_settings_is_the_default() -> None:
    assert Settings.from_dict({}) == Settings()
    assert Settings.from_dict({"resolutions": [1.0]}).resolutions == (1.0,)


def test_evidence_has_every_cluster_and_candidate_once() -> None:
    result = label(simulate("lung", n=1200, seed=23), "lung")
    evidence = result.evidence
    assert not evidence.duplicated(["resolution", "cluster", "cell_type"]).any()
    assert set(evidence["cell_type"]) == set(result.summary["candidates"])
    per_resolution = evidence.drop_duplicates(["resolution", "cluster"]).groupby("resolution")["cells"].sum()
    assert (per_resolution == (result.labels["status"] != "dropped").sum()).all()


def test_counts_of_dropped_cells_play_no_part() -> None:
    slide = simulate("lung", n=1200, seed=24)
    drop = slide.cells.index[::7]
    cells = slide.cells.copy()
    cells.loc[drop, ["status", "reason"]] = ["dropped", "test"]
    wild = slide.counts.copy()
    dense = wild.X.toarray()
    dense[drop] *= 100
    wild = anndata.AnnData(sparse.csr_matrix(dense), obs=wild.obs, var=wild.var)
    first = label_cells(slide.counts, cells, MARKERS, "lung", ONTOLOGY, Settings()).labels
    second = label_cells(wild, cells, MARKERS, "lung", ONTOLOGY, Settings()).labels
    pd.testing.assert_frame_equal(first, second)
    assert (first.loc[drop, "reason"] == "test").all()
