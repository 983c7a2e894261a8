"""Data modules: a study's cells become each process's batches, once, with what each model needs beside windows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch

from data_example import SLIDES, change, write_stores, write_tables
from nuclass.core.errors import UserError
from nuclass.data import Study, Vocabulary
from nuclass.data.datasets import InMemoryWindows, WindowDataset
from nuclass.data.modules import GateData, GlobalData, Loading, LocalData
from nuclass.data.training_cells import load_training_cells
from nuclass.training.config import Trainer
from nuclass.training.inputs import data_hash
from nuclass.training.train import loading


@pytest.fixture
def study(tmp_path):
    """Two slides of 30 labelled cells: 18 or so train, 6 val, 6 buffer or test."""
    write_tables(tmp_path)
    paths, _ = write_stores(tmp_path)
    return Study([{**row, "windows": str(paths[row["slide"]])} for row in SLIDES], tmp_path, windows={"local": 32})


def local_data(study, **options):
    return LocalData(study, read_level=0, input_px=16, loading=Loading(8, seed=1, **options))


def on_rank(data, rank, world_size):
    """Attach a trainer that only knows its place."""
    device = types.SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = types.SimpleNamespace(global_rank=rank, world_size=world_size, strategy=device)
    return data


class TestStudy:
    def test_windows_come_from_the_given_path_or_the_results(self, tmp_path):
        study = Study(
            [{"slide": "a", "organ": "lung"}, {"slide": "b", "organ": "lung", "windows": "/x/patches.json"}], tmp_path
        )
        assert study.source("a") == tmp_path / "slides" / "a" / "he.ome.zarr"
        assert str(study.source("b")) == "/x/patches.json"
        assert study.reader().sources == {"a": study.source("a"), "b": study.source("b")}
        with pytest.raises(UserError, match=r"not one of the study's[\s\S]*a \| b"):
            study.source("c")


class TestLocal:
    def test_batches_hold_the_windows_of_their_cells(self, study):
        data = local_data(study)
        data.setup("fit")
        assert isinstance(data.train_set, InMemoryWindows)
        assert data.known == Vocabulary(("B_Cell", "Ductal", "T_Cell"), ("colon", "lung", "unknown"))
        with study.reader() as reader:
            for loader, frame in ((data.train_dataloader(), data.train), (data.val_dataloader(), data.val)):
                for batch in loader:
                    cells = frame.iloc[batch["index"].numpy()]
                    assert np.array_equal(batch["image"].permute(0, 2, 3, 1), reader.read(cells, 32, 0, 16))
                    assert data.known.decode_classes(batch["label"]) == cells["class"].tolist()
                    assert data.known.decode_organs(batch["organ"]) == cells["organ"].tolist()
        index = torch.cat([batch["index"] for batch in data.val_dataloader()])
        assert index.tolist() == list(range(len(data.val)))

    def test_setup_reads_once(self, study, monkeypatch):
        calls = []
        monkeypatch.setattr(
            "nuclass.data.modules.load_training_cells", lambda *a: calls.append(a) or load_training_cells(*a)
        )
        data = local_data(study)
        data.setup("fit")
        windows = data.train_set
        for stage in ("validate", None, "fit"):
            data.setup(stage)
        assert data.train_set is windows
        assert len(calls) == 1
        assert data.val_dataloader() is data.val_dataloader()

    @pytest.mark.parametrize("workers", [0, 2])
    def test_workers_change_nothing(self, study, workers):
        on_demand = local_data(study, memory_mb=0, workers=workers)
        on_demand.setup("fit")
        assert isinstance(on_demand.train_set, WindowDataset)
        reference = local_data(study, memory_mb=0)
        reference.setup("fit")
        ours, theirs = on_demand.train_dataloader(), reference.train_dataloader()
        for epoch in (0, 1):
            ours.sampler.set_epoch(epoch)
            theirs.sampler.set_epoch(epoch)
            for a, b in zip(ours, theirs, strict=True):
                assert all(torch.equal(a[key], b[key]) for key in b)

    def test_starting_a_pass_leaves_the_random_numbers_of_training_alone(self, study):
        data = local_data(study, memory_mb=0)
        data.setup("fit")
        torch.manual_seed(3)
        expected = torch.rand(4)
        torch.manual_seed(3)
        list(data.train_dataloader())
        assert torch.equal(torch.rand(4), expected)

    @pytest.mark.parametrize("memory_mb", [0, 100])
    def test_processes_share_the_cells(self, study, memory_mb):
        data = local_data(study, memory_mb=memory_mb)
        data.setup("fit")
        whole = [batch["index"].tolist() for batch in data.train_dataloader()]
        parts = [[b["index"].tolist() for b in on_rank(data, rank, 2).train_dataloader()] for rank in (0, 1)]
        assert len(parts[0]) == len(parts[1]) == len(whole) // 2
        assert parts[0] == whole[0 : 2 * len(parts[0]) : 2]
        assert parts[1] == whole[1 : 2 * len(parts[0]) : 2]
        val = [b["index"] for rank in range(3) for b in on_rank(data, rank, 3).val_dataloader()]
        assert sorted(torch.cat(val).tolist()) == list(range(len(data.val)))

    def test_balance_shows_classes_alike(self, study):
        rare = pd.read_parquet(study.results / "labels" / "lung_1" / "labels.parquet")
        classes = rare["class"].where(rare["class"].isin(["", "T_Cell"]) | (rare.index % 5 == 0), "T_Cell")
        change(study.results / "labels" / "lung_1" / "labels.parquet", lambda t: t.assign(**{"class": classes}))
        counts = []
        for balance in (0.0, 1.0):
            data = LocalData(
                study, read_level=0, input_px=16, loading=loading(Trainer(batch_size=8, balance=balance), 1)
            )
            data.setup("fit")
            loader = data.train_dataloader()
            shown = torch.cat([batch["label"] for _ in range(60) for batch in loader])
            counts.append(torch.bincount(shown, minlength=3) / len(shown))
        assert counts[0].max() - counts[0].min() > 0.2
        assert counts[1].max() - counts[1].min() < 0.1

    def test_prediction_takes_val_and_test_cells_and_a_models_names(self, study):
        data = LocalData(
            study,
            read_level=0,
            input_px=16,
            loading=Loading(8),
            vocabulary=Vocabulary(("B_Cell", "T_Cell"), ("lung", "unknown")),
        )
        data.setup("predict")
        assert set(data.predicted["split"]) == {"val", "test"}
        labels = torch.cat([batch["label"] for batch in data.predict_dataloader()])
        organs = torch.cat([batch["organ"] for batch in data.predict_dataloader()])
        assert (labels == -1).tolist() == (data.predicted["class"] == "Ductal").tolist()
        assert organs.tolist() == (data.predicted["organ"] == "colon").astype(int).tolist()
        with pytest.raises(ValueError, match="vocabulary of a trained model"):
            local_data(study).setup("predict")
        with pytest.raises(ValueError, match="call setup first"):
            local_data(study).train_dataloader()

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_an_error_of_a_worker_reads_as_one_of_this_process(self, study, method):
        data = local_data(study, memory_mb=0, workers=2)
        data.setup("fit")
        del data.train_set.reader.sources["colon_1"]
        loader = data.train_dataloader()
        loader.multiprocessing_context = method
        with pytest.raises(UserError) as caught:
            list(loader)
        assert caught.value.what == "A slide has no store"
        assert caught.value.found == "colon_1"
        assert "Traceback" not in str(caught.value)

    def test_workers_may_be_spawned(self, study):
        data = local_data(study, memory_mb=0, workers=1)
        data.setup("fit")
        data.train_set[[0]]
        loader = data.train_dataloader()
        loader.multiprocessing_context = "spawn"
        expected = data.train_set[[row for rows in list(data.train_dataloader().sampler) for row in rows]]
        assert torch.equal(torch.cat([batch["image"] for batch in loader]), expected["image"])


class Mean(pl.LightningModule):
    """A model of nearly nothing, which notes what it was shown."""

    def __init__(self, out=None):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)
        self.out = out
        self.shown = {"train": [], "val": []}

    def training_step(self, batch, number):
        self.shown["train"].append((self.current_epoch, batch["index"].tolist()))
        return torch.nn.functional.cross_entropy(self.layer(batch["image"].float().mean((2, 3)) / 255), batch["label"])

    def validation_step(self, batch, number):
        self.shown["val"].append((self.current_epoch, batch["index"].tolist()))

    def predict_step(self, batch, number):
        return batch["index"]

    def on_fit_end(self):
        if self.out is not None:
            (self.out / f"{self.global_rank}.json").write_text(json.dumps(self.shown))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(**options):
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler"),
        False,
    )
    return pl.Trainer(max_epochs=2, accelerator="cpu", num_sanity_val_steps=0, **quiet, **options)


def fit_two_processes(results):
    """Run in each of two processes; each notes what it was shown."""
    study = Study([{**row, "windows": f"{results}/{row['slide']}"} for row in SLIDES], results, windows={"local": 32})
    data = local_data(study, memory_mb=0, workers=1)
    trainer(devices=2, strategy="ddp").fit(Mean(results / "shown"), datamodule=data)


class TestUnderLightning:
    @pytest.mark.parametrize(("memory_mb", "workers"), [(100, 0), (0, 2)])
    def test_epochs_differ_as_the_seed_says_and_prediction_follows(self, study, memory_mb, workers):
        data = local_data(study, memory_mb=memory_mb, workers=workers)
        model, runner = Mean(), trainer()
        runner.fit(model, datamodule=data)
        sampler = data.train_dataloader().sampler
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            assert [rows for e, rows in model.shown["train"] if e == epoch] == list(sampler)
            shown = [row for e, rows in model.shown["val"] if e == epoch for row in rows]
            assert shown == list(range(len(data.val)))
        predicted = torch.cat(runner.predict(model, datamodule=data))
        assert predicted.tolist() == list(range(len(data.predicted)))
        assert set(data.predicted["split"]) == {"val", "test"}

    def test_two_processes_share_training_and_cover_val(self, study):
        (study.results / "shown").mkdir()
        script = study.results / "fit.py"
        script.write_text(
            f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom pathlib import Path\n"
            "import test_data_modules as t\n"
            f"if __name__ == '__main__':\n    t.fit_two_processes(Path({str(study.results)!r}))\n"
        )
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
        done = subprocess.run(
            [sys.executable, script], env=environment, capture_output=True, text=True, timeout=150, check=False
        )
        assert done.returncode == 0, done.stderr
        one, two = (json.loads((study.results / "shown" / f"{rank}.json").read_text()) for rank in (0, 1))
        data = local_data(study, memory_mb=0)
        data.setup("fit")
        sampler = data.train_dataloader().sampler
        for epoch in (0, 1):
            mine, theirs = ([rows for e, rows in shown["train"] if e == epoch] for shown in (one, two))
            sampler.set_epoch(epoch)
            whole = list(sampler)
            assert len(mine) == len(theirs) == len(whole) // 2
            assert [rows for pair in zip(mine, theirs, strict=True) for rows in pair] == whole[: 2 * len(mine)]
            val = [row for shown in (one, two) for e, rows in shown["val"] if e == epoch for row in rows]
            assert sorted(val) == list(range(len(data.val)))


class TestGlobal:
    def test_context_and_teacher_come_along(self, study):
        asked = []

        def context(frame, views):
            asked.append(views)
            return torch.arange(len(frame)).view(-1, 1, 1).expand(-1, 1 + 2 * views, 4).half()

        data = GlobalData(
            study,
            read_level=0,
            input_px=16,
            loading=Loading(8),
            context=context,
            teacher=lambda dataset: dataset.label[:, None].float(),
        )
        data.setup("fit")
        assert asked == [True, False]
        for batch in data.train_dataloader():
            assert batch["context"].shape == (len(batch["index"]), 3, 4)
            assert torch.equal(batch["context"][:, 0, 0].long(), batch["index"])
            assert torch.equal(batch["teacher"][:, 0].long(), batch["label"])
        batch = next(iter(data.val_dataloader()))
        assert batch["context"].shape[1:] == (1, 4)
        assert "teacher" not in batch

    def test_features_of_other_cells_are_refused(self, study):
        data = GlobalData(
            study, read_level=0, input_px=16, loading=Loading(8), context=lambda frame, views: torch.zeros(3, 1, 4)
        )
        with pytest.raises(ValueError, match="3 rows of context"):
            data.setup("fit")


class TestGate:
    def test_batches_of_cached_outputs(self):
        fitting = {"p_a": torch.rand(10, 3), "label": torch.arange(10)}
        data = GateData(fitting, {key: value[:5] for key, value in fitting.items()}, batch_size=4, seed=2)
        first, second = ([batch["label"].tolist() for batch in data.train_dataloader()] for _ in range(2))
        assert first == second
        assert [len(batch) for batch in first] == [4, 4, 2]
        assert sorted(row for batch in first for row in batch) == list(range(10))
        (batch,) = data.val_dataloader()
        assert torch.equal(batch["p_a"], fitting["p_a"][:5])


class TestTrainingCells:
    def test_a_class_of_val_alone_is_left_out_of_val(self, study, caplog):
        def rename(table):
            split = pd.read_parquet(study.results / "splits" / "lung_1.parquet").set_index("cell_id")["split"]
            only_val = (table["cell_id"].map(split) == "val") & (table["class"] == "T_Cell")
            return table.assign(**{"class": table["class"].where(~only_val, "Mast_Cell")})

        change(study.results / "labels" / "lung_1" / "labels.parquet", rename)
        with caplog.at_level("WARNING", "nuclass"):
            _, val, vocabulary = load_training_cells(study)
        assert "Mast_Cell" not in vocabulary.classes
        assert "Mast_Cell" not in set(val["class"])
        assert "Mast_Cell 2" in caplog.text
        assert "T_Cell" not in caplog.text

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_an_empty_split_is_named(self, study, split):
        for item in SLIDES:
            change(study.results / "splits" / f"{item['slide']}.parquet", lambda t: t[["cell_id"]].assign(split=split))
        other = {"train": "val", "val": "train"}[split]
        with pytest.raises(UserError, match=f"no labelled cell in the split '{other}'"):
            load_training_cells(study)

    def test_ids_may_be_the_same_on_two_slides(self, study):
        """Every slide has its own cells 000-1 and so on; nothing may mix them up."""
        before = load_training_cells(study)[0]
        for item in SLIDES:
            for path in ("slides/{}/cells.parquet", "labels/{}/labels.parquet", "splits/{}.parquet"):
                change(study.results / path.format(item["slide"]), lambda t: t.assign(cell_id=t["cell_id"].str[1:]))
        after = load_training_cells(study)[0]
        assert after["cell_id"].tolist() == before["cell_id"].str[1:].tolist()
        same = ["slide", "organ", "row", "x_px", "y_px", "class", "split"]
        pd.testing.assert_frame_equal(after[same], before[same])

    def test_unused_names_do_not_change_the_hash(self, study):
        train, val, _ = load_training_cells(study)
        plain = train.astype(dict.fromkeys(("slide", "organ", "cell_id", "class", "split"), object))
        assert data_hash(study, train, val) == data_hash(study, plain, val)
        assert data_hash(study, train, val) != data_hash(study, train.iloc[::-1], val)

    def test_all_that_training_sees_is_in_the_hash(self, study):
        """A running state of other data must not go on: cells, names, places, scale, pixels."""
        train, val, _ = load_training_cells(study)
        plain = train.astype(dict.fromkeys(("slide", "organ", "cell_id", "class", "split"), object))
        seen = {data_hash(study, plain, val), data_hash(replace(study, mpp=0.5), plain, val)}
        seen.add(data_hash(replace(study, windows={"local": 48}), plain, val))
        swap = {"lung": "colon", "colon": "lung", "T_Cell": "B_Cell", "B_Cell": "T_Cell"}
        for column in ("organ", "class"):
            seen.add(data_hash(study, plain.assign(**{column: plain[column].replace(swap)}), val))
        seen.add(data_hash(study, plain.assign(x_px=plain["x_px"] + 0.25), val))
        seen.add(data_hash(study, plain.assign(cell_id=plain["cell_id"] + "x"), val))
        seen.add(data_hash(study, plain, val.iloc[1:]))
        os.utime(study.source("lung_1") / "zarr.json", ns=(1, 1))
        seen.add(data_hash(study, plain, val))
        assert len(seen) == 9
