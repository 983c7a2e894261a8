"""Which cells the gate learns from, and which choose its state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.names import TRAIN
from nuclass.data.training_cells import known_classes, load_training_cells

if TYPE_CHECKING:
    from nuclass.core.protocol import Protocol
    from nuclass.data.study import Study
    from nuclass.training.branches import Branches
    from nuclass.training.config import Gate

_log = get_logger(__name__)
FIRST_CELLS = 14_400
"""Cells of 1,200 validation batches, of which the original looks at no more."""
MICRO_BATCH = 12
"""Cells the original's gate sees at once."""


class GateCells(NamedTuple):
    """Tables of the cells that fit the gate, and of those that stop its training and give its temperature."""

    fitting: pd.DataFrame
    selecting: pd.DataFrame


def gate_cells(study: Study, branches: Branches, section: Gate, protocol: Protocol, seed: int) -> GateCells:
    """Return the gate's cells: val, cut by place into a fitting and a selecting part.

    Protocol: with ``gate_on_train`` the training cells of both models fit the gate, and val selects; with
    ``gate_first_cells`` only the first of the selecting cells do, see :func:`first_cells`.

    Raises
    ------
    UserError
        When a cell is among those that a model was fitted to (under ``gate_on_train``: a cell to select by), or val
        cannot be cut.
    """
    train, val, _ = load_training_cells(study, protocol.test_as_val)
    val = known_classes(val, branches.vocabulary, "the gate's cells")
    if protocol.gate_on_train:
        fitting, selecting = known_classes(train, branches.vocabulary, "the gate's cells"), val
    else:
        chosen = select_blocks(val, section.select, section.block_um / study.mpp, seed)
        fitting, selecting = val[~chosen].reset_index(drop=True), val[chosen].reset_index(drop=True)
        check_unfitted(fitting, branches, "learn from")
    check_unfitted(selecting, branches, "be chosen by")
    if protocol.gate_first_cells:
        selecting = first_cells(selecting)
    return GateCells(fitting, selecting)


def check_unfitted(frame: pd.DataFrame, branches: Branches, use: str) -> None:
    """Raise when either model was fitted to a cell of ``frame``: its confidence there tells nothing about others.

    ``use`` tells what the cells are for: the gate would ``learn from`` or ``be chosen by`` them.
    """
    for name, checkpoint in (("local", branches.local), ("global", branches.global_)):
        for slide, part in frame.groupby("slide", observed=True):
            fitted = set(checkpoint["cells"].get(str(slide), {}).get(TRAIN, ()))
            both = sorted(fitted.intersection(part["cell_id"]))
            if both:
                raise UserError(
                    f"The gate would {use} cells that the {name} model was fitted to",
                    where=f"slide {slide}",
                    found=f"{len(both)} of {len(part)} cells, the first: {both[0]}",
                    expected="none: a model is surer of them than of others",
                    fix="the splits changed after training: train both models again",
                )


def select_blocks(frame: pd.DataFrame, share: float, block_px: float, seed: int) -> NDArray[np.bool_]:
    """Mark the cells of randomly chosen square blocks until each slide's share is reached.

    Neighbours share windows, so the two parts are cut by place (``x_px y_px``, blocks of ``block_px``), not cell
    by cell. There is no gap between blocks: windows at their edges, and all those wider than a block, do share pixels,
    see :func:`shared_pixels`. Every slide keeps at least one block on either side where it has two.
    """
    chosen = np.zeros(len(frame), bool)
    slides = frame["slide"].to_numpy()
    for number, slide in enumerate(dict.fromkeys(slides)):
        rows = np.flatnonzero(slides == slide)
        place = np.floor(frame.iloc[rows][["x_px", "y_px"]].to_numpy(float) / block_px).astype(np.int64)
        _, block, counts = np.unique(place, axis=0, return_inverse=True, return_counts=True)
        order = np.random.default_rng([seed, number]).permutation(len(counts))
        enough = np.searchsorted(np.cumsum(counts[order]), share * len(rows)) + 1
        keep = order[: max(1, min(enough, len(order) - 1))] if len(order) > 1 else order[:0]
        chosen[rows] = np.isin(block.ravel(), keep)
    if not chosen.any() or chosen.all():
        raise UserError(
            "The val cells cannot be cut into two parts for the gate",
            where="gate.select, gate.block_um",
            found=f"{int(chosen.sum())} of {len(frame)} cells selected",
            fix="use smaller blocks",
        )
    return chosen


def shared_pixels(cells: GateCells, windows: Mapping[str, int]) -> dict[str, float]:
    """Return by window (side in px) the share of selecting cells whose window overlaps that of a fitting cell."""
    from scipy.spatial import cKDTree

    distance = np.full(len(cells.selecting), np.inf)
    slides = cells.selecting["slide"].to_numpy()
    for slide, fitting in cells.fitting.groupby("slide", observed=True):
        rows = np.flatnonzero(slides == slide)
        if len(rows) and len(fitting):
            tree = cKDTree(fitting[["x_px", "y_px"]].to_numpy(float))
            distance[rows], _ = tree.query(cells.selecting.iloc[rows][["x_px", "y_px"]].to_numpy(float), p=np.inf)
    return {name: round(float((distance < side).mean()), 4) for name, side in windows.items()}


def first_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the first ``FIRST_CELLS`` rows, in the order of slides and of their cell tables, in whole micro-batches.

    The original's selection: unshuffled, cut off after 1,200 batches, an incomplete batch dropped; so as a rule its
    first slide alone.
    """
    order = np.lexsort((frame["row"].to_numpy(), pd.factorize(frame["slide"])[0]))
    kept = min(FIRST_CELLS, len(frame)) // MICRO_BATCH * MICRO_BATCH
    if not kept:
        raise UserError(
            "There are too few cells to choose the gate by",
            where="protocol.gate_first_cells",
            found=f"{len(frame)} cells",
            expected=f"at least {MICRO_BATCH}, one batch of the original",
            fix="raise gate.select, or turn the switch off",
        )
    first = np.sort(order[:kept])
    _log.warning(
        "The gate is chosen by %d of %d cells, of %s (protocol: gate_first_cells)",
        kept, len(frame), ", ".join(map(str, frame["slide"].iloc[first].unique())),
    )  # fmt: skip
    return frame.iloc[first].reset_index(drop=True)
