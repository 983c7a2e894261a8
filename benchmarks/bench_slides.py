"""Time, memory and size of the slide store against a plain way and against decoding alone, in one run.

    python benchmarks/bench_slides.py [--quick] [--repeats 3] [--threads 2] [--folder FOLDER] [--wide]

Slides are made once: H&E-like tissue on glass, tiled OME-TIFFs with a pyramid, tiles of 1024 px, JPEG (quality 90)
or JPEG 2000 (lossy), 0.2738 um/px. Each is brought to 0.25 um/px:

- slide store: ``nuclass.slides.writer.write_store``;
- plain: ``tifffile.imread``, one resize of the whole image by Pillow, three halvings, zarr-python with its default
  codec in the same chunks and shards;
- decode once: every tile of level 0 decoded on all cores and thrown away; the floor.

Every measurement is a process of its own. Memory is the peak resident size that the kernel keeps (VmHWM), imports
included; CPU is user and system time of all threads. Medians of the repeats; the ways take turns. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

import numpy as np

MPP = 0.2738
TILE = 1024
PATTERN = 3000
WAYS = ("slide store", "plain", "decode once")


def pattern() -> np.ndarray:
    """Return a square of stained tissue with an island of glass, each with its grain."""
    from PIL import Image

    rng = np.random.default_rng(0)

    def smooth(cell: int) -> np.ndarray:
        noise = rng.normal(0, 1, (PATTERN // cell + 2, PATTERN // cell + 2)).astype(np.float32)
        return np.asarray(Image.fromarray(noise).resize((PATTERN, PATTERN), Image.Resampling.BICUBIC))

    fine, coarse = smooth(16), smooth(300)
    glass = coarse > 0.3
    out = np.empty((PATTERN, PATTERN, 3), np.uint8)
    for channel, (mean, gain, empty) in enumerate(((190, 35, 240), (140, 45, 238), (190, 25, 241))):
        tissue = mean + gain * fine + rng.normal(0, 4, fine.shape)
        out[..., channel] = np.clip(np.where(glass, empty + rng.normal(0, 0.7, fine.shape), tissue), 0, 255)
    return out


def tiles(base: np.ndarray, height: int, width: int) -> Iterator[np.ndarray]:
    """Yield the tiles of an image that repeats the pattern."""
    for top in range(0, height, TILE):
        rows = np.arange(top, min(top + TILE, height)) % len(base)
        for left in range(0, width, TILE):
            columns = np.arange(left, min(left + TILE, width)) % len(base)
            yield np.ascontiguousarray(base[rows][:, columns])


def make_slide(path: Path, height: int, width: int, codec: str) -> None:
    import tifffile
    from PIL import Image

    base = pattern()
    options: dict[str, Any] = {
        "dtype": np.uint8,
        "tile": (TILE, TILE),
        "photometric": "rgb",
        "compression": codec,
        "compressionargs": {"level": 90 if codec == "jpeg" else 40},
    }
    with tifffile.TiffWriter(path, ome=True, bigtiff=True) as tiff:
        for k in range(4):
            shape = (-(-height // 2**k), -(-width // 2**k))
            level = np.asarray(Image.fromarray(base).reduce(2**k)) if k else base
            more = {"subifds": 3, "metadata": {"axes": "YXS"}} if k == 0 else {"subfiletype": 1, "metadata": None}
            tiff.write(tiles(level, *shape), shape=(*shape, 3), **options, **more)


def slide_store(he: Path, out: Path, threads: int) -> None:
    from nuclass.slides.geometry import Frames
    from nuclass.slides.writer import write_store

    write_store(he, Frames(np.eye(3), MPP, 0.25), out, threads=threads)


def plain(he: Path, out: Path, threads: int) -> None:
    import tifffile
    import zarr
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    image = Image.fromarray(tifffile.imread(he, maxworkers=threads))
    scale = MPP / 0.25
    level = image.resize((int(image.width * scale + 0.5), int(image.height * scale + 0.5)), Image.Resampling.BILINEAR)
    del image
    group = zarr.open_group(out, mode="w")
    for k in range(4):
        data = np.moveaxis(np.asarray(level), -1, 0)
        array = group.create_array(
            str(k), shape=data.shape, dtype="uint8", chunks=(3, 256, 256), shards=(3, 2048, 2048)
        )
        array[:] = data
        level = level.reduce(2)


def decode_once(he: Path, out: Path, threads: int) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from nuclass.slides.source import open_source

    out.mkdir()
    with open_source(he) as source, ThreadPoolExecutor(threads) as pool:
        level = source.levels[0]
        places = ((row, column) for row in range(level.grid[0]) for column in range(level.grid[1]))
        for _ in pool.map(lambda place: level.blocks.decode(*place) is None, places):
            pass


def child(way: str, he: Path, out: Path, threads: int) -> None:
    start = time.perf_counter()
    {"slide store": slide_store, "plain": plain, "decode once": decode_once}[way](he, out, threads)
    seconds = time.perf_counter() - start
    used = os.times()
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(json.dumps({"s": seconds, "cpu": used.user + used.system, "mb": peak / 1024, "size": size / 1e6}))


def measure(way: str, he: Path, threads: int) -> dict[str, float]:
    """Run one way in a process of its own."""
    out = he.with_suffix(".out")
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, __file__, "--child", way, str(he), str(out), "--threads", str(threads)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    shutil.rmtree(out, ignore_errors=True)
    return dict(json.loads(result.stdout.splitlines()[-1]))


def compare(he: Path, title: str, ways: tuple[str, ...], options: argparse.Namespace) -> None:
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(options.repeats):
        for way in ways:
            runs[way].append(measure(way, he, options.threads))
    middle = {way: {k: statistics.median(r[k] for r in found) for k in found[0]} for way, found in runs.items()}
    floor = middle["decode once"]
    for way, m in middle.items():
        size = f"{m['size']:,.0f}" if way != "decode once" else "-"
        print(
            f"| {title} | {way} | {m['s']:.1f} | {m['s'] / floor['s']:.2f} | {m['cpu']:.1f} | "
            f"{m['cpu'] / floor['cpu']:.2f} | {m['mb']:,.0f} | {size} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="sides of 2,000 and 4,000 px, once")
    parser.add_argument("--wide", action="store_true", help="also a slide of 120,000 x 4,000 px, JPEG 2000")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, help="keep the slides here and use them again")
    parser.add_argument("--child", nargs=3, metavar=("WAY", "HE", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], Path(options.child[1]), Path(options.child[2]), options.threads)
        return
    sides = (1000, 2000, 4000) if options.quick else (6000, 12000, 24000)
    options.repeats = 1 if options.quick else options.repeats
    cases = [(sides[1], sides[1], "jpeg", WAYS), (sides[1], sides[1], "jpeg2000", WAYS)]
    cases += [(side, side, "jpeg", ("slide store", "decode once")) for side in (sides[0], sides[2])]
    if options.wide:
        cases.append((4000, 120_000, "jpeg2000", ("slide store", "decode once")))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{options.threads} threads, medians of {options.repeats}.\n")
        print("| slide | way | s | of decoding | CPU s | of decoding | peak MB | MB written |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for height, width, codec, ways in cases:
            he = folder / f"{width}x{height}_{codec}.ome.tif"
            if not he.exists():
                make_slide(he, height, width, codec)
            compare(he, f"{width:,} x {height:,} {codec.upper().replace('JPEG2000', 'JPEG 2000')}", ways, options)


if __name__ == "__main__":
    main()
