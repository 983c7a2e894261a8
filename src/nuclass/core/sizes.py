"""How large slides are, as far as it can be told before they are fetched: cells, px, and what that rests on."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nuclass.core.bundle_source import EXPERIMENT, find_he, locate_bundle, source_folders
from nuclass.core.errors import UserError
from nuclass.core.own_files import own_file
from nuclass.core.patch_rows import PATCHES, find_patches
from nuclass.core.sheets import read_table

DATASETS = Path("resources/datasets.tsv")
BUNDLES = "resources/bundles"
MPP_UNKNOWN = 0.2738
"""Scale of an H&E whose own is not known, um/px: that of most public 10x images."""


@dataclass(frozen=True)
class Estimate:
    """A number that is not known yet: what is expected, and from where to where it may lie."""

    low: float
    expected: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Estimate:
        """Return a number that is known."""
        return cls(value, value, value)

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def __mul__(self, other: Estimate | float) -> Estimate:
        by = other if isinstance(other, Estimate) else Estimate.exactly(other)
        return Estimate(self.low * by.low, self.expected * by.expected, self.high * by.high)

    __rmul__ = __mul__

    def left(self, done: float) -> Estimate:
        """Return what is left of it after ``done``; never less than nothing."""
        return Estimate(*(max(value - done, 0.0) for value in (self.low, self.expected, self.high)))


NOTHING = Estimate.exactly(0.0)
# Of the 16 public datasets in resources/datasets.tsv that tell their cells: 26,366 to 892,966, median 177,000; of the
# 13 that tell their H&E too: 2,321 to 11,877 px (of 0.25 um) a cell, median 3,940.
CELLS_UNKNOWN = Estimate(26_000, 177_000, 893_000)
PX_A_CELL = Estimate(2_300, 3_900, 12_000)
# Measured on the demo's eight slides, training slides and cohorts.
SYNTHETIC_CELLS = {"train": Estimate(2_000, 2_055, 2_120), "cohort": Estimate(1_900, 1_960, 2_020)}
SYNTHETIC_MPX = {"train": Estimate(21.5, 22.9, 24.5), "cohort": Estimate(19.5, 20.5, 21.5)}


def total(parts: Iterable[Estimate]) -> Estimate:
    """Return the sum: lowest with lowest, highest with highest, as if all erred to the same side."""
    found = NOTHING
    for part in parts:
        found = found + part
    return found


@dataclass(frozen=True)
class SlideSize:
    """How large a slide is.

    Attributes
    ----------
    cells
        Cells of its output, before any is left out.
    mpx
        Million px of the H&E at the study's scale, on the rectangle of the whole picture.
    rests_on
        Where both numbers come from, in words.
    known
        Whether neither is a mere assumption.
    """

    slide: str
    organ: str
    role: str
    source: str
    cells: Estimate
    mpx: Estimate
    rests_on: str
    known: bool = True


def slide_sizes(
    rows: Mapping[str, Mapping[str, Any]], mpp: float, windows: Mapping[str, int], root: str | Path = "."
) -> dict[str, SlideSize]:
    """Return how large each slide is.

    What the study has made counts first, then the fetched bundle or the files the sheet names, then the table of
    public datasets; what none of them tells is assumed, and said to be.

    Parameters
    ----------
    rows
        Slide -> its row of the sheet: ``organ role source dataset path he``.
    mpp
        Micrometres per pixel of the study.
    windows
        Sides of the windows, which name the files of slides that come as patches.
    root
        The folder of the study.
    """
    facts = read_facts(own_file(DATASETS, root))
    return {slide: _size(slide, row, mpp, windows, Path(root), facts) for slide, row in rows.items()}


def _size(
    slide: str, row: Mapping[str, Any], mpp: float, windows: Mapping[str, int], root: Path, facts: Mapping[str, str]
) -> SlideSize:
    fact = facts.get(str(row.get("dataset") or ""), "")
    cells, told = _cells(slide, row, windows, root, fact)
    mpx, told_px = _mpx(slide, row, mpp, root, fact)
    known = cells is not None and mpx is not None
    if cells is None:
        cells, told = CELLS_UNKNOWN, "assumed, as nothing tells them"
    if mpx is None:
        mpx = NOTHING if row["source"] == PATCHES else cells * PX_A_CELL * 1e-6
        told_px = "none, windows come as files" if row["source"] == PATCHES else "assumed by the cells"
        known = known or row["source"] == PATCHES
    rests_on = told if told == told_px else f"cells {told}; px {told_px}"
    return SlideSize(slide, str(row["organ"]), str(row["role"]), str(row["source"]), cells, mpx, rests_on, known)


def _written_role(row: Mapping[str, Any]) -> str:
    """Return the role in the sheet, which makes a synthetic slide large or small also where it is held out."""
    return "cohort" if str(row.get("sheet_role") or row["role"]) == "cohort" else "train"


def is_of(slide: str, row: Mapping[str, Any], root: Path) -> bool:
    """Return whether what lies here under a slide's name comes from where its row says, and not from another study."""
    inventory = root / BUNDLES / slide / "bundle.json"
    try:
        found = json.loads(inventory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return row["source"] in (PATCHES, "local")
    return bool(found.get("source") == (row["dataset"] if row["source"] == "dataset" else row["source"]))


def _cells(
    slide: str, row: Mapping[str, Any], windows: Mapping[str, int], root: Path, fact: str
) -> tuple[Estimate | None, str]:
    for table, told in (
        (root / f"results/slides/{slide}/cells.parquet", "of its table of cells"),
        (root / BUNDLES / slide / "cells.parquet", "of the fetched bundle"),
    ):
        rows = parquet_rows(table) if is_of(slide, row, root) else None
        if rows is not None:
            return Estimate.exactly(rows), told
    if row["source"] == "synthetic":
        return SYNTHETIC_CELLS[_written_role(row)], "of the demo's slides"
    if row["source"] == PATCHES:
        return _patches(root / str(row["path"]), windows), "by the size of annotations.json"
    stated = _stated_cells(root / str(row["path"])) if row.get("path") else None
    if stated is not None:
        return Estimate.exactly(stated), "of experiment.xenium"
    number = re.search(r"([\d,]+) cells", fact)
    if number:
        cells = float(number[1].replace(",", ""))
        about = 0.05 if f"about {number[0]}" in fact else 0.0
        return Estimate(cells * (1 - about), cells, cells * (1 + about)), "of resources/datasets.tsv"
    return None, ""


def _mpx(slide: str, row: Mapping[str, Any], mpp: float, root: Path, fact: str) -> tuple[Estimate | None, str]:
    transform = root / f"results/slides/{slide}/transform.json"
    if transform.is_file() and is_of(slide, row, root):
        told = json.loads(transform.read_text(encoding="utf-8"))
        height, width = told["he_shape"][:2]
        return Estimate.exactly(height * width * (told["mpp_he"] / mpp) ** 2 / 1e6), "of its alignment"
    if row["source"] == "synthetic":
        return SYNTHETIC_MPX[_written_role(row)] * (0.25 / mpp) ** 2, "of the demo's slides"
    if row["source"] == PATCHES:
        return None, ""
    picture = _he(slide, row, root)
    shape = tiff_shape(picture) if picture else None
    if shape is not None:
        px = shape[0] * shape[1] / 1e6
        # 40x and 20x scans and what lies between: 0.2125 to 0.37 um/px.
        return Estimate(*(px * (scale / mpp) ** 2 for scale in (0.2125, MPP_UNKNOWN, 0.37))), "of the H&E's header"
    size = re.search(r"(\d+)x(\d+) px", fact)
    scale = re.findall(r"([\d.]+) um/px", fact) or re.findall(r"px at ([\d.]+)", fact)
    if size:
        at = float(scale[-1]) if scale else MPP_UNKNOWN
        return Estimate.exactly(int(size[1]) * int(size[2]) * (at / mpp) ** 2 / 1e6), "of resources/datasets.tsv"
    return None, ""


def read_facts(file: Path) -> dict[str, str]:
    """Return what the table of datasets says of each in its column ``facts``; nothing without the table."""
    return {row["dataset"]: row.get("facts", "") for row in read_table(file)}


def parquet_rows(file: Path) -> int | None:
    """Return how many rows a Parquet file has, by its end alone; None where it cannot be read."""
    if not file.is_file():
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with file.open("rb") as stream:
            return int(pq.read_metadata(stream).num_rows)
    except (OSError, pa.ArrowException):
        return None


def tiff_shape(file: Path) -> tuple[int, int] | None:
    """Return height and width of a picture in px, by its header alone; None where it cannot be read."""
    import tifffile

    try:
        with tifffile.TiffFile(file) as tiff:
            page = tiff.series[0].levels[0].keyframe
            return int(page.imagelength), int(page.imagewidth)
    except (OSError, ValueError, IndexError, TypeError, ZeroDivisionError, tifffile.TiffFileError):
        return None


def _he(slide: str, row: Mapping[str, Any], root: Path) -> Path | None:
    """Return the H&E of a slide on this disk: the fetched one, the one of the sheet, one beside the output."""
    fetched = sorted((root / BUNDLES / slide).glob("*_he_*image.ome.tif"))
    if fetched and is_of(slide, row, root):
        return fetched[0]
    if row.get("he"):
        return root / str(row["he"]) if (root / str(row["he"])).is_file() else None
    if not row.get("path"):
        return None
    try:
        return find_he(*source_folders(locate_bundle(root / str(row["path"])), root / str(row["path"])))
    except (UserError, OSError):
        return None


def _stated_cells(path: Path) -> int | None:
    """Return the number of cells that experiment.xenium states, of a folder or a zip."""
    try:
        source = locate_bundle(path)
        if source.is_zip:
            with zipfile.ZipFile(source.path) as archive:
                text = archive.read(f"{source.prefix}{EXPERIMENT}").decode("utf-8")
        else:
            text = (source.path / EXPERIMENT).read_text(encoding="utf-8")
        stated = json.loads(text).get("num_cells")
    except (UserError, OSError, ValueError, KeyError):
        return None
    return int(stated) if isinstance(stated, int | float) and stated > 0 else None


def _patches(folder: Path, windows: Mapping[str, int]) -> Estimate | None:
    """Return about how many cells files of windows hold: a record of annotations.json takes 150 to 400 bytes."""
    try:
        files = find_patches(folder, windows).files.values()
        size = sum(part["annotations"].stat().st_size for part in files)
    except (UserError, OSError):
        return None
    return Estimate(size / 400, size / 250, size / 150)


def folder_bytes(folder: str | Path) -> float:
    """Return how many bytes the files below a folder have, links not followed; nothing where there is none."""
    size, stack = 0, [os.fspath(folder)]
    while stack:
        try:
            with os.scandir(stack.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
                    else:
                        size += entry.stat(follow_symlinks=False).st_size
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
    return float(size)
