"""The section ``backbone`` of a model file: its keys, for which networks each is, and what their values are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from nuclass.core.errors import closest

BACKBONE_KEYS = ("name", "kwargs", "config", "path", "input_px", "mean", "std", "pool", "weights")
POOLS = ("native", "center", "cls", "mean", "pooler")
_KEYS_OF = {
    "kwargs": ("timm:<architecture>",),
    "config": ("transformers", "dinov3"),
    "path": ("folder",),
}
_STORED = {"folder": ("config",), "transformers": ("config",)}
Fault: TypeAlias = tuple[str, str, object, str]


def backbone_faults(settings: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield what is wrong with the section: key, fault, value and what is wanted.

    A key that says how the network is built is a fault where another key decides that already, such as ``kwargs`` of a
    registered backbone: it would have no effect.
    """
    for key, value in settings.items():
        if key not in BACKBONE_KEYS:
            yield str(key), f"unknown key.{closest(str(key), list(BACKBONE_KEYS))}", None, ", ".join(BACKBONE_KEYS)
        elif (wanted := _wanted(key, value)) is not None:
            near = closest(value, list(POOLS)) if key == "pool" and isinstance(value, str) else ""
            yield key, f"not a valid value.{near}", repr(value)[:80], wanted
    name = settings.get("name")
    if isinstance(name, str):
        kind = name.partition(":")[0]
        for key, owners in _KEYS_OF.items():
            kinds = {owner.partition(":")[0] for owner in owners}
            if settings.get(key) is not None and kind not in kinds and key not in _STORED.get(kind, ()):
                yield key, f"no key of '{name}', so it would have no effect", None, f"a key of {' or '.join(owners)}"


def _wanted(key: str, value: Any) -> str | None:
    """Return what a value should be, None where it is."""
    if key in ("name", "weights"):
        wanted = "required, none, or a file" if key == "weights" else "text"
        return None if isinstance(value, str) and value else wanted
    if key == "input_px":
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        return None if fits else "a whole number of px, at least 1"
    if key in ("mean", "std"):
        return (
            None
            if _is_triple(value, above=0 if key == "std" else -math.inf)
            else ("three numbers, one a channel, of values in [0, 1]" + (", above 0" if key == "std" else ""))
        )
    if key == "pool":
        return None if value in POOLS else ", ".join(POOLS)
    if value is None:
        return None
    if key == "path":
        return None if isinstance(value, str) else "a folder"
    return None if isinstance(value, dict) else "a section of keys"


def _is_triple(value: Any, above: float) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(
            isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item) and item > above
            for item in value
        )
    )
