"""Labels as an annotator would have published them: mostly right, some coarse, some wrong, not for every cell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from nuclass.core.files import write_csv

# Names as in published annotations; the share of a class's cells that get each.
NAMES: dict[str, dict[str, float]] = {
    "Acinar": {"Acinar": 1.0},
    "B_Cell": {"B Cells": 1.0},
    "Ductal": {"Ductal": 1.0},
    "Endocrine": {"Endocrine 1": 0.6, "Endocrine 2": 0.4},
    "Endothelial": {"Endothelial": 1.0},
    "Endothelial_TumorAssociated": {"Tumor Associated Endothelial Cells": 0.9, "Endothelial": 0.1},
    "Epithelial_Airway": {"Ciliated Epithelial Cells": 1.0},
    "Epithelial_Alveolar": {"Alveolar": 1.0},
    "Epithelial_Malignant": {"Tumor Cells": 0.8, "Proliferative Tumor Cells": 0.2},
    "Fibroblast": {"Stromal Cell": 1.0},
    "Macrophage": {"Macrophages": 0.9, "Myeloid": 0.1},
    "Mast_Cell": {"Mast Cells": 1.0},
    "Smooth_Muscle": {"Smooth Muscle Cells": 0.9, "SMC/Pericyte": 0.1},
    "T_Cell": {"T Cells": 0.95, "T and NK Cells": 0.05},
    "Tumor_Associated_Fibroblast": {"Tumor Associated Fibroblasts": 0.9, "Stromal Cell": 0.1},
}
UNASSIGNED = "Unassigned"
_WRONG, _UNASSIGNED, _UNASSIGNED_POOR, _LEFT_OUT = 0.04, 0.02, 0.4, 0.015


def write_cell_groups(
    path: str | Path, cell_id: list[str], classes: list[str], poor: npt.NDArray[np.bool_], rng: np.random.Generator
) -> None:
    """Write a ``*_cell_groups.csv`` (``cell_id,group,color``) for cells whose true class is known.

    Of the cells 4 in 100 get the name of another one, 2 in 100 (of poor ones 40) are unassigned, and 1.5 in 100
    are not in the file.

    Parameters
    ----------
    path
        The file.
    cell_id, classes
        N ids and true classes.
    poor
        (N,) whether a cell has next to no transcripts.
    rng
        A generator of its own, so that the labels change nothing else of a slide.
    """
    groups = np.empty(len(classes), object)
    for name, shares in NAMES.items():
        rows = np.flatnonzero(np.array(classes) == name)
        groups[rows] = rng.choice(list(shares), len(rows), p=list(shares.values()))
    wrong = rng.random(len(groups)) < _WRONG
    groups[wrong] = rng.choice(groups, int(wrong.sum()))
    groups[rng.random(len(groups)) < np.where(poor, _UNASSIGNED_POOR, _UNASSIGNED)] = UNASSIGNED
    kept = rng.random(len(groups)) >= _LEFT_OUT
    names = sorted(set(groups))
    # Hues a golden angle apart, so that neighbours in the list are told apart.
    colours = {name: _colour(k * 0.618 % 1.0) for k, name in enumerate(names)}
    frame = pd.DataFrame({"cell_id": cell_id, "group": groups, "color": [colours[name] for name in groups]})
    write_csv(path, frame[kept])


def _colour(hue: float) -> str:
    import colorsys

    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hsv_to_rgb(hue, 0.65, 0.85))
