"""Checkpoints: one file that holds all that a model needs to be used, loadable without the training data."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nuclass
from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path
from nuclass.models.backbones import build_backbone
from nuclass.models.gate import GateModel
from nuclass.models.global_ import GlobalModel
from nuclass.models.local import LocalModel
from nuclass.training import config as settings_

FORMAT = 1


def save_checkpoint(path: Path, payload: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
    """Write a checkpoint of plain values and tensors (readable with ``weights_only=True``), atomically."""
    versions = {"nuclass": nuclass.__version__, "torch": torch.__version__, "python": platform.python_version()}
    data = {"format": FORMAT, "versions": {k: str(v) for k, v in versions.items()}, **payload}
    data["state"] = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    with atomic_path(path) as temporary:
        torch.save(data, temporary)


def load_checkpoint(path: str | Path, model: str) -> dict[str, Any]:
    """Read a checkpoint of one of the three models.

    Raises
    ------
    UserError
        When the file is missing, broken, of another model or of a newer format.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"The checkpoint of the {model} model is missing", where=file, fix="train the model first")
    try:
        data = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError("A checkpoint cannot be read", where=file, found=str(error).splitlines()[0]) from error
    if not isinstance(data, dict) or "format" not in data or "state" not in data:
        raise UserError("A file is not a checkpoint of this workflow", where=file, expected="a file named best.ckpt")
    if data["format"] > FORMAT:
        raise UserError("A checkpoint is newer than this program", where=file, found=data["format"], expected=FORMAT)
    if data["model"] != model:
        raise UserError("A checkpoint is of another model", where=file, found=data["model"], expected=model)
    return data


def load_state(module: nn.Module, state: dict[str, torch.Tensor], where: object) -> None:
    """Load weights strictly; a misfit names its first tensor."""
    own = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items()}
    wrong = sorted(key for key in own.keys() | given.keys() if own.get(key) != given.get(key))
    if wrong:
        raise UserError(
            "A checkpoint's weights do not fit the architecture it names",
            where=where,
            found=f"{len(wrong)} tensors missing, unknown or of another shape, the first: {wrong[0]}",
            fix="train the model again with this version",
        )
    module.load_state_dict(state, strict=True)


def restore_local(checkpoint: dict[str, Any]) -> LocalModel:
    """Return the local model of a checkpoint, in eval mode."""
    section = settings_.from_plain(settings_.Local, checkpoint["config"], "the local checkpoint")
    model = new_local(section, len(checkpoint["organs"]), len(checkpoint["classes"]), load_weights=False)
    load_state(model, checkpoint["state"], "the local checkpoint")
    return model.eval()


def restore_global(checkpoint: dict[str, Any]) -> GlobalModel:
    """Return the global model of a checkpoint, in eval mode."""
    section = settings_.from_plain(settings_.Global, checkpoint["config"], "the global checkpoint")
    model = new_global(section, checkpoint["backbone"], checkpoint["context_dim"], len(checkpoint["classes"]))
    load_state(model, checkpoint["state"], "the global checkpoint")
    return model.eval()


def restore_gate(checkpoint: dict[str, Any]) -> GateModel:
    """Return the gate of a checkpoint, in eval mode."""
    section = settings_.from_plain(settings_.Gate, checkpoint["config"], "the gate checkpoint")
    model = new_gate(section, checkpoint["dim_a"], checkpoint["dim_b"])
    load_state(model, checkpoint["state"], "the gate checkpoint")
    return model.eval()


def new_local(section: settings_.Local, n_organs: int, n_classes: int, *, load_weights: bool = True) -> LocalModel:
    """Build a local model from its settings."""
    net = section.model
    return LocalModel(
        build_backbone(section.backbone, load_weights=load_weights),
        n_organs,
        n_classes,
        organ_dim=net.organ_dim,
        hidden=net.hidden,
        dropout=net.dropout,
        organ_dropout=net.organ_dropout,
    )


def new_global(section: settings_.Global, backbone: dict[str, Any], context_dim: int, n_classes: int) -> GlobalModel:
    """Build a global model without weights; ``backbone`` are the local model's backbone settings."""
    net = section.model
    return GlobalModel(
        build_backbone(backbone, load_weights=False),
        context_dim,
        n_classes,
        project=net.project,
        hidden=net.hidden,
        gate_hidden=net.gate_hidden,
        dropout=net.dropout,
        context_dropout=net.context_dropout,
    )


def new_gate(section: settings_.Gate, dim_a: int, dim_b: int) -> GateModel:
    """Build a gate from its settings."""
    net = section.model
    return GateModel(dim_a, dim_b, project=net.project, hidden=net.hidden, dropout=net.dropout)
