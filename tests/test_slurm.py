"""The workflow on a real Slurm of one machine, with faults. Needs root, and slurmctld slurmd slurm-client munge.

Two small slides, models that train in seconds. One study runs on this machine; another does on the cluster, without a
network, while Snakemake is killed and Slurm's controller is started anew; in a third, single jobs come to grief, and a
fourth runs beside it; in a fifth a training is warned of its time limit.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from slurm_study import GIVEN, command, copy_study, counted, environment, results, train_for_long

pytestmark = [pytest.mark.slurm, pytest.mark.workflow]
NEEDED = ("slurmctld", "slurmd", "sbatch", "munged")
CLUSTER = "nuclass-tests"
GOAL = "core"
Start = Callable[..., subprocess.Popen[bytes]]


def output(*call: str) -> str:
    return subprocess.run(call, capture_output=True, text=True, check=False).stdout


def is_idle() -> bool:
    """Whether no job is left; a controller that does not answer knows nothing of that."""
    if not is_up():
        return False
    done = subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=False)
    return done.returncode == 0 and not done.stdout.strip()


def is_up() -> bool:
    return re.search(rf"^ClusterName += {CLUSTER}$", output("scontrol", "show", "config"), re.MULTILINE) is not None


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster of this machine; one that stands already is used, and left, if NUCLASS_TEST_SLURM is set."""
    missing = [name for name in NEEDED if shutil.which(name) is None and not Path("/usr/sbin", name).exists()]
    if missing:
        pytest.skip(f"Slurm is not installed: no {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("only root can start a Slurm cluster")
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("one cluster a machine: these tests run alone, by make slurmtest")
    if is_up():
        if not os.environ.get("NUCLASS_TEST_SLURM"):
            pytest.skip("a test cluster is up that this run has not started; NUCLASS_TEST_SLURM=1 uses it")
        yield Path(os.path.realpath("/etc/slurm/slurm.conf")).parent
        return
    folder = tmp_path_factory.mktemp("cluster")
    done = subprocess.run([GIVEN / "cluster.sh", "up", folder], capture_output=True, text=True, check=False)
    if done.returncode == 2:
        pytest.skip(done.stderr.strip())
    try:
        assert done.returncode == 0, done.stderr
        yield folder
    finally:
        subprocess.run([GIVEN / "cluster.sh", "down", folder], check=True)


@pytest.fixture(scope="module")
def start(cluster: Path) -> Iterator[Start]:
    """Start Snakemake on the cluster; what it says is added to ``said.txt``. What still runs at the end is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def one(folder: Path, *arguments: str, faults: dict | None = None) -> subprocess.Popen[bytes]:
        call, given = command(*arguments, slurm=True), environment(faults)
        with (folder / "said.txt").open("ab") as file:
            process = subprocess.Popen(call, cwd=folder, env=given, stdout=file, stderr=file, start_new_session=True)
        started.append(process)
        return process

    yield one
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def said(folder: Path) -> str:
    return (folder / "said.txt").read_text(encoding="utf-8")


def wait_for(found: Callable[[], object], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.2)


def submitted(folder: Path, rule: str) -> list[str]:
    """Return the numbers of the cluster jobs that were submitted for a rule that shares its job with no other."""
    return re.findall(rf"SLURM jobid (\d+) \(log: \S*/rule_{rule}/", said(folder))


def shown(job: str) -> str:
    return output("scontrol", "show", "job", job)


def is_running(job: str) -> bool:
    return "JobState=RUNNING" in shown(job)


def going_on(folder: Path) -> list[int]:
    """Return the optimizer step that the latest training of the local model went on from; nothing if from the start."""
    log = folder / "logs/train_local/all.log"
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    return [int(step) for step in re.findall(r"going on from epoch \d+, optimizer step (\d+)", text)]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, cluster: Path) -> Path:
    """The study, made on this machine."""
    folder = copy_study(tmp_path_factory.mktemp("here"))
    done = subprocess.run(command(GOAL), cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def interrupted(folder: Path, cluster: Path, start: Start) -> None:
    """Run the study on the cluster without a network; kill Snakemake in the first training, restart the controller."""
    faults = {"network": "off"}
    first = start(folder, GOAL, faults=faults)
    wait_for(lambda: any(map(is_running, submitted(folder, "train_local"))), 600, "the first training")
    wait_for((folder / "work/models/local/last.ckpt").exists, 300, "a state of the training")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    subprocess.run([GIVEN / "cluster.sh", "restart", cluster], check=True)
    wait_for(is_idle, 600, "the end of the jobs that went on")
    assert start(folder, GOAL).wait() != 0, "a folder that was not unlocked"
    assert start(folder, "--unlock").wait() == 0
    assert start(folder, GOAL, faults=faults).wait() == 0, said(folder)[-3000:]


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory, cluster: Path, start: Start) -> Path:
    """The study, made on the cluster in spite of all that."""
    folder = copy_study(tmp_path_factory.mktemp("there"))
    interrupted(folder, cluster, start)
    return folder


def test_results_are_those_of_a_run_on_this_machine(here: Path, there: Path) -> None:
    expected, found = results(here), results(there)
    assert len(expected) > 60
    assert sorted(expected) == sorted(found)
    assert [name for name in expected if found[name] != expected[name]] == []


def test_nothing_was_done_twice(here: Path, there: Path) -> None:
    """The training that went on while no Snakemake was there ends by itself; nothing that was finished runs again."""
    assert counted(there) == counted(here)


def test_short_jobs_shared_cluster_jobs(here: Path, there: Path) -> None:
    cluster_jobs = len(re.findall(r"SLURM jobid \d+", said(there)))
    assert cluster_jobs <= 16 < sum(counted(here).values()) / 3


def test_jobs_of_a_cluster_job_take_turns_on_its_one_core(there: Path) -> None:
    """Also those that could go side by side, as the evaluations of three models, inside the job as outside."""
    jobs = dict(re.findall(r"SLURM jobid (\d+) \(log: \S*/(group_[^/]+)/", said(there)))
    assert any(name.startswith("group_evaluation_") for name in jobs.values())
    for job, name in jobs.items():
        assert re.search(r"NumCPUs=(\d+)", shown(job))[1] == "1", name
        assert "JobState=COMPLETED" in shown(job), name
    logs = [log.read_text(encoding="utf-8") for log in (there / "logs/slurm").glob("group_*/*.log")]
    steps = sum(text.count("Provided cores: ") for text in logs)
    assert steps >= len(jobs)
    assert all(text.count('lanes=Resource("lanes", 1)') >= text.count("Provided cores: ") for text in logs)


def test_no_job_asked_for_a_network(there: Path) -> None:
    assert not (there / "refused.txt").exists()


def test_a_folder_that_is_locked_says_so(there: Path) -> None:
    assert "Directory cannot be locked" in said(there)
    assert "--unlock" in said(there)


WANTED = (
    "results/models/local/best.ckpt",
    "results/labels/ovary_h/labels.parquet",
    "results/labels/ovary_1/labelling.csv",
)
ASKED = ("draw_labels:runtime=1", "train_local:gpu=1", "train_local:slurm_partition=gpu")
TABLES = ("results/tables/splits.md", "results/tables/dataset.md")


@dataclass
class Outcome:
    """What was seen while jobs came to grief."""

    folder: Path
    beside: Path
    trainings: list[str] = field(default_factory=list)
    steps: list[list[int]] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)
    gpus: str = ""
    second: str = ""


def copy_without(here: Path, folder: Path, *patterns: str) -> Path:
    """Copy a finished study, and take results from it."""
    shutil.copytree(here, folder, symlinks=True)
    for name in ("ran.txt", "said.txt"):
        (folder / name).unlink(missing_ok=True)
    for pattern in patterns:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


def given_memory(folder: Path) -> dict[str, int]:
    """Return what the cluster jobs of the small slides were given, MB, by their numbers."""
    jobs = re.findall(r"SLURM jobid (\d+) \(log: \S*/group_slides_label_cells/", said(folder))
    return {job: int(re.search(r"MinMemoryNode=(\d+)M", shown(job))[1]) for job in jobs}


def misfortunes(outcome: Outcome, start: Start) -> None:
    """One job eats more memory than it was given, one hangs, the training is cancelled, later put back in the queue."""
    folder = outcome.folder
    faults = {"label_cells": {"eat": 3000}, "draw_labels": {"hold": 400}}
    snakemake = start(folder, "--set-resources", *ASKED, "--", *WANTED, faults=faults)
    beside = start(outcome.beside, *TABLES)
    state = folder / "work/models/local/last.ckpt"
    wait_for(state.exists, 300, "a state of the training")
    (first,) = submitted(folder, "train_local")
    outcome.gpus = shown(first)
    subprocess.run(["scancel", first], check=True)
    wait_for(lambda: len(submitted(folder, "train_local")) == 2, 120, "the training's second submission")
    second = submitted(folder, "train_local")[1]
    wait_for(lambda: is_running(second) and going_on(folder), 120, "the training to go on")
    outcome.steps.append(going_on(folder))
    written = state.stat().st_mtime_ns
    wait_for(lambda: state.exists() and state.stat().st_mtime_ns > written, 120, "a later state")
    subprocess.run(["scontrol", "requeue", second], check=True)
    wait_for(lambda: "JobState=PENDING" in shown(second), 60, "the training in the queue again")
    # Slurm lets a job that was put back wait two minutes.
    subprocess.run(["scontrol", "update", f"jobid={second}", "StartTime=now"], check=False)
    outcome.second = subprocess.run(
        command(*WANTED, slurm=True), cwd=folder, env=environment(), capture_output=True, text=True, check=False
    ).stderr
    assert snakemake.wait() == 0, said(folder)[-3000:]
    assert beside.wait() == 0, said(outcome.beside)[-3000:]
    outcome.steps.append(going_on(folder))
    outcome.trainings = submitted(folder, "train_local")
    outcome.memory = given_memory(folder)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, here: Path, start: Start) -> Outcome:
    place = tmp_path_factory.mktemp("misfortunes")
    patterns = (
        "results/models/local",
        "work/models/local",
        "results/labels/ovary_h/*",
        "results/labels/ovary_1/labelling.*",
    )
    seen = Outcome(
        copy_without(here, place / "folder", *patterns), copy_without(here, place / "beside", "results/tables/*")
    )
    misfortunes(seen, start)
    return seen


def test_results_are_the_same_in_spite_of_all(here: Path, outcome: Outcome) -> None:
    expected, found = results(here), results(outcome.folder)
    redone = [name for name in expected if name in found and found[name] != expected[name]]
    assert redone == []
    assert {"models/local/best.ckpt", "labels/ovary_h/labels.parquet", "labels/ovary_1/labelling.csv"} <= set(found)


def test_a_training_goes_on_after_scancel_and_requeue(outcome: Outcome) -> None:
    assert len(outcome.trainings) == 2, "scancel: a new submission; requeue: the same"
    (after_cancel,), (after_requeue,) = outcome.steps
    assert 0 < after_cancel < after_requeue
    assert counted(outcome.folder)["train_local"] == 3


def test_memory_grows_after_a_kill(outcome: Outcome) -> None:
    first, second = outcome.memory.values()
    assert first < 3000 < second
    assert counted(outcome.folder)["label_cells"] == 2


def test_a_job_beyond_its_time_limit_is_submitted_again(outcome: Outcome) -> None:
    jobs = re.findall(r"SLURM jobid (\d+) \(log: \S*/group_data_draw_labels/", said(outcome.folder))
    assert len(jobs) == 2
    assert "JobState=TIMEOUT" in shown(jobs[0])
    assert counted(outcome.folder)["draw_labels"] == 2


def test_a_gpu_is_asked_for_in_its_partition(outcome: Outcome) -> None:
    assert "Partition=gpu" in outcome.gpus
    assert "TresPerJob=gres:gpu:1" in outcome.gpus


def test_two_workflows_share_a_cluster_but_not_a_folder(here: Path, outcome: Outcome) -> None:
    for name in TABLES:
        assert (outcome.beside / name).read_bytes() == (here / name).read_bytes()
    assert counted(outcome.beside) == {"tabulate_splits": 1, "tabulate_dataset": 1}
    assert "Directory cannot be locked" in outcome.second


LIMITED = ("train_local:runtime=4", "train_local:slurm_extra='--signal=TERM@60'")


def tell_snakemake_alone(folder: Path) -> int:
    """Send SIGTERM to what slurmstepd has started in a step, and to nothing below, as ``proctrack/cgroup`` does.

    This cluster has no control groups. Returns the number of processes.
    """
    daemons = [process for process in psutil.process_iter(["name"]) if process.info["name"] == "slurmstepd"]
    started = [child for daemon in daemons for child in daemon.children()]
    told = [child for child in started if child.name().startswith("python") and child.cwd() == str(folder.resolve())]
    for process in told:
        process.send_signal(signal.SIGTERM)
    return len(told)


def test_a_training_that_is_warned_of_its_time_limit_saves_its_state_and_goes_on(
    tmp_path: Path, here: Path, start: Start
) -> None:
    """Slurm warns one to two minutes before the limit: the training leaves by itself, before Slurm would kill it."""
    folder = copy_without(here, tmp_path / "folder", "results/models", "work/models/local")
    train_for_long(folder)
    snakemake = start(folder, "--set-resources", *LIMITED, "--", WANTED[0])
    wait_for(lambda: submitted(folder, "train_local"), 120, "the training's first submission")
    (first,) = submitted(folder, "train_local")
    wait_for(lambda: is_running(first), 60, "the training")
    log = folder / "logs/train_local/all.log"
    wait_for(lambda: log.exists() and "Stopped by SIGTERM, state saved in" in log.read_text(), 300, "the warning")
    wait_for(lambda: len(submitted(folder, "train_local")) == 2, 120, "the training's second submission")
    assert "JobState=FAILED" in shown(first), "not TIMEOUT: it was gone before"
    wait_for(lambda: going_on(folder), 240, "the training to go on")
    (step,) = going_on(folder)
    assert step > 0
    assert tell_snakemake_alone(folder) == 1
    wait_for(
        lambda: "Stopped by SIGTERM, state saved in" in log.read_text(), 60, "the state after a signal to Snakemake"
    )
    os.killpg(snakemake.pid, signal.SIGKILL)
    jobs = submitted(folder, "train_local")
    subprocess.run(["scancel", *jobs], check=True)
    wait_for(lambda: not any(map(is_running, jobs)), 60, "the end of the jobs")
