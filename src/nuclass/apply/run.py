"""Type the cells of one's own slide: an H&E image, positions of cells and a trained model to a folder of results."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import nuclass
from nuclass.apply.engine import Models, Options, cells_frame, predict_cells
from nuclass.apply.out_read import FACTS, LEFT_OUT, OUTLINES, TABLE, TYPED
from nuclass.apply.outputs import DEFAULT, NAMES, check_formats, write_outputs
from nuclass.apply.slide import FILE, STORE, OwnSlide, build_store, name_of, open_slide
from nuclass.core.alone import alone_in
from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path, read_json, write_json, write_parquet
from nuclass.core.jobs import code_of_job
from nuclass.core.leftovers import remove, temporary_name
from nuclass.core.log import get_logger
from nuclass.core.names import ABSTAINED, CELL_ID, GATE, GLOBAL, LOCAL, probability_columns
from nuclass.core.own_cells import DETECT, Given, Kind, check_reading

if TYPE_CHECKING:
    import pandas as pd

    from nuclass.apply.hints import Hint
    from nuclass.apply.positions import Outlines, Positions

__all__ = ["Options", "predict_own"]
_log = get_logger(__name__)
WORK, CELLS, LOCK = ".work", ".cells.npz", ".lock"
OFF_SLIDE, LOW_CONFIDENCE = "off_slide", "low_confidence"
MAX_OFF_SLIDE, ABSTAIN_BELOW = 0.5, 0.5


@dataclass(frozen=True)
class _Job:
    """All that a run is made of, read and checked."""

    name: str
    slide: OwnSlide
    positions: Positions
    models: Models
    organ: str
    organ_told: str | None
    abstain_below: float
    max_off_slide: float
    options: Options

    @property
    def xy_px(self) -> NDArray[np.float64]:
        """Places of the cells in the store, (N, 2) px."""
        return self.slide.frames.he_to_px(self.positions.xy)

    @property
    def key(self) -> str:
        """Hash of what the predictions depend on; device and batch change the last bits alone, and are left out."""
        digest = hashlib.sha256()
        told = (self.organ_told or "").strip().casefold()
        parts = [self.slide.state, self.models.hashes, self.organ, told, self.name, self.max_off_slide]
        run = [self.options.precision, self.positions.source]
        digest.update(json.dumps([*parts, *run], sort_keys=True).encode())
        digest.update("\0".join(map(str, self.positions.cell_id)).encode())
        digest.update(np.ascontiguousarray(self.positions.xy).tobytes())
        if self.positions.outlines is not None:
            digest.update(np.ascontiguousarray(self.positions.outlines.offsets).tobytes())
            digest.update(np.ascontiguousarray(self.positions.outlines.vertices).tobytes())
        return digest.hexdigest()


def predict_own(
    image: str | Path,
    cells: str | Path | None,
    checkpoint: str | Path,
    out: str | Path,
    *,
    organ: str | None = None,
    mpp: float | None = None,
    frame: str | None = None,
    reading: Mapping[str, Any] | None = None,
    name: str | None = None,
    branches: Mapping[str, Path | None] | None = None,
    formats: Sequence[str] = DEFAULT,
    abstain_below: float = ABSTAIN_BELOW,
    max_off_slide: float = MAX_OFF_SLIDE,
    options: Options | None = None,
    classes: str | Path | None = None,
) -> dict[str, Any]:
    """Type the cells of one slide with a trained model. No labels, no study and no Snakemake are needed.

    A run that was stopped goes on when it is called again with the same arguments, to the same result; one that is
    finished is taken as it is, and only outputs are written.

    Parameters
    ----------
    image
        The H&E: what :func:`nuclass.slides.source.open_source` opens.
    cells
        Positions of the cells, see :func:`nuclass.apply.positions.read_positions`; None finds the nuclei in the image.
    checkpoint
        ``best.ckpt`` of a local model, a global model or a gate.
    out
        Folder of the results, see ``docs/predict.md``.
    organ
        What the section is of; None, ``unknown`` or an organ that the model does not know is taken as unknown.
    mpp
        Micrometres per px of the H&E at full resolution; None believes the file, which is often wrong, and where that
        says nothing the alignment of positions of a Xenium run.
    frame
        Frame of the positions: ``he``, ``um``, ``px@0.25``, ``morph`` or ``xenium_um``; None as the file says.
    reading
        Further arguments of :func:`nuclass.apply.positions.read_positions`, such as ``alignment`` and ``columns``.
    name
        Of the slide; None takes that of the file.
    branches
        Of a gate: ``{"local": path, "global": path}`` where they do not lie beside it.
    formats
        Outputs beside the table, of :data:`nuclass.apply.outputs.FORMATS`.
    abstain_below
        Calibrated confidence, 0 to 1, below which a cell gets no class.
    max_off_slide
        Share of the local window, 0 to 1, that may lie off the slide; cells with more are left out.
    options
        How the models run.
    classes
        Table of classes and their colours; None takes ``resources/classes.tsv``.

    Returns
    -------
    The content of ``run.json``.

    Raises
    ------
    UserError
        Before anything long runs: the image, the positions or the model cannot be used or do not fit, the scale is not
        known, or no cell lies on the slide.
    """
    from nuclass.core.own_files import own_file
    from nuclass.training.preparing import need_writable

    started = time.monotonic()
    check_formats(formats)
    for what, share in (("--abstain-below", abstain_below), ("--max-off-slide", max_off_slide)):
        _check_share(what, share)
    reading = reading or {}
    kind, given = check_reading(cells if cells is not None else DETECT, frame, reading, reading.get("mpp"))
    models = Models(checkpoint, branches)
    taken = models.organ(organ)
    models.check_backbone()
    slide = open_slide(image, mpp, models.mpp, lambda shape: _aligned(cells, kind, given, reading, shape))
    folder, how = Path(out), options or Options()
    need_writable(folder)
    called = name or name_of(slide.image)
    with alone_in(folder, LOCK, "Another process types cells into this folder", "wait for it, or give another --out"):
        found = _positions(cells, slide, frame, reading, folder / CELLS, lambda: models.load(how))
        job = _Job(called, slide, found, models, taken, organ, abstain_below, max_off_slide, how)
        facts = _finish(job, folder, started)
        sheet = Path(classes) if classes is not None else own_file("resources/classes.tsv")
        write_outputs(folder, formats, store=folder / STORE, classes=sheet)
        shutil.rmtree(folder / WORK, ignore_errors=True)
    for hint in facts["hints"]:
        level = logging.WARNING if hint["level"] == "warn" else logging.INFO
        _log.log(level, "%s: %s %s", hint["kind"], hint["text"], hint["fix"])
    return facts


def _check_share(what: str, share: float) -> None:
    if not (math.isfinite(share) and 0 <= share <= 1):
        raise UserError("A share is out of range", where=what, found=share, expected="0 to 1")


def _aligned(
    cells: str | Path | None, kind: Kind, given: Given | None, reading: Mapping[str, Any], he_shape: tuple[int, int]
) -> float | None:
    """Return um per px of the H&E by the alignment that its positions need; None where they need none."""
    from nuclass.apply.positions_bundle import scale_of_run
    from nuclass.apply.positions_frames import aligned_scale

    alignment = reading.get("alignment")
    if kind == "bundle" and cells is not None:
        return scale_of_run(Path(cells), alignment=alignment, he_shape=he_shape)
    if alignment is None and not (given and given.needs_alignment):
        return None
    return aligned_scale(alignment, he_shape=he_shape, where=f"--frame {given}")


def _positions(
    cells: str | Path | None,
    slide: OwnSlide,
    frame: str | None,
    reading: Mapping[str, Any],
    kept: Path,
    before_long: Callable[[], object],
) -> Positions:
    """Return the cells; nuclei that are to be found are kept in the file ``kept``, for to find them takes minutes."""
    from nuclass.apply.kept_cells import kept_cells
    from nuclass.apply.positions import read_positions
    from nuclass.patches.states import file_state

    path = str(cells) if cells is not None else DETECT

    def read() -> Positions:
        return read_positions(
            path,
            frame=frame,
            mpp_he=slide.mpp,
            mpp_file=slide.embedded_mpp,
            aspect_file=slide.embedded_aspect,
            he_shape=slide.shape,
            bounds=slide.bounds,
            image=slide.image,
            **reading,
        )

    if path.partition(":")[0] != DETECT:
        return read()
    key = {"slide": slide.state, "cells": path, "frame": frame, "reading": {n: str(v) for n, v in reading.items()}}
    weights = reading.get("weights")
    if weights is not None and Path(weights).is_file():
        key["weights"] = file_state(Path(weights))
    if code := code_of_job():
        key["code"] = code

    def find() -> Positions:
        # A model that cannot be used is told before.
        before_long()
        return read()

    return kept_cells(kept, key, find)


def _finish(job: _Job, folder: Path, started: float) -> dict[str, Any]:
    """Return the facts of the run, whose table and record are written where they are not there from an earlier run."""
    key = job.key
    on = _on_slide(job)
    before = _record(folder)
    there = before.get("key") == key and (folder / TABLE).is_file()
    if not there:
        # Models that do not belong together and a device that is not there are told before the slide is read.
        job.models.load(job.options)
    store = build_store(job.slide, folder, job.options.threads)
    if there:
        if before["abstain_below"] == job.abstain_below:
            _log.info("%s: the predictions are there from an earlier run", folder)
            return before
        import pandas as pd

        table, stain = pd.read_parquet(folder / TABLE), before["stain"]
    else:
        table, stain = _predict(job, on, store, folder / WORK / "models")
    table = judged(table, job.abstain_below)
    _remove_outputs(folder, before)
    write_parquet(folder / TABLE, table)
    (folder / OUTLINES).unlink(missing_ok=True)
    if job.positions.outlines is not None:
        _write_outlines(folder / OUTLINES, job.positions.cell_id, job.positions.outlines)
    facts = {**_facts(job, table, stain), "seconds": round(time.monotonic() - started, 1), "key": key}
    write_json(folder / FACTS, facts)
    return facts


def _record(folder: Path) -> dict[str, Any]:
    """Return the record of an earlier run in a folder; nothing where there is none."""
    found = read_json(folder / FACTS) if (folder / FACTS).is_file() else {}
    return found if isinstance(found, dict) and "key" in found else {}


def _remove_outputs(folder: Path, before: Mapping[str, Any]) -> None:
    """Remove what an earlier run wrote into its folder, so that nothing of it stands beside another table."""
    if not before:
        return
    for name in NAMES.values():
        path = folder / name
        # A folder goes at once, or a call that is killed would leave half of it under its name.
        aside = temporary_name(path)
        remove(aside)
        if path.exists():
            path.replace(aside)
            remove(aside)
    # The last: a call that was killed before finds it, and removes the rest.
    (folder / FACTS).unlink(missing_ok=True)


def _on_slide(job: _Job) -> NDArray[np.bool_]:
    """Return which cells have enough of their local window on the slide, (N,)."""
    from nuclass.slides.geometry import window_origin
    from nuclass.slides.store import padded_fraction

    side = job.models.windows[LOCAL]
    xy = job.xy_px
    # Far off places would not fit into whole numbers.
    near = np.clip(np.nan_to_num(xy, nan=-1e9), -1e9, 1e9)
    origin = window_origin(near, side)
    off = padded_fraction(origin[:, 0], origin[:, 1], side, job.slide.store_shape)
    on = np.asarray(off <= job.max_off_slide, np.bool_) & np.isfinite(xy).all(axis=1)
    if not on.any():
        height, width = job.slide.shape
        found = f"{len(on)} cells, none on the slide"
        if len(on):
            (x0, y0), (x1, y1) = (how(job.positions.xy, axis=0) for how in (np.nanmin, np.nanmax))
            found += f": x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f} H&E px"
        raise UserError(
            "No cell lies on the slide",
            where=job.positions.source,
            found=found,
            expected=f"positions on an image of {width} x {height} px",
            fix="check that the positions are of this image, and their frame and scale (--frame, --mpp)",
        )
    return on


def _predict(job: _Job, on: NDArray[np.bool_], store: Path, work: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the table of all cells, not yet judged, and how the slide is stained."""
    from nuclass.data.stain import stain_of
    from nuclass.data.study import Study

    models = job.models
    row = {"slide": job.name, "organ": job.organ, "windows": str(store)}
    study = Study([row], work, mpp=models.mpp, windows=models.windows, cache_mb=job.options.cache_mb)
    rows = np.flatnonzero(on).astype(np.int64)
    _log.info("%s: %d cells to predict, %d left out", job.name, len(rows), len(on) - len(rows))
    frame = cells_frame(job.name, job.organ, rows, job.xy_px[rows])
    found = predict_cells(models, frame, study, work, job.options)
    with study.reader() as reader:
        stain = stain_of(reader, frame, models.windows[LOCAL])
    return _table(job, found, frame["row"].to_numpy(np.int64)), stain


def _table(job: _Job, found: Mapping[str, Mapping[str, NDArray[Any]]], rows: NDArray[np.int64]) -> pd.DataFrame:
    """Return one row a cell in the order of the positions; ``rows`` are those of the predicted cells, (N,)."""
    import pandas as pd

    total = len(job.positions.cell_id)
    classes = np.array(job.models.classes, dtype=object)

    def spread(values: NDArray[Any], empty: Any) -> NDArray[Any]:
        full = np.full((total, *values.shape[1:]), empty, dtype=values.dtype if empty != "" else object)
        full[rows] = values
        return full

    he, px = job.positions.xy, job.xy_px
    columns: dict[str, Any] = {CELL_ID: job.positions.cell_id}
    for frame, xy in (("he", he), ("um", he * job.slide.mpp), ("px", px)):
        columns |= {f"x_{frame}": xy[:, 0], f"y_{frame}": xy[:, 1]}
    reason = np.full(total, OFF_SLIDE, dtype=object)
    reason[rows] = ""
    columns |= {"organ": job.organ, "status": "", "reason": reason, "class": ""}
    p = found[job.models.kind]["probabilities"].astype(np.float64)
    columns["prediction"] = spread(classes[p.argmax(1)], "")
    columns["confidence"] = spread(p.max(1), np.nan)
    if job.models.kind == GATE:
        columns["gate"] = spread(found[GATE]["gate"].astype(np.float64), np.nan)
        for name in (LOCAL, GLOBAL):
            own = found[name]["probabilities"].astype(np.float64)
            columns[f"{name}_prediction"] = spread(classes[own.argmax(1)], "")
            columns[f"{name}_confidence"] = spread(own.max(1), np.nan)
    names = probability_columns(job.models.classes)
    return pd.concat([pd.DataFrame(columns), pd.DataFrame(spread(p, np.nan), columns=names)], axis=1)


def judged(table: pd.DataFrame, abstain_below: float) -> pd.DataFrame:
    """Return the table with status, reason and class of each cell.

    A cell is ``left_out`` (``off_slide``), ``abstained`` (``low_confidence``: below ``abstain_below``) or ``typed``.
    Only typed ones have a class.
    """
    left_out = (table["reason"] == OFF_SLIDE).to_numpy()
    unsure = ~left_out & (table["confidence"].to_numpy(np.float64) < abstain_below)
    typed = ~(left_out | unsure)
    return table.assign(
        **{
            "status": np.select([left_out, unsure], [LEFT_OUT, ABSTAINED], TYPED).astype(object),
            "reason": np.select([left_out, unsure], [OFF_SLIDE, LOW_CONFIDENCE], "").astype(object),
            "class": np.where(typed, table["prediction"].to_numpy(object), ""),
        }
    )


def _write_outlines(path: Path, cell_id: NDArray[Any], outlines: Outlines) -> None:
    """Write outlines, H&E px: two lists a cell, empty where it has none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    offsets = pa.array(outlines.offsets.astype(np.int32))
    columns = {CELL_ID: pa.array(cell_id.tolist(), pa.string())}
    for place, name in enumerate(("x_he", "y_he")):
        values = pa.array(np.ascontiguousarray(outlines.vertices[:, place], np.float64))
        columns[name] = pa.ListArray.from_arrays(offsets, values)
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd", row_group_size=100_000)


def _facts(job: _Job, table: pd.DataFrame, stain: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``run.json`` says, without the time it took."""
    import torch

    models, slide = job.models, job.slide
    states, reasons = table["status"].value_counts(), table["reason"].value_counts()
    composition = table.loc[table["status"] == TYPED, "class"].value_counts()
    return {
        "slide": job.name,
        "image": _shown(slide.image),
        "positions": job.positions.source,
        "organ": job.organ,
        "organ_told": job.organ_told,
        "mpp_he": slide.mpp,
        "mpp_source": slide.mpp_source,
        "mpp_file": slide.embedded_mpp,
        "mpp": models.mpp,
        "he_shape": list(slide.shape),
        "crop": slide.crop(job.positions.origin),
        "windows": models.windows,
        "model": models.kind,
        "checkpoints": models.hashes,
        "classes": models.classes,
        "abstain_below": job.abstain_below,
        "max_off_slide": job.max_off_slide,
        "counts": {
            "total": len(table),
            **{name: int(states.get(name, 0)) for name in (TYPED, ABSTAINED, LEFT_OUT)},
            **{name: int(reasons.get(name, 0)) for name in (OFF_SLIDE, LOW_CONFIDENCE)},
        },
        "composition": {name: int(composition.get(name, 0)) for name in models.classes},
        "stain": dict(stain),
        "hints": [hint.to_dict() for hint in _hints(job, table, stain)],
        "versions": {
            "nuclass": nuclass.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }


def _shown(path: Path) -> str:
    """Return a path as records show it: from the working folder on where it lies below, else as it was given."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _hints(job: _Job, table: pd.DataFrame, stain: Mapping[str, Any]) -> list[Hint]:
    """Return all hints, warnings first."""
    from nuclass.apply import hints

    models, slide = job.models, job.slide
    predicted = table["status"] != LEFT_OUT
    found = [
        *hints.organ_hints(job.organ_told, job.organ, models.organs, models.trained_unknown),
        *hints.seen_hints(job.name, models.trained_on),
        *hints.mpp_hints(slide.mpp, slide.embedded_mpp, slide.mpp_source != FILE, models.mpp),
        *hints.alignment_hints(slide.mpp, job.positions.mpp_aligned),
        *hints.area_hints(job.positions.outlines, slide.mpp),
        *hints.place_hints(len(table), int((~predicted).sum())),
        *(hints.corner_hints(job.positions.xy, slide.shape) if _by_unit_alone(job) else []),
        *hints.stain_hints(stain, models.stain),
        *hints.confidence_hints(
            table.loc[predicted, "confidence"].to_numpy(np.float64),
            int((table["status"] == ABSTAINED).sum()),
            _val_accuracy(models),
        ),
    ]
    return sorted(found, key=lambda hint: hint.level != hints.WARN)


def _by_unit_alone(job: _Job) -> bool:
    """Return whether the unit of a file's numbers alone decides where on the slide its cells lie."""
    where = job.positions
    return where.kind in ("geojson", "table") and where.mpp_aligned is None and job.slide.bounds is None


def _val_accuracy(models: Models) -> float | None:
    """Return the share of its val cells that the model types right, if the record of its training lies beside it."""
    file = models.path.parent / "metrics.json"
    metrics = read_json(file) if file.is_file() else {}
    val = metrics.get("val") or {}
    same = metrics.get("model") == models.kind and metrics.get("temperature") == models.own["temperature"]
    return float(val["accuracy"]) if same and "accuracy" in val else None
