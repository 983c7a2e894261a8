"""The split files of the original and its way to read them: one HDF5 dataset a cell, LZF, automatic chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nuclass.slides.store import SlideStore


def write_original(path: Path, keys: list[str], xy: NDArray[np.float64], size: int, store: SlideStore) -> None:
    """Write the windows of some cells as the original's ``train/`` and ``test/`` files hold them."""
    with h5py.File(path, "w") as file:
        for key, place in zip(keys, xy, strict=True):
            file.create_dataset(key, data=store.window(*place.tolist(), size)[0], compression="lzf")


class OriginalFiles(Dataset[tuple[Tensor, int]]):
    """One read a cell by its key; the file is opened in each worker.

    ``step`` 2 keeps every second pixel, the cheapest way from 1024 to 512 px.
    """

    def __init__(self, path: Path, keys: list[str], step: int = 1) -> None:
        self.path, self.keys, self.step = path, keys, step
        self._file: Any = None

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self._file is None:
            self._file = h5py.File(self.path, "r")
        image = self._file[self.keys[index]][()]
        image = np.ascontiguousarray(image[:: self.step, :: self.step])
        return torch.from_numpy(image).movedim(-1, 0), index


def original_loader(path: Path, keys: list[str], batch: int, workers: int, step: int = 1) -> DataLoader[Any]:
    """Return a shuffled loader over the original's files."""
    dataset = OriginalFiles(path, keys, step)
    return DataLoader(dataset, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
