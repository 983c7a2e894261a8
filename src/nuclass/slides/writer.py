"""Write a slide store from an H&E on all cores, in memory that does not grow with the slide."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path
from nuclass.core.progress import Progress
from nuclass.slides.geometry import Frames
from nuclass.slides.glass import glass
from nuclass.slides.pyramid import PyramidWriter
from nuclass.slides.resample import Box, Resampler, kernels
from nuclass.slides.source import open_source
from nuclass.slides.store import SlideStore
from nuclass.slides.tiles import Image, SourceLevel, side_by_side
from nuclass.slides.zarr_format import LevelLayout, group_metadata

# Decoded blocks that a stripe keeps for the rows below are about this many bytes.
_STRIPE_BYTES = 64_000_000
_OVERVIEW_PX = 1024
_SOME_GLASS = 0.002


def write_store(
    he: str | Path,
    frames: Frames,
    out: str | Path,
    *,
    tile: int = 256,
    shard: int = 2048,
    levels: int = 4,
    threads: int = 1,
) -> dict[str, Any]:
    """Resample an H&E to ``frames.mpp_target`` and write it as ``he.ome.zarr``, atomically.

    The pixels do not depend on ``threads``. Returns the attributes kept in the store: ``mpp``, ``source`` (file
    name), ``mpp_he``, ``scale`` (store px per H&E px), ``he_shape``, ``store_shape`` (height, width),
    ``embedded_mpp`` (what the file says of itself), ``background_rgb`` (colour of the empty glass, None if none
    was found) and ``tissue_fraction``; with ``frames.inverted_mpp`` also ``protocol`` and ``mpp_true``, the um a px of
    the store really has.
    """
    if tile % 2 or shard % tile:
        raise UserError(
            "The tiles do not fit the shards",
            where="config, slide_store",
            found=f"tile {tile}, shard {shard}",
            expected="an even tile, and a shard that is a multiple of it",
        )
    with open_source(he) as source:
        height, width = frames.store_shape(source.shape)
        info: dict[str, Any] = {
            "mpp": frames.mpp_target,
            "source": source.path.name,
            "mpp_he": frames.mpp_he,
            "scale": frames.scale,
            "he_shape": list(source.shape),
            "store_shape": [height, width],
            "embedded_mpp": source.embedded_mpp,
            **({"protocol": ["inverted_mpp"], "mpp_true": frames.mpp_store} if frames.inverted_mpp else {}),
        }
        with atomic_path(out) as root:
            root.mkdir(parents=True)
            resampler = Resampler(source, frames.scale, (height, width))
            pyramid = PyramidWriter(root, (height, width), tile, shard, levels)
            try:
                _fill(pyramid, resampler, threads)
                pyramid.finish()
            finally:
                pyramid.close()
            _write_group(root, levels, info)
            with SlideStore(root, cache_mb=16) as store:
                info.update(look_of(store.thumbnail(_OVERVIEW_PX)))
            _write_group(root, levels, info)
    return info


def look_of(overview: Image) -> dict[str, Any]:
    """Return ``background_rgb`` and ``tissue_fraction`` of a small image of the slide ``(h, w, 3)``.

    The background is the median of the glass, None where less than 0.2 % of the slide is; tissue is what is no glass.
    """
    empty = glass(overview)
    share = float(empty.mean())
    background = np.median(overview[empty], axis=0) if share > _SOME_GLASS else None
    return {
        "background_rgb": None if background is None else [round(value) for value in background.tolist()],
        "tissue_fraction": round(1 - share, 4),
    }


def _write_group(root: Path, levels: int, info: dict[str, Any]) -> None:
    metadata = group_metadata(info["source"], info["mpp"], levels, info)
    (root / "zarr.json").write_text(json.dumps(metadata, indent=2), encoding="utf-8")


class _Piece(NamedTuple):
    """One piece of level 0 to make: its place in the pyramid, its box, and the blocks of its stripe."""

    row: int
    column: int
    box: Box
    blocks: _StripeBlocks


def _fill(pyramid: PyramidWriter, resampler: Resampler, threads: int) -> None:
    """Decode, resample and encode pieces side by side, a few ahead of the oldest that is not done."""

    def make(piece: _Piece) -> None:
        needed = resampler.needs(piece.box)
        pixels = piece.blocks.region(needed)
        pyramid.add(piece.row, piece.column, resampler.make(piece.box, pixels))

    kernels()
    layout = pyramid.layouts[0]
    with Progress(layout.tile_grid[0] * layout.shard_grid[1], "H&E to store", "pieces") as progress:
        for _ in side_by_side(make, _pieces(pyramid, resampler), threads):
            progress.advance()


def _pieces(pyramid: PyramidWriter, resampler: Resampler) -> Iterator[_Piece]:
    """Yield the pieces of level 0, stripe after stripe, each from top to bottom."""
    layout = pyramid.layouts[0]
    rows, columns = layout.tile_grid[0], layout.shard_grid[1]
    wide = _stripe_shards(resampler, layout.shard, columns)
    for start in range(0, columns, wide):
        stripe = range(start, min(start + wide, columns))
        blocks = _StripeBlocks(
            resampler.level,
            [resampler.needs(_box(layout, row, start)) for row in range(rows)],
            [resampler.needs(_box(layout, 0, column)) for column in stripe],
        )
        yield from (_Piece(row, column, _box(layout, row, column), blocks) for row in range(rows) for column in stripe)


def _box(layout: LevelLayout, row: int, column: int) -> Box:
    x0, y0 = column * layout.shard, row * layout.tile
    return Box(x0, y0, min(layout.shard, layout.width - x0), min(layout.tile, layout.height - y0))


def _stripe_shards(resampler: Resampler, shard: int, columns: int) -> int:
    """Return how many shards wide a stripe is.

    As wide as the memory for a row of its blocks allows, since blocks on the edge of two stripes are decoded
    twice. Strips go across the whole image; to cut them would decode each one for every stripe.
    """
    high, wide = resampler.level.blocks.block
    if wide >= resampler.level.width:
        return columns
    return max(int(_STRIPE_BYTES / (high * 3 * shard * resampler.step)), 1)


class _StripeBlocks:
    """The blocks of a level that the pieces of one stripe share: decoded once, dropped after their last use."""

    def __init__(self, level: SourceLevel, rows: list[Box], columns: list[Box]) -> None:
        self._level = level
        self._lock = Lock()
        self._blocks: dict[tuple[int, int], Future[Image | None]] = {}
        self._left: dict[tuple[int, int], int] = {}
        # A piece needs the product of its rows and columns of blocks, so two counts tell all uses.
        self._rows = Counter(row for box in rows for row in level.covering(box.y0, box.y0 + box.height, 0))
        self._columns = Counter(c for box in columns for c in level.covering(box.x0, box.x0 + box.width, 1))

    def region(self, box: Box) -> Image:
        """Put one of the boxes together; each may be asked for once."""
        got: dict[tuple[int, int], Future[Image | None]] = {}
        for place in self._places(box):
            with self._lock:
                known = self._blocks.get(place)
                mine = known or self._blocks.setdefault(place, Future())
                if known is None:
                    self._left[place] = self._rows[place[0]] * self._columns[place[1]]
            got[place] = mine
            if known is None:
                self._decode(place, mine)
        # Only now wait for what other threads decode.
        blocks = {place: future.result() for place, future in got.items()}
        with self._lock:
            for place in blocks:
                self._left[place] -= 1
                if self._left[place] == 0:
                    del self._blocks[place], self._left[place]
        return self._level.paste(lambda row, column: blocks[row, column], *box)

    def _decode(self, place: tuple[int, int], future: Future[Image | None]) -> None:
        try:
            future.set_result(self._level.blocks.decode(*place))
        except BaseException as error:
            future.set_exception(error)
            raise

    def _places(self, box: Box) -> list[tuple[int, int]]:
        rows = self._level.covering(box.y0, box.y0 + box.height, 0)
        columns = self._level.covering(box.x0, box.x0 + box.width, 1)
        return [(row, column) for row in rows for column in columns]
