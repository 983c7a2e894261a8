"""Runs on one's own slide that go on, that are finished, that change: what is taken up and what must not stay."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from nuclass.apply import run, slide
from nuclass.apply.kept_cells import kept_cells
from nuclass.apply.positions import Outlines, Positions
from nuclass.core.errors import UserError
from nuclass.core.files import sha256
from nuclass.evaluation import holdout_cells
from nuclass.training.predictor import Predictor
from own_slide_example import CELLS, done, files, predict, table_of, trained

__all__ = ["done", "files", "trained"]
torch.set_num_threads(1)


# Going on


def test_a_killed_run_goes_on_to_the_same_result(trained, files, done, tmp_path, monkeypatch):
    real, passes = Predictor.stream, []

    def broken(self, frame, study, start=0):
        for number, columns in enumerate(real(self, frame, study, start)):
            if number == 2:
                raise KeyboardInterrupt
            passes.append((start, number))
            yield columns

    embedded = []
    embed = holdout_cells._embed
    monkeypatch.setattr(holdout_cells, "_embed", lambda *args: embedded.append(1) or embed(*args))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, "stream", broken)
        with pytest.raises(KeyboardInterrupt):
            predict(files, trained["gate"], tmp_path)
    assert not (tmp_path / "predictions.parquet").exists()
    assert (tmp_path / ".work").is_dir()
    starts = []
    monkeypatch.setattr(
        Predictor, "stream", lambda self, f, s, start=0: starts.append(start) or real(self, f, s, start)
    )
    predict(files, trained["gate"], tmp_path)
    assert passes == [(0, 0), (0, 1)]
    assert starts == [128]
    assert embedded == [1]
    pd.testing.assert_frame_equal(table_of(tmp_path), table_of(done))
    assert not (tmp_path / ".work").exists()


def test_a_state_of_other_cells_is_not_taken_up(trained, files, tmp_path, monkeypatch):
    """The same ids at other places: neither their features nor their rows may be those of the first cells."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "write_parquet", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict(files, trained["gate"], tmp_path / "out")
    cells = pd.read_csv(files[1])
    cells[["x_he", "y_he"]] = cells[["x_he", "y_he"]].to_numpy()[::-1]
    cells.to_csv(tmp_path / "turned.csv", index=False)
    predict((files[0], tmp_path / "turned.csv"), trained["gate"], tmp_path / "out")
    predict((files[0], tmp_path / "turned.csv"), trained["gate"], tmp_path / "fresh")
    pd.testing.assert_frame_equal(table_of(tmp_path / "out"), table_of(tmp_path / "fresh"))


@pytest.fixture
def finished(trained, files, tmp_path) -> Path:
    predict(files, trained["local"], tmp_path / "out", formats=("csv",))
    return tmp_path / "out"


def test_a_finished_run_is_taken_and_only_outputs_are_written(finished, trained, files, monkeypatch):
    monkeypatch.setattr(run, "predict_cells", lambda *_: 1 / 0)
    monkeypatch.setattr(run, "write_parquet", lambda *_: 1 / 0)
    before = (finished / "run.json").read_bytes()
    (finished / "predictions.csv").unlink()
    predict(files, trained["local"], finished, formats=("csv",))
    assert (finished / "run.json").read_bytes() == before
    assert len(pd.read_csv(finished / "predictions.csv")) == CELLS


def test_another_threshold_needs_no_prediction_and_leaves_no_old_output(finished, trained, files, monkeypatch):
    monkeypatch.setattr(run, "predict_cells", lambda *_: 1 / 0)
    facts = predict(files, trained["local"], finished, abstain_below=1.0)
    found = table_of(finished)
    assert facts["counts"]["abstained"] == int((found["confidence"] < 1).sum()) > 0
    assert (found["class"] == "").sum() == facts["counts"]["abstained"]
    assert not (finished / "predictions.csv").exists()
    facts = predict(files, trained["local"], finished, abstain_below=0.0)
    assert facts["counts"]["typed"] == CELLS


def test_device_batch_and_another_spelling_of_the_organ_compute_nothing(finished, trained, files, monkeypatch):
    monkeypatch.setattr(run, "predict_cells", None)
    predict(files, trained["local"], finished, organ="Lung ", options=run.Options("cpu", batch=7))


def test_two_processes_do_not_write_into_one_folder(finished, trained, files):
    code = (
        "import sys; from pathlib import Path; from nuclass.core.alone import alone_in\n"
        "with alone_in(Path(sys.argv[1]), '.lock', '', ''): print('in', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(finished)], **pipes) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="Another process types cells into this folder"):
            predict(files, trained["local"], finished)
        other.kill()
    predict(files, trained["local"], finished)


def test_another_organ_is_predicted_anew(finished, trained, files):
    before = table_of(finished)
    facts = predict(files, trained["local"], finished, organ="colon")
    assert facts["organ"] == "colon"
    assert np.abs(table_of(finished)["confidence"] - before["confidence"]).max() > 1e-4


def test_the_store_is_made_once_for_an_image(finished, trained, files, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("nuclass.slides.writer.write_store", lambda *a, **k: made.append(a) or 1 / 0)
    predict(files, trained["local"], finished, organ="colon")
    assert not made
    with pytest.raises(ZeroDivisionError):
        predict(files, trained["local"], finished, mpp=0.26)
    assert not (finished / ".he.json").exists()
    with pytest.raises(ZeroDivisionError):
        predict(files, trained["local"], finished)


def test_a_changed_image_is_another_image(trained, files, tmp_path):
    image = tmp_path / "a.tif"
    image.write_bytes(files[0].read_bytes())
    one = slide.open_slide(image, 0.25, 0.25)
    before = one.state
    os.utime(image, ns=(1, 1))
    assert one.state != before


def test_a_store_is_not_written_over_itself(finished, trained, files):
    with pytest.raises(UserError) as caught:
        predict((finished / "he.ome.zarr", files[1]), trained["local"], finished)
    assert caught.value.what == "The slide would be written over"
    assert (finished / "he.ome.zarr" / "zarr.json").is_file()


def test_nuclei_are_looked_for_once(trained, files, tmp_path, monkeypatch):
    cells, looked = pd.read_csv(files[1]).head(50), []

    def find(image, *, mpp_he, method, weights):
        looked.append((Path(image), mpp_he, method))
        xy = cells[["x_he", "y_he"]].to_numpy(np.float64)
        ring = np.array([(-9, -9), (9, -9), (9, 9), (-9, 9)], np.float64)
        outlines = Outlines((xy[:, None] + ring).reshape(-1, 2), np.arange(51) * 4)
        return xy, outlines, "nuclei found"

    monkeypatch.setattr("nuclass.apply.detect.detect_nuclei", find)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "predict_cells", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict((files[0], None), trained["local"], tmp_path)
    predict((files[0], None), trained["local"], tmp_path)
    facts = predict((files[0], None), trained["local"], tmp_path, abstain_below=0.9)
    assert looked == [(files[0], 0.25, "classical")]
    found = table_of(tmp_path)
    assert found["cell_id"].tolist() == [str(i + 1) for i in range(50)]
    assert found["x_he"].to_numpy() == pytest.approx(cells["x_he"].to_numpy())
    assert "nuclei found" in facts["positions"]
    outlines = pq.read_table(tmp_path / "outlines.parquet")
    assert [len(ring) for ring in outlines["x_he"].to_pylist()] == [4] * 50
    assert not (tmp_path / ".work").exists()


def test_kept_nuclei_of_another_key_or_damaged_are_found_anew(tmp_path):
    found = Positions(np.array(["a", "b"], object), np.eye(2), None, "somewhere", "detected")
    calls = []
    path = tmp_path / "work" / "cells.npz"

    def kept(key):
        return kept_cells(path, {"key": key}, lambda: calls.append(key) or found)

    for key in (1, 1, 2):
        got = kept(key)
        assert got.cell_id.tolist() == ["a", "b"]
        assert np.array_equal(got.xy, found.xy)
        assert (got.outlines, got.source, got.kind) == (None, "somewhere", "detected")
    path.write_bytes(path.read_bytes()[:100])
    kept(2)
    assert calls == [1, 2, 2]


# A kill while outputs of another table are removed


FORMATS = ("csv", "geojson", "explorer", "summary")
NAMES = ("predictions.csv", "predictions.geojson", "explorer", "summary.html")
_LEFT: list[int] = []
"""Removals and renames until the kill; empty: no kill."""


def _kill(event: str, _: tuple[Any, ...]) -> None:
    if _LEFT and event in ("os.remove", "os.rename", "os.rmdir"):
        _LEFT[0] -= 1
        if _LEFT[0] < 0:
            raise KeyboardInterrupt


sys.addaudithook(_kill)


@pytest.fixture
def killed_at() -> Iterator[list[int]]:
    yield _LEFT
    _LEFT.clear()


@pytest.fixture(scope="module")
def with_outputs(files, trained, tmp_path_factory) -> Path:
    """A finished run with all that is written by default; tests change copies."""
    out = tmp_path_factory.mktemp("outputs") / "out"
    predict(files, trained["local"], out, formats=FORMATS)
    return out


def content(folder: Path, names: tuple[str, ...] = NAMES) -> dict[str, dict[str, str]]:
    """The files of each output that is there, with their hashes."""
    found = {}
    for name in names:
        path = folder / name
        inside = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        if path.exists():
            found[name] = {str(file.relative_to(folder)): sha256(file) for file in inside}
    return found


def test_a_kill_while_outputs_are_removed_leaves_none_of_them_half(with_outputs, killed_at, tmp_path):
    whole, before = content(with_outputs), run._record(with_outputs)
    assert set(whole) == set(NAMES)
    for steps in range(500):
        folder = tmp_path / str(steps)
        shutil.copytree(with_outputs, folder, ignore=shutil.ignore_patterns("he.ome.zarr"))
        killed_at[:] = [steps]
        try:
            run._remove_outputs(folder, before)
        except KeyboardInterrupt:
            pass
        else:
            break
        finally:
            killed_at.clear()
        left = content(folder)
        assert left == {name: whole[name] for name in left}, "what is there is whole"
        assert (folder / "run.json").is_file(), "the record goes last, so that the next call removes the rest"
        run._remove_outputs(folder, before)
        assert not content(folder)
        assert {path.name for path in folder.iterdir()} == {"predictions.parquet", ".he.json"}, "nothing is left aside"
    assert steps > 2 * len(NAMES)
    assert not content(folder)
    assert not (folder / "run.json").exists()


@pytest.mark.parametrize("steps", [0, 3, 12])
def test_after_such_a_kill_no_old_output_stands_beside_new_predictions(
    steps, with_outputs, trained, files, killed_at, tmp_path
):
    folder = tmp_path / "out"
    shutil.copytree(with_outputs, folder)
    old = table_of(folder)
    killed_at[:] = [steps]
    with pytest.raises(KeyboardInterrupt):
        predict(files, trained["local"], folder, abstain_below=1.0, formats=("csv",))
    killed_at.clear()
    pd.testing.assert_frame_equal(table_of(folder), old)
    assert run._record(folder)["abstain_below"] == 0.5
    facts = predict(files, trained["local"], folder, abstain_below=1.0, formats=("csv",))
    assert set(content(folder)) == {"predictions.csv"}
    assert facts["counts"]["abstained"] == (pd.read_csv(folder / "predictions.csv")["status"] == "abstained").sum()
    assert facts["counts"]["abstained"] > (old["status"] == "abstained").sum()
    assert not [path for path in folder.iterdir() if path.name.startswith(f".{os.getpid()}-")]
