"""Training end to end on a toy study: files, resume, what is refused; and the parts it is made of."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from nuclass.core.errors import UserError
from nuclass.core.files import write_parquet
from nuclass.data.study import Study
from nuclass.data.training_cells import load_training_cells
from nuclass.models.backbones import build_backbone
from nuclass.training.checkpoint import load_checkpoint, restore_global
from nuclass.training.config import Local, from_plain
from nuclass.training.predict import predict_slide
from nuclass.training.train import train_local
from toy_study import CLASSES, MODELS, one_slide, toy

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return toy(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """All three models, trained in their order."""
    return toy(tmp_path_factory)[1]


def test_a_trained_model_is_four_files_and_leaves_no_state(trained, study):
    for path in trained.values():
        assert sorted(file.name for file in path.parent.iterdir()) == [
            "best.ckpt",
            "calibration.json",
            "history.csv",
            "metrics.json",
        ]
    assert not any((study.results / "work").rglob("*.ckpt"))


def test_the_toy_is_learned(trained):
    scores = {name: json.loads((path.parent / "metrics.json").read_text()) for name, path in trained.items()}
    assert scores["local"]["val"]["f1_per_class"]["B_Cell"] > 0.9
    assert scores["global"]["val"]["f1_macro"] > 0.6
    history = pd.read_csv(trained["local"].parent / "history.csv")
    assert len(history) == 4
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0]


def test_a_checkpoint_holds_all_that_its_use_needs(trained, study):
    data = load_checkpoint(trained["global"], "global")
    assert data["classes"] == sorted(CLASSES)
    assert data["organs"] == ["colon", "lung", "unknown"]
    assert data["windows"] == {"local": 32, "global": 128}
    assert data["mpp"] == 0.25
    assert data["alpha"] == float(data["state"]["alpha"])
    assert float(restore_global(data).alpha) == data["alpha"]
    train, val, _ = load_training_cells(study)
    for split, frame in (("train", train), ("val", val)):
        for slide, part in frame.groupby("slide", observed=True):
            assert data["cells"][slide][split] == part["cell_id"].tolist()


def test_a_killed_run_goes_on_to_the_same_result(study, tmp_path, monkeypatch, trained):
    from nuclass.training.modules import LocalModule

    original = LocalModule.on_train_epoch_start

    def killed(module):
        if module.current_epoch == 2:
            raise RuntimeError("killed")
        original(module)

    monkeypatch.setattr(LocalModule, "on_train_epoch_start", killed)
    with pytest.raises(RuntimeError, match="killed"):
        train_local(MODELS, study, tmp_path / "out", tmp_path / "work", 1)
    monkeypatch.setattr(LocalModule, "on_train_epoch_start", original)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "work" / "last.ckpt").is_file()
    train_local(MODELS, study, tmp_path / "out", tmp_path / "work", 1)
    # Of this process as it is now: what other tests loaded meanwhile may round differently.
    train_local(MODELS, study, tmp_path / "straight", tmp_path / "straight work", 1)
    resumed, straight = (
        load_checkpoint(tmp_path / name / "best.ckpt", "local")["state"] for name in ("out", "straight")
    )
    assert {key: float((resumed[key] - straight[key]).abs().max()) for key in straight} == dict.fromkeys(straight, 0.0)
    assert len(pd.read_csv(tmp_path / "out" / "history.csv")) == 4


def test_a_loss_that_is_no_number_names_its_batch(study, tmp_path):
    wild = copy.deepcopy(MODELS)
    wild["local"]["optimizer"] = {"lr_head": 1e30, "lr_backbone": 1e30, "warmup_steps": 0, "grad_clip": 0}
    with pytest.raises(UserError, match="not a finite number") as caught:
        train_local(wild, study, tmp_path / "out", tmp_path / "work", 1)
    assert "epoch 0, batch" in str(caught.value)


def test_one_class_and_no_val_are_refused(study, tmp_path):
    def with_labels(name: str, change) -> Study:
        root = tmp_path / name
        for kind in ("labels", "splits"):
            (root / kind).mkdir(parents=True)
        (root / "slides").symlink_to(study.results / "slides")
        labels = pd.read_parquet(study.results / "labels" / "lung_1" / "labels.parquet")
        splits = pd.read_parquet(study.results / "splits" / "lung_1.parquet")
        labels, splits = change(labels, splits)
        write_parquet(root / "labels" / "lung_1" / "labels.parquet", labels)
        write_parquet(root / "splits" / "lung_1.parquet", splits)
        return Study([{"slide": "lung_1", "organ": "lung"}], root)

    with pytest.raises(UserError, match="two classes"):
        load_training_cells(with_labels("one", lambda a, b: (a.assign(**{"class": "T_Cell"}), b)))
    with pytest.raises(UserError, match="split 'val'"):
        load_training_cells(with_labels("noval", lambda a, b: (a, b.assign(split="train"))))

    def rare(labels, splits):
        first = splits.index[splits["split"] == "val"][0]
        labels.loc[labels["cell_id"] == splits.loc[first, "cell_id"], "class"] = "Mast_Cell"
        return labels, splits

    train, val, vocabulary = load_training_cells(with_labels("rare", rare))
    assert "Mast_Cell" not in vocabulary.classes
    assert len(train)
    assert "Mast_Cell" not in set(val["class"])


def test_views_are_cached_for_train_and_val_only(trained, study):
    from nuclass.data import load_cells, read_features

    frame = load_cells([{"slide": "lung_1", "organ": "lung"}], study.results, ("train", "val"))
    plain = read_features(study.features("lung_1"), frame["cell_id"].tolist())
    views = read_features(study.views("lung_1"), frame["cell_id"].tolist())
    assert plain.shape == (len(frame), 64)
    assert views.shape == (len(frame), 2, 64)
    assert not np.allclose(views[:, 0], views[:, 1])
    assert not study.views("lung_h").is_file()


def test_maps_of_trained_models_lie_in_their_windows(trained, study, tmp_path):
    from nuclass.interpret.gradcam import compute_maps

    outputs = {name: tmp_path / f"{name}.parquet" for name in trained}
    predict_slide(MODELS, one_slide(study, "lung_h"), trained, outputs)
    cells = pd.read_parquet(outputs["gate"]).iloc[:3]
    maps = compute_maps(
        cells,
        windows={"lung_h": one_slide(study, "lung_h").source("lung_h")},
        tables={"lung_h": study.results / "slides" / "lung_h" / "cells.parquet"},
        checkpoints=trained,
    )
    assert maps["local_image"].shape == (3, 32, 32, 3)
    assert maps["global_image"].shape == (3, 128, 128, 3)
    assert maps["local_cam"].shape == maps["global_local_cam"].shape == (3, 32, 32)
    assert maps["global_cam"].shape == maps["gated_cam"].shape == (3, 128, 128)
    for name in ("local_cam", "global_cam", "gated_cam"):
        assert maps[name].min() >= 0
        assert maps[name].max() <= 1
    assert maps["global_cam"].max() == 1


def test_controls_of_trained_models(trained, study, tmp_path):
    from nuclass.interpret.controls import STAGES, compute_controls

    outputs = {name: tmp_path / f"{name}.parquet" for name in trained}
    predict_slide(MODELS, one_slide(study, "lung_h"), trained, outputs)
    files = {
        "windows": {"lung_h": one_slide(study, "lung_h").source("lung_h")},
        "tables": {"lung_h": study.results / "slides" / "lung_h" / "cells.parquet"},
        "checkpoints": trained,
    }
    cells, own = pd.read_parquet(outputs["gate"]), pd.read_parquet(outputs["local"])
    maps, table = compute_controls(cells.iloc[:3], draws=2, **files)
    assert table["prediction"].tolist() == own["prediction"].iloc[:3].tolist()
    assert np.allclose(table["probability"], own["confidence"].iloc[:3], atol=1e-4)
    assert (table["rollout_of"] == "context").all()
    assert maps["cam"].shape == maps["random"].shape == maps["released"].shape == (3, 32, 32)
    assert maps["rollout"].shape == (3, 128, 128)
    assert maps["rollout_image"].shape == (3, 128, 128, 3)
    assert not np.allclose(maps["cam"], maps["random"])
    for stage in STAGES:
        assert table[f"spearman_{stage}"].dropna().between(-1, 1).all()
    again, _ = compute_controls(cells.iloc[:3], draws=1, **files)
    assert np.array_equal(again["random"], maps["random"])
    nothing, none = compute_controls(cells.iloc[:0], draws=1, **files)
    assert nothing == {}
    assert len(none) == 0


def test_the_backbone_rests_in_the_first_epochs():
    from nuclass.models.local import LocalModel
    from nuclass.training.modules import LocalModule

    section = from_plain(Local, {"optimizer": {"freeze_epochs": 1}}, "there")
    model = LocalModel(build_backbone(MODELS["local"]["backbone"]), 2, 3, organ_dim=4, hidden=8)
    module = LocalModule(model, section, torch.ones(3), 1)
    module.train()
    for epoch, frozen in ((0, True), (1, False)):
        module.trainer = type("Trainer", (), {"current_epoch": epoch})()
        module.on_train_epoch_start()
        assert all(p.requires_grad != frozen for p in model.backbone.parameters())
        assert model.backbone.training != frozen
        assert all(p.requires_grad for p in model.head.parameters())


@pytest.mark.parametrize("backbone", [MODELS["local"]["backbone"], MODELS["context"]["backbone"]])
def test_gradient_checkpointing_changes_no_gradient(backbone):
    torch.manual_seed(0)
    plain = build_backbone(backbone)
    saving = copy.deepcopy(plain)
    saving.checkpoint_gradients()
    x = torch.rand(4, 3, 32, 32)
    for net in (plain, saving):
        net.train()(x).square().sum().backward()
    pairs = zip(plain.named_parameters(), saving.parameters(), strict=True)
    for (name, a), b in pairs:
        assert a.grad is None or torch.allclose(a.grad, b.grad, atol=1e-4), name


def test_a_fitted_module_is_back_on_its_device(study, tmp_path, monkeypatch):
    """The trainer brings its module to the processor; the cells of val are to be seen on the device of training."""
    from nuclass.training import train
    from nuclass.training.modules import LocalModule

    moves = []
    for name in ("cpu", "to"):
        real = getattr(LocalModule, name)
        monkeypatch.setattr(
            LocalModule, name, lambda *a, _n=name, _r=real, **k: moves.append((_n, *a[1:])) or _r(*a, **k)
        )
    monkeypatch.setattr(train, "predict_logits", lambda *_: moves.append("predict") or torch.zeros(1, 1))
    monkeypatch.setattr(train, "write_outputs", lambda *_: {})
    quick = copy.deepcopy(MODELS)
    quick["local"]["trainer"]["max_epochs"] = 1
    train_local(quick, study, tmp_path / "out", tmp_path / "work", 1)
    assert moves[-3:] == [("cpu",), ("to", torch.device("cpu")), "predict"]
