"""Lightning modules of the local and the global model, on one skeleton."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from nuclass.core.errors import UserError
from nuclass.data.augment import Augment, augment_images, to_unit
from nuclass.models.global_ import GlobalModel, alpha_schedule
from nuclass.models.local import LocalModel, Output
from nuclass.models.losses import guided_loss, uncertainty_weight
from nuclass.training.config import Global, Local, Optimiser
from nuclass.training.metrics import macro_f1
from nuclass.training.optim import make_optimiser, parameter_groups, warmup_factor

MONITOR = "val_f1_macro"


class Skeleton(pl.LightningModule):
    """What all trained models share: optimiser, schedule, seeding by epoch, validation by macro-F1.

    A subclass gives :meth:`loss` and :meth:`logits`.
    """

    def __init__(self, model: torch.nn.Module, optimiser: Optimiser, augment: Augment, seed: int) -> None:
        super().__init__()
        self.model = model
        self.optimiser_settings = optimiser
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
        frozen = self.current_epoch < self.optimiser_settings.freeze_epochs
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

    def configure_optimizers(self) -> Any:
        """Return AdamW in few groups with warm-up by optimiser step."""
        settings = self.optimiser_settings
        optimiser = make_optimiser(
            parameter_groups(self.model, settings), fused=self.trainer.strategy.root_device.type == "cuda"
        )
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warmup_factor(step, settings, total))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class LocalModule(Skeleton):
    """Class-balanced cross-entropy with label smoothing on the local model."""

    model: LocalModel
    class_weights: Tensor

    def __init__(self, model: LocalModel, settings: Local, class_weights: Tensor, seed: int) -> None:
        super().__init__(model, settings.optimiser, settings.augment, seed)
        self.label_smoothing = settings.loss.label_smoothing
        self.register_buffer("class_weights", class_weights, persistent=False)

    def loss(self, batch: dict[str, Tensor], images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the weighted cross-entropy."""
        logits = self.model(images, batch["organ"]).logits.float()
        return F.cross_entropy(logits, batch["label"], weight=self.class_weights, label_smoothing=self.label_smoothing)

    def logits(self, batch: dict[str, Tensor], images: Tensor) -> Tensor:
        """Return the local model's logits."""
        return self.model(images, batch["organ"]).logits


class GlobalModule(Skeleton):
    """The uncertainty-guided loss on the global model, with a frozen local model as teacher.

    Parameters
    ----------
    model, settings, class_weights, seed
        The network, its settings, weights (C,), and the seed.

    Batches hold ``context`` (B, 1 + views, K), the plain features first, then those under augmentation, one of
    which is drawn for each cell; in training also ``teacher`` (B, C), the frozen local model's logits.
    """

    model: GlobalModel
    class_weights: Tensor

    def __init__(self, model: GlobalModel, settings: Global, class_weights: Tensor, seed: int) -> None:
        super().__init__(model, settings.optimiser, settings.augment, seed)
        self.settings = settings
        self.register_buffer("class_weights", class_weights, persistent=False)

    def on_train_epoch_start(self) -> None:
        """Set alpha for the epoch; it is a buffer, so it is saved with the weights."""
        super().on_train_epoch_start()
        alpha = self.settings.alpha
        self.model.alpha.fill_(alpha_schedule(self.current_epoch, alpha.epochs, alpha.start))

    def loss(self, batch: dict[str, Tensor], images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the guided loss; the label weighs the loss and never enters the network."""
        stored, teacher = batch["context"], batch["teacher"].float()
        view = torch.randint(0, stored.shape[1], (len(stored),), generator=generator).to(stored.device)
        context = stored[torch.arange(len(stored), device=stored.device), view]
        output: Output = self.model(images, context)
        output = Output(output.features.float(), output.logits.float())
        fused = self.model.fuse(output, teacher).float()
        weight = uncertainty_weight(teacher, batch["label"], self.settings.loss.gamma) * self.settings.loss.fused_weight
        return guided_loss(
            fused,
            output.logits,
            batch["label"],
            weight,
            self.class_weights,
            label_smoothing=self.settings.loss.label_smoothing,
            own_weight=self.settings.loss.own_weight,
        )

    def logits(self, batch: dict[str, Tensor], images: Tensor) -> Tensor:
        """Return the global model's own logits."""
        return self.model(images, batch["context"][:, 0]).logits
