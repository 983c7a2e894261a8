"""The command line: help for everybody, words instead of tracebacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import nuclass
from nuclass.cli import main
from nuclass.core.slides_sheet import SYNTHETIC_ORGANS

REPOSITORY = Path(__file__).parent.parent
COMMANDS = ("check", "fetch", "simulate", "check-bundle", "align", "build-slide", "label", "split", "evaluate")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"nuclass {nuclass.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_is_read_and_written(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 300


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys\nfrom nuclass.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted(m for m in sys.modules if m in ('numpy', 'pandas', 'torch', 'scanpy', 'matplotlib')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_misspelt_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["chekc"])
    assert stop.value.code == 2
    assert "'chekc' is not known. Did you mean 'check'?" in capsys.readouterr().err


def test_check_of_the_demo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert main(["check"]) == 0
    assert capsys.readouterr().out.startswith("The study 'demo' is sound: 5 training slides (")


def test_a_mistake_is_told_in_words(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["check", "--directory", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert told.startswith("A file is missing\n")
    assert "Traceback" not in told


def test_synthetic_organs() -> None:
    from nuclass.synthetic.study import RECIPES

    assert tuple(sorted(RECIPES)) == SYNTHETIC_ORGANS


def test_a_pipe_that_is_closed_early_is_no_error() -> None:
    command = f"{sys.executable} -m nuclass.cli fetch --list | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "Xenium_Prime_Ovarian_Cancer_FFPE_XRrun"
    assert done.stderr == ""
