"""The commands on one slide: is its bundle whole, does its alignment hold, and the files that are made with both."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from nuclass.cli_common import add_command, add_settings, settings_of

_ALIGN = """\
Does an H&E lie on the cells of a Xenium run? Measures the residual between the bundle's nuclei and those of the
picture and gives a verdict: PASS, WARN or FAIL, with the reasons. With --align refine the alignment is bettered, with
--align register it is found without any file. Writes transform.json, alignment.json, alignment.png and matrix.csv, the
alignment in the form of Xenium Explorer (H&E px to morphology px). Ends with status 1 if the verdict is FAIL.

examples:
  nuclass align path/to/outs --out results/mine
  nuclass align outs.zip --he slide.ome.tif --alignment keypoints.csv --out results/mine
  nuclass align path/to/outs --he slide.svs --align register --out results/mine
"""
_CHECK = """\
Is a bundle whole, and do its files agree? Each rule that holds in real bundles gets a line: PASS, WARN, FAIL or SKIPPED
(what it needs is not there). Ends with status 1 if one fails.

example:
  nuclass check-bundle resources/bundles/ovary_1
"""
_BUILD = """\
Bring one slide's H&E to the study's scale and place its cells on it.
Reads a fetched bundle (a folder with bundle.json) and the transform.json of nuclass align; writes he.ome.zarr and
cells.parquet.

examples:
  nuclass build-slide results/mine/bundle --out results/mine
  nuclass build-slide resources/bundles/ovary_1 --transform results/slides/ovary_1/transform.json --out work/ovary_1
"""


def add_align(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``nuclass align``."""
    parser = add_command(commands, "align", "Align an H&E and a bundle, and judge the alignment", _ALIGN)
    parser.add_argument("path", help="folder or .zip with the output of the Xenium run")
    parser.add_argument("--he", default="", help="the H&E image (default: the one beside the bundle)")
    parser.add_argument(
        "--alignment",
        default="",
        help="matrix or keypoints file, the word grid, or 6 or 9 numbers (default: the file beside the H&E)",
    )
    parser.add_argument(
        "--align",
        choices=("given", "refine", "register"),
        default="given",
        help="use the alignment as it is, better it, or find one (default: %(default)s)",
    )
    parser.add_argument(
        "--name", default="slide", help="name of the slide in files and pictures (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    add_settings(parser, "alignment")
    parser.set_defaults(run=_align)


def _align(options: argparse.Namespace) -> None:
    import numpy as np

    from nuclass.core.files import atomic_path, read_json
    from nuclass.slides.job import align_slide, check_slide
    from nuclass.xenium.fetch import fetch_slide

    settings = settings_of(options)
    row = {"slide": options.name, "source": "local", "dataset": "", "path": options.path}
    row |= {"he": options.he, "alignment": options.alignment, "align": options.align}
    bundle, transform = options.out / "bundle", options.out / "transform.json"
    fetch_slide(row, bundle, image=options.align == "register")
    align_slide(
        bundle=bundle,
        transform=transform,
        name=options.name,
        align=options.align,
        mpp=settings["mpp"],
        robust=settings["alignment"]["robust"],
    )
    verdict, picture = options.out / "alignment.json", options.out / "alignment.png"
    check_slide(bundle=bundle, transform=transform, verdict=verdict, overlay=picture, settings=settings["alignment"])
    record = read_json(verdict)
    with atomic_path(options.out / "matrix.csv") as temporary:
        np.savetxt(temporary, np.asarray(record["matrix"]), delimiter=",", fmt="%.12g")
    lines = [f"{record['verdict'].upper()}: {options.name}, H&E at {record['mpp_he']:.4f} um/px"]
    if record["residual_um"] is not None:
        lines.append(f"residual {record['residual_um']:.2f} um, score {record['score']:.0f}")
    elif record["score"] is not None:
        lines.append(f"score {record['score']:.0f}: no place found where nuclei lie on nuclei")
    lines += [*record["reasons"], *record["notes"], f"picture: {picture}"]
    sys.stdout.write("\n  ".join(lines) + "\n")
    if record["verdict"] == "fail":
        sys.exit(1)


def add_check_bundle(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``nuclass check-bundle``."""
    parser = add_command(commands, "check-bundle", "Check that a bundle is whole and its files agree", _CHECK)
    parser.add_argument("bundle", type=Path, help="folder with experiment.xenium")
    parser.set_defaults(run=_check_bundle)


def _check_bundle(options: argparse.Namespace) -> None:
    from nuclass.core.errors import UserError
    from nuclass.xenium.checks import check_bundle, format_checks
    from nuclass.xenium.reader import read_bundle

    bundle = read_bundle(options.bundle)
    checks = check_bundle(bundle)
    sys.stdout.write("\n".join([f"{options.bundle}: analysis {bundle.version}", *format_checks(checks)]) + "\n")
    failed = [check.name for check in checks if check.verdict == "fail"]
    if failed:
        raise UserError(f"{len(failed)} rules do not hold in the bundle", where=options.bundle, found=", ".join(failed))


def add_build_slide(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``nuclass build-slide``."""
    parser = add_command(commands, "build-slide", "Bring an H&E to the study's scale and place its cells on it", _BUILD)
    parser.add_argument("bundle", type=Path, help="folder of the bundle, such as resources/bundles/ovary_1")
    parser.add_argument("--transform", type=Path, help="the slide's transform.json (default: the one in --out)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--threads", type=int, default=1, help="tiles worked on at once (default: %(default)s)")
    add_settings(parser)
    parser.set_defaults(run=_build_slide)


def _build_slide(options: argparse.Namespace) -> None:
    from nuclass.core.protocol import parse_protocol
    from nuclass.slides.job import build_slide

    settings = settings_of(options)
    build_slide(
        bundle=options.bundle,
        transform=options.transform or options.out / "transform.json",
        store=options.out / "he.ome.zarr",
        cells=options.out / "cells.parquet",
        checks=options.out / "checks.csv",
        mpp=settings["mpp"],
        window=settings["windows"]["local"],
        qc=settings["qc"],
        tiles={key: settings["slide_store"][key] for key in ("tile", "shard", "levels")},
        name=options.bundle.name,
        threads=options.threads,
        inverted_mpp=parse_protocol(settings["protocol"]).inverted_mpp,
    )
    sys.stdout.write(f"Wrote {options.out}.\n")
