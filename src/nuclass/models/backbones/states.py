"""Read a weight file, take from it what a network needs, and put that into the network. All of it or an error."""

from __future__ import annotations

import pickle
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nuclass.core.errors import UserError

State = dict[str, Tensor]
_INNER = ("state_dict", "model", "module", "model_state_dict")
_POINTER = b"version https://git-lfs"
_QKV = re.compile(r"(blocks\.\d+\.attn)\.([qkv])_proj\.(weight|bias)")
_BEIT3 = (
    (r"beit3\.vision_embed\.cls_token", "cls_token"),
    (r"beit3\.vision_embed\.proj\.", "patch_embed.proj."),
    (r"beit3\.encoder\.embed_positions\.A\.weight", "pos_embed"),
    (r"beit3\.encoder\.layer_norm\.A\.", "norm."),
    (r"beit3\.encoder\.layers\.(\d+)\.self_attn_layer_norm\.A\.", r"blocks.\1.norm1."),
    (r"beit3\.encoder\.layers\.(\d+)\.self_attn\.inner_attn_ln\.A\.", r"blocks.\1.attn.norm."),
    (r"beit3\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.A\.", r"blocks.\1.attn.proj."),
    (r"beit3\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.A\.", r"blocks.\1.attn.\2_proj."),
    (r"beit3\.encoder\.layers\.(\d+)\.final_layer_norm\.A\.", r"blocks.\1.norm2."),
    (r"beit3\.encoder\.layers\.(\d+)\.ffn\.A\.ffn_layernorm\.", r"blocks.\1.mlp.norm."),
    (r"beit3\.encoder\.layers\.(\d+)\.ffn\.A\.(fc[12])\.", r"blocks.\1.mlp.\2."),
)


def read_state(file: Path, again: str) -> State:
    """Return the tensors of a weight file by name, mapped from the disk, not yet in memory.

    Parameters
    ----------
    file
        ``.safetensors``, or what ``torch.save`` wrote; of the latter tensors, numbers and text alone are read, and
        the part ``state_dict``, ``model`` or ``module`` where the file holds more than the weights.
    again
        The command that downloads the file, for the messages.

    Raises
    ------
    UserError
        For a file that is not there, cut short, a pointer of Git LFS, or holds Python objects.
    """
    if not file.is_file():
        fix = "check the key 'weights' of the backbone"
        raise UserError("A backbone's weight file is missing", where=file, fix=fix)
    with file.open("rb") as stream:
        if stream.read(len(_POINTER)) == _POINTER:
            raise UserError(
                "A backbone's weight file is only a pointer to the weights",
                where=file,
                found="a text of Git LFS",
                fix=again,
            )
    state = _read_safetensors(file, again) if file.suffix == ".safetensors" else _read_pickle(file, again)
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _read_safetensors(file: Path, again: str) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise _broken(file, error, again) from error


def _read_pickle(file: Path, again: str) -> State:
    try:
        content = _unpickle(file)
    except pickle.UnpicklingError as error:
        with file.open("rb") as stream:
            is_pickle = stream.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        if not is_pickle or "Unsupported operand" in str(error):
            raise _broken(file, error, again) from error
        raise UserError(
            "A backbone's weight file holds more than tensors and is not read",
            where=file,
            found=_named_object(str(error)),
            expected="tensors, numbers and text; other objects could run any program when they are read",
            fix="write the weights anew as .safetensors on a machine where you trust the file",
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise _broken(file, error, again) from error
    for name in _INNER:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    named = content if isinstance(content, dict) else {type(content).__name__: content}
    strange = [key for key, value in named.items() if not isinstance(value, Tensor)]
    if strange or named is not content:
        raise UserError(
            "A backbone's weight file does not hold weights",
            where=file,
            found=f"'{(strange or list(named))[0]}' is no tensor by name",
            expected="tensors by name, or these under state_dict, model or module",
            fix=again,
        )
    return dict(named)


def _unpickle(file: Path) -> Any:
    import numpy as np

    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    known: list[Any] = [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *kinds,
    ]
    with torch.serialization.safe_globals(known):
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            return torch.load(file, map_location="cpu", weights_only=True)


def _named_object(text: str) -> str:
    match = re.search(r"GLOBAL ([\w.]+)", text)
    return f"the object {match[1]}" if match else text.splitlines()[0]


def _broken(file: Path, error: BaseException, again: str) -> UserError:
    return UserError(
        "A backbone's weight file is cut short or damaged",
        where=file,
        found=f"{file.stat().st_size:,} bytes; {str(error).splitlines()[0] if str(error) else type(error).__name__}",
        expected="a whole .safetensors file, or one of torch.save",
        fix=f"download it again: {again}",
    )


def take(state: State, names: str, left_out: tuple[str, ...]) -> State:
    """Return the tensors of a file by the network's names.

    Parameters
    ----------
    names
        How the file names them (:class:`BackboneSpec`).
    left_out
        Patterns of names that are dropped. Whatever is neither dropped nor known stays, and is then refused.
    """
    wanted = {key: value for key, value in state.items() if not any(fnmatchcase(key, part) for part in left_out)}
    if names == "coca":
        return {key.removeprefix("visual."): value for key, value in wanted.items()}
    return _from_beit3(wanted) if names == "beit3" else wanted


def _from_beit3(state: State) -> State:
    """Return the vision half of a BEiT-3 by timm's names.

    torchscale keeps an expert A for images and B for text, three matrices for query, key and value, and, as fairseq
    does, two position rows more than there are positions, the first two.
    """
    renamed: State = {}
    for key, value in state.items():
        new = key
        for pattern, name in _BEIT3:
            new = re.sub("^" + pattern, name, new)
        renamed[new] = value[2:][None] if new == "pos_embed" else value
    for key in [key for key in renamed if ".q_proj." in key]:
        match = _QKV.fullmatch(key)
        parts = [f"{match[1]}.{part}_proj.{match[3]}" for part in "qkv"] if match else []
        if match and all(part in renamed for part in parts):
            renamed[f"{match[1]}.qkv.{match[3]}"] = torch.cat([renamed.pop(part) for part in parts])
    return renamed


def fill(net: nn.Module, state: State, file: Path) -> None:
    """Put tensors into a network that has exactly these, in float32; ``state`` is emptied on the way.

    A network on the meta device gets memory of its own here, so that there is one copy of the weights.

    Raises
    ------
    UserError
        When a tensor is missing, unknown or of another shape.
    """
    own = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items()}
    wrong = sorted(key for key in own.keys() | given.keys() if own.get(key) != given.get(key))
    if wrong:
        first = wrong[0]
        told = f"of shape {given[first]}, not {own[first]}" if first in own and first in given else ""
        told = told or ("not in the file" if first in own else "not of this network")
        raise misfit(file, [f"{first} ({told})", *wrong[1:]])
    net.load_state_dict(own_copies(state), strict=True, assign=True)


def own_copies(state: State) -> State:
    """Return the tensors in memory of their own, floating ones in float32; ``state`` is emptied on the way."""
    fresh = {}
    for key in list(state):
        value = state.pop(key)
        fresh[key] = value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
    return fresh


def misfit(file: Path, wrong: list[str]) -> UserError:
    """Return the error for a file whose tensors are not those of the network; ``wrong`` names them."""
    return UserError(
        "A backbone's weights do not fit its architecture",
        where=file,
        found=f"{len(wrong)} tensors missing, unknown or of another shape, the first: {wrong[0]}",
        expected="the file of exactly this network",
        fix="check the backbone's name against the file",
    )
