"""Everything about one slide, from its bundle to the files of the stage ``slides``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nuclass.core.files import read_json, write_json, write_parquet
from nuclass.core.log import get_logger

_log = get_logger(__name__)


def build_slide(
    *,
    bundle: str | Path,
    store: str | Path,
    cells: str | Path,
    alignment: str | Path,
    overlay: str | Path,
    mpp: float,
    window: int,
    qc: Mapping[str, Any],
    tiles: Mapping[str, int],
    name: str,
    threads: int = 1,
) -> None:
    """Write a slide's store, cells table, alignment numbers and alignment picture.

    Parameters
    ----------
    bundle
        Folder with ``bundle.json``, which names the H&E (``he``) and the alignment file (``alignment``).
    store, cells, alignment, overlay
        The four outputs.
    mpp
        Micrometres per pixel of the store.
    window
        Side of the local view in store px, for the rule on cells at the edge.
    qc
        See :func:`nuclass.slides.build.build_cells_table`.
    tiles
        ``tile``, ``shard`` (px) and ``levels`` of the store.
    name
        The slide's name, for the picture.
    threads
        Tiles decoded and encoded at the same time.

    Raises
    ------
    UserError
        An input is missing or wrong, or no cell is left.
    """
    from nuclass.slides.alignment import measure_alignment
    from nuclass.slides.build import build_cells_table, funnel
    from nuclass.slides.geometry import Frames
    from nuclass.slides.overlay import draw_overlay, outlines_px
    from nuclass.slides.source import open_source
    from nuclass.slides.store import SlideStore
    from nuclass.slides.writer import write_store
    from nuclass.xenium.alignment import read_alignment
    from nuclass.xenium.reader import read_bundle

    folder = Path(bundle)
    inventory = read_json(folder / "bundle.json")
    he = folder / inventory["he"]
    xenium = read_bundle(folder)
    with open_source(he) as source:
        he_shape = source.shape
    frames = Frames(read_alignment(folder / inventory["alignment"]).matrix, xenium.pixel_size, mpp, he_shape)
    # The cells first: a wrong alignment shows in seconds, the picture takes minutes.
    table = build_cells_table(xenium, frames, he_shape, qc, window)
    _log.info("cells of %s: %s", name, ", ".join(f"{key} {n}" for key, n in funnel(table).items() if n))
    info = write_store(he, frames, store, **{key: tiles[key] for key in ("tile", "shard", "levels")}, threads=threads)
    with SlideStore(store) as opened:
        measured = measure_alignment(opened, table, frames, info)
        draw_overlay(overlay, opened, table, outlines_px(xenium.boundaries("nucleus"), frames), measured, name)
    _report(name, measured)
    write_parquet(cells, table)
    write_json(alignment, {"slide": name, **measured, "funnel": funnel(table)})


def _report(name: str, measured: Mapping[str, Any]) -> None:
    if measured["mpp_mismatch"]:
        _log.warning(
            "%s: the H&E file claims %.4f um/px, the alignment says %.4f; the alignment is used",
            name,
            measured["embedded_mpp"],
            measured["mpp_he"],
        )
    say = _log.info if measured["verdict"] == "pass" else _log.warning
    reasons = "; ".join(measured["reasons"]) or "no complaint"
    say("%s: alignment %s (%s)", name, measured["verdict"], reasons)
