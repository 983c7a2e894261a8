"""What locality-aware shuffling does to batches and to training, against a uniform shuffle, in one run.

    python benchmarks/bench_shuffling.py [--seeds 6] [--docs docs/performance.md]

Eight simulated slides of 40,000 cells: regions some 300 um wide, each with its own mixture of 12 classes, and slides
that lean to regions of their own. A batch of 256 is "worth" as many cells drawn one by one as would scatter like it. A
small classifier of drawn features (class, region and slide each shift them) is trained for three epochs with either
shuffle and judged by macro-F1 on two slides that it has not seen.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from sklearn.metrics import f1_score

from bench_common import publish, table
from nuclass.data.loaders import BLOCK_CELLS, POOL_BLOCKS, BlockBatchSampler
from nuclass.patches.windows import locality_order

CLASSES, REGIONS, TRAINED, UNSEEN, CELLS, FEATURES, BATCH, EPOCHS = 12, 5, 8, 2, 40_000, 32, 256, 3
SPACING, REGION_PX = 45.0, 1200.0


def simulate(seed: int = 0) -> dict[str, np.ndarray]:
    """Return columns xy (store px), slide, label, features of all cells, slide by slide."""
    rng = np.random.default_rng(seed)
    mixtures = 0.85 * rng.dirichlet(np.full(CLASSES, 0.25), REGIONS) + 0.15 * rng.dirichlet(np.ones(CLASSES))
    of_class, of_region = rng.normal(0, 1, (CLASSES, FEATURES)), rng.normal(0, 0.7, (REGIONS, FEATURES))
    side = int(np.ceil(np.sqrt(CELLS)))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)[:CELLS]
    columns: dict[str, list[np.ndarray]] = {"xy": [], "slide": [], "label": [], "features": []}
    for number in range(TRAINED + UNSEEN):
        fields = np.stack(
            [
                gaussian_filter(rng.normal(size=(side, side)), REGION_PX / SPACING / 2, mode="wrap")
                for _ in range(REGIONS)
            ]
        )
        fields = fields / fields.std((1, 2), keepdims=True) + rng.normal(0, 0.5, (REGIONS, 1, 1))
        region = fields.argmax(0).ravel()[:CELLS]
        label = (rng.random(CELLS)[:, None] > mixtures[region].cumsum(1)).sum(1).clip(0, CLASSES - 1)
        noise = rng.normal(0, 0.7, FEATURES) + rng.normal(0, 1.6, (CELLS, FEATURES))
        columns["xy"].append(grid * SPACING + rng.uniform(-15, 15, (CELLS, 2)))
        columns["slide"].append(np.full(CELLS, number))
        columns["label"].append(label)
        columns["features"].append((of_class[label] + of_region[region] + noise).astype(np.float32))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def sampler(study: dict[str, np.ndarray], local: bool, seed: int) -> BlockBatchSampler:
    n = TRAINED * CELLS
    order = locality_order(study["slide"][:n], study["xy"][:n]) if local else None
    return BlockBatchSampler(n, BATCH, shuffle=True, seed=seed, order=order, drop_last=True)


def worth(batches: np.ndarray, values: np.ndarray, kinds: int) -> tuple[float, float]:
    """Return the cells drawn one by one that scatter like a batch, and the mean total variation from the shares."""
    shares = np.bincount(values, minlength=kinds) / len(values)
    found = np.stack([np.bincount(values[rows], minlength=kinds) / BATCH for rows in batches])
    drawn = (shares * (1 - shares)).sum() / found.var(axis=0).sum()
    return float(drawn), float(0.5 * np.abs(found - shares).sum(axis=1).mean())


def train(study: dict[str, np.ndarray], local: bool, seed: int) -> list[float]:
    """Return the macro-F1 on the unseen slides after each epoch."""
    torch.manual_seed(seed)
    n = TRAINED * CELLS
    features, labels = torch.from_numpy(study["features"]), torch.from_numpy(study["label"])
    net = torch.nn.Sequential(
        torch.nn.Linear(FEATURES, 128), torch.nn.LayerNorm(128), torch.nn.GELU(), torch.nn.Linear(128, CLASSES)
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    batches, scores = sampler(study, local, seed), []
    for _ in range(EPOCHS):
        for rows in batches:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(features[rows]), labels[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            predicted = net(features[n:]).argmax(1).numpy()
        scores.append(float(f1_score(study["label"][n:], predicted, average="macro", zero_division=0)))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6, help="trainings of each kind (default: %(default)s)")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="write the table between its marks in this page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = simulate()
    n, rows = TRAINED * CELLS, []
    for name, local in (("uniform", False), (f"{BLOCK_CELLS} neighbours, pools of {POOL_BLOCKS} blocks", True)):
        batches = np.array(list(sampler(study, local, 1)))
        classes, off = worth(batches, study["label"][:n], CLASSES)
        slides, _ = worth(batches, study["slide"][:n], TRAINED)
        scores = np.array([train(study, local, seed) for seed in range(options.seeds)])
        last = f"{scores[:, -1].mean():.3f} (seeds {scores[:, -1].std():.3f})"
        rows.append([name, f"{classes:.0f}", f"{off:.2f}", f"{slides:.0f}", f"{scores[:, 0].mean():.3f}", last])
    header = ["shuffle", "classes: worth", "off the shares by", "slides: worth", "macro-F1, epoch 1", f"epoch {EPOCHS}"]
    publish("shuffling", table(header, rows) + f"\n\n{options.seeds} seeds each.", options.docs)


if __name__ == "__main__":
    main()
