"""A small made-up set of predictions, labels and truth in the layout of the workflow."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from nuclass.core.files import write_json, write_parquet
from nuclass.core.names import probability_columns

CLASSES = (
    "Acinar",
    "B_Cell",
    "Ductal",
    "Endothelial",
    "Endothelial_TumorAssociated",
    "Epithelial_Airway",
    "Epithelial_Malignant",
    "Fibroblast",
    "Macrophage",
    "Mast_Cell",
    "T_Cell",
    "Tumor_Associated_Fibroblast",
)
ORGANS = {"ovary_h": "ovary", "lung_h": "lung", "pancreas_h": "pancreas"}
TRAINING = {"ovary_1": "ovary", "lung_1": "lung", "pancreas_1": "pancreas", "breast_1": "breast", "colon_1": "colon"}
GROUPS = {
    "surroundings": ["Endothelial", "Endothelial_TumorAssociated", "Fibroblast", "Tumor_Associated_Fibroblast"],
    "nucleus": ["B_Cell", "Macrophage", "Mast_Cell", "T_Cell"],
    "organ": ["Ductal", "Epithelial_Airway"],
}
_SHARES = {
    "ovary": [0, 4, 0, 8, 6, 0, 40, 12, 9, 4, 7, 10],
    "lung": [0, 7, 0, 12, 4, 9, 22, 14, 10, 3, 12, 7],
    "pancreas": [16, 3, 18, 8, 2, 0, 17, 13, 7, 4, 6, 6],
    "breast": [0, 3, 0, 3, 5, 0, 50, 3, 12, 4, 5, 15],
    "colon": [0, 5, 0, 7, 2, 0, 45, 8, 15, 2, 6, 10],
}
LOOKALIKE = {3: 4, 4: 3, 7: 11, 11: 7, 2: 5, 5: 2}


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def slide_cells(slide: str, organ: str, n: int, seed: int) -> pd.DataFrame:
    """Cells with a position and a true class."""
    rng = np.random.default_rng([seed, len(slide), sum(map(ord, slide))])
    share = np.array(_SHARES[organ], float)
    y = rng.choice(len(CLASSES), n, p=share / share.sum())
    return pd.DataFrame(
        {
            "cell_id": [f"{slide[:2]}{i:05d}-1" for i in range(n)],
            "slide": slide,
            "organ": organ,
            "split": "test",
            "x_px": rng.uniform(0, 6000, n),
            "y_px": rng.uniform(0, 3200, n),
            "label": np.array(CLASSES)[y],
        }
    )


def branch_logits(y: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Local knows nuclei, global knows surroundings; the gate is a noisy hint at who is right."""
    n, c = len(y), len(CLASSES)
    local, other = rng.normal(0, 1, (n, c)), rng.normal(0, 1, (n, c))
    local[np.arange(n), y] += 4.0
    other[np.arange(n), y] += 3.0
    for a, b in LOOKALIKE.items():
        rows = y == a
        local[rows, b] += 4.0
    immune = np.isin(y, [1, 8, 9, 10])
    other[np.ix_(immune, [1, 8, 9, 10])] += 2.0
    pa, pb = _softmax(local), _softmax(other)
    right = (pb[np.arange(n), y] - pa[np.arange(n), y]) * 3 + rng.normal(0, 0.8, n)
    return local, other, 1 / (1 + np.exp(-right))


def write_predictions(folder: Path, n: int = 1200, seed: int = 3) -> dict[str, dict[str, Path]]:
    """Write tables and arrays of three models and three cohorts; return model -> cohort -> path."""
    paths: dict[str, dict[str, Path]] = {"local": {}, "global": {}, "gate": {}}
    for number, (slide, organ) in enumerate(ORGANS.items()):
        rng = np.random.default_rng([seed, number])
        cells = slide_cells(slide, organ, n, seed)
        y = np.array([CLASSES.index(c) for c in cells["label"]])
        local, other, gate = branch_logits(y, rng)
        pa, pb = _softmax(local * 2), _softmax(other * 1.7)
        mixed = (1 - gate[:, None]) * pa + gate[:, None] * pb
        fused = _softmax(1.7 * np.log(mixed))
        sharp = {"local": local * 5, "global": other * 5, "gate": np.log(mixed) * 8}
        for model, probs in {"local": pa, "global": pb, "gate": fused}.items():
            table = cells.copy()
            table["prediction"] = np.array(CLASSES)[probs.argmax(1)]
            table["confidence"] = probs.max(1)
            table[probability_columns(list(CLASSES))] = probs.astype(np.float32)
            if model == "gate":
                table["gate"] = gate
            path = folder / model / f"{slide}.parquet"
            write_parquet(path, table)
            with h5py.File(path.with_suffix(".h5"), "w") as h5:
                h5["cell_id"] = np.array(table["cell_id"], dtype="S")
                h5["embeddings"] = rng.normal(size=(n, 8)).astype(np.float16)
                h5["logits"] = sharp[model].astype(np.float32)
            paths[model][slide] = path
    return paths


def write_truth(folder: Path, n: int = 1200, seed: int = 3) -> None:
    """Write the truth of every slide, equal to the labels for 97 cells in 100."""
    write_json(folder / "study.json", {"seed": seed, "classes": CLASSES, "groups": GROUPS})
    for slide, organ in {**ORGANS, **TRAINING}.items():
        cells = slide_cells(slide, organ, n, seed)
        rng = np.random.default_rng([seed, 9, sum(map(ord, slide))])
        truth = cells["label"].to_numpy().copy()
        wrong = rng.random(n) < 0.03
        truth[wrong] = rng.permutation(truth[wrong])
        frame = pd.DataFrame({"cell_id": cells["cell_id"], "class": truth, "structure": "stroma"})
        frame["x_he"], frame["y_he"] = cells["x_px"] * 0.25 / 0.2738 + 0.3, cells["y_px"] * 0.25 / 0.2738 - 0.2
        frame["has_nucleus"], frame["doublet"] = True, False
        write_parquet(folder / slide / "truth.parquet", frame)
        write_json(folder / slide / "slide.json", {"slide": slide, "mpp_he": 0.2738, "mirrored": slide == "lung_h"})


def write_slides(folder: Path, n: int = 1200, seed: int = 3) -> dict[str, dict[str, Path]]:
    """Write labels, splits, cells and alignment of every slide; return kind -> slide -> path."""
    out: dict[str, dict[str, Path]] = {"labels": {}, "splits": {}, "cells": {}, "alignment": {}}
    for slide, organ in {**TRAINING, **ORGANS}.items():
        cells = slide_cells(slide, organ, n, seed)
        rng = np.random.default_rng([seed, 5, sum(map(ord, slide))])
        status = rng.choice(["labelled", "abstained", "dropped"], n, p=[0.88, 0.07, 0.05])
        labels = cells[["cell_id"]].assign(cluster=rng.integers(0, 14, n).astype(str), raw_label=cells["label"])
        labels["class"] = np.where(status == "labelled", cells["label"], "")
        labels["confidence"], labels["margin"] = rng.beta(8, 2, n), rng.random(n)
        labels["status"], labels["reason"] = status, np.where(status == "dropped", "low_counts", "")
        split = ["test"] * n if slide in ORGANS else rng.choice(["train", "val", "test", "buffer"], n)
        positions = cells[["cell_id", "x_px", "y_px"]].assign(status=np.where(status == "dropped", "dropped", "kept"))
        for kind, table in (
            ("labels", labels),
            ("splits", cells[["cell_id"]].assign(split=split)),
            ("cells", positions),
        ):
            out[kind][slide] = folder / kind / f"{slide}.parquet"
            write_parquet(out[kind][slide], table)
        out["alignment"][slide] = folder / "alignment" / f"{slide}.json"
        write_json(out["alignment"][slide], {"mpp_he": 0.2738 * 1.0002})
    return out


def slide_sheet() -> pd.DataFrame:
    """The slide sheet, indexed by slide."""
    rows = [(s, o, "train", f"P-{s}") for s, o in TRAINING.items()] + [
        (s, o, "cohort", f"P-{s}") for s, o in ORGANS.items()
    ]
    return pd.DataFrame(rows, columns=["slide", "organ", "role", "patient"]).set_index("slide", drop=False)
