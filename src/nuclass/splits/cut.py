"""The split of a slide: by place, in bands or blocks; as it was given; or all test."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.names import BUFFER, CELL_ID, LABELLED, TEST, TRAIN, VAL
from nuclass.core.split_settings import AUTO, BANDS, BLOCKS
from nuclass.splits.bands import cut_bands, deal_bands
from nuclass.splits.blocks import Blocks, cut_blocks
from nuclass.splits.check import check_no_overlap, count_overlaps, margin
from nuclass.splits.given import has_given, keep_given
from nuclass.splits.settings import SplitConfig

GIVEN, BOX, WHOLE = "given", "box", "whole"
_log = get_logger(__name__)
_RELEASED_SHARE = 0.25
_RELEASED_AREAS = tuple(a / 100 for a in range(20, 31))
_Told = tuple[NDArray[np.object_], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Split:
    """A slide's split: ``frame`` (cell_id, split; rows as in the cell table) and a ``report`` for JSON and tables."""

    frame: pd.DataFrame
    report: dict[str, Any] = field(default_factory=dict)


def split_cells(
    cells: pd.DataFrame, labels: pd.DataFrame | None, config: SplitConfig, role: str, slide: str = ""
) -> Split:
    """Give every cell of a slide its split.

    Parameters
    ----------
    cells
        Columns cell_id, x_px, y_px (slide-store px); given_split where the slide may have come with its own.
    labels
        Columns cell_id, class, status. Only cells with status "labelled" take part in choosing the cuts;
        the others get the split of the place where they lie. ``None``: all cells count, as one class.
    config
        See :class:`SplitConfig`.
    role
        ``train``: divided. ``cohort``: all cells are test.
    slide
        Named in errors and in the report.

    A slide that came with its own split keeps it (:func:`nuclass.splits.given.keep_given`); any other is cut by
    place, in bands (:func:`nuclass.splits.bands.cut_bands`) or blocks (:func:`nuclass.splits.blocks.cut_blocks`). The
    report tells the layout, the cuts, the classes that are absent from a split although they are common enough, the
    counts, the share of labelled cells in the buffer, and how much farther than a window is wide the nearest two
    cells of different splits are apart (``margin_px``).

    Raises
    ------
    UserError
        The slide is too short, has too few cells, or (a fault of this function) windows overlap.
    """
    classes = _classes(cells, labels, slide)
    if role == "cohort":
        frame = pd.DataFrame({CELL_ID: cells[CELL_ID].to_numpy(), "split": TEST})
        return Split(frame, {"slide": slide, "role": role, "layout": WHOLE, **_counts(frame["split"], classes)})
    xy = cells[["x_px", "y_px"]].to_numpy(np.float64)
    placed = np.isfinite(xy).all(axis=1)
    counted = placed & (classes != "")
    if has_given(cells):
        layout, (split, cut) = GIVEN, keep_given(cells, xy, placed, config, slide)
    else:
        layout, (split, cut) = _by_place(xy, placed, counted, classes, config, slide)
    frame = cells[[CELL_ID, "x_px", "y_px"]].assign(split=split)
    if not config.no_buffer:
        check_no_overlap(frame, config.window_px, slide or None)
    report = {
        **{"slide": slide, "role": role, "no_buffer": config.no_buffer, "layout": layout},
        **({"folds": config.folds, "fold": config.fold} if config.folds and layout != GIVEN else {}),
        **cut,
        **_counts(frame["split"], classes),
        "absent_classes": _absent(split, classes, placed, config),
        "buffer_share": float((split[classes != ""] == BUFFER).mean()) if (classes != "").any() else 0.0,
        "margin_px": margin(frame, config.window_px),
        "overlapping_cells": count_overlaps(frame, config.window_px) if config.no_buffer else {},
        "window_px": config.window_px,
        "mpp": config.mpp,
    }
    _tell(report)
    return Split(frame[[CELL_ID, "split"]].reset_index(drop=True), report)


def _tell(report: dict[str, Any]) -> None:
    for name in (TRAIN, VAL):
        if report["absent_classes"].get(name) and not report["no_buffer"]:
            _log.warning("No cut puts these common classes into %s: %s", name, report["absent_classes"][name])
    counts = ", ".join(f"{name} {count}" for name, count in report["labelled"].items())
    _log.info("Layout %s. Labelled cells: %s", report["layout"], counts)


def _by_place(
    xy: NDArray[np.float64],
    placed: NDArray[np.bool_],
    counted: NDArray[np.bool_],
    classes: NDArray[np.object_],
    config: SplitConfig,
    slide: str,
) -> tuple[str, _Told]:
    """Return the layout and what it makes of the slide."""
    if int(counted.sum()) < config.min_class_cells:
        raise UserError(
            "A training slide has too few labelled cells to be cut",
            where=slide or None,
            found=f"{int(counted.sum())} labelled cells that have a place, of {len(xy)} cells",
            expected=f"at least {config.min_class_cells}",
            fix="see the slide's label summary, or give the slide the role cohort",
        )
    if config.no_buffer:
        return BOX, _central_box(xy, placed, counted)
    why = ""
    if config.layout in (AUTO, BLOCKS):
        blocks = Blocks(xy, placed, counted, classes, config)
        why = blocks.fit() if config.layout == AUTO else ""
        if not why:
            try:
                return BLOCKS, cut_blocks(blocks, counted, config, slide)
            except UserError as error:
                if config.layout == BLOCKS:
                    raise
                why = str(error.found)
        _log.info("Cut into bands, not blocks: %s", why)
    cut = deal_bands if config.folds else cut_bands
    split, told = cut(xy, placed, counted, classes, config, slide)
    return BANDS, (split, {"no_blocks": why, **told} if why else told)


def _central_box(
    xy: NDArray[np.float64], placed: NDArray[np.bool_], counted: NDArray[np.bool_]
) -> tuple[NDArray[np.object_], dict[str, Any]]:
    """Cut as the original does: a centred box of 20 to 30 % of the area, nearest to 25 % of the cells; no buffer."""
    low, high = xy[counted].min(axis=0), xy[counted].max(axis=0)
    centre, half = (low + high) / 2, (high - low) / 2
    from_centre = np.abs(xy - centre)
    best: tuple[float, float, NDArray[np.bool_]] | None = None
    for area in _RELEASED_AREAS:
        inside = (from_centre <= half * np.sqrt(area)).all(axis=1)
        distance = abs(float(inside[counted].mean()) - _RELEASED_SHARE)
        if best is None or distance < best[0]:
            best = (distance, area, inside)
    assert best is not None
    split = np.where(best[2], VAL, TRAIN).astype(object)
    split[~placed] = BUFFER
    edge = half * np.sqrt(best[1])
    box = [*(centre - edge).tolist(), *(centre + edge).tolist()]
    return split, {"area_fraction": best[1], "box_px": box}


def _classes(cells: pd.DataFrame, labels: pd.DataFrame | None, slide: str) -> NDArray[np.object_]:
    """Return each cell's class, ``""`` without a label; ids of both tables must be the same."""
    if labels is None:
        return np.full(len(cells), "cell", dtype=object)
    ids, own = cells[CELL_ID].to_numpy(), labels[CELL_ID].to_numpy()
    rows = np.arange(len(ids))
    if not np.array_equal(ids, own):
        rows = pd.Index(own).get_indexer(pd.Index(ids)) if pd.Index(own).is_unique else np.full(len(ids), -1)
    if len(own) != len(ids) or (rows < 0).any() or not pd.Index(ids).is_unique:
        raise UserError(
            "The cell table and the label table hold different cells",
            where=slide or None,
            found=f"{len(cells)} cells, {len(labels)} labels, {len(set(own) & set(ids))} ids in both",
            expected="each cell id once in both",
            fix="label the slide again",
        )
    named = np.where(labels["status"] == LABELLED, labels["class"], "").astype(object)
    return np.asarray(named[rows], dtype=object)


def _absent(
    split: NDArray[np.object_], classes: NDArray[np.object_], placed: NDArray[np.bool_], config: SplitConfig
) -> dict[str, list[str]]:
    """Return for each split the common classes of the slide that it has no cell of."""
    counted = placed & (classes != "")
    names, total = np.unique(classes[counted].astype(str), return_counts=True)
    common = names[total >= config.min_class_cells].tolist()
    used = [name for name in (TRAIN, VAL, TEST) if name in (TRAIN, VAL) or (split == name).any()]
    return {name: sorted(set(common) - set(classes[counted & (split == name)])) for name in used}


def _counts(split: pd.Series, classes: NDArray[np.object_]) -> dict[str, Any]:
    """Count all cells, and the labelled ones by class, in each split."""
    labelled = classes != ""
    table = pd.crosstab(split[labelled].to_numpy(), classes[labelled])
    return {
        "cells": split.value_counts().to_dict(),
        "labelled": split[labelled].value_counts().to_dict(),
        "classes": {str(name): {str(k): int(v) for k, v in row.items()} for name, row in table.iterrows()},
    }
