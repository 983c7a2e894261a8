"""Plans of whole studies, with the jobs that Snakemake tells."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pandas as pd
import pytest

from nuclass.cli import main
from nuclass.core.errors import UserError
from nuclass.plan import jobs as jobs_module
from nuclass.plan.jobs import jobs_of
from test_workflow import copy, rule_blocks, snakemake

__all__ = ["copy"]
pytestmark = pytest.mark.workflow


def rows_of(told: dict[str, list[list[str]]]) -> dict[tuple[str, str], list[float]]:
    return {(row[0], row[1]): [float(value) for value in row[3:6]] for row in told["rows"]}


def test_snakemake_plans_the_paper_study(copy: Path) -> None:
    arguments = ["plan", "--configfile", "config/paper.yaml", "--cores", "1"]
    done = snakemake(*arguments, folder=copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RECKONED, never measured" in done.stdout
    told = json.loads((copy / "results/plan.json").read_text())
    rows = rows_of(told)
    assert len([job for job in told["jobs"] if job["rule"] == "fetch_bundle"]) == 11
    low, expected, high = rows["gpus", "total"]
    assert 0 < low < expected < high
    assert told["grades"]["gpus"]["steps"] > 0.8
    assert rows["slide cells", "breast_1"] == [892_966] * 3
    assert rows["download", "total"][1] > 8.23e9
    assert not (copy / "results/slides").exists()
    # Asked again it tells again: what is done may have changed.
    again = snakemake("-n", *arguments, folder=copy)
    assert "plan_study" in again.stdout + again.stderr


def test_finished_jobs_cost_nothing(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = copy / "resources/bundles/ovary_1"
    made.mkdir(parents=True)
    (made / "bundle.json").write_text(json.dumps({"source": "synthetic"}))
    pd.DataFrame({"cell_id": ["a", "b", "c"]}).to_parquet(made / "cells.parquet")
    truth = copy / "resources/truth/ovary_1"
    truth.mkdir(parents=True)
    for name in ("truth.parquet", "slide.json"):
        (truth / name).touch()
    goals = [f"resources/bundles/{slide}/bundle.json" for slide in ("ovary_1", "lung_1")]
    table, told = copy / "plan.tsv", copy / "plan.json"
    arguments = ["plan", *goals, "--directory", str(copy), "--cores", "2", "--tsv", str(table), "--json", str(told)]
    assert main(arguments) == 0
    assert "2 jobs, 1 of them done." in capsys.readouterr().out
    lines = [line.split("\t") for line in table.read_text().splitlines()]
    assert ["done", "Data", "jobs", "1", "1", "1", ""] in lines
    assert next(line[3:] for line in lines if line[:2] == ["slide cells", "ovary_1"])[:3] == ["3", "3", "3"]
    jobs = json.loads(told.read_text())["jobs"]
    assert [job["job"] for job in jobs] == ["simulate_bundle lung_1"]


SMALL = """\
container: "none.sif"
rule all:
    input: "made.txt"
rule make:
    output: "made.txt"
    conda: "tools.yaml"
    script: "make.py"
"""


def test_finished_is_what_the_profile_says(tmp_path: Path) -> None:
    """Neither the time of a script nor the software of a run makes a finished job run again."""
    flow = tmp_path / "workflow"
    flow.mkdir()
    (flow / "Snakefile").write_text(SMALL)
    (flow / "make.py").write_text("open(snakemake.output[0], 'w').close()\n")
    (flow / "tools.yaml").write_text("channels: [none]\ndependencies: [none]\n")
    needed = {job.rule: job.needed for job in jobs_of(root=tmp_path, goals=["all"])}
    assert needed["make"]
    done = snakemake("--cores", "1", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = [file for file in (tmp_path / ".snakemake/metadata").rglob("*") if file.is_file()]
    told = json.loads(record.read_text())
    assert "software_stack_hash" in told
    record.write_text(json.dumps(told | {"software_stack_hash": "of another run", "container_img_url": "none.sif"}))
    later = time.time() + 100
    os.utime(flow / "make.py", (later, later))
    needed = {job.rule: job.needed for job in jobs_of(root=tmp_path, goals=["all"])}
    assert not needed["make"]


def test_the_plan_is_made_outside_of_the_image() -> None:
    assert re.search(r"^    container:\s+None$", rule_blocks()["plan_study"], re.MULTILINE)


def test_a_python_that_cannot_be_started_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be started") as told:
        jobs_of(["all"], root=tmp_path, python=str(tmp_path / "no_python"))
    assert "no_python" in str(told.value)


def test_what_snakemake_says_is_told(copy: Path) -> None:
    with pytest.raises(UserError) as told:
        jobs_of(["no_such_goal"], root=copy)
    assert "no_such_goal" in str(told.value)
    assert "Traceback" not in str(told.value)


def test_without_snakemake_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs Snakemake"):
        jobs_of(["all"])
