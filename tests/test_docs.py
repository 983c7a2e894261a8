"""The pages of docs/: their links lead somewhere, all are in the site, and the references hold everything."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import nuclass

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
WRITTEN = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
SCHEMAS = sorted(path.name.split(".")[0] for path in (REPOSITORY / "config/schemas").glob("*.schema.yaml"))
BESIDE = ("README.md", "CONTRIBUTING.md")
MACHINE = re.compile(r"(?<![\w.])/(?:work|home|root|mnt|Users|scratch)/\w|[A-Z]:\\\\")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$|^    .*?$", re.MULTILINE | re.DOTALL)


@cache
def references() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_reference", DOCS / "build_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def page(name: str) -> str:
    """The text of a page below docs/, be it a file or written from the code; or of a file beside docs/."""
    if name in references().PAGES:
        return str(references().PAGES[name]())
    return (REPOSITORY / name if name in BESIDE else DOCS / name).read_text(encoding="utf-8")


def pages() -> list[str]:
    return [*WRITTEN, *references().PAGES]


def prose(text: str) -> str:
    """A page without its fenced and indented code."""
    return FENCE.sub("", text)


def anchor(heading: str) -> str:
    """The id that the site gives a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


@cache
def anchors(name: str) -> set[str]:
    return {anchor(match[1]) for match in re.finditer(r"^#+ (.+)$", prose(page(name)), re.MULTILINE)}


@cache
def site() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
    return loaded


def in_nav(items: list[Any]) -> Iterator[str]:
    for item in items:
        if isinstance(item, str):
            yield item
        else:
            for below in item.values():
                yield from [below] if isinstance(below, str) else in_nav(below)


def test_every_page_is_in_the_site_once() -> None:
    listed = list(in_nav(site()["nav"]))
    assert len(listed) == len(set(listed))
    assert sorted(listed) == sorted(pages())


@pytest.mark.parametrize("name", [*pages(), *BESIDE])
def test_links_lead_somewhere(name: str) -> None:
    home = Path() if name in BESIDE else Path("docs")
    for match in LINK.finditer(prose(page(name))):
        target, _, part = match[1].partition("#")
        if re.match(r"\w+:", target):
            continue
        place = (REPOSITORY / home / name).parent / target if target else REPOSITORY / home / name
        inside = place.resolve().relative_to(DOCS).as_posix() if place.resolve().is_relative_to(DOCS) else ""
        assert place.exists() or inside in references().PAGES, f"{name}: {match[1]}"
        if part and (inside in pages() or not target):
            assert part in anchors(inside or name), f"{name}: no heading {match[1]}"


@pytest.mark.parametrize("name", BESIDE)
def test_pages_named_in_plain_text_are_there(name: str) -> None:
    for found in re.findall(r"\bdocs/[\w/]+\.md\b", page(name)):
        assert (REPOSITORY / found).is_file(), f"{name} names {found}"


@pytest.mark.parametrize("name", pages())
def test_no_page_names_a_path_of_a_machine(name: str) -> None:
    found = MACHINE.search(page(name))
    assert found is None, f"{name}: {found[0] if found else ''}"


@pytest.mark.parametrize("name", WRITTEN)
def test_lists_and_tables_stand_by_themselves(name: str) -> None:
    """Without a blank line before it the site takes a list or a table for the end of the paragraph."""
    before, fenced = "", False
    for number, line in enumerate(page(name).splitlines(), start=1):
        fenced ^= line.startswith("```")
        for start in (r"[-*] |\d+\. ", r"\|"):
            if not fenced and re.match(start, line) and before and not re.match(rf"{start}|  +|<!--|```", before):
                pytest.fail(f"{name}, line {number}: a blank line is wanted before '{line[:40]}'")
        before = line


def test_every_command_is_in_the_reference() -> None:
    text = page("reference/commands.md")
    found = [name for name, _, _ in references().commands()]
    assert "nuclass train local" in found
    assert "nuclass patches export" in found
    for name, short, parser in references().commands():
        assert re.search(rf"^##+ {name}$", text, re.MULTILINE), name
        assert f"](#{anchor(name)})" in text
        assert short, f"{name} has no line in the list of commands"
        for action in parser._actions:
            for option in action.option_strings:
                assert option in text, f"{name} {option}"


@pytest.mark.parametrize(
    "schema",
    [path.name.removesuffix(".schema.yaml") for path in sorted((REPOSITORY / "config/schemas").glob("*.yaml"))],
)
def test_every_key_is_in_the_reference_with_its_meaning(schema: str) -> None:
    name, skipped = ("reference/models.md", "protocol.") if schema == "models" else ("reference/settings.md", "")
    loaded = yaml.safe_load((REPOSITORY / f"config/schemas/{schema}.schema.yaml").read_text(encoding="utf-8"))
    text = page(name)
    keys = [key for key, _ in references().keys_of(loaded)]
    assert len(keys) > 5
    for key in keys:
        if not skipped or not key.startswith(skipped):
            row = re.search(rf"^\| `{re.escape(key)}` \| (.*) \| (.*) \| (.*) \|$", text, re.MULTILINE)
            assert row, f"{key} is not in {name}"
            assert row[1], f"{key}: no values"
            assert row[3].strip(), f"{key}: not said what it is"


def test_kinds_in_words() -> None:
    kind_of = references().kind_of
    assert kind_of({"type": "number", "exclusiveMinimum": 0, "maximum": 4}) == "number, above 0, up to 4"
    assert kind_of({"enum": ["a", "b"]}) == "`a`, `b`"
    assert kind_of({"type": "array", "items": {"type": "string"}}) == "list of text"
    assert kind_of({"type": ["integer", "array"], "minimum": 0}) == "whole number or list, from 0"


def test_messages_are_read_from_the_code(tmp_path: Path) -> None:
    source = tmp_path / "part.py"
    source.write_text(
        "from nuclass.xenium.tables import COPY_AGAIN\n"
        "LOOK = 'look'\n"
        "def f(name, n):\n"
        "    raise UserError(f\"The slide '{name}' is \" + ('gone' if n else 'empty'), found=n, fix=LOOK)\n"
        "    raise UserError('gone', fix=f'{COPY_AGAIN}; {n}')\n"
        "    raise UserError(name)\n",
        encoding="utf-8",
    )
    assert list(references().messages(source)) == [
        ("The slide '...' is gone / empty", "look"),
        ("gone", "copy the file again from the bundle; ..."),
    ]


def test_messages_are_grouped_by_stage() -> None:
    stage_of, library = references().stage_of, REPOSITORY / "src/nuclass"
    assert stage_of(library / "slides/store.py") == "Alignment and slides"
    assert stage_of(library / "cli_slides.py") == "Alignment and slides"
    assert stage_of(library / "core/errors.py") == "Settings, files, everything else"
    for stage in references().STAGES:
        assert f"\n## {stage}\n" in page("reference/messages.md"), stage


def test_troubleshooting_tells_of_messages_that_exist() -> None:
    known = {
        text
        for path in (REPOSITORY / "src/nuclass").rglob("*.py")
        for what, _ in references().messages(path)
        for text in (what, *what.split(" / "))
    }
    told = re.findall(r"^### (.+)$", page("troubleshooting.md"), re.MULTILINE)
    assert len(told) >= 25
    assert sorted(set(told) - known) == []


def test_the_names_of_the_python_pages_are_there() -> None:
    named = [match for path in WRITTEN for match in re.findall(r"^::: (\S+)$", page(path), re.MULTILINE)]
    assert len(named) >= 20
    assert {f"nuclass.{place}.{name}" for name, place in nuclass._PLACES.items()} <= set(named)
    for name in named:
        module, _, attribute = name.rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__, name


def test_the_site_asks_nothing_of_other_computers() -> None:
    assert site()["theme"]["font"] is False
    assert "extra_javascript" not in site()
    assert all((DOCS / name).is_file() for name in site()["extra_css"])
    assert not [name for name in pages() if "```mermaid" in page(name)]


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    built = {path.relative_to(tmp_path / "site").with_suffix(".md").as_posix() for path in tmp_path.rglob("*.html")}
    assert set(pages()) <= built
    outside = re.compile(
        r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?(?:https?:)?//|<link[^>]*\brel=\"?(?:stylesheet|preconnect)[^>]*//"
    )
    for html in tmp_path.rglob("*.html"):
        found = outside.search(html.read_text(encoding="utf-8"))
        assert found is None, f"{html.name}: {found[0] if found else ''}"
