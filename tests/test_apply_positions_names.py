"""Names of the cells of a GeoJSON: the feature's own, else among its properties."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from nuclass.apply.positions import Positions, read_positions

CENTRES = [(100.0, 200.0), (300.5, 400.25), (800.0, 900.0)]


def read(path: Path, features: list[dict[str, Any]]) -> Positions:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return read_positions(path, mpp_he=0.25, he_shape=(1000, 1200))


def features_of(*properties: dict[str, Any], ids: tuple[object, ...] = ()) -> list[dict[str, Any]]:
    """Return one point a cell with these properties, and ids where they are given."""
    named = [{} if name is None else {"id": name} for name in ids] or [{}] * len(properties)
    return [
        {"type": "Feature", **name, "properties": told, "geometry": {"type": "Point", "coordinates": list(place)}}
        for place, told, name in zip(CENTRES, properties, named, strict=True)
    ]


@pytest.mark.parametrize(
    ("properties", "names"),
    [
        ([{"cell_id": "a-1"}, {"cell_id": "b-1"}, {"cell_id": "c-1"}], ["a-1", "b-1", "c-1"]),
        ([{"id": "a"}, {"id": "b"}, {"id": "c"}], ["a", "b", "c"]),
        ([{"id": 0}, {"id": 7}, {"id": 12}], ["0", "7", "12"]),
        ([{"cell_id": 5, "id": 1}, {"id": 1, "cell_id": 6}, {"id": 1, "cell_id": 8}], ["5", "6", "8"]),
        ([{"cell_id": None, "id": "a"}, {"cell_id": "", "id": "b"}, {"cell_id": "c"}], ["a", "b", "c"]),
    ],
)
def test_properties_name_a_feature_without_an_id(tmp_path, properties, names):
    found = read(tmp_path / "a.geojson", features_of(*properties))
    assert found.cell_id.tolist() == names
    assert found.source.endswith("cells named by the properties of their features")


@pytest.mark.parametrize(
    "properties",
    [
        [{"id": "a"}, {"id": "a"}, {"id": "b"}],
        [{"id": "a"}, {}, {"id": "b"}],
        [{"cell_id": ""}, {"cell_id": "a"}, {"cell_id": "b"}],
        [{"name": "a"}, {"name": "b"}, {"name": "c"}],
        [{"measurements": {"id": "a"}}, {"measurements": {"id": "b"}}, {"measurements": {"id": "c"}}],
        [{"id": ["a"]}, {"id": {"cell_id": "b"}}, {"id": True}],
    ],
)
def test_names_that_are_not_one_for_each_are_not_used(tmp_path, properties):
    found = read(tmp_path / "a.geojson", features_of(*properties))
    assert found.cell_id.tolist() == ["1", "2", "3"]
    assert found.source.endswith("cells numbered in the order of the file")


def test_the_feature_s_own_id_comes_first(tmp_path):
    told = [{"cell_id": "x", "id": "y", "name": "Cell"}] * 3
    found = read(tmp_path / "a.geojson", features_of(*told, ids=("u", "v", "w")))
    assert found.cell_id.tolist() == ["u", "v", "w"]
    assert "named by" not in found.source
    mixed = read(tmp_path / "b.geojson", features_of({}, {"id": "b"}, {"cell_id": "c"}, ids=("u", None, "")))
    assert mixed.cell_id.tolist() == ["u", "b", "c"]


def test_a_type_that_old_exports_write_as_the_id_is_no_name(tmp_path):
    told = [{"cell_id": name} for name in "abc"]
    found = read(tmp_path / "a.geojson", features_of(*told, ids=("PathDetectionObject",) * 3))
    assert found.cell_id.tolist() == ["a", "b", "c"]


@pytest.mark.parametrize("order", list(itertools.permutations(("type", "properties", "geometry"))))
def test_the_order_of_the_keys_is_no_matter(tmp_path, order):
    rows = features_of(*({"cell_id": name, "objectType": "detection"} for name in "abc"))
    found = read(tmp_path / "a.geojson", [{key: row[key] for key in order} for row in rows])
    assert found.cell_id.tolist() == ["a", "b", "c"]


def test_cells_of_one_feature_have_its_name_and_their_number(tmp_path):
    rows = features_of({"id": "a"}, {"id": "b"}, {"id": "c"})
    rows.append({
        "type": "Feature",
        "properties": {"id": "pair"},
        "geometry": {"type": "MultiPoint", "coordinates": [[600, 100], [700, 100]]},
    })  # fmt: skip
    found = read(tmp_path / "a.geojson", rows)
    assert found.cell_id.tolist() == ["a", "b", "c", "pair-1", "pair-2"]
