"""Cells as GeoJSON that QuPath opens: detections with a class, its colour, and measurements.

What QuPath 0.4 to 0.6 reads of a feature: ``id`` (a UUID), ``geometry`` in pixels of the whole image from its
top-left corner, and of ``properties`` ``objectType``, ``name``, ``classification`` (name and colour, both needed) and
``measurements`` (names to numbers; null is not allowed). Detections are its light objects, made for many cells. An
outline that crosses itself makes QuPath 0.6 refuse the file, see :mod:`nuclass.apply.out_rings`.
"""

from __future__ import annotations

import json
import uuid
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nuclass.apply.out_read import LEFT_OUT, UNCERTAIN, Run, rgb
from nuclass.apply.out_rings import Rings
from nuclass.core.files import atomic_path
from nuclass.core.log import get_logger
from nuclass.core.names import CELL_ID, PROBABILITY_PREFIX
from nuclass.core.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

_log = get_logger(__name__)
CONFIDENCE, GATE = "NuClass confidence", "NuClass gate"
_SPACE = uuid.UUID("5b0f2f0c-6b0c-5a35-9a0b-6a7c1f0f7d11")
"""Of the cells' UUIDs; a number drawn once."""


def write_geojson(run: Run, path: str | Path) -> None:
    """Write a FeatureCollection, one feature a line, a part of the cells at a time.

    Coordinates are H&E px to 0.01, of a slide of which only a part was scanned from the corner of that part, as QuPath
    counts. A cell without an outline is a point. Cells that were left out are not written; how many there are stands
    at the end, under ``nuclass``, and in the log.
    """
    write = _Features(run)
    rows = written = hulls = dropped = 0
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="ascii", newline="\n") as stream,
        Progress(int(run.facts["counts"]["total"]), "GeoJSON", "cells") as progress,
    ):
        stream.write('{"type":"FeatureCollection","features":[')
        for frame, rings in run.parts_with_outlines():
            clean = None if rings is None else rings.cleaned()
            if clean is not None:
                hulls, dropped = hulls + clean.hulls, dropped + clean.dropped
            lines = write.lines(frame, clean)
            if lines:
                stream.write((",\n" if written else "\n") + ",\n".join(lines))
            rows, written = rows + len(frame), written + len(lines)
            progress.advance(len(frame))
        about = {"slide": run.slide, "model": run.facts["model"], "cells": written, "left_out": rows - written}
        if any(write.corner):
            about["corner"] = list(write.corner)
        stream.write(f'\n],"nuclass":{json.dumps(about)}}}\n')
    _log.info("GeoJSON: %d cells written, %d left out", written, rows - written)
    if hulls or dropped:
        _log.warning(
            "%d outlines cross themselves and became their convex hulls; %d have no area: points", hulls, dropped
        )


def cell_uuid(slide: str, cell_id: str) -> str:
    """Return the UUID of a cell, the same in every run: version 5, of the slide's and the cell's name."""
    return str(uuid.uuid5(_SPACE, f"{slide}\n{cell_id}"))


class _Features:
    """Turns parts of the table into lines of GeoJSON."""

    def __init__(self, run: Run) -> None:
        from nuclass.figures.style import GREY

        self.slide = run.slide
        # Of the scanned part, H&E px: QuPath shows this part alone.
        crop = run.facts.get("crop") or {"x": 0, "y": 0}
        self.corner = (int(crop["x"]), int(crop["y"]))
        colours = {**run.colours(), UNCERTAIN: GREY}
        self.classes = {
            name: json.dumps({"name": name, "color": rgb(colour)}, separators=(",", ":"))
            for name, colour in colours.items()
        }
        self.columns = {"confidence": CONFIDENCE, **({"gate": GATE} if run.has_gate else {})}
        self.columns |= {PROBABILITY_PREFIX + name: f"NuClass P({name})" for name in run.classes}
        parts = (json.dumps(name).replace("%", "%%") + ":%.4g" for name in self.columns.values())
        self.template = "{" + ",".join(parts) + "}"

    def lines(self, frame: pd.DataFrame, rings: Rings | None) -> list[str]:
        places = frame[["x_he", "y_he"]].to_numpy(np.float64)
        written = (frame["status"] != LEFT_OUT).to_numpy() & np.isfinite(places).all(axis=1)
        places = places - self.corner
        values = frame[list(self.columns)].to_numpy(np.float64)
        whole = np.isfinite(values).all(axis=1)
        ids, named = frame[CELL_ID].tolist(), frame["class"].tolist()
        lines = []
        for i in np.flatnonzero(written).tolist():
            ring = None if rings is None else rings.of(i)
            geometry = _polygon(ring - self.corner) if ring is not None and len(ring) else _point(places[i])
            measured = self.template % tuple(values[i].tolist()) if whole[i] else self._known(values[i].tolist())
            lines.append(
                f'{{"type":"Feature","id":"{cell_uuid(self.slide, ids[i])}","geometry":{geometry},"properties":'
                f'{{"objectType":"detection","name":{json.dumps(ids[i])},'
                f'"classification":{self.classes[named[i] or UNCERTAIN]},"measurements":{measured}}}}}'
            )
        return lines

    def _known(self, values: list[float]) -> str:
        """Return the measurements that are numbers; QuPath takes no null."""
        found = {name: float(f"{v:.4g}") for name, v in zip(self.columns.values(), values, strict=True) if v == v}
        return json.dumps(found, separators=(",", ":"))


def _point(place: Any) -> str:
    return f'{{"type":"Point","coordinates":[{place[0]:.2f},{place[1]:.2f}]}}'


def _polygon(ring: Any) -> str:
    closed = ring.ravel().tolist()
    closed += closed[:2]
    return _ring_template(len(closed) // 2) % tuple(closed)


@lru_cache(maxsize=512)
def _ring_template(vertices: int) -> str:
    return '{"type":"Polygon","coordinates":[[' + ",".join(["[%.2f,%.2f]"] * vertices) + "]]}"
