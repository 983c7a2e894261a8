"""Joint fine-tuning: heads that really learn, the fifth term, what is kept, and models that stay as they are."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from nuclass.core.protocol import Protocol
from nuclass.data import load_cells
from nuclass.data.study import Study
from nuclass.data.training_cells import by_place
from nuclass.models.backbones import build_backbone
from nuclass.models.gate import FusedModel, GateModel
from nuclass.models.global_ import GlobalModel
from nuclass.models.local import LocalModel
from nuclass.training import joint
from nuclass.training.checkpoint import load_checkpoint, restore_gate, restore_global, restore_local
from nuclass.training.config import Gate, from_plain
from nuclass.training.gate import train_gate
from nuclass.training.gate_module import GateModule
from nuclass.training.joint import GATE_ALONE, JOINT, REFITTED, JointModule, choose
from nuclass.training.predict import Prediction, Predictor
from toy_study import MODELS, one_slide, toy

torch.set_num_threads(1)
PROJECTIONS = ("local_projection", "context_projection")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return toy(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    return toy(tmp_path_factory)[1]


def settings(max_epochs: int = 3, lr_heads: float = 1e-3, aux_weight: float = 0.05, **protocol: bool) -> dict:
    models = copy.deepcopy(MODELS)
    models["gate"]["joint"] = {"max_epochs": max_epochs, "lr_heads": lr_heads, "lr_gate": 1e-3}
    models["gate"]["loss"] = {"aux_weight": aux_weight}
    models["protocol"] = protocol
    return models


def train(models: dict, study: Study, trained: dict[str, Path], root: Path) -> dict:
    """Train a gate; returns its metrics."""
    return train_gate(models, study, trained["local"], trained["global"], root / "out", root / "work", 1)


@pytest.fixture(scope="module")
def kept(study, trained, tmp_path_factory):
    """A gate with heads of its own: the selecting part is made to keep them; returns its folder and metrics."""
    root = tmp_path_factory.mktemp("joint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint, "fit_temperature", lambda *_: 1.5)
        patch.setattr(joint, "min", lambda losses, key: JOINT, raising=False)
        metrics = train(settings(), study, trained, root)
    return root / "out", metrics


def predict(study: Study, checkpoints: dict[str, Path]) -> dict[str, Prediction]:
    frame = by_place(load_cells(study.slides, study.results, ("val", "test")))
    return Predictor(MODELS, checkpoints).predict(frame, study)


def test_the_heads_learn_and_the_models_do_not(kept, trained):
    fused = restore_gate(load_checkpoint(kept[0] / "best.ckpt", "gate"))
    local = restore_local(load_checkpoint(trained["local"], "local"))
    wide = restore_global(load_checkpoint(trained["global"], "global"))
    assert isinstance(fused, FusedModel)
    pairs = [(fused.heads_a["head"], local.head), (fused.heads_b["head"], wide.head)]
    pairs += [(fused.heads_b[name], getattr(wide, name)) for name in PROJECTIONS]
    for own, theirs in pairs:
        for (name, now), before in zip(own.named_parameters(), theirs.parameters(), strict=True):
            assert not torch.equal(now, before), name
            assert torch.allclose(now, before, atol=0.1), name
    assert torch.equal(fused.alpha, wide.alpha)


def test_a_gate_with_heads_says_so(kept, trained):
    folder, metrics = kept
    data, plain = load_checkpoint(folder / "best.ckpt", "gate"), load_checkpoint(trained["gate"], "gate")
    assert {key.split(".")[0] for key in data["state"]} - {key.split(".")[0] for key in plain["state"]} == {
        "heads_a", "heads_b", "alpha",
    }  # fmt: skip
    assert plain["heads"] is None
    assert metrics["joint"]["state"] == JOINT
    assert set(metrics["joint"]["log_loss"]) == {GATE_ALONE, JOINT, REFITTED}
    history = pd.read_csv(folder / "history.csv")
    assert history["phase"].tolist() == ["gate"] * 8 + ["joint"] * 3
    assert metrics["best"]["phase"] == "joint"
    assert json.loads((folder / "metrics.json").read_text())["joint"] == metrics["joint"]


def test_local_and_global_predictions_stay_to_the_last_bit(kept, trained, study):
    single = one_slide(study, "lung_h")
    before, after = predict(single, trained), predict(single, {**trained, "gate": kept[0] / "best.ckpt"})
    for name in ("local", "global"):
        for field in ("probabilities", "logits"):
            assert torch.equal(getattr(before[name], field), getattr(after[name], field))
        assert torch.equal(before[name].embeddings[0], after[name].embeddings[0])
    assert not torch.allclose(before["gate"].logits, after["gate"].logits, atol=1e-3)
    assert torch.equal(after["gate"].embeddings[0], before["local"].embeddings[0])
    assert not torch.equal(after["gate"].embeddings[1], before["gate"].embeddings[1])


def test_predictions_are_those_of_the_checkpoints_own_heads(kept, trained, study, tmp_path):
    single = one_slide(study, "lung_h")
    first = predict(single, {**trained, "gate": kept[0] / "best.ckpt"})["gate"]
    for key, changes in (("heads_a.head.4.bias", True), ("heads_b.context_projection.1.weight", True), ("alpha", True)):
        data = torch.load(kept[0] / "best.ckpt", weights_only=True)
        data["state"][key] = data["state"][key] + 0.5
        torch.save(data, tmp_path / "best.ckpt")
        other = predict(single, {**trained, "gate": tmp_path / "best.ckpt"})["gate"]
        assert changes == (not torch.equal(first.probabilities, other.probabilities)), key
    data = torch.load(kept[0] / "best.ckpt", weights_only=True)
    data["temperatures"]["global"] *= 3
    torch.save(data, tmp_path / "best.ckpt")
    other = predict(single, {**trained, "gate": tmp_path / "best.ckpt"})["gate"]
    assert not torch.equal(first.probabilities, other.probabilities)


def test_untrained_heads_of_its_own_predict_what_the_gate_alone_does(trained, study, tmp_path):
    """From the same weights both ways lead to the same numbers, but for the order of sums."""
    data, section = load_checkpoint(trained["gate"], "gate"), from_plain(Gate, MODELS["gate"], "there")
    gate = restore_gate(data)
    local = restore_local(load_checkpoint(trained["local"], "local"))
    wide = restore_global(load_checkpoint(trained["global"], "global"))
    net = section.model
    options = {"project": net.project, "hidden": net.hidden, "dropout": net.dropout}
    fused = FusedModel.from_models(gate, local, wide, **options)
    payload = {key: value for key, value in data.items() if key != "state"}
    torch.save(
        {**payload, "heads": fused.sizes.to_dict(), "state": fused.state_dict()},
        tmp_path / "best.ckpt",
    )
    single = one_slide(study, "lung_h")
    alone, with_heads = predict(single, trained), predict(single, {**trained, "gate": tmp_path / "best.ckpt"})
    assert torch.allclose(alone["gate"].logits, with_heads["gate"].logits, atol=1e-4)
    assert torch.allclose(alone["gate"].gate, with_heads["gate"].gate, atol=1e-5)


def test_the_fifth_term_acts(study, trained, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(joint, "min", lambda losses, key: JOINT, raising=False)
    train(settings(aux_weight=5.0), study, trained, tmp_path)
    strong, weak = (load_checkpoint(f / "best.ckpt", "gate")["state"] for f in (tmp_path / "out", kept[0]))
    assert not torch.equal(strong["heads_a.head.4.weight"], weak["heads_a.head.4.weight"])


def toy_module(**protocol: bool) -> tuple[JointModule, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    backbone = {"name": "timm:test_resnet", "input_px": 64}
    local = LocalModel(build_backbone(backbone), n_organs=2, n_classes=3, organ_dim=4, hidden=8)
    wide = GlobalModel(build_backbone(backbone), context_dim=5, n_classes=3, project=6, hidden=8)
    dim = local.backbone.feature_dim
    options = {"project": 4, "hidden": (8,), "dropout": 0.1}
    fused = FusedModel.from_models(GateModel(dim, 12, **options), local, wide, **options)
    section = from_plain(Gate, {**MODELS["gate"], "joint": {"max_epochs": 1}}, "there")
    module = JointModule(fused, section, 1, temperatures=(1.5, 0.7), pos_weight=1.0, protocol=Protocol(**protocol))
    batch = {
        "features_a": torch.randn(64, dim).half(),
        "local_b": torch.randn(64, dim).half(),
        "context": torch.randn(64, 5).half(),
        "label": torch.randint(0, 3, (64,)),
    }
    return module, batch


def test_the_fifth_term_is_that_of_the_uncalibrated_heads():
    module, batch = toy_module()
    module.eval()
    out = module.outputs(batch)
    features = [batch[name].float() for name in ("features_a", "local_b", "context")]
    _, z_a, z_b = module.model.branches(*features)
    assert torch.equal(out.p_a, (z_a / 1.5).softmax(1))
    assert torch.equal(out.p_b, (z_b / 0.7).softmax(1))
    assert torch.equal(out.branch_logits[0], z_a)
    assert torch.equal(out.branch_logits[1], z_b)


def test_every_head_gets_a_gradient_and_lies_in_the_optimizer():
    module, batch = toy_module()
    module.train().loss(batch).backward()
    held = {id(p): group for group in module.configure_optimizers().param_groups for p in group["params"]}
    for name, parameter in module.model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name
        joint_settings = module.settings.joint
        rate = joint_settings.lr_heads if name.startswith("heads_") else joint_settings.lr_gate
        assert held[id(parameter)]["lr"] == rate
        assert held[id(parameter)]["weight_decay"] == (joint_settings.weight_decay if parameter.ndim == 2 else 0)


def test_frozen_heads_only_add_noise():
    module, batch = toy_module(frozen_heads=True)
    held = {id(p) for group in module.configure_optimizers().param_groups for p in group["params"]}
    named = dict(module.model.named_parameters())
    assert held == {id(p) for name, p in named.items() if not name.startswith("heads_")}
    module.train()
    first, second = module.outputs(batch), module.outputs(batch)
    assert first.branch_logits is None
    assert not torch.equal(first.p_a, second.p_a)
    module.eval()
    assert torch.equal(module.outputs(batch).p_a, module.outputs(batch).p_a)
    module.train().loss(batch).backward()
    assert all(p.grad is None for name, p in named.items() if name.startswith("heads_"))


def test_the_flaw_leaves_the_heads_as_they_were(study, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(joint, "min", lambda losses, key: JOINT, raising=False)
    train(settings(frozen_heads=True), study, trained, tmp_path)
    data = load_checkpoint(tmp_path / "out" / "best.ckpt", "gate")
    local = load_checkpoint(trained["local"], "local")["state"]
    wide = load_checkpoint(trained["global"], "global")["state"]
    assert data["protocol"] == {"frozen_heads": True}
    for key, value in data["state"].items():
        part, _, rest = key.partition(".")
        if part in ("heads_a", "heads_b"):
            assert torch.equal(value, (local if part == "heads_a" else wide)[rest]), key
    gate = load_checkpoint(trained["gate"], "gate")["state"]
    assert not torch.equal(data["state"]["mlp.0.weight"], gate["mlp.0.weight"])


def test_the_flaw_without_joint_fine_tuning_is_told_to_do_nothing(study, trained, tmp_path, caplog):
    train(settings(max_epochs=0, frozen_heads=True), study, trained, tmp_path)
    assert "protocol.frozen_heads changes nothing, for gate.joint.max_epochs is 0" in caplog.text
    data, plain = load_checkpoint(tmp_path / "out" / "best.ckpt", "gate"), load_checkpoint(trained["gate"], "gate")
    assert all(torch.equal(data["state"][key], plain["state"][key]) for key in plain["state"])


def test_heads_that_got_worse_are_not_kept(study, trained, tmp_path, caplog):
    metrics = train(settings(lr_heads=3.0, aux_weight=0.0), study, trained, tmp_path)
    losses = metrics["joint"]["log_loss"]
    assert metrics["joint"]["state"] == GATE_ALONE
    assert losses[GATE_ALONE] == min(losses.values())
    assert "Joint fine-tuning made the mixture no better on the selecting cells: the gate alone is kept" in caplog.text
    data, plain = load_checkpoint(tmp_path / "out" / "best.ckpt", "gate"), load_checkpoint(trained["gate"], "gate")
    assert data["heads"] is None
    assert data["state"].keys() == plain["state"].keys()
    assert all(torch.equal(data["state"][key], plain["state"][key]) for key in plain["state"])
    assert metrics["best"]["phase"] == "gate"
    single = one_slide(study, "lung_h")
    before, after = predict(single, trained), predict(single, {**trained, "gate": tmp_path / "out" / "best.ckpt"})
    assert torch.equal(before["gate"].probabilities, after["gate"].probabilities)


class _Fixed:
    """A fitted module whose mixture is given."""

    def __init__(self, probability: float) -> None:
        self.probability, self.model = probability, object()

    def eval(self):
        return self

    def mixtures(self, part):
        p = torch.tensor([[self.probability, 1 - self.probability]]).repeat(len(part["label"]), 1)
        return joint.Fused(p.log(), p[:, 0], p, p)


class _FixedJoint(_Fixed, JointModule):
    def __init__(self, probability: float, refitted: float) -> None:
        _Fixed.__init__(self, probability)
        self.__dict__["refitted_to"], self.__dict__["base"] = refitted, probability
        self.__dict__["temperatures"] = (1.0, 1.0)

    def __setattr__(self, name, value):
        self.__dict__[name] = value
        if name == "temperatures":
            self.__dict__["probability"] = self.base if value == (1.0, 1.0) else self.refitted_to

    def refitted(self, part):
        return 2.0, 2.0


@pytest.mark.parametrize(
    ("after", "refitted", "state", "temperatures"),
    [(0.6, 0.6, GATE_ALONE, (1.0, 1.0)), (0.8, 0.75, JOINT, (1.0, 1.0)), (0.6, 0.9, REFITTED, (2.0, 2.0))],
)
def test_the_lowest_log_loss_decides(after, refitted, state, temperatures):
    part = {"label": torch.zeros(4, dtype=torch.int64)}
    gate, fine = _Fixed(0.7), _FixedJoint(after, refitted)
    found = choose(gate, fine, (1.0, 1.0), part)
    assert found.report["state"] == state
    assert found.temperatures == temperatures
    assert found.model is (gate.model if state == GATE_ALONE else fine.model)
    best = {GATE_ALONE: 0.7, JOINT: after, REFITTED: refitted}[state]
    assert float(found.fused.p_a[0, 0]) == pytest.approx(best)


class KilledError(Exception):
    """A stop at any moment."""


def test_a_kill_in_joint_fine_tuning_costs_neither_gate_nor_branches(study, trained, kept, tmp_path, monkeypatch):
    original, seen = JointModule.training_step, []

    def counted(module: GateModule, batch: dict, batch_idx: int) -> torch.Tensor:
        seen.append(type(module).__name__)
        if len(seen) == fail_at:
            raise KilledError
        return original(module, batch, batch_idx)

    monkeypatch.setattr(joint, "min", lambda losses, key: JOINT, raising=False)
    monkeypatch.setattr(joint, "fit_temperature", lambda *_: 1.5)
    monkeypatch.setattr(GateModule, "training_step", counted)
    history = pd.read_csv(kept[0] / "history.csv")
    gate_steps = int(history.loc[history["phase"] == "gate", "step"].max())
    joint_steps = int(history.loc[history["phase"] == "joint", "step"].max())
    fail_at = gate_steps + joint_steps // 2
    with pytest.raises(KilledError):
        train(settings(), study, trained, tmp_path)
    assert seen.count("GateModule") == gate_steps
    seen.clear()
    fail_at = -1
    monkeypatch.setattr("nuclass.training.branches.Branches.forward", lambda *_: 1 / 0)
    train(settings(), study, trained, tmp_path)
    assert "GateModule" not in seen
    assert len(seen) < joint_steps
    resumed, straight = (load_checkpoint(f / "best.ckpt", "gate")["state"] for f in (tmp_path / "out", kept[0]))
    assert all(torch.equal(resumed[key], straight[key]) for key in straight)
