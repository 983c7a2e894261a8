"""The workflow on a real Slurm of one machine, with faults. Needs root and Debian's slurmctld slurmd slurm-client munge.

Two small slides, models that train in seconds. One study runs on this machine; another does on the cluster, without a
network, while Snakemake is killed and Slurm's controller is started anew; in a third, single jobs come to grief.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_study import GIVEN, command, copy_study, counted, environment, results, weights

pytestmark = [pytest.mark.slurm, pytest.mark.workflow]
NEEDED = ("slurmctld", "slurmd", "sbatch", "munged")
CLUSTER = "nuclass-tests"
GOAL = "core"


def output(*call: str) -> str:
    return subprocess.run(call, capture_output=True, text=True, check=False).stdout


def is_up() -> bool:
    return re.search(rf"^ClusterName += {CLUSTER}$", output("scontrol", "show", "config"), re.MULTILINE) is not None


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster of this machine; one that cluster.sh has started before is used and left as it is."""
    missing = [name for name in NEEDED if shutil.which(name) is None and not Path("/usr/sbin", name).exists()]
    if missing:
        pytest.skip(f"Slurm is not installed: no {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("only root can start a Slurm cluster")
    if is_up():
        yield Path(os.path.realpath("/etc/slurm/slurm.conf")).parent
        return
    folder = tmp_path_factory.mktemp("cluster")
    done = subprocess.run([GIVEN / "cluster.sh", "up", folder], capture_output=True, text=True, check=False)
    if done.returncode == 2:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    yield folder
    subprocess.run([GIVEN / "cluster.sh", "down", folder], check=True)


def start(folder: Path, *arguments: str, faults: dict | None = None) -> subprocess.Popen[bytes]:
    """Start Snakemake on the cluster; what it says is added to ``said.txt``."""
    with (folder / "said.txt").open("ab") as said:
        return subprocess.Popen(
            command(*arguments, slurm=True), cwd=folder, env=environment(faults), stdout=said, stderr=said
        )


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
    """Return the optimizer steps that trainings of the local model went on from."""
    text = (folder / "logs/slurm_training.txt").read_text(encoding="utf-8")
    return [int(step) for step in re.findall(r"going on from epoch \d+, optimizer step (\d+)", text)]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, cluster: Path) -> Path:
    """The study, made on this machine."""
    folder = copy_study(tmp_path_factory.mktemp("here"))
    done = subprocess.run(command(GOAL), cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Group jobs: inactive (local execution)" in done.stdout + done.stderr
    return folder


def interrupted(folder: Path, cluster: Path) -> None:
    """Run the study on the cluster without a network; kill Snakemake in the first training, restart the controller."""
    faults = {"network": "off"}
    first = start(folder, GOAL, faults=faults)
    wait_for(lambda: any(map(is_running, submitted(folder, "train_local"))), 600, "the first training")
    wait_for((folder / "work/models/local/last.ckpt").exists, 300, "a state of the training")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    subprocess.run([GIVEN / "cluster.sh", "restart", cluster], check=True)
    wait_for(lambda: not output("squeue", "-h").strip() and is_up(), 600, "the end of the jobs that went on")
    assert start(folder, GOAL).wait() != 0, "a folder that was not unlocked"
    assert start(folder, "--unlock").wait() == 0
    assert start(folder, GOAL, faults=faults).wait() == 0, said(folder)[-3000:]


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory, cluster: Path) -> Path:
    """The study, made on the cluster in spite of all that."""
    folder = copy_study(tmp_path_factory.mktemp("there"))
    interrupted(folder, cluster)
    return folder


def test_results_are_those_of_a_run_on_this_machine(here: Path, there: Path) -> None:
    expected, found = results(here), results(there)
    assert len(expected) > 60
    assert sorted(expected) == sorted(found)
    assert [name for name in expected if found[name] != expected[name]] == []


def test_nothing_was_done_twice(here: Path, there: Path) -> None:
    """The training that went on while no Snakemake was there ends by itself; nothing of what was finished runs again."""
    assert counted(there) == counted(here)


def test_short_jobs_shared_cluster_jobs(here: Path, there: Path) -> None:
    cluster_jobs = len(re.findall(r"SLURM jobid \d+", said(there)))
    assert cluster_jobs <= 16 < sum(counted(here).values()) / 3


def test_no_job_asked_for_a_network(there: Path) -> None:
    assert not (there / "refused.txt").exists()


def test_a_folder_that_is_locked_says_so(there: Path) -> None:
    assert "Directory cannot be locked" in said(there)
    assert "--unlock" in said(there)
