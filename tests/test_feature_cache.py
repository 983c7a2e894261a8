"""A pass over many cells that is killed goes on where it was, and ends as if nothing had happened."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from nuclass.core.errors import UserError
from nuclass.data import feature_cache
from nuclass.data.feature_cache import Output, cache_features, part_size
from nuclass.data.features import read_key
from peak_memory import held, measured
from test_features import KEY, VIEWS, names

N, PART, BATCH = 75, 20, 5
IDS = [f"{i:03d}-1" for i in range(N)]
CHOSEN = np.random.default_rng(3).random(N) < 0.4
CHOSEN[20:40] = False
starts_seen: list[int] = []


class StopError(Exception):
    """Stands for anything that ends a pass."""


def batches(start: int, die_at: int | None = None, kill: bool = False) -> Iterator[dict[str, np.ndarray]]:
    """Features that depend on the row alone."""
    starts_seen.append(start)
    for row in range(start, N, BATCH):
        if die_at is not None and row >= die_at:
            if kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise StopError
        rows = np.arange(row, min(row + BATCH, N))
        values = np.sin(rows[:, None] + np.arange(4)).astype(np.float32)
        copies = np.stack([values + 1, values + 2], 1)
        yield {"features": values, "views": copies[CHOSEN[rows]]}


def run(folder: Path, source=batches, *, key=KEY, ids=IDS, part=PART, depends=None) -> None:
    outputs = {
        "features": Output(folder / "a.h5", key),
        "views": Output(folder / "a.views.h5", replace(VIEWS, pooling=key.pooling), CHOSEN),
    }
    cache_features(folder / "work", ids, outputs, source, part_cells=part, depends=depends)


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("a.h5", "a.views.h5")}


@pytest.fixture
def whole(tmp_path) -> dict[str, bytes]:
    """The files of a pass that nothing disturbed."""
    (tmp_path / "whole").mkdir()
    run(tmp_path / "whole")
    starts_seen.clear()
    return content(tmp_path / "whole")


def test_one_pass_writes_both_files_and_leaves_nothing(tmp_path):
    run(tmp_path)
    assert names(tmp_path) == ["a.h5", "a.views.h5"]
    expected = np.sin(np.arange(N)[:, None] + np.arange(4)).astype(np.float32)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["cell_id"].asstr()[:].tolist() == IDS
        np.testing.assert_array_equal(file["features"][:], expected.astype(np.float16))
    with h5py.File(tmp_path / "a.views.h5") as file:
        assert file["cell_id"].asstr()[:].tolist() == [IDS[i] for i in np.flatnonzero(CHOSEN)]
        np.testing.assert_array_equal(file["features"][:, 1], (expected + 2)[CHOSEN].astype(np.float16))
    assert read_key(tmp_path / "a.h5") == KEY
    assert read_key(tmp_path / "a.views.h5") == VIEWS


@pytest.mark.parametrize(("die_at", "start"), [(0, 0), (15, 0), (20, 20), (55, 40), (70, 60)])
def test_an_exception_loses_one_part_at_most(tmp_path, whole, caplog, die_at, start):
    with pytest.raises(StopError):
        run(tmp_path, lambda first: batches(first, die_at))
    assert not list(tmp_path.glob("*.h5"))
    starts_seen.clear()
    with caplog.at_level(logging.INFO, "nuclass"):
        run(tmp_path)
    assert starts_seen == [start]
    assert f"Going on from cell {start} of {N}" in caplog.text
    assert content(tmp_path) == whole
    assert not (tmp_path / "work").exists()


def test_a_killed_process_loses_one_part_at_most(tmp_path, whole):
    script = tmp_path / "run.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\nimport test_feature_cache as t\n"
        f"t.run(Path({str(tmp_path)!r}), lambda first: t.batches(first, 50, kill=True))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert names(tmp_path / "work") == [
        "part-00000.features.npy",
        "part-00000.views.npy",
        "part-00001.features.npy",
        "part-00001.views.npy",
        "state.json",
    ]
    (tmp_path / "work" / ".123.part-00002.features.npy").write_bytes(b"half of it")
    run(tmp_path)
    assert starts_seen == [40]
    assert content(tmp_path) == whole
    assert not (tmp_path / "work").exists()


def test_a_kill_between_the_two_files_computes_nothing_again(tmp_path, whole, monkeypatch):
    real = feature_cache.write_parts

    def second_fails(path, *rest):
        if path.name == "a.views.h5":
            raise StopError
        real(path, *rest)

    monkeypatch.setattr(feature_cache, "write_parts", second_fails)
    with pytest.raises(StopError):
        run(tmp_path)
    monkeypatch.setattr(feature_cache, "write_parts", real)
    starts_seen.clear()
    run(tmp_path)
    assert starts_seen == []
    assert content(tmp_path) == whole


def test_a_stop_at_any_step_on_disk_does_no_harm(tmp_path, whole, monkeypatch):
    """Stop before each file operation in turn, go on, stop once more, go on to the end."""
    operations = ("replace", "unlink", "write_bytes", "write_text", "rmdir", "open")
    real = {name: getattr(Path, name) for name in operations}

    def run_until(folder: Path, stop: int) -> bool:
        count = 0

        def counted(name):
            def operation(path, *rest, **options):
                nonlocal count
                count += folder in path.parents
                if count == stop:
                    count += 1
                    raise StopError
                return real[name](path, *rest, **options)

            return operation

        with monkeypatch.context() as patch:
            for name in operations:
                patch.setattr(Path, name, counted(name))
            try:
                run(folder)
            except StopError:
                return False
        return True

    for stop in range(1, 1000):
        folder = tmp_path / str(stop)
        folder.mkdir()
        if run_until(folder, stop):
            break
        run_until(folder, 1 + stop // 2)
        run(folder)
        assert content(folder) == whole
        assert names(folder) == ["a.h5", "a.views.h5"]
    assert stop > 30


@pytest.mark.parametrize("damage", ["cut", "gone", "other rows"])
def test_a_part_that_is_not_whole_is_computed_again(tmp_path, whole, damage):
    with pytest.raises(StopError):
        run(tmp_path, lambda first: batches(first, 70))
    part = tmp_path / "work" / "part-00001.features.npy"
    if damage == "cut":
        part.write_bytes(part.read_bytes()[:-3])
    elif damage == "gone":
        part.unlink()
    else:
        np.save(part, np.zeros((3, 4), np.float16))
    starts_seen.clear()
    run(tmp_path)
    assert starts_seen == [20]
    assert content(tmp_path) == whole


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"key": replace(KEY, pooling="mean")}, "pooling of features: mean, now cls"),
        ({"key": replace(KEY, sha256="f")}, "sha256 of features: f, now 0123456789abcdef"),
        ({"ids": [*IDS[:-1], "new"]}, "other cells"),
        ({"ids": [IDS[1], IDS[0], *IDS[2:]]}, "other cells"),
        ({"part": 25}, "other cells of a part"),
        ({"depends": {"places": 1}}, "other places"),
    ],
)
def test_the_state_of_another_pass_is_thrown_away(tmp_path, whole, caplog, other, told):
    with pytest.raises(StopError):
        run(tmp_path, lambda first: batches(first, 55), **({"depends": {"places": 0}} | other))
    starts_seen.clear()
    with caplog.at_level(logging.WARNING, "nuclass"):
        run(tmp_path, depends={"places": 0})
    assert f"is of another pass ({told}" in caplog.text
    assert starts_seen == [0]
    assert content(tmp_path) == whole


def test_a_broken_state_is_thrown_away_and_foreign_files_are_not(tmp_path, whole, caplog):
    with pytest.raises(StopError):
        run(tmp_path, lambda first: batches(first, 55))
    (tmp_path / "work" / "state.json").write_text("{")
    (tmp_path / "work" / "mine.txt").write_text("mine")
    starts_seen.clear()
    run(tmp_path)
    assert "cannot be read" in caplog.text
    assert starts_seen == [0]
    assert content(tmp_path) == whole
    assert names(tmp_path / "work") == ["mine.txt"]


def test_what_is_not_finite_is_told_with_its_cells_and_earlier_parts_stay(tmp_path):
    def bad(first):
        for row, batch in zip(range(first, N, BATCH), batches(first), strict=True):
            if row == 45:
                batch["features"][[1, 3]] = np.inf
            yield batch

    with pytest.raises(UserError) as caught:
        run(tmp_path, bad)
    assert caught.value.what == "Features are not finite in half precision"
    assert caught.value.found == "2 of 5 cells, the first: 046-1, 048-1"
    assert caught.value.where == tmp_path / "a.h5"
    assert len(list((tmp_path / "work").glob("part-*.features.npy"))) == 2


def test_a_full_disk_is_told_and_whole_parts_stay(tmp_path, whole, monkeypatch):
    real = Path.write_bytes

    def full(path, data):
        if "part-00002" in path.name:
            raise OSError(28, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"The disk is full[\s\S]*part-00002\.features\.npy[\s\S]*free space or quota"):
        run(tmp_path)
    monkeypatch.setattr(Path, "write_bytes", real)
    starts_seen.clear()
    run(tmp_path)
    assert starts_seen == [40]
    assert content(tmp_path) == whole


def test_a_disk_without_room_for_the_file_keeps_all_parts(tmp_path, whole, monkeypatch):
    usage, real = namedtuple("usage", "free"), shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000))
    with pytest.raises(UserError, match="The disk is full"):
        run(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", real)
    starts_seen.clear()
    run(tmp_path)
    assert starts_seen == []
    assert content(tmp_path) == whole


def test_batches_that_do_not_fit_are_mistakes(tmp_path):
    with pytest.raises(ValueError, match="crosses the end of its part"):
        run(tmp_path, part=18)
    with pytest.raises(ValueError, match=f"ended at cell 70 of {N}"):
        run(tmp_path, lambda first: list(batches(first))[:-1])
    with pytest.raises(ValueError, match="rows of views for"):
        run(tmp_path, lambda first: ({**batch, "views": np.zeros((6, 2, 4))} for batch in batches(first)))
    with pytest.raises(ValueError, match="different"):
        run(tmp_path, ids=["a", "a"])
    with pytest.raises(ValueError, match="no cells"):
        run(tmp_path, ids=[])


def test_parts_are_whole_batches():
    assert [part_size(n) for n in (1, 64, 100, 256, 3000, 5000)] == [4096, 4096, 4100, 4096, 3000, 5000]


def memory_of_a_cache(folder, n, part, width):
    ids = [str(i) for i in range(n)]

    def cache(name, ids):
        def source(first):
            for row in range(first, len(ids), 64):
                yield {"features": np.full((64, width), row, np.float16)}

        outputs = {"features": Output(folder / f"{name}.h5", KEY)}
        cache_features(folder / name, ids, outputs, source, part_cells=part)

    cache("imports", ids[:64])
    return held(cache, "all", ids)[1]


def test_one_part_is_held_at_a_time(tmp_path):
    n, part, width = 8192, 1024, 512
    peak = measured(memory_of_a_cache, tmp_path, n, part, width)
    assert peak < 4 * part * width * 2 + 1_500_000 < n * width * 2
