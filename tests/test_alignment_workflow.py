"""The goal `alignment` on slides as users have them: good, bad, without a file; and what a failure stops."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drawn_slide import draw_slide, moved
from nuclass.core.files import read_json
from slide_example import write_output

REPOSITORY = Path(__file__).parent.parent
COLUMNS = "slide\torgan\trole\tpatient\tsource\tdataset\tpath\the\talignment\talign\n"


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    for name in ("config", "resources", "rules", "scripts", "src", "workflow", "profiles", "envs"):
        skipped = shutil.ignore_patterns("bundles", "truth", "__pycache__")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=skipped)
    drawn = draw_slide(shape=(1200, 1400), turn_deg=-89.3, seed=41)
    write_output(folder / "good", drawn, alignment=drawn.frames.alignment)
    write_output(folder / "bad", drawn, alignment=moved(drawn.frames, 7, 0).alignment)
    rows = [
        "good\tlung\ttrain\ta\tlocal\t\tgood\t\t\t",
        "bad\tlung\tcohort\tb\tlocal\t\tbad\t\t\t",
    ]
    (folder / "config/slides.tsv").write_text(COLUMNS + "\n".join(rows) + "\n", encoding="utf-8")
    return folder


def run(study: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "SNAKEMAKE_PROFILE"}
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    return subprocess.run(command, cwd=study, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.workflow
def test_the_goal_alignment(study: Path):
    done = run(study, "alignment")
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(study / "results/tables/alignment.csv").set_index("slide")
    assert table["verdict"].to_dict() == {"good": "pass", "bad": "fail"}
    assert table.loc["bad", "residual_um"] == pytest.approx(7, abs=0.2)
    page = (study / "results/alignment.html").read_text(encoding="utf-8")
    assert page.index('id="bad"') < page.index('id="good"')
    assert not (study / "results/slides/good/he.ome.zarr").exists(), "no store is needed for a verdict"
    assert "Nothing to be done" in run(study, "-n", "alignment").stdout + run(study, "-n", "alignment").stderr


@pytest.mark.workflow
def test_a_failed_slide_stops_and_an_accepted_one_goes_on(study: Path):
    goal = "results/slides/bad/cells.parquet"
    stopped = run(study, goal)
    told = stopped.stdout + stopped.stderr
    assert stopped.returncode != 0
    assert "The alignment of slide 'bad' failed" in told
    assert "the nuclei lie 7.0 um from where the cells say (limit 4 um)" in told
    assert "results/slides/bad/alignment.png" in told
    assert (study / "results/slides/bad/alignment.png").is_file(), "the picture stays to be looked at"
    (study / "config/accept.yaml").write_text("alignment:\n  accept: [bad]\n", encoding="utf-8")
    done = run(study, goal, "--configfile", "config/accept.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(pd.read_parquet(study / goal)) > 0
    assert set(pd.read_csv(study / "results/slides/bad/checks.csv")["verdict"]) <= {"pass", "skipped"}


@pytest.mark.workflow
def test_another_word_in_the_sheet_aligns_anew(study: Path):
    sheet = study / "config/slides.tsv"
    sheet.write_text(sheet.read_text().replace("local\t\tbad\t\t\t", "local\t\tbad\t\t\trefine"), encoding="utf-8")
    done = run(study, "results/slides/bad/alignment.json")
    assert done.returncode == 0, done.stdout + done.stderr
    record = read_json(study / "results/slides/bad/alignment.json")
    assert record["verdict"] == "pass"
    assert record["align"] == "refine"
    good = np.asarray(read_json(study / "results/slides/good/transform.json")["matrix"])
    np.testing.assert_allclose(np.asarray(record["matrix"])[:2, :2], good[:2, :2], atol=2e-3)
