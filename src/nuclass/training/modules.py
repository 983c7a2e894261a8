"""Lightning modules of the local and the global model."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from nuclass.core.protocol import Protocol
from nuclass.data.augment import Augment
from nuclass.models.global_ import GlobalModel, alpha_schedule
from nuclass.models.local import LocalHeads, LocalModel, Output
from nuclass.models.losses import balanced_cross_entropy, entropy_weight, guided_loss, uncertainty_weight
from nuclass.training.config import Global, Local
from nuclass.training.optim import parameter_groups
from nuclass.training.skeleton import MONITOR, Skeleton

__all__ = ["MONITOR", "GlobalModule", "LocalModule", "augmentation"]

CORRECTED = Protocol()


def augmentation(settings: Augment, protocol: Protocol, *, none: bool = False) -> Augment:
    """Return how windows are changed in training, under the protocol.

    Parameters
    ----------
    none
        Leave windows as they are.
    """
    if none:
        return replace(settings, **{field.name: type(getattr(settings, field.name))(0) for field in fields(settings)})
    if protocol.black_corners:
        return replace(settings, black_corners=True)
    return settings


class _Branch(Skeleton):
    """What the modules of both models share: class weights, and the protocol."""

    class_weights: Tensor

    def __init__(
        self,
        model: torch.nn.Module,
        settings: Local | Global,
        augment: Augment,
        class_weights: Tensor,
        seed: int,
        protocol: Protocol,
    ) -> None:
        super().__init__(model, settings.optimizer, augment, seed)
        self.protocol = protocol
        self.register_buffer("class_weights", class_weights, persistent=False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the model's parameters in few groups."""
        return parameter_groups(self.model, self.optimizer_settings, decay_everywhere=self.protocol.decay_everywhere)


class LocalModule(_Branch):
    """Class-balanced cross-entropy with label smoothing on the local model.

    Parameters
    ----------
    model, settings, class_weights, seed, protocol
        The network, its settings, weights (C,), the seed, and which of the original's flaws are on.
    """

    model: LocalModel

    def __init__(
        self, model: LocalModel, settings: Local, class_weights: Tensor, seed: int, protocol: Protocol = CORRECTED
    ) -> None:
        augment = augmentation(settings.augment, protocol)
        super().__init__(model, settings, augment, class_weights, seed, protocol)
        self.label_smoothing = settings.loss.label_smoothing

    def loss(self, batch: dict[str, Tensor], images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the weighted cross-entropy."""
        logits = self.model(images, batch["organ"]).logits.float()
        return balanced_cross_entropy(logits, batch["label"], self.class_weights, self.label_smoothing)

    def logits(self, batch: dict[str, Tensor], images: Tensor) -> Tensor:
        """Return the local model's logits."""
        return self.model(images, batch["organ"]).logits


class GlobalModule(_Branch):
    """The uncertainty-guided loss on the global model, with a frozen local model as teacher.

    Parameters
    ----------
    model, settings, class_weights, seed, protocol
        The network, its settings, weights (C,), the seed, and which of the original's flaws are on.
    local
        The local model; the original's moving teacher and its weight with a gradient start from a copy of its
        heads, which sees what the global model's backbone gives. Not needed otherwise.

    Batches hold ``context`` (B, 1 + views, K), the plain features first, then those under augmentation, one of
    which is drawn for each cell; in training also ``teacher`` (B, C), the frozen local model's logits.

    Raises
    ------
    ValueError
        When the protocol needs the local model and there is none.
    """

    model: GlobalModel

    def __init__(
        self,
        model: GlobalModel,
        settings: Global,
        class_weights: Tensor,
        seed: int,
        protocol: Protocol = CORRECTED,
        local: LocalModel | None = None,
    ) -> None:
        augment = augmentation(settings.augment, protocol, none=protocol.no_global_augmentation)
        super().__init__(model, settings, augment, class_weights, seed, protocol)
        self.settings = settings
        self.model.one_draw_a_batch = protocol.batch_context_dropout
        self.teacher: LocalHeads | None = None
        if protocol.moving_teacher or protocol.undetached_weight:
            if local is None:
                raise ValueError("This protocol needs the local model for a copy of its heads")
            self.teacher = LocalHeads(local).requires_grad_(protocol.moving_teacher).train(protocol.moving_teacher)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the model's parameters in few groups, and those of a teacher that moves."""
        groups = super().parameter_groups()
        if self.teacher is not None:
            everywhere = self.protocol.decay_everywhere
            groups += parameter_groups(self.teacher, self.optimizer_settings, decay_everywhere=everywhere)
        return groups

    def train(self, mode: bool = True) -> GlobalModule:
        """Set the mode; a teacher that does not move stays in eval mode."""
        super().train(mode)
        if self.teacher is not None and not self.protocol.moving_teacher:
            self.teacher.eval()
        return self

    def on_train_epoch_start(self) -> None:
        """Set alpha for the epoch; it is a buffer, so it is saved with the weights."""
        super().on_train_epoch_start()
        alpha = self.settings.alpha
        self.model.alpha.fill_(alpha_schedule(self.current_epoch, alpha.epochs, alpha.start))

    def loss(self, batch: dict[str, Tensor], images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the guided loss; the label weighs the loss and never enters the network."""
        labels, settings = batch["label"], self.settings.loss
        context = self._one_view(batch["context"], generator)
        features = self.model.backbone(images)
        output = self.model.classify(features, context)
        output = Output(output.features.float(), output.logits.float())
        local = opinion = batch["teacher"].float()
        if self.teacher is not None:
            opinion = self.teacher.classify(features, batch["organ"]).logits.float()
        if self.protocol.moving_teacher:
            local = opinion
        return guided_loss(
            self.model.fuse(output, local, self._hint(local, labels)).float(),
            output.logits,
            labels,
            self._weight(opinion, labels),
            self.class_weights,
            label_smoothing=settings.label_smoothing,
            own_weight=settings.own_weight,
            fused_weight=settings.fused_weight,
        )

    def logits(self, batch: dict[str, Tensor], images: Tensor) -> Tensor:
        """Return the global model's own logits."""
        return self.model(images, batch["context"][:, 0]).logits

    def _one_view(self, stored: Tensor, generator: torch.Generator) -> Tensor:
        """Return the features (B, K) of one view a cell, drawn; the plain one where no stain is changed."""
        if self.protocol.no_global_augmentation or self.protocol.black_corners:
            return stored[:, 0]
        view = torch.randint(0, stored.shape[1], (len(stored),), generator=generator).to(stored.device)
        return stored[torch.arange(len(stored), device=stored.device), view]

    def _weight(self, local_logits: Tensor, labels: Tensor) -> Tensor:
        """Return how much each cell counts in the guided term, (B,)."""
        gamma, detach = self.settings.loss.gamma, not self.protocol.undetached_weight
        if self.settings.loss.doubt == "entropy":
            return entropy_weight(local_logits, gamma, detach=detach)
        return uncertainty_weight(local_logits, labels, gamma, detach=detach)

    def _hint(self, local_logits: Tensor, labels: Tensor) -> Tensor | None:
        """Return what the original told its inner gate: p_A(y) in training, 0 without labels; None otherwise."""
        if not self.protocol.label_in_gate:
            return None
        if not self.training:
            return torch.zeros(len(local_logits), device=local_logits.device)
        return local_logits.softmax(1).gather(1, labels[:, None])[:, 0]
