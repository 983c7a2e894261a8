"""A small study whose run is killed again and again ends with the files of one that ran straight, and no others."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from kill_workflow import BY_ITSELF, contents, differences, kill_again_and_again, leftovers

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
pytestmark = [pytest.mark.long, pytest.mark.workflow]


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


def snakemake(study: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "snakemake", *arguments, *ARGUMENTS]
    done = subprocess.run(command, cwd=study, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stdout + done.stderr


def test_a_run_that_is_killed_again_and_again(tmp_path: Path) -> None:
    """One test, so that the two runs are made once where tests are shared out among processes."""
    straight, killed = (small_study(tmp_path / name) for name in ("straight", "killed"))
    start = time.monotonic()
    snakemake(straight)
    found = kill_again_and_again(killed, ARGUMENTS, KILLS, time.monotonic() - start, seed=3)
    assert found.status == 0, found.told[-5000:]
    assert len([way for way, _ in found.rounds if way != BY_ITSELF]) >= KILLS - 2, found.rounds
    assert contents(killed)
    assert differences(killed, straight) == []
    assert found.again == [], "what was finished was made again"
    assert found.outlived == [], "jobs went on without their Snakemake"
    assert leftovers(straight) == []
    assert leftovers(killed) == [], "something half or temporary was left behind"
    assert "Nothing to be done" in snakemake(killed, "-n")
