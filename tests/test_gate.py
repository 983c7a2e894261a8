"""Training of the gate: which cells it learns from, what is kept and gone on with, what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from nuclass.core.errors import UserError
from nuclass.data import load_cells
from nuclass.data.modules import GateData
from nuclass.data.study import Study
from nuclass.models.gate import GateModel
from nuclass.models.gate_losses import gate_loss, gate_targets
from nuclass.training import row_store
from nuclass.training.branches import Branches, state_hash
from nuclass.training.checkpoint import load_checkpoint
from nuclass.training.config import Gate, Trainer, from_plain, parse_models
from nuclass.training.fit import fit
from nuclass.training.gate import auroc, positive_weight, select_blocks, train_gate
from nuclass.training.gate_cells import GateCells, shared_pixels
from nuclass.training.gate_module import MONITOR, GateModule
from nuclass.training.predict import Predictor, predict_slide
from toy_study import MODELS, one_slide, toy

torch.set_num_threads(1)
HASH = "faa3e1c0b376edf2"


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return toy(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    return toy(tmp_path_factory)[1]


def train(study: Study, trained: dict[str, Path], root: Path, models: dict | None = None, **branches: Path) -> dict:
    """Train a gate on the toy's branches, or on others; returns its checkpoint."""
    paths = {**trained, **branches}
    train_gate(models or MODELS, study, paths["local"], paths["global"], root / "out", root / "work", 1)
    return load_checkpoint(root / "out" / "best.ckpt", "gate")


def same_state(one: dict, other: dict) -> bool:
    assert one["state"].keys() == other["state"].keys()
    return all(torch.equal(one["state"][key], other["state"][key]) for key in one["state"])


class KilledError(Exception):
    """A stop at any moment."""


class Counted:
    """Count the cells that the branches see, and raise after some batches."""

    def __init__(self, monkeypatch, fail_after: int | None = None) -> None:
        self.cells, self.batches, self.fail_after = 0, 0, fail_after
        self.real = Branches.forward
        monkeypatch.setattr(Branches, "forward", lambda branches, *args: self.forward(branches, *args))

    def forward(self, branches: Branches, images: torch.Tensor, *rest: torch.Tensor):
        if self.batches == self.fail_after:
            raise KilledError
        self.batches += 1
        self.cells += len(images)
        return self.real(branches, images, *rest)


def test_the_gate_was_fitted_to_no_training_cell(trained):
    data = load_checkpoint(trained["gate"], "gate")
    for slide, cells in data["cells"].items():
        fitted = set(data["fit_cells"][slide]["val"])
        selected = set(data["select_cells"][slide]["val"])
        assert not fitted & set(cells["train"])
        assert not fitted & selected
        assert fitted | selected == set(cells["val"])


def test_a_gate_of_other_branches_is_refused(trained, study, tmp_path):
    data = torch.load(trained["local"], weights_only=True)
    data["state"]["head.4.bias"] += 1
    torch.save(data, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match="trained on another local model"):
        predict_slide(MODELS, one_slide(study, "lung_h"), {**trained, "local": tmp_path / "best.ckpt"}, {})


def test_features_of_another_backbone_are_refused(trained, study, tmp_path):
    data = torch.load(trained["global"], weights_only=True)
    data["features"]["sha256"] = "other"
    torch.save(data, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match="do not fit the global model"):
        train_gate(MODELS, study, trained["local"], tmp_path / "best.ckpt", tmp_path / "o", tmp_path / "w", 1)


def test_blocks_are_cut_by_place_and_by_slide():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"slide": np.repeat(["a", "b"], 500), "x_px": rng.uniform(0, 1000, 1000)})
    frame["y_px"] = rng.uniform(0, 1000, 1000)
    chosen = select_blocks(frame, 0.3, 100, 7)
    for slide in "ab":
        assert 0.25 < chosen[frame["slide"] == slide].mean() < 0.4
    block = frame["slide"] + (frame["x_px"] // 100).astype(str) + (frame["y_px"] // 100).astype(str)
    assert (pd.Series(chosen).groupby(block.to_numpy()).nunique() == 1).all()
    assert np.array_equal(chosen, select_blocks(frame, 0.3, 100, 7))
    assert not np.array_equal(chosen, select_blocks(frame, 0.3, 100, 8))
    with pytest.raises(UserError, match="cannot be cut"):
        select_blocks(frame, 0.3, 10_000, 7)


def test_cells_that_share_pixels_with_those_they_are_judged_against_are_counted() -> None:
    def cells(*rows: tuple[str, float, float]) -> pd.DataFrame:
        return pd.DataFrame(rows, columns=["slide", "x_px", "y_px"])

    fitting = cells(("a", 0, 0), ("a", 500, 0), ("b", 100, 100))
    # A window's side away in x or in y shares nothing; another slide's cell counts not at all.
    selecting = cells(("a", 31.5, 31.5), ("a", 32, 0), ("a", 0, -127), ("a", 100, 200), ("c", 0, 0))
    assert shared_pixels(GateCells(fitting, selecting), {"local": 32, "global": 128}) == {"local": 0.2, "global": 0.6}


def test_auroc_by_hand():
    assert auroc(torch.tensor([0.9, 0.5]), torch.tensor([0.5, 0.1])) == pytest.approx(3.5 / 4)
    assert auroc(torch.tensor([]), torch.tensor([0.1])) is None


def test_the_same_seed_gives_the_same_gate(study, trained, tmp_path):
    again = train(study, trained, tmp_path)
    assert same_state(again, load_checkpoint(trained["gate"], "gate"))
    assert again["temperature"] == load_checkpoint(trained["gate"], "gate")["temperature"]
    assert {path.suffix for path in (tmp_path / "work").rglob("*") if path.is_file()} <= {".csv"}


def test_a_killed_gate_does_not_run_the_branches_again(study, trained, tmp_path, monkeypatch):
    original = GateModule.on_validation_epoch_end

    def killed(module: GateModule) -> None:
        original(module)
        if module.current_epoch == 3:
            raise KilledError

    counted = Counted(monkeypatch)
    monkeypatch.setattr(GateModule, "on_validation_epoch_end", killed)
    with pytest.raises(KilledError):
        train(study, trained, tmp_path)
    data = load_checkpoint(trained["gate"], "gate")
    n_fit, n_select = (
        sum(len(ids) for by_split in data[key].values() for ids in by_split.values())
        for key in ("fit_cells", "select_cells")
    )
    # plain and one augmented copy of the cells to fit, the cells to select once
    assert counted.cells == 2 * n_fit + n_select
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(GateModule, "on_validation_epoch_end", original)
    resumed = train(study, trained, tmp_path)
    assert counted.cells == 2 * n_fit + n_select
    assert same_state(resumed, data)
    assert len(pd.read_csv(tmp_path / "out" / "history.csv")) == len(
        pd.read_csv(trained["gate"].parent / "history.csv")
    )


def test_a_gate_killed_between_batches_gives_the_same(study, trained, tmp_path, monkeypatch):
    """Dropout is drawn by seed, epoch and batch: whatever random state a new process begins with, it is the same."""
    torch.manual_seed(123)
    original = GateModule.training_step

    def killed(module: GateModule, batch: dict, batch_idx: int) -> torch.Tensor:
        if module.current_epoch == 2 and batch_idx == 1:
            raise KilledError
        return original(module, batch, batch_idx)

    monkeypatch.setattr(GateModule, "training_step", killed)
    with pytest.raises(KilledError):
        train(study, trained, tmp_path)
    monkeypatch.setattr(GateModule, "training_step", original)
    torch.manual_seed(321)
    assert same_state(train(study, trained, tmp_path), load_checkpoint(trained["gate"], "gate"))


@pytest.mark.parametrize("after", [1, 3])
def test_a_pass_of_the_branches_goes_on_where_it_was_killed(study, trained, tmp_path, monkeypatch, after):
    monkeypatch.setattr(row_store, "SAVE_EVERY_S", -1.0)
    small = copy.deepcopy(MODELS)
    small["predict"]["batch_size"] = 40
    straight = train(study, trained, tmp_path / "straight", small)
    counted = Counted(monkeypatch)
    train(study, trained, tmp_path / "counted", small)
    total = counted.batches
    counted.batches, counted.fail_after = 0, after
    with pytest.raises(KilledError):
        train(study, trained, tmp_path / "killed", small)
    assert 0 < after < total
    counted.batches, counted.fail_after = 0, None
    assert same_state(train(study, trained, tmp_path / "killed", small), straight)
    assert counted.batches == total - after


def changed(**sections: dict) -> dict:
    models = copy.deepcopy(MODELS)
    for section, values in sections.items():
        models[section.rstrip("_")] |= values
    return models


OTHERS = {
    "no view": changed(gate={"views": 0}),
    "two views": changed(gate={"views": 2}),
    "augmentation": changed(global_={"augment": {**MODELS["global"]["augment"], "blur": 0.3}}),
    "batches": changed(predict={"batch_size": 40}),
    "more kept": changed(gate={"joint": {"max_epochs": 1}}),
    "other cells": changed(gate={"select": 0.6}),
}


def test_kept_outputs_of_other_settings_are_not_taken(study, trained, tmp_path, monkeypatch):
    counted = Counted(monkeypatch)
    monkeypatch.setattr("nuclass.training.gate._fit_gate", lambda *_: 1 / 0)

    def seen(models: dict) -> int:
        counted.cells = 0
        with pytest.raises(ZeroDivisionError):
            train(study, trained, tmp_path, models)
        return counted.cells

    whole = seen(MODELS)
    assert whole > 0
    for name, other in OTHERS.items():
        assert seen(MODELS) == (0 if name == "no view" else whole), name
        assert seen(MODELS) == 0, name
        assert seen(changed(gate={"trainer": {"max_epochs": 2}})) == 0, name
        assert seen(other) > 0, name


def test_the_loss_gets_what_belongs_to_it():
    torch.manual_seed(0)
    section = from_plain(Gate, MODELS["gate"], "there")
    module = GateModule(GateModel(6, 5, project=4, hidden=(8,)), section, 1, pos_weight=2.5).eval()
    p_a, p_b = torch.softmax(2 * torch.randn(2, 40, 3), 2)
    batch = {"features_a": torch.randn(40, 6).half(), "features_b": torch.randn(40, 5).half(), "p_a": p_a, "p_b": p_b}
    batch["label"] = torch.randint(0, 3, (40,))
    targets = gate_targets(p_a, p_b, batch["label"])
    logits = module.model(batch["features_a"].float(), batch["features_b"].float(), p_a, p_b)
    by_hand = gate_loss(logits, p_a, p_b, batch["label"], targets, pos_weight=2.5)
    assert torch.equal(module.loss(batch), by_hand.total)
    g = torch.sigmoid(logits)[:, None]
    assert torch.allclose(module.mixture(batch).log_p.exp(), (1 - g) * p_a + g * p_b, atol=1e-6)


def test_the_loss_is_that_of_the_settings():
    torch.manual_seed(0)
    aims = {"soft_k": 4.0, "conflict_boost": 3.0, "delta_scale": 2.0, "delta_gamma": 1.5}
    factors = {"mix_weight": 0.3, "bce_weight": 0.7, "align_weight": 1.3, "entropy_weight": 0.9}
    section = from_plain(Gate, {**MODELS["gate"], "loss": {**aims, **factors}}, "there")
    module = GateModule(GateModel(6, 5, project=4, hidden=(8,)), section, 1, pos_weight=1.0).eval()
    p_a, p_b = torch.softmax(2 * torch.randn(2, 40, 3), 2)
    batch = {"features_a": torch.randn(40, 6), "features_b": torch.randn(40, 5), "p_a": p_a, "p_b": p_b}
    batch["label"] = torch.randint(0, 3, (40,))
    targets = gate_targets(p_a, p_b, batch["label"], **aims)
    logits = module.model(batch["features_a"], batch["features_b"], p_a, p_b)
    assert torch.equal(module.loss(batch), gate_loss(logits, p_a, p_b, batch["label"], targets, **factors).total)
    mean = float(targets.target.mean())
    assert positive_weight(section, batch) == pytest.approx((1 - mean) / mean)
    given = from_plain(Gate, {**MODELS["gate"], "loss": {"pos_weight": 3.0}}, "there")
    assert positive_weight(given, batch) == 3.0


def test_a_gate_learns_which_model_to_trust(tmp_path):
    """One feature tells which of two models, each right half of the time, is right here."""
    rng = torch.Generator().manual_seed(0)

    def part(n: int) -> dict[str, torch.Tensor]:
        label, first = torch.randint(0, 3, (n,), generator=rng), torch.rand(n, generator=rng) < 0.5
        wrong = (label + 1) % 3
        p = {name: 0.1 + 0.7 * torch.nn.functional.one_hot(torch.where(right, label, wrong), 3).float()
             for name, right in (("p_a", first), ("p_b", ~first))}  # fmt: skip
        hint = 0.3 * torch.randn(n, 4, generator=rng)
        hint[:, 0] += torch.where(first, 1.0, -1.0)  # a shift of all four would be normalised away
        return {**p, "features_a": hint.half(), "features_b": torch.randn(n, 4, generator=rng).half(), "label": label}

    section = from_plain(Gate, {"optimizer": {"lr": 1e-2, "warmup_steps": 2}, "model": {"project": 4}}, "there")
    module = GateModule(GateModel(4, 4, project=4), section, 1, pos_weight=1.0)
    data = GateData(part(1500), part(500), batch_size=100, seed=1)
    run = Trainer(max_epochs=5, patience=5, batch_size=100, precision="32-true", accelerator="cpu")
    fit(module, data, run, work=tmp_path, identity="x", description="gate", monitor=MONITOR, mode="min")
    test = part(1000)
    fused = module.mixtures(test)
    right_b = test["p_b"].argmax(1) == test["label"]
    assert auroc(fused.g[right_b], fused.g[~right_b]) > 0.95
    assert float((fused.log_p.argmax(1) == test["label"]).float().mean()) > 0.9


def test_features_kept_in_half_precision_move_the_gate_by_less_than_a_thousandth():
    """At the paper's sizes, for features of any usual scale: the gate normalises them before anything else."""
    torch.manual_seed(0)
    gate = GateModel(1536, 1024).eval()
    p = torch.softmax(3 * torch.randn(2, 500, 16), 2)
    for scale in (0.01, 1.0, 100.0):
        a, b = scale * (torch.randn(500, 1536) + 0.3), scale * torch.randn(500, 1024)
        with torch.no_grad():
            full, half = gate(a, b, *p).sigmoid(), gate(a.half().float(), b.half().float(), *p).sigmoid()
        assert float((full - half).abs().max()) < 1e-3


def test_a_cell_that_a_model_was_fitted_to_is_refused(study, trained, tmp_path):
    for name in ("local", "global"):
        data = torch.load(trained[name], weights_only=True)
        fitted = load_checkpoint(trained["gate"], "gate")["fit_cells"]["colon_1"]["val"]
        data["cells"]["colon_1"]["train"] += fitted[:2]
        torch.save(data, tmp_path / f"{name}.ckpt")
        with pytest.raises(UserError) as caught:
            train(study, trained, tmp_path / name, **{name: tmp_path / f"{name}.ckpt"})
        text = str(caught.value)
        assert f"The gate would learn from cells that the {name} model was fitted to" in text
        assert "slide colon_1" in text
        assert f"2 of {len(fitted)} cells, the first: {min(fitted[:2])}" in text


@pytest.mark.parametrize(("key", "flaw"), [("select_cells", {}), ("cells", {"gate_on_train": True})])
def test_nor_is_the_gate_chosen_by_such_a_cell(study, trained, tmp_path, key, flaw):
    data = torch.load(trained["local"], weights_only=True)
    chosen = load_checkpoint(trained["gate"], "gate")[key]["lung_1"]["val"]
    data["cells"]["lung_1"]["train"] += chosen[:1]
    torch.save(data, tmp_path / "local.ckpt")
    with pytest.raises(UserError, match="would be chosen by cells that the local model was fitted to"):
        train(study, trained, tmp_path, {**MODELS, "protocol": flaw}, local=tmp_path / "local.ckpt")


def test_several_processes_are_refused_before_they_write(study, trained, tmp_path, monkeypatch):
    names = {"TORCHELASTIC_RUN_ID": "1", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"trains in one process[\s\S]*torchrun[\s\S]*2 processes"):
        train(study, trained, tmp_path)
    assert not list(tmp_path.iterdir())


def test_branches_of_other_classes_are_refused_by_name(study, trained, tmp_path):
    data = torch.load(trained["global"], weights_only=True)
    data["classes"] = ["B_Cell", "Fibroblast", "Mast_Cell"]
    torch.save(data, tmp_path / "global.ckpt")
    with pytest.raises(UserError) as caught:
        train(study, trained, tmp_path, **{"global": tmp_path / "global.ckpt"})
    text = str(caught.value)
    assert "The local and the global model differ in their classes" in text
    assert "3 classes: also Mast_Cell; not T_Cell" in text
    assert "B_Cell, Fibroblast, T_Cell" in text


def test_calibration_of_all_three_models_is_stored(trained):
    for name, path in trained.items():
        found = json.loads((path.parent / "calibration.json").read_text())
        assert found["temperature"] == load_checkpoint(path, name)["temperature"]
        assert found["log_loss_after"] <= found["log_loss_before"] + 1e-9
        assert {"ece_before", "ece_after"} <= found.keys()
    gate, metrics = (json.loads((trained["gate"].parent / f"{x}.json").read_text()) for x in ("calibration", "metrics"))
    assert gate["n"] == metrics["n_select"]
    assert gate["log_loss_before"] == pytest.approx(metrics["select"]["mixture"]["log_loss"], abs=1e-6)


def test_the_gate_is_used_as_it_was_trained(study, trained):
    """Predictions of the selecting cells are those that training judged it by, calibrated by the same temperatures."""
    data = load_checkpoint(trained["gate"], "gate")
    branches = [load_checkpoint(trained[name], name)["temperature"] for name in ("local", "global")]
    assert max(abs(np.log(branches))) > 0.1
    frame = load_cells(study.slides, study.results, ("val",))
    chosen = [cell in data["select_cells"][slide]["val"] for slide, cell in zip(frame["slide"], frame["cell_id"],
                                                                                strict=True)]  # fmt: skip
    frame = frame[chosen].reset_index(drop=True)
    found = Predictor(MODELS, trained).predict(frame, study)
    labels = torch.tensor([data["classes"].index(name) for name in frame["class"]])
    judged = json.loads((trained["gate"].parent / "metrics.json").read_text())["select"]
    assert judged["mixture"]["n"] == len(frame)
    for name, log_p in (
        ("local", found["local"].probabilities.log()),
        ("global", found["global"].probabilities.log()),
        ("mixture", found["gate"].logits),
    ):
        expected = float(torch.nn.functional.nll_loss(log_p, labels))
        assert judged[name]["log_loss"] == pytest.approx(expected, abs=2e-4), name
    assert judged["gate_mean"] == pytest.approx(float(found["gate"].gate.mean()), abs=1e-3)


def test_the_hash_of_weights_stays_what_it_was():
    """Gates name their parents by it: another way of hashing would make all of them strangers."""
    net = torch.nn.Linear(3, 2)
    with torch.no_grad():
        net.weight.copy_(torch.arange(6.0).view(2, 3))
        net.bias.copy_(torch.tensor([0.5, -0.5]))
    assert state_hash(net) == HASH
    assert state_hash(copy.deepcopy(net)) == HASH
    net.bias.data[0] += 1e-6
    assert state_hash(net) != HASH


def test_auroc_of_many_cells_needs_no_table_of_pairs():
    torch.manual_seed(0)
    positive, negative = torch.rand(300_000).round(decimals=3), torch.rand(300_000).round(decimals=3) ** 2
    few_p, few_n = positive[:500], negative[:400]
    difference = few_p[:, None] - few_n[None, :]
    by_pairs = (difference > 0).double().mean() + 0.5 * (difference == 0).double().mean()
    assert auroc(few_p, few_n) == pytest.approx(float(by_pairs), abs=1e-12)
    assert auroc(positive, negative) == pytest.approx(2 / 3, abs=0.01)


def test_the_toys_settings_leave_joint_fine_tuning_and_flaws_off():
    """What the tests above show holds for the default."""
    settings = parse_models(MODELS)
    assert settings.gate.joint.max_epochs == 0
    assert not any(vars(settings.protocol).values())
