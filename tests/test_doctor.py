"""The doctor as a whole: it neither crashes nor hangs, tells all groups, and says what to do."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest

from doctor_example import distribution, make_case, program, write_study
from nuclass.cli import main
from nuclass.cli_doctor import _GROUPS
from nuclass.core.errors import UserError
from nuclass.doctor import GROUPS, all_checks, as_json, as_text, stage_of_job, study_name
from nuclass.doctor.case import Case
from nuclass.doctor.commands import ask
from nuclass.doctor.exam import Check, Finding, Result, passed, run_all, run_check, warned


def raising(error: BaseException) -> Check:
    def run(case: Case) -> Finding:
        raise error

    return Check("machine", "a check", run)


def result(verdict: str, group: str = "machine", remedy: str = "") -> Result:
    return Result(group, "a check", verdict, "what there is", remedy, 0.1)  # type: ignore[arg-type]


def test_a_check_that_fails_is_told(tmp_path: Path) -> None:
    (found,) = run_check(raising(KeyError("partition")), make_case(tmp_path))
    assert found.verdict == "warn"
    assert found.found == "the check itself failed: KeyError: 'partition'"


def test_a_missing_package_is_a_fault(tmp_path: Path) -> None:
    (found,) = run_check(raising(ModuleNotFoundError("No module named 'pandas'")), make_case(tmp_path))
    assert (found.verdict, found.remedy) == ("fail", "rm -f .venv/.complete; make setup")
    assert "No module named 'pandas'" in found.found


def test_an_error_for_users_keeps_its_words(tmp_path: Path) -> None:
    error = UserError("A file is cut off", where="a.tif", found="10 bytes", expected="more", fix="copy it again")
    (found,) = run_check(raising(error), make_case(tmp_path))
    assert (found.verdict, found.found, found.remedy) == (
        "fail",
        "A file is cut off; a.tif; found 10 bytes",
        "copy it again",
    )


def test_a_check_that_hangs_is_left_behind(tmp_path: Path) -> None:
    def run(case: Case) -> Finding:
        time.sleep(30)
        return passed("late")

    start = time.monotonic()
    (found,) = run_check(Check("machine", "a disk", run, 0.2), make_case(tmp_path))
    assert time.monotonic() - start < 5
    assert (found.verdict, found.found) == ("warn", "no answer within 0.2 s")


def test_groups_run_side_by_side_and_keep_their_order(tmp_path: Path) -> None:
    def waits(group: str, name: str) -> Check:
        def run(case: Case) -> Sequence[Finding]:
            time.sleep(0.3)
            return [passed("one"), warned("two", "do", "other")]

        return Check(group, name, run)

    start = time.monotonic()
    found = run_all([waits("machine", "a"), waits("gpu", "b"), waits("study", "c")], make_case(tmp_path))
    assert time.monotonic() - start < 0.8
    assert [one.name for one in found] == ["a", "other", "b", "other", "c", "other"]


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    program(tmp_path, "sinfo", "/bin/sleep 30 & /bin/sleep 30")
    start = time.monotonic()
    answer = ask(["sinfo"], {"PATH": str(tmp_path / "bin")}, 0.3)
    assert time.monotonic() - start < 5
    assert (answer.status, answer.reason) == (None, "sinfo gave no answer within 0.3 s")


def test_programs_that_are_missing_or_fail() -> None:
    assert ask(["nowhere"], {"PATH": "/nowhere"}).reason == "the command nowhere is not found"
    assert ask([sys.executable, "-c", "import sys; sys.exit('bad luck')"], {}).reason == "exit status 1: bad luck"


def test_every_group_has_checks_and_a_heading() -> None:
    assert tuple(GROUPS) == _GROUPS
    assert list(dict.fromkeys(check.group for check in all_checks())) == list(GROUPS)
    names = [(check.group, check.name) for check in all_checks()]
    assert len(set(names)) == len(names)


def test_the_report_has_remedies_and_counts() -> None:
    text = as_text([result("pass"), result("fail", "gpu", "first\nsecond"), result("warn", "study", "buy")])
    assert "This machine\n  PASS  a check" in text
    assert "  FAIL  a check               what there is\n" in text
    assert f"\n{'':30}> first\n{'':30}> second\n" in text
    assert text.endswith("1 PASS, 1 WARN, 1 FAIL. The study will not run as it is: mend what is marked FAIL.\n")
    assert "\x1b" not in text
    faults = Result("study", "a sheet", "fail", "2 faults\n  1. a\n     where: here", "mend", 0.1)
    assert f"2 faults\n{'':30}  1. a\n{'':30}     where: here\n" in as_text([faults])
    assert "\x1b[31mFAIL\x1b[0m" in as_text([result("fail")], colours=True)


@pytest.mark.parametrize(
    ("results", "end"),
    [
        ([result("pass")], "1 PASS. All is well."),
        ([result("warn")], "1 WARN. Nothing stands in the way; read what is marked WARN."),
        ([result("fail", "cluster")], "will not run as it is with --profile slurm: mend what is marked FAIL."),
        ([result("fail", "cluster"), result("fail")], "The study will not run as it is: mend what is marked FAIL."),
    ],
)
def test_the_last_line(results: list[Result], end: str) -> None:
    assert as_text(results).strip().endswith(end)


def test_json_has_the_same() -> None:
    told = as_json([result("pass"), result("fail", remedy="do")], "demo")
    assert told["counts"] == {"pass": 1, "warn": 0, "fail": 1, "skip": 0}
    assert told["checks"][1]["remedy"] == "do"
    assert told["study"] == "demo"


def test_a_broken_study_does_not_stop_the_other_checks(tmp_path: Path) -> None:
    write_study(tmp_path)
    sheet = tmp_path / "config/slides.tsv"
    sheet.write_text(sheet.read_text(encoding="utf-8").replace("\tcohort\t", "\tcohrt\t"), encoding="utf-8")
    case = Case(tmp_path, offline=True, environ={"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)})
    found = run_all([check for check in all_checks() if check.group != "network"], case)
    settings = next(one for one in found if one.name == "settings and sheets")
    assert settings.verdict == "fail"
    assert "cohrt" in settings.found
    assert study_name(case) is None
    assert not [one for one in found if "the check itself failed" in one.found]
    assert [one.name for one in found if one.verdict == "fail"] == ["settings and sheets"]
    assert "\n   found:      'cohrt' (text)\n" in settings.found


def test_an_error_in_reading_the_study_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*arguments: object) -> None:
        raise KeyError("splits")

    write_study(tmp_path)
    monkeypatch.setattr("nuclass.training.whole_study.load_whole_study", stumble)
    case = Case(tmp_path, offline=True)
    (settings, *_) = run_all([check for check in all_checks() if check.group == "study"], case)
    assert (settings.verdict, settings.found) == ("fail", "reading the study failed: KeyError: 'splits'")
    assert study_name(case) is None


def test_a_group_that_cannot_be_loaded_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "nuclass.doctor.cluster", None)
    (check,) = (one for one in all_checks() if one.group == "cluster")
    (found,) = run_check(check, make_case(tmp_path))
    assert (found.verdict, found.remedy) == ("fail", "rm -f .venv/.complete; make setup")
    assert found.found.startswith("a package cannot be loaded: ")


def test_a_job_of_a_stage_knows_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snakemake's own packages stand at the end of a job's path, so Snakemake can be imported in every environment."""
    assert stage_of_job("envs/train.yaml") is None
    foreign = distribution(tmp_path / "foreign", "snakemake", "9.27.1")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "stage/lib"), str(foreign)])
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "stage"))
    assert metadata.version("snakemake") == "9.27.1"
    assert stage_of_job("envs/train.yaml") == Path("envs/train.yaml")
    distribution(tmp_path / "stage/lib", "snakemake", "9.27.1")
    importlib.invalidate_caches()
    assert stage_of_job("envs/train.yaml") is None


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--only", "study", "data", "--json", "told.json"]) == 0
    out = capsys.readouterr().out
    assert "PASS  settings and sheets" in out
    assert "This machine" not in out
    assert out.endswith("All is well.\n")
    told = json.loads((tmp_path / "told.json").read_text(encoding="utf-8"))
    assert told["study"] == "demo"
    assert {one["group"] for one in told["checks"]} == {"study", "data"}


def test_the_command_fails_with_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--directory", str(tmp_path), "--only", "study", "--json", "-"])
    assert stop.value.code == 1
    told = json.loads(capsys.readouterr().out)
    assert told["counts"]["fail"] == 1
    assert told["checks"][0]["remedy"].startswith("run it in the study's folder")


def test_a_wrong_group_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--only", "gpus"])
    assert stop.value.code == 2
    assert "Did you mean 'gpu'?" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_doctor_is_quick(tmp_path: Path) -> None:
    """The demo's study on a machine without programs: within its time, and without an error of a check itself."""
    write_study(tmp_path)
    command = [sys.executable, "-m", "nuclass.cli", "doctor", "--offline", "--json", "-"]
    start = time.monotonic()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert time.monotonic() - start < 60
    told = json.loads(done.stdout)
    assert not [one for one in told["checks"] if "check itself failed" in one["found"] or "no answer" in one["found"]]
    assert {one["group"] for one in told["checks"]} == set(GROUPS)
    assert done.stderr == ""
