"""What the environments of ``envs/`` hold, what the lock says, and what a rule's script can reach, for tests."""

from __future__ import annotations

import ast
import platform
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import yaml
from packaging.markers import Marker

from conda_channel import MINOR, conda_name
from nuclass.core import code

REPOSITORY = Path(__file__).parent.parent
ENVIRONMENTS = REPOSITORY / "envs"
PYTHON = "3.12"
"""The Python of the environments."""

UNSEEN = {
    "pyarrow": {"read_parquet", "to_parquet", "read_feather"},
    "openpyxl": {"read_excel", "to_excel", "ExcelWriter"},
    "tabulate": {"to_markdown"},
    "lxml": {"read_html", "read_xml", "to_xml"},
}
"""Modules that pandas loads when it is called so, without an import in the caller."""

UNREACHED = {
    ("slides", "import_patches", "openpyxl"): "labels come with the windows; no table of given labels is opened",
    ("train", "predict_own", "cellpose"): "who asks for it brings it, and is told where it is missing",
    **{
        ("train", "predict_own", name): "the rule writes no SpatialData"
        for name in ("dask", "geopandas", "shapely", "spatialdata", "xarray")
    },
    ("workflow", "", "anndata"): "a bundle's counts are read in jobs only",
    ("workflow", "", "h5py"): "a bundle's counts are read in jobs only",
    ("workflow", "", "huggingface_hub"): "the doctor asks about weights in its job",
    ("workflow", "", "openslide"): "the doctor opens slides in its job",
    ("workflow", "", "PIL"): "the doctor opens slides in its job",
    ("workflow", "", "scipy"): "a bundle's counts are read in jobs only",
    ("workflow", "", "tifffile"): "the doctor opens slides in its job",
    ("workflow", "", "torch"): "of the augmentation only the settings are checked",
    ("workflow", "", "zarr"): "a bundle's cells are read in jobs only",
}
"""Environment, script and module: what a script's imports lead to and it never comes to, and why."""


@cache
def locked_versions(python: str = PYTHON) -> dict[str, str]:
    """Return the locked version of every package by conda's name, for a minor version of Python on Linux."""
    place = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    place |= {"platform_machine": platform.machine(), "extra": ""}
    versions = {}
    for line in (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines():
        match = re.match(r"([A-Za-z0-9_.-]+)==([^ ;\\]+)(?: ; (.*?))?(?: \\)?$", line)
        if match and (match[3] is None or Marker(match[3]).evaluate(place)):
            versions[conda_name(match[1])] = match[2]
    return versions


def packages_of(stage: str) -> dict[str, str]:
    """Return the packages of a stage's environment and their versions, by conda's name."""
    environment = yaml.safe_load((ENVIRONMENTS / f"{stage}.yaml").read_text(encoding="utf-8"))
    return dict(line.split("=") for line in environment["dependencies"])


def exact_packages(text: str) -> list[tuple[str, str, str]]:
    """Return name, version and build of each package of a pin file, which lists addresses."""
    addresses = [line.partition("#")[0] for line in text.splitlines() if "://" in line]
    files = [re.sub(r"\.(conda|tar\.bz2)$", "", address.rpartition("/")[2]) for address in addresses]
    return [(name, version, build) for name, version, build in (file.rsplit("-", 2) for file in files)]


def specs_here(file: Path) -> list[str]:
    """Return what an environment file asks for, for the running Python.

    Where Python is another one than the file's, each package has the version that the lock gives for that Python.
    """
    environment = yaml.safe_load(file.read_text(encoding="utf-8"))
    specs = []
    for line in environment["dependencies"]:
        name, _, version = line.partition("=")
        if name == "python":
            specs.append(f"python={MINOR}")
        elif version == locked_versions().get(name) and MINOR != PYTHON:
            specs.append(f"{name}={locked_versions(MINOR)[name]}")
        else:
            specs.append(line)
    return specs


@cache
def distributions() -> dict[str, str]:
    """Return conda's name of the package that brings each module that can be imported here."""
    return {module: conda_name(names[0]) for module, names in metadata.packages_distributions().items()}


def stages_and_scripts() -> list[tuple[str, str]]:
    """Return environment and script of every rule that has both; a rule derived from another has those of that one."""
    found = []
    for path in sorted((REPOSITORY / "rules").glob("*.smk")):
        for block in re.split(r"^ *(?=(?:use )?rule \w)", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            stage, script = re.search(r"envs/(\w+)\.yaml", block), re.search(r"scripts/(\w+)\.py", block)
            if stage and script:
                found.append((stage[1], script[1]))
    return sorted(set(found))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def run_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a module but those under ``if TYPE_CHECKING``, which no job runs."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from run_nodes(child)


@cache
def outside_imports(tree: ast.Module) -> frozenset[str]:
    """Return the modules from outside that a module imports, at its top or inside a function."""
    names: set[str] = set()
    for node in run_nodes(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    tops = {name.split(".")[0] for name in names}
    return frozenset(tops - set(sys.stdlib_module_names) - {"nuclass", "snakemake"})


@cache
def unseen_needs(tree: ast.Module) -> frozenset[str]:
    """Return the modules that a library from outside loads by itself for what a module calls on it."""
    called = {node.attr for node in run_nodes(tree) if isinstance(node, ast.Attribute)}
    return frozenset(module for module, calls in UNSEEN.items() if called & calls)


@cache
def library_imports(tree: ast.Module) -> tuple[str, ...]:
    """Return the library's modules that a module imports; of a package that hands out names, the one it takes."""
    names = []
    for node in run_nodes(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "nuclass":
            names += [code._provider(node.module or "", alias.name) for alias in node.names]
    return tuple(name for name in names if name in code._modules())


def library_of(tree: ast.Module) -> set[str]:
    """Return the library's modules that a script's imports lead to, early or late."""
    todo = list(library_imports(tree))
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo.extend(library_imports(tree_of(code._modules()[name])))
            todo.extend(parent for parent in [name.rpartition(".")[0]] if parent not in ("", "nuclass"))
    return seen


def script_tree(script: str) -> ast.Module:
    """Return a rule's script; "" is the workflow's own files, of which the imports."""
    if script:
        return tree_of(REPOSITORY / f"scripts/{script}.py")
    files = [REPOSITORY / "workflow/Snakefile", *sorted((REPOSITORY / "rules").glob("*.smk"))]
    lines = [line.strip() for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return ast.parse("\n".join(line for line in lines if re.match(r"(from [\w.]+ )?import \w", line)))


def needs_of(script: str) -> set[str]:
    """Return the modules from outside that a rule's script can reach, or, for "", the workflow's own files."""
    tree = script_tree(script)
    trees = [tree, *(tree_of(code._modules()[module]) for module in library_of(tree))]
    return {name for tree in trees for name in outside_imports(tree) | unseen_needs(tree)}


def must_hold(stage: str, script: str) -> dict[str, str]:
    """Return the modules from outside that a script comes to, and conda's name of the package that brings each."""
    return {name: distributions()[name] for name in needs_of(script) if (stage, script, name) not in UNREACHED}
