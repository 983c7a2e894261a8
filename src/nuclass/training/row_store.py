"""Arrays on disk, filled row by row in a pass that may be killed and goes on; read by mapping them into memory."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nuclass.core.errors import UserError
from nuclass.core.files import read_json, remove_state, write_json
from nuclass.core.log import get_logger
from nuclass.core.progress import readable_bytes
from nuclass.training.state import why_another

_log = get_logger(__name__)
NOTE = "rows.json"
SAVE_EVERY_S = 20.0
_Column = tuple[tuple[int, ...], str]
"""Width of an array's rows, and its type."""


class RowStore:
    """Named arrays of equal length in one folder, one file each, without header.

    Use as a context manager and call :meth:`append`; every 20 s, and at the end, what was appended is made sure of and
    noted. A later store of the same ``key`` goes on after the noted rows; one of another key, or one that finds
    fewer rows than are noted, starts anew.

    Parameters
    ----------
    folder
        Where the files lie; made where needed.
    key
        What the rows depend on; of an :class:`nuclass.training.state.Identity` the log tells what differs.
    total
        Rows when all is done.

    Attributes
    ----------
    rows
        Rows that are there.
    """

    def __init__(self, folder: Path, key: str, total: int) -> None:
        self.folder, self.key, self.total = Path(folder), key, total
        self.rows = 0
        self._columns: dict[str, _Column] = {}
        self._files: dict[str, BinaryIO] = {}
        self._stack = ExitStack()
        self._saved = time.monotonic()

    @property
    def done(self) -> bool:
        """Whether all rows are there."""
        return self.rows >= self.total

    def __enter__(self) -> RowStore:
        noted = (self.folder / NOTE).is_file()
        reason = self._take_up() if noted else None
        if reason:
            _log.warning("The running state in %s is removed and its rows are made anew: %s", self.folder, reason)
        if reason or not noted:
            remove_state(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            return self
        if not self.done:
            for name in self._columns:
                self._open(name)
        if self.rows:
            _log.info("%s: %d of %d rows are there from an earlier run", self.folder, self.rows, self.total)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        # After an error, such as a full disk, the rows that are noted already are what counts.
        with suppress(OSError, UserError) if kind else nullcontext():
            try:
                if self._files:
                    self._save()
            finally:
                self._stack.close()

    def append(self, **arrays: NDArray[Any]) -> None:
        """Add rows, the same number to every array; widths and types are those of the first call.

        Raises
        ------
        UserError
            When the disk is full.
        """
        if not self._columns:
            self._columns = {name: (values.shape[1:], values.dtype.str) for name, values in arrays.items()}
            self._check_space()
            for name in arrays:
                self._open(name)
        lengths = {len(values) for values in arrays.values()}
        kinds = {name: (values.shape[1:], values.dtype.str) for name, values in arrays.items()}
        if kinds != self._columns or len(lengths) != 1:
            raise ValueError(f"Rows of {kinds}, {lengths} of them, for arrays of {self._columns}")
        with self._told():
            for name, values in arrays.items():
                self._files[name].write(np.ascontiguousarray(values).data)
        self.rows += lengths.pop()
        if time.monotonic() - self._saved > SAVE_EVERY_S:
            self._save()

    def tensors(self) -> dict[str, Tensor]:
        """Return all arrays, mapped: the system keeps in memory what fits there."""
        return {
            name: torch.from_numpy(
                np.memmap(self._path(name), np.dtype(kind), mode="c", shape=(self.rows, *map(int, width)))
            )
            for name, (width, kind) in self._columns.items()
        }

    def _take_up(self) -> str | None:
        """Take up the rows that are noted; where they cannot be, say why."""
        try:
            found = read_json(self.folder / NOTE)
            if found["key"] != self.key:
                return why_another(found.get("parts"), self.key)
            rows = int(found["rows"])
            columns = {name: (tuple(width), str(kind)) for name, (width, kind) in found["columns"].items()}
            short = [name for name, column in columns.items() if self._size(name) < rows * _row_bytes(column)]
        except (UserError, LookupError, TypeError, ValueError, AttributeError):
            return "its note cannot be read"
        if short:
            # Such as after a kill in the midst of its removal.
            return f"rows that are noted are not there, in {', '.join(self._path(name).name for name in short)}"
        self.rows, self._columns = rows, columns
        return None

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.bin"

    def _size(self, name: str) -> int:
        path = self._path(name)
        return path.stat().st_size if path.is_file() else -1

    def _open(self, name: str) -> None:
        path = self._path(name)
        stream = self._stack.enter_context(path.open("r+b" if path.exists() else "w+b"))
        stream.truncate(self.rows * _row_bytes(self._columns[name]))
        stream.seek(0, os.SEEK_END)
        self._files[name] = stream

    def _save(self) -> None:
        with self._told():
            for stream in self._files.values():
                stream.flush()
                os.fsync(stream.fileno())
        columns = {name: [list(width), kind] for name, (width, kind) in self._columns.items()}
        parts = getattr(self.key, "parts", None)
        write_json(self.folder / NOTE, {"key": self.key, "parts": parts, "rows": self.rows, "columns": columns})
        self._saved = time.monotonic()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (28, 122):
                raise self._full(str(error)) from error
            raise

    def _check_space(self) -> None:
        need = self.total * sum(map(_row_bytes, self._columns.values()))
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise self._full(f"{readable_bytes(need)} are needed, {readable_bytes(free)} are free")

    def _full(self, found: str) -> UserError:
        return UserError(
            "The disk is full",
            where=self.folder,
            found=found,
            fix="free space or quota on that disk and start again; the rows so far are kept",
        )


def _row_bytes(column: _Column) -> int:
    width, kind = column
    return int(np.prod(width, dtype=np.int64)) * np.dtype(kind).itemsize
