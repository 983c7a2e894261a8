"""The doctor on Slurm, conda and containers: made-up programs, each verdict with its remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from doctor_example import look, make_case, only, program
from nuclass.doctor import cluster, conda
from nuclass.doctor.case import Case

PARTITIONS = "cpu*|up|1-00:00:00|(null)\ngpu|up|infinite|gpu:a100:4(S:0-1)\nold|down|infinite|(null)"


def slurm(folder: Path, partitions: str = PARTITIONS, sacct: str = "exit 0", age: str = "300 sec") -> None:
    """Write the commands of a cluster with these partitions, that remembers finished jobs so long."""
    for name in ("sbatch", "squeue", "scancel"):
        program(folder, name, "")
    lines = "\n".join(f"echo '{line}'" for line in partitions.splitlines())
    program(folder, "sinfo", f'if [ "$1" = --version ]; then echo slurm 22.05.8; exit; fi\n{lines}')
    program(folder, "sacct", sacct)
    program(folder, "scontrol", f"echo 'MessageTimeout = 10 sec'; echo 'MinJobAge               = {age}'")


def with_profile(folder: Path, profile: dict[str, Any], **more: Any) -> Case:
    case = make_case(folder, **more)
    (case.root / "profiles/slurm").mkdir(parents=True)
    (case.root / "profiles/slurm/config.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")
    (case.root / "slurm").symlink_to("profiles/slurm")
    return case


FITTING: dict[str, Any] = {
    "executor": "slurm",
    "slurm-status-command": "squeue",
    "default-resources": {"slurm_partition": "gpu"},
}


def test_no_slurm(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    for name in ("commands", "controller", "partitions", "time limits", "account", "state of jobs"):
        assert only(cluster.CHECKS, name, case).verdict == "skip", name


def test_a_cluster_that_fits(tmp_path: Path) -> None:
    slurm(tmp_path)
    case = with_profile(tmp_path, FITTING, paper=True)
    for check in cluster.CHECKS:
        found = look(cluster.CHECKS, check.name, case)
        assert [one.verdict for one in found] == ["pass"] * len(found), found
    assert only(cluster.CHECKS, "commands", case).found == "slurm 22.05.8"
    told = only(cluster.CHECKS, "controller", case).found
    assert told == "3 partitions: cpu (default), gpu (gpu:a100:4(S:0-1)), old (down)"


def test_commands_that_are_missing(tmp_path: Path) -> None:
    slurm(tmp_path)
    (tmp_path / "bin/sbatch").unlink()
    found = only(cluster.CHECKS, "commands", make_case(tmp_path))
    assert (found.verdict, found.found) == ("fail", "sbatch not found, the others are")
    assert found.remedy == "load the module of Slurm, or mend PATH"


def test_a_controller_that_is_down(tmp_path: Path) -> None:
    slurm(tmp_path)
    program(tmp_path, "sinfo", "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1")
    found = only(cluster.CHECKS, "controller", make_case(tmp_path))
    assert found.verdict == "fail"
    assert "Unable to contact slurm controller" in found.found
    assert found.remedy == "scontrol ping   tells whether slurmctld is up; if not, wait or ask"


def test_a_sinfo_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(tmp_path)
    program(tmp_path, "sinfo", "/bin/sleep 60")
    monkeypatch.setattr(cluster, "LIMIT_S", 0.3)
    found = only(cluster.CHECKS, "controller", make_case(tmp_path))
    assert (found.verdict, found.found) == (
        "fail",
        "the cluster does not answer: sinfo gave no answer within 0.3 s",
    )
    assert only(cluster.CHECKS, "partitions", make_case(tmp_path)).verdict == "skip"


def test_the_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise cluster.metadata.PackageNotFoundError(name)

    assert only(cluster.CHECKS, "plugin", make_case(tmp_path)).verdict == "pass"
    monkeypatch.setattr(cluster.metadata, "version", missing)
    assert only(cluster.CHECKS, "plugin", make_case(tmp_path)).verdict == "skip"
    assert only(cluster.CHECKS, "plugin", make_case(tmp_path, outer={cluster.PLUGIN: "2.8.0"})).verdict == "pass"
    slurm(tmp_path)
    found = only(cluster.CHECKS, "plugin", make_case(tmp_path))
    assert (found.verdict, found.remedy) == ("fail", "rm -f .venv/.complete; make setup")


def test_the_profile_and_its_link(tmp_path: Path) -> None:
    slurm(tmp_path)
    found = only(cluster.CHECKS, "profile", make_case(tmp_path))
    assert (found.verdict, found.remedy) == ("fail", "git checkout profiles/slurm/config.yaml")
    case = with_profile(tmp_path, FITTING)
    (case.root / "slurm").unlink()
    found = only(cluster.CHECKS, "profile", case)
    assert (found.verdict, found.remedy) == ("warn", "ln -s profiles/slurm slurm")


def test_a_profile_that_is_no_yaml(tmp_path: Path) -> None:
    slurm(tmp_path)
    case = with_profile(tmp_path, FITTING)
    (case.root / "profiles/slurm/config.yaml").write_text("jobs: [1\n", encoding="utf-8")
    found = only(cluster.CHECKS, "profile", case)
    assert (found.verdict, found.remedy) == ("fail", "correct the line")


def test_a_partition_that_is_not_there(tmp_path: Path) -> None:
    slurm(tmp_path)
    case = with_profile(tmp_path, {"default-resources": {"slurm_partition": "gpus"}})
    found = only(cluster.CHECKS, "partitions", case)
    assert found.verdict == "fail"
    assert found.found == "profiles/slurm/config.yaml names gpus; there are cpu, gpu, old. Did you mean 'gpu'?"
    assert found.remedy == "correct slurm_partition in profiles/slurm/config.yaml"


def test_a_partition_that_is_down(tmp_path: Path) -> None:
    slurm(tmp_path)
    case = with_profile(tmp_path, {"set-resources": {"train_local": {"slurm_partition": "old"}}})
    found = only(cluster.CHECKS, "partitions", case)
    assert (found.verdict, found.found) == ("fail", "down: old")


def test_no_default_partition(tmp_path: Path) -> None:
    slurm(tmp_path, PARTITIONS.replace("*", ""))
    found = only(cluster.CHECKS, "partitions", with_profile(tmp_path, {}))
    assert found.verdict == "fail"
    assert found.remedy == "slurm_partition: cpu   under default-resources in profiles/slurm/config.yaml"


def test_gpu_jobs_in_a_partition_without_gpus(tmp_path: Path) -> None:
    slurm(tmp_path)
    case = with_profile(tmp_path, {}, paper=True)
    found = look(cluster.CHECKS, "partitions", case)[1]
    assert found.name == "GPUs of the cluster"
    assert found.verdict == "fail"
    assert "go to a partition without GPUs; with GPUs: gpu" in found.found
    assert found.remedy == (
        "slurm_partition: gpu   for each of these rules under set-resources in profiles/slurm/config.yaml"
    )
    # The demo's networks need none.
    demo = make_case(tmp_path)
    assert look(cluster.CHECKS, "partitions", demo)[1].verdict == "skip"


def test_several_partitions_for_a_job(tmp_path: Path) -> None:
    """Slurm takes the first that can start the job, so one of them with GPUs, up and long enough will do."""
    slurm(tmp_path)
    case = with_profile(tmp_path, {"default-resources": {"slurm_partition": "cpu, gpu,old"}}, paper=True)
    assert [one.verdict for one in look(cluster.CHECKS, "partitions", case)] == ["pass", "pass"]
    assert only(cluster.CHECKS, "time limits", case).verdict == "pass"
    case.__dict__["profile"] = {"default-resources": {"slurm_partition": "cpu,old"}}
    assert [one.verdict for one in look(cluster.CHECKS, "partitions", case)] == ["pass", "fail"]
    case.__dict__["profile"] = {"default-resources": {"slurm_partition": "gpu,a100"}}
    assert only(cluster.CHECKS, "partitions", case).found.startswith("profiles/slurm/config.yaml names a100; there are")


def test_the_longest_of_several_partitions_counts(tmp_path: Path) -> None:
    slurm(tmp_path, "short*|up|8:00:00|gpu:1\nlonger|up|1-00:00:00|gpu:1")
    case = with_profile(tmp_path, {"default-resources": {"slurm_partition": "longer,short"}}, paper=True)
    found = only(cluster.CHECKS, "time limits", case)
    assert "train_local 7200 min (partition longer,short: 1440)" in found.found
    assert found.remedy.startswith("runtime: 1440 ")
    slurm(tmp_path, "short*|up|8:00:00|gpu:1\nlonger|up|5-00:00:00|gpu:1")
    assert only(cluster.CHECKS, "time limits", case).verdict == "pass"


def test_rules_without_a_partition_are_told_by_the_time_limits(tmp_path: Path) -> None:
    slurm(tmp_path, "short*|up|8:00:00|gpu:1")
    case = with_profile(tmp_path, {"set-resources": {"train_local": {"slurm_partition": "lost"}}}, paper=True)
    first, rest = look(cluster.CHECKS, "time limits", case)
    assert first.verdict == "fail"
    assert "train_local " not in first.found
    assert (rest.verdict, rest.found) == ("skip", "1 rules not compared: their partition is not there (lost)")
    case.__dict__["profile"] = {"default-resources": {"slurm_partition": "lost"}}
    assert only(cluster.CHECKS, "time limits", case).verdict == "skip"


def test_a_cluster_without_gpus(tmp_path: Path) -> None:
    slurm(tmp_path, "cpu*|up|infinite|(null)")
    found = look(cluster.CHECKS, "partitions", with_profile(tmp_path, {}, paper=True))[1]
    assert (found.verdict, found.remedy) == ("fail", "ask for access to a partition with GPUs")


def test_time_limits(tmp_path: Path) -> None:
    slurm(tmp_path, "short*|up|8:00:00|gpu:1")
    case = with_profile(tmp_path, {}, paper=True)
    found = only(cluster.CHECKS, "time limits", case)
    assert found.verdict == "fail"
    assert "train_local 7200 min (partition short: 480)" in found.found
    assert found.remedy == (
        "runtime: 480   for each of them under set-resources in profiles/slurm/config.yaml; "
        "trainings go on in the next job"
    )
    # The demo's trainings ask for 8 hours at most, and it has nothing to download.
    assert only(cluster.CHECKS, "time limits", make_case(tmp_path)).verdict == "pass"


def test_time_limits_of_the_profile_win(tmp_path: Path) -> None:
    slurm(tmp_path, "long*|up|5-00:00:00|gpu:1")
    assert only(cluster.CHECKS, "time limits", with_profile(tmp_path, {}, paper=True)).verdict == "pass"
    case = make_case(tmp_path, paper=True)
    case.__dict__["profile"] = {"set-resources": {"train_local": {"runtime": "6d"}}}
    assert "train_local 8640 min" in only(cluster.CHECKS, "time limits", case).found


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("infinite", None),
        ("5-00:00:00", 7200),
        ("1-12", 2160),
        ("1-12:30", 2190),
        ("2:30:00", 150),
        ("30:00", 30),
        ("60", 60),
        ("0:00:30", 1),
    ],
)
def test_times_of_slurm(text: str, minutes: int | None) -> None:
    assert cluster.minutes(text) == minutes


PROFILE = "profiles/slurm/config.yaml"
NO_ACCOUNTING = "echo 'Slurm accounting storage is disabled' >&2; exit 1"
LONGER = "ask the cluster's administrator for MinJobAge=300 in slurm.conf"
SQUEUE, SACCT = {"slurm-status-command": "squeue"}, {"slurm-status-command": "sacct"}


@pytest.mark.parametrize(
    ("age", "sacct", "verdict", "remedy"),
    [
        ("300 sec", "exit 0", "pass", ""),
        ("200", "exit 0", "pass", ""),
        ("199 sec", "exit 0", "fail", f"slurm-status-command: sacct   in {PROFILE}"),
        ("120 sec", NO_ACCOUNTING, "fail", LONGER),
        ("2 sec", NO_ACCOUNTING, "fail", LONGER),
    ],
)
def test_squeue_needs_a_slurm_that_remembers(tmp_path: Path, age: str, sacct: str, verdict: str, remedy: str) -> None:
    slurm(tmp_path, sacct=sacct, age=age)
    found = only(cluster.CHECKS, "state of jobs", with_profile(tmp_path, SQUEUE))
    assert (found.verdict, found.remedy) == (verdict, remedy)
    assert f"finished jobs {'for' if verdict == 'pass' else 'after'} {age.split()[0]} s (MinJobAge)" in found.found


def test_a_slurm_that_does_not_say_how_long_it_remembers(tmp_path: Path) -> None:
    slurm(tmp_path)
    program(tmp_path, "scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1")
    found = only(cluster.CHECKS, "state of jobs", with_profile(tmp_path, SQUEUE))
    assert found.verdict == "warn"
    assert found.found.endswith("is not told: exit status 1: Unable to contact slurm controller")
    assert found.remedy == (
        "scontrol show config | grep MinJobAge   must tell 200 s or more; else slurm-status-command: sacct   in "
        f"{PROFILE}"
    )


def test_the_first_question_may_come_later(tmp_path: Path) -> None:
    """Below three times that wait the plugin leaves squeue without a word that is seen."""
    slurm(tmp_path)
    profile = {**SQUEUE, "slurm-init-seconds-before-status-checks": 120}
    found = only(cluster.CHECKS, "state of jobs", with_profile(tmp_path, profile))
    assert found.verdict == "fail"
    assert "and 360 s are needed" in found.found


def test_a_slurm_that_never_forgets(tmp_path: Path) -> None:
    slurm(tmp_path, age="0 sec")
    case = with_profile(tmp_path, SQUEUE)
    found = only(cluster.CHECKS, "state of jobs", case)
    assert (found.verdict, found.found.partition(", which works")[0]) == (
        "warn",
        "asked by sacct, for the plugin takes MinJobAge 0, for ever, for too short",
    )
    (tmp_path / "bin/sacct").unlink()
    assert only(cluster.CHECKS, "state of jobs", case).verdict == "pass"


@pytest.mark.parametrize("profile", [SACCT, {}])
def test_sacct_does_not_tell_of_cancelled_jobs(tmp_path: Path, profile: dict[str, str]) -> None:
    slurm(tmp_path)
    case = with_profile(tmp_path, profile)
    found = only(cluster.CHECKS, "state of jobs", case)
    assert (found.verdict, found.remedy) == ("warn", f"slurm-status-command: squeue   in {PROFILE}")
    assert "CANCELLED by whom" in found.found
    slurm(tmp_path, age="60 sec")
    found = only(cluster.CHECKS, "state of jobs", case)
    assert found.remedy == f"after each scancel end Snakemake (Ctrl-C) and start it again; or {LONGER}"


@pytest.mark.parametrize("profile", [SACCT, {}])
def test_a_sacct_that_fails(tmp_path: Path, profile: dict[str, str]) -> None:
    slurm(tmp_path, sacct=NO_ACCOUNTING)
    case = with_profile(tmp_path, profile)
    found = only(cluster.CHECKS, "state of jobs", case)
    assert (found.verdict, found.remedy) == ("fail", f"slurm-status-command: squeue   in {PROFILE}")
    assert found.found.endswith("exit status 1: Slurm accounting storage is disabled")
    slurm(tmp_path, sacct=NO_ACCOUNTING, age="60 sec")
    found = only(cluster.CHECKS, "state of jobs", case)
    assert found.remedy == f"{LONGER}, then slurm-status-command: squeue   in {PROFILE}"
    # The plugin itself goes over to squeue where there is no sacct.
    slurm(tmp_path)
    (tmp_path / "bin/sacct").unlink()
    found = only(cluster.CHECKS, "state of jobs", case)
    assert (found.verdict, found.found.startswith("asked by squeue, ")) == ("pass", True)


def test_an_account_of_yours(tmp_path: Path) -> None:
    slurm(tmp_path)
    program(tmp_path, "sacctmgr", '[ "$4" = user ] && [ "$6" = "format=account%256" ] && echo "  Mine"; echo " other"')
    profile = {
        "default-resources": {"slurm_account": "'MINE'"},
        "set-resources": {"train_local": {"slurm_account": "other"}},
    }
    found = only(cluster.CHECKS, "account", with_profile(tmp_path, profile))
    assert (found.verdict, found.found) == ("pass", "MINE, other, known to Slurm")


@pytest.mark.parametrize(
    "profile",
    [
        {"default-resources": ["slurm_account=minr"]},
        {"set-resources": {"train_gate": {"slurm_account": "other, minr"}}},
    ],
)
def test_an_account_that_is_not_there(tmp_path: Path, profile: dict[str, Any]) -> None:
    slurm(tmp_path)
    program(tmp_path, "sacctmgr", "echo mine; echo other; echo mine")
    found = only(cluster.CHECKS, "account", with_profile(tmp_path, profile))
    assert (found.verdict, found.remedy) == ("fail", f"correct slurm_account in {PROFILE}")
    assert found.found == f"{PROFILE} names the account minr; yours are mine, other. Did you mean 'mine'?"


def test_accounts_told_by_sshare_alone(tmp_path: Path) -> None:
    slurm(tmp_path)
    program(tmp_path, "sacctmgr", NO_ACCOUNTING)
    program(tmp_path, "sshare", '[ "$1" = -U ] && echo mine')
    case = with_profile(tmp_path, {"default-resources": {"slurm_account": "other"}})
    assert only(cluster.CHECKS, "account", case).found.endswith("names the account other; yours are mine.")
    program(tmp_path, "sshare", "")
    found = only(cluster.CHECKS, "account", case)
    assert (found.verdict, found.found) == ("pass", "other; not compared, for Slurm tells no accounts")


def test_accounts_that_the_plugin_cannot_compare(tmp_path: Path) -> None:
    """Then it submits no job that names one."""
    slurm(tmp_path)
    case = with_profile(tmp_path, {"default-resources": {"slurm_account": "mine"}})
    out = f"take slurm_account out of {PROFILE}: jobs then go to your default account of Slurm"
    program(tmp_path, "sshare", "echo mine")
    found = only(cluster.CHECKS, "account", case)
    assert (found.verdict, found.remedy) == ("fail", out)
    assert found.found.endswith("submits nothing: the command sacctmgr is not found")
    for name in ("sacctmgr", "sshare"):
        program(tmp_path, name, NO_ACCOUNTING)
    found = only(cluster.CHECKS, "account", case)
    assert (found.verdict, found.remedy) == ("fail", out)
    assert found.found.count("Slurm accounting storage is disabled") == 2
    (tmp_path / "bin/sshare").unlink()
    assert "the command sshare is not found" in only(cluster.CHECKS, "account", case).found


def test_no_account_named(tmp_path: Path) -> None:
    slurm(tmp_path, sacct=NO_ACCOUNTING)
    case = with_profile(tmp_path, {})
    found = only(cluster.CHECKS, "account", case)
    assert (found.verdict, found.found) == ("pass", "your default account of Slurm")
    (tmp_path / "bin/sacct").unlink()
    found = only(cluster.CHECKS, "account", case)
    assert (found.verdict, found.remedy) == (
        "fail",
        f"load the module of Slurm, or slurm_account: NAME   under default-resources in {PROFILE}",
    )
    # One account for all rules: nothing is asked of sacct.
    program(tmp_path, "sacctmgr", "echo mine")
    case.__dict__["profile"] = {"default-resources": {"slurm_account": "mine"}}
    assert only(cluster.CHECKS, "account", case).verdict == "pass"


def test_no_conda(tmp_path: Path) -> None:
    for check in conda.CHECKS:
        assert only(conda.CHECKS, check.name, make_case(tmp_path)).verdict == "skip"
    program(tmp_path, "micromamba", "")
    found = only(conda.CHECKS, "conda", make_case(tmp_path))
    assert (found.verdict, found.found) == ("warn", "micromamba is here, and no conda; Snakemake calls conda itself")


@pytest.mark.parametrize(
    ("body", "verdict", "remedy"),
    [
        ("echo conda 24.9.2", "pass", ""),
        ("echo conda 24.7.1", "pass", ""),
        ("echo conda 24.7.0", "warn", "conda update -n base conda"),
        ("echo conda 4.12.0", "warn", "conda update -n base conda"),
        ("echo broken >&2; exit 1", "fail", "conda --version   tells more; reinstall it if that fails"),
    ],
)
def test_conda(tmp_path: Path, body: str, verdict: str, remedy: str) -> None:
    program(tmp_path, "conda", body)
    found = only(conda.CHECKS, "conda", make_case(tmp_path))
    assert (found.verdict, found.remedy) == (verdict, remedy)


@pytest.mark.parametrize(("value", "verdict"), [("strict", "pass"), ("flexible", "warn")])
def test_channel_priority(tmp_path: Path, value: str, verdict: str) -> None:
    program(tmp_path, "conda", f'echo \'{{"channel_priority": "{value}"}}\'')
    found = only(conda.CHECKS, "channel priority", make_case(tmp_path))
    assert found.verdict == verdict
    assert found.remedy == ("" if verdict == "pass" else "conda config --set channel_priority strict")


def test_apptainer(tmp_path: Path) -> None:
    program(tmp_path, "singularity", "echo singularity-ce version 3.5.2")
    found = only(conda.CHECKS, "apptainer", make_case(tmp_path))
    assert (found.verdict, found.remedy) == ("warn", "install Apptainer 1.0 or later")
    program(tmp_path, "apptainer", "echo apptainer version 1.3.4")
    found = only(conda.CHECKS, "apptainer", make_case(tmp_path))
    assert (found.verdict, found.found) == ("pass", "apptainer version 1.3.4")


def test_a_gpu_that_the_settings_ask_for_counts(tmp_path: Path) -> None:
    """As `is_large` of the rules does: a network of timm is small unless its section says gpu."""
    slurm(tmp_path, "cpu*|up|infinite|(null)")
    case = with_profile(tmp_path, {})
    assert look(cluster.CHECKS, "partitions", case)[1].verdict == "skip"
    trainer = {**case.study.models["local"]["trainer"], "accelerator": "gpu"}
    asking = make_case(tmp_path, models={"local": {"trainer": trainer}})
    found = look(cluster.CHECKS, "partitions", asking)[1]
    assert (found.verdict, found.remedy) == ("fail", "ask for access to a partition with GPUs")


def test_every_rule_that_asks_for_too_much_time_is_named(tmp_path: Path) -> None:
    slurm(tmp_path, "short*|up|4:00:00|gpu:1")
    found = only(cluster.CHECKS, "time limits", with_profile(tmp_path, {}, paper=True)).found
    named = [part.split()[0] for part in found.partition("never start: ")[2].split(", ")]
    assert {"train_local", "train_gate", "train_gate_variant", "embed_baseline", "audit_protocol"} <= set(named)
    assert not {"predict", "evaluate_cohort", "label_cells"} & set(named)
