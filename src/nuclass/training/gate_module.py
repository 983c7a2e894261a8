"""Lightning module of the gate, on cached outputs of both branches."""

from __future__ import annotations

from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from nuclass.core.protocol import Protocol
from nuclass.models.gate import GateModel, mix
from nuclass.models.gate_losses import batch_pos_weight, gate_loss, gate_targets
from nuclass.models.losses import EPSILON
from nuclass.training.config import Gate, Optimizer
from nuclass.training.gate_cells import MICRO_BATCH
from nuclass.training.optim import ClipsByNorm, decays, make_optimizer, warmup_factor

MONITOR = "val_log_loss"
_BATCH = 8192


class GateOutputs(NamedTuple):
    """What the loss is made of: the gate's logits (B,), calibrated probabilities (B, C), logits of trained heads."""

    gate_logits: Tensor
    p_a: Tensor
    p_b: Tensor
    branch_logits: tuple[Tensor, Tensor] | None = None


class Fused(NamedTuple):
    """The mixture of N cells: ``ln p_mix`` (N, C), the gate (N,), and both probabilities (N, C)."""

    log_p: Tensor
    g: Tensor
    p_a: Tensor
    p_b: Tensor


class GateModule(ClipsByNorm, pl.LightningModule):
    """The gate's loss on cached outputs; validation by the log loss of the mixture.

    Parameters
    ----------
    model, settings, seed
        The gate, its settings, and the seed, by which :func:`nuclass.training.fit.fit` draws dropout.
    pos_weight
        Weight of positives in the gate's own term.
    protocol
        Which of the original's flaws are on.
    """

    def __init__(
        self, model: GateModel, settings: Gate, seed: int, *, pos_weight: float, protocol: Protocol | None = None
    ) -> None:
        super().__init__()
        self.model, self.settings, self.seed, self.pos_weight = model, settings, seed, pos_weight
        self.protocol = protocol or Protocol()
        self._val: list[tuple[Tensor, Tensor]] = []

    def outputs(self, batch: dict[str, Tensor]) -> GateOutputs:
        """Return the gate's logits, and the probabilities it weighs."""
        p_a, p_b = batch["p_a"], batch["p_b"]
        logits = self.model(batch["features_a"].float(), batch["features_b"].float(), p_a, p_b)
        return GateOutputs(logits, p_a, p_b)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the sum of the gate's terms."""
        return self.loss(batch)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the sum of the gate's terms."""
        terms, out = self.settings.loss, self.outputs(batch)
        targets = gate_targets(
            out.p_a,
            out.p_b,
            batch["label"],
            soft_k=terms.soft_k,
            conflict_boost=terms.conflict_boost,
            delta_scale=terms.delta_scale,
            delta_gamma=terms.delta_gamma,
        )
        by_batch = self.protocol.batch_pos_weight
        return gate_loss(
            out.gate_logits,
            out.p_a,
            out.p_b,
            batch["label"],
            targets,
            branch_logits=out.branch_logits,
            pos_weight=batch_pos_weight(targets.target, MICRO_BATCH) if by_batch else self.pos_weight,
            mix_weight=terms.mix_weight,
            bce_weight=terms.bce_weight,
            align_weight=terms.align_weight,
            entropy_weight=terms.entropy_weight,
            aux_weight=terms.aux_weight,
        ).total

    def mixture(self, batch: dict[str, Tensor]) -> Fused:
        """Return the mixture of a batch."""
        out = self.outputs(batch)
        g = torch.sigmoid(out.gate_logits)
        return Fused((mix(out.p_a, out.p_b, g) + EPSILON).log(), g, out.p_a, out.p_b)

    @torch.inference_mode()
    def mixtures(self, part: dict[str, Tensor]) -> Fused:
        """Return the mixture of all cells of a part, some thousand at a time."""
        n = len(part["label"])
        batches = [{name: values[i : i + _BATCH] for name, values in part.items()} for i in range(0, n, _BATCH)]
        return Fused(*(torch.cat(column) for column in zip(*map(self.mixture, batches), strict=True)))

    def on_validation_epoch_start(self) -> None:
        """Forget the batches of a validation that was cut off."""
        self._val = []

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Keep the mixture and the labels of a batch."""
        self._val.append((self.mixture(batch).log_p.cpu(), batch["label"].cpu()))

    def on_validation_epoch_end(self) -> None:
        """Log the mixture's log loss and accuracy."""
        log_p, labels = (torch.cat(part) for part in zip(*self._val, strict=True))
        self._val = []
        self.log(MONITOR, float(F.nll_loss(log_p, labels)))
        self.log("val_accuracy", float((log_p.argmax(1) == labels).double().mean()))

    def configure_optimizers(self) -> Any:
        """Return AdamW, no decay on norms and biases, linear warm-up then constant."""
        settings = self.settings.optimizer
        named = list(self.model.named_parameters())
        optimizer = make_optimizer(self.groups(named, settings.lr, settings.weight_decay))
        shape = Optimizer(warmup_steps=settings.warmup_steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_factor(step, shape, 1))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def groups(self, named: list[tuple[str, torch.nn.Parameter]], lr: float, decay: float) -> list[dict[str, Any]]:
        """Return parameters that are trained in one group with decay and one without, those that are not empty."""
        learning = [(name, p) for name, p in named if p.requires_grad]
        yes = [p for name, p in learning if self.protocol.decay_everywhere or decays(name, p)]
        no = [p for name, p in learning if not (self.protocol.decay_everywhere or decays(name, p))]
        groups = [{"params": yes, "lr": lr, "weight_decay": decay}, {"params": no, "lr": lr, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]
