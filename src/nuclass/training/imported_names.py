"""Which tensor of a foreign checkpoint is which: by names of published networks, by shapes, and by words in names.

A part (a norm, a linear layer, an embedding) has a role when its shape fits those around it and its name says so. Where
only the shape fits, the role is doubtful and is told; where several parts fit, or one is left over, it is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from nuclass.core.errors import UserError

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
NORM, LINEAR, EMBEDDING = "norm", "linear", "embedding"
_COMPILED = "_orig_mod."


@dataclass(frozen=True)
class Part:
    """A module that holds tensors: its path, kind, shape of the weight, and the names of its tensors."""

    path: str
    kind: str
    shape: Shape
    tensors: Mapping[str, str]

    @property
    def parent(self) -> str:
        """Path of the module around it."""
        return self.path.rpartition(".")[0]


@dataclass(frozen=True)
class Role:
    """What parts that follow each other in one module are.

    Attributes
    ----------
    name
        What the role is called in messages.
    layers
        Kind and shape of each part; a size is a number, or a letter that stands for the same number in all roles.
    words
        The name of each part holds one of these.
    not_words
        And none of these.
    dropped
        The parts have no place in our model; they may be missing.
    """

    name: str
    layers: tuple[tuple[str, tuple[str | int, ...]], ...]
    words: tuple[str, ...]
    not_words: tuple[str, ...] = ()
    dropped: bool = False


@dataclass
class Assignment:
    """Role -> its parts, sizes found, and roles that rest on shapes alone."""

    parts: dict[str, list[Part]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    doubtful: list[str] = field(default_factory=list)

    def tensors(self, role: str, names: Iterable[str]) -> dict[str, str]:
        """Return our name -> the file's, for the parts of a role, which are ``names`` in our model."""
        return {
            f"{name}.{leaf}": key
            for name, part in zip(names, self.parts[role], strict=True)
            for leaf, key in part.tensors.items()
        }


def uncompiled(keys: Iterable[str], where: object) -> dict[str, str]:
    """Return name without ``_orig_mod.`` -> name in the file: torch.compile puts this into names."""
    result: dict[str, str] = {}
    for key in keys:
        plain = key.replace(_COMPILED, "")
        if plain in result:
            raise UserError("Two tensors have one name", where=where, found=f"{result[plain]} and {key}")
        result[plain] = key
    return result


def find_network(shapes: Shapes, reference: Shapes, what: str, count: int, where: object) -> list[str]:
    """Return the ``count`` prefixes under which all tensors of a network lie, each with its shape.

    Raises
    ------
    UserError
        Another number of them is there; of one that is nearly there, the first tensor that is not is named.
    """
    first = next(iter(reference))
    found, near = [], []
    for key in shapes:
        prefix = key[: -len(first)]
        if not key.endswith(first) or (prefix and not prefix.endswith(".")):
            continue
        wrong = [name for name, shape in reference.items() if shapes.get(prefix + name) != shape]
        if not wrong:
            found.append(prefix)
        elif len(wrong) < len(reference) / 2:
            near.append(f"{prefix}{wrong[0]} is {shapes.get(prefix + wrong[0], 'missing')}, not {reference[wrong[0]]}")
    if len(found) != count:
        raise UserError(
            f"The file does not hold {what} {'once' if count == 1 else f'{count} times'}",
            where=where,
            found="; ".join([f"{len(found)} of {count}, {len(shapes)} tensors in all", *near]),
            expected=f"{len(reference)} tensors such as {first} under one prefix",
            fix="check --model against the file",
        )
    return found


def parts_of(shapes: Shapes) -> tuple[list[Part], list[str]]:
    """Return the parts of a file in its order, and the tensors that belong to none."""
    tensors: dict[str, dict[str, str]] = {}
    for key in shapes:
        path, _, leaf = key.rpartition(".")
        tensors.setdefault(path, {})[leaf] = key
    parts: list[Part] = []
    strange: list[str] = []
    for path, leaves in tensors.items():
        kind = _kind(shapes, leaves)
        if kind:
            parts.append(Part(path, kind, shapes[leaves["weight"]], leaves))
        else:
            strange += leaves.values()
    return parts, strange


def assign(parts: Sequence[Part], roles: Sequence[Role], sizes: Mapping[str, int], where: object) -> Assignment:
    """Give every part one role and every role its parts, in the order of ``roles``.

    Parameters
    ----------
    sizes
        Sizes that are known, such as ``D`` of the backbone. ``2P`` is twice ``P``, ``2P+1`` one more.

    Raises
    ------
    UserError
        A role has no part or several, or a part has no role.
    """
    result = Assignment(sizes=dict(sizes))
    free = list(range(len(parts)))
    for role in roles:
        runs = list(_runs(parts, free, role, result.sizes))
        named = [run for run in runs if all(_named(parts[place], role) for place in run)]
        chosen = named or runs
        if not chosen and role.dropped:
            continue
        if len(chosen) != 1:
            raise UserError(
                f"It is not certain which tensors are {role.name}" if chosen else f"The file does not hold {role.name}",
                where=where,
                found="; ".join(" + ".join(parts[place].path for place in run) for run in chosen)
                or "left: " + ", ".join(_told(parts[place]) for place in free),
                expected=" + ".join(f"{kind} {_sized(shape, result.sizes)}" for kind, shape in role.layers)
                + f", named {' or '.join(role.words)}",
            )
        (run,) = chosen
        for place, (_, shape) in zip(run, role.layers, strict=True):
            _bind(shape, parts[place].shape, result.sizes)
        if not named and not role.dropped:
            result.doubtful.append(f"{role.name}: {', '.join(_told(parts[place]) for place in run)}")
        result.parts[role.name] = [parts[place] for place in run]
        free = [place for place in free if place not in run]
    if free:
        raise UserError(
            "Parts of the file have no place in the model",
            where=where,
            found=", ".join(_told(parts[place]) for place in free),
            fix="check --model against the file",
        )
    return result


def nearest(paths: Sequence[str], to: Sequence[str], what: str, where: object) -> str:
    """Return the one of ``paths`` that shares most of its first words with those of ``to``.

    Raises
    ------
    UserError
        Two share as many.
    """
    scores = [sum(_shared(path, other) for other in to) for path in paths]
    best = max(scores)
    if scores.count(best) > 1:
        raise UserError(
            f"It is not certain which tensors are {what}",
            where=where,
            found=", ".join(paths),
            expected=f"one of them in the same module as {to[0]}",
        )
    return paths[scores.index(best)]


def _shared(path: str, other: str) -> int:
    count = 0
    for one, two in zip(path.split("."), other.split("."), strict=False):
        if one != two:
            break
        count += 1
    return count


def _kind(shapes: Shapes, leaves: Mapping[str, str]) -> str:
    if "weight" not in leaves or set(leaves) - {"weight", "bias"}:
        return ""
    weight = shapes[leaves["weight"]]
    if "bias" not in leaves:
        return EMBEDDING if len(weight) == 2 else ""
    fits = shapes[leaves["bias"]] == weight[:1]
    return {1: NORM, 2: LINEAR}.get(len(weight), "") if fits else ""


def _runs(parts: Sequence[Part], free: Sequence[int], role: Role, sizes: Mapping[str, int]) -> Iterator[list[int]]:
    """Yield the runs of free parts, next to each other in one module, that fit a role in kind and shape."""
    for start in free:
        run = list(range(start, start + len(role.layers)))
        if not set(run) <= set(free) or len({parts[place].parent for place in run}) > 1:
            continue
        trial = dict(sizes)
        fits = (
            parts[place].kind == kind and _bind(shape, parts[place].shape, trial)
            for place, (kind, shape) in zip(run, role.layers, strict=True)
        )
        if all(fits):
            yield run


def _bind(wanted: tuple[str | int, ...], found: Shape, sizes: dict[str, int]) -> bool:
    """Return whether a shape fits; letters without a size take theirs."""
    for size, number in zip(wanted, found, strict=True):
        if isinstance(size, str) and len(size) == 1:
            sizes.setdefault(size, number)
        if _number(size, sizes) != number:
            return False
    return True


def _number(size: str | int, sizes: Mapping[str, int]) -> int | None:
    """Return what ``K``, ``2P`` or ``2P+1`` stands for, None where its letter has no size yet."""
    if isinstance(size, int):
        return size
    body, _, more = size.partition("+")
    if body[-1] not in sizes:
        return None
    return int(body[:-1] or 1) * sizes[body[-1]] + int(more or 0)


def _named(part: Part, role: Role) -> bool:
    path = part.path.lower()
    return any(word in path for word in role.words) and not any(word in path for word in role.not_words)


def _told(part: Part) -> str:
    return f"{part.path} ({part.kind} {' x '.join(map(str, part.shape))})"


def _sized(shape: tuple[str | int, ...], sizes: Mapping[str, int]) -> str:
    return " x ".join(str(_number(size, sizes) or size) for size in shape)
