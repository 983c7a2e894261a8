"""The cells of a slide as the page reads them: places and classes at once, the rest in parts, when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path
from nuclass.core.log import get_logger
from nuclass.core.names import CELL_ID, GATE, MODELS, PROBABILITY_PREFIX
from nuclass.explorer.chunks import pack, share_bytes, write_chunk
from nuclass.explorer.maps import write_maps
from nuclass.figures.style import Classes
from nuclass.slides.store import morton

_log = get_logger(__name__)
NONE = 255
"""Number of a class that is not there: a branch without a prediction of the cell, or an empty label."""
PART = 4096
"""Cells in one file of details."""
_COLUMNS = (CELL_ID, "x_px", "y_px", "label", "prediction", "confidence")
_BLOCK_PX = 256


def write_cells(
    slide: str,
    tables: Mapping[str, str | Path],
    folder: str | Path,
    *,
    classes: str | Path,
    chosen: str | Path | None = None,
    maps: str | Path | None = None,
    cells: str | Path | None = None,
) -> None:
    """Write ``points.js``, ``details/{part}.js``, ``ids.js`` and the pictures of activation maps into a new folder.

    Cells stand in the order of a Morton curve over the slide, so that a part of the details is a patch of tissue.
    The cells are those of the fused model's table: of a slide, the labelled ones of the splits val and test. Those
    without a place are left out, and counted in ``points.js`` as ``unplaced``; how many of the slide have no prediction
    stands there as ``unpredicted``.

    Parameters
    ----------
    slide
        Its name, by which the page asks for the files.
    tables
        Prediction tables (``cell_id x_px y_px label prediction confidence prob_<class>``, of the fused model also
        ``gate``) of ``gate`` and, where there are any, ``local`` and ``global``.
    folder
        Where the files go; appears when all are written.
    classes
        The sheet of the classes: names, order, colours.
    chosen, maps
        Cells with activation maps, and the maps in the same order, as rule compute_gradcam writes them.
    cells
        The slide's table of all cells, ``cells.parquet``; without it ``unpredicted`` is null, and the page tells no
        number.
    """
    frames = {model: _read(path) for model, path in tables.items()}
    if "gate" not in frames[GATE]:
        raise UserError("The fused model's table holds no gate", where=tables[GATE], expected="a column gate")
    unpredicted = None if cells is None else _unpredicted(cells, len(frames[GATE]))
    write_frames(
        slide, frames, folder, where=tables[GATE], sheet=Classes.read(classes),
        unpredicted=unpredicted, chosen=chosen, maps=maps,
    )  # fmt: skip


def write_frames(
    slide: str,
    frames: Mapping[str, pd.DataFrame],
    folder: str | Path,
    *,
    where: str | Path,
    sheet: Classes,
    main: str = GATE,
    colours: Mapping[str, str] | None = None,
    unpredicted: int | None = None,
    chosen: str | Path | None = None,
    maps: str | Path | None = None,
) -> None:
    """Write what :func:`write_cells` writes, from tables in memory, which may know no labels and no gate.

    Parameters
    ----------
    slide, folder, chosen, maps
        As there.
    frames
        Tables by model. The one of ``main`` tells the cells; of it ``label`` and ``gate`` may be missing, and
        ``prediction`` may be empty: a cell that is shown without a class. ``said``, if there, is what the model says of
        each cell in its details; else that is ``prediction``. Of the others ``cell_id prediction confidence``
        are read.
    where
        The file that is named where there are too many classes.
    sheet, colours
        Names, order and colours of the classes; ``colours`` come before the sheet's.
    main
        The model whose cells are shown.
    unpredicted
        How many cells of the slide have no prediction; None where that is not known.
    """
    table, unplaced = _placed(frames[main], slide)
    ids = pd.Index(table[CELL_ID])
    names = _class_names(table, sheet, where)
    head = {
        "cells": len(table),
        "unplaced": unplaced,
        "unpredicted": unpredicted,
        "part": PART,
        "main": main,
        "labelled": "label" in table,
        "classes": [_about(sheet, name, colours or {}) for name in names],
        "scored": sum(column.startswith(PROBABILITY_PREFIX) for column in table),
        **_packed(table, names),
    }
    with atomic_path(folder) as root:
        root.mkdir()
        shown = [] if maps is None or chosen is None else write_maps(slide, chosen, maps, root / "maps", ids)
        write_chunk(root / "points.js", f"{slide}/points", {**head, "maps": shown})
        write_chunk(root / "ids.js", f"{slide}/ids", "\n".join(ids))
        others = {m: frames[m] for m in MODELS if m in frames and m != main}
        _write_details(slide, root / "details", table, main, others, names)
    _log.info("%s: %d cells, %d with activation maps", slide, len(table), len(shown))


def _class_names(table: pd.DataFrame, sheet: Classes, where: str | Path) -> list[str]:
    """Return the classes of the model, for their numbers are places among the probabilities, and then unknown ones."""
    names = sheet.ordered(
        column.removeprefix(PROBABILITY_PREFIX) for column in table if column.startswith(PROBABILITY_PREFIX)
    )
    told = set(table["prediction"]) | (set(table["label"]) if "label" in table else set())
    names += sheet.ordered(told - {""} - set(names))
    if len(names) >= NONE:
        raise UserError("There are too many classes to show", where=where, found=len(names), expected="< 255")
    return names


def _unpredicted(cells: str | Path, predicted: int) -> int:
    """Return how many cells of a slide's table have no prediction."""
    import pyarrow.parquet as pq

    if not Path(cells).is_file():
        raise UserError("A table of cells is missing", where=cells, fix="run the rule that writes this slide's cells")
    rows = int(pq.read_metadata(cells).num_rows)
    if rows < predicted:
        raise UserError(
            "A slide has fewer cells than predictions",
            where=cells,
            found=f"{rows} cells",
            expected=f"at least {predicted}",
            fix="predict the slide again",
        )
    return rows - predicted


def _packed(table: pd.DataFrame, names: Sequence[str]) -> dict[str, str | None]:
    """Return the columns that are read at once: places (slide-store px), classes, confidence and gate."""
    labels = table["label"] if "label" in table else pd.Series("", index=table.index)
    return {
        "x": pack(table["x_px"].to_numpy(), "f4"),
        "y": pack(table["y_px"].to_numpy(), "f4"),
        "label": pack(_codes(labels, names), "u1"),
        "prediction": pack(_codes(table["prediction"], names), "u1"),
        "confidence": pack(share_bytes(table["confidence"].to_numpy(np.float64)), "u1"),
        "gate": pack(share_bytes(table["gate"].to_numpy(np.float64)), "u1") if "gate" in table else None,
    }


def _read(path: str | Path) -> pd.DataFrame:
    if not Path(path).is_file():
        raise UserError("A prediction table is missing", where=path, fix="run the rule predict for this slide")
    table = pd.read_parquet(path)
    missing = [name for name in _COLUMNS if name not in table]
    if missing:
        raise UserError("A prediction table lacks columns", where=path, found=list(table.columns), expected=missing)
    if not any(name.startswith(PROBABILITY_PREFIX) for name in table):
        raise UserError(
            "A prediction table holds no probabilities", where=path, expected=f"{PROBABILITY_PREFIX}<class>"
        )
    for name in (CELL_ID, "label", "prediction"):
        table[name] = table[name].astype(object).where(table[name].notna(), "").astype(str)
    if table[CELL_ID].duplicated().any():
        raise UserError(
            "A cell is predicted twice", where=path, found=table.loc[table[CELL_ID].duplicated(), CELL_ID].iloc[0]
        )
    return table


def _placed(table: pd.DataFrame, slide: str) -> tuple[pd.DataFrame, int]:
    """Return the cells that have a place, along a Morton curve over squares of the slide, and how many have none."""
    xy = table[["x_px", "y_px"]].to_numpy(np.float64)
    known = np.isfinite(xy).all(axis=1)
    lost = int((~known).sum())
    if lost:
        _log.warning("%s: %d of %d cells have no place and are not shown", slide, lost, len(table))
    table, xy = table.loc[known], xy[known]
    order = np.argsort(morton(xy // _BLOCK_PX), kind="stable")
    return table.iloc[order].reset_index(drop=True), lost


def _about(sheet: Classes, name: str, colours: Mapping[str, str]) -> dict[str, str]:
    colour = colours.get(name) or sheet.colour(name)
    return {"name": name, "full": sheet.full(name), "short": sheet.short(name), "colour": colour}


def _codes(values: pd.Series[str], names: Sequence[str]) -> NDArray[np.uint8]:
    """Return each value's place among the names, :data:`NONE` for an empty one."""
    codes = pd.Index(names).get_indexer(pd.Index(values))
    return np.where(codes < 0, NONE, codes).astype(np.uint8)


def _write_details(
    slide: str,
    folder: Path,
    table: pd.DataFrame,
    main: str,
    others: Mapping[str, pd.DataFrame],
    names: Sequence[str],
) -> None:
    """Write what a click shows, for :data:`PART` cells a file: ids, gate, probabilities of all classes, branches."""
    folder.mkdir()
    scored = [PROBABILITY_PREFIX + name for name in names if PROBABILITY_PREFIX + name in table]
    rows = {m: frame.set_index(CELL_ID).reindex(table[CELL_ID]) for m, frame in others.items()}
    rows[main] = table.assign(prediction=table["said"]) if "said" in table else table
    for part, start in enumerate(range(0, len(table), PART)):
        cells = slice(start, start + PART)
        some = table.iloc[cells]
        models: dict[str, dict[str, str]] = {}
        for model in MODELS:
            if model in rows:
                source = rows[model].iloc[cells]
                models[model] = {
                    "prediction": pack(_codes(source["prediction"].fillna(""), names), "u1"),
                    "confidence": pack(source["confidence"].fillna(0).to_numpy(), "f4"),
                }
        details = {
            "ids": some[CELL_ID].tolist(),
            "gate": pack(some["gate"].to_numpy(), "f4") if "gate" in some else None,
            "probabilities": pack(some[scored].to_numpy(), "f4"),
            "models": models,
        }
        write_chunk(folder / f"{part}.js", f"{slide}/details/{part}", details)
