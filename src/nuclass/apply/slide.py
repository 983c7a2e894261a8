"""One's own slide: what its file says, its scale, and its store at the scale of the model."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import nuclass
from nuclass.core.errors import UserError
from nuclass.core.files import read_json, write_json
from nuclass.core.log import get_logger
from nuclass.core.own_cells import CROP, IMAGE, LARGEST_MPP
from nuclass.slides.geometry import Frames
from nuclass.slides.source import Bounds

_log = get_logger(__name__)
STORE, STATE = "he.ome.zarr", ".he.json"
GIVEN, FILE, ALIGNMENT = "given", "file", "alignment"

_BY = {GIVEN: "", FILE: ", as the file says", ALIGNMENT: ", by the alignment"}


@dataclass(frozen=True)
class OwnSlide:
    """An H&E image and its scale.

    Attributes
    ----------
    image
        The file, or the folder of an OME-Zarr.
    shape
        ``(height, width)`` of level 0, px.
    mpp
        Micrometres per H&E px.
    mpp_source
        ``given`` by the user, what the ``file`` says, or by the ``alignment`` of a Xenium run.
    embedded_mpp
        What the file says of itself, None where it says nothing.
    frames
        From H&E px to those of the store; its frame ``um`` is H&E px times ``mpp``.
    bounds
        The scanned part, H&E px, None where it begins in the corner of the image.
    embedded_aspect
        Height of a px over its width, as the file says.
    """

    image: Path
    shape: tuple[int, int]
    mpp: float
    mpp_source: str
    embedded_mpp: float | None
    frames: Frames
    bounds: Bounds | None = None
    embedded_aspect: float = 1.0

    @property
    def store_shape(self) -> tuple[int, int]:
        """``(height, width)`` of the store's level 0, px."""
        return self.frames.store_shape(self.shape)

    @property
    def state(self) -> dict[str, Any]:
        """What a store of this slide depends on."""
        return {
            "nuclass": nuclass.__version__,
            "image": file_states(self.image),
            "mpp_he": self.mpp,
            "mpp": self.frames.mpp_target,
        }

    def crop(self, origin: str | None) -> dict[str, Any] | None:
        """Return what the record says of a slide of which only a part was scanned, None of any other.

        The part, H&E px, and the corners that the positions of a file (``origin``, None where none was read by one)
        and the outputs count from.
        """
        if self.bounds is None:
            return None
        return {**self.bounds._asdict(), "positions": origin, "predictions.geojson": CROP, "others": IMAGE}


def open_slide(
    image: str | Path,
    mpp: float | None,
    mpp_model: float,
    aligned: Callable[[tuple[int, int]], float | None] = lambda _: None,
) -> OwnSlide:
    """Look at an H&E image: its size, and its scale as given, else as the file says, else by an alignment.

    Parameters
    ----------
    image
        Whatever :func:`nuclass.slides.source.open_source` opens.
    mpp
        Micrometres per px at full resolution, None where the file is to be believed.
    mpp_model
        Micrometres per px of the model's windows.
    aligned
        Returns micrometres per px by the alignment that the positions need, None where it does not tell or there is
        none, from (height, width) of the image, px. Asked only where neither the user nor the file says it.

    Raises
    ------
    UserError
        The image cannot be read, or its scale is not known or cannot be right.
    """
    from nuclass.slides.source import open_source

    file = Path(image)
    with open_source(file) as source:
        shape, embedded, bounds, aspect = source.shape, source.embedded_mpp, source.bounds, source.embedded_aspect
    by_alignment = aligned(shape) if mpp is None and embedded is None else None
    scale, told_by = _scale(file, mpp, embedded, by_alignment)
    frames = Frames(np.eye(3), scale, mpp_model, he_shape=shape)
    return OwnSlide(file, shape, scale, told_by, embedded, frames, bounds, aspect)


def _scale(file: Path, mpp: float | None, embedded: float | None, aligned: float | None) -> tuple[float, str]:
    """Return micrometres per px, by the user, else the file, else the alignment; and which of them told it."""
    told = ((mpp, GIVEN), (embedded, FILE), (aligned, ALIGNMENT))
    value, told_by = next(((value, name) for value, name in told if value is not None), (None, ""))
    if value is None:
        raise UserError(
            "The scale of the H&E is not known",
            where=file,
            found="no pixel size in the file",
            expected="micrometres per px at full resolution",
            fix="give it, such as --mpp 0.25: scans at 40x have about 0.25, at 20x about 0.5",
        )
    if not (math.isfinite(value) and 0 < value <= LARGEST_MPP):
        raise UserError(
            "The scale of the H&E cannot be right",
            where=f"--mpp for {file}" if told_by == GIVEN else file,
            found=f"{value:g} um/px{_BY[told_by]}",
            expected=f"micrometres per px at full resolution, above 0 and at most {LARGEST_MPP:g}",
            fix="give --mpp: scans at 40x have about 0.25, at 20x about 0.5",
        )
    if told_by == FILE:
        _log.warning(
            "%s: a px is taken as %g um, as the file says. Files are often wrong; give --mpp where you know better",
            file, value,
        )  # fmt: skip
    if told_by == ALIGNMENT:
        _log.info("%s: a px is taken as %.4g um, by the alignment; the file says nothing of it", file, value)
    return float(value), told_by


def file_states(image: Path) -> dict[str, list[int]]:
    """Return size and time of change of an image file; of an OME-Zarr those of its metadata."""
    from nuclass.patches.states import file_state
    from nuclass.slides.zarr_source import is_zarr, metadata_files

    files = metadata_files(image) if is_zarr(image) else [image]
    return {str(file.absolute()): list(file_state(file).values()) for file in files}


def build_store(slide: OwnSlide, out: Path, threads: int | None = None) -> Path:
    """Write the slide's store into ``out``, unless that of the same image and scale is there.

    Parameters
    ----------
    threads
        None takes all processors of this process.

    Raises
    ------
    UserError
        The image is the very store that would be written, or cannot be decoded.
    """
    from nuclass.slides.writer import write_store

    store, state = out / STORE, out / STATE
    if store.resolve() == slide.image.resolve():
        raise UserError(
            "The slide would be written over",
            where=slide.image,
            expected="a folder for the results other than that of the slide",
            fix="give another --out",
        )
    if (store / "zarr.json").is_file() and state.is_file() and read_json(state) == slide.state:
        _log.info("%s: the store of this image is there from an earlier run", store)
        return store
    state.unlink(missing_ok=True)
    _log.info(
        "%s: %d x %d px at %g um/px become %d x %d px at %g um/px",
        slide.image, slide.shape[1], slide.shape[0], slide.mpp,
        slide.store_shape[1], slide.store_shape[0], slide.frames.mpp_target,
    )  # fmt: skip
    write_store(slide.image, slide.frames, store, threads=threads or processors())
    write_json(state, slide.state)
    return store


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def name_of(image: Path) -> str:
    """Return a slide's name from its file: without folder and the suffixes of images."""
    name = image.resolve().name
    for suffix in (".ome.tiff", ".ome.tif", ".ome.zarr", ".zarr"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)] or name
    return image.resolve().stem or "slide"
