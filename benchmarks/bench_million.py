"""Two million cells: what splitting, registration and an epoch of index traffic cost in time and memory.

    python benchmarks/bench_million.py [--small] [--slides 8] [--cells 250000] [--docs docs/performance.md]

The study is simulated (simulate_million.py): tables with all columns, positions and classes of every cell; slides of
full size made of four tiles. Each step is a process of its own, imports included in its memory and not in its seconds,
unless said otherwise:

split      all slides after each other, as their jobs do it: tables read, cut, proof of no overlap, table written.
register   nuclass.data.load_cells of all slides, dataset and loader; the same by the data module of training, which
           leaves out the buffer between the splits and holds the tables of its cells.
start      the same from the start of Python to the first batch of a loader with two workers, imports included.
index      all batches of row numbers of one epoch, by one rank and by four.
read       windows of 20,000 cells by the two workers, in training order, and from these an epoch, extrapolated: the
           tiles come from the page cache.

Memory is the peak resident size that the kernel keeps (VmHWM). That of workers is measured after they have read, from
/proc/PID/smaps_rollup: with shared pages by their share (PSS), private, and resident (RSS). RSS counts the pages of the
libraries and of the tables in every process although all share one copy, so the goal is set on PSS; what the imports
alone take stands beside it. The cache of decoded tiles (64 MB at most) counts.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

from bench_common import before_mb, machine, memory_mb, peak_mb, publish, step, table, verdict

BATCH, READ = 64, 20_000
VIEWS = {"224 px": (224, 0, 224), "1024 px seen at 512": (1024, 1, 512)}
WORKER_MB, START_S = 400, 10


def study_of(results: Path) -> Any:
    from nuclass.data.study import Study

    return Study(json.loads((results / "slides.json").read_text(encoding="utf-8")), results)


def split(results: Path, layout: str) -> dict[str, Any]:
    import numpy as np
    import pandas as pd

    from nuclass.core.files import write_parquet
    from nuclass.splits import SplitConfig, split_cells

    base, start = before_mb(), time.perf_counter()
    config, counts = SplitConfig(layout=layout), []
    for row in study_of(results).slides:
        slide = row["slide"]
        cells = pd.read_parquet(results / "slides" / slide / "cells.parquet", columns=["cell_id", "x_px", "y_px"])
        labels = pd.read_parquet(results / "labels" / slide / "labels.parquet", columns=["cell_id", "class", "status"])
        done = split_cells(cells, labels, config, "train", slide)
        write_parquet(results / "splits" / f"{slide}.parquet", done.frame)
        counts.append(done.frame["split"].eq("buffer").mean())
    return {"s": time.perf_counter() - start, "base": base, "peak": peak_mb(), "buffer": float(np.mean(counts))}


def make_dataset(results: Path, view: str) -> Any:
    """Return the dataset of all cells of the study, whatever their split."""
    from nuclass.data import Vocabulary, WindowDataset, load_cells

    study = study_of(results)
    frame = load_cells(study.slides, results)
    vocabulary = Vocabulary.from_frame(frame)
    size, level, out_px = VIEWS[view]
    organ, label = vocabulary.encode_organs(frame["organ"]), vocabulary.encode_classes(frame["class"])
    return WindowDataset(study.reader(), frame, size, level, out_px, organ, label)


def register(results: Path) -> dict[str, Any]:
    from nuclass.data import WindowDataset, load_cells, make_loader  # noqa: F401

    base, start = before_mb(), time.perf_counter()
    dataset = make_dataset(results, "224 px")
    make_loader(dataset, BATCH, shuffle=True)
    return {"s": time.perf_counter() - start, "base": base, "peak": peak_mb(), "cells": len(dataset)}


def module(results: Path) -> dict[str, Any]:
    """Set up the data module of the local model, as training does: the cells of train and val."""
    from nuclass.data.modules import Loading, LocalData

    base, start = before_mb(), time.perf_counter()
    loading = Loading(batch_size=BATCH, memory_mb=0)
    data = LocalData(study_of(results), read_level=0, input_px=224, loading=loading)
    data.setup("fit")
    data.train_dataloader(), data.val_dataloader()
    cells = len(data.train_set) + len(data.val_set)
    return {"s": time.perf_counter() - start, "base": base, "peak": peak_mb(), "cells": cells}


def index(results: Path, ranks: int) -> dict[str, Any]:
    """Run through one epoch of row numbers for each rank; together they must show every cell."""
    import numpy as np

    from nuclass.data import make_loader

    dataset = make_dataset(results, "224 px")
    base, seconds, seen, batches = before_mb(), [], np.zeros(len(dataset), np.uint8), 0
    for rank in range(ranks):
        start = time.perf_counter()
        loader = make_loader(dataset, BATCH, shuffle=True, rank=rank, world_size=ranks)
        for rows in loader.sampler:
            seen[rows] = 1
            batches += 1
        seconds.append(time.perf_counter() - start)
    assert seen.all(), "an epoch left cells out"
    return {"s": max(seconds), "base": base, "peak": peak_mb(), "batches": batches}


def read(results: Path, view: str, cells: int, began: float) -> dict[str, Any]:
    """Start a loader, wait for its first batch, then read ``cells`` windows; memory of the workers at the end."""
    from nuclass.data import WindowDataset, load_cells, make_loader  # noqa: F401

    imports = memory_mb()["Rss"]
    dataset = make_dataset(results, view)
    loader = make_loader(dataset, BATCH, shuffle=True, num_workers=2)
    batches = iter(loader)
    next(batches)
    start = time.perf_counter()
    first = time.time() - began
    done = 0
    while done < cells:
        done += len(next(batches)["image"])
    seconds = time.perf_counter() - start
    workers = [memory_mb(worker.pid) for worker in multiprocessing.active_children() if worker.pid]
    worst = {name: max(worker[name] for worker in workers) for name in workers[0]}
    told = {"first": first, "rate": done / seconds, "cells": len(dataset), "imports": imports}
    return {**told, "main": memory_mb()["Rss"], **worst}


STEPS: dict[str, Any] = {"split": split, "register": register, "module": module, "index": index, "read": read}


def run_step(name: str, results: Path, *arguments: str) -> None:
    values: list[Any] = list(arguments)
    if name == "index":
        values = [int(values[0])]
    elif name == "read":
        values = [values[0], int(values[1]), float(values[2])]
    sys.stdout.write(json.dumps(STEPS[name](results, *values)) + "\n")


def measure(results: Path, slides: int, cells: int, read_cells: int) -> tuple[list[list[str]], list[list[str]]]:
    """Run all steps; return the rows of both tables."""
    millions, one = slides * cells / 1e6, cells / 1e6

    def cost(name: str, got: dict[str, Any], held: float = millions) -> list[str]:
        """``held`` is how many million cells the step holds at a time."""
        grown = (got["peak"] - got["base"]) / held
        seconds = got["s"] / got.get("cells", slides * cells) * 1e6
        return [name, f"{got['s']:.2f}", f"{seconds:.2f}", f"{got['peak']:,.0f}", f"{grown:,.0f}"]

    costs = []
    for layout in ("blocks", "bands"):
        got = step(__file__, "split", results, layout)
        costs.append(cost(f"split all slides, {layout} ({got['buffer']:.0%} in the buffer)", got, one))
    got = step(__file__, "register", results)
    assert got["cells"] == slides * cells
    costs.append(cost("register all cells: tables, dataset, loader", got))
    got = step(__file__, "module", results)
    costs.append(cost(f"data module, {got['cells']:,} cells of train and val", got, got["cells"] / 1e6))
    for ranks in (1, 4):
        got = step(__file__, "index", results, ranks)
        name = f"row numbers of an epoch, {got['batches']:,} batches" + (
            ", the slowest of 4 ranks" if ranks > 1 else ""
        )
        costs.append(cost(name, got))
    reads = []
    for view in VIEWS:
        got = step(__file__, "read", results, view, read_cells, time.time())
        epoch = got["cells"] / got["rate"]
        reads.append(
            [
                view,
                f"{got['first']:.1f} ({verdict(got['first'], START_S, most=True)})",
                f"{got['Pss']:,.0f} ({verdict(got['Pss'], WORKER_MB, most=True)})",
                f"{got['Private']:,.0f}",
                f"{got['Rss']:,.0f}",
                f"{got['imports']:,.0f}",
                f"{got['main']:,.0f}",
                f"{got['rate']:,.0f}",
                f"{epoch / 60:.1f}",
                f"{epoch / 60 / (got['cells'] / 1e6):.1f}",
            ]
        )
    return costs, reads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--small", action="store_true", help="a quick check that everything runs: two slides, 200,000 cells"
    )
    parser.add_argument("--slides", type=int, default=8)
    parser.add_argument("--cells", type=int, default=250_000, help="cells of a slide")
    parser.add_argument("--docs", type=Path, help="page to put the tables into, docs/performance.md")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        run_step(options.step[0], Path(options.step[1]), *options.step[2:])
        return
    slides, cells, read_cells = (2, 100_000, 1_000) if options.small else (options.slides, options.cells, READ)
    busy, began = os.getloadavg()[0], time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="nuclass-bench-") as folder:
        from simulate_million import simulate

        results = Path(folder) / "results"
        rows = simulate(results, slides, cells)
        (results / "slides.json").write_text(json.dumps(rows), encoding="utf-8")
        made = time.perf_counter() - began
        costs, reads = measure(results, slides, cells, read_cells)
    told = f"{slides} slides of {cells:,} cells. {machine(busy)}"
    head = ["step", "s", "s per million cells", "peak MB", "MB per million cells, beyond imports"]
    publish("million", f"{table(head, costs)}\n\n{told}", options.docs)
    head = [
        *("loader with two workers", "s to the first batch", "worker, PSS MB", "private MB", "RSS MB"),
        *("RSS of the imports alone", "main, RSS MB"),
        *("cells/s", "epoch, min (extrapolated)", "min per million cells"),
    ]
    publish("million loader", f"{table(head, reads)}\n\n{told}", options.docs)
    print(f"The study was simulated in {made:.0f} s; the whole run took {time.perf_counter() - began:.0f} s.")


if __name__ == "__main__":
    main()
