"""Train the gate on cells that neither branch was fitted to: val, cut into a fitting and a selecting part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.names import GATE
from nuclass.data.modules import GateData
from nuclass.data.study import Study
from nuclass.data.training_cells import known_classes, load_training_cells
from nuclass.models.gate import GateModel, mix
from nuclass.models.gate_losses import auto_pos_weight, gate_loss, gate_targets
from nuclass.models.losses import EPSILON
from nuclass.training.branches import Branches, BranchOutputs, state_hash
from nuclass.training.checkpoint import new_gate
from nuclass.training.config import Gate, Optimizer, Trainer, parse_models, to_plain
from nuclass.training.fit import clear_work, fingerprint, fit
from nuclass.training.inputs import cells_by_slide, data_hash
from nuclass.training.metrics import summarise
from nuclass.training.optim import decays, make_optimizer, warmup_factor
from nuclass.training.train import write_outputs

_log = get_logger(__name__)
MONITOR = "val_log_loss"


class GateModule(pl.LightningModule):
    """The gate's loss on cached outputs; validation by the log loss of the mixture."""

    def __init__(self, model: GateModel, settings: Gate, pos_weight: float, seed: int) -> None:
        super().__init__()
        self.model, self.settings, self.pos_weight, self.seed = model, settings, pos_weight, seed
        self._val: list[tuple[Tensor, Tensor]] = []

    def on_train_epoch_start(self) -> None:
        """Seed dropout by the epoch."""
        torch.manual_seed(self.seed * 1009 + self.current_epoch)

    def gate_logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the gate's logits (B,)."""
        return self.model(batch["features_a"], batch["features_b"], batch["p_a"], batch["p_b"])

    def log_mixture(self, batch: dict[str, Tensor]) -> Tensor:
        """Return ``ln p_mix`` (B, C)."""
        g = torch.sigmoid(self.gate_logits(batch))
        return (mix(batch["p_a"], batch["p_b"], g) + EPSILON).log()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the sum of the gate's terms."""
        terms = self.settings.loss
        targets = gate_targets(
            batch["p_a"],
            batch["p_b"],
            batch["label"],
            soft_k=terms.soft_k,
            conflict_boost=terms.conflict_boost,
            delta_scale=terms.delta_scale,
            delta_gamma=terms.delta_gamma,
        )
        loss = gate_loss(
            self.gate_logits(batch),
            batch["p_a"],
            batch["p_b"],
            batch["label"],
            targets,
            pos_weight=self.pos_weight,
            mix_weight=terms.mix_weight,
            bce_weight=terms.bce_weight,
            align_weight=terms.align_weight,
            entropy_weight=terms.entropy_weight,
        ).total
        if not torch.isfinite(loss):
            raise UserError(
                "The gate's loss is not a finite number", where=f"epoch {self.current_epoch}, batch {batch_idx}"
            )
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["label"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Keep the mixture and the labels of a batch."""
        self._val.append((self.log_mixture(batch).cpu(), batch["label"].cpu()))

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
        groups = [
            {"params": [p for n, p in named if decays(n, p)], "lr": settings.lr, "weight_decay": settings.weight_decay},
            {"params": [p for n, p in named if not decays(n, p)], "lr": settings.lr, "weight_decay": 0.0},
        ]
        optimizer = make_optimizer(groups)
        shape = Optimizer(warmup_steps=settings.warmup_steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_factor(step, shape, 1))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train_gate(
    models: dict[str, Any],
    study: Study,
    local_checkpoint: Path,
    global_checkpoint: Path,
    out: Path,
    work: Path,
    seed: int,
) -> dict[str, Any]:
    """Train the gate and write its four files to ``out``; returns the metrics.

    Both branches run once over the val cells (and once more for each of ``gate.views`` augmented copies); the gate
    then trains on these outputs alone. A spatial part of val, ``gate.select`` of its cells, stops the training
    and gives the temperature of the mixture.
    """
    settings = parse_models(models)
    section = settings.gate
    branches = Branches(local_checkpoint, global_checkpoint, settings.predict)
    _, val, _ = load_training_cells(study)
    val = known_classes(val, branches.vocabulary, "the gate's cells")
    selecting = torch.from_numpy(select_blocks(val, section.select, section.block_um / study.mpp, seed))
    tensors = gate_inputs(branches, val, study, section.views, settings.global_.augment, seed)
    plain = {key: value[: len(val)] for key, value in tensors.items()}
    fitting = (~selecting).repeat(1 + section.views)
    fit_part = {key: value[fitting] for key, value in tensors.items()}
    select_part = {key: value[selecting] for key, value in plain.items()}
    torch.manual_seed(seed)
    model = new_gate(section, tensors["features_a"].shape[1], tensors["features_b"].shape[1])
    module = GateModule(model, section, positive_weight(section, fit_part), seed)
    run = Trainer(
        max_epochs=section.trainer.max_epochs,
        patience=section.trainer.patience,
        batch_size=section.trainer.batch_size,
        precision="32-true",
        accelerator="cpu",
    )
    parents = {"local": state_hash(branches.model_a), "global": state_hash(branches.model_b)}
    result = fit(
        module,
        GateData(fit_part, select_part, batch_size=run.batch_size, seed=seed),
        run,
        work=work,
        identity=fingerprint(GATE, to_plain(section), data_hash(study, val), parents, seed),
        description="gate",
        monitor=MONITOR,
        mode="min",
        grad_clip=section.optimizer.grad_clip,
    )
    module = module.cpu()
    with torch.inference_mode():
        log_p = module.log_mixture(select_part)
        g = torch.sigmoid(module.gate_logits(select_part))
    payload = {
        "model": GATE,
        "config": to_plain(section),
        **{key: branches.local[key] for key in ("classes", "organs", "mpp", "windows", "slides", "cells", "input")},
        "parents": parents,
        "dim_a": int(tensors["features_a"].shape[1]),
        "dim_b": int(tensors["features_b"].shape[1]),
        "fit_cells": cells_by_slide(val[~selecting.numpy()]),
        "select_cells": cells_by_slide(val[selecting.numpy()]),
    }
    extra = {
        "n_fit": int((~selecting).sum()),
        "n_select": int(selecting.sum()),
        "select": compare(select_part, g, branches.vocabulary),
    }
    metrics = write_outputs(out, payload, model, log_p, select_part["label"], result, extra)
    clear_work(work)
    return metrics


def gate_inputs(
    branches: Branches, val: pd.DataFrame, study: Study, views: int, augment: Any, seed: int
) -> dict[str, Tensor]:
    """Return features, calibrated probabilities and labels of val, the plain copy first, then ``views`` others."""
    dataset = branches.dataset(val, study, views=views > 0)
    stored = int(dataset.extra["context"].shape[1])
    if views and stored < 2:
        _log.warning("gate.views is %d, but no context features under augmentation were cached", views)
    copies: list[BranchOutputs] = []
    for view in range(1 + views):
        copies.append(
            branches.outputs(
                dataset,
                view=0 if view == 0 or stored < 2 else 1 + (view - 1) % (stored - 1),
                augment=augment if view else None,
                seed=seed * 101 + view,
                description=f"branches over val, copy {view + 1} of {1 + views}",
            )
        )
    merged = BranchOutputs(*(torch.cat(column) for column in zip(*copies, strict=True)))
    p_a, p_b = merged.probabilities(*branches.temperatures)
    return {
        "features_a": merged.features_a,
        "features_b": merged.features_b,
        "p_a": p_a,
        "p_b": p_b,
        "label": dataset.label.repeat(1 + views),
    }


def positive_weight(section: Gate, part: dict[str, Tensor]) -> float:
    """Return the BCE's weight of positives: the given number, or (1 - m) / m over the whole fitting part."""
    if section.loss.pos_weight != "auto":
        return float(section.loss.pos_weight)
    return auto_pos_weight(gate_targets(part["p_a"], part["p_b"], part["label"], soft_k=section.loss.soft_k).target)


def select_blocks(frame: pd.DataFrame, share: float, block_px: float, seed: int) -> NDArray[np.bool_]:
    """Mark the cells of randomly chosen square blocks until each slide's share is reached.

    Neighbours share windows, so the two parts are cut by place (``x_px y_px``, blocks of ``block_px``), not cell
    by cell. Every slide keeps at least one block on either side where it has two.
    """
    chosen = np.zeros(len(frame), bool)
    slides = frame["slide"].to_numpy()
    for number, slide in enumerate(dict.fromkeys(slides)):
        rows = np.flatnonzero(slides == slide)
        place = np.floor(frame.iloc[rows][["x_px", "y_px"]].to_numpy(float) / block_px).astype(np.int64)
        _, block, counts = np.unique(place, axis=0, return_inverse=True, return_counts=True)
        order = np.random.default_rng([seed, number]).permutation(len(counts))
        enough = np.searchsorted(np.cumsum(counts[order]), share * len(rows)) + 1
        keep = order[: max(1, min(enough, len(order) - 1))] if len(order) > 1 else order[:0]
        chosen[rows] = np.isin(block.ravel(), keep)
    if not chosen.any() or chosen.all():
        raise UserError(
            "The val cells cannot be cut into two parts for the gate",
            where="gate.select, gate.block_um",
            found=f"{int(chosen.sum())} of {len(frame)} cells selected",
            fix="use smaller blocks",
        )
    return chosen


def compare(part: dict[str, Tensor], g: Tensor, vocabulary: Any) -> dict[str, Any]:
    """Return the scores of both branches, their plain mean and the mixture, and how well the gate chooses."""
    p_a, p_b, labels = part["p_a"], part["p_b"], part["label"]
    mixtures = {"local": p_a, "global": p_b, "mean": (p_a + p_b) / 2, "mixture": mix(p_a, p_b, g)}
    scores = {
        name: {
            k: v
            for k, v in summarise((p + EPSILON).log(), labels, list(vocabulary.classes)).items()
            if k != "f1_per_class"
        }
        for name, p in mixtures.items()
    }
    right_a, right_b = p_a.argmax(1) == labels, p_b.argmax(1) == labels
    only_a, only_b = g[right_a & ~right_b], g[right_b & ~right_a]
    return {
        **scores,
        "only_local_right": len(only_a),
        "only_global_right": len(only_b),
        "gate_auroc": auroc(only_b, only_a),
        "gate_mean": float(g.mean()),
    }


def auroc(positive: Tensor, negative: Tensor) -> float | None:
    """Return P(positive > negative) + P(equal) / 2; None where either is empty."""
    if not len(positive) or not len(negative):
        return None
    difference = positive[:, None] - negative[None, :]
    return float((difference > 0).double().mean() + 0.5 * (difference == 0).double().mean())
