"""What the paper's networks cost on a GPU: cells a second, share of the card's matrix peak, memory, waiting for data.

    python benchmarks/gpu.py [--batches 64 128 256] [--docs docs/performance.md]    on a machine with a GPU
    python benchmarks/gpu.py --estimate --local 250 --embed 500                     GPU hours and disk of a full study

Weights are random; the architectures are the exact ones, built by nuclass.models.backbones.

local    UNI2-h in the local model, 224 px, 16 classes, bfloat16: augmentation, forward, loss, backward, AdamW, as
         nuclass.training does it, on windows in the card's memory; with and without gradient checkpointing. Operations
         are counted by torch for one forward pass; training counts three, what checkpointing computes again does not
         count. The peak is what a large bfloat16 matrix product reaches on the same card, measured here.
embed    DINOv3 ViT-L/16 at 512 px, bfloat16, as nuclass.training.embedding runs it.
busy     local training fed by worker processes that cut windows from a slide store: time that the same steps take with
         windows in memory, by the time they take so.

--estimate multiplies the cells of a study by the rates that are given; it measures nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from bench_common import publish, table, verdict
from nuclass.data.augment import Augment, augment_images, to_unit
from nuclass.models.backbones import build_backbone
from nuclass.models.local import LocalModel
from nuclass.training.config import Optimizer
from nuclass.training.optim import make_optimizer, parameter_groups

CLASSES, ORGANS = 16, 9
AUGMENT = Augment(rotate=15.0, shift=0.05, zoom=0.05, contrast=0.2, saturation=0.2, hue=0.05, noise=0.01)
EPOCHS = {"local": 50, "global": 40}


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
    """Training steps of the local model, as nuclass.training makes them."""

    def __init__(self, backbone: dict[str, Any], device: torch.device, checkpointing: bool) -> None:
        self.device = device
        self.model = LocalModel(build_backbone(backbone, load_weights=False), ORGANS, CLASSES).to(device).train()
        if checkpointing:
            self.model.backbone.checkpoint_gradients()
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


def peak_gb(device: torch.device) -> str:
    return f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if device.type == "cuda" else "-"


def measure_local(options: argparse.Namespace, device: torch.device, peak: float) -> list[list[str]]:
    rows = []
    work = 3 * operations(options.backbone)
    for checkpointing in (False, True):
        for size in options.batches:
            try:
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
                steps = LocalSteps(options.backbone, device, checkpointing)
                batch = batch_of(size, steps.model.backbone.input_px, device)
                rate = size / seconds_of(lambda s=steps, b=batch: s.step(*b), device, options.repeats)  # type: ignore[misc]
            except torch.OutOfMemoryError:
                rows.append(["yes" if checkpointing else "no", str(size), "out of memory", "", "", ""])
                continue
            share = 100 * rate * work / peak
            shown = [f"{rate:,.0f}", f"{rate * work / 1e12:.0f}", f"{share:.0f} %, {verdict(share, 45)}"]
            rows.append(["yes" if checkpointing else "no", str(size), *shown, peak_gb(device)])
            del steps, batch
    return rows


@torch.inference_mode()
def measure_embedding(options: argparse.Namespace, device: torch.device, peak: float) -> list[list[str]]:
    rows = []
    work = operations(options.context)
    net = build_backbone(options.context, load_weights=False).to(device).eval()
    for size in options.batches:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        image = batch_of(size, net.input_px, device)[0]

        def step(image: torch.Tensor = image) -> None:
            with torch.autocast(device.type, torch.bfloat16):
                net(to_unit(image))

        try:
            rate = size / seconds_of(step, device, options.repeats)
        except torch.OutOfMemoryError:
            rows.append([str(size), "out of memory", "", "", ""])
            continue
        share = 100 * rate * work / peak
        shown = [f"{rate:,.0f}", f"{rate * work / 1e12:.0f}", f"{share:.0f} %, {verdict(share, 50)}"]
        rows.append([str(size), *shown, peak_gb(device)])
    return rows


def measure_busy(options: argparse.Namespace, device: torch.device) -> list[list[str]]:
    """Return the share of the time that the device computes while workers cut its windows."""
    from nuclass.data.modules import Loading, LocalData
    from train import Plan, make_study

    size = options.batches[0]
    steps = LocalSteps(options.backbone, device, checkpointing=False)
    with tempfile.TemporaryDirectory() as folder:
        study = make_study(Path(folder), Plan(side=8192, train=options.cells, val=64))
        loading = Loading(batch_size=size, workers=options.workers, memory_mb=0)
        data = LocalData(study, read_level=0, input_px=steps.model.backbone.input_px, loading=loading)
        data.setup("fit")

        def batches() -> Iterator[tuple[torch.Tensor, ...]]:
            for batch in data.train_dataloader():
                moved = (batch[key].to(device, non_blocking=True) for key in ("image", "organ", "label"))
                yield tuple(moved)

        kept = next(iter(batches()))
        alone = seconds_of(lambda: steps.step(*kept), device, options.repeats)  # type: ignore[arg-type]
        synchronise(device)
        start, count = time.perf_counter(), 0
        for batch in batches():
            steps.step(*batch)  # type: ignore[arg-type]
            count += 1
        synchronise(device)
        share = 100 * alone * count / (time.perf_counter() - start)
    return [[str(size), str(options.workers), f"{share:.0f} %", verdict(share, 95)]]


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
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128, 256], help="batch sizes")
    parser.add_argument("--repeats", type=int, default=10, help="steps that count")
    parser.add_argument("--workers", type=int, default=max(1, len(os.sched_getaffinity(0)) - 2))
    parser.add_argument("--small", action="store_true", help="small networks, to try the script itself on a processor")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the tables between their marks in this file")
    parser.add_argument("--cells", type=int, help="cells of the slide, or of the study for --estimate")
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
    options.cells = options.cells or (512 if options.small else 20_000)
    options.backbone, options.context = (
        {"name": "uni2-h", "weights": "none"},
        {"name": "dinov3-vitl16", "weights": "none"},
    )
    if options.small:
        options.backbone = {"name": "timm:vit_tiny_patch16_224", "input_px": 224}
        options.context = {"name": "dinov3", "input_px": 64, "config": {"num_hidden_layers": 2, "image_size": 64}}
    elif not torch.cuda.is_available():
        sys.exit("There is no GPU here. --small tries the script on a processor.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = matrix_peak(device, options.repeats, 1024 if options.small else 8192)
    card = torch.cuda.get_device_name() if device.type == "cuda" else "a processor, small networks: no figures to quote"
    note = f"{card}; bfloat16 matrix product {peak / 1e12:.1f} TFLOP/s; torch {torch.__version__}."
    head = ["batch", "cells/s", "TFLOP/s", "of the peak", "peak memory, GB"]
    local = table(["gradient checkpointing", *head], measure_local(options, device, peak))
    publish("gpu local", f"{local}\n\n{note}", options.docs)
    publish("gpu embed", f"{table(head, measure_embedding(options, device, peak))}\n\n{note}", options.docs)
    busy = table(["batch", "workers", "computing", "goal"], measure_busy(options, device))
    publish("gpu busy", f"{busy}\n\n{note}", options.docs)


if __name__ == "__main__":
    main()
