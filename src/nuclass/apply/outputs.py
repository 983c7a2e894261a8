"""The outputs of a run: each format is written from the run's folder alone, so any can be asked for later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nuclass.core.errors import UserError, closest
from nuclass.core.log import get_logger

if TYPE_CHECKING:
    from nuclass.apply.out_read import Run

_log = get_logger(__name__)
NAMES = {
    "csv": "predictions.csv",
    "geojson": "predictions.geojson",
    "spatialdata": "spatialdata.zarr",
    "anndata": "cells.h5ad",
    "explorer": "explorer",
    "summary": "summary.html",
}
"""What each format writes into the folder of the run."""
FORMATS = tuple(NAMES)
DEFAULT = ("csv", "geojson", "explorer", "summary")
"""What is written without being asked for."""


def check_formats(wanted: Sequence[str]) -> None:
    """Raise where a format is not known or lacks its package, before anything is computed."""
    for name in wanted:
        if name not in FORMATS:
            raise UserError(
                f"There is no output '{name}'.{closest(name, list(FORMATS))}",
                found=name,
                expected=", ".join(FORMATS),
                fix="name some of these, separated by commas",
            )
    if "spatialdata" in wanted:
        from nuclass.apply.out_spatialdata import check_installed

        check_installed()


def write_outputs(run: Path, wanted: Sequence[str], *, store: Path, classes: Path) -> None:
    """Write outputs of a finished run into its folder, each under its name in :data:`NAMES`, each atomically.

    Parameters
    ----------
    run
        Folder with ``predictions.parquet``, ``run.json`` and, where there are outlines, ``outlines.parquet``.
    wanted
        Of :data:`FORMATS`. Each is written once, in the order of that list.
    store
        The slide store, for the picture of the slide.
    classes
        ``resources/classes.tsv``: names, order and colours of the classes.

    Raises
    ------
    UserError
        If a format is not known, the run is not whole, or a package that a format needs is not installed.
    """
    from nuclass.apply.out_read import Run

    check_formats(wanted)
    read = Run.read(run, classes)
    writers = _writers(store)
    for name in FORMATS:
        if name in wanted:
            path = read.folder / NAMES[name]
            writers[name](read, path)
            _log.info("wrote %s", path)


def _writers(store: Path) -> dict[str, Callable[[Run, Path], None]]:
    from nuclass.apply.out_anndata import write_anndata
    from nuclass.apply.out_csv import write_table
    from nuclass.apply.out_explorer import write_explorer
    from nuclass.apply.out_geojson import write_geojson
    from nuclass.apply.out_spatialdata import write_spatialdata
    from nuclass.apply.out_summary import write_summary

    return {
        "csv": write_table,
        "geojson": write_geojson,
        "spatialdata": lambda run, path: write_spatialdata(run, store, path),
        "anndata": write_anndata,
        "explorer": lambda run, path: write_explorer(run, store, path),
        "summary": lambda run, path: write_summary(run, store, path),
    }
