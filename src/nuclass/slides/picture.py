"""A plain PNG or JPEG picture as an H&E: held in memory, so of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nuclass.core.errors import UserError
from nuclass.slides.tiles import Image, SourceLevel, over_white

if TYPE_CHECKING:
    from nuclass.slides.source import Source

# Pillow holds 4 bytes a px: 400 MB.
MAX_PIXELS = 100_000_000


@contextmanager
def open_picture(file: Path) -> Iterator[Source]:
    """Open a PNG or JPEG of 8-bit RGB or RGBA with at most :data:`MAX_PIXELS` px. One level, no pixel size.

    Raises
    ------
    UserError
        It is damaged, too large, or no RGB.
    """
    import warnings

    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    from nuclass.slides.source import Source

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)
            image = Pillow.open(file)
    except Pillow.DecompressionBombError as error:
        raise _too_large(file, str(error)) from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise _damaged(file, error) from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise _too_large(file, f"{image.width} x {image.height} px")
        deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", []))
        if image.mode not in ("RGB", "RGBA") or deep:
            raise UserError(
                "The H&E image is not RGB",
                where=file,
                found=f"mode {image.mode}" + (", 16 bits" if deep else ""),
                expected="8 bits, 3 or 4 channels, red green blue (alpha)",
                fix="name the H&E, not another image, in the slide sheet, or convert it to 8-bit RGB",
            )
        try:
            image.load()
        except (OSError, SyntaxError) as error:
            raise _damaged(file, error) from error
        yield Source(file, (SourceLevel(image.height, image.width, 1.0, _Blocks(image)),), None, reader="Pillow")


class _Blocks:
    """Blocks cut from the picture in memory."""

    block = (1024, 1024)
    absent = 0

    def __init__(self, image: Any) -> None:
        self._image = image

    def decode(self, row: int, column: int) -> Image | None:
        top, left = row * self.block[0], column * self.block[1]
        right, bottom = min(left + self.block[1], self._image.width), min(top + self.block[0], self._image.height)
        return over_white(np.asarray(self._image.crop((left, top, right, bottom))))


def _too_large(file: Path, found: str) -> UserError:
    return UserError(
        "The picture is too large to be read whole",
        where=file,
        found=found,
        expected=f"at most {MAX_PIXELS // 1_000_000} million px in a PNG or JPEG",
        fix="convert it to a tiled pyramidal TIFF (for instance vips tiffsave --tile --pyramid)",
    )


def _damaged(file: Path, error: Exception) -> UserError:
    return UserError(
        "The H&E image cannot be read",
        where=file,
        found=str(error),
        expected="a whole PNG or JPEG",
        fix="fetch the file again; a download may be cut off",
    )
