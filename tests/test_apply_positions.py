"""Positions from GeoJSON: every form that the field's tools write, and what is wrong with a file told."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nuclass.apply.positions import Positions, read_positions
from nuclass.core.errors import UserError
from peak_memory import held, measured

SHAPE = (1000, 1200)
MPP = 0.25


def ring(x: float, y: float, radius: float = 10.0, n: int = 12, closed: bool = True) -> list[list[float]]:
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    points = np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], 1).round(4).tolist()
    return points + points[:1] if closed else points


def feature(geometry: dict | None, id: object = None, kind: str | None = None, **more: object) -> dict:
    out: dict = {"type": "Feature", "geometry": geometry, "properties": {}}
    if id is not None:
        out["id"] = id
    if kind is not None:
        out["properties"] = {"objectType": kind, "classification": {"name": "Tumor", "color": [200, 0, 0]}}
    return out | more


def polygon(*rings: list[list[float]]) -> dict:
    return {"type": "Polygon", "coordinates": list(rings)}


def write(path: Path, content: object) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def read(path: Path, **options: object) -> Positions:
    return read_positions(path, **({"mpp_he": MPP, "he_shape": SHAPE} | options))  # type: ignore[arg-type]


def refused(path: Path, **options: object) -> UserError:
    with pytest.raises(UserError) as caught:
        read(path, **options)
    return caught.value


ALIGNED = "a Xenium run, or a file in its frame: --frame morph or --frame xenium_um"
CORNERED = "a GeoJSON or a table in px or um of the H&E: --frame he, um or px@0.25"
CENTRES = [(100.0, 200.0), (300.5, 400.25), (800.0, 900.0)]
FEATURES = [feature(polygon(ring(x, y)), f"id-{i}", "detection") for i, (x, y) in enumerate(CENTRES)]
FORMS = {
    "collection": {"type": "FeatureCollection", "features": FEATURES},
    "features_first": {"features": FEATURES, "type": "FeatureCollection"},
    "list": FEATURES,
    "lines": "\n".join(json.dumps(one) for one in FEATURES),
    "spaced": json.dumps(FEATURES, indent=4),
    "bom": "\ufeff" + json.dumps(FEATURES),
    "collections": "\n".join(json.dumps({"type": "FeatureCollection", "features": [one]}) for one in FEATURES),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["cells.geojson", "cells.json", "cells.geojson.gz", "cells"])
def test_every_form_of_a_file_gives_the_same(tmp_path, form, name):
    found = read(write(tmp_path / name, FORMS[form]))
    assert found.kind == "geojson"
    assert found.cell_id.tolist() == ["id-0", "id-1", "id-2"]
    np.testing.assert_allclose(found.xy, CENTRES, atol=1e-3)
    assert found.outlines is not None
    assert found.outlines.offsets.tolist() == [0, 12, 24, 36]
    np.testing.assert_allclose(found.outlines.ring(1), ring(*CENTRES[1], closed=False))
    assert found.source == f"{name}: 3 outlines of a GeoJSON, frame he"


def test_one_feature_is_a_file(tmp_path):
    found = read(write(tmp_path / "one.geojson", FEATURES[1]))
    assert found.cell_id.tolist() == ["id-1"]
    found = read(write(tmp_path / "bare.geojson", polygon(ring(50, 60))))
    np.testing.assert_allclose(found.xy, [(50, 60)], atol=1e-3)


def test_a_multipolygon_holds_many_cells(tmp_path):
    """As CellViT writes it: one feature a class, an annotation by its type."""
    first = {"type": "MultiPolygon", "coordinates": [[ring(*CENTRES[0])], [ring(*CENTRES[1]), ring(*CENTRES[1], 3)]]}
    second = {"type": "MultiPolygon", "coordinates": [[ring(*CENTRES[2], closed=False)]]}
    content = [feature(first, "a", "annotation"), feature(second, "b", "annotation")]
    found = read(write(tmp_path / "cells.geojson", content))
    np.testing.assert_allclose(found.xy, CENTRES, atol=1e-3)
    assert found.cell_id.tolist() == ["1", "2", "3"]
    assert found.source.endswith("frame he; 1 hole ignored; cells numbered in the order of the file")
    assert found.outlines is not None
    assert np.diff(found.outlines.offsets).tolist() == [12, 12, 12]


def several(*rings: list[list[float]]) -> dict:
    return {"type": "MultiPolygon", "coordinates": [[one] for one in rings]}


@pytest.mark.parametrize("kind", ["detection", "cell"])
@pytest.mark.parametrize("largest", [0, 1, 2])
def test_a_cell_in_several_parts_is_its_largest(tmp_path, kind, largest):
    """As QuPath writes what an edit or a border of tiles has split: all other cells keep their ids."""
    x, y = CENTRES[1]
    parts = [ring(x + 30 * (i - largest), y, 10 if i == largest else 4, 12 + i) for i in range(3)]
    content = [FEATURES[0], feature(several(*parts), "split", kind), FEATURES[2]]
    found = read(write(tmp_path / "cells.geojson", content))
    assert found.cell_id.tolist() == ["id-0", "split", "id-2"]
    np.testing.assert_allclose(found.xy, CENTRES, atol=1e-3)
    assert found.outlines is not None
    assert np.diff(found.outlines.offsets).tolist() == [12, 12 + largest, 12]
    assert found.source == (
        "cells.geojson: 3 outlines of a GeoJSON, frame he; 1 cell in several parts taken by its largest"
    )


def test_a_nucleus_in_several_parts(tmp_path):
    x, y = CENTRES[1]
    cell = feature(several(ring(x, y, 25), ring(x + 60, y, 30)), "q", "cell")
    cell["nucleusGeometry"] = several(ring(x - 40, y, 3), ring(x, y))
    found = read(write(tmp_path / "cells.geojson", [FEATURES[0], cell]))
    assert found.cell_id.tolist() == ["id-0", "q"]
    np.testing.assert_allclose(found.xy, CENTRES[:2], atol=1e-3)


def test_detections_packed_as_one_object_are_many_cells(tmp_path):
    rings = [ring(100 + 50 * i, 300) for i in range(9)]
    found = read(write(tmp_path / "packed.geojson", [feature(several(*rings), "p", "detection"), FEATURES[0]]))
    assert found.cell_id.tolist() == [str(i + 1) for i in range(10)]
    found = read(write(tmp_path / "split.geojson", [feature(several(*rings[:8]), "p", "detection"), FEATURES[0]]))
    assert found.cell_id.tolist() == ["p", "id-0"]


def test_several_cells_of_a_feature_take_no_names_from_the_others(tmp_path):
    plain = [feature(polygon(ring(*place)), f"id-{i}") for i, place in enumerate(CENTRES)]
    pair = feature(several(ring(600, 100), ring(700, 100)), "pair")
    found = read(write(tmp_path / "cells.geojson", [*plain[:2], pair, plain[2]]))
    assert found.cell_id.tolist() == ["id-0", "id-1", "pair-1", "pair-2", "id-2"]
    dots = feature({"type": "MultiPoint", "coordinates": [[600, 100], [700, 100]]}, "dots", "detection")
    found = read(write(tmp_path / "dots.geojson", [*plain[:2], dots, plain[2]]))
    assert found.cell_id.tolist() == ["id-0", "id-1", "dots-1", "dots-2", "id-2"]
    pair["id"] = "id"
    plain[0]["id"] = "id-1"
    assert read(write(tmp_path / "twice.geojson", [*plain, pair])).cell_id.tolist() == list("12345")


def test_points_have_no_outlines(tmp_path):
    many = {"type": "MultiPoint", "coordinates": [list(CENTRES[0]), [*CENTRES[1], 0.0]]}
    content = [feature(many), feature({"coordinates": list(CENTRES[2]), "type": "Point"})]
    found = read(write(tmp_path / "points.geojson", content))
    np.testing.assert_array_equal(found.xy, CENTRES)
    assert found.outlines is None
    assert found.source.startswith("points.geojson: 3 points of a GeoJSON, frame he")


def test_points_beside_outlines(tmp_path):
    content = [feature({"type": "Point", "coordinates": [5, 6]}), FEATURES[0]]
    found = read(write(tmp_path / "both.geojson", content))
    assert found.outlines is not None
    assert found.outlines.offsets.tolist() == [0, 0, 12]
    assert "1 outline and 1 point of a GeoJSON" in found.source


@pytest.mark.parametrize("nucleus_first", [True, False])
def test_the_nucleus_of_a_qupath_cell_counts(tmp_path, nucleus_first):
    x, y = CENTRES[1]
    cell = {"geometry": polygon(ring(x + 4, y, 25, 20))}
    nucleus = {"nucleusGeometry": polygon(ring(x, y))}
    keys = {**nucleus, **cell} if nucleus_first else {**cell, **nucleus}
    content = [FEATURES[0], {"type": "Feature", "id": "q", **keys, "properties": {"objectType": "cell"}}, FEATURES[2]]
    found = read(write(tmp_path / "qupath.geojson", content))
    np.testing.assert_allclose(found.xy, CENTRES, atol=1e-3)
    assert found.outlines is not None
    np.testing.assert_allclose(found.outlines.ring(1), ring(x, y, closed=False))
    assert "1 cell outline beside a nucleus not used" in found.source


def test_regions_tiles_and_cores_are_no_cells(tmp_path):
    content = [
        feature(polygon(ring(500, 500, 20)), "region", "annotation"),
        feature(polygon(ring(500, 500, 30)), "tile", "tile"),
        feature(polygon(ring(500, 500, 30)), "core", "TMA core"),
        *FEATURES,
        feature(None, "nothing", "detection"),
        feature({"type": "LineString", "coordinates": [[0, 0], [1, 1]]}, "line"),
        feature(polygon(ring(500, 500, 490, 60)), "large"),
    ]
    found = read(write(tmp_path / "mixed.geojson", content))
    assert found.cell_id.tolist() == ["id-0", "id-1", "id-2"]
    assert found.source == (
        "mixed.geojson: 3 outlines of a GeoJSON, frame he; 1 feature without a geometry left out; 1 line left out; "
        "2 tiles or cores left out; 1 annotation left out; 1 outline larger than 10,000 um^2 left out"
    )


def test_annotations_alone_are_cells(tmp_path):
    content = [feature(polygon(ring(x, y)), i, "annotation") for i, (x, y) in enumerate(CENTRES)]
    found = read(write(tmp_path / "annotated.geojson", content))
    assert found.cell_id.tolist() == ["0", "1", "2"]


def test_old_exports_name_the_type_in_the_id(tmp_path):
    content = [{**one, "id": "PathDetectionObject", "properties": {}} for one in FEATURES]
    content.append(feature(polygon(ring(500, 500, 20)), "PathAnnotationObject"))
    found = read(write(tmp_path / "old.geojson", content))
    assert found.cell_id.tolist() == ["1", "2", "3"]
    assert "1 annotation left out" in found.source


def test_measurements_that_are_not_known_do_no_harm(tmp_path):
    text = json.dumps([{**one, "properties": {"measurements": {"a": 1, "b": 2, "c": 3}}} for one in FEATURES])
    text = text.replace('"a": 1', '"a": NaN').replace('"b": 2', '"b":-Infinity').replace('"c": 3', '"c": Infinity')
    assert len(read(write(tmp_path / "nan.geojson", text))) == 3


def test_json_of_hovernet_and_of_cellvit(tmp_path):
    box = [[1, 2], [3, 4]]
    cell = [{"bbox": box, "centroid": list(c), "contour": ring(*c, closed=False), "type": 1} for c in CENTRES]
    hovernet = {"mag": 40, "nuc": {str(i + 7): one for i, one in enumerate(cell)}}
    found = read(write(tmp_path / "hovernet.json", hovernet), frame="px@0.25")
    assert found.cell_id.tolist() == ["7", "8", "9"]
    np.testing.assert_allclose(found.xy, CENTRES, atol=1e-3)
    cellvit = {"wsi_metadata": {"mpp": 0.25}, "type_map": {"1": "Neoplastic"}, "cells": cell}
    found = read(write(tmp_path / "cells.json", cellvit))
    np.testing.assert_allclose(found.xy, CENTRES, atol=1e-3)
    assert found.outlines is not None
    detection = {"cells": [{"bbox": [[1, 2], [3, 4]], "centroid": list(c), "type": 1} for c in CENTRES]}
    found = read(write(tmp_path / "cell_detection.json", detection))
    np.testing.assert_array_equal(found.xy, CENTRES)
    assert found.outlines is None


def test_a_contour_of_points_in_lists_of_their_own_is_refused(tmp_path):
    cell = {"centroid": [5, 5], "contour": [[[1, 1]], [[9, 1]], [[9, 9]], [[1, 9]]]}
    with pytest.raises(UserError, match="A contour is no list of points"):
        read(write(tmp_path / "opencv.json", {"nuc": {"1": cell}}), frame="he")


def test_ids_that_do_not_name_each_cell_are_not_used(tmp_path):
    for ids in (["a", "a", "b"], ["a", None, "b"], ["a", "", "b"]):
        content = [feature(polygon(ring(*c)), id) for id, c in zip(ids, CENTRES, strict=True)]
        assert read(write(tmp_path / "x.geojson", content)).cell_id.tolist() == ["1", "2", "3"]


def test_rings_without_an_area_are_points(tmp_path):
    content = [
        feature(polygon([[10, 10], [20, 10], [30, 10], [10, 10]])),
        feature(polygon([[40, 40]])),
        feature({"type": "Polygon", "coordinates": []}),
        feature({"type": "Polygon", "coordinates": [[]]}),
        feature(polygon(ring(*CENTRES[0]))),
    ]
    found = read(write(tmp_path / "flat.geojson", content))
    np.testing.assert_allclose(found.xy, [(20, 10), (40, 40), CENTRES[0]], atol=1e-3)
    assert found.outlines is not None
    assert found.outlines.offsets.tolist() == [0, 0, 0, 12]
    assert "2 empty outlines left out; 2 outlines without an area taken as a point" in found.source


def test_positions_outside_are_counted_and_stay(tmp_path):
    content = [*FEATURES, feature(polygon(ring(-50, 20)))]
    found = read(write(tmp_path / "x.geojson", content))
    assert len(found) == 4
    assert "1 lies outside the image" in found.source


@pytest.mark.parametrize(
    ("frame", "scale"), [(None, 1), ("he", 1), ("um", 4.0), ("um@0.5", 2.0), ("px@0.5", 2.0), ("PX@0.125", 0.5)]
)
def test_frames_that_share_the_corner(tmp_path, frame, scale):
    content = [feature(polygon(ring(x / scale, y / scale, 10 / scale))) for x, y in CENTRES]
    found = read(write(tmp_path / "x.geojson", content), frame=frame)
    np.testing.assert_allclose(found.xy, CENTRES, atol=2e-3)
    assert found.outlines is not None
    np.testing.assert_allclose(found.outlines.ring(2), ring(*CENTRES[2], closed=False), atol=2e-3)


def test_px_may_have_their_size_apart(tmp_path):
    content = [feature(polygon(ring(x / 2, y / 2))) for x, y in CENTRES]
    found = read(write(tmp_path / "x.geojson", content), frame="px", mpp=0.5)
    np.testing.assert_allclose(found.xy, CENTRES, atol=2e-3)


FAR = np.array([(100.0, 200.0), (900.0, 1900.0), (2300.0, 1700.0), (1500.0, 1800.0)])


@pytest.mark.parametrize(
    ("points", "frame", "fix"),
    [
        (FAR / 2, "um", "the positions would fit --frame he"),
        (FAR / 2, "px@1", "the positions would fit --frame he"),
        (FAR / 8, "px@2", "the positions would fit --frame um (micrometres)"),
        (FAR / 8, "px@1.5", "the positions would fit --frame um (micrometres)"),
        (np.array([(100, 1150), (900, 1010), (10, 1100)]), None, "the positions would fit with x and y exchanged"),
        (FAR - 5000, None, "check that the positions are of this image and not of a part of it, and state their frame"),
    ],
)
def test_most_outside_is_an_error_that_names_what_fits(tmp_path, points, frame, fix):
    content = [feature({"type": "Point", "coordinates": list(map(float, p))}) for p in points]
    path = write(tmp_path / "far.geojson", content)
    error = refused(path, frame=frame)
    assert error.what == "Most positions lie outside the image"
    assert error.where == path
    assert error.expected == "positions on an image of 1200 x 1000 px"
    assert error.fix.startswith(fix)


def test_the_message_of_positions_of_another_size(tmp_path):
    """As a segmentation at 0.25 um/px gives it for a slide of 0.5."""
    content = [feature({"type": "Point", "coordinates": p}) for p in FAR.tolist()]
    path = write(tmp_path / "far.geojson", content)
    assert str(refused(path, mpp_he=0.5)) == (
        "Most positions lie outside the image\n"
        f"  where:      {path}\n"
        "  found:      3 of 4; read as he they span x 100 to 2300, y 200 to 1900 px\n"
        "  expected:   positions on an image of 1200 x 1000 px\n"
        "  to mend it: the positions would fit --frame px@0.25"
    )


def test_outlines_of_no_nucleus_are_remarked(tmp_path):
    small = [feature(polygon(ring(x, y, 2))) for x, y in CENTRES]
    found = read(write(tmp_path / "small.geojson", small))
    assert "the median outline has 0.75 um^2, unlike a nucleus: is the frame right?" in found.source


NESTED = "Coordinates are nested in no known way"
NO_FIT = "Coordinates do not fit the type of their geometry"
WRONG = {
    "text": ([*FEATURES, feature(polygon([["a", 1], [2, 3], [3, 4]]))], "A coordinate is not a number", 4),
    "null": ([FEATURES[0], feature(polygon([[None, 1], [2, 3], [3, 4]]))], "A coordinate is not a number", 2),
    "nan": (json.dumps(FEATURES[:1]).replace("110.0", "NaN", 1), "A coordinate is not a number", 1),
    "one": ([feature(polygon([[1], [2], [3]]))], "A position has one number", 1),
    "far": ([feature({"type": "Point", "coordinates": [1e308, 5]})], "A coordinate is far off any slide", 1),
    "deep": ([feature({"type": "Polygon", "coordinates": [[[[[1, 2]]]]]})], NESTED, 1),
    "uneven": ([feature(polygon([[1, 2], [[3, 4]]]))], NESTED, 1),
    "type": ([feature({"type": "Point", "coordinates": [[1, 2]]})], NO_FIT, 1),
    "unknown": ([feature({"type": "Circle", "coordinates": [1, 2]})], "A geometry is of no known type", 1),
    "scalar": ([FEATURES[0], 5], "The file holds something that is no feature", 1),
    "object": ([FEATURES[0], {"a": 1}], "The file holds something that is no feature", 2),
    "settings": ({"a": 1}, "The file holds something that is no feature", 1),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_with_the_feature(tmp_path, case):
    content, what, number = WRONG[case]
    path = write(tmp_path / "wrong.geojson", content)
    error = refused(path)
    assert error.what == what
    assert error.where == f"{path}, feature {number}"


def test_the_message_of_a_coordinate(tmp_path):
    path = write(tmp_path / "x.geojson", WRONG["text"][0])
    assert str(refused(path)) == (
        "A coordinate is not a number\n"
        f"  where:      {path}, feature 4\n"
        "  found:      'a'\n"
        "  expected:   x and y in px\n"
        "  to mend it: export the file again, or leave this feature out"
    )


def test_a_file_that_is_cut_off(tmp_path):
    text = json.dumps(FORMS["collection"])
    path = write(tmp_path / "cut.geojson", text[: int(len(text) * 0.8)])
    error = refused(path)
    assert error.what == "The file is not valid JSON"
    assert error.where == f"{path}, after feature 3"
    assert error.fix == "export or copy it again; it may be cut off"
    packed = write(tmp_path / "cut.geojson.gz", text)
    packed.write_bytes(packed.read_bytes()[:-20])
    assert refused(packed).what in ("A packed file of positions is damaged", "The file is not valid JSON")


def test_files_without_cells(tmp_path):
    error = refused(write(tmp_path / "none.geojson", {"type": "FeatureCollection", "features": []}))
    assert (error.what, error.found) == ("The GeoJSON holds no cells", "no features")
    error = refused(write(tmp_path / "tiles.geojson", [feature(polygon(ring(50, 50)), 1, "tile")]))
    assert (error.what, error.found) == ("The GeoJSON holds no cells", "1 tile or core left out")
    error = refused(write(tmp_path / "region.geojson", [feature(polygon(ring(500, 500, 450)))]))
    assert error.found == "1 outline larger than 10,000 um^2 left out"


def test_files_of_no_known_kind(tmp_path):
    page = write(tmp_path / "page.geojson", "<!DOCTYPE html><html></html>")
    assert refused(page).found == "a web page or XML"
    assert refused(write(tmp_path / "empty.geojson", "")).found == "an empty file"
    (tmp_path / "x.bin").write_bytes(b"\x89PNG\0\0\0")
    assert refused(tmp_path / "x.bin").what == "The file of positions is of no known kind"
    error = refused(tmp_path / "missing.geojson")
    assert (error.what, error.fix) == ("The file of positions is missing", "check the path of --cells")


@pytest.mark.parametrize(
    ("cells", "option", "value", "told", "use"),
    [
        ("x.geojson", "columns", "x=a,y=b", "a GeoJSON", "a table: CSV, TSV or Parquet"),
        ("x.geojson", "weights", "cpsam", "a GeoJSON", "--cells detect:cellpose"),
        ("x.geojson", "alignment", "grid", "a GeoJSON", ALIGNED),
        ("x.csv", "weights", "cpsam", "a table", "--cells detect:cellpose"),
        ("x.csv", "alignment", "grid", "a table in the frame he", ALIGNED),
        ("run", "columns", "x=a,y=b", "a Xenium run", "a table: CSV, TSV or Parquet"),
        ("run", "weights", "cpsam", "a Xenium run", "--cells detect:cellpose"),
        ("run", "origin", "crop", "a Xenium run", CORNERED),
        ("detect", "alignment", "grid", "--cells detect", ALIGNED),
        ("detect", "columns", "x=a,y=b", "--cells detect", "a table: CSV, TSV or Parquet"),
        ("detect:classical", "weights", "cpsam", "--cells detect:classical", "--cells detect:cellpose"),
        ("detect:cellpose", "origin", "image", "--cells detect:cellpose", CORNERED),
    ],
)
def test_an_option_without_a_use_is_told(tmp_path, cells, option, value, told, use):
    """Nothing that the user says is passed over in silence; the image is not looked at before."""
    write(tmp_path / "x.geojson", FEATURES)
    write(tmp_path / "x.csv", "x_he,y_he\n1,2\n")
    (tmp_path / "run").mkdir()
    path = cells if cells.startswith("detect") else tmp_path / cells
    assert str(refused(path, **{option: value})) == (
        f"The option --{option} has no use with these positions\n"
        f"  where:      --cells {path}\n"
        f"  found:      --{option} {value} with {told}\n"
        f"  expected:   --{option} with {use}\n"
        f"  to mend it: leave --{option} out"
    )


def test_all_options_without_a_use_are_told(tmp_path):
    told = str(refused("detect", columns="x=a,y=b", alignment="grid", frame="um"))
    assert told.startswith("The positions cannot be read as it is said: 3 faults\n")
    for part in ("Detected nuclei need no frame", "--columns x=a,y=b", "--alignment grid"):
        assert part in told


def test_frames_of_a_run_need_an_alignment(tmp_path):
    path = write(tmp_path / "x.geojson", FEATURES)
    assert refused(path, frame="xenium_um").what == "Positions of a Xenium run need the alignment of the H&E"
    content = [feature(polygon(ring(x * 0.2125, y * 0.2125, 2))) for x, y in CENTRES]
    path = write(tmp_path / "um.geojson", content)
    found = read(path, frame="xenium_um", alignment="grid", mpp_he=0.2125)
    np.testing.assert_allclose(found.xy, CENTRES, atol=1e-2)
    found = read(path, frame="xenium_um", alignment="1,0,-5; 0,1,0", mpp_he=0.2125)
    np.testing.assert_allclose(found.xy, np.add(CENTRES, (5, 0)), atol=1e-2)
    found = read(write(tmp_path / "m.geojson", FEATURES), frame="morph", alignment="grid", mpp_he=0.25)
    np.testing.assert_allclose(found.xy, CENTRES, atol=1e-2)
    assert "by the alignment a px of the H&E is 0.2125 um, taken is 0.25 um" in found.source


# Against shapely, and in one stream whatever the pieces


blobs = st.tuples(
    st.floats(30, 900), st.floats(30, 900), st.floats(2, 25), st.integers(3, 30), st.booleans(), st.floats(0.2, 1)
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(blobs, min_size=1, max_size=12), st.integers(1, 4), st.booleans())
def test_positions_are_shapelys_centroids(tmp_path, shapes, per_feature, spaced):
    rings = []
    for x, y, radius, n, closed, squeeze in shapes:
        points = np.array(ring(x, y, radius, n, closed))
        points[:, 1] = y + (points[:, 1] - y) * squeeze
        rings.append(points.tolist())
    groups = [rings[i : i + per_feature] for i in range(0, len(rings), per_feature)]
    content = [feature({"type": "MultiPolygon", "coordinates": [[one] for one in group]}) for group in groups]
    found = read(write(tmp_path / "x.geojson", json.dumps(content, indent=2 if spaced else None)))
    expected = [shapely.Polygon(one).centroid.coords[0] for one in rings]
    np.testing.assert_allclose(found.xy, expected, atol=1e-6)
    assert found.outlines is not None
    for i, one in enumerate(rings):
        assert shapely.Polygon(found.outlines.ring(i)).equals(shapely.Polygon(one))


def memory_of_reading(warm, path):
    read(warm)
    found, peak, _ = held(read, path)
    return len(found), found.outlines.vertices.nbytes, peak


def test_many_cells_in_one_feature_take_little_memory(tmp_path):
    """The vertices as text are several times the arrays; the tree of the JSON would be ten times more."""
    shapes = [[ring(x, y, 8, 24)] for x, y in np.random.default_rng(0).uniform(50, 900, (5000, 2))]
    path = write(tmp_path / "many.geojson", [feature({"type": "MultiPolygon", "coordinates": shapes})])
    n, vertices, peak = measured(memory_of_reading, write(tmp_path / "warm.geojson", FEATURES), path)
    assert n == 5000
    assert peak < 3 * vertices + 12_000_000, "beside the arrays and their copy, what is the same for a larger file"
