"""The rule that fetches, run by Snakemake: once, and again only for a reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bundle_example import example
from nuclass.core.files import read_json
from nuclass.synthetic.bundle import write_bundle

REPOSITORY = Path(__file__).parent.parent
GOAL = "resources/bundles/mine/bundle.json"
COLUMNS = "slide\torgan\trole\tpatient\tsource\tdataset\tpath\the\talignment\talign\n"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    for name in ("config", "resources", "rules", "scripts", "src", "workflow", "profiles", "envs"):
        shutil.copytree(
            REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("bundles", "truth", "__pycache__")
        )
    write_bundle(tmp_path / "outs", "x", example())
    with zipfile.ZipFile(tmp_path / "X_outs.zip", "w") as archive:
        for path in sorted((tmp_path / "outs").rglob("*")):
            archive.write(path, path.relative_to(tmp_path / "outs").as_posix())
    (tmp_path / "X_he_image.ome.tif").write_bytes(b"an image")
    write_sheet(tmp_path, "local\t\tX_outs.zip\t\tgrid\t")
    return tmp_path


def write_sheet(study: Path, source: str) -> None:
    rows = f"mine\tlung\ttrain\ta\t{source}\nother\tlung\tcohort\tb\tsynthetic\t\t\t\t\t\n"
    (study / "config/slides.tsv").write_text(COLUMNS + rows, encoding="utf-8")


def run(study: Path, *more: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "SNAKEMAKE_PROFILE"}
    command = [sys.executable, "-m", "snakemake", "--cores", "1", GOAL, *more]
    done = subprocess.run(command, cwd=study, env=environment, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


@pytest.mark.workflow
def test_fetch_runs_again_only_for_a_reason(study: Path) -> None:
    told = run(study)
    inventory = read_json(study / GOAL)
    assert inventory["alignment_source"] == "grid", told
    assert inventory["image"] is None
    assert "Nothing to be done" in run(study, "-n", "--config", "fetch={user_agent: curl/8, timeout_s: 5}")
    write_sheet(study, "local\t\tX_outs.zip\t\tgrid\tregister")
    run(study)
    assert read_json(study / GOAL)["image"] == "morphology_focus/morphology_focus_0000.ome.tif"


@pytest.mark.workflow
def test_offline_is_told_before_any_job(study: Path) -> None:
    write_sheet(study, "dataset\tXenium_V1_hKidney_cancer_section\t\t\t\t")
    told = run(study, "--config", "fetch={offline: true}")
    assert "fetch.offline is set, and 3 files are not here" in told
    assert "to   resources/bundles/mine/outs.zip" in told
    assert "Traceback" not in told
    assert not (study / "logs").exists()
