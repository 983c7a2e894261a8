"""Align and judge slides of growing size: time, peak memory and error, each step in a process of its own.

    python benchmarks/bench_alignment.py [--sides 6000 12000 24000] [--keep FOLDER]

Draws an H&E-like slide (tissue of four kinds of painted squares, nuclei at known places, tiled JPEG with a pyramid)
and the part of a Xenium bundle that alignment reads. `given` has the true matrix, `refine` starts 20 um off, `register`
has none; `check` is the verdict with its picture. "Whole image" is what one would do by hand: read level 0, separate
the stains (scikit-image) and correlate it once with an image of the nuclei. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

MPP, PIXEL, SQUARE, TILE = 0.25, 0.2125, 2048, 512
BYTES_A_PX = 80  # of the whole image by hand: three stains as float64, twice, and the transforms
WAYS = ("given", "refine", "register", "check", "whole image")


def paint(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return one square of tissue (SQUARE, SQUARE, 3) and its nuclei: centre x y and half axes a b, px."""
    step = int(9.0 / MPP)
    grid = np.stack(np.meshgrid(*[np.arange(step, SQUARE - step, step)] * 2), -1).reshape(-1, 2)
    grid = grid[rng.random(len(grid)) < 0.7] + rng.uniform(-0.3, 0.3, (1, 2)) * step
    centre = grid + rng.uniform(-0.25, 0.25, grid.shape) * step
    axes = rng.uniform(2.2, 3.6, (len(centre), 2)) / MPP
    image = np.full((SQUARE, SQUARE, 3), (226.0, 168.0, 205.0)) + rng.normal(0, 5, (SQUARE, SQUARE, 1))
    for (x, y), (a, b) in zip(centre, axes, strict=True):
        reach = int(max(a, b)) + 2
        rows, columns = slice(int(y) - reach, int(y) + reach), slice(int(x) - reach, int(x) + reach)
        v, u = np.mgrid[rows, columns] + 0.5
        image[rows, columns][np.hypot((u - x) / a, (v - y) / b) < 1] = (95.0, 70.0, 140.0)
    return np.clip(image, 0, 255).astype(np.uint8), np.column_stack([centre, axes])


def draw(folder: Path, side: int) -> int:
    """Write ``he.tif``, ``true.csv``, ``off.csv`` and the bundle of a slide; return its number of nuclei."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import tifffile
    from PIL import Image
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    kinds = [paint(rng) for _ in range(4)]
    n = side // SQUARE
    noise = gaussian_filter(rng.normal(size=(n, n)), 0.8)
    chosen = np.where(noise > np.quantile(noise, 0.35), rng.integers(0, 4, (n, n)), -1)
    chosen[n // 2, n // 2] = 0

    def tiles(shrink: int) -> Iterator[np.ndarray]:
        small = [np.asarray(Image.fromarray(image).reduce(shrink)) for image, _ in kinds]
        part = SQUARE // shrink
        for top in range(0, side // shrink, TILE):
            for left in range(0, side // shrink, TILE):
                tile = np.full((TILE, TILE, 3), 243, np.uint8)
                for y in range(top, top + TILE, min(part, TILE)):
                    for x in range(left, left + TILE, min(part, TILE)):
                        row, column = y // part, x // part
                        if row < n and column < n and chosen[row, column] >= 0:
                            piece = small[chosen[row, column]][y % part : y % part + TILE, x % part : x % part + TILE]
                            tile[y - top : y - top + piece.shape[0], x - left : x - left + piece.shape[1]] = piece
                yield tile

    with tifffile.TiffWriter(folder / "he.tif", bigtiff=True, ome=False) as tiff:
        options = {
            "dtype": np.uint8,
            "tile": (TILE, TILE),
            "photometric": "rgb",
            "compression": "jpeg",
            "metadata": None,
        }
        tiff.write(tiles(1), shape=(side, side, 3), subifds=2, **options)
        for shrink in (8, 32):
            tiff.write(tiles(shrink), shape=(side // shrink, side // shrink, 3), subfiletype=1, **options)
    placed = [
        kinds[chosen[row, column]][1] + (column * SQUARE, row * SQUARE, 0, 0)
        for row in range(n)
        for column in range(n)
        if chosen[row, column] >= 0
    ]
    nuclei = np.concatenate(placed)
    matrix = true_matrix(side)
    for name, shift in (("true", 0.0), ("off", 20.0 / np.sqrt(2) / PIXEL)):
        np.savetxt(folder / f"{name}.csv", matrix + np.array([[0, 0, shift], [0, 0, shift], [0, 0, 0]]), delimiter=",")
    angle = np.linspace(0, 2 * np.pi, 25)
    ring = np.stack([np.cos(angle), np.sin(angle)], -1)
    outlines = nuclei[:, None, :2] + nuclei[:, None, 2:] * ring
    um = (outlines.reshape(-1, 2) @ matrix[:2, :2].T + matrix[:2, 2]) * PIXEL
    ids = np.array([f"c{i}" for i in range(len(nuclei))])
    columns = {"cell_id": np.repeat(ids, 25), "vertex_x": um[:, 0], "vertex_y": um[:, 1]}
    pq.write_table(pa.table(columns), folder / "nucleus_boundaries.parquet")
    (folder / "experiment.xenium").write_text(json.dumps({"pixel_size": PIXEL, "analysis_sw_version": "xenium-3.0.0"}))
    return len(nuclei)


def true_matrix(side: int) -> np.ndarray:
    turn = np.deg2rad(-89.2)
    scale = MPP / PIXEL
    linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    corners = np.array([[0, 0], [side, 0], [0, side], [side, side]]) @ linear.T
    return np.vstack([np.column_stack([linear, 40 - corners.min(axis=0)]), [0, 0, 1]])


def run(folder: Path, way: str) -> None:
    """Do one step and print time, peak MB and the median error in um."""
    from nuclass.core.files import read_json, write_json
    from nuclass.slides.job import align_slide, check_slide

    start = time.perf_counter()
    error = ""
    if way == "whole image":
        whole_image(folder)
    elif way == "check":
        settings = {
            "search_um": 24, "block_um": 200, "pass_um": 2, "fail_um": 4, "region_um": 4, "pass_score": 10,
            "fail_score": 7, "warn_off": 0.1, "fail_off": 0.5,
        }  # fmt: skip
        check_slide(
            bundle=folder,
            transform=folder / "given.json",
            verdict=folder / "alignment.json",
            overlay=folder / "alignment.png",
            settings=settings,
        )
        error = read_json(folder / "alignment.json")["verdict"]
    else:
        given = {"given": "true.csv", "refine": "off.csv", "register": None}[way]
        write_json(folder / "bundle.json", {"he": "he.tif", "alignment": given, "alignment_source": given})
        align_slide(bundle=folder, transform=folder / f"{way}.json", name="slide", align=way, mpp=MPP)
        record = read_json(folder / f"{way}.json")
        points = np.random.default_rng(0).uniform(0, record["he_shape"][0], (2000, 2))
        found, true = np.asarray(record["matrix"]), np.loadtxt(folder / "true.csv", delimiter=",")
        off = (points @ (found - true)[:2, :2].T + (found - true)[:2, 2]) * PIXEL
        error = f"{np.median(np.hypot(*off.T)):.3f}"
    seconds = time.perf_counter() - start
    # The kernel's own peak; getrusage would count the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    sys.stdout.write(json.dumps({"s": seconds, "mb": peak, "error": error}))


def whole_image(folder: Path) -> None:
    """Read level 0, separate the stains and correlate with the nuclei drawn on a grid of the same size."""
    import pandas as pd
    import tifffile
    from scipy.fft import irfft2, rfft2
    from skimage.color import rgb2hed

    stain = rgb2hed(tifffile.imread(folder / "he.tif"))[..., 0].astype(np.float32)
    vertices = pd.read_parquet(folder / "nucleus_boundaries.parquet", columns=["vertex_x", "vertex_y"]).to_numpy()
    inverse = np.linalg.inv(np.loadtxt(folder / "true.csv", delimiter=","))
    he = (vertices / PIXEL) @ inverse[:2, :2].T + inverse[:2, 2]
    rows, columns = (np.clip(he[:, k].astype(int), 0, stain.shape[1 - k] - 1) for k in (1, 0))
    drawn = np.zeros_like(stain)
    drawn[rows, columns] = 1
    irfft2(rfft2(stain) * np.conj(rfft2(drawn))).argmax()


def memory() -> int:
    """Return the machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[6000, 12000, 24000], help="sides of the slides, px")
    parser.add_argument("--keep", type=Path, help="folder to leave the slides in")
    parser.add_argument("--step", nargs=2, metavar=("FOLDER", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        run(Path(options.step[0]), options.step[1])
        return
    sys.stdout.write("| slide | nuclei | step | s | peak MB | median error, um |\n|---|---|---|---|---|---|\n")
    with tempfile.TemporaryDirectory() as temporary:
        for side in options.sides:
            folder = (options.keep or Path(temporary)) / str(side)
            folder.mkdir(parents=True)
            nuclei = draw(folder, side)
            for way in WAYS:
                if way == "whole image" and BYTES_A_PX * side**2 > 0.6 * memory():
                    need = BYTES_A_PX * side**2 / 1e9
                    sys.stdout.write(f"| {side:,} px | {nuclei:,} | {way} | not run: needs about {need:.0f} GB | | |\n")
                    continue
                command = [sys.executable, __file__, "--step", str(folder), way]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    cause = done.stderr.strip().splitlines()[-1:] or [f"ended by signal {-done.returncode}"]
                    sys.stdout.write(f"| {side:,} px | {nuclei:,} | {way} | failed: {cause[0][:60]} | | |\n")
                    continue
                got = json.loads(done.stdout)
                sys.stdout.write(
                    f"| {side:,} px | {nuclei:,} | {way} | {got['s']:.1f} | {got['mb']:,.0f} | {got['error']} |\n"
                )
                sys.stdout.flush()


if __name__ == "__main__":
    main()
