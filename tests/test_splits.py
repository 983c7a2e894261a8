"""Splits: windows of different splits share no pixel, and the cut is near what was asked for."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nuclass.core.errors import UserError
from nuclass.splits import SplitConfig, check_no_overlap, count_overlaps, split_cells
from split_example import make_slide, share_pixel

STUDY = {"splits": {"val": 0.2, "test": 0.1, "buffer_um": 256, "seed": 42}, "windows": {"local": 224, "global": 1024}}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), window=st.sampled_from([8, 12, 16, 31]))
def test_check_agrees_with_the_raster(seed, window):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 12))
    cells = pd.DataFrame(rng.uniform(0, 6 * window, (n, 2)), columns=["x_px", "y_px"])
    cells["cell_id"] = np.arange(n).astype(str)
    cells["split"] = rng.choice(["train", "val", "test", "buffer"], n)
    painted = share_pixel(cells, cells["split"], window)
    found = bool(count_overlaps(cells, window))
    # An odd window has no coarser levels; with them the check may find more, never less.
    assert found == painted if window % 2 else found >= painted
    if found:
        with pytest.raises(UserError, match="share pixels"):
            check_no_overlap(cells, window)
    else:
        check_no_overlap(cells, window)


@pytest.mark.parametrize(("gap", "overlaps"), [(7.0, True), (7.99, True), (8.0, False), (8.5, False)])
def test_check_at_the_exact_distance(gap, overlaps):
    frame = pd.DataFrame({"cell_id": ["a", "b"], "x_px": [0.0, gap], "y_px": [3.0, 3.0], "split": ["train", "val"]})
    assert bool(count_overlaps(frame, 8)) == overlaps
    upright = frame.rename(columns={"x_px": "y_px", "y_px": "x_px"})
    assert bool(count_overlaps(upright, 8)) == overlaps


def test_check_names_cells_and_passes_over_the_buffer():
    frame = pd.DataFrame({"cell_id": ["a", "b"], "x_px": [0.0, 5.0], "y_px": [0.0, 0.0], "split": ["train", "test"]})
    with pytest.raises(UserError, match=r"1 cells of test .* b and a") as caught:
        check_no_overlap(frame, 8, "lung_1")
    assert caught.value.where == "lung_1"
    check_no_overlap(frame.assign(split=["train", "buffer"]), 8)


@pytest.mark.parametrize("seed", range(6))
def test_shares_and_classes_of_a_demo_sized_slide(seed):
    cells, labels = make_slide(seed=seed)
    config = SplitConfig.from_config(STUDY | {"mpp": 0.25})
    split = split_cells(cells, labels, config, "train", "lung_1")
    assert list(split.frame.columns) == ["cell_id", "split"]
    assert list(split.frame["cell_id"]) == list(cells["cell_id"])
    labelled = split.report["labelled"]
    used = labelled["train"] + labelled["val"] + labelled["test"]
    assert 0.13 < labelled["val"] / used < 0.30
    assert 0.05 < labelled["test"] / used < 0.20
    assert not split.report["absent_classes"]["train"]
    assert not split.report["absent_classes"]["val"]
    assert split.report["axis"] == "x"
    assert sum(split.report["cells"].values()) == len(cells)
    counted = labels["status"] == "labelled"
    for name, row in split.report["classes"].items():
        for kind, count in row.items():
            assert count == ((split.frame["split"] == name) & counted & (labels["class"] == kind)).sum()


def test_large_slide_comes_near_the_wish():
    cells, labels = make_slide(n=20_000, width=40_000, height=24_000, patchy=False)
    report = split_cells(cells, labels, SplitConfig(), "train").report
    used = sum(report["labelled"].get(name, 0) for name in ("train", "val", "test"))
    assert report["labelled"]["val"] / used == pytest.approx(0.2, abs=0.02)
    assert report["labelled"]["test"] / used == pytest.approx(0.1, abs=0.02)


def test_class_at_one_end_goes_to_train_and_val():
    cells, labels = make_slide(patchy=False, classes=3)
    labels["status"], labels["class"] = "labelled", "K0"
    labels.loc[(cells["x_px"] < 3500) & (cells.index % 4 == 0), "class"] = "Rare"
    report = split_cells(cells, labels, SplitConfig(test=0.0), "train").report
    assert not report["absent_classes"]["train"]
    assert not report["absent_classes"]["val"]
    assert "test" not in report["cells"]


def test_one_seed_gives_one_split_and_rows_may_come_in_any_order():
    cells, labels = make_slide()
    first = split_cells(cells, labels, SplitConfig(), "train").frame
    again = split_cells(cells, labels.sample(frac=1, random_state=1), SplitConfig(), "train").frame
    pd.testing.assert_frame_equal(first, again)
    other = split_cells(cells, labels, SplitConfig(seed=7), "train").frame
    assert (other["split"] != first["split"]).any()
    turned = split_cells(cells.rename(columns={"x_px": "y_px", "y_px": "x_px"}), labels, SplitConfig(), "train")
    assert turned.report["axis"] == "y"
    assert (turned.frame["split"] == first["split"]).all()


def test_unlabelled_cells_get_the_split_of_their_place():
    cells, labels = make_slide()
    split = split_cells(cells, labels, SplitConfig(), "train")
    edges = np.array(split.report["edges_px"])
    bands = [split.report["order"][0], "buffer", split.report["order"][1], "buffer", split.report["order"][2]]
    expected = np.array(bands)[np.searchsorted(edges, cells["x_px"], side="right")]
    assert (split.frame["split"] == expected).all()
    cells.loc[5, "x_px"] = np.nan
    assert split_cells(cells, labels, SplitConfig(), "train").frame["split"][5] == "buffer"


def test_cohort_is_all_test():
    cells, labels = make_slide(n=10, width=100, height=100)
    split = split_cells(cells, labels, SplitConfig(), "cohort")
    assert set(split.frame["split"]) == {"test"}
    assert split_cells(cells, None, SplitConfig(), "cohort").report["cells"] == {"test": 10}


def test_released_box_has_no_buffer():
    cells, labels = make_slide()
    split = split_cells(cells, labels, SplitConfig(no_buffer=True), "train")
    assert 0.20 <= split.report["area_fraction"] <= 0.30
    labelled = split.report["labelled"]
    assert labelled["val"] / (labelled["val"] + labelled["train"]) == pytest.approx(0.25, abs=0.03)
    assert split.report["overlapping_cells"]["train-val"] > 100
    x0, y0, x1, y1 = split.report["box_px"]
    inside = cells["x_px"].between(x0, x1) & cells["y_px"].between(y0, y1)
    assert (inside == (split.frame["split"] == "val")).all()


def test_short_slide_names_the_millimetres():
    cells, labels = make_slide(width=3000, height=1000)
    with pytest.raises(UserError, match=r"0\.75 mm[\s\S]*at least 1\.02 mm[\s\S]*without a test band"):
        split_cells(cells, labels, SplitConfig(), "train", "tiny_1")
    with pytest.raises(UserError, match=r"fewer folds, or give the slide the role cohort"):
        split_cells(cells, labels, SplitConfig(test=0.0, folds=3), "train", "tiny_1")
    with pytest.raises(UserError, match=r"raise splits: max_buffer_share, or give the slide the role cohort"):
        split_cells(*make_slide(width=1500, height=1000), SplitConfig(test=0.0), "train", "tiny_1")
    assert split_cells(cells, labels, SplitConfig(test=0.0), "train").report["order"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"buffer_um": 100}, "narrower than the largest window"),
        ({"val": 0.0}, "leave too few cells to train on"),
        ({"val": 0.6, "test": 0.4}, "leave too few cells to train on"),
        ({"layout": "new"}, "value of splits.layout is not known"),
    ],
)
def test_bad_configuration(change, message):
    with pytest.raises(UserError, match=message):
        SplitConfig(**change)


def test_bad_tables():
    cells, labels = make_slide(n=100)
    with pytest.raises(UserError, match="100 cells, 99 labels, 99 ids in both"):
        split_cells(cells, labels.iloc[1:], SplitConfig(), "train")
    with pytest.raises(UserError, match="too few labelled cells"):
        split_cells(cells, labels.assign(status="abstained"), SplitConfig(), "train")


def test_picture_is_drawn(tmp_path):
    from matplotlib.image import imread

    from nuclass.splits.picture import draw_split

    cells, labels = make_slide()
    for role, no_buffer in [("train", False), ("train", True), ("cohort", False)]:
        split = split_cells(cells, labels, SplitConfig(no_buffer=no_buffer), role, "lung_1")
        path = tmp_path / f"{role}_{no_buffer}.png"
        draw_split(path, cells, split.frame["split"], split.report, 1024, 0.25)
        image = imread(path)
        assert min(image.shape[:2]) > 300
        assert image[..., :3].std() > 0.05


def test_class_that_no_cut_can_share_is_reported(caplog):
    cells, labels = make_slide(patchy=False, classes=2)
    labels["status"], labels["class"] = "labelled", "K0"
    labels.loc[cells["x_px"] < 500, "class"] = "Edge"
    report = split_cells(cells, labels, SplitConfig(test=0.0), "train").report
    assert report["absent_classes"]["train"] + report["absent_classes"]["val"] == ["Edge"]
    assert "Edge" in caplog.text
