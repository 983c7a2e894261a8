"""The bytes of the slide store: OME-Zarr 0.5 on Zarr v3, sharded tiles, each compressed where that pays.

Axes c, y, x; uint8; one inner chunk is ``(3, tile, tile)``, one shard ``(3, shard, shard)``. The inner
codecs are ``transpose`` (so that a decoded chunk is an interleaved RGB tile), ``bytes``, ``blosc`` and
``crc32c``. A frame of Blosc says itself whether it is compressed. Glass shrinks to a quarter and is kept so;
tissue hardly shrinks (0.93 of raw on a real field) but takes ten times as long to read, so such tiles are
frames with the plain pixels (docs/performance.md). Any reader of Zarr v3 takes both. A shard
file is the encoded tiles, then an index of (offset, length) pairs in row-major order, then the index's
CRC-32C. A tile without a single pixel other than white is left out: offset and length are 2^64 - 1.
Specifications: zarr-specs v3 sharding-indexed, codecs blosc and crc32c; ngff.openmicroscopy.org/0.5.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from nuclass.core.errors import UserError

EMPTY = 2**64 - 1
WHITE = 255
Image = NDArray[np.uint8]
# A tile is kept compressed if it shrinks to this share: smaller is cheaper to store, plain is faster to read.
_WORTH_IT = 0.5
# Bits a sample of four rows of it, below which it is tried: quicker than to compress tissue for nothing.
_TRY_BELOW_BITS = 5.0
_ZSTD_LEVEL = 1
_BLOSC = {"cname": "zstd", "clevel": _ZSTD_LEVEL, "shuffle": "noshuffle", "typesize": 1, "blocksize": 0}
_CODECS = ["transpose", "bytes", "blosc", "crc32c"]
_HEADER, _CHECK, _PLAIN_FLAG = 16, 4, 0x02


@dataclass(frozen=True)
class LevelLayout:
    """Where the pixels of one pyramid level lie: ``(height, width)``, tile side and shard side in px."""

    height: int
    width: int
    tile: int
    shard: int

    @property
    def tiles_per_shard(self) -> int:
        """Tiles along one side of a shard."""
        return self.shard // self.tile

    @property
    def tile_grid(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return -(-self.height // self.tile), -(-self.width // self.tile)

    @property
    def shard_grid(self) -> tuple[int, int]:
        """Rows and columns of shards."""
        return -(-self.height // self.shard), -(-self.width // self.shard)

    @property
    def index_bytes(self) -> int:
        """Length of a shard's index with its checksum."""
        return 16 * self.tiles_per_shard**2 + 4


def shard_path(root: Path, level: int, row: int, column: int) -> Path:
    """Return the file of one shard (default chunk keys, separator ``/``)."""
    return root / str(level) / "c" / "0" / str(row) / str(column)


def array_metadata(layout: LevelLayout) -> dict[str, Any]:
    """Return the ``zarr.json`` of one level."""
    inner = [
        {"name": "transpose", "configuration": {"order": [1, 2, 0]}},
        {"name": "bytes"},
        {"name": "blosc", "configuration": dict(_BLOSC)},
        {"name": "crc32c"},
    ]
    sharding = {
        "chunk_shape": [3, layout.tile, layout.tile],
        "codecs": inner,
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [3, layout.height, layout.width],
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [3, layout.shard, layout.shard]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": WHITE,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
        "dimension_names": ["c", "y", "x"],
        "storage_transformers": [],
    }


def group_metadata(name: str, mpp: float, levels: int, extra: dict[str, Any]) -> dict[str, Any]:
    """Return the ``zarr.json`` of the group: OME multiscales in micrometres, and ``nuclass`` with ``extra``.

    The translation puts the centre of each level's first pixel where it lies on level 0. The scale by 1 over all
    levels changes nothing; spatialdata, which looks at no other transformation, opens no image without it, and
    takes the image in px of level 0.
    """
    datasets = []
    for level in range(levels):
        step = 2**level
        shift = (step - 1) / 2 * mpp
        transforms: list[dict[str, Any]] = [{"type": "scale", "scale": [1.0, mpp * step, mpp * step]}]
        if level:
            transforms.append({"type": "translation", "translation": [0.0, shift, shift]})
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    axes = [
        {"name": "c", "type": "channel"},
        {"name": "y", "type": "space", "unit": "micrometer"},
        {"name": "x", "type": "space", "unit": "micrometer"},
    ]
    unit = {
        "type": "scale",
        "scale": [1.0, 1.0, 1.0],
        "input": {"name": "cyx", "axes": axes},
        "output": {"name": "global", "axes": axes},
    }
    multiscale = {
        "name": name,
        "axes": axes,
        "datasets": datasets,
        "coordinateTransformations": [unit],
        "type": "mean",
    }
    window = {"min": 0, "max": 255, "start": 0, "end": 255}
    channels = [
        {"label": label, "color": color, "active": True, "window": window}
        for label, color in (("red", "FF0000"), ("green", "00FF00"), ("blue", "0000FF"))
    ]
    ome = {
        "version": "0.5",
        "multiscales": [multiscale],
        "omero": {"channels": channels, "rdefs": {"model": "color"}},
    }
    return {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome, "nuclass": extra}}


def parse_layout(metadata: dict[str, Any], where: Path) -> LevelLayout:
    """Read a level's layout from its ``zarr.json``; anything but this module's own codecs is refused."""
    try:
        (sharding,) = metadata["codecs"]
        configuration = sharding["configuration"]
        channels, height, width = metadata["shape"]
        tile = configuration["chunk_shape"][2]
        shard = metadata["chunk_grid"]["configuration"]["chunk_shape"][2]
        layout = LevelLayout(height, width, tile, shard)
        known = (
            channels == 3
            and metadata["data_type"] == "uint8"
            and configuration["index_location"] == "end"
            and [codec["name"] for codec in configuration["codecs"]] == _CODECS
            and configuration["codecs"][0]["configuration"]["order"] == [1, 2, 0]
        )
    except (KeyError, ValueError, TypeError, IndexError):
        known = False
    if not known:
        raise UserError(
            "This Zarr array is not a level of a slide store",
            where=where,
            expected="uint8, axes c y x, sharded tiles of blosc and crc32c, as this version writes them",
            fix="build the slide again",
        )
    return layout


def encode_tile(tile: Image) -> tuple[Any, ...] | None:
    """Return the bytes of one tile ``(side, side, 3)`` in parts; None for one that is all white."""
    if int(tile.min()) == WHITE:
        return None
    data = np.ascontiguousarray(tile).reshape(len(tile), -1)
    if _entropy(data[:: max(len(data) // 4, 1)]) < _TRY_BELOW_BITS:
        packed = _compressed(data)
        if len(packed) <= _WORTH_IT * data.nbytes:
            return packed, _crc(packed)
    size = data.nbytes
    header = struct.pack("<4B3I", 2, 1, _PLAIN_FLAG, 1, size, size, size + _HEADER)
    pixels = data.reshape(-1)
    pixels.flags.writeable = False
    return header, pixels.data, _crc(header, pixels)


def decode_tile(data: bytes, side: int) -> Image:
    """Return one tile ``(side, side, 3)``, read-only. ``ValueError`` if the bytes are not what was written."""
    body = np.frombuffer(data, np.uint8)
    if len(data) < _HEADER + _CHECK or _crc(body[:-_CHECK]) != data[-_CHECK:]:
        raise ValueError("a tile whose checksum is wrong")
    size = side * side * 3
    if int.from_bytes(data[4:8], "little") != size:
        raise ValueError(f"a tile of {int.from_bytes(data[4:8], 'little')} bytes instead of {size}")
    if data[2] & _PLAIN_FLAG:
        pixels = body[_HEADER : _HEADER + size]
    else:
        pixels = np.frombuffer(imagecodecs.blosc_decode(data[:-_CHECK], numthreads=1, out=size), np.uint8)
    return pixels.reshape(side, side, 3)


def _entropy(data: Image) -> float:
    counts = np.bincount(data.reshape(-1), minlength=256)
    share = counts[counts > 0] / data.size
    return float(-(share * np.log2(share)).sum())


def _compressed(data: Image) -> bytes:
    encode: Any = imagecodecs.blosc_encode
    return bytes(encode(data, level=_ZSTD_LEVEL, compressor="zstd", shuffle=0, typesize=1, blocksize=0, numthreads=1))


def _crc(*parts: bytes | Image) -> bytes:
    from google_crc32c import extend

    check = 0
    for part in parts:
        check = extend(check, part)  # type: ignore[arg-type]
    return check.to_bytes(4, "little")


def encode_index(index: NDArray[np.uint64]) -> bytes:
    """Return a shard's index ``(rows, columns, 2)`` as bytes, little-endian, with its CRC-32C."""
    data = np.ascontiguousarray(index, dtype="<u8").tobytes()
    return data + _crc(data)


def decode_index(data: bytes, layout: LevelLayout, where: Path) -> NDArray[np.uint64]:
    """Return a shard's index ``(tiles, tiles, 2)`` from its last bytes; a wrong checksum is an error."""
    body, check = data[:-_CHECK], data[-_CHECK:]
    if len(data) != layout.index_bytes or _crc(body) != check:
        raise UserError(
            "A file of the slide store is damaged",
            where=where,
            found="an index whose checksum is wrong",
            fix="build the slide again",
        )
    n = layout.tiles_per_shard
    return np.frombuffer(body, dtype="<u8").reshape(n, n, 2)
