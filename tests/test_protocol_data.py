"""What each flaw of the original on the side of the data does, and that nothing of it is left when it is off."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage

from drawn_slide import PIXEL, draw_slide
from fake_study import write_predictions
from nuclass.core.errors import UserError
from nuclass.core.files import read_json, write_parquet
from nuclass.data import augment
from nuclass.data.augment import Augment, augment_images
from nuclass.data.features import FeatureKey, feature_shape, read_features, read_key
from nuclass.data.image_ops import reduce_truncated
from nuclass.data.study import Study
from nuclass.data.training_cells import load_training_cells
from nuclass.evaluation.cohort import evaluate_model
from nuclass.evaluation.leak import check_no_overlap
from nuclass.models.backbones import build_backbone
from nuclass.slides.geometry import Frames
from nuclass.slides.job import align_slide, build_slide
from nuclass.slides.store import SlideStore
from nuclass.training.checkpoint import load_checkpoint
from nuclass.training.config import parse_models
from nuclass.training.context import context_backbone, embed_context, smaller_side
from nuclass.training.embedding import pool_spatial
from nuclass.training.inputs import context_features
from nuclass.training.train import train_local
from nuclass.xenium.fetch import fetch_slide
from slide_example import write_output
from test_slide_job import QC, text_of
from toy_study import MODELS, write_toy

torch.set_num_threads(1)
S = 1.288
"""Morphology px per H&E px of the common scanner: 0.2737 um per H&E px."""


# --- inverted_mpp ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """A slide with two green marks at known places, built by the right and by the inverted formula."""
    folder = tmp_path_factory.mktemp("marked")
    drawn = draw_slide(shape=(900, 1300), turn_deg=-91.0, mpp_he=S * PIXEL, seed=8)
    marks = np.array([[250.0, 300.0], [1050.0, 620.0]])
    for x, y in marks.astype(int):
        drawn.image[y - 8 : y + 8, x - 8 : x + 8] = (0, 200, 0)
    output = write_output(folder, drawn)
    row = {"slide": "mine", "source": "local", "dataset": "", "path": str(output / "outs"), "align": "given"}
    row |= {"he": str(output / "x_he_image.ome.tif"), "alignment": text_of(drawn.frames.alignment)}
    fetch_slide(row, folder / "bundle", image=False)
    align_slide(bundle=folder / "bundle", transform=folder / "t.json", name="mine", align="given", mpp=0.25)
    for inverted in (False, True):
        out = folder / str(inverted)
        build_slide(
            bundle=folder / "bundle", transform=folder / "t.json", store=out / "he.ome.zarr",
            cells=out / "cells.parquet", checks=out / "checks.csv", mpp=0.25, window=224, qc=QC,
            tiles={"tile": 256, "shard": 1024, "levels": 2}, name="mine", inverted_mpp=inverted,
        )  # fmt: skip
    return folder, float(np.hypot(*(marks[1] - marks[0])) * S * PIXEL)


def distance_px(store: SlideStore) -> float:
    """Distance of the two marks as the store shows them."""
    image = store.thumbnail(10_000).astype(int)
    labels, n = ndimage.label((image[..., 1] > 120) & (image[..., 0] < 90) & (image[..., 2] < 90))
    sizes = ndimage.sum_labels(np.ones(labels.shape), labels, range(1, n + 1))
    first, second = np.array(ndimage.center_of_mass(labels, labels, 1 + np.argsort(sizes)[-2:]))
    return float(np.hypot(*(second - first)))


@pytest.mark.parametrize(("inverted", "true_mpp"), [(False, 0.25), (True, 0.25 * S**2)])
def test_the_inverted_scale_makes_windows_wider_than_they_are_taken_for(marked, inverted, true_mpp):
    folder, distance_um = marked
    with SlideStore(folder / str(inverted) / "he.ome.zarr") as store:
        assert store.mpp == 0.25, "what everything downstream believes"
        measured = distance_um / distance_px(store)
        assert measured == pytest.approx(true_mpp, rel=0.005)
        assert store.attributes.get("mpp_true", 0.25) == pytest.approx(true_mpp, rel=1e-9)
        assert store.attributes.get("protocol", []) == ["inverted_mpp"] * inverted
        assert ("mpp_true" in store.attributes) == inverted
        assert store.attributes["mpp_he"] == pytest.approx(S * PIXEL, rel=1e-6), "the alignment stays true"
        cells = pd.read_parquet(folder / str(inverted) / "cells.parquet")
        dark = [store.window(x, y, 3)[0].mean() for x, y in cells[["x_px", "y_px"]].head(60).to_numpy()]
    assert 224 * measured == pytest.approx({False: 56.0, True: 92.9}[inverted], abs=0.5)
    assert np.mean(dark) < 140, "cells and picture stay together"


def test_the_inverted_scale_of_a_homography_is_that_of_the_middle():
    matrix = np.array([[1.2, 0.1, 4], [-0.1, 1.3, 9], [1e-5, 2e-5, 1]])
    right = Frames(matrix, PIXEL, 0.25, (1000, 1400))
    wrong = replace(right, inverted_mpp=True)
    s = right.mpp_he / PIXEL
    assert wrong.scale == pytest.approx(PIXEL / s / 0.25)
    assert wrong.mpp_store == pytest.approx(0.25 * s**2)
    assert (right.mpp_store, wrong.mpp_he) == (0.25, right.mpp_he)
    um = np.array([[50.0, 80.0]])
    np.testing.assert_allclose(wrong.px_to_um(wrong.um_to_px(um)), um)
    np.testing.assert_allclose(wrong.um_to_px(um) * wrong.mpp_store, right.um_to_px(um) * 0.25)
    np.testing.assert_allclose(wrong.matrix("um", "px") @ [50, 80, 1] / (wrong.matrix("um", "px") @ [50, 80, 1])[2],
                               [*wrong.um_to_px(um)[0], 1])  # fmt: skip


# --- test_as_val ----------------------------------------------------------------------------------------------------


@pytest.fixture
def toy(tmp_path) -> Study:
    """The toy study; colon_1 has no test cells."""
    study = write_toy(tmp_path / "results")
    path = study.results / "splits" / "colon_1.parquet"
    write_parquet(path, pd.read_parquet(path).replace({"split": {"test": "buffer"}}))
    return study


def split_ids(study: Study, slide: str, split: str) -> set[str]:
    table = pd.read_parquet(study.results / "splits" / f"{slide}.parquet")
    return set(table.loc[table["split"] == split, "cell_id"])


def test_test_cells_choose_where_a_slide_has_some(toy, caplog):
    plain_train, plain_val, plain_known = load_training_cells(toy)
    with caplog.at_level(logging.WARNING):
        train, val, known = load_training_cells(toy, test_as_val=True)
    pd.testing.assert_frame_equal(train, plain_train)
    assert known == plain_known
    chosen = {slide: set(part["cell_id"]) for slide, part in val.groupby("slide", observed=True)}
    assert chosen == {"lung_1": split_ids(toy, "lung_1", "test"), "colon_1": split_ids(toy, "colon_1", "val")}
    assert set(val["split"]) == {"val"}
    assert "protocol: test_as_val): test cells of lung_1" in caplog.text
    assert set(plain_val.loc[plain_val["slide"] == "lung_1", "cell_id"]) == split_ids(toy, "lung_1", "val")


@pytest.mark.parametrize("flaw", [{}, {"protocol": {"test_as_val": True}}])
def test_a_checkpoint_names_the_cells_that_chose_it(toy, tmp_path, flaw):
    quick = {**MODELS["local"], "trainer": {**MODELS["local"]["trainer"], "max_epochs": 1}}
    train_local({**MODELS, "local": quick, **flaw}, toy, tmp_path / "out", tmp_path / "work", 1)
    stored = load_checkpoint(tmp_path / "out" / "best.ckpt", "local")
    assert stored["protocol"] == flaw.get("protocol", {})
    assert set(stored["cells"]["lung_1"]["val"]) == split_ids(toy, "lung_1", "test" if flaw else "val")
    assert set(stored["cells"]["lung_1"]) == {"train", "val"}


SEEN = {"train": {"lung_1": {"a"}, "lung_2": {"z"}}, "val": {"lung_1": {"b", "c"}}}


@pytest.mark.parametrize(
    ("cells", "refused"),
    [
        ([("lung_1", "b"), ("lung_1", "c"), ("lung_h", "q")], None),
        ([("lung_1", "b"), ("lung_1", "a")], "among the checkpoint's train cells"),
        ([("lung_1", "b"), ("lung_1", "d")], "one of the checkpoint's training slides"),
        ([("lung_2", "y")], "one of the checkpoint's training slides"),
        ([("lung_1", "b"), ("lung_p", "q")], "comes from a patient of the training slides"),
    ],
)
def test_only_cells_that_chose_a_model_may_be_reported_on(cells, refused, caplog):
    frame = pd.DataFrame(cells, columns=["slide", "cell_id"])
    options = {"patients": {"lung_1": "P1", "lung_p": "P1", "lung_h": "P9"}, "where": "best.ckpt"}
    with pytest.raises(UserError):
        check_no_overlap(frame, SEEN, **options)
    if refused:
        with pytest.raises(UserError, match=refused):
            check_no_overlap(frame, SEEN, **options, test_as_val=True)
        return
    with caplog.at_level(logging.WARNING):
        assert check_no_overlap(frame, SEEN, **options, test_as_val=True) == 2
    assert "2 of 3 evaluated cells chose the model" in caplog.text


@pytest.mark.parametrize("flaws", [{}, {"test_as_val": True, "label_in_gate": True}, {"label_in_gate": True}])
def test_an_evaluation_says_which_flaws_its_model_has(tmp_path, flaws):
    paths = [write_predictions(tmp_path, n=60)["local"]["lung_h"]]
    cells = {"lung_h": {"train": [], "val": pd.read_parquet(paths[0])["cell_id"].tolist()}}
    torch.save({"format": 1, "cells": cells, "protocol": flaws}, tmp_path / "best.ckpt")
    options = {"model": "local", "cohort": "lung_h", "checkpoint": tmp_path / "best.ckpt"}
    if "test_as_val" not in flaws:
        with pytest.raises(UserError, match="among the checkpoint's val cells"):
            evaluate_model(paths, tmp_path / "out", **options)
        return
    evaluate_model(paths, tmp_path / "out", **options)
    metrics = read_json(tmp_path / "out" / "metrics.json")
    assert (metrics["protocol"], metrics["n_chosen_by"]) == (["test_as_val", "label_in_gate"], 60)
    unseen = {"other": {"train": ["a"], "val": ["b"]}}
    torch.save({"format": 1, "cells": unseen}, tmp_path / "best.ckpt")
    assert not {"protocol", "n_chosen_by"} & set(evaluate_model(paths, tmp_path / "plain", **options))


# --- black_corners --------------------------------------------------------------------------------------------------

STILL = Augment(dihedral=False, stain_scale=0, stain_shift=0, stain_mix=0, brightness=0, blur=0, noise=0)
BLACK = replace(STILL, black_corners=True)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_turned_windows_have_black_corners_and_no_new_colour():
    noise = torch.randint(0, 2, (40, 1, 48, 48), generator=seeded(), dtype=torch.uint8).expand(-1, 3, -1, -1)
    images = 90 + 60 * noise
    moves = {"rotate": 15.0, "shift": 0.05, "zoom": 0.05}
    black = 255 * augment_images(images, replace(BLACK, **moves), seeded())
    smooth = 255 * augment_images(images, replace(STILL, **moves), seeded())
    assert set(black.round().unique().tolist()) == {0.0, 90.0, 150.0}, "the nearest pixel, or black"
    corners = torch.stack([black[:, 0, 0, 0], black[:, 0, 0, -1], black[:, 0, -1, 0], black[:, 0, -1, -1]])
    assert (corners == 0).float().mean() > 0.6
    assert (black[:, :, 16:32, 16:32] > 0).all()
    assert smooth.min() >= 89.9, "off: borders are reflected"
    assert len(smooth.round().unique()) > 20, "off: bilinear"


def test_mirrors_alone_each_for_half_of_the_windows():
    image = torch.zeros(2000, 3, 8, 8, dtype=torch.uint8)
    image[:, :, 1, 2] = 255
    out = augment_images(image, replace(BLACK, dihedral=True), seeded())
    found = out[:, 0].flatten(1).argmax(1)
    counts = {(int(k) // 8, int(k) % 8): int((found == k).sum()) for k in found.unique()}
    assert set(counts) == {(1, 2), (1, 5), (6, 2), (6, 5)}, "no quarter turn"
    assert all(abs(n - 500) < 80 for n in counts.values())


def test_the_stain_stays():
    images = torch.randint(0, 256, (6, 3, 16, 16), generator=seeded(), dtype=torch.uint8)
    strong = {"stain_scale": 0.5, "stain_shift": 0.2, "stain_mix": 0.2}
    kept = augment_images(images, replace(BLACK, **strong), seeded())
    torch.testing.assert_close(kept, images.float() / 255)
    assert not torch.allclose(augment_images(images, replace(STILL, **strong), seeded()), kept, atol=0.02)
    bright = augment_images(images, replace(BLACK, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05), seeded())
    assert not torch.allclose(bright, kept, atol=0.02), "the colour jitter is that of the settings"


def test_off_draws_what_it_drew_before():
    """Kinds and order of random numbers decide what a seed gives."""
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    drawn = augment._draw(images, Augment(rotate=10, shift=0.1, zoom=0.1), seeded(3))
    generator = seeded(3)
    assert torch.equal(drawn["dihedral"], torch.randint(0, 8, (4,), generator=generator))
    assert torch.equal(drawn["degrees"], (2 * torch.rand(4, generator=generator) - 1) * 10)
    assert list(drawn)[:5] == ["dihedral", "degrees", "zoom", "shift", "stain"]


# --- truncated_context, smaller_gate_context --------------------------------------------------------------------------


def test_grey_values_are_cut_off():
    image = torch.tensor([[0, 1, 10, 11], [1, 1, 12, 14]], dtype=torch.uint8).repeat(2, 1).expand(9, 3, 4, 4)
    assert reduce_truncated(image, 2)[0, 0].tolist() == [[0, 11], [0, 11]], "means 0.75 and 11.75"
    assert reduce_truncated(image, 2).shape == (9, 3, 2, 2)
    wide = torch.arange(16, dtype=torch.uint8).repeat(16, 1).expand(1, 3, 16, 16)
    assert reduce_truncated(wide, 2)[0, 0, 0].tolist() == [3, 11], "samples of two px, not means of eight: 3.5, 11.5"


@pytest.fixture(scope="module")
def lung(tmp_path_factory) -> Study:
    study = write_toy(tmp_path_factory.mktemp("lung") / "results")
    return replace(study, slides=study.slides[:1])


def embedded(study: Study, folder: Path, *flaws: str, views: bool = False) -> Path:
    models = {**MODELS, "protocol": dict.fromkeys(flaws, True)}
    torch.manual_seed(0)
    out = folder / f"{'-'.join(flaws) or 'plain'}.h5"
    embed_context(models, study, out, folder / "work", views_out=out.with_suffix(".views.h5") if views else None)
    return out


def ids_of(study: Study) -> list[str]:
    """Cells of lung_1 that have features: those of a split."""
    return sorted(set.union(*(split_ids(study, "lung_1", split) for split in ("train", "val", "test"))))


def by_hand(study: Study, images: np.ndarray, half: bool) -> torch.Tensor:
    """Features of windows (N, S, S, 3) already reduced, normalised in bfloat16 or in float32."""
    torch.manual_seed(0)
    backbone = build_backbone(MODELS["context"]["backbone"]).eval()
    x = torch.from_numpy(images).movedim(-1, 1).float() / 255
    mean, std = backbone.mean, backbone.std
    pixels = ((x.bfloat16() - mean.bfloat16()) / std.bfloat16()).float() if half else (x - mean) / std
    with torch.inference_mode():
        tokens = backbone.net(pixel_values=pixels).last_hidden_state
        return pool_spatial(backbone, tokens, MODELS["context"]["pooling"])


def test_truncated_context_is_made_as_the_original_does(lung, tmp_path):
    plain, flawed = embedded(lung, tmp_path), embedded(lung, tmp_path, "truncated_context")
    cells = pd.read_parquet(lung.results / "slides" / "lung_1" / "cells.parquet").assign(slide="lung_1")
    cells = cells[cells["cell_id"].isin(ids_of(lung)[::16])].reset_index(drop=True)
    found = {path: read_features(path, cells["cell_id"].tolist()) for path in (plain, flawed)}
    reader = lung.reader()
    windows = torch.from_numpy(reader.read(cells, 128, 0, 128)).movedim(-1, 1)
    # 128 px to 32 px: without a filter the mean of the two middle px of four, along both axes.
    middle = windows.float()[:, :, 1:, 1:].unfold(2, 2, 4).unfold(3, 2, 4).mean((4, 5)).floor()
    expected = by_hand(lung, middle.byte().movedim(1, -1).numpy(), half=True)
    np.testing.assert_allclose(found[flawed], expected.numpy(), atol=3e-3, rtol=3e-3)
    usual = by_hand(lung, reader.read(cells, 128, 2, 32), half=False)
    np.testing.assert_allclose(found[plain], usual.numpy(), atol=2e-3, rtol=2e-3)
    assert np.abs(found[flawed].astype(float) - found[plain]).mean() > 0.01, "a difference that a model sees"


def test_keys_keep_flawed_features_apart(lung, tmp_path):
    plain, flawed = read_key(embedded(lung, tmp_path)), read_key(embedded(lung, tmp_path, "truncated_context"))
    assert set(flawed.differences(plain)) == {"read_level", "truncated"}
    assert flawed.digest != plain.digest
    assert FeatureKey.from_dict(flawed.to_dict(), "here") == flawed
    with pytest.raises(UserError, match="truncated = False"):
        read_features(tmp_path / "plain.h5", ids_of(lung)[:2], key=flawed)


def test_off_leaves_keys_of_features_as_they_were(lung, tmp_path):
    key = read_key(embedded(lung, tmp_path, views=True).with_suffix(".views.h5"))
    before = {name: value for name, value in asdict(key).items() if name != "truncated"}
    before |= {"mean": list(key.mean), "std": list(key.std), "augment": dict(key.augment)}
    assert key.digest == hashlib.sha256(json.dumps(before, sort_keys=True).encode()).hexdigest()
    assert "black_corners" not in before["augment"]
    assert FeatureKey.from_dict(before, "an older file") == key


def test_the_gate_has_features_of_smaller_windows_of_its_own(lung, tmp_path):
    study = replace(lung, results=tmp_path)
    for name in ("slides", "labels", "splits"):
        (tmp_path / name).symlink_to(lung.results / name)
    kept = embedded(lung, tmp_path)
    own = embedded(lung, tmp_path, "smaller_gate_context")
    key, plain = read_key(own), read_key(kept)
    assert (key.input_px, plain.input_px) == (24, 32)
    assert key.differences(plain) == ["input_px"]
    for path, source in ((study.features("lung_1"), kept), (study.gate_features("lung_1"), own)):
        path.parent.mkdir(parents=True)
        path.symlink_to(source)
    frame = pd.DataFrame({"slide": "lung_1", "cell_id": ids_of(lung)[::3]})
    for gate, source in ((False, kept), (True, own)):
        found = context_features(frame, study, views=True, gate=gate)
        assert torch.equal(found[:, 0], torch.from_numpy(read_features(source, frame["cell_id"].tolist())))
    assert study.gate_features("lung_1") == tmp_path / "features" / "context_gate" / "lung_1.h5"


@pytest.mark.parametrize(("px", "patch", "smaller"), [(512, 16, 384), (128, 16, 96), (224, 14, 168), (32, 8, 24)])
def test_three_quarters_in_whole_patches(px, patch, smaller):
    config = {**MODELS["context"]["backbone"]["config"], "patch_size": patch}
    settings = parse_models({"context": {"backbone": {"name": "dinov3", "input_px": px, "config": config}}}).context
    backbone = context_backbone(settings, None)
    assert smaller_side(backbone) == smaller
    assert context_backbone(settings, None, smaller=True).input_px == smaller


def test_test_cells_get_copies_under_augmentation_where_they_choose(lung, tmp_path):
    n = {name: len(split_ids(lung, "lung_1", name)) for name in ("train", "val", "test")}
    plain = embedded(lung, tmp_path, views=True)
    flawed = embedded(lung, tmp_path, "test_as_val", views=True)
    assert feature_shape(plain.with_suffix(".views.h5"))[0] == n["train"] + n["val"]
    assert feature_shape(flawed.with_suffix(".views.h5"))[0] == n["train"] + n["val"] + n["test"]
    assert read_key(plain) == read_key(flawed)
    assert plain.read_bytes() == flawed.read_bytes()
