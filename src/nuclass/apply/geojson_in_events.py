"""Cells out of the events of a JSON stream: GeoJSON as QuPath and CellViT write it, and the JSON of HoVer-Net.

Nothing is kept but the vertices of the cells, in flat arrays; a feature that turns out to be none takes its own
away again.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NoReturn

from nuclass.apply.positions_found import CELLS, FARTHEST, NEVER_CELLS, REGIONS
from nuclass.core.errors import UserError

Event = tuple[str, Any]
# Arrays around a number: of a point 1, of a polygon 3, of many polygons 4.
_DEPTHS = {"point": 1, "multipoint": 2, "polygon": 3, "multipolygon": 4}
_OTHER_SHAPES = {"linestring", "multilinestring", "geometrycollection"}
_DEEPEST = 64
_KNOWN = "Polygon, MultiPolygon, Point or MultiPoint"
_OPEN, _CLOSE = ("start_map", "start_array"), ("end_map", "end_array")
# Notes by what is counted.
EMPTY, HOLES, NO_SHAPE, OTHER, TILES, CELL_RINGS = "empty", "holes", "no_shape", "other", "tiles", "cell_rings"
SPLIT, BY_PROPERTIES = "split", "by_properties"
# An edit or the border of a tile leaves a cell in a few parts; more are many cells packed as one object.
_MOST_PARTS = 8


@dataclass(slots=True)
class _Shape:
    """The coordinates of one geometry: the lengths of its rings and how deep its numbers lie."""

    role: str
    start: int
    rings: list[int] = field(default_factory=list)
    leaf: int = 0


@dataclass(slots=True)
class _Open:
    """A JSON object or list that is being read.

    ``kind`` is ``list`` (of features), ``named`` (features by name), ``feature`` (perhaps a collection),
    ``geometry`` or ``properties``. ``property_id`` is the ``cell_id`` of a feature's properties, else their ``id``.
    """

    kind: str
    role: str = ""
    key: str = ""
    type: str = ""
    id: str | None = None
    cell_id: str | None = None
    property_id: str | None = None
    object_type: str = ""
    collection: bool = False
    has_shape_key: bool = False
    shapes: list[_Shape] = field(default_factory=list)


class CellEvents:
    """Takes the events of ijson's ``basic_parse``, piece by piece.

    Attributes
    ----------
    xy
        Vertices of all cells, x and y in turn.
    lengths
        Vertices of each cell; 1 for a point.
    regions
        1 for each cell that is an annotation of QuPath.
    ids
        The name of each cell's feature: its ``id``, else ``cell_id`` or ``id`` of its properties, else None.
    parts
        1, 2, ... for the cells of a feature that holds several, 0 for one that is a cell.
    counts
        What was met, by the names above.
    number
        The present feature, from 1.
    """

    def __init__(self, where: object) -> None:
        self.where = where
        self.xy = array("d")
        self.lengths = array("q")
        self.regions = bytearray()
        self.points = bytearray()
        self.ids: list[str | None] = []
        self.parts = array("q")
        self.counts: Counter[str] = Counter()
        self.number = 0
        self.collections = 0
        self._stack: list[_Open] = []
        self._skipping = 0
        self._shape: _Shape | None = None
        self._depth = self._numbers = self._leaf = self._in_polygon = self._ring_start = 0

    def feed(self, events: Sequence[Event]) -> None:
        """Take the next events.

        Raises
        ------
        UserError
            Something is no feature, or a coordinate no number; the feature is named.
        """
        at = 0
        while at < len(events):
            if self._shape is not None:
                at = self._take_coordinates(events, at)
            elif self._skipping:
                at = self._skip(events, at)
            else:
                self._step(*events[at])
                at += 1

    def fail(self, what: str, found: object, expected: str) -> NoReturn:
        """Raise a :class:`UserError` that names the feature."""
        raise UserError(
            what,
            where=f"{self.where}, feature {max(self.number, 1):,}",
            found=found,
            expected=expected,
            fix="export the file again, or leave this feature out",
        )

    def _skip(self, events: Sequence[Event], at: int) -> int:
        for i in range(at, len(events)):
            event = events[i][0]
            if event in _OPEN:
                self._skipping += 1
                if self._skipping > _DEEPEST:
                    self._too_deep()
            elif event in _CLOSE:
                self._skipping -= 1
                if not self._skipping:
                    return i + 1
        return len(events)

    def _too_deep(self) -> NoReturn:
        self.fail("The JSON is nested too deep", f"more than {_DEEPEST} levels", "GeoJSON")

    # Objects and lists

    def _push(self, opened: _Open) -> None:
        if len(self._stack) >= _DEEPEST:
            self._too_deep()
        self._stack.append(opened)

    def _feature(self, name: str | None = None) -> None:
        self.number += 1
        self._push(_Open("feature", id=name))

    def _step(self, event: str, value: Any) -> None:
        """Take one event outside of coordinates."""
        top = self._stack[-1] if self._stack else None
        if top is None or top.kind == "list":
            if event == "start_map":
                self._feature()
            elif event == "start_array" and top is None:
                self._push(_Open("list"))
                self.collections += 1
            elif event == "end_array":
                self._stack.pop()
            else:
                self.fail("The file holds something that is no feature", _told(event, value), "GeoJSON features")
        elif event == "map_key":
            top.key = value
        elif event == "end_map":
            self._stack.pop()
            self._end(top)
        elif top.kind == "named":
            if event != "start_map":
                self.fail("The file holds something that is no cell", _told(event, value), "an object")
            self._feature(top.key)
        else:
            self._value(top, event, value)

    def _value(self, top: _Open, event: str, value: Any) -> None:
        """Take the value of a key of a feature, a geometry or its properties."""
        key = top.key
        if top.kind == "feature":
            if self._feature_value(top, key, event, value):
                return
        elif top.kind == "geometry":
            if key == "coordinates" and event == "start_array":
                self._begin(top.role)
                return
            if key == "type" and event == "string":
                top.type = value.lower()
        elif event == "string" and key in ("objectType", "object_type"):
            top.object_type = value.lower()
        elif event in ("string", "number") and key == "cell_id":
            top.cell_id = str(value)
        elif event in ("string", "number") and key == "id":
            top.id = str(value)
        if event in _OPEN:
            self._skipping = 1

    def _feature_value(self, top: _Open, key: str, event: str, value: Any) -> bool:
        """Take the value of a feature's key; False where it is of no interest."""
        if event == "start_array":
            if key in ("features", "cells"):
                self._collect(top, _Open("list"))
            elif key in ("coordinates", "contour", "centroid"):
                self._begin("main" if key == "coordinates" else key)
            else:
                return False
            return True
        if event == "start_map":
            if key in ("geometry", "nucleusGeometry"):
                top.has_shape_key = True
                self._push(_Open("geometry", role="nucleus" if key == "nucleusGeometry" else "main"))
            elif key == "properties":
                self._push(_Open("properties"))
            elif key == "nuc":
                self._collect(top, _Open("named"))
            else:
                return False
            return True
        if key == "geometry":
            top.has_shape_key = True
        elif key == "id" and event in ("string", "number"):
            top.id = str(value)
        elif key == "type" and event == "string":
            top.type = value.lower()
        return False

    def _collect(self, top: _Open, content: _Open) -> None:
        """Begin the features of a collection, which is none itself."""
        if top.shapes:
            self.fail("A feature holds features", "a geometry and features in one object", "one of the two")
        if not top.collection:
            self.number -= 1
        top.collection = True
        self.collections += 1
        self._push(content)

    def _end(self, ended: _Open) -> None:
        if ended.kind == "geometry":
            feature = self._stack[-1]
            if ended.type in _OTHER_SHAPES or not ended.type:
                feature.type = ended.type or feature.type
            elif feature.shapes and feature.shapes[-1].role == ended.role:
                self._check(ended.type, feature.shapes[-1])
            elif ended.type not in _DEPTHS:
                self.fail("A geometry is of no known type", repr(ended.type), _KNOWN)
        elif ended.kind == "properties":
            self._stack[-1].object_type = ended.object_type
            self._stack[-1].property_id = ended.cell_id or ended.id
        elif ended.kind == "feature" and not ended.collection:
            self._finish(ended)

    def _check(self, kind: str, shape: _Shape) -> None:
        if kind not in _DEPTHS:
            self.fail("A geometry is of no known type", repr(kind), _KNOWN)
        if shape.leaf and shape.leaf != _DEPTHS[kind]:
            found = f"a {kind} whose numbers lie {shape.leaf} lists deep"
            self.fail("Coordinates do not fit the type of their geometry", found, f"{_DEPTHS[kind]} lists")

    # Features

    def _finish(self, feature: _Open) -> None:
        """Keep the cells of a feature, or take its vertices away and count why."""
        shapes = feature.shapes
        if not shapes and not feature.has_shape_key and feature.type != "feature":
            self.fail("The file holds something that is no feature", "an object without a geometry", "GeoJSON features")
        if feature.type in _DEPTHS:
            for shape in shapes:
                self._check(feature.type, shape)
        old_type = _old_type(feature.id)
        kind = feature.object_type or old_type
        reason = ""
        if kind in NEVER_CELLS:
            reason = TILES
        elif feature.type in _OTHER_SHAPES:
            reason = OTHER
        elif not shapes:
            reason = NO_SHAPE
        start = shapes[0].start if shapes else len(self.xy)
        if reason:
            del self.xy[start:]
            self.counts[reason] += 1
            return
        roles = [shape.role for shape in shapes]
        wanted = next(role for role in ("nucleus", "main", "contour", "centroid") if role in roles)
        if wanted == "nucleus" and len(shapes) > 1:
            self.counts[CELL_RINGS] += 1
        self._keep_only(shapes, roles.index(wanted))
        rings = shapes[roles.index(wanted)]
        if rings.leaf == 2 and rings.role != "contour":
            rings.rings = [1] * sum(rings.rings)
        is_point = rings.leaf == 1 or (rings.leaf == 2 and rings.role != "contour")
        if not rings.rings:
            self.counts[EMPTY] += 1
            return
        if kind in CELLS and not is_point and 1 < len(rings.rings) <= _MOST_PARTS:
            self._keep_largest(rings.rings, start)
            self.counts[SPLIT] += 1
        if kind in CELLS:
            self.counts["cells"] += len(rings.rings)
        self.lengths.extend(rings.rings)
        n = len(rings.rings)
        self.points.extend(bytes([is_point]) * n)
        self.regions.extend(bytes([kind in REGIONS]) * n)
        name = None if old_type else feature.id
        if not name and feature.property_id:
            name = feature.property_id
            self.counts[BY_PROPERTIES] += n
        self.ids.extend([name] * n)
        self.parts.extend(range(1, n + 1) if n > 1 else (0,))

    def _keep_only(self, shapes: list[_Shape], chosen: int) -> None:
        """Remove the vertices of a feature's other geometries."""
        stops = [shape.start for shape in shapes[1:]] + [len(self.xy)]
        for i in range(len(shapes) - 1, -1, -1):
            if i != chosen:
                del self.xy[shapes[i].start : stops[i]]

    def _keep_largest(self, rings: list[int], start: int) -> None:
        """Keep of a cell in several parts the one with the largest area; their vertices begin at ``start``."""
        stops = [start + 2 * n for n in accumulate(rings)]
        starts = [start, *stops[:-1]]
        areas = [_area(self.xy[begin:stop]) for begin, stop in zip(starts, stops, strict=True)]
        best = areas.index(max(areas))
        del self.xy[stops[best] :]
        del self.xy[start : starts[best]]
        rings[:] = rings[best : best + 1]

    # Coordinates

    def _begin(self, role: str) -> None:
        self._shape = _Shape(role, len(self.xy))
        self._depth, self._numbers, self._leaf, self._in_polygon = 1, 0, 0, 0
        self._ring_start = len(self.xy)

    def _take_coordinates(self, events: Sequence[Event], at: int) -> int:
        """Take numbers until the coordinates or the events end; return where to go on."""
        append = self.xy.append
        depth, numbers, leaf = self._depth, self._numbers, self._leaf
        for i in range(at, len(events)):
            event, value = events[i]
            if event == "number":
                if numbers < 2:
                    if depth != leaf:
                        leaf = self._leaf = leaf or depth
                    if depth != leaf or not -FARTHEST <= value <= FARTHEST:
                        self._bad_number(depth, leaf, value)
                    append(value)
                numbers += 1
            elif event == "start_array":
                depth += 1
                if numbers or depth > 4:
                    self._bad_nesting()
            elif event == "end_array":
                if numbers == 1:
                    self.fail("A position has one number", "one", "x and y")
                if not numbers and depth >= leaf > 0:
                    self._bad_nesting()
                if not numbers and depth < leaf:
                    self._close(depth)
                numbers = 0
                depth -= 1
                if not depth:
                    self._end_shape()
                    return i + 1
            else:
                found = "NaN or null" if event == "null" else _told(event, value)
                self.fail("A coordinate is not a number", found, "x and y in px")
        self._depth, self._numbers = depth, numbers
        return len(events)

    def _bad_number(self, depth: int, leaf: int, value: float) -> NoReturn:
        if depth != leaf:
            self._bad_nesting()
        self.fail("A coordinate is far off any slide", f"{value:g}", f"numbers of at most {FARTHEST:g}")

    def _bad_nesting(self) -> NoReturn:
        self.fail("Coordinates are nested in no known way", "positions at different depths", "a GeoJSON geometry")

    def _close(self, depth: int) -> None:
        """End a ring, the list of positions, or a polygon, the list of rings."""
        if depth == self._leaf - 2:
            self._in_polygon = 0
        if depth != self._leaf - 1:
            return
        xy, start = self.xy, self._ring_start
        assert self._shape is not None
        ring = self._leaf >= 3 or self._shape.role == "contour"
        if self._leaf >= 3 and self._in_polygon:
            self.counts[HOLES] += 1
            del xy[start:]
        else:
            if ring and len(xy) - start >= 4 and xy[start] == xy[-2] and xy[start + 1] == xy[-1]:
                del xy[-2:]
            if len(xy) > start:
                self._shape.rings.append((len(xy) - start) // 2)
            else:
                self.counts[EMPTY] += 1
        self._in_polygon += 1
        self._ring_start = len(xy)

    def _end_shape(self) -> None:
        shape = self._shape
        assert shape is not None
        shape.leaf = self._leaf
        if shape.leaf == 1:
            shape.rings.append(1)
        if shape.role == "centroid" and shape.leaf > 1:
            self.fail("A centroid is no point", f"numbers {shape.leaf} lists deep", "x and y")
        if not shape.leaf and shape.role in ("contour", "nucleus"):
            # There is another geometry beside it.
            self._shape = None
            return
        if shape.role == "contour" and shape.leaf != 2:
            self.fail("A contour is no list of points", f"numbers {shape.leaf} lists deep", "a list of x and y")
        holder = self._stack[-1]
        # A geometry gives what it read to its feature.
        owner = holder if holder.kind == "feature" else self._stack[-2]
        if owner.collection:
            self.fail("A feature holds features", "a geometry and features in one object", "one of the two")
        if any(known.role == shape.role for known in owner.shapes):
            self.fail("A feature has the same geometry twice", shape.role, "each once")
        owner.shapes.append(shape)
        self._shape = None


def _area(ring: array[float]) -> float:
    """Return the area of a ring, x and y in turn (shoelace formula, from its first vertex)."""
    x, y = [value - ring[0] for value in ring[::2]], [value - ring[1] for value in ring[1::2]]
    return abs(sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))) / 2


def _old_type(name: str | None) -> str:
    """Return the type that QuPath before 0.3 wrote as the name of every object, or nothing."""
    lower = (name or "").lower()
    return lower if lower.startswith("path") or lower == "tmacoreobject" else ""


def _told(event: str, value: Any) -> str:
    """Return an event in words."""
    words = {"start_map": "an object", "start_array": "a list", "end_map": "an end", "end_array": "an end"}
    return words.get(event) or ("null" if value is None else repr(value)[:60])
