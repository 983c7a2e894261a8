"""Outputs of a run as tables and outlines: CSV, GeoJSON for QuPath, AnnData; and how mistakes are told."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from shapely.geometry import shape

from apply_example import (
    CLASSES,
    CLOSED,
    CROSSED,
    FLAT,
    NO_OUTLINE,
    RADIUS,
    SHEET,
    outlines_of,
    table_of,
    write_tables,
)
from nuclass.apply.out_geojson import cell_uuid
from nuclass.apply.out_read import Run, rgb
from nuclass.apply.outputs import DEFAULT, FORMATS, NAMES, check_formats, write_outputs
from nuclass.core.errors import UserError
from nuclass.core.files import write_json, write_parquet
from nuclass.figures.style import Classes

STORE = Path("no store is needed here")
SHEETED = Classes.read(SHEET)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("run")
    table = write_tables(folder, table_of(60))
    write_outputs(folder, ["geojson", "csv", "anndata"], store=STORE, classes=SHEET)
    return folder, table


@pytest.fixture(scope="module")
def features(run: tuple[Path, pd.DataFrame]) -> dict[str, dict[str, Any]]:
    """Features of the GeoJSON by the cell's name."""
    made = json.loads((run[0] / "predictions.geojson").read_text())
    assert made["type"] == "FeatureCollection"
    return {feature["properties"]["name"]: feature for feature in made["features"]}


def geojson_of(folder: Path) -> dict[str, Any]:
    write_outputs(folder, ["geojson"], store=STORE, classes=SHEET)
    made = json.loads((folder / "predictions.geojson").read_text())
    assert isinstance(made, dict)
    return made


def test_csv_holds_every_column_and_stays_readable(run: tuple[Path, pd.DataFrame]) -> None:
    folder, table = run
    text = (folder / "predictions.csv").read_text()
    read = pd.read_csv(folder / "predictions.csv", keep_default_na=False)
    assert read.columns.tolist() == table.columns.tolist()
    assert read["cell_id"].tolist() == table["cell_id"].tolist()
    assert read["class"].tolist() == table["class"].tolist()
    np.testing.assert_allclose(read[["x_he", "y_px"]], table[["x_he", "y_px"]], atol=0.0051)
    known = table["status"] != "left_out"
    np.testing.assert_allclose(read.loc[known, "confidence"].astype(float), table.loc[known, "confidence"], rtol=1e-3)
    assert set(read.loc[~known, "confidence"]) == {""}
    assert "nan" not in text.lower()
    assert max(len(line) for line in text.splitlines()) < 300


def test_geojson_has_the_cells_and_tells_the_others(run: tuple[Path, pd.DataFrame], features: dict[str, Any]) -> None:
    folder, table = run
    shown = table[table["status"] != "left_out"]
    assert list(features) == shown["cell_id"].tolist()
    told = json.loads((folder / "predictions.geojson").read_text())["nuclass"]
    assert told == {"slide": "ovary_1", "model": "gate", "cells": 57, "left_out": 3}


def test_geojson_says_what_the_table_says(run: tuple[Path, pd.DataFrame], features: dict[str, Any]) -> None:
    table = run[1].set_index("cell_id")
    assert {"typed", "abstained"} <= set(table["status"])
    for name, feature in features.items():
        row, told = table.loc[name], feature["properties"]
        assert told["objectType"] == "detection"
        measured = {"NuClass confidence": row["confidence"], "NuClass gate": row["gate"]}
        measured |= {f"NuClass P({c})": row[f"prob_{c}"] for c in CLASSES}
        assert told["measurements"] == {key: pytest.approx(value, rel=1e-3) for key, value in measured.items()}
        given_class = told["classification"]
        if row["status"] == "abstained":
            assert given_class == {"name": "Uncertain", "color": [140, 140, 140]}
            continue
        assert given_class["name"] == row["class"]
        if row["class"] in SHEETED.table.index:
            assert given_class["color"] == rgb(SHEETED.colour(row["class"]))
        else:
            assert given_class["color"] != [140, 140, 140], "a class of one's own is not taken for uncertain"


def test_ids_are_uuids_that_stay(run: tuple[Path, pd.DataFrame], features: dict[str, Any]) -> None:
    ids = [feature["id"] for feature in features.values()]
    assert len(set(ids)) == len(ids)
    assert all(uuid.UUID(one).version == 5 for one in ids)
    assert ids[0] == cell_uuid("ovary_1", "cell 1") == "fd01829b-1891-5410-a166-f2d5821e0997"
    assert cell_uuid("ovary_2", "cell 1") != ids[0]


def test_geometries_are_closed_valid_rings_around_the_cells(
    run: tuple[Path, pd.DataFrame], features: dict[str, Any]
) -> None:
    table = run[1]
    points = {f"cell {i + 1}" for i in (NO_OUTLINE, FLAT)}
    for name, feature in features.items():
        geometry = feature["geometry"]
        row = table[table["cell_id"] == name].iloc[0]
        if name in points:
            assert geometry["type"] == "Point"
            assert geometry["coordinates"] == pytest.approx([row["x_he"], row["y_he"]], abs=0.0051)
            continue
        (ring,) = geometry["coordinates"]
        assert ring[0] == ring[-1]
        assert len(ring) >= 4
        assert all(ring[i] != ring[i + 1] for i in range(len(ring) - 1))
        outline = shape(geometry)
        assert outline.is_valid
        if name != f"cell {CROSSED + 1}":
            assert outline.area == pytest.approx(2 * np.sqrt(2) * RADIUS**2, rel=0.01)
            assert outline.centroid.distance(shape({"type": "Point", "coordinates": row[["x_he", "y_he"]]})) < 0.02
    assert len(features[f"cell {CLOSED + 1}"]["geometry"]["coordinates"][0]) == 9


def test_geojson_of_a_cropped_scan_counts_as_qupath_does(
    run: tuple[Path, pd.DataFrame], features: dict[str, Any], tmp_path: Path
) -> None:
    """From the corner of the scanned part; the table stays as it is."""
    crop = {"x": 100, "y": 50, "width": 200, "height": 200, "positions": "image", "predictions.geojson": "crop"}
    write_tables(tmp_path, run[1], crop=crop)
    write_outputs(tmp_path, ["geojson", "csv"], store=STORE, classes=SHEET)
    made = json.loads((tmp_path / "predictions.geojson").read_text())
    assert made["nuclass"] == {"slide": "ovary_1", "model": "gate", "cells": 57, "left_out": 3, "corner": [100, 50]}
    for feature in made["features"]:
        before = features[feature["properties"]["name"]]
        assert (feature["id"], feature["properties"]) == (before["id"], before["properties"])
        moved, was = (shape(one["geometry"]) for one in (feature, before))
        assert moved.geom_type == was.geom_type
        assert np.subtract(was.bounds, moved.bounds) == pytest.approx([100, 50, 100, 50], abs=0.011)
    assert (tmp_path / "predictions.csv").read_text() == (run[0] / "predictions.csv").read_text()


def test_geopandas_reads_it(run: tuple[Path, pd.DataFrame]) -> None:
    geopandas = pytest.importorskip("geopandas")
    read = geopandas.read_file(run[0] / "predictions.geojson")
    assert len(read) == 57
    assert (read["objectType"] == "detection").all()
    assert set(read.geom_type) == {"Point", "Polygon"}


def test_parts_of_the_table_make_the_same_file(
    run: tuple[Path, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tables(tmp_path, run[1])
    # Files whose groups of rows do not match: parts are put together again.
    table = pd.read_parquet(tmp_path / "outlines.parquet")
    table.to_parquet(tmp_path / "outlines.parquet", row_group_size=7)
    parts = Run.parts_with_outlines
    monkeypatch.setattr(Run, "parts_with_outlines", lambda self: parts(self, 11))
    write_outputs(tmp_path, ["geojson"], store=STORE, classes=SHEET)
    assert (tmp_path / "predictions.geojson").read_text() == (run[0] / "predictions.geojson").read_text()


@pytest.mark.parametrize("model", ["local", "global"])
def test_one_branch_alone_has_no_gate(tmp_path: Path, model: str) -> None:
    write_tables(tmp_path, table_of(20, model), model, outlines=False)
    made = geojson_of(tmp_path)
    assert {feature["geometry"]["type"] for feature in made["features"]} == {"Point"}
    assert "NuClass gate" not in made["features"][0]["properties"]["measurements"]


def test_number_that_is_missing_is_left_out(tmp_path: Path) -> None:
    """QuPath takes a null for a fault of the file."""
    table = table_of(8)
    table.loc[2, "gate"] = np.nan
    write_tables(tmp_path, table)
    measured = geojson_of(tmp_path)["features"][2]["properties"]["measurements"]
    assert "NuClass gate" not in measured
    assert len(measured) == 1 + len(CLASSES)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_hardly_any_cells(tmp_path: Path, n: int) -> None:
    write_tables(tmp_path, table_of(n, left_out=3 if n == 3 else 0))
    write_outputs(tmp_path, ["csv", "geojson", "anndata"], store=STORE, classes=SHEET)
    shown = 1 if n == 1 else 0
    assert len(json.loads((tmp_path / "predictions.geojson").read_text())["features"]) == shown
    assert len(pd.read_csv(tmp_path / "predictions.csv")) == n
    anndata = pytest.importorskip("anndata")
    assert anndata.read_h5ad(tmp_path / "cells.h5ad").shape == (shown, len(CLASSES))


def test_odd_names_stay_what_they_are(tmp_path: Path) -> None:
    table = table_of(6, classes=('T "ζ" %d', "B\\cell"), left_out=0)
    table["cell_id"] = ['"1"', "2%", "3\n", "é", "5\\", "6"]
    write_tables(tmp_path, table, slide='slide "x" ' + "long " * 60)
    made = geojson_of(tmp_path)
    assert [feature["properties"]["name"] for feature in made["features"]] == table["cell_id"].tolist()
    assert 'NuClass P(T "ζ" %d)' in made["features"][0]["properties"]["measurements"]


def test_anndata_holds_probabilities_and_annotations(run: tuple[Path, pd.DataFrame]) -> None:
    anndata = pytest.importorskip("anndata")
    folder, table = run
    read = anndata.read_h5ad(folder / "cells.h5ad")
    shown = table[table["status"] != "left_out"]
    assert read.obs_names.tolist() == shown["cell_id"].tolist()
    assert read.var_names.tolist() == list(CLASSES)
    assert read.X.dtype == np.float32
    np.testing.assert_allclose(read.X, shown[[f"prob_{c}" for c in CLASSES]], rtol=1e-6)
    np.testing.assert_allclose(read.obsm["spatial"], shown[["x_um", "y_um"]])
    named = read.obs["class"].astype(object).where(read.obs["class"].notna(), "")
    assert named.tolist() == shown["class"].tolist()
    assert len(read.uns["class_colors"]) == len(read.obs["class"].cat.categories) == len(CLASSES)
    coloured = dict(zip(read.obs["class"].cat.categories, read.uns["class_colors"], strict=True))
    assert coloured["T_Cell"] == SHEETED.colour("T_Cell")
    assert read.uns["nuclass"]["left_out"] == 3
    assert json.loads(read.uns["nuclass"]["run"])["checkpoints"]["gate"].startswith("0123")


def test_scanpy_draws_it(run: tuple[Path, pd.DataFrame]) -> None:
    scanpy = pytest.importorskip("scanpy")
    read = scanpy.read_h5ad(run[0] / "cells.h5ad")
    axes = scanpy.pl.embedding(read, basis="spatial", color="class", show=False)
    # Figures drawn before in this process may have set titles to the left.
    assert "class" in (axes.get_title(), axes.get_title(loc="left"))


def test_formats_are_named_and_a_wrong_one_is_told(tmp_path: Path) -> None:
    assert set(NAMES) == set(FORMATS) >= set(DEFAULT)
    check_formats(FORMATS)
    with pytest.raises(UserError) as told:
        write_outputs(tmp_path, ["csv", "geojsn"], store=STORE, classes=SHEET)
    assert str(told.value) == (
        "There is no output 'geojsn'. Did you mean 'geojson'?\n"
        "  found:      geojsn\n"
        "  expected:   csv, geojson, spatialdata, anndata, explorer, summary\n"
        "  to mend it: name some of these, separated by commas"
    )
    assert list(tmp_path.iterdir()) == []


def test_spatialdata_that_is_not_installed_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nuclass.apply.out_spatialdata.find_spec", lambda name: None)
    with pytest.raises(UserError) as told:
        check_formats(["spatialdata"])
    assert str(told.value) == (
        "The output spatialdata needs a package that is not installed\n"
        "  expected:   spatialdata\n"
        "  to mend it: pip install 'spatialdata>=0.4', or leave this output out"
    )


def without(folder: Path, column: str) -> None:
    write_parquet(folder / "predictions.parquet", table_of(5).drop(columns=column))


def without_probabilities(folder: Path) -> None:
    table = table_of(5)
    write_parquet(folder / "predictions.parquet", table[[c for c in table if not c.startswith("prob_")]])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "predictions.parquet").unlink(), "This folder holds no predictions"),
        (lambda folder: (folder / "run.json").unlink(), "A file is missing"),
        (lambda folder: (folder / "predictions.parquet").write_bytes(b"PAR1"), "The predictions cannot be read"),
        (lambda folder: without(folder, "x_he"), r"The predictions lack columns[^$]*\['x_he'\]"),
        (without_probabilities, "The predictions hold no probabilities"),
        (lambda folder: write_json(folder / "run.json", {"slide": "x"}), "The record of the run lacks entries"),
        (lambda folder: write_parquet(folder / "outlines.parquet", outlines_of(table_of(4))), "The outlines are not"),
        (
            lambda folder: write_parquet(folder / "outlines.parquet", outlines_of(table_of(5)).iloc[::-1]),
            "The outlines are not those of the predictions",
        ),
        (
            lambda folder: write_parquet(
                folder / "outlines.parquet", outlines_of(table_of(5)).assign(y_he=[[1.0]] * 5)
            ),
            "An outline has more x than y, or fewer",
        ),
    ],
)
def test_a_run_that_is_not_whole_is_told(tmp_path: Path, damage: Any, message: str) -> None:
    write_tables(tmp_path, table_of(5))
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        write_outputs(tmp_path, ["geojson"], store=STORE, classes=SHEET)
    assert not (tmp_path / "predictions.geojson").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
