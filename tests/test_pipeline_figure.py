"""The figure of the workflow: its pictures are those of the study, its numbers those of the files."""

from __future__ import annotations

import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml
from PIL import Image

from bundle_example import example
from nuclass.core.files import write_parquet
from nuclass.figures.labelling_panels import CellTypes
from nuclass.figures.pipeline import draw_pipeline, labels_of
from nuclass.figures.pipeline_method import Method
from nuclass.figures.pipeline_views import choose_cell, read_views, study_counts, um_to_px
from nuclass.figures.style import Classes
from nuclass.slides.geometry import Frames
from nuclass.slides.writer import write_store
from nuclass.synthetic.bundle import write_bundle
from nuclass.xenium.reader import read_bundle

ROOT = Path(__file__).parents[1]
SHEETS = {"classes": ROOT / "resources" / "classes.tsv", "style": ROOT / "resources" / "style" / "nuclass.mplstyle"}
KINDS = {"T_Cell": "T_Cell", "Fibroblast": "Fibroblast", "Pericyte": ""}
WINDOWS = {"local": 64, "global": 256}
TYPES = CellTypes(KINDS, Classes.read(SHEETS["classes"]))
METHOD = Method.of(
    yaml.safe_load((ROOT / "config" / "models" / "demo.yaml").read_text(encoding="utf-8")), windows=WINDOWS, mpp=0.25
)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle, its H&E and its labels: T cells at the left, fibroblasts and pericytes at the right."""
    folder = tmp_path_factory.mktemp("slide")
    bundle = write_bundle(folder / "bundle", "s", example(per_cell=400)).parent
    image = np.random.default_rng(0).integers(150, 255, (595, 765, 3)).astype(np.uint8)
    tifffile.imwrite(folder / "he.tif", image, photometric="rgb", tile=(64, 64))
    frames = Frames(np.diag([0.25 / 0.2125, 0.25 / 0.2125, 1.0]), 0.2125, 0.25)
    write_store(folder / "he.tif", frames, folder / "he.ome.zarr", tile=64, shard=256, levels=2)
    cells = read_bundle(bundle).cells()[["cell_id", "x_centroid", "y_centroid"]]
    cells = cells.rename(columns={"x_centroid": "x_um", "y_centroid": "y_um"})
    cells["x_px"], cells["y_px"] = cells["x_um"] / 0.25, cells["y_um"] / 0.25
    left = cells["x_px"] < 380
    kind = np.where(left, "T_Cell", np.where(np.arange(len(cells)) % 2, "Fibroblast", "Pericyte"))
    labels = pd.DataFrame({"cell_id": cells["cell_id"], "cluster": np.where(left, 0, 1), "cell_type": kind})
    labels["class"] = labels["cell_type"].map(KINDS)
    labels["status"] = "labelled"
    labels.loc[:2, "status"] = "dropped"
    labels["source"] = "markers"
    umap = labels[["cell_id"]].assign(umap_1=cells["x_um"], umap_2=cells["y_um"])
    genes = [("T_Cell", "GENE0"), ("T_Cell", "GENE1"), ("T_Cell", "GENE2"), ("Fibroblast", "GENE3")]
    rows = [
        (kind, gene, "positive" if kind == own else "", rank + 1, 2.0 if kind == own else 0.5, 0.75)
        for kind in ("T_Cell", "Fibroblast")
        for rank, (own, gene) in enumerate(genes)
    ]
    markers = pd.DataFrame(rows, columns=["cell_type", "gene", "listed", "rank", "mean", "fraction"])
    markers.assign(log2_fold=1.0, score=1.0).to_csv(folder / "markers.csv", index=False)
    for name, table in {"cells": cells.assign(status="kept"), "labels": labels, "umap": umap}.items():
        write_parquet(folder / f"{name}.parquet", table)
    counts = [("a", "ovary", "train", "train", "T_Cell", 7), ("a", "ovary", "train", "val", "Fibroblast", 3),
              ("a", "ovary", "train", "buffer", "T_Cell", 50), ("b", "lung", "train", "test", "T_Cell", 2),
              ("c", "lung", "cohort", "test", "T_Cell", 11), ("c", "lung", "cohort", "test", "B_Cell", 0)]  # fmt: skip
    table = pd.DataFrame(counts, columns=["slide", "organ", "role", "split", "class", "cells"])
    table.to_csv(folder / "counts.csv", index=False)
    return {
        **{name: folder / f"{name}.parquet" for name in ("cells", "labels", "umap")},
        "markers": folder / "markers.csv",
        "windows": folder / "he.ome.zarr",
        "bundle": bundle / "bundle.json",
        "counts": folder / "counts.csv",
    }


def draw(paths: dict[str, Path], folder: Path, counts: Path, method: Method = METHOD) -> pd.DataFrame:
    outputs = [folder / f"p.{ending}" for ending in ("pdf", "png", "jpg", "svg")]
    draw_pipeline(
        "s", "ovary", paths, counts, outputs, folder / "p.csv", method=method, class_of=KINDS, synthetic=True, **SHEETS
    )
    return pd.read_csv(folder / "p.csv", keep_default_na=False)


def of(paths: dict[str, Path], *names: str) -> dict[str, Path]:
    return {name: path for name, path in paths.items() if name in names}


def pdf_streams(path: Path) -> bytes:
    parts = []
    for match in re.finditer(rb"stream\r?\n(.*?)endstream", path.read_bytes(), re.S):
        try:
            parts.append(zlib.decompress(match.group(1)))
        except zlib.error:
            continue
    return b"".join(parts)


def test_numbers_and_pictures_are_those_of_the_study(slide: dict[str, Path], tmp_path: Path) -> None:
    numbers = draw({k: v for k, v in slide.items() if k != "counts"}, tmp_path, slide["counts"])
    value = numbers.set_index(["panel", "row", "column", "measure"])["value"]
    labels = pd.read_parquet(slide["labels"]).query("status != 'dropped'")
    for name in ("T_Cell", "Fibroblast"):
        assert value["labels", name, "", "cells"] == (labels["class"] == name).sum()
    assert value["clusters", "1", "", "cells"] == (labels["cluster"] == 1).sum()
    assert value["markers", "T_Cell", "GENE0", "scaled"] == 1
    assert value["markers", "Fibroblast", "GENE0", "scaled"] == 0.25
    # A type has two genes at most.
    assert sorted(numbers.query("panel == 'markers'")["column"].unique()) == ["GENE0", "GENE1", "GENE3"]
    views = read_views("s", "ovary", slide, WINDOWS, TYPES)
    assert views.cell is not None
    x0, y0 = (float(views.cell[c]) - 48 for c in ("x_px", "y_px"))
    spots = read_bundle(slide["bundle"].parent).transcripts()
    x, y = spots["x_location"] / 0.25 - x0, spots["y_location"] / 0.25 - y0
    spots = spots[x.between(0, 96) & y.between(0, 96) & (spots["qv"] >= 20)]
    shown = spots["feature_name"].value_counts().reindex(["GENE0", "GENE1", "GENE3"]).dropna()
    assert shown.sum() > 20
    drawn = numbers[numbers["panel"] == "transcripts"].set_index("row")["value"]
    assert drawn.to_dict() == shown.to_dict()
    assert value["windows", views.cell["cell_id"], "global", "px"] == 256


def test_the_files_hold_text_and_pictures(slide: dict[str, Path], tmp_path: Path) -> None:
    draw({k: v for k, v in slide.items() if k != "counts"}, tmp_path, slide["counts"])
    text = (tmp_path / "p.svg").read_text(encoding="utf-8")
    for words in ("Stage 1 · local model", "Stage 3 · gate", "organ: ovary", "resnet10t", "starts from stage 1",
                  "8 statistics of", "sigmoid", "synthetic study", "Leiden, 2 clusters"):  # fmt: skip
        assert words in text, words
    pdf = (tmp_path / "p.pdf").read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert pdf_streams(tmp_path / "p.pdf").count(b"TJ") + pdf_streams(tmp_path / "p.pdf").count(b"Tj") > 60
    with Image.open(tmp_path / "p.png") as image:
        assert image.width == pytest.approx(183 / 25.4 * 300, abs=2)
        assert image.height <= 240 / 25.4 * 300
    with Image.open(tmp_path / "p.jpg") as image:
        assert image.width == pytest.approx(183 / 25.4 * 200, abs=2)


def test_a_study_of_patch_files_says_what_it_lacks(slide: dict[str, Path], tmp_path: Path) -> None:
    numbers = draw(of(slide, "cells", "labels"), tmp_path, slide["counts"])
    assert set(numbers["panel"]) == {"study", "windows"}
    text = (tmp_path / "p.svg").read_text(encoding="utf-8")
    assert text.count("windows with labels") == 5
    assert text.count("Windows of patch files") == 2


def test_without_a_label_the_panels_say_so(slide: dict[str, Path], tmp_path: Path) -> None:
    nothing = pd.read_parquet(slide["labels"]).assign(status="abstained", cell_type="", **{"class": ""}, cluster=-1)
    write_parquet(tmp_path / "labels.parquet", nothing)
    numbers = draw({**slide, "labels": tmp_path / "labels.parquet"}, tmp_path, slide["counts"])
    assert "labels" not in set(numbers["panel"])
    text = (tmp_path / "p.svg").read_text(encoding="utf-8")
    for words in ("No labelled cell", "No type with a marker", "No cell to lay out", "0 of 60 cells"):
        assert words in text, words


def test_the_drawing_follows_the_settings(slide: dict[str, Path], tmp_path: Path) -> None:
    other = replace(METHOD, organ="none", gate_project=0, gate_hidden=[], doubt="entropy", gamma=3.0, joint=True)
    draw(of(slide, "cells", "labels"), tmp_path, slide["counts"], other)
    text = (tmp_path / "p.svg").read_text(encoding="utf-8")
    assert "organ: ovary" not in text
    assert "to 16 each" not in text
    assert "then tuned with both heads" in text


def test_the_cell_lies_where_most_classes_meet() -> None:
    cells = pd.DataFrame({"x_px": [10, 20, 30, 140, 150, 160.0], "y_px": 50.0, "status": "labelled"})
    cells["class"] = ["A", "A", "A", "A", "B", ""]
    assert choose_cell(cells, 100, None).name == 4
    # The window of a cell at the edge would leave the slide.
    assert choose_cell(cells, 100, (100, 195)).name == 3
    assert choose_cell(cells.assign(status="abstained"), 100, None) is None


def test_places_and_counts_by_hand(slide: dict[str, Path]) -> None:
    um = np.array([[0, 0], [10, 0], [0, 10], [7, 3.0]])
    px = um @ np.array([[0, 4.0], [-4.0, 0]]) + [100, 5]
    cells = pd.DataFrame({"x_um": um[:, 0], "y_um": um[:, 1], "x_px": px[:, 0], "y_px": px[:, 1]})
    np.testing.assert_allclose(um_to_px(cells), [[0, 4], [-4, 0], [100, 5]], atol=1e-9)
    assert study_counts(slide["counts"]) == {
        "training_slides": 2,
        "organs": 2,
        "classes": 2,
        "train_cells": 7,
        "val_cells": 3,
        "test_cells": 2,
        "cohorts": 1,
        "cohort_cells": 11,
    }


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (["markers", "", "markers"], "Labels from the transcripts of"),
        (["given", "given", ""], "Labels given for"),
        (["given", "markers", ""], "Labels given and from the transcripts of"),
        (["", "", ""], "Labels of"),
    ],
)
def test_the_heading_says_where_the_labels_come_from(sources: list[str], words: str) -> None:
    assert labels_of(pd.DataFrame({"source": sources})) == words
    assert labels_of(pd.DataFrame()) == "Labels of"
