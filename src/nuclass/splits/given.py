"""The split that a slide came with: kept, but for training cells whose windows reach into those of validation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nuclass.core.errors import UserError
from nuclass.core.log import get_logger
from nuclass.core.names import BUFFER, TEST, TRAIN, VAL
from nuclass.splits.check import reaching
from nuclass.splits.settings import SplitConfig

GIVEN_SPLIT = "given_split"
_KNOWN = (TRAIN, VAL, TEST)
_log = get_logger(__name__)


def has_given(cells: pd.DataFrame) -> bool:
    """Return whether any cell of a slide came with a split."""
    return GIVEN_SPLIT in cells and bool((cells[GIVEN_SPLIT].fillna("") != "").any())


def keep_given(
    cells: pd.DataFrame, xy: NDArray[np.float64], placed: NDArray[np.bool_], config: SplitConfig, slide: str
) -> tuple[NDArray[np.object_], dict[str, Any]]:
    """Return the split of every cell and what is to be told.

    Parameters
    ----------
    cells
        Column ``given_split``: train, val, test, or nothing. Cells with nothing are in no split of their maker's, so
        they are used by no one (buffer).
    xy, placed
        Where they lie in store px, ``(N, 2)``, and whether they do, ``(N,)``.
    config
        A cell of train whose largest window shares a pixel with one of val or test becomes buffer, and one of val
        that reaches into test; with ``no_buffer`` all stay.

    Raises
    ------
    UserError
        The column holds something else.
    """
    split = cells[GIVEN_SPLIT].fillna("").astype(str).to_numpy(dtype=object)
    unknown = sorted(set(split) - {"", *_KNOWN})
    if unknown:
        raise UserError(
            "A slide came with a split that is not known",
            where=slide or None,
            found=", ".join(unknown[:5]),
            expected=" | ".join(_KNOWN) + ", or nothing",
            fix="import the slide again",
        )
    without = int((split == "").sum())
    split[(split == "") | ~placed] = BUFFER
    moved = {}
    if not config.no_buffer:
        for name, above in ((VAL, [TEST]), (TRAIN, [VAL, TEST])):
            rows, higher = np.flatnonzero(split == name), np.isin(split, above)
            reach = rows[reaching(xy[higher], xy[rows], config.window_px)]
            split[reach] = BUFFER
            moved[name] = len(reach)
    if config.folds:
        _log.warning("The slide came with its own split, which is kept: splits.folds does not apply to it")
    for name in (TRAIN, VAL):
        if not (split == name).any():
            _log.warning("The slide came with its own split, which leaves no cell in %s", name)
    return split, {"without_split": without, "moved_to_buffer": moved}
