"""Checkpoints: one file that holds all that a model needs to be used, loadable without the training data.

A file is written by ``torch.save`` and holds plain values and tensors alone, so it loads with ``weights_only=True`` and
runs no code. Its tensors are mapped into memory, not read: a model of 2.7 GB takes its 2.7 GB once, of which the system
can give pages back at any time.
"""

from __future__ import annotations

import dataclasses
import platform
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import nuclass
from nuclass.core.errors import UserError
from nuclass.core.names import GATE, GLOBAL, LINEAR, LOCAL
from nuclass.training.restore import (
    load_state,
    new_gate,
    new_global,
    new_local,
    restore_gate,
    restore_global,
    restore_linear,
    restore_local,
)
from nuclass.training.state import save_atomically

if TYPE_CHECKING:
    from nuclass.models.backbones import Backbone

__all__ = [
    "FORMAT",
    "backbone_facts",
    "describe_checkpoint",
    "load_checkpoint",
    "load_state",
    "new_gate",
    "new_global",
    "new_local",
    "read_checkpoint",
    "restore_gate",
    "restore_global",
    "restore_linear",
    "restore_local",
    "same_names",
    "save_checkpoint",
    "weights_of",
]
FORMAT = 2
"""1: until version 0.1; settings were called ``optimiser`` and ``run``. 2: gates may hold heads of their own."""

_COMMON = ("model", "config", "classes", "organs", "mpp", "windows", "cells", "input", "temperature")
_NEEDED: dict[str, tuple[str, ...]] = {
    LOCAL: _COMMON,
    GLOBAL: (*_COMMON, "backbone", "context", "features", "context_dim"),
    GATE: (*_COMMON, "parents", "dim_a", "dim_b"),
    LINEAR: (*_COMMON, "features", "width"),
}
_FIX_FOREIGN = (
    "give best.ckpt of a model's folder; a file of the original's release is taken in by 'nuclass import-checkpoint'"
)


def save_checkpoint(path: Path, payload: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
    """Write a checkpoint of plain values and tensors, atomically; tensors on the processor are not copied.

    Equal content gives equal bytes.

    Parameters
    ----------
    payload
        ``model`` (local, global, gate, linear), ``config``, ``classes``, ``organs``, ``mpp``, ``windows``, ``cells``,
        ``input``, ``temperature``, and what else a model needs.
    state
        Its weights by name.
    """
    versions = {"nuclass": nuclass.__version__, "torch": torch.__version__, "python": platform.python_version()}
    data = {"format": FORMAT, "versions": {k: str(v) for k, v in versions.items()}, **payload}
    data["state"] = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    save_atomically(data, Path(path))


def load_checkpoint(path: str | Path, model: str) -> dict[str, Any]:
    """Read a checkpoint of one of the three models.

    Its tensors lie in the file and are read when they are used; changing them does not change the file.

    Raises
    ------
    UserError
        When the file is missing, cut off, no checkpoint, of another model, of a newer format, or incomplete.
    """
    file = Path(path)
    if not file.exists():
        raise UserError(f"The checkpoint of the {model} model is missing", where=file, fix="train the model first")
    data = read_checkpoint(file)
    if data["model"] != model:
        raise UserError(
            "A checkpoint is of another model",
            where=file,
            found=data["model"],
            expected=model,
            fix=f"give best.ckpt of the {model} model",
        )
    return data


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of any of the models; see :func:`load_checkpoint`."""
    file = Path(path)
    _check_file(file)
    try:
        data = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise _foreign(file, str(error).splitlines()[0]) from error
    if isinstance(data, dict) and "state_dict" in data:
        raise _foreign(file, "a state of Lightning, such as last.ckpt of a run, or a file of the original's release")
    if not isinstance(data, dict) or not {"format", "model", "state"} <= data.keys() or data["model"] not in _NEEDED:
        raise _foreign(file, f"keys {', '.join(map(str, data))}" if isinstance(data, dict) else type(data).__name__)
    if data["format"] > FORMAT:
        raise UserError(
            "A checkpoint is newer than this program",
            where=file,
            found=f"format {data['format']}, written by nuclass {data.get('versions', {}).get('nuclass', '?')}",
            expected=f"format {FORMAT} or older",
            fix="install the newer version",
        )
    missing = [key for key in _NEEDED[data["model"]] if key not in data]
    if missing:
        raise UserError(
            "A checkpoint is incomplete",
            where=file,
            found=f"no {', '.join(missing)}",
            expected=", ".join(_NEEDED[data["model"]]),
            fix="train the model again with this version",
        )
    return _modern(data) if data["format"] < 2 else data


def describe_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return what a checkpoint is, without reading its tensors.

    Returns
    -------
    Plain values: ``model``, ``format``, ``versions``, ``classes``, ``organs``, ``mpp``, ``windows``, ``input`` (sizes
    and normalisation), ``temperature``, ``alpha`` (schedule; global model), ``backbone`` (name), ``weights`` (file and
    sha256 of the backbone), ``protocol`` (switches that are on), ``cells`` (``{slide: {split: number}}``),
    ``parameters`` (values of all weights) and ``own_heads`` (whether joint fine-tuning left the gate heads of its own).
    """
    data = read_checkpoint(path)
    config = data["config"]
    backbone = data.get("backbone") or config.get("backbone") or {}
    return {
        "model": data["model"],
        "format": data["format"],
        "versions": data.get("versions", {}),
        **{key: data[key] for key in ("classes", "organs", "mpp", "windows", "input", "temperature")},
        "alpha": config.get("alpha"),
        "backbone": backbone.get("name"),
        "weights": data.get("weights"),
        "protocol": sorted(name for name, on in data.get("protocol", {}).items() if on),
        "cells": {
            slide: {split: len(ids) for split, ids in by_split.items()} for slide, by_split in data["cells"].items()
        },
        "parameters": sum(value.numel() for value in data["state"].values()),
        "own_heads": bool(data.get("heads")),
    }


def backbone_facts(backbone: Backbone) -> dict[str, Any]:
    """Return what a checkpoint says of its backbone: ``input_px``, ``mean``, ``std``."""
    return {
        "input_px": backbone.input_px,
        "mean": [float(value) for value in backbone.mean.flatten()],
        "std": [float(value) for value in backbone.std.flatten()],
    }


def weights_of(backbone: Backbone) -> dict[str, Any] | None:
    """Return file, hub id, sha256 and size of a backbone's pretrained weights, as a checkpoint stores them."""
    found = backbone.weights
    return None if found is None else dataclasses.asdict(found)


def same_names(found: Any, expected: Any, what: str, *, where: object, problem: str, fix: str) -> None:
    """Raise when two lists of ``what`` (classes, organs) are not the same; the difference is named."""
    if list(found) == list(expected):
        return
    more, less = sorted(set(found) - set(expected)), sorted(set(expected) - set(found))
    told = [f"also {', '.join(more)}"] * bool(more) + [f"not {', '.join(less)}"] * bool(less)
    raise UserError(
        problem,
        where=where,
        found=f"{len(found)} {what}: " + ("; ".join(told) or "the same names in another order"),
        expected=", ".join(expected),
        fix=fix,
    )


def _check_file(file: Path) -> None:
    """Raise when a file cannot be a whole checkpoint."""
    if not file.is_file():
        kind = "a folder" if file.is_dir() else "no file"
        raise UserError("A checkpoint is not there", where=file, found=kind, fix="give the path of a best.ckpt")
    with file.open("rb") as stream:
        start = stream.read(64)
    if zipfile.is_zipfile(file):
        return
    if start.startswith(b"PK\x03\x04") or not start:
        raise UserError(
            "A checkpoint is cut off",
            where=file,
            found=f"{file.stat().st_size} bytes without the end of the file",
            fix="copy the file again, or train the model again",
        )
    if start.startswith(b"version https://git-lfs"):
        raise UserError(
            "A checkpoint is only a pointer of Git LFS", where=file, fix="fetch the file itself with 'git lfs pull'"
        )
    raise _foreign(file, "no archive of torch.save")


def _foreign(file: Path, found: str) -> UserError:
    return UserError(
        "A file is not a checkpoint of this workflow",
        where=file,
        found=found,
        expected="a file named best.ckpt, as training writes it",
        fix=_FIX_FOREIGN,
    )


def _modern(data: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint of format 1 with the names of today's settings."""
    result = {**data, "config": _renamed(data["config"])}
    if "context" in data:
        result["context"] = _renamed(data["context"])
    return result


def _renamed(section: dict[str, Any], parent: str = "") -> dict[str, Any]:
    names = {"optimiser": "optimizer", "run": "trainer"}
    if parent == "run":
        names["epochs"] = "max_epochs"
    return {
        names.get(key, key): _renamed(value, key) if isinstance(value, dict) else value
        for key, value in section.items()
    }
