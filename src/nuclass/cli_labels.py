"""The command that types cells from their transcripts: of a bundle, or of a plain table of counts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nuclass
from nuclass.cli_common import add_command, add_settings, settings_of
from nuclass.core.errors import UserError

if TYPE_CHECKING:
    from nuclass.labels.job import Tables

_ABOUT = """\
Type the cells of a section from their transcripts, and abstain where the evidence is thin.

With a bundle and its cells.parquet, OUT is a folder: labels.parquet with the evidence beside it.
With --counts, OUT is one file (.parquet or .csv), one row a cell:
  cell_id, cell_type (empty where none is certain enough), class (the study's class of the type, if it has one),
  raw_label (the best type, even where abstained), confidence, margin, status (labelled, abstained, dropped), reason
"""
_EXAMPLES = """\
examples:
  nuclass label --counts counts.h5ad --organ breast --out labels.parquet
  nuclass label --counts counts.csv --organ lung --markers config/markers.tsv --out labels.csv
  nuclass label resources/bundles/lung_1 --cells results/slides/lung_1/cells.parquet --organ lung --out labels/lung_1
"""


def add_label(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``nuclass label``."""
    from nuclass.core.names import ORGANS

    parser = add_command(commands, "label", "Type the cells of a section from their transcripts", _ABOUT)
    parser.epilog = _EXAMPLES
    parser.set_defaults(run=_label)
    parser.add_argument("bundle", type=Path, nargs="?", help="folder of the bundle; or give --counts")
    parser.add_argument("--counts", type=Path, help="cells x genes: .h5ad, 10x .h5, .csv, .tsv (also .gz) or .parquet")
    parser.add_argument("--cells", type=Path, help="cells.parquet of the slide, with a bundle")
    parser.add_argument("--organ", choices=ORGANS, required=True, help="organ of the section")
    parser.add_argument("--markers", type=Path, help="a marker table of your own, added to the one that comes along")
    parser.add_argument(
        "--given",
        default="",
        help="labels that others gave the cells of the bundle: FILE, FILE::ID,LABEL or BOOK::SHEET",
    )
    parser.add_argument(
        "--labels",
        choices=("markers", "given", "given_then_markers"),
        help="which labels count (default: labels.source of the settings); the others are compared with them",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, or with --counts the file")
    add_settings(parser)


def _label(options: argparse.Namespace) -> None:
    if (options.bundle is None) == (options.counts is None):
        raise UserError(
            "One source of counts is wanted",
            found="a bundle and --counts" if options.bundle else "neither a bundle nor --counts",
            expected="the folder of a bundle, or --counts FILE",
        )
    if options.counts is not None:
        _label_table(options)
        return
    from nuclass.labels.job import label_slide

    if options.cells is None:
        raise UserError(
            "The slide's table of cells is wanted with a bundle",
            expected="--cells results/slides/SLIDE/cells.parquet, as 'nuclass build-slide' writes it",
        )
    settings = settings_of(options)
    label_slide(
        bundle=options.bundle,
        cells=options.cells,
        tables=_tables(options, settings),
        organ=options.organ,
        settings=settings["labels"],
        source=options.labels or settings["labels"]["source"],
        given=options.given,
        name=options.bundle.name,
        out=options.out,
    )
    sys.stdout.write(f"Wrote {options.out}.\n")


def _label_table(options: argparse.Namespace) -> None:
    from nuclass.labels.job import label_table

    if options.out.suffix not in (".parquet", ".csv"):
        raise UserError("--out is no file that can be written", found=options.out, expected="a .parquet or .csv file")
    settings = settings_of(options)
    labels = label_table(
        counts=options.counts,
        tables=_tables(options, settings),
        organ=options.organ,
        settings=settings["labels"],
        min_transcripts=settings["qc"]["min_transcripts"],
        min_genes=settings["qc"]["min_genes"],
        out=options.out,
    )
    sys.stdout.write(_summary(labels))
    sys.stdout.write(f"Wrote {options.out}.\n")


def _tables(options: argparse.Namespace, settings: dict[str, Any]) -> Tables:
    """Return the tables that labels rest on; those of the repository are found from any folder."""
    from nuclass.labels.job import Tables

    root = Path(nuclass.__file__).parents[2]

    def place(path: str) -> Path:
        return Path(path) if Path(path).exists() else root / path

    own = options.markers or settings["labels"]["extra_markers"] or None
    return Tables(place(settings["markers"]), own, place(settings["ontology"]))


def _summary(labels: Any) -> str:
    typed = labels[labels["status"] == "labelled"]
    lines = [f"{len(labels)} cells: {len(typed)} labelled ({100 * len(typed) / max(len(labels), 1):.1f} %)"]
    for reason, count in labels.loc[labels["status"] != "labelled", "reason"].value_counts().items():
        lines.append(f"  without a label, {reason}: {count}")
    for name, count in typed["cell_type"].value_counts().items():
        lines.append(f"  {name}: {count}")
    return "\n".join(lines) + "\n"
