"""Rows that are computed part by part and kept: what an interruption, another key and several processes do."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from fit_example import CutWindows, windows
from nuclass.core.ranks import Started
from nuclass.data import kept_rows as module
from nuclass.data.kept_rows import kept_rows
from nuclass.data.modules import GlobalData, Loading


class Pass:
    """Gives row numbers, and breaks off at a part where that is wanted."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.parts: list[tuple[int, int]] = []

    def __call__(self, start: int, stop: int) -> torch.Tensor:
        if start == self.stop_at:
            raise KeyboardInterrupt
        self.parts.append((start, stop))
        return torch.arange(start, stop).float()[:, None].expand(-1, 2)


def test_an_interrupted_pass_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        kept_rows(tmp_path, "a", 10, Pass(stop_at=8), part_rows=4)
    rest = Pass()
    result = kept_rows(tmp_path, "a", 10, rest, part_rows=4)
    assert rest.parts == [(8, 10)]
    assert torch.equal(result, torch.arange(10).float()[:, None].expand(-1, 2))
    again = Pass()
    assert torch.equal(kept_rows(tmp_path, "a", 10, again, part_rows=4), result)
    assert again.parts == []


@pytest.mark.parametrize(("key", "n", "part"), [("b", 10, 4), ("a", 12, 4), ("a", 10, 5)])
def test_rows_of_another_kind_are_computed_anew(tmp_path: Path, key: str, n: int, part: int) -> None:
    kept_rows(tmp_path, "a", 10, Pass(), part_rows=4)
    other = Pass()
    assert len(kept_rows(tmp_path, key, n, other, part_rows=part)) == n
    assert sum(stop - start for start, stop in other.parts) == n


def test_processes_share_the_work_and_all_get_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = threading.local()
    monkeypatch.setattr(module, "started_ranks", lambda: Started("srun", here.rank, 2))
    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0.01)
    passes, got = [Pass(), Pass()], {}
    kept_rows_before = tmp_path / "0000000000.npy"
    np.save(kept_rows_before, np.zeros((4, 2)))

    def work(rank: int) -> None:
        here.rank = rank
        got[rank] = kept_rows(tmp_path, "a", 18, passes[rank], part_rows=4)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [part[0] for part in passes[0].parts] == [0, 8, 16]
    assert [part[0] for part in passes[1].parts] == [4, 12]
    assert torch.equal(got[0], got[1])
    assert got[0][:, 0].tolist() == list(range(18))


@pytest.mark.parametrize("cut", [False, True])
def test_a_part_of_a_dataset_is_its_rows(cut: bool) -> None:
    held = windows(20, 1)
    held.add("context", torch.arange(20))
    if cut:
        whole = CutWindows(held)
        whole.codes, whole.cell_rows, whole.xy = np.arange(20), np.arange(20), np.zeros((20, 2))
        whole.extra = held.extra
        part = whole.part(5, 9)
        assert part.codes.tolist() == part.cell_rows.tolist() == [5, 6, 7, 8]
        assert len(part.xy) == 4
        assert whole.codes.tolist() == list(range(20))
    else:
        part = held.part(5, 9)
        assert torch.equal(part[[0, 3]]["image"], held[[5, 8]]["image"])
    assert len(part) == 4
    assert torch.equal(part.label, held.label[5:9])
    assert part.extra["context"].tolist() == [5, 6, 7, 8]


def test_the_teacher_looks_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second start takes the logits that are kept; other cells, or another teacher, need a look of their own."""
    held, looks = windows(9, 1), []
    frame = pd.DataFrame({"slide": "s", "cell_id": [f"c{i}" for i in range(9)], "x_px": 1.0, "y_px": 2.0})

    def logits(frame: pd.DataFrame, key: str) -> torch.Tensor:
        def teacher(part: object) -> torch.Tensor:
            looks.append(len(part))
            return part.label.float()[:, None]

        data = GlobalData(
            SimpleNamespace(), context=None, teacher=teacher, kept=tmp_path, kept_key=key,
            read_level=0, input_px=8, loading=Loading(),
        )  # fmt: skip
        return data._teacher_logits(frame, held, teacher)

    first = logits(frame, "weights 1")
    assert torch.equal(first[:, 0], held.label.float())
    assert torch.equal(logits(frame, "weights 1"), first)
    assert looks == [9]
    logits(frame, "weights 2")
    logits(frame.assign(x_px=3.0), "weights 2")
    assert looks == [9, 9, 9]
