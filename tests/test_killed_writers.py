"""What writers leave that were killed or found the disk full: nothing that stays, and a clear word."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nuclass.core import leftovers
from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path, write_csv, write_json, write_parquet
from test_features import KEY
from test_slide_store import frames_for, picture, write_tiff

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


REPLACED = """
import os, signal, sys
from pathlib import Path
from nuclass.core.files import atomic_path
left = int(sys.argv[2])
def mined(event, _):
    # Before the first of these steps all is as it was; a folder is removed in many.
    global left
    if event in ("os.rename", "os.remove", "os.unlink", "os.rmdir", "shutil.rmtree"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.mkdir()
    for name in "abc":
        (temporary / name).write_text("new")
    sys.addaudithook(mined)
"""


def test_a_kill_while_a_folder_is_replaced_leaves_none_of_it_half(tmp_path: Path) -> None:
    """Its name has the whole old folder, the whole new one or, between two renamings, none; then all is cleared up."""
    seen, step, status = [], 0, -1
    while status:
        target = tmp_path / str(step) / "he.ome.zarr"
        target.mkdir(parents=True)
        for name in "abc":
            (target / name).write_text("old", encoding="utf-8")
        status = subprocess.run([sys.executable, "-c", REPLACED, str(target), str(step)], check=False).returncode
        found = [(path.name, path.read_text(encoding="utf-8")) for path in sorted(target.glob("*"))]
        assert found in ([], [(name, "old") for name in "abc"], [(name, "new") for name in "abc"])
        seen.append(found[0][1] if found else "none")
        with atomic_path(target) as temporary:
            temporary.mkdir()
        assert names(target.parent) == ["he.ome.zarr"]
        step += 1
    assert list(dict.fromkeys(seen)) == ["old", "none", "new"]
    assert seen.count("none") == 1
    assert step > 5, "kills within the removal of the old folder were among these"


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()

    def fail(*_: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(PermissionError), atomic_path(tmp_path / "a") as temporary:
        temporary.mkdir()
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["old"]


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


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no disk of its own can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


NOISE = np.random.default_rng(0).random((3000, 64), np.float32)
IDS = [f"cell-{number:05d}-1" for number in range(len(NOISE))]


def slide_store(folder: Path) -> None:
    from nuclass.slides.writer import write_store

    he = write_tiff(folder.parent / "he.tif", picture(700, 800))
    write_store(he, frames_for(0.25), folder / "he.ome.zarr", tile=64, shard=256, levels=2)


def training_state(folder: Path) -> None:
    import torch

    from nuclass.training.state import save_atomically

    save_atomically({"weights": torch.from_numpy(NOISE)}, folder / "last.ckpt")


def checkpoint(folder: Path) -> None:
    import torch

    from nuclass.training.checkpoint import save_checkpoint

    save_checkpoint(folder / "best.ckpt", {"model": "local"}, {"weights": torch.from_numpy(NOISE)})


def features(folder: Path) -> None:
    from nuclass.data.features import write_features

    write_features(folder / "a.h5", IDS, np.hstack([NOISE] * 4), KEY)


def cached_features(folder: Path) -> None:
    from nuclass.data.feature_cache import Output, cache_features

    def batches(start: int) -> Iterator[dict[str, np.ndarray]]:
        for row in range(start, len(NOISE), 100):
            yield {"features": np.hstack([NOISE[row : row + 100]] * 4)}

    cache_features(folder / "work", IDS, {"features": Output(folder / "a.h5", KEY)}, batches, part_cells=300)


def predictions(folder: Path) -> None:
    import torch

    from nuclass.training.predict import write_prediction
    from nuclass.training.predictor import Prediction

    shares = torch.softmax(torch.from_numpy(NOISE[:, :3]), 1)
    embeddings = (torch.from_numpy(NOISE.astype(np.float16)),) * 4
    told = Prediction(shares, torch.from_numpy(NOISE[:, :3]), embeddings)
    told_of = {"cell_id": IDS, "x_px": NOISE[:, 0], "y_px": NOISE[:, 1], "class": "B"}
    frame = pd.DataFrame(told_of).assign(slide="lung_1", organ="lung", split="val")
    write_prediction(folder / "lung_1.parquet", frame, told, ["A", "B", "C"])


def table(folder: Path) -> None:
    write_parquet(folder / "cells.parquet", pd.DataFrame(np.hstack([NOISE] * 3)).rename(columns=str))


def text_table(folder: Path) -> None:
    write_csv(folder / "cells.csv", pd.DataFrame(NOISE))


def figure(folder: Path) -> None:
    from matplotlib.figure import Figure

    from nuclass.figures.style import save_figure

    drawn = Figure()
    drawn.add_axes((0, 0, 1, 1)).imshow(NOISE[:400], interpolation="nearest", aspect="auto")
    save_figure(drawn, [folder / "a.pdf", folder / "a.png"], folder / "a.csv", pd.DataFrame(NOISE[:2]), synthetic=False)


WRITERS = [slide_store, training_state, checkpoint, features, cached_features, predictions, table, text_table, figure]


@pytest.mark.parametrize("write", WRITERS, ids=[writer.__name__ for writer in WRITERS])
def test_a_full_disk_is_told_leaves_nothing_half_and_is_no_end(disk: Path, write: Callable[[Path], None]) -> None:
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(700_000 if write in (slide_store, predictions) else 990_000))
    with pytest.raises(UserError, match="The disk is full") as told:
        write(disk)
    assert str(disk) in str(told.value)
    assert "free space" in str(told.value)
    left = [path for path in disk.rglob("*") if path != ballast and "work" not in path.parts]
    assert [path for path in left if path.suffix not in (".parquet", ".pdf")] == [], "the first of two may be whole"
    subprocess.run(["mount", "-o", "remount,size=60m", str(disk)], check=True)
    write(disk)
    assert not [path for path in disk.rglob(".*") if path.name.startswith(".")]
    assert len(names(disk)) >= 2
