"""Take in a slide that comes as patch files: check them, and write where each cell's windows lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nuclass.core.files import write_json, write_parquet
from nuclass.core.log import get_logger
from nuclass.core.names import CELL_ID, KEPT
from nuclass.core.patch_rows import find_patches
from nuclass.patches.states import FORMAT, file_state
from nuclass.patches.trio import ROLES, Part, Trio, open_trio

if TYPE_CHECKING:
    import pandas as pd

_log = get_logger(__name__)


def import_patches(
    *,
    folder: str | Path,
    cells: str | Path,
    manifest: str | Path,
    windows: Mapping[str, int],
    mpp: float,
    slide: str = "",
) -> pd.DataFrame:
    """Check a data set of three files, and write its table of cells and the list of its patch files.

    No pixel is copied: windows are read from the files where they lie, as long as these do not change.

    Parameters
    ----------
    folder
        The folder of the three files, or of ``train/`` and ``test/`` with them.
    cells
        The output ``cells.parquet``, in the order of the annotations: cell_id, x_um, y_um, x_px, y_px (px of the
        windows, continuous), status (``kept``), reason (``""``), given_label (as it was given), given_split (``""``,
        ``train`` or ``val``).
    manifest
        The output ``patches.json``: format, mpp, windows (role -> px of the slide), sides (role -> px stored), and of
        each part folder, split and files (of virtual windows also ``sources``, the files they point into). Beside it
        ``patches.parquet``: cell_id, part, local, global (rows in the files), in the order of ``cells``.
    windows
        Sides of the study's windows in px, ``local`` and ``global``.
    mpp
        Micrometres per px of the study.
    slide
        Named in the log.

    Returns
    -------
    The table of cells.

    Raises
    ------
    UserError
        See :func:`nuclass.patches.trio.open_trio`.
    """
    # Taken before the check, so that a file that changes meanwhile is told when it is read.
    states = {path: file_state(path) for path in find_patches(folder, windows).paths}
    with open_trio(folder, windows, mpp) as trio:
        for note in trio.notes:
            _log.warning("%s: %s", slide or trio.folder, note)
        scale = trio.mpp or mpp
        frame = cells_frame(trio, scale)
        data = {
            "format": FORMAT,
            "slide": slide,
            "mpp": scale,
            "windows": {role: windows[role] for role in ROLES},
            "sides": trio.sides,
            "parts": [_part(part, states) for part in trio.parts],
            "notes": trio.notes,
        }
        rows = trio.rows.astype({"part": np.int8, **dict.fromkeys(ROLES, np.int32)})
    write_parquet(Path(manifest).with_suffix(".parquet"), rows)
    write_json(manifest, data)
    write_parquet(cells, frame)
    counts = ", ".join(f"{n} {split}" for split, n in frame["given_split"].value_counts().items() if split)
    _log.info("%s: %d cells%s", slide or trio.folder, len(frame), f" ({counts})" if counts else "")
    return frame


def cells_frame(trio: Trio, mpp: float) -> pd.DataFrame:
    """Return the table of cells that :func:`import_patches` writes; ``mpp`` in um/px counts where some have no um."""
    import pandas as pd

    given = trio.cells
    px = given[["centroid_x", "centroid_y"]].to_numpy(np.float64)
    um = px * mpp
    # The frame of the micrometres may be moved and turned against that of the px, so the two are never mixed.
    if {"micron_x_centroid", "micron_y_centroid"} <= set(given):
        stated = given[["micron_x_centroid", "micron_y_centroid"]].to_numpy(np.float64)
        if np.isfinite(stated).all():
            um = stated
    columns = {CELL_ID: given[CELL_ID], "x_um": um[:, 0], "y_um": um[:, 1], "x_px": px[:, 0], "y_px": px[:, 1]}
    return pd.DataFrame(columns).assign(
        status=KEPT, reason="", given_label=given["label"].to_numpy(), given_split=given["split"].to_numpy()
    )


def _part(part: Part, states: Mapping[Path, dict[str, int]]) -> dict[str, object]:
    files: dict[str, dict[str, object]] = {}
    for role, file in part.files.items():
        files[role] = {
            "path": str(file.path.absolute()),
            **states[file.path],
            "side": file.side,
            "layout": file.layout,
            "shape": list(file.shape),
            "count": file.count,
        }
        if file.sources:
            files[role]["sources"] = [{"path": str(path.absolute()), **file_state(path)} for path in file.sources]
    return {
        "folder": str(part.folder.absolute()),
        "split": part.split,
        "annotations": {"path": str(part.annotations.absolute()), **states[part.annotations]},
        "files": files,
    }
