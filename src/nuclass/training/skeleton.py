"""What the Lightning modules of all trained models share."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from nuclass.core.errors import UserError
from nuclass.data.augment import Augment, augment_images, to_unit
from nuclass.training.config import Optimizer
from nuclass.training.metrics import macro_f1
from nuclass.training.optim import make_optimizer, parameter_groups, warmup_factor

MONITOR = "val_f1_macro"


class Skeleton(pl.LightningModule):
    """What all trained models share: optimizer, schedule, seeding by epoch, validation by macro-F1.

    A subclass gives :meth:`loss` and :meth:`logits`.
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
        """Seed dropout by the epoch; freeze the backbone in the first ones where that is asked for."""
        torch.manual_seed(self.seed * 1009 + self.current_epoch)
        frozen = self.current_epoch < self.optimizer_settings.freeze_epochs
        self.model.backbone.requires_grad_(not frozen)  # type: ignore[union-attr, operator]
        self.model.backbone.train(not frozen)  # type: ignore[union-attr, operator]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Augment on the device and compute the loss; a loss that is not finite ends the run by name."""
        number = batch_idx * self.trainer.world_size + self.global_rank
        generator = torch.Generator().manual_seed((self.seed * 7919 + self.current_epoch) * 1_000_003 + number)
        images = augment_images(batch["image"], self.augment_settings, generator)
        loss = self.loss(batch, images, generator)
        if not torch.isfinite(loss):
            raise UserError(
                "The loss is not a finite number",
                where=f"epoch {self.current_epoch}, batch {batch_idx}",
                found=float(loss.detach()),
                fix="lower the learning rates, or set precision: 32-true",
            )
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Keep logits and labels of a batch."""
        self._val.append((self.logits(batch, to_unit(batch["image"])).float().cpu(), batch["label"].cpu()))

    def on_validation_epoch_end(self) -> None:
        """Log macro-F1, accuracy and log loss over all validation cells."""
        logits, labels = (torch.cat(part) for part in zip(*self._val, strict=True))
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
