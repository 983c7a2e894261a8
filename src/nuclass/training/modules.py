"""Lightning modules of the local and the global model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nuclass.models.global_ import GlobalModel, alpha_schedule
from nuclass.models.local import LocalModel, Output
from nuclass.models.losses import guided_loss, uncertainty_weight
from nuclass.training.config import Global, Local
from nuclass.training.skeleton import MONITOR, Skeleton

__all__ = ["MONITOR", "GlobalModule", "LocalModule"]


class LocalModule(Skeleton):
    """Class-balanced cross-entropy with label smoothing on the local model."""

    model: LocalModel
    class_weights: Tensor

    def __init__(self, model: LocalModel, settings: Local, class_weights: Tensor, seed: int) -> None:
        super().__init__(model, settings.optimizer, settings.augment, seed)
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
        super().__init__(model, settings.optimizer, settings.augment, seed)
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
