"""Read YAML, and check nested settings against a JSON schema: defaults are filled in, every fault told at once."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nuclass.core.errors import UserError
from nuclass.core.schema_words import Locate, dotted, faults_of

__all__ = ["Locate", "check_settings", "dotted", "key_lines", "locator", "raise_faults", "read_yaml"]

_MAX_NODES, _MAX_DEPTH = 100_000, 60
"""Values and depth of a YAML file, its aliases counted as often as they stand: no file of settings comes near them."""


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file; a missing or broken file and a repeated key are :class:`UserError`."""
    import yaml

    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
        # First by its events, for composing what is nested too deep ends the process.
        _check_depth(text, file)
        _check_nodes(yaml.compose(text, Loader=_loader()), file)
        data = yaml.load(text, Loader=_loader())
    except FileNotFoundError as error:
        raise UserError("A file is missing", where=file, fix="check the path in the configuration") from error
    except IsADirectoryError as error:
        raise UserError("A folder stands where a file is wanted", where=file, fix="name the file in it") from error
    except OSError as error:
        raise UserError("A file cannot be read", where=file, found=error.strerror) from error
    except (yaml.YAMLError, ValueError, AttributeError) as error:
        # PyYAML lets through what a date out of range, or a tag on a value of another kind, raises.
        mark = getattr(error, "problem_mark", None)
        place = f"{file}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(file)
        raise UserError(
            "A file is not valid YAML",
            where=place,
            found=getattr(error, "problem", None) or str(error),
            fix="compare the indentation, colons and quotes of that line with the lines around it",
        ) from error
    return data


def _loader() -> Any:
    """Return the safe loader, the fast one where PyYAML was built with it."""
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _too_much(file: Path) -> UserError:
    return UserError(
        "A YAML file holds too many values, or they are nested too deep",
        where=file,
        expected=f"at most {_MAX_NODES:,} values, {_MAX_DEPTH} deep; an alias counts as often as it stands",
        fix="take its anchors (&name) and aliases (*name) out",
    )


def _check_depth(text: str, file: Path) -> None:
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=_loader()):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise _too_much(file)


def _check_nodes(root: Any, file: Path) -> None:
    """Refuse repeated keys, and files that would not end: values in themselves, aliases of aliases."""
    import yaml

    seen_nodes = 0
    waiting = [(root, 0)]
    while waiting:
        node, depth = waiting.pop()
        seen_nodes += 1
        if seen_nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise _too_much(file)
        if isinstance(node, yaml.MappingNode):
            _refuse_repeated_keys(node, file)
            waiting += [(part, depth + 1) for pair in reversed(node.value) for part in reversed(pair)]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(item, depth + 1) for item in reversed(node.value)]


def _refuse_repeated_keys(node: Any, file: Path) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        name = str(key.value)
        line = key.start_mark.line + 1
        if name in seen:
            raise UserError(
                f"The key '{name}' stands twice",
                where=f"{file}, lines {seen[name]} and {line}",
                expected="each key once; of two, only the last would count",
                fix="delete one of the two lines",
            )
        seen[name] = line


def key_lines(path: str | Path) -> dict[tuple[str | int, ...], int]:
    """Return the line (from 1) of every key and list item of a YAML file, by its path."""
    import yaml

    lines: dict[tuple[str | int, ...], int] = {}

    def walk(node: Any, at: tuple[str | int, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here = (*at, str(key.value))
                lines[here] = key.start_mark.line + 1
                walk(value, here)
        elif isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                lines[(*at, number)] = item.start_mark.line + 1
                walk(item, (*at, number))

    walk(yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=_loader()), ())
    return lines


def locator(files: Sequence[str | Path], otherwise: str, settings: Mapping[str, Any] | None = None) -> Locate:
    """Return a function that names file and line of a key: the last of ``files`` that sets it.

    A key stands in ``otherwise`` (the command line, or the file as a whole) when no file sets it, or when
    ``settings``, the merged values, differ from what the last file says.
    """
    known = [(str(file), key_lines(file), read_yaml(file)) for file in files if Path(file).is_file()]

    def locate(path: Sequence[str | int]) -> str:
        for file, lines, data in reversed(known):
            if tuple(path) in lines:
                if settings is not None and _at(settings, path) != _at(data, path):
                    return otherwise
                return f"{file}, line {lines[tuple(path)]}"
        return otherwise

    return locate


def _at(data: Any, path: Sequence[str | int]) -> Any:
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def check_settings(
    settings: Mapping[str, Any], schema: Mapping[str, Any], locate: Locate
) -> tuple[dict[str, Any], list[UserError]]:
    """Return a copy of ``settings`` with the schema's defaults filled in, and all faults found.

    Text that spells a value of the wanted type is read as that value (``"7"`` for an integer, ``1e-3``
    for a number, ``"false"`` for a switch): the command line and YAML 1.1 both hand such text over.
    """
    import jsonschema

    checked = _complete(copy.deepcopy(dict(settings)), schema, schema)
    faults: list[UserError] = []
    validator = jsonschema.Draft202012Validator(schema)
    for error in sorted(validator.iter_errors(checked), key=lambda item: [str(part) for part in item.absolute_path]):
        faults.extend(faults_of(error, locate))
    return checked, faults


def raise_faults(faults: Sequence[UserError], what: str) -> None:
    """Raise one :class:`UserError` that tells all ``faults``; do nothing when there is none."""
    if not faults:
        return
    if len(faults) == 1:
        raise faults[0]
    blocks = [f"{number}. " + str(fault).replace("\n", "\n ") for number, fault in enumerate(faults, start=1)]
    raise UserError(f"{what}: {len(faults)} faults\n" + "\n".join(blocks))


def _complete(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """Fill in defaults and read text as the wanted type, from the top down."""
    schema = _resolve(schema, root)
    if isinstance(value, dict):
        for name, part in schema.get("properties", {}).items():
            part = _resolve(part, root)
            if name not in value and "default" in part:
                value[name] = copy.deepcopy(part["default"])
            if name in value:
                value[name] = _complete(value[name], part, root)
        others = schema.get("additionalProperties")
        if isinstance(others, dict):
            for name in value.keys() - schema.get("properties", {}).keys():
                value[name] = _complete(value[name], others, root)
        return value
    if isinstance(value, list):
        items = schema.get("items", {})
        return [_complete(item, items, root) for item in value]
    return _read_text(value, schema.get("type"))


def _resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow a reference to ``#/$defs/name``; keys beside it (a default) go before the definition's."""
    if "$ref" not in schema:
        return schema
    target = root["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    return {**target, **{key: value for key, value in schema.items() if key != "$ref"}}


def _read_text(value: Any, wanted: str | list[str] | None) -> Any:
    if not isinstance(value, str) or wanted is None:
        return value
    kinds = [wanted] if isinstance(wanted, str) else wanted
    if "string" in kinds:
        return value
    text = value.strip().lower()
    if "boolean" in kinds and text in ("true", "false"):
        return text == "true"
    if "null" in kinds and text in ("", "null", "none", "~"):
        return None
    for kind, read in (("integer", int), ("number", float)):
        if kind in kinds:
            try:
                return read(text)
            except ValueError:
                continue
    return value
