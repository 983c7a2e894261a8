"""From a checkpoint of the original's release to ``best.ckpt`` files of this workflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path
from nuclass.core.names import GATE, GLOBAL, LOCAL
from nuclass.data.features import FeatureKey
from nuclass.data.study import Study
from nuclass.models.backbones import Backbone, build_backbone, describe
from nuclass.training import config as settings_
from nuclass.training.branches import state_hash
from nuclass.training.checkpoint import restore_gate, restore_global, restore_local, save_checkpoint
from nuclass.training.embedding import Embedding, feature_key
from nuclass.training.imported import (
    BACKBONES,
    Original,
    class_names,
    organ_names,
    origin_of,
    read_original,
    sort_original,
    with_unknown_organ,
)

MPP = 0.25
WINDOWS = {"local": 224, "global": 1024}
GLOBAL_CONTEXT_PX, GATE_CONTEXT_PX = 512, 384
"""Sides at which the original's global model learned from the context window, and at which its gate sees it."""
CONTEXT_LEVEL = 1
Made: TypeAlias = tuple[dict[str, Any], dict[str, Tensor]]
_RESTORE: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    LOCAL: restore_local,
    GLOBAL: restore_global,
    GATE: restore_gate,
}


def import_checkpoint(
    file: Path,
    model: str,
    out: Path,
    *,
    classes: Sequence[str] | None = None,
    organs: Sequence[str] | None = None,
    alpha_reset: bool = False,
    by_shape: bool = False,
    backbones: Mapping[str, Mapping[str, Any]] = BACKBONES,
    windows: Mapping[str, int] = WINDOWS,
) -> list[str]:
    """Write ``<out>/<model>/best.ckpt``, of a gate's file all three; returns what is to be told, line by line.

    The context backbone of a global model or a gate goes to ``<out>/context`` (``config.json``,
    ``model.safetensors``): features must come from these very weights, which the original keeps in bfloat16.

    Parameters
    ----------
    file
        Lightning checkpoint of the original's release; no code in it is run.
    model
        ``local``, ``global`` or ``gate``.
    classes
        Names in the order of the model's outputs; needed where the file does not name them.
    organs
        Names in the order of the embedding's rows; by default the eight of the original's inference scripts.
    alpha_reset
        The global model weighs the context with 0.25, as the original's does when it is loaded by its trainer; else 1.
    by_shape
        Accept parts whose names say nothing, where one alone has the shape.
    backbones, windows
        What the file's networks are, and sides of windows in px.

    Raises
    ------
    UserError
        The file cannot be read safely, or a tensor is missing, left over, or fits in two places.
    """
    state, hyper = read_original(file)
    original = sort_original({name: tuple(value.shape) for name, value in state.items()}, model, file, backbones)
    if original.doubtful and not by_shape:
        raise UserError(
            f"{len(original.doubtful)} parts of the file have the right shape, but no name that says what they are",
            where=file,
            found="; ".join(original.doubtful),
            fix="look at the list; if it is right, give --by-shape",
        )
    job = _Import(
        model,
        out,
        original,
        state,
        class_names(classes, hyper, original.sizes["C"], file),
        organ_names(organs, original.sizes.get("O"), file),
        origin_of(file, model, original),
        backbones,
        dict(windows),
        alpha_reset,
    )
    return [*job.write(), *job.notes(classes_of_file="class_names" in hyper, organs_given=organs is not None)]


@dataclass(frozen=True)
class _Import:
    """What an import makes its checkpoints of."""

    model: str
    out: Path
    original: Original
    state: Mapping[str, Tensor]
    classes: list[str]
    organs: list[str]
    origin: dict[str, Any]
    backbones: Mapping[str, Mapping[str, Any]]
    windows: dict[str, int]
    alpha_reset: bool

    @property
    def folder(self) -> Path:
        """Where the context backbone of the file goes."""
        return self.out / "context"

    def write(self) -> list[str]:
        """Write the checkpoints; each is restored first, so that none is there which does not load."""
        parts = {
            LOCAL: {LOCAL: self.local},
            GLOBAL: {GLOBAL: self.global_},
            GATE: {LOCAL: self.local, GLOBAL: self.global_, GATE: self.gate},
        }[self.model]
        hashes: dict[str, str] = {}
        told = []
        for name, make in parts.items():
            payload, tensors = make()
            if name == GATE:
                payload["parents"] = {parent: hashes[parent] for parent in (LOCAL, GLOBAL)}
            hashes[name] = state_hash(_RESTORE[name]({**payload, "state": tensors}))
            save_checkpoint(self.out / name / "best.ckpt", payload, tensors)
            told.append(f"Wrote {self.out / name / 'best.ckpt'}")
        return told

    def common(self, model: str) -> dict[str, Any]:
        """Return what every checkpoint says; its cells are not known, so no leak can be ruled out by it."""
        spec = describe(dict(self.backbones["local"]))
        return {
            "model": model,
            "classes": self.classes,
            "organs": self.organs,
            "mpp": MPP,
            "windows": self.windows,
            "slides": {},
            "cells": {},
            "input": {
                "size": self.windows["local"],
                "read_level": 0,
                "input_px": spec.input_px,
                "mean": list(spec.mean),
                "std": list(spec.std),
            },
            "temperature": 1.0,
            "protocol": {"inverted_mpp": True}
            | ({"alpha_reset": True} if self.alpha_reset and model == GLOBAL else {}),
            "imported": self.origin,
        }

    def take(self, part: str) -> dict[str, Tensor]:
        """Return the tensors of a part under our names, float32."""
        return {ours: self.state[key].float() for ours, key in self.original.states[part].items()}

    def local(self) -> Made:
        """Return what the local model's checkpoint says, and its tensors."""
        sizes, tensors = self.original.sizes, self.take(LOCAL)
        tensors["film.embedding.weight"] = with_unknown_organ(tensors["film.embedding.weight"])
        net = settings_.LocalNet(organ="film", organ_dim=sizes["E"], hidden=sizes["H"])
        section = settings_.Local(backbone=dict(self.backbones["local"]), model=net)
        return {"config": settings_.to_plain(section), "weights": None, **self.common(LOCAL)}, tensors

    def global_(self) -> Made:
        """Return what the global model's checkpoint says, and its tensors; write the context backbone."""
        sizes, seen = self.original.sizes, dict(self.backbones["context"])
        if self.model == GATE:
            seen["input_px"] = seen["input_px"] * GATE_CONTEXT_PX // GLOBAL_CONTEXT_PX
        network = build_backbone(seen, load_weights=False)
        network.net.load_state_dict(self.take("context"), strict=True)
        with atomic_path(self.folder) as temporary:
            network.net.save_pretrained(temporary)  # type: ignore[operator, union-attr]
        context = settings_.Context(backbone=seen, read_level=CONTEXT_LEVEL, pooling="cls")
        net = settings_.GlobalNet(project=sizes["P"], hidden=sizes["G"], gate_hidden=1)
        payload = {
            "config": settings_.to_plain(settings_.Global(model=net)),
            **self.common(GLOBAL),
            "backbone": dict(self.backbones["local"]),
            "context": settings_.to_plain(context),
            "context_folder": str(self.folder),
            "context_dim": sizes["K"],
            "features": self.feature_key(network).to_dict(),
            "weights": None,
            "alpha": 1.0,
        }
        return payload, self.take(GLOBAL) | _silent_gate(2 * sizes["P"]) | {"alpha": torch.ones(())}

    def gate(self) -> Made:
        """Return what the gate's checkpoint says, and its tensors."""
        sizes = self.original.sizes
        section = settings_.Gate(model=settings_.GateNet(project=sizes["Q"], hidden=(sizes["M"], sizes["N"])))
        payload = {
            "config": settings_.to_plain(section),
            **self.common(GATE),
            "dim_a": sizes["D"],
            "dim_b": 2 * sizes["P"],
        }
        return payload, self.take(GATE)

    def feature_key(self, network: Backbone) -> FeatureKey:
        """Return the key of the context features that the global model takes."""
        study = Study([], self.out, MPP, self.windows)
        how = Embedding(window="global", read_level=CONTEXT_LEVEL, pooling="cls", precision="bf16-mixed")
        return feature_key(network.eval(), study, how, str(network.settings["name"]))

    def notes(self, *, classes_of_file: bool, organs_given: bool) -> list[str]:
        """Return what a user has to know of the import, a line each."""
        lines = [
            f"Dropped: {name}: {tensors} tensors, {parameters:,} parameters"
            for name, (tensors, parameters) in self.original.dropped.items()
        ]
        lines += [f"By shape alone: {what}" for what in self.original.doubtful]
        lines.append(f"Classes, {'of the file' if classes_of_file else 'as given'}: {', '.join(self.classes)}")
        source = "as given" if organs_given else "those of the original's inference scripts"
        lines.append(f"Organs, {source}: {', '.join(self.organs[:-1])}")
        if "O" in self.original.sizes and self.model != GLOBAL:
            lines.append("Unknown organ: its embedding is the mean of the others, for the original has none")
        if self.model != LOCAL:
            names = self.original.states["context"]
            kinds = {str(self.state[key].dtype).removeprefix("torch.") for key in names.values()}
            lines += [
                f"Context backbone: {len(names)} tensors ({', '.join(sorted(kinds))}) are in {self.folder}, not in the "
                "checkpoint; features come from there",
                f"Alpha: {'0.25, as after loading by the original' if self.alpha_reset else '1'}",
                "Inner gate: set to one half, it is of no use after training and the original's read the label",
            ]
        return [
            *lines,
            f"Scale: the original's {MPP} um/px are in truth {MPP} s^2, s = morphology px per H&E px of each slide; "
            "windows must be cut so (protocol: inverted_mpp)",
            "Training cells: not in the file, so evaluation cannot rule out a leak; temperature 1, not calibrated",
        ]


def _silent_gate(width: int) -> dict[str, Tensor]:
    """Return an inner gate of one hidden unit that always says one half: the original's read the label."""
    return {
        "inner_gate.0.weight": torch.zeros(1, width + 1),
        "inner_gate.0.bias": torch.zeros(1),
        "inner_gate.2.weight": torch.zeros(1, 1),
        "inner_gate.2.bias": torch.zeros(1),
    }
