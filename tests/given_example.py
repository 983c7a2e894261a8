"""A small ontology and made-up tables of labels on it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from nuclass.labels.given import given_labels
from nuclass.labels.ontology import CellType, Ontology

KINDS = [
    CellType("T_Cell", "T_Cell", "Lymphoid_T", ""),
    CellType("B_Cell", "B_Cell", "Lymphoid_B", ""),
    CellType("Macrophage", "Macrophage", "Myeloid", ""),
    CellType("Epithelial_Malignant", "Epithelial_Malignant", "Epithelial", ""),
    CellType("Ductal", "Ductal", "Epithelial", ""),
    CellType("Plasma_Cell", "", "Plasma", "no class of the study"),
]
ONTOLOGY = Ontology(
    cell_types={kind.name: kind for kind in KINDS},
    synonyms={
        **{kind.name: kind.name for kind in KINDS},
        **{"Tumor Cells": "Epithelial_Malignant", "Plasma": "Plasma_Cell"},
    },
    left_out={"Unassigned": "no identity", "Myeloid": "too coarse", "Lymphoid": "too coarse"},
)


def cells_table(ids: list[str], dropped: tuple[str, ...] = ()) -> pd.DataFrame:
    gone = [name in dropped for name in ids]
    return pd.DataFrame(
        {
            "cell_id": ids,
            "status": np.where(gone, "dropped", "kept"),
            "reason": np.where(gone, "low_counts", ""),
        }
    )


def marker_table(cells: pd.DataFrame, types: list[str], reason: str = "unsure") -> pd.DataFrame:
    """Labels of the markers; an empty type is an abstained cell."""
    frame = given_labels(pd.DataFrame({"cell_id": cells["cell_id"], "raw_label": types}), cells, ONTOLOGY)
    frame["cluster"] = range(len(frame))
    frame["confidence_released"] = 0.7
    frame["source"] = np.where(frame["status"] == "dropped", "", "markers")
    frame.loc[frame["status"] == "abstained", "reason"] = reason
    return frame
