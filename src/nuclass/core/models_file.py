"""The model file: settings of all models in one, or a section in a file of its own beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nuclass.core.errors import UserError
from nuclass.core.schema import Locate, check_settings, key_lines, raise_faults, read_yaml


def read_models_file(path: str | Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """Return a model file's sections, and the file of each section that has one of its own.

    Raises
    ------
    UserError
        A file is missing, not YAML, or not a section of keys.
    """
    path = Path(path)
    settings = _section(path)
    named = {key: value for key, value in settings.items() if isinstance(value, str) and key != "protocol"}
    files = {key: path.parent / value for key, value in named.items()}
    for key, file in files.items():
        if not file.is_file():
            raise UserError(
                f"the file of the section '{key}' is missing",
                where=f"{path}, line {key_lines(path)[(key,)]}",
                found=str(file),
                fix="correct its name, which is looked for beside this file, or write the section here",
            )
    return settings | {key: _section(file) for key, file in files.items()}, files


def read_complete(path: str | Path, schema: str | Path) -> dict[str, Any]:
    """Return a model file's settings with the defaults of ``schema`` filled in.

    Raises
    ------
    UserError
        As :func:`read_models_file`, and with all values that the schema refuses.
    """
    settings, files = read_models_file(path)
    checked, faults = check_settings(settings, read_yaml(schema), models_locator(path, files))
    raise_faults(faults, f"The settings of the models cannot be used ({path})")
    return checked


def models_locator(path: str | Path, files: Mapping[str, Path]) -> Locate:
    """Return a function that names file and line of a key of a model file.

    A key that is not written, such as one with its default, stands on the line of the section around it.

    Parameters
    ----------
    path, files
        The model file, and the file of each section that has one of its own, see :func:`read_models_file`.
    """
    whole = key_lines(path)
    own = {name: key_lines(file) for name, file in files.items()}

    def locate(keys: Sequence[str | int]) -> str:
        for end in range(len(keys), 0, -1):
            part = tuple(keys[:end])
            if part[0] in own and part[1:] in own[str(part[0])]:
                return f"{files[str(part[0])]}, line {own[str(part[0])][part[1:]]}"
            if part in whole:
                return f"{path}, line {whole[part]}"
        return str(path)

    return locate


def _section(path: Path) -> dict[str, Any]:
    data = read_yaml(path)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError("the models' settings are not a section of keys", where=path, found=repr(data)[:80])
    return data
