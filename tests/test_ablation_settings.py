"""Faults in what the ablations are asked to be: each is named, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from nuclass.core.config import load_study, merge_files
from nuclass.core.errors import UserError
from nuclass.training.config import parse_models
from test_config import message, study

__all__ = ["study"]


def test_wrong_choices_of_ablations(study: Path) -> None:
    for key, value, told in [
        ("switches", "no_buffer", "all, or a list"),
        ("switches", ["no_buffer", "no_buffer"], "each entry once"),
        ("leave_out", ["lung", "lung"], "each entry once"),
    ]:
        settings = merge_files(["config/config.yaml"], study)
        settings["ablations"][key] = value
        with pytest.raises(UserError) as raised:
            load_study(settings, study, ["config/config.yaml"])
        assert f"ablations.{key}" in str(raised.value)
        assert told in str(raised.value)


def test_a_fault_in_the_ablations_of_a_model_file_has_its_own_line(study: Path) -> None:
    path = study / "config/models/demo.yaml"
    written = "ablations: {local: {trainer: {max_epochs: 0}}}"
    lines = [
        written if line.startswith("ablations:") else line for line in path.read_text(encoding="utf-8").splitlines()
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert f"line {lines.index(written) + 1}, key local.trainer.max_epochs" in message(study)


@pytest.mark.parametrize(
    ("key", "name", "told"),
    [
        (
            "leave_out",
            "ovry",
            "An organ to leave out is not one of several in the training slides. Did you mean 'ovary'?",
        ),
        ("switches", "no_bufer", "The protocol has no switch of this name. Did you mean 'no_buffer'?"),
    ],
)
def test_a_name_that_is_none_has_its_line(study: Path, key: str, name: str, told: str) -> None:
    path = study / "config/config.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    start = lines.index("ablations:")
    line = next(i for i in range(start, len(lines)) if lines[i].startswith(f"  {key}:"))
    lines[line] = f"  {key}: [{name}]"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    said = message(study)
    assert said.startswith(told)
    assert f"config/config.yaml, line {line + 1}\n" in said


def test_a_missing_file_of_a_section_is_told_where_it_is_named(study: Path) -> None:
    path = study / "config/models/demo.yaml"
    text = path.read_text(encoding="utf-8").replace("ablations: demo_short.yaml", "ablations: demo_shrt.yaml")
    path.write_text(text, encoding="utf-8")
    line = 1 + next(i for i, row in enumerate(text.splitlines()) if row.startswith("ablations:"))
    said = message(study)
    assert said.startswith("the file of the section 'ablations' is missing")
    assert f"demo.yaml, line {line}\n" in said
    assert "demo_shrt.yaml" in said


def test_what_only_the_typed_settings_tell_is_told_before_any_job(study: Path) -> None:
    """Of the study's own models and of the ablations', whose file has its own lines."""
    names = ["config/config.yaml"]
    path = study / "config/models/demo.yaml"
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace("strengths: [0.1, 0.01, 1.0e-3, 1.0e-4]", "strengths: []"), encoding="utf-8")
    with pytest.raises(UserError, match=r"baselines.linear.strengths: no strength is named\n.*demo.yaml, line \d+"):
        load_study(merge_files(names, study), study, names, check_models=parse_models)
    path.write_text(whole, encoding="utf-8")
    short = study / "config/models/demo_short.yaml"
    short.write_text("local: {trainer: {devices: []}}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"local.trainer.devices: no device is named\n.*demo_short.yaml, line 1\n"):
        load_study(merge_files(names, study), study, names, check_models=parse_models)
