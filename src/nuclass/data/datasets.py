"""Windows as torch datasets: in memory where they fit, cut when needed where they do not."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from nuclass.core.log import get_logger
from nuclass.core.progress import Progress
from nuclass.data.study import Study
from nuclass.data.vocabulary import Vocabulary
from nuclass.patches.windows import WindowReader, frame_rows, locality_order, slide_codes

Batch = dict[str, Tensor]
Index = int | Sequence[int] | Tensor
_log = get_logger(__name__)


class Rows(Dataset[Batch]):
    """Tensors of equal length by name, such as cached outputs of models; any rows of them at once.

    ``dataset[[i, j, ...]]`` is a dict of their rows.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self.n = len(next(iter(tensors.values())))
        if any(len(values) != self.n for values in tensors.values()):
            lengths = ", ".join(f"{name} {len(values)}" for name, values in tensors.items())
            raise ValueError(f"Columns of different lengths: {lengths}")

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: Index) -> Batch:
        rows = torch.as_tensor(index, dtype=torch.int64)
        return {name: values[rows] for name, values in self.tensors.items()}


class _Columns(Dataset[Batch]):
    """What both kinds of windows hold a cell: organ and label in two bytes each, and further tensors."""

    def __init__(self, organ: Any, label: Any, extra: dict[str, Any] | None) -> None:
        self._organ = np.asarray(organ, dtype=np.int16)
        self._label = np.asarray(label, dtype=np.int16)
        self.extra: dict[str, Tensor] = {}
        if len(self._label) != len(self):
            raise ValueError(f"{len(self._label)} rows of label for {len(self)} cells")
        for name, values in (extra or {}).items():
            self.add(name, values)

    def add(self, name: str, values: Any) -> None:
        """Add a column, first axis N, that every item brings along."""
        if len(values) != len(self):
            raise ValueError(f"{len(values)} rows of {name} for {len(self)} cells")
        if name in {"image", "organ", "label", "index"}:
            raise ValueError(f"Extra columns may not be called {name}")
        self.extra[name] = torch.as_tensor(values)

    @property
    def organ(self) -> Tensor:
        """Return the organs' numbers, int64 (N,)."""
        return torch.from_numpy(self._organ.astype(np.int64))

    @property
    def label(self) -> Tensor:
        """Return the classes' numbers, int64 (N,); -1 where there is none."""
        return torch.from_numpy(self._label.astype(np.int64))

    def __len__(self) -> int:
        return len(self._organ)

    def _rows(self, index: Index) -> Batch:
        rows = torch.as_tensor(index, dtype=torch.int64)
        where = rows.numpy()
        return {
            "organ": torch.as_tensor(self._organ[where].astype(np.int64)),
            "label": torch.as_tensor(self._label[where].astype(np.int64)),
            "index": rows,
            **{name: values[rows] for name, values in self.extra.items()},
        }


class InMemoryWindows(_Columns):
    """Windows held as one uint8 tensor.

    Parameters
    ----------
    images
        uint8 ``(N, H, W, 3)``; not copied.
    organ, label
        Numbers of the vocabulary, ``(N,)``; label -1 where there is none.
    extra
        Further columns by name, first axis N (such as cached features), passed on with every item.

    ``dataset[i]`` is a dict: image uint8 (3, H, W), organ, label, index int64. ``dataset[[i, j, ...]]`` is
    the same with a batch axis; images are then in channels-last memory.
    """

    def __init__(self, images: NDArray[np.uint8], organ: Any, label: Any, extra: dict[str, Any] | None = None) -> None:
        super().__init__(organ, label, extra)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) != len(self):
            raise ValueError(f"Images must be uint8 ({len(self)}, H, W, 3); got {images.dtype} {images.shape}")
        self.images = torch.from_numpy(images)

    def part(self, start: int, stop: int) -> InMemoryWindows:
        """Return the rows from ``start`` to before ``stop``; nothing is copied."""
        images = self.images[start:stop].numpy()
        return InMemoryWindows(images, self._organ[start:stop], self._label[start:stop], _cut(self.extra, start, stop))

    def __getitem__(self, index: Index) -> Batch:
        batch = self._rows(index)
        image = self.images[batch["index"]]
        return {"image": image.movedim(-1, -3), **batch}


class WindowDataset(_Columns):
    """Windows cut when asked for; holds 26 bytes a cell, in arrays alone.

    Parameters
    ----------
    reader
        Where the windows come from; every worker process opens the files for itself.
    frame
        Columns slide, x_px, y_px, and row where a slide is read from patch files; one row a cell.
    size, level, out_px
        See :meth:`nuclass.patches.windows.WindowReader.read`.
    organ, label, extra
        As for :class:`InMemoryWindows`, and items look the same. Ask for many at once: neighbours share tiles.
    """

    def __init__(
        self,
        reader: WindowReader,
        frame: pd.DataFrame,
        size: int,
        level: int,
        out_px: int,
        organ: Any,
        label: Any,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(organ, label, extra)
        self.reader, self.size, self.level, self.out_px = reader, size, level, out_px
        slides, codes = slide_codes(frame)
        self.slides, self.codes = slides, codes.astype(np.int16)
        rows = frame_rows(frame)
        self.cell_rows = None if rows is None else rows.astype(np.int32)
        self.xy = frame[["x_px", "y_px"]].to_numpy(np.float64)
        if len(self.xy) != len(self):
            raise ValueError(f"{len(self.xy)} positions for {len(self)} cells")

    def locality_order(self) -> NDArray[np.int64]:
        """Return row numbers in an order in which neighbours follow each other."""
        return locality_order(self.codes, self.xy)

    def part(self, start: int, stop: int) -> WindowDataset:
        """Return the rows from ``start`` to before ``stop``; nothing is copied."""
        result = copy.copy(self)
        result._organ, result._label = self._organ[start:stop], self._label[start:stop]
        result.codes, result.xy = self.codes[start:stop], self.xy[start:stop]
        result.cell_rows = None if self.cell_rows is None else self.cell_rows[start:stop]
        result.extra = _cut(self.extra, start, stop)
        return result

    def open_anew(self) -> None:
        """Forget files that another process opened; called in every worker."""
        self.reader = copy.copy(self.reader)

    def __getitem__(self, index: Index) -> Batch:
        batch = self._rows(index)
        rows = np.atleast_1d(batch["index"].numpy())
        memory = _batch_memory((len(rows), self.out_px, self.out_px, 3))
        self.reader.read_positions(
            self.slides,
            self.codes[rows].astype(np.int64),
            None if self.cell_rows is None else self.cell_rows[rows].astype(np.int64),
            self.xy[rows],
            self.size,
            self.level,
            self.out_px,
            out=memory.numpy(),
        )
        images = memory if batch["index"].ndim else memory[0]
        return {"image": images.movedim(-1, -3), **batch}


def _cut(columns: dict[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    return {name: values[start:stop] for name, values in columns.items()}


def _batch_memory(shape: tuple[int, ...]) -> Tensor:
    """Return memory for uint8 windows; in a worker process that which goes to the main one without a copy."""
    windows = torch.empty(0, dtype=torch.uint8)
    if get_worker_info() is None:
        return windows.new_empty(shape)
    # As torch's own collation of batches does it.
    storage = windows._typed_storage()._new_shared(int(np.prod(shape)), device=windows.device)
    return windows.new(storage).resize_(*shape)  # type: ignore[no-any-return]


def choose_dataset(
    frame: pd.DataFrame,
    reader: WindowReader,
    vocabulary: Vocabulary,
    *,
    size: int,
    level: int,
    out_px: int,
    memory_mb: float,
    extra: dict[str, Any] | None = None,
    description: str = "Windows",
) -> InMemoryWindows | WindowDataset:
    """Read all windows of ``frame`` into memory if they take at most ``memory_mb`` MB, else cut them when needed.

    ``frame`` is a table of :func:`nuclass.data.load_cells`; the other arguments are those of the datasets.
    """
    organ = vocabulary.encode_organs(frame["organ"])
    label = vocabulary.encode_classes(frame["class"])
    need = len(frame) * out_px * out_px * 3 / 1e6
    if need <= memory_mb:
        with Progress(len(frame), description, "windows") as progress:
            images = reader.read(frame, size, level, out_px, progress)
        return InMemoryWindows(images, organ, label, extra)
    _log.info("%s: %.0f MB, more than %.0f MB; they are cut when needed", description, need, memory_mb)
    return WindowDataset(reader, frame, size, level, out_px, organ, label, extra)


def local_windows(
    frame: pd.DataFrame,
    study: Study,
    vocabulary: Vocabulary,
    *,
    read_level: int,
    input_px: int,
    memory_mb: float,
    extra: dict[str, Any] | None = None,
    description: str = "local windows",
) -> InMemoryWindows | WindowDataset:
    """Return the local windows of ``frame`` as a dataset, in memory where they fit."""
    return choose_dataset(
        frame,
        study.reader(),
        vocabulary,
        size=study.windows["local"],
        level=read_level,
        out_px=input_px,
        memory_mb=memory_mb,
        extra=extra,
        description=description,
    )
