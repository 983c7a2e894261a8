"""Do a slide store and the tables of its cells belong together, or is one older than the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nuclass.core.errors import UserError
from nuclass.core.names import CELL_ID, KEPT
from nuclass.slides.store import SlideStore

if TYPE_CHECKING:
    import pandas as pd

# Rounding is a millionth of a px; another scale moves cells by px.
_SAME_PLACE_PX = 0.01
_FIX = "one is older than the other; build the slide again, which makes both"


def check_store_fits(store: SlideStore, cells: pd.DataFrame, mpp: float, margin: float = 0.0) -> None:
    """Refuse a slide store that is of another run than the table of cells, such as one older than the labels.

    Parameters
    ----------
    store
        The slide.
    cells
        Its table: cell_id, x_px, y_px, and where it has them status, x_he, y_he.
    mpp
        Micrometres per pixel of the study.
    margin
        How far off the slide, in px, a kept cell may lie: on the rim ``qc.max_off_slide`` may keep some.

    Raises
    ------
    UserError
        The store has another scale than the study; the cells were placed with another scale than the store was made
        with; or kept cells lie off the slide.
    """
    if abs(store.mpp / mpp - 1) > 1e-6:
        raise UserError(
            "The slide store has another scale than the study",
            where=store.path,
            found=f"{store.mpp:g} um/px",
            expected=f"{mpp:g} um/px, the study's mpp",
            fix="build the slide again, or correct mpp in the configuration",
        )
    kept = cells[cells["status"] == KEPT] if "status" in cells else cells
    if kept.empty:
        return
    xy = kept[["x_px", "y_px"]].to_numpy(np.float64)
    if {"x_he", "y_he"} <= set(kept) and "scale" in store.attributes:
        scale = float(store.attributes["scale"])
        off = np.abs(kept[["x_he", "y_he"]].to_numpy(np.float64) * scale - xy).max(axis=1)
        worst = int(np.argmax(np.nan_to_num(off, nan=np.inf)))
        if not off[worst] <= _SAME_PLACE_PX:
            raise UserError(
                "The slide store is of another run than the table of cells",
                where=store.path,
                found=f"{int((~(off <= _SAME_PLACE_PX)).sum())} of {len(kept)} cells lie elsewhere, "
                f"{kept[CELL_ID].iloc[worst]} by {off[worst]:.1f} px",
                expected=f"x_px = x_he x {scale:.6g}, the scale the store was made with",
                fix=_FIX,
            )
    height, width = store.shape
    outside = ~((xy >= -margin) & (xy <= (width + margin, height + margin))).all(axis=1)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        raise UserError(
            "Cells lie off the slide store",
            where=store.path,
            found=f"{int(outside.sum())} of {len(kept)} kept cells, {kept[CELL_ID].iloc[first]} at "
            f"{xy[first, 0]:.0f}, {xy[first, 1]:.0f} px",
            expected=f"x 0 to {width}, y 0 to {height} px",
            fix=_FIX,
        )


def same_cells(cells: pd.DataFrame, other: pd.DataFrame, what: str) -> pd.DataFrame:
    """Return ``other`` in the row order of ``cells``; both must hold the same ids.

    Parameters
    ----------
    what
        What the other table is, in the plural, such as ``labels``.

    Raises
    ------
    UserError
        Naming how many ids only one of them has, and the first ones.
    """
    import pandas as pd

    left, right = (pd.Index(table[CELL_ID].astype(str)) for table in (cells, other))
    if left.is_unique and right.is_unique and len(left) == len(right):
        rows = right.get_indexer(left)
        if (rows >= 0).all():
            return other.iloc[rows].reset_index(drop=True)
    sides = {"in the table of cells": left[~left.isin(right)], f"in the {what}": right[~right.isin(left)]}
    told = [f"{len(ids)} only {side} ({', '.join(ids[:3])})" for side, ids in sides.items() if len(ids)]
    raise UserError(
        f"The {what} are of other cells than the table of cells",
        found="; ".join([f"{len(left)} cells, {len(right)} {what}", *told]),
        expected="the same cell ids, each once",
        fix=f"one of the two is older than the other; make the {what} again",
    )
