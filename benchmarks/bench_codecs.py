"""Codecs for the tiles of the slide store: size, speed of encoding, windows a second, on one core.

    python benchmarks/bench_codecs.py he.jpg [slide.ome.tif ...] [--mpp 0.2738] [--repeats 5]

Each image is resampled to 0.25 um/px as the store does and cut into tiles of 256 px. All-white tiles are left
out, as in the store. Windows lie at random, each decodes every tile it touches (no cache), the encoded tiles are
in memory. Only codecs that stand in the Zarr v3 specification, besides JPEG and JPEG XL for comparison. CPU
time, so that other work on the machine counts little; medians of the repeats. Prints a Markdown table an image.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

import imagecodecs
import numpy as np

from nuclass.slides.geometry import Frames
from nuclass.slides.resample import resampled
from nuclass.slides.source import open_source
from nuclass.slides.zarr_format import decode_tile, encode_tile

TILE = 256
SHAPE = (TILE, TILE, 3)
BYTES = TILE * TILE * 3
Codec = tuple[Callable[[np.ndarray], Any], Callable[[Any], np.ndarray]]


def as_tile(data: Any) -> np.ndarray:
    return np.frombuffer(data, np.uint8).reshape(SHAPE)


def blosc(name: str, level: int, shuffle: str, typesize: int) -> Codec:
    number = {"none": 0, "byte": 1, "bit": 2}[shuffle]

    def encode(tile: np.ndarray) -> Any:
        return imagecodecs.blosc_encode(
            tile, level=level, compressor=name, shuffle=number, typesize=typesize, numthreads=1
        )

    return encode, lambda data: as_tile(imagecodecs.blosc_decode(data, numthreads=1, out=BYTES))


def zstd(level: int) -> Codec:
    return (
        lambda tile: imagecodecs.zstd_encode(tile, level=level),
        lambda data: as_tile(imagecodecs.zstd_decode(data, out=BYTES)),
    )


def store() -> Codec:
    def encode(tile: np.ndarray) -> bytes:
        return b"".join(map(bytes, encode_tile(tile) or ()))

    return encode, lambda data: decode_tile(data, TILE)


CODECS: dict[str, Codec] = {
    "the store: blosc, zstd 1 or plain by tile, crc32c": store(),
    "none": (lambda tile: tile.tobytes(), as_tile),
    "zstd 1": zstd(1),
    "zstd 3": zstd(3),
    "blosc lz4 1, no shuffle": blosc("lz4", 1, "none", 1),
    "blosc lz4 1, shuffle by 3": blosc("lz4", 1, "byte", 3),
    "blosc lz4 1, bitshuffle": blosc("lz4", 1, "bit", 1),
    "blosc lz4 5, bitshuffle": blosc("lz4", 5, "bit", 1),
    "blosc zstd 1, shuffle by 3": blosc("zstd", 1, "byte", 3),
    "blosc zstd 1, bitshuffle": blosc("zstd", 1, "bit", 1),
    "blosc zstd 3, bitshuffle": blosc("zstd", 3, "bit", 1),
    "gzip 1": (
        lambda tile: imagecodecs.zlib_encode(tile, level=1),
        lambda data: as_tile(imagecodecs.zlib_decode(data, out=BYTES)),
    ),
    "(JPEG 95, lossy, not in Zarr v3)": (
        lambda tile: imagecodecs.jpeg_encode(tile, level=95),
        lambda data: imagecodecs.jpeg_decode(data),
    ),
    "(JPEG XL lossless, not in Zarr v3)": (
        lambda tile: imagecodecs.jpegxl_encode(tile, lossless=True, effort=1),
        lambda data: imagecodecs.jpegxl_decode(data),
    ),
}


def tiles_of(path: Path, mpp: float, most: int) -> dict[tuple[int, int], np.ndarray]:
    """Return the tiles of the store by row and column, those that are all white left out, at most ``most`` px high."""
    found = {}
    with open_source(path) as source:
        frames = Frames(np.eye(3), mpp, 0.25)
        height, width = frames.store_shape(source.shape)
        for row in range(min(height, most) // TILE):
            for column in range(width // TILE):
                tile = resampled(source, frames.scale, (height, width), (column * TILE, row * TILE, TILE, TILE))
                if tile.min() < 255:
                    found[row, column] = np.ascontiguousarray(tile)
    return found


def windows_a_second(tiles: dict[tuple[int, int], Any], decode: Callable[[Any], np.ndarray], size: int) -> float:
    rows, columns = (max(place[axis] for place in tiles) + 1 for axis in (0, 1))
    if min(rows, columns) * TILE <= size:
        return float("nan")
    rng = np.random.default_rng(0)
    count = max(40 * 224 // size, 8)
    corners = rng.integers(0, [rows * TILE - size, columns * TILE - size], (count, 2)).tolist()
    out = np.empty((size, size, 3), np.uint8)
    start = time.process_time()
    for y0, x0 in corners:
        for row in range(y0 // TILE, (y0 + size - 1) // TILE + 1):
            for column in range(x0 // TILE, (x0 + size - 1) // TILE + 1):
                y, x = row * TILE, column * TILE
                a, b, c, d = max(y, y0), min(y + TILE, y0 + size), max(x, x0), min(x + TILE, x0 + size)
                data = tiles.get((row, column))
                out[a - y0 : b - y0, c - x0 : d - x0] = (
                    255 if data is None else decode(data)[a - y : b - y, c - x : d - x]
                )
    return len(corners) / (time.process_time() - start)


def measure(tiles: dict[tuple[int, int], np.ndarray], codec: Codec, repeats: int) -> tuple[float, ...]:
    encode, decode = codec
    encoded: dict[tuple[int, int], Any] = {}
    speeds, small, large = [], [], []
    for _ in range(repeats):
        start = time.process_time()
        encoded = {place: encode(tile) for place, tile in tiles.items()}
        speeds.append(len(tiles) * BYTES / 1e6 / (time.process_time() - start))
        small.append(windows_a_second(encoded, decode, 224))
        large.append(windows_a_second(encoded, decode, 1024))
    share = sum(map(len, encoded.values())) / (len(tiles) * BYTES)
    return share, *(statistics.median(values) for values in (speeds, small, large))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--mpp", type=float, default=0.2738, help="um per px of the images")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=4096, help="px of height looked at, at most")
    options = parser.parse_args()
    for path in options.images:
        tiles = tiles_of(path, options.mpp, options.rows)
        print(f"\n{path.name}: {len(tiles)} tiles with tissue or glass\n")
        print("| codec | size, of raw | encode MB/s | windows/s, 224 px | windows/s, 1024 px |\n|---|---|---|---|---|")
        for name, codec in CODECS.items():
            share, speed, small, large = measure(tiles, codec, options.repeats)
            print(f"| {name} | {share:.3f} | {speed:,.0f} | {small:,.0f} | {large:,.0f} |")


if __name__ == "__main__":
    main()
