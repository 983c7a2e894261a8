"""Features of many cells in one pass that may be killed at any moment and then goes on.

While it runs, a folder of its own holds ``state.json`` (what the pass depends on) and ``part-00000.<output>.npy``
(float16), a file an output and a part of about 4,096 cells, each written atomically. At the end the parts become the
feature files, one part in memory at a time, and the folder goes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path, read_json, write_json
from nuclass.core.log import get_logger
from nuclass.data.features import BLOCK_CELLS, FeatureKey, Half, Ids, encode_ids, to_half, write_parts

_log = get_logger(__name__)
_FORMAT = 1


@dataclass(frozen=True)
class Output:
    """One feature file of a pass.

    Attributes
    ----------
    path
        Where it is to lie.
    key
        What its features depend on.
    chosen
        Mask (N,) of the cells it holds; None takes all.
    """

    path: Path
    key: FeatureKey
    chosen: NDArray[np.bool_] | None = None


Batches = Callable[[int], Iterable[Mapping[str, NDArray[Any]]]]


def part_size(batch_size: int) -> int:
    """Return the cells of a part: about 4,096, and whole batches."""
    return batch_size * max(1, round(BLOCK_CELLS / batch_size))


def cache_features(
    work: str | Path,
    cell_ids: Ids,
    outputs: Mapping[str, Output],
    batches: Batches,
    *,
    part_cells: int = BLOCK_CELLS,
    depends: Mapping[str, object] | None = None,
) -> None:
    """Compute features part by part and write the feature files of ``outputs``.

    Parameters
    ----------
    work
        Folder of the running state. A killed pass goes on behind its last whole part; the state of another pass
        (other keys, cells or ``depends``) is thrown away, which the log tells.
    cell_ids
        ``N`` different ids in the order of the pass, such as tile order.
    outputs
        Feature files by name.
    batches
        ``batches(start)`` gives the features from cell ``start`` on, ``{name: (n, ...)}``, in order; no batch may
        cross a multiple of ``part_cells``. An output with ``chosen`` gets the rows of its chosen cells (maybe none);
        at least one output holds all cells.
    part_cells
        Cells of a part.
    depends
        Further things that decide whether a running state may go on, such as the places of the cells.

    Raises
    ------
    UserError
        A feature is not finite in half precision, or the disk is full (parts that are whole are kept).
    """
    ids = encode_ids(cell_ids)
    if not len(ids):
        raise ValueError("There are no cells to compute features of")
    parts = _Parts(Path(work), ids, dict(outputs), part_cells)
    first = parts.open(dict(depends or {}))
    if first < parts.count:
        buffer: list[dict[str, Half]] = []
        row = first * part_cells
        for batch in batches(row):
            halves, n = parts.convert(batch, row)
            buffer.append(halves)
            row += n
            if row % part_cells == 0 or row == len(ids):
                parts.write((row - 1) // part_cells, buffer)
                buffer = []
        if row != len(ids):
            raise ValueError(f"The batches ended at cell {row} of {len(ids)}")
    parts.merge()


class _Parts:
    """The parts of a pass on disk."""

    def __init__(self, work: Path, ids: NDArray[np.bytes_], outputs: dict[str, Output], part_cells: int) -> None:
        self.work, self.ids, self.outputs, self.part_cells = work, ids, outputs, part_cells
        self.count = -(-len(ids) // part_cells)
        everything = np.ones(len(ids), bool)
        self.chosen = {name: everything if o.chosen is None else o.chosen for name, o in outputs.items()}
        wrong = [name for name, mask in self.chosen.items() if mask.shape != ids.shape]
        if wrong or all(output.chosen is not None for output in outputs.values()):
            raise ValueError(f"Masks of {wrong} do not fit {len(ids)} cells, or no output holds all cells")

    def open(self, depends: dict[str, object]) -> int:
        """Make the folder ready; returns the first part that is not whole."""
        state = {
            "format": _FORMAT,
            "keys": {name: output.key.to_dict() for name, output in self.outputs.items()},
            "depends": {
                "cells": digest(self.ids),
                "cells of a part": self.part_cells,
                **{f"cells of {name}": digest(mask) for name, mask in self.chosen.items()},
                **{str(name): str(value) for name, value in depends.items()},
            },
        }
        file = self.work / "state.json"
        found = _read_state(file)
        if found == state:
            first = next((k for k in range(self.count) if not self._is_whole(k)), self.count)
            _log.info("Going on from cell %d of %d", min(first * self.part_cells, len(self.ids)), len(self.ids))
            return first
        if found is not None:
            _log.warning(
                "The running state in %s is of another pass (%s); starting anew", self.work, _why(found, state)
            )
        self._clear()
        write_json(file, state)
        return 0

    def convert(self, batch: Mapping[str, NDArray[Any]], row: int) -> tuple[dict[str, Half], int]:
        """Return a batch in half precision and its number of cells, checked."""
        n = next(len(batch[name]) for name, output in self.outputs.items() if output.chosen is None)
        span = slice(row, row + n)
        if n < 1 or row + n > min(len(self.ids), (row // self.part_cells + 1) * self.part_cells):
            raise ValueError(f"A batch of {n} cells at cell {row} of {len(self.ids)} crosses the end of its part")
        halves = {}
        for name, output in self.outputs.items():
            ids = self.ids[span][self.chosen[name][span]]
            if len(batch[name]) != len(ids):
                raise ValueError(f"{len(batch[name])} rows of {name} for {len(ids)} cells")
            halves[name] = to_half(batch[name], ids, output.path)
        return halves, n

    def write(self, part: int, batches: list[dict[str, Half]]) -> None:
        """Write one part of every output."""
        for name in self.outputs:
            buffer = io.BytesIO()
            np.save(buffer, np.concatenate([batch[name] for batch in batches]))
            with atomic_path(self._file(part, name)) as temporary:
                temporary.write_bytes(buffer.getbuffer())

    def merge(self) -> None:
        """Write the feature files and remove the running state."""
        for name, output in self.outputs.items():
            shape = np.load(self._file(0, name), mmap_mode="r").shape[1:]
            write_parts(output.path, self.ids[self.chosen[name]], shape, self._read(name), output.key)
        self._clear()

    def _read(self, name: str) -> Iterator[Half]:
        for part in range(self.count):
            yield np.load(self._file(part, name))

    def _file(self, part: int, name: str) -> Path:
        return self.work / f"part-{part:05d}.{name}.npy"

    def _is_whole(self, part: int) -> bool:
        span = slice(part * self.part_cells, (part + 1) * self.part_cells)
        for name, mask in self.chosen.items():
            try:
                stored = np.load(self._file(part, name), mmap_mode="r")
            except (OSError, ValueError, EOFError):
                return False
            if stored.dtype != np.float16 or len(stored) != int(mask[span].sum()):
                return False
        return True

    def _clear(self) -> None:
        if not self.work.is_dir():
            return
        for file in [*self.work.glob("part-*.npy"), *self.work.glob(".*.part-*.npy"), *self.work.glob("*state.json")]:
            file.unlink(missing_ok=True)
        if not any(self.work.iterdir()):
            self.work.rmdir()


def digest(values: NDArray[Any]) -> str:
    """Return the SHA-256 of an array's type, shape and bytes."""
    head = f"{values.dtype.str} {values.shape} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(values).tobytes()).hexdigest()


def _read_state(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        state = read_json(file)
    except UserError as error:
        _log.warning("The running state cannot be read: %s", error.found)
        return {}
    return state if isinstance(state, dict) else {}


def _why(found: dict[str, Any], state: dict[str, Any]) -> str:
    """Return what differs between two states, in a few words."""
    if found.get("format") != state["format"] or set(found.get("keys", ())) != set(state["keys"]):
        return "it holds other outputs"
    for name, key in state["keys"].items():
        old = found["keys"][name]
        for field, value in key.items():
            if old.get(field) != value:
                return f"{field} of {name}: {old.get(field)}, now {value}"
    changed = [name for name, value in state["depends"].items() if found.get("depends", {}).get(name) != value]
    return f"other {', '.join(changed)}"
