"""Write reference pages of the site from the code: commands, settings, messages (a hook of MkDocs, see mkdocs.yml)."""

from __future__ import annotations

import argparse
import ast
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "src" / "nuclass"
SCHEMAS = ROOT / "config" / "schemas"
STAGES = {
    "Data": (
        "core/bundle_source",
        "core/patch_rows",
        "core/slides_sheet",
        "core/sheets",
        "xenium",
        "synthetic",
        "cli_data",
    ),
    "Alignment and slides": ("slides", "cli_slides"),
    "Labels": ("labels", "cli_labels", "cli_panel"),
    "Splits": ("splits", "cli_splits", "core/split_settings", "core/holdout"),
    "Patch files": ("patches", "cli_patches"),
    "Networks and features": ("models", "data", "core/backbone_settings", "cli_backbones"),
    "Training": ("training", "core/models_file", "core/variants", "core/protocol", "cli_train", "cli_import"),
    "Typing one slide": ("apply", "cli_predict", "core/own_cells", "core/own_tables", "core/own_sheet"),
    "Evaluation": ("evaluation", "interpret", "cli_evaluate"),
    "Figures, tables, explorer": ("figures", "tables", "explorer"),
    "Plan and doctor": ("plan", "doctor", "cli_plan", "cli_doctor", "core/needs", "core/jobs"),
    "Settings, files, everything else": ("",),
}
"""Headings of the page of messages, and the parts of the library whose messages stand below each; the first counts."""


def commands(parser: argparse.ArgumentParser | None = None) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Yield name (``nuclass train local``), one line, and parser of every command, an outer one before its inner."""
    from nuclass.cli import _parser

    parser = parser or _parser()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            short = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, inner in action.choices.items():
                yield inner.prog, short.get(name, ""), inner
                yield from commands(inner)


def commands_page() -> str:
    """Return the page of all commands with their help."""
    lines = [
        "# Commands",
        "",
        "What `nuclass COMMAND --help` prints. The whole study is one Snakemake command: [Running](../running.md). The",
        "original's commands and ours stand side by side in [Commands of the original](../commands.md).",
        "",
        "Every command ends with 0 if all went well, 1 after a mistake that is told in words (or a verdict of FAIL), 2",
        "if the command itself was misspelt, 130 after Ctrl-C.",
        "",
        "| command | what |",
        "|---|---|",
    ]
    found = list(commands())
    lines += [f"| [`{name}`](#{_anchor(name)}) | {_cell(short)} |" for name, short, _ in found]
    with mock.patch.dict(os.environ, {"COLUMNS": "110"}):
        for name, _, parser in found:
            level = "##" if name.count(" ") == 1 else "###"
            lines += ["", f"{level} {name}", "", "```text", parser.format_help().rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w]+", "-", heading.lower()).strip("-")


def _cell(text: str) -> str:
    """Return text for a cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def keys_of(schema: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the dotted name and the schema of every key that has a value, not of sections."""
    for name, part in schema.get("properties", {}).items():
        if part.get("properties"):
            yield from keys_of(part, f"{before}{name}.")
        else:
            yield before + name, part


def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def kind_of(part: Mapping[str, Any]) -> str:
    """Return in words what a key may hold: ``number, above 0, up to 4``, ``list of text``."""
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    if "anyOf" in part:
        return " or ".join(kind_of(option) for option in part["anyOf"])
    kinds = part.get("type", "anything")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    told = " or ".join(_list_of(part) if kind == "array" else _KINDS.get(kind, kind) for kind in kinds)
    limits = [f"{words} {part[key]:g}" for key, words in _LIMITS.items() if key in part]
    return ", ".join([told, *limits])


_KINDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "`true`, `false`",
    "object": "section",
    "null": "nothing",
}
_LIMITS = {
    "minimum": "from",
    "exclusiveMinimum": "above",
    "maximum": "up to",
    "exclusiveMaximum": "below",
    "multipleOf": "a multiple of",
}


def _list_of(part: Mapping[str, Any]) -> str:
    return f"list of {kind_of(part['items'])}" if part.get("items") else "list"


def _value(value: Any) -> str:
    """Return a default as YAML writes it; empty where there is none."""
    if value is None or value == "":
        return ""
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).strip()
    return f"`{text.removesuffix('...').strip()}`"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    heads = ["| key | values | default | what |", "|---|---|---|---|"]
    return ["", *heads, *("| " + " | ".join([f"`{row[0]}`", *map(_cell, row[1:])]) + " |" for row in rows)]


def settings_page() -> str:
    """Return the page of the keys of the configuration and of the columns of the sheet."""
    schema, given = _read(SCHEMAS / "config.schema.yaml"), dict(_flat(_read(ROOT / "config" / "config.yaml")))
    sections = {name: part for name, part in schema["properties"].items() if part.get("properties")}
    alone = {"properties": {name: part for name, part in schema["properties"].items() if name not in sections}}
    lines = [
        "# Configuration: every key",
        "",
        "The keys of `config/config.yaml` and of any file given by `--configfile`, from `config/schemas/`. Defaults",
        "are those of `config/config.yaml`, over which every other file is laid. When to change what: [Settings and",
        "sheets](../config.md).",
        "",
        "## Single keys",
    ]
    lines += _table(_rows(keys_of(alone), given))
    for name, part in sections.items():
        lines += ["", f"## {name}", "", _cell(_sentence(part["description"]))]
        lines += _table(_rows(keys_of(part, f"{name}."), given))
    for path in sorted(SCHEMAS.glob("*.schema.yaml")):
        sheet = _read(path)
        if path.stem not in ("config.schema", "models.schema"):
            name = path.name.removesuffix(".schema.yaml")
            lines += ["", f"## Columns of the sheet `{name}`", "", _cell(_sentence(sheet["description"]))]
            lines += _table(_rows(keys_of(sheet), {}))
    return "\n".join(lines) + "\n"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _rows(keys: Iterator[tuple[str, Mapping[str, Any]]], given: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (name, kind_of(part), _value(given.get(name, part.get("default"))), part.get("description", ""))
        for name, part in keys
    ]


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        yield before + key, value


def models_page() -> str:
    """Return the page of the keys of a models file."""
    schema = _read(SCHEMAS / "models.schema.yaml")
    words, named = remarks(ROOT / "config" / "models" / "demo.yaml"), setting_names()
    lines = [
        "# Models file: every key",
        "",
        "The keys of `config/models/demo.yaml`, `paper.yaml` and files of your own (key `models` of the settings).",
        "Defaults hold for keys that a file leaves out; the paper's values stand in `config/models/path_*.yaml`,",
        "with their sources. On the command line: `nuclass train local -o optimizer.lr_head=1e-4`. Formulas: [The",
        "method](../method.md). The section `protocol` is that of the [configuration](settings.md#protocol).",
    ]
    for name, part in schema["properties"].items():
        if name == "protocol":
            continue
        lines += ["", f"## {name}", "", _cell(_sentence(part.get("description") or words.get(name, name)))]
        inner = keys_of(part, f"{name}.") if part.get("properties") else iter([(name, part)])
        rows = [(key, kind_of(item), _value(item.get("default")), word_for(key, words, named)) for key, item in inner]
        lines += _table(rows)
    return "\n".join(lines) + "\n"


def remarks(path: Path) -> dict[str, str]:
    """Return the remark behind each key of a YAML file, by the dotted name of the key."""
    found: dict[str, str] = {}
    at: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.match(r"( *)([\w-]+):(?:[^#]*?)(?: # (.*))?$", line)
        if match:
            at = [(indent, name) for indent, name in at if indent < len(match[1])] + [(len(match[1]), match[2])]
            if match[3]:
                found[".".join(name for _, name in at)] = match[3]
    return found


def word_for(key: str, words: Mapping[str, str], named: Mapping[str, str]) -> str:
    """Return what a key of the models is.

    The remark on it; else its name in the table of settings, whose keys start below a section; else the remark on the
    key of another section whose name ends alike.
    """
    if key in words:
        return words[key]
    parts = key.split(".")
    ends = [".".join(parts[n:]) for n in range(1, len(parts))]
    for end in ends:
        if end in named:
            return named[end]
    return next((remark for end in ends for name, remark in words.items() if name.endswith(f".{end}")), "")


def setting_names() -> dict[str, str]:
    """Return the name and unit of every setting of the models, as the tables of the study have them."""
    lines = (ROOT / "resources" / "parameters.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = [line.split("\t") for line in lines if line.startswith("models\t")]
    named = {key: f"{name}, {unit}" if unit else name for _, key, _, name, unit in rows}
    more = {
        "backbone": "The network and what it sees: docs/backbones.md",
        "augment.black_corners": "Set by the protocol: docs/protocol.md",
    }
    return named | more


def messages(path: Path) -> Iterator[tuple[str, str]]:
    """Yield what failed and how to mend it, of every ``UserError`` in a file; ``...`` stands for what varies."""
    known = constants(path)
    for node in ast.walk(parsed(path)):
        place = _TOLD_BY.get(getattr(node.func, "id", "")) if isinstance(node, ast.Call) else None
        if isinstance(node, ast.Call) and place is not None and len(node.args) > place:
            what = _text(node.args[place], known).strip()
            fixes = [_text(keyword.value, known) for keyword in node.keywords if keyword.arg == "fix"]
            if re.search(r"\w{3}", what):
                yield what, fixes[0] if fixes else ""


_TOLD_BY = {"UserError": 0, "raise_faults": 1}
"""Calls that tell a mistake, and which of their arguments says what failed."""


@cache
def parsed(path: Path) -> ast.Module:
    """Return a file of the library as its syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def constants(path: Path, inner: bool = False) -> dict[str, str]:
    """Return the texts that a module gives names, and those it imports from another one of the library."""
    known: dict[str, str] = {}
    for node in parsed(path).body:
        if isinstance(node, ast.ImportFrom) and not inner and (node.module or "").startswith("nuclass."):
            file = ROOT / "src" / f"{node.module}".replace(".", "/")
            file = file.with_suffix(".py") if file.with_suffix(".py").is_file() else file / "__init__.py"
            there = constants(file, inner=True)
            known |= {alias.asname or alias.name: there[alias.name] for alias in node.names if alias.name in there}
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            text = _text(node.value, known)
            if text.strip("."):
                known[node.targets[0].id] = text
    return known


def _text(node: ast.expr, known: Mapping[str, str]) -> str:
    """Return the text of an expression, with ``...`` for all that only the run knows."""
    if isinstance(node, ast.Constant):
        return str(node.value) if isinstance(node.value, str) else ""
    if isinstance(node, ast.Name):
        return known.get(node.id, "...")
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, known) if isinstance(node.value, ast.Name) else "..."
    if isinstance(node, ast.JoinedStr):
        return re.sub(r"(\.\.\. ?){2,}", "... ", "".join(_text(part, known) for part in node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, known) + _text(node.right, known)
    if isinstance(node, ast.IfExp):
        both = (_text(node.body, known), _text(node.orelse, known))
        return " / ".join(dict.fromkeys(text for text in both if text))
    return "..."


def stage_of(path: Path) -> str:
    """Return the heading below which the messages of a file stand."""
    name = path.relative_to(LIBRARY).with_suffix("").as_posix()
    return next(
        stage
        for stage, starts in STAGES.items()
        if any(start == "" or name == start or name.startswith(f"{start}/") for start in starts)
    )


def messages_page() -> str:
    """Return the page of all messages of the library, by stage."""
    rows: dict[str, dict[str, list[str]]] = {stage: {} for stage in STAGES}
    for path in sorted(LIBRARY.rglob("*.py")):
        for what, fix in messages(path):
            fixes = rows[stage_of(path)].setdefault(what, [])
            if fix.strip(" .") and fix not in fixes:
                fixes.append(fix)
    lines = [
        "# All messages",
        "",
        "Every mistake that is told in words, by stage, and how it is mended; `...` stands for what only the run",
        "knows. A message itself also says where, what was found and what was expected. The most likely ones:",
        "[Troubleshooting](../troubleshooting.md). The search field of this site finds a message by its words.",
    ]
    for stage, texts in rows.items():
        if texts:
            lines += ["", f"## {stage}", "", "| message | to mend it |", "|---|---|"]
            lines += [f"| {_plain(what)} | {_plain('; or: '.join(fixes))} |" for what, fixes in sorted(texts.items())]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Return a message for a cell of a table, with nothing that Markdown would read as a mark."""
    text = textwrap.shorten(" ".join(text.split()), 400, placeholder=" ...")
    return re.sub(r"([\\`*_{}\[\]|])", r"\\\1", text).replace("<", "&lt;")


PAGES: dict[str, Callable[[], str]] = {
    "reference/commands.md": commands_page,
    "reference/settings.md": settings_page,
    "reference/models.md": models_page,
    "reference/messages.md": messages_page,
}


def on_files(files: Any, *, config: Any) -> Any:
    """Add the written pages to those of the site."""
    from mkdocs.structure.files import File

    for name, write in PAGES.items():
        files.append(File.generated(config, name, content=write()))
    return files
