"""What writers leave that were killed or found the disk full: nothing that stays, and a clear word."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nuclass.core import leftovers
from nuclass.core.files import atomic_path, write_json

KILLED = """
import os, signal, sys
from pathlib import Path
from nuclass.core.files import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.mkdir() if sys.argv[2] == "folder" else temporary.write_text("half")
    if temporary.is_dir():
        (temporary / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def fresh() -> None:
    """As a process that has not written yet."""
    leftovers._left_in.cache_clear()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "labels.parquet"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", KILLED, str(target), kind], check=False)
    assert len(names(tmp_path)) == 1, "the second writer cleared up after the first"
    assert names(tmp_path)[0].endswith(".labels.parquet")
    assert not target.exists()
    write_json(tmp_path / "other.json", {})
    assert len(names(tmp_path)) == 2, "another file's writer has no business with it"
    with atomic_path(target) as temporary:
        temporary.write_text("whole", encoding="utf-8")
    assert names(tmp_path) == ["labels.parquet", "other.json"]


def test_what_others_write_now_stays(tmp_path: Path) -> None:
    """A living process of this machine, and one of another machine that was busy a short while ago."""
    here = leftovers._machine()
    living = [
        f".{os.getppid()}-{here}.a.h5",
        f".{os.getppid()}.a.h5",
        ".4194399-other_node.a.h5",
        ".user.a.h5",
        ".a.h5",
    ]
    dead = [f".4194399-{here}.a.h5", ".4194399.a.h5", f".{os.getpid()}-{here}.a.h5", ".4194398-other_node.a.h5"]
    for name in living + dead:
        (tmp_path / name).write_text("half", encoding="utf-8")
    long_ago = time.time() - leftovers.FOREIGN_AGE_S - 60
    os.utime(tmp_path / ".4194398-other_node.a.h5", (long_ago, long_ago))
    (tmp_path / ".4194397-other_node.a.h5").mkdir()
    (tmp_path / ".4194397-other_node.a.h5" / "tile").write_text("new", encoding="utf-8")
    os.utime(tmp_path / ".4194397-other_node.a.h5", (long_ago, long_ago))
    write_json(tmp_path / "a.h5", {})
    assert names(tmp_path) == sorted([*living, ".4194397-other_node.a.h5", "a.h5"])


def test_a_child_process_spares_its_parent(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.json") as temporary:
        temporary.write_text("{}", encoding="utf-8")
        child = os.fork()
        if child == 0:
            write_json(tmp_path / "a.json", {"child": True})
            os._exit(0)
        os.waitpid(child, 0)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "{}"
    assert names(tmp_path) == ["a.json"]


def test_a_folder_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "0.json", {})
    monkeypatch.setattr(Path, "iterdir", lambda self: pytest.fail(f"{self} was listed again"))
    for number in range(3):
        write_json(tmp_path / f"{number}.json", {})
