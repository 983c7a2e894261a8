"""Runs of the training under changed settings: the ablations, and the audit of the original's flaws.

A variant shares every file with the study, or with an earlier variant, whose settings it does not change; only what
differs is made for it, under ``results/variants/<variant>/``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from nuclass.core.errors import UserError, closest
from nuclass.core.names import GATE, GLOBAL, LOCAL, MODELS
from nuclass.core.protocol import RELEASED, STAGES, SWITCHES, Protocol, switches_of
from nuclass.core.schema import Locate

SEEDS, ORGAN, LEAVE_OUT, GUIDANCE, CONTEXT, AUDIT = "seeds", "organ", "leave_out", "guidance", "context", "audit"
GROUPS = (SEEDS, ORGAN, LEAVE_OUT, GUIDANCE, CONTEXT, AUDIT)
ORGAN_MODES = ("film", "concat", "none")
REFERENCE = "reference"
STUDY_ROOT, VARIANTS_ROOT = "results", "results/variants"
OF_EVALUATION = STAGES["evaluate"]
"""Switches that change how predictions are read; they need no variant."""
_FIELDS: dict[str, tuple[str, ...]] = {
    "pretrain": ("context",),
    "context": ("context",),
    "gate_context": ("context",),
    LOCAL: (LOCAL,),
    GLOBAL: ("context", GLOBAL, "predict"),
    GATE: (GLOBAL, GATE, "predict"),
    **dict.fromkeys(("predict_local", "predict_global", "predict_gate"), ("predict",)),
}
_SWITCHES = {"pretrain": (), "context": ("context", "views")}
_NEEDS: dict[str, tuple[str, ...]] = {
    "slides": (),
    "splits": ("slides",),
    "pretrain": ("splits",),
    "context": ("splits", "pretrain"),
    "gate_context": ("splits", "pretrain"),
    LOCAL: ("splits",),
    GLOBAL: (LOCAL, "context"),
    GATE: (LOCAL, GLOBAL, "context", "gate_context"),
    "predict_local": (LOCAL,),
    "predict_global": (GLOBAL,),
    "predict_gate": (GATE,),
}
"""Stage -> the stages whose files it reads."""


@dataclass(frozen=True)
class Variant:
    """A run of the training.

    Attributes
    ----------
    name
        Its folder under ``results/variants``; empty for the study itself.
    group
        The comparison it belongs to, one of :data:`GROUPS`.
    value
        What it is in that comparison, such as ``concat``.
    models
        The settings of its models, complete.
    protocol
        The flaws of the original that are on.
    window
        Side of its global window, px.
    slides
        Its training slides.
    parts
        The models that are trained.
    """

    name: str
    group: str
    value: str
    models: Mapping[str, Any]
    window: int
    slides: tuple[str, ...]
    protocol: Protocol = field(default_factory=Protocol)
    parts: tuple[str, ...] = MODELS

    @property
    def root(self) -> str:
        """The folder of what is made for it alone."""
        return f"{VARIANTS_ROOT}/{self.name}" if self.name else STUDY_ROOT

    @cached_property
    def keys(self) -> dict[str, str]:
        """Stage -> a hash of all settings that what it makes depends on."""
        keys: dict[str, str] = {}
        for stage, needs in _NEEDS.items():
            names = _SWITCHES.get(stage, ("predict",) if stage.startswith("predict_") else (stage,))
            settings: dict[str, Any] = {
                "needs": [keys[need] for need in needs],
                "switches": switches_of(self.protocol, *names),
                "models": {name: self._section(stage, name) for name in _FIELDS.get(stage, ())},
            }
            if stage in ("pretrain", "context", "gate_context", GLOBAL, GATE):
                settings["window"] = self.window
            if stage in ("pretrain", LOCAL, GLOBAL, GATE):
                settings["slides"] = self.slides
            keys[stage] = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        return keys

    def _section(self, stage: str, name: str) -> Any:
        section = dict(self.models[name])
        if name == "predict":
            return {"precision": section["precision"]}
        if stage == GATE and name == GLOBAL:
            return section["augment"]
        if stage != "pretrain" and name == "context":
            section.pop("pretrain", None)
        return section


class Variants:
    """The variants of a study, and where each stage's files of each of them lie.

    Parameters
    ----------
    study
        The study itself as a variant without a name.
    members
        The variants, in order; the first is the reference that the others are compared with.
    """

    def __init__(self, study: Variant, members: Sequence[Variant]) -> None:
        self.study = study
        self.members = {variant.name: variant for variant in members}
        self._count = len(members)

    def check(self) -> None:
        """Raise when two variants share a name."""
        if len(self.members) != self._count:
            raise AssertionError("two variants share a name")

    def group(self, name: str) -> list[Variant]:
        """Return the variants of a comparison, in order."""
        return [variant for variant in self.members.values() if variant.group == name]

    def place(self, variant: str, stage: str) -> str:
        """Return the folder below which what a stage makes for a variant lies: its own, or an equal one's."""
        mine = self.members[variant]
        model = stage.removeprefix("predict_")
        for other in (self.study, *self.members.values()):
            if other.keys[stage] == mine.keys[stage] and (model not in MODELS or model in other.parts):
                return other.root
        raise AssertionError(variant)  # a variant equals itself

    def own(self, variant: str) -> list[str]:
        """Return the stages that are run for a variant alone."""
        mine = self.members[variant]
        needed: set[str] = set()
        open_stages = [f"predict_{model}" for model in mine.parts]
        while open_stages:
            stage = open_stages.pop()
            needed.add(stage)
            open_stages += _NEEDS[stage]
        return [stage for stage in _NEEDS if stage in needed and self.place(variant, stage) == mine.root]


def build_variants(
    settings: Mapping[str, Any],
    *,
    models: Mapping[str, Any],
    short_models: Mapping[str, Any],
    protocol: Protocol,
    windows: Mapping[str, int],
    organs: Mapping[str, str],
    cohort_organs: Sequence[str],
    test: float,
    cut: bool,
    locate: Locate = lambda keys: ": ".join(map(str, keys)),
) -> Variants:
    """Return the variants that a study's section ``ablations`` asks for.

    Parameters
    ----------
    settings
        The section, checked.
    models, short_models
        The settings of the study's models, and of those of the variants; the same where nothing is reduced.
    protocol
        The study's own.
    windows
        Sides of the windows, px.
    organs
        Training slide -> organ, in the order of the sheet.
    cohort_organs
        Organs of the cohorts, in the order of the sheet.
    test
        The share of test cells (``splits.test``).
    cut
        Whether windows of any slide are cut here, from its H&E; else all come as files of windows.
    locate
        Gives the place of a setting, for messages.

    Raises
    ------
    UserError
        An organ to leave out is not in the training slides, or is the only one; a switch is unknown.
    """
    slides = tuple(organs)
    study = Variant("", "", "study", models, windows["global"], slides, protocol)
    reference = Variant(REFERENCE, "", REFERENCE, short_models, windows["global"], slides)
    parts = (
        _seeds(reference, settings["seeds"]),
        _organ_modes(reference, ORGAN, "organ"),
        _left_out(reference, settings["leave_out"], organs, cohort_organs, locate),
        _guidance(reference),
        _contexts(reference, settings["context_sizes"], windows["local"]),
        _audited(reference, settings["switches"], test, cut, locate),
    )
    return Variants(study, [reference, *(variant for part in parts for variant in part)])


def _changed(reference: Variant, group: str, value: str, changes: Mapping[str, Any], **more: Any) -> Variant:
    """Return the reference with some settings of the models changed: ``{"local.seed": 43}``."""
    models = unshared(reference.models)
    for path, new in changes.items():
        *sections, key = path.split(".")
        place = models
        for name in sections:
            place = place[name]
        place[key] = new
    name = more.pop("name", f"{group}_{value}")
    return replace(reference, name=name, group=group, value=value, models=models, **more)


def _seeds(reference: Variant, count: int) -> Iterator[Variant]:
    first = int(reference.models[LOCAL]["seed"])
    for number in range(count):
        seeds = {f"{name}.seed": int(reference.models[name]["seed"]) + number for name in MODELS}
        yield _changed(reference, SEEDS, str(first + number), seeds, name=f"seed_{first + number}")


def _organ_modes(reference: Variant, group: str, name: str, **more: Any) -> Iterator[Variant]:
    for mode in ORGAN_MODES:
        changes = {f"{LOCAL}.model.organ": mode}
        yield _changed(reference, group, mode, changes, name=f"{name}_{mode}", parts=(LOCAL,), **more)


def _left_out(
    reference: Variant,
    wanted: int | Sequence[str],
    organs: Mapping[str, str],
    cohort_organs: Sequence[str],
    locate: Locate,
) -> Iterator[Variant]:
    known = list(dict.fromkeys(organs.values()))
    if isinstance(wanted, int):
        possible = [organ for organ in dict.fromkeys(cohort_organs) if organ in known and len(known) > 1]
        wanted = possible[:wanted]
    for organ in wanted:
        if organ not in known or len(known) == 1:
            raise UserError(
                f"An organ to leave out is not one of several in the training slides.{closest(organ, known)}",
                where=locate(["ablations", "leave_out"]),
                found=organ,
                expected=" | ".join(known),
            )
        rest = tuple(slide for slide, own in organs.items() if own != organ)
        for variant in _organ_modes(reference, LEAVE_OUT, f"without_{organ}", slides=rest):
            yield replace(variant, value=f"{organ} {variant.value}")


def _guidance(reference: Variant) -> Iterator[Variant]:
    loss = f"{GLOBAL}.loss"
    gamma = float(reference.models[GLOBAL]["loss"]["gamma"]) or 2.0
    for value in ("label", "entropy", "none"):
        changes: dict[str, Any] = {f"{loss}.gamma": 0.0} if value == "none" else {f"{loss}.doubt": value}
        yield _changed(reference, GUIDANCE, value, changes if value == "none" else {**changes, f"{loss}.gamma": gamma})


def _contexts(reference: Variant, sizes: int, local: int) -> Iterator[Variant]:
    """Yield the reference's window and halves of it, each seen with as many pixels; radii of the pretraining shrink."""
    whole = reference.window
    context = reference.models["context"]
    for steps in range(sizes):
        size, rest = divmod(whole, 2**steps)
        if rest or size % 2 or size <= local:
            return
        changes: dict[str, Any] = {"context.read_level": max(int(context["read_level"]) - steps, 0)}
        if context.get("pretrain"):
            changes["context.pretrain.radii_um"] = [r * size / whole for r in context["pretrain"]["radii_um"]]
        yield _changed(reference, CONTEXT, str(size), changes if steps else {}, window=size)


def _audited(reference: Variant, names: Any, test: float, cut: bool, locate: Locate) -> Iterator[Variant]:
    wanted = SWITCHES if names == "all" else tuple(names)
    for name in wanted:
        if name not in SWITCHES:
            raise UserError(
                f"The protocol has no switch of this name.{closest(str(name), list(SWITCHES))}",
                where=locate(["ablations", "switches"]),
                found=name,
                expected="all, or a list of: " + ", ".join(SWITCHES),
            )
        if name not in OF_EVALUATION:
            on = {} if idle(name, reference.models, test, cut) else {name: True}
            yield _changed(reference, AUDIT, name, {}, name=name, protocol=Protocol(**on))
    every = Protocol(**dict.fromkeys(SWITCHES, True))
    yield _changed(reference, AUDIT, RELEASED, {}, name=RELEASED, protocol=every)


def unshared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy in which no section is another's too, as YAML's anchors make them."""
    copied: dict[str, Any] = json.loads(json.dumps(settings))
    return copied


def idle(switch: str, models: Mapping[str, Any], test: float, cut: bool) -> str:
    """Return why a switch by itself changes nothing under these settings; empty where it does change something."""
    if switch == "test_as_val" and not test:
        return "the training slides have no test cells (splits.test is 0; above 0 it acts)"
    if switch == "inverted_mpp" and not cut:
        return "no window is cut here: all slides come as files of windows"
    if switch == "unguarded_class_weights":
        return "every class has train cells: only together with test_as_val can one have test cells alone"
    if switch == "frozen_heads" and not models[GATE]["joint"]["max_epochs"]:
        return "no joint fine-tuning is asked for (gate.joint.max_epochs is 0)"
    if switch == "undetached_weight" and not models[GLOBAL]["loss"]["gamma"]:
        return "no cell is weighted (global.loss.gamma is 0)"
    return ""


def organ_slides(organ: str, slides: Mapping[str, Mapping[str, str]], training: Sequence[str]) -> list[str]:
    """Return the slides that models without an organ are judged on: those of the organ, in their order.

    A training slide of a patient of whom another organ was trained on is left out: what a model learnt of a patient is
    no test of it. Patients that the sheet does not name are taken as different ones.

    Parameters
    ----------
    slides
        Slide -> its ``organ`` and ``patient``.
    training
        The slides of the study's training.

    Raises
    ------
    UserError
        No slide is left.
    """
    known = {slides[slide]["patient"] for slide in training if slides[slide]["organ"] != organ} - {""}
    own = [slide for slide in slides if slides[slide]["organ"] == organ]
    apart = [slide for slide in own if slides[slide]["patient"] not in known]
    if own and not apart:
        raise UserError(
            "No slide tells how models without an organ do on it",
            where=f"ablations.leave_out: {organ}",
            found=f"{', '.join(own)}, of patients of whom other organs were trained on",
            fix="leave another organ out",
        )
    return apart
