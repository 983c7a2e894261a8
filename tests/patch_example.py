"""A small slide with its tables, and data sets of three files written by hand after the original's layout."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import tifffile

from nuclass.slides.geometry import Frames
from nuclass.slides.store import SlideStore
from nuclass.slides.writer import write_store

SIDES = {"local": 32, "global": 128}
HEIGHT, WIDTH = 333, 471
MPP = 0.25


def build_slide(folder: Path, cells: int = 40, seed: int = 0) -> tuple[SlideStore, pd.DataFrame, pd.DataFrame]:
    """Write a slide store and return it with tables of cells and labels; cells lie on all four edges."""
    rng = np.random.default_rng(seed)
    image = rng.integers(1, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    image[100:200, 100:260] = 255
    tifffile.imwrite(folder / "he.tif", image, photometric="rgb", tile=(64, 64))
    frames = Frames(np.diag([MPP / 0.2125, MPP / 0.2125, 1.0]), 0.2125, MPP)
    write_store(folder / "he.tif", frames, folder / "he.ome.zarr", tile=64, shard=256, levels=2)
    xy = rng.uniform([0, 0], [WIDTH, HEIGHT], (cells, 2))
    xy[:4] = [[3.2, 150], [WIDTH - 2.5, 150], [200, 1.7], [200, HEIGHT - 3]]
    table = pd.DataFrame({"cell_id": [f"{i:04d}" for i in rng.permutation(cells)]})
    for i, axis in enumerate("xy"):
        table[f"{axis}_um"] = xy[:, i] * MPP
        table[f"{axis}_he"] = table[f"{axis}_px"] = xy[:, i]
    table["status"] = "kept"
    labels = pd.DataFrame({"cell_id": table["cell_id"], "class": np.where(np.arange(cells) % 3, "T", "Tumour")})
    return SlideStore(folder / "he.ome.zarr"), table, labels.assign(status="labelled")


def write_h5(path: Path, ids: list[str], images: np.ndarray, layout: str = "merged") -> None:
    with h5py.File(path, "w") as file:
        if layout == "merged":
            file.create_dataset("images", data=images, chunks=(1, *images.shape[1:]), compression="lzf")
            file.create_dataset("keys", data=ids, dtype=h5py.string_dtype("utf-8"))
        else:
            for cell, image in zip(ids, images, strict=True):
                file.create_dataset(cell, data=image, compression="lzf")


def records(ids: list[str], **change: object) -> dict[str, dict[str, object]]:
    made = {}
    for i, cell in enumerate(ids):
        record = {
            "micron_per_pixel": MPP,
            "magnification": "40x",
            "image_modality": "bright field H&E",
            "slide_id": "s",
            "tissue_type": "Human Ovarian Cancer FFPE",
            "patient_id": "s_patient_1",
            "has_padding_flags": False,
            "has_truncation_flags": False,
            "centroid_x": 10.5 + i,
            "centroid_y": 20.25 + i,
            "class_id": "T" if i % 2 else "Tumour",
            "micron_x_centroid": 1.0 + i,
            "micron_y_centroid": 2.0,
        }
        made[cell] = {key: value for key, value in (record | change).items() if value is not None}
    return made


def write_trio(
    folder: Path, ids: list[str], layout: str = "merged", seed: int = 0, sides: dict[str, int] = SIDES, **change: object
) -> dict[str, np.ndarray]:
    """Write three files of noise and return the windows by role."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images = {}
    for role, side in sides.items():
        images[role] = rng.integers(1, 256, (len(ids), side, side, 3)).astype(np.uint8)
        write_h5(folder / f"patches_{SIDES[role]}x{SIDES[role]}.h5", ids, images[role], layout)
    (folder / "annotations.json").write_text(json.dumps(records(ids, **change), indent=2), encoding="utf-8")
    return images


def read_as_the_original(path: Path) -> dict[str, np.ndarray]:
    """Read a file of windows as its readers do: merged if both names are there, else a dataset a cell."""
    with h5py.File(path, "r") as file:
        if "images" in file and "keys" in file:
            index = {k.decode() if isinstance(k, bytes) else str(k): i for i, k in enumerate(file["keys"][:])}
            found = {key: file["images"][row] for key, row in index.items()}
        else:
            found = {key: file[key][()] for key in file}
    assert all(image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 for image in found.values())
    return found
