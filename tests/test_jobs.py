"""The frame around scripts: what a job leaves behind when it fails or is stopped."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from nuclass.core.errors import UserError
from nuclass.core.jobs import code_of_job, snakemake_job

pytestmark = pytest.mark.usefixtures("job_environment")


def run(tmp_path: Path, error: BaseException) -> tuple[int, str]:
    """Raise ``error`` inside a job; return the exit status and the log."""
    log = tmp_path / "job.log"
    rule = SimpleNamespace(log=[str(log)], threads=1, wildcards={}, rule="train_local")
    with pytest.raises(SystemExit) as caught, snakemake_job(rule):
        raise error
    return int(caught.value.code or 0), log.read_text(encoding="utf-8")


def test_a_stopped_job_does_not_look_finished(tmp_path: Path) -> None:
    status, log = run(tmp_path, SystemExit())
    assert status == 143
    assert "stopped before its end" in log


def test_a_users_mistake_is_told_without_a_traceback(tmp_path: Path) -> None:
    status, log = run(tmp_path, UserError("The file is wrong", where="here.csv", fix="mend it"))
    assert status == 1
    assert "The file is wrong" in log
    assert "Traceback" not in log


def test_any_other_error_leaves_its_traceback(tmp_path: Path) -> None:
    status, log = run(tmp_path, ZeroDivisionError("oops"))
    assert status == 1
    assert "Traceback" in log


def test_a_job_knows_the_code_of_its_rule_until_it_ends(tmp_path: Path) -> None:
    assert code_of_job() is None
    rule = SimpleNamespace(log=[], threads=1, wildcards={}, rule="train_local", params=SimpleNamespace(code="abc"))
    with snakemake_job(rule):
        assert code_of_job() == "abc"
    assert code_of_job() is None
    with pytest.raises(SystemExit), snakemake_job(rule):
        raise ZeroDivisionError
    assert code_of_job() is None
    rule.params = SimpleNamespace()
    with snakemake_job(rule):
        assert code_of_job() is None
