"""From files to tables: the join of cells, labels and splits, windows, vocabularies, the funnel."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from data_example import SLIDES, change, write_stores, write_tables
from nuclass.core.errors import UserError
from nuclass.data import Vocabulary, funnel_table, load_cells
from nuclass.patches.windows import WindowReader, shrink
from nuclass.slides.geometry import window_origin


@pytest.fixture
def results(tmp_path):
    return write_tables(tmp_path)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return write_stores(tmp_path_factory.mktemp("stores"))


@pytest.fixture
def frame(results):
    return load_cells(SLIDES, results)


def cut(image, x, y, size):
    """Cut a level-0 window the slow way."""
    padded = np.pad(image, ((size, size), (size, size), (0, 0)), constant_values=255)
    x0, y0 = window_origin((x, y), size) + size
    return padded[y0 : y0 + size, x0 : x0 + size]


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

    def test_columns_are_compact(self, results):
        frame = load_cells(SLIDES, results, ("train", "val"))
        for column, names in {
            "slide": ["colon_1", "lung_1"],
            "organ": ["colon", "lung"],
            "class": ["B_Cell", "Ductal", "T_Cell"],
            "split": ["train", "val"],
        }.items():
            assert list(frame[column].cat.categories) == names
        assert frame["row"].dtype == np.int32
        assert frame["row"].tolist() == frame["cell_id"].str[1:4].astype(int).tolist()
        big = frame.iloc[np.arange(10_000) % len(frame)]
        assert big.memory_usage(deep=True, index=False).sum() < 50 * len(big)
        again = load_cells(SLIDES[::-1], results)
        assert list(again["slide"].unique()) == ["colon_1", "lung_1"]
        test = load_cells(SLIDES, results, ("test",))
        assert list(test["class"].unique()) == ["Ductal", "B_Cell", "T_Cell"]
        assert list(test["class"].cat.categories) == ["B_Cell", "Ductal", "T_Cell"]

    @pytest.mark.parametrize("kind", ["int", "bytes", "categories"])
    def test_ids_of_any_type_become_text(self, results, kind):
        def number(table):
            ids = table["cell_id"].str[1:4]
            made = {"int": ids.astype(int), "bytes": ids.str.encode("ascii"), "categories": ids.astype("category")}
            return table.assign(cell_id=made[kind])

        for path in ("slides/{}/cells.parquet", "labels/{}/labels.parquet", "splits/{}.parquet"):
            change(results / path.format("lung_1"), number)
        ids = load_cells(SLIDES[:1], results)["cell_id"]
        assert ids.tolist() == [f"{i}" if kind == "int" else f"{i:03d}" for i in range(10, 40)]

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
            (lambda t: t.assign(split=t["split"].where(t.index > 3)), "split is not known[\\s\\S]*an empty field"),
            (lambda t: t.assign(cell_id=t["cell_id"].where(t.index > 3)), "no id[\\s\\S]*4 empty fields"),
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

    def test_columns_of_a_table_are_encoded_as_they_are(self, frame):
        vocabulary = Vocabulary(("B_Cell", "T_Cell"), ("colon", "lung"))
        some = frame[frame["class"] != "Ductal"]
        assert vocabulary.decode_classes(vocabulary.encode_classes(some["class"])) == some["class"].tolist()
        assert vocabulary.decode_organs(vocabulary.encode_organs(frame["organ"])) == frame["organ"].tolist()
        with pytest.raises(UserError, match=r"no class of this model[\s\S]*Ductal"):
            vocabulary.encode_classes(frame["class"])
        known = vocabulary.only_known(frame["class"])
        assert known.tolist() == [name if name in vocabulary.classes else "" for name in frame["class"]]
        assert vocabulary.only_known(frame["class"].astype(object)).tolist() == known.tolist()

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
