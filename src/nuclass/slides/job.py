"""The three steps of the stage ``slides``: the transform, the verdict on it, and the files made with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nuclass.core.errors import UserError
from nuclass.core.files import read_json, write_csv, write_json, write_parquet
from nuclass.core.log import get_logger

if TYPE_CHECKING:
    from nuclass.xenium.reader import Bundle

_log = get_logger(__name__)


def align_slide(
    *, bundle: str | Path, transform: str | Path, name: str, align: str, mpp: float, robust: bool = True
) -> None:
    """Find the map between a slide's H&E and its bundle, and write it as ``transform.json``.

    Parameters
    ----------
    bundle
        Folder with ``bundle.json``, which names the H&E (``he``), the alignment (``alignment``, may be null) and where
        that came from (``alignment_source``).
    transform
        The output: ``slide``, ``matrix`` (H&E px -> morphology px), ``pixel_size mpp mpp_he he_shape embedded_mpp
        rotation_deg mirrored anisotropy``, and how it came about (:func:`nuclass.slides.align.find_transform`).
    name
        The slide's name.
    align
        ``given``, ``refine`` or ``register``.
    mpp
        Micrometres per px of the study.
    robust
        Leave out grossly wrong keypoints.

    Raises
    ------
    UserError
        An input is missing or wrong, or the slide cannot be registered.
    """
    from nuclass.slides.align import find_transform, nuclei_of
    from nuclass.slides.source import open_source
    from nuclass.xenium.alignment import read_alignment
    from nuclass.xenium.reader import read_bundle

    folder = Path(bundle)
    inventory = read_json(folder / "bundle.json")
    xenium = read_bundle(folder)
    given = inventory.get("alignment")
    given_as = str(inventory.get("alignment_source") or given or "none")
    alignment = None
    if given:
        alignment = read_alignment(folder / given, pixel_size=xenium.pixel_size, robust=robust, name=given_as)
    dapi = xenium.morphology_focus()
    with open_source(folder / inventory["he"]) as source:
        frames, record = find_transform(
            source,
            xenium,
            nuclei_of(xenium),
            alignment,
            align=align,
            mpp=mpp,
            dapi=dapi,
            given_as=given_as,
        )
        embedded = source.embedded_mpp
    for note in record["notes"]:
        _log.info("%s: %s", name, note)
    write_json(
        transform,
        {
            "slide": name,
            "matrix": frames.alignment,
            "pixel_size": frames.pixel_size,
            "mpp": mpp,
            "mpp_he": frames.mpp_he,
            "he_shape": frames.he_shape,
            "embedded_mpp": embedded,
            "rotation_deg": frames.rotation_deg,
            "mirrored": frames.mirrored,
            "anisotropy": frames.anisotropy,
            **record,
        },
    )


def check_slide(
    *, bundle: str | Path, transform: str | Path, verdict: str | Path, overlay: str | Path, settings: Mapping[str, Any]
) -> None:
    """Measure how a bundle's nuclei lie on its H&E, judge it, and write ``alignment.json`` and its picture.

    Parameters
    ----------
    bundle
        Folder with ``bundle.json``.
    transform
        What :func:`align_slide` wrote.
    verdict
        The output: all of ``transform.json``, and ``verdict`` (pass, warn, fail) with its ``reasons``; ``residual_um``
        with ``residual_x_um residual_y_um`` (where the nuclei lie, seen from where the cells say, along the H&E's axes)
        and ``residual_sem_um``, null where no peak stands out; ``score``; ``region_p90_um``; ``off_image off_tissue``
        (shares of the nuclei); ``n_nuclei n_measured``; ``mpp_mismatch``; ``blocks`` (one entry a block).
    overlay
        The picture, PNG.
    settings
        The section ``alignment`` of the settings.
    """
    from nuclass.slides.align import load_transform, nuclei_of
    from nuclass.slides.overlay import draw_overlay
    from nuclass.slides.source import open_source
    from nuclass.slides.verdict import MPP_TOLERANCE, Limits, judge, measure_alignment
    from nuclass.xenium.reader import read_bundle

    folder = Path(bundle)
    frames, record = load_transform(transform)
    limits = Limits.from_config(settings)
    nuclei = nuclei_of(read_bundle(folder))
    with open_source(folder / read_json(folder / "bundle.json")["he"]) as source:
        measured = measure_alignment(source, frames, nuclei, limits)
        judgement, reasons = judge(measured, frames, limits)
        embedded, notes = record["embedded_mpp"], list(record["notes"])
        mismatch = embedded is not None and abs(embedded / frames.mpp_he - 1) > MPP_TOLERANCE
        if mismatch:
            notes.append(
                f"the H&E file claims {embedded:.4f} um/px, the alignment says {frames.mpp_he:.4f} and is used"
            )
        peak = measured.peak
        # A peak that does not stand out is chance, and its place says nothing.
        found = peak if peak and peak.stands_out(limits.fail_score) else None
        record |= {
            "verdict": judgement,
            "reasons": reasons,
            "notes": notes,
            "residual_um": found.distance_um if found else None,
            "residual_x_um": found.x_um if found else None,
            "residual_y_um": found.y_um if found else None,
            "residual_sem_um": measured.sem_um if found else None,
            "score": peak.score if peak else None,
            "region_p90_um": measured.region_p90_um,
            "off_image": measured.off_image,
            "off_tissue": measured.off_tissue,
            "n_nuclei": measured.n_nuclei,
            "n_measured": measured.n_measured,
            "mpp_mismatch": mismatch,
            "blocks": measured.blocks.to_dict("records"),
        }
        draw_overlay(overlay, source, frames, nuclei, measured, limits, record)
    say = _log.info if judgement == "pass" else _log.warning
    say("%s: alignment %s%s", record["slide"], judgement, "".join(f"; {text}" for text in [*reasons, *notes]))
    write_json(verdict, record)


def refuse_failed(verdict: str | Path, accept: Sequence[str], picture: str | Path) -> None:
    """Raise a :class:`UserError` for a slide whose alignment failed, unless ``accept`` names it."""
    record = read_json(verdict)
    if record["verdict"] != "fail":
        return
    if record["slide"] in accept:
        _log.warning("%s: the alignment failed, and is accepted by alignment.accept", record["slide"])
        return
    fix = "look at the picture; give a better alignment, or 'register' in the column 'align' of the slide sheet"
    if record.get("suggestion"):
        fix = "give the matrix as suggested"
    raise UserError(
        f"The alignment of slide '{record['slide']}' failed",
        where=picture,
        found="; ".join([*record["reasons"], *record["notes"]]),
        expected="a verdict of pass or warn",
        fix=f"{fix}; to use it all the same, name the slide in alignment.accept of the settings",
    )


def build_slide(
    *,
    bundle: str | Path,
    transform: str | Path,
    store: str | Path,
    cells: str | Path,
    checks: str | Path,
    mpp: float,
    window: int,
    qc: Mapping[str, Any],
    tiles: Mapping[str, int],
    name: str,
    threads: int = 1,
    inverted_mpp: bool = False,
) -> None:
    """Write a slide's store and its table of cells.

    Parameters
    ----------
    bundle
        Folder with ``bundle.json``, which names the H&E (``he``).
    transform
        What :func:`align_slide` wrote.
    store, cells, checks
        The outputs; ``checks`` is a table of the rules that hold in real bundles, with their verdicts.
    mpp
        Micrometres per pixel of the store.
    window
        Side of the local view in store px, for the rule on cells at the edge.
    qc
        See :func:`nuclass.slides.build.build_cells_table`.
    tiles
        ``tile``, ``shard`` (px) and ``levels`` of the store.
    name
        The slide's name.
    threads
        Tiles decoded and encoded at the same time.
    inverted_mpp
        Scale the store as the original does, see :class:`nuclass.slides.geometry.Frames`.

    Raises
    ------
    UserError
        An input is missing or wrong, a rule fails, or no cell is left.
    """
    from nuclass.slides.align import load_transform
    from nuclass.slides.build import build_cells_table, funnel
    from nuclass.slides.geometry import Frames
    from nuclass.slides.writer import write_store
    from nuclass.xenium.reader import read_bundle

    folder = Path(bundle)
    xenium = read_bundle(folder)
    _check_bundle(xenium, checks, name)
    read, record = load_transform(transform)
    frames = Frames(read.alignment, read.pixel_size, mpp, read.he_shape, inverted_mpp)
    if inverted_mpp:
        _log.warning("%s: a px is %.4f um wide, not %g um (protocol: inverted_mpp)", name, frames.mpp_store, mpp)
    he_shape = (int(record["he_shape"][0]), int(record["he_shape"][1]))
    # The cells first: a wrong alignment shows in seconds, the picture takes minutes.
    table = build_cells_table(xenium, frames, he_shape, qc, window)
    _log.info("cells of %s: %s", name, ", ".join(f"{key} {n}" for key, n in funnel(table).items() if n))
    he = folder / read_json(folder / "bundle.json")["he"]
    write_store(he, frames, store, **{key: tiles[key] for key in ("tile", "shard", "levels")}, threads=threads)
    write_parquet(cells, table)


def _check_bundle(bundle: Bundle, table: str | Path, name: str) -> None:
    """Check a bundle's files against each other, write what was found, and raise where a rule fails."""
    import pandas as pd

    from nuclass.xenium.checks import check_bundle, format_checks

    checks = check_bundle(bundle)
    failed = [check for check in checks if check.verdict == "fail"]
    for line in format_checks(check for check in checks if check.verdict in ("warn", "fail")):
        _log.warning("%s: %s", name, line)
    if failed:
        raise UserError(
            "The files of the bundle do not agree",
            where=bundle.folder,
            found="\n              ".join(f"{c.name}: {c.found} ({c.detail or 'no detail'})" for c in failed),
            expected="; ".join(dict.fromkeys(check.expected for check in failed)),
            fix="take all files from one run of the analysis, and copy again what may be cut off",
        )
    write_csv(table, pd.DataFrame([asdict(check) for check in checks]))
