"""Windows around cells at a given size: one small interface over slide stores and patch files.

A window of ``size`` px (level-0 px of the slide store, the scale of the study) is given as ``out_px`` px. It is
read in one of two ways:

- *exact* (``level`` 0): the window is cut at full resolution and, where ``size / out_px`` is a whole number, each
  pixel of the result is the mean of its area, rounded to nearest. The same cell always gives the same pixels,
  wherever they are stored.
- *fast* (``level`` k): the window is cut from pyramid level k, whose pixels lie on a fixed grid of ``2**k`` px.
  It is the exact window where the window's origin is a multiple of ``2**k`` on both axes (level 1 to the bit, level
  2 to within 1 grey level, level 3 to within 2: every level rounds), and elsewhere the same tissue shifted by less
  than ``2**k`` level-0 px. Reducing a fast window further rounds once more.

Patch files hold windows cut at full resolution: from them every read is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nuclass.core.errors import UserError
from nuclass.slides.store import morton

if TYPE_CHECKING:
    import pandas as pd

CHUNK_BYTES = 64_000_000
_BLOCK_PX = 128

Image = NDArray[np.uint8]


class Advances(Protocol):
    """Anything that counts work done, such as :class:`nuclass.core.progress.Progress`."""

    def advance(self, n: int = 1) -> None:
        """Record ``n`` more units."""


class Windows(Protocol):
    """Windows of the cells of one slide.

    Attributes
    ----------
    mpp
        Micrometres per level-0 px.
    cached_mb
        Decoded pixels kept in memory, MB.

    Pickles without open files, so it may go to a worker process; an object belongs to one thread.
    """

    mpp: float

    @property
    def cached_mb(self) -> float:
        """Decoded pixels kept in memory, MB."""

    def trim(self, keep_mb: float) -> None:
        """Drop decoded pixels, those not used for longest first, until at most ``keep_mb`` are left."""

    def cut(self, rows: ArrayLike | None, xy: ArrayLike, size: int, level: int, out_px: int) -> Image:
        """Return one window a cell, uint8 ``(N, out_px, out_px, 3)``, in the order asked.

        Parameters
        ----------
        rows
            Row of each cell in the slide's ``cells.parquet``, ``(N,)``. Patch files use these; a slide store
            needs none.
        xy
            Centres in level-0 px of the slide store, continuous, ``(N, 2)``. The slide store uses these.
        size
            Side of the window in level-0 px.
        level
            Pyramid level of a fast read, 0 for an exact one; ``size`` must be a multiple of ``2**level``.
        out_px
            Side of the result.
        """

    def padded(self, rows: ArrayLike | None, xy: ArrayLike, size: int) -> NDArray[np.float32]:
        """Return the share of each window that lies off the slide (white), ``(N,)`` in [0, 1]; NaN if not known."""

    def close(self) -> None:
        """Close the files; the next read opens them again."""


def open_windows(path: str | Path, cache_mb: float = 128, threads: int = 1) -> Windows:
    """Open a slide store (a folder) or patch files (their manifest ``patches.json``), chosen by the path.

    Parameters
    ----------
    path
        ``he.ome.zarr`` or ``patches.json``.
    cache_mb
        Decoded tiles of a slide store kept in memory.
    threads
        So many windows of a slide store are cut at a time; results do not depend on it.
    """
    if is_patches(path):
        from nuclass.patches.patch_windows import PatchWindows

        return PatchWindows(path)
    from nuclass.patches.slide_windows import SlideWindows

    return SlideWindows(path, cache_mb, threads)


def is_patches(path: str | Path) -> bool:
    """Tell whether a slide's windows are patch files (a manifest) rather than a slide store."""
    return Path(path).suffix == ".json"


class WindowReader:
    """Read windows of many slides; opens a slide when it is first needed.

    Parameters
    ----------
    sources
        Slide name -> its store ``he.ome.zarr`` or its manifest ``patches.json``.
    cache_mb
        Decoded tiles kept in memory, of all slides together; while one is read, up to twice as much.
    threads
        So many windows of a slide store are cut at a time; results do not depend on it. It pays for large
        windows (1024 px), not for small ones.

    Pickles without open files, so it may go to a worker process.
    """

    def __init__(self, sources: Mapping[str, str | Path], cache_mb: float = 128, threads: int = 1) -> None:
        self.sources = {str(slide): Path(path) for slide, path in sources.items()}
        self.cache_mb = cache_mb
        self.threads = threads
        self._open: dict[str, Windows] = {}

    def windows(self, slide: str) -> Windows:
        """Return the open windows of a slide."""
        known = self._open.pop(slide, None)
        if known is None:
            if slide not in self.sources:
                raise UserError(
                    "A slide has no store",
                    found=slide,
                    expected=" | ".join(sorted(self.sources)),
                    fix="build the slide, or leave its cells out",
                )
            known = open_windows(self.sources[slide], self.cache_mb, self.threads)
        # The slide in use stands last, so that the first is the one to forget.
        self._open[slide] = known
        return known

    def _keep_to_budget(self) -> None:
        """Let the slides that were not read for longest forget tiles until all together hold ``cache_mb``."""
        excess = sum(windows.cached_mb for windows in self._open.values()) - self.cache_mb
        for windows in self._open.values():
            if excess <= 0:
                return
            before = windows.cached_mb
            windows.trim(max(before - excess, 0.0))
            excess -= before - windows.cached_mb

    def read(self, frame: pd.DataFrame, size: int, level: int, out_px: int, progress: Advances | None = None) -> Image:
        """Cut one window a row of ``frame``, in the order of its rows.

        Parameters
        ----------
        frame
            Columns slide, x_px, y_px, and ``row`` (row in the slide's ``cells.parquet``) where a slide is read
            from patch files.
        size
            Side of the window in level-0 px.
        level
            Pyramid level that is read; ``size / 2**level`` px are read along each side. Patch files are read
            exactly whatever the level.
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
        return self.read_positions(slides, codes, frame_rows(frame), xy, size, level, out_px, progress)

    def read_positions(
        self,
        slides: list[str],
        codes: NDArray[np.int64],
        rows: NDArray[np.int64] | None,
        xy: NDArray[np.float64],
        size: int,
        level: int,
        out_px: int,
        progress: Advances | None = None,
        out: Image | None = None,
    ) -> Image:
        """Do what :meth:`read` does from arrays: ``slides[codes[i]]``, ``rows[i]`` and ``xy[i]`` place window ``i``.

        ``rows`` may be None if every slide asked for is a slide store. ``out`` is filled and returned if given.
        """
        side = read_side(size, level, out_px)
        if out is None:
            out = np.empty((len(xy), out_px, out_px, 3), np.uint8)
        chunk = max(1, CHUNK_BYTES // (side * side * 3))
        order = locality_order(codes, xy)
        ends = np.flatnonzero(np.diff(codes[order])) + 1
        for group in np.split(order, ends):
            if not len(group):
                continue
            slide = slides[int(codes[group[0]])]
            windows = self.windows(slide)
            if is_patches(self.sources[slide]):
                if rows is None:
                    raise UserError(
                        "Windows from patch files need the rows of the cells",
                        where=self.sources[slide],
                        found="a table without the column 'row'",
                        expected="row = row of the cell in the slide's cells.parquet",
                        fix="read the cells with nuclass.data.load_cells",
                    )
                group = group[np.argsort(rows[group], kind="stable")]
            for start in range(0, len(group), chunk):
                part = group[start : start + chunk]
                out[part] = windows.cut(None if rows is None else rows[part], xy[part], size, level, out_px)
                self._keep_to_budget()
                if progress is not None:
                    progress.advance(len(part))
        return out

    def close(self) -> None:
        """Close every slide; the next read opens them again."""
        for windows in self._open.values():
            windows.close()
        self._open = {}

    def __enter__(self) -> WindowReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}


def read_side(size: int, level: int, out_px: int) -> int:
    """Return the side in px that is read at ``level`` for a window of ``size`` level-0 px, checked."""
    step = 2**level
    if size < 1 or out_px < 1 or size % step:
        raise UserError(
            "A window does not fit its pyramid level",
            found=f"{size} px read at level {level}, given as {out_px} px",
            expected=f"a positive multiple of {step} px",
            fix="change the window's size or its read level in the model's configuration",
        )
    return size // step


def frame_rows(frame: pd.DataFrame) -> NDArray[np.int64] | None:
    """Return the column ``row`` of a table of cells, None if it has none."""
    return frame["row"].to_numpy(np.int64) if "row" in frame else None


def slide_codes(frame: pd.DataFrame) -> tuple[list[str], NDArray[np.int64]]:
    """Return the slides of a table in order of appearance, and each row's place in that list."""
    import pandas as pd

    codes, slides = pd.factorize(frame["slide"])
    return [str(slide) for slide in slides], codes.astype(np.int64)


def locality_order(codes: ArrayLike, xy: ArrayLike) -> NDArray[np.int64]:
    """Return row numbers sorted by slide, then along a Morton curve, so that neighbours follow each other."""
    points = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
    curve = morton(np.floor(points / _BLOCK_PX).astype(np.int64))
    return np.lexsort((curve, np.asarray(codes))).astype(np.int64)


def shrink(images: Image, out_px: int, threads: int = 1) -> Image:
    """Bring square images ``(N, S, S, 3)`` to ``(N, out_px, out_px, 3)``.

    Whole-number ratios up to 16 average areas (rounded to nearest); others use a triangle filter whose support grows
    with the ratio, so that it does not alias: torch's, which is Pillow's to within 1 grey level in a fifth of the time.
    """
    n, side = images.shape[:2]
    if side == out_px:
        return images
    if threads > 1 and n > 1:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(threads) as pool:
            return np.concatenate(list(pool.map(lambda part: shrink(part, out_px), np.array_split(images, threads))))
    factor, rest = divmod(side, out_px)
    if rest or factor > 16:
        return _filtered(images, out_px)
    if factor & (factor - 1):
        return _area_means(images, out_px, factor)
    from PIL import Image as Pillow

    # Pillow divides the sums by a product that is exact for powers of two only.
    out = np.empty((n, out_px, out_px, 3), np.uint8)
    for i in range(n):
        out[i] = np.asarray(Pillow.fromarray(images[i]).reduce(factor))
    return out


def _filtered(images: Image, out_px: int) -> Image:
    from torch import from_numpy
    from torch.nn.functional import interpolate

    # A view of whole pixels side by side: torch has a fast way for these.
    planes = from_numpy(np.require(images, requirements=["C", "W"])).permute(0, 3, 1, 2)
    resized = interpolate(planes, size=(out_px, out_px), mode="bilinear", antialias=True, align_corners=False)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1).numpy())


def _area_means(images: Image, out_px: int, factor: int) -> Image:
    n, side = images.shape[:2]
    rows = np.zeros((n, out_px, side, 3), np.uint16)
    for k in range(factor):
        rows += images[:, k::factor]
    total = np.zeros((n, out_px, out_px, 3), np.uint16)
    for k in range(factor):
        total += rows[:, :, k::factor]
    area = factor * factor
    return ((total + area // 2) // area).astype(np.uint8)
