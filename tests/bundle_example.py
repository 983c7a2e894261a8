"""A small bundle for tests: round cells on a grid, some without a nucleus, one with two."""

from __future__ import annotations

import numpy as np
import pandas as pd

from nuclass.synthetic.bundle import BundleData, cell_ids, control_features


def circles(centres: np.ndarray, radius: np.ndarray, vertices: int = 24) -> np.ndarray:
    angle = np.append(np.linspace(0, 2 * np.pi, vertices, endpoint=False), 0.0)
    return centres[:, None] + radius[:, None, None] * np.stack([np.cos(angle), np.sin(angle)], -1)[None]


def example(
    n: int = 60, per_cell: int = 30, n_genes: int = 25, shape: tuple[int, int] = (700, 900), seed: int = 7, z: int = 2
) -> BundleData:
    random = np.random.default_rng(seed)
    height, width = np.array(shape) * 0.2125
    columns = int(np.ceil(np.sqrt(n * width / height)))
    grid = np.stack([np.arange(n) % columns, np.arange(n) // columns], 1) + 0.5
    step = min(width / columns, height / np.ceil(n / columns))
    centres = grid * step + random.uniform(-0.05, 0.05, (n, 2)) * step
    cells = circles(centres, random.uniform(0.36, 0.42, n) * step)
    nuclei = circles(centres + 0.05 * step, random.uniform(0.15, 0.25, n) * step)
    nuclei[3::10] = np.nan
    genes = pd.DataFrame({"id": [f"ENSG{i:011d}" for i in range(n_genes)]})
    genes["name"] = [f"GENE{i}" for i in range(n_genes)]
    controls = control_features()
    names = np.concatenate([genes["name"], controls["name"]])
    weight = np.concatenate([np.full(n_genes, 1.0), np.full(len(controls), 0.01)])
    m = n * per_cell
    spot = np.repeat(centres, per_cell, 0) + random.normal(0, 0.2 * step, (m, 2))
    spot = np.clip(spot, 0, [width - 0.1, height - 0.1])
    transcripts = pd.DataFrame(
        {
            "x_um": spot[:, 0],
            "y_um": spot[:, 1],
            "z_um": random.uniform(10, 20, m),
            "feature_name": pd.Categorical.from_codes(random.choice(len(names), m, p=weight / weight.sum()), names),
            "qv": np.where(random.random(m) < 0.85, 40.0, 12.0),
        }
    )
    focus = random.integers(0, 4000, shape, dtype=np.uint16)
    return BundleData(
        cell_id=cell_ids(n, seed),
        cell_polygons=cells,
        nucleus_polygons=nuclei,
        genes=genes,
        transcripts=transcripts,
        morphology=focus,
        stack=lambda: (focus // (i + 1) for i in range(z)),
        n_planes=z,
        extra_nuclei=circles(centres[5:6] - 0.15 * step, np.array([0.05 * step])),
        extra_nucleus_cell=np.array([5]),
        seed=seed,
    )
