"""A slide as an array, its store, and the three files of its windows, written with plain h5py as others would."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import tifffile

from nuclass.slides.geometry import Frames, window_origin
from nuclass.slides.writer import write_store

LABELS = ("Macrophage", "T_Cell", "Fibroblast")


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise on smooth colour: every pixel matters."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    base = np.stack([150 + 60 * np.sin(x / 31), 140 + 60 * np.cos(y / 23), 160 + 50 * np.sin((x + y) / 47)], -1)
    return np.clip(base + rng.normal(0, 12, base.shape), 0, 255).astype(np.uint8)


def store_of(folder: Path, image: np.ndarray, **options: int) -> Path:
    """Write a picture as a slide store whose level 0 is the picture."""
    folder.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(folder / "he.tif", image, photometric="rgb", tile=(256, 256), compression="zlib")
    write_store(folder / "he.tif", Frames(np.eye(3), 0.25), folder / "he.ome.zarr", **options)
    return folder / "he.ome.zarr"


def crop(image: np.ndarray, x: float, y: float, size: int) -> np.ndarray:
    """Cut one window the slow way; white beyond the picture."""
    x0, y0 = window_origin((x, y), size).tolist()
    out = np.full((size, size, 3), 255, np.uint8)
    rows = [r for r in range(size) if 0 <= y0 + r < image.shape[0]]
    columns = [c for c in range(size) if 0 <= x0 + c < image.shape[1]]
    if rows and columns:
        out[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = image[
            y0 + rows[0] : y0 + rows[-1] + 1, x0 + columns[0] : x0 + columns[-1] + 1
        ]
    return out


def halved(images: np.ndarray) -> np.ndarray:
    """2 x 2 mean, rounded, of images with even sides."""
    total = images.astype(np.uint16)
    total = total[..., 0::2, :, :] + total[..., 1::2, :, :]
    return ((total[..., 0::2, :] + total[..., 1::2, :] + 2) // 4).astype(np.uint8)


def write_windows(path: Path, ids: list[str], images: np.ndarray, layout: str = "merged", **options: object) -> None:
    """Write windows in one of the two layouts."""
    with h5py.File(path, "w") as file:
        if layout == "merged":
            file.create_dataset("images", data=images, **options)
            file.create_dataset("keys", data=ids, dtype=h5py.string_dtype())
        else:
            for name, image in zip(ids, images, strict=True):
                file.create_dataset(name, data=image, **options)


def write_trio(
    folder: Path,
    image: np.ndarray,
    xy: np.ndarray,
    ids: list[str],
    *,
    sizes: tuple[int, int] = (224, 1024),
    labels: list[str] | None = None,
    layouts: tuple[str, str] = ("merged", "merged"),
    shuffle: int | None = None,
    fields: dict[str, object] | None = None,
    **options: object,
) -> Path:
    """Write the three files; the rows of the windows are in another order than the annotations if ``shuffle``."""
    folder.mkdir(parents=True, exist_ok=True)
    names = labels or [LABELS[i % len(LABELS)] for i in range(len(ids))]
    records = {
        cell: {
            "micron_per_pixel": 0.25,
            "tissue_type": "Human Lung",
            "slide_id": "s",
            "patient_id": "p",
            "centroid_x": float(x),
            "centroid_y": float(y),
            "class_id": name,
            "micron_x_centroid": float(x) * 0.25 + 7,
            "micron_y_centroid": float(y) * 0.25,
            **(fields or {}),
        }
        for cell, (x, y), name in zip(ids, xy, names, strict=True)
    }
    (folder / "annotations.json").write_text(json.dumps(records))
    for k, (size, layout) in enumerate(zip(sizes, layouts, strict=True)):
        order = np.arange(len(ids)) if shuffle is None else np.random.default_rng(shuffle + k).permutation(len(ids))
        images = np.stack([crop(image, *xy[i], size) for i in order])
        write_windows(folder / f"patches_{size}x{size}.h5", [ids[i] for i in order], images, layout, **options)
    return folder
