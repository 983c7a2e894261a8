"""When networks are compiled, what is said where that fails, and that nothing else changes by it."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from fit_example import PLAIN, TinyModule, run
from nuclass.core.errors import UserError
from nuclass.training import compiling, train
from nuclass.training.compiling import LARGE, MANY, compiles, failures_told, filled, is_compiled
from nuclass.training.context import embed_context
from nuclass.training.predict import predict_slide
from nuclass.training.predictor import Predictor
from toy_study import MODELS, one_slide, toy

GPU, CPU = torch.device("cuda"), torch.device("cpu")


class Sized(torch.nn.Module):
    """Counts as a network of so many parameters."""

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(parameters, device="meta"))


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "why_not", lambda _: "")
    monkeypatch.setattr(compiling, "run_uncompiled_if_need_be", lambda: None)


@pytest.mark.parametrize(
    ("wanted", "device", "parameters", "cells", "expected"),
    [
        ("auto", GPU, LARGE, MANY, True),
        ("auto", GPU, LARGE - 1, MANY, False),
        ("auto", GPU, LARGE, MANY - 1, False),
        ("auto", CPU, LARGE, MANY, False),
        (True, CPU, 1, 1, True),
        (False, GPU, LARGE, MANY, False),
    ],
)
def test_auto_compiles_what_is_worth_it(
    works: None, wanted: Any, device: torch.device, parameters: int, cells: int, expected: bool
) -> None:
    assert compiles(wanted, device, Sized(parameters), cells) is expected


def test_where_it_does_not_work_auto_warns_and_true_is_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiling, "why_not", lambda _: "Failed to find C compiler")
    assert not compiles("auto", GPU, Sized(LARGE), MANY)
    assert "networks are not compiled, which makes them a third slower or more: Failed to find C" in caplog.text
    with pytest.raises(UserError) as caught:
        compiles(True, CPU, Sized(1), 1)
    assert str(caught.value).startswith("Networks cannot be compiled here\n  where:      compile: true\n  found:")
    assert "module load gcc" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("\nFailed to find C compiler. Please specify via CC.\nmore\n"), "Failed to find C compiler."),
        (KeyError("getpwuid(): uid not found: 4711"), "'getpwuid(): uid not found: 4711'"),
        (ImportError(), "ImportError"),
    ],
)
def test_the_trial_tells_why_in_a_line(monkeypatch: pytest.MonkeyPatch, error: Exception, told: str) -> None:
    def broken(function: Any) -> Any:
        raise error

    compiling.why_not.cache_clear()
    monkeypatch.setattr(torch, "compile", broken)
    try:
        found = compiling.why_not("cpu")
        assert found.startswith(told)
        assert "\n" not in found
    finally:
        compiling.why_not.cache_clear()


def test_a_network_that_cannot_be_compiled_is_the_users_error() -> None:
    from torch._dynamo.exc import Unsupported

    with pytest.raises(UserError, match="The network cannot be compiled") as caught, failures_told("local model"):
        raise Unsupported("no such operation\nand much more")
    assert (caught.value.where, caught.value.found) == ("local model", "no such operation")
    with pytest.raises(RuntimeError, match="other"), failures_told("local model"):
        raise RuntimeError("other")


def test_an_operation_that_cannot_repeat_itself_is_the_users_error(tmp_path: Path) -> None:
    class Random(TinyModule):
        def loss(self, batch: Any, images: Any, generator: Any) -> Any:
            raise RuntimeError("x_cuda does not have a deterministic implementation, but you set 'torch.use_")

    with pytest.raises(UserError, match="gives other bits each time on this device") as caught:
        run(tmp_path, dataclasses.replace(PLAIN, deterministic=True), Random())
    assert caught.value.found == "x_cuda does not have a deterministic implementation"


def test_a_short_batch_is_filled_up_with_its_last_row() -> None:
    assert filled(3, 5).tolist() == [0, 1, 2, 2, 2]
    assert filled(2, 2).tolist() == [0, 1]


class Compiled:
    """Stands for a compiled function: records the shapes that it is called with."""

    shapes: list[int]

    def __init__(self, function: Any, **_: Any) -> None:
        self.function = function

    def __call__(self, x: torch.Tensor, *rest: Any, **named: Any) -> Any:
        self.shapes.append(len(x))
        return self.function(x, *rest, **named)


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch, works: None) -> list[int]:
    found: list[int] = []
    monkeypatch.setattr(torch, "compile", type("Compiled", (Compiled,), {"shapes": found}))
    return found


def test_features_by_a_compiled_network_are_the_same_and_see_one_shape(
    shapes: list[int], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from nuclass.data.features import read_features

    study, _ = toy(tmp_path_factory)
    cells = pd.read_parquet(study.results / "slides" / "liver_h" / "cells.parquet")["cell_id"].to_numpy()
    found = []
    for wanted in (False, True):
        models = copy.deepcopy(MODELS)
        models["context"] |= {"compile": wanted, "batch_size": 48}
        folder, out = study.results / "backbones" / "context", tmp_path / f"{wanted}.h5"
        embed_context(models, one_slide(study, "liver_h"), out, tmp_path / "work", folder=folder, seed=1)
        found.append(read_features(out, cells))
    assert set(shapes) == {48}
    assert len(shapes) == 5, "220 cells in batches of 48"
    assert np.array_equal(*found)


def test_predictions_by_compiled_networks_are_the_same_and_see_one_shape(
    shapes: list[int], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    study, trained = toy(tmp_path_factory)
    tables = []
    for wanted in (False, True):
        models = copy.deepcopy(MODELS)
        models["predict"] |= {"compile": wanted}
        paths = {name: tmp_path / str(wanted) / f"{name}.parquet" for name in trained}
        predict_slide(models, one_slide(study, "lung_h"), trained, paths)
        tables.append({name: pd.read_parquet(path) for name, path in paths.items()})
    assert set(shapes) == {64}
    for name in trained:
        pd.testing.assert_frame_equal(tables[0][name], tables[1][name])


def test_a_pass_by_compiled_networks_is_another_one(
    shapes: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Their sums may differ in the last bits, so neither goes on where the other stopped."""
    from nuclass.data import load_cells

    study, trained = toy(tmp_path_factory)
    single = one_slide(study, "lung_h")
    frame = load_cells(single.slides, single.results, ("test",))
    identities = set()
    for wanted in (False, True):
        predictor = Predictor({"predict": MODELS["predict"] | {"compile": wanted}}, trained)
        identities.add(str(predictor.identity(frame, single)))
        assert predictor.local is not None
        assert is_compiled(predictor.local.backbone) is wanted
    assert len(identities) == 2


@pytest.mark.parametrize(("environ", "expected"), [({}, "cuda:0"), ({"LOCAL_RANK": "3"}, "cuda:3")])
def test_each_process_of_a_run_tries_its_own_gpu(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], expected: str
) -> None:
    started = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "4", "RANK": "3"} if environ else {}
    for name, value in {**started, **environ}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    tried: list[str] = []
    monkeypatch.setattr(train, "compiles", lambda _, device, *__: tried.append(str(device)))
    train.speed_up(TinyModule().model, dataclasses.replace(PLAIN, accelerator="auto"), 10)
    assert tried == [expected]
