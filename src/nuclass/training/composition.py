"""Train a small context backbone: which classes lie where around a cell, told from the H&E alone.

The demo makes its own weights this way; a real study takes published ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path, write_json
from nuclass.data.augment import Augment, augment_images, to_unit
from nuclass.data.image_ops import dihedral
from nuclass.data.study import Study
from nuclass.data.training_cells import load_training_cells
from nuclass.models.backbones import Backbone, build_backbone, count_parameters
from nuclass.training.config import Context, Pretrain, parse_models, to_plain
from nuclass.training.inputs import data_hash
from nuclass.training.optim import ClipsByNorm, make_optimizer, parameter_groups, warmup_factor
from nuclass.training.ranks import gather

if TYPE_CHECKING:
    import pandas as pd

    from nuclass.data import InMemoryWindows, Vocabulary

MONITOR = "val_loss"
_LEARNING = ("max_epochs", "patience", "batch_size", "accumulate", "validate_every", "balance")


class CompositionModel(nn.Module):
    """A vision transformer that tells which classes lie where: per patch token, and around the centre from CLS."""

    def __init__(self, backbone: Backbone, n_classes: int, n_radii: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.n_classes, self.n_radii = n_classes, n_radii
        self.token_head = nn.Linear(backbone.feature_dim, n_classes)
        self.class_head = nn.Linear(backbone.feature_dim, n_classes * n_radii)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of the tokens (B, C, h, w) and of the neighbourhood (B, R, C)."""
        tokens = self.backbone.spatial(images)
        side = round((tokens.shape[1] - self.backbone.prefix_tokens) ** 0.5)
        grid = self.token_head(tokens[:, self.backbone.prefix_tokens :])
        grid = grid.transpose(1, 2).reshape(len(tokens), self.n_classes, side, side)
        return grid, self.class_head(tokens[:, 0]).view(-1, self.n_radii, self.n_classes)


def soft_cross_entropy(logits: Tensor, counts: Tensor, class_weights: Tensor) -> Tensor:
    """Return the cross-entropy between class counts and logits, both (M, C); rows without a cell are left out.

    Counts become shares; a class's share is weighted by ``class_weights`` (C,), and the sum divided by all weights.
    """
    total = counts.sum(1, keepdim=True)
    shares = counts / total.clamp_min(1e-6) * class_weights
    return -(shares * logits.log_softmax(1)).sum() / shares.sum().clamp_min(1e-6)


class CompositionModule(ClipsByNorm, pl.LightningModule):
    """Training of :class:`CompositionModel`."""

    class_weights: Tensor

    def __init__(self, model: CompositionModel, settings: Pretrain, class_weights: Tensor, seed: int) -> None:
        super().__init__()
        self.model, self.settings, self.seed = model, settings, seed
        self.register_buffer("class_weights", class_weights, persistent=False)
        self._val: list[Tensor] = []

    def loss(self, images: Tensor, tokens: Tensor, around: Tensor) -> Tensor:
        """Return the loss of float images; ``tokens`` (B, C, h, w) and ``around`` (B, R, C) are counts."""
        grid, neighbourhood = self.model(images)
        classes = tokens.shape[1]
        dense = soft_cross_entropy(
            grid.float().permute(0, 2, 3, 1).reshape(-1, classes),
            tokens.permute(0, 2, 3, 1).reshape(-1, classes),
            self.class_weights,
        )
        wide = soft_cross_entropy(
            neighbourhood.float().reshape(-1, classes), around.reshape(-1, classes), self.class_weights
        )
        return self.settings.token_weight * dense + wide

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Turn image and targets together, change the stain of the image alone."""
        number = batch_idx * self.trainer.world_size + self.global_rank
        generator = torch.Generator().manual_seed((self.seed * 7919 + self.current_epoch) * 1_000_003 + number)
        images, tokens = batch["image"], batch["tokens"].float()
        augment = self.settings.augment
        if augment.dihedral:
            turn = torch.randint(0, 8, (len(images),), generator=generator)
            images, tokens = dihedral(images, turn), dihedral(tokens, turn)
        pixels = augment_images(images, _in_place(augment), generator)
        return self.loss(pixels, tokens, batch["around"].float())

    def on_validation_epoch_start(self) -> None:
        """Forget the batches of a validation that was cut off."""
        self._val = []

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Keep a batch's loss and number of windows."""
        loss = self.loss(to_unit(batch["image"]), batch["tokens"].float(), batch["around"].float())
        self._val.append(torch.stack([loss.double(), torch.full_like(loss, len(batch["image"]), dtype=torch.double)]))

    def on_validation_epoch_end(self) -> None:
        """Log the mean loss over the windows of all processes."""
        losses, counts = gather(torch.stack(self._val)).cpu().unbind(1)
        self._val = []
        self.log(MONITOR, float((losses * counts).sum() / counts.sum()))

    def configure_optimizers(self) -> Any:
        """Return AdamW with the schedule of the settings."""
        settings = self.settings.optimizer
        optimizer = make_optimizer(parameter_groups(self.model, settings), fused=self.trainer.precision != "16-mixed")
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_factor(step, settings, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _in_place(augment: Augment) -> Augment:
    """Return what leaves every cell where it is: the targets are counts of places."""
    return replace(augment, dihedral=False, rotate=0, shift=0, zoom=0)


def neighbourhoods(
    frame: pd.DataFrame, labels: NDArray[np.int64], n_classes: int, *, window_px: int, side: int, radii_px: list[float]
) -> tuple[Tensor, Tensor]:
    """Count the labelled cells around each cell of ``frame``, the cell itself left out.

    Parameters
    ----------
    frame
        Columns slide, x_px, y_px; only its own cells are counted, so no other split's labels enter.
    window_px, side
        Window side in store pixels, and number of tokens along it.
    radii_px
        Radii of the neighbourhoods.

    Returns
    -------
    uint8 counts per token (N, C, side, side), and float32 counts per radius (N, R, C).
    """
    from scipy.spatial import cKDTree

    tokens = np.zeros((len(frame), n_classes, side, side), np.uint8)
    around = np.zeros((len(frame), len(radii_px), n_classes), np.float32)
    slides = frame["slide"].to_numpy()
    for slide in dict.fromkeys(slides):
        rows = np.flatnonzero(slides == slide)
        xy = frame.iloc[rows][["x_px", "y_px"]].to_numpy(float)
        pairs = cKDTree(xy).query_pairs(window_px / 2 * 2**0.5, output_type="ndarray")
        centre, other = np.concatenate([pairs, pairs[:, ::-1]]).T
        offset = xy[other] - xy[centre]
        place = np.floor((offset + window_px / 2) / (window_px / side)).astype(np.int64)
        inside = ((place >= 0) & (place < side)).all(1)
        np.add.at(tokens, (rows[centre[inside]], labels[rows[other[inside]]], place[inside, 1], place[inside, 0]), 1)
        distance = np.hypot(*offset.T)
        for k, radius in enumerate(radii_px):
            near = distance <= radius
            np.add.at(around, (rows[centre[near]], k, labels[rows[other[near]]]), 1)
    return torch.from_numpy(tokens), torch.from_numpy(around)


def pretrain_context(models: dict[str, Any], study: Study, folder: Path, work: Path, seed: int) -> dict[str, Any]:
    """Train the context backbone on the class composition of neighbourhoods and save it.

    Only cells of the train split are looked at and counted; those of val choose the best state. Writes
    ``config.json``, ``model.safetensors`` (``save_pretrained``) and ``metrics.json`` to ``folder`` at once.
    """
    from nuclass.data import balanced_weights
    from nuclass.training.fit import choose_accelerator, clear_work, fingerprint, fit
    from nuclass.training.launch import find_place

    context = parse_models(models).context
    settings = context.pretrain
    if settings is None:
        raise UserError(
            "There is no section to train the context backbone by",
            where="context.pretrain",
            fix="add it, or give a backbone with weights",
        )
    train, val, vocabulary = load_training_cells(study)
    torch.manual_seed(seed)
    backbone = build_backbone(context.backbone)
    model = CompositionModel(backbone, len(vocabulary.classes), len(settings.radii_um))
    drawn = np.sort(np.random.default_rng(seed).permutation(len(val))[: settings.val_samples])
    train_set = composition_set(train, study, context, backbone, vocabulary)
    val_set = composition_set(val, study, context, backbone, vocabulary, drawn)
    draw = WeightedDraw(balanced_weights(train_set.label, 0.5), settings.samples_per_epoch, seed)
    place = find_place(settings.trainer, choose_accelerator(settings.trainer.accelerator))
    parts = ("context", to_plain(context), data_hash(study, train, val), vocabulary.to_dict(), seed)
    result = fit(
        CompositionModule(model, settings, root_weights(train_set.label, len(vocabulary.classes)), seed),
        DrawnData(train_set, val_set, draw, settings.trainer.batch_size),
        settings.trainer,
        work=work,
        identity=fingerprint(*parts, processes=place.per_node * place.nodes),
        description="context backbone",
        monitor=MONITOR,
        mode="min",
        grad_clip=settings.optimizer.grad_clip,
    )
    if not result.is_main:
        return {}
    metrics = {
        "best": result.best,
        "history": result.history,
        "seconds": round(result.seconds, 1),
        "parameters": count_parameters(backbone.net),
        "n_train": len(train),
        "n_val": len(val),
        "classes": list(vocabulary.classes),
        "settings": pretrain_settings(context),
    }
    with atomic_path(folder) as temporary:
        backbone.net.cpu().save_pretrained(temporary)  # type: ignore[operator, union-attr]
        write_json(temporary / "metrics.json", metrics)
    clear_work(work)
    return metrics


def pretrain_settings(context: Context) -> dict[str, Any]:
    """Return the settings that a context backbone's weights depend on; those of the machine are not among them."""
    plain = to_plain(context)
    learning = {name: plain["pretrain"]["trainer"][name] for name in _LEARNING}
    return {
        "backbone": plain["backbone"],
        "read_level": plain["read_level"],
        "pretrain": {**plain["pretrain"], "trainer": learning},
    }


def composition_set(
    frame: pd.DataFrame,
    study: Study,
    context: Context,
    backbone: Backbone,
    vocabulary: Vocabulary,
    rows: NDArray[np.int64] | None = None,
) -> InMemoryWindows:
    """Return the global windows of ``frame`` in memory, with the counts ``tokens`` and ``around`` as targets.

    All cells of ``frame`` are counted; windows are read of ``rows`` only, where given.
    """
    from nuclass.core.progress import Progress
    from nuclass.data import InMemoryWindows

    radii = context.pretrain.radii_um if context.pretrain else ()
    size = study.windows["global"]
    tokens, around = neighbourhoods(
        frame,
        vocabulary.encode_classes(frame["class"]),
        len(vocabulary.classes),
        window_px=size,
        side=backbone.input_px // int(backbone.net.config.patch_size),  # type: ignore[union-attr, arg-type]
        radii_px=[radius / study.mpp for radius in radii],
    )
    if rows is not None:
        frame, tokens, around = frame.iloc[rows].reset_index(drop=True), tokens[rows], around[rows]
    with study.reader() as reader, Progress(len(frame), "global windows", "windows") as progress:
        images = reader.read(frame, size, context.read_level, backbone.input_px, progress)
    targets = {"tokens": tokens, "around": around}
    organ, label = vocabulary.encode_organs(frame["organ"]), vocabulary.encode_classes(frame["class"])
    return InMemoryWindows(images, organ, label, targets)


def root_weights(labels: Tensor, n_classes: int) -> Tensor:
    """Return class weights ``count^-1/2`` (C,), their mean 1."""
    weights = torch.bincount(labels, minlength=n_classes).clamp_min(1).float().rsqrt()
    return weights / weights.mean()


class WeightedDraw:
    """Row numbers of an epoch, without repeats, drawn by weight from ``seed`` and epoch."""

    def __init__(self, weights: NDArray[np.float64], samples: int, seed: int) -> None:
        self.weights = weights / weights.sum()
        self.samples = min(samples, int((weights > 0).sum()))
        self.seed = seed
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the draw; called by the trainer."""
        self.epoch = epoch

    def start_at(self, batch: int) -> None:
        """Let the next pass, and it alone, leave out a process's batches before number ``batch``."""
        self.start = batch

    def rows(self) -> NDArray[np.int64]:
        """Return the rows of the epoch."""
        rng = np.random.default_rng((self.seed, self.epoch))
        return rng.choice(len(self.weights), self.samples, replace=False, p=self.weights)


class DrawnBatches:
    """Batches of a part of a dataset in memory, another part each epoch.

    Process ``rank`` of ``world_size`` takes batches ``rank, rank + world_size, ...`` of the epoch's draw; all get
    equally many, what is left over is dropped.
    """

    batch_sampler = None

    def __init__(
        self, windows: Any, batch_size: int, sampler: WeightedDraw, rank: int = 0, world_size: int = 1
    ) -> None:
        self.windows, self.batch_size, self.sampler = windows, batch_size, sampler
        self.rank, self.world_size = rank, world_size
        batches = -(-sampler.samples // batch_size)
        if batches < world_size:
            raise UserError(
                "There are fewer batches than processes",
                where="context.pretrain.samples_per_epoch",
                found=f"{batches} batches for {world_size} processes",
                fix="use fewer devices, or a smaller batch_size",
            )
        self._count = batches // world_size

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        rows, first = self.sampler.rows(), self.sampler.start
        self.sampler.start = 0
        for number in range(first, len(self)):
            start = (number * self.world_size + self.rank) * self.batch_size
            yield self.windows[rows[start : start + self.batch_size]]


class DrawnData(pl.LightningDataModule):
    """Drawn training batches and all val batches, each process its own."""

    def __init__(self, train: InMemoryWindows, val: InMemoryWindows, draw: WeightedDraw, batch_size: int) -> None:
        super().__init__()
        self.train_set, self.val_set, self.draw, self.batch_size = train, val, draw, batch_size

    def train_dataloader(self) -> DrawnBatches:
        """Return the training batches of this process."""
        return DrawnBatches(self.train_set, self.batch_size, self.draw, *self._place())

    def val_dataloader(self) -> Any:
        """Return the val batches of this process; each window comes once over all."""
        from nuclass.data import make_loader

        rank, world_size = self._place()
        return make_loader(self.val_set, self.batch_size, rank=rank, world_size=world_size)

    def _place(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
