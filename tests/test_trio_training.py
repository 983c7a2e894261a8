"""A study exported as patch files and taken in again trains and predicts to the same numbers as from its slides."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from nuclass.core.files import write_parquet
from nuclass.data.study import Study
from nuclass.labels.named import label_named_cells
from nuclass.labels.ontology import default_ontology
from nuclass.patches.export import export_patches
from nuclass.patches.importing import import_patches
from nuclass.slides.store import SlideStore
from nuclass.training.composition import pretrain_context
from nuclass.training.context import embed_context
from nuclass.training.gate import train_gate
from nuclass.training.predict import predict_slide
from nuclass.training.train import train_global, train_local
from toy_study import MODELS, paint
from trio_example import store_of

torch.set_num_threads(1)
WINDOWS = {"local": 32, "global": 128}
SLIDES = {"lung_1": "lung", "colon_1": "colon", "lung_h": "lung"}
EXACT = copy.deepcopy(MODELS)
EXACT["context"]["read_level"] = EXACT["local"]["read_level"] = 0
EXACT["context"]["pretrain"]["trainer"]["max_epochs"] = 1
for _name in ("local", "global", "gate"):
    EXACT[_name]["trainer"]["max_epochs"] = 2


def from_slides(results: Path) -> Study:
    """Write a study of slide stores; some cells have no label."""
    for seed, slide in enumerate(SLIDES):
        image, cells = paint(slide, seed + 1)
        cells = cells.sample(frac=1, random_state=seed, ignore_index=True)
        store_of(results / "slides" / slide, image, tile=64, shard=256, levels=3)
        cells = cells.assign(x_um=cells["x_px"] * 0.25, y_um=cells["y_px"] * 0.25, status="kept", reason="")
        write_parquet(results / "slides" / slide / "cells.parquet", cells.drop(columns="class"))
        labels = cells[["cell_id", "class"]].assign(status="labelled", reason="")
        labels.loc[::17, ["class", "status"]] = ["", "abstained"]
        write_parquet(results / "labels" / slide / "labels.parquet", labels)
        y = cells["y_px"]
        split = np.select([y < 350, y < 380, y < 560], ["train", "buffer", "val"], "test")
        split = "test" if slide.endswith("_h") else split
        write_parquet(results / "splits" / f"{slide}.parquet", cells[["cell_id"]].assign(split=split))
    return Study([{"slide": slide, "organ": organ} for slide, organ in SLIDES.items()], results, windows=WINDOWS)


def from_files(study: Study, root: Path, layout: str) -> Study:
    """Write the slides of a study as patch files, and a study that knows only these."""
    results, slides = root / "results", []
    for slide, organ in SLIDES.items():
        data, source = root / "data" / slide, study.results
        with SlideStore(study.source(slide)) as store:
            export_patches(
                store,
                pd.read_parquet(source / "slides" / slide / "cells.parquet"),
                pd.read_parquet(source / "labels" / slide / "labels.parquet"),
                data,
                WINDOWS,
                slide=slide,
                organ=organ,
                patient="p",
                mpp=0.25,
                layout=layout,
            )
        manifest, cells = (results / "slides" / slide / name for name in ("patches.json", "cells.parquet"))
        found = import_patches(folder=data, cells=cells, manifest=manifest, windows=WINDOWS, mpp=0.25, slide=slide)
        label_named_cells(cells=cells, ontology=default_ontology(), out=results / "labels" / slide, name=slide)
        split = pd.read_parquet(source / "splits" / f"{slide}.parquet")
        write_parquet(results / "splits" / f"{slide}.parquet", found[["cell_id"]].merge(split, on="cell_id"))
        slides.append({"slide": slide, "organ": organ, "windows": str(manifest)})
    return Study(slides, results, windows=WINDOWS)


def one(study: Study, slide: str) -> Study:
    return Study([row for row in study.slides if row["slide"] == slide], study.results, study.mpp, study.windows)


def trained(study: Study) -> tuple[dict[str, Path], dict[str, Path]]:
    """Train all models; return checkpoints and predictions of the slide held out."""
    root, train = study.results, Study(study.slides[:2], study.results, study.mpp, study.windows)
    backbone = root / "backbone"
    pretrain_context(EXACT, train, backbone, root / "work" / "context", 1)
    for slide in SLIDES:
        single = one(study, slide)
        views = None if slide.endswith("_h") else single.views(slide)
        work = root / "work" / "features" / slide
        embed_context(EXACT, single, single.features(slide), work, folder=backbone, views_out=views, seed=1)
    paths = {name: root / "models" / name / "best.ckpt" for name in ("local", "global", "gate")}
    folder = {name: path.parent for name, path in paths.items()}
    train_local(EXACT, train, folder["local"], root / "work" / "local", 1)
    train_global(EXACT, train, paths["local"], folder["global"], root / "work" / "global", 1, backbone)
    train_gate(EXACT, train, paths["local"], paths["global"], folder["gate"], root / "work" / "gate", 1)
    outputs = {name: root / "predictions" / name / "lung_h.parquet" for name in paths}
    predict_slide(EXACT, one(study, "lung_h"), paths, outputs)
    return paths, outputs


def timeless(found: object) -> object:
    """Return what a file says but for times and memory, which differ from run to run."""
    measured = ("seconds", "train_seconds", "seconds_per_epoch", "cells_per_second", "memory_mb")
    if isinstance(found, dict):
        return {key: timeless(value) for key, value in found.items() if key not in measured}
    return found


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    study = from_slides(tmp_path_factory.mktemp("slides") / "results")
    return study, trained(study)


@pytest.mark.parametrize("layout", ["merged", "per_key"])
def test_patch_files_train_and_predict_to_the_same_numbers(slides, tmp_path, layout):
    study, (models, tables) = slides
    other_models, other_tables = trained(from_files(study, tmp_path, layout))
    assert not list((tmp_path / "results").rglob("*.zarr"))
    for name, path in models.items():
        for file in ("metrics.json", "calibration.json"):
            here, there = (timeless(json.loads((p.parent / file).read_text())) for p in (path, other_models[name]))
            assert here == there, (name, file)
        here, there = (torch.load(one, weights_only=True)["state"] for one in (path, other_models[name]))
        assert here.keys() == there.keys()
        assert all(torch.equal(here[key], there[key]) for key in here), name
    for name, path in tables.items():
        here, there = (pd.read_parquet(one) for one in (path, other_tables[name]))
        assert len(here) == 207
        pd.testing.assert_frame_equal(here, there, check_exact=True)
        with h5py.File(path.with_suffix(".h5")) as a, h5py.File(other_tables[name].with_suffix(".h5")) as b:
            for key in ("logits", "embeddings"):
                np.testing.assert_array_equal(a[key][:], b[key][:])
