"""The size of a px as a file of an H&E states it."""

from __future__ import annotations

import math
from pathlib import Path

from nuclass.core.log import get_logger

_log = get_logger(__name__)
_NOT_SQUARE = 0.01


def told_size(file: Path, width_um: float | None, height_um: float | None) -> tuple[float | None, float]:
    """Return micrometres per px, and the height of a px over its width, of what a file states.

    Scanners measure both sides, and they differ by some tenths of a per cent. Pixels that are clearly not square are of
    no size at all: windows are cut square.

    Parameters
    ----------
    file
        For the warning.
    width_um, height_um
        None or no positive number where the file does not say it. The height alone says nothing.
    """
    if not _is_size(width_um):
        return None, 1.0
    assert width_um is not None
    if not _is_size(height_um):
        return width_um, 1.0
    assert height_um is not None
    aspect = height_um / width_um
    if abs(aspect - 1) > _NOT_SQUARE:
        _log.warning("%s: pixels of %g x %g um, which are not square; the size is not used", file, width_um, height_um)
        return None, 1.0
    return width_um, aspect


def _is_size(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0
