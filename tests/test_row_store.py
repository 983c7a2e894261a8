"""Arrays filled row by row: they go on after a stop, start anew for another key, and say that a disk is full."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nuclass.core import files
from nuclass.core.errors import UserError
from nuclass.core.files import remove_state
from nuclass.training import row_store
from nuclass.training.row_store import RowStore
from nuclass.training.state import fingerprint


def rows(first: int, n: int) -> dict[str, np.ndarray]:
    numbers = np.arange(first, first + n)
    return {"half": np.stack([numbers, -numbers], 1).astype(np.float16), "single": numbers.astype(np.float32)}


def fill(store: RowStore, until: int, step: int = 5) -> None:
    while store.rows < until:
        store.append(**rows(store.rows, min(step, until - store.rows)))


def check(store: RowStore, n: int) -> None:
    tensors = store.tensors()
    assert tensors["half"].dtype == torch.float16
    assert tensors["half"].tolist() == [[i, -i] for i in range(n)]
    assert tensors["single"].tolist() == list(range(n))


def test_rows_are_there_again(tmp_path):
    with RowStore(tmp_path / "store", "a", 23) as store:
        fill(store, 23)
    check(store, 23)
    with RowStore(tmp_path / "store", "a", 23) as again:
        assert again.done
    check(again, 23)


def test_a_stopped_pass_goes_on_after_the_noted_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(row_store, "SAVE_EVERY_S", -1.0)
    with RowStore(tmp_path, "a", 23) as store:
        fill(store, 10)
        # What a kill leaves: more of one array than of the other, and half a row.
        monkeypatch.setattr(store, "_save", lambda: None)
        store._files["half"].write(rows(10, 3)["half"].tobytes()[:-1])
    with RowStore(tmp_path, "a", 23) as again:
        assert again.rows == 10
        fill(again, 23)
    check(again, 23)


def test_rows_of_another_key_are_removed(tmp_path):
    with RowStore(tmp_path, "a", 5) as store:
        fill(store, 5)
    with RowStore(tmp_path, "b", 5) as other:
        assert other.rows == 0
        assert not list(tmp_path.glob("*.bin"))


def test_reading_does_not_change_the_files(tmp_path):
    with RowStore(tmp_path, "a", 5) as store:
        fill(store, 5)
    store.tensors()["single"][:] = 9
    check(store, 5)


def test_rows_of_another_width_are_refused(tmp_path):
    with RowStore(tmp_path, "a", 9) as store:
        fill(store, 3)
        with pytest.raises(ValueError, match="for arrays of"):
            store.append(half=np.zeros((1, 3), np.float16), single=np.zeros(1, np.float32))
        with pytest.raises(ValueError, match="for arrays of"):
            store.append(half=np.zeros((2, 2), np.float16), single=np.zeros(1, np.float32))


def test_too_little_space_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="The disk is full") as caught, RowStore(tmp_path, "a", 10**15) as store:
        fill(store, 5)
    assert "8000000.0 GB are needed" in str(caught.value)


def test_a_disk_that_fills_up_is_said_and_what_is_noted_stays(tmp_path):
    class Full:
        def write(self, _: object) -> None:
            raise OSError(28, "No space left on device")

        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    def run_full() -> None:
        with RowStore(tmp_path, "a", 23) as store:
            fill(store, 10)
            store._save()
            store._files["single"] = Full()  # type: ignore[assignment]
            fill(store, 23)

    with pytest.raises(UserError, match="The disk is full"):
        run_full()
    with RowStore(tmp_path, "a", 23) as again:
        assert again.rows == 10
        fill(again, 23)
    check(again, 23)


def test_the_log_says_why_rows_are_made_anew(tmp_path, caplog):
    with RowStore(tmp_path, fingerprint(models="a", batch=8), 5) as store:
        fill(store, 5)
    with RowStore(tmp_path, fingerprint(models="a", batch=9), 5) as other:
        assert other.rows == 0
    assert "it is of another run; batch: it was 8, it is 9" in caplog.text


@pytest.mark.parametrize("until", [10, 23])
@pytest.mark.parametrize("damage", ["gone", "short"])
def test_rows_of_which_a_file_is_gone_or_cut_off_are_made_anew(tmp_path, caplog, until, damage):
    """As a kill in the midst of the folder's removal leaves it, or a machine that lost power."""
    with RowStore(tmp_path, "a", 23) as store:
        fill(store, until)
    file = tmp_path / "single.bin"
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    with RowStore(tmp_path, "a", 23) as again:
        assert again.rows == 0
        fill(again, 23)
    check(again, 23)
    assert "rows that are noted are not there, in single.bin" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", '{"key": "a"}', '{"key": "a", "rows": 5, "columns": {"half": 3}}'])
def test_rows_without_a_note_that_can_be_read_are_made_anew(tmp_path, caplog, text):
    with RowStore(tmp_path, "a", 23) as store:
        fill(store, 10)
    (tmp_path / row_store.NOTE).write_text(text)
    with RowStore(tmp_path, "a", 23) as again:
        assert again.rows == 0
        fill(again, 23)
    check(again, 23)
    assert "its note cannot be read" in caplog.text


def test_a_removed_state_loses_its_notes_first(tmp_path, monkeypatch):
    """Whatever a kill leaves of it, nothing says that it is whole."""
    with RowStore(tmp_path / "work" / "lung_1", "a", 5) as store:
        fill(store, 5)
    monkeypatch.setattr(files.shutil, "rmtree", lambda *_, **__: None)
    remove_state(tmp_path / "work")
    assert sorted(path.name for path in (tmp_path / "work" / "lung_1").iterdir()) == ["half.bin", "single.bin"]
    with RowStore(tmp_path / "work" / "lung_1", "a", 5) as again:
        assert again.rows == 0
