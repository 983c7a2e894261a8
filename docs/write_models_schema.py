"""Write config/schemas/models.schema.yaml from the typed settings in nuclass.training.config (make schemas)."""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

TARGET = Path(__file__).parent.parent / "config" / "schemas" / "models.schema.yaml"
_SCALARS = {int: "integer", float: "number", str: "string", bool: "boolean"}


def models_schema() -> dict[str, Any]:
    """Return the schema of a models file."""
    from nuclass.training.config import Models

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Models", **_section(Models)}


def _section(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    properties = {}
    for field in dataclasses.fields(kind):
        part = _value(hints[field.name])
        if field.default is not dataclasses.MISSING:
            part["default"] = list(field.default) if isinstance(field.default, tuple) else field.default
        elif field.default_factory is not dataclasses.MISSING:
            part["default"] = {}
        properties[field.name.rstrip("_")] = part
    about = (kind.__doc__ or "").split(";")[0].split("\n")[0].strip().rstrip(".")
    return {"description": about, "type": "object", "additionalProperties": False, "properties": properties}


def _value(kind: Any) -> dict[str, Any]:
    from nuclass.training.parsing import bare

    kind, limits = bare(kind)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        options = [_value(option) for option in inner if option is not type(None)]
        if type(None) in inner:
            (only,) = options
            return {**only, "type": [only["type"], "null"]}
        return {"anyOf": options}
    if origin is Literal:
        return {"enum": list(inner)}
    if dataclasses.is_dataclass(kind):
        return _section(kind)  # type: ignore[arg-type]
    if origin in (tuple, list):
        return {"type": "array", "items": _value(inner[0])}
    if origin is dict or kind is dict:
        return {"type": "object"}
    return {"type": _SCALARS[kind], **(limits.schema() if limits else {})}


def render() -> str:
    """Return the text of the schema file."""
    head = "# Written by `make schemas` from nuclass.training.config. Change the settings there.\n"
    return head + yaml.safe_dump(models_schema(), sort_keys=False, width=120)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
