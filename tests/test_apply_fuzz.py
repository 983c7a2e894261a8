"""Any bytes as a file of positions: a result or a message, in bounded time and memory."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nuclass.apply.positions import Positions, read_positions
from nuclass.core.errors import UserError
from peak_memory import held, measuring_process

FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
ARRAYS_LIMIT = 60_000_000


def result_or_message(path: Path, content: bytes, **options: object) -> None:
    """Whatever is in the file, the reader gives whole positions or says what is wrong."""
    path.write_bytes(content)
    try:
        found = read_positions(path, **({"mpp_he": 0.25, "he_shape": (1000, 1000)} | options))  # type: ignore[arg-type]
    except UserError as error:
        told = str(error)
    else:
        told = ""
        check_result(found)
    assert len(told) < 4000


def check_result(found: Positions) -> None:
    assert len(found) > 0
    assert found.xy.shape == (len(found), 2)
    assert found.xy.dtype == np.float64
    assert np.isfinite(found.xy).all()
    assert len(set(found.cell_id)) == len(found)
    assert all(isinstance(name, str) and name for name in found.cell_id)
    if found.outlines is not None:
        assert len(found.outlines) == len(found)
        assert found.outlines.offsets[-1] == len(found.outlines.vertices)
        assert (np.diff(found.outlines.offsets) >= 0).all()
        assert np.isfinite(found.outlines.vertices).all()


numbers = st.one_of(
    st.integers(-10, 1010),
    st.floats(0, 1000),
    st.sampled_from([1e308, -1e308, 1e9, 5e-324, 2**63, 2**64, 10**40, -0.0, np.nan, np.inf, -np.inf]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=5))
coordinates = st.recursive(st.one_of(numbers, scalars), lambda inner: st.lists(inner, max_size=5), max_leaves=40)
positions = st.lists(numbers, min_size=2, max_size=3)
rings = st.lists(positions, max_size=7)
polygons = st.lists(rings, max_size=3)
shapes = st.one_of(
    st.fixed_dictionaries({"type": st.just("Point"), "coordinates": positions}),
    st.fixed_dictionaries({"type": st.just("MultiPoint"), "coordinates": rings}),
    st.fixed_dictionaries({"type": st.just("Polygon"), "coordinates": polygons}),
    st.fixed_dictionaries({"coordinates": st.lists(polygons, max_size=3), "type": st.just("MultiPolygon")}),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["Point", "Polygon", "MultiPolygon", "LineString", "GeometryCollection", "", "X"])},
        optional={"coordinates": coordinates, "geometries": scalars},
    ),
    scalars,
    coordinates,
)
ids = st.one_of(st.sampled_from(["a", "b", "PathCellObject", ""]), scalars)
types = st.sampled_from(["cell", "detection", "annotation", "tile", "TMA core", "other", None, 3])
features = st.fixed_dictionaries(
    {"type": st.sampled_from(["Feature", "Polygon", "FeatureCollection", 5])},
    optional={
        "geometry": shapes,
        "nucleusGeometry": shapes,
        "id": ids,
        "properties": st.one_of(scalars, st.fixed_dictionaries({}, optional={"objectType": types, "a": coordinates})),
        "coordinates": coordinates,
        "contour": st.one_of(rings, coordinates),
        "centroid": st.one_of(positions, coordinates),
        "features": st.one_of(scalars, st.lists(scalars, max_size=2)),
        "cells": scalars,
        "nuc": st.dictionaries(st.text(max_size=2), scalars, max_size=2),
    },
)
lists_of_features = st.lists(st.one_of(features, st.lists(features, max_size=2)), max_size=5)
documents = st.one_of(
    features,
    lists_of_features,
    st.fixed_dictionaries({"type": st.just("FeatureCollection"), "features": lists_of_features}),
    st.fixed_dictionaries({"nuc": st.dictionaries(st.text(max_size=3), features, max_size=4)}),
    st.fixed_dictionaries({"cells": lists_of_features}),
)


@FUZZ
@given(documents)
def test_json_of_any_content(tmp_path, document):
    result_or_message(tmp_path / "x.geojson", json.dumps(document).encode())


@FUZZ
@given(documents, st.integers(0, 400), st.binary(max_size=4), st.booleans())
def test_json_that_is_damaged(tmp_path, document, cut, put, packed):
    whole = json.dumps(document).encode()
    content = whole[:cut] + put + (whole[cut + len(put) :] if len(put) % 2 else b"")
    if packed:
        content = gzip.compress(content)[: -1 - cut % 12 if cut % 3 else None]
    result_or_message(tmp_path / "x.geojson", content)


STARTS = [b"", b"{", b"[", b"PK", b"PAR1", b"\x1f\x8b", b"x_he,y_he\n", b"\xff\xfe"]


@FUZZ
@given(st.binary(max_size=300), st.sampled_from(STARTS))
def test_any_bytes(tmp_path, content, start):
    result_or_message(tmp_path / "x", start + content)


cells_of_text = st.one_of(
    numbers.map(str),
    st.text(max_size=6),
    st.sampled_from(["", "NA", "nan", "1,5", '"', '"a\nb"', "1e400", "9" * 400, "0x1F", "1_000", "True", "1 2", "½"]),
)
heads = st.sampled_from(
    ["x_he,y_he", "x_he;y_he", "x_he\ty_he\tcell_id", "x,y,id", "id,x_he,y_he,x_he", 'x_he,"y_he',
     "Centroid X µm,Centroid Y µm",
     "cell_id,x_he,y_he,Object type", "x_he|y_he", ",x_he,y_he", "x_he,x,y,y_he", "1,2"]
)  # fmt: skip


@FUZZ
@given(
    heads,
    st.lists(st.lists(cells_of_text, min_size=1, max_size=5), max_size=6),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["utf-8", "utf-16", "latin-1", "utf-8-sig"]),
    st.sampled_from([None, "he", "um"]),
)
def test_text_of_any_content(tmp_path, head, rows, mark, encoding, frame):
    text = "\n".join([head, *(mark.join(row) for row in rows)])
    result_or_message(tmp_path / "x.csv", text.encode(encoding, "replace"), frame=frame)


columns = st.one_of(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=3, max_size=3),
    st.lists(st.floats(0, 1000), min_size=3, max_size=3),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=3, max_size=3),
    st.lists(st.one_of(st.none(), st.text(max_size=4)), min_size=3, max_size=3),
    st.lists(st.one_of(st.none(), st.floats(0, 9).map(str)), min_size=3, max_size=3),
    st.lists(st.binary(max_size=4), min_size=3, max_size=3),
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.lists(st.datetimes(pd.Timestamp(1990, 1, 1), pd.Timestamp(2030, 1, 1)), min_size=3, max_size=3),
    st.lists(st.lists(st.floats(0, 9), min_size=1, max_size=2), min_size=3, max_size=3),
    st.just([None, None, None]),
)


@FUZZ
@given(columns, columns, st.one_of(st.none(), columns), st.one_of(st.none(), columns))
def test_parquet_of_any_type(tmp_path, x, y, name, kind):
    content = {"x_he": x, "y_he": y}
    if name is not None:
        content["cell_id"] = name
    if kind is not None:
        content["Object type"] = kind
    buffer = io.BytesIO()
    pd.DataFrame(content).to_parquet(buffer)
    result_or_message(tmp_path / "x.parquet", buffer.getvalue())


@FUZZ
@given(st.data())
def test_parquet_that_is_damaged(tmp_path, data):
    buffer = io.BytesIO()
    frame = pd.DataFrame({"cell_id": ["a", "b", "c"], "x_he": [1.0, 2.0, 3.0], "y_he": [1.0, 2.0, 3.0]})
    frame.to_parquet(buffer)
    content = bytearray(buffer.getvalue())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(4, len(content) - 1)) :]
    else:
        # The footer holds lengths that a reader may believe; the data hold the rest.
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    result_or_message(tmp_path / "x.parquet", bytes(content))


@FUZZ
@given(st.text(max_size=12), st.one_of(st.none(), st.text(max_size=12)), st.floats(allow_nan=True))
def test_any_words_of_the_options(tmp_path, frame, columns, mpp):
    content = b"x_he,y_he\n1,2\n3,4\n"
    result_or_message(tmp_path / "x.csv", content, frame=frame, columns=columns, mpp=mpp)


def nested(depth: int) -> bytes:
    return b'{"type":"Feature","geometry":{"type":"Polygon","coordinates":' + b"[" * depth


LARGE = {
    "lists": b"[" * 10_000_000,
    "objects": b'{"a":' * 2_000_000,
    "coordinates": nested(10_000_000),
    "features": b'{"features":[' * 1_000_000,
    "properties": b'[{"type":"Feature","properties":{"a":' + b"[" * 10_000_000,
    "endless_text": b'[{"type":"Feature","id":"' + b"a" * 20_000_000,
    "endless_number": b'[{"type":"Feature","geometry":{"type":"Point","coordinates":[1,' + b"1" * 20_000_000,
    "endless_line": b"x_he,y_he\n1,2\n3," + b"1" * 30_000_000,
    "endless_head": b"x_he,y_he," + b"a" * 30_000_000,
    "endless_quote": b'x_he,y_he\n1,"' + b"1,2\n" * 8_000_000,
    "blanks": b" " * 20_000_000,
    "commas": b"," * 10_000_000,
}


def told_of(path: Path) -> str:
    """Read a file of positions; return how many there are, or what is said of it."""
    try:
        return str(len(read_positions(path, mpp_he=0.25, he_shape=(1000, 1000))))
    except UserError as error:
        return str(error)


@pytest.fixture(scope="module")
def measuring() -> Iterator[ProcessPoolExecutor]:
    with measuring_process() as pool:
        yield pool


@pytest.mark.parametrize("case", LARGE)
@pytest.mark.parametrize("packed", [False, True])
def test_files_made_to_take_memory(tmp_path, measuring, case, packed):
    """What a file makes the reader hold is bounded, packed a thousand times smaller or not."""
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(LARGE[case], 1) if packed else LARGE[case])
    told, peak, _ = measuring.submit(held, told_of, path).result(300)
    assert not told.isdigit(), "nothing in such a file is a position"
    assert 0 < peak < ARRAYS_LIMIT
