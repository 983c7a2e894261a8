"""The script that starts a Slurm for tests leaves a real cluster alone. Its programs are stand-ins here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "slurm" / "cluster.sh"
FILES = ("slurm.conf", "gres.conf")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the configuration of this machine's cluster lies."""
    made = tmp_path / "etc"
    made.mkdir()
    return made


def call(verb: str, folder: Path, place: Path) -> subprocess.CompletedProcess[str]:
    """Run the script with programs that start nothing."""
    programs = place.parent / "programs"
    programs.mkdir(exist_ok=True)
    for name in ("slurmctld", "slurmd", "munge", "munged", "runuser", "sinfo"):
        (programs / name).write_text("#!/bin/sh\necho idle\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    given = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "NUCLASS_TEST_SLURM_PLACE": str(place)}
    return subprocess.run([SCRIPT, verb, folder], env=given, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("linked", [False, True])
def test_a_real_clusters_file_is_left_alone(tmp_path: Path, place: Path, name: str, linked: bool) -> None:
    real = tmp_path / "shared" / name if linked else place / name
    real.parent.mkdir(exist_ok=True)
    real.write_text("ClusterName=nuclass-tests-of-others\n", encoding="utf-8")
    if linked:
        (place / name).symlink_to(real)
    done = call("up", tmp_path / "mine", place)
    assert done.returncode == 2
    assert "real cluster" in done.stderr
    assert [path.name for path in place.iterdir()] == [name]
    assert (place / name).is_symlink() is linked
    assert real.read_text(encoding="utf-8") == "ClusterName=nuclass-tests-of-others\n"
    assert not (tmp_path / "mine").exists()


def test_links_that_lead_nowhere_and_those_of_an_earlier_test_are_replaced(tmp_path: Path, place: Path) -> None:
    (place / "slurm.conf").symlink_to(tmp_path / "gone")
    for folder in (tmp_path / "first", tmp_path / "second"):
        done = call("up", folder, place)
        assert done.returncode == 0, done.stderr
        assert [(place / name).readlink() for name in FILES] == [folder / name for name in FILES]


def test_only_its_own_links_are_taken_away(tmp_path: Path, place: Path) -> None:
    assert call("up", tmp_path / "mine", place).returncode == 0
    assert call("down", tmp_path / "other", place).returncode == 0
    assert all((place / name).is_symlink() for name in FILES)
    (place / "gres.conf").unlink()
    (place / "gres.conf").write_text("AutoDetect=off\n", encoding="utf-8")
    assert call("down", tmp_path / "mine", place).returncode == 0
    assert [path.name for path in place.iterdir()] == ["gres.conf"]
