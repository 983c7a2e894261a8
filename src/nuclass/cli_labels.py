"""The command that types cells from their transcripts: of a bundle, or of a plain table of counts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nuclass.cli_common import add_command, add_own_markers, add_settings, own_markers, settings_of, study_file
from nuclass.core.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from nuclass.labels.job import Tables

_ABOUT = """\
Type the cells of a section from their transcripts, and abstain where the evidence is thin.

With --counts, OUT is one file (.parquet or .csv), and --evidence writes what speaks for each cluster, cell and type.
With a bundle and its cells.parquet, OUT is a folder: labels.parquet with the evidence beside it. Either has one row a
cell:
  cell_id              as in the table or the bundle
  cell_type            empty where none is certain enough
  class                the study's class of that type; empty where it has none, as for plasma cells
  confidence           chance that the type is right, 0 to 1; below labels.min_confidence there is no type
  status, reason       labelled, abstained or dropped, and why
  raw_label            the best type, even where abstained
  margin               lead of the best type over the next
  confidence_released  confidence by the original's formula
  cluster, source      number of its cluster; markers or given

A table of counts has cells x genes or genes x cells, with human gene symbols. Text needs ids in its first column or in
one called cell_id; other columns that are no genes are left out. Columns x_um and y_um, or x_centroid and y_centroid
(micrometres; in obs of an .h5ad), let what spills over from neighbours count. Normalised values are turned back into
counts where that can be done.
"""
_REASONS = {
    "no_nucleus": "no nucleus",
    "low_counts": "too few transcripts",
    "few_genes": "too few genes",
    "control_probes": "too many control probes",
    "too_small": "too small",
    "too_large": "too large",
    "off_slide": "off the H&E image",
    "unsure": "not certain enough",
    "doublet": "two cells in one",
    "other_type": "of a type without markers here",
    "markers_disagree": "its own markers speak for another type",
    "markers_contradict": "its markers contradict the lineage that was given",
    "no_given_label": "none was given",
    "unmapped": "a name that the ontology does not know was given (unmapped.csv)",
    "no_markers": "the markers cannot label this panel",
}
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
    parser.add_argument(
        "--counts", type=Path, metavar="FILE", help=".h5ad, 10x .h5, .csv, .tsv, .txt (text also .gz), .parquet"
    )
    parser.add_argument("--cells", type=Path, metavar="FILE", help="cells.parquet of the slide, with a bundle")
    parser.add_argument(
        "--organ", choices=ORGANS, required=True, metavar="ORGAN", help="organ of the section: " + ", ".join(ORGANS)
    )
    add_own_markers(parser)
    parser.add_argument(
        "--given",
        default="",
        metavar="FILE",
        help="labels that others gave the cells of the bundle: FILE, FILE::ID,LABEL or BOOK::SHEET",
    )
    parser.add_argument(
        "--labels",
        choices=("markers", "given", "given_then_markers"),
        help="which labels count (default: labels.source of the settings); the others are compared with them",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, or with --counts the file")
    parser.add_argument(
        "--evidence", type=Path, metavar="FOLDER", help="with --counts: write what the labels rest on into this folder"
    )
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
    import pandas as pd

    from nuclass.labels.job import label_slide
    from nuclass.labels.panel_check import check_panel

    if options.evidence is not None:
        raise UserError(
            "The evidence of a bundle lies beside its labels, in --out", found="--evidence", fix="leave it out"
        )
    if options.cells is None:
        raise UserError(
            "The slide's table of cells is wanted with a bundle",
            found="a bundle without --cells",
            expected="--cells results/slides/SLIDE/cells.parquet, as 'nuclass build-slide' writes it",
        )
    settings = settings_of(options)
    tables, source = _tables(options, settings), options.labels or settings["labels"]["source"]
    label_slide(
        bundle=options.bundle,
        cells=options.cells,
        tables=tables,
        organ=options.organ,
        settings=settings["labels"],
        source=source,
        given=options.given,
        name=options.bundle.name,
        out=options.out,
    )
    check_panel(
        bundle=options.bundle,
        markers=tables.markers,
        extra_markers=tables.extra_markers,
        ontology=tables.ontology,
        organ=options.organ,
        leave_out=settings["labels"]["leave_out"],
        source=source,
        out=options.out / "panel.csv",
    )
    sys.stdout.write(_summary(pd.read_parquet(options.out / "labels.parquet")))
    sys.stdout.write(f"Wrote {options.out}.\n")


def _label_table(options: argparse.Namespace) -> None:
    from nuclass.labels.job import label_table

    if options.given or options.labels:
        raise UserError(
            "Labels of others are compared with those of a bundle only",
            found="--counts with " + ("--given" if options.given else "--labels"),
            fix="leave it out",
        )
    settings = settings_of(options)
    labels = label_table(
        counts=options.counts,
        tables=_tables(options, settings),
        organ=options.organ,
        settings=settings["labels"],
        min_transcripts=settings["qc"]["min_transcripts"],
        min_genes=settings["qc"]["min_genes"],
        out=options.out,
        evidence=options.evidence,
    )
    sys.stdout.write(_summary(labels))
    sys.stdout.write(f"Wrote {options.out}.\n")


def _tables(options: argparse.Namespace, settings: dict[str, Any]) -> Tables:
    """Return the tables that labels rest on; those of the repository are found from any folder."""
    from nuclass.labels.job import Tables

    own = own_markers(options, settings)
    return Tables(study_file(settings["markers"]), own, study_file(settings["ontology"]))


def _summary(labels: pd.DataFrame) -> str:
    """Return in words how many cells have which type and a class of the study, and what the file holds."""
    n = len(labels)
    typed = labels[labels["status"] == "labelled"]
    classes = typed[typed["class"] != ""]
    lines = [
        f"{n:,} cells: {len(typed):,} labelled ({_share(len(typed), n)}), "
        f"{len(classes):,} of them of a class of the study"
    ]
    without = labels.loc[labels["status"] != "labelled", "reason"].value_counts()
    lines += [f"  no label, {_REASONS.get(str(reason), reason)}: {count:,}" for reason, count in without.items()]
    types = typed.groupby("cell_type")["class"].agg(["first", "size"]).sort_values("size", ascending=False)
    width = max((len(str(name)) for name in types.index), default=0)
    lines += [
        f"  {name:<{width}}  {size:>8,}  {_share(size, n):>6}  "
        + ("no class" if not kind else "" if kind == name else f"class {kind}")
        for name, kind, size in types.itertuples()
    ]
    lines.append("Columns: " + ", ".join(labels.columns))
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.1f} %"
