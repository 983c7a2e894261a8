"""Environments agree with the lock file, and no file names a package registry's host."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from nuclass.core import code

REPOSITORY = Path(__file__).parent.parent
CONDA_NAMES = {
    "huggingface_hub": "huggingface-hub",
    "pytorch": "torch",
    "python-igraph": "igraph",
    "matplotlib-base": "matplotlib",
}
STAGES = ("evaluate", "fetch", "figures", "labels", "report", "slides", "splits", "train")


def locked_versions() -> dict[str, str]:
    """Return the locked version of every package for Python 3.12, the Python of the environments."""
    versions = {}
    for line in (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines():
        match = re.match(r"([A-Za-z0-9_.-]+)==([^ ;\\]+)(?: ; (.*?))?(?: \\)?$", line)
        if match and not re.search(r"python_full_version (< '3\.12'|>= '3\.1[3-9]')", match[3] or ""):
            versions[match[1].lower()] = match[2]
    return versions


def test_one_environment_a_stage() -> None:
    assert tuple(sorted(path.stem for path in (REPOSITORY / "envs").glob("*.yaml"))) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_environment_agrees_with_the_lock(stage: str) -> None:
    locked = locked_versions()
    environment = yaml.safe_load((REPOSITORY / f"envs/{stage}.yaml").read_text(encoding="utf-8"))
    assert environment["channels"][-1] == "nodefaults"
    assert environment["dependencies"][0] == "python=3.12"
    for entry in environment["dependencies"][1:]:
        name, version = entry.split("=")
        assert locked[CONDA_NAMES.get(name, name)] == version, f"{name} in envs/{stage}.yaml"


IMPORT_NAMES = {
    "PIL": "pillow",
    "google_crc32c": "google-crc32c",
    "igraph": "python-igraph",
    "matplotlib": "matplotlib-base",
    "open_clip": "open-clip-torch",
    "openslide": "openslide-python",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "torch": "pytorch",
    "umap": "umap-learn",
    "yaml": "pyyaml",
}


def run_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a module but those under ``if TYPE_CHECKING``, which no job runs."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from run_nodes(child)


def imports_of(tree: ast.Module) -> set[str]:
    """Return the packages from outside that a module imports, at its top or inside a function."""
    names: set[str] = set()
    for node in run_nodes(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    outside = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"nuclass", "snakemake"}
    return {IMPORT_NAMES.get(name, name) for name in outside}


def library_of(tree: ast.Module) -> set[str]:
    """Return the library's modules that a script's imports lead to."""
    todo = library_imports(tree)
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo.extend(library_imports(ast.parse(code._modules()[name].read_text(encoding="utf-8"))))
            todo.extend(parent for parent in [name.rpartition(".")[0]] if parent not in ("", "nuclass"))
    return seen


def library_imports(tree: ast.Module) -> list[str]:
    """Return the library's modules that a module imports; of a package that hands out names, the one it takes."""
    names = []
    for node in run_nodes(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "nuclass":
            names += [code._provider(node.module or "", alias.name) for alias in node.names]
    return [name for name in names if name in code._modules()]


def stages_and_scripts() -> list[tuple[str, str]]:
    """Return environment and script of every rule."""
    found = []
    for path in sorted((REPOSITORY / "rules").glob("*.smk")):
        for block in re.split(r"^ *(?=(?:use )?rule \w)", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            stage, script = re.search(r"envs/(\w+)\.yaml", block), re.search(r"scripts/(\w+)\.py", block)
            if stage and script:
                found.append((stage[1], script[1]))
    return found


@pytest.mark.parametrize(("stage", "script"), stages_and_scripts())
def test_environment_holds_what_the_script_imports(stage: str, script: str) -> None:
    tree = ast.parse((REPOSITORY / f"scripts/{script}.py").read_text(encoding="utf-8"))
    needed = imports_of(tree)
    for module in library_of(tree):
        needed |= imports_of(ast.parse(code._modules()[module].read_text(encoding="utf-8")))
    environment = yaml.safe_load((REPOSITORY / f"envs/{stage}.yaml").read_text(encoding="utf-8"))
    held = {entry.split("=")[0] for entry in environment["dependencies"]}
    assert needed <= held, f"envs/{stage}.yaml lacks {', '.join(sorted(needed - held))}"


def test_every_locked_file_has_a_hash() -> None:
    lines = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines()
    for line, following in itertools.pairwise(lines):
        if "==" in line and not line.startswith((" ", "#")):
            assert following.strip().startswith("--hash=sha256:"), line


def test_no_registry_host() -> None:
    hosts = re.compile(
        r"\b(?:{})\b".format(
            "|".join(
                [
                    "pypi" + r"\.org",
                    "python" + r"hosted\.org",
                    "ana" + r"conda\.(?:org|com)",
                    "npmjs" + r"\.(?:org|com)",
                    "pytorch" + r"\.org/whl",
                ]
            )
        )
    )
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True
    )
    if files.returncode != 0:
        pytest.skip("not a git repository")
    for name in files.stdout.splitlines():
        path = REPOSITORY / name
        if path.is_file() and path.stat().st_size < 5_000_000:
            match = hosts.search(path.read_text(encoding="utf-8", errors="ignore"))
            assert match is None, f"{name} names {match[0] if match else ''}"


def test_versions_agree() -> None:
    import nuclass

    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert f'version = "{nuclass.__version__}"' in project
    assert citation["version"] == nuclass.__version__
