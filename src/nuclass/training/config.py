"""The settings of the models (``config/models/*.yaml``) as typed objects, each with its range."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from nuclass.core.backbone_settings import backbone_faults
from nuclass.core.models_file import models_locator, read_models_file
from nuclass.core.names import BASELINES
from nuclass.core.protocol import Protocol
from nuclass.core.ranges import Count, Factor, NotNegative, PartialShare, Positive, Range, Share, Whole
from nuclass.core.schema import raise_faults
from nuclass.data.augment import Augment
from nuclass.training.parsing import Faults, Place, parse_section

Precision: TypeAlias = Literal["auto", "32-true", "bf16-mixed"]
TrainingPrecision: TypeAlias = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
Accelerator: TypeAlias = Literal["auto", "cpu", "gpu", "cuda"]
InnerShare = Annotated[float, Range(above=0, below=1)]


@dataclass(frozen=True)
class Optimizer:
    """AdamW: learning rates, weight decay, schedule."""

    lr_head: NotNegative = 3e-4
    lr_backbone: NotNegative = 3e-6
    llrd: Factor = 1.0
    weight_decay: NotNegative = 2e-5
    warmup_steps: Whole = 1500
    schedule: Literal["constant", "cosine"] = "constant"
    grad_clip: NotNegative = 1.0
    freeze_epochs: Whole = 0


@dataclass(frozen=True)
class Trainer:
    """How long and on what."""

    max_epochs: Count = 50
    patience: Count = 4
    batch_size: Count = 256
    accumulate: Count = 1
    validate_every: Positive = 1.0
    precision: TrainingPrecision = "auto"
    accelerator: Accelerator = "auto"
    devices: Count | list[Whole] | Literal["auto"] = 1
    num_nodes: Count = 1
    gradient_checkpointing: bool = False
    compile: bool | Literal["auto"] = "auto"
    workers: Whole = 0
    memory_mb: Whole = 2048
    balance: Share = 0.0
    save_every_min: Positive = 15.0
    logger: Literal["csv", "tensorboard", "wandb"] = "csv"
    log_every: Count = 50
    deterministic: bool = False


@dataclass(frozen=True)
class Loss:
    """Class-balanced cross-entropy."""

    label_smoothing: PartialShare = 0.1
    beta: PartialShare = 0.9999


@dataclass(frozen=True)
class Pretrain:
    """The demo's own context backbone: class composition of the neighbourhood as its task."""

    optimizer: Optimizer = field(default_factory=Optimizer)
    trainer: Trainer = field(default_factory=Trainer)
    augment: Augment = field(default_factory=Augment)
    radii_um: tuple[Positive, ...] = (48.0, 112.0)
    token_weight: NotNegative = 1.0
    samples_per_epoch: Count = 2000
    val_samples: Count = 600
    seed: Whole = 42


@dataclass(frozen=True)
class Context:
    """The frozen context backbone and how its window is read."""

    backbone: dict[str, Any] = field(default_factory=dict)
    read_level: Whole = 1
    pooling: Literal["cls", "mean", "cls+mean", "cls+center", "cls+center+mean"] = "cls"
    batch_size: Count = 64
    precision: Precision = "auto"
    accelerator: Accelerator = "auto"
    compile: bool | Literal["auto"] = "auto"
    workers: Whole = 0
    views: Whole = 0
    augment: Augment = field(default_factory=Augment)
    pretrain: Pretrain | None = None


@dataclass(frozen=True)
class LocalNet:
    """Sizes of the local model's own parts."""

    organ: Literal["film", "concat", "none"] = "film"
    organ_dim: Count = 64
    hidden: Whole = 1024
    dropout: PartialShare = 0.2
    organ_dropout: PartialShare = 0.0


@dataclass(frozen=True)
class Local:
    """The local model."""

    backbone: dict[str, Any] = field(default_factory=dict)
    read_level: Whole = 0
    model: LocalNet = field(default_factory=LocalNet)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    trainer: Trainer = field(default_factory=Trainer)
    augment: Augment = field(default_factory=Augment)
    seed: Whole = 42


@dataclass(frozen=True)
class GlobalNet:
    """Sizes of the global model's own parts."""

    project: Count = 512
    hidden: Count = 1024
    gate_hidden: Count = 256
    dropout: PartialShare = 0.2
    context_dropout: PartialShare = 0.1


@dataclass(frozen=True)
class GuidedLoss:
    """The uncertainty-guided loss."""

    label_smoothing: PartialShare = 0.05
    beta: PartialShare = 0.9999
    gamma: NotNegative = 2.0
    doubt: Literal["label", "entropy"] = "label"
    own_weight: NotNegative = 0.3
    fused_weight: NotNegative = 1.0


@dataclass(frozen=True)
class Alpha:
    """Warm-up of the context's weight."""

    start: Share = 0.25
    epochs: NotNegative = 2.0


@dataclass(frozen=True)
class Global:
    """The global model."""

    model: GlobalNet = field(default_factory=GlobalNet)
    loss: GuidedLoss = field(default_factory=GuidedLoss)
    alpha: Alpha = field(default_factory=Alpha)
    optimizer: Optimizer = field(default_factory=Optimizer)
    trainer: Trainer = field(default_factory=Trainer)
    augment: Augment = field(default_factory=Augment)
    seed: Whole = 42


@dataclass(frozen=True)
class GateNet:
    """Sizes of the gate."""

    project: Whole = 128
    hidden: tuple[Count, ...] = (256, 64)
    dropout: PartialShare = 0.1


@dataclass(frozen=True)
class GateTerms:
    """Targets and factors of the gate's loss."""

    soft_k: Positive = 10.0
    conflict_boost: NotNegative = 2.0
    delta_scale: NotNegative = 1.0
    delta_gamma: NotNegative = 1.0
    pos_weight: Positive | Literal["auto"] = "auto"
    mix_weight: NotNegative = 1.0
    bce_weight: NotNegative = 1.0
    align_weight: NotNegative = 0.1
    entropy_weight: NotNegative = 0.05
    aux_weight: NotNegative = 0.05


@dataclass(frozen=True)
class Joint:
    """Fine-tuning of the heads of both models together with the gate, after it; off with ``max_epochs`` 0."""

    max_epochs: Whole = 0
    patience: Count = 3
    lr_heads: NotNegative = 2e-4
    lr_gate: NotNegative = 2e-4
    weight_decay: NotNegative = 1e-5


@dataclass(frozen=True)
class GateOptimizer:
    """AdamW of the gate, on cached outputs."""

    lr: NotNegative = 8e-4
    weight_decay: NotNegative = 1e-5
    warmup_steps: Whole = 1000
    grad_clip: NotNegative = 0.0


@dataclass(frozen=True)
class GateTrainer:
    """How long the gate trains."""

    max_epochs: Count = 4
    patience: Count = 3
    batch_size: Count = 384


@dataclass(frozen=True)
class Gate:
    """The gate."""

    model: GateNet = field(default_factory=GateNet)
    loss: GateTerms = field(default_factory=GateTerms)
    optimizer: GateOptimizer = field(default_factory=GateOptimizer)
    trainer: GateTrainer = field(default_factory=GateTrainer)
    joint: Joint = field(default_factory=Joint)
    select: InnerShare = 0.3
    block_um: Positive = 64.0
    views: Whole = 0
    seed: Whole = 42


@dataclass(frozen=True)
class Predict:
    """Prediction of whole slides."""

    batch_size: Count = 256
    precision: Precision = "auto"
    accelerator: Accelerator = "auto"
    compile: bool | Literal["auto"] = "auto"
    workers: Whole = 0


@dataclass(frozen=True)
class Baseline:
    """A network that the models are compared with."""

    backbone: dict[str, Any] = field(default_factory=dict)
    organ: Literal["concat", "none"] = "none"
    organ_dim: Count = 32
    stand_in: bool = False


@dataclass(frozen=True)
class BaselineFeatures:
    """The pass of the frozen networks over all cells."""

    batch_size: Count = 64
    precision: Precision = "auto"
    accelerator: Accelerator = "auto"
    workers: Whole = 0


@dataclass(frozen=True)
class BaselineLinear:
    """The linear head on frozen features: multinomial logistic regression."""

    strengths: tuple[Positive, ...] = (1e-1, 1e-2, 1e-3, 1e-4)
    beta: PartialShare = 0.9999
    max_iterations: Count = 300
    tolerance: Positive = 1e-5
    memory_mb: Whole = 2048


@dataclass(frozen=True)
class BaselineTuned:
    """Fine-tuning of the whole network with a linear head, by the trainer of the local model."""

    dropout: PartialShare = 0.0
    organ_dropout: PartialShare = 0.0
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    trainer: Trainer = field(default_factory=Trainer)
    augment: Augment = field(default_factory=Augment)


@dataclass(frozen=True)
class Baselines:
    """Published networks that the models are compared with, each frozen with a linear head and fine-tuned."""

    plip: Baseline | None = None
    loki: Baseline | None = None
    musk: Baseline | None = None
    uni2_h: Baseline | None = None
    dinov3: Baseline | None = None
    read_level: Whole = 0
    features: BaselineFeatures = field(default_factory=BaselineFeatures)
    linear: BaselineLinear = field(default_factory=BaselineLinear)
    finetuned: BaselineTuned = field(default_factory=BaselineTuned)
    seed: Whole = 42

    @property
    def networks(self) -> dict[str, Baseline]:
        """Return those that there are, by name, in their order."""
        found = {name: getattr(self, name) for name in BASELINES}
        return {name: section for name, section in found.items() if section is not None}


@dataclass(frozen=True)
class Models:
    """A whole model file."""

    context: Context = field(default_factory=Context)
    local: Local = field(default_factory=Local)
    global_: Global = field(default_factory=Global)
    gate: Gate = field(default_factory=Gate)
    baselines: Baselines = field(default_factory=Baselines)
    predict: Predict = field(default_factory=Predict)
    ablations: dict[str, Any] = field(default_factory=dict)
    protocol: Protocol = field(default_factory=Protocol)


def parse_models(data: dict[str, Any], where: str = "the model file", locate: Place | None = None) -> Models:
    """Check a model file's content and return it typed.

    Parameters
    ----------
    where
        Names the place of a fault whose key has no file and line of its own.
    locate
        Gives the file and line of a key, see :func:`nuclass.core.models_file.models_locator`.

    Raises
    ------
    UserError
        With all faults in one message: unknown keys (each with the nearest valid one), values of a wrong type, values
        out of range.
    """
    faults = Faults(locate or (lambda path: where))
    models: Models = parse_section(Models, data, (), faults)
    if not faults.items:
        for path, what, found, expected in _disagreements(models):
            faults.add(path, what, found, expected)
    raise_faults(faults.items, f"The settings of the models cannot be used ({where})")
    return models


def load_models(path: str | Path) -> dict[str, Any]:
    """Read a model file and check it; returns the plain dictionary (see :func:`parse_models`)."""
    data, files = read_models_file(path)
    parse_models(data, where=str(path), locate=models_locator(path, files))
    return data


def to_plain(section: Any) -> dict[str, Any]:
    """Return a section as plain dictionaries and lists with the keys of the files, to be stored in a checkpoint."""
    return {
        key.rstrip("_"): list(value)
        if isinstance(value, tuple)
        else to_plain(value)
        if dataclasses.is_dataclass(value)
        else value
        for key, value in ((f.name, getattr(section, f.name)) for f in dataclasses.fields(section))
    }


def from_plain(kind: type[Any], data: dict[str, Any], where: str) -> Any:
    """Build one section (e.g. :class:`Local`) from plain data; faults raise :class:`UserError`."""
    faults = Faults(lambda path: where)
    result = parse_section(kind, data, (), faults)
    raise_faults(faults.items, "Settings are not valid")
    return result


def _disagreements(models: Models) -> Iterator[tuple[tuple[str, ...], str, object, str]]:
    """Yield path, fault, value and rule of what no single range can tell."""
    baselines: dict[tuple[str, ...], dict[str, Any]] = {
        ("baselines", name): section.backbone for name, section in models.baselines.networks.items()
    }
    own: dict[tuple[str, ...], dict[str, Any]] = {
        ("context",): models.context.backbone,
        ("local",): models.local.backbone,
    }
    for place, backbone in (own | baselines).items():
        for key, what, found, wanted in backbone_faults(backbone):
            yield (*place, "backbone", key), what, found, wanted
    for place, backbone in baselines.items():
        if not backbone.get("name"):
            yield (*place, "backbone"), "it names no network", backbone or None, "a section with 'name'"
    drawn: list[tuple[tuple[str, ...], Any]] = [
        (("context",), models.context),
        (("context", "pretrain"), models.context.pretrain),
        (("local",), models.local),
        (("global",), models.global_),
        (("baselines", "finetuned"), models.baselines.finetuned),
    ]
    for keys, part in drawn:
        if part is not None and part.augment.black_corners:
            switch = (*keys, "augment", "black_corners")
            yield switch, "a switch of the protocol, not a strength", True, "protocol: {black_corners: true}"
    for place, part in drawn[2:]:
        yield from _run_faults((*place, "trainer"), part.trainer)
    if models.context.pretrain is not None and not models.context.pretrain.radii_um:
        yield ("context", "pretrain", "radii_um"), "no radius is named", "[]", "one or more, um"
    if not models.baselines.linear.strengths:
        yield ("baselines", "linear", "strengths"), "no strength is named", "[]", "one or more"


def _run_faults(place: tuple[str, ...], run: Trainer) -> Iterator[tuple[tuple[str, ...], str, object, str]]:
    """Yield what is wrong with a trainer's settings, as :func:`_disagreements` does."""
    if run.validate_every > 1 and run.validate_every != round(run.validate_every):
        path = (*place, "validate_every")
        yield path, "above 1 it counts whole epochs", run.validate_every, "a share of an epoch, or a whole number"
    if isinstance(run.devices, list) and len(set(run.devices)) != len(run.devices):
        yield (*place, "devices"), "a device is named twice", run.devices, "different indices"
    if run.devices == []:
        yield (*place, "devices"), "no device is named", run.devices, "a number, or indices such as [0, 1]"
