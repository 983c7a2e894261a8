"""The original's flaws as switches, so that the effect of each on the results can be measured; all are off by default.

``protocol:`` in the configuration is ``corrected``, ``released`` (all switches on), or a section of switches. In a
section ``base: released`` starts from all on, so ``{base: released, label_in_gate: false}`` leaves one out.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from nuclass.core.errors import UserError, closest

CORRECTED, RELEASED = "corrected", "released"
BASES = (CORRECTED, RELEASED)


@dataclass(frozen=True)
class Protocol:
    """Which of the original's flaws are on.

    Attributes
    ----------
    inverted_mpp
        The H&E's scale is taken as pixel size / s instead of times s, s = morphology px per H&E px.
    no_buffer
        One central box a slide is val; windows of its cells share pixels with those of train.
    test_as_val
        Models stop, are chosen and are calibrated by the cells they are then reported on.
    black_corners
        Turned windows take the nearest pixel and have black corners; no change of stain.
    no_global_augmentation
        The global model trains on windows as they are.
    decay_everywhere
        Weight decay also on norms, biases, tokens and embeddings.
    unguarded_class_weights
        A class without training cells gets a huge weight in the global model's loss, and flattens the others.
    undetached_weight
        The uncertainty-guided weight carries a gradient into the local model's copy.
    moving_teacher
        The local model's copy in the global model trains along, instead of being frozen.
    label_in_gate
        The inner gate of the global model's training sees the probability of the true class.
    batch_context_dropout
        The context is left out for whole batches, by one draw, instead of cell by cell.
    alpha_reset
        A loaded global model weighs the context as in its first epoch.
    truncated_context
        Context windows are cut down to whole grey values by truncation, and normalised in bfloat16.
    smaller_gate_context
        The gate sees context features of windows three quarters the size that the global model learned from.
    gate_on_train
        The gate learns from cells that both models were fitted to.
    gate_first_cells
        The gate is chosen by the first 14,400 val cells, which lie on the first slide, in whole batches.
    batch_pos_weight
        The weight of positives comes from each batch of 12 cells instead of all.
    frozen_heads
        Joint fine-tuning updates no head: they only change to training mode, which adds noise.
    first_organ
        Cells are predicted as of the first organ in the models' list, as the original does for an unknown tissue.
    closed_set
        Predictions are forced into the classes that occur among the evaluated cells, so errors into others cannot be.
    policy_on_test
        The safety policy is tuned on the cells it is reported on.
    """

    inverted_mpp: bool = False
    no_buffer: bool = False
    test_as_val: bool = False
    black_corners: bool = False
    no_global_augmentation: bool = False
    decay_everywhere: bool = False
    unguarded_class_weights: bool = False
    undetached_weight: bool = False
    moving_teacher: bool = False
    label_in_gate: bool = False
    batch_context_dropout: bool = False
    alpha_reset: bool = False
    truncated_context: bool = False
    smaller_gate_context: bool = False
    gate_on_train: bool = False
    gate_first_cells: bool = False
    batch_pos_weight: bool = False
    frozen_heads: bool = False
    first_organ: bool = False
    closed_set: bool = False
    policy_on_test: bool = False


SWITCHES = tuple(field.name for field in fields(Protocol))
STAGES: dict[str, tuple[str, ...]] = {
    "slides": ("inverted_mpp",),
    "splits": ("no_buffer",),
    "context": ("truncated_context",),
    "views": ("test_as_val",),
    "gate_context": ("truncated_context", "smaller_gate_context"),
    "local": ("test_as_val", "black_corners", "decay_everywhere"),
    "global": (
        "test_as_val",
        "black_corners",
        "no_global_augmentation",
        "decay_everywhere",
        "unguarded_class_weights",
        "undetached_weight",
        "moving_teacher",
        "label_in_gate",
        "batch_context_dropout",
        "alpha_reset",
    ),
    "gate": (
        "test_as_val",
        "decay_everywhere",
        "smaller_gate_context",
        "gate_on_train",
        "gate_first_cells",
        "batch_pos_weight",
        "frozen_heads",
    ),
    "predict": ("smaller_gate_context", "first_organ"),
    "evaluate": ("closed_set", "policy_on_test"),
}
"""Stage -> the switches that change what it makes, so that no other stage runs again for them."""


def parse_protocol(value: Any, where: object = "protocol") -> Protocol:
    """Return the switches that a configuration names.

    Parameters
    ----------
    value
        ``corrected``, ``released``, a section ``{switch: true or false}``, in it also ``base``, or None.

    Raises
    ------
    UserError
        For an unknown word or switch (with the nearest valid one), and a value that is not true or false.
    """
    if value is None:
        value = CORRECTED
    section = {"base": value} if isinstance(value, str) else value
    if not isinstance(section, dict):
        raise UserError(
            "protocol is neither a word nor a section of switches",
            where=where,
            found=repr(value),
            expected=f"{' | '.join(BASES)}, or switches such as {{label_in_gate: true}}",
        )
    base = section.get("base", CORRECTED)
    if base not in BASES:
        raise UserError(
            f"There is no protocol of this name.{closest(str(base), list(BASES))}",
            where=where,
            found=base,
            expected=" | ".join(BASES),
        )
    switches = {key: item for key, item in section.items() if key != "base"}
    for key, item in switches.items():
        if key not in SWITCHES:
            raise UserError(
                f"The protocol has no switch of this name.{closest(str(key), list(SWITCHES))}",
                where=where,
                found=key,
                expected=", ".join(SWITCHES),
            )
        if not isinstance(item, bool):
            raise UserError(
                f"A switch of the protocol is true or false: {key}",
                where=where,
                found=repr(item),
                expected="true | false",
            )
    return Protocol(**dict.fromkeys(SWITCHES, base == RELEASED) | switches)


def switches_of(protocol: Protocol, *stages: str) -> dict[str, bool]:
    """Return the switches that are on and change one of these stages."""
    names = dict.fromkeys(name for stage in stages for name in STAGES[stage])
    return {name: True for name in names if getattr(protocol, name)}


def to_setting(protocol: Protocol) -> str | dict[str, bool]:
    """Return the shortest setting that means these switches: a word, or a section of those that are on."""
    on = [name for name in SWITCHES if getattr(protocol, name)]
    return CORRECTED if not on else RELEASED if len(on) == len(SWITCHES) else dict.fromkeys(on, True)


def flaws(protocol: Protocol) -> str:
    """Return the note for what is made with flaws on; nothing where none is."""
    return "" if protocol == Protocol() else f"Protocol: {describe(protocol)}. These results are not the method's."


def describe(protocol: Protocol) -> str:
    """Return which flaws are on, as one line tells it: all, none, or their names."""
    on = [name for name in SWITCHES if getattr(protocol, name)]
    if not on:
        return f"{CORRECTED} (no flaw of the original is on)"
    if len(on) == len(SWITCHES):
        return f"{RELEASED} (all {len(on)} flaws of the original are on)"
    left = [name for name in SWITCHES if name not in on]
    few = f"all but {', '.join(left)}" if len(left) < len(on) else ", ".join(on)
    return f"{len(on)} of the original's {len(SWITCHES)} flaws are on: {few}"
