"""What rules/cluster.smk adds: scripts hear of SIGTERM to their Snakemake, errors of submission are told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nuclass.core.pass_on import scripts_below
from slurm_study import command, copy_study, environment

REPOSITORY = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell of processes")

SNAKEFILE = f"""
import os, sys
sys.path.insert(0, {str(REPOSITORY / "src")!r})
include: {str(REPOSITORY / "rules/cluster.smk")!r}
rule work:
    output: "done.txt"
    script: "work.py"
"""
# As a training: it notes that it was asked, comes to a good end, and is not hurried.
SCRIPT = """
import os, signal, subprocess, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(time.monotonic()))
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
open("work.pid", "w").write(str(os.getpid()))
end = time.monotonic() + 20
while time.monotonic() < end and not (asked and time.monotonic() > asked[0] + 4):
    time.sleep(0.05)
open("helper.txt", "w").write(str(helper.poll()))
helper.kill()
open(snakemake.output[0], "w").write(str(len(asked)))
"""


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A Snakemake as Slurm's plugin starts it inside a job, at work on a script."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE, encoding="utf-8")
    (tmp_path / "work.py").write_text(SCRIPT, encoding="utf-8")
    call = "snakemake --cores 1 --mode remote --nolock --target-jobs work: --allowed-rules work".split()
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NUCLASS_")}
    with (tmp_path / "said.txt").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", *call], cwd=tmp_path, env=kept, stdout=said, stderr=said, start_new_session=True
        )
    end = time.monotonic() + 60
    while not (tmp_path / "work.pid").exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.2)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_what_snakemake_alone_is_told_reaches_its_script(tmp_path: Path, inside: subprocess.Popen[bytes]) -> None:
    """As with Slurm's ``proctrack/cgroup``: the child of slurmstepd gets the signal, not what that has started."""
    assert scripts_below(inside.pid) == [int((tmp_path / "work.pid").read_text())]
    inside.send_signal(signal.SIGTERM)
    inside.wait(60)
    assert "Finished jobid: 0" in (tmp_path / "said.txt").read_text()
    assert (tmp_path / "done.txt").read_text() == "1"
    assert (tmp_path / "helper.txt").read_text() == "None", "what a script has started is its own concern"


def test_the_shell_between_them_outlives_a_signal_to_all(tmp_path: Path, inside: subprocess.Popen[bytes]) -> None:
    """As with ``proctrack/linuxproc``: the shell gets the signal too, and with old ones the job failed then."""
    script = int((tmp_path / "work.pid").read_text())
    assert "bash" in psutil.Process(script).parent().name()
    for process in [inside, *psutil.Process(inside.pid).children(recursive=True)]:
        if "time.sleep(30)" not in " ".join(psutil.Process(process.pid).cmdline()):
            process.send_signal(signal.SIGTERM)
    inside.wait(60)
    assert "Finished jobid: 0" in (tmp_path / "said.txt").read_text()
    assert (tmp_path / "done.txt").read_text() == "2", "from Slurm, then from Snakemake"


def test_a_run_on_this_machine_stays_as_it_is(tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM mean there what Snakemake says they mean; scripts are started without a shell that stays."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE, encoding="utf-8")
    told = "import os, psutil\nopen(snakemake.output[0], 'w').write(psutil.Process().parent().name())\n"
    (tmp_path / "work.py").write_text(told, encoding="utf-8")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NUCLASS_")}
    subprocess.run([sys.executable, "-m", "snakemake", "--cores", "1", "--quiet"], cwd=tmp_path, env=kept, check=True)
    assert "bash" not in (tmp_path / "done.txt").read_text()


def test_a_job_that_cannot_be_submitted_ends_the_run(tmp_path: Path) -> None:
    """The plugin asks what accounts there are; where that fails its message names a rule, which a group has none of."""
    folder, programs = copy_study(tmp_path / "study"), tmp_path / "bin"
    programs.mkdir()
    for name in ("sacctmgr", "sshare", "sbatch", "squeue", "sacct"):
        (programs / name).write_text("#!/bin/sh\necho no database >&2\nexit 1\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    call = command("--retries", "0", "--default-resources", "slurm_account=mine", "--", "labels", slurm=True)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        call, cwd=folder, env=environment() | {"PATH": path}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert (
        "'sacctmgr' reported: 'Unable to test the validity of the given or guessed SLURM account 'mine'" in done.stderr
    )
    assert "has no attribute 'rule'" not in done.stderr
