"""Intervals of a study's size against what one would write with scikit-learn, in one run.

    python benchmarks/bench_bootstrap.py [--cells 300000] [--docs docs/performance.md]

Simulated slides of the density of tissue (a cell in 100 um2), 16 classes of unequal frequency that cluster in space.
"Ours" is `nuclass.evaluation.paired_bootstrap`: all its numbers, with F1 by class, for 1,000 draws of blocks of 150 um.
"By hand" draws the same blocks, copies the cells of a draw, and asks scikit-learn: for macro-F1 alone, and for
accuracy, balanced accuracy, macro, weighted and per-class F1 and log loss. It is measured on a few draws; the time of
1,000 is reckoned from them. Each way runs in a process of its own with two threads, ours five times (median). Memory is
the peak of what is allocated beside the data (tracemalloc), in a further, untimed run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "2"))

import numpy as np
from scipy.ndimage import gaussian_filter

from bench_common import machine, publish, step, table, verdict
from nuclass.evaluation.bootstrap import Blocks, block_weights, paired_bootstrap, spatial_blocks

CLASSES, BLOCK_UM, SLIDES, SEED, GOAL_S = 16, 150.0, 3, 1, 60.0


def simulate(cells: int) -> tuple[np.ndarray, dict[str, np.ndarray], Blocks]:
    """Return labels, the probabilities of two models (cells, CLASSES) and the blocks."""
    rng = np.random.default_rng(0)
    side = int(np.ceil(np.sqrt(cells / SLIDES)))
    each = side * side
    shares = np.geomspace(1, 0.02, CLASSES)
    labels, places = [], []
    for _ in range(SLIDES):
        field = np.stack([gaussian_filter(rng.normal(size=(side, side)), 6) for _ in range(CLASSES)], -1)
        logits = field / field.std() + np.log(shares) + rng.gumbel(size=field.shape)
        labels.append(logits.argmax(-1).ravel())
        places.append(np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) * 10.0)
    y = np.concatenate(labels)[:cells]
    xy = np.concatenate(places)[:cells]
    models = {}
    for name, skill in (("fused", 3.0), ("local", 2.5)):
        z = rng.normal(size=(len(y), CLASSES))
        z[np.arange(len(y)), y] += skill
        p = np.exp(z)
        models[name] = p / p.sum(1, keepdims=True)
    slide = np.repeat([f"s{i}" for i in range(SLIDES)], each)[:cells]
    return y, models, spatial_blocks(slide, xy[:, 0], xy[:, 1], BLOCK_UM)


def measure(work: Callable[[], Any], times: int = 1) -> tuple[Any, float, float]:
    """Return what ``work`` gives, its seconds (median), and the peak of its allocations in MB."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        result = work()
        taken.append(time.perf_counter() - start)
    seconds = float(np.median(taken))
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return result, seconds, peak


def ours(cells: int, draws: int, names: list[str]) -> dict[str, float]:
    y, models, blocks = simulate(cells)
    models = {name: models[name] for name in names}
    pairs = [("fused", "local")] if len(names) == 2 else []
    classes = [f"c{i}" for i in range(CLASSES)]
    found, seconds, mb = measure(
        lambda: paired_bootstrap(y, models, blocks, classes, pairs=pairs, draws=draws, seed=SEED), times=5
    )
    return {"s": seconds, "mb": mb, "blocks": blocks.n, **found["models"]["fused"]["macro_f1"]}


def by_hand(cells: int, draws: int, whole: bool) -> dict[str, float]:
    """Resample cells draw by draw, one model."""
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss

    y, models, blocks = simulate(cells)
    p = models["fused"]
    predicted = p.argmax(1)
    order = np.argsort(blocks.of_cell, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(blocks.of_cell, minlength=blocks.n))[:-1])
    weights = block_weights(blocks, draws, SEED).astype(int)

    def work() -> None:
        for row in weights:
            rows = np.concatenate([np.tile(members[b], row[b]) for b in np.flatnonzero(row)])
            f1_score(y[rows], predicted[rows], average="macro", zero_division=0)
            if whole:
                f1_score(y[rows], predicted[rows], average="weighted", zero_division=0)
                f1_score(y[rows], predicted[rows], average=None, zero_division=0)
                accuracy_score(y[rows], predicted[rows])
                balanced_accuracy_score(y[rows], predicted[rows])
                log_loss(y[rows], p[rows], labels=np.arange(CLASSES))

    _, seconds, mb = measure(work)
    return {"s": seconds / draws, "mb": mb}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=300_000, help="cells (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=1000, help="draws (default: %(default)s)")
    parser.add_argument("--few", type=int, default=10, help="draws measured by hand (default: %(default)s)")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="write the table between its marks in this page")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        way, cells, draws = options.step[0], int(options.step[1]), int(options.step[2])
        runs = {
            "one": lambda: ours(cells, draws, ["fused"]),
            "two": lambda: ours(cells, draws, ["fused", "local"]),
            "f1": lambda: by_hand(cells, draws, False),
            "whole": lambda: by_hand(cells, draws, True),
        }
        sys.stdout.write(json.dumps(runs[way]()) + "\n")
        return
    busy = os.getloadavg()[0]
    found = {way: step(__file__, way, options.cells, options.draws) for way in ("one", "two")}
    found |= {way: step(__file__, way, options.cells, options.few) for way in ("f1", "whole")}
    base = found["one"]["s"]
    names = {
        "one": "ours, one model: all numbers",
        "two": "ours, two models and their difference",
        "f1": f"by hand, one model: macro-F1 alone; from {options.few} draws",
        "whole": f"by hand, one model: hard metrics and log loss; from {options.few} draws",
    }
    rows = []
    for way, name in names.items():
        hand = way in ("f1", "whole")
        seconds = found[way]["s"] * (options.draws if hand else 1)
        goal = "" if hand else verdict(seconds, GOAL_S, most=True)
        rows.append(
            [
                name,
                f"{seconds:,.2f}" if not hand else f"{seconds:,.0f}",
                f"{seconds / base:,.1f}" if not hand else f"{seconds / base:,.0f}",
                f"{found[way]['mb']:,.0f}",
                goal,
            ]
        )
    head = [f"{options.draws:,} draws, {options.cells:,} cells", "s", "times ours", "MB beside the data", "goal, s"]
    blocks = f"{found['one']['blocks']:,} blocks of {BLOCK_UM:g} um, {CLASSES} classes. "
    publish("bootstrap", table(head, rows) + f"\n\n{blocks}{machine(busy)}", options.docs)


if __name__ == "__main__":
    main()
