"""The fingerprint of code changes with what a rule uses and with nothing else; every rule carries its script's."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nuclass.core import code
from nuclass.core.errors import UserError
from test_workflow import rule_blocks

REPOSITORY = Path(__file__).parent.parent
SCRIPTS = sorted(path.stem for path in (REPOSITORY / "scripts").glob("*.py"))
SCRIPT = '''"""Say it."""
from nuclass.core.jobs import job

with job(snakemake):
    from nuclass.a.one import run

    run(1)
'''
ABOVE = "cli explorer figures tables evaluation interpret labels splits xenium synthetic".split()
Write = Callable[[str, str], None]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """A small library ``nuclass``: a.one uses b (through b's package) and the core; c stands alone. Script: use_one."""
    monkeypatch.setattr(code, "_LIBRARY", tmp_path / "src/nuclass")
    monkeypatch.setattr(code, "_KEPT", tmp_path / ".snakemake/code.json")
    (tmp_path / ".snakemake").mkdir()

    def write(name: str, text: str) -> None:
        path = tmp_path / ("" if name.startswith("scripts/") else "src/nuclass") / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        _forget()

    write("__init__", '__version__ = "1"\n')
    write("core/__init__", "")
    write("core/log", "LEVEL = 1\n")
    write("core/jobs", "def job(x):\n    return x\n")
    for name in ("config", "schema", "sheets"):
        write(f"core/{name}", f"def read_{name}(x):\n    return x\n")
    write("a/__init__", "")
    write(
        "a/one",
        "import nuclass\nfrom nuclass.b import twice\nfrom nuclass.core.log import LEVEL\n"
        "from nuclass.core import config, schema, sheets\n\n"
        "def run(x):\n    from . import later\n\n    return twice(LEVEL) + later.MORE\n",
    )
    write("a/later", "MORE = 1\n")
    write("b/__init__", "from .maths import double as twice\nfrom nuclass.b.other import half\n")
    write("b/maths", "def double(x):\n    return 2 * x\n")
    write("b/other", "def half(x):\n    return x / 2\n")
    write("c", "VALUE = 1\n")
    write("scripts/use_one", SCRIPT)
    write("scripts/use_c", "from nuclass.c import VALUE\n")
    yield write
    _forget()


def _forget() -> None:
    for function in (code._modules, code._files, code._imports):
        function.cache_clear()


CHANGES = [
    ("b/maths", "def double(x):\n    return x + x\n", True),
    ("b/maths", '"""Sums."""\n# why\ndef double(x):\n    """Say it."""\n    return (2\n        * x)\n', False),
    ("b/other", "def half(x):\n    return 0.5 * x\n", False),
    ("a/later", "MORE = 2\n", True),
    ("a/later", 'MORE = "1"\n', True),
    ("a/later", "MORE = 1\nMORE += 0\n", True),
    ("core/log", "LEVEL = 2\n", False),
    ("core/jobs", "def job(x):\n    return [x]\n", False),
    *((f"core/{name}", "def read(x):\n    return [x]\n", True) for name in ("config", "schema", "sheets")),
    ("__init__", '__version__ = "2"\n', False),
    ("c", "VALUE = 2\n", False),
    ("c", "VALUE = (\n", False),
    ("scripts/use_one", SCRIPT.replace("run(1)", "run(2)"), True),
    ("scripts/use_one", SCRIPT.replace("Say it.", "Say more.") + "# the end\n", False),
    ("scripts/use_one", SCRIPT + "    import nuclass.c\n", True),
    ("scripts/use_c", "from nuclass.c import VALUE as SAME\n", False),
]


@pytest.mark.parametrize(("name", "text", "changes"), CHANGES)
def test_changes(library: Write, name: str, text: str, changes: bool) -> None:
    before = code.code_hash("use_one")
    library(name, text)
    assert (code.code_hash("use_one") != before) is changes


def test_a_package_counts_with_all_its_modules(library: Write) -> None:
    before = code.code_hash("nuclass.a"), code.code_hash("nuclass.b.maths")
    library("a/two", "VALUE = 2\n")
    assert code.code_hash("nuclass.a") != before[0]
    assert code.code_hash("nuclass.b.maths") == before[1]


@pytest.mark.parametrize("kept", ["{", "[]", '{"form": "0", "files": {}}', '{"files": 3}', None])
def test_what_is_kept_of_an_earlier_start_changes_no_hash(library: Write, kept: str | None) -> None:
    before = code.code_hash("use_one")
    if kept is not None:
        code._KEPT.write_text(kept, encoding="utf-8")
    _forget()
    assert code.code_hash("use_one") == before
    # Now and then a file changes and keeps its size and time.
    library("b/maths", "def double(x):\n    return 3 * x\n")
    assert code.code_hash("use_one") != before
    library("b/maths", "def double(x):\n    return 2 * x\n")
    assert code.code_hash("use_one") == before
    assert (
        len(json.loads(code._KEPT.read_text(encoding="utf-8"))["files"]) == len(code._files()) - 1
    )  # empty ones are one


def test_files_that_are_kept_are_not_parsed_again(library: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    before = code.code_hash("use_one")
    _forget()
    monkeypatch.setattr(ast, "parse", lambda *_: pytest.fail("parsed again"))
    assert code.code_hash("use_one") == before


def test_nothing_is_kept_where_there_is_no_folder_for_it(library: Write, tmp_path: Path) -> None:
    code._KEPT.parent.rmdir()
    code.code_hash("use_one")
    assert not code._KEPT.parent.exists()


def test_unknown_names() -> None:
    for name in ("nuclass.slide", "train_gates"):
        with pytest.raises(UserError, match="code that does not exist"):
            code.code_hash(name)


@pytest.mark.parametrize("name", sorted(rule_blocks()))
def test_a_rule_carries_the_hash_of_its_own_script(name: str) -> None:
    block = rule_blocks()[name]
    script = re.search(r"/scripts/(\w+)\.py", block)
    assert script, f"rule {name} runs no script"
    named = re.findall(r"code=code_hash\(([^)]*)\)", block)
    if script[1] == "fetch_bundle":
        assert named == [], "a change of code is no reason to download again"
    else:
        assert named == [f'"{script[1]}"'], f"rule {name}: params.code is not code_hash({script[1]!r})"


@pytest.mark.parametrize("name", ["draw_umap", "count_cells", "split_cells", "measure_usage"])
def test_what_a_script_loads_is_in_its_hash(name: str) -> None:
    """By a run of the script's imports in a process of its own, and not by reading them."""
    path = REPOSITORY / "scripts" / f"{name}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lines = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    show = "import sys; print(*[name for name in sys.modules if name.split('.')[0] == 'nuclass'])"
    command = [sys.executable, "-c", "\n".join([*lines, show])]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout.split())
    counted = code.reached(code._uses(code._read(path), "", path))
    packages = {module for module, file in code._modules().items() if file.name == "__init__.py"}
    assert counted & loaded
    # Packages that pass names on load more than is used of them.
    passed_on = code.reached({item for package in packages & loaded for item in code._imports(package)})
    assert loaded - packages - code._SILENT - passed_on <= counted


@pytest.mark.parametrize(
    ("script", "readers"),
    [
        ("label_cells", {"schema"}),
        ("tabulate_hyperparameters", {"schema"}),
        ("tabulate_paper_comparison", {"schema", "sheets"}),
        ("tabulate_dataset", {"sheets"}),
    ],
)
def test_readers_of_files_count_and_words_for_faults_do_not(script: str, readers: set[str]) -> None:
    path = REPOSITORY / "scripts" / f"{script}.py"
    counted = code.reached(code._uses(code._read(path), "", path))
    assert {name for name in ("schema", "schema_words", "sheets") if f"nuclass.core.{name}" in counted} == readers
    assert "nuclass.core.schema_words" in code._imports("nuclass.core.schema")


def test_no_module_that_does_not_count_reads_a_file_of_the_study() -> None:
    """What parses would change results and make nothing run again."""
    for name in code._SILENT - {"nuclass", "nuclass.core.code", "nuclass.core.orphans"}:
        text = code._modules()[name].read_text(encoding="utf-8")
        assert not re.search(r"read_text|read_bytes|open\(|yaml|csv|json\.load|pandas", text), name


def test_trainings_do_not_hang_on_figures_tables_or_evaluation() -> None:
    for script in ("pretrain_context", "embed_context", "train_local", "train_global", "train_gate", "predict"):
        path = REPOSITORY / "scripts" / f"{script}.py"
        counted = code.reached(code._uses(code._read(path), "", path))
        assert not [name for name in counted if name.split(".")[1] in ABOVE]


def test_packages_hold_no_code_of_their_own() -> None:
    """What a package passes on is looked through, so that a statement in its file would not count."""
    for name, path in code._modules().items():
        if path.name != "__init__.py" or name in ("nuclass", "nuclass.data", "nuclass.models.backbones"):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            plain = isinstance(node, ast.Import | ast.ImportFrom) or code._is_text(node)
            names = isinstance(node, ast.Assign) and str(getattr(node.targets[0], "id", "")).startswith("__")
            assert plain or names, f"{name}, line {node.lineno}"


def test_no_module_is_imported_in_a_way_that_cannot_be_read() -> None:
    for path in [*(REPOSITORY / "src").rglob("*.py"), *(REPOSITORY / "scripts").glob("*.py")]:
        if path.name != "__init__.py":
            found = re.search(
                r"import_module|__import__|run_module|run_path|exec_module", path.read_text(encoding="utf-8")
            )
            assert not found, f"{path.name}: {found[0] if found else ''}"
    files = [
        path for path in (REPOSITORY / "src/nuclass").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    assert [path for path in files if path.suffix != ".py"] == [], "a file of the library that is no code is in no hash"
