"""Imports inside the library point downwards only, in the order of the packages below."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parent.parent / "src" / "nuclass"
LAYERS = (
    ("__main__",),
    ("cli",),
    (
        "cli_backbones",
        "cli_data",
        "cli_doctor",
        "cli_evaluate",
        "cli_import",
        "cli_labels",
        "cli_panel",
        "cli_patches",
        "cli_plan",
        "cli_predict",
        "cli_slides",
        "cli_splits",
        "cli_train",
    ),
    ("cli_common",),
    ("plan",),
    ("doctor",),
    ("apply",),
    ("explorer",),
    ("figures", "tables"),
    ("evaluation", "interpret"),
    ("training",),
    ("models",),
    ("data",),
    ("patches", "labels", "splits"),
    ("slides",),
    ("synthetic",),
    ("xenium",),
    ("core",),
)
DEPTH = {name: depth for depth, names in enumerate(LAYERS) for name in names}


def imported_packages(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and package of every import from the library, at the top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; write the whole name"
            names = (
                [f"nuclass.{alias.name}" for alias in node.names] if node.module == "nuclass" else [node.module or ""]
            )
        for name in names:
            parts = name.split(".")
            if parts[0] == "nuclass" and len(parts) > 1 and parts[1] in DEPTH:
                yield node.lineno, parts[1]


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_imports_point_downwards(path: Path) -> None:
    own = path.relative_to(LIBRARY).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    assert own in DEPTH, f"the package '{own}' has no place in the order of the packages"
    upwards = [
        f"line {line}: nuclass.{package}"
        for line, package in imported_packages(path)
        if package != own and DEPTH[package] <= DEPTH[own]
    ]
    assert not upwards, f"{path.relative_to(LIBRARY)} imports sideways or upwards: {', '.join(upwards)}"


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            last = node.end_lineno or node.lineno
            body = [
                item for item in node.body if not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))
            ]
            first = body[0].lineno if body else last
            assert last - first < 60, f"{path.name}: {node.name} has {last - first + 1} lines without its docstring"
