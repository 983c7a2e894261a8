"""Train the local and the global model: from the study's files to the four files of a trained model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nuclass.core.errors import UserError
from nuclass.core.jobs import code_of_job
from nuclass.core.log import get_logger
from nuclass.core.names import GLOBAL, LOCAL
from nuclass.core.progress import Progress
from nuclass.core.protocol import Protocol, switches_of
from nuclass.core.ranks import started_ranks
from nuclass.data.augment import to_unit
from nuclass.data.modules import GlobalData, Loading, LocalData
from nuclass.data.study import Study
from nuclass.data.vocabulary import UNKNOWN, Vocabulary
from nuclass.models.backbones import build_backbone
from nuclass.models.heads import NONE
from nuclass.models.local import LocalModel
from nuclass.models.losses import effective_number_weights
from nuclass.training.branches import autocast, choose_device, feature_attributes, state_hash
from nuclass.training.checkpoint import (
    backbone_facts,
    load_checkpoint,
    new_global,
    new_local,
    restore_local,
    same_names,
    weights_of,
)
from nuclass.training.compiling import compiles
from nuclass.training.config import Local, Models, Trainer, parse_models, to_plain
from nuclass.training.inputs import cells_by_slide, context_features, data_hash, stain_by_slide
from nuclass.training.interruption import leaving
from nuclass.training.outputs import cost_report, predict_logits, write_outputs
from nuclass.training.predict import check_unseen

_log = get_logger(__name__)

__all__ = ["train_global", "train_local", "write_outputs"]


def train_local(
    models: dict[str, Any],
    study: Study,
    out: Path,
    work: Path,
    seed: int,
    notes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
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
    notes
        Further plain values for the checkpoint, such as which baseline this is.

    Returns
    -------
    The content of ``metrics.json``; nothing in a process that is not the first of several.
    """
    from nuclass.training.modules import LocalModule

    settings = parse_models(models)
    section, run, protocol = settings.local, settings.local.trainer, settings.protocol
    side = input_side(section.backbone)
    data = LocalData(
        study,
        read_level=section.read_level,
        input_px=side,
        loading=loading(run, seed),
        test_as_val=protocol.test_as_val,
    )
    data.setup("fit")
    warn_of_settings(section, run, data)
    torch.manual_seed(seed)
    model = new_local(section, len(data.known.organs), len(data.known.classes))
    speed_up(model, run, len(data.train))
    weights = class_weights(data.train_set.label, data.known, section.loss.beta)
    digest = data_hash(study, data.train, data.val)
    module = LocalModule(model, section, weights, seed, protocol)
    payload = {
        # With what a folder or the hub told of the network, which need not be there when the checkpoint is loaded.
        "config": {**to_plain(section), "backbone": dict(model.backbone.settings)},
        **common_payload(study, data, protocol, LOCAL),
        **(notes or {}),
        "weights": weights_of(model.backbone),
        "input": {
            "size": study.windows["local"],
            "read_level": section.read_level,
            **backbone_facts(model.backbone),
        },
    }
    return fit_and_write(module, data, run, payload, identity(payload, data, digest, seed), out, work)


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

    Raises
    ------
    UserError
        When the local model is of other classes, organs or windows, or was fitted to cells that are val now.
    """
    from nuclass.training.modules import GlobalModule

    settings = parse_models(models)
    section, run, protocol = settings.global_, settings.global_.trainer, settings.protocol
    local = load_checkpoint(local_checkpoint, LOCAL)
    teacher = restore_local(local)
    data = global_data(study, local, teacher, settings, seed, work)
    data.read_cells()
    check_local(local, study, data.known, local_checkpoint)
    check_unseen(data.val, local)
    teacher_hash, digest = state_hash(teacher), data_hash(study, data.train, data.val)
    data.kept_key = " ".join(filter(None, [teacher_hash, settings.predict.precision, digest, code_of_job()]))
    with leaving(work):
        data.setup("fit")
    warn_of_settings(None, run, data)
    context_dim = int(data.train_set.extra["context"].shape[2])
    torch.manual_seed(seed)
    model = new_global(section, local["config"]["backbone"], context_dim, len(data.known.classes))
    model.backbone.load_state_dict(teacher.backbone.state_dict())
    speed_up(model, run, len(data.train))
    guard = not protocol.unguarded_class_weights
    weights = class_weights(data.train_set.label, data.known, section.loss.beta, guard=guard)
    module = GlobalModule(model, section, weights, seed, protocol, teacher)
    payload = {
        "config": to_plain(section),
        **common_payload(study, data, protocol, GLOBAL),
        **seen_by_global(study, settings, local, context_folder),
        "context_dim": context_dim,
    }
    parts = identity(payload, data, digest, seed) | {
        "local model": teacher_hash,
        "context features": [payload["features"], tensor_hash(data.val_set.extra["context"])],
        "views": [int(data.train_set.extra["context"].shape[1]) - 1, payload["context"]["augment"]],
    }
    return fit_and_write(module, data, run, payload, parts, out, work)


def seen_by_global(study: Study, settings: Models, local: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """Return what a global checkpoint holds on its two networks, ``local`` being the local model's checkpoint."""
    return {
        "weights": local.get("weights"),
        "input": dict(local["input"]),
        "backbone": local["config"]["backbone"],
        "context": to_plain(settings.context),
        "context_folder": str(folder) if folder else None,
        "features": feature_attributes(study, [row["slide"] for row in study.slides]),
        "alpha_schedule": {**to_plain(settings.global_.alpha), "end": 1.0},
    }


def identity(payload: dict[str, Any], data: LocalData, digest: str, seed: int) -> dict[str, Any]:
    """Return what the result of a run depends on, as plain values by name."""
    return {
        "model": payload["model"],
        "settings": payload["config"],
        "protocol": payload["protocol"],
        "cells and windows": digest,
        "vocabulary": data.known.to_dict(),
        "weights": payload["weights"],
        "seed": seed,
    }


def fit_and_write(
    module: Any, data: LocalData, run: Trainer, payload: dict[str, Any], parts: dict[str, Any], out: Path, work: Path
) -> dict[str, Any]:
    """Fit a module, write its four files, clear the running state; returns the metrics.

    Parameters
    ----------
    payload
        What the checkpoint holds besides weights and temperature.
    parts
        See :func:`identity`; a running state is taken up by a run of the same ones only.
    """
    from nuclass.training.fit import choose_accelerator, clear_work, fingerprint, fit
    from nuclass.training.launch import find_place
    from nuclass.training.modules import MONITOR

    place = find_place(run, choose_accelerator(run.accelerator))
    processes = place.per_node * place.nodes
    result = fit(
        module,
        data,
        run,
        work=work,
        identity=fingerprint(**parts, processes=processes),
        description=f"{payload['model']} model",
        monitor=MONITOR,
        grad_clip=module.optimizer_settings.grad_clip,
    )
    if not result.is_main:
        return {}
    model = module.model
    cost = cost_report(result.history, run, len(data.train), processes)
    with leaving(work):
        logits = predict_logits(module, data.whole_val_dataloader(), run.precision)
    if payload["model"] == GLOBAL:
        payload = {**payload, "alpha": float(model.alpha)}
    extra = {"n_train": len(data.train), **cost}
    metrics = write_outputs(out, payload, model, logits, data.val_set.label, result, extra)
    clear_work(work)
    return metrics


def global_data(
    study: Study, local: dict[str, Any], teacher: LocalModel, settings: Models, seed: int, work: Path
) -> GlobalData:
    """Return the data of the global model: windows as the local model ``local`` (a checkpoint) reads them."""
    run = settings.global_.trainer
    return GlobalData(
        study,
        read_level=local["input"]["read_level"],
        input_px=local["input"]["input_px"],
        loading=loading(run, seed),
        test_as_val=settings.protocol.test_as_val,
        context=lambda frame, views: context_features(frame, study, views=views),
        teacher=lambda windows: teacher_logits(teacher, windows, run, settings),
        kept=work / "teacher",
    )


def loading(run: Trainer, seed: int) -> Loading:
    """Return how batches are made by the settings of a run."""
    return Loading(run.batch_size, run.workers, run.memory_mb, run.balance, seed)


def input_side(backbone: dict[str, Any]) -> int:
    """Return the side of the images that a backbone takes, without building its weights."""
    with torch.device("meta"):
        return build_backbone(backbone, load_weights=False).input_px


def class_weights(labels: Tensor, vocabulary: Any, beta: float, *, guard: bool = True) -> Tensor:
    """Return the effective-number weights (C,) of training labels."""
    return effective_number_weights(torch.bincount(labels, minlength=len(vocabulary.classes)), beta, guard=guard)


def common_payload(study: Study, data: LocalData, protocol: Protocol, stage: str) -> dict[str, Any]:
    """Return what both checkpoints hold besides their model: vocabulary, scale, cells, stain, flaws that are on."""
    return {
        "model": stage,
        **data.known.to_dict(),
        "mpp": study.mpp,
        "windows": dict(study.windows),
        "slides": {row["slide"]: row["organ"] for row in study.slides},
        "cells": cells_by_slide(data.train, data.val),
        "stain": stain_by_slide(study, data.train),
        "protocol": switches_of(protocol, stage),
    }


def speed_up(model: Any, run: Trainer, cells: int) -> None:
    """Apply the settings that change speed and memory alone: gradient checkpointing and compilation.

    The backbone is compiled in place: names of weights stay as they are. ``cells`` are those of an epoch.
    """
    if run.gradient_checkpointing:
        model.backbone.checkpoint_gradients()
    on_gpu = run.accelerator != "cpu" and torch.cuda.is_available()
    # A trial on another process's GPU would take memory of it.
    own = started_ranks().local_rank % torch.cuda.device_count() if on_gpu else 0
    device = torch.device("cuda", own) if on_gpu else torch.device("cpu")
    if compiles(run.compile, device, model.backbone, cells * run.max_epochs):
        model.backbone.compile()


def warn_of_settings(section: Local | None, run: Trainer, data: LocalData) -> None:
    """Log what works but may not be what was meant: an unknown organ never trained, batches never full."""
    if section is not None and section.model.organ != NONE and section.model.organ_dropout == 0:
        seen = data.train_set.organ.unique().tolist()
        if UNKNOWN in data.known.organs and data.known.organs.index(UNKNOWN) not in seen:
            _log.warning(
                "organ_dropout is 0: the unknown organ is never trained, and cells of an organ that is none of %s "
                "will be typed by random numbers",
                ", ".join(name for name in data.known.organs if name != UNKNOWN),
            )
    if run.batch_size > len(data.train):
        _log.warning(
            "batch_size is %d, but there are %d train cells: each batch holds all", run.batch_size, len(data.train)
        )


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
    teacher.cpu()
    return torch.cat(parts)


def check_local(checkpoint: dict[str, Any], study: Study, vocabulary: Vocabulary, where: object) -> None:
    """Raise when a local checkpoint was trained on other classes or organs, or at another scale or window size."""
    for key, names in vocabulary.to_dict().items():
        same_names(
            checkpoint[key],
            names,
            key,
            where=where,
            problem=f"The local model has other {key} than the training cells",
            fix="train the local model again on the same slides and labels",
        )
    found = f"{checkpoint['input']['size']} px at {checkpoint['mpp']:g} um/px"
    expected = f"{study.windows['local']} px at {study.mpp:g} um/px"
    if found != expected:
        raise UserError(
            "The local model saw other windows than the study has",
            where=where,
            found=found,
            expected=expected,
            fix="train the local model again on this study",
        )


def tensor_hash(values: Tensor) -> str:
    """Return a hash of a tensor's values."""
    import hashlib

    return hashlib.sha256(values.cpu().float().contiguous().numpy().tobytes()).hexdigest()[:16]
