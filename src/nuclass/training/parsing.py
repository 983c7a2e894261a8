"""Plain data, as YAML gives it, to typed settings; every fault is told, with the key's full path and its place."""

from __future__ import annotations

import contextlib
import dataclasses
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from nuclass.core.errors import UserError, closest
from nuclass.core.ranges import Range
from nuclass.core.schema import dotted

Path_ = tuple[str | int, ...]
Place = Callable[[Sequence[str | int]], str | None]
_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


@dataclass
class Faults:
    """Collects faults; ``locate`` gives the file and line of a key, None where it has none."""

    locate: Place = lambda path: None
    items: list[UserError] = field(default_factory=list)

    def add(self, path: Path_, what: str, found: object = None, expected: object = None) -> None:
        """Add a fault of the key at ``path``; ``what`` follows the key in the sentence."""
        name = dotted(path)
        self.items.append(
            UserError(f"{name}: {what}" if name else what, where=self.locate(path), found=found, expected=expected)
        )


def parse_section(kind: type[Any], data: Any, path: Path_, faults: Faults) -> Any:
    """Build the settings class ``kind`` from a section of keys; what is wrong goes to ``faults``.

    Keys that are left out keep their default. Numbers written as text (YAML reads ``1e-4`` so) are understood.
    """
    if not isinstance(data, dict):
        faults.add(path, "a section of keys is wanted", found=repr(data)[:80])
        return kind()
    hints = section_types(kind)
    values = {}
    for key, value in data.items():
        if key not in hints:
            faults.add((*path, str(key)), f"unknown key.{closest(str(key), list(hints))}", expected=", ".join(hints))
        else:
            values[_attribute(key)] = _value(hints[key], value, (*path, key), faults)
    return kind(**values)


def section_types(kind: type[Any]) -> dict[str, Any]:
    """Return the keys of a settings class, as they are written in files, with their types."""
    return {name.rstrip("_"): hint for name, hint in get_type_hints(kind, include_extras=True).items()}


def bare(kind: Any) -> tuple[Any, Range | None]:
    """Return a type without its range, and the range."""
    if get_origin(kind) is Annotated:
        inner, *notes = get_args(kind)
        return inner, next((note for note in notes if isinstance(note, Range)), None)
    return kind, None


def section_of(kind: Any) -> type[Any] | None:
    """Return the settings class that a key holds, also an optional one; None where it holds a value."""
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return next((option for option in options if dataclasses.is_dataclass(option)), None)  # type: ignore[return-value]


def _attribute(key: str) -> str:
    return "global_" if key == "global" else key


def _value(kind: Any, value: Any, path: Path_, faults: Faults) -> Any:
    kind, limits = bare(kind)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _union(get_args(kind), value, path, faults)
    if dataclasses.is_dataclass(kind):
        return parse_section(kind, value, path, faults)  # type: ignore[arg-type]
    if origin is Literal:
        if value not in get_args(kind) or isinstance(value, bool):
            words = [str(option) for option in get_args(kind)]
            faults.add(path, f"not a valid value.{closest(str(value), words)}", repr(value), " | ".join(words))
        return value
    if origin in (tuple, list):
        return _items(kind, value, path, faults)
    if kind is dict or origin is dict:
        if not isinstance(value, dict):
            faults.add(path, "a section of keys is wanted", found=repr(value)[:80])
        return value
    return _scalar(kind, limits, value, path, faults)


def _items(kind: Any, value: Any, path: Path_, faults: Faults) -> Any:
    if not isinstance(value, list | tuple):
        faults.add(path, "a list is wanted", found=repr(value)[:80], expected="values in [ ]")
        return get_origin(kind)()
    inner = get_args(kind)[0]
    return get_origin(kind)(_value(inner, item, (*path, number), faults) for number, item in enumerate(value))


def _union(options: tuple[Any, ...], value: Any, path: Path_, faults: Faults) -> Any:
    if value is None and type(None) in options:
        return None
    kinds = [option for option in options if option is not type(None)]
    tries = []
    for kind in kinds:
        own = Faults(faults.locate)
        result = _value(kind, value, path, own)
        if not own.items:
            return result
        tries.append(own.items)
    # What is wrong in a list, or which words there are, says more than that it is no number.
    alike = (list, tuple) if isinstance(value, list | tuple) else (Literal,) if isinstance(value, str) else ()
    faults.items += tries[next((number for number, kind in enumerate(kinds) if get_origin(kind) in alike), 0)]
    return value


def _scalar(kind: type[Any], limits: Range | None, value: Any, path: Path_, faults: Faults) -> Any:
    if kind is float and isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind in (int, float) and isinstance(value, bool)):
        faults.add(path, "a value of another kind is wanted", repr(value)[:80], _NAMES.get(kind, kind.__name__))
    elif limits is not None and not limits.holds(value):
        faults.add(path, "out of range", value, str(limits))
    return value
