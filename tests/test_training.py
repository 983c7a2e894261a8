"""Training end to end on a toy study: files, resume, what is refused; and the parts it is made of."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

from nuclass.core.errors import UserError
from nuclass.core.files import write_parquet
from nuclass.data.study import Study
from nuclass.data.training_cells import load_training_cells
from nuclass.models.backbones import build_backbone
from nuclass.slides.geometry import Frames
from nuclass.slides.writer import write_store
from nuclass.training.checkpoint import load_checkpoint, restore_global, restore_local
from nuclass.training.composition import pretrain_context
from nuclass.training.config import Local, from_plain
from nuclass.training.context import embed_context
from nuclass.training.gate import train_gate
from nuclass.training.predict import predict_slide
from nuclass.training.train import train_global, train_local

torch.set_num_threads(1)
SIDE = 640
CLASSES = ("B_Cell", "Fibroblast", "T_Cell")
COLOURS = {"B_Cell": (70, 50, 140), "T_Cell": (190, 60, 60), "Fibroblast": (190, 60, 60)}
RUN = {"max_epochs": 4, "patience": 9, "batch_size": 16, "precision": "32-true", "accelerator": "cpu"}
RATES = {"lr_head": 3e-3, "lr_backbone": 3e-3, "warmup_steps": 5, "schedule": "cosine"}
SOFT = {"stain_scale": 0.05, "stain_shift": 0.01, "stain_mix": 0.0, "blur": 0.1}
MODELS = {
    "context": {
        "backbone": {
            "name": "dinov3",
            "input_px": 32,
            "config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_register_tokens": 2,
                "patch_size": 8,
                "image_size": 32,
                "layerscale_value": 0.5,
                "pos_embed_rescale": None,
            },
        },
        "read_level": 2,
        "pooling": "cls+center",
        "views": 2,
        "augment": SOFT,
        "pretrain": {
            "trainer": {**RUN, "max_epochs": 3},
            "optimizer": RATES,
            "augment": SOFT,
            "radii_um": [8, 16],
            "samples_per_epoch": 100,
        },
    },
    "local": {
        "backbone": {"name": "timm:test_resnet", "input_px": 32, "pool": "center"},
        "read_level": 0,
        "model": {"organ_dim": 4, "hidden": 16, "dropout": 0.1, "organ_dropout": 0.1},
        "optimizer": RATES,
        "trainer": RUN,
        "augment": SOFT,
    },
    "global": {
        "model": {"project": 12, "hidden": 16, "gate_hidden": 8, "dropout": 0.1},
        "optimizer": RATES,
        "trainer": {**RUN, "max_epochs": 3},
        "augment": SOFT,
    },
    "gate": {
        "model": {"project": 4, "hidden": [16]},
        "optimizer": {"lr": 1e-2, "warmup_steps": 2},
        "trainer": {"max_epochs": 8, "patience": 8, "batch_size": 32},
        "select": 0.4,
        "block_um": 20,
        "views": 1,
    },
    "predict": {"batch_size": 64, "accelerator": "cpu"},
}


def paint(slide: str, seed: int) -> tuple[np.ndarray, pd.DataFrame]:
    """A pale square of dots; red dots are T cells on the left half and fibroblasts on the grey right half."""
    rng = np.random.default_rng(seed)
    image = np.full((SIDE, SIDE, 3), (235, 220, 230), np.uint8)
    image[:, SIDE // 2 :] = (190, 200, 215)
    xy = rng.uniform(40, SIDE - 40, (220, 2))
    red = rng.random(len(xy)) < 0.6
    names = np.where(red, np.where(xy[:, 0] > SIDE / 2, "Fibroblast", "T_Cell"), "B_Cell")
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    for (x, y), name in zip(xy, names, strict=True):
        image[(columns - x) ** 2 + (rows - y) ** 2 < 36] = COLOURS[name]
    ids = [f"{slide[0]}{i:03d}-1" for i in range(len(xy))]
    return image, pd.DataFrame({"cell_id": ids, "x_px": xy[:, 0], "y_px": xy[:, 1], "class": names})


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    results = tmp_path_factory.mktemp("toy") / "results"
    slides = [("lung_1", "lung", 1), ("colon_1", "colon", 2), ("lung_h", "lung", 3), ("liver_h", "liver", 4)]
    for slide, _, seed in slides:
        image, cells = paint(slide, seed)
        (results / "slides" / slide).mkdir(parents=True)
        tifffile.imwrite(results / "he.ome.tif", image, tile=(128, 128), photometric="rgb")
        frames = Frames(np.diag([1.25, 1.25, 1.0]), 0.2, 0.25)
        write_store(
            results / "he.ome.tif", frames, results / "slides" / slide / "he.ome.zarr", tile=64, shard=256, levels=3
        )
        held = slide.endswith("_h")
        split = np.select(
            [cells["y_px"] < 350, cells["y_px"] < 380, cells["y_px"] < 560], ["train", "buffer", "val"], "test"
        )
        write_parquet(results / "slides" / slide / "cells.parquet", cells.drop(columns="class"))
        labels = cells[["cell_id", "class"]].assign(status="labelled")
        write_parquet(results / "labels" / slide / "labels.parquet", labels)
        write_parquet(
            results / "splits" / f"{slide}.parquet",
            pd.DataFrame({"cell_id": cells["cell_id"], "split": "test" if held else split}),
        )
    return Study(
        [{"slide": "lung_1", "organ": "lung"}, {"slide": "colon_1", "organ": "colon"}],
        results,
        windows={"local": 32, "global": 128},
    )


def one_slide(study: Study, slide: str) -> Study:
    return Study([{"slide": slide, "organ": slide.split("_")[0]}], study.results, study.mpp, study.windows)


@pytest.fixture(scope="module")
def trained(study) -> dict[str, Path]:
    """All three models, trained in their order."""
    root = study.results
    backbone = root / "backbones" / "context"
    pretrain_context(MODELS, study, backbone, root / "work" / "context", 1)
    for slide in ("lung_1", "colon_1", "lung_h", "liver_h"):
        single = one_slide(study, slide)
        views = single.views(slide) if slide.endswith("_1") else None
        work = root / "work" / "features" / slide
        embed_context(MODELS, single, single.features(slide), work, folder=backbone, views_out=views, seed=1)
    models = root / "models"
    local, wide = models / "local" / "best.ckpt", models / "global" / "best.ckpt"
    train_local(MODELS, study, local.parent, root / "work" / "local", 1)
    train_global(MODELS, study, local, wide.parent, root / "work" / "global", 1, backbone)
    train_gate(MODELS, study, local, wide, models / "gate", root / "work" / "gate", 1)
    return {"local": local, "global": wide, "gate": models / "gate" / "best.ckpt"}


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


def test_the_gate_was_fitted_to_no_training_cell(trained):
    data = load_checkpoint(trained["gate"], "gate")
    for slide, cells in data["cells"].items():
        fitted = set(data["fit_cells"][slide]["val"])
        selected = set(data["select_cells"][slide]["val"])
        assert not fitted & set(cells["train"])
        assert not fitted & selected
        assert fitted | selected == set(cells["val"])


def test_predictions_follow_the_contract(trained, study, tmp_path):
    outputs = {name: tmp_path / name / "lung_h.parquet" for name in trained}
    counts = predict_slide(MODELS, one_slide(study, "lung_h"), trained, outputs)
    assert counts == {"test": 220}
    columns = ["cell_id", "slide", "organ", "split", "x_px", "y_px", "label", "prediction", "confidence"]
    for name, path in outputs.items():
        table = pd.read_parquet(path)
        p = table[[f"prob_{c}" for c in sorted(CLASSES)]].to_numpy()
        assert list(table.columns[:9]) == columns
        assert ("gate" in table) == (name == "gate")
        assert np.allclose(p.sum(1), 1)
        assert (np.array(sorted(CLASSES))[p.argmax(1)] == table["prediction"]).all()
        with h5py.File(path.with_suffix(".h5")) as file:
            assert file["cell_id"].asstr()[:].tolist() == table["cell_id"].tolist()
            assert file["embeddings"].dtype == np.float16
            assert file["logits"].shape == (220, 3)
    mixture = pd.read_parquet(outputs["gate"])
    assert mixture["gate"].between(0, 1).all()


def test_only_unseen_cells_of_a_training_slide_are_predicted(trained, study, tmp_path):
    outputs = {name: tmp_path / f"{name}.parquet" for name in trained}
    counts = predict_slide(MODELS, one_slide(study, "lung_1"), trained, outputs)
    assert set(counts) == {"val", "test"}


def test_an_organ_never_seen_is_typed_as_unknown(trained, study, tmp_path):
    outputs = {name: tmp_path / f"{name}.parquet" for name in trained}
    predict_slide(MODELS, one_slide(study, "liver_h"), trained, outputs)
    assert (pd.read_parquet(outputs["local"])["organ"] == "liver").all()


def test_training_cells_are_never_predicted(trained, study, tmp_path):
    data = torch.load(trained["local"], weights_only=True)
    data["cells"]["lung_h"] = {"train": ["l003-1", "l004-1"], "val": []}
    torch.save(data, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match="used in training") as caught:
        predict_slide(
            MODELS,
            one_slide(study, "lung_h"),
            {**trained, "local": tmp_path / "best.ckpt"},
            {name: tmp_path / f"{name}.parquet" for name in trained},
        )
    assert "2 cells, the first: l003-1" in str(caught.value)


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


def test_broken_and_foreign_checkpoints_are_named(trained, tmp_path):
    with pytest.raises(UserError, match="is missing"):
        load_checkpoint(tmp_path / "none.ckpt", "local")
    (tmp_path / "half.ckpt").write_bytes(trained["local"].read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(tmp_path / "half.ckpt", "local")
    with pytest.raises(UserError, match="of another model"):
        load_checkpoint(trained["local"], "gate")
    data = load_checkpoint(trained["local"], "local")
    del data["state"]["norm.weight"]
    with pytest.raises(UserError, match=r"norm\.weight"):
        restore_local(data)


def test_a_killed_run_goes_on_to_the_same_result(study, tmp_path, monkeypatch, trained):
    from nuclass.training.modules import LocalModule

    original = LocalModule.on_train_epoch_start

    def killed(module):
        if module.current_epoch == 2:
            raise MemoryError("killed")
        original(module)

    monkeypatch.setattr(LocalModule, "on_train_epoch_start", killed)
    with pytest.raises(MemoryError):
        train_local(MODELS, study, tmp_path / "out", tmp_path / "work", 1)
    monkeypatch.setattr(LocalModule, "on_train_epoch_start", original)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "work" / "last.ckpt").is_file()
    train_local(MODELS, study, tmp_path / "out", tmp_path / "work", 1)
    resumed, straight = (
        load_checkpoint(p, "local")["state"] for p in (tmp_path / "out" / "best.ckpt", trained["local"])
    )
    assert all(torch.equal(resumed[key], straight[key]) for key in straight)
    assert len(pd.read_csv(tmp_path / "out" / "history.csv")) == 4


def test_a_state_of_another_run_is_not_taken_up(study, tmp_path):
    from nuclass.training.fit import _prepare, fingerprint

    (tmp_path / "last.ckpt").touch()
    (tmp_path / "run.json").write_text(json.dumps({"identity": fingerprint("a", 1)}))
    assert _prepare(tmp_path, fingerprint("a", 1)) == tmp_path / "last.ckpt"
    assert _prepare(tmp_path, fingerprint("a", 2)) is None
    assert not (tmp_path / "last.ckpt").exists()


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


def test_several_devices_are_refused(study, tmp_path):
    many = copy.deepcopy(MODELS)
    many["local"]["trainer"]["devices"] = 2
    with pytest.raises(UserError, match=r"run\.devices"):
        train_local(many, study, tmp_path / "out", tmp_path / "work", 1)


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
