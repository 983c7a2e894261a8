"""What users meet of the commands: help with examples, exit status, words instead of tracebacks, Ctrl-C."""

from __future__ import annotations

import argparse
import ast
import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import nuclass
from nuclass import cli
from nuclass.core.errors import UserError
from nuclass.core.failures import in_words, tell_error

REPOSITORY = Path(__file__).parent.parent
LIBRARY = REPOSITORY / "src" / "nuclass"


def parsers(parser: argparse.ArgumentParser | None = None) -> Iterator[argparse.ArgumentParser]:
    """Yield the parser of every command, outer ones before those inside them."""
    parser = parser or cli._parser()
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from parsers(inner)


@pytest.mark.parametrize("parser", list(parsers()), ids=lambda parser: parser.prog)
def test_every_command_teaches_with_an_example(parser: argparse.ArgumentParser) -> None:
    told = parser.format_help()
    assert re.search(r"^examples?:$", told, re.MULTILINE), f"{parser.prog} --help shows no example"
    shown = told.split("example", 1)[1]
    assert parser.prog in shown, f"the example of {parser.prog} is of another command"
    assert "--debug" in told


@pytest.mark.parametrize("parser", list(parsers()), ids=lambda parser: parser.prog)
def test_examples_are_commands_that_parse(parser: argparse.ArgumentParser) -> None:
    """Every option of an example is one of its command."""
    told = parser.format_help().replace("\\\n", " ")
    known = {other.prog: {flag for action in other._actions for flag in action.option_strings} for other in parsers()}
    for line in re.findall(r"^  (?:\w+=\S+ )*(nuclass [^;\n]*)", told.split("example", 1)[1], re.MULTILINE):
        words = line.split("   ")[0].split()
        name = max((prog for prog in known if line.startswith(prog)), key=len)
        flags = {word.split("=")[0] for word in words if re.fullmatch(r"--?[a-z][\w-]*(=.*)?", word)}
        assert flags - {"--help"} <= known[name], f"{line}: {', '.join(flags - known[name])} is not known to {name}"


def test_help_tells_the_exit_status() -> None:
    told = cli._parser().format_help()
    assert "exit status: 0 done, 1 an error that is told in words" in told


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> dict[str, BaseException]:
    """Let ``nuclass check`` end with an error."""
    what: dict[str, BaseException] = {}

    def fail(options: argparse.Namespace) -> None:
        raise what["error"]

    monkeypatch.setattr(cli, "_check", fail)
    return what


def test_a_bug_is_told_as_one(failing: dict[str, BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    failing["error"] = KeyError("x_um")
    assert cli.main(["check"]) == 1
    told = capsys.readouterr().err
    python = sys.version.split()[0]
    assert told == (
        "This is a fault of the program, not of your files\n"
        "  found:      KeyError: 'x_um'; --debug added to the command shows where\n"
        "  to mend it: report it where the program comes from, with the command, the text that --debug prints, and the "
        f"version: nuclass {nuclass.__version__}, Python {python}\n"
    )


@pytest.mark.parametrize("arguments", [["--debug", "check"], ["check", "--debug"]])
def test_debug_shows_the_traceback(
    failing: dict[str, BaseException], capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    failing["error"] = ZeroDivisionError("by nothing")
    assert cli.main(arguments) == 1
    told = capsys.readouterr().err
    assert told.startswith("Traceback (most recent call last):\n")
    assert "ZeroDivisionError: by nothing" in told
    assert "This is a fault of the program" in told
    assert "--debug added" not in told
    failing["error"] = UserError("Nothing is right", where="here")
    assert cli.main(arguments) == 1
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert told.endswith("Nothing is right\n  where:      here\n")


def system(number: int, file: str | None = "out/a.parquet") -> OSError:
    return OSError(number, os.strerror(number), file)


@pytest.mark.parametrize(
    ("error", "first", "part"),
    [
        (UserError("A table is empty", where="a.csv"), "A table is empty", "a.csv"),
        (system(errno.ENOSPC), "The disk is full", "free space or quota"),
        (system(errno.EDQUOT), "The disk is full", "out/a.parquet"),
        (system(errno.EACCES), "There is no right to read or write a file", "out/a.parquet"),
        (system(errno.ENOENT), "A file is missing", "check the path in the command"),
        (system(errno.EISDIR), "A folder stands where a file is wanted", "out/a.parquet"),
        (system(errno.EMFILE), "Too many files are open", "ulimit -n"),
        (system(errno.EIO), "The system refused to read or write", "Input/output error"),
        (MemoryError(), "The memory does not suffice", "a smaller batch"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "A package is missing", "pip install ."),
        (ModuleNotFoundError("No module named 'nuclass.x'", name="nuclass.x"), "This is a fault of the program", "x"),
        (OSError("Can't read data"), "This is a fault of the program", "Can't read data"),
        (AssertionError(), "This is a fault of the program", "AssertionError"),
    ],
    ids=lambda value: f"{type(value).__name__}" if isinstance(value, BaseException) else None,
)
def test_errors_in_words(
    failing: dict[str, BaseException], capsys: pytest.CaptureFixture[str], error: BaseException, first: str, part: str
) -> None:
    failing["error"] = error
    assert cli.main(["check"]) == 1
    told = capsys.readouterr().err
    assert told.startswith(first)
    assert part in told
    assert "Traceback" not in told


def test_memory_of_a_gpu() -> None:
    error = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2 GiB")
    told = str(in_words(error))
    assert told.startswith("The memory of the GPU does not suffice\n")
    assert "--device cpu" in told


def test_ctrl_c_is_130(failing: dict[str, BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    failing["error"] = KeyboardInterrupt()
    assert cli.main(["check"]) == 130
    assert capsys.readouterr().err == "Stopped.\n"
    assert tell_error(KeyboardInterrupt("Stopped; the same command goes on.")) == 130


@pytest.mark.slow
def test_ctrl_c_leaves_a_clean_state(tmp_path: Path) -> None:
    """A command that writes for seconds, stopped in its midst: no half file, and the next run is whole."""
    command = [sys.executable, "-m", "nuclass.cli", "simulate", "ovary_1", "--organ", "ovary", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any(tmp_path.rglob("*.*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, "it was done before it could be stopped"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert told.endswith("Stopped.\n")
    left = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert not [name for name in left if Path(name).name.startswith(".") or "tmp" in name], left
    assert "bundle/bundle.json" not in left
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "bundle/bundle.json").is_file()


# The caller adds the line of the sheet to these; and one holds several faults with their places.
BARE = {"core/slides_sheet.py": 3, "core/schema.py": 1}


def bare(path: Path) -> list[str]:
    """Return errors of a module that say what failed, but neither where, nor what was found, nor what to do."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "UserError":
            named = {keyword.arg for keyword in node.keywords}
            if not named & {"where", "found", "fix", None}:
                found.append(f"line {node.lineno}: {ast.unparse(node.args[0])[:80] if node.args else ''}")
    return found


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_every_error_tells_more_than_that_it_failed(path: Path) -> None:
    name = str(path.relative_to(LIBRARY))
    found = bare(path)
    assert len(found) <= BARE.get(name, 0), f"{name}: {'; '.join(found)}"
