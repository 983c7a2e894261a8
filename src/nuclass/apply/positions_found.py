"""What a reader of positions found in a file, before it is brought to H&E px."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

# No slide is a million mm wide in any unit; larger numbers overflow in areas.
FARTHEST = 1e9
# Objects of QuPath that are no cells, by the names of its versions.
REGIONS = {"annotation", "pathannotationobject"}
NEVER_CELLS = {"tile", "pathtileobject", "tma core", "tmacoreobject", "root", "pathrootobject", "image"}
CELLS = {"cell", "pathcellobject", "detection", "pathdetectionobject"}


@dataclass(frozen=True)
class Outlines:
    """Outlines of nuclei, ring after ring.

    Attributes
    ----------
    vertices
        (M, 2) H&E level-0 px, continuous; a ring is not closed.
    offsets
        (N + 1,) cell ``i`` has ``vertices[offsets[i]:offsets[i + 1]]``, none where it has no outline.
    """

    vertices: Points
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def ring(self, cell: int) -> Points:
        """Return the vertices (n, 2) of one cell, n = 0 where it has no outline."""
        return self.vertices[self.offsets[cell] : self.offsets[cell + 1]]


@dataclass
class Found:
    """Positions as a file has them.

    Attributes
    ----------
    xy
        (N, 2) in the file's own frame.
    ids
        (N,) str, or None where the file names no cells, or not each by a name of its own.
    frame
        The frame that the file itself states, None where it does not.
    outlines
        In the same frame as ``xy``.
    what
        What was read, in words, such as ``outlines of a GeoJSON``.
    notes
        What was left out, and how odd things were taken.
    """

    xy: Points
    ids: NDArray[np.object_] | None
    what: str
    frame: str | None = None
    outlines: Outlines | None = None
    notes: list[str] = field(default_factory=list)


def unique_ids(values: Sequence[Any] | NDArray[Any]) -> NDArray[np.object_] | None:
    """Return ids as an array of str, or None where one is missing, empty or there twice."""
    if len(values) == 0 or any(value is None or value == "" for value in values):
        return None
    if len(set(values)) != len(values):
        return None
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


def counted(n: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun, such as ``1 hole`` or ``2 holes``."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def kept_only(outlines: Outlines, keep: NDArray[np.bool_]) -> Outlines:
    """Return the outlines of the cells ``keep`` (N,) alone."""
    if keep.all():
        return outlines
    lengths = np.diff(outlines.offsets)
    vertices = outlines.vertices[np.repeat(keep, lengths)]
    return Outlines(vertices, offsets_of(lengths[keep]))


def offsets_of(lengths: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return (N + 1,) offsets from the number of vertices (N,) of each cell."""
    out = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=out[1:])
    return out
