"""Pictures of the class activation maps of a few cells, each over its window."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nuclass.core.errors import UserError
from nuclass.core.files import atomic_path
from nuclass.core.log import get_logger
from nuclass.core.names import CELL_ID

if TYPE_CHECKING:
    from PIL.Image import Image

_log = get_logger(__name__)
SIDE = 256
"""Largest side of a picture, px."""
KINDS = {
    "local": ("local_cam", "local_image", "Local model"),
    "global_local": ("global_local_cam", "local_image", "Global model, on the cell"),
    "global": ("global_cam", "global_image", "Global model, around it"),
    "gated": ("gated_cam", "global_image", "Weighed by the gate"),
}
_CMAP, _ALPHA = "inferno", 0.6


def write_maps(slide: str, chosen: str | Path, maps: str | Path, folder: Path, ids: pd.Index) -> list[dict[str, Any]]:
    """Write ``{number}_{kind}.png`` for the slide's chosen cells; return one entry a cell.

    Parameters
    ----------
    slide
        Cells of other slides are passed over; how many of its own are not in ``ids`` is logged.
    chosen
        Cells with maps: ``slide cell_id local_prediction global_prediction``.
    maps
        ``.npz`` in the same order, as :func:`nuclass.interpret.gradcam.compute_maps` returns it; without arrays where
        there is no cell.
    ids
        Cell ids of the slide, in the page's order.

    Returns
    -------
    ``cell`` (place in ``ids``), and ``pictures``: ``file title width`` (of the window, px) and ``explains``, the class.
    """
    table = pd.read_csv(chosen, dtype={CELL_ID: str})
    rows = np.flatnonzero(table["slide"].astype(str) == slide)
    if not len(rows):
        return []
    places = ids.get_indexer(pd.Index(table[CELL_ID].iloc[rows]))
    absent = int((places < 0).sum())
    if absent:
        _log.warning(
            "%s: %d of %d cells named for activation maps are not among the cells shown, so their maps are left out",
            slide, absent, len(rows),
        )  # fmt: skip
    folder.mkdir(parents=True)
    entries = []
    with np.load(maps) as stored:
        needed = {name for cam, image, _ in KINDS.values() for name in (cam, image)}
        missing = sorted(needed - set(stored))
        if missing:
            raise UserError("The file of activation maps lacks arrays", where=maps, expected=missing)
        arrays = {name: stored[name] for name in needed}
    for row, place in zip(rows.tolist(), places.tolist(), strict=True):
        if place < 0:
            continue
        pictures = []
        for kind, (cam, image, title) in KINDS.items():
            name = f"{place}_{kind}.png"
            with atomic_path(folder / name) as path:
                overlaid(arrays[image][row], arrays[cam][row]).save(path, "PNG")
            facts = table.iloc[row]
            model = "local" if kind == "local" else "global"
            explains = "" if kind == "gated" else str(facts.get(f"{model}_prediction", ""))
            pictures.append(
                {"file": f"maps/{name}", "title": title, "width": arrays[image].shape[2], "explains": explains}
            )
        entries.append({"cell": place, "pictures": pictures})
    return entries


def overlaid(image: NDArray[np.uint8], cam: NDArray[np.floating[Any]]) -> Image:
    """Return a window (S, S, 3) under its map (S, S) in [0, 1], at most :data:`SIDE` px wide.

    The colours are those of figure gradcam; where the map is low the tissue shows through.
    """
    import matplotlib as mpl
    from PIL import Image as Pillow

    side = min(SIDE, len(cam))
    window = np.asarray(Pillow.fromarray(image).resize((side, side), Pillow.Resampling.BOX), dtype=np.float32)
    small = Pillow.fromarray(np.asarray(cam, dtype=np.float32)).resize((side, side), Pillow.Resampling.BOX)
    heat = np.clip(np.asarray(small), 0, 1)
    colour = mpl.colormaps[_CMAP](heat)[..., :3] * 255
    alpha = (_ALPHA * np.clip(heat * 1.6, 0, 1))[..., None]
    return Pillow.fromarray(np.rint(window * (1 - alpha) + colour * alpha).astype(np.uint8))
