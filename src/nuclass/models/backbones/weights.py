"""Where the weights of a backbone lie, and how they are read."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.models.backbones.registry import BackboneSpec

_log = get_logger(__name__)

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def find_weights(spec: BackboneSpec, root: Path) -> Path:
    """Return the folder with the weights of a registered backbone.

    Looked for in ``$NUCLASS_BACKBONES/<hub id>/``, then in ``<root>/backbones/<hub id>/``.

    Raises
    ------
    UserError
        When no folder has a weight file, with the command that downloads it.
    """
    bases = [Path(os.environ["NUCLASS_BACKBONES"])] if os.environ.get("NUCLASS_BACKBONES") else []
    bases.append(root / "backbones")
    folders = [base / spec.hub_id for base in bases]
    for folder in folders:
        if any((folder / name).is_file() for name in WEIGHT_FILES):
            return folder
    gate = "accept the licence on the model's page, then " if spec.gated else ""
    raise UserError(
        f"The weights of {spec.name} are missing",
        where=" or ".join(str(folder) for folder in folders),
        expected=" or ".join(WEIGHT_FILES),
        fix=f"{gate}run: hf download {spec.hub_id} --local-dir {folders[-1]}   "
        "(or set NUCLASS_BACKBONES to the folder that holds your backbones)",
    )


def weight_file(folder: Path) -> Path:
    """Return the weight file of a folder that has one."""
    return next(folder / name for name in WEIGHT_FILES if (folder / name).is_file())


def is_file_setting(weights: object) -> bool:
    """Return whether the key ``weights`` names a file."""
    return weights not in (None, "none", "required")


def load_strict(net: nn.Module, file: Path, name: str) -> None:
    """Load a weight file that has exactly the network's tensors."""
    if not file.is_file():
        raise UserError(f"The weights of {name} are missing", where=file, fix="check the key 'weights' of the backbone")
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(file)
    else:
        state = torch.load(file, map_location="cpu", weights_only=True)
    own = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items()}
    wrong = sorted(key for key in own.keys() | given.keys() if own.get(key) != given.get(key))
    if wrong:
        raise misfit(file, wrong)
    net.load_state_dict(state, strict=True)
    _log.info("%s: weights from %s", name, file)


def misfit(file: Path, wrong: list[str]) -> UserError:
    """Return the error for a file whose tensors are not those of the network."""
    return UserError(
        "A backbone's weights do not fit its architecture",
        where=file,
        found=f"{len(wrong)} tensors missing, unknown or of another shape, the first: {wrong[0]}",
        expected="the file of exactly this network",
        fix="check the backbone's name against the file",
    )
