"""What the paper's networks cost on a GPU: cells a second, share of the card's matrix peak, memory, waiting for data.

    python benchmarks/gpu.py [--only local embed ...] [--docs docs/performance.md]    on a machine with a GPU
    python benchmarks/gpu.py --estimate --local 250 --embed 500                       GPU hours and disk of a full study

Weights are random; the architectures are the exact ones, built by nuclass.models.backbones.

local     UNI2-h in the local model, 224 px, 16 classes, bfloat16: augmentation, forward, loss, backward, AdamW, as
          nuclass.training does it, on windows in the card's memory; plain, with torch.compile, and with gradient
          checkpointing. Operations are counted by torch for one forward pass; training counts three, what checkpointing
          computes again does not count. The peak is what a large bfloat16 matrix product reaches on the same card,
          measured here.
embed     DINOv3 ViT-L/16 at 512 px, bfloat16, as nuclass.training.embedding runs it; plain and with torch.compile.
agreement features of both networks in bfloat16 on the card, and in float32 there, against float32 on the processor.
study     nuclass.training from slide store to predictions with both networks: local, context features, global, gate,
          prediction of a slide; cells a second of each, and the share of what the card does with windows in its memory.

--estimate multiplies the cells of a study by the rates that are given; it measures nothing.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from bench_common import publish, table, verdict
from nuclass.core.models_file import read_models_file
from nuclass.data.augment import Augment, augment_images, to_unit
from nuclass.models.backbones import build_backbone
from nuclass.models.local import LocalModel
from nuclass.training.config import Optimizer
from nuclass.training.optim import make_optimizer, parameter_groups

CLASSES, ORGANS = 16, 9
AUGMENT = Augment(rotate=15.0, shift=0.05, zoom=0.05, contrast=0.2, saturation=0.2, hue=0.05, noise=0.01)
EPOCHS = {"local": 50, "global": 40}
WAYS = ("plain", "compiled", "gradient checkpointing")
PAPER = Path(__file__).parent.parent / "config" / "models" / "paper.yaml"
PARTS = ("local", "embed", "agreement", "study")


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(step: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the median seconds of a step, after two that do not count."""
    for _ in range(2):
        step()
    times = []
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        step()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def matrix_peak(device: torch.device, repeats: int, side: int) -> float:
    """Return the operations a second of a product of two square bfloat16 matrices."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds_of(lambda: a @ b, device, repeats)


def operations(settings: dict[str, Any]) -> float:
    """Return the operations of one forward pass of one image, counted on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        net = build_backbone(settings, load_weights=False)
        image = torch.zeros(1, 3, net.input_px, net.input_px)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image)
    return float(counter.get_total_flops())


class LocalSteps:
    """Training steps of the local model, as nuclass.training makes them; ``way`` is one of ``WAYS``."""

    def __init__(self, backbone: dict[str, Any], device: torch.device, way: str) -> None:
        self.device = device
        self.model = LocalModel(build_backbone(backbone, load_weights=False), ORGANS, CLASSES).to(device).train()
        if way == "gradient checkpointing":
            self.model.backbone.checkpoint_gradients()
        if way == "compiled":
            self.model.backbone.compile()
        groups = parameter_groups(self.model, Optimizer(llrd=0.85))
        self.optimizer = make_optimizer(groups, fused=device.type == "cuda")
        self.generator = torch.Generator().manual_seed(0)

    def step(self, image: torch.Tensor, organ: torch.Tensor, label: torch.Tensor) -> None:
        pixels = augment_images(image, AUGMENT, self.generator)
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.model(pixels, organ).logits
        loss = F.cross_entropy(logits.float(), label, label_smoothing=0.1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def batch_of(size: int, side: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    image = torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8, device=device)
    return (image, *(torch.randint(0, most, (size,), device=device) for most in (ORGANS, CLASSES)))


def forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb(device: torch.device) -> str:
    return f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if device.type == "cuda" else "-"


def row_of(way: str, size: int, rate: float, work: float, peak: float, goal: float, memory: str) -> list[str]:
    """Return a row of the tables ``local`` and ``embed``; ``rate`` in cells a second, ``work`` in operations a cell."""
    share = 100 * rate * work / peak
    shown = f"{share:.0f} %, {verdict(share, goal)}"
    return [way, str(size), f"{rate:,.0f}", f"{rate * work / 1e12:.0f}", shown, memory]


def measure_local(options: argparse.Namespace, device: torch.device, peak: float) -> list[list[str]]:
    rows = []
    work = 3 * operations(options.backbone)
    for way in options.ways:
        steps = LocalSteps(options.backbone, device, way)
        # A compiled network is made anew for every size of a batch.
        for size in options.batches[:1] if way == "compiled" else options.batches:
            forget_peak(device)
            try:
                batch = batch_of(size, steps.model.backbone.input_px, device)
                rate = size / seconds_of(lambda s=steps, b=batch: s.step(*b), device, options.repeats)  # type: ignore[misc]
            except torch.OutOfMemoryError:
                steps.optimizer.zero_grad(set_to_none=True)
                rows.append([way, str(size), "out of memory", "", "", ""])
                continue
            rows.append(row_of(way, size, rate, work, peak, 45, peak_gb(device)))
            sys.stderr.write(f"{rows[-1]}\n")
            del batch
        del steps
    return rows


@torch.inference_mode()
def measure_embedding(options: argparse.Namespace, device: torch.device, peak: float) -> list[list[str]]:
    rows = []
    work = operations(options.context)
    net = build_backbone(options.context, load_weights=False).to(device).eval()
    for way in [way for way in options.ways if way != "gradient checkpointing"]:
        if way == "compiled":
            net.compile()
        for size in options.batches[:1] if way == "compiled" else options.batches:
            forget_peak(device)
            image = batch_of(size, net.input_px, device)[0]

            def step(image: torch.Tensor = image) -> None:
                with torch.autocast(device.type, torch.bfloat16):
                    net(to_unit(image))

            try:
                rate = size / seconds_of(step, device, options.repeats)
            except torch.OutOfMemoryError:
                rows.append([way, str(size), "out of memory", "", "", ""])
                continue
            rows.append(row_of(way, size, rate, work, peak, 50, peak_gb(device)))
            sys.stderr.write(f"{rows[-1]}\n")
    return rows


@torch.inference_mode()
def measure_agreement(options: argparse.Namespace, device: torch.device) -> list[list[str]]:
    """Return how far features lie from those in float32 on the processor: norm of the difference by the norm."""
    rows = []
    for settings in (options.backbone, options.context):
        torch.manual_seed(0)
        net = build_backbone(settings, load_weights=False).eval()
        for name, parameter in net.named_parameters():
            # Networks that were never trained leave their blocks' output almost out.
            if name.endswith(("gamma", "lambda1")):
                parameter.fill_(0.5)
        image = to_unit(batch_of(4, net.input_px, torch.device("cpu"))[0])
        reference = net(image).double()
        net.to(device)
        for precision in (torch.float32, torch.bfloat16):
            with torch.autocast(device.type, torch.bfloat16, enabled=precision is torch.bfloat16):
                found = net(image.to(device)).double().cpu()
            error = float((found - reference).norm() / reference.norm())
            rows.append([settings["name"], str(precision).removeprefix("torch."), f"{error:.1e}"])
    return rows


def paper_models(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the paper's models, with random weights, two short epochs and one size of a batch."""
    models = copy.deepcopy(read_models_file(PAPER)[0])
    models["local"]["backbone"], models["context"]["backbone"] = options.backbone, options.context
    size = options.batches[0]
    for section, epochs in (("local", 2), ("global", 2)):
        models[section]["trainer"] |= {
            "max_epochs": epochs,
            "patience": 99,
            "batch_size": size,
            "accumulate": 1,
            "validate_every": 1.0,
            "workers": options.workers,
            "accelerator": "auto",
            "memory_mb": 0,
            "gradient_checkpointing": False,
        }
        models[section]["trainer"]["compile"] = "compiled" in options.ways
        models[section]["optimizer"] |= {"freeze_epochs": 0, "warmup_steps": 10}
    models["context"] |= {"workers": options.workers, "batch_size": size, "compile": "compiled" in options.ways}
    models["gate"]["trainer"] |= {"max_epochs": 4}
    models["predict"] |= {"workers": options.workers, "batch_size": size, "compile": "compiled" in options.ways}
    return models


def training_rate(settings: dict[str, Any], way: str, size: int, device: torch.device, repeats: int) -> float:
    """Return the cells a second of training steps, windows in the card's memory."""
    steps = LocalSteps(settings, device, way)
    batch = batch_of(size, steps.model.backbone.input_px, device)
    return size / seconds_of(lambda: steps.step(*batch), device, repeats)


def forward_rate(settings: dict[str, Any], way: str, size: int, device: torch.device, repeats: int) -> float:
    """Return the cells a second of a network's forward passes, windows in the card's memory."""
    net = build_backbone(settings, load_weights=False).to(device).eval()
    if way == "compiled":
        net.compile()
    image = batch_of(size, net.input_px, device)[0]

    @torch.inference_mode()
    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            net(to_unit(image))

    return size / seconds_of(step, device, repeats)


def measure_study(options: argparse.Namespace, device: torch.device) -> list[list[str]]:
    """Train and predict by the library, from the slide store; cells a second of each step, beside the card's own."""
    import pandas as pd

    from nuclass.training.context import embed_context
    from nuclass.training.gate import train_gate
    from nuclass.training.predict import predict_slide
    from nuclass.training.train import train_global, train_local
    from train import SLIDE, Plan, make_study

    models, size = paper_models(options), options.batches[0]
    way = "compiled" if "compiled" in options.ways else "plain"
    training = training_rate(options.backbone, way, size, device, options.repeats)
    forward, embedding = (
        forward_rate(network, way, size, device, options.repeats) for network in (options.backbone, options.context)
    )
    rows: list[list[str]] = []

    def add(what: str, cells: int, seconds: float, alone: float, goal: float | None = None) -> None:
        share = 100 * cells / seconds / alone
        told = "" if goal is None else verdict(share, goal)
        rows.append([what, f"{cells:,}", f"{cells / seconds:,.0f}", f"{alone:,.0f}", f"{share:.0f} %", told])
        sys.stderr.write(f"{rows[-1]}\n")

    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        plan = Plan(side=8192 if options.cells > 2000 else 4096, train=options.cells, val=options.cells // 4)
        study = make_study(folder, plan)
        paths = {name: folder / "models" / name / "best.ckpt" for name in ("local", "global", "gate")}
        everyone = plan.train + plan.val

        def epoch(name: str) -> float:
            return float(pd.read_csv(paths[name].parent / "history.csv")["train_seconds"].iloc[-1])

        train_local(models, study, paths["local"].parent, folder / "work", 1)
        add("local: second epoch", plan.train, epoch("local"), training, 95)
        start = time.perf_counter()
        embed_context(models, study, study.features(SLIDE), folder / "work")
        add("context features, start and checks included", everyone, time.perf_counter() - start, embedding)
        train_global(models, study, paths["local"], paths["global"].parent, folder / "work", 1)
        add("global: second epoch", plan.train, epoch("global"), training, 95)
        start = time.perf_counter()
        train_gate(models, study, paths["local"], paths["global"], paths["gate"].parent, folder / "work", 1)
        add("gate: all of it, loading both models included", plan.val, time.perf_counter() - start, forward / 2)
        tables = {name: folder / "predictions" / f"{name}.parquet" for name in paths}
        start = time.perf_counter()
        predict_slide(models, study, paths, tables, folder / "predicting")
        seconds = time.perf_counter() - start
        add(
            "prediction by all three, loading them included", len(pd.read_parquet(tables["gate"])), seconds, forward / 2
        )
    return rows


def estimate(options: argparse.Namespace) -> str:
    """Return GPU hours and disk of a study from rates in cells a second, as a table."""
    train, val = options.cells * options.train_share, options.cells * (1 - options.train_share)
    forward = 3 * options.local
    local = (train / options.local + 4 * val / forward) / 3600
    rows = [
        ["context features, once", f"{options.cells / options.embed / 3600:.1f}", f"{options.cells * 2048 / 1e9:.1f}"],
        ["local, an epoch with four validations", f"{local:.1f}", "2.7"],
        ["local, all 50 epochs at most", f"{EPOCHS['local'] * local:.0f}", ""],
        ["the teacher's opinion of all training cells", f"{train / forward / 3600:.1f}", f"{train * 32 / 1e9:.2f}"],
        ["global, an epoch with four validations", f"{local:.1f}", "2.7"],
        ["global, all 40 epochs at most", f"{EPOCHS['global'] * local:.0f}", ""],
        ["gate: both branches over val, once", f"{2 * val / forward / 3600:.1f}", f"{val * 5200 / 1e9:.1f}"],
        ["prediction of all cells, both branches", f"{2 * options.cells / forward / 3600:.1f}", ""],
    ]
    return table(["step", "GPU hours", "disk, GB"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="how networks run")
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 64, 192, 256], help="batch sizes")
    parser.add_argument("--repeats", type=int, default=10, help="steps that count")
    parser.add_argument("--workers", type=int, default=max(1, len(os.sched_getaffinity(0)) - 2))
    parser.add_argument("--small", action="store_true", help="small networks, to try the script itself on a processor")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the tables between their marks in this file")
    parser.add_argument("--cells", type=int, help="training cells of the slide, or cells of the study for --estimate")
    parser.add_argument("--estimate", action="store_true", help="multiply, measure nothing")
    parser.add_argument("--local", type=float, help="training cells/s of the local model")
    parser.add_argument("--embed", type=float, help="context cells/s")
    parser.add_argument("--train-share", type=float, default=0.75)
    options = parser.parse_args()
    if options.estimate:
        options.cells = options.cells or 2_000_000
        if not (options.local and options.embed):
            parser.error("--estimate needs --local and --embed, in cells a second")
        publish("gpu estimate", estimate(options), options.docs)
        return
    options.cells = options.cells or (256 if options.small else 8_000)
    options.backbone, options.context = (
        {"name": "uni2-h", "weights": "none"},
        {"name": "dinov3-vitl16", "weights": "none", "input_px": 512},
    )
    if options.small:
        options.backbone = {"name": "timm:vit_tiny_patch16_224", "input_px": 224}
        options.context = {"name": "dinov3", "input_px": 64, "config": {"num_hidden_layers": 2, "image_size": 64}}
    elif not torch.cuda.is_available():
        sys.exit("There is no GPU here. --small tries the script on a processor.")
    measure(options)


def measure(options: argparse.Namespace) -> None:
    """Measure what is asked for, and publish each table when it is there."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = matrix_peak(device, options.repeats, 1024 if options.small else 8192)
    card = torch.cuda.get_device_name() if device.type == "cuda" else "a processor, small networks: no figures to quote"
    note = f"{card}; bfloat16 matrix product {peak / 1e12:.1f} TFLOP/s; torch {torch.__version__}."
    head = ["way", "batch", "cells/s", "TFLOP/s", "of the peak", "peak memory, GB"]
    study = ["step", "cells", "cells/s", "the card alone, cells/s", "of it", "goal"]
    parts: dict[str, tuple[list[str], Callable[[], list[list[str]]]]] = {
        "local": (head, lambda: measure_local(options, device, peak)),
        "embed": (head, lambda: measure_embedding(options, device, peak)),
        "agreement": (["network", "precision", "relative error"], lambda: measure_agreement(options, device)),
        "study": (study, lambda: measure_study(options, device)),
    }
    for part in options.only:
        columns, work = parts[part]
        publish(f"gpu {part}", f"{table(columns, work())}\n\n{note}", options.docs)


if __name__ == "__main__":
    main()
