"""A small study whose run is killed again and again ends with the files of one that ran straight, and no others."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from kill_workflow import BY_ITSELF, Killed, contents, differences, kill_again_and_again, leftovers

REPOSITORY = Path(__file__).parent.parent
PARTS = ("config", "resources", "rules", "scripts", "src", "workflow", "profiles", "envs")
SLIDES = ("ovary_1", "ovary_h")
GOALS = (
    "results/evaluation/gate/ovary_h/metrics.json",
    "results/figures/confusion.pdf",
    "results/tables/funnel.csv",
    "results/explorer/slides/ovary_h/tiles",
)
ARGUMENTS = ["--cores", "2", "--configfile", "config/small.yaml", "--", *GOALS]
KILLS = 7
STUDY = {
    "study": "small",
    "slides": "config/small.tsv",
    "models": "config/models/small.yaml",
    "evaluation": {"bootstrap": 100},
    "labels": {"resolutions": [1.0]},
}
MODELS: dict[str, Any] = {
    "context": {"views": 1, "pretrain": {"samples_per_epoch": 300, "trainer": {"max_epochs": 2}}},
    "local": {"trainer": {"max_epochs": 2, "save_every_min": 0.02}},
    "global": {"trainer": {"max_epochs": 2, "save_every_min": 0.02}},
    "gate": {"views": 1, "trainer": {"max_epochs": 4}},
}
pytestmark = pytest.mark.workflow


@dataclass
class Runs:
    """Two folders, and how the run in the second was killed."""

    straight: Path
    killed: Path
    found: Killed


def small_study(folder: Path) -> Path:
    """A copy of the repository with a study of two slides, half as large as the demo's, and short trainings."""
    for name in PARTS:
        shutil.copytree(
            REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("bundles", "truth", "__pycache__")
        )
    sheet = (folder / "config/slides.tsv").read_text(encoding="utf-8").splitlines()
    kept = [line for line in sheet if line.startswith(("slide\t", *SLIDES))]
    (folder / "config/small.tsv").write_text("\n".join(kept) + "\n", encoding="utf-8")
    (folder / "config/small.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    models = yaml.safe_load((folder / "config/models/demo.yaml").read_text(encoding="utf-8"))
    (folder / "config/models/small.yaml").write_text(yaml.safe_dump(merged(models, MODELS)), encoding="utf-8")
    simulation = folder / "src/nuclass/synthetic/study.py"
    text = simulation.read_text(encoding="utf-8")
    sizes = '_SIZES = {"train": (2200.0, 560.0, 2100), "cohort": (1500.0, 760.0, 2000)}'
    assert sizes in text
    small = '_SIZES = {"train": (1400.0, 480.0, 1100), "cohort": (900.0, 500.0, 750)}'
    simulation.write_text(text.replace(sizes, small), encoding="utf-8")
    return folder


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a dictionary with the values of another in place of its own, level by level."""
    both = {key: merged(base[key], value) for key, value in changes.items() if isinstance(value, dict)}
    return base | {key: value for key, value in changes.items() if key not in both} | both


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    straight, killed = (small_study(tmp_path_factory.mktemp(name) / "study") for name in ("straight", "killed"))
    start = time.monotonic()
    command = [sys.executable, "-m", "snakemake", *ARGUMENTS]
    done = subprocess.run(command, cwd=straight, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    found = kill_again_and_again(killed, ARGUMENTS, KILLS, time.monotonic() - start, seed=3)
    return Runs(straight, killed, found)


def test_it_ends_as_if_nothing_had_happened(runs: Runs) -> None:
    assert runs.found.status == 0, runs.found.told[-5000:]
    assert len([way for way, _ in runs.found.rounds if way != BY_ITSELF]) >= KILLS - 2
    assert contents(runs.killed)
    assert differences(runs.killed, runs.straight) == []


def test_nothing_that_was_finished_was_made_again(runs: Runs) -> None:
    assert runs.found.again == []


def test_no_job_outlived_its_snakemake(runs: Runs) -> None:
    assert runs.found.outlived == []


def test_nothing_half_or_temporary_is_left(runs: Runs) -> None:
    assert leftovers(runs.straight) == []
    assert leftovers(runs.killed) == []


def test_a_run_afterwards_has_nothing_to_do(runs: Runs) -> None:
    command = [sys.executable, "-m", "snakemake", "-n", *ARGUMENTS]
    done = subprocess.run(command, cwd=runs.killed, capture_output=True, text=True, timeout=300)
    assert "Nothing to be done" in done.stdout + done.stderr
