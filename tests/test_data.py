"""From files to batches: the join, windows, datasets, loaders, features, vocabularies, the funnel."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

from nuclass.core.errors import UserError
from nuclass.core.files import write_parquet
from nuclass.data import (
    BatchLoader,
    BlockBatchSampler,
    InMemoryWindows,
    Vocabulary,
    WindowDataset,
    balanced_weights,
    choose_dataset,
    funnel_table,
    load_cells,
    make_loader,
)
from nuclass.patches.windows import WindowReader, shrink
from nuclass.slides.geometry import Frames, window_origin
from nuclass.slides.writer import write_store

SLIDES = [{"slide": "lung_1", "organ": "lung", "role": "train"}, {"slide": "colon_1", "organ": "colon"}]
SIDE = 600


@pytest.fixture
def results(tmp_path):
    """Tables of two slides of 40 cells: 4 dropped, 6 abstained; the label and split tables in other orders."""
    rng = np.random.default_rng(0)
    for item in SLIDES:
        slide = item["slide"]
        ids = [f"{slide[0]}{i:03d}-1" for i in range(40)]
        status = np.array(["dropped"] * 4 + ["abstained"] * 6 + ["labelled"] * 30)
        reason = np.array(["low_counts"] * 3 + ["off_slide"] + ["margin"] * 6 + [""] * 30)
        place = rng.uniform(0, SIDE, (40, 2))
        cells = pd.DataFrame({"cell_id": ids, "x_px": place[:, 0], "y_px": place[:, 1]})
        cells["status"] = np.where(status == "dropped", "dropped", "kept")
        cells["reason"] = np.where(status == "dropped", reason, "")
        names = np.where(status == "labelled", np.resize(["T_Cell", "B_Cell", "Ductal"], 40), "")
        labels = pd.DataFrame({"cell_id": ids, "class": names, "status": status, "reason": reason})
        split = pd.DataFrame({"cell_id": ids, "split": np.resize(["train", "train", "val", "buffer", "test"], 40)})
        write_parquet(tmp_path / "slides" / slide / "cells.parquet", cells)
        write_parquet(tmp_path / "labels" / slide / "labels.parquet", labels.sample(frac=1, random_state=1))
        write_parquet(tmp_path / "splits" / f"{slide}.parquet", split.sample(frac=1, random_state=2))
    return tmp_path


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Two slide stores of random pixels, and the pixels."""
    root = tmp_path_factory.mktemp("stores")
    paths, pixels = {}, {}
    for number, item in enumerate(SLIDES):
        slide = item["slide"]
        image = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        tifffile.imwrite(root / f"{slide}.ome.tif", image, tile=(128, 128), photometric="rgb")
        frames = Frames(np.diag([1.25, 1.25, 1.0]), 0.2, 0.25)
        write_store(root / f"{slide}.ome.tif", frames, root / slide, tile=64, shard=256, levels=3)
        paths[slide], pixels[slide] = root / slide, image
    return paths, pixels


@pytest.fixture
def frame(results):
    return load_cells(SLIDES, results)


def cut(image, x, y, size):
    """Cut a level-0 window the slow way."""
    padded = np.pad(image, ((size, size), (size, size), (0, 0)), constant_values=255)
    x0, y0 = window_origin((x, y), size) + size
    return padded[y0 : y0 + size, x0 : x0 + size]


def change(path, edit):
    write_parquet(path, edit(pd.read_parquet(path)))


class TestLoadCells:
    def test_columns_and_order(self, results):
        frame = load_cells(SLIDES, results)
        assert list(frame.columns) == ["slide", "organ", "cell_id", "row", "x_px", "y_px", "class", "split"]
        assert len(frame) == 60
        assert list(frame["slide"].unique()) == ["lung_1", "colon_1"]
        assert list(frame["organ"].unique()) == ["lung", "colon"]
        assert frame["cell_id"].iloc[0] == "l010-1"
        # The tables were shuffled: each row must still carry its own class and split.
        number = frame["cell_id"].str[1:4].astype(int)
        assert (frame["class"] == np.array(["T_Cell", "B_Cell", "Ductal"])[number % 3]).all()
        assert (frame["split"] == np.array(["train", "train", "val", "buffer", "test"])[number % 5]).all()

    def test_filters(self, results):
        train = load_cells(SLIDES, results, ("train",))
        assert set(train["split"]) == {"train"}
        everything = load_cells(SLIDES, results, None, only_labelled=False)
        assert len(everything) == 80
        assert (everything["class"] == "").sum() == 20

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (lambda t: t.iloc[:-2], r"40 cells in .*cells.parquet, 38 in .*colon_1.parquet; 2 only in the first"),
            (lambda t: pd.concat([t, t.tail(1).assign(cell_id="new")]), r"41 in .*; 1 only in the second \(new\)"),
            (lambda t: pd.concat([t, t.tail(1)]), "Cell ids repeat"),
            (lambda t: t.rename(columns={"split": "part"}), "lacks columns"),
            (lambda t: t.assign(split="dev"), "split is not known"),
        ],
    )
    def test_split_table_that_does_not_fit(self, results, edit, message):
        change(results / "splits" / "colon_1.parquet", edit)
        with pytest.raises(UserError, match=message):
            load_cells(SLIDES, results)

    def test_other_mistakes(self, results):
        with pytest.raises(UserError, match="No labelled cells are left"):
            load_cells([], results)
        with pytest.raises(UserError, match="split is not known"):
            load_cells(SLIDES, results, ("dev",))
        with pytest.raises(UserError, match="asked for twice"):
            load_cells([*SLIDES, SLIDES[0]], results)
        change(results / "slides" / "lung_1" / "cells.parquet", lambda t: t.assign(x_px=np.nan))
        with pytest.raises(UserError, match="no position"):
            load_cells(SLIDES, results)
        (results / "labels" / "lung_1" / "labels.parquet").write_bytes(b"PAR1")
        with pytest.raises(UserError, match="cannot be read"):
            load_cells(SLIDES, results)
        (results / "labels" / "lung_1" / "labels.parquet").unlink()
        with pytest.raises(UserError, match=r"missing[\s\S]*labels\.parquet"):
            load_cells(SLIDES, results)

    def test_tables_need_no_torch(self):
        code = "import sys, nuclass.data as d; d.load_cells, d.funnel_table; assert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True)


class TestWindows:
    def test_windows_are_the_slides_pixels_in_row_order(self, stores, frame):
        paths, pixels = stores
        frame = frame.sample(frac=1, random_state=0)
        with WindowReader(paths) as reader:
            windows = reader.read(frame, 48, 0, 48)
        assert windows.shape == (60, 48, 48, 3)
        for window, row in zip(windows, frame.itertuples(), strict=True):
            np.testing.assert_array_equal(window, cut(pixels[row.slide], row.x_px, row.y_px, 48))

    def test_reduction_is_the_mean_of_the_area(self, stores, frame):
        paths, pixels = stores
        reader = WindowReader(paths)
        windows = reader.read(frame, 96, 0, 24)
        row = frame.iloc[7]
        mean = cut(pixels[row["slide"]], row["x_px"], row["y_px"], 96).reshape(24, 4, 24, 4, 3).mean(axis=(1, 3))
        assert np.abs(windows[7] - mean).max() <= 0.5
        coarse = reader.read(frame, 96, 1, 24)
        assert coarse.shape == windows.shape

    def test_other_ratios_are_resized_without_aliasing(self):
        stripes = np.zeros((1, 90, 90, 3), np.uint8)
        stripes[:, :, ::2] = 255
        small = shrink(stripes, 40)
        assert small.shape == (1, 40, 40, 3)
        assert np.abs(small[0, 5:-5, 5:-5].astype(float) - 127.5).max() < 40

    def test_chunks_change_nothing(self, stores, frame, monkeypatch):
        reader = WindowReader(stores[0])
        whole = reader.read(frame, 64, 1, 16)
        monkeypatch.setattr("nuclass.patches.windows.CHUNK_BYTES", 32 * 32 * 3 * 7)

        class Count:
            n = 0

            def advance(self, n=1):
                assert n <= 7
                self.n += n

        count = Count()
        np.testing.assert_array_equal(reader.read(frame, 64, 1, 16, count), whole)
        assert count.n == len(frame)

    def test_mistakes(self, stores, frame):
        reader = WindowReader({"lung_1": stores[0]["lung_1"]})
        with pytest.raises(UserError, match=r"no store[\s\S]*colon_1"):
            reader.read(frame, 32, 0, 32)
        with pytest.raises(UserError, match="multiple of 4 px"):
            reader.read(frame, 30, 2, 10)

    def test_empty(self, stores, frame):
        assert WindowReader(stores[0]).read(frame.iloc[:0], 32, 0, 16).shape == (0, 16, 16, 3)

    def test_pickles_without_open_files(self, stores, frame):
        reader = WindowReader(stores[0])
        first = reader.read(frame, 32, 0, 32)
        copy = pickle.loads(pickle.dumps(reader))
        np.testing.assert_array_equal(copy.read(frame, 32, 0, 32), first)


class TestDatasets:
    @pytest.fixture
    def both(self, stores, frame):
        vocabulary = Vocabulary.from_frame(frame)
        features = np.arange(len(frame) * 4, dtype=np.float32).reshape(-1, 4)
        return [
            choose_dataset(
                frame,
                WindowReader(stores[0]),
                vocabulary,
                size=64,
                level=1,
                out_px=16,
                memory_mb=memory,
                extra={"context": features},
            )
            for memory in (1.0, 0.01)
        ]

    def test_kind_depends_on_memory(self, both):
        assert isinstance(both[0], InMemoryWindows)
        assert isinstance(both[1], WindowDataset)

    def test_both_give_the_same_items(self, both, frame):
        for index in (3, [5, 2, 40, 59], torch.tensor([1, 0])):
            one, two = both[0][index], both[1][index]
            assert set(one) == {"image", "organ", "label", "index", "context"}
            for name in one:
                assert torch.equal(one[name], two[name]), name
                assert one[name].dtype == two[name].dtype
        assert both[0][3]["image"].shape == (3, 16, 16)
        assert both[0][3]["image"].dtype == torch.uint8
        assert both[0][[1, 2]]["image"].shape == (2, 3, 16, 16)
        assert both[0].label.dtype == torch.int64
        names = Vocabulary.from_frame(frame).decode_classes(both[0].label)
        assert names == list(frame["class"])

    @pytest.mark.parametrize("workers", [0, 2])
    def test_loaders_show_each_cell_once(self, both, workers):
        for dataset in both:
            loader = make_loader(dataset, 16, shuffle=True, seed=3, num_workers=workers)
            assert len(loader) == 4
            batches = list(loader)
            assert [len(batch["index"]) for batch in batches] == [16, 16, 16, 12]
            index = torch.cat([batch["index"] for batch in batches])
            assert sorted(index.tolist()) == list(range(60))
            assert index.tolist() != list(range(60))
            image = torch.cat([batch["image"] for batch in batches])
            assert torch.equal(image, both[0][index]["image"])
            flat = torch.cat([batch["index"] for batch in make_loader(dataset, 16)])
            assert flat.tolist() == list(range(60))

    def test_bad_shapes(self):
        with pytest.raises(ValueError, match="uint8"):
            InMemoryWindows(np.zeros((2, 3, 8, 8), np.uint8), [0, 0], [0, 0])
        with pytest.raises(ValueError, match="rows of label"):
            InMemoryWindows(np.zeros((2, 8, 8, 3), np.uint8), [0, 0], [0])
        with pytest.raises(ValueError, match="may not be called image"):
            InMemoryWindows(np.zeros((1, 8, 8, 3), np.uint8), [0], [0], {"image": np.zeros(1)})


class TestSampling:
    def test_seed_and_epoch_decide(self):
        one, two = (BlockBatchSampler(100, 32, shuffle=True, seed=5) for _ in range(2))
        first, second = list(one), list(one)
        assert first != second
        assert first == list(two)
        two.set_epoch(0)
        assert first == list(two)
        two.set_epoch(1)
        assert second == list(two)
        assert first != list(BlockBatchSampler(100, 32, shuffle=True, seed=6))

    @pytest.mark.parametrize(("n", "drop", "sizes"), [(70, True, [32, 32]), (70, False, [32, 32, 6]), (20, True, [20])])
    def test_last_batch(self, n, drop, sizes):
        sampler = BlockBatchSampler(n, 32, shuffle=True, drop_last=drop)
        assert [len(batch) for batch in sampler] == sizes
        assert len(sampler) == len(sizes)

    def test_weights_balance_classes(self):
        labels = np.array([0] * 900 + [1] * 90 + [2] * 10 + [-1] * 5)
        sampler = BlockBatchSampler(len(labels), 64, shuffle=True, weights=balanced_weights(labels))
        drawn = np.concatenate([labels[rows] for _ in range(20) for rows in sampler])
        assert (drawn >= 0).all()
        np.testing.assert_allclose(np.bincount(drawn) / len(drawn), 1 / 3, atol=0.02)
        assert len(np.unique(balanced_weights(labels, 0)[:1000])) == 1

    def test_blocks_keep_neighbours_together(self):
        n = 100_000
        order = np.random.default_rng(0).permutation(n)
        place = np.empty(n, np.int64)
        place[order] = np.arange(n)
        sampler = BlockBatchSampler(n, 64, shuffle=True, order=order)
        rows = np.concatenate(list(sampler))
        assert sorted(rows) == list(range(n))
        # 16 blocks of a pool touch at most 32 of the 391 stretches of 256; a borderline stretch of rows two pools.
        reached = [len(np.unique(place[rows[k : k + 4096]] // 256)) for k in range(0, n, 4096)]
        assert max(reached) <= 64
        weights = np.where(place < 10_000, 1.0, 0.0)
        drawn = np.concatenate(list(BlockBatchSampler(n, 64, shuffle=True, order=order, weights=weights)))
        assert len(drawn) == n
        assert (place[drawn] < 10_000).all()

    @pytest.mark.parametrize(
        "options",
        [
            {"batch_size": 0},
            {"weights": np.ones(10)},
            {"shuffle": True, "weights": np.zeros(10)},
            {"order": np.arange(3)},
        ],
    )
    def test_bad_options(self, options):
        with pytest.raises(ValueError):
            BlockBatchSampler(10, **{"batch_size": 4, **options})

    def test_lightning_takes_both_loaders(self, stores, frame):
        import lightning.pytorch as pl

        seen = []

        class Model(pl.LightningModule):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Linear(3, 3)

            def training_step(self, batch, number):
                seen.append((self.current_epoch, number, batch["index"].tolist()))
                logits = self.layer(batch["image"].float().mean((2, 3)) / 255)
                return torch.nn.functional.cross_entropy(logits, batch["label"])

            def validation_step(self, batch, number):
                return None

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), 0.1)

        vocabulary = Vocabulary.from_frame(frame)
        for memory in (1.0, 0.0):
            dataset = choose_dataset(
                frame, WindowReader(stores[0]), vocabulary, size=16, level=0, out_px=16, memory_mb=memory
            )
            seen.clear()
            trainer = pl.Trainer(
                max_epochs=2,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(
                Model(), make_loader(dataset, 32, shuffle=True, seed=1, drop_last=True), make_loader(dataset, 32)
            )
            expected = make_loader(dataset, 32, shuffle=True, seed=1, drop_last=True).sampler
            for epoch in range(2):
                expected.set_epoch(epoch)
                assert [rows for e, _, rows in seen if e == epoch] == list(expected)
            assert isinstance(make_loader(dataset, 32), BatchLoader) == (memory == 1.0)


class TestVocabulary:
    def test_round_trip(self):
        vocabulary = Vocabulary(("B_Cell", "T_Cell"), ("colon", "lung", "unknown"))
        assert vocabulary.encode_classes(["T_Cell", "", "B_Cell"]).tolist() == [1, -1, 0]
        assert vocabulary.decode_classes([1, -1, 0]) == ["T_Cell", "", "B_Cell"]
        assert vocabulary.encode_organs(["lung", "brain"]).tolist() == [1, 2]
        assert vocabulary.decode_organs([1, 2]) == ["lung", "unknown"]
        assert Vocabulary.from_dict(vocabulary.to_dict()) == vocabulary
        assert vocabulary.encode_classes([]).dtype == np.int64

    def test_from_frame(self, frame):
        vocabulary = Vocabulary.from_frame(frame, unknown_organ=True)
        assert vocabulary.classes == ("B_Cell", "Ductal", "T_Cell")
        assert vocabulary.organs == ("colon", "lung", "unknown")

    def test_unknown_names(self):
        vocabulary = Vocabulary(("B_Cell", "T_Cell"), ("colon", "lung"))
        with pytest.raises(UserError, match=r"no organ[\s\S]*Did you mean 'lung'[\s\S]*colon \| lung"):
            vocabulary.encode_organs(["lung", "lungs"])
        with pytest.raises(UserError, match="no class of this model"):
            vocabulary.encode_classes(["Tcell"])
        with pytest.raises(UserError, match="different names"):
            Vocabulary(("A", "A"), ("lung",))


class TestFunnel:
    def test_counts_and_reasons(self, results):
        table = funnel_table(SLIDES, results)
        assert list(table.columns) == ["slide", "step", "cells", "dropped", "reasons"]
        assert table["cells"].tolist() == [40, 36, 30, 30, 24] * 2
        assert table["dropped"].tolist() == [0, 4, 6, 0, 6] * 2
        assert table["reasons"].tolist()[:5] == ["", "low_counts 3, off_slide 1", "margin 6", "", "buffer 6"]

    def test_types_of_no_class_are_a_step_of_their_own(self, results):
        def without_class(table):
            some = (table["status"] == "labelled") & (table["class"] == "T_Cell")
            return table.assign(**{"class": table["class"].where(~some, ""), "reason": np.where(some, "no_class", "")})

        path = results / "labels" / "colon_1" / "labels.parquet"
        change(path, without_class)
        table = funnel_table(SLIDES, results).set_index(["slide", "step"])
        gone = int((pd.read_parquet(path)["reason"] == "no_class").sum())
        assert table.loc[("colon_1", "labelled"), "cells"] == 30
        assert table.loc[("colon_1", "of a class of the study"), "cells"] == 30 - gone < 30
        assert table.loc[("colon_1", "of a class of the study"), "reasons"] == f"no_class {gone}"
        change(path, lambda t: t.assign(**{"class": ""}))
        with pytest.raises(UserError, match=r"'of a class of the study' dropped the last[\s\S]*colon_1"):
            funnel_table(SLIDES, results)

    def test_zero_names_the_step(self, results):
        change(results / "labels" / "colon_1" / "labels.parquet", lambda t: t.assign(status="abstained", reason=""))
        with pytest.raises(UserError, match=r"'labelled' dropped the last[\s\S]*colon_1[\s\S]*abstained 36"):
            funnel_table(SLIDES, results)
