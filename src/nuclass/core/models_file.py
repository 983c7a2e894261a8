"""The model file: settings of all models in one, or a section in a file of its own beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nuclass.core.errors import UserError
from nuclass.core.schema import read_yaml


def read_models_file(path: str | Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """Return a model file's sections, and the file of each section that has one of its own.

    Raises
    ------
    UserError
        A file is missing, not YAML, or not a section of keys.
    """
    path = Path(path)
    settings = _section(path)
    files = {key: path.parent / value for key, value in settings.items() if isinstance(value, str)}
    return settings | {key: _section(file) for key, file in files.items()}, files


def _section(path: Path) -> dict[str, Any]:
    data = read_yaml(path)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError("the models' settings are not a section of keys", where=path, found=repr(data)[:80])
    return data
