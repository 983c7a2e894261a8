"""Windows a second: the slide store against other ways to cut them, on one slide, in one run.

    python benchmarks/bench_windows.py [--side 8192] [--seconds 3]

Every way cuts the same windows around the same cells (one per 37 x 37 px) in the same, spatially sorted order,
on one core, files in the page cache. At "half resolution" a window of 1024 px is read as 512 px from the level
below; ways that read the H&E itself cut 1024 px and halve it. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

import numpy as np
import tifffile
import zarr
from PIL import Image

from nuclass.slides.geometry import Frames, window_origin
from nuclass.slides.store import SlideStore, morton
from nuclass.slides.writer import write_store

Cut = Callable[[np.ndarray, int], np.ndarray]


def he_like(side: int) -> np.ndarray:
    """Smooth colour with grain, about as compressible as stained tissue."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(0, 1, (side // 16 + 2, side // 16 + 2)).astype(np.float32)
    smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
    out = np.empty((side, side, 3), np.uint8)
    for channel, (mean, gain) in enumerate(((190, 35), (140, 45), (190, 25))):
        grain = rng.normal(0, 4, (side, side)).astype(np.float32)
        out[..., channel] = np.clip(mean + gain * smooth + grain, 0, 255)
    return out


def halve(window: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(window).reduce(2))


def write_jpeg(he: Path, image: np.ndarray) -> None:
    """Write an H&E as a tiled TIFF: JPEG of quality 90, tiles of 256 px."""
    tifffile.imwrite(he, image, photometric="rgb", tile=(256, 256), compression="jpeg", compressionargs={"level": 90})


def box_of(xy: np.ndarray, size: int) -> tuple[slice, slice]:
    x, y = window_origin(xy, size).tolist()
    return slice(y, y + size), slice(x, x + size)


def by_tifffile(he: Path) -> Cut:
    pages = zarr.open(tifffile.TiffFile(he).aszarr(level=0), mode="r")
    return lambda xy, size: pages[box_of(xy, size)]


def by_openslide(he: Path) -> Cut | None:
    """Return how openslide cuts a window; None where it is not installed."""
    try:
        import openslide
    except ImportError:
        return None
    slide = openslide.OpenSlide(he)
    return lambda xy, size: np.asarray(slide.read_region(tuple(window_origin(xy, size).tolist()), 0, (size, size)))[
        ..., :3
    ]


def ways(store: Path, he: Path) -> dict[str, dict[str, Cut]]:
    """Return, by way, how to cut ``(x, y)`` at full and at half resolution."""
    group = zarr.open_group(store, mode="r")
    full, half = group["0"], group["1"]
    found: dict[str, dict[str, Cut]] = {
        "zarr-python, the same store": {
            "full": lambda xy, size: np.moveaxis(full[(slice(None), *box_of(xy, size))], 0, -1),
            "half": lambda xy, size: np.moveaxis(half[(slice(None), *box_of(xy / 2, size // 2))], 0, -1),
        },
    }
    for name, cut in (("tifffile as zarr, H&E TIFF", by_tifffile(he)), ("openslide, H&E TIFF", by_openslide(he))):
        if cut is not None:
            found[name] = {
                "full": cut,
                "half": lambda xy, size, cut=cut: halve(np.ascontiguousarray(cut(xy, size))),
            }
    return found


def rate_of_cut(cut: Cut, xy: np.ndarray, size: int, seconds: float) -> float:
    start, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds and done < len(xy):
        cut(xy[done], size)
        done += 1
    return done / spent


def rate_of_store(path: Path, xy: np.ndarray, size: int, level: int, seconds: float, random: bool = False) -> float:
    store = SlideStore(path)
    buffer = np.full((64, size, size, 3), 255, np.uint8)
    start, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds and done + 64 <= len(xy):
        store.windows(xy[done : done + 64], size, level, "given" if random else "tile", buffer)
        done += 64
    return done / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=8192, help="side of the slide in px")
    parser.add_argument("--seconds", type=float, default=3.0, help="at most this long a measurement")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        he, path = Path(folder) / "he.tif", Path(folder) / "he.ome.zarr"
        image = he_like(options.side)
        write_jpeg(he, image)
        del image
        start = time.perf_counter()
        write_store(he, Frames(np.eye(3), 0.25), path)
        build = time.perf_counter() - start
        rng = np.random.default_rng(1)
        cells = rng.uniform(600, options.side - 600, ((options.side // 37) ** 2, 2))
        ordered = cells[np.argsort(morton(cells.astype(int) // 128))]
        columns = {"224 px": (224, "full"), "1024 px": (1024, "full"), "1024 px at half resolution": (1024, "half")}
        rows: dict[str, list[float]] = {"slide store": [], "slide store, random order": []}
        for size, mode in columns.values():
            level, read = (1, size // 2) if mode == "half" else (0, size)
            rows["slide store"].append(rate_of_store(path, ordered, read, level, options.seconds))
            rows["slide store, random order"].append(rate_of_store(path, cells, read, level, options.seconds, True))
        for name, cuts in ways(path, he).items():
            rows[name] = [rate_of_cut(cuts[mode], ordered, size, options.seconds) for size, mode in columns.values()]
    megapixels = options.side**2 / 1e6
    print(f"Store of {megapixels:.0f} Mpx built in {build:.1f} s ({megapixels / build:.0f} Mpx/s, one thread).\n")
    print("Windows a second (in brackets: how many times slower than the slide store)\n")
    print("| way | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * len(columns))
    best = rows["slide store"]
    for name, rates in rows.items():
        cells_text = [f"{rate:,.0f} ({top / rate:.1f}x)" for rate, top in zip(rates, best, strict=True)]
        print(f"| {name} | " + " | ".join(cells_text) + " |")


if __name__ == "__main__":
    main()
