"""Outlines made fit for other programs, against shapely."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import MultiPoint, Polygon

from nuclass.apply.out_rings import Cleaned, Rings

number = st.integers(0, 5).map(float)
rings = st.lists(st.lists(st.tuples(number, number), max_size=9), max_size=6)


def cleaned(given_rings: list[list[tuple[float, float]]]) -> Cleaned:
    lengths = [len(ring) for ring in given_rings]
    vertices = np.array([v for ring in given_rings for v in ring], dtype=float).reshape(-1, 2)
    return Rings(vertices, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)).cleaned()


def once(ring: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return a ring without vertices that equal the one before."""
    return [v for i, v in enumerate(ring) if v != ring[i - 1]]


@given(rings)
@settings(deadline=None)
def test_what_shapely_calls_valid_is_kept_and_the_rest_becomes_a_hull(
    given_rings: list[list[tuple[float, float]]],
) -> None:
    made = cleaned(given_rings)
    assert len(made.lengths) == len(given_rings)
    hulls = dropped = 0
    for i, ring in enumerate(given_rings):
        found, bare = made.of(i), once(ring)
        if len(bare) > 2 and Polygon(bare).is_valid and Polygon(bare).area > 0:
            assert found.tolist() == [list(v) for v in bare]
            continue
        hull = MultiPoint(ring).convex_hull if ring else Polygon()
        if hull.area > 0:
            hulls += 1
            assert Polygon(found).is_valid
            assert Polygon(found).equals(hull)
        else:
            dropped += len(ring) > 0
            assert len(found) == 0
    assert (made.hulls, made.dropped) == (hulls, dropped)


@given(st.integers(3, 30), st.floats(0, 1e5), st.floats(2, 50), st.booleans())
@settings(deadline=None)
def test_a_good_ring_is_kept(corners: int, centre: float, radius: float, closed: bool) -> None:
    turn = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    ring = centre + radius * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    given_ring = np.concatenate([ring, ring[:1]]) if closed else ring
    made = Rings(given_ring, np.array([0, len(given_ring)])).cleaned()
    assert (made.hulls, made.dropped) == (0, 0)
    np.testing.assert_allclose(made.of(0), np.roll(ring, -1, axis=0) if closed else ring, atol=0.006)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_a_vertex_that_is_nowhere_costs_its_own_ring_alone(bad: float) -> None:
    square = [(0.0, 0.0), (4.0, 0.0), (4.0, 4.0), (0.0, 4.0)]
    made = cleaned([square, [*square[:3], (bad, 4.0)], square])
    assert made.lengths.tolist() == [4, 0, 4]
    assert (made.hulls, made.dropped) == (0, 1)


def test_a_touching_ring_becomes_its_hull() -> None:
    """Two triangles that meet in a corner: QuPath 0.6 takes it for a fault, though no edges cross."""
    made = cleaned([[(0, 0), (4, 0), (2, 2), (4, 4), (0, 4), (2, 2)]])
    assert sorted(map(tuple, made.of(0).tolist())) == [(0, 0), (0, 4), (4, 0), (4, 4)]
    assert made.hulls == 1


def test_no_cells() -> None:
    made = cleaned([])
    assert (len(made.vertices), made.offsets.tolist()) == (0, [0])
