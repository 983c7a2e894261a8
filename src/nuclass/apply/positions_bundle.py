"""Read the nuclei of a Xenium run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nuclass.apply.positions_found import Found, Outlines, counted, offsets_of, unique_ids
from nuclass.apply.positions_frames import aligned_frames, aligned_scale
from nuclass.core.bundle_source import EXPERIMENT, NEEDED, BundleSource, find_alignment, locate_bundle, source_folders
from nuclass.core.errors import UserError
from nuclass.core.own_cells import XENIUM_UM

if TYPE_CHECKING:
    from nuclass.slides.geometry import Frames

_TABLES = tuple(group for group in NEEDED if not group[0].startswith("cell_feature_matrix"))


def read_run(
    path: Path, *, alignment: Path | str | None, mpp_he: float, he_shape: tuple[int, int]
) -> tuple[Found, Frames]:
    """Read the nuclei of a Xenium run, and the frames that lead them to the H&E.

    A cell lies at the centroid of its nucleus, of its largest where it has several, or at its own where it has none.

    Parameters
    ----------
    path
        The output folder, its experiment.xenium, or an outs.zip, of which only the tables of cells and nuclei are
        unpacked, into a folder that goes again.
    alignment
        See :func:`nuclass.apply.positions_frames.aligned_frames`; None takes the one that lies beside the run.
    mpp_he, he_shape
        Of the H&E.

    Raises
    ------
    UserError
        The run or its alignment is missing, damaged, or of another image.
    """
    from nuclass.xenium.reader import read_bundle

    source = locate_bundle(path)
    notes: list[str] = []
    if alignment is None:
        alignment = _beside(source, path)
        if alignment is not None:
            notes.append(f"alignment {alignment.name} found beside the run")
    with _tables(source) as folder:
        bundle = read_bundle(folder)
        frames, more = aligned_frames(
            alignment, mpp_he=mpp_he, he_shape=he_shape, pixel_size=bundle.pixel_size, where=path
        )
        notes += more
        cells = bundle.cells()
        outlines = _outlines(bundle.boundaries("nucleus"), cells["cell_id"])
    nucleus = cells[["nucleus_x_um", "nucleus_y_um"]].to_numpy(np.float64)
    own = cells[["x_centroid", "y_centroid"]].to_numpy(np.float64)
    without = np.isnan(nucleus).any(axis=1)
    if without.any():
        notes.append(f"{counted(int(without.sum()), 'cell')} without a nucleus at the centroid of the cell")
    xy = np.where(without[:, None], own, nucleus)
    ids = unique_ids(cells["cell_id"].to_list())
    what = f"{counted(len(xy), 'cell')} of a Xenium run ({bundle.version or 'version not stated'})"
    return Found(xy, ids, what, XENIUM_UM, outlines, notes), frames


def scale_of_run(path: Path, *, alignment: Path | str | None, he_shape: tuple[int, int]) -> float | None:
    """Return micrometres per H&E px by the alignment of a Xenium run; None, with a warning, where it does not tell.

    Parameters
    ----------
    path, alignment
        See :func:`read_run`; of the run only experiment.xenium is read, which has the size of a morphology px.
    he_shape
        Of the H&E: (height, width) in px.

    Raises
    ------
    UserError
        The run or its alignment is missing or damaged.
    """
    from nuclass.xenium.reader import read_bundle

    source = locate_bundle(path)
    if alignment is None:
        alignment = _beside(source, path)
    with _tables(source, ()) as folder:
        pixel_size = read_bundle(folder).pixel_size
    return aligned_scale(alignment, he_shape=he_shape, pixel_size=pixel_size, where=path)


def _beside(source: BundleSource, path: Path) -> Path | None:
    """Return the alignment that lies beside a run, None where there is none."""
    folders, stem = source_folders(source, path)
    return find_alignment(None, folders, stem)


@contextmanager
def _tables(source: BundleSource, groups: Sequence[tuple[str, ...]] = _TABLES) -> Iterator[Path]:
    """Give the folder of a run, or one with what is needed of a zip: experiment.xenium, and one file of each group."""
    if not source.is_zip:
        yield source.path
        return
    from nuclass.xenium.remote_zip import extract, open_zip

    with TemporaryDirectory(prefix="nuclass-") as folder, open_zip(source.path) as archive:
        present = [next((name for name in group if name in source.names), None) for group in groups]
        wanted = (EXPERIMENT, *(name for name in present if name is not None))
        _check_room(Path(folder), sum(archive.getinfo(source.prefix + name).file_size for name in wanted), source.path)
        for name in wanted:
            try:
                extract(archive, source.prefix + name, Path(folder) / name, source.path)
            except OSError as error:
                raise UserError("A zip cannot be unpacked", where=source.path, found=str(error)) from error
        yield Path(folder)


def _check_room(folder: Path, need: int, file: Path) -> None:
    """Raise where a folder has less room than ``need`` bytes, those of a zip's tables."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            "There is no room to unpack the tables of a zip",
            where=folder.parent,
            found=f"{need / 1e6:,.1f} MB are needed of {file}, {free / 1e6:,.1f} MB are free",
            fix="set TMPDIR to a folder with more room, or unpack the zip yourself and give its folder",
        )


def _outlines(vertices: pd.DataFrame, cell_id: pd.Series[str]) -> Outlines | None:
    """Return the largest nucleus outline of each cell in the order of ``cell_id``; None where there is none at all."""
    from nuclass.xenium.polygons import closed_rings, crosses_itself, outline_starts, ragged_area_and_centroid

    if vertices.empty:
        return None
    x, y = (vertices[name].to_numpy(np.float64) for name in ("vertex_x", "vertex_y"))
    start = outline_starts(vertices)
    length = np.diff(np.append(start, len(x)))
    simple = np.ones(len(start), bool)
    owner = pd.Series(np.arange(len(cell_id)), index=cell_id.to_numpy())
    if "label_id" not in vertices:
        start, length = closed_rings(x, y, start)
        simple = ~crosses_itself(x, y, start, length)
    rows = _rows(start, length)
    area, _, _ = ragged_area_and_centroid(x[rows], y[rows], offsets_of(length)[:-1])
    rings = pd.DataFrame({"start": start, "length": length, "area": area})
    rings["cell"] = owner.reindex(vertices["cell_id"].iloc[start].astype(str)).to_numpy(np.float64)
    bad = set(rings.loc[~simple, "cell"])
    rings = rings[(rings["area"] > 0) & rings["cell"].notna() & ~rings["cell"].isin(bad)]
    largest = rings.sort_values("area", kind="stable").drop_duplicates("cell", keep="last").sort_values("cell")
    if largest.empty:
        return None
    start, length = largest["start"].to_numpy(np.int64), largest["length"].to_numpy(np.int64)
    rows = _rows(start, length)
    x, y, first = x[rows], y[rows], offsets_of(length)[:-1]
    # A ring ends where it began, and is filled up with that vertex; none is kept twice.
    following = np.arange(1, len(x) + 1)
    following[first + length - 1] = first
    keep = (x != x[following]) | (y != y[following])
    lengths = np.zeros(len(cell_id), np.int64)
    lengths[largest["cell"].to_numpy(np.int64)] = np.add.reduceat(keep, first, dtype=np.int64)
    return Outlines(np.stack([x[keep], y[keep]], axis=1), offsets_of(lengths))


def _rows(start: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of rings, one after the other, from their first rows and lengths."""
    return np.repeat(start - offsets_of(length)[:-1], length) + np.arange(length.sum())
