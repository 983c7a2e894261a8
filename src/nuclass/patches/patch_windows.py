"""Windows read from patch files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nuclass.patches.windows import Image


class PatchWindows:
    """Windows of one slide given as patch files; see :class:`nuclass.patches.windows.Windows`."""

    mpp: float

    def __init__(self, path: str | Path) -> None:
        raise NotImplementedError(path)

    def cut(self, rows: ArrayLike | None, xy: ArrayLike, size: int, level: int, out_px: int) -> Image:
        """Return one window a row."""
        raise NotImplementedError

    def padded(self, rows: ArrayLike | None, xy: ArrayLike, size: int) -> NDArray[np.float32]:
        """Return the share of each window that lies off the slide."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the files."""
