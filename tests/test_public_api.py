"""The names of the library that others use, and the library without Snakemake."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import nuclass

REPOSITORY = Path(__file__).parent.parent
LIBRARY = REPOSITORY / "src" / "nuclass"
WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0].startswith("snakemake"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
"""


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", nuclass.__all__)
def test_a_public_name_is_what_its_module_has(name: str) -> None:
    found = getattr(nuclass, name)
    assert found.__name__ == name
    assert found.__module__ == f"nuclass.{nuclass._PLACES[name]}"
    assert found.__doc__


def test_public_names_are_few_told_and_typed() -> None:
    assert sorted(nuclass.__all__) == list(nuclass.__all__) == sorted(nuclass._PLACES)
    assert len(nuclass.__all__) <= 15
    assert set(nuclass.__all__) <= set(dir(nuclass))
    assert set(re.findall(r"`(?::class:|:func:)?`?(\w+)`", nuclass.__doc__ or "")) >= set(nuclass.__all__)
    typed = {
        alias.name
        for node in ast.walk(ast.parse((LIBRARY / "__init__.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nuclass.")
        for alias in node.names
    }
    assert typed == set(nuclass.__all__)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'nuclass' has no attribute 'nothing'"):
        _ = nuclass.nothing


def test_importing_loads_nothing_heavy() -> None:
    heavy = ("numpy", "pandas", "torch", "scanpy", "matplotlib", "h5py", "argparse")
    assert run(f"import sys, nuclass; print([m for m in {heavy} if m in sys.modules])") == "[]\n"
    told = run("import sys; from nuclass import UserError; print('numpy' in sys.modules, UserError.__name__)")
    assert told == "False UserError\n"


def test_prediction_does_without_snakemake() -> None:
    names = [f"nuclass.apply.{path.stem}" for path in sorted((LIBRARY / "apply").glob("[a-z]*.py"))]
    modules = ["nuclass.cli", "nuclass.training.predict", *names]
    script = f"{WITHOUT}\nimport importlib\nfor name in {modules}:\n    importlib.import_module(name)\n"
    script += "import nuclass\nfor name in nuclass.__all__:\n    getattr(nuclass, name)\n"
    script += "print(sorted(name for name in sys.modules if name.startswith('snakemake')))"
    assert run(script) == "[]\n"


def test_one_module_alone_knows_snakemake() -> None:
    """It runs in a process of its own, for the plan."""
    knowing = set()
    for path in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0].startswith("snakemake") for name in named):
                knowing.add(str(path.relative_to(LIBRARY)))
    assert knowing == {"plan/asking.py"}


@pytest.mark.slow
def test_the_wheel_holds_the_library_and_what_comes_along(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        wheel.extractall(tmp_path / "site")
    assert {"nuclass/cli.py", "nuclass/share/resources/classes.tsv", "nuclass/share/config/config.yaml"} <= names
    assert "nuclass/share/resources/label_ontology.yaml" in names
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); sys.path[:] = [p for p in sys.path if p != ''];"
        "from nuclass.core.own_files import own_file; from nuclass.labels.ontology import default_ontology;"
        "print(own_file('resources/classes.tsv').is_file(), default_ontology())"
    )
    told = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert told.stdout.split()[0] == "True"
    assert str(tmp_path / "site") in told.stdout


def test_modules_of_public_names_exist() -> None:
    for place in set(nuclass._PLACES.values()):
        importlib.import_module(f"nuclass.{place}")


def test_the_library_and_the_scripts_name_modules_themselves() -> None:
    """The fingerprint of a rule's code does not follow names through the library's front door."""
    for path in [*LIBRARY.rglob("*.py"), *(REPOSITORY / "scripts").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "nuclass":
                named = {alias.name for alias in node.names} & set(nuclass.__all__)
                assert not named, f"{path.name}, line {node.lineno}: from nuclass import {', '.join(named)}"
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "nuclass":
                assert node.attr not in nuclass.__all__, f"{path.name}, line {node.lineno}: nuclass.{node.attr}"
