"""A study of millions of cells whose tables are real in every column and whose slides take a few megabytes.

Cells of a slide fill an ellipse of tissue, one per 45 x 45 px, as on sections of 500,000 cells. Classes lie in
patches. A slide store has its full size and all tiles, but every shard is a link to one file, in which all entries of
the index point to four encoded tiles: reading it decodes as many tiles as a real slide, from the page cache.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from bench_windows import he_like
from nuclass.core.files import write_parquet
from nuclass.core.names import CELL_COLUMNS, CELL_ID, KEPT, LABELLED, ORGANS
from nuclass.labels.ontology import CLASSES
from nuclass.slides.zarr_format import (
    LevelLayout,
    array_metadata,
    encode_index,
    encode_tile,
    group_metadata,
    shard_path,
)

MPP, SPACING, ASPECT = 0.25, 45, 1.8
TILE, SHARD, LEVELS = 256, 2048, 4
_PATCHES = 400


def simulate(results: Path, slides: int, cells: int) -> list[dict[str, Any]]:
    """Write slides, cells and labels below ``results``; return the slides as ``Study`` takes them."""
    rows = []
    shard = results / "shard"
    results.mkdir(parents=True, exist_ok=True)
    _write_shard(shard)
    for number in range(slides):
        slide, rng = f"slide{number}", np.random.default_rng((7, number))
        axes = np.sqrt(cells * SPACING**2 / np.pi) * np.array([ASPECT**0.5, ASPECT**-0.5])
        side = int(-(-2 * axes.max() * 1.2 // SHARD) * SHARD)
        xy = _ellipse(rng, cells, axes) + side / 2
        table = _cells(rng, xy)
        write_parquet(results / "slides" / slide / "cells.parquet", table)
        write_parquet(results / "labels" / slide / "labels.parquet", _labels(rng, table[CELL_ID], xy))
        _write_store(results / "slides" / slide / "he.ome.zarr", side, shard)
        rows.append({"slide": slide, "organ": ORGANS[number % len(ORGANS)]})
    return rows


def _ellipse(rng: np.random.Generator, n: int, axes: NDArray[np.float64]) -> NDArray[np.float64]:
    radius, angle = np.sqrt(rng.uniform(0, 1, n)), rng.uniform(0, 2 * np.pi, n)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1) * axes


def _ids(rng: np.random.Generator, n: int) -> NDArray[Any]:
    """Return ids as 10x spells them, ascending."""
    prefixes = np.unique(rng.integers(0, 2**32, n + n // 100 + 16, dtype=np.uint64))[:n]
    digits = (prefixes[:, None] >> np.arange(28, -1, -4, dtype=np.uint64)) & np.uint64(15)
    letters = np.concatenate([digits.astype(np.uint8) + ord("a"), np.full((n, 2), (ord("-"), ord("1")), np.uint8)], 1)
    return np.ascontiguousarray(letters).view("S10")[:, 0].astype("U10").astype(object)


def _cells(rng: np.random.Generator, xy: NDArray[np.float64]) -> pd.DataFrame:
    n = len(xy)
    x, y = xy.T
    table: dict[str, Any] = {CELL_ID: _ids(rng, n), "status": KEPT, "reason": ""}
    scales = {"um": MPP, "morph": MPP / 0.2125, "he": 0.25 / 0.2738, "px": 1.0}
    for name, scale in scales.items():
        table |= {f"x_{name}": x * scale, f"y_{name}": y * scale}
    table |= {"cell_x_um": x * MPP + rng.normal(0, 1, n), "cell_y_um": y * MPP + rng.normal(0, 1, n)}
    table |= {
        name: rng.poisson(mean, n).astype(np.int32) for name, mean in (("transcript_counts", 120), ("n_genes", 60))
    }
    table |= {"control_counts": np.zeros(n, np.int32), "nucleus_count": np.ones(n, np.int32)}
    table |= {"nucleus_area": rng.gamma(8, 4, n), "cell_area": rng.gamma(8, 10, n)}
    return pd.DataFrame(table)[list(CELL_COLUMNS)]


def _labels(rng: np.random.Generator, ids: pd.Series, xy: NDArray[np.float64]) -> pd.DataFrame:
    """Return labels of all cells: in each patch 70 % of one class, elsewhere by the classes' unequal shares."""
    n = len(xy)
    shares = rng.dirichlet(np.full(len(CLASSES), 2.0))
    of_patch = rng.choice(len(CLASSES), _PATCHES, p=shares)
    _, patch = cKDTree(xy[rng.choice(n, _PATCHES, replace=n < _PATCHES)]).query(xy)
    code = np.where(rng.uniform(size=n) < 0.7, of_patch[patch], rng.choice(len(CLASSES), n, p=shares))
    names = np.array(CLASSES, object)[code]
    confidence = rng.beta(8, 2, n).astype(np.float32)
    return pd.DataFrame(
        {
            CELL_ID: ids,
            "cluster": code.astype(np.int32),
            "raw_label": names,
            "cell_type": names,
            "class": names,
            "confidence": confidence,
            "margin": confidence,
            "confidence_released": confidence,
            "source": "markers",
            "status": LABELLED,
            "reason": "",
        }
    )


def _write_shard(path: Path) -> None:
    """Write one shard file whose whole index points to four tiles."""
    image = he_like(2 * TILE)
    parts, places, offset = [], [], 0
    for y, x in ((0, 0), (0, TILE), (TILE, 0), (TILE, TILE)):
        encoded = encode_tile(image[y : y + TILE, x : x + TILE])
        assert encoded is not None
        data = b"".join(bytes(part) for part in encoded)
        parts.append(data)
        places.append((offset, len(data)))
        offset += len(data)
    n = SHARD // TILE
    index = np.empty((n, n, 2), np.uint64)
    for row in range(n):
        for column in range(n):
            index[row, column] = places[2 * (row % 2) + column % 2]
    path.write_bytes(b"".join(parts) + encode_index(index))


def _write_store(root: Path, side: int, shard: Path) -> None:
    root.mkdir(parents=True)
    info = {"mpp": MPP, "source": "simulated", "scale": 0.2738 / 0.25, "store_shape": [side, side]}
    (root / "zarr.json").write_text(json.dumps(group_metadata("simulated", MPP, LEVELS, info)), encoding="utf-8")
    for level in range(LEVELS):
        layout = LevelLayout(side // 2**level, side // 2**level, TILE, SHARD)
        rows, columns = layout.shard_grid
        for row in range(rows):
            for column in range(columns):
                path = shard_path(root, level, row, column)
                path.parent.mkdir(parents=True, exist_ok=True)
                os.link(shard, path)
        (root / str(level) / "zarr.json").write_text(json.dumps(array_metadata(layout)), encoding="utf-8")
