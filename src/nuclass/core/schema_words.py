"""Words for what a JSON schema refuses: they change no result, so that other words make nothing run again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nuclass.core.errors import UserError, closest

Locate = Callable[[Sequence[str | int]], str]
"""Gives the place (file, line, key) of a path into the settings."""


def faults_of(error: Any, locate: Locate) -> Iterator[UserError]:
    """Yield what one error of a JSON schema comes to, with its place by ``locate``."""
    path = list(error.absolute_path)
    key = dotted(path)
    where = f"{locate(path)}, key {key}" if key else locate(path)
    about = error.schema.get("description")
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        valid = sorted(error.schema.get("properties", {}))
        for name in sorted(set(error.instance) - set(valid), key=str):
            inside = f" in {key}" if key else ""
            yield UserError(
                f"unknown key '{name}'{inside}.{closest(str(name), valid)}",
                where=locate([*path, name]),
                expected="one of " + ", ".join(valid),
                fix="correct the spelling, or delete the line",
            )
    elif error.validator == "required":
        for name in error.validator_value:
            if isinstance(error.instance, dict) and name not in error.instance:
                part = error.schema.get("properties", {}).get(name, {})
                inside = f" in {key}" if key else ""
                yield UserError(
                    f"the key '{name}' is missing{inside}",
                    where=where,
                    expected=part.get("description"),
                    fix=f"add the line '{name}: ...'",
                )
    elif error.validator == "anyOf":
        options = " or ".join(_rule(inner) for inner in error.context)
        words = [str(word) for inner in error.context if inner.validator == "enum" for word in inner.validator_value]
        yield UserError(
            f"the value of {key} is not valid.{hint}"
            if (hint := closest(str(error.instance), words))
            else f"the value of {key} is not valid",
            where=where,
            found=_shown(error.instance),
            expected=options,
        )
    else:
        hint = ""
        if error.validator == "enum":
            hint = closest(str(error.instance), [str(item) for item in error.validator_value])
        expected = _rule(error)
        yield UserError(
            f"the value of {key} is not valid.{hint}" if hint else f"the value of {key} is not valid",
            where=where,
            found=_shown(error.instance),
            expected=f"{expected} ({about})" if about else expected,
        )


def dotted(path: Sequence[str | int]) -> str:
    """Write a path into nested settings as ``a.b[2]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _shown(value: Any) -> str:
    kinds = {str: "text", int: "a whole number", float: "a number", bool: "a switch", list: "a list", dict: "a section"}
    if value is None:
        return "nothing"
    text = repr(value)
    if len(text) > 120:
        text = text[:117] + "..."
    return f"{text} ({kinds.get(type(value), type(value).__name__)})"


def _rule(error: Any) -> str:
    value = error.validator_value
    names = {
        "string": "text",
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "array": "a list",
        "object": "a section of keys",
        "null": "nothing",
    }
    if error.validator == "type":
        kinds = [value] if isinstance(value, str) else value
        return " or ".join(names.get(kind, kind) for kind in kinds)
    rules = {
        "enum": lambda: "one of " + ", ".join(str(item) for item in value),
        "const": lambda: repr(value),
        "minimum": lambda: f"at least {value}",
        "maximum": lambda: f"at most {value}",
        "exclusiveMinimum": lambda: f"more than {value}",
        "exclusiveMaximum": lambda: f"less than {value}",
        "multipleOf": lambda: f"a multiple of {value}",
        "minItems": lambda: f"at least {value} entries",
        "minLength": lambda: "text that is not empty",
        "uniqueItems": lambda: "each entry once",
        "pattern": lambda: f"text of the form {value}",
    }
    return rules[error.validator]() if error.validator in rules else str(error.message)
