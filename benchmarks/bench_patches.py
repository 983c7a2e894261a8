"""Windows: cutting, storing and training reads against the ways of others, ratios in one run.

    python benchmarks/bench_patches.py [--small] [--only cutting storing training] [--docs docs/performance.md]

One H&E-like slide (JPEG, quality 90, tiles of 256 px) becomes a slide store without scaling; its pixels are written
again as lossless JPEG 2000 in tiles of 1024 px, the tiles of Xenium's own images. Cells lie at random, one per
37 x 37 px. All files are in the page cache.

cutting   windows of 20,000 cells side by side, in tile order, into one buffer that is used again and again: the slide
          store with one and two threads; openslide on the JPEG tiles and tifffile as zarr on the JPEG 2000 tiles, one
          read a cell, on a sample of neighbours; the slide decoded in memory, one slice a cell; and a plain copy of as
          many contiguous bytes. The ways take turns, a part of the cells at a time, so that other work on the machine
          meets all of them. What they cut is compared first.
storing   bytes a cell and cells a second: the original's split files, the slide store, the export, virtual windows.
training  shuffled reads by two workers, batches of 32, after a first epoch that starts the workers: nuclass.data's
          dataset and loader on the slide store; a torch DataLoader on the original's split files, one read a cell.

Prints Markdown; --docs also puts each table between its marks. Everything is written to a temporary folder (at most
6 GB) that is removed at the end.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

import numpy as np
import pandas as pd
import tifffile
from numpy.typing import NDArray

from bench_common import folder_bytes, machine, publish, table, verdict
from bench_windows import Cut, box_of, by_openslide, by_tifffile, he_like, write_jpeg
from nuclass.slides.geometry import Frames
from nuclass.slides.store import SlideStore, morton
from nuclass.slides.writer import write_store

SPACING, MPP = 37, 0.25
WINDOWS = {"local": 224, "global": 1024}
BATCH = {224: 512, 1024: 64}
Points = NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    side: int = 8192
    cells: int = 20_000
    rounds: int = 4
    passes: int = 3
    openslide: int = 40
    jpeg2000: int = 5
    original: dict[int, int] = field(default_factory=lambda: {224: 2048, 1024: 384})
    virtual: int = 20_000
    batch: int = 32
    seconds: float = 10.0


SMALL = Plan(2560, 400, 2, 1, 4, 2, {224: 64, 1024: 64}, 200, 16, 1.0)


class Slide:
    """The same pixels as a slide store, as JPEG and as JPEG 2000, and cells on it."""

    def __init__(self, folder: Path, side: int, jpeg2000: bool) -> None:
        self.side, self.folder = side, folder
        self.he, self.jp2, self.path = folder / "he.tif", folder / "he_jp2.tif", folder / "he.ome.zarr"
        write_jpeg(self.he, he_like(side))
        start = time.perf_counter()
        write_store(self.he, Frames(np.eye(3), MPP), self.path, threads=2)
        self.build_s = time.perf_counter() - start
        if jpeg2000:
            tifffile.imwrite(
                self.jp2, self.image, photometric="rgb", tile=(1024, 1024), compression="jpeg2000", maxworkers=2
            )

    @cached_property
    def image(self) -> NDArray[np.uint8]:
        """The decoded slide, (side, side, 3)."""
        with SlideStore(self.path) as store:
            return store.region(0, 0, self.side, self.side)

    def cells(self, n: int, seed: int = 1) -> Points:
        """Return ``n`` cells of a square in the middle with one cell per 37 x 37 px, in tile order."""
        half = min(SPACING * np.sqrt(n), self.side - 1100) / 2
        xy = np.random.default_rng(seed).uniform(self.side / 2 - half, self.side / 2 + half, (n, 2))
        return xy[np.argsort(morton(xy.astype(int) // 128), kind="stable")]

    @property
    def all_cells(self) -> int:
        """Cells of the whole slide at that density."""
        return int(self.side / SPACING) ** 2


class Way(NamedTuple):
    """A way to cut: takes centres; how many cells of each part it is given."""

    cut: Callable[[Points], Any]
    share: int | None = None


def cutting_ways(slide: Slide, size: int, plan: Plan) -> dict[str, Way]:
    batch = BATCH[size]
    buffer = np.full((batch, size, size, 3), 255, np.uint8)
    image = slide.image
    blocks = image.reshape(-1)[: image.size // buffer[0].size * buffer[0].size].reshape(-1, size, size, 3)
    pool = ThreadPoolExecutor(2)

    def by_store(threads: int) -> Way:
        store = SlideStore(slide.path)

        def cut(xy: Points) -> None:
            for start in range(0, len(xy), batch):
                part = xy[start : start + batch]
                store.windows(part, size, 0, "tile", buffer[: len(part)], threads)

        return Way(cut)

    def copied(first: int, rows: Iterable[int]) -> None:
        for row in rows:
            np.copyto(buffer[row], blocks[(first + row) % len(blocks)])

    def by_copy(threads: int) -> Way:
        def cut(xy: Points) -> None:
            for start in range(0, len(xy), batch):
                rows = range(min(batch, len(xy) - start))
                if threads == 1:
                    copied(start, rows)
                    continue
                for done in [pool.submit(copied, start, rows[k::threads]) for k in range(threads)]:
                    done.result()

        return Way(cut)

    def one_by_one(one: Cut, share: int | None = None) -> Way:
        def cut(xy: Points) -> None:
            for i, place in enumerate(xy):
                buffer[i % batch] = one(place, size)

        return Way(cut, share)

    ways = {
        "slide store, 2 threads": by_store(2),
        "slide store, 1 thread": by_store(1),
        "plain copy of the bytes, 2 threads": by_copy(2),
        "plain copy of the bytes, 1 thread": by_copy(1),
        "whole slide decoded in memory, slices": one_by_one(lambda xy, size: image[box_of(xy, size)]),
        "tifffile as zarr, JPEG 2000": one_by_one(by_tifffile(slide.jp2), plan.jpeg2000),
    }
    openslide = by_openslide(slide.he)
    if openslide is not None:
        ways["openslide, JPEG"] = one_by_one(openslide, plan.openslide)
    return ways


def compare(slide: Slide) -> None:
    """Raise unless the ways cut the same pixels; JPEG decoders may differ by some grey levels."""
    store, xy = SlideStore(slide.path), slide.cells(400)[::150]
    openslide, jpeg2000 = by_openslide(slide.he), by_tifffile(slide.jp2)
    for size in WINDOWS.values():
        for place, window in zip(xy, store.windows(xy, size, threads=2), strict=True):
            assert np.array_equal(window, jpeg2000(place, size)), "JPEG 2000 and the store differ"
            assert np.array_equal(window, slide.image[box_of(place, size)]), "slices and the store differ"
            if openslide is not None:
                other = openslide(place, size).astype(int)
                assert np.abs(other - window).mean() < 2, "openslide and the store differ"


def in_turn(ways: dict[str, Way], xy: Points, rounds: int, passes: int) -> dict[str, float]:
    """Return cells a second of each way; a part of the cells at a time, all ways after each other."""
    spent, done = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0)
    for way in ways.values():
        way.cut(xy[: min(len(xy), 64 if way.share is None else 1)])
    for _ in range(passes):
        for part in np.array_split(xy, rounds):
            for name, way in ways.items():
                given = part if way.share is None else part[: way.share]
                start = time.perf_counter()
                way.cut(given)
                spent[name] += time.perf_counter() - start
                done[name] += len(given)
    return {name: done[name] / spent[name] for name in ways}


def cutting(slide: Slide, plan: Plan) -> str:
    compare(slide)
    xy = slide.cells(plan.cells)
    rows = []
    goals = {
        (1024, "openslide, JPEG"): 100,
        (1024, "tifffile as zarr, JPEG 2000"): 500,
        (1024, "plain copy of the bytes, 2 threads"): 0.5,
        (1024, "plain copy of the bytes, 1 thread"): 0.5,
    }
    for size in sorted(WINDOWS.values(), reverse=True):
        ways = cutting_ways(slide, size, plan)
        rates = in_turn(ways, xy, plan.rounds, plan.passes if size < 1024 else 1)
        best = rates["slide store, 2 threads"]
        for name, rate in rates.items():
            # A copy is compared with the store on as many threads.
            ours = rates["slide store, 1 thread"] if name.endswith("1 thread") else best
            goal = goals.get((size, name))
            told = "" if goal is None else verdict(ours / rate, goal)
            if (size, name) == (224, "slide store, 2 threads"):
                told = verdict(rate, 30_000) + " (cells/s)"
            share = ways[name].share
            cells = len(xy) if share is None else share * plan.rounds
            speed = f"{rate:,.0f}" if rate >= 20 else f"{rate:.2f}"
            rows.append([f"{size} px", name, f"{cells:,}", speed, f"{ours / rate:,.2f}", told])
    head = ["window", "way", "cells", "cells/s", "store is faster by", "goal"]
    return table(head, rows)


class Original(NamedTuple):
    """The original's split file of one size."""

    path: Path
    keys: list[str]
    bytes_a_cell: float
    write_rate: float


def make_original(slide: Slide, size: int, n: int) -> Original:
    from original_files import write_original

    xy = slide.cells(max(n, 400))[:n]
    keys = [f"cell{i:06d}-1" for i in range(n)]
    path = slide.folder / f"patches_{size}x{size}.h5"
    start = time.perf_counter()
    with SlideStore(slide.path) as store:
        write_original(path, keys, xy, size, store)
    seconds = time.perf_counter() - start
    return Original(path, keys, path.stat().st_size / n, n / seconds)


def exported(slide: Slide, n: int, virtual: bool) -> tuple[dict[int, float], float, float]:
    """Export ``n`` cells; return bytes a cell by size, cells a second, and MB of the slide in the export."""
    from nuclass.patches.export import export_patches

    xy = slide.cells(n)
    ids = [f"cell{i:06d}-1" for i in range(n)]
    cells = pd.DataFrame({"cell_id": ids, "x_px": xy[:, 0], "y_px": xy[:, 1], "status": "kept"})
    cells = cells.assign(x_um=cells["x_px"] * MPP, y_um=cells["y_px"] * MPP)
    labels = pd.DataFrame({"cell_id": ids, "class": "T_Cell", "status": "labelled"})
    with tempfile.TemporaryDirectory(dir=slide.folder) as folder, SlideStore(slide.path) as store:
        out = Path(folder) / "export"
        names = {"slide": "slide", "organ": "breast", "patient": "patient"}
        start = time.perf_counter()
        export_patches(store, cells, labels, out, WINDOWS, mpp=MPP, virtual=virtual, **names)
        seconds = time.perf_counter() - start
        sizes = {size: folder_bytes(out / f"patches_{size}x{size}.h5") / n for size in WINDOWS.values()}
        beside = folder_bytes(out / "slide.h5") / 1e6 if virtual else 0.0
    return sizes, n / seconds, beside


def storing(slide: Slide, originals: dict[int, Original], plan: Plan) -> str:
    theirs = {size: one.bytes_a_cell for size, one in originals.items()}
    both, rate = sum(theirs.values()), 1 / sum(1 / one.write_rate for one in originals.values())
    store = folder_bytes(slide.path) / slide.all_cells
    packed, packed_rate, _ = exported(slide, plan.original[1024], virtual=False)
    links, links_rate, beside = exported(slide, plan.virtual, virtual=True)

    def row(
        name: str, cells: int, sizes: dict[int, float] | None, total: float, rate: float, goal: str = ""
    ) -> list[str]:
        parts = [f"{sizes[size]:,.0f}" for size in (224, 1024)] if sizes else ["", ""]
        return [
            name,
            f"{cells:,}",
            *parts,
            f"{total:,.0f}",
            f"1/{both / total:,.{0 if total < both / 10 else 1}f}",
            f"{rate:,.0f}",
            goal,
        ]

    rows = [
        row("original: one dataset a cell, LZF", plan.original[1024], theirs, both, rate),
        row(
            "slide store with its pyramid",
            slide.all_cells,
            None,
            store,
            slide.all_cells / slide.build_s,
            verdict(both / store, 400).replace("at least ", "at most 1/"),
        ),
        row("nuclass patches export", plan.original[1024], packed, sum(packed.values()), packed_rate),
        row(
            f"export --virtual (and slide.h5, {beside:,.0f} MB)",
            plan.virtual,
            links,
            sum(links.values()),
            links_rate,
        ),
    ]
    head = ["store", "cells", "224 px, bytes a cell", "1024 px", "both", "of the original", "written cells/s", "goal"]
    return table(head, rows)


def rate_of_loader(loader: Any, seconds: float, image: Callable[[Any], Any]) -> float:
    """Return cells a second of one epoch, or of ``seconds`` of it, after one that starts the workers."""
    for number, _ in enumerate(loader):
        if number >= 4:
            break
    start, cells = time.perf_counter(), 0
    for batch in loader:
        cells += len(image(batch))
        if time.perf_counter() - start > seconds:
            break
    return cells / (time.perf_counter() - start)


def own_loader(slide: Slide, size: int, level: int, out_px: int, batch: int) -> Any:
    from nuclass.data.datasets import WindowDataset
    from nuclass.data.loaders import make_loader
    from nuclass.patches.windows import WindowReader

    xy = slide.cells(int((slide.side - 1100) / SPACING) ** 2)
    frame = pd.DataFrame({"slide": "slide", "row": np.arange(len(xy)), "x_px": xy[:, 0], "y_px": xy[:, 1]})
    zeros = np.zeros(len(xy), np.int64)
    dataset = WindowDataset(WindowReader({"slide": slide.path}), frame, size, level, out_px, zeros, zeros)
    return make_loader(dataset, batch, shuffle=True, seed=0, num_workers=2)


def training(slide: Slide, originals: dict[int, Original], plan: Plan) -> str:
    from original_files import original_loader

    rows = []
    cases = (
        (224, "224 px", 5, {"slide store": (224, 0, 224)}),
        (
            1024,
            "1024 px seen at 512",
            20,
            {"slide store, fast (level 1)": (1024, 1, 512), "slide store, exact": (1024, 0, 512)},
        ),
    )
    for size, window, goal, ours in cases:
        one = originals[size]
        loader = original_loader(one.path, one.keys, plan.batch, 2, step=size // 512 if size > 512 else 1)
        theirs = rate_of_loader(loader, plan.seconds, lambda batch: batch[0])
        del loader
        rows.append([window, "original: one dataset a cell, LZF", f"{theirs:,.0f}", "1.0", ""])
        for name, (side, level, out_px) in ours.items():
            loader = own_loader(slide, side, level, out_px, plan.batch)
            rate = rate_of_loader(loader, plan.seconds, lambda batch: batch["image"])
            del loader
            told = "" if name.endswith("exact") else verdict(rate / theirs, goal)
            rows.append([window, name, f"{rate:,.0f}", f"{rate / theirs:.1f}", told])
    head = ["window", "read from", "cells/s, two workers", "times the original", "goal"]
    return table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--small", action="store_true", help="a quick check that everything runs; its figures say little"
    )
    names = ("cutting", "storing", "training")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="these tables alone")
    parser.add_argument("--docs", type=Path, help="page to put the tables into, docs/performance.md")
    options = parser.parse_args()
    plan = SMALL if options.small else Plan()
    busy, began = os.getloadavg()[0], time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="nuclass-bench-") as folder:
        slide = Slide(Path(folder), plan.side, jpeg2000="cutting" in options.only)
        originals = {}
        if {"storing", "training"} & set(options.only):
            originals = {size: make_original(slide, size, n) for size, n in plan.original.items()}
        makers: dict[str, Callable[[], str]] = {
            "cutting": lambda: cutting(slide, plan),
            "storing": lambda: storing(slide, originals, plan),
            "training": lambda: training(slide, originals, plan),
        }
        for name in options.only:
            text = f"{makers[name]()}\n\nSlide of {slide.side:,} x {slide.side:,} px. {machine(busy)}"
            publish(name, text, options.docs)
    print(f"The whole run took {time.perf_counter() - began:.0f} s.")


if __name__ == "__main__":
    main()
