"""Fit the calibration of label confidence on simulated slides, and show how well it holds on others.

    python benchmarks/calibrate_labels.py [--seeds 4]

Three makes of data with known types, none of which shares its profiles with another: sections of the synthetic study,
the small simulator and the panel simulator of the tests. On the first half of the seeds the confidence's slope and
offset are fitted (greatest likelihood, every make weighing the same); on the other half it is
compared with how often labels are right. Prints the two numbers for `labels.naming_slope` and `labels.naming_offset`,
and a Markdown table: in each bin of confidence, the share of right labels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[1]
BINS = (0.0, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
TYPES = {
    "T_": "T_Cell", "NK": "NK_Cell", "B_": "B_Cell", "Plasma": "Plasma_Cell", "Macrophage": "Macrophage",
    "Monocyte": "Monocyte", "cDC": "Dendritic_Cell", "pDC": "Plasmacytoid_Dendritic_Cell", "Mast": "Mast_Cell",
    "Neutrophil": "Neutrophil", "Fibroblast": "Fibroblast", "CAF": "Tumor_Associated_Fibroblast",
    "Endothelial_tumour": "Endothelial_TumorAssociated", "Endothelial_lymphatic": "Lymphatic_Endothelial",
    "Endothelial": "Endothelial", "Pericyte": "Pericyte", "Smooth_muscle": "Smooth_Muscle",
    "Myoepithelial": "Myoepithelial", "Luminal_progenitor": "Epithelial_Luminal_Progenitor",
    "Luminal_mature": "Epithelial_Luminal_Mature", "Adipocyte": "Adipocyte", "Malignant": "Epithelial_Malignant",
    "Alveolar": "Epithelial_Alveolar", "Basal_airway": "Epithelial_Airway", "Ciliated": "Epithelial_Airway",
    "Secretory": "Epithelial_Airway", "Mesothelial": "Mesothelial_Cell",
}  # fmt: skip
"""Start of a type's name in the panel simulator, and the cell type it is; the first that fits."""


def type_of(name: str) -> str:
    return next((kind for start, kind in TYPES.items() if name.startswith(start)), name)


def slides(seed: int) -> Iterator[tuple[str, str, object, pd.DataFrame, np.ndarray]]:
    """Yield make, organ, counts, table of cells and true types."""
    from labels_simulator import simulate
    from panel_simulator import simulate_panel
    from test_labels import counted

    for organ in ("breast", "colon", "lung", "ovary", "pancreas"):
        counts, cells, truth = counted(organ, seed, 2000)
        yield "synthetic study", organ, counts, cells, truth["class"].to_numpy()
    for organ in ("lung", "pancreas"):
        slide = simulate(organ, 2000, seed, spill=0.16)
        yield "small simulator", organ, slide.counts, slide.cells, slide.truth.to_numpy()
    for organ in ("breast", "lung"):
        for kind in ("xenium", "scrna"):
            slide = simulate_panel(organ, 4000, seed, kind)
            yield f"panel, {kind}", organ, slide.counts, slide.cells, slide.truth.map(type_of).to_numpy()


def measure(seeds: list[int]) -> pd.DataFrame:
    """Return make, posterior and whether the best type is right, one row a cell that is no doublet."""
    from nuclass.labels.assign import Settings, label_cells
    from nuclass.labels.markers import load_markers
    from nuclass.labels.ontology import load_ontology

    markers = load_markers(ROOT / "resources/markers/markers.tsv")
    ontology = load_ontology(ROOT / "resources/label_ontology.yaml")
    parts = []
    for seed in seeds:
        for make, organ, counts, cells, truth in slides(seed):
            result = label_cells(counts, cells, markers, organ, ontology, Settings())
            kept = (result.labels["status"] != "dropped").to_numpy()
            found, chances = result.labels[kept], result.posteriors
            types = chances.columns[1 : chances.columns.get_loc("other")]
            right = found["raw_label"].to_numpy() == truth[kept]
            table = pd.DataFrame({"make": make, "posterior": chances[types].max(axis=1).astype(float), "right": right})
            table["lead"] = chances["marker_lead"].astype(float)
            parts.append(table[((found["raw_label"] != "") & (found["reason"] != "doublet")).to_numpy()])
    return pd.concat(parts, ignore_index=True)


def fit(table: pd.DataFrame) -> tuple[float, float]:
    from scipy.optimize import minimize

    from nuclass.labels.confidence import confidence

    weight = 1.0 / table.groupby("make")["make"].transform("size").to_numpy()
    posterior, lead, right = (table[name].to_numpy() for name in ("posterior", "lead", "right"))

    def loss(way: np.ndarray) -> float:
        chance = np.clip(confidence(posterior, lead, *way), 1e-6, 1 - 1e-6)
        return float(-(weight * np.log(np.where(right, chance, 1 - chance))).sum())

    slope, offset = minimize(loss, [1.0, 1.0], method="Nelder-Mead").x
    return float(slope), float(offset)


def table_of(table: pd.DataFrame, chance: np.ndarray) -> str:
    """Return the share of right labels (and the cells) in each bin of confidence, one column a make."""
    bins = pd.cut(chance, BINS, include_lowest=True)
    makes = list(dict.fromkeys(table["make"]))
    lines = ["| confidence | " + " | ".join(makes) + " |", "|---|" + "---|" * len(makes)]
    for interval in bins.categories:
        row = [f"{max(interval.left, 0):g} to {interval.right:g}"]
        for make in makes:
            right = table.loc[(bins == interval) & (table["make"] == make).to_numpy(), "right"]
            row.append(f"{right.mean():.2f} ({len(right):,})" if len(right) >= 20 else "")
        lines.append("| " + " | ".join(row) + " |")
    gaps = []
    for make in makes:
        rows = (table["make"] == make).to_numpy()
        gaps.append(f"{ece(chance[rows], table.loc[rows, 'right'].to_numpy()):.3f}")
    lines.append("| expected calibration error | " + " | ".join(gaps) + " |")
    return "\n".join(lines)


def ece(chance: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    place = np.minimum((chance * bins).astype(int), bins - 1)
    size = np.bincount(place, minlength=bins)
    gap = np.abs(np.bincount(place, chance, bins) - np.bincount(place, right, bins))
    return float(gap[size > 0].sum() / len(right))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="seeds, half of them to fit, half to show (default: 4)")
    options = parser.parse_args()

    from nuclass.labels.confidence import confidence

    sys.path.insert(0, str(ROOT / "tests"))
    seeds = [7000 + k for k in range(options.seeds)]
    half = max(options.seeds // 2, 1)
    slope, offset = fit(measure(seeds[:half]))
    sys.stdout.write(f"naming_slope: {slope:.2f}\nnaming_offset: {offset:.2f}\n\n")
    other = measure(seeds[half:] or seeds)
    posterior, lead = other["posterior"].to_numpy(), other["lead"].to_numpy()
    sys.stdout.write("The posterior alone:\n\n" + table_of(other, posterior) + "\n\n")
    sys.stdout.write("The confidence:\n\n" + table_of(other, confidence(posterior, lead, slope, offset)) + "\n")


if __name__ == "__main__":
    main()
