"""Embedding the cells of a slide: of both windows, resumed, with workers; and which features a model accepts."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

from nuclass.core.errors import UserError
from nuclass.data.augment import Augment
from nuclass.data.features import FeatureKey, read_features, read_key, write_features
from nuclass.data.study import Study
from nuclass.models.backbones import Backbone, build_backbone
from nuclass.slides.geometry import Frames
from nuclass.slides.writer import write_store
from nuclass.training import embedding
from nuclass.training.branches import check_features, feature_attributes, state_hash
from nuclass.training.embedding import Embedding, embed_slide, network_hash, pool_spatial, pool_tokens
from nuclass.training.inputs import context_features

torch.set_num_threads(1)
SIDE, N = 512, 150
TOKENS = {
    "name": "dinov3",
    "input_px": 32,
    "config": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_register_tokens": 2,
        "patch_size": 8,
        "image_size": 32,
        "layerscale_value": 0.5,
        "pos_embed_rescale": None,
    },
}
MAP = {"name": "timm:test_resnet", "input_px": 32}
WIDE = Embedding(window="global", read_level=2, pooling="cls+center", batch_size=16, accelerator="cpu")
VIEWS = replace(WIDE, views=2, augment=Augment(noise=0.02), seed=7)


def network(settings: dict) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(settings)


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> tuple[Study, pd.DataFrame]:
    """A slide of coloured noise, and cells all over it, some at its very edge."""
    results = tmp_path_factory.mktemp("embed") / "results"
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 256, (SIDE // 8, SIDE // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    (results / "slides" / "s").mkdir(parents=True)
    tifffile.imwrite(results / "he.ome.tif", image, tile=(128, 128), photometric="rgb")
    frames = Frames(np.eye(3), 0.25, 0.25)
    write_store(results / "he.ome.tif", frames, results / "slides" / "s" / "he.ome.zarr", tile=64, shard=256, levels=3)
    xy = rng.uniform(0, SIDE, (N, 2))
    frame = pd.DataFrame(
        {"slide": "s", "organ": "lung", "cell_id": [f"c{i:03d}" for i in range(N)], "x_px": xy[:, 0], "y_px": xy[:, 1]}
    ).assign(row=np.arange(N, dtype=np.int32), split=np.where(xy[:, 1] < 300, "train", "test"))
    return Study([{"slide": "s", "organ": "lung"}], results, windows={"local": 32, "global": 128}), frame


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of 48 cells, so that a slide of 150 has four."""
    monkeypatch.setattr("nuclass.data.feature_cache.BLOCK_CELLS", 48)


def embed(slide, folder: Path, settings: Embedding, described: dict = TOKENS) -> FeatureKey:
    study, frame = slide
    out, views = folder / "a.h5", folder / "a.views.h5" if settings.views else None
    return embed_slide(
        network(described),
        frame,
        study,
        settings,
        out,
        folder / "work",
        name="tiny",
        views_out=views,
        augmented=(frame["split"] == "train").to_numpy(),
    )


@pytest.mark.parametrize(
    ("described", "window", "level", "pooling", "width"),
    [
        (TOKENS, "global", 2, "cls+center+mean", 48),
        (TOKENS, "local", 0, "native", 16),
        (MAP, "local", 0, "native", 96),
        (MAP, "local", 0, "mean+center", 192),
        (MAP, "global", 2, "mean", 96),
    ],
)
def test_features_are_those_of_each_cell_alone(slide, tmp_path, described, window, level, pooling, width):
    study, frame = slide
    settings = replace(WIDE, window=window, read_level=level, pooling=pooling)
    key = embed(slide, tmp_path, settings, described)
    backbone = network(described).eval()
    some = frame.iloc[[140, 3, 77, 12]]
    found = read_features(tmp_path / "a.h5", some["cell_id"].tolist(), key=key)
    assert found.shape == (4, width)
    images = study.reader().read(some, study.windows[window], level, 32)
    with torch.inference_mode():
        spatial = backbone.spatial(torch.from_numpy(images).movedim(-1, 1).float() / 255)
        expected = pool_spatial(backbone, spatial, pooling)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-3, rtol=2e-3)
    assert not np.allclose(found[0], found[1], atol=1e-2)
    assert (key.window_px, key.read_level, key.pooling, key.input_px) == (study.windows[window], level, pooling, 32)
    assert (key.backbone, key.precision, key.mpp, key.mean) == ("tiny", "float32", 0.25, (0.485, 0.456, 0.406))


def test_the_key_knows_what_weights_do_not_show(tmp_path):
    """Another number of heads fits the same weights and gives other features."""
    plain = network(TOKENS)
    heads = network({**TOKENS, "config": {**TOKENS["config"], "num_attention_heads": 4}})
    assert state_hash(heads) == state_hash(plain)
    assert network_hash(heads) != network_hash(plain)
    plain.net.save_pretrained(tmp_path / "kept")
    again = build_backbone({"name": "folder", "path": str(tmp_path / "kept"), "input_px": 32})
    assert network_hash(again) == network_hash(plain)
    torch.manual_seed(1)
    assert network_hash(build_backbone(TOKENS)) != network_hash(plain)
    one, two = network(MAP), network({**MAP, "kwargs": {"drop_path_rate": 0.1}})
    assert state_hash(one) == state_hash(two)
    assert network_hash(one) != network_hash(two)
    pooled = network({**TOKENS, "pool": "mean"})
    assert state_hash(pooled) == state_hash(plain)
    assert network_hash(pooled) != network_hash(plain) == network_hash(network({**TOKENS, "pool": "native"}))


def test_the_file_is_in_tile_order(slide, tmp_path):
    embed(slide, tmp_path, WIDE)
    with h5py.File(tmp_path / "a.h5") as file:
        ids = file["cell_id"].asstr()[:].tolist()
    assert ids == embedding.by_place(slide[1])["cell_id"].tolist() != slide[1]["cell_id"].tolist()


def test_a_pass_that_is_broken_off_ends_with_the_same_numbers(slide, tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    embed(slide, tmp_path / "whole", VIEWS)
    rows, real = [], embedding._Pass._embed

    def embed_or_stop(self, image, row, stop):
        rows.append(row)
        if row >= stop:
            raise KeyboardInterrupt
        return real(self, image, row)

    for stop, expected in ((64, [0, 16, 32, 48, 64]), (144, [48, 64, 80, 96, 112, 128, 144]), (N, [144])):
        rows.clear()
        monkeypatch.setattr(
            embedding._Pass, "_embed", lambda self, image, row, stop=stop: embed_or_stop(self, image, row, stop)
        )
        if stop < N:
            with pytest.raises(KeyboardInterrupt):
                embed(slide, tmp_path / "broken", VIEWS)
        else:
            embed(slide, tmp_path / "broken", VIEWS)
        assert rows == expected
    for name in ("a.h5", "a.views.h5"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "broken" / "work").exists()


def test_views_are_of_the_marked_cells_and_differ(slide, tmp_path):
    _, frame = slide
    key = embed(slide, tmp_path, VIEWS)
    marked = frame.loc[frame["split"] == "train", "cell_id"].tolist()
    views = read_features(tmp_path / "a.views.h5", marked)
    plain = read_features(tmp_path / "a.h5", marked)
    assert views.shape == (len(marked), 2, 32)
    with h5py.File(tmp_path / "a.views.h5") as file:
        assert len(file["cell_id"]) == len(marked)
    for one, other in ((views[:, 0], views[:, 1]), (views[:, 0], plain)):
        assert (np.abs(one - other).max(1) > 1e-3).all()
    stored = read_key(tmp_path / "a.views.h5")
    assert stored.plain() == key
    assert (stored.views, stored.seed, dict(stored.augment)["noise"]) == (2, 7, 0.02)


def test_the_first_part_has_the_seeds_of_the_views_alone(slide, tmp_path, monkeypatch):
    """Slides of one part keep their numbers whatever the size of a part."""
    embed(slide, tmp_path, VIEWS)
    ids = embedding.by_place(slide[1]).iloc[:48].loc[lambda t: t["split"] == "train", "cell_id"].tolist()
    before = read_features(tmp_path / "a.views.h5", ids)
    monkeypatch.setattr("nuclass.data.feature_cache.BLOCK_CELLS", 4096)
    embed(slide, tmp_path, VIEWS)
    np.testing.assert_array_equal(read_features(tmp_path / "a.views.h5", ids), before)


def test_every_part_and_view_has_a_random_stream_of_its_own(slide):
    study, frame = slide
    steps = embedding._Pass(network(TOKENS), frame, study, VIEWS, None, 48)
    seeds = set()
    for part in range(50):
        steps._seed(part)
        seeds |= {generator.initial_seed() for generator in steps.generators}
    assert len(seeds) == 100


def test_no_cell_is_augmented(slide, tmp_path):
    study, frame = slide
    test = frame[frame["split"] == "test"]
    embed_slide(
        network(TOKENS), test, study, VIEWS, tmp_path / "a.h5", tmp_path / "w", name="t", views_out=tmp_path / "v.h5"
    )
    assert read_features(tmp_path / "v.h5", []).shape == (0, 2, 32)


def test_workers_change_nothing(slide, tmp_path):
    for workers in (0, 2):
        (tmp_path / str(workers)).mkdir()
        embed(slide, tmp_path / str(workers), replace(VIEWS, workers=workers))
    for name in ("a.h5", "a.views.h5"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("pooling", "pooling of features: cls+center, now mean"),
        ("weights", "sha256 of features"),
        ("places", "other places"),
        ("batch", "other batch size"),
        ("slide", "other pixels"),
    ],
)
def test_what_is_left_of_another_pass_is_not_used(slide, tmp_path, monkeypatch, caplog, what, told):
    study, frame = slide
    real = embedding._Pass._embed
    stop = {"at": 100}

    def embed_or_stop(self, image, row):
        if row >= stop["at"]:
            raise KeyboardInterrupt
        return real(self, image, row)

    monkeypatch.setattr(embedding._Pass, "_embed", embed_or_stop)
    arguments = (tmp_path / "a.h5", tmp_path / "work")
    with pytest.raises(KeyboardInterrupt):
        embed_slide(network(TOKENS), frame, study, WIDE, *arguments, name="t")
    stop["at"] = N
    backbone, settings = network(TOKENS), WIDE
    if what == "pooling":
        settings = replace(WIDE, pooling="mean")
    elif what == "weights":
        torch.nn.init.normal_(next(backbone.parameters()))
    elif what == "places":
        frame = frame.assign(x_px=frame["x_px"] + 1e-6)
    elif what == "batch":
        settings = replace(WIDE, batch_size=24)
    else:
        store = study.source("s") / "zarr.json"
        store.write_text(store.read_text() + "\n")
    with caplog.at_level(logging.WARNING, "nuclass"):
        embed_slide(backbone, frame, study, settings, *arguments, name="t")
    assert told in caplog.text
    assert not arguments[1].exists()


def test_the_backbone_is_frozen(slide, tmp_path):
    study, frame = slide
    backbone = network(MAP).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    settings = replace(WIDE, window="local", read_level=0, pooling="native")
    embed_slide(backbone, frame, study, settings, tmp_path / "a.h5", tmp_path / "w", name="m")
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_bfloat16_is_another_key(slide, tmp_path):
    key = embed(slide, tmp_path, replace(WIDE, precision="bf16-mixed"))
    assert key.precision == "bfloat16"
    rough = read_features(tmp_path / "a.h5", ["c000"])
    plain = embed(slide, tmp_path, WIDE)
    assert not np.array_equal(rough, read_features(tmp_path / "a.h5", ["c000"]))
    np.testing.assert_allclose(rough, read_features(tmp_path / "a.h5", ["c000"]), atol=0.1)
    with pytest.raises(UserError, match=r"found: +precision = float32\n +expected: +precision = bfloat16"):
        read_features(tmp_path / "a.h5", ["c000"], key=key)
    assert plain == replace(key, precision="float32")


def test_poolings_that_a_backbone_lacks(slide, tmp_path):
    for described, pooling in ((MAP, "cls"), (TOKENS, "max"), (TOKENS, "native+cls"), (MAP, "mean+")):
        with pytest.raises(UserError, match="cannot be pooled in this way") as caught:
            embed(slide, tmp_path, replace(WIDE, pooling=pooling), described)
        assert caught.value.found == pooling
    assert str(caught.value.expected) == "native, or mean, center joined by +"
    assert not list(tmp_path.iterdir())


def test_features_that_are_not_finite_name_their_cells(slide, tmp_path):
    study, frame = slide
    backbone = network(MAP)
    backbone.mean.fill_(float("nan"))
    settings = replace(WIDE, window="local", read_level=0, pooling="native")
    with pytest.raises(UserError) as caught:
        embed_slide(backbone, frame, study, settings, tmp_path / "a.h5", tmp_path / "w", name="m")
    first = ", ".join(embedding.by_place(frame)["cell_id"].iloc[:3])
    assert caught.value.found == f"16 of 16 cells, the first: {first}"


def test_a_slide_without_windows_and_two_slides_at_once(slide, tmp_path):
    study, frame = slide
    two = frame.assign(slide=["s", "t"] * (N // 2))
    with pytest.raises(ValueError, match="one slide, not of 2"):
        embed_slide(network(TOKENS), two, study, WIDE, tmp_path / "a.h5", tmp_path / "w", name="t")
    nowhere = Study([{"slide": "s", "organ": "lung"}], tmp_path, windows=study.windows)
    with pytest.raises(UserError, match="There is no slide store"):
        embed_slide(network(TOKENS), frame, nowhere, WIDE, tmp_path / "a.h5", tmp_path / "w", name="t")


def test_pooling_of_tokens_and_maps_agrees():
    grid = torch.randn(2, 5, 4, 4)
    tokens = torch.cat([torch.zeros(2, 3, 5), grid.flatten(2).mT], 1)
    backbone = network(MAP)
    for pooling in ("mean", "center", "mean+center"):
        torch.testing.assert_close(pool_spatial(backbone, grid, pooling), pool_tokens(tokens, 3, pooling))


class TestCachedContext:
    """What training reads: the features of a study's slides, and whether they fit."""

    KEY = FeatureKey("t", "f", 128, 0.25, 2, 32, "cls", (0.5,), (0.5,), "float32")
    CHANGED = replace(KEY, views=2, augment=(("blur", 0.5),), seed=1)

    @pytest.fixture
    def study(self, tmp_path) -> Study:
        study = Study([{"slide": slide, "organ": "lung"} for slide in "ab"], tmp_path)
        for slide, base in (("a", 0), ("b", 100)):
            values = np.arange(base, base + 10, dtype=np.float32)[:, None] + np.array([0, 0.5])
            ids = [f"{i:03d}" for i in range(10)]
            write_features(study.features(slide), ids, values, self.KEY)
            copies = np.stack([values[:6] + 1000, values[:6] + 2000], 1)
            write_features(study.views(slide), ids[:6], copies, self.CHANGED)
        return study

    @pytest.fixture
    def frame(self) -> pd.DataFrame:
        return pd.DataFrame({"slide": list("babba"), "cell_id": ["005", "001", "000", "003", "004"]})

    def test_rows_follow_the_table(self, study, frame):
        found = context_features(frame, study, views=True)
        assert found.dtype == torch.float16
        assert found.shape == (5, 3, 2)
        assert found[:, 0, 0].tolist() == [105, 1, 100, 103, 4]
        assert found[:, 2, 1].tolist() == torch.tensor([2105.5, 2001.5, 2100.5, 2103.5, 2004.5]).half().tolist()
        assert context_features(frame, study, views=False).tolist() == found[:, :1].tolist()
        compact = frame.assign(slide=frame["slide"].astype("category"))
        assert context_features(compact, study, views=True).tolist() == found.tolist()

    def test_without_views_there_are_plain_ones(self, study, frame):
        for slide in "ab":
            study.views(slide).unlink()
        assert context_features(frame, study, views=True).shape == (5, 1, 2)

    def test_slides_that_differ(self, study, frame):
        study.views("b").unlink()
        with pytest.raises(UserError, match=r"differ between slides[\s\S]*\(1, 2\), \(3, 2\)"):
            context_features(frame, study, views=True)
        write_features(study.features("b"), ["000"], np.ones((1, 2)), replace(self.KEY, read_level=1))
        with pytest.raises(UserError) as caught:
            feature_attributes(study, ["a", "b"])
        assert str(caught.value).splitlines() == [
            "Context features of two slides were made in different ways",
            f"  where:      {study.features('a')} and {study.features('b')}",
            "  found:      read_level = 1",
            "  expected:   read_level = 2",
            "  to mend it: compute the features of all slides again",
        ]

    def test_views_of_other_features(self, study, frame):
        ids = [f"{i:03d}" for i in range(6)]
        write_features(study.views("b"), ids, np.ones((6, 2, 2)), replace(self.CHANGED, sha256="old"))
        with pytest.raises(UserError, match=r"not copies of the plain ones[\s\S]*sha256 = old[\s\S]*sha256 = f"):
            context_features(frame, study, views=True)
        write_features(study.views("b"), ids, np.ones((6, 2, 2)), replace(self.CHANGED, seed=2))
        with pytest.raises(UserError, match=r"augmented in different ways[\s\S]*seed = 1[\s\S]*seed = 2"):
            context_features(frame, study, views=True)
        context_features(frame, study, views=False)

    def test_a_cell_without_features(self, study, frame):
        with pytest.raises(UserError, match="1 of 2 cells are not among the 10 stored, the first: 999"):
            context_features(frame.replace("001", "999"), study, views=False)

    def test_a_model_takes_the_features_it_saw(self, study, frame, caplog):
        saw = {"features": feature_attributes(study, ["a", "b"])}
        assert saw["features"] == self.KEY.to_dict()
        check_features(study, frame, saw)
        assert not caplog.text
        with pytest.raises(UserError) as caught:
            check_features(study, frame, {"features": replace(self.KEY, pooling="mean").to_dict()})
        assert str(caught.value).splitlines() == [
            "Context features do not fit the global model",
            f"  where:      {study.features('b')}",
            "  found:      pooling = cls",
            "  expected:   pooling = mean",
            "  to mend it: compute the features of this slide again with the model's backbone",
        ]

    def test_another_precision_is_told_only(self, study, frame, caplog):
        with caplog.at_level(logging.WARNING, "nuclass"):
            check_features(study, frame, {"features": replace(self.KEY, precision="bfloat16").to_dict()})
        assert "features in float32, the model saw bfloat16" in caplog.text

    def test_a_checkpoint_of_an_older_version(self, study, frame):
        with pytest.raises(UserError, match=r"other fields than this version's[\s\S]*checkpoint of the global model"):
            check_features(study, frame, {"features": {"sha256": "f"}})
