"""``nuclass predict`` that is stopped, or runs out of memory or disk: what it says, its status, what is left."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from apply_example import SHEET, table_of, write_tables
from nuclass.apply.outputs import write_outputs
from nuclass.cli import main
from nuclass.data.datasets import WindowDataset
from nuclass.evaluation import holdout_cells
from nuclass.training.predictor import Predictor
from own_slide_example import done, files, trained
from own_slide_example import table_of as predicted

__all__ = ["done", "files", "trained"]
torch.set_num_threads(1)
WHOLE = ("predictions.parquet", "run.json", "predictions.csv")


def predict(files: tuple[Path, Path | str], checkpoint: Path, out: Path, *more: str) -> int:
    command = ["predict", files[0], "--cells", files[1], "--ckpt", checkpoint, "--out", out, "--mpp", "0.25"]
    own = ["--organ", "lung", "--device", "cpu", "--batch", "64", "--formats", "csv"]
    return main([str(part) for part in [*command, *own, *more]])


def status(*arguments: Any) -> int:
    """Return the exit status of a command that a signal ends."""
    with pytest.raises(SystemExit) as stop:
        predict(*arguments)
    assert isinstance(stop.value.code, int)
    return stop.value.code


# Signals


def asking(number: int, batches: int = 1) -> Any:
    """Return a pass that gets a signal after so many batches."""
    real = Predictor.stream

    def stream(self: Predictor, frame: Any, study: Any, start: int = 0) -> Iterator[Any]:
        for count, columns in enumerate(real(self, frame, study, start)):
            if count == batches:
                os.kill(os.getpid(), number)
            yield columns

    return stream


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_time_limit_leaves_what_the_same_command_goes_on_from(trained, files, done, tmp_path, capsys, name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, "stream", asking(number))
        assert status(files, trained["gate"], tmp_path) == 128 + number
    told = capsys.readouterr().err
    assert told.endswith(f"Stopped by {name}; the same command goes on from what is there.\n")
    assert "Traceback" not in told
    assert not [name for name in WHOLE if (tmp_path / name).exists()]
    assert signal.getsignal(number) is before
    assert predict(files, trained["gate"], tmp_path) == 0
    assert "64 of 220 rows are there from an earlier run" in capsys.readouterr().err
    pd.testing.assert_frame_equal(predicted(tmp_path), predicted(done))


def test_it_comes_while_neighbourhoods_are_looked_at(trained, files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(holdout_cells, "_embed", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert status(files, trained["gate"], tmp_path) == 143
    assert "Stopped by SIGTERM" in capsys.readouterr().err


def test_ctrl_c_stays_130(trained, files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Predictor, "stream", asking(signal.SIGINT))
    assert predict(files, trained["local"], tmp_path) == 130
    assert capsys.readouterr().err.endswith("\nStopped; the same command goes on from what is there.\n")


def test_a_second_signal_does_not_disturb_the_saving(trained, files, tmp_path, capsys, monkeypatch):
    from nuclass.training.row_store import RowStore

    save, saved = RowStore._save, []

    def disturbed(self: RowStore) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(self)
        saved.append(self.rows)

    with monkeypatch.context() as patch:
        patch.setattr(RowStore, "_save", disturbed)
        patch.setattr(Predictor, "stream", asking(signal.SIGTERM, batches=2))
        assert status(files, trained["local"], tmp_path) == 143
    assert saved == [128]


def test_a_kill_leaves_no_half_file_and_the_lock_goes_with_it(trained, files, done, tmp_path, capsys):
    """SIGKILL in the midst of the pass, in a process of its own."""
    code = f"""
        import os, signal, sys
        from nuclass.cli import main
        from nuclass.training import row_store
        from nuclass.training.predictor import Predictor
        real, row_store.SAVE_EVERY_S = Predictor.stream, 0.0
        def stream(self, frame, study, start=0):
            for number, columns in enumerate(real(self, frame, study, start)):
                if number == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield columns
        Predictor.stream = stream
        main(["predict", {str(files[0])!r}, "--cells", {str(files[1])!r}, "--ckpt", {str(trained["gate"])!r}, "--out",
              {str(tmp_path)!r}, "--mpp", "0.25", "--organ", "lung", "--device", "cpu", "--batch", "64",
              "--formats", "csv"])
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not [name for name in WHOLE if (tmp_path / name).exists()]
    assert predict(files, trained["gate"], tmp_path) == 0
    assert "128 of 220 rows are there from an earlier run" in capsys.readouterr().err
    pd.testing.assert_frame_equal(predicted(tmp_path), predicted(done))


def test_a_second_command_is_refused_before_it_looks_for_nuclei(trained, files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nuclass.apply.detect.detect_nuclei", lambda *_, **__: 1 / 0)
    code = (
        "import sys; from pathlib import Path; from nuclass.core.alone import alone_in\n"
        "with alone_in(Path(sys.argv[1]), '.lock', '', ''): print('in', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], **pipes) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert predict((files[0], "detect"), trained["local"], tmp_path) == 1
        told = capsys.readouterr().err
        assert "Another process types cells into this folder\n" in told
        assert "to mend it: wait for it, or give another --out\n" in told
        other.kill()


# Memory


def out_of(memory: BaseException) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise memory

    return fail


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 39 GiB\nmore")


@pytest.mark.parametrize(
    "error",
    [
        CUDA,
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] data. DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        MemoryError(),
    ],
)
def test_too_little_memory_names_the_batch_to_try(trained, files, tmp_path, capsys, monkeypatch, error):
    monkeypatch.setattr(Predictor, "_rows", out_of(error))
    assert predict(files, trained["local"], tmp_path) == 1
    told = capsys.readouterr().err
    assert "The memory of the device is not enough\n  where:      64 cells at once\n" in told
    assert "to mend it: try --batch 32, end other programs on the device" in told
    assert "Traceback" not in told
    assert "fault of the program" not in told
    assert not [name for name in WHOLE if (tmp_path / name).exists()]


def test_so_does_the_pass_over_neighbourhoods(trained, files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(holdout_cells, "_embed", out_of(CUDA))
    assert predict(files, trained["gate"], tmp_path, "--batch", "4") == 1
    assert "where:      4 cells at once\n" in (told := capsys.readouterr().err)
    assert "found:      CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 39 GiB\n" in told
    assert "try --batch 2, " in told


@pytest.mark.parametrize("case", ["one cell", "networks"])
def test_where_no_smaller_batch_helps_none_is_named(trained, files, tmp_path, capsys, monkeypatch, case):
    monkeypatch.setattr(Predictor, "_rows" if case == "one cell" else "__init__", out_of(CUDA))
    assert predict(files, trained["local"], tmp_path, "--batch", "1") == 1
    told = capsys.readouterr().err
    assert f"where:      {'1 cells at once' if case == 'one cell' else 'the networks themselves'}\n" in told
    assert "--batch" not in told
    assert "to mend it: end other programs on the device" in told


def test_other_errors_stay_what_they_are(trained, files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Predictor, "_rows", out_of(RuntimeError("mat1 and mat2 shapes cannot be multiplied")))
    assert predict(files, trained["local"], tmp_path) == 1
    assert "This is a fault of the program" in capsys.readouterr().err


def test_a_worker_that_is_killed_is_no_fault_of_the_program(trained, files, tmp_path, capsys, monkeypatch):
    """As the system kills it where a job's memory is spent."""
    here, real = os.getpid(), WindowDataset.__getitem__

    def spent(self: WindowDataset, index: Any) -> Any:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, index)

    monkeypatch.setattr(WindowDataset, "__getitem__", spent)
    assert predict(files, trained["local"], tmp_path, "--workers", "1") == 1
    told = capsys.readouterr().err
    assert "A process that cuts windows was ended from outside\n  where:      --workers\n" in told
    assert "DataLoader worker" in told
    assert "or take fewer --workers" in told
    assert "Traceback" not in told


# Disk


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_what_was_computed(trained, files, done, tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_parquet", full)
        assert predict(files, trained["gate"], tmp_path) == 1
    told = capsys.readouterr().err
    assert f"The disk is full\n  where:      {tmp_path / 'predictions.parquet'}\n" in told
    assert "Traceback" not in told
    assert not [name for name in WHOLE if (tmp_path / name).exists()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_csv", full)
        assert predict(files, trained["gate"], tmp_path) == 1
    logged = capsys.readouterr().err
    assert "220 of 220 rows are there from an earlier run" in logged
    assert f"where:      {tmp_path / 'predictions.csv'}\n" in logged
    assert (tmp_path / "run.json").is_file()
    assert not (tmp_path / "predictions.csv").exists()
    assert predict(files, trained["gate"], tmp_path) == 0
    assert "the predictions are there from an earlier run" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*WHOLE, ".he.json", "he.ome.zarr"])
    pd.testing.assert_frame_equal(predicted(tmp_path), predicted(done))


def test_a_page_that_cannot_be_copied_for_a_full_disk(trained, files, tmp_path, capsys, monkeypatch):
    def copy(source: Path, folder: Path, **_: Any) -> None:
        raise shutil.Error([(str(source), str(folder), f"[Errno 28] No space left on device: {str(source)!r}")])

    monkeypatch.setattr(shutil, "copytree", copy)
    assert predict(files, trained["local"], tmp_path, "--formats", "explorer") == 1
    assert f"The disk is full\n  where:      {tmp_path / 'explorer'}\n" in capsys.readouterr().err
    assert not (tmp_path / "explorer").exists()


def test_a_table_for_scanpy_that_does_not_fit_is_an_error_in_words(tmp_path):
    """HDF5 ends the process where a write fails; a limit to the size of files stands for a full disk."""
    pytest.importorskip("anndata")
    write_tables(tmp_path, table_of(500))
    code = f"""
        import resource, signal, sys
        from pathlib import Path
        from nuclass.apply.outputs import write_outputs
        from nuclass.core.failures import tell_error
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        try:
            write_outputs(Path({str(tmp_path)!r}), ["anndata"], store=Path("none"), classes=Path({str(SHEET)!r}))
        except Exception as error:
            sys.exit(tell_error(error))
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.returncode == 1, ended.stderr
    assert "The system refused to read or write" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.glob("*cells.h5ad"))
    assert not list(tmp_path.glob(".*cells.h5ad"))
    write_outputs(tmp_path, ["anndata"], store=Path("none"), classes=SHEET)
    assert (tmp_path / "cells.h5ad").stat().st_size > 8192
