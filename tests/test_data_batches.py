"""From tables to batches: datasets, samplers and loaders, for any number of workers and processes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data_example import SLIDES, write_stores, write_tables
from nuclass.core.errors import UserError
from nuclass.data import (
    BatchLoader,
    BlockBatchSampler,
    InMemoryWindows,
    Vocabulary,
    WindowDataset,
    balanced_weights,
    choose_dataset,
    load_cells,
    make_loader,
)
from nuclass.data.datasets import Rows
from nuclass.patches.windows import WindowReader


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return write_stores(tmp_path_factory.mktemp("stores"))


@pytest.fixture
def frame(tmp_path):
    return load_cells(SLIDES, write_tables(tmp_path))


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

    def test_a_cell_takes_few_bytes_and_pickles_as_arrays(self, both, stores, frame):
        on_demand = both[1]
        columns = (on_demand._organ, on_demand._label, on_demand.codes, on_demand.cell_rows, on_demand.xy)
        assert sum(values.nbytes for values in columns) == 26 * len(frame)
        many = WindowDataset(
            WindowReader(stores[0]), frame.iloc[np.arange(6000) % 60], 64, 1, 16, *[np.zeros(6000)] * 2
        )
        on_demand.extra = {}
        assert len(pickle.dumps(many)) - len(pickle.dumps(on_demand)) <= 26 * (6000 - 60) + 50
        copy = pickle.loads(pickle.dumps(many))
        assert torch.equal(copy[[7, 3000]]["image"], both[0][[7, 0]]["image"])

    def test_the_reader_is_told_the_rows_of_the_cell_table(self, frame):
        asked = []

        class Reader:
            def read_positions(self, slides, codes, rows, xy, size, level, out_px, out):
                asked.append((np.array(slides)[codes].tolist(), rows.tolist(), xy))
                return np.zeros((len(rows), out_px, out_px, 3), np.uint8)

        dataset = WindowDataset(Reader(), frame, 64, 1, 16, *[np.zeros(60)] * 2)
        dataset[[31, 2]]
        # the first ten cells of each slide have no label, so the frame begins with row 10 of the table
        assert asked[0][:2] == (["colon_1", "lung_1"], [11, 12])
        assert np.array_equal(asked[0][2], frame[["x_px", "y_px"]].to_numpy()[[31, 2]])

    def test_workers_open_the_files_themselves(self, frame):
        class Reader:
            owner = None

            def __getstate__(self):
                return {}

            def read_positions(self, slides, codes, rows, xy, size, level, out_px, out):
                assert self.owner in (None, os.getpid()), "a file that another process opened"
                self.owner = os.getpid()
                return np.zeros((len(rows), out_px, out_px, 3), np.uint8)

        dataset = WindowDataset(Reader(), frame, 64, 1, 16, *[np.zeros(60)] * 2)
        dataset[[0]]
        assert len(list(make_loader(dataset, 16, num_workers=2))) == 4

    def test_rows_of_any_tensors(self):
        rows = Rows({"p": torch.arange(6).view(3, 2), "label": torch.tensor([5, 6, 7])})
        assert len(rows) == 3
        assert rows[[2, 0]]["p"].tolist() == [[4, 5], [0, 1]]
        loader = make_loader(rows, 2)
        assert [batch["label"].tolist() for batch in loader] == [[5, 6], [7]]
        with pytest.raises(ValueError, match="a 2, b 3"):
            Rows({"a": torch.zeros(2), "b": torch.zeros(3)})

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

    @pytest.mark.parametrize("world_size", [1, 2, 3, 5])
    @pytest.mark.parametrize(("n", "batch"), [(1000, 32), (70, 32), (12, 32), (5, 2)])
    def test_processes_share_an_epoch(self, n, batch, world_size):
        def rows(**options):
            samplers = [
                BlockBatchSampler(n, batch, seed=3, rank=rank, world_size=world_size, **options)
                for rank in range(world_size)
            ]
            parts = [list(sampler) for sampler in samplers]
            assert [len(part) for part in parts] == [len(sampler) for sampler in samplers]
            assert all(parts)
            return parts

        ordered = rows()
        assert sorted(row for part in ordered for rows_ in part for row in rows_) == list(range(n))
        for drop_last in (True, False):
            parts = rows(shuffle=True, drop_last=drop_last)
            assert len({len(part) for part in parts}) == 1
            whole = list(BlockBatchSampler(n, batch, seed=3, shuffle=True, drop_last=drop_last))
            if len(whole) >= world_size:
                turns = [part[k] for k in range(len(parts[0])) for part in parts]
                assert turns[: len(whole)] == whole[: len(turns)]
                assert len(whole) - len(turns) < world_size
                assert drop_last is False or len(turns) <= len(whole)
                assert turns[len(whole) :] == whole[: max(0, len(turns) - len(whole))]

    def test_fewer_cells_than_processes_are_refused(self):
        with pytest.raises(UserError, match="2 cells for 3 processes"):
            BlockBatchSampler(2, 4, world_size=3)
        with pytest.raises(ValueError, match="Rank 2 of 2"):
            BlockBatchSampler(10, 4, rank=2, world_size=2)

    def test_a_pass_may_start_within_an_epoch(self):
        sampler = BlockBatchSampler(100, 16, shuffle=True, seed=1, rank=1, world_size=2)
        first = list(sampler)
        sampler.set_epoch(0)
        sampler.start_at(2)
        assert list(sampler) == first[2:]
        sampler.set_epoch(0)
        assert list(sampler) == first
        assert len(sampler) == len(first) == 4

    def test_a_batch_mixes_slides_and_classes_as_stated(self):
        """Slides of 70, 25 and 5 %; classes that fill stretches of the curve, the worst case for blocks."""
        n, batch = 120_000, 128
        slide = np.repeat([0, 1, 2], [84_000, 30_000, 6_000])
        kind = (np.arange(n) // 1500) % 4
        sampler = BlockBatchSampler(n, batch, shuffle=True, seed=2, order=np.arange(n), drop_last=True)
        batches = np.array([rows for _ in range(4) for rows in sampler])
        assert np.bincount(sampler.rows(7), minlength=n).tolist() == [1] * n
        for values in (slide, kind):
            for value in np.unique(values):
                share = (values == value).mean()
                found = (values[batches] == value).mean(1)
                assert abs(found.mean() - share) < 0.01
                assert found.std() < 1.1 * np.sqrt(share * (1 - share) * (1 / 16 + 1 / batch))
        # at most 31 blocks are in a pool, so a batch comes from many places and never from few
        assert min(len(np.unique(rows // 256)) for rows in batches) >= 16

    def test_no_pool_is_small(self):
        n = 17 * 256
        rows = BlockBatchSampler(n, 64, shuffle=True, seed=0, order=np.arange(n)).rows(0)
        assert min(len(np.unique(rows[k : k + 64] // 256)) for k in range(0, n, 64)) >= 12

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


BROKEN_OFF = """
import sys
sys.path.insert(0, sys.argv[1])
from fit_example import CutWindows, windows
from nuclass.data.loaders import make_loader
batches = iter(make_loader(CutWindows(windows(4000, 1)), 8, num_workers=2))
next(batches)
sys.modules["kept"] = batches
sys.exit(3)
"""


def test_a_program_ends_though_a_pass_with_workers_was_broken_off():
    """As a traceback keeps it: its workers ignore the request by which Python ends them, and would be waited for."""
    command = [sys.executable, "-c", BROKEN_OFF, str(Path(__file__).parent)]
    assert subprocess.run(command, timeout=120, check=False).returncode == 3
