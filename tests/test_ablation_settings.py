"""Faults in what the ablations are asked to be: each is named, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from nuclass.core.config import load_study, merge_files
from nuclass.core.errors import UserError
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
