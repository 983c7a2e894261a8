"""The fingerprint of library code changes with what a rule uses, and with nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nuclass.core import code
from nuclass.core.errors import UserError


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """A small library ``nuclass``: a.one uses b (through b's package) and core.log; c stands alone."""
    monkeypatch.setattr(code, "_LIBRARY", tmp_path)

    def write(name: str, text: str) -> None:
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        _forget()

    write("__init__", "")
    write("core/__init__", "")
    write("core/log", "LEVEL = 1\n")
    write("a/__init__", "")
    write(
        "a/one",
        "from nuclass.b import double\nfrom nuclass.core.log import LEVEL\n\ndef run():\n    return double(LEVEL)\n",
    )
    write("b/__init__", "from nuclass.b.maths import double\nfrom nuclass.b.other import half\n")
    write("b/maths", "def double(x):\n    return 2 * x\n")
    write("b/other", "def half(x):\n    return x / 2\n")
    write("c", "VALUE = 1\n")
    yield write
    _forget()


def _forget() -> None:
    for function in (code._modules, code._tree, code._fingerprint, code._imports):
        function.cache_clear()


@pytest.mark.parametrize(
    ("name", "text", "changes"),
    [
        ("b/maths", "def double(x):\n    return x + x\n", True),
        ("b/maths", '"""Sums."""\n# why\ndef double(x):\n    """Say it."""\n    return 2 * x\n', False),
        ("b/other", "def half(x):\n    return 0.5 * x\n", False),
        ("core/log", "LEVEL = 2\n", False),
        ("c", "VALUE = 2\n", False),
        ("a/two", "VALUE = 2\n", True),
    ],
)
def test_changes(library: Callable[[str, str], None], name: str, text: str, changes: bool) -> None:
    before = code.code_hash("nuclass.a")
    library(name, text)
    assert (code.code_hash("nuclass.a") != before) is changes


def test_unknown_module() -> None:
    with pytest.raises(UserError, match="not in the library"):
        code.code_hash("nuclass.slide")
