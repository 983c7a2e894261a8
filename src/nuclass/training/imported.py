"""Checkpoints of the original's release, taken in as ours: read without running code, mapped strictly, told in full.

A file is a Lightning checkpoint (``state_dict`` and ``hyper_parameters``) of the local model ("A"), of the global model
("B", with DINOv3 inside), or of the gate, which holds both.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nuclass.core import names as names_
from nuclass.core import restricted_pickle
from nuclass.core.errors import UserError
from nuclass.core.files import sha256
from nuclass.core.names import GATE, GLOBAL, LOCAL
from nuclass.models.backbones import build_backbone, describe
from nuclass.training.imported_names import (
    EMBEDDING,
    LINEAR,
    NORM,
    Assignment,
    Role,
    Shapes,
    assign,
    find_network,
    nearest,
    parts_of,
    uncompiled,
)

FILM = Role("the organ's modulation (FiLM)", ((LINEAR, ("F", "E")), (LINEAR, ("2D", "F"))), ("film",), ("ctx_film",))
ORGANS = Role("the organ's embedding", ((EMBEDDING, ("O", "E")),), ("tissue", "organ"))
HEAD_A = Role("the head of the local model", ((LINEAR, ("H", "D")), (LINEAR, ("C", "H"))), ("head",))
NORM_A = Role("the norm of the local features", ((NORM, ("D",)),), ("feat_norm",))
PROJECT_U = Role("the projection of the window", ((NORM, ("D",)), (LINEAR, ("P", "D"))), ("proj_uni",))
PROJECT_C = Role("the projection of the context", ((NORM, ("K",)), (LINEAR, ("P", "K"))), ("proj_ctx",))
HEAD_B = Role("the head of the global model", ((LINEAR, ("G", "2P")), (LINEAR, ("C", "G"))), ("head",), ("a_head",))
DEAD = Role(
    "FiLM of the context, never used", ((LINEAR, ("2K", "K")), (LINEAR, ("2D", "2K"))), ("ctx_film",), dropped=True
)
INNER = Role("the inner gate, a training aid", ((LINEAR, ("I", "2P+1")), (LINEAR, (1, "I"))), ("gate",), dropped=True)
GATE_A = Role("the gate's projection of the local features", ((NORM, ("D",)), (LINEAR, ("Q", "D"))), ("gate_proj",))
GATE_B = Role("the gate's projection of the global features", ((NORM, ("2P",)), (LINEAR, ("Q", "2P"))), ("gate_proj",))
GATE_MLP = Role("the gate's layers", ((LINEAR, ("M", "2Q+8")), (LINEAR, ("N", "M")), (LINEAR, (1, "N"))), ("gate_mlp",))


def _copy_in_b(role: Role) -> Role:
    return Role(f"copy in the global model of {role.name}", role.layers, role.words, role.not_words, dropped=True)


COPY = {role.name: _copy_in_b(role) for role in (FILM, ORGANS, HEAD_A, NORM_A)}
_OURS = {
    FILM.name: ("film.modulation.0", "film.modulation.2"),
    ORGANS.name: ("film.embedding",),
    HEAD_A.name: ("head.1", "head.4"),
    NORM_A.name: ("norm",),
    PROJECT_U.name: ("local_projection.0", "local_projection.1"),
    PROJECT_C.name: ("context_projection.0", "context_projection.1"),
    HEAD_B.name: ("head.1", "head.4"),
    GATE_A.name: ("project_a.0", "project_a.1"),
    GATE_B.name: ("project_b.0", "project_b.1"),
    GATE_MLP.name: ("mlp.0", "mlp.3", "mlp.6"),
}
ROLES = {
    LOCAL: (FILM, ORGANS, HEAD_A, NORM_A),
    GLOBAL: (
        PROJECT_U,
        PROJECT_C,
        HEAD_B,
        DEAD,
        INNER,
        COPY[FILM.name],
        COPY[ORGANS.name],
        COPY[HEAD_A.name],
        COPY[NORM_A.name],
    ),
    GATE: (PROJECT_U, PROJECT_C, HEAD_B, FILM, ORGANS, HEAD_A, GATE_A, GATE_B, GATE_MLP, NORM_A),
}
BACKBONES: dict[str, dict[str, Any]] = {
    "local": {"name": "uni2-h"},
    "context": {"name": "dinov3-vitl16", "input_px": 512},
}


@dataclass(frozen=True)
class Original:
    """A file of the original's release, sorted.

    Attributes
    ----------
    states
        Part of a model (``local``, ``global``, ``gate``, ``context``) -> our name of a tensor -> its name in the file.
    sizes
        Widths: ``D`` backbone, ``K`` context, ``E`` organ, ``H`` and ``G`` heads, ``P`` projections, ``C`` classes,
        ``O`` organs, and of the gate ``Q M N``.
    dropped
        What has no place in our models -> number of tensors and of parameters.
    doubtful
        Roles that rest on shapes alone.
    """

    states: dict[str, dict[str, str]]
    sizes: dict[str, int]
    dropped: dict[str, tuple[int, int]] = field(default_factory=dict)
    doubtful: list[str] = field(default_factory=list)


def read_original(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors by name, mapped from the disk, and the hyper-parameters of a Lightning checkpoint.

    Raises
    ------
    UserError
        The file is not there, is not of this kind, or holds objects that are neither tensors nor plain values: reading
        these would run code of the file, so they are refused.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError("The checkpoint is missing", where=file)
    try:
        data = _load(file)
    except restricted_pickle.ForbiddenError as error:
        raise UserError(
            "A checkpoint holds more than tensors and plain values; it is not read, for that would run its code",
            where=file,
            found=str(error).splitlines()[0],
            fix="ask for the file with state_dict and plain hyper_parameters alone",
        ) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, TypeError, LookupError) as error:
        raise UserError(
            "A checkpoint cannot be read",
            where=file,
            found=f"{file.stat().st_size:,} bytes; {(str(error) or type(error).__name__).splitlines()[0]}",
            expected="a whole file of torch.save",
            fix="copy or download it again",
        ) from error
    state = data.get("state_dict") if isinstance(data, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            "A file is not a checkpoint of Lightning",
            where=file,
            found=f"keys {', '.join(map(str, data))}"[:200] if isinstance(data, dict) else type(data).__name__,
            expected="state_dict with tensors, and hyper_parameters",
            fix="a best.ckpt of this workflow needs no import" if isinstance(data, dict) and "format" in data else None,
        )
    _check_values(state, file)
    hyper = data.get("hyper_parameters")
    return dict(state), dict(hyper) if isinstance(hyper, dict) else {}


def _load(file: Path) -> Any:
    """Read a file without running code in it, mapped from the disk where its format allows that."""
    how: dict[str, Any] = {"map_location": "cpu", "weights_only": False, "pickle_module": restricted_pickle}
    try:
        return torch.load(file, mmap=True, **how)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
        return torch.load(file, **how)


def _check_values(state: Mapping[str, Tensor], where: object) -> None:
    """Raise for a tensor that is no weight: of whole numbers, or with values that are not finite."""
    for name, value in state.items():
        is_weight = value.is_floating_point()
        if not is_weight or not torch.isfinite(value).all():
            raise UserError(
                "A tensor of the checkpoint is no weight",
                where=where,
                found=f"{name}: {'values that are not finite' if is_weight else value.dtype}",
                expected="finite numbers of a floating type",
                fix="copy or download the file again; of a training that diverged there is no model",
            )


def sort_original(
    shapes: Shapes, model: str, where: object, backbones: Mapping[str, Mapping[str, Any]] = BACKBONES
) -> Original:
    """Return which tensor of the file is which of ours; every one is either used or named as dropped.

    Parameters
    ----------
    shapes
        Shape of each tensor by its name.
    backbones
        Settings of the ``local`` and the ``context`` backbone in the file.

    Raises
    ------
    UserError
        A tensor is missing, left over, of another shape, or fits in two places.
    """
    real = uncompiled(shapes, where)
    plain = {name: tuple(shapes[key]) for name, key in real.items()}
    local = network_shapes(backbones["local"])
    prefixes = find_network(plain, local, "the local backbone", 2 if model == GATE else 1, where)
    taken = {prefix + name for prefix in prefixes for name in local}
    context: dict[str, str] = {}
    if model != LOCAL:
        context = _context_names(plain, backbones["context"], where)
        taken |= set(context.values())
    parts, strange = parts_of({name: shape for name, shape in plain.items() if name not in taken})
    if strange:
        raise UserError("Tensors of the file have no place in the model", where=where, found=", ".join(strange[:8]))
    sizes = {"D": describe(dict(backbones["local"])).feature_dim}
    if model != LOCAL:
        sizes |= {"K": describe(dict(backbones["context"])).feature_dim}
    found = assign(parts, ROLES[model], sizes, where)
    owners = _owners(prefixes, found, context, model, where)
    states = {
        name: {f"backbone.net.{key}": prefix + key for key in local} | _own_names(found, name)
        for name, prefix in owners.items()
    }
    if model == GATE:
        states[GATE] = _own_names(found, GATE)
    dropped = {
        role: (sum(len(part.tensors) for part in items), _count(plain, items))
        for role, items in found.parts.items()
        if role not in _OURS
    }
    if context:
        states["context"] = context
    whole = {name: {ours: real[key] for ours, key in names.items()} for name, names in states.items()}
    return Original(whole, found.sizes, dropped, found.doubtful)


def network_shapes(settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of a backbone's network."""
    with torch.device("meta"):
        net = build_backbone(dict(settings), load_weights=False).net
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def class_names(given: Sequence[str] | None, hyper: Mapping[str, Any], count: int, where: object) -> list[str]:
    """Return the names of the classes in the order of the head's outputs: of the file, else those given.

    Raises
    ------
    UserError
        Neither tells them (they are never guessed: of the 16 published ones, the third is not known), both differ, or
        their number is not that of the head.
    """
    stored = hyper.get("class_names")
    names = [str(name) for name in stored] if isinstance(stored, list | tuple) and stored else None
    if names and given and names != list(given):
        raise UserError(
            "The classes that are given are not those of the file", where=where, found=given, expected=names
        )
    names = names or (list(given) if given else None)
    if names is None:
        raise UserError(
            f"The file does not name its {count} classes",
            where=where,
            expected="their names in the order of the model's outputs. The published 16 are sorted; the third, after "
            "B_Cell and before Ductal, is Cardiomyocyte or Dendritic_Cell, and only those who trained the model know",
            fix="give --classes NAMES.json, or the names with commas between",
        )
    if len(names) != count or len(set(names)) != count:
        raise UserError(
            "The number of classes is not that of the model", where=where, found=len(set(names)), expected=count
        )
    return names


def organ_names(given: Sequence[str] | None, count: int | None, where: object) -> list[str]:
    """Return the organs in the order of the embedding's rows, ``unknown`` last; by default the eight published ones.

    ``count`` is None for a file without such rows.
    """
    from nuclass.data.vocabulary import UNKNOWN

    names = list(given or names_.ORGANS)
    if len(set(names)) != len(names) or (count is not None and len(names) != count):
        raise UserError(
            "The number of organs is not that of the model",
            where=where,
            found=", ".join(names),
            expected=f"{count or 'different'} names in the order of the embedding's rows",
            fix="give --organs",
        )
    return [*names, UNKNOWN]


def with_unknown_organ(rows: Tensor) -> Tensor:
    """Return an embedding (O, E) with a last row, of the unknown organ: the mean of the others, (O + 1, E)."""
    return torch.cat([rows, rows.float().mean(0, keepdim=True).to(rows.dtype)])


def origin_of(file: Path, model: str, original: Original) -> dict[str, Any]:
    """Return what a checkpoint of ours keeps of where it came from."""
    return {
        "file": file.name,
        "sha256": sha256(file),
        "model": model,
        "dropped": {name: list(numbers) for name, numbers in original.dropped.items()},
        "doubtful": list(original.doubtful),
    }


def _context_names(plain: Shapes, settings: Mapping[str, Any], where: object) -> dict[str, str]:
    """Return name in today's transformers -> name in the file of the context backbone; 4.x had no ``model.`` in it."""
    today = network_shapes(settings)
    spellings = [{name: name for name in today}, {name: name.removeprefix("model.") for name in today}]
    for spelling in spellings:
        reference = {spelling[name]: shape for name, shape in today.items()}
        try:
            (prefix,) = find_network(plain, reference, "the context backbone", 1, where)
        except UserError:
            if spelling is spellings[-1]:
                raise
            continue
        return {name: prefix + spelling[name] for name in today}
    raise AssertionError


def _owners(
    prefixes: list[str], found: Assignment, context: Mapping[str, str], model: str, where: object
) -> dict[str, str]:
    """Return model -> prefix of its own local backbone."""
    if model != GATE:
        return {model: prefixes[0]}
    of_b = [next(iter(context.values()))] + [found.parts[role.name][0].path for role in (PROJECT_U, PROJECT_C)]
    of_a = [found.parts[role.name][0].path for role in (FILM, ORGANS, NORM_A)]
    b = nearest(prefixes, of_b, "the global model's backbone", where)
    a = nearest(prefixes, of_a, "the local model's backbone", where)
    if a == b:
        raise UserError("Both models seem to have one backbone", where=where, found=a, expected="two of them")
    return {LOCAL: a, GLOBAL: b}


def _own_names(found: Assignment, model: str) -> dict[str, str]:
    own = {
        LOCAL: (FILM, ORGANS, HEAD_A, NORM_A),
        GLOBAL: (PROJECT_U, PROJECT_C, HEAD_B),
        GATE: (GATE_A, GATE_B, GATE_MLP),
    }[model]
    return {ours: key for role in own for ours, key in found.tensors(role.name, _OURS[role.name]).items()}


def _count(plain: Shapes, parts: Sequence[Any]) -> int:
    return sum(int(torch.Size(plain[name]).numel()) for part in parts for name in part.tensors.values())
