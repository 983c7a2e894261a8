"""Train the gate on cells that neither branch was fitted to: val, cut into a fitting and a selecting part."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nuclass.core.errors import UserError
from nuclass.core.files import remove_state
from nuclass.core.log import get_logger
from nuclass.core.names import GATE
from nuclass.core.protocol import STAGES, switches_of
from nuclass.core.ranks import started_ranks
from nuclass.data.modules import GateData
from nuclass.data.study import Study
from nuclass.models.gate import FusedModel, mix
from nuclass.models.gate_losses import auto_pos_weight, gate_targets
from nuclass.models.losses import EPSILON
from nuclass.training.branches import Branches, feature_attributes, state_hash
from nuclass.training.config import Gate, Models, Trainer, parse_models, to_plain
from nuclass.training.fit import FitResult, clear_work, fingerprint, fit
from nuclass.training.gate_cells import GateCells, gate_cells, select_blocks, shared_pixels
from nuclass.training.gate_inputs import GateInputs, gate_inputs
from nuclass.training.gate_module import MONITOR, Fused, GateModule
from nuclass.training.inputs import cells_by_slide
from nuclass.training.joint import Chosen, JointModule, choose, joint_module, joint_section
from nuclass.training.metrics import summarise
from nuclass.training.outputs import write_outputs
from nuclass.training.restore import new_gate

__all__ = ["GateModule", "auroc", "select_blocks", "train_gate"]
_log = get_logger(__name__)


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

    Both branches run once over the gate's cells (and once more for each of ``gate.views`` augmented copies); the gate
    then trains on these outputs alone. A spatial part of val, ``gate.select`` of its cells, stops the training
    and gives the temperature of the mixture. With ``gate.joint.max_epochs`` the heads of both models learn too, in
    copies that the gate's checkpoint keeps where the selecting part says that they are better.

    Parameters
    ----------
    models, study, out, work, seed
        See :func:`nuclass.training.train.train_local`.
    local_checkpoint, global_checkpoint
        ``best.ckpt`` of both models; they are not changed.

    Raises
    ------
    UserError
        When a model was fitted to a cell that the gate would learn from or be chosen by, files do not fit each other,
        or torchrun or srun started several processes.
    """
    _check_alone()
    settings = parse_models(models)
    section = settings.gate
    if settings.protocol.frozen_heads and not section.joint.max_epochs:
        _log.warning("protocol.frozen_heads changes nothing, for gate.joint.max_epochs is 0")
    branches = Branches(local_checkpoint, global_checkpoint, settings.predict)
    cells = gate_cells(study, branches, section, settings.protocol, seed)
    inputs = gate_inputs(
        branches,
        cells,
        study,
        work / "inputs",
        views=section.views,
        augment=settings.global_.augment,
        seed=seed,
        joint=section.joint.max_epochs > 0,
        protocol=settings.protocol,
    )
    gate, result = _fit_gate(settings, inputs, work, seed)
    joint = None
    if section.joint.max_epochs:
        joint, later = _fit_joint(settings, gate, branches, inputs, work)
        result = _joined(result, later)
    chosen = choose(gate, joint, branches.temperatures, inputs.selecting)
    if joint is not None and chosen.model is gate.model:
        result = dataclasses.replace(result, best=_best(result, "gate"))
    extra = {
        "n_fit": len(cells.fitting),
        "n_select": len(cells.selecting),
        "select_shares_pixels": shared_pixels(cells, study.windows),
        "select": compare(chosen.fused, inputs.selecting["label"], branches.vocabulary),
        **({"joint": chosen.report} if joint is not None else {}),
    }
    payload = _payload(settings, study, branches, cells, chosen, inputs)
    labels = inputs.selecting["label"]
    metrics = write_outputs(out, payload, chosen.model, chosen.fused.log_p, labels, result, extra)
    remove_state(work / "inputs")
    for folder in (work / "gate", work / "joint"):
        clear_work(folder)
    return metrics


def _check_alone() -> None:
    """Raise in one of several processes: each would run the branches over all cells, into the same files."""
    started = started_ranks()
    if started.world_size > 1:
        raise UserError(
            "The gate trains in one process",
            where=f"started by {started.by}",
            found=f"{started.world_size} processes",
            fix="start it alone; it takes seconds an epoch once both models ran over its cells",
        )


def _fit_gate(settings: Models, inputs: GateInputs, work: Path, seed: int) -> tuple[GateModule, FitResult]:
    """Fit the gate."""
    section, protocol = settings.gate, settings.protocol
    torch.manual_seed(seed)
    model = new_gate(section, inputs.fitting["features_a"].shape[1], inputs.fitting["features_b"].shape[1])
    weight = positive_weight(section, inputs.fitting)
    module = GateModule(model, section, seed, pos_weight=weight, protocol=protocol)
    parts = {"settings": _alone(section), "inputs": inputs.key, "protocol": dataclasses.asdict(protocol)}
    return module, _fit(module, section, inputs, work / "gate", fingerprint(GATE, **parts, seed=seed), "gate")


def _fit_joint(
    settings: Models, gate: GateModule, branches: Branches, inputs: GateInputs, work: Path
) -> tuple[JointModule, FitResult]:
    """Fine-tune the heads of both models together with the fitted gate."""
    module = joint_module(gate, branches)
    identity = fingerprint(
        "joint",
        settings=to_plain(settings.gate),
        gate=state_hash(gate.model),
        temperatures=branches.temperatures,
        inputs=inputs.key,
        protocol=dataclasses.asdict(settings.protocol),
        seed=gate.seed,
    )
    section = joint_section(settings.gate)
    return module, _fit(module, section, inputs, work / "joint", identity, "gate and heads")


def _alone(section: Gate) -> dict[str, Any]:
    """Return the settings that the gate itself depends on."""
    return {key: value for key, value in to_plain(section).items() if key != "joint"}


def _fit(
    module: GateModule, section: Gate, inputs: GateInputs, work: Path, identity: str, description: str
) -> FitResult:
    run = Trainer(
        max_epochs=section.trainer.max_epochs,
        patience=section.trainer.patience,
        batch_size=section.trainer.batch_size,
        precision="32-true",
        accelerator="cpu",
    )
    result = fit(
        module,
        GateData(inputs.fitting, inputs.selecting, batch_size=run.batch_size, seed=module.seed),
        run,
        work=work,
        identity=identity,
        description=description,
        monitor=MONITOR,
        mode="min",
        grad_clip=section.optimizer.grad_clip,
    )
    module.cpu().eval()
    return result


def _joined(gate: FitResult, joint: FitResult) -> FitResult:
    """Return both histories, one after the other, and the best row of the joint one."""
    history = [{"phase": "gate", **row} for row in gate.history] + [{"phase": "joint", **row} for row in joint.history]
    return dataclasses.replace(
        joint, history=history, best={"phase": "joint", **joint.best}, seconds=gate.seconds + joint.seconds
    )


def _best(result: FitResult, phase: str) -> dict[str, Any]:
    rows = [row for row in result.history if row["phase"] == phase]
    best: dict[str, Any] = min(rows, key=lambda row: row[MONITOR])
    return best


def _payload(
    settings: Models, study: Study, branches: Branches, cells: GateCells, chosen: Chosen, inputs: GateInputs
) -> dict[str, Any]:
    """Return what the gate's checkpoint holds besides its weights and the temperature of the mixture."""
    smaller = settings.protocol.smaller_gate_context
    shared = ("classes", "organs", "mpp", "slides", "cells", "input")
    return {
        "model": GATE,
        "config": to_plain(settings.gate),
        **{key: branches.local[key] for key in shared},
        "windows": branches.global_["windows"],
        "weights": branches.local.get("weights"),
        "protocol": switches_of(settings.protocol, *STAGES),
        "parents": {"local": state_hash(branches.model_a), "global": state_hash(branches.model_b)},
        "temperatures": dict(zip(("local", "global"), chosen.temperatures, strict=True)),
        "dim_a": int(inputs.fitting["features_a"].shape[1]),
        "dim_b": int(inputs.fitting["features_b"].shape[1]),
        "heads": chosen.model.sizes.to_dict() if isinstance(chosen.model, FusedModel) else None,
        "features": feature_attributes(study, [str(row["slide"]) for row in study.slides], smaller=smaller),
        "fit_cells": cells_by_slide(cells.fitting),
        "select_cells": cells_by_slide(cells.selecting),
    }


def positive_weight(section: Gate, part: dict[str, Tensor]) -> float:
    """Return the BCE's weight of positives: the given number, or (1 - m) / m over the whole fitting part."""
    if section.loss.pos_weight != "auto":
        return float(section.loss.pos_weight)
    return auto_pos_weight(gate_targets(part["p_a"], part["p_b"], part["label"], soft_k=section.loss.soft_k).target)


def compare(fused: Fused, labels: Tensor, vocabulary: Any) -> dict[str, Any]:
    """Return the scores of both branches, their plain mean and the mixture, and how well the gate chooses."""
    p_a, p_b, g = fused.p_a, fused.p_b, fused.g
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
    """Return P(positive > negative) + P(equal) / 2, by ranks; None where either is empty."""
    if not len(positive) or not len(negative):
        return None
    below, ordered = negative.sort().values, positive.contiguous()
    smaller = torch.searchsorted(below, ordered, right=False).double()
    not_larger = torch.searchsorted(below, ordered, right=True).double()
    return float((smaller + not_larger).mean() / 2 / len(negative))
