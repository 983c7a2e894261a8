"""Labels from markers: right on simulated counts, abstaining where they should, explicit where they cannot work."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import f1_score

from nuclass.core.errors import UserError
from nuclass.labels.assign import Settings, label_cells
from nuclass.labels.markers import load_markers
from nuclass.labels.ontology import load_ontology
from nuclass.synthetic.expression import express, make_panel
from nuclass.synthetic.shapes import make_shapes
from nuclass.synthetic.tissue import grow_tissue

MARKERS = load_markers("resources/markers/markers.tsv")
ONTOLOGY = load_ontology("resources/label_ontology.yaml")
SETTINGS = Settings()


def counted(organ: str, seed: int, n_cells: int = 900) -> tuple[ad.AnnData, pd.DataFrame, pd.DataFrame]:
    """Return counts, the table of cells and the truth of a section simulated without images."""
    rng = np.random.default_rng(seed)
    panel = make_panel(np.random.default_rng(seed + 1))
    tissue = grow_tissue(organ, 1200, 560, n_cells, rng)
    shapes = make_shapes(tissue.cells, rng)
    expression = express(tissue.cells, organ, panel, shapes.nucleus_polygons(), shapes.cell_polygons(), rng)
    gene = {name: k for k, name in enumerate(panel.genes)}
    rows = expression.transcripts
    rows = rows[(rows["cell"] >= 0) & (rows["qv"] >= 20) & rows["feature_name"].isin(list(gene))]
    entries = (np.ones(len(rows), np.float32), (rows["cell"], rows["feature_name"].map(gene)))
    counts = sparse.coo_matrix(entries, shape=(len(tissue.cells), len(gene))).tocsr()[expression.reported]
    truth = tissue.cells.iloc[expression.reported].reset_index(drop=True)
    ids = [f"cell-{k}" for k in range(len(truth))]
    kept = (np.asarray(counts.sum(1)).ravel() >= 10) & expression.has_nucleus[expression.reported]
    cells = pd.DataFrame(
        {
            "cell_id": ids,
            "x_um": truth["x"],
            "y_um": truth["y"],
            "status": np.where(kept, "kept", "dropped"),
            "reason": np.where(kept, "", "low_counts"),
        }
    )
    data = ad.AnnData(counts, obs=pd.DataFrame(index=ids), var=pd.DataFrame(index=panel.genes))
    return data, cells, truth


@pytest.fixture(scope="module")
def pancreas() -> tuple[ad.AnnData, pd.DataFrame, pd.DataFrame]:
    return counted("pancreas", 5)


def test_labels_agree_with_the_truth(pancreas: tuple[ad.AnnData, pd.DataFrame, pd.DataFrame]) -> None:
    data, cells, truth = pancreas
    labels = label_cells(data, cells, MARKERS, "pancreas", ONTOLOGY, SETTINGS).labels
    kept = (labels["status"] == "labelled").to_numpy()
    assert kept.mean() > 0.85
    assert f1_score(truth["class"][kept], labels["class"][kept], average="macro") > 0.92


def test_every_cell_has_one_row_with_a_status_and_a_reason(
    pancreas: tuple[ad.AnnData, pd.DataFrame, pd.DataFrame],
) -> None:
    data, cells, _ = pancreas
    labels = label_cells(data, cells, MARKERS, "pancreas", ONTOLOGY, SETTINGS).labels
    assert labels["cell_id"].tolist() == cells["cell_id"].tolist()
    assert set(labels["status"]) <= {"labelled", "abstained", "dropped"}
    assert (labels.loc[labels["status"] != "labelled", "reason"] != "").all()
    assert (labels.loc[labels["status"] != "labelled", "class"] == "").all()
    assert (labels.loc[labels["status"] == "labelled", "class"] != "").all()


def test_same_seed_gives_the_same_labels(pancreas: tuple[ad.AnnData, pd.DataFrame, pd.DataFrame]) -> None:
    data, cells, _ = pancreas
    first, second = (label_cells(data, cells, MARKERS, "pancreas", ONTOLOGY, SETTINGS).labels for _ in range(2))
    pd.testing.assert_frame_equal(first, second)


def test_shuffled_genes_leave_nothing_to_find(pancreas: tuple[ad.AnnData, pd.DataFrame, pd.DataFrame]) -> None:
    data, cells, _ = pancreas
    rng = np.random.default_rng(0)
    dense = data.X.toarray()
    for row in dense:
        rng.shuffle(row)
    noise = ad.AnnData(sparse.csr_matrix(dense), obs=data.obs, var=data.var)
    with pytest.raises(UserError, match="Too few cell types are found in this slide"):
        label_cells(noise, cells, MARKERS, "pancreas", ONTOLOGY, SETTINGS)


def test_classes_of_other_organs_are_no_candidates(pancreas: tuple[ad.AnnData, pd.DataFrame, pd.DataFrame]) -> None:
    data, cells, _ = pancreas
    result = label_cells(data, cells, MARKERS, "ovary", ONTOLOGY, SETTINGS)
    assert not {"Acinar", "Ductal", "Endocrine"} & set(result.labels["class"])
    assert result.summary["not_candidates"]["Acinar"] == "does not occur in ovary"


def test_a_class_that_is_not_there_is_not_invented() -> None:
    data, cells, truth = counted("breast", 3)
    without = (truth["class"] != "Mast_Cell").to_numpy()
    cells = cells[without].reset_index(drop=True)
    labels = label_cells(data[without], cells, MARKERS, "breast", ONTOLOGY, SETTINGS).labels
    assert (labels["class"] == "Mast_Cell").sum() <= 3


def test_higher_demands_label_fewer_cells_and_better(pancreas: tuple[ad.AnnData, pd.DataFrame, pd.DataFrame]) -> None:
    data, cells, truth = pancreas
    share, right = [], []
    for demand in (0.3, 0.99):
        labels = label_cells(data, cells, MARKERS, "pancreas", ONTOLOGY, Settings(min_confidence=demand)).labels
        kept = (labels["status"] == "labelled").to_numpy()
        share.append(kept.mean())
        right.append((labels["class"][kept].to_numpy() == truth["class"][kept].to_numpy()).mean())
    assert share[1] < share[0]
    assert right[1] > right[0]


def test_a_panel_without_markers_is_refused(pancreas: tuple[ad.AnnData, pd.DataFrame, pd.DataFrame]) -> None:
    data, cells, _ = pancreas
    renamed = data.copy()
    renamed.var_names = [f"GENE{k}" for k in range(data.n_vars)]
    with pytest.raises(UserError, match="The panel cannot tell cell types apart"):
        label_cells(renamed, cells, MARKERS, "pancreas", ONTOLOGY, SETTINGS)


def test_no_kept_cell_is_an_error(pancreas: tuple[ad.AnnData, pd.DataFrame, pd.DataFrame]) -> None:
    data, cells, _ = pancreas
    with pytest.raises(UserError, match="No cell is left to label"):
        label_cells(data, cells.assign(status="dropped"), MARKERS, "pancreas", ONTOLOGY, SETTINGS)
