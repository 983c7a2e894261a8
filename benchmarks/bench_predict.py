"""Prediction of a slide against the bare forward passes that it rests on, and against the original's way, in one run.

    python benchmarks/bench_predict.py [--small] [--pairs 1] [--docs docs/performance.md]

One H&E-like slide; cells one per 37 x 37 px, classes at random, models hardly trained (what they say does not matter
here). Networks are those of train.py: the demo's, and with --pairs 2 vision transformers at 224 px and 512 px.

bare      both backbones over batches that are in memory already: nothing else.
ours      nuclass.training.predict.predict_slide without the loading of the models: windows from the slide, both models,
          the gate, tables and arrays written.
original  every cell's two windows by themselves from HDF5 files with one LZF dataset a cell, in the order of their ids,
          the large one brought down, both backbones and the context network in the same pass. It is compared with ours
          and the context features together.

One thread computes. Ways alternate, the least of the rounds counts, for others may be at work on the machine.
"Processor" is the time of all threads of the process together: what a pass takes where one core is all there is.

Memory is measured with a small network: the peak of a pass over many cells, and over few.

Prints Markdown; --docs also puts each table between its marks.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pandas as pd
import torch

from bench_common import before_mb, machine, peak_mb, publish, step, table, verdict
from nuclass.core.files import write_parquet
from nuclass.data.study import Study
from nuclass.data.training_cells import by_place
from nuclass.training import predict
from nuclass.training.predictor import Predictor
from train import SLIDE, SMALL, Context, OriginalPair, Plan, make_study, pairs, shrink, write_original

MODELS = ("local", "global", "gate")
PLANS = {"the demo's networks": Plan(4096, 128, 2048, 128), "transformers, 224 px and 512 px": Plan(4096, 128, 256, 32)}
BATCH, SECTIONS = 128, ("context", "predict")


def seconds_of(work: Callable[[], Any]) -> tuple[float, float]:
    """Return the seconds on the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


def networks() -> dict[str, dict[str, Any]]:
    """Return the settings of both pairs of networks, without what a model file holds besides."""
    return {name: {key: models[key] for key in (*SECTIONS, *MODELS)} for name, models in pairs().items()}


def train_models(models: dict[str, Any], study: Study, out: Path) -> dict[str, Path]:
    """Train all three models as briefly as can be."""
    from nuclass.training.context import embed_context
    from nuclass.training.gate import train_gate
    from nuclass.training.train import train_global, train_local

    for section in ("local", "global"):
        models[section]["trainer"] |= {"max_epochs": 1, "batch_size": 64, "accelerator": "cpu"}
    models["gate"]["trainer"] |= {"max_epochs": 1}
    models["gate"]["views"] = 0
    paths = {name: out / name / "best.ckpt" for name in MODELS}
    train_local(models, study, paths["local"].parent, out / "work", 1)
    embed_context(models, study, study.features(SLIDE), out / "work")
    train_global(models, study, paths["local"], paths["global"].parent, out / "work", 1)
    train_gate(models, study, paths["local"], paths["global"], paths["gate"].parent, out / "work", 1)
    return paths


def bare(predictor: Predictor, study: Study, frame: pd.DataFrame) -> Callable[[], None]:
    """Return a pass of the backbones alone over batches in memory."""
    from nuclass.data import make_loader
    from nuclass.data.augment import to_unit

    dataset = predictor._dataset(frame, study, study.reader())
    batches = [to_unit(batch["image"]) for batch in make_loader(dataset, BATCH)]

    @torch.inference_mode()
    def run() -> None:
        for batch in batches:
            predictor.local.backbone(batch)
            predictor.wide.backbone(batch)

    return run


def original(predictor: Predictor, pair: OriginalPair, context: Context) -> Callable[[], None]:
    """Return the original's pass: cell by cell from the files, all three networks."""

    @torch.inference_mode()
    def run() -> None:
        side = predictor.input["input_px"]
        for start in range(0, len(pair), BATCH):
            cells = [pair[number] for number in range(start, min(start + BATCH, len(pair)))]
            small, large = (torch.stack([cell[place] for cell in cells]) for place in (0, 1))
            pixels = shrink(small, side)
            features = context.pool(context.spatial(shrink(large, context.input_px)))
            predictor.local(pixels, torch.zeros(len(cells), dtype=torch.long))
            predictor.wide(pixels, features)

    return run


def measure(name: str, models: dict[str, Any], folder: Path, plan: Plan, rounds: int) -> dict[str, Any]:
    """Return seconds a cell of each way, on the clock and of the processor."""
    from nuclass.data import load_cells
    from nuclass.training.context import embed_context

    study = make_study(folder, plan)
    checkpoints = train_models(models, study, folder / "models")
    predictor = Predictor({"predict": {"batch_size": BATCH, "accelerator": "cpu"}}, checkpoints)
    frame = by_place(load_cells(study.slides, study.results, ("val",)))
    pair = write_original(folder / "original", study, plan.original)
    torch.manual_seed(0)
    tables = {model: folder / "predictions" / f"{model}.parquet" for model in MODELS}

    def ours() -> None:
        predict._predict_one(predictor, study, tables, folder / "predicting")
        shutil.rmtree(folder / "predicting")

    ways = {
        "bare": (bare(predictor, study, frame), len(frame)),
        "ours": (ours, len(frame)),
        "original": (original(predictor, pair, Context(models)), len(pair)),
    }
    least: dict[str, tuple[float, float]] = {}
    for _ in range(rounds):
        for way, (work, cells) in ways.items():
            found = tuple(value / cells for value in seconds_of(work))
            least[way] = tuple(map(min, found, least.get(way, found)))
    cells = plan.train + plan.val
    embedding = seconds_of(lambda: embed_context(models, study, folder / "again.h5", folder / "work"))
    return {**least, "context": tuple(value / cells for value in embedding), "cells": len(frame)}


def rows_of(name: str, found: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Return the rows of both tables."""
    rows: dict[str, list[list[str]]] = {"predict": [], "predict original": []}
    for place, what in enumerate(("clock", "processor")):
        one, other = found["bare"][place], found["ours"][place]
        more = 100 * (other / one - 1)
        goal = verdict(more, 15, most=True)
        rows["predict"].append([name, what, f"{1000 * one:.2f}", f"{1000 * other:.2f}", f"{more:+.0f} %", goal])
    ours = found["ours"][1] + found["context"][1]
    ratio = found["original"][1] / ours
    rows["predict original"].append([name, f"{1000 * found['original'][1]:.1f}", f"{1000 * ours:.2f}", f"{ratio:.1f}"])
    return rows


def memory_step(cells: int) -> None:
    """Predict so many cells with a small network; print the peak of memory."""
    from nuclass.training.train import train_local

    models = networks()["the demo's networks"]
    models["local"]["backbone"] = {"name": "timm:test_resnet", "input_px": 32}
    models["local"]["trainer"] |= {"max_epochs": 1, "batch_size": 64, "accelerator": "cpu"}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        study = make_study(folder, replace(SMALL, train=128, val=256))
        train_local(models, study, folder / "local", folder / "work", 1)
        many_cells(study, cells)
        before = before_mb()
        settings = {"predict": {"batch_size": BATCH, "accelerator": "cpu"}}
        tables = {"local": folder / "local.parquet"}
        predict.predict_slide(settings, study, {"local": folder / "local" / "best.ckpt"}, tables, folder / "predicting")
        sys.stdout.write(json.dumps({"before": before, "peak": peak_mb()}) + "\n")


def many_cells(study: Study, cells: int) -> None:
    """Give the slide so many other cells, anywhere on it."""
    rng = np.random.default_rng(2)
    xy = rng.uniform(600, 1900, (cells, 2))
    ids = [f"many{number:07d}-1" for number in range(cells)]
    root = study.results
    write_parquet(
        root / "slides" / SLIDE / "cells.parquet", pd.DataFrame({"cell_id": ids, "x_px": xy[:, 0], "y_px": xy[:, 1]})
    )
    write_parquet(
        root / "labels" / SLIDE / "labels.parquet",
        pd.DataFrame({"cell_id": ids, "class": "T_Cell", "status": "labelled"}),
    )
    write_parquet(root / "splits" / f"{SLIDE}.parquet", pd.DataFrame({"cell_id": ids, "split": "test"}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a quick look that tells nothing about speed")
    parser.add_argument("--pairs", type=int, default=2, help="1: the demo's networks alone")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is measured")
    parser.add_argument("--memory", type=int, nargs=2, default=[4_000, 40_000], help="cells, few and many")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the tables between their marks in this file")
    parser.add_argument("--step", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.step:
        memory_step(options.step)
        return
    busy = os.getloadavg()[0]
    rows: dict[str, list[list[str]]] = {"predict": [], "predict original": []}
    for name, models in list(networks().items())[: options.pairs]:
        plan = replace(SMALL, original=16) if options.small else PLANS[name]
        with tempfile.TemporaryDirectory() as folder:
            for kind, more in rows_of(name, measure(name, models, Path(folder), plan, options.rounds)).items():
                rows[kind] += more
    heads = {
        "predict": ["networks", "time", "bare backbones, ms a cell", "ours, ms a cell", "more", "goal"],
        "predict original": ["networks", "original, ms a cell", "ours with context features, ms a cell", "times"],
    }
    for kind, head in heads.items():
        publish(kind, f"{table(head, rows[kind])}\n\n{machine(busy)}", options.docs)
    few, many = options.memory
    found = {cells: step(__file__, cells) for cells in (few, many)}
    growth = 1000 * (found[many]["peak"] - found[few]["peak"]) / (many - few)
    peaks = [[f"{n:,}", f"{one['before']:.0f}", f"{one['peak']:.0f}"] for n, one in found.items()]
    text = table(["cells", "before, MB", "peak, MB"], peaks)
    publish("predict memory", f"{text}\n\n{growth:.2f} MB more for every 1,000 cells. {machine(busy)}", options.docs)


if __name__ == "__main__":
    main()
