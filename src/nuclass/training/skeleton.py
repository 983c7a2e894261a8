"""What the Lightning modules of all trained models share."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from nuclass.data.augment import Augment, augment_images, to_unit
from nuclass.training.config import Optimizer
from nuclass.training.metrics import macro_f1
from nuclass.training.optim import ClipsByNorm, make_optimizer, parameter_groups, warmup_factor
from nuclass.training.ranks import gather

MONITOR = "val_f1_macro"


class Skeleton(ClipsByNorm, pl.LightningModule):
    """What all trained models share: optimizer, schedule, seeding by batch, validation by macro-F1.

    A subclass gives :meth:`loss` and :meth:`logits`. Nothing random depends on what ran before: augmentation is seeded
    here by the run's seed, the epoch, the batch and the process, dropout likewise by
    :class:`nuclass.training.callbacks.Seeds`. Losses that are not finite are found by
    :class:`nuclass.training.callbacks.Record`, which need not wait for the device at each step.
    """

    def __init__(self, model: torch.nn.Module, optimizer: Optimizer, augment: Augment, seed: int) -> None:
        super().__init__()
        self.model = model
        self.optimizer_settings = optimizer
        self.augment_settings = augment
        self.seed = seed
        self._val: list[tuple[Tensor, Tensor]] = []

    def loss(self, batch: dict[str, Tensor], images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the training loss of augmented ``images``."""
        raise NotImplementedError

    def logits(self, batch: dict[str, Tensor], images: Tensor) -> Tensor:
        """Return the logits (B, C) of ``images`` as they are."""
        raise NotImplementedError

    def on_train_epoch_start(self) -> None:
        """Freeze the backbone in the first epochs, where that is asked for; called too to go on within an epoch."""
        frozen = self.current_epoch < self.optimizer_settings.freeze_epochs
        self.model.backbone.requires_grad_(not frozen)  # type: ignore[union-attr, operator]
        self.model.backbone.train(not frozen)  # type: ignore[union-attr, operator]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Augment on the device and compute the loss."""
        number = batch_idx * self.trainer.world_size + self.global_rank
        generator = torch.Generator().manual_seed((self.seed * 7919 + self.current_epoch) * 1_000_003 + number)
        images = augment_images(batch["image"], self.augment_settings, generator)
        return self.loss(batch, images, generator)

    def on_validation_epoch_start(self) -> None:
        """Forget the batches of a validation that was cut off."""
        self._val = []

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Keep logits and labels of a batch on the device."""
        self._val.append((self.logits(batch, to_unit(batch["image"])).float(), batch["label"]))

    def on_validation_epoch_end(self) -> None:
        """Log macro-F1, accuracy and log loss over the validation cells of all processes."""
        logits, labels = (gather(torch.cat(part)).cpu() for part in zip(*self._val, strict=True))
        self._val = []
        predictions = logits.argmax(1)
        self.log(MONITOR, macro_f1(labels, predictions, logits.shape[1]))
        self.log("val_accuracy", float((predictions == labels).double().mean()))
        self.log("val_loss", float(F.cross_entropy(logits, labels)))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return what the optimizer trains: groups of parameters, each with its learning rate and decay."""
        return parameter_groups(self.model, self.optimizer_settings)

    def configure_optimizers(self) -> Any:
        """Return AdamW in few groups with warm-up by optimizer step."""
        settings = self.optimizer_settings
        optimizer = make_optimizer(self.parameter_groups(), fused=self.trainer.precision != "16-mixed")
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_factor(step, settings, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
