"""A fingerprint of the code that a rule runs, so that a change of code reruns just what depends on it."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import nuclass
from nuclass.core.errors import UserError
from nuclass.core.files import write_json

_LIBRARY = Path(nuclass.__file__).parent
_KEPT = Path(".snakemake/nuclass_code.json")
"""What was read of files of code, for the next start in this folder: every job of a cluster asks again."""
_FORM = f"1, Python {sys.version_info.major}.{sys.version_info.minor}"
_SILENT = {"nuclass"} | {
    f"nuclass.core.{name}" for name in "code errors jobs leftovers log orphans progress schema_words".split()
}
"""Modules that report on the work and do not change its results; ``nuclass`` itself holds the version, and
public names that the library and the scripts do not use. What reads files or fills in settings is none of them."""


class _Import(NamedTuple):
    """``from source import item as name``, with the dots before ``source``; ``import item`` has no source."""

    level: int
    source: str | None
    item: str
    name: str


class _Read(NamedTuple):
    """What counts of a file of code: the fingerprint of its statements, and what it imports anywhere."""

    fingerprint: str
    imports: tuple[_Import, ...]


def code_hash(*names: str) -> str:
    """Return a short hash of scripts or library modules and of all library modules that they import.

    Imports inside functions count, and packages are looked through to the module that defines a name.
    Comments, docstrings and layout do not count, nor do modules of the core that only check, log or report.

    Parameters
    ----------
    names
        Scripts of the folder ``scripts`` by their name, such as ``train_gate``, and library modules by their full
        name, such as ``nuclass.slides.store``. A package counts with all its modules.

    Raises
    ------
    UserError
        If there is neither such a script nor such a module.
    """
    files = [path for name in names if (path := _script(name))]
    asked = {item for path in files for item in _uses(_read(path), "", path)}
    asked.update(module for name in names if not _script(name) for module in _members(name))
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.name}\0{_read(path).fingerprint}\0".encode())
    for name in sorted(reached(asked)):
        digest.update(f"{name}\0{_read(_modules()[name]).fingerprint}\0".encode())
    return digest.hexdigest()[:16]


def reached(names: set[str]) -> set[str]:
    """Return these modules and all that they import, without those that change no result."""
    waiting, seen = sorted(names), set()
    while waiting:
        name = waiting.pop()
        if name not in seen and name not in _SILENT:
            seen.add(name)
            waiting.extend(_imports(name))
    return seen


def _scripts() -> Path:
    return _LIBRARY.parents[1] / "scripts"


def _script(name: str) -> Path | None:
    path = _scripts() / f"{name}.py"
    return path if "." not in name and path.is_file() else None


@cache
def _modules() -> dict[str, Path]:
    """Return every module of the library by its name."""
    found = {}
    for path in sorted(_LIBRARY.rglob("*.py")):
        parts = ["nuclass", *path.relative_to(_LIBRARY).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _members(name: str) -> list[str]:
    inside = [module for module in _modules() if module == name or module.startswith(name + ".")]
    if not inside:
        raise UserError(
            "A rule names code that does not exist",
            where="code_hash",
            found=name,
            expected="a script of the folder scripts, or a module such as nuclass.slides",
        )
    return inside


@cache
def _imports(name: str) -> frozenset[str]:
    path = _modules()[name]
    return frozenset(_uses(_read(path), name, path)) - {name}


def _uses(read: _Read, name: str, path: Path) -> set[str]:
    """Return the library modules that a file imports, at its top or inside its functions."""
    found = set()
    for line in read.imports:
        if line.source is None and not line.level:
            found.add(line.item)
        elif (source := _absolute(name, path, line)).split(".")[0] == "nuclass":
            found.add(_provider(source, line.item))
    return {item for item in found if item in _modules()}


def _absolute(name: str, path: Path, line: _Import) -> str:
    if not line.level:
        return line.source or ""
    base = name.split(".")
    if path.name != "__init__.py":
        base = base[:-1]
    base = base[: len(base) - line.level + 1]
    return ".".join([*base, line.source] if line.source else base)


def _provider(source: str, item: str) -> str:
    """Return the module that defines ``item``, looking through a package's re-exports."""
    if f"{source}.{item}" in _modules():
        return f"{source}.{item}"
    path = _modules().get(source)
    if path is not None and path.name == "__init__.py":
        for line in _read(path).imports:
            if line.name == item and (line.source is not None or line.level):
                inner = _absolute(source, path, line)
                if inner.split(".")[0] == "nuclass" and inner != source:
                    return _provider(inner, line.item)
    return source


def _read(path: Path) -> _Read:
    return _files().get(path) or _parse(path.read_bytes(), path)


@cache
def _files() -> dict[Path, _Read]:
    """Return what counts of every module and script; files that were read before are not parsed again."""
    kept, new, found = _kept(), {}, {}
    for path in [*_modules().values(), *sorted(_scripts().glob("*.py"))]:
        source = path.read_bytes()
        key = hashlib.sha256(source).hexdigest()
        # A file that is being edited concerns those rules alone that use it.
        with suppress(SyntaxError):
            new[key] = found[path] = kept.get(key) or _parse(source, path)
    if new.keys() != kept.keys():
        _keep(new)
    return found


def _parse(source: bytes, path: Path) -> _Read:
    text: list[str] = []
    imports: list[_Import] = []
    _describe(ast.parse(source, str(path)), text, imports)
    return _Read(hashlib.sha256("".join(text).encode()).hexdigest(), tuple(imports))


def _describe(node: ast.AST, text: list[str], imports: list[_Import]) -> None:
    """Write out a tree of statements without its texts that stand alone; ``imports`` is filled on the way.

    What is empty is left out, so that a newer Python with more fields comes to the same.
    """
    if isinstance(node, ast.Constant):
        text.append(f"{type(node.value).__name__} {node.value!r};")
        return
    if isinstance(node, ast.Import):
        imports.extend(_Import(0, None, alias.name, alias.asname or alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            imports.append(_Import(node.level, node.module, alias.name, alias.asname or alias.name))
    text.append(f"{type(node).__name__}(")
    for name in node._fields:
        value = getattr(node, name, None)
        if value is None or value == [] or name in ("ctx", "kind", "type_comment"):
            continue
        text.append(f"{name}=")
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, ast.AST):
                text.append(f"{item!r};")
            elif not _is_text(item):
                _describe(item, text, imports)
    text.append(")")


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _kept() -> dict[str, _Read]:
    """Return what earlier starts in this folder read, by the SHA-256 of a file's bytes."""
    try:
        content = json.loads(_KEPT.read_text(encoding="utf-8"))
        if content["form"] != _FORM:
            return {}
        return {
            key: _Read(fingerprint, tuple(_Import(*line) for line in imports))
            for key, (fingerprint, imports) in content["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _keep(read: dict[str, _Read]) -> None:
    """Keep what was read; where that is not possible the next start reads it again."""
    if _KEPT.parent.is_dir():
        with suppress(OSError, UserError):
            write_json(_KEPT, {"form": _FORM, "files": read})
