"""A toy study of four painted slides, and its three models, for tests of training and prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

from nuclass.core.files import write_parquet
from nuclass.data.study import Study
from nuclass.slides.geometry import Frames
from nuclass.slides.writer import write_store
from nuclass.training.composition import pretrain_context
from nuclass.training.context import embed_context
from nuclass.training.gate import train_gate
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


def write_toy(results: Path) -> Study:
    """Write slides, cells, labels and splits; two slides to train on, two held out, one of an organ of its own."""
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


def train_toy(study: Study) -> dict[str, Path]:
    """Train all three models in their order; returns their checkpoints."""
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


_MADE: dict[str, tuple[Study, dict[str, Path]]] = {}


def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, dict[str, Path]]:
    """Return the toy study and its models' checkpoints, made once a session; tests change neither."""
    if not _MADE:
        study = write_toy(tmp_path_factory.mktemp("toy") / "results")
        _MADE["toy"] = (study, train_toy(study))
    return _MADE["toy"]
