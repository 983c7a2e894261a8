"""Windows cut from a slide store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nuclass.patches.windows import Image, read_side, shrink
from nuclass.slides.store import SlideStore


class SlideWindows:
    """Windows of one slide's store; see :class:`nuclass.patches.windows.Windows`.

    Parameters
    ----------
    path
        The folder ``he.ome.zarr``.
    cache_mb
        Decoded tiles kept in memory.
    """

    def __init__(self, path: str | Path, cache_mb: float = 128) -> None:
        self.store = SlideStore(path, cache_mb)
        self.mpp = self.store.mpp

    def cut(self, rows: ArrayLike | None, xy: ArrayLike, size: int, level: int, out_px: int) -> Image:
        """Return one window a centre, uint8 ``(N, out_px, out_px, 3)``; ``rows`` are not needed."""
        return shrink(self.store.windows(xy, read_side(size, level, out_px), level), out_px)

    def padded(self, rows: ArrayLike | None, xy: ArrayLike, size: int) -> NDArray[np.float32]:
        """Return the share of each window that lies off the slide (white), ``(N,)``."""
        return self.store.padded_fractions(xy, size).astype(np.float32)

    def close(self) -> None:
        """Close the store; the next read opens it again."""
        self.store.close()
