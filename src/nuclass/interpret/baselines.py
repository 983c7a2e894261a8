"""Activation maps of fine-tuned baselines, each on the window as it reads it itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nuclass.core.log import get_logger
from nuclass.core.names import LOCAL, title
from nuclass.interpret.gradcam import calls, described, local_inputs, local_maps, to_window, with_rows
from nuclass.patches.windows import WindowReader
from nuclass.training.branches import choose_device
from nuclass.training.checkpoint import load_checkpoint
from nuclass.training.restore import restore_local

if TYPE_CHECKING:
    import pandas as pd

_log = get_logger(__name__)


def compute_baseline_maps(
    cells: pd.DataFrame,
    *,
    windows: Mapping[str, str | Path],
    tables: Mapping[str, str | Path],
    checkpoints: Mapping[str, str | Path],
    cache_mb: int = 128,
) -> tuple[dict[str, NDArray[Any]], pd.DataFrame]:
    """Compute the maps of a few cells for the class that each baseline predicts.

    Parameters
    ----------
    cells
        One row a cell: ``slide cell_id organ x_px y_px``.
    windows, tables
        As for :func:`nuclass.interpret.gradcam.compute_maps`.
    checkpoints
        ``best.ckpt`` of each fine-tuned baseline by its name.

    Returns
    -------
    ``<name>_cam`` (N, S, S) in [0, 1] on the local window, float32, and ``<name>_cam_layer``, layer and
    grid in words; and ``slide cell_id`` with, for each name,
    ``<name>_prediction``, its calibrated ``<name>_probability`` and whether it is a stand-in, ``<name>_stand_in``.
    Without a cell there are neither maps nor these columns.
    """
    found = cells[["slide", "cell_id"]].copy()
    if not len(cells):
        return {}, found
    device = choose_device()
    reader = WindowReader(windows, cache_mb)
    placed = with_rows(cells, tables)
    arrays: dict[str, NDArray[Any]] = {}
    for name, path in checkpoints.items():
        data = load_checkpoint(Path(path), LOCAL)
        model = restore_local(data).to(device).requires_grad_(False)
        maps, logits = local_maps(model, *local_inputs(data, placed, reader, device))
        arrays[f"{name}_cam"] = to_window(maps, data["windows"]["local"]).cpu().numpy().astype(np.float32)
        arrays[f"{name}_cam_layer"] = np.array(described(model.backbone, maps))
        found[f"{name}_prediction"], found[f"{name}_probability"] = calls(logits, None, data)
        found[f"{name}_stand_in"] = bool(data["baseline"]["stand_in"])
        _log.info("%s: maps of %d cells, %s", title(name), len(cells), described(model.backbone, maps))
    return arrays, found


def tell_left_out(asked: list[str], configured: list[str]) -> None:
    """Log which baselines were asked for and are not in the model file."""
    missing = [name for name in asked if name not in configured]
    if missing:
        _log.warning(
            "figures.gradcam.baselines names %s, which the model file does not configure: left out", ", ".join(missing)
        )
