"""The original's flaws that concern the gate: what each changes, and that off changes nothing."""

from __future__ import annotations

import copy
from pathlib import Path

import pandas as pd
import pytest
import torch

from nuclass.core.errors import UserError
from nuclass.core.protocol import STAGES, Protocol
from nuclass.data.study import Study
from nuclass.models.gate import GateModel
from nuclass.training import gate_cells
from nuclass.training.checkpoint import load_checkpoint, restore_global
from nuclass.training.config import Gate, from_plain
from nuclass.training.context import embed_context
from nuclass.training.gate import train_gate
from nuclass.training.gate_module import GateModule
from nuclass.training.predict import Predictor
from toy_study import MODELS, one_slide, toy

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return toy(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    return toy(tmp_path_factory)[1]


@pytest.fixture
def train(study, trained, tmp_path):
    """Train a gate with switches on; returns its checkpoint."""

    def run(where: Study = study, views: int = 1, **switches: bool) -> dict:
        models = {**copy.deepcopy(MODELS), "protocol": switches}
        models["gate"]["views"] = views
        train_gate(models, where, trained["local"], trained["global"], tmp_path / "out", tmp_path / "work", 1)
        return load_checkpoint(tmp_path / "out" / "best.ckpt", "gate")

    return run


def cells(data: dict, key: str) -> set[tuple[str, str, str]]:
    return {(slide, split, i) for slide, parts in data[key].items() for split, ids in parts.items() for i in ids}


def same_state(one: dict, other: dict) -> bool:
    return all(torch.equal(one["state"][key], other["state"][key]) for key in one["state"])


@pytest.fixture(scope="module")
def corrected(trained) -> dict:
    return load_checkpoint(trained["gate"], "gate")


def test_switches_that_are_off_change_nothing(train, corrected):
    off = train(**dict.fromkeys(STAGES["gate"], False))
    assert same_state(off, corrected)
    assert off["protocol"] == corrected["protocol"] == {}
    assert off["temperature"] == corrected["temperature"]


def test_the_gate_learns_from_training_cells(train, corrected):
    found = train(gate_on_train=True)
    assert found["protocol"] == {"gate_on_train": True}
    assert cells(found, "fit_cells") == {cell for cell in cells(found, "cells") if cell[1] == "train"}
    assert cells(found, "select_cells") == {cell for cell in cells(found, "cells") if cell[1] == "val"}
    assert not cells(corrected, "fit_cells") & cells(found, "fit_cells")


def test_the_gate_is_chosen_by_the_first_cells_of_the_first_slide(
    train, trained, corrected, study, monkeypatch, caplog, tmp_path
):
    monkeypatch.setattr(gate_cells, "FIRST_CELLS", 30)
    found = train(gate_first_cells=True)
    chosen = cells(found, "select_cells")
    assert len(chosen) == 24  # whole batches of 12
    assert {slide for slide, _, _ in chosen} == {study.slides[0]["slide"]}
    assert cells(found, "fit_cells") == cells(corrected, "fit_cells")
    table = pd.read_parquet(study.results / "slides" / "lung_1" / "cells.parquet")["cell_id"].tolist()
    candidates = [i for slide, _, i in cells(corrected, "select_cells") if slide == "lung_1"]
    assert {i for _, _, i in chosen} == set(sorted(candidates, key=table.index)[:24])
    assert "The gate is chosen by 24 of" in caplog.text
    judged = [
        pd.read_csv(folder / "history.csv")["val_log_loss"] for folder in (tmp_path / "out", trained["gate"].parent)
    ]
    assert not judged[0].equals(judged[1])


def test_all_cells_count_where_there_are_fewer_but_for_a_broken_batch(train, corrected):
    found = train(gate_first_cells=True)
    n = len(cells(corrected, "select_cells"))
    assert len(cells(found, "select_cells")) == n - n % 12
    with pytest.raises(UserError, match="at least 12"):
        gate_cells.first_cells(pd.DataFrame({"slide": ["a"] * 11, "row": range(11)}))


def test_positives_weigh_by_each_micro_batch(train, corrected, monkeypatch):
    seen = []
    real = gate_cells.MICRO_BATCH
    from nuclass.training import gate_module

    def spied(target: torch.Tensor, n: int) -> torch.Tensor:
        weights = gate_losses_batch(target, n)
        seen.append((len(target), n, len(weights.unique())))
        return weights

    gate_losses_batch = gate_module.batch_pos_weight
    monkeypatch.setattr(gate_module, "batch_pos_weight", spied)
    found = train(batch_pos_weight=True)
    assert real == 12
    assert seen
    assert all(n == 12 and 1 < different <= -(-cells_ // 12) for cells_, n, different in seen if cells_ > 12)
    assert not same_state(found, corrected)


def gate_module_of(**switches: bool) -> GateModule:
    section = from_plain(Gate, MODELS["gate"], "there")
    return GateModule(
        GateModel(6, 5, project=4, hidden=(8,)), section, 1, pos_weight=1.0, protocol=Protocol(**switches)
    )


def test_decay_reaches_norms_and_biases():
    right, wrong = gate_module_of().configure_optimizers(), gate_module_of(decay_everywhere=True).configure_optimizers()
    decay = [group["weight_decay"] for group in right["optimizer"].param_groups]
    assert decay == [1e-5, 0.0]
    assert all(p.ndim == 2 for p in right["optimizer"].param_groups[0]["params"])
    assert all(p.ndim == 1 for p in right["optimizer"].param_groups[1]["params"])
    groups = wrong["optimizer"].param_groups
    assert [group["weight_decay"] for group in groups] == [1e-5]
    assert len(groups[0]["params"]) == len(list(gate_module_of().parameters()))


def test_test_cells_are_taken_for_val(train, study):
    found = train(views=0, test_as_val=True)  # views are cached of test cells only under this switch
    gate = cells(found, "fit_cells") | cells(found, "select_cells")
    splits = {slide: pd.read_parquet(study.results / "splits" / f"{slide}.parquet") for slide in ("lung_1", "colon_1")}
    of = {(slide, row.cell_id): row.split for slide, frame in splits.items() for row in frame.itertuples(index=False)}
    assert {of[slide, i] for slide, _, i in gate} == {"test"}


@pytest.fixture(scope="module")
def smaller(study, tmp_path_factory) -> Study:
    """The study with the gate's own, smaller context features."""
    models = {**copy.deepcopy(MODELS), "protocol": {"smaller_gate_context": True}}
    for slide in ("lung_1", "colon_1", "lung_h"):
        single = one_slide(study, slide)
        work = tmp_path_factory.mktemp(slide)
        embed_context(models, single, single.gate_features(slide), work, folder=study.results / "backbones" / "context")
    return study


def test_the_gate_sees_a_smaller_context(smaller, train, trained, corrected, tmp_path):
    found = train(smaller, smaller_gate_context=True)
    assert found["features"]["input_px"] == 24
    assert corrected["features"]["input_px"] == 32
    assert not same_state(found, corrected)
    frame_study = one_slide(smaller, "lung_h")
    paths = {**trained, "gate": tmp_path / "out" / "best.ckpt"}
    plain, small = (predict(MODELS, frame_study, checkpoints) for checkpoints in (trained, paths))
    for name in ("local", "global"):
        assert torch.equal(plain[name].probabilities, small[name].probabilities)
        assert torch.equal(plain[name].embeddings[0], small[name].embeddings[0])
    assert not torch.equal(plain["gate"].embeddings[1], small["gate"].embeddings[1])
    assert torch.equal(plain["gate"].embeddings[1], plain["global"].embeddings[0])


def test_the_gates_context_has_to_be_there_and_smaller(study, trained, tmp_path):
    models = {**copy.deepcopy(MODELS), "protocol": {"smaller_gate_context": True}}
    results = tmp_path / "results"
    results.mkdir()
    for name in ("slides", "labels", "splits"):
        (results / name).symlink_to(study.results / name)
    (results / "features").mkdir()
    (results / "features" / "context").symlink_to(study.results / "features" / "context")
    other = Study(study.slides, results, study.mpp, study.windows)
    work = (tmp_path / "out", tmp_path / "work")
    with pytest.raises(UserError, match=r"A feature file is missing[\s\S]*context_gate"):
        train_gate(models, other, trained["local"], trained["global"], *work, 1)
    (results / "features" / "context_gate").symlink_to(study.results / "features" / "context")
    with pytest.raises(UserError, match="no smaller than the global model's"):
        train_gate(models, other, trained["local"], trained["global"], *work, 1)


def predict(models: dict, study: Study, checkpoints: dict[str, Path]):
    from nuclass.data import load_cells
    from nuclass.data.training_cells import by_place

    frame = by_place(load_cells(study.slides, study.results, ("val", "test")))
    return Predictor(models, checkpoints).predict(frame, study)


def test_a_loaded_global_model_weighs_the_context_as_in_its_first_epoch(trained):
    data = load_checkpoint(trained["global"], "global")
    data["state"]["alpha"] = torch.tensor(1.0)
    assert float(restore_global(data).alpha) == 1.0
    data["protocol"] = {"alpha_reset": True}
    assert float(restore_global(data).alpha) == 0.25
    assert float(data["state"]["alpha"]) == 1.0
    data["config"]["alpha"]["start"] = 0.5
    assert float(restore_global(data).alpha) == 0.5
