"""Windows that take no space: HDF5 virtual datasets over one copy of the slide.

``slide.h5`` holds the slide once; the files of windows only say where in it each window lies. Any reader of the
original's layout opens them. HDF5 keeps all places in memory, so this is for small sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuclass.core.errors import UserError
from nuclass.core.progress import Progress
from nuclass.patches.patch_file import IMAGES
from nuclass.patches.sink import written_h5
from nuclass.slides.store import SlideStore
from nuclass.slides.zarr_format import WHITE

SLIDE = "slide"
MAX_VIRTUAL = 100_000
_CHUNK = 256


def refuse_many(cells: int) -> None:
    """Refuse more cells than a file of virtual windows can bear.

    Raises
    ------
    UserError
        Naming both numbers.
    """
    if cells > MAX_VIRTUAL:
        raise UserError(
            "There are too many cells for virtual windows",
            found=f"{cells} cells",
            expected=f"at most {MAX_VIRTUAL}: 80,000 took 1.6 s to open and 0.6 GB in every process that reads",
            fix="export without --virtual, or train on the slide store itself",
        )


def slide_bytes(shape: tuple[int, int]) -> int:
    """Return the size in bytes of a slide's copy, ``shape`` being its height and width, if no tile of it is white."""
    height, width = (-(-side // _CHUNK) * _CHUNK for side in shape)
    return height * width * 3


def write_slide(store: SlideStore, path: Path) -> None:
    """Copy level 0 of a store to an HDF5 file: uncompressed tiles of 256 px, white ones left out.

    Parameters
    ----------
    store
        The slide.
    path
        The file to write.
    """
    height, width = store.shape
    rows = range(0, height, _CHUNK)
    with written_h5(path) as (file, sink), Progress(len(rows), "Copy of the slide", "rows") as progress:
        slide = file.create_dataset(SLIDE, (height, width, 3), np.uint8, chunks=(_CHUNK, _CHUNK, 3), fillvalue=WHITE)
        slide.attrs["mpp"] = store.mpp
        for y0 in rows:
            band = store.region(0, y0, width, min(_CHUNK, height - y0))
            for x0 in range(0, width, _CHUNK):
                part = band[:, x0 : x0 + _CHUNK]
                if (part != WHITE).any():
                    slide[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]] = part
            sink.check()
            progress.advance()


def add_virtual_images(
    file: Any, source: str, shape: Sequence[int], origins: NDArray[np.int64], size: int, advance: Any
) -> None:
    """Add the dataset ``images`` (N, size, size, 3) to an open HDF5 file: windows that lie in another file.

    Parameters
    ----------
    source
        Name of that file, relative to the folder of this one.
    shape
        ``(height, width)`` of the slide.
    origins
        Top-left pixel of each window, x and y, ``(N, 2)``; what lies off the slide is white.
    advance
        Told of every window.
    """
    import h5py

    height, width = shape
    layout = h5py.VirtualLayout((len(origins), size, size, 3), np.uint8)
    slide = h5py.VirtualSource(source, SLIDE, (height, width, 3), np.uint8)
    for i, (x0, y0) in enumerate(origins.tolist()):
        top, bottom = max(y0, 0), min(y0 + size, height)
        left, right = max(x0, 0), min(x0 + size, width)
        if top < bottom and left < right:
            layout[i, top - y0 : bottom - y0, left - x0 : right - x0] = slide[top:bottom, left:right]
        advance()
    file.create_virtual_dataset(IMAGES, layout, fillvalue=WHITE)
