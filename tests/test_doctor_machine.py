"""The doctor on machine, disk and packages: each verdict, and the remedy word for word."""

from __future__ import annotations

import errno
import fcntl
import importlib
import json
import locale
import os
import resource
import shutil
import sys
import tempfile
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from doctor_example import REPOSITORY, distribution, make_case, only, program
from nuclass.core.needs import study_needs
from nuclass.doctor import file_system, machine, packages
from nuclass.doctor.asked import Asked, minutes_of, read_rules, runtimes
from nuclass.doctor.case import INSTALL

Usage = namedtuple("Usage", "total used free")


def test_rules_are_read_from_their_files(tmp_path: Path) -> None:
    (tmp_path / "a.smk").write_text(
        "rule one:\n    output:\n        1,\n    threads: 8\n    resources:\n        mem_mb=mem(2500, 3),\n"
        "        runtime=lambda wildcards: 30 if small else 1440,\n        gpu=wants_gpu('local'),\n"
        "rule three:\n    output:\n        1,\n    resources:\n        runtime=of_slide(120),\n\n"
        'def of_slide(large):\n    """Return 3 minutes, or more."""\n    return 15 if small else large\n\n\n'
        "use rule one as two with:\n    resources:\n        mem_mb=500,\n        runtime=7,\n        gpu=0,\n"
        "rule goal:\n    input:\n        1,\n",
        encoding="utf-8",
    )
    rules = read_rules(tmp_path)
    assert rules == {
        "one": Asked(2500, 8, 30, 1440, True),
        "two": Asked(500, 8, 7, 7, False),
        "three": Asked(None, None, 15, 120, False),
    }
    profile = {"set-resources": {"one": {"runtime": "2h"}}}
    assert runtimes(rules, profile) == {"one": 120, "two": 7, "three": 120}
    assert runtimes(rules, {}, small=True) == {"one": 30, "two": 7, "three": 15}


def test_rules_of_the_repository_are_read() -> None:
    rules = read_rules(REPOSITORY / "rules")
    assert {"train_local", "build_slide", "fetch_bundle", "draw_confusion"} <= set(rules)
    assert rules["train_local"].gpu
    assert not rules["label_cells"].gpu
    limits = rules["evaluate_cohort"], rules["align_slide"], rules["predict_own"]
    assert [(rule.shortest_min, rule.longest_min) for rule in limits] == [(60, 60), (15, 120), (60, 480)]
    assert all(rule.longest_min for rule in rules.values())


@pytest.mark.parametrize(
    ("value", "minutes"), [(90, 90), ("90", 90), ("12h", 720), ("2d", 2880), ("30m", 30), ("soon", None), (True, None)]
)
def test_time_limits_of_a_profile(value: Any, minutes: int | None) -> None:
    assert minutes_of(value) == minutes


def test_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 8)
    assert only(machine.CHECKS, "processors", make_case(tmp_path)).verdict == "pass"
    monkeypatch.setattr(machine, "cores", lambda: 1)
    found = only(machine.CHECKS, "processors", make_case(tmp_path))
    assert (found.verdict, found.remedy) == (
        "warn",
        "one core is enough for the demo, in about twice the time: snakemake --cores 1 demo",
    )


def test_memory_against_the_largest_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory", lambda environ: 16e9)
    assert only(machine.CHECKS, "memory", make_case(tmp_path)).verdict == "pass"
    found = only(machine.CHECKS, "memory", make_case(tmp_path, paper=True))
    assert found.verdict == "fail"
    assert found.found == (
        "16.0 GB; of the rules that name a number the largest asks for at least 24.0 GB (train_local), "
        "those that reckon theirs may ask for more"
    )
    assert found.remedy == "take a machine with more memory, or send the jobs to a cluster: snakemake --profile slurm"
    program(tmp_path, "sbatch", "")
    assert only(machine.CHECKS, "memory", make_case(tmp_path, paper=True)).verdict == "pass"


def test_memory_of_a_job_is_no_other_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "sbatch", "")
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "none")
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10**8}[name])
    environ = {"SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "8192"}
    found = only(machine.CHECKS, "memory", make_case(tmp_path, paper=True, environ=environ))
    assert found.verdict == "warn"
    assert found.found.startswith("8.6 GB; of the rules")
    assert found.remedy.startswith("to run the study inside of such a job: --mem=24G or more; ")
    environ["SLURM_MEM_PER_NODE"] = "0"
    assert only(machine.CHECKS, "memory", make_case(tmp_path, paper=True, environ=environ)).verdict == "pass"


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        # Version 2: a job's step has none of its own, its job has, the machine more.
        ("0::/slurm/job_7/step_0", {"slurm/job_7/memory.max": "3000", "memory.max": "9000"}, 3000),
        ("0::/slurm/job_7", {"slurm/job_7/memory.max": "max", "slurm/memory.max": "5000"}, 5000),
        # Version 1, with the others beside it.
        (
            "5:cpuset:/slurm\n4:cpu,memory:/slurm/uid_1/job_7\n0::/init.scope",
            {"memory/slurm/uid_1/job_7/memory.limit_in_bytes": "2000", "memory/memory.limit_in_bytes": "8000"},
            2000,
        ),
        # A container, which sees its own groups at the top.
        ("0::/docker/abc", {"memory.max": "4000"}, 4000),
        (None, {"memory.max": "4000"}, 4000),
        ("0::/", {}, 4096 * 10**6),
    ],
)
def test_memory_of_control_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str | None, files: dict[str, str], limit: int
) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10**6}[name])
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "GROUP_FILES", tmp_path / "fs")
    if groups is not None:
        (tmp_path / "cgroup").write_text(f"{groups}\n", encoding="utf-8")
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(f"{text}\n", encoding="ascii")
    assert machine.memory({}) == limit


def test_open_files(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert only(machine.CHECKS, "open files", make_case(tmp_path)).verdict == "pass"
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
        found = only(machine.CHECKS, "open files", make_case(tmp_path))
        resource.setrlimit(resource.RLIMIT_NOFILE, (500, before[1]))
        assert only(machine.CHECKS, "open files", make_case(tmp_path)).verdict == "warn"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (found.verdict, found.remedy) == ("fail", "ulimit -n 4096")


def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(64e6, 0, 64e6))
    assert only(machine.CHECKS, "shared memory", make_case(tmp_path)).verdict == "pass"
    found = only(machine.CHECKS, "shared memory", make_case(tmp_path, paper=True))
    assert found.verdict == "warn"
    assert found.found == "64.0 MB free in /dev/shm, for 16 reading processes"
    assert found.remedy.startswith("in a container: --shm-size=8g (docker)")


def test_text_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locale, "getpreferredencoding", lambda setlocale: "UTF-8")
    assert only(machine.CHECKS, "text", make_case(tmp_path)).verdict == "pass"
    monkeypatch.setattr(locale, "getpreferredencoding", lambda setlocale: "ISO-8859-1")
    found = only(machine.CHECKS, "text", make_case(tmp_path))
    assert (found.verdict, found.found, found.remedy) == ("warn", "texts in ISO-8859-1", "export LC_ALL=C.UTF-8")


@pytest.mark.parametrize(
    ("mask", "verdict", "remedy"),
    [
        (0o022, "pass", ""),
        (0o077, "pass", ""),
        (0o000, "warn", "umask 022, or 027 for a group"),
        (0o777, "fail", "umask 022"),
    ],
)
def test_rights_of_new_files(tmp_path: Path, mask: int, verdict: str, remedy: str) -> None:
    case = make_case(tmp_path)
    before = os.umask(mask)
    try:
        found = only(machine.CHECKS, "rights of new files", case)
    finally:
        os.umask(before)
    assert (found.verdict, found.remedy) == (verdict, remedy)


def test_kind_of_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nserver:/home {tmp_path}/scratch nfs4 rw 0 0\n", encoding="utf-8")
    monkeypatch.setattr(machine, "MOUNTS", mounts)
    (tmp_path / "scratch").mkdir()
    case = make_case(tmp_path, environ={"TMPDIR": str(tmp_path)})
    assert only(machine.CHECKS, "kind of disk", case).found.startswith("results/ ext4")
    found = only(machine.CHECKS, "kind of disk", make_case(tmp_path, environ={"TMPDIR": str(tmp_path / "scratch")}))
    assert found.verdict == "warn"
    assert found.remedy == "export TMPDIR=/a/local/disk   (temporary files on a network disk are slow)"


@pytest.mark.parametrize(("free", "verdict"), [(5_000_000, "pass"), (50_000, "warn"), (10, "fail")])
def test_number_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, verdict: str) -> None:
    monkeypatch.setattr(os, "statvfs", lambda place: SimpleNamespace(f_files=10**7, f_favail=free))
    found = only(machine.CHECKS, "number of files", make_case(tmp_path))
    assert found.verdict == verdict
    if verdict == "fail":
        assert found.remedy == "delete files there, or take another disk; quotas of files count as well"


def test_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(tmp_path, environ={"TMPDIR": str(tmp_path)})
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(1e12, 0, 9e9))
    assert only(machine.CHECKS, "temporary files", case).verdict == "pass"
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(1e12, 0, 1e8))
    assert only(machine.CHECKS, "temporary files", case).verdict == "warn"
    found = only(machine.CHECKS, "temporary files", make_case(tmp_path, environ={"TMPDIR": "/nowhere/tmp"}))
    assert (found.verdict, found.remedy) == ("fail", "mkdir -p /nowhere/tmp   or: unset TMPDIR")


@pytest.mark.parametrize(
    ("number", "verdict", "remedy"),
    [
        (errno.ENOSPC, "fail", "free space there, or take another disk"),
        (errno.EDQUOT, "fail", "free space there, or take another disk"),
        (errno.EROFS, "fail", "take a clone on a disk of yours"),
    ],
)
def test_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, verdict: str, remedy: str) -> None:
    case = make_case(tmp_path)
    assert only(file_system.CHECKS, "writing and renaming", case).verdict == "pass"
    assert list(case.root.iterdir()) == [], "the folder of the attempt is left behind"

    def refuse(**more: Any) -> str:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    found = only(file_system.CHECKS, "writing and renaming", case)
    assert (found.verdict, found.remedy) == (verdict, remedy)


def test_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(tmp_path)
    assert only(file_system.CHECKS, "links", case).verdict == "pass"

    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert only(file_system.CHECKS, "links", case).verdict == "warn"
    monkeypatch.setattr(Path, "symlink_to", refuse)
    found = only(file_system.CHECKS, "links", case)
    assert (found.verdict, found.remedy) == (
        "fail",
        "take a disk of Linux for the study (no exFAT, no share of Windows)",
    )


def test_locks_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(tmp_path)
    assert only(file_system.CHECKS, "locks", case).verdict == "pass"

    def refuse(stream: Any, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    found = only(file_system.CHECKS, "locks", case)
    assert (found.verdict, found.found) == ("warn", "this disk gives no locks (No locks available)")
    assert found.remedy.startswith("start one workflow at a time in this folder")


def test_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(tmp_path)
    assert only(file_system.CHECKS, "clock", case).verdict == "pass"
    now = file_system.time.time
    monkeypatch.setattr(file_system.time, "time", lambda: now() + 90)
    found = only(file_system.CHECKS, "clock", case)
    assert found.verdict == "warn"
    assert "is 90 s away from this machine's" in found.found
    assert found.remedy == "set both clocks by the network (NTP): Snakemake may think that new files are old"


@pytest.mark.parametrize(("free", "verdict"), [(1e13, "pass"), (6e11, "warn"), (3e10, "fail")])
def test_disk_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, verdict: str) -> None:
    """The paper's study needs 518 GB, 351 to 1,079, if every goal is made."""
    case = make_case(tmp_path, paper=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(1e13, 0, free))
    found = only(file_system.CHECKS, "disk space", case)
    assert found.verdict == verdict
    if verdict == "fail":
        assert found.remedy.startswith("free ")
        assert found.remedy.endswith(" GB or more there, or clone the study onto a larger disk")


def test_disk_space_of_a_study_that_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its running states nor what its folders might have held at the most are still to come."""
    case = make_case(tmp_path, paper=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(1e13, 0, 3e10))
    for one in study_needs(case.study, case.root).folders:
        (case.root / one.folder).mkdir(parents=True)
        if one.folder != "work":
            with (case.root / one.folder / "files.bin").open("wb") as stream:
                stream.truncate(int(one.kept.expected) + 1)
    for slide, dataset in case.study.slides["dataset"].items():
        folder = case.root / "resources/bundles" / str(slide)
        folder.mkdir()
        (folder / "bundle.json").write_text(json.dumps({"source": dataset}), encoding="utf-8")
    found = only(file_system.CHECKS, "disk space", case)
    assert found.verdict == "pass"
    assert "will still need about 0 bytes, 0 bytes to 0 bytes" in found.found
    # One folder by way of work that lacks something: trainings may still run.
    (case.root / "results/models/files.bin").unlink()
    assert "(most of it work " in only(file_system.CHECKS, "disk space", case).found


def test_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(packages.CHECKS, "Python", make_case(tmp_path)).verdict == "pass"
    monkeypatch.setattr(packages.platform, "python_version", lambda: "3.14.1")
    found = only(packages.CHECKS, "Python", make_case(tmp_path))
    assert found.found.endswith("<3.13 is needed") or ">=3.11" in found.found
    assert (found.verdict, found.remedy) == ("fail", "rm -f .venv/.complete; make setup PYTHON=/path/to/python3.12")


def test_own_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(packages.CHECKS, "own packages", make_case(tmp_path)).verdict == "pass"
    true = packages.installed

    def changed(names: Any) -> dict[str, str]:
        return {
            name: "1.0.0" if name == "numpy" else version for name, version in true(names).items() if name != "timm"
        }

    monkeypatch.setattr(packages, "installed", changed)
    found = only(packages.CHECKS, "own packages", make_case(tmp_path))
    assert (found.verdict, found.remedy) == ("fail", "rm -f .venv/.complete; make setup")
    assert found.found == "missing: timm; too old: numpy 1.0.0 (needed: >=2.0)"


def test_locked_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(packages.CHECKS, "locked versions", make_case(tmp_path)).verdict == "pass"
    true = packages.installed
    monkeypatch.setattr(packages, "installed", lambda names: {**true(names), "numpy": "2.0.1"})
    found = only(packages.CHECKS, "locked versions", make_case(tmp_path))
    assert found.verdict == "warn"
    assert "1 of " in found.found
    assert "numpy 2.0.1 (locked: " in found.found
    monkeypatch.setattr(
        packages, "installed", lambda names: {name: one for name, one in true(names).items() if name != "scipy"}
    )
    found = only(packages.CHECKS, "locked versions", make_case(tmp_path))
    assert (found.verdict, found.found, found.remedy) == ("fail", "missing: scipy", "rm -f .venv/.complete; make setup")


def test_packages_of_a_stage_are_those_of_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = REPOSITORY / "envs/train.yaml"
    assert {"torch", "timm", "tifffile", "matplotlib"} <= packages.stage_packages(file)
    true = packages.installed
    gone = {"scanpy", "snakemake", "leidenalg"}
    monkeypatch.setattr(
        packages, "installed", lambda names: {name: one for name, one in true(names).items() if name not in gone}
    )
    case = make_case(tmp_path, environment=file, outer={"snakemake": "9.27.1"})
    for name in ("own packages", "locked versions", "Snakemake"):
        assert only(packages.CHECKS, name, case).verdict == "pass", name
    assert only(packages.CHECKS, "own packages", make_case(tmp_path)).verdict == "fail"


def test_packages_of_a_stage_are_not_those_of_snakemake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a job all that Snakemake has can be imported as well: it counts for nothing, and its versions neither."""
    stage = distribution(tmp_path / "stage/lib", "numpy", "2.1.0")
    distribution(stage, "scipy", "1.14.0")
    foreign = distribution(tmp_path / "foreign", "zarr", "3.1.0")
    distribution(foreign, "scipy", "1.0.0")
    file = tmp_path / "stage.yaml"
    file.write_text("dependencies: [python, numpy, scipy, zarr]\n", encoding="utf-8")
    monkeypatch.setattr(sys, "path", [*sys.path, str(stage), str(foreign)])
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "stage"))
    found = only(packages.CHECKS, "own packages", make_case(tmp_path, environment=file))
    assert (found.verdict, found.found) == ("fail", "missing: zarr")
    distribution(stage, "zarr", "3.1.0")
    importlib.invalidate_caches()
    found = only(packages.CHECKS, "own packages", make_case(tmp_path, environment=file))
    assert (found.verdict, found.found) == ("pass", "3 packages that the workflow uses are there and new enough")
    told = only(packages.CHECKS, "locked versions", make_case(tmp_path, environment=file))
    assert "numpy 2.1.0 (locked: " in told.found
    assert "scipy 1.14.0 (locked: " in told.found


def test_lock_lines_for_other_systems_do_not_count() -> None:
    text = "colorama==0.4.6 ; sys_platform == 'win32' \\\n    --hash=x\ntorch==2.15.0 \\\n    --hash=y\nsix==1.0\n"
    assert packages.locked(text) == {"torch": "2.15.0", "six": "1.0"}


@pytest.mark.parametrize(
    ("outer", "verdict"), [({"snakemake": "9.27.1"}, "pass"), ({"snakemake": "8.30.0"}, "fail"), ({}, "pass")]
)
def test_snakemake(tmp_path: Path, outer: dict[str, str], verdict: str) -> None:
    found = only(packages.CHECKS, "Snakemake", make_case(tmp_path, outer=outer))
    assert found.verdict == verdict
    if verdict == "fail":
        assert (found.found, found.remedy) == (
            "Snakemake 8.30.0; >=9.17 is needed",
            "rm -f .venv/.complete; make setup",
        )


def test_the_library_of_another_folder(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    assert only(packages.CHECKS, "this library", case).verdict == "pass"
    own = case.root / "src/nuclass"
    own.mkdir(parents=True)
    (own / "__init__.py").touch()
    found = only(packages.CHECKS, "this library", case)
    assert found.verdict == "warn"
    assert found.remedy == f"PYTHONPATH={case.root}/src nuclass doctor   (or, there: {INSTALL})"


@pytest.mark.parametrize(
    ("environ", "verdict", "remedy"),
    [
        ({}, "pass", ""),
        ({"PYTHONPATH": str(REPOSITORY / "src")}, "pass", ""),
        ({"PYTHONPATH": "/opt/modules/python"}, "warn", "unset PYTHONPATH"),
        ({"PYTHONHOME": "/opt/python"}, "fail", "unset PYTHONHOME"),
    ],
)
def test_packages_from_elsewhere(tmp_path: Path, environ: dict[str, str], verdict: str, remedy: str) -> None:
    found = only(packages.CHECKS, "foreign packages", make_case(tmp_path, environ=environ))
    assert (found.verdict, found.remedy) == (verdict, remedy)


def test_compiled_packages(tmp_path: Path) -> None:
    assert only(packages.CHECKS, "compiled packages", make_case(tmp_path)).verdict == "pass"
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/openslide.py").write_text("raise OSError('libopenslide.so.1: not found')", encoding="utf-8")
    case = make_case(tmp_path, environ={"PYTHONPATH": str(tmp_path / "broken")})
    found = only(packages.CHECKS, "compiled packages", case)
    assert (found.verdict, found.remedy) == ("fail", "rm -f .venv/.complete; make setup")
    assert found.found.startswith("openslide does not load: exit status 1: OSError: libopenslide.so.1")


def test_another_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(machine.CHECKS, "system", make_case(tmp_path)).verdict == "pass"
    monkeypatch.setattr(sys, "platform", "darwin")
    found = only(machine.CHECKS, "system", make_case(tmp_path))
    assert (found.verdict, found.remedy) == ("warn", "the workflow was tried on Linux only; on Windows use WSL")
