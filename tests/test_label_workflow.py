"""What a change of markers or of labelling's settings makes anew: the labels and what follows, nothing before."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
GOAL = "results/splits/ovary_1.parquet"
ROW = "T_Cell\tLCK\tpositive\t*\tmine\n"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo study with one slide done up to its split; the files are empty, Snakemake asks for their dates only."""
    folder = tmp_path_factory.mktemp("study")
    for name in ("config", "resources", "rules", "scripts", "src", "workflow", "profiles", "envs"):
        skipped = shutil.ignore_patterns("bundles", "truth", "__pycache__")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=skipped)
    listed = run(folder, "--summary", GOAL).stdout.splitlines()
    outputs = [line.split("\t")[0] for line in listed[1:] if "\t" in line]
    assert "results/labels/ovary_1/labels.parquet" in outputs
    for name in outputs:
        file = folder / name / "zarr.json" if name.endswith(".zarr") else folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("done", encoding="utf-8")
    done = run(folder, "--touch", "--forceall", "--cores", "1", GOAL)
    assert done.returncode == 0, done.stderr
    return folder


def run(study: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "SNAKEMAKE_PROFILE"}
    command = [sys.executable, "-m", "snakemake", *arguments]
    return subprocess.run(command, cwd=study, env=environment, capture_output=True, text=True, timeout=300)


def jobs(study: Path) -> dict[str, int]:
    done = run(study, "-n", GOAL)
    assert done.returncode == 0, done.stdout + done.stderr
    return {match[1]: int(match[2]) for match in re.finditer(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE)}


@pytest.mark.workflow
def test_labels_and_what_follows_are_made_anew_and_nothing_before(study: Path) -> None:
    assert jobs(study) == {}
    following = {"label_cells": 1, "split_cells": 1, "total": 2}
    own, config = study / "config/markers.tsv", study / "config/config.yaml"
    empty, settings = own.read_text(encoding="utf-8"), config.read_text(encoding="utf-8")
    own.write_text(empty + ROW, encoding="utf-8")
    assert jobs(study) == following
    own.write_text(empty, encoding="utf-8")
    config.write_text(settings.replace("min_confidence: 0.5", "min_confidence: 0.6"), encoding="utf-8")
    assert jobs(study) == following
    config.write_text(settings, encoding="utf-8")
    assert jobs(study) == {}, "what is changed back is no change"


@pytest.mark.workflow
def test_a_fault_of_the_own_table_is_told_before_any_job(study: Path) -> None:
    own = study / "config/markers.tsv"
    text = own.read_text(encoding="utf-8")
    own.write_text(text + ROW.replace("T_Cell", "T_Cel"), encoding="utf-8")
    try:
        done = run(study, "-n", GOAL)
    finally:
        own.write_text(text, encoding="utf-8")
    told = done.stdout + done.stderr
    assert done.returncode == 1
    line = text.count("\n") + 1
    assert f"markers.tsv, row {line}: unknown cell type 'T_Cel'. Did you mean 'T_Cell'?" in told
    assert "a type of your own needs an entry in the ontology first" in told
    assert "Traceback" not in told
