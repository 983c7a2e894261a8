"""Models from settings, and from checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from nuclass.core.errors import UserError
from nuclass.models.backbones import build_backbone
from nuclass.models.gate import FusedModel, GateModel, HeadSizes
from nuclass.models.global_ import GlobalModel
from nuclass.models.heads import CONCAT
from nuclass.models.linear import LinearHead
from nuclass.models.local import LocalModel
from nuclass.training import config as settings_

Model = TypeVar("Model", bound=nn.Module)


class _Uninitialised(TorchFunctionMode):
    """Leave parameters as they were allocated, for the weights of a checkpoint take their place.

    Random numbers for 681 million parameters take 10 s and memory that is never used.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        changed = args[0] if args else kwargs.get("tensor")
        fills = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        return changed if fills and isinstance(changed, nn.Parameter) else func(*args, **kwargs)


def restore_local(checkpoint: dict[str, Any]) -> LocalModel:
    """Return the local model of a checkpoint, in eval mode; its weights are the checkpoint's tensors."""
    section = settings_.from_plain(settings_.Local, checkpoint["config"], "the local checkpoint")
    return _restored(
        lambda: new_local(section, len(checkpoint["organs"]), len(checkpoint["classes"]), load_weights=False),
        checkpoint,
    )


def restore_global(checkpoint: dict[str, Any]) -> GlobalModel:
    """Return the global model of a checkpoint, in eval mode; its weights are the checkpoint's tensors.

    Alpha is the stored one. Under ``protocol.alpha_reset`` it is that of the first epoch, as in the original, where
    it follows from the epoch that a loaded model believes to be in.
    """
    section = settings_.from_plain(settings_.Global, checkpoint["config"], "the global checkpoint")
    model = _restored(
        lambda: new_global(section, checkpoint["backbone"], checkpoint["context_dim"], len(checkpoint["classes"])),
        checkpoint,
    )
    if checkpoint.get("protocol", {}).get("alpha_reset"):
        model.alpha = torch.full_like(model.alpha, section.alpha.start)
    return model


def restore_gate(checkpoint: dict[str, Any]) -> GateModel:
    """Return the gate of a checkpoint, in eval mode; a :class:`FusedModel` where it has heads of its own."""
    section = settings_.from_plain(settings_.Gate, checkpoint["config"], "the gate checkpoint")
    heads = checkpoint.get("heads")
    if not heads:
        return _restored(lambda: new_gate(section, checkpoint["dim_a"], checkpoint["dim_b"]), checkpoint)
    return _restored(lambda: FusedModel(HeadSizes(**heads), **gate_options(section)), checkpoint)


def restore_linear(checkpoint: dict[str, Any]) -> LinearHead:
    """Return the linear head of a baseline's checkpoint, in eval mode; its backbone is not in the checkpoint."""
    n_organs = len(checkpoint["organs"]) if checkpoint["config"]["organ"] == CONCAT else 0
    return _restored(lambda: LinearHead(checkpoint["width"], len(checkpoint["classes"]), n_organs), checkpoint)


def _restored(build: Callable[[], Model], checkpoint: dict[str, Any]) -> Model:
    with _Uninitialised():
        model = build()
    load_state(model, checkpoint["state"], f"the {checkpoint['model']} checkpoint", assign=True)
    return model.eval()


def load_state(module: nn.Module, state: dict[str, torch.Tensor], where: object, *, assign: bool = False) -> None:
    """Load weights strictly; a misfit names its first tensor.

    Parameters
    ----------
    assign
        Take the tensors themselves, instead of copying their values.
    """
    own = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items()}
    wrong = sorted(key for key in own.keys() | given.keys() if own.get(key) != given.get(key))
    if wrong:
        first = wrong[0]
        raise UserError(
            "A checkpoint's weights do not fit the architecture it names",
            where=where,
            found=f"{len(wrong)} tensors missing, unknown or of another shape, the first: {first} "
            f"{_shape(given.get(first))}",
            expected=f"{first} {_shape(own.get(first))}",
            fix="train the model again with this version",
        )
    module.load_state_dict(state, strict=True, assign=assign)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else f"({', '.join(map(str, shape))})"


def new_local(section: settings_.Local, n_organs: int, n_classes: int, *, load_weights: bool = True) -> LocalModel:
    """Build a local model from its settings."""
    net = section.model
    return LocalModel(
        build_backbone(section.backbone, load_weights=load_weights),
        n_organs,
        n_classes,
        organ=net.organ,
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
    return GateModel(dim_a, dim_b, **gate_options(section))


def gate_options(section: settings_.Gate) -> dict[str, Any]:
    """Return the arguments of a gate that its settings give."""
    net = section.model
    return {"project": net.project, "hidden": net.hidden, "dropout": net.dropout}
