"""The H&E of a slide as deep-zoom tiles (DZI), read tile by tile from the slide store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nuclass.core.files import atomic_path
from nuclass.core.progress import Progress
from nuclass.explorer.chunks import write_chunk
from nuclass.slides.store import SlideStore

Image = NDArray[np.uint8]
TILE = 512
"""Side of a tile, px: twice that of the store, for a fourth of the files. Even, for halving."""
_DZI = """<?xml version="1.0" encoding="UTF-8"?>
<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="jpeg" Overlap="0" TileSize="{tile}">
  <Size Width="{width}" Height="{height}"/>
</Image>
"""


def top_level(height: int, width: int) -> int:
    """Return the DZI number of the full picture: ``ceil(log2(longer side))``; level 0 is a single pixel."""
    return (max(height, width) - 1).bit_length()


def write_tiles(slide: str, store: str | Path, folder: str | Path, *, quality: int, cache_mb: float = 64) -> None:
    """Write ``slide.dzi``, ``slide_files/{level}/{column}_{row}.jpeg`` and ``tiles.js`` into a new folder.

    The larger levels are those of the store; below its smallest, pixels are the means of two by two, strip by strip.
    Never more is held than one strip of tiles of the store's smallest level, and half of it again for each below.

    Parameters
    ----------
    slide
        Its name, by which the page asks for ``tiles.js``.
    store
        The folder ``he.ome.zarr``.
    folder
        Where the files go; appears when all are written.
    quality
        JPEG quality, 1 to 95.
    cache_mb
        Decoded tiles of the store kept, MB.
    """
    with SlideStore(store, cache_mb) as source, atomic_path(folder) as root:
        height, width = source.shape
        top = top_level(height, width)
        total = sum(tiles_of(-(-height // 2**k), -(-width // 2**k)) for k in range(top + 1))
        with Progress(total, f"{slide}: tiles", "tiles") as progress:

            def save(level: int, row: int, column: int, image: Image) -> None:
                _save_jpeg(root / "slide_files" / str(level) / f"{column}_{row}.jpeg", image, quality)
                progress.advance()

            last = min(source.levels - 1, top)
            for level in range(last):
                _copy_level(source, level, top - level, save)
            _copy_level(source, last, top - last, save, below=_Halved.chain(top - last, save))
        (root / "slide.dzi").write_text(_DZI.format(tile=TILE, width=width, height=height), encoding="utf-8")
        facts = {"width": width, "height": height, "tile": TILE, "top": top, "mpp": source.mpp}
        write_chunk(root / "tiles.js", f"{slide}/tiles", facts)


def tiles_of(height: int, width: int) -> int:
    """Return how many tiles a level of this size has."""
    return -(-height // TILE) * -(-width // TILE)


Save = Callable[[int, int, int, Image], None]


def _copy_level(source: SlideStore, level: int, number: int, save: Save, below: _Halved | None = None) -> None:
    """Save one level of the store as DZI level ``number``; hand its strips on to the level below."""
    height, width = source.level_shape(level)
    for row, y0 in enumerate(range(0, height, TILE)):
        rows = min(TILE, height - y0)
        strip = np.empty((rows, width, 3), np.uint8) if below else None
        for column, x0 in enumerate(range(0, width, TILE)):
            image = source.region(x0, y0, min(TILE, width - x0), rows, level)
            save(number, row, column, image)
            if strip is not None:
                strip[:, x0 : x0 + TILE] = image
        if below is not None and strip is not None:
            below.push(strip)
    if below is not None:
        below.finish()


class _Halved:
    """A level made of the one above: takes its strips, each an even number of rows but the last, and saves tiles."""

    def __init__(self, number: int, save: Save, below: _Halved | None) -> None:
        self.number, self.save, self.below = number, save, below
        self.parts: list[Image] = []
        self.row = 0

    @classmethod
    def chain(cls, number: int, save: Save) -> _Halved | None:
        """Return the levels below DZI level ``number``, each feeding the next; None where there is none."""
        below: _Halved | None = None
        for lower in range(number):
            below = cls(lower, save, below)
        return below

    def push(self, strip: Image) -> None:
        self.parts.append(halved(strip))
        if sum(len(part) for part in self.parts) >= TILE:
            self._flush()

    def finish(self) -> None:
        if self.parts:
            self._flush()
        if self.below is not None:
            self.below.finish()

    def _flush(self) -> None:
        strip = np.concatenate(self.parts)
        self.parts = []
        for column, x0 in enumerate(range(0, strip.shape[1], TILE)):
            self.save(self.number, self.row, column, strip[:, x0 : x0 + TILE])
        self.row += 1
        if self.below is not None:
            self.below.push(strip)


def halved(image: Image) -> Image:
    """Return the means of two by two pixels, rounded; an odd last row or column counts twice. ``(H, W, 3)``."""
    height, width = image.shape[:2]
    even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge").astype(np.uint16)
    total = even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
    return ((total + 2) >> 2).astype(np.uint8)


def _save_jpeg(path: Path, image: Image, quality: int) -> None:
    from PIL import Image as Pillow

    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.ascontiguousarray(image)).save(path, "JPEG", quality=quality)
