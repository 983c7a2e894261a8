"""Training of the local and the global model end to end, on the toy study: what their files hold, what is refused."""

from __future__ import annotations

import copy
import json

import pandas as pd
import pytest
import torch

from nuclass.core.errors import UserError
from nuclass.core.files import sha256, write_parquet
from nuclass.core.protocol import STAGES
from nuclass.data.study import Study
from nuclass.models.backbones import build_backbone
from nuclass.models.local import LocalModel
from nuclass.training import compiling, train
from nuclass.training.checkpoint import load_checkpoint, restore_global, restore_local
from nuclass.training.config import Local, Trainer, from_plain
from nuclass.training.modules import GlobalModule, LocalModule
from nuclass.training.train import train_global, train_local
from toy_study import MODELS, toy


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return toy(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return toy(tmp_path_factory)[1]


def quick(**sections):
    """Settings of the toy with one epoch, and other values where a section names some."""
    models = copy.deepcopy(MODELS)
    for stage in ("local", "global"):
        models[stage]["trainer"]["max_epochs"] = 1
    for path, value in sections.items():
        *above, key = path.split("__")
        inner = models
        for name in above:
            inner = inner.setdefault(name, {})
        inner[key] = value
    return models


def states(first, second) -> list[str]:
    """Return the names of the weights that differ between two checkpoints."""
    assert first["state"].keys() == second["state"].keys()
    return [name for name, value in first["state"].items() if not torch.equal(value, second["state"][name])]


def test_checkpoints_tell_what_they_were_made_of(trained):
    local, wide = (load_checkpoint(trained[name], name) for name in ("local", "global"))
    for data in (local, wide):
        assert data["protocol"] == {}
        assert data["weights"] is None
        assert {"nuclass", "torch", "python"} <= data["versions"].keys()
        assert data["input"]["size"] == data["input"]["input_px"] == 32
        assert data["input"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
        assert data["input"]["std"] == pytest.approx([0.229, 0.224, 0.225])
    assert wide["alpha_schedule"] == {"start": 0.25, "epochs": 2.0, "end": 1.0}
    history = pd.read_csv(trained["global"].parent / "history.csv")
    best = int(history["epoch"][history["val_f1_macro"].idxmax()])
    assert wide["alpha"] == [0.25, 0.625, 1.0][best]


def test_metrics_tell_what_training_took(trained, study):
    for name in ("local", "global"):
        metrics = json.loads((trained[name].parent / "metrics.json").read_text())
        history = pd.read_csv(trained[name].parent / "history.csv")
        assert metrics["effective_batch_size"] == 16
        assert metrics["n_train"] == sum(
            len(cells["train"]) for cells in load_checkpoint(trained[name], name)["cells"].values()
        )
        # whole batches alone are trained on
        full = metrics["n_train"] // 16 * 16
        assert history["train_cells"].tolist() == [full] * len(history)
        rate = history["train_cells"].sum() / history["train_seconds"].sum()
        assert metrics["cells_per_second"] == pytest.approx(rate, rel=0.01)
        assert metrics["seconds_per_epoch"] == pytest.approx(metrics["n_train"] / rate, rel=0.01)
        assert metrics["memory_mb"] > 50
        assert history["train_seconds"].sum() < metrics["seconds"]


def test_calibration_tells_its_range(trained):
    calibration = json.loads((trained["local"].parent / "calibration.json").read_text())
    assert calibration["range"] == [0.05, 20.0]
    assert calibration["at_bound"] in (None, "low", "high")
    assert calibration["log_loss_after"] <= calibration["log_loss_before"] + 1e-6


def test_the_file_of_the_weights_is_noted(study, tmp_path):
    torch.manual_seed(7)
    torch.save(build_backbone(MODELS["local"]["backbone"]).net.state_dict(), tmp_path / "mine.bin")
    models = quick(local__backbone__weights=str(tmp_path / "mine.bin"))
    train_local(models, study, tmp_path / "local", tmp_path / "work", 1)
    data = load_checkpoint(tmp_path / "local" / "best.ckpt", "local")
    assert data["weights"]["file"] == "mine.bin"
    assert data["weights"]["sha256"] == sha256(tmp_path / "mine.bin")
    (tmp_path / "mine.bin").unlink()
    assert isinstance(restore_local(data), LocalModel)
    train_global(models, study, tmp_path / "local" / "best.ckpt", tmp_path / "wide", tmp_path / "work", 1)
    assert load_checkpoint(tmp_path / "wide" / "best.ckpt", "global")["weights"] == data["weights"]


def test_the_folder_of_the_backbone_is_not_needed_again(study, tmp_path):
    folder = tmp_path / "network"
    build_backbone(MODELS["context"]["backbone"]).net.save_pretrained(folder)
    models = quick(local__backbone={"name": "folder", "path": str(folder), "input_px": 32})
    train_local(models, study, tmp_path / "local", tmp_path / "work", 1)
    folder.rename(tmp_path / "gone")
    local = tmp_path / "local" / "best.ckpt"
    assert isinstance(restore_local(load_checkpoint(local, "local")), LocalModel)
    train_global(models, study, local, tmp_path / "wide", tmp_path / "work", 1)
    data = load_checkpoint(tmp_path / "wide" / "best.ckpt", "global")
    assert not states(data, {"state": restore_global(data).state_dict()})


@pytest.mark.parametrize("organ", ["concat", "none"])
def test_the_organs_other_ways_are_trained_and_restored(study, tmp_path, organ):
    train_local(quick(local__model__organ=organ), study, tmp_path / "out", tmp_path / "work", 1)
    data = load_checkpoint(tmp_path / "out" / "best.ckpt", "local")
    assert data["config"]["model"]["organ"] == organ
    model = restore_local(data)
    assert {name for name, part in model.named_children() if part is not None} == {
        "backbone", "norm", "head", *({"concat"} if organ == "concat" else ()),
    }  # fmt: skip
    assert not states(data, {"state": model.state_dict()})


RELEASED = {name: True for stage in ("local", "global") for name in STAGES[stage]}


@pytest.fixture(scope="module")
def released(study, tmp_path_factory):
    """Both models under all of the original's flaws, and the global one without any from that local model."""
    root = tmp_path_factory.mktemp("released")
    models = quick(protocol=RELEASED)
    models["local"]["augment"] = models["global"]["augment"] = {"rotate": 15, "shift": 0.05}
    train_local(models, study, root / "local", root / "work", 1)
    local = root / "local" / "best.ckpt"
    train_global(models, study, local, root / "global", root / "work", 1)
    models["protocol"] = {"test_as_val": True}
    train_global(models, study, local, root / "corrected", root / "work", 1)
    return root


def test_checkpoints_tell_the_flaws_of_their_training(released):
    for name in ("local", "global"):
        assert load_checkpoint(released / name / "best.ckpt", name)["protocol"] == dict.fromkeys(STAGES[name], True)
    corrected = load_checkpoint(released / "corrected" / "best.ckpt", "global")
    assert corrected["protocol"] == {"test_as_val": True}


def test_a_moving_teacher_is_not_part_of_the_model(released):
    data = load_checkpoint(released / "global" / "best.ckpt", "global")
    corrected = load_checkpoint(released / "corrected" / "best.ckpt", "global")
    assert "head.4.bias" in states(data, corrected)
    # from the same start: the flaws alone make the difference
    assert float(restore_global(data).alpha) == 0.25


def test_test_as_val_changes_the_cells_of_val(released, trained):
    flawed = load_checkpoint(released / "local" / "best.ckpt", "local")
    right = load_checkpoint(trained["local"], "local")
    for slide, cells in right["cells"].items():
        assert flawed["cells"][slide]["train"] == cells["train"]
        assert not set(flawed["cells"][slide]["val"]) & set(cells["val"])


ONE_BY_ONE = ["undetached_weight", "moving_teacher", "label_in_gate", "no_global_augmentation", "decay_everywhere"]


@pytest.mark.parametrize("flaw", [None, *ONE_BY_ONE, "alpha_reset"])
def test_each_flaw_alone_changes_what_is_learned(study, trained, tmp_path, flaw):
    models = quick(global__trainer__max_epochs=MODELS["global"]["trainer"]["max_epochs"])
    if flaw:
        models["protocol"] = {flaw: True}
    train_global(models, study, trained["local"], tmp_path / "out", tmp_path / "work", 1)
    changed = states(
        load_checkpoint(tmp_path / "out" / "best.ckpt", "global"), load_checkpoint(trained["global"], "global")
    )
    assert bool(changed) == (flaw in ONE_BY_ONE)


def test_the_backbone_rests_bit_by_bit(study, tmp_path, monkeypatch):
    kept, moments = [], []

    def keep(module):
        kept.append({name: value.clone() for name, value in module.model.state_dict().items()})
        state = module.trainer.optimizers[0].state
        moments.append(sum(p in state and "exp_avg" in state[p] for p in module.model.backbone.parameters()))

    monkeypatch.setattr(LocalModule, "on_train_start", keep)
    monkeypatch.setattr(LocalModule, "on_train_epoch_end", keep)
    models = quick(local__trainer__max_epochs=3)
    models["local"]["optimizer"] = {**MODELS["local"]["optimizer"], "freeze_epochs": 2, "weight_decay": 0.5}
    train_local(models, study, tmp_path / "out", tmp_path / "work", 1)
    start, first, second, third = kept
    inside = [name for name in start if name.startswith("backbone.")]
    assert all(torch.equal(start[name], second[name]) for name in inside)
    assert not torch.equal(first["head.4.bias"], start["head.4.bias"])
    moved = [name for name in inside if not torch.equal(second[name], third[name])]
    assert len(moved) > 0.9 * len(inside)
    assert moments[:3] == [0, 0, 0]
    assert moments[3] > 0


def test_an_unknown_organ_that_is_never_trained_is_told(study, tmp_path, caplog):
    for model, told in (({"organ_dropout": 0.0}, True), ({"organ_dropout": 0.1}, False), ({"organ": "none"}, False)):
        caplog.clear()
        models = quick()
        models["local"]["model"] = {"organ_dim": 4, "hidden": 16, **model}
        train_local(models, study, tmp_path / "out", tmp_path / "work", 1)
        assert ("unknown organ is never trained" in caplog.text) == told


def test_a_batch_larger_than_the_data_is_told(study, tmp_path, caplog):
    metrics = train_local(quick(local__trainer__batch_size=5000), study, tmp_path / "out", tmp_path / "work", 1)
    assert "batch_size is 5000, but there are" in caplog.text
    assert metrics["effective_batch_size"] == metrics["n_train"]
    assert pd.read_csv(tmp_path / "out" / "history.csv")["train_cells"].tolist() == [metrics["n_train"]]


def changed_study(study: Study, root, **labels) -> Study:
    """A copy of the study's tables, with other labels where a slide has some."""
    for kind in ("slides", "features"):
        (root / kind).parent.mkdir(parents=True, exist_ok=True)
        (root / kind).symlink_to(study.results / kind)
    for row in study.slides:
        slide = row["slide"]
        table = pd.read_parquet(study.results / "labels" / slide / "labels.parquet")
        (root / "labels" / slide).mkdir(parents=True)
        write_parquet(root / "labels" / slide / "labels.parquet", labels.get(slide, lambda t: t)(table))
    (root / "splits").symlink_to(study.results / "splits")
    return Study(study.slides, root, study.mpp, study.windows)


def test_a_local_model_of_other_classes_is_refused(study, trained, tmp_path):
    def rename(table):
        return table.assign(**{"class": table["class"].replace("T_Cell", "NK_Cell")})

    other = changed_study(study, tmp_path / "study", lung_1=rename, colon_1=rename)
    with pytest.raises(UserError, match="other classes than the training cells") as caught:
        train_global(quick(), other, trained["local"], tmp_path / "out", tmp_path / "work", 1)
    assert "T_Cell" in str(caught.value)
    assert "NK_Cell" in str(caught.value)


def test_a_local_model_of_other_organs_is_refused(study, trained, tmp_path):
    slides = [{**row, "organ": "skin"} if row["slide"] == "lung_1" else row for row in study.slides]
    other = Study(slides, study.results, study.mpp, study.windows)
    with pytest.raises(UserError, match="other organs than the training cells") as caught:
        train_global(quick(), other, trained["local"], tmp_path / "out", tmp_path / "work", 1)
    assert "skin" in str(caught.value)


def test_a_local_model_of_other_windows_is_refused(study, trained, tmp_path):
    other = Study(study.slides, study.results, study.mpp, {"local": 64, "global": 128})
    with pytest.raises(UserError, match="saw other windows") as caught:
        train_global(quick(), other, trained["local"], tmp_path / "out", tmp_path / "work", 1)
    assert "32 px at 0.25 um/px" in str(caught.value)
    assert "64 px at 0.25 um/px" in str(caught.value)


def test_a_local_model_that_saw_the_val_cells_is_refused(study, trained, tmp_path):
    data = torch.load(trained["local"], weights_only=True)
    cells = data["cells"]["lung_1"]
    cells["train"], cells["val"] = [*cells["train"], cells["val"][0]], cells["val"][1:]
    torch.save(data, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match="used in training"):
        train_global(quick(), study, tmp_path / "best.ckpt", tmp_path / "out", tmp_path / "work", 1)


def test_a_checkpoint_of_another_model_or_architecture_is_refused(study, trained, tmp_path):
    with pytest.raises(UserError, match="of another model"):
        train_global(quick(), study, trained["global"], tmp_path / "out", tmp_path / "work", 1)
    data = torch.load(trained["local"], weights_only=True)
    data["config"]["model"]["hidden"] = 17
    torch.save(data, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match=r"do not fit the architecture.*") as caught:
        train_global(quick(), study, tmp_path / "best.ckpt", tmp_path / "out", tmp_path / "work", 1)
    assert "head.1" in str(caught.value)


def test_a_val_of_one_class_is_enough(study, tmp_path):
    changes = {}
    for row in study.slides:
        slide = row["slide"]
        changes[slide] = lambda table, slide=slide: one_class(table, study, slide)
    metrics = train_local(
        quick(), changed_study(study, tmp_path / "study", **changes), tmp_path / "out", tmp_path / "w", 1
    )
    f1 = metrics["val"]["f1_per_class"]
    assert f1["T_Cell"] != f1["T_Cell"]
    assert metrics["val"]["f1_macro"] == f1["B_Cell"]
    assert metrics["temperature"] > 0


def one_class(table: pd.DataFrame, study: Study, slide: str) -> pd.DataFrame:
    split = pd.read_parquet(study.results / "splits" / f"{slide}.parquet")
    val = table["cell_id"].isin(split["cell_id"][split["split"] == "val"])
    gone = val & (table["class"] != "B_Cell")
    return table.assign(
        **{"class": table["class"].where(~gone, ""), "status": table["status"].where(~gone, "abstained")}
    )


def test_classes_weigh_by_the_beta_of_the_settings(study, trained, tmp_path, monkeypatch):
    modules = []
    monkeypatch.setattr(train, "fit_and_write", lambda module, *_: modules.append(module) or {})
    models = quick(local__loss={"beta": 0.9}, global__loss={"beta": 0.99})
    train_local(models, study, tmp_path / "out", tmp_path / "work", 1)
    train_global(models, study, trained["local"], tmp_path / "out", tmp_path / "work", 1)
    cells = load_checkpoint(trained["local"], "local")["cells"]
    classes: list[str] = []
    for slide in cells:
        labels = pd.read_parquet(study.results / "labels" / slide / "labels.parquet").set_index("cell_id")["class"]
        classes += labels[cells[slide]["train"]].tolist()
    counts = pd.Series(classes).value_counts().sort_index().to_numpy()
    for module, beta in zip(modules, (0.9, 0.99), strict=True):
        raw = (1 - beta) / (1 - beta**counts)
        assert module.class_weights.tolist() == pytest.approx((raw / raw.mean()).tolist(), rel=1e-5)


def test_a_class_of_val_alone_flattens_all_others_as_in_the_original(study, tmp_path, monkeypatch):
    """Under test_as_val classes are those of train and test cells, so one may have no train cell."""

    def rare(table: pd.DataFrame) -> pd.DataFrame:
        split = pd.read_parquet(study.results / "splits" / "lung_1.parquet").set_index("cell_id")["split"]
        tested = table["cell_id"].map(split) == "test"
        return table.assign(**{"class": table["class"].where(~tested, "Mast_Cell")})

    other = changed_study(study, tmp_path / "study", lung_1=rare)
    models = quick(protocol={"test_as_val": True})
    metrics = train_local(models, other, tmp_path / "local", tmp_path / "work", 1)
    local = tmp_path / "local" / "best.ckpt"
    assert load_checkpoint(local, "local")["classes"] == ["B_Cell", "Fibroblast", "Mast_Cell", "T_Cell"]
    assert metrics["val"]["f1_per_class"]["Mast_Cell"] == 0
    modules = []
    monkeypatch.setattr(train, "fit_and_write", lambda module, *_: modules.append(module) or {})
    for guard in (True, False):
        models["protocol"]["unguarded_class_weights"] = not guard
        train_global(models, other, local, tmp_path / "out", tmp_path / "work", 1)
    guarded, flat = (module.class_weights for module in modules)
    assert guarded[2] == 0
    assert guarded[[0, 1, 3]].mean() == pytest.approx(1)
    assert flat[2] == pytest.approx(4, rel=1e-3)
    assert flat[[0, 1, 3]].max() < 1e-4


def test_a_run_of_other_context_views_is_not_gone_on_with(study, trained, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(train, "fit_and_write", lambda *a: found.append(a[4]) or {})
    real = train.context_features
    for change in ({}, {}, {"blur": 0.9}, None):
        models = quick()
        models["context"]["augment"] = {**models["context"]["augment"], **(change or {})}
        if change is None:
            monkeypatch.setattr(train, "context_features", lambda frame, study, views: real(frame, study, views=False))
        train_global(models, study, trained["local"], tmp_path / "out", tmp_path / "work", 1)
    first, again, blurred, none = found
    assert first == again
    assert first != blurred
    assert first != none


def test_another_process_writes_nothing(study, tmp_path, monkeypatch):
    import dataclasses

    from nuclass.training import fit

    real = fit.fit
    monkeypatch.setattr(fit, "fit", lambda *a, **k: dataclasses.replace(real(*a, **k), is_main=False))
    assert train_local(quick(), study, tmp_path / "out", tmp_path / "work", 1) == {}
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "work").is_dir()


@pytest.mark.parametrize("settings", [{"compile": True}, {"gradient_checkpointing": True}])
def test_speed_changes_no_name_of_a_weight(settings, monkeypatch):
    monkeypatch.setattr(compiling, "why_not", lambda _: "")
    section = from_plain(Local, MODELS["local"], "there")
    model = LocalModel(build_backbone(section.backbone), 2, 3, organ_dim=4, hidden=8)
    before = list(model.state_dict())
    train.speed_up(model, Trainer(**settings), 100)
    assert list(model.state_dict()) == before
    assert not any("_orig_mod" in name for name in model.state_dict())
    if "compile" in settings:
        assert model.backbone._compiled_call_impl is not None


def test_compiled_training_saves_plain_names(study, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: calls.append(1) or function)
    monkeypatch.setattr(compiling, "why_not", lambda _: "")
    train_local(quick(local__trainer__compile=True), study, tmp_path / "out", tmp_path / "work", 1)
    assert calls
    data = load_checkpoint(tmp_path / "out" / "best.ckpt", "local")
    assert not any("_orig_mod" in name for name in data["state"])
    assert restore_local(data)


def test_entropy_as_doubt_trains_too(study, trained, tmp_path):
    models = quick(global__loss__doubt="entropy", global__trainer__max_epochs=3)
    train_global(models, study, trained["local"], tmp_path / "out", tmp_path / "work", 1)
    data = load_checkpoint(tmp_path / "out" / "best.ckpt", "global")
    assert data["config"]["loss"]["doubt"] == "entropy"
    assert states(data, load_checkpoint(trained["global"], "global"))


def test_alpha_is_set_where_an_epoch_begins():
    from nuclass.models.global_ import GlobalModel
    from nuclass.training.config import Global

    model = GlobalModel(build_backbone(MODELS["local"]["backbone"]), 8, 3)
    module = GlobalModule(model, Global(), torch.ones(3), 1)
    for epoch, alpha in ((0, 0.25), (1, 0.625), (2, 1.0), (7, 1.0)):
        module.trainer = type("Trainer", (), {"current_epoch": epoch})()
        module.on_train_epoch_start()
        assert float(model.alpha) == alpha
