"""Windows around cells, cut from the slide stores in an order that decodes each tile about once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from nuclass.core.errors import UserError
from nuclass.slides.store import SlideStore, morton

CHUNK_BYTES = 64_000_000
_BLOCK_PX = 128


class Advances(Protocol):
    """Anything that counts work done, such as :class:`nuclass.core.progress.Progress`."""

    def advance(self, n: int = 1) -> None:
        """Record ``n`` more units."""


class WindowReader:
    """Read windows of many slides; opens a slide when it is first needed.

    Parameters
    ----------
    stores
        Slide name -> folder of its store.
    cache_mb
        Decoded tiles kept in memory, for the slide in use.

    Pickles without open files, so it may go to a worker process.
    """

    def __init__(self, stores: Mapping[str, str | Path], cache_mb: float = 128) -> None:
        self.stores = {str(slide): Path(path) for slide, path in stores.items()}
        self.cache_mb = cache_mb
        self._open: dict[str, SlideStore] = {}

    def store(self, slide: str) -> SlideStore:
        """Return the open store of a slide."""
        if slide not in self._open:
            if slide not in self.stores:
                raise UserError(
                    "A slide has no store",
                    found=slide,
                    expected=" | ".join(sorted(self.stores)),
                    fix="build the slide, or leave its cells out",
                )
            self._open[slide] = SlideStore(self.stores[slide], self.cache_mb)
        return self._open[slide]

    def read(
        self, frame: pd.DataFrame, size: int, level: int, out_px: int, progress: Advances | None = None
    ) -> NDArray[np.uint8]:
        """Cut one window a row of ``frame`` (columns slide, x_px, y_px), in the order of its rows.

        Parameters
        ----------
        size
            Side of the window in level-0 px.
        level
            Pyramid level that is read; ``size / 2**level`` px are read along each side.
        out_px
            Side of the result. Reduced by area averaging where the ratio is a whole number, else
            resized with antialiasing.
        progress
            Told of every window.

        Returns
        -------
        uint8 ``(N, out_px, out_px, 3)``. Only reduced windows are kept; about 64 MB beside them.
        """
        slides, codes = slide_codes(frame)
        xy = frame[["x_px", "y_px"]].to_numpy(np.float64)
        return self.read_positions(slides, codes, xy, size, level, out_px, progress)

    def read_positions(
        self,
        slides: list[str],
        codes: NDArray[np.int64],
        xy: NDArray[np.float64],
        size: int,
        level: int,
        out_px: int,
        progress: Advances | None = None,
    ) -> NDArray[np.uint8]:
        """Do what :meth:`read` does from arrays: ``slides[codes[i]]`` and ``xy[i]`` place window ``i``."""
        step = 2**level
        if size < 1 or out_px < 1 or size % step:
            raise UserError(
                "A window does not fit its pyramid level",
                found=f"{size} px read at level {level}, given as {out_px} px",
                expected=f"a positive multiple of {step} px",
                fix="change the window's size or its read level in the model's configuration",
            )
        side = size // step
        out = np.empty((len(xy), out_px, out_px, 3), np.uint8)
        chunk = max(1, CHUNK_BYTES // (side * side * 3))
        order = locality_order(codes, xy)
        ends = np.flatnonzero(np.diff(codes[order])) + 1
        for rows in np.split(order, ends):
            if not len(rows):
                continue
            store = self.store(slides[int(codes[rows[0]])])
            for start in range(0, len(rows), chunk):
                part = rows[start : start + chunk]
                out[part] = shrink(store.windows(xy[part], side, level), out_px)
                if progress is not None:
                    progress.advance(len(part))
        return out

    def close(self) -> None:
        """Close every store; the next read opens them again."""
        for store in self._open.values():
            store.close()
        self._open = {}

    def __enter__(self) -> WindowReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"stores": self.stores, "cache_mb": self.cache_mb, "_open": {}}


def slide_codes(frame: pd.DataFrame) -> tuple[list[str], NDArray[np.int64]]:
    """Return the slides of a table in order of appearance, and each row's place in that list."""
    codes, slides = pd.factorize(frame["slide"])
    return [str(slide) for slide in slides], codes.astype(np.int64)


def locality_order(codes: ArrayLike, xy: ArrayLike) -> NDArray[np.int64]:
    """Return row numbers sorted by slide, then along a Morton curve, so that neighbours follow each other."""
    points = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
    curve = morton(np.floor(points / _BLOCK_PX).astype(np.int64))
    return np.lexsort((curve, np.asarray(codes))).astype(np.int64)


def shrink(images: NDArray[np.uint8], out_px: int) -> NDArray[np.uint8]:
    """Bring square images ``(N, S, S, 3)`` to ``(N, out_px, out_px, 3)``.

    Whole-number ratios average areas (rounded to nearest); others use Pillow's bilinear filter, whose
    support grows with the ratio, so that it does not alias.
    """
    n, side = images.shape[:2]
    if side == out_px:
        return images
    factor, rest = divmod(side, out_px)
    if rest == 0 and factor <= 16:
        rows = np.zeros((n, out_px, side, 3), np.uint16)
        for k in range(factor):
            rows += images[:, k::factor]
        total = np.zeros((n, out_px, out_px, 3), np.uint16)
        for k in range(factor):
            total += rows[:, :, k::factor]
        area = factor * factor
        return ((total + area // 2) // area).astype(np.uint8)
    from PIL import Image

    out = np.empty((n, out_px, out_px, 3), np.uint8)
    for i in range(n):
        out[i] = np.asarray(Image.fromarray(images[i]).resize((out_px, out_px), Image.Resampling.BILINEAR))
    return out
