"""Read one HDF5 file of windows, in either layout of the original.

Merged: the datasets ``images`` uint8 (N, S, S, 3) and ``keys`` (N,), the cell ids. Per key: one dataset (S, S, 3) a
cell, named by its id. A file is merged if it has both names.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nuclass.core.errors import UserError
from nuclass.core.progress import Progress
from nuclass.patches.h5 import CACHE_BYTES, find_sources, open_h5, short

Image = NDArray[np.uint8]
Layout = Literal["merged", "per_key"]

IMAGES, KEYS, PADDED = "images", "keys", "padded"
_LOOKED_AT = 64
# More than any window has; a file may claim any size without holding it.
_MAX_SIDE = 8192
_BROKEN = (OSError, RuntimeError, KeyError, TypeError, ValueError)
"""What h5py raises on damaged files and on types that NumPy does not have."""


class PatchFile:
    """The windows of one file, by row.

    Parameters
    ----------
    path
        The file.

    Attributes
    ----------
    layout
        ``merged`` or ``per_key``.
    side
        Side of the windows, px.
    count
        Number of windows.
    notes
        What is odd but can be read: grey windows, windows with an alpha channel.

    Raises
    ------
    UserError
        The file is missing, cut off, open for writing or of another layout; windows are not square uint8 pictures of
        one size.

    Pickles as what it knows and opens the file again in the process that reads. An object belongs to one thread.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        self._file: Any = None
        self._pid = 0
        self._map: Image | None = None
        file = self._open()
        try:
            self.layout: Layout = "merged" if IMAGES in file and KEYS in file else "per_key"
            shape = self._merged_shape(file) if self.layout == "merged" else self._per_key_shape(file)
        except _BROKEN as error:
            self.close()
            raise self._damaged("its list of datasets", error) from error
        except BaseException:
            self.close()
            raise
        self.side = shape[0]
        self._shape = shape
        if len(shape) == 2 or shape[2] == 1:
            self.notes.append("the windows are grey; their one channel is repeated")
        elif shape[2] == 4:
            self.notes.append("the windows have an alpha channel; they are laid over white")

    @classmethod
    def known(cls, path: str | Path, shape: tuple[int, ...], count: int) -> PatchFile:
        """Return a file of one dataset a cell that was looked at before; its names are not listed again.

        Parameters
        ----------
        shape, count
            What :attr:`shape` and :attr:`count` were. Give :meth:`read` the ids, or the names are listed after all.
        """
        file = cls.__new__(cls)
        file.path, file.notes, file._file, file._pid, file._map = Path(path), [], None, 0, None
        file.layout, file._shape, file.side, file.count = "per_key", shape, shape[0], count
        return file

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one window as stored: ``(S, S)`` or ``(S, S, channels)``."""
        return self._shape

    @cached_property
    def keys(self) -> list[str]:
        """The cell ids in the order of the rows; per key: in the order of the names.

        Raises
        ------
        UserError
            An id is empty (the row of a worker that failed), repeats, or is no text.
        """
        file = self._open()
        if self.layout == "per_key":
            return self._names(file)
        keys = self._read_keys(file[KEYS])
        empty = [row for row, key in enumerate(keys) if not key]
        if empty:
            raise UserError(
                "Windows have no cell id",
                where=f"{self.path}, {KEYS}",
                found=f"{len(empty)} empty ids of {len(keys)}, the first in row {empty[0]}",
                expected="one id a window",
                fix="the program that wrote the file failed on these cells and left black windows; write it again, "
                "or leave those rows out",
            )
        if len(set(keys)) < len(keys):
            seen: set[str] = set()
            doubled = [key for key in keys if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
            raise UserError(
                "Cell ids repeat in a file of windows",
                where=f"{self.path}, {KEYS}",
                found=f"{len(doubled)} repeats, among them {', '.join(doubled[:3])}",
                expected="each cell once",
                fix="write the file again with each cell once",
            )
        return keys

    @cached_property
    def sources(self) -> list[Path]:
        """The files that the windows of a virtual dataset lie in, none otherwise.

        Raises
        ------
        UserError
            One is gone or holds something else.
        """
        file = self._open()
        if self.layout == "merged" and file[IMAGES].is_virtual:
            return find_sources(self.path, file[IMAGES])
        return []

    def look_at_all(self) -> None:
        """Look at what opening leaves out, for it takes a while: every window's type and shape, and virtual sources.

        Raises
        ------
        UserError
            A window is of another type or shape than the others, or no dataset; or see :attr:`sources`.
        """
        if self.layout == "merged":
            _ = self.sources
            return
        file = self._open()
        with Progress(self.count, f"Types and sizes in {self.path.name}", "windows") as progress:
            for name in self.keys:
                self._dataset(file, name)
                progress.advance()

    def read(self, rows: ArrayLike, keys: Sequence[str] | None = None) -> Image:
        """Read windows by row, uint8 ``(N, S, S, 3)``, in the order asked; repeats are allowed.

        Parameters
        ----------
        rows
            Places in :attr:`keys`.
        keys
            The ids of these rows, where they are known: then a file of one dataset a cell need not list its names.

        Raises
        ------
        UserError
            A window is missing, damaged, or of another shape than the others.
        """
        wanted = np.asarray(rows, dtype=np.int64).reshape(-1)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= self.count):
            raise IndexError(f"{self.path} has rows 0 to {self.count - 1}; asked for {wanted.min()} to {wanted.max()}")
        file = self._open()
        out = np.empty((len(wanted), self.side, self.side, 3), np.uint8)
        if self.layout == "merged":
            self._read_merged(file[IMAGES], wanted, out)
        else:
            names = [self.keys[row] for row in wanted] if keys is None else keys
            for i, name in enumerate(names):
                out[i] = _to_rgb(self._one(file, name)[None], len(self._shape) == 2)[0]
        return out

    def padded(self) -> NDArray[np.float32] | None:
        """Return the share of each window that lies off its slide, ``(N,)``; None where the file does not hold it."""
        file = self._open()
        if self.layout != "merged" or PADDED not in file or file[PADDED].shape != (self.count,):
            return None
        try:
            shares: NDArray[np.float32] = file[PADDED][:].astype(np.float32)
        except _BROKEN as error:
            raise self._damaged(PADDED, error) from error
        return shares

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._file is not None and self._pid == os.getpid():
            self._file.close()
        self._file = self._map = None

    def __enter__(self) -> PatchFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_map": None, "_pid": 0}

    def __repr__(self) -> str:
        return f"PatchFile({str(self.path)!r}, {self.layout}, {self.count} windows of {self.side} px)"

    def _open(self) -> Any:
        """Return the open file; a process that was forked opens its own."""
        if self._file is None or self._pid != os.getpid():
            self._file, self._map, self._pid = open_h5(self.path), None, os.getpid()
        return self._file

    def _merged_shape(self, file: Any) -> tuple[int, ...]:
        import h5py

        images, keys = file[IMAGES], file[KEYS]
        if not isinstance(images, h5py.Dataset) or not isinstance(keys, h5py.Dataset):
            raise self._odd("a group is named images or keys")
        if keys.ndim != 1 or (images.ndim and len(keys) != images.shape[0]):
            raise UserError(
                "A file of windows does not fit its ids",
                where=self.path,
                found=f"images {images.shape}, keys {keys.shape}",
                expected="one id for each window",
                fix="write the file again",
            )
        self.count = len(keys)
        self._refuse_empty()
        return self._checked(images.shape[1:], images.dtype, IMAGES)

    def _per_key_shape(self, file: Any) -> tuple[int, ...]:
        import h5py

        if IMAGES in file and isinstance(file[IMAGES], h5py.Dataset) and file[IMAGES].ndim == 4:
            raise self._odd(f"images, but no {KEYS}")
        self.count = len(file)
        self._refuse_empty()
        names = self.keys
        step = max(self.count // _LOOKED_AT, 1)
        shapes: dict[tuple[int, ...], str] = {}
        for name in [*names[::step], names[-1]]:
            item = file.get(name)
            if item is None:
                raise self._no_window(name)
            if not isinstance(item, h5py.Dataset):
                raise self._odd(f"a group named {name!r}")
            shapes.setdefault(self._checked(item.shape, item.dtype, name), name)
        if len(shapes) > 1:
            (one, first), (other, second) = list(shapes.items())[:2]
            raise self._differing(first, one, second, other)
        return next(iter(shapes))

    def _checked(self, shape: tuple[int, ...], dtype: Any, name: str) -> tuple[int, ...]:
        """Return the shape of one window, ``(S, S)`` or ``(S, S, channels)``, or refuse it."""
        beside = "" if self.layout == "merged" else f"; if '{name}' is no window, take it out of the file"
        if dtype != np.uint8:
            raise UserError(
                "Windows have the wrong type of number",
                where=f"{self.path}, {name}",
                found=str(dtype),
                expected="uint8, 0 to 255",
                fix="write the windows as 8-bit pictures (shares of 0 to 1 times 255, 16 bits by 257)" + beside,
            )
        flat = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))
        if not flat or shape[0] != shape[1] or not 1 <= shape[0] <= _MAX_SIDE:
            raise UserError(
                "Windows have the wrong shape",
                where=f"{self.path}, {name}",
                found=" x ".join(map(str, shape)) or "a single number",
                expected=f"S x S x 3: square, colour channels last, S at most {_MAX_SIDE}",
                fix="write the windows as square RGB pictures" + beside,
            )
        return tuple(int(n) for n in shape)

    def _refuse_empty(self) -> None:
        if not self.count:
            raise UserError("A file of windows is empty", where=self.path, found="0 windows", fix="write it again")

    def _odd(self, found: str) -> UserError:
        return UserError(
            "A file of windows has an unknown layout",
            where=self.path,
            found=found,
            expected=f"the datasets {IMAGES} and {KEYS}, or one dataset a cell named by its id",
            fix="docs/patches.md shows both layouts",
        )

    def _differing(self, first: str, one: tuple[int, ...], second: str, other: tuple[int, ...]) -> UserError:
        return UserError(
            "Windows of one file differ in size",
            where=self.path,
            found=f"{first}: {' x '.join(map(str, one))}; {second}: {' x '.join(map(str, other))}",
            expected="one size for all",
            fix="write the windows of each size to a file of their own",
        )

    def _names(self, file: Any) -> list[str]:
        """Return the names of the datasets; h5py gives as bytes what it cannot decode."""
        names = list(file)
        bad = [name for name in names if isinstance(name, bytes)]
        if bad:
            raise self._no_text(f"{len(bad)} names of datasets, such as {bad[0]!r}")
        return names

    def _no_text(self, found: str) -> UserError:
        return UserError("A cell id is not UTF-8", where=self.path, found=found, fix="write the ids again as UTF-8")

    def _read_keys(self, dataset: Any) -> list[str]:
        import h5py

        if h5py.check_string_dtype(dataset.dtype) is None:
            raise UserError(
                "The cell ids of a file of windows are no text",
                where=f"{self.path}, {KEYS}",
                found=str(dataset.dtype),
                expected="text; numbers lose leading zeros",
                fix="write the ids as text (h5py.string_dtype())",
            )
        self._refuse_unwritten(dataset)
        try:
            # Bytes of fixed length count as ASCII in HDF5, but hold UTF-8 all the same.
            return list(dataset.asstr("utf-8")[:])
        except UnicodeDecodeError as error:
            raise self._no_text(f"{KEYS}: {error}") from error
        except _BROKEN as error:
            raise self._damaged(KEYS, error) from error

    def _refuse_unwritten(self, dataset: Any) -> None:
        """Refuse ids whose number the bytes in the file cannot hold, however well they are packed."""
        stored = dataset.id.get_storage_size()
        if not dataset.is_virtual and len(dataset) > 10_000 + 1000 * stored:
            raise UserError(
                "The cell ids of a file of windows were never written",
                where=f"{self.path}, {KEYS}",
                found=f"{len(dataset):,} ids in {stored:,} bytes",
                fix="write the file again",
            )

    def _read_merged(self, images: Any, wanted: NDArray[np.int64], out: Image) -> None:
        """Fill ``out``; rows that follow each other in the file are read at once."""
        if self._map is None:
            self._map = _memory_map(self.path, images)
        grey = len(self._shape) == 2
        if self._map is not None:
            out[:] = _to_rgb(self._map[wanted], grey)
            return
        rows, inverse = np.unique(wanted, return_inverse=True)
        place = np.argsort(inverse, kind="stable")
        start = np.searchsorted(inverse[place], np.arange(len(rows) + 1))
        limit = max(CACHE_BYTES // (self.side * self.side * 3), 1)
        begin = 0
        while begin < len(rows):
            end = begin + 1
            while end < len(rows) and rows[end] == rows[end - 1] + 1 and end - begin < limit:
                end += 1
            try:
                got = images[int(rows[begin]) : int(rows[end - 1]) + 1]
            except (OSError, RuntimeError) as error:
                raise self._damaged(f"rows {rows[begin]} to {rows[end - 1]}", error) from error
            got = _to_rgb(got, grey)
            for k in range(begin, end):
                out[place[start[k] : start[k + 1]]] = got[k - begin]
            begin = end

    def _one(self, file: Any, name: str) -> Image:
        from h5py import h5s

        item = self._dataset(file, name)
        image = np.empty(self._shape, np.uint8)
        try:
            item.read(h5s.ALL, h5s.ALL, image)
        except (OSError, RuntimeError) as error:
            raise self._damaged(name, error) from error
        return image

    def _dataset(self, file: Any, name: str) -> Any:
        """Return the dataset of a cell as HDF5 knows it; its type and shape are those of the others."""
        from h5py import h5d

        try:
            item = h5d.open(file.id, name.encode())
        except (KeyError, OSError, TypeError) as error:
            raise self._no_window(name) from error
        if item.dtype != np.uint8 or item.shape != self._shape:
            shape = self._checked(item.shape, item.dtype, name)
            raise self._differing(name, shape, "the first", self._shape)
        return item

    def _no_window(self, name: str) -> UserError:
        return UserError(
            "A cell has no window",
            where=self.path,
            found=f"no dataset named {name!r}, or a link to nothing",
            fix="write the file again",
        )

    def _damaged(self, which: str, error: Exception) -> UserError:
        return UserError(
            "Windows cannot be read",
            where=f"{self.path}, {which}",
            found=short(error),
            fix="copy the file again, or write it again",
        )


def _memory_map(path: Path, images: Any) -> Image | None:
    """Return the windows as a memory map if they lie in the file as one block of plain numbers."""
    if images.chunks is not None or images.is_virtual or images.external:
        return None
    offset = images.id.get_offset()
    if offset is None or offset + images.size > path.stat().st_size:
        return None
    return np.memmap(path, np.uint8, "r", offset, images.shape)


def _to_rgb(images: Image, grey: bool) -> Image:
    """Bring windows ``(N, S, S)`` or ``(N, S, S, 1 | 3 | 4)`` to three channels; alpha is laid over white."""
    if grey:
        return np.broadcast_to(images[..., None], (*images.shape, 3))
    channels = images.shape[-1]
    if channels == 3:
        return images
    if channels == 1:
        return np.broadcast_to(images, (*images.shape[:-1], 3))
    alpha = images[..., 3:].astype(np.uint16)
    mixed = (images[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return mixed.astype(np.uint8)
