"""How well the H&E lies on the cells: measured on the picture, not taken from a file.

Nuclei are blue. If the alignment holds, the picture is darkest in red light (which haematoxylin absorbs and
eosin hardly does) at the nucleus centroids, and lighter a little beside them. Averaged over many nuclei, the
windows around the centroids show one blob; its place is the residual offset of the alignment.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nuclass.core.names import KEPT
from nuclass.slides.geometry import MAX_ANISOTROPY, Frames, window_origin
from nuclass.slides.store import SlideStore

SEARCH_UM = 8.0  # beyond a nucleus diameter the next nucleus begins, and the peak would be its own
NUCLEUS_RADIUS_UM = 2.5  # inside nearly every nucleus
RING_UM = (5.5, 9.0)  # outside most
# The centre of a window must stay on its nucleus (radius 3 to 4 um): half of that is good, all of it is not.
PASS_UM, FAIL_UM = 2.0, 4.0
# The contrast at the nuclei in units of its standard error, which grows with the root of the number of cells. Measured:
# random places -3 to 2; the 423 outlined nuclei of one real field 30; 2,000 of a synthetic slide 127 to 135.
# Provisional: no real Xenium section has been measured.
PASS_Z, FAIL_Z = 10.0, 5.0
MPP_TOLERANCE = 0.02  # the limit by which the HEST authors' table counts an embedded pixel size as off
_MAX_CELLS = 4000
_MIN_CELLS = 50
_GROUPS = 10


def measure_alignment(
    store: SlideStore, cells: pd.DataFrame, frames: Frames, info: dict[str, Any], seed: int = 0
) -> dict[str, Any]:
    """Measure the residual offset between nuclei and picture, and judge the alignment.

    Parameters
    ----------
    store, cells, frames
        The slide. Only kept cells with a nucleus are used, at most 4,000 of them, drawn with ``seed``.
    info
        What :func:`nuclass.slides.writer.write_store` returned.

    Returns
    -------
    ``matrix pixel_size mpp_he embedded_mpp mpp_mismatch rotation_deg mirrored anisotropy he_shape store_shape``;
    ``residual_um`` with ``residual_x_um residual_y_um`` (along the H&E's axes: where the nuclei lie, seen from
    where the cells say); ``residual_sem_um`` (standard error, from tenths of the cells); ``score`` (contrast at
    the nuclei over its standard error); ``verdict`` pass, warn, fail or unknown (fewer than 50 cells);
    ``reasons``; ``n_cells`` kept; ``n_measured``.
    """
    chosen = cells[(cells["status"] == KEPT) & (cells["nucleus_count"] > 0)]
    if len(chosen) > _MAX_CELLS:
        chosen = chosen.sample(_MAX_CELLS, random_state=seed)
    measured = _residual(store, chosen, seed) if len(chosen) >= _MIN_CELLS else {}
    embedded = info.get("embedded_mpp")
    result: dict[str, Any] = {
        "matrix": frames.alignment,
        "pixel_size": frames.pixel_size,
        "mpp_he": frames.mpp_he,
        "mpp": store.mpp,
        "embedded_mpp": embedded,
        "mpp_mismatch": embedded is not None and abs(embedded / frames.mpp_he - 1) > MPP_TOLERANCE,
        "rotation_deg": frames.rotation_deg,
        "mirrored": frames.mirrored,
        "anisotropy": frames.anisotropy,
        "he_shape": info["he_shape"],
        "store_shape": list(store.shape),
        "residual_um": None,
        "residual_x_um": None,
        "residual_y_um": None,
        "residual_sem_um": None,
        "score": None,
        **measured,
        "n_cells": int((cells["status"] == KEPT).sum()),
        "n_measured": len(chosen) if measured else 0,
    }
    result["verdict"], result["reasons"] = _verdict(result)
    return result


def red_density(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Optical density in red, ``-log10((R + 1) / 256)``, of ``(..., 3)`` pixels: mostly haematoxylin."""
    table = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)
    return table.astype(np.float32)[rgb[..., 0]]


def _residual(store: SlideStore, cells: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Find the peak of the mean density around nuclei, and the contrast at their centroids."""
    level = int(np.clip(round(np.log2(0.5 / store.mpp)), 0, store.levels - 1))
    mpp = store.mpp * 2**level
    size = 2 * int(np.ceil((SEARCH_UM + RING_UM[1]) / mpp)) + 1
    kernel = _contrast_kernel(mpp)
    middle = (size - len(kernel)) // 2
    inner = slice(middle, middle + len(kernel))
    xy = cells[["x_px", "y_px"]].to_numpy(np.float64)
    # A window starts at a whole pixel: its centre misses the point by up to half a pixel.
    miss = (xy / 2**level - (window_origin(xy / 2**level, size) + size / 2)) * mpp
    groups = np.random.default_rng(seed).permutation(len(xy)) % _GROUPS
    sums = np.zeros((_GROUPS, size, size))
    contrast = np.empty(len(xy))
    for rows, windows in store.batches(xy, size, level, batch=128):
        density = red_density(windows)
        np.add.at(sums, groups[rows], density)
        contrast[rows] = (density[:, inner, inner] * kernel).sum(axis=(1, 2))
    counts = np.bincount(groups, minlength=_GROUPS)
    offset = _peak(sums.sum(axis=0) / len(xy), kernel, mpp) - miss.mean(axis=0)
    parts = np.array([_peak(sums[g] / counts[g], kernel, mpp) - miss[groups == g].mean(axis=0) for g in range(_GROUPS)])
    error = contrast.std(ddof=1) / np.sqrt(len(contrast))
    return {
        "residual_um": float(np.hypot(*offset)),
        "residual_x_um": float(offset[0]),
        "residual_y_um": float(offset[1]),
        "residual_sem_um": float(np.linalg.norm(parts.std(axis=0, ddof=1)) / np.sqrt(_GROUPS)),
        "score": float(contrast.mean() / error) if error > 0 else 0.0,
    }


def _contrast_kernel(mpp: float) -> NDArray[np.float64]:
    """Mean inside the nucleus minus mean in the ring around it, as weights that add to 0."""
    reach = int(np.ceil(RING_UM[1] / mpp))
    grid = np.arange(-reach, reach + 1) * mpp
    distance = np.hypot(grid[:, None], grid[None, :])
    disc = distance <= NUCLEUS_RADIUS_UM
    ring = (distance >= RING_UM[0]) & (distance <= RING_UM[1])
    kernel: NDArray[np.float64] = disc / disc.sum() - ring / ring.sum()
    return kernel


def _peak(mean: NDArray[np.float64], kernel: NDArray[np.float64], mpp: float) -> NDArray[np.float64]:
    """Return ``(x, y)`` of the highest contrast, um from the centre of ``mean``, refined below a pixel by parabolas."""
    from scipy.signal import correlate

    score = correlate(mean, kernel, mode="valid")
    y, x = np.unravel_index(int(score.argmax()), score.shape)
    centre = (len(score) - 1) / 2
    return np.array([_vertex(score[y], int(x)) - centre, _vertex(score[:, x], int(y)) - centre]) * mpp


def _vertex(values: NDArray[np.float64], i: int) -> float:
    if not 0 < i < len(values) - 1:
        return float(i)
    left, here, right = values[i - 1 : i + 2]
    curve = left - 2 * here + right
    return i + float(0.5 * (left - right) / curve) if curve < 0 else float(i)


def _verdict(result: dict[str, Any]) -> tuple[str, list[str]]:
    """Judge the numbers; the reasons say what is not as it should be."""
    if result["residual_um"] is None:
        return "unknown", [f"fewer than {_MIN_CELLS} kept cells with a nucleus"]
    failures, warnings = [], []
    residual, score = result["residual_um"], result["score"]
    offset = f"the nuclei lie {residual:.1f} um from where the cells say"
    if residual > FAIL_UM:
        failures.append(f"{offset} (limit {FAIL_UM} um)")
    elif residual > PASS_UM:
        warnings.append(f"{offset} (good is {PASS_UM} um)")
    contrast = f"the cells' places are hardly darker than their surroundings (score {score:.1f}"
    if score < FAIL_Z:
        failures.append(f"{contrast}, limit {FAIL_Z:.0f})")
    elif score < PASS_Z:
        warnings.append(f"{contrast}, good is {PASS_Z:.0f})")
    if result["anisotropy"] > MAX_ANISOTROPY:
        warnings.append(f"the alignment stretches one axis by {100 * (result['anisotropy'] - 1):.0f} %")
    return ("fail" if failures else "warn" if warnings else "pass"), failures + warnings
