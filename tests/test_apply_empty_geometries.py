"""Cells of which one of two geometries is empty keep the other."""

from __future__ import annotations

import numpy as np

from test_apply_positions import CENTRES, feature, polygon, read, ring, write


def test_an_empty_contour_leaves_the_centroid(tmp_path):
    cells = [{"centroid": list(c), "contour": ring(*c, closed=False)} for c in CENTRES]
    cells[1]["contour"] = []
    found = read(write(tmp_path / "cells.json", {"wsi_metadata": {"mpp": 0.25}, "cells": cells}))
    np.testing.assert_allclose(found.xy, CENTRES, atol=1e-3)
    assert [len(found.outlines.ring(i)) for i in range(3)] == [12, 0, 12]


def test_an_empty_nucleus_leaves_the_cell(tmp_path):
    content = [feature(polygon(ring(*c)), kind="cell") for c in CENTRES]
    content[1]["nucleusGeometry"] = {"type": "Polygon", "coordinates": []}
    content[2]["nucleusGeometry"] = polygon(ring(*CENTRES[2], radius=3))
    found = read(write(tmp_path / "cells.geojson", content))
    np.testing.assert_allclose(found.xy, CENTRES, atol=1e-3)
    widths = [np.ptp(found.outlines.ring(i)[:, 0]) for i in range(3)]
    np.testing.assert_allclose(widths, [20, 20, 6], atol=1e-3)
