"""Training against the original's way of it: same networks, same cells, same machine, one run.

    python benchmarks/train.py [--small] [--only local global gate] [--docs docs/performance.md]

One H&E-like slide; cells one per 37 x 37 px, classes at random (what is learnt does not matter here). Two pairs of
networks: the demo's, and vision transformers whose costs stand in about the proportion of the paper's (training of the
local one to a forward pass of the context one as 1.1 to 0.73 TFLOP), at the paper's sizes, 224 px and 1024 px at 512.

global   the original reads both windows of a cell from HDF5 files with one LZF dataset a cell, brings the large one
         down on the device, runs the context network in every epoch, and steps AdamW over one group a tensor. Ours is
         nuclass.training.train_global: context features from the cache, few groups, augmentation on (the original's
         global model has none). Seconds of an epoch, from the second one on, without validation; what the cache
         costs once stands beside it.
gate     the original runs both branches and the context network over every batch of every epoch (12 cells at a time);
         ours is nuclass.training.train_gate, which runs them once. Seconds of an epoch.
local    nuclass.training.train_local against a bare loop over the same batches, in memory: forward and backward of
         the backbone, nothing else (no augmentation, no head, no optimizer, no Lightning).

Prints Markdown; --docs also puts each table between its marks.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import h5py
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from bench_common import machine, publish, table, verdict
from bench_windows import he_like, write_jpeg
from nuclass.core.files import write_parquet
from nuclass.core.models_file import read_models_file
from nuclass.data.study import Study
from nuclass.models.backbones import build_backbone
from nuclass.slides.geometry import Frames
from nuclass.slides.store import SlideStore, morton
from nuclass.slides.writer import write_store
from nuclass.training.checkpoint import load_checkpoint, restore_global, restore_local
from nuclass.training.config import parse_models

SPACING, SLIDE = 37, "bench_1"
CLASSES = ("B_Cell", "Endothelial", "Epithelial_Malignant", "Fibroblast", "Macrophage", "T_Cell")
TRAINED = {"batch_size": 64, "patience": 99, "workers": 0, "precision": "32-true", "accelerator": "cpu"}
DEMO = Path(__file__).parent.parent / "config" / "models" / "demo.yaml"
GATE_BATCH, ORIGINAL_WORKERS = 12, 2


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    side: int = 4096
    train: int = 768
    val: int = 384
    original: int = 192
    gate: int = 48
    epochs: int = 3
    bare: int = 3


SMALL = Plan(2560, 192, 96, 64, 24, 3, 1)


def pairs() -> dict[str, dict[str, Any]]:
    """Return the settings of both pairs of networks, all models in each."""
    demo, _ = read_models_file(DEMO)
    demo["context"] |= {"views": 0, "pretrain": None}
    vit = copy.deepcopy(demo)
    vit["local"]["backbone"] = {"name": "timm:vit_tiny_patch16_224", "input_px": 224}
    vit["context"] |= {"read_level": 1, "pooling": "cls", "batch_size": 16}
    vit["context"]["backbone"]["input_px"] = 512
    vit["context"]["backbone"]["config"] |= {"image_size": 512}
    return {"the demo's networks": demo, "transformers, 224 px and 512 px": vit}


def make_study(folder: Path, plan: Plan) -> Study:
    """Write a slide store and the three tables of its cells."""
    image, store = folder / "he.tif", folder / "slides" / SLIDE / "he.ome.zarr"
    write_jpeg(image, he_like(plan.side))
    write_store(image, Frames(np.eye(3), 0.25), store, threads=2)
    rng = np.random.default_rng(1)
    n = plan.train + plan.val
    half = min(SPACING * np.sqrt(n), plan.side - 1100) / 2
    xy = rng.uniform(plan.side / 2 - half, plan.side / 2 + half, (n, 2))
    xy = xy[np.argsort(morton(xy.astype(int) // 128), kind="stable")]
    ids = [f"cell{number:06d}-1" for number in range(n)]
    split = np.where(rng.permutation(n) < plan.train, "train", "val")
    write_parquet(store.parent / "cells.parquet", pd.DataFrame({"cell_id": ids, "x_px": xy[:, 0], "y_px": xy[:, 1]}))
    labels = pd.DataFrame({"cell_id": ids, "class": rng.choice(CLASSES, n), "status": "labelled"})
    write_parquet(folder / "labels" / SLIDE / "labels.parquet", labels)
    write_parquet(folder / "splits" / f"{SLIDE}.parquet", pd.DataFrame({"cell_id": ids, "split": split}))
    return Study([{"slide": SLIDE, "organ": "lung"}], folder)


class OriginalPair(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """Both windows of a cell, each from its own dataset of its own file; files are opened in each worker."""

    def __init__(self, folder: Path, keys: list[str], labels: list[int]) -> None:
        self.folder, self.keys, self.labels = folder, keys, labels
        self._files: Any = None

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        if self._files is None:
            self._files = [h5py.File(self.folder / f"patches_{side}x{side}.h5", "r") for side in (224, 1024)]
        small, large = (torch.from_numpy(file[self.keys[index]][()]).movedim(-1, 0) for file in self._files)
        return small, large, self.labels[index]


def write_original(folder: Path, study: Study, cells: int) -> OriginalPair:
    """Write the windows of some training cells in the layout of the original's ``train/`` files."""
    folder.mkdir()
    frame = pd.read_parquet(study.results / "slides" / SLIDE / "cells.parquet").head(cells)
    with SlideStore(study.source(SLIDE)) as store:
        for side in (224, 1024):
            with h5py.File(folder / f"patches_{side}x{side}.h5", "w") as file:
                for cell, x, y in frame.itertuples(index=False):
                    file.create_dataset(cell, data=store.window(x, y, side)[0], compression="lzf")
    return OriginalPair(folder, frame["cell_id"].tolist(), [n % len(CLASSES) for n in range(cells)])


def original_batches(pair: OriginalPair, batch: int) -> Iterator[Any]:
    """Give shuffled batches by worker processes that are running already."""
    loader = torch.utils.data.DataLoader(
        pair, batch, shuffle=True, num_workers=ORIGINAL_WORKERS, persistent_workers=True, prefetch_factor=4
    )
    for _ in loader:  # the first pass starts the workers and fills the page cache
        break
    return iter(loader)


def shrink(image: torch.Tensor, side: int) -> torch.Tensor:
    """Return float windows in [0, 1] of a side, by bilinear interpolation as the original does it."""
    return F.interpolate(image.float(), size=(side, side), mode="bilinear", align_corners=False) / 255


def original_global(models: dict[str, Any], pair: OriginalPair, checkpoint: Path, context: Any) -> float:
    """Return the seconds a cell of an epoch of global training, the context network run for every batch."""
    model = restore_global(load_checkpoint(checkpoint, "global")).train()
    side = model.backbone.input_px
    groups = [{"params": [parameter], "lr": 1e-5} for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(groups, weight_decay=2e-5)
    batches, cells = original_batches(pair, models["global"]["trainer"]["batch_size"]), 0
    start = time.perf_counter()
    for small, large, label in batches:
        with torch.no_grad():
            features = context.pool(context.spatial(shrink(large, context.input_px)))
        loss = F.cross_entropy(model(shrink(small, side), features).logits, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cells += len(label)
    return (time.perf_counter() - start) / cells


@torch.no_grad()
def original_gate(pair: OriginalPair, checkpoints: dict[str, Path], context: Any) -> float:
    """Return the seconds a cell of an epoch of gate training: both branches and the context network each time.

    The gate itself, a small MLP, is left out of the original's account.
    """
    a = restore_local(load_checkpoint(checkpoints["local"], "local"))
    b = restore_global(load_checkpoint(checkpoints["global"], "global"))
    batches, cells = original_batches(pair, GATE_BATCH), 0
    start = time.perf_counter()
    for small, large, label in batches:
        pixels = shrink(small, a.backbone.input_px)
        a(pixels, torch.zeros(len(label), dtype=torch.long))
        b(pixels, context.pool(context.spatial(shrink(large, context.input_px))))
        cells += len(label)
    return (time.perf_counter() - start) / cells


def bare_local(models: dict[str, Any], study: Study, passes: int) -> float:
    """Return the seconds of an epoch of nothing but forward and backward of the backbone, the median of some."""
    from nuclass.data.augment import to_unit
    from nuclass.data.modules import LocalData
    from nuclass.training.train import loading

    backbone = build_backbone(models["local"]["backbone"]).train()
    settings = parse_models(models).local
    data = LocalData(study, read_level=0, input_px=backbone.input_px, loading=loading(settings.trainer, 1))
    data.setup("fit")
    batches = [to_unit(batch["image"]) for batch in data.train_dataloader()]
    backbone(batches[0]).sum().backward()
    seconds = []
    for _ in range(passes):
        start = time.perf_counter()
        for images in batches:
            backbone.zero_grad()
            backbone(images).sum().backward()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


class Context:
    """The context network as the cache runs it."""

    def __init__(self, models: dict[str, Any]) -> None:
        from nuclass.training.embedding import pool_spatial

        self.net = build_backbone(models["context"]["backbone"]).eval()
        self.input_px, self.spatial = self.net.input_px, self.net.spatial
        self.pool = lambda tokens: pool_spatial(self.net, tokens, models["context"]["pooling"])


def epochs_of(folder: Path) -> float:
    """Return the median seconds of an epoch from the second on, without validation."""
    history = pd.read_csv(folder / "history.csv")
    return float(history["train_seconds"].iloc[1:].median())


def measure(name: str, models: dict[str, Any], study: Study, plan: Plan, only: list[str]) -> dict[str, Any]:
    """Train all three models of one pair and time the original's way; seconds by name."""
    from nuclass.training.context import embed_context
    from nuclass.training.gate import train_gate
    from nuclass.training.train import train_global, train_local

    out = study.results / name.split(",")[0].replace(" ", "_").replace("'", "")
    for section in ("local", "global"):
        models[section]["trainer"] = TRAINED | {"max_epochs": plan.epochs}
    models["gate"]["trainer"] |= {"max_epochs": 10, "patience": 99}
    models["gate"]["views"] = 0
    result: dict[str, Any] = {}
    train_local(models, study, out / "local", out / "work", 1)
    result["local"] = epochs_of(out / "local")
    if "local" in only:
        result["bare"] = bare_local(models, study, plan.bare)
    if not {"global", "gate"} & set(only):
        return result
    torch.manual_seed(0)
    context = Context(models)
    start = time.perf_counter()
    features = study.features(SLIDE)
    features.unlink(missing_ok=True)
    embed_context(models, study, features, out / "work")
    result["cache"] = time.perf_counter() - start
    train_global(models, study, out / "local" / "best.ckpt", out / "global", out / "work", 1)
    result["global"] = epochs_of(out / "global")
    pair = write_original(out / "original", study, plan.original)
    checkpoints = {kind: out / kind / "best.ckpt" for kind in ("local", "global")}
    if "global" in only:
        result["original global"] = original_global(models, pair, checkpoints["global"], context) * plan.train
    if "gate" in only:
        start = time.perf_counter()
        train_gate(models, study, *checkpoints.values(), out / "gate", out / "work", 1)
        result["gate whole"] = time.perf_counter() - start
        result["gate"] = epochs_of(out / "gate")
        few = OriginalPair(pair.folder, pair.keys[: plan.gate], pair.labels[: plan.gate])
        result["original gate"] = original_gate(few, checkpoints, context) * plan.val
    return result


def rows_of(name: str, found: dict[str, Any], plan: Plan) -> dict[str, list[list[str]]]:
    """Return the rows of the three tables."""
    rows: dict[str, list[list[str]]] = {"local": [], "global": [], "gate": []}
    if "bare" in found:
        more = 100 * (found["local"] / found["bare"] - 1)
        rows["local"].append(
            [
                name,
                f"{plan.train / found['bare']:.0f}",
                f"{plan.train / found['local']:.0f}",
                f"{more:+.1f} %",
                verdict(more, 10, most=True),
            ]
        )
    for kind, cells, goal in (("global", plan.train, 5), ("gate", plan.val, 50)):
        if f"original {kind}" in found:
            ratio = found[f"original {kind}"] / found[kind]
            once = found["cache"] if kind == "global" else found["gate whole"]
            seconds = [f"{value:.3g}" for value in (found[f"original {kind}"], found[kind], once)]
            rows[kind].append([name, f"{cells:,}", *seconds, f"{ratio:,.1f}", verdict(ratio, goal)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a quick look that tells nothing about speed")
    parser.add_argument("--only", nargs="+", choices=("local", "global", "gate"), default=["local", "global", "gate"])
    parser.add_argument("--pairs", type=int, default=2, help="1: the demo's networks alone")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the tables between their marks in this file")
    options = parser.parse_args()
    plan, busy = SMALL if options.small else Plan(), os.getloadavg()[0]
    rows: dict[str, list[list[str]]] = {"local": [], "global": [], "gate": []}
    with tempfile.TemporaryDirectory() as folder:
        study = make_study(Path(folder), plan)
        for name, models in list(pairs().items())[: options.pairs]:
            for kind, more in rows_of(name, measure(name, models, study, plan, options.only), plan).items():
                rows[kind] += more
    head = ["networks", "cells", "original, s an epoch", "ours, s an epoch", "ours, once, s", "times", "goal"]
    heads = {
        "local": ["networks", "bare backbone, cells/s", "train_local, cells/s", "slower by", "goal"],
        "global": head,
        "gate": head,
    }
    for kind in options.only:
        publish(f"train {kind}", f"{table(heads[kind], rows[kind])}\n\n{machine(busy)}", options.docs)


if __name__ == "__main__":
    main()
