"""What is told of a split: picture, report, table, command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from nuclass.cli import main
from nuclass.core.files import read_json, write_json
from nuclass.splits import SplitConfig, split_cells
from nuclass.splits.picture import COLOURS, draw_split, layout_in_words
from nuclass.tables.splits import splits_table
from split_example import large_slide, make_slide
from table_example import lay_out, rows

REPOSITORY = Path(__file__).parent.parent
BOX = {"given_split": lambda cells: np.where(cells["x_px"].between(20_000, 40_000), "val", "train")}
WAYS = {
    "bands": ({"layout": "bands"}, {}, "bands"),
    "band folds": ({"layout": "bands", "test": 0.0, "folds": 3, "fold": 2}, {}, "bands, fold 2 of 3"),
    "blocks": ({"layout": "blocks", "block_um": 2500}, {}, "blocks of 2,500 µm"),
    "block folds": (
        {"layout": "blocks", "block_um": 2500, "test": 0.0, "folds": 3, "fold": 2},
        {},
        "blocks of 2,500 µm, fold 2 of 3",
    ),
    "given": ({}, BOX, "split as given"),
    "released": ({"no_buffer": True}, {}, "central box, no buffer"),
    "given, released": ({"no_buffer": True}, BOX, "split as given, no buffer"),
}


@pytest.fixture(scope="module")
def slide():
    return large_slide(12_000)


def amount(image, colour):
    return (np.abs(image[..., :3] - np.array(to_rgb(colour))).max(axis=-1) < 0.02).sum()


@pytest.mark.parametrize("way", WAYS)
def test_picture_shows_every_split_in_its_colour(way, slide, tmp_path):
    settings, columns, words = WAYS[way]
    cells = slide[0].assign(**columns)
    split = split_cells(cells, slide[1], SplitConfig(**settings), "train", "lung_1")
    assert layout_in_words(split.report) == words
    draw_split(tmp_path / "split.png", cells, split.frame["split"], split.report, 1024, 0.25)
    image = imread(tmp_path / "split.png")
    assert image.shape[1] > image.shape[0] > 300
    for name, colour in COLOURS.items():
        # Less than that are the grey edges of letters.
        assert (amount(image, colour) > 500) == (name in set(split.frame["split"]))
    plain = {key: value for key, value in split.report.items() if key not in ("edges_px", "cuts_px", "grid", "box_px")}
    draw_split(tmp_path / "plain.png", cells, split.frame["split"], plain, 1024, 0.25)
    drawn = (np.abs(imread(tmp_path / "plain.png") - image).max(axis=-1) > 0.05).mean()
    # What the slide was cut along is seen in the picture.
    assert drawn == 0 if "given" in way else drawn > 0.002


def test_picture_of_a_slide_without_places(tmp_path):
    cells, labels = make_slide(n=50)
    cells = cells.assign(x_px=np.nan)
    split = split_cells(cells, labels, SplitConfig(), "cohort", "lung_h")
    draw_split(tmp_path / "split.png", cells, split.frame["split"], split.report, 1024, 0.25)
    assert amount(imread(tmp_path / "split.png"), COLOURS["test"]) == 0


def test_report_is_plain_json_and_complete(slide):
    for settings, columns, _ in WAYS.values():
        cells = slide[0].assign(**columns)
        report = split_cells(cells, slide[1], SplitConfig(**settings), "train", "lung_1").report
        write = json.loads(json.dumps(report, default=lambda value: value.item()))
        for key in ("layout", "cells", "labelled", "classes", "absent_classes", "buffer_share", "margin_px"):
            assert key in write
        names = [part for part in report["cells"] if part != "buffer"]
        assert (report["margin_px"] < 0) == bool(settings.get("no_buffer"))
        xy = cells[["x_px", "y_px"]].to_numpy()
        split = split_cells(cells, slide[1], SplitConfig(**settings), "train").frame["split"].to_numpy()
        some = {name: xy[split == name] for name in names}
        nearest = min(
            np.abs(some[a][i : i + 500, None] - some[b][None]).max(-1).min()
            for a in names
            for b in names
            if a < b
            for i in range(0, len(some[a]), 500)
        )
        assert report["margin_px"] == pytest.approx(nearest - 1024, abs=1.0)


@pytest.fixture
def reports(tmp_path):
    small, labels = make_slide()
    cuts = {
        "a": split_cells(small, labels, SplitConfig(), "train", "a"),
        "b": split_cells(small, labels, SplitConfig(test=0.0, folds=2, fold=2), "train", "b"),
        "c": split_cells(small, labels, SplitConfig(no_buffer=True), "train", "c"),
        "d": split_cells(small, labels, SplitConfig(), "cohort", "d"),
    }
    for name, split in cuts.items():
        write_json(tmp_path / f"{name}.json", split.report)
    return {name: tmp_path / f"{name}.json" for name in cuts}


def test_table_has_a_row_for_each_slide_and_a_total(reports, tmp_path):
    text = lay_out(splits_table(list(reports.values())), tmp_path / "t", synthetic=True)
    data = pd.read_csv(tmp_path / "t.csv", keep_default_na=False, na_values={"margin_px": "", "buffer_share": ""})
    assert list(data["slide"]) == list("abcd")
    assert list(data["layout"]) == ["bands", "bands", "box", "whole"]
    assert (data.filter(like="cells_").drop(columns="overlapping_cells", errors="ignore").sum(axis=1) == 2000).all()
    for name, row in zip("abcd", data.to_dict("records"), strict=True):
        report = read_json(reports[name])
        for split in ("train", "val", "test", "buffer"):
            assert row[f"labelled_{split}"] == report["labelled"].get(split, 0)
        assert row["margin_px"] == report.get("margin_px", pytest.approx(np.nan, nan_ok=True))
    found = rows(tmp_path / "t.md")
    assert [row[0] for row in found[2:]] == [*"abcd", "**total**"]
    total = found[-1]
    assert total[3].startswith(f"{data['cells_train'].sum():,} ({data['labelled_train'].sum():,})")
    assert found[3][2] == "bands, fold 2 of 2"
    assert found[5][2] == "whole"
    assert found[5][-1] == "–"
    assert f"c {data['overlapping_cells'].astype(str)[2]}".replace(",", "") in text.replace(",", "")
    share = data["labelled_buffer"][:3].sum() / data.loc[:2, data.columns.str.startswith("labelled_")].to_numpy().sum()
    assert total[7] == f"{100 * share:.1f} %"


def test_table_names_absent_classes(tmp_path):
    cells, labels = make_slide(patchy=False, classes=2)
    labels["status"], labels["class"] = "labelled", "K0"
    labels.loc[cells["x_px"] > 9300, "class"] = "Edge"
    labels.loc[cells["x_px"] < 300, "class"] = "Other"
    split = split_cells(cells.assign(given_split="train"), labels, SplitConfig(), "train", "a")
    write_json(tmp_path / "a.json", split.report)
    lay_out(splits_table([tmp_path / "a.json"]), tmp_path / "t")
    assert rows(tmp_path / "t.md")[2][8] == "Edge; K0; Other"


def test_command_cuts_a_slide_and_draws_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    cells, labels = make_slide()
    folder = tmp_path / "lung_1"
    folder.mkdir()
    cells.to_parquet(folder / "cells.parquet")
    labels.to_parquet(folder / "labels.parquet")
    mine = tmp_path / "mine.yaml"
    mine.write_text("splits: {folds: 3, fold: 2, test: 0}\n")
    files = ["--cells", str(folder / "cells.parquet"), "--labels", str(folder / "labels.parquet")]
    assert main(["split", *files, "--configfile", str(mine), "--out", str(tmp_path / "out")]) == 0
    assert "layout bands; labelled cells: train" in capsys.readouterr().out
    report = read_json(tmp_path / "out" / "split.json")
    assert (report["slide"], report["folds"], report["fold"]) == ("lung_1", 3, 2)
    assert imread(tmp_path / "out" / "split.png").shape[0] > 300
    expected = split_cells(cells, labels, SplitConfig(test=0.0, folds=3, fold=2), "train").frame
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out" / "split.parquet"), expected)
    assert main(["split", "--cells", files[3], "--labels", files[3], "--out", str(tmp_path / "out")]) == 1
    assert "A table has no x_px and no y_px" in capsys.readouterr().err
    (tmp_path / "none.parquet").write_text("no table")
    assert main(["split", *files[:3], str(tmp_path / "none.parquet"), "--out", str(tmp_path / "out")]) == 1
    assert "A table cannot be read" in capsys.readouterr().err
    (tmp_path / "none.parquet").unlink()
    files[1] = str(tmp_path / "none.parquet")
    assert main(["split", *files, "--out", str(tmp_path / "out")]) == 1
    assert "--cells names no file" in capsys.readouterr().err
