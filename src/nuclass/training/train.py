"""Train the local and the global model: from the study's files to the four files of a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from nuclass.core.files import write_csv, write_json
from nuclass.core.log import get_logger
from nuclass.core.names import GLOBAL, LOCAL
from nuclass.core.progress import Progress
from nuclass.data.augment import to_unit
from nuclass.data.modules import GlobalData, Loading, LocalData
from nuclass.data.study import Study
from nuclass.models.backbones import build_backbone, count_parameters
from nuclass.models.losses import effective_number_weights, fit_temperature
from nuclass.training.branches import autocast, choose_device, feature_attributes, state_hash
from nuclass.training.checkpoint import load_checkpoint, new_global, new_local, restore_local, save_checkpoint
from nuclass.training.config import Models, Trainer, parse_models, to_plain
from nuclass.training.inputs import cells_by_slide, context_features, data_hash
from nuclass.training.metrics import calibration_error, summarise

_log = get_logger(__name__)


def train_local(models: dict[str, Any], study: Study, out: Path, work: Path, seed: int) -> dict[str, Any]:
    """Train the local model and write ``best.ckpt metrics.json history.csv calibration.json`` to ``out``.

    Parameters
    ----------
    models
        Content of a model file (see :mod:`nuclass.training.config`).
    study
        Training slides, results folder, scale.
    out, work
        Output folder; folder of the running state, from which a killed run goes on.
    seed
        Same seed, same machine, same result.

    Returns
    -------
    The content of ``metrics.json``.
    """
    from nuclass.training.fit import clear_work, fingerprint, fit
    from nuclass.training.modules import MONITOR, LocalModule

    settings = parse_models(models)
    section, run = settings.local, settings.local.trainer
    side = input_side(section.backbone)
    data = LocalData(study, read_level=section.read_level, input_px=side, loading=loading(run, seed))
    data.setup("fit")
    vocabulary, labels = data.known, data.train_set.label
    torch.manual_seed(seed)
    model = new_local(section, len(vocabulary.organs), len(vocabulary.classes))
    speed_up(model, run)
    module = LocalModule(model, section, class_weights(labels, vocabulary, section.loss.beta), seed)
    result = fit(
        module,
        data,
        run,
        work=work,
        identity=fingerprint(
            LOCAL, to_plain(section), data_hash(study, data.train, data.val), vocabulary.to_dict(), seed
        ),
        description="local model",
        monitor=MONITOR,
        grad_clip=section.optimizer.grad_clip,
    )
    logits = predict_logits(module, data.val_dataloader(), run.precision)
    payload = {
        "model": LOCAL,
        "config": to_plain(section),
        **common_payload(study, vocabulary, data.train, data.val),
        "input": {
            "size": study.windows["local"],
            "read_level": section.read_level,
            "input_px": model.backbone.input_px,
        },
    }
    metrics = write_outputs(out, payload, model, logits, data.val_set.label, result, {"n_train": len(data.train)})
    clear_work(work)
    return metrics


def train_global(
    models: dict[str, Any],
    study: Study,
    local_checkpoint: Path,
    out: Path,
    work: Path,
    seed: int,
    context_folder: Path | None = None,
) -> dict[str, Any]:
    """Train the global model on cached context features and its own copy of the local backbone.

    Parameters
    ----------
    local_checkpoint
        ``best.ckpt`` of the local model: the backbone's start, and the frozen teacher of the guided loss.

    context_folder
        Folder of the context backbone where the study trained its own; noted in the checkpoint.

    Other parameters and the result are those of :func:`train_local`.
    """
    from nuclass.training.fit import clear_work, fingerprint, fit
    from nuclass.training.modules import MONITOR, GlobalModule

    settings = parse_models(models)
    section, run = settings.global_, settings.global_.trainer
    teacher_ckpt = load_checkpoint(local_checkpoint, LOCAL)
    teacher = restore_local(teacher_ckpt)
    data = GlobalData(
        study,
        read_level=teacher_ckpt["input"]["read_level"],
        input_px=teacher_ckpt["input"]["input_px"],
        loading=loading(run, seed),
        context=lambda frame, views: context_features(frame, study, views=views),
        teacher=lambda windows: teacher_logits(teacher, windows, run, settings),
    )
    data.read_cells()
    vocabulary = data.known
    same_vocabulary(teacher_ckpt, vocabulary, local_checkpoint)
    data.setup("fit")
    context_dim = int(data.train_set.extra["context"].shape[2])
    torch.manual_seed(seed)
    model = new_global(section, teacher_ckpt["config"]["backbone"], context_dim, len(vocabulary.classes))
    model.backbone.load_state_dict(teacher.backbone.state_dict())
    speed_up(model, run)
    module = GlobalModule(model, section, class_weights(data.train_set.label, vocabulary, section.loss.beta), seed)
    result = fit(
        module,
        data,
        run,
        work=work,
        identity=fingerprint(
            GLOBAL,
            to_plain(section),
            data_hash(study, data.train, data.val),
            vocabulary.to_dict(),
            seed,
            state_hash(teacher),
            tensor_hash(data.val_set.extra["context"]),
        ),
        description="global model",
        monitor=MONITOR,
        grad_clip=section.optimizer.grad_clip,
    )
    logits = predict_logits(module, data.val_dataloader(), run.precision)
    payload = {
        "model": GLOBAL,
        "config": to_plain(section),
        **common_payload(study, vocabulary, data.train, data.val),
        "input": dict(teacher_ckpt["input"]),
        "backbone": teacher_ckpt["config"]["backbone"],
        "context": to_plain(settings.context),
        "context_folder": str(context_folder) if context_folder else None,
        "features": feature_attributes(study, [row["slide"] for row in study.slides]),
        "context_dim": context_dim,
        "alpha": float(model.alpha),
    }
    metrics = write_outputs(out, payload, model, logits, data.val_set.label, result, {"n_train": len(data.train)})
    clear_work(work)
    return metrics


def loading(run: Trainer, seed: int) -> Loading:
    """Return how batches are made by the settings of a run."""
    return Loading(run.batch_size, run.workers, run.memory_mb, run.balance, seed)


def input_side(backbone: dict[str, Any]) -> int:
    """Return the side of the images that a backbone takes, without building its weights."""
    with torch.device("meta"):
        return build_backbone(backbone, load_weights=False).input_px


def class_weights(labels: Tensor, vocabulary: Any, beta: float) -> Tensor:
    """Return the effective-number weights (C,) of training labels."""
    return effective_number_weights(torch.bincount(labels, minlength=len(vocabulary.classes)), beta)


def common_payload(study: Study, vocabulary: Any, train: pd.DataFrame, val: pd.DataFrame) -> dict[str, Any]:
    """Return what every checkpoint holds besides its model: vocabulary, scale, cells."""
    return {
        **vocabulary.to_dict(),
        "mpp": study.mpp,
        "windows": dict(study.windows),
        "slides": {row["slide"]: row["organ"] for row in study.slides},
        "cells": cells_by_slide(train, val),
    }


def speed_up(model: Any, run: Trainer) -> None:
    """Apply the settings that change speed and memory alone: gradient checkpointing and compilation."""
    if run.gradient_checkpointing:
        model.backbone.checkpoint_gradients()
    if run.compile:
        model.compile()


@torch.inference_mode()
def predict_logits(module: Any, loader: Any, precision: str) -> Tensor:
    """Return the logits (N, C) of a fitted module over a loader, float32 on the CPU."""
    device = _device_of(module)
    parts = []
    for batch in loader:
        moved = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        with autocast(device, precision):
            logits = module.logits(moved, to_unit(moved["image"]))
        parts.append(logits.float().cpu())
    return torch.cat(parts)


@torch.inference_mode()
def teacher_logits(teacher: torch.nn.Module, dataset: Any, run: Trainer, settings: Models) -> Tensor:
    """Return the frozen local model's logits (N, C) of a dataset's plain windows, computed once."""
    from nuclass.data import make_loader

    device = choose_device(settings.predict.accelerator)
    teacher = teacher.to(device).eval()
    parts = []
    with Progress(len(dataset), "the local model's opinion", "cells") as progress:
        on_gpu = device.type == "cuda"
        for batch in make_loader(dataset, settings.predict.batch_size, num_workers=run.workers, pin_memory=on_gpu):
            with autocast(device, settings.predict.precision):
                image, organ = (batch[key].to(device, non_blocking=True) for key in ("image", "organ"))
                logits = teacher(to_unit(image), organ).logits
            parts.append(logits.float().cpu())
            progress.advance(len(logits))
    return torch.cat(parts)


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
    temperature = fit_temperature(logits, labels)
    calibration = calibration_report(logits, labels, temperature)
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
    _log.info(
        "%s: val macro-F1 %.3f, log loss %.3f, temperature %.2f",
        payload["model"], metrics["val"]["f1_macro"], calibration["log_loss_after"], temperature,
    )  # fmt: skip
    return metrics


def calibration_report(logits: Tensor, labels: Tensor, temperature: float, bins: int = 15) -> dict[str, Any]:
    """Return the temperature with log loss and expected calibration error before and after it."""
    import torch.nn.functional as F

    scaled = logits / temperature
    return {
        "temperature": temperature,
        "n": len(labels),
        "bins": bins,
        "log_loss_before": float(F.cross_entropy(logits, labels)),
        "log_loss_after": float(F.cross_entropy(scaled, labels)),
        "ece_before": calibration_error(logits.softmax(1), labels, bins),
        "ece_after": calibration_error(scaled.softmax(1), labels, bins),
    }


def same_vocabulary(checkpoint: dict[str, Any], vocabulary: Any, where: object) -> None:
    """Raise when a checkpoint was trained on other classes or organs."""
    from nuclass.core.errors import UserError

    for key, names in vocabulary.to_dict().items():
        if list(checkpoint[key]) != names:
            raise UserError(
                f"A checkpoint has other {key} than the training cells",
                where=where,
                found=", ".join(checkpoint[key]),
                expected=", ".join(names),
                fix="train the local model again on the same slides and labels",
            )


def tensor_hash(values: Tensor) -> str:
    """Return a hash of a tensor's values."""
    import hashlib

    return hashlib.sha256(values.cpu().float().contiguous().numpy().tobytes()).hexdigest()[:16]


def _device_of(module: torch.nn.Module) -> torch.device:
    return next(module.parameters()).device
