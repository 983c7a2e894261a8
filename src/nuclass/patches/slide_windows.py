"""Windows cut from a slide store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nuclass.patches.windows import CHUNK_BYTES, Image, read_side, shrink
from nuclass.slides.store import SlideStore


class SlideWindows:
    """Windows of one slide's store; see :class:`nuclass.patches.windows.Windows`.

    Parameters
    ----------
    path
        The folder ``he.ome.zarr``.
    cache_mb
        Decoded tiles kept in memory.
    threads
        So many windows are cut at a time; results do not depend on it.
    """

    def __init__(self, path: str | Path, cache_mb: float = 128, threads: int = 1) -> None:
        self.store = SlideStore(path, cache_mb)
        self.mpp = self.store.mpp
        self.threads = threads

    def cut(self, rows: ArrayLike | None, xy: ArrayLike, size: int, level: int, out_px: int) -> Image:
        """Return one window a centre, uint8 ``(N, out_px, out_px, 3)``; ``rows`` are not needed."""
        side = read_side(size, level, out_px)
        if side == out_px:
            return self.store.windows(xy, side, level, threads=self.threads)
        points = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
        out = np.empty((len(points), out_px, out_px, 3), np.uint8)
        batch = max(CHUNK_BYTES // (side * side * 3), 1)
        for places, windows in self.store.batches(points, side, level, batch, self.threads):
            out[places] = shrink(windows, out_px, self.threads)
        return out

    def padded(self, rows: ArrayLike | None, xy: ArrayLike, size: int) -> NDArray[np.float32]:
        """Return the share of each window that lies off the slide (white), ``(N,)``."""
        return self.store.padded_fractions(xy, size).astype(np.float32)

    @property
    def cached_mb(self) -> float:
        """Decoded tiles in memory, MB."""
        return self.store.cached_mb

    def trim(self, keep_mb: float) -> None:
        """Drop decoded tiles, those not used for longest first, until at most ``keep_mb`` are left."""
        self.store.trim(keep_mb)

    def close(self) -> None:
        """Close the store; the next read opens it again."""
        self.store.close()
