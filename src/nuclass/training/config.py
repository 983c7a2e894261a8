"""The model file (``config/models/*.yaml``) as typed objects; an unknown key is an error with the nearest valid one."""

from __future__ import annotations

import contextlib
import dataclasses
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from nuclass.core.errors import UserError, closest
from nuclass.core.models_file import read_models_file
from nuclass.core.protocol import Protocol
from nuclass.data.augment import Augment


@dataclass(frozen=True)
class Optimizer:
    """AdamW: learning rates, weight decay, schedule."""

    lr_head: float = 3e-4
    lr_backbone: float = 3e-6
    llrd: float = 1.0
    weight_decay: float = 2e-5
    warmup_steps: int = 1500
    schedule: Literal["constant", "cosine"] = "constant"
    grad_clip: float = 1.0
    freeze_epochs: int = 0


@dataclass(frozen=True)
class Trainer:
    """How long and on what."""

    max_epochs: int = 50
    patience: int = 4
    batch_size: int = 256
    accumulate: int = 1
    validate_every: float = 1.0
    precision: str = "auto"
    accelerator: str = "auto"
    devices: int | list[int] | str = 1
    num_nodes: int = 1
    gradient_checkpointing: bool = False
    compile: bool = False
    workers: int = 0
    memory_mb: int = 2048
    balance: float = 0.0
    save_every_min: float = 15.0
    logger: Literal["csv", "tensorboard", "wandb"] = "csv"
    log_every: int = 50
    deterministic: bool = False


@dataclass(frozen=True)
class Loss:
    """Class-balanced cross-entropy."""

    label_smoothing: float = 0.1
    beta: float = 0.9999


@dataclass(frozen=True)
class Pretrain:
    """The demo's own context backbone: class composition of the neighbourhood as its task."""

    optimizer: Optimizer = field(default_factory=Optimizer)
    trainer: Trainer = field(default_factory=Trainer)
    augment: Augment = field(default_factory=Augment)
    radii_um: tuple[float, ...] = (48.0, 112.0)
    token_weight: float = 1.0
    samples_per_epoch: int = 2000
    val_samples: int = 600
    seed: int = 42


@dataclass(frozen=True)
class Context:
    """The frozen context backbone and how its window is read."""

    backbone: dict[str, Any] = field(default_factory=dict)
    read_level: int = 1
    pooling: Literal["cls", "mean", "cls+mean", "cls+center", "cls+center+mean"] = "cls"
    batch_size: int = 64
    precision: str = "auto"
    accelerator: str = "auto"
    workers: int = 0
    views: int = 0
    augment: Augment = field(default_factory=Augment)
    pretrain: Pretrain | None = None


@dataclass(frozen=True)
class LocalNet:
    """Sizes of the local model's own parts."""

    organ: Literal["film", "concat", "none"] = "film"
    organ_dim: int = 64
    hidden: int = 1024
    dropout: float = 0.2
    organ_dropout: float = 0.0


@dataclass(frozen=True)
class Local:
    """The local model."""

    backbone: dict[str, Any] = field(default_factory=dict)
    read_level: int = 0
    model: LocalNet = field(default_factory=LocalNet)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    trainer: Trainer = field(default_factory=Trainer)
    augment: Augment = field(default_factory=Augment)
    seed: int = 42


@dataclass(frozen=True)
class GlobalNet:
    """Sizes of the global model's own parts."""

    project: int = 512
    hidden: int = 1024
    gate_hidden: int = 256
    dropout: float = 0.2
    context_dropout: float = 0.1


@dataclass(frozen=True)
class GuidedLoss:
    """The uncertainty-guided loss."""

    label_smoothing: float = 0.05
    beta: float = 0.9999
    gamma: float = 2.0
    doubt: Literal["label", "entropy"] = "label"
    own_weight: float = 0.3
    fused_weight: float = 1.0


@dataclass(frozen=True)
class Alpha:
    """Warm-up of the context's weight."""

    start: float = 0.25
    epochs: float = 2.0


@dataclass(frozen=True)
class Global:
    """The global model."""

    model: GlobalNet = field(default_factory=GlobalNet)
    loss: GuidedLoss = field(default_factory=GuidedLoss)
    alpha: Alpha = field(default_factory=Alpha)
    optimizer: Optimizer = field(default_factory=Optimizer)
    trainer: Trainer = field(default_factory=Trainer)
    augment: Augment = field(default_factory=Augment)
    seed: int = 42


@dataclass(frozen=True)
class GateNet:
    """Sizes of the gate."""

    project: int = 128
    hidden: tuple[int, ...] = (256, 64)
    dropout: float = 0.1


@dataclass(frozen=True)
class GateTerms:
    """Targets and factors of the gate's loss."""

    soft_k: float = 10.0
    conflict_boost: float = 2.0
    delta_scale: float = 1.0
    delta_gamma: float = 1.0
    pos_weight: float | Literal["auto"] = "auto"
    mix_weight: float = 1.0
    bce_weight: float = 1.0
    align_weight: float = 0.1
    entropy_weight: float = 0.05
    aux_weight: float = 0.05


@dataclass(frozen=True)
class Joint:
    """Fine-tuning of the heads of both models together with the gate, after it; off with ``max_epochs`` 0."""

    max_epochs: int = 0
    patience: int = 3
    lr_heads: float = 2e-4
    lr_gate: float = 2e-4
    weight_decay: float = 1e-5


@dataclass(frozen=True)
class GateOptimizer:
    """AdamW of the gate, on cached outputs."""

    lr: float = 8e-4
    weight_decay: float = 1e-5
    warmup_steps: int = 1000
    grad_clip: float = 0.0


@dataclass(frozen=True)
class GateTrainer:
    """How long the gate trains."""

    max_epochs: int = 4
    patience: int = 3
    batch_size: int = 384


@dataclass(frozen=True)
class Gate:
    """The gate."""

    model: GateNet = field(default_factory=GateNet)
    loss: GateTerms = field(default_factory=GateTerms)
    optimizer: GateOptimizer = field(default_factory=GateOptimizer)
    trainer: GateTrainer = field(default_factory=GateTrainer)
    joint: Joint = field(default_factory=Joint)
    select: float = 0.3
    block_um: float = 64.0
    views: int = 0
    seed: int = 42


@dataclass(frozen=True)
class Predict:
    """Prediction of whole slides."""

    batch_size: int = 256
    precision: str = "auto"
    accelerator: str = "auto"


@dataclass(frozen=True)
class Models:
    """A whole model file."""

    context: Context = field(default_factory=Context)
    local: Local = field(default_factory=Local)
    global_: Global = field(default_factory=Global)
    gate: Gate = field(default_factory=Gate)
    predict: Predict = field(default_factory=Predict)
    protocol: Protocol = field(default_factory=Protocol)


def parse_models(data: dict[str, Any], where: str = "the model file") -> Models:
    """Check a model file's content and return it typed; all faults come in one message.

    Raises
    ------
    UserError
        Listing every unknown key (with the nearest valid one) and every value of a wrong type.
    """
    faults: list[str] = []
    result = _parse(Models, {_field_name(key): value for key, value in data.items()}, "", faults)
    if faults:
        raise UserError(
            f"The model settings have {len(faults)} fault{'s' if len(faults) > 1 else ''}",
            where=where,
            found="; ".join(faults),
            expected="the keys and types of config/models/paper.yaml",
            fix="correct these keys",
        )
    return result


def load_models(path: str | Path) -> dict[str, Any]:
    """Read a model file and check it; returns the plain dictionary (see :func:`parse_models`)."""
    data, _ = read_models_file(path)
    parse_models(data, where=str(path))
    return data


def to_plain(section: Any) -> dict[str, Any]:
    """Return a section as plain dictionaries and lists, to be stored in a checkpoint."""
    return {
        key: list(value) if isinstance(value, tuple) else to_plain(value) if dataclasses.is_dataclass(value) else value
        for key, value in ((f.name, getattr(section, f.name)) for f in dataclasses.fields(section))
    }


def from_plain(kind: type[Any], data: dict[str, Any], where: str) -> Any:
    """Build one section (e.g. :class:`Local`) from plain data; faults raise :class:`UserError`."""
    faults: list[str] = []
    result = _parse(kind, data, "", faults)
    if faults:
        raise UserError("Settings are not valid", where=where, found="; ".join(faults))
    return result


def _field_name(key: str) -> str:
    return "global_" if key == "global" else key


def _parse(kind: type[Any], data: Any, path: str, faults: list[str]) -> Any:
    if not isinstance(data, dict):
        faults.append(f"{path.rstrip('.') or 'the file'}: expected a section with keys, found {data!r}")
        return kind()
    types_ = get_type_hints(kind)
    names = list(types_)
    values = {}
    for key, value in data.items():
        if key not in types_:
            shown = ["global" if name == "global_" else name for name in names]
            faults.append(f"{path}{key}: unknown key.{closest(str(key), shown)}")
            continue
        label = f"{path}{'global' if key == 'global_' else key}"
        values[key] = _value(types_[key], value, label, faults)
    return kind(**values)


def _value(kind: Any, value: Any, label: str, faults: list[str]) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _union(get_args(kind), value, label, faults)
    if dataclasses.is_dataclass(kind):
        return _parse(kind, value, f"{label}.", faults)  # type: ignore[arg-type]
    if origin is Literal:
        if value not in get_args(kind):
            faults.append(f"{label}: {value!r} is not one of {', '.join(map(str, get_args(kind)))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            faults.append(f"{label}: expected a list, found {value!r}")
            return ()
        return tuple(_value(get_args(kind)[0], item, label, faults) for item in value)
    if origin in (dict, list):
        if not isinstance(value, origin):
            faults.append(f"{label}: expected a {'section' if origin is dict else 'list'}, found {value!r}")
        return value
    return _scalar(kind, value, label, faults)


def _union(options: tuple[Any, ...], value: Any, label: str, faults: list[str]) -> Any:
    if value is None and type(None) in options:
        return None
    reasons: list[str] = []
    for option in options:
        if option is type(None):
            continue
        own: list[str] = []
        result = _value(option, value, label, own)
        if not own:
            return result
        reasons += own
    faults.append(reasons[0])
    return value


def _scalar(kind: type[Any], value: Any, label: str, faults: list[str]) -> Any:
    if kind is float and isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind in (int, float) and isinstance(value, bool)):
        faults.append(f"{label}: expected {kind.__name__}, found {value!r}")
    return value
