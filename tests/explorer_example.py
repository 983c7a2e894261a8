"""A small site of the explorer: a slide whose colours tell the place, one without a picture, and their cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import tifffile

from nuclass.explorer.cells import write_cells
from nuclass.explorer.page import write_page
from nuclass.explorer.tiles import write_tiles
from nuclass.slides.geometry import Frames
from nuclass.slides.writer import write_store

REPOSITORY = Path(__file__).parent.parent
SHEET = REPOSITORY / "resources/classes.tsv"
SOURCES = REPOSITORY / "resources/explorer"
CLASSES = ("B_Cell", "Endothelial", "Fibroblast", "T_Cell")
HEIGHT, WIDTH, MPP = 1301, 1100, 0.25
WINDOWS = {"local": 64, "global": 1024}
MAPPED = (7, 23)


def picture() -> np.ndarray:
    """Red tells x, green tells y: up and down by one a pixel, between 0 and 255."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([wave(x), wave(y), np.full_like(x, 128)], axis=-1).astype(np.uint8)


def wave(at: np.ndarray) -> np.ndarray:
    """Return the colour at whole pixels of one axis."""
    return np.minimum(np.abs(at % 512 - 256), 255)


def write_picture(folder: Path, levels: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(folder / "he.tif", picture(), photometric="rgb", tile=(256, 256))
    frames = Frames(np.diag([MPP / 0.2125, MPP / 0.2125, 1.0]), 0.2125, MPP)
    write_store(folder / "he.tif", frames, folder / "he.ome.zarr", tile=128, shard=512, levels=levels)
    return folder / "he.ome.zarr"


def predictions(slide: str, n: int = 300, seed: int = 5) -> dict[str, pd.DataFrame]:
    """Tables of the three models: cells at least 30 px apart, some without a label, some of a class no model knows."""
    rng = np.random.default_rng(seed)
    side = 56
    spots = rng.permutation((HEIGHT // side) * (WIDTH // side))[:n]
    xy = np.stack([spots % (WIDTH // side), spots // (WIDTH // side)], axis=1) * side + rng.uniform(14, 42, (n, 2))
    label = rng.choice(CLASSES, n).astype(object)
    label[:6], label[6] = "", "Hepatocyte"
    tables = {}
    for model in ("local", "global", "gate"):
        probs = rng.dirichlet(np.full(len(CLASSES), 0.3), n)
        best = probs.argmax(1)
        tables[model] = pd.DataFrame(
            {
                "cell_id": [f"{slide}-{i:04d}" for i in range(n)],
                "slide": slide,
                "x_px": xy[:, 0],
                "y_px": xy[:, 1],
                "label": label,
                "prediction": np.array(CLASSES)[best],
                "confidence": probs[np.arange(n), best],
                **{f"prob_{name}": probs[:, i] for i, name in enumerate(CLASSES)},
            }
        )
    tables["gate"].insert(7, "gate", rng.uniform(0, 1, n))
    return tables


def write_tables(folder: Path, slide: str, tables: dict[str, pd.DataFrame]) -> dict[str, Path]:
    paths = {}
    for model, table in tables.items():
        paths[model] = folder / model / f"{slide}.parquet"
        paths[model].parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(paths[model])
    return paths


def write_maps(folder: Path, slide: str, table: pd.DataFrame) -> tuple[Path, Path]:
    """Activation maps of two cells of the slide, between those of another slide."""
    rng = np.random.default_rng(2)
    chosen = pd.DataFrame(
        {
            "slide": ["other", slide, slide],
            "cell_id": ["x", *table["cell_id"].iloc[list(MAPPED)]],
            "local_prediction": CLASSES[0],
            "global_prediction": CLASSES[1],
        }
    )
    chosen.to_csv(folder / "cells.csv", index=False)
    s, w = WINDOWS["local"], WINDOWS["global"]
    np.savez(
        folder / "maps.npz",
        local_image=rng.integers(0, 255, (3, s, s, 3), dtype=np.uint8),
        global_image=rng.integers(0, 255, (3, w, w, 3), dtype=np.uint8),
        local_cam=rng.random((3, s, s), dtype=np.float32),
        global_local_cam=rng.random((3, s, s), dtype=np.float32),
        global_cam=rng.random((3, w, w), dtype=np.float32),
        gated_cam=rng.random((3, w, w), dtype=np.float32),
    )
    return folder / "cells.csv", folder / "maps.npz"


def write_site(folder: Path) -> dict[str, pd.DataFrame]:
    """Write the site into ``folder/site``; return the fused model's tables by slide."""
    site = folder / "site"
    store = write_picture(folder / "slide")
    tables = {}
    for slide, seed in (("ovary_h", 5), ("patch_h", 6)):
        made = predictions(slide, seed=seed)
        tables[slide] = made["gate"]
        paths = write_tables(folder / "predictions", slide, made)
        extra = write_maps(folder, slide, made["gate"]) if slide == "ovary_h" else (None, None)
        write_cells(slide, paths, site / "slides" / slide / "cells", classes=SHEET, chosen=extra[0], maps=extra[1])
    write_tiles("ovary_h", store, site / "slides/ovary_h/tiles", quality=90)
    write_page(
        SOURCES,
        site / "index.html",
        site / "assets",
        site / "study.js",
        name="small",
        slides=[
            {"name": "ovary_h", "organ": "ovary", "role": "cohort", "picture": True},
            {"name": "patch_h", "organ": "lung", "role": "cohort", "picture": False},
        ],
        windows=WINDOWS,
        mpp=MPP,
        synthetic=True,
    )
    return tables
