"""What a fitted model leaves behind: logits of the val cells, temperature, metrics, the four files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from nuclass.core.files import write_csv, write_json
from nuclass.core.log import get_logger
from nuclass.data.augment import to_unit
from nuclass.models.backbones import count_parameters
from nuclass.models.losses import TEMPERATURES, find_temperature
from nuclass.training.branches import autocast
from nuclass.training.checkpoint import save_checkpoint
from nuclass.training.config import Trainer
from nuclass.training.metrics import calibration_error, summarise

_log = get_logger(__name__)
_AT_BOUND = {
    "low": "the val cells bear any confidence, as where all are classified right; more of them would tell",
    "high": "the logits tell nothing about the val cells",
}


@torch.inference_mode()
def predict_logits(module: Any, loader: Any, precision: str) -> Tensor:
    """Return the logits (N, C) of a fitted module over a loader, float32 on the CPU."""
    device = next(module.parameters()).device
    parts = []
    for batch in loader:
        moved = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        with autocast(device, precision):
            logits = module.logits(moved, to_unit(moved["image"]))
        parts.append(logits.float().cpu())
    return torch.cat(parts)


def cost_report(history: list[dict[str, Any]], run: Trainer, n_train: int, processes: int = 1) -> dict[str, Any]:
    """Return what training took, interrupted runs included.

    Parameters
    ----------
    history
        Rows with ``train_seconds`` and ``train_cells`` since the row before, and ``memory_mb``.
    n_train
        Training cells of an epoch.
    processes
        That trained together.

    Returns
    -------
    ``effective_batch_size`` (cells an optimizer step, over all processes), ``seconds_per_epoch`` and
    ``cells_per_second`` of training without validation, and the peak of ``memory_mb``, of 10^6 bytes: of tensors on
    the GPU where training ran on one, else of all that the process held.
    """
    seconds = sum(row["train_seconds"] for row in history)
    cells = sum(row["train_cells"] for row in history)
    rate = cells / max(seconds, 1e-9)
    return {
        "effective_batch_size": min(run.batch_size, n_train) * run.accumulate * processes,
        "seconds_per_epoch": round(n_train / max(rate, 1e-9), 3),
        "cells_per_second": round(rate, 1),
        "memory_mb": max(row["memory_mb"] for row in history),
    }


def write_outputs(
    out: Path,
    payload: dict[str, Any],
    model: torch.nn.Module,
    logits: Tensor,
    labels: Tensor,
    result: Any,
    extra: dict[str, Any],
) -> dict[str, Any]:
    """Write a trained model's four files; returns the metrics.

    ``logits`` (N, C) and ``labels`` (N,) are those of the cells that the temperature is fitted on.
    """
    calibration = calibration_report(logits, labels)
    temperature = calibration["temperature"]
    metrics = {
        "model": payload["model"],
        "val": summarise(logits, labels, payload["classes"]),
        "best": result.best,
        "epochs": len(result.history),
        "seconds": round(result.seconds, 1),
        "parameters": count_parameters(model),
        "temperature": temperature,
        **extra,
    }
    save_checkpoint(out / "best.ckpt", {**payload, "temperature": temperature}, model.state_dict())
    write_csv(out / "history.csv", pd.DataFrame(result.history), float_format="%.6g")
    write_json(out / "calibration.json", calibration)
    write_json(out / "metrics.json", metrics)
    if calibration["at_bound"]:
        _log.warning(
            "%s: the temperature ran into an end of its range, %g: %s",
            payload["model"], temperature, _AT_BOUND[calibration["at_bound"]],
        )  # fmt: skip
    _log.info(
        "%s: val macro-F1 %.3f, log loss %.3f, temperature %.2f",
        payload["model"], metrics["val"]["f1_macro"], calibration["log_loss_after"], temperature,
    )  # fmt: skip
    return metrics


def calibration_report(logits: Tensor, labels: Tensor, bins: int = 15) -> dict[str, Any]:
    """Return the temperature of logits (N, C), with log loss and expected calibration error before and after it.

    ``at_bound`` is ``low`` or ``high`` where the temperature ran into that end of its ``range``, else None.
    """
    temperature, bound = find_temperature(logits, labels)
    scaled = logits / temperature
    return {
        "temperature": temperature,
        "range": list(TEMPERATURES),
        "at_bound": bound,
        "n": len(labels),
        "bins": bins,
        "log_loss_before": float(F.cross_entropy(logits, labels)),
        "log_loss_after": float(F.cross_entropy(scaled, labels)),
        "ece_before": calibration_error(logits.softmax(1), labels, bins),
        "ece_after": calibration_error(scaled.softmax(1), labels, bins),
    }
