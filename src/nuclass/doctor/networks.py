"""Which image networks the configured study uses, how, and how much memory of a GPU each wants."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nuclass.models.backbones.registry import REGISTRY, BackboneSpec

# Bytes a parameter that is trained with AdamW in mixed precision when activations are at their most: weight and two
# moments of 4 each, and the copy of 2 that autocast keeps.
TRAINED_BYTES = 14
# At the optimizer's step, when activations are gone and gradients of 4 are there.
STEP_BYTES = 18
# While it is only used: weight, and the copy of autocast.
FROZEN_BYTES = 6
# Bytes of activations a token and unit of width: of a block, and of its input where checkpointing keeps that alone.
# Measured on an H100 (docs/performance.md): autocast keeps sums and norms in 32 bits.
BLOCK_BYTES, INPUT_BYTES = 46, 4.4
# CUDA, its libraries and what the allocator cannot use, in bytes.
FLOOR = 1_500_000_000


@dataclass(frozen=True)
class Use:
    """One use of a network by the study.

    Attributes
    ----------
    part
        ``local``, ``global``, ``context`` or ``baseline NAME``.
    backbone
        The section that describes it.
    trained
        Whether its weights are learnt; else it is only used.
    batch
        Images at once.
    checkpointing
        Whether activations are computed twice to save memory.
    full
        Whether it computes in 32 bits.
    accelerator
        ``auto``, ``gpu``, ``cuda`` or ``cpu``.
    devices
        GPUs that one job takes.
    """

    part: str
    backbone: Mapping[str, Any]
    trained: bool
    batch: int
    checkpointing: bool = False
    full: bool = False
    accelerator: str = "auto"
    devices: int = 1

    @property
    def name(self) -> str:
        """Name of the network."""
        return str(self.backbone.get("name", ""))

    @property
    def spec(self) -> BackboneSpec | None:
        """What is registered of the network; None where it is not known by name."""
        return REGISTRY.get(self.name)

    @property
    def large(self) -> bool:
        """Whether it is too large for a processor: a published network, or one for which a GPU is asked for."""
        return wants_gpu(self.backbone) or self.accelerator in ("gpu", "cuda")

    @property
    def needs_gpu(self) -> bool:
        """Whether its jobs ask for a GPU."""
        return self.large and self.accelerator != "cpu"


def wants_gpu(backbone: Mapping[str, Any]) -> bool:
    """Return whether a network is a published one, too large for a processor."""
    name = str(backbone.get("name", ""))
    return name.startswith("transformers:") or (name in REGISTRY and bool(REGISTRY[name].hub_id))


def uses_of(models: Mapping[str, Any]) -> list[Use]:
    """Return the uses of image networks in the settings of the models, baselines last."""
    context, local = models["context"], models["local"]
    found = [
        Use(
            "context",
            context["backbone"],
            context.get("pretrain") is not None,
            int(context["batch_size"]),
            full=_full(context),
            accelerator=str(context.get("accelerator", "auto")),
        ),
        _trained("local", local["backbone"], local["trainer"]),
        # The global model goes on with the local model's network.
        _trained("global", local["backbone"], models["global"]["trainer"]),
    ]
    baselines = models.get("baselines") or {}
    for name, section in baselines.items():
        if isinstance(section, Mapping) and isinstance(section.get("backbone"), Mapping):
            found.append(_trained(f"baseline {name}", section["backbone"], baselines["finetuned"]["trainer"]))
    return found


def _full(section: Mapping[str, Any]) -> bool:
    return str(section.get("precision", "auto")).startswith("32")


def _trained(part: str, backbone: Mapping[str, Any], trainer: Mapping[str, Any]) -> Use:
    devices = trainer.get("devices", 1)
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 1
    return Use(
        part,
        backbone,
        True,
        int(trainer["batch_size"]),
        bool(trainer.get("gradient_checkpointing", False)),
        _full(trainer),
        str(trainer.get("accelerator", "auto")),
        count,
    )


def memory_of(use: Use) -> int | None:
    """Return the memory of a GPU in bytes that a use of a registered network wants, about; None for others.

    Weights: 14 bytes a parameter that is learnt, 18 at the optimizer's step, 6 that is not. Activations of a
    transformer of width h and s tokens for b images: 46 s b h bytes a block in mixed precision, fitted to the memory of
    an H100 (34 where all is in 16 bits: Korthikanti et al. 2022, without the attention's own, never whole in memory);
    kept for all blocks, or with checkpointing for one, and 4.4 s b h for each other. Blocks are reckoned as
    parameters / 12 h^2. Half as much again for the activations in 32 bits.
    """
    spec = use.spec
    if spec is None or not spec.hub_id:
        return None
    arguments = spec.arguments
    width = int(
        next((arguments[key] for key in ("embed_dim", "hidden_size", "width") if key in arguments), spec.feature_dim)
    )
    named = re.search(r"patch(\d+)", spec.architecture)
    patch = int(arguments.get("patch_size") or (named[1] if named else 16))
    side = int(use.backbone.get("input_px", spec.input_px))
    tokens = (side // patch) ** 2 + 1 + int(arguments.get("reg_tokens", arguments.get("num_register_tokens", 0)))
    blocks = max(1, round(spec.parameters / (12 * width**2)))
    unit = tokens * use.batch * width * (1.5 if use.full else 1)
    if not use.trained:
        return round(FLOOR + FROZEN_BYTES * spec.parameters + BLOCK_BYTES * unit)
    a_unit = BLOCK_BYTES + INPUT_BYTES * blocks if use.checkpointing else BLOCK_BYTES * blocks
    return round(FLOOR + max(TRAINED_BYTES * spec.parameters + a_unit * unit, STEP_BYTES * spec.parameters))
