"""Slides for tests of the splits, and an oracle that paints windows on a raster."""

from __future__ import annotations

import numpy as np
import pandas as pd

from nuclass.slides.geometry import window_origin


def make_slide(n=2000, width=9600.0, height=2400.0, classes=6, seed=0, patchy=True):
    rng = np.random.default_rng(seed)
    xy = rng.uniform((0, 0), (width, height), (n, 2))
    if patchy:
        centres = rng.uniform((0, 0), (width, height), (40, 2))
        nearest = ((xy[:, None] - centres[None]) ** 2).sum(-1).argmin(1)
        code = rng.integers(0, classes, 40)[nearest]
        code = np.where(rng.random(n) < 0.3, rng.integers(0, classes, n), code)
    else:
        code = rng.integers(0, classes, n)
    ids = [f"c{i:05d}-1" for i in range(n)]
    status = np.where(rng.random(n) < 0.85, "labelled", "abstained")
    names = np.where(status == "labelled", np.char.add("K", code.astype(str)), "")
    cells = pd.DataFrame({"cell_id": ids, "x_px": xy[:, 0], "y_px": xy[:, 1]})
    return cells, pd.DataFrame({"cell_id": ids, "class": names, "status": status})


def share_pixel(cells, split, size):
    """Paint every split's windows on a raster and look for a pixel in two of them."""
    origins = window_origin(cells[["x_px", "y_px"]].to_numpy(), size)
    low = origins.min(axis=0)
    shape = origins.max(axis=0) - low + size
    seen = np.zeros(tuple(shape[::-1]), np.int8)
    for name in ("train", "val", "test"):
        mask = np.zeros_like(seen, bool)
        for x, y in origins[(split == name).to_numpy()] - low:
            mask[y : y + size, x : x + size] = True
        seen += mask.astype(np.int8)
    return bool((seen > 1).any())


def share_pixel_at_any_level(cells, split, size):
    """Paint at level 0, and at levels 1 to 3 where a window has a whole number of px; as the store cuts."""
    used = cells[(split != "buffer").to_numpy()].reset_index(drop=True)
    kept = split[split != "buffer"].reset_index(drop=True)
    return len(used) > 0 and any(
        share_pixel(used.assign(x_px=used["x_px"] / step, y_px=used["y_px"] / step), kept, size // step)
        for step in (1, 2, 4, 8)
        if size % step == 0
    )


def odd_slide(seed, n, window, shape):
    """A slide of several windows a side: full, with a hole, in clusters, along lines, sparse, or on whole px."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(6, 14, 2) * window
    xy = rng.uniform((0, 0), size, (n, 2))
    if shape == "hole":
        away = np.abs(xy - size * rng.uniform(0.3, 0.7, 2)).max(axis=1) > rng.uniform(0.5, 2.5) * window
        xy = xy[away]
    elif shape == "clusters":
        centres = rng.uniform((0, 0), size, (int(rng.integers(6, 30)), 2))
        xy = centres[rng.integers(0, len(centres), n)] + rng.normal(0, window / 6, (n, 2)) * rng.integers(0, 2, (n, 1))
    elif shape == "lines":
        xy[:, 0] = np.round(xy[:, 0] / (window / 2)) * (window / 2)
    elif shape == "sparse":
        xy = xy[: max(n // 5, 40)]
    elif shape == "whole":
        xy = np.round(xy)
    classes = np.char.add("K", (rng.random(len(xy)) ** 2 * 4).astype(int).astype(str)).astype(object)
    labelled = rng.random(len(xy)) < 0.9
    ids = np.arange(len(xy)).astype(str).astype(object)
    cells = pd.DataFrame({"cell_id": ids, "x_px": xy[:, 0], "y_px": xy[:, 1]})
    status = np.where(labelled, "labelled", "abstained")
    return cells, pd.DataFrame({"cell_id": ids, "class": np.where(labelled, classes, ""), "status": status})


def large_slide(n, width=80_000.0, height=40_000.0, classes=16, seed=0):
    """A slide of real size with a hole in it, its classes in patches and of unequal number."""
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(seed)
    xy = rng.uniform((0, 0), (width, height), (int(n * 1.35), 2))
    u, v = xy[:, 0] / width - 0.5, xy[:, 1] / height - 0.5
    xy = xy[(np.hypot(u, v) < 0.52) & (np.hypot(u - 0.15, v - 0.1) > 0.1)][:n]
    share = 1 / np.arange(1, classes + 1)
    share /= share.sum()
    centres = rng.uniform((0, 0), (width, height), (300, 2))
    code = rng.choice(classes, 300, p=share)[cKDTree(centres).query(xy)[1]]
    code = np.where(rng.random(len(xy)) < 0.3, rng.choice(classes, len(xy), p=share), code)
    names = np.array([f"K{i}" for i in range(classes)], dtype=object)[code]
    labelled = rng.random(len(xy)) < 0.85
    ids = np.array([f"c{i}" for i in range(len(xy))], dtype=object)
    cells = pd.DataFrame({"cell_id": ids, "x_px": xy[:, 0], "y_px": xy[:, 1]})
    status = np.where(labelled, "labelled", "abstained").astype(object)
    return cells, pd.DataFrame({"cell_id": ids, "class": np.where(labelled, names, ""), "status": status})
