"""The command ``nuclass predict``: the cells of one's own slide, typed by a trained model."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nuclass.cli_common import add_command
from nuclass.core.names import GLOBAL, LOCAL
from nuclass.core.own_cells import ORIGINS

_ABOUT = """\
Type the cells of your own H&E slide with a trained model. No Snakemake, no study, no labels: an image, positions of
cells, a checkpoint.

SLIDE   the H&E: TIFF, OME-TIFF, SVS, NDPI, MRXS and what else openslide reads, OME-Zarr (0.4, 0.5), PNG or JPEG
--cells a GeoJSON of nuclei or cells (QuPath, CellViT, StarDist); a table (CSV, TSV or parquet with x and y); a Xenium
        output (folder or outs.zip, with its alignment); or detect, to find the nuclei in SLIDE
--frame in which unit and from where their numbers count, unless the file says it: he (px of SLIDE at full resolution),
        um (micrometres from its corner), px@0.25 (px of 0.25 um), morph or xenium_um (with --alignment)
--origin which corner he, um and px@ of a file count from, where a scanner's file holds only a part of its plane (MRXS,
        SCN): crop (of that part, as QuPath counts) or image (of the plane). Without effect on all other slides
--ckpt  best.ckpt of a gate (its local and global model lie beside it, or are named), of a local or of a global model
--mpp   micrometres per px of SLIDE at full resolution. What files say of themselves is often wrong; where a file says
        nothing, the alignment of a Xenium run is believed

Writes to DIR: predictions.parquet (one row a cell: places, status, class, confidence, calibrated probabilities),
run.json (how it was made, and hints), he.ome.zarr (the slide as the model sees it), and the outputs of --formats:
csv, geojson (QuPath opens it with colours), spatialdata, anndata, explorer (a page to look around), summary (one page).
A cell whose confidence is below --abstain-below gets no class; one whose window lies off the slide is left out.
Hints tell where the slide is not what the model was trained for: its organ, scale, stain, or the model's own doubt.
A run that was stopped goes on when the same command is given again; of a finished one only the outputs are written.

examples:
  nuclass predict a.svs --cells nuclei.geojson --ckpt results/models/gate/best.ckpt --organ ovary --mpp 0.25 --out out
  nuclass predict slide.ome.tif --cells cells.csv --frame um --ckpt gate/best.ckpt --organ lung --out out
  nuclass predict he.ome.tif --cells xenium/outs --alignment he_imagealignment.csv --ckpt gate/best.ckpt --out out
  nuclass predict slide.ndpi --cells detect --ckpt local/best.ckpt --out out --device cuda --batch 1024
  nuclass predict slide.svs --cells nuclei.geojson --ckpt gate/best.ckpt --out out --formats geojson,spatialdata
"""


def add_predict(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the others."""
    parser = add_command(commands, "predict", "Type the cells of your own slide with a trained model", _ABOUT)
    parser.set_defaults(run=_predict)
    parser.add_argument("slide", type=Path, metavar="SLIDE", help="the H&E image")
    parser.add_argument("--ckpt", type=Path, required=True, metavar="CKPT", help="best.ckpt of the model")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--organ", metavar="NAME", help="what the section is of: an organ of the model, or unknown (default: unknown)"
    )
    parser.add_argument(
        "--mpp",
        type=float,
        metavar="UM",
        help="micrometres per px of SLIDE (default: what the file says, else the alignment)",
    )
    parser.add_argument("--name", help="name of the slide (default: that of the file)")
    _add_positions(parser)
    _add_model(parser)
    _add_result(parser)


def _add_positions(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("positions of the cells")
    group.add_argument(
        "--cells",
        required=True,
        metavar="FILE",
        help="GeoJSON, table or Xenium output; or detect, detect:classical, detect:cellpose",
    )
    group.add_argument("--frame", metavar="FRAME", help="of their numbers: he, um, px@0.25, morph or xenium_um")
    group.add_argument("--columns", metavar="LIST", help="of a table: x=NAME,y=NAME or x=NAME,y=NAME,id=NAME")
    group.add_argument(
        "--alignment",
        metavar="FILE",
        help="map from SLIDE to the morphology image of a Xenium run: its file, or the word grid "
        "(default: the file beside the run)",
    )
    group.add_argument(
        "--origin",
        choices=ORIGINS,
        help="corner that px and um of a file count from, where only a part of the plane was scanned: crop (QuPath) or "
        "image (the whole plane); needed there, and without effect on any other slide",
    )
    group.add_argument("--weights", type=Path, metavar="FILE", help="of detect:cellpose: the network's weights")


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how the model runs")
    for name in (LOCAL, GLOBAL):
        group.add_argument(
            f"--{name}",
            dest=f"{name}_checkpoint",
            type=Path,
            metavar="CKPT",
            help=f"of a gate: best.ckpt of the {name} model (default: ../{name}/best.ckpt beside the gate's folder)",
        )
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")
    group.add_argument(
        "--batch",
        type=count,
        metavar="N",
        help="cells at once (default: 256; of neighbourhoods at most as many as in training)",
    )
    group.add_argument(
        "--precision",
        choices=("auto", "32-true", "bf16-mixed"),
        default="auto",
        help="auto: bfloat16 on a GPU that has it (default: %(default)s)",
    )
    group.add_argument(
        "--workers",
        type=_workers,
        metavar="N",
        help="processes that cut windows (default: 0; for neighbourhoods as in training)",
    )


def _add_result(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the result")
    group.add_argument(
        "--abstain-below",
        type=float,
        default=0.5,
        metavar="P",
        help="calibrated confidence below which a cell gets no class, 0 to 1 (default: %(default)s)",
    )
    group.add_argument(
        "--max-off-slide",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="share of a cell's local window that may lie off the slide (default: %(default)s)",
    )
    group.add_argument(
        "--formats", metavar="LIST", help="outputs, separated by commas (default: csv,geojson,explorer,summary)"
    )


def count(text: str) -> int:
    """Return a whole number from 1, as an argument."""
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of cells; expected a whole number from 1")
    return value


def _workers(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is no number of processes; expected a whole number from 0")
    return int(text)


def _predict(options: argparse.Namespace) -> None:
    from nuclass.apply.outputs import DEFAULT
    from nuclass.apply.run import Options, predict_own

    formats = DEFAULT if options.formats is None else [name for name in options.formats.split(",") if name]
    with _stopping():
        facts = predict_own(
            options.slide,
            options.cells,
            options.ckpt,
            options.out,
            organ=options.organ,
            mpp=options.mpp,
            frame=options.frame,
            reading=_reading(options),
            name=options.name,
            branches={name: getattr(options, f"{name}_checkpoint") for name in (LOCAL, GLOBAL)},
            formats=formats,
            abstain_below=options.abstain_below,
            max_off_slide=options.max_off_slide,
            options=Options(options.device, options.batch, options.precision, options.workers),
        )
    sys.stdout.write(told(facts, options.out))


class _Asked(KeyboardInterrupt):
    """A signal asked the command to leave; nothing that catches errors keeps it."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


@contextmanager
def _stopping() -> Iterator[None]:
    """Leave in words, with 128 and its number as the status, when a signal such as a time limit's SIGTERM asks to.

    Ctrl-C is a ``KeyboardInterrupt`` as ever. What is asked again while the state is saved does not disturb it.
    """
    from nuclass.training.interruption import Signals, signal_name

    asked = False

    def leave(number: int) -> None:
        nonlocal asked
        if not asked:
            asked = True
            raise _Asked(number)

    try:
        with Signals(leave):
            yield
    except KeyboardInterrupt as stopped:
        number = getattr(stopped, "number", signal.SIGINT)
        if number == signal.SIGINT:
            raise KeyboardInterrupt("Stopped; the same command goes on from what is there.") from None
        sys.stderr.write(f"Stopped by {signal_name(number)}; the same command goes on from what is there.\n")
        sys.exit(128 + number)


def _reading(options: argparse.Namespace) -> dict[str, Any]:
    """Return how the positions are read, as far as it was said."""
    told = {name: getattr(options, name) for name in ("alignment", "columns", "weights", "origin")}
    return {name: value for name, value in told.items() if value is not None}


def told(facts: Mapping[str, Any], out: Path) -> str:
    """Return what came out, in words; hints stand in the log."""
    counts = facts["counts"]
    total, typed = counts["total"], counts["typed"]
    lines = [
        f"{facts['slide']}: {total} cells, {_share(typed, total)} typed, "
        f"{_share(counts['abstained'], total)} abstained, {counts['left_out']} left out",
        "",
    ]
    found = sorted(((n, name) for name, n in facts["composition"].items() if n), reverse=True)
    wide = max((len(name) for _, name in found), default=0)
    lines += [f"  {name:<{wide}}  {_share(n, typed)}" for n, name in found]
    return "\n".join([*lines, "", f"Wrote {out}.", ""])


def _share(n: int, of: int) -> str:
    return f"{n} ({100 * n / of:.0f} %)" if of else str(n)
