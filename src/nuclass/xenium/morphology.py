"""The DAPI image of a bundle, seen from far."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nuclass.core.errors import UserError


def read_morphology(path: str | Path, max_px: int) -> tuple[NDArray[np.float32], float]:
    """Return the first plane of a morphology image, small, and level-0 px per px of it.

    Parameters
    ----------
    path
        ``morphology_focus*.ome.tif``, ``ch0000_dapi.ome.tif`` or a stack, whose first plane is taken.
    max_px
        The longer side is at most this: the smallest pyramid level that is larger is averaged down.

    Raises
    ------
    UserError
        The file is missing, is no TIFF, cannot be decoded or is not grey.
    """
    import tifffile

    file = Path(path)
    try:
        with tifffile.TiffFile(file) as tiff:
            page = tiff.pages[0].aspage()
            # Levels are sub-images of the first page; a set of several files has no pyramid for the library.
            levels = [page, *(page.pages or ())]
            level = min((one for one in levels if max(one.shape) >= max_px), key=lambda one: one.shape[0], default=page)
            image = np.asarray(level.asarray())
            full = page.shape
    except FileNotFoundError as error:
        raise UserError("The morphology image is missing", where=file, fix="fetch the bundle again") from error
    except (tifffile.TiffFileError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(
            "The morphology image cannot be read",
            where=file,
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            expected="the DAPI image of a Xenium bundle, an OME-TIFF",
            fix="copy the file again from the bundle; it may be cut off",
        ) from error
    if image.ndim != 2:
        raise UserError(
            "The morphology image is not grey",
            where=file,
            found=f"shape {image.shape}",
            expected="one channel",
            fix="name the DAPI image, not the H&E",
        )
    shrink = -(-max(image.shape) // max_px)
    return _averaged(image.astype(np.float32), shrink), float(full[0] / image.shape[0] * shrink)


def _averaged(image: NDArray[np.float32], shrink: int) -> NDArray[np.float32]:
    if shrink == 1:
        return image
    height, width = (-(-n // shrink) * shrink for n in image.shape)
    padded = np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1])), mode="edge")
    return padded.reshape(height // shrink, shrink, width // shrink, shrink).mean(axis=(1, 3), dtype=np.float32)
