"""A fingerprint of library code, so that a change of code reruns just what depends on it."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

import nuclass
from nuclass.core.errors import UserError

_LIBRARY = Path(nuclass.__file__).parent
_SILENT = {f"nuclass.core.{name}" for name in "code config errors jobs log progress schema sheets".split()}
"""Modules that report on the work and do not change its results."""


def code_hash(*modules: str) -> str:
    """Return a short hash of the named modules and of all library modules they import.

    A package counts with all its modules. Comments, docstrings and layout do not count. Modules of the
    core that only check, log or report do not count either.

    Parameters
    ----------
    modules
        Full names, such as ``nuclass.slides`` or ``nuclass.slides.store``.
    """
    open_names = [name for module in modules for name in _members(module)]
    seen: set[str] = set()
    while open_names:
        name = open_names.pop()
        if name not in seen and name not in _SILENT:
            seen.add(name)
            open_names.extend(_imports(name))
    digest = hashlib.sha256()
    for name in sorted(seen):
        digest.update(f"{name}\0{_fingerprint(name)}\0".encode())
    return digest.hexdigest()[:16]


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
        raise UserError("A rule names a module that is not in the library", where="code_hash", found=name)
    return inside


@cache
def _tree(name: str) -> ast.Module:
    return ast.parse(_modules()[name].read_text(encoding="utf-8"))


@cache
def _fingerprint(name: str) -> str:
    tree = ast.parse(_modules()[name].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [item for item in node.body if not _is_text(item)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@cache
def _imports(name: str) -> frozenset[str]:
    """Return the library modules that a module imports, at its top or inside its functions."""
    found: set[str] = set()
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name in _modules())
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(name, node)
            if source.split(".")[0] == "nuclass":
                found.update(_provider(source, alias.name) for alias in node.names)
    return frozenset(item for item in found if item in _modules() and item != name)


def _absolute(name: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    base = name.split(".")
    if _modules()[name].name != "__init__.py":
        base = base[:-1]
    base = base[: len(base) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def _provider(source: str, item: str) -> str:
    """Return the module that defines ``item``, looking through a package's re-exports."""
    if f"{source}.{item}" in _modules():
        return f"{source}.{item}"
    if source in _modules() and _modules()[source].name == "__init__.py":
        for node in ast.walk(_tree(source)):
            if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == item for alias in node.names):
                inner = _absolute(source, node)
                if inner.split(".")[0] == "nuclass" and inner != source:
                    return _provider(inner, item)
    return source
