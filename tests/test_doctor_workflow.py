"""The doctor as a goal of the workflow."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from doctor_example import REPOSITORY, program
from nuclass.core.files import read_json
from nuclass.doctor import Result
from test_doctor_cluster import slurm
from test_workflow import copy, snakemake

__all__ = ["copy"]


@pytest.mark.workflow
def test_snakemake_doctor(
    copy: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the settings that Snakemake has, tells each time it is asked, and never runs inside the image."""
    machine = tmp_path_factory.mktemp("machine")
    slurm(machine, "all*|up|infinite|gpu:1")
    program(machine, "apptainer", 'if [ "$1" = --version ]; then echo apptainer version 1.3.4; exit; fi; exit 1')
    monkeypatch.setenv("PATH", f"{machine / 'bin'}{os.pathsep}{os.environ['PATH']}")
    done = snakemake("--cores", "1", "doctor", "--config", "study=mine", "--sdm", "apptainer", folder=copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS  settings and sheets   'mine' of config/config.yaml" in done.stdout
    assert f"in {copy.resolve()}" in next(line for line in done.stdout.splitlines() if "this library" in line)
    assert "the check itself failed" not in done.stdout
    assert read_json(copy / "results/doctor.json")["counts"]["fail"] == 0
    again = snakemake("-n", "doctor", folder=copy)
    assert "examine_study" in again.stdout + again.stderr


def test_a_fault_stops_the_goal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], job_environment: None
) -> None:
    result = Result("cluster", "time limits", "fail", "too long", "runtime: 5", 0.1)
    monkeypatch.setattr("nuclass.doctor.examine", lambda case: [result])
    monkeypatch.chdir(tmp_path)
    job = SimpleNamespace(
        rule="examine_study",
        wildcards={},
        threads=1,
        log=["told.log"],
        config={},
        params=SimpleNamespace(files=["config/config.yaml"], outer={}, environment="envs/train.yaml"),
        output=SimpleNamespace(report="doctor.json"),
    )
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(REPOSITORY / "scripts/examine_study.py"), init_globals={"snakemake": job})
    assert stop.value.code == 1
    assert "FAIL  time limits" in capsys.readouterr().out
    assert "Cluster (Slurm): time limits" in Path("told.log").read_text(encoding="utf-8")
    assert read_json("doctor.json")["counts"]["fail"] == 1
