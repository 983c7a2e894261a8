"""Windows as torch datasets: in memory where they fit, cut when needed where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from nuclass.core.log import get_logger
from nuclass.core.progress import Progress
from nuclass.data.vocabulary import Vocabulary
from nuclass.patches.windows import WindowReader, frame_rows, locality_order, slide_codes

Batch = dict[str, Tensor]
Index = int | Sequence[int] | Tensor
_log = get_logger(__name__)


class _Columns(Dataset[Batch]):
    """What both kinds of dataset hold a cell: organ, label and further tensors."""

    def __init__(self, organ: Any, label: Any, extra: dict[str, Any] | None) -> None:
        self.organ = torch.as_tensor(np.asarray(organ, dtype=np.int64))
        self.label = torch.as_tensor(np.asarray(label, dtype=np.int64))
        self.extra = {name: torch.as_tensor(value) for name, value in (extra or {}).items()}
        for name, values in {"label": self.label, **self.extra}.items():
            if len(values) != len(self.organ):
                raise ValueError(f"{len(values)} rows of {name} for {len(self.organ)} cells")
        taken = {"image", "organ", "label", "index"} & self.extra.keys()
        if taken:
            raise ValueError(f"Extra columns may not be called {', '.join(sorted(taken))}")

    def __len__(self) -> int:
        return len(self.organ)

    def _rows(self, index: Index) -> Batch:
        rows = torch.as_tensor(index, dtype=torch.int64)
        return {
            "organ": self.organ[rows],
            "label": self.label[rows],
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

    def __getitem__(self, index: Index) -> Batch:
        batch = self._rows(index)
        image = self.images[batch["index"]]
        return {"image": image.movedim(-1, -3), **batch}


class WindowDataset(_Columns):
    """Windows cut from the slide stores when asked for; holds positions only.

    Parameters
    ----------
    reader
        Where the windows come from; every worker process opens the stores for itself.
    frame
        Columns slide, x_px, y_px; one row a cell.
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
        self.slides, self.codes = slide_codes(frame)
        self.frame_rows = frame_rows(frame)
        self.xy = frame[["x_px", "y_px"]].to_numpy(np.float64)
        if len(self.xy) != len(self):
            raise ValueError(f"{len(self.xy)} positions for {len(self)} cells")

    def locality_order(self) -> NDArray[np.int64]:
        """Return row numbers in an order in which neighbours follow each other."""
        return locality_order(self.codes, self.xy)

    def __getitem__(self, index: Index) -> Batch:
        batch = self._rows(index)
        rows = np.atleast_1d(batch["index"].numpy())
        images = self.reader.read_positions(
            self.slides,
            self.codes[rows],
            None if self.frame_rows is None else self.frame_rows[rows],
            self.xy[rows],
            self.size,
            self.level,
            self.out_px,
        )
        tensor = torch.from_numpy(images if batch["index"].ndim else images[0])
        return {"image": tensor.movedim(-1, -3), **batch}


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
    _log.info("%s: %.0f MB, more than %.0f MB; they are cut from the slides when needed", description, need, memory_mb)
    return WindowDataset(reader, frame, size, level, out_px, organ, label, extra)
