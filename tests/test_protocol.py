"""The key ``protocol`` of a configuration: what it may say, what is told of mistakes, and where it is told."""

from __future__ import annotations

import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest

from nuclass.cli import main
from nuclass.core.config import load_settings, load_study, merge_files
from nuclass.core.errors import UserError
from nuclass.core.protocol import (
    STAGES,
    SWITCHES,
    Protocol,
    describe,
    flaws,
    parse_protocol,
    switches_of,
    to_setting,
)
from nuclass.core.provenance import run_record
from nuclass.tables.layout import Table, grid
from table_example import lay_out

REPOSITORY = Path(__file__).parent.parent
CONFIG, MINE = Path("config/config.yaml"), Path("mine.yaml")
ALL = Protocol(**dict.fromkeys(SWITCHES, True))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    for name in ("config", "resources"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("bundles", "truth"))
    return tmp_path


def load(folder: Path, text: str, **changes: object):
    (folder / MINE).write_text(text, encoding="utf-8")
    names = [CONFIG, MINE]
    return load_study(merge_files(names, folder) | changes, folder, names)


@pytest.mark.parametrize(
    ("text", "on"),
    [
        ("{}", Protocol()),
        ("protocol: corrected", Protocol()),
        ("protocol: {base: corrected, no_buffer: false}", Protocol()),
        ("protocol: released", ALL),
        ("protocol: {base: released}", ALL),
        ("protocol: {label_in_gate: true, no_buffer: 'true'}", Protocol(label_in_gate=True, no_buffer=True)),
        ("protocol: {base: released, no_buffer: false}", replace(ALL, no_buffer=False)),
    ],
)
def test_what_a_configuration_may_say(study, text, on):
    loaded = load(study, text)
    assert loaded.protocol == on
    again = load(study, "{}", protocol=loaded.config["protocol"])
    assert (again.protocol, again.config) == (on, loaded.config)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("protocol: relased", ["mine.yaml, line 2, key protocol", "Did you mean 'released'?", "one of corrected"]),
        ("protocol: 3", ["mine.yaml, line 2, key protocol", "3 (a whole number)"]),
        ("protocol: {label_in_gat: true}", ["mine.yaml, line 2", "Did you mean 'label_in_gate'?"]),
        ("protocol:\n  base: release", ["mine.yaml, line 3, key protocol.base", "Did you mean 'released'?"]),
        ("protocol:\n  no_buffer: maybe", ["mine.yaml, line 3, key protocol.no_buffer", "true or false"]),
        ("splits: {protocol: released}", ["mine.yaml, line 2", "unknown key 'protocol' in splits"]),
        ("protocol: {no_buffer: true}\nsplits: {folds: 3}", ["mine.yaml, line 3", "its one central box", "folds 3"]),
        ("protocol: {no_buffer: false}\nsplits: {buffer_um: 0}", ["mine.yaml, line 3", "at least 256 um"]),
    ],
)
def test_mistakes_are_told_with_their_place(study, text, told):
    for read in (lambda: load(study, "\n" + text), lambda: load_settings([CONFIG, MINE], study)):
        with pytest.raises(UserError) as caught:
            read()
        for part in told:
            assert part in str(caught.value)


def test_mistakes_of_the_command_line_are_told_as_such(study):
    with pytest.raises(UserError, match=r"Did you mean 'released'[\s\S]*the command line"):
        load(study, "{}", protocol="releasd")


def test_a_fault_of_the_protocol_comes_with_the_others(study):
    with pytest.raises(UserError) as caught:
        load(study, "protocol: {base: corected}\nqc: {min_gene: 3}")
    assert "2 faults" in str(caught.value)


def test_the_models_file_is_not_the_place(study):
    models = study / "config/models/demo.yaml"
    models.write_text("protocol: {label_in_gate: true}\n" + models.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(study, "{}")
    for part in ("demo.yaml, line 1", "'protocol'", "config/config.yaml"):
        assert part in str(caught.value)


def test_every_switch_is_described_and_changes_a_stage(study):
    import yaml

    schema = yaml.safe_load((REPOSITORY / "config/schemas/config.schema.yaml").read_text(encoding="utf-8"))
    described = schema["properties"]["protocol"]["properties"]
    assert list(described) == ["base", *SWITCHES]
    assert {name for names in STAGES.values() for name in names} == set(SWITCHES)
    page = (REPOSITORY / "docs/protocol.md").read_text(encoding="utf-8")
    for field in fields(Protocol):
        assert f"    {field.name}\n        " in (Protocol.__doc__ or "")
        assert f"| `{field.name}` |" in page


def test_only_switches_of_a_stage_and_only_those_on():
    assert switches_of(Protocol(), *STAGES) == {}
    assert switches_of(ALL, "slides", "splits") == {"inverted_mpp": True, "no_buffer": True}
    some = Protocol(label_in_gate=True, test_as_val=True)
    assert switches_of(some, "local") == {"test_as_val": True}
    assert switches_of(some, "global", "gate") == {"test_as_val": True, "label_in_gate": True}
    assert parse_protocol(switches_of(some, "global")) == some


def test_flaws_are_told(study, tmp_path):
    some = Protocol(no_buffer=True, label_in_gate=True)
    assert describe(Protocol()) == "corrected (no flaw of the original is on)"
    assert describe(ALL) == "released (all 21 flaws of the original are on)"
    assert describe(some) == "2 of the original's 21 flaws are on: no_buffer, label_in_gate"
    assert describe(replace(ALL, no_buffer=False)) == "20 of the original's 21 flaws are on: all but no_buffer"
    assert flaws(Protocol()) == ""
    assert to_setting(some) == {"no_buffer": True, "label_in_gate": True}
    assert run_record({"study": "x", "protocol": to_setting(some)}, [], {}, tmp_path)["protocol"] == describe(some)
    import pandas as pd

    for told in (flaws(some), ""):
        text = lay_out(Table("T", pd.DataFrame({"a": [1]}), [grid([{"a": 1}])]), tmp_path / "a", flaws=told)
        assert text.startswith(f"# T\n\n**{told}**\n" if told else "# T\n\n| a |")


@pytest.mark.parametrize("text", ["{}", "protocol: released", "protocol: {no_buffer: true}"])
def test_check_tells_it_in_one_line(study, text, capsys, monkeypatch):
    (study / MINE).write_text(text, encoding="utf-8")
    assert main(["check", "--directory", str(study), "--configfile", str(MINE)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Protocol: ")]
    wanted = {"{}": "corrected (", "protocol: released": "released (all 21"}.get(text, "1 of the original's 21 flaws")
    assert line.startswith(f"Protocol: {wanted}")
