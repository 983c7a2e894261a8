"""A network and data small enough to be fitted in a second, with all that makes going on hard."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forked import waited
from nuclass.data.augment import Augment
from nuclass.data.datasets import InMemoryWindows, WindowDataset
from nuclass.data.modules import CellData, Loading
from nuclass.training.config import Optimizer, Trainer
from nuclass.training.fit import FitResult, fingerprint, fit
from nuclass.training.skeleton import MONITOR, Skeleton

CLASSES = 3
SIDE = 8
PLAIN = Trainer(
    max_epochs=3, patience=9, batch_size=8, precision="32-true", accelerator="cpu", save_every_min=0.0, log_every=3
)
RATES = Optimizer(lr_head=1e-2, lr_backbone=1e-2, warmup_steps=4, schedule="cosine")
AUGMENT = Augment(blur=0.0)
NO_AUGMENT = Augment(**{item.name: type(item.default)(0) for item in dataclasses.fields(Augment)})


class TinyNet(nn.Module):
    """A convolution as the backbone, a head with dropout."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Sequential(nn.LayerNorm(24), nn.Dropout(dropout), nn.Linear(24, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


class TinyModule(Skeleton):
    """Cross-entropy on :class:`TinyNet`."""

    def __init__(self, optimizer: Optimizer = RATES, augment: Augment = AUGMENT, dropout: float = 0.3) -> None:
        torch.manual_seed(0)
        super().__init__(TinyNet(dropout), optimizer, augment, 5)

    def loss(self, batch: dict[str, Tensor], images: Tensor, generator: torch.Generator) -> Tensor:
        return nn.functional.cross_entropy(self.model(images), batch["label"])

    def logits(self, batch: dict[str, Tensor], images: Tensor) -> Tensor:
        return self.model(images)


class CutWindows(WindowDataset):
    """Windows that count as cut when asked for, so that worker processes give them."""

    def __init__(self, held: InMemoryWindows) -> None:
        self.held = held
        self._organ, self._label, self.extra = held._organ, held._label, {}

    def __getitem__(self, index: Any) -> dict[str, Tensor]:
        return self.held[index]

    def locality_order(self) -> np.ndarray:
        return np.arange(len(self.held))

    def open_anew(self) -> None:
        """Nothing is open."""


class TinyData(CellData):
    """Random windows whose class is in their colour."""

    def __init__(self, loading: Loading, n_train: int = 90, n_val: int = 37) -> None:
        super().__init__(loading)
        self.train_set, self.val_set = windows(n_train, 1), windows(n_val, 2)
        if loading.workers:
            self.train_set, self.val_set = CutWindows(self.train_set), CutWindows(self.val_set)

    def cell_names(self, rows: Any) -> list[str]:
        return [f"lung_1/cell-{row}" for row in rows]


def windows(n: int, seed: int) -> InMemoryWindows:
    """Return ``n`` windows of noise, brighter in the channel of their class."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, n)
    images = rng.integers(0, 160, (n, SIDE, SIDE, 3)).astype(np.uint8)
    images[np.arange(n), :, :, label] += 6
    return InMemoryWindows(images, np.zeros(n, np.int64), label)


def run(
    work: Path, settings: Trainer = PLAIN, module: Skeleton | None = None, data: Any = None, **options: Any
) -> tuple[Skeleton, FitResult]:
    """Fit, or go on; returns the module with its best weights, and the result."""
    module = module or TinyModule()
    data = data or TinyData(Loading(settings.batch_size, settings.workers, seed=5))
    identity = fingerprint(settings=dataclasses.asdict(settings), seed=5)
    keywords = {"monitor": MONITOR, "grad_clip": 1.0} | options
    result = fit(module, data, settings, work=work, identity=identity, description="tiny model", **keywords)
    return module, result


def digest(module: nn.Module) -> str:
    """Return a hash of all weights, down to the last bit."""
    values = [value.detach().contiguous().numpy().tobytes() for value in module.state_dict().values()]
    return hashlib.sha256(b"".join(values)).hexdigest()


def outcome(work: Path, module: Skeleton, result: FitResult) -> tuple[str, list[dict[str, Any]], str]:
    """Return what must not depend on interruptions: best weights, history without clock and memory, last weights."""
    clock = {"seconds", "train_seconds", "memory_mb"}
    rows = [{key: value for key, value in row.items() if key not in clock} for row in result.history]
    last = torch.load(work / "last.ckpt", weights_only=False)["state_dict"]
    return digest(module), rows, hashlib.sha256(b"".join(v.numpy().tobytes() for v in last.values())).hexdigest()


def killed_at(work: Path, arrange: Callable[[], None], train: Callable[[], Any]) -> int:
    """Run ``train`` in a process of its own after ``arrange`` has laid a mine there; returns its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 3
        try:
            arrange()
            train()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(waited(pid))


def die() -> None:
    """End this process as the kernel or a scheduler does: at once."""
    os.kill(os.getpid(), signal.SIGKILL)


class MinedModule(TinyModule):
    """Dies in process R at training step S of this start where the environment's ``MINE`` is R:S."""

    steps = 0

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.steps += 1
        if os.environ.get("MINE") == f"{self.global_rank}:{self.steps}":
            die()
        return super().training_step(batch, batch_idx)


def fork(train: Callable[[], Any], file: Path, environ: dict[str, str] | None = None) -> int:
    """Start ``train`` in a process of its own, which leaves its result or error in ``file``; returns its number."""
    pid = os.fork()
    if pid:
        return pid
    status = 3
    try:
        os.environ.update(environ or {})
        try:
            result = train()
            status = 0
        except Exception as error:  # noqa: BLE001
            result, status = error, 1
        torch.save(result, file)
    finally:
        os._exit(status)


def start_ranks(train: Callable[[int], Any], folder: Path, count: int = 2) -> list[int]:
    """Start ``train(rank)`` in processes as torchrun does; ``results`` gives what they left."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {
        "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0",
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
    }  # fmt: skip
    return [
        fork(
            lambda rank=rank: train(rank), folder / f"{rank}.pt", {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(count)
    ]


def results(pids: list[int], folder: Path) -> list[Any]:
    """Wait for processes; return what each left, or its signal where it was killed."""
    statuses = [os.waitstatus_to_exitcode(waited(pid)) for pid in pids]
    return [
        torch.load(folder / f"{rank}.pt", weights_only=False) if status >= 0 else status
        for rank, status in enumerate(statuses)
    ]
