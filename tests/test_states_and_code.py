"""A job that was killed is gone on with by the same code of its rule alone; other code starts it anew and says so."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import fit_example
import test_context
from nuclass.core import jobs
from nuclass.data.study import Study
from nuclass.evaluation import holdout_cells
from nuclass.training import composition, embedding, fit, launch, predict, row_store, train
from nuclass.training.branches import Branches
from nuclass.training.gate import train_gate
from nuclass.training.predictor import Predictor
from nuclass.training.state import fingerprint, why_another
from own_slide_example import files
from own_slide_example import predict as predict_own
from test_context import slide, small_parts
from toy_study import MODELS, one_slide, toy

__all__ = ["files", "slide", "small_parts"]
torch.set_num_threads(1)


class KilledError(Exception):
    """A stop at any moment."""


@contextmanager
def code(value: str | None) -> Iterator[None]:
    """As in a job of a rule with this code; None as in a command."""
    token = jobs._CODE.set(value)
    try:
        yield
    finally:
        jobs._CODE.reset(token)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return toy(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    return toy(tmp_path_factory)[1]


class Counted:
    """Count the calls of a method, and break off at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.calls, self.stop_at = 0, -1
        real: Callable[..., Any] = getattr(owner, name)

        def counted(*args: Any, **keywords: Any) -> Any:
            if self.calls == self.stop_at:
                raise KilledError
            self.calls += 1
            return real(*args, **keywords)

        monkeypatch.setattr(owner, name, counted)

    def of(self, run: Callable[[], object], stop_at: int = -1) -> int:
        """Return the calls of one run, which may be broken off."""
        self.calls, self.stop_at = 0, stop_at
        if stop_at < 0:
            run()
        else:
            with pytest.raises(KilledError):
                run()
        return self.calls


def check(counted: Counted, run: Callable[[], object], stop_at: int, told: str, caplog: Any) -> None:
    """Break a run off and start it by the same code, by other code and as a command, each from the same state."""
    caplog.set_level(logging.WARNING, "nuclass")
    with code("aaaa"):
        whole = counted.of(run)
        assert 0 < stop_at < whole
        assert counted.of(run, stop_at) == stop_at
        assert counted.of(run) == whole - stop_at
        assert counted.of(run, stop_at) == stop_at
    assert told not in caplog.text
    with code("bbbb"):
        assert counted.of(run) == whole
        assert told in caplog.text
        counted.of(run, stop_at)
    assert counted.of(run) == whole
    counted.of(run, stop_at)
    assert counted.of(run) == whole - stop_at


CHANGED = "it is of another run; code: it was 'aaaa', it is 'bbbb'"


def test_without_a_rule_nothing_of_code_is_in_a_key() -> None:
    plain = fingerprint("local", seed=3)
    assert set(plain.parts) == {"value 1", "seed"}
    with code("aaaa"):
        assert fingerprint("local", seed=3) != plain
    assert fingerprint("local", seed=3) == plain


def test_a_finished_training_of_other_code_is_made_anew(tmp_path: Path, monkeypatch, caplog) -> None:
    """As it is when its job was killed while it wrote its outputs."""
    trainings = Counted(monkeypatch, fit, "_train")
    caplog.set_level(logging.INFO, "nuclass")
    with code("aaaa"):
        assert trainings.of(lambda: fit_example.run(tmp_path)) == 1
        assert trainings.of(lambda: fit_example.run(tmp_path)) == 0
    assert "training was finished before" in caplog.text
    with code("bbbb"):
        assert trainings.of(lambda: fit_example.run(tmp_path)) == 1
    assert CHANGED in caplog.text


def test_the_teachers_logits_of_other_code_are_computed_anew(study, trained, tmp_path: Path, monkeypatch) -> None:
    looks = Counted(monkeypatch, train, "teacher_logits")
    monkeypatch.setattr(train, "fit_and_write", lambda *_: None)

    def run() -> object:
        return train.train_global(MODELS, study, trained["local"], tmp_path / "out", tmp_path / "work", 1)

    with code("aaaa"):
        assert [looks.of(run), looks.of(run)] == [1, 0]
    with code("bbbb"):
        assert [looks.of(run), looks.of(run)] == [1, 0]
    assert [looks.of(run), looks.of(run)] == [1, 0]


def test_the_branches_outputs_of_other_code_are_computed_anew(study, trained, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(row_store, "SAVE_EVERY_S", -1.0)
    models = {**MODELS, "predict": {**MODELS["predict"], "batch_size": 40}}
    paths = (trained["local"], trained["global"], tmp_path / "out", tmp_path / "work")
    batches = Counted(monkeypatch, Branches, "forward")
    check(batches, lambda: train_gate(models, study, *paths, 1), 3, CHANGED, caplog)


def test_predictions_of_other_code_are_computed_anew(study, trained, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(row_store, "SAVE_EVERY_S", -1.0)
    models = {**MODELS, "predict": {**MODELS["predict"], "batch_size": 32}}
    single, outputs = one_slide(study, "lung_h"), {"local": tmp_path / "lung_h.parquet"}
    given = {"local": trained["local"]}
    batches = Counted(monkeypatch, Predictor, "_rows")
    check(batches, lambda: predict.predict_slide(models, single, given, outputs, tmp_path / "work"), 3, CHANGED, caplog)


def test_features_of_other_code_are_computed_anew(slide, tmp_path, monkeypatch, caplog) -> None:
    batches = Counted(monkeypatch, embedding._Pass, "_embed")
    # Of ten batches of 16 cells three make a part.
    check(batches, lambda: test_context.embed(slide, tmp_path, test_context.WIDE), 6, "other code", caplog)


def test_a_slide_of_ones_own_by_other_code_is_typed_anew(files, trained, tmp_path, monkeypatch, caplog) -> None:
    """Neither the features of its cells nor their rows may be those of the first code."""
    monkeypatch.setattr(row_store, "SAVE_EVERY_S", -1.0)
    caplog.set_level(logging.WARNING, "nuclass")
    batches = Counted(monkeypatch, Predictor, "_rows")
    embedded = []
    embed = holdout_cells._embed
    monkeypatch.setattr(holdout_cells, "_embed", lambda *args: embedded.append(1) or embed(*args))

    def run() -> object:
        return predict_own(files, trained["gate"], tmp_path)

    with code("aaaa"):
        assert batches.of(run, 2) == 2
        assert batches.of(run, 1) == 1, "it went on"
    assert "it is of other code" not in caplog.text
    assert embedded == [1]
    with code("bbbb"):
        assert batches.of(run) == 4
    assert embedded == [1, 1]
    assert "it is of other code" in caplog.text


@pytest.mark.parametrize("what", ["context", "local"])
def test_a_state_of_another_number_of_processes_is_another_run(study, tmp_path, monkeypatch, what):
    """With ``devices: auto`` the machine decides how many there are, and so what an epoch's batches are."""
    asked = []

    def noted(*_: object, identity: Any, **__: object) -> None:
        asked.append(identity)
        raise KilledError

    monkeypatch.setattr(fit, "fit", noted)
    trained_by = {"context": composition.pretrain_context, "local": train.train_local}[what]
    for processes in (1, 2, 2):
        place = launch.Place("cpu", processes, processes, 1, "us", [])
        monkeypatch.setattr(launch, "find_place", lambda *_, place=place: place)
        with pytest.raises(KilledError):
            trained_by(MODELS, study, tmp_path / "out", tmp_path / "work", 1)
    assert asked[0] != asked[1] == asked[2]
    assert why_another(asked[0].parts, asked[1]) == "it is of another run; processes: it was 1, it is 2"
