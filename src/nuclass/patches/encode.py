"""Windows as HDF5 stores them: compressed outside of HDF5, which lets one thread at a time through.

A chunk is written as its bytes and a mask of the filters that were left out (HDF5 file format, III.D and IV.A.2.l): a
window that LZF makes no smaller is stored plain with bit 0 set, as the filter itself would do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Compression = Literal["lzf", "gzip", "none"]
Encoded = tuple[bytes, int]
_GZIP_LEVEL = 4
_SKIPPED = 1


def chunk_options(shape: tuple[int, ...], compression: Compression) -> dict[str, Any]:
    """Return how h5py is to make a dataset whose chunks come from :func:`encode`."""
    options: dict[str, Any] = {"chunks": shape, "compression": None if compression == "none" else compression}
    return options | ({"compression_opts": _GZIP_LEVEL} if compression == "gzip" else {})


def encode(image: NDArray[np.uint8], compression: Compression) -> Encoded:
    """Return a window's bytes in the file and the mask of the filters left out."""
    import imagecodecs

    plain = image.tobytes()
    if compression == "none":
        return plain, 0
    if compression == "gzip":
        return bytes(imagecodecs.zlib_encode(plain, _GZIP_LEVEL)), 0
    try:
        packed = bytes(imagecodecs.lzf_encode(plain))
    except imagecodecs.LzfError:
        packed = b""
    return (packed, 0) if 0 < len(packed) < len(plain) else (plain, _SKIPPED)


def encoder(compression: Compression, pool: ThreadPoolExecutor) -> Callable[[Iterable[Any]], Iterator[Encoded]]:
    """Return a function that encodes windows side by side, in their order."""
    return lambda images: pool.map(lambda image: encode(image, compression), images)
