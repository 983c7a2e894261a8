"""Identifiers that follow from a seed, spelt as 10x spells them."""

from __future__ import annotations

import hashlib
import uuid

import numpy as np
import numpy.typing as npt

_HEX = "0123456789abcdef"
_LETTERS = "abcdefghijklmnop"
_TO_LETTERS = str.maketrans(_HEX, _LETTERS)
_TO_HEX = str.maketrans(_LETTERS, _HEX)


def derived_uuid(seed: int, *parts: object) -> str:
    """Return a UUID (version 4 in form) that depends on ``seed`` and ``parts`` alone."""
    digest = hashlib.sha256("/".join(str(part) for part in (seed, *parts)).encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=4))


def encode_cell_id(prefix: int, suffix: int = 1) -> str:
    """Return a cell id as 10x writes it: the prefix's 8 hexadecimal digits as letters a-p, then the suffix."""
    return f"{prefix:08x}".translate(_TO_LETTERS) + f"-{suffix}"


def decode_cell_ids(ids: list[str]) -> npt.NDArray[np.uint32]:
    """Return (N, 2) prefixes and suffixes of 10x cell ids; a :class:`ValueError` for any other form."""
    pairs = [text.rsplit("-", 1) for text in ids]
    return np.array([(int(a.translate(_TO_HEX), 16), int(b)) for a, b in pairs], np.uint32).reshape(-1, 2)


def cell_ids(n: int, seed: int | np.random.Generator = 0) -> list[str]:
    """Return ``n`` different cell ids such as ``aaaabcde-1``, sorted as in a bundle."""
    random = seed if isinstance(seed, np.random.Generator) else np.random.default_rng([seed, 0x10C])
    prefixes = np.unique(random.integers(1, 1 << 32, size=2 * n + 16, dtype=np.uint64))
    chosen = np.sort(random.permutation(prefixes)[:n])
    return [encode_cell_id(int(prefix)) for prefix in chosen]
