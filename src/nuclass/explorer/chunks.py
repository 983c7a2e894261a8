"""Files of data that a page loads without a server.

A page opened from a disk may not fetch files, but it may run scripts. So each file is one call,
``NuClass.receive(key, value)``, whose value is JSON; columns of numbers in it are base64 of their little-endian bytes.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuclass.core.files import atomic_path


def pack(values: NDArray[Any], dtype: str) -> str:
    """Return numbers as base64 of the little-endian type ``dtype``, such as ``f4`` or ``u1``."""
    return base64.b64encode(np.ascontiguousarray(values, dtype=np.dtype(f"<{dtype}")).tobytes()).decode("ascii")


def share_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return shares in [0, 1] as bytes 0 to 255, to the nearest; the error is at most 1/510. NaN becomes 0."""
    return np.rint(np.clip(np.nan_to_num(values, nan=0.0), 0, 1) * 255).astype(np.uint8)


def write_chunk(path: str | Path, key: str, value: Any) -> None:
    """Write one call of ``NuClass.receive``; ``value`` is what JSON knows, without NaN."""
    # In a script a text may hold any character but those that end a line or the script.
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
    with atomic_path(path) as temporary:
        temporary.write_text(f"NuClass.receive({json.dumps(key)},{text});\n", encoding="utf-8")
