"""Where to cut a slide: bands along its longer side, with gaps as wide as the largest window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.names import BUFFER, CELL_ID, LABELLED, TEST, TRAIN, VAL
from nuclass.splits.check import check_no_overlap, count_overlaps

CORRECTED, RELEASED = "corrected", "released"
_log = get_logger(__name__)
_GRID = 96
_TIE = 0.02
_RELEASED_SHARE = 0.25
_RELEASED_AREAS = tuple(a / 100 for a in range(20, 31))


@dataclass(frozen=True)
class SplitConfig:
    """How a slide is cut.

    Parameters
    ----------
    val, test
        Wanted shares of the labelled cells that are used (the buffer not counted). 0 for no such band.
    buffer_um
        Width of the gaps in micrometres; at least the largest window.
    seed
        Shifts the grid of cuts that are tried, and chooses among cuts that are about equally good.
    window_px, mpp
        Side of the largest window in store px, and micrometres per store px.
    min_class_cells
        A class with at least so many labelled cells on the slide is to occur in train and in val.
    max_buffer_share
        The gaps may take at most this share of the slide's length.
    protocol
        ``corrected``, or ``released``: a central box without a buffer, for comparison only. The original
        calls the box test and validates on it, so it is ``val`` here; there is no test band.
    """

    val: float = 0.2
    test: float = 0.1
    buffer_um: float = 256.0
    seed: int = 42
    window_px: int = 1024
    mpp: float = 0.25
    min_class_cells: int = 20
    max_buffer_share: float = 0.5
    protocol: str = CORRECTED

    def __post_init__(self) -> None:
        if not (0 < self.val < 1 and 0 <= self.test < 1 and self.val + self.test < 0.9):
            raise UserError(
                "The shares of the splits do not leave room for training",
                where="config, splits: val and test",
                found=f"val {self.val}, test {self.test}",
                expected="val above 0, test 0 or more, together below 0.9",
            )
        if self.buffer_um < self.window_um:
            raise UserError(
                "The buffer between the splits is narrower than the largest window",
                where="config, splits: buffer_um",
                found=f"{self.buffer_um} um",
                expected=f"at least {self.window_um} um ({self.window_px} px at {self.mpp} um/px)",
                fix=f"set splits: buffer_um: {self.window_um:g}",
            )
        if self.protocol not in (CORRECTED, RELEASED):
            raise UserError(
                "A split protocol is not known",
                where="config, splits: protocol",
                found=self.protocol,
                expected=f"{CORRECTED} | {RELEASED}",
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SplitConfig:
        """Read the keys ``splits``, ``windows`` and ``mpp`` of the study's configuration."""
        return cls(window_px=max(config["windows"].values()), mpp=config["mpp"], **config["splits"])

    @property
    def window_um(self) -> float:
        """Side of the largest window in micrometres."""
        return self.window_px * self.mpp

    @property
    def gap_px(self) -> float:
        """Width of a gap in store px, with one for the rounding of origins."""
        return max(self.buffer_um / self.mpp, float(self.window_px)) + 1.0


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
        Columns cell_id, x_px, y_px (slide-store px).
    labels
        Columns cell_id, class, status. Only cells with status "labelled" take part in choosing the cuts;
        the others get the split of the place where they lie. ``None``: all cells count, as one class.
    config
        See :class:`SplitConfig`.
    role
        ``train``: cut into bands. ``cohort``: all cells are test.
    slide
        Named in errors and in the report.

    The bands lie along the longer side of the labelled cells. A cut is chosen from all orders of the bands
    and a grid of positions: first by how many classes are absent from train and from val, then by how
    near each band comes to its share of all cells and of each class. The report holds the cuts, the classes
    that are absent from a band although they are common enough, and the counts.

    Raises
    ------
    UserError
        The slide is too short, has too few cells, or (a fault of this function) windows overlap.
    """
    if role == "cohort":
        frame = pd.DataFrame({CELL_ID: cells[CELL_ID].to_numpy(), "split": TEST})
        return Split(frame, {"slide": slide, "role": role, **_counts(frame["split"], _classes(cells, labels))})
    classes = _classes(cells, labels)
    xy = cells[["x_px", "y_px"]].to_numpy(np.float64)
    placed = np.isfinite(xy).all(axis=1)
    counted = placed & (classes != "")
    if int(counted.sum()) < config.min_class_cells:
        raise UserError(
            "A training slide has too few labelled cells to be cut",
            where=slide or None,
            found=f"{int(counted.sum())} labelled cells of {len(cells)}",
            expected=f"at least {config.min_class_cells}",
            fix="see the slide's label summary, or give the slide the role cohort",
        )
    if config.protocol == RELEASED:
        split, cut = _central_box(xy, placed, counted)
    else:
        split, cut = _bands(xy, placed, counted, classes, config, slide)
    frame = cells[[CELL_ID, "x_px", "y_px"]].assign(split=split)
    report = {"slide": slide, "role": role, "protocol": config.protocol, **cut, **_counts(frame["split"], classes)}
    if config.protocol == RELEASED:
        report["overlapping_cells"] = count_overlaps(frame, config.window_px)
    else:
        check_no_overlap(frame, config.window_px, slide or None)
        for name in (TRAIN, VAL):
            if cut["absent_classes"][name]:
                _log.warning("No cut puts these common classes into %s: %s", name, cut["absent_classes"][name])
    _log.info("Labelled cells: %s", ", ".join(f"{name} {count}" for name, count in report["labelled"].items()))
    return Split(frame[[CELL_ID, "split"]].reset_index(drop=True), report)


def _bands(
    xy: NDArray[np.float64],
    placed: NDArray[np.bool_],
    counted: NDArray[np.bool_],
    classes: NDArray[np.object_],
    config: SplitConfig,
    slide: str,
) -> tuple[NDArray[np.object_], dict[str, Any]]:
    """Choose the cuts and give each cell its band."""
    wanted = {TRAIN: 1.0 - config.val - config.test, VAL: config.val, TEST: config.test}
    wanted = {name: share for name, share in wanted.items() if share > 0}
    gap = config.gap_px
    extent = np.ptp(xy[counted], axis=0)
    axis = int(np.argmax(extent))
    _check_length(float(extent[axis]), gap, len(wanted) - 1, config, slide)

    along = xy[counted, axis]
    order = np.argsort(along, kind="stable")
    along = along[order]
    codes, names = pd.factorize(classes[counted][order], sort=True)
    below = np.vstack([np.zeros(len(names), np.int64), np.cumsum(np.eye(len(names), dtype=np.int64)[codes], axis=0)])

    cuts = _candidate_cuts(along, gap, len(wanted) - 1, config.seed)
    edges = np.sort(np.concatenate([cuts, cuts + gap], axis=1), axis=1)
    at = below[np.searchsorted(along, edges, side="left")]
    ends = np.concatenate([np.zeros_like(at[:, :1]), at, np.broadcast_to(below[-1], at[:, :1].shape)], axis=1)
    inside = ends[:, 1::2] - ends[:, ::2]

    bands, row, score = _choose(inside, wanted, below[-1], config, slide)
    position = xy[:, axis]
    where = np.searchsorted(edges[row], position, side="right")
    labels_of_place = [name for band in bands for name in (band, BUFFER)][:-1]
    split = np.array(labels_of_place, dtype=object)[where]
    split[~placed] = BUFFER
    absent = {
        name: [str(names[k]) for k in np.flatnonzero((below[-1] >= config.min_class_cells) & (inside[row, i] == 0))]
        for i, name in enumerate(bands)
    }
    cut = {
        "axis": "xy"[axis],
        "order": list(bands),
        "edges_px": edges[row].tolist(),
        "gap_px": gap,
        "length_mm": float(extent[axis]) * config.mpp / 1000,
        "score": score,
        "absent_classes": absent,
    }
    return split, cut


def _check_length(length: float, gap: float, gaps: int, config: SplitConfig, slide: str) -> None:
    needed = gaps * gap / config.max_buffer_share
    if length < needed:
        mm = config.mpp / 1000
        raise UserError(
            "A training slide is too short to be cut without leaks",
            where=slide or None,
            found=f"labelled cells over {length * mm:.2f} mm along the longer side",
            expected=f"at least {needed * mm:.2f} mm, for {gaps} gaps of {gap * mm:.3f} mm in at most"
            f" {config.max_buffer_share:.0%} of the length",
            fix="give the slide the role cohort, or leave out the test band (splits: test: 0)",
        )


def _candidate_cuts(along: NDArray[np.float64], gap: float, gaps: int, seed: int) -> NDArray[np.float64]:
    """Return the starts of the gaps to try, ``(M, gaps)``, ascending, on a grid that the seed shifts."""
    low, high = along[0], along[-1]
    step = (high - low) / _GRID
    starts = low + step * (np.arange(_GRID) + np.random.default_rng(seed).uniform(0.25, 0.75))
    if gaps == 1:
        return starts[starts + gap <= high][:, None]
    first, second = (grid.ravel() for grid in np.meshgrid(starts, starts, indexing="ij"))
    fits = (second > first + gap) & (second + gap <= high)
    return np.stack([first[fits], second[fits]], axis=1)


def _choose(
    inside: NDArray[np.int64], wanted: dict[str, float], total: NDArray[np.int64], config: SplitConfig, slide: str
) -> tuple[tuple[str, ...], int, float]:
    """Return the order of bands and the row of ``inside`` (cuts, bands, classes) that suit best."""
    usable = (inside.sum(axis=2) > 0).all(axis=1)
    if not usable.any():
        raise UserError(
            "A training slide cannot be cut: its labelled cells lie too close together or too far apart",
            where=slide or None,
            found="no cut leaves labelled cells in every band",
            fix="give the slide the role cohort, or leave out the test band (splits: test: 0)",
        )
    orders = list(permutations(wanted))
    rated = [_score(inside, [wanted[name] for name in bands], list(bands), total, config) for bands in orders]
    absent, scores = (np.stack(part) for part in zip(*rated, strict=True))
    absent = np.where(usable, absent, np.iinfo(np.int64).max)
    scores = np.where(absent == absent.min(), scores, np.inf)
    near = np.argwhere(scores <= scores.min() * (1 + _TIE))
    order, row = near[np.random.default_rng((config.seed, 1)).integers(len(near))]
    return orders[order], int(row), float(scores[order, row])


def _score(
    inside: NDArray[np.int64], shares: list[float], bands: list[str], total: NDArray[np.int64], config: SplitConfig
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rate each cut by the number of absent classes and by the distance from the wish, ``(M,)`` each.

    Absent are classes with at least ``min_class_cells`` cells that train or val has none of. The distance is
    five times the mean over bands of ``log((n + 1/2) / (e + 1/2))^2``, ``n`` the cells of a band and ``e`` its wanted
    share of the used ones, plus the same taken class by class, as a mean over bands and classes.
    """
    counts = inside.astype(np.float64)
    share = np.asarray(shares)
    size = counts.sum(axis=2)
    wish = size.sum(axis=1, keepdims=True) * share
    distance = 5 * (np.log((size + 0.5) / (wish + 0.5)) ** 2).mean(axis=1)
    absent = np.zeros(len(inside), np.int64)
    common = total >= config.min_class_cells
    if common.any():
        of_class = counts[:, :, common]
        wish = of_class.sum(axis=1, keepdims=True) * share[None, :, None]
        distance = distance + (np.log((of_class + 0.5) / (wish + 0.5)) ** 2).mean(axis=(1, 2))
        needed = [i for i, name in enumerate(bands) if name in (TRAIN, VAL)]
        absent = (of_class[:, needed] == 0).sum(axis=(1, 2))
    return absent, distance


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


def _classes(cells: pd.DataFrame, labels: pd.DataFrame | None) -> NDArray[np.object_]:
    """Return each cell's class, ``""`` without a label; ids of both tables must be the same."""
    if labels is None:
        return np.full(len(cells), "cell", dtype=object)
    if len(labels) != len(cells) or set(labels[CELL_ID]) != set(cells[CELL_ID]) or cells[CELL_ID].duplicated().any():
        raise UserError(
            "The cell table and the label table hold different cells",
            found=f"{len(cells)} cells, {len(labels)} labels,"
            f" {len(set(labels[CELL_ID]) & set(cells[CELL_ID]))} ids in both",
            expected="each cell id once in both",
            fix="label the slide again",
        )
    own = labels.set_index(CELL_ID).loc[cells[CELL_ID]]
    return np.where(own["status"] == LABELLED, own["class"], "").astype(object)


def _counts(split: pd.Series, classes: NDArray[np.object_]) -> dict[str, Any]:
    """Count all cells, and the labelled ones by class, in each split."""
    labelled = classes != ""
    table = pd.crosstab(split[labelled].to_numpy(), classes[labelled])
    return {
        "cells": split.value_counts().to_dict(),
        "labelled": split[labelled].value_counts().to_dict(),
        "classes": {str(name): {str(k): int(v) for k, v in row.items()} for name, row in table.iterrows()},
    }
